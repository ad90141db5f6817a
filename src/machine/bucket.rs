//! A token bucket: so many a second, with a burst of one second's worth, and a delay for whom it refuses. Pure: the time is an argument.
//!
//! Counted in thousandths, so that a rate a second is as many a millisecond and nothing is rounded. Something larger than the whole bucket passes
//! when the bucket is full, and leaves a debt: it is taken once, late enough, rather than never.

use crate::push::Millis;

/// Thousandths of a token.
const UNIT: i64 = 1_000;

/// So many a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// 0: no bound.
    per_second: u32,
    /// Thousandths; below 0: a debt.
    level: i64,
    /// As of this time.
    at: Millis,
}

impl Bucket {
    /// A full one. 0: no bound.
    pub fn new(per_second: u32, now: Millis) -> Self {
        Self { per_second, level: i64::from(per_second) * UNIT, at: now }
    }

    /// Another rate from now on. What was owed stays owed; what was saved is at most the new burst.
    pub fn set_rate(&mut self, per_second: u32, now: Millis) {
        if per_second != self.per_second {
            self.refill(now);
            // A bucket that had no bound has saved nothing to speak of: it begins full.
            let level = if self.per_second == 0 { i64::MAX } else { self.level };
            self.per_second = per_second;
            self.level = level.min(self.capacity());
        }
    }

    /// Milliseconds until so many could be taken at once; 0: now.
    pub fn wait(&mut self, count: u32, now: Millis) -> Millis {
        if self.per_second == 0 {
            return 0;
        }
        self.refill(now);
        let needed = (i64::from(count) * UNIT).min(self.capacity());
        let missing = (needed - self.level).max(0);
        missing.unsigned_abs().div_ceil(u64::from(self.per_second))
    }

    /// Takes so many, whether they are there or not: ask [`Bucket::wait`] before.
    pub fn take(&mut self, count: u32) {
        if self.per_second > 0 {
            self.level -= i64::from(count) * UNIT;
        }
    }

    fn capacity(&self) -> i64 {
        i64::from(self.per_second) * UNIT
    }

    fn refill(&mut self, now: Millis) {
        let passed = i64::try_from(now.saturating_sub(self.at)).unwrap_or(i64::MAX);
        let gained = passed.saturating_mul(i64::from(self.per_second));
        self.level = self.level.saturating_add(gained).min(self.capacity());
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Over any time no more passes than the rate, one burst, and one last thing that was larger than the bucket; and who comes back after the
        /// delay, and not a millisecond before, is let in.
        #[test]
        fn no_more_than_the_rate_and_the_delay_is_exact(
            rate in 1u32..2_000,
            asked in vec((0u64..3_000, 1u32..4_000), 1..60),
        ) {
            let start = 1_000_000;
            let mut bucket = Bucket::new(rate, start);
            let (mut now, mut taken, mut largest) = (start, 0u64, 0u64);
            for (passed, count) in asked {
                now += passed;
                let wait = bucket.wait(count, now);
                if wait > 0 {
                    prop_assert_eq!(bucket.clone().wait(count, now + wait), 0, "too short");
                    prop_assert!(bucket.clone().wait(count, now + wait - 1) > 0, "too long");
                    continue;
                }
                bucket.take(count);
                taken += u64::from(count);
                largest = largest.max(u64::from(count));
                let bound = u64::from(rate) * (now - start) / 1_000 + u64::from(rate) + largest;
                prop_assert!(taken <= bound, "{taken} in {} ms at {rate} a second", now - start);
            }
        }
    }

    #[test]
    fn no_rate_is_no_bound_and_a_new_rate_holds_at_once() {
        let mut bucket = Bucket::new(0, 5);
        assert_eq!(bucket.wait(u32::MAX, 5), 0);
        bucket.take(u32::MAX);
        bucket.set_rate(10, 6);
        assert_eq!(bucket.wait(10, 6), 0);
        bucket.take(10);
        assert_eq!(bucket.wait(1, 6), 100);
        bucket.set_rate(1_000, 6);
        assert_eq!(bucket.wait(1, 6), 1);
        bucket.set_rate(0, 6);
        assert_eq!(bucket.wait(1_000_000, 6), 0);
        // Time that goes back gives nothing.
        let mut bucket = Bucket::new(1, 100);
        bucket.take(1);
        assert_eq!((bucket.wait(1, 0), bucket.wait(1, 1_100)), (1_000, 0));
    }
}
