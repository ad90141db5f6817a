//! tokio's timers in simulated time: a runtime that runs nothing, whose clock stands still but when it is told to go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::{Builder, EnterGuard, Runtime};

use super::SimTime;

/// See the module.
#[derive(Debug)]
pub(crate) struct Timers {
    runtime: Runtime,
    time: Arc<SimTime>,
    /// Microseconds of the simulation up to which they have fired.
    fired: u64,
}

impl Timers {
    pub(crate) fn new(time: &Arc<SimTime>) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without threads and descriptors");
        Self { runtime, time: time.clone(), fired: time.micros.load(Ordering::Relaxed) }
    }

    /// Until this is dropped, what is polled takes its timers from here.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.runtime.enter()
    }

    /// Wakes who waits for a time that has come.
    pub(crate) fn fire(&mut self) {
        let now = self.time.micros.load(Ordering::Relaxed);
        let passed = Duration::from_micros(now - self.fired);
        self.fired = now;
        self.runtime.block_on(tokio::time::advance(passed));
    }
}
