//! What a link has in flight, and may have.

use std::sync::atomic::{AtomicU64, Ordering};

/// Targets and bytes not yet answered. Taken by the link's reader, given back by its answers; both run in one task.
#[derive(Debug)]
pub(super) struct Credit {
    most_targets: u64,
    most_bytes: u64,
    targets: AtomicU64,
    bytes: AtomicU64,
}

impl Credit {
    pub(super) fn new(most_targets: u64, most_bytes: u64) -> Self {
        Self { most_targets, most_bytes, targets: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Takes for one batch, if there is enough. A batch alone always fits, so that no configuration can lock a router out.
    pub(super) fn take(&self, targets: u64, bytes: u64) -> bool {
        let in_flight = (self.targets.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        let fits = in_flight.0 + targets <= self.most_targets && in_flight.1 + bytes <= self.most_bytes;
        if fits || in_flight == (0, 0) {
            self.targets.fetch_add(targets, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            return true;
        }
        false
    }

    /// Gives back what one batch took.
    pub(super) fn give(&self, targets: u64, bytes: u64) {
        self.targets.fetch_sub(targets, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_bytes_are_bounded_each_and_come_back() {
        let credit = Credit::new(10, 100);
        assert!(credit.take(6, 10));
        assert!(!credit.take(5, 10), "targets");
        assert!(!credit.take(1, 91), "bytes");
        assert!(credit.take(4, 90));
        credit.give(6, 10);
        assert!(credit.take(6, 10));
    }

    #[test]
    fn a_batch_alone_always_fits() {
        let credit = Credit::new(10, 100);
        assert!(credit.take(50, 500));
        assert!(!credit.take(1, 1));
        credit.give(50, 500);
        assert!(credit.take(1, 1));
    }
}
