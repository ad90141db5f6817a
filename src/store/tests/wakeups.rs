//! When an edge on which nothing happens wakes up: for what is due, and never for what was due before ([`Harness::settle`] looks at that).

use std::sync::Arc;

use tokio::sync::oneshot;

use super::common::{HOUR, SEGMENT, again, opened};
use super::full::{fill, use_up};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::support::{Harness, app, batch, small};
use crate::ids::MessageId;
use crate::push::{Failure, Millis};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{AppChange, Command, record};

fn options() -> StoreOptions {
    StoreOptions { unmatched_per_second: u32::MAX, checkpoint_bytes: 20_000, ..small() }
}

/// Nothing but time.
fn pass(harness: &mut Harness<SimDisk>, ms: Millis) {
    for _ in 0..ms / 500 {
        harness.now += 500;
        harness.settle().expect("the disk works");
    }
}

/// It wakes up within a second of itself.
fn wakes_soon(harness: &Harness<SimDisk>) -> bool {
    harness.engine.next_wakeup().is_some_and(|at| at <= harness.now + 1_000)
}

#[test]
fn on_a_full_disk_whose_stream_nobody_reads_it_rests() {
    let (disk, mut harness) = opened(&StoreOptions { checkpoint_bytes: 4_000, ..options() });
    disk.set_capacity(Some(disk.used() + 3 * SEGMENT));
    assert!(fill(&mut harness, 1) > 5);
    harness.arrive(0, 1);
    use_up(&mut harness);
    // Somebody else takes what is left.
    disk.set_capacity(Some(0));
    pass(&mut harness, 20_000);
    let failed = harness.figure("checkpoints_failed");
    assert!(failed > 0, "no checkpoint found no room");
    disk.set_capacity(None);
    pass(&mut harness, 20_000);
    harness.deliver(batch("after", 20_000, &[2], harness.now, HOUR)).expect("accepted");
}

#[test]
fn while_the_tables_are_behind_nobody_is_forgotten_and_it_rests() {
    let options = StoreOptions { max_unwritten: 8, forget_after_ms: 80_000, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.settle().expect("the disk works");
    disk.set_capacity(Some(disk.used()));
    for n in 0..20 {
        harness.now += 1_000;
        drop(harness.deliver(batch(&format!("b{n}"), n + 1, &[0], harness.now, HOUR)));
        harness.settle().expect("a full disk is no failure");
    }
    assert!(harness.engine.is_behind());
    pass(&mut harness, 120_000);
    assert!((0..4).all(|n| harness.state_of(n).is_some()));
    disk.set_capacity(None);
    pass(&mut harness, 120_000);
    assert!((0..4).all(|n| harness.state_of(n).is_none()));
}

/// Spare segments are lent to the tables, and not even that helps: somebody else takes it.
#[test]
fn while_the_tables_have_the_spares_it_rests() {
    let (disk, mut harness) = opened(&StoreOptions { checkpoint_bytes: u64::MAX, ..options() });
    harness.settle().expect("the disk works");
    disk.set_capacity(Some(disk.used() + SEGMENT));
    for n in 1..40 {
        let mut new = batch(&format!("b{n}"), n, &[0], harness.now, HOUR);
        new.body = vec![7; 2_000].into();
        if harness.deliver(new).is_ok() {
            harness.arrive(0, n);
            harness.ack_stream(harness.head());
        }
    }
    disk.set_capacity(Some(0));
    pass(&mut harness, 20_000);
    disk.set_capacity(None);
    pass(&mut harness, 20_000);
    harness.deliver(batch("after", 20_000, &[2], harness.now, HOUR)).expect("accepted");
}

/// The disk had room for one of two spare segments, and the journal may have no more than that.
#[test]
fn at_the_journals_maximum_it_rests() {
    let options = StoreOptions { max_bytes: 4 * SEGMENT, checkpoint_bytes: u64::MAX, ..options() };
    let (disk, mut harness) = opened(&options);
    harness.settle().expect("the disk works");
    disk.set_capacity(Some(disk.used()));
    fill(&mut harness, 1);
    use_up(&mut harness);
    disk.set_capacity(Some(disk.used() + 2 * SEGMENT - 1));
    pass(&mut harness, 10_000);
    assert_eq!(harness.figure("journal_bytes"), 4 * SEGMENT);
}

#[test]
fn what_is_taken_back_and_cannot_be_read_is_looked_at_again() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    pass(&mut harness, 20_000);
    assert!(!wakes_soon(&harness), "there is something else to do");
    disk.fail_reads(Some("journal-0000000001.seg"));
    let (reply, mut answer) = oneshot::channel();
    harness.apply(Command::Revoke { app: app(), message: MessageId(1), reply }).expect("the disk works");
    for _ in 0..10 {
        harness.settle().expect("the disk works");
        assert!(wakes_soon(&harness));
        let reads = disk.reads();
        // Something happens, but not for that.
        harness.now += 999;
        harness.settle().expect("the disk works");
        assert_eq!(disk.reads(), reads, "not before it is time");
        harness.now += 1;
    }
    assert!(answer.try_recv().is_err());
    disk.fail_reads(None);
    harness.settle().expect("the disk works");
    assert_eq!(answer.try_recv().expect("answered").expect("taken back").ended, 2);
}

