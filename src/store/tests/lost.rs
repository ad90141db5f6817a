//! What a start finds lost with damaged records: it is said once, ends once, and waits for room.

use std::sync::Arc;

use super::common::{HOUR, SEGMENT, again, messages, opened, pass, settle};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::support::{Harness, batch, device, small};
use crate::ids::Seq;
use crate::push::{Failure, Millis, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{Command, record};

fn storage(harness: &mut Harness<SimDisk>) -> u64 {
    let totals = harness.totals();
    assert!(totals.identity_holds(), "{totals:?}");
    totals.failed[Failure::Storage as usize - 1]
}

/// Which records are lost, as the streams were told.
fn told(harness: &Harness<SimDisk>) -> Vec<(Seq, Seq)> {
    let reader = &harness.engine.shared().reader;
    let mut told = Vec::new();
    let oldest = Seq(reader.oldest().0 - 1);
    let scanned = reader.scan(oldest, &mut None, &mut |record| {
        if record.kind == record::LOST {
            told.extend(record::take_lost(record.payload).expect("well formed"));
        }
        std::ops::ControlFlow::Continue(())
    });
    scanned.expect("readable");
    told
}

/// A batch comes while a checkpoint is written, and its record is damaged then: parts of the checkpoint have it, and others don't.
#[test]
fn a_batch_that_only_some_slices_of_a_checkpoint_have_is_lost_and_can_be_sent_again() {
    let options = StoreOptions { checkpoint_bytes: 1, ..small() };
    let (mut left_out, mut kept) = (0, 0);
    // The part that has its id comes before that of its message, or after it.
    for (steps, id) in (0..20).flat_map(|steps| ["a", "b", "c", "d"].map(|id| (steps, id))) {
        let (disk, mut harness) = opened(&options);
        harness.deliver(batch("b1", 1, &[0, 1, 2, 3], START, HOUR)).expect("accepted");
        harness.arrive(0, 1);
        for _ in 0..steps {
            harness.engine.maintain(START).expect("the disk works");
        }
        let late = || batch(id, 2, &[3, 2, 1, 0], START, HOUR);
        let lost = harness.deliver(late()).expect("accepted").seq;
        for _ in 0..20 {
            harness.engine.maintain(START).expect("the disk works");
        }
        flip(&disk, places(&harness, record::BATCH)[1].1);
        harness = again(&disk, harness, &StoreOptions { checkpoint_bytes: u64::MAX, ..options.clone() });
        left_out += harness.report.left_out;
        settle(&mut harness);
        // Where its home's slice has it, its entries wait still: only its body can't be read.
        let waits = messages(&harness, 2).contains(&2);
        assert_eq!((storage(&mut harness), harness.totals().pending), if waits { (0, 7) } else { (4, 3) });
        assert_eq!(messages(&harness, 1), if waits { vec![1, 2] } else { vec![1] }, "{steps}");
        kept += u64::from(waits);
        // It is answered as what is there, and where nothing is there it is taken anew.
        let answer = harness.deliver(late()).expect("known, or new");
        assert_eq!((answer.seq == lost, answer.repeated), (waits, waits), "{steps}");
        assert_eq!(messages(&harness, 1), [1, 2]);
        // What isn't lost is known as before.
        let answer = harness.deliver(batch("b1", 1, &[0, 1, 2, 3], START, HOUR)).expect("known");
        assert!(answer.repeated, "{steps}");
        assert_eq!(harness.totals().pending, 7);
    }
    assert!(left_out > 0 && (1..80).contains(&kept), "{left_out} {kept}");
}

/// The last record that a checkpoint covers is in it, whatever becomes of the record.
#[test]
fn what_a_checkpoint_covers_is_not_lost() {
    let (disk, mut harness) = opened(&small());
    let last = harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted").seq;
    harness.checkpoint().expect("the disk works");
    assert_eq!(harness.head(), last);
    flip(&disk, places(&harness, record::BATCH)[0].1);
    harness = again(&disk, harness, &small());
    assert_eq!((harness.report.checkpoint, harness.report.journal.corrupt.len()), (last, 1));
    settle(&mut harness);
    assert_eq!((told(&harness), storage(&mut harness), harness.totals().pending), (vec![], 0, 2));
}

#[test]
fn each_loss_is_told_once_also_where_another_one_was_told_before() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=5 {
        harness.deliver(batch(&format!("b{message}"), message, &[0, 1], START, HOUR)).expect("accepted");
    }
    let batches = places(&harness, record::BATCH);
    let mut lost = Vec::new();
    // The later ones come first, in between, and last.
    for n in [1, 3, 0] {
        flip(&disk, batches[n].1);
        lost.push((batches[n].0, batches[n].0));
        for _ in 0..2 {
            harness = again(&disk, harness, &small());
            settle(&mut harness);
            assert_eq!(told(&harness), lost, "{n}");
        }
    }
    assert_eq!(messages(&harness, 1), [3, 5]);
}

