//! How most tests begin, and what they do again and again.

use std::sync::Arc;

use super::plan::START;
use super::support::Harness;
use crate::push::Millis;
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

pub(super) const HOUR: u64 = 3_600_000;
/// Bytes of a segment in [`super::support::small`].
pub(super) const SEGMENT: u64 = 16 * 1024;

/// An engine that knows four devices, and has told everything of them.
pub(super) fn opened(options: &StoreOptions) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, options, START);
    for n in 0..4 {
        harness.see(n);
    }
    harness.commit().expect("the disk works");
    harness.sink.take();
    (disk, harness)
}

/// Killed and opened again.
pub(super) fn again(
    disk: &Arc<SimDisk>,
    harness: Harness<SimDisk>,
    options: &StoreOptions,
) -> Harness<SimDisk> {
    let now = harness.now;
    drop(harness);
    disk.kill();
    Harness::open(disk, options, now)
}

/// Everything that is due is done.
pub(super) fn settle(harness: &mut Harness<SimDisk>) {
    harness.settle().expect("the disk works");
}

/// Nothing but time passes, in steps that let everything have its turn.
pub(super) fn pass(harness: &mut Harness<SimDisk>, ms: Millis) {
    for _ in 0..ms / 1_000 {
        harness.now += 1_000;
        settle(harness);
    }
}

/// What is pending on a device, by message.
pub(super) fn messages(harness: &Harness<SimDisk>, n: u32) -> Vec<u64> {
    harness.pulled(n).into_iter().map(|(message, _)| message).collect()
}

/// Names of files that begin so.
pub(super) fn files(disk: &SimDisk, prefix: &str) -> Vec<String> {
    let all = disk.list().expect("readable").into_iter();
    all.filter(|name| name.starts_with(prefix)).collect()
}
