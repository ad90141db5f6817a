//! Edge time: a monotonic clock anchored to the wall, never below the journal's last time, slewed rather than stepped.
//! The only caller of the operating system's clocks; everything else gets the time as an argument.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::push::Millis;

/// Milliseconds after which the wall clock is looked at again.
const RESYNC_MS: u64 = 1_000;
/// Edge time approaches the wall by at most this many milliseconds then.
const SLEW_MS: i64 = 50;

/// Edge time for the whole process. Reading it takes no lock.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Edge time at `start`.
    base: Millis,
    /// What slewing has added since.
    offset: AtomicI64,
    /// Milliseconds since `start` at which the wall is looked at next.
    resync_at: AtomicU64,
    /// The newest answer: no later one falls below.
    last: AtomicU64,
}

impl Clock {
    /// A clock that starts at the wall's time, or at `floor` if that is later.
    #[allow(clippy::disallowed_methods)]
    pub fn new(floor: Millis) -> Self {
        let base = wall().max(floor);
        Self {
            start: Instant::now(),
            base,
            offset: AtomicI64::new(0),
            resync_at: AtomicU64::new(RESYNC_MS),
            last: AtomicU64::new(base),
        }
    }

    /// Edge time, milliseconds since 1970 UTC. Never less than any earlier answer.
    pub fn now(&self) -> Millis {
        let passed = self.passed().as_millis() as u64;
        let edge = (self.base + passed).saturating_add_signed(self.offset.load(Ordering::Relaxed));
        let due = self.resync_at.load(Ordering::Relaxed);
        if passed >= due
            && self
                .resync_at
                .compare_exchange(due, passed + RESYNC_MS, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.offset.fetch_add(slew(edge, wall()), Ordering::Relaxed);
        }
        self.last.fetch_max(edge, Ordering::Relaxed).max(edge)
    }

    /// Raises the floor: after a recovery, edge time doesn't fall below the journal's last time.
    pub fn raise(&self, floor: Millis) {
        let behind = floor.saturating_sub(self.now());
        self.offset.fetch_add(behind as i64, Ordering::Relaxed);
        self.last.fetch_max(floor, Ordering::Relaxed);
    }

    /// Monotonic microseconds since this clock was made: for measuring, never for decisions about messages.
    pub fn micros(&self) -> u64 {
        self.passed().as_micros() as u64
    }

    #[allow(clippy::disallowed_methods)]
    fn passed(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }
}

/// The wall's time, milliseconds since 1970 UTC.
#[allow(clippy::disallowed_methods)]
fn wall() -> Millis {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

/// How far edge time moves towards the wall at one look: bounded.
fn slew(edge: Millis, wall: Millis) -> i64 {
    (wall as i64).saturating_sub(edge as i64).clamp(-SLEW_MS, SLEW_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edge_time_never_goes_back_and_respects_the_floor() {
        let far = wall() + 3_600_000;
        let clock = Clock::new(far);
        let mut before = clock.now();
        assert!(before >= far);
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now >= before);
            before = now;
        }
    }

    #[test]
    fn it_is_slewed_not_stepped() {
        assert_eq!(slew(1_000, 1_000), 0);
        assert_eq!(slew(1_000, 1_020), 20);
        assert_eq!(slew(1_000, 90_000), 50);
        assert_eq!(slew(90_000, 1_000), -50);
    }

    #[test]
    fn a_recovery_raises_it() {
        let clock = Clock::new(0);
        let far = clock.now() + 1_000_000;
        clock.raise(far);
        assert!(clock.now() >= far && clock.now() < far + 60_000);
    }
}
