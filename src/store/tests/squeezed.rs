//! A checkpoint on a full disk: only a newer one lets old segments go, so spare segments lend it their space, and then the older checkpoint does.

use std::sync::Arc;

use super::common::{HOUR, SEGMENT, files, opened, pass, settle};
use super::support::{Harness, ack, batch, small};
use crate::push::Event;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

/// So many that a checkpoint takes more than one segment's bytes, and less than two.
const DEVICES: u32 = 600;
/// What the tables need for a few rows, and a checkpoint doesn't fit into.
const ROOM: u64 = 8_000;

fn options() -> StoreOptions {
    StoreOptions { reserve_segments: 3, max_bytes: 8 * SEGMENT, ..small() }
}

/// Of the oldest segment something is needed for long.
fn need_the_oldest(harness: &mut Harness<SimDisk>) {
    harness.deliver(batch("old", 2, &[1], harness.now, 100 * HOUR)).expect("accepted");
}

fn know(harness: &mut Harness<SimDisk>) {
    (0..DEVICES).for_each(|n| harness.see(n));
    settle(harness);
}

/// Messages until the journal is at its maximum, which end at once or live for a hundred hours.
fn fill(harness: &mut Harness<SimDisk>, live: bool) {
    for n in 100.. {
        let mut new = batch(&format!("b{n}"), n, &[0], harness.now, 100 * HOUR);
        new.body = vec![7; 1_500].into();
        if harness.deliver(new).is_err() {
            return;
        }
        if !live {
            harness.arrive(0, n);
        }
    }
}

/// Everything is in the tables, and nothing was read of the stream: no segment can go.
fn filled(prepare: impl FnOnce(&mut Harness<SimDisk>), live: bool) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let (disk, mut harness) = opened(&options());
    prepare(&mut harness);
    settle(&mut harness);
    fill(&mut harness, live);
    pass(&mut harness, 10_000);
    (disk, harness)
}

/// The disk is full but for a little, and the stream is read.
fn read_on_a_full_disk(disk: &SimDisk, harness: &mut Harness<SimDisk>) {
    disk.set_capacity(Some(disk.used() + ROOM));
    harness.ack_stream(harness.head());
}

fn turn(harness: &mut Harness<SimDisk>) {
    harness.commit().expect("the disk works");
    harness.engine.maintain(harness.now).expect("the disk works");
}

fn twice(harness: &mut Harness<SimDisk>) {
    for _ in 0..2 {
        harness.checkpoint().expect("the disk works");
        // Else the next one would be of the same.
        harness.deliver(batch(&format!("c{}", harness.now), 1, &[2], harness.now, 1_000)).expect("accepted");
        harness.now += 1_000;
    }
}

#[test]
fn spare_segments_lend_a_checkpoint_their_space_until_it_is_there() {
    let (disk, mut harness) = filled(
        |harness| {
            // Small ones: what they take is of no use.
            twice(harness);
            know(harness);
        },
        false,
    );
    let (segments, spares) = (files(&disk, "journal-").len(), files(&disk, "spare-").len());
    assert_eq!((spares, harness.figure("checkpoints"), harness.figure("segments_removed")), (3, 2, 0));
    read_on_a_full_disk(&disk, &mut harness);
    // Each turn a second: what was lent isn't taken back meanwhile.
    let mut least = spares;
    for _ in 0..100 {
        turn(&mut harness);
        least = least.min(files(&disk, "spare-").len());
        harness.now += 1_000;
    }
    // Two of them: what the older one covers may go. Each fails once, and has what it needs then.
    assert_eq!((harness.figure("checkpoints_failed"), harness.figure("checkpoints")), (2, 4));
    assert!(least < spares, "nothing was lent");
    settle(&mut harness);
    assert_eq!((files(&disk, "checkpoint-").len(), files(&disk, "spare-").len()), (2, 4));
    assert!(files(&disk, "journal-").len() < segments);
    harness.deliver(batch("after", 50_000, &[2], harness.now, HOUR)).expect("accepted");
}

/// Whoever waits for a checkpoint has one when it is said to be over.
#[test]
fn a_checkpoint_that_is_waited_for_is_tried_again_at_once() {
    let (disk, mut harness) = filled(
        |harness| {
            twice(harness);
            know(harness);
        },
        false,
    );
    read_on_a_full_disk(&disk, &mut harness);
    harness.checkpoint().expect("the disk works");
    assert_eq!((harness.figure("checkpoints_failed"), harness.figure("checkpoints")), (1, 3));
}

