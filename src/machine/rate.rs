//! Rates shared by several threads: how often something may happen, and how often it is worth a line in the log. Without locks, and
//! without a thread that refills anything.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::push::Millis;

/// A second, in microseconds: so much may happen at once after a pause.
const BURST_MICROS: u64 = 1_000_000;

/// At most so many a second, a second's worth of them at once: the generic cell rate algorithm, which keeps one number, the time at
/// which everything taken so far will have been paid for.
#[derive(Debug)]
pub struct Rate {
    interval_micros: u64,
    paid_at: AtomicU64,
}

impl Rate {
    /// `per_second` from 1 to a million.
    pub fn new(per_second: u32) -> Self {
        let interval_micros = BURST_MICROS / u64::from(per_second.clamp(1, 1_000_000));
        Self { interval_micros, paid_at: AtomicU64::new(0) }
    }

    /// Takes one, if there is one.
    pub fn take(&self, now: Millis) -> bool {
        let now = now.saturating_mul(1_000);
        self.paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
                let next = paid_at.max(now) + self.interval_micros;
                (next - now <= BURST_MICROS).then_some(next)
            })
            .is_ok()
    }
}

/// At most so many lines a second. Threads that cross a second together may let a few more pass.
#[derive(Debug)]
pub struct Quiet {
    per_second: u32,
    second: AtomicU64,
    said: AtomicU32,
    suppressed: AtomicU64,
}

impl Quiet {
    /// So many lines a second.
    pub fn new(per_second: u32) -> Self {
        let (second, said, suppressed) = (AtomicU64::new(0), AtomicU32::new(0), AtomicU64::new(0));
        Self { per_second, second, said, suppressed }
    }

    /// Whether a line may be written: then how many were not, before it.
    pub fn allows(&self, now: Millis) -> Option<u64> {
        let second = now / 1_000;
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.said.store(0, Ordering::Relaxed);
        }
        // Only counted while it is below: it can't wrap.
        let said = self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |said| {
            (said < self.per_second).then_some(said + 1)
        });
        if said.is_ok() {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_them_at_once_then_as_many_as_time_pays_for() {
        let rate = Rate::new(100);
        let start = 1_700_000_000_000;
        let taken = |now| (0..1_000).filter(|_| rate.take(now)).count();
        assert_eq!(taken(start), 100);
        assert_eq!(taken(start), 0);
        assert_eq!(taken(start + 50), 5);
        assert_eq!(taken(start + 10_000), 100, "a long pause saves up no more than a second");
        assert_eq!(taken(start), 0, "time that goes back gives nothing");
        let one = Rate::new(1);
        assert!(one.take(start) && !one.take(start + 999) && one.take(start + 1_000));
    }

    #[test]
    fn lines_beyond_the_rate_are_counted_in_the_next_one() {
        let quiet = Quiet::new(2);
        assert_eq!([quiet.allows(5_000), quiet.allows(5_001), quiet.allows(5_999)], [Some(0), Some(0), None]);
        assert_eq!(quiet.allows(5_999), None);
        assert_eq!([quiet.allows(6_000), quiet.allows(6_000), quiet.allows(6_000)], [Some(2), Some(0), None]);
    }
}
