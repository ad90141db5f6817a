//! Who was refused: beside the ordinals of a batch record, so that "why did it not get this?" has an answer.

use crate::ids::DeviceKey;
use crate::store::codec::{Malformed, Take, put_varint};

/// A refused target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) enum Who {
    /// By its number.
    Known(u32),
    /// By the beginning of its key, for there is no number: one in four thousand million is taken for another.
    Unknown([u8; 4]),
}

impl Who {
    /// A device, with its number if it is known.
    pub(in crate::store) fn of(key: &DeviceKey, number: Option<u32>) -> Self {
        number.map_or_else(|| Self::Unknown(short(key)), Self::Known)
    }

    pub(in crate::store) fn number(self) -> Option<u32> {
        match self {
            Self::Known(number) => Some(number),
            Self::Unknown(_) => None,
        }
    }

    /// Whether it is this device, which may have become known since.
    pub(in crate::store) fn is(self, key: &DeviceKey, number: Option<u32>) -> bool {
        match self {
            Self::Known(known) => number == Some(known),
            Self::Unknown(begin) => begin == short(key),
        }
    }
}

fn short(key: &DeviceKey) -> [u8; 4] {
    let mut begin = [0; 4];
    begin.copy_from_slice(&key.0[..4]);
    begin
}

/// In the order of the refused ordinals: 1 + the number as a varint; or 0 and the beginning of the key.
pub(in crate::store) fn put_who(out: &mut Vec<u8>, all: &[Who]) {
    for who in all {
        match who {
            Who::Known(number) => put_varint(out, u64::from(*number) + 1),
            Who::Unknown(begin) => {
                put_varint(out, 0);
                out.extend_from_slice(begin);
            }
        }
    }
}

/// What [`put_who`] wrote.
pub(in crate::store) fn take_who(bytes: &[u8]) -> Result<Vec<Who>, Malformed> {
    let mut take = Take(bytes);
    let mut all = Vec::new();
    while !take.0.is_empty() {
        all.push(match take.varint()?.checked_sub(1) {
            None => Who::Unknown(take.array()?),
            Some(number) => Who::Known(u32::try_from(number).map_err(|_| Malformed)?),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_refused_comes_back() {
        let key = DeviceKey([9; 16]);
        let all = [Who::of(&key, None), Who::of(&key, Some(0)), Who::of(&key, Some(u32::MAX - 1))];
        let mut out = Vec::new();
        put_who(&mut out, &all);
        assert_eq!(take_who(&out), Ok(all.to_vec()));
        assert!(all[0].is(&key, None) && all[0].is(&key, Some(7)) && !all[0].is(&DeviceKey([8; 16]), None));
        assert!(all[1].is(&key, Some(0)) && !all[1].is(&key, None));
        assert!(take_who(&out[..3]).is_err());
    }
}