/// The oldest segment is in use, so that no spare that is lent would come back for sure.
#[test]
fn where_no_spare_can_be_lent_the_older_checkpoint_makes_room() {
    let (disk, mut harness) = filled(
        |harness| {
            know(harness);
            harness.ack_stream(harness.head());
            twice(harness);
            pass(harness, 10_000);
            need_the_oldest(harness);
        },
        false,
    );
    assert_eq!((files(&disk, "spare-").len(), harness.figure("checkpoints")), (3, 2));
    read_on_a_full_disk(&disk, &mut harness);
    let mut least = (3, 2);
    for _ in 0..100 {
        turn(&mut harness);
        let (spares, whole) = (files(&disk, "spare-").len(), files(&disk, "checkpoint-"));
        let whole = whole.iter().filter(|name| [".ckpt"].iter().any(|ending| name.ends_with(ending))).count();
        least = (spares.min(least.0), whole.min(least.1));
        harness.now += 1_000;
    }
    assert_eq!((least, harness.figure("checkpoints_failed")), ((3, 1), 2));
    assert!(harness.figure("copied_bytes") > 0 && harness.figure("segments_removed") > 0);
    harness.deliver(batch("after", 50_000, &[2], harness.now, HOUR)).expect("accepted");
}

/// What a checkpoint would let go is needed all the same: another one is of no use.
#[test]
fn where_everything_is_in_use_no_checkpoint_is_written_again_and_again() {
    let (_disk, mut harness) = filled(|_| {}, true);
    let pending = harness.totals().pending;
    harness.ack_stream(harness.head());
    pass(&mut harness, 60_000);
    assert_eq!((harness.figure("checkpoints"), harness.figure("segments_removed")), (2, 0));
    fill(&mut harness, true);
    assert_eq!(harness.totals().pending, pending, "it is full");
}

/// Nothing happens but that time passes, and that somebody else makes room.
#[test]
fn a_checkpoint_that_found_no_room_at_all_is_tried_again_in_time() {
    let (disk, mut harness) = filled(
        |harness| {
            need_the_oldest(harness);
            know(harness);
        },
        true,
    );
    harness.ack_stream(harness.head());
    disk.set_capacity(Some(disk.used() + ROOM));
    let mut wakeups = Vec::new();
    for _ in 0..6 {
        settle(&mut harness);
        let at = harness.engine.next_wakeup().expect("it tries again");
        wakeups.push(at - harness.now);
        harness.now = at;
    }
    let failed = harness.figure("checkpoints_failed");
    assert!(failed >= 3 && wakeups.iter().all(|after| *after <= 5_000), "{failed}: {wakeups:?}");
    assert_eq!(harness.figure("checkpoints"), 0);
    disk.set_capacity(None);
    harness.now = harness.engine.next_wakeup().expect("it tries again");
    settle(&mut harness);
    assert!(harness.figure("checkpoints") > 0);
}

/// Only what a reader has read, nobody needs and the journal goes on without.
#[test]
fn segments_that_a_newer_checkpoint_would_let_go_are_counted_from_the_oldest_on() {
    let (_disk, mut harness) = filled(|_| {}, false);
    assert_eq!(harness.engine.dead(), 0, "nothing is read of the stream");
    let segments = harness.engine.segments();
    harness.ack_stream(segments[1].last);
    assert_eq!(harness.engine.dead(), 2);
    harness.ack_stream(harness.head());
    assert_eq!(harness.engine.dead(), harness.engine.segments().len() - 1, "all but the one in use");
    let (_disk, mut harness) =
        filled(|harness| drop(harness.deliver(batch("old", 2, &[1], harness.now, 100 * HOUR))), false);
    harness.ack_stream(harness.head());
    assert_eq!(harness.engine.dead(), 0, "the oldest one is needed");
}

/// Though something is made durable in every turn, after which spares are made.
#[test]
fn what_is_lent_to_the_tables_is_not_taken_back_before_they_have_it() {
    let (disk, mut harness) = opened(&options());
    for n in 100.. {
        let mut new = batch(&format!("b{n}"), n, &[0], harness.now, HOUR);
        new.body = vec![7; 1_500].into();
        harness.deliver(new).expect("accepted");
        harness.arrive(0, n);
        if harness.engine.segments().len() > 3 {
            break;
        }
    }
    pass(&mut harness, 10_000);
    harness.ack_stream(harness.head());
    pass(&mut harness, 10_000);
    disk.set_capacity(Some(disk.used()));
    let before = harness.figure("table_writes");
    for n in 0..20 {
        let tapped = ack(0, n + 1, &[(100 + n, Event::Click)], harness.now);
        harness.acks(vec![tapped]);
        turn(&mut harness);
        harness.now += 1_000;
    }
    assert!(harness.figure("table_writes") > before + 2);
}
