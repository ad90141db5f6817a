//! Reads of the disk that fail, a few at a time, in some runs: while the edge runs, and while it starts.

use mooring::store::disk::sim::SimDisk;
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;

/// See the module.
pub(crate) struct Reads {
    pub(crate) happen: bool,
}

impl Reads {
    /// Perhaps, if `may` be.
    pub(crate) fn new(may: bool, rng: &mut SmallRng) -> Self {
        Self { happen: once_in(rng, 4) && may }
    }

    /// Some of the next reads will fail, now and then. What it was, for the trace.
    pub(crate) fn strike(&self, disk: &SimDisk, rng: &mut SmallRng) -> Option<String> {
        if !self.happen || !once_in(rng, 40) {
            return None;
        }
        let from = disk.reads() + rng.random_range(0..4);
        let until = from + rng.random_range(1..6);
        disk.fail_reads_between(from..until);
        Some(format!("reads {from} to {until} will fail"))
    }

    /// The same of a start.
    pub(crate) fn strike_start(&self, disk: &SimDisk, rng: &mut SmallRng) {
        if self.happen && once_in(rng, 3) {
            let from = disk.reads() + rng.random_range(0..60);
            disk.fail_reads_between(from..from + rng.random_range(1..3));
        }
    }
}