/// Every second one of them: a list as long as this takes a good part of a segment.
#[test]
fn many_losses_are_told_together() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=160 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    let lost: Vec<_> = places(&harness, record::BATCH).into_iter().step_by(2).collect();
    for (_, place) in &lost {
        flip(&disk, *place);
    }
    harness = again(&disk, harness, &small());
    settle(&mut harness);
    assert_eq!(told(&harness), lost.iter().map(|(seq, _)| (*seq, *seq)).collect::<Vec<_>>());
    assert_eq!(places(&harness, record::LOST).len(), 1);
}

const DAY: Millis = 24 * HOUR;

/// Journals that may not grow are filled with what asks for the least room of all: that a device was there on another day.
pub(super) fn without_reserve(segments: u64) -> StoreOptions {
    StoreOptions {
        max_bytes: segments * SEGMENT,
        reserve_segments: 0,
        forget_after_ms: 30 * DAY,
        unmatched_per_second: u32::MAX,
        ..small()
    }
}

/// `false`: not even that fits.
pub(super) fn fill_finely(harness: &mut Harness<SimDisk>, day: u64) -> bool {
    let before = harness.head();
    let active = Command::LastActive(vec![(device(1), START + 2 * day * DAY)]);
    harness.apply(active).expect("the disk works");
    harness.commit().expect("the disk works");
    harness.head() > before
}

/// Damage of these kinds of records where there is less than so much room: in a journal that may not grow, or on a full disk.
fn full_and_damaged(segments: u64, kind: u8, room: u64) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let (disk, mut harness) = opened(&without_reserve(segments));
    for message in 1..=40 {
        harness.deliver(batch(&format!("b{message}"), message, &[2, 3], START, HOUR)).expect("accepted");
    }
    pass(&mut harness, 10_000);
    disk.set_capacity((segments == 0).then(|| disk.used()));
    super::full::fill(&mut harness, 1_000);
    for day in 1.. {
        if harness.engine.room() < room || !fill_finely(&mut harness, day) {
            break;
        }
    }
    let lost: Vec<_> = places(&harness, kind).into_iter().step_by(2).take(20).collect();
    for (_, place) in &lost {
        flip(&disk, *place);
    }
    // Not enough for another segment, and for the tables enough.
    disk.set_capacity(Some(disk.used() + SEGMENT / 2));
    harness = again(&disk, harness, &without_reserve(segments));
    (disk, harness)
}

