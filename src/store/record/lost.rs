//! What a start found lost: for every stream, as nobody knows whose records these were.

use super::{Malformed, Take, put_u64, put_varint};
use crate::ids::Seq;

/// From which sequence to which, each.
pub(in crate::store) fn put_lost(out: &mut Vec<u8>, ranges: &[(Seq, Seq)]) {
    put_varint(out, ranges.len() as u64);
    for (first, last) in ranges {
        put_u64(out, first.0);
        put_u64(out, last.0);
    }
}

/// Takes what [`put_lost`] put.
pub(in crate::store) fn take_lost(payload: &[u8]) -> Result<Vec<(Seq, Seq)>, Malformed> {
    let mut take = Take(payload);
    let mut ranges = Vec::new();
    for _ in 0..take.varint()? {
        let (first, last) = (Seq(take.u64()?), Seq(take.u64()?));
        if first > last {
            return Err(Malformed);
        }
        ranges.push((first, last));
    }
    take.0.is_empty().then_some(ranges).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_and_nothing_else_passes_for_them() {
        let ranges = [(Seq(3), Seq(3)), (Seq(7), Seq(u64::MAX))];
        let mut bytes = Vec::new();
        put_lost(&mut bytes, &ranges);
        assert_eq!(take_lost(&bytes).as_deref(), Ok(&ranges[..]));
        for cut in 0..bytes.len() {
            assert!(take_lost(&bytes[..cut]).is_err(), "{cut}");
        }
        bytes.push(0);
        assert!(take_lost(&bytes).is_err());
        bytes.clear();
        put_lost(&mut bytes, &[(Seq(2), Seq(1))]);
        assert!(take_lost(&bytes).is_err(), "a range that ends before it begins");
    }
}
