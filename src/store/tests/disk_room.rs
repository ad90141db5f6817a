//! Room on a disk that is full: who finds some, and what it never takes.

use super::common::{HOUR, SEGMENT, again, files, opened};
use super::full::{fill, use_up};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::support::{Harness, batch, device, small};
use super::wakeups::fill_to_the_brim;
use crate::push::{Failure, Millis};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::record;

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

fn storage(harness: &mut Harness<SimDisk>) -> u64 {
    let totals = harness.totals();
    assert!(totals.identity_holds(), "{totals:?}");
    totals.failed[Failure::Storage as usize - 1]
}

fn pass(harness: &mut Harness<SimDisk>, ms: Millis) {
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
        pass(&mut harness, 20_000);
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
        pass(&mut harness, HOUR + 100_000);
        let mut new = batch("after", 20_000, &[2], harness.now, HOUR);
        new.body = vec![7; 600].into();
        harness.deliver(new).unwrap_or_else(|why| panic!("reserve {reserve}: {why:?}"));
    }
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
