//! How long messages took, recorded by many threads at once.
//!
//! One histogram for all would pass between the cores with each message: of a flood that was a tenth of what the devices took. So threads have one each,
//! and only who asks puts them together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;
use mooring::cli::output::Failure;

use crate::numbers::histogram;

/// Threads that share nothing; beyond, some do.
const SLOTS: usize = 8;

/// Microseconds, and when the newest was recorded.
pub(crate) struct Latencies {
    slots: [Mutex<Slot>; SLOTS],
}

struct Slot {
    micros: Histogram<u64>,
    newest: u64,
}

thread_local! {
    static SLOT: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % SLOTS
    };
}

impl Latencies {
    pub(crate) fn new() -> Result<Self, Failure> {
        let empty = histogram()?;
        Ok(Self { slots: std::array::from_fn(|_| Mutex::new(Slot { micros: empty.clone(), newest: 0 })) })
    }

    /// One of so many microseconds, at this time.
    pub(crate) fn record(&self, at: u64, micros: u64) {
        let mut slot = lock(&self.slots[SLOT.with(|slot| *slot)]);
        slot.micros.saturating_record(micros.max(1));
        slot.newest = slot.newest.max(at);
    }

    /// When the newest was recorded; 0: none ever.
    pub(crate) fn newest(&self) -> u64 {
        self.slots.iter().map(|slot| lock(slot).newest).max().unwrap_or(0)
    }

    /// What is recorded so far; from now on others are.
    pub(crate) fn take(&self) -> Result<Histogram<u64>, Failure> {
        let mut all = histogram()?;
        for slot in &self.slots {
            let micros = &mut lock(slot).micros;
            all.add(&*micros).map_err(Failure::failed)?;
            micros.reset();
        }
        Ok(all)
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_record_comes_together_once() {
        let latencies = Latencies::new().expect("bounds that are right");
        std::thread::scope(|scope| {
            for thread in 1..=20 {
                let latencies = &latencies;
                scope.spawn(move || latencies.record(1_000 + thread, thread));
            }
        });
        assert_eq!(latencies.newest(), 1_020);
        let all = latencies.take().expect("the same bounds");
        assert_eq!((all.len(), all.min(), all.max()), (20, 1, 20));
        latencies.record(5, 0);
        let then = latencies.take().expect("the same bounds");
        assert_eq!((then.len(), then.max(), latencies.newest()), (1, 1, 1_020));
    }
}
