//! Ordinals of a batch's targets, a bit each. Those before the first one take no room: of the last part of a large batch that would be all but a hundredth.

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ordinals {
    /// Bytes of zeros before `bits`.
    skipped: u32,
    /// Bit `i % 8` of byte `i / 8` stands for ordinal `8 × skipped + i`. The first byte isn't zero.
    bits: Vec<u8>,
}

impl Ordinals {
    /// From what [`Ordinals::parts`] gave.
    pub fn from_parts(skipped: u32, bits: &[u8]) -> Self {
        let zeros = bits.iter().take_while(|byte| **byte == 0).count();
        let bits = bits[zeros..].to_vec();
        if bits.is_empty() {
            Self::default()
        } else {
            Self { skipped: skipped.saturating_add(zeros as u32), bits }
        }
    }

    /// Bytes of zeros at the beginning, and what comes then.
    pub fn parts(&self) -> (u32, &[u8]) {
        (self.skipped, &self.bits)
    }

    /// Puts one in.
    pub fn insert(&mut self, ordinal: u32) {
        let byte = ordinal / 8;
        if self.bits.is_empty() {
            self.skipped = byte;
        } else if byte < self.skipped {
            let missing = (self.skipped - byte) as usize;
            self.bits.splice(..0, std::iter::repeat_n(0, missing));
            self.skipped = byte;
        }
        let at = (byte - self.skipped) as usize;
        if self.bits.len() <= at {
            self.bits.resize(at + 1, 0);
        }
        self.bits[at] |= 1 << (ordinal % 8);
    }

    /// Whether it is in it.
    pub fn contains(&self, ordinal: u32) -> bool {
        let byte = (ordinal / 8).checked_sub(self.skipped).and_then(|at| self.bits.get(at as usize));
        byte.is_some_and(|byte| byte >> (ordinal % 8) & 1 == 1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.bits.iter().map(|byte| byte.count_ones()).sum()
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let of = |(at, byte): (u32, &u8)| {
            let byte = *byte;
            (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
        };
        (self.skipped..).zip(&self.bits).flat_map(of)
    }
}

impl FromIterator<u32> for Ordinals {
    fn from_iter<I: IntoIterator<Item = u32>>(all: I) -> Self {
        let mut ordinals = Self::default();
        for ordinal in all {
            ordinals.insert(ordinal);
        }
        ordinals
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_before_the_first_takes_no_room() {
        let mut ordinals = Ordinals::default();
        assert!(ordinals.is_empty() && ordinals.parts() == (0, &[]));
        ordinals.insert(99_001);
        assert_eq!(ordinals.parts(), (12_375, &[0b10][..]));
        ordinals.insert(98_999);
        assert_eq!(ordinals.parts(), (12_374, &[0b1000_0000, 0b10][..]));
        assert_eq!(Ordinals::from_parts(7, &[0, 0, 1]).parts(), (9, &[1][..]));
        assert_eq!(Ordinals::from_parts(7, &[0, 0]), Ordinals::default());
    }

    proptest! {
        #[test]
        fn it_is_a_set(all in prop::collection::vec(0..300_u32, 0..20)) {
            let ordinals: Ordinals = all.iter().copied().collect();
            let set: BTreeSet<u32> = all.into_iter().collect();
            prop_assert!(ordinals.iter().eq(set.iter().copied()));
            prop_assert_eq!((ordinals.len() as usize, ordinals.is_empty()), (set.len(), set.is_empty()));
            prop_assert!((0..320).all(|one| ordinals.contains(one) == set.contains(&one)));
            let (skipped, bits) = ordinals.parts();
            prop_assert_eq!(&Ordinals::from_parts(skipped, bits), &ordinals);
        }
    }
}
