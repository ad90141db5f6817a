//! Spare segments at a start: those that are whole and empty are there again, every other one goes.

use std::sync::Arc;

use super::common::{SEGMENT, files};
use super::plan::START;
use super::support::{Harness, small};
use crate::ids::Seq;
use crate::store::disk::Disk;
use crate::store::disk::DiskFile;
use crate::store::disk::real::RealDisk;
use crate::store::disk::sim::SimDisk;
use crate::store::journal::{Journal, JournalOptions};
use crate::store::options::StoreOptions;

fn options() -> StoreOptions {
    StoreOptions { reserve_segments: 2, ..small() }
}

fn opened() -> (Arc<SimDisk>, Vec<String>) {
    let disk = Arc::new(SimDisk::new());
    drop(Harness::open(&disk, &options(), START));
    let mut spares = files(&disk, "spare-");
    spares.sort();
    assert_eq!(spares.len(), 3, "the next one, and the reserve");
    (disk, spares)
}

/// Those of before that are there after a start.
fn kept(disk: &Arc<SimDisk>, before: &[String]) -> Vec<bool> {
    disk.kill();
    drop(Harness::open(disk, &options(), START));
    let after = files(disk, "spare-");
    assert_eq!(after.len(), 3);
    before.iter().map(|name| after.contains(name)).collect()
}

#[test]
fn spares_of_before_are_used_again() {
    let (disk, spares) = opened();
    assert_eq!(kept(&disk, &spares), [true; 3]);
}

#[test]
fn a_spare_of_another_size_is_none() {
    for bytes in [SEGMENT / 2, SEGMENT * 2] {
        let (disk, spares) = opened();
        disk.remove(&spares[1]).expect("there");
        disk.create(&spares[1], bytes).expect("room");
        assert_eq!(kept(&disk, &spares), [true, false, true], "{bytes}");
    }
}

/// A full disk is none: what is there is all there is.
#[test]
fn a_spare_that_cannot_be_made_for_want_of_anything_but_space_is_an_error() {
    let disk = Arc::new(SimDisk::new());
    let options = JournalOptions { segment_bytes: SEGMENT as u32, salt: 1, ..JournalOptions::default() };
    let recovered = Journal::recover(disk.clone(), options, (Seq(0), Seq(0)), &mut |_| {});
    let mut journal = recovered.expect("an empty disk").0;
    disk.set_capacity(Some(disk.used()));
    assert!(!journal.add_spare().expect("a full disk is no error"));
    disk.set_capacity(None);
    let before = files(&disk, "spare-").len();
    assert!(journal.add_spare().expect("there is room"));
    assert_eq!(files(&disk, "spare-").len(), before + 1);
    // Somebody else's file has the name of the next one.
    let taken = format!("spare-{}.seg", before + 3);
    disk.create(&taken, 0).expect("room");
    let error = journal.add_spare().expect_err("the name is taken").to_string();
    assert!(error.contains(&taken), "{error}");
}

/// It was a segment, and its name got lost with the power.
#[test]
fn a_spare_that_was_written_to_is_none() {
    let (disk, spares) = opened();
    let file = disk.open(&spares[1]).expect("there");
    file.write_at(&[7], 20).expect("works");
    assert_eq!(kept(&disk, &spares), [true, false, true]);
}

/// Else what damage took could not be said by who has set a maximum: that of all files would refuse the segment that the journal's allows.
#[test]
fn the_segment_that_damage_is_said_in_goes_beyond_the_maximum_of_all_files_too() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = || JournalOptions { segment_bytes: SEGMENT as u32, salt: 1, ..JournalOptions::default() };
    let opened = |max| {
        let (disk, _) = RealDisk::open(dir.path(), max).expect("opens");
        let recovered = Journal::recover(disk.clone(), options(), (Seq(0), Seq(0)), &mut |_| {});
        (disk, recovered.expect("readable").0)
    };
    drop(opened(None));
    let used = std::fs::read_dir(dir.path()).expect("there").map(|file| file.expect("there").metadata());
    let used = used.map(|about| about.expect("there").len()).sum();
    let (disk, mut journal) = opened(Some(used));
    let before = journal.file_bytes();
    assert!(!journal.add_spare().expect("no error") && disk.create("more", 1).is_err(), "all is used up");
    assert!(journal.add_spare_beyond().expect("no error"));
    assert_eq!(journal.file_bytes(), before + SEGMENT);
    assert!(!journal.add_spare().expect("no error") && disk.create("more", 1).is_err(), "by that one only");
}