/// Commands of an operator, until there is no room for one.
pub(super) fn fill_to_the_brim(harness: &mut Harness<SimDisk>) {
    for _ in 0..10_000 {
        let (reply, mut answer) = oneshot::channel();
        let change = AppChange::Resume;
        harness.apply(Command::ControlApp { app: app(), change, reply }).expect("the disk works");
        harness.commit().expect("the disk works");
        if answer.try_recv().expect("answered").is_none() {
            return;
        }
    }
    panic!("never full");
}

fn storage(harness: &mut Harness<SimDisk>) -> u64 {
    let totals = harness.totals();
    assert!(totals.identity_holds(), "{totals:?}");
    totals.failed[Failure::Storage as usize - 1]
}

/// A start that finds damage, and no room to say what follows of it.
fn lost_without_room(options: &StoreOptions) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let (disk, mut harness) = opened(options);
    harness.deliver(batch("b1", 1_000, &[2, 3], START, HOUR)).expect("accepted");
    harness.deliver(batch("b2", 2_000, &[0], START, HOUR)).expect("accepted");
    // Nobody reads it, so that nothing goes.
    harness.arrive(0, 2_000);
    pass(&mut harness, 10_000);
    if options.max_bytes == 0 {
        disk.set_capacity(Some(disk.used()));
    }
    fill(&mut harness, 1);
    use_up(&mut harness);
    fill_to_the_brim(&mut harness);
    flip(&disk, places(&harness, record::BATCH)[0].1);
    harness = again(&disk, harness, options);
    for _ in 0..3 {
        harness.settle().expect("the disk works");
        assert_eq!(storage(&mut harness), 0, "{} left", harness.engine.room());
        assert!(wakes_soon(&harness), "{:?}", harness.engine.next_wakeup());
        harness.now += 1_000;
    }
    (disk, harness)
}

fn without_reserve(max_bytes: u64) -> StoreOptions {
    StoreOptions { max_bytes, reserve_segments: 0, checkpoint_bytes: u64::MAX, ..options() }
}

/// What a damaged record took ends when there is room for saying so, and once.
#[test]
fn what_is_lost_waits_for_room_on_the_disk() {
    let options = without_reserve(0);
    let (disk, mut harness) = lost_without_room(&options);
    disk.set_capacity(None);
    for start in 0..2 {
        pass(&mut harness, 2_000);
        assert_eq!(storage(&mut harness), 2, "{start}");
        harness = again(&disk, harness, &options);
    }
}
