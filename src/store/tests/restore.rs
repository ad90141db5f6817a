//! An older copy of a data directory that is put back: cursors of the time that was lost are refused, all others are good.

use std::sync::Arc;

use super::plan::START;
use super::streams::{self, of_other, other, other_device};
use super::support::{Harness, app, batch, small};
use crate::ids::{HistoryId, Seq};
use crate::limits;
use crate::push::Reached;
use crate::store::Pulled;
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

const HOUR: u64 = 3_600_000;

/// A router's cursor of its own.
type Cursor = (HistoryId, Seq);

fn open(disk: &Arc<SimDisk>) -> Harness<SimDisk> {
    Harness::open(disk, &small(), START)
}

/// A message that arrives.
fn event(harness: &mut Harness<SimDisk>, message: u64) {
    harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    harness.arrive(0, message);
}

/// Everything was read and stored, and by a router that acknowledges nothing.
fn cursor(harness: &Harness<SimDisk>) -> Cursor {
    (harness.engine.present_history().expect("there is room"), harness.head())
}

fn is_good<D: Disk>(harness: &Harness<D>, (history, position): Cursor) -> bool {
    harness.engine.is_in_history(history, position)
}

#[test]
fn cursors_of_the_lost_time_are_refused_however_far_the_edge_has_come() {
    let disk = Arc::new(SimDisk::new());
    let mut harness = open(&disk);
    harness.see(0);
    event(&mut harness, 1);
    let before = cursor(&harness);
    let copy = Arc::new(disk.fork());
    // What the copy doesn't have: in the same run, and in one after it.
    event(&mut harness, 2);
    let same_run = cursor(&harness);
    drop(harness);
    let mut harness = open(&disk);
    event(&mut harness, 3);
    let next_run = cursor(&harness);
    assert!([before, same_run, next_run].iter().all(|&cursor| is_good(&harness, cursor)));
    drop(harness);

    let mut harness = open(&copy);
    for message in 10..20 {
        event(&mut harness, message);
        assert!(is_good(&harness, before), "the copy has it");
        for lost in [same_run, next_run] {
            assert!(!is_good(&harness, lost), "{message}: at {}, {lost:?}", harness.head());
        }
    }
    assert!(harness.head() > next_run.1, "by the number alone they would look good");
    // With a checkpoint, and without.
    for _ in 0..2 {
        let now = cursor(&harness);
        assert!(is_good(&harness, now) && is_good(&harness, before) && !is_good(&harness, next_run));
        harness.checkpoint().expect("the disk works");
        drop(harness);
        harness = open(&copy);
        assert!(is_good(&harness, now) && is_good(&harness, before) && !is_good(&harness, next_run));
    }
}

#[test]
fn what_was_read_is_good_after_every_end_of_a_run() {
    let disk = Arc::new(SimDisk::new());
    let mut kept = Vec::new();
    for message in 1..12 {
        let mut harness = open(&disk);
        assert!(kept.iter().all(|&cursor| is_good(&harness, cursor)), "{message}: {kept:?}");
        // Also one that was given at the very start.
        kept.push(cursor(&harness));
        harness.see(0);
        event(&mut harness, message);
        kept.push(cursor(&harness));
        if message % 3 == 0 {
            harness.checkpoint().expect("the disk works");
            kept.push(cursor(&harness));
        }
        // What is staged and not durable was not read.
        drop(harness.stage_batch(batch("lost", 99, &[0], START, HOUR)));
        drop(harness);
        disk.kill();
    }
}

#[test]
fn after_very_many_starts_the_oldest_are_not_known_any_more() {
    let disk = Arc::new(SimDisk::new());
    let first = cursor(&open(&disk));
    for _ in 1..limits::HISTORIES {
        drop(open(&disk));
    }
    let harness = open(&disk);
    assert!(!is_good(&harness, first));
    assert!(is_good(&harness, cursor(&harness)));
}

#[test]
fn on_a_disk_without_any_room_the_history_begins_before_the_first_record_that_there_is_room_for() {
    let options = StoreOptions { reserve_segments: 0, ..small() };
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options, START);
    harness.see(0);
    harness.commit().expect("the disk works");
    disk.set_capacity(Some(disk.used()));
    let mut message = 1;
    while harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).is_ok() {
        message += 1;
    }
    // What is left is for a few starts.
    let mut before = cursor(&harness);
    loop {
        drop(harness);
        harness = Harness::open(&disk, &options, START);
        if cursor(&harness) == before {
            break;
        }
        before = cursor(&harness);
    }
    // Nothing is written, and so nothing is read that the history before doesn't have.
    assert!(harness.deliver(batch("none", 9_999, &[0], START, HOUR)).is_err());
    assert_eq!(cursor(&harness), before);
    disk.set_capacity(None);
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    let after = cursor(&harness);
    assert!(
        after.0 != before.0 && after.1 == Seq(before.1.0 + 1),
        "its record is the first: {before:?} {after:?}"
    );
    assert!(is_good(&harness, before) && !is_good(&harness, (before.0, after.1)) && is_good(&harness, after));
    drop(harness);
    assert!(is_good(&Harness::open(&disk, &options, START), after));
}

/// Names are shared while a checkpoint is read: each batch has its own all the same.
#[test]
fn what_waits_is_of_its_app_and_has_its_label_after_a_start_from_a_checkpoint() {
    let options = StoreOptions { parts: 1, ..small() };
    let (disk, mut harness) = streams::opened(&options);
    for message in 1..=9 {
        let mut new = batch(&format!("b{message}"), message, &[0], START, HOUR);
        new.job_key = format!("job {}", message / 3).into();
        harness.deliver(if message % 2 == 0 { of_other(new, 0) } else { new }).expect("accepted");
    }
    harness.checkpoint().expect("the disk works");
    let harness = streams::reopened(&disk, harness, &options);
    assert!(harness.report.checkpoint > Seq(0));
    let (mut ours, mut others) = (harness.pull(0), Vec::new());
    harness.engine.pull(&other_device(0), Reached::START, usize::MAX, START, &mut others);
    assert_eq!((ours.len(), others.len()), (5, 4));
    assert!(ours.iter().all(|pulled| pulled.batch.app == app()));
    assert!(others.iter().all(|pulled| pulled.batch.app == other()));
    ours.append(&mut others);
    for Pulled { batch, .. } in ours {
        assert_eq!(*batch.job_key, format!("job {}", batch.message.0 / 3), "message {}", batch.message);
    }
}
