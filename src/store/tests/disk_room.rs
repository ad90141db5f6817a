//! Room on a disk that is full: who finds some, and what it never takes.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::common::{HOUR, SEGMENT, again, files, opened, pass, settle};
use super::full::{fill, use_up};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::support::{Harness, Told, ack, batch, device, small};
use super::wakeups::fill_to_the_brim;
use crate::ids::Seq;
use crate::push::{Event, Failure, Millis, NewBatch};
use crate::store::disk::real::RealDisk;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::record;
use crate::store::record::device::{ACTIVE_BYTES, take_active};
use crate::store::tables::TableKind;

fn options(segments: u64, reserve_segments: u32) -> StoreOptions {
    StoreOptions {
        max_bytes: segments * SEGMENT,
        reserve_segments,
        checkpoint_bytes: SEGMENT,
        unmatched_per_second: u32::MAX,
        ..small()
    }
}

/// Bytes of all files of the journal.
fn journal_bytes(disk: &SimDisk) -> u64 {
    (files(disk, "journal-").len() + files(disk, "spare-").len()) as u64 * SEGMENT
}

#[test]
fn a_start_makes_no_spare_segments_beyond_the_maximum() {
    for reserve in 0..3 {
        let options = options(6, reserve);
        let (disk, mut harness) = opened(&options);
        fill(&mut harness, 1);
        use_up(&mut harness);
        for start in 0..4 {
            assert!(journal_bytes(&disk) <= options.max_bytes, "reserve {reserve}, start {start}");
            harness = again(&disk, harness, &options);
            harness.settle().expect("the disk works");
            use_up(&mut harness);
        }
        // One that is lower than what is there: nothing is added.
        let before = journal_bytes(&disk);
        let lower = StoreOptions { max_bytes: SEGMENT, ..options };
        harness = again(&disk, harness, &lower);
        harness.settle().expect("the disk works");
        assert!(journal_bytes(&disk) <= before, "reserve {reserve}");
    }
}

/// Only what comes lets the active segment go.
#[test]
fn a_lower_maximum_has_room_beside_an_active_segment_of_a_time_when_they_were_larger() {
    let larger = StoreOptions { segment_bytes: 4 * SEGMENT as u32, ..options(40, 1) };
    let (disk, mut harness) = opened(&larger);
    harness.deliver(batch("b1", 1_000, &[2], START, HOUR)).expect("accepted");
    harness = again(&disk, harness, &options(3, 1));
    harness.settle().expect("the disk works");
    harness.deliver(batch("b2", 1_001, &[2], START, HOUR)).expect("accepted");
}

#[test]
fn a_directory_that_holds_more_than_the_maximum_shrinks_to_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let unbounded = StoreOptions { max_bytes: 0, ..options(0, 1) };
    let (disk, _) = RealDisk::open(dir.path(), None).expect("a new directory");
    let mut harness = Harness::open(&disk, &unbounded, START);
    harness.see(0);
    for n in 1..60 {
        let body = vec![7; 3_000].into();
        harness.deliver(NewBatch { body, ..batch(&format!("b{n}"), n, &[0], START, HOUR) }).expect("room");
    }
    harness.settle().expect("the disk works");
    drop((harness, disk));

    let lower = options(6, 1);
    let (disk, _) = RealDisk::open(dir.path(), Some(lower.max_bytes)).expect("opens");
    let mut harness = Harness::open(&disk, &lower, START + HOUR);
    assert!(harness.figure("journal_bytes") > 2 * lower.max_bytes);
    for _ in 0..20 {
        harness.now += 60_000;
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
    }
    assert!(harness.figure("journal_bytes") <= lower.max_bytes);
    harness.deliver(batch("b60", 60, &[0], harness.now, HOUR)).expect("accepted");
}

/// Acks are what makes it smaller.
#[test]
fn a_lower_maximum_leaves_room_for_acks_of_all_that_is_there() {
    let larger = StoreOptions { max_bytes: 0, segment_bytes: 4 * SEGMENT as u32, ..options(0, 2) };
    let (disk, mut harness) = opened(&larger);
    for n in 1..=60 {
        let body = vec![7; 3_000].into();
        harness.deliver(NewBatch { body, ..batch(&format!("b{n}"), n, &[0], START, HOUR) }).expect("room");
    }
    let before = disk.used();
    harness = again(&disk, harness, &options(4, 2));
    harness.settle().expect("the disk works");
    assert!(disk.used() <= before);
    for n in 1..=60 {
        harness.sink.take();
        harness.acks(vec![ack(0, n, &[(n, Event::Arrive)], harness.now)]);
        harness.settle().expect("the disk works");
        assert!(harness.sink.take().iter().any(|told| matches!(told, Told::Confirmed(_))), "{n}");
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
    }
    assert!(harness.figure("journal_bytes") <= options(4, 2).max_bytes);
}

fn storage(harness: &mut Harness<SimDisk>) -> u64 {
    let totals = harness.totals();
    assert!(totals.identity_holds(), "{totals:?}");
    totals.failed[Failure::Storage as usize - 1]
}

fn pass_and_read(harness: &mut Harness<SimDisk>, ms: Millis) {
    for _ in 0..ms / 10_000 {
        harness.now += 10_000;
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
    }
}