/// Nothing ends before there is room, and it is looked at again within a second. Answers what was told meanwhile, too.
fn waits_for_room(segments: u64, kind: u8, room: u64) -> (usize, Harness<SimDisk>) {
    let (disk, mut harness) = full_and_damaged(segments, kind, room);
    for _ in 0..3 {
        settle(&mut harness);
        assert_eq!(storage(&mut harness), 0);
        let next = harness.engine.next_wakeup().expect("it is looked at again");
        assert!(next <= harness.now + 1_000, "{}", next - harness.now);
        harness.now += 1_000;
    }
    let before = told(&harness).len();
    disk.set_capacity(None);
    if segments == 0 {
        pass(&mut harness, 3_000);
    } else {
        harness = again(&disk, harness, &without_reserve(segments + 10));
        settle(&mut harness);
    }
    (before, harness)
}

#[test]
fn what_is_to_be_told_waits_for_room() {
    for segments in [0, 6] {
        let (before, mut harness) = waits_for_room(segments, record::BATCH, 0);
        assert_eq!((before, told(&harness).len(), storage(&mut harness)), (0, 20, 40), "{segments}");
    }
}

/// The record of a device is lost, and with it the list that its entries stood in: forty of them. There is room for saying which record it was.
#[test]
fn what_no_list_has_waits_for_room() {
    for segments in [0, 6] {
        let (before, mut harness) = waits_for_room(segments, record::DEVICE, 380);
        // And those of the other one, which came until the journal was full.
        let others = messages(&harness, 1).iter().filter(|message| **message >= 1_000).count() as u64;
        assert_eq!((before, told(&harness).len(), storage(&mut harness)), (2, 2, 40 + others), "{segments}");
    }
}

/// It had ended by its time, and nothing is left to end.
#[test]
fn what_expired_before_it_was_looked_at_ends_once() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=2 {
        harness.deliver(batch(&format!("b{message}"), message, &[0, 1], START, HOUR)).expect("accepted");
    }
    let head = harness.head();
    flip(&disk, places(&harness, record::DEVICE)[0].1);
    harness.now += HOUR;
    harness = again(&disk, harness, &small());
    settle(&mut harness);
    let totals = harness.totals();
    assert_eq!((totals.pending, totals.accepted, storage(&mut harness)), (0, 4, 2));
    let masses = harness.stream(head).into_iter().filter_map(|(_, event)| match event {
        StreamEvent::Mass(mass) => Some(mass.count),
        _ => None,
    });
    let counts: Vec<u32> = masses.collect();
    assert!(counts.iter().sum::<u32>() == 4 && !counts.contains(&0), "{counts:?}");
}

/// However little room there is, it is said or waits.
#[test]
fn losses_that_find_hardly_any_room_are_told_or_wait() {
    let options = without_reserve(2);
    let (disk, mut harness) = opened(&options);
    for message in 1..=60 {
        harness.deliver(batch(&format!("b{message}"), message, &[2], START, HOUR)).expect("accepted");
    }
    let lost: Vec<_> = places(&harness, record::BATCH).into_iter().step_by(2).collect();
    let (mut said, mut waits, mut day) = (0, 0, 1);
    while fill_finely(&mut harness, day) {
        day += 1;
        if harness.engine.room() > 2_000 {
            continue;
        }
        let disk = Arc::new(disk.fork());
        disk.kill();
        disk.set_capacity(Some(disk.used()));
        for (_, place) in &lost {
            flip(&disk, *place);
        }
        let mut harness = Harness::open(&disk, &options, START);
        settle(&mut harness);
        match told(&harness).len() {
            0 => waits += 1,
            count => {
                assert_eq!(count, 30);
                said += 1;
            }
        }
    }
    assert!(said > 3 && waits > 3, "{said} {waits}");
}

/// The simulation asks this after every start.
#[cfg(feature = "sim")]
#[test]
fn counts_and_lists_are_unequal_until_what_is_lost_has_ended() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    assert_eq!(harness.engine.unequal(), None);
    flip(&disk, places(&harness, record::DEVICE)[0].1);
    harness = again(&disk, harness, &small());
    assert!(harness.engine.unequal().is_some_and(|what| what.starts_with("message 1: 1 in lists")));
    settle(&mut harness);
    assert_eq!(harness.engine.unequal(), None);
}
