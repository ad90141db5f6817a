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
    source: Source,
    /// Edge time at the start.
    base: Millis,
    /// What slewing has added since.
    offset: AtomicI64,
    /// Milliseconds since the start at which the wall is looked at next.
    resync_at: AtomicU64,
    /// The newest answer: no later one falls below.
    last: AtomicU64,
}

/// What tells how time passes.
#[derive(Debug)]
enum Source {
    /// The operating system, since this instant.
    System(Instant),
    /// A simulation, since this many microseconds of it.
    #[cfg(feature = "sim")]
    Simulated(std::sync::Arc<SimTime>, u64),
}

/// The clocks of a simulated machine.
#[cfg(feature = "sim")]
#[derive(Debug, Default)]
pub struct SimTime {
    /// Microseconds that have passed: never back.
    pub micros: AtomicU64,
    /// What its wall clock says, milliseconds since 1970 UTC: goes where it likes.
    pub wall: AtomicU64,
}

impl Clock {
    /// A clock that starts at the wall's time, or at `floor` if that is later.
    #[allow(clippy::disallowed_methods)]
    pub fn new(floor: Millis) -> Self {
        Self::from_source(Source::System(Instant::now()), floor)
    }

    /// The same on a simulated machine.
    #[cfg(feature = "sim")]
    pub fn simulated(time: std::sync::Arc<SimTime>, floor: Millis) -> Self {
        let start = time.micros.load(Ordering::Relaxed);
        Self::from_source(Source::Simulated(time, start), floor)
    }

    fn from_source(source: Source, floor: Millis) -> Self {
        let base = source.wall().max(floor);
        Self {
            source,
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
            self.offset.fetch_add(slew(edge, self.source.wall()), Ordering::Relaxed);
        }
        // Within a millisecond nothing changes: then all threads only read what all of them share.
        let last = self.last.load(Ordering::Relaxed);
        if last >= edge {
            return last;
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

    fn passed(&self) -> Duration {
        self.source.passed()
    }
}

impl Source {
    #[allow(clippy::disallowed_methods)]
    fn passed(&self) -> Duration {
        match self {
            Self::System(start) => Instant::now().saturating_duration_since(*start),
            #[cfg(feature = "sim")]
            Self::Simulated(time, start) => {
                Duration::from_micros(time.micros.load(Ordering::Relaxed).saturating_sub(*start))
            }
        }
    }

    fn wall(&self) -> Millis {
        match self {
            Self::System(_) => wall(),
            #[cfg(feature = "sim")]
            Self::Simulated(time, _) => time.wall.load(Ordering::Relaxed),
        }
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