/// Nobody makes room but the store itself.
#[test]
fn what_damage_took_is_said_though_the_disk_stays_full() {
    for (reserve, full) in [(1, true), (2, true), (0, false), (1, false), (2, false)] {
        let options = StoreOptions { checkpoint_bytes: u64::MAX, ..options(6, reserve) };
        let (disk, mut harness) = opened(&options);
        harness.deliver(batch("b1", 1_000, &[2, 3], START, 3 * HOUR)).expect("accepted");
        // Nobody reads it, so that nothing goes.
        harness.arrive(2, 1_000);
        for _ in 0..10 {
            harness.now += 1_000;
            harness.settle().expect("the disk works");
        }
        fill(&mut harness, 1);
        use_up(&mut harness);
        if full {
            // Others have the rest of the disk, and what is kept for ends is all that is left.
            disk.set_capacity(Some(disk.used()));
        } else {
            fill_to_the_brim(&mut harness);
        }
        flip(&disk, places(&harness, record::BATCH)[0].1);
        harness = again(&disk, harness, &options);
        pass_and_read(&mut harness, 20_000);
        assert_eq!(
            storage(&mut harness),
            1,
            "reserve {reserve}, full {full}, {} left",
            harness.engine.room()
        );
        if full {
            // For batches others have to give some of it back.
            continue;
        }
        pass_and_read(&mut harness, HOUR + 100_000);
        let mut new = batch("after", 20_000, &[2], harness.now, HOUR);
        new.body = vec![7; 600].into();
        harness.deliver(new).unwrap_or_else(|why| panic!("reserve {reserve}: {why:?}"));
    }
}

/// Damage of every batch, in a journal at its maximum or not. Nobody reads the stream, so that nothing goes.
fn damaged(options: &StoreOptions, messages: u64, full: bool) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let (disk, mut harness) = opened(options);
    for message in 1..=messages {
        let id = format!("b{message}");
        harness.deliver(batch(&id, message, &[2], START, 100 * HOUR)).expect("accepted");
    }
    settle(&mut harness);
    // So that the tables know of them.
    pass(&mut harness, 10_000);
    let lost = places(&harness, record::BATCH);
    if full {
        fill(&mut harness, 1_000);
        use_up(&mut harness);
        fill_to_the_brim(&mut harness);
    }
    for (_, place) in lost {
        flip(&disk, place);
    }
    let harness = again(&disk, harness, options);
    (disk, harness)
}

#[test]
fn where_there_is_room_damage_makes_the_journal_no_larger() {
    for max in [0, 9] {
        let options = StoreOptions { checkpoint_bytes: u64::MAX, ..options(max, 1) };
        let (disk, mut harness) = damaged(&options, 20, false);
        let before = journal_bytes(&disk);
        pass(&mut harness, 5_000);
        assert_eq!((storage(&mut harness), journal_bytes(&disk)), (20, before), "at most {max} segments");
    }
}

/// More than that takes: what is left waits for another start, or for what makes room.
#[test]
fn damage_makes_a_full_journal_one_segment_larger_in_one_start() {
    let options = StoreOptions { checkpoint_bytes: u64::MAX, ..options(6, 0) };
    let (disk, mut harness) = damaged(&options, 200, true);
    let mut said = 0;
    for start in 1..=2 {
        let before = said;
        for _ in 0..5 {
            harness.now += 1_000;
            settle(&mut harness);
            said = storage(&mut harness);
            assert_eq!(journal_bytes(&disk), options.max_bytes + start * SEGMENT);
        }
        assert!(said > before && (start == 2 || said < 200), "{said} in start {start}");
        harness = again(&disk, harness, &options);
    }
    assert_eq!(said, 200);
}

/// Few records, of a fraction of a segment each: at its end no more than that is lost.
#[test]
fn activity_of_many_goes_into_records_of_a_quarter_of_a_segment() {
    let (_disk, mut harness) = opened(&options(0, 2));
    let news: Vec<_> = (0..1_000).map(|n| (device(n % 4), harness.now + u64::from(n))).collect();
    harness.engine.stage_active(&news).expect("the disk works");
    harness.commit().expect("the disk works");
    let mut records = Vec::new();
    let scanned = harness.engine.shared().reader.scan(Seq(0), &mut None, &mut |record| {
        if record.kind == record::ACTIVE {
            records.push(take_active(record.payload).expect("well formed"));
        }
        ControlFlow::Continue(())
    });
    scanned.expect("readable");
    let most = SEGMENT as usize / 4 / ACTIVE_BYTES;
    assert_eq!(records.iter().map(Vec::len).max(), Some(most));
    assert_eq!(records.len(), news.len().div_ceil(most));
    assert_eq!(records.concat(), news);
}

/// Room for them is asked for before; where it is missing all the same, they are as good as not said.
#[test]
fn activity_without_room_is_no_end_of_the_store() {
    let options = options(4, 0);
    let (_disk, mut harness) = opened(&options);
    fill(&mut harness, 1);
    use_up(&mut harness);
    fill_to_the_brim(&mut harness);
    let news: Vec<_> = (0..200).map(|n| (device(n % 4), harness.now)).collect();
    let head = harness.head();
    harness.engine.stage_active(&news).expect("it isn't the end");
    harness.commit().expect("the disk works");
    assert_eq!(harness.head(), head);
}

/// What waits expires, and the stream is read: the rest the store does itself. Its tables have room in their own file, and give some of it back.
#[test]
fn a_disk_full_to_the_last_byte_makes_room_when_its_stream_is_read() {
    for reserve in 1..=2 {
        let options =
            StoreOptions { checkpoint_bytes: u64::MAX, tables: TableKind::Library, ..options(0, reserve) };
        let (disk, mut harness) = opened(&options);
        pass(&mut harness, 10_000);
        disk.set_capacity(Some(disk.used() + 4 * SEGMENT));
        fill(&mut harness, 1);
        use_up(&mut harness);
        disk.set_capacity(Some(disk.used()));
        pass_and_read(&mut harness, HOUR + 100_000);
        assert_eq!((harness.totals().pending, harness.figure("checkpoints")), (0, 2), "reserve {reserve}");
        harness.deliver(batch("after", 20_000, &[2], harness.now, HOUR)).expect("accepted");
    }
}
