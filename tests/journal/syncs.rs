//! Leaving out any one sync breaks a promise, and the crash tests notice.

use mooring::store::disk::SyncPoint;
use mooring::store::disk::crash::{CrashTest, everywhere};
use mooring::store::disk::sim::SimDisk;

use crate::crash::KeyRun;
use crate::model::RandomRun;

/// Looks for a seed that shows the violation.
fn is_needed<T: CrashTest>(point: SyncPoint, test: impl Fn(u64) -> T) {
    let disk = SimDisk::new();
    disk.skip(point);
    let violation = (0..50).find_map(|seed| everywhere(seed, &disk, &test(seed)).err());
    let violation = violation.unwrap_or_else(|| panic!("nothing breaks without {point:?}"));
    println!("without {point:?}: {violation}");
}

fn run(seed: u64) -> RandomRun {
    RandomRun::new(seed, 60)
}

#[test]
fn the_sync_of_a_commit_group_is_needed() {
    is_needed(SyncPoint::GroupCommit, run);
}

#[test]
fn the_directory_sync_after_a_new_segment_is_needed() {
    is_needed(SyncPoint::SegmentEntry, run);
}

#[test]
fn the_sync_of_the_tail_at_a_recovery_is_needed() {
    is_needed(SyncPoint::RecoveryTail, run);
}

#[test]
fn the_directory_sync_at_a_recovery_is_needed() {
    is_needed(SyncPoint::RecoveryEntries, run);
}

#[test]
fn the_sync_of_a_checkpoint_before_its_renaming_is_needed() {
    is_needed(SyncPoint::CheckpointContent, run);
}

#[test]
fn the_directory_sync_before_an_older_checkpoint_is_removed_is_needed() {
    is_needed(SyncPoint::CheckpointEntry, run);
}

#[test]
fn the_sync_of_the_format_file_is_needed() {
    is_needed(SyncPoint::FormatContent, |_| KeyRun);
}

#[test]
fn the_directory_sync_of_the_format_file_is_needed() {
    is_needed(SyncPoint::FormatEntry, |_| KeyRun);
}

#[test]
fn there_is_no_other_sync() {
    // The two of the tables have theirs beside the tables.
    assert_eq!(SyncPoint::ALL.len(), 8 + 2, "a new sync point needs a test here");
}
