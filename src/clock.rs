//! Edge time: a monotonic clock anchored to the wall, never below the journal's last time, slewed rather than stepped.
//! The only caller of the operating system's clocks; everything else gets the time as an argument.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::push::Millis;

/// How often the wall clock is looked at again.
const RESYNC: Duration = Duration::from_secs(1);
/// Edge time runs at most this many parts per thousand faster or slower than monotonic time while it approaches the wall.
const SLEW_PER_MILLE: i64 = 50;

/// Edge time for the whole process.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Milliseconds that no reading may fall below.
    last: AtomicU64,
    anchor: Mutex<Anchor>,
}

#[derive(Debug)]
struct Anchor {
    at: Instant,
    edge: Millis,
    /// Parts per thousand that edge time runs fast since `at`.
    rate: i64,
}

impl Clock {
    /// A clock that starts at the wall's time, or at `floor` if that is later.
    #[allow(clippy::disallowed_methods)]
    pub fn new(floor: Millis) -> Self {
        let edge = wall().max(floor);
        let now = Instant::now();
        Self { start: now, last: AtomicU64::new(edge), anchor: Mutex::new(Anchor { at: now, edge, rate: 0 }) }
    }

    /// Edge time, milliseconds since 1970 UTC. Never less than any earlier answer.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Millis {
        let now = Instant::now();
        let edge = {
            let mut anchor = match self.anchor.lock() {
                Ok(anchor) => anchor,
                Err(poisoned) => poisoned.into_inner(),
            };
            let passed = now.saturating_duration_since(anchor.at);
            let edge = advance(anchor.edge, passed, anchor.rate);
            if passed >= RESYNC {
                let rate = slew(edge, wall());
                *anchor = Anchor { at: now, edge, rate };
            }
            edge
        };
        self.last.fetch_max(edge, Ordering::Relaxed).max(edge)
    }

    /// Raises the floor: after a recovery, edge time doesn't fall below the journal's last time.
    pub fn raise(&self, floor: Millis) {
        let mut anchor = match self.anchor.lock() {
            Ok(anchor) => anchor,
            Err(poisoned) => poisoned.into_inner(),
        };
        anchor.edge = anchor.edge.max(floor);
        self.last.fetch_max(floor, Ordering::Relaxed);
    }

    /// Monotonic microseconds since this clock was made: for measuring, never for decisions about messages.
    #[allow(clippy::disallowed_methods)]
    pub fn micros(&self) -> u64 {
        Instant::now().saturating_duration_since(self.start).as_micros() as u64
    }
}

/// The wall's time, milliseconds since 1970 UTC.
#[allow(clippy::disallowed_methods)]
fn wall() -> Millis {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

fn advance(edge: Millis, passed: Duration, rate: i64) -> Millis {
    let passed = passed.as_millis() as i64;
    edge.saturating_add_signed(passed + passed * rate / 1000)
}

/// The rate at which edge time should run to meet the wall within a second or so, bounded.
fn slew(edge: Millis, wall: Millis) -> i64 {
    let behind = i64::try_from(wall).unwrap_or(i64::MAX) - i64::try_from(edge).unwrap_or(i64::MAX);
    behind.clamp(-SLEW_PER_MILLE, SLEW_PER_MILLE)
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
        assert_eq!(slew(1_000, 90_000), 50);
        assert_eq!(slew(90_000, 1_000), -50);
        assert_eq!(advance(1_000, Duration::from_secs(1), -50), 1_950);
        assert_eq!(advance(1_000, Duration::from_secs(1), 50), 2_050);
    }
}
