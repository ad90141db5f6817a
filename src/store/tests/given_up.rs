//! Records that can't be read, at each place that needs them: while they are copied, taken back, or looked for in all lists. Nothing ends for a moment's
//! failure, and what has ended is counted once.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::common::{HOUR, SEGMENT, again, messages, opened, pass};
use super::plan::START;
use super::stream_damage::{flip, places};
use super::support::{Harness, Told, ack, app, batch, device, small};
use crate::ids::MessageId;
use crate::limits::UNREADABLE_MS;
use crate::push::{Event, Failure, Rejection, Revoked, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{Batch, Command, record};

const FIRST: &str = "journal-0000000001.seg";

type Answer = oneshot::Receiver<Result<Revoked, Rejection>>;

fn storage(harness: &mut Harness<SimDisk>) -> u64 {
    failed(harness, Failure::Storage)
}

fn failed(harness: &mut Harness<SimDisk>, reason: Failure) -> u64 {
    let totals = harness.totals();
    assert!(totals.identity_holds(), "{totals:?}");
    totals.failed[reason as usize - 1]
}

fn revoke(harness: &mut Harness<SimDisk>, message: u64) -> Answer {
    let (reply, answer) = oneshot::channel();
    let message = MessageId(message);
    harness.apply(Command::Revoke { app: app(), message, reply }).expect("the disk works");
    harness.commit().expect("the disk works");
    answer
}

fn live(harness: &Harness<SimDisk>, n: u32, message: u64) -> Arc<Batch> {
    let pulled = harness.pull(n);
    pulled.iter().find(|pulled| pulled.batch.message.0 == message).expect("pending").batch.clone()
}

/// Batches that end at once and are read: the journal grows, and what is old in it is copied or goes.
fn traffic(harness: &mut Harness<SimDisk>, first: u64, count: u64) {
    for n in first..first + count {
        let mut new = batch(&format!("b-{n}"), n, &[0], harness.now, HOUR);
        new.body = vec![7; 1_500].into();
        harness.deliver(new).unwrap_or_else(|why| panic!("{n}: {why:?}"));
        harness.arrive(0, n);
        harness.ack_stream(harness.head());
        harness.settle().expect("the disk works");
        harness.now += 10;
    }
}

/// What waits in the oldest segment, which can't be read while the journal goes on.
fn unreadable() -> (Arc<SimDisk>, Harness<SimDisk>) {
    let (disk, mut harness) = opened(&StoreOptions { checkpoint_bytes: 20_000, ..small() });
    for (message, targets) in [(1, &[2, 3][..]), (2, &[3])] {
        let id = format!("old-{message}");
        harness.deliver(batch(&id, message, targets, START, 100 * HOUR)).expect("accepted");
    }
    disk.fail_reads(Some(FIRST));
    traffic(&mut harness, 100, 60);
    assert_eq!((harness.figure("segments_removed"), harness.figure("copied_bytes")), (0, 0));
    (disk, harness)
}

#[test]
fn what_cannot_be_copied_for_a_moment_is_copied_later() {
    let (disk, mut harness) = unreadable();
    pass(&mut harness, UNREADABLE_MS / 2);
    // Once, and then not before it is time.
    let reads = disk.reads();
    harness.now += 500;
    harness.settle().expect("the disk works");
    assert_eq!(disk.reads(), reads);
    assert_eq!((storage(&mut harness), messages(&harness, 3)), (0, vec![1, 2]));
    disk.fail_reads(None);
    pass(&mut harness, 1_000);
    assert!(harness.figure("copied_bytes") > 0 && harness.figure("segments_removed") > 2);
    // As if it had been readable all the time: another failure begins anew.
    let body = harness.engine.read_body(&live(&harness, 2, 1)).expect("readable");
    assert_eq!(body[..], b"body of 1"[..]);
    assert_eq!((storage(&mut harness), messages(&harness, 3)), (0, vec![1, 2]));
}

#[test]
fn what_cannot_be_copied_for_long_ends_as_storage_and_its_segment_goes() {
    let (_disk, mut harness) = unreadable();
    pass(&mut harness, UNREADABLE_MS - 2_000);
    assert_eq!(storage(&mut harness), 0);
    pass(&mut harness, 4_000);
    assert_eq!((storage(&mut harness), harness.totals().pending), (3, 0));
    assert!(harness.figure("segments_removed") > 2);
}

/// Only one of the two can't be read: the other one is copied, and nothing of it ends.
#[test]
fn what_is_beside_a_damaged_record_is_copied() {
    let options = StoreOptions { checkpoint_bytes: 20_000, ..small() };
    let (disk, mut harness) = opened(&options);
    for message in 1..=3 {
        let id = format!("old-{message}");
        harness.deliver(batch(&id, message, &[2, 3], START, 100 * HOUR)).expect("accepted");
    }
    flip(&disk, places(&harness, record::BATCH)[1].1);
    traffic(&mut harness, 100, 60);
    assert!(harness.figure("segments_removed") > 2);
    for _ in 0..2 {
        assert_eq!(
            (storage(&mut harness), messages(&harness, 2), messages(&harness, 3)),
            (2, vec![1, 3], vec![1, 3])
        );
        harness = again(&disk, harness, &options);
    }
}

#[test]
fn a_damaged_record_does_not_keep_a_full_disk_full() {
    let options = StoreOptions { checkpoint_bytes: 20_000, max_messages: 40, max_batch_ids: 40, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.deliver(batch("old", 50_000, &[2, 3], START, 100 * HOUR)).expect("accepted");
    flip(&disk, places(&harness, record::BATCH)[0].1);
    disk.set_capacity(Some(10 * SEGMENT));
    let mut refused = 0;
    for n in 1..400 {
        let mut new = batch(&format!("b-{n}"), n, &[0], harness.now, HOUR);
        new.body = vec![7; 1_500].into();
        if harness.deliver(new).is_ok() {
            refused = 0;
            harness.arrive(0, n);
        } else {
            refused += 1;
            assert!(refused < 100, "stuck at {n}");
        }
        harness.ack_stream(harness.head());
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
    assert_eq!(storage(&mut harness), 2);
}

#[test]
fn what_is_taken_back_and_damaged_ends_as_storage_and_who_asked_is_answered() {
    let (disk, mut harness) = opened(&small());
    for (id, targets) in [("b1", [0, 1]), ("b2", [2, 3])] {
        let mut new = batch(id, 1, &targets, START, HOUR);
        new.digest = [targets[0] as u8; 16];
        harness.deliver(new).expect("accepted");
    }
    flip(&disk, places(&harness, record::BATCH)[0].1);
    let mut answer = revoke(&mut harness, 1);
    harness.settle().expect("the disk works");
    assert_eq!(answer.try_recv().expect("answered").expect("taken back").ended, 2);
    assert_eq!((storage(&mut harness), failed(&mut harness, Failure::Revoked)), (2, 2));
    assert_eq!((harness.totals().pending, harness.figure("damaged")), (0, 1));
}

/// What waits to be taken back, because it can't be read, holds up neither what arrives nor its count.
#[test]
fn what_arrives_while_it_waits_to_be_taken_back_has_arrived() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    harness.deliver(batch("b2", 2, &[0, 1], START, HOUR)).expect("accepted");
    disk.fail_reads(Some(FIRST));
    let mut answers = [1, 2].map(|message| revoke(&mut harness, message));
    harness.settle().expect("the disk works");
    for n in 0..2 {
        harness.acks(vec![ack(n, 1, &[(1, Event::Arrive)], harness.now)]);
    }
    harness.commit().expect("the disk works");
    harness.now += 1_000;
    disk.fail_reads(None);
    harness.settle().expect("the disk works");
    let ended =
        answers.each_mut().map(|answer| answer.try_recv().expect("answered").expect("taken back").ended);
    assert_eq!(ended, [0, 2]);
    assert_eq!((harness.totals().arrived, failed(&mut harness, Failure::Revoked)), (2, 2));
}

/// Nobody waits for the answer any more, but it was taken back.
#[test]
fn what_was_to_be_taken_back_when_it_was_killed_is_taken_back_by_the_next_start() {
    for checkpoint in [false, true] {
        let (disk, mut harness) = opened(&small());
        harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
        harness.deliver(batch("b2", 2, &[0, 1], START, HOUR)).expect("accepted");
        disk.fail_reads(Some(FIRST));
        let mut answer = revoke(&mut harness, 1);
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
        assert!(answer.try_recv().is_err() && failed(&mut harness, Failure::Revoked) == 0);
        disk.fail_reads(None);
        harness = again(&disk, harness, &small());
        harness.settle().expect("the disk works");
        assert_eq!(
            (failed(&mut harness, Failure::Revoked), harness.totals().pending),
            (2, 2),
            "{checkpoint}"
        );
        assert_eq!(messages(&harness, 1), [2]);
    }
}

/// More was written than ends by receipts of their own in one slice.
#[test]
fn taking_back_counts_what_ends_in_several_slices() {
    let options = StoreOptions { segment_bytes: 8 * 1024 * 1024, ..small() };
    let (_disk, mut harness) = opened(&options);
    let targets: Vec<u32> = (0..9_000).collect();
    for &n in &targets {
        harness.see(n);
    }
    harness.deliver(batch("b1", 1, &targets, START, HOUR)).expect("accepted");
    for &n in &targets {
        assert_eq!(harness.pull(n).len(), 1);
    }
    let mut answer = revoke(&mut harness, 1);
    harness.settle().expect("the disk works");
    assert_eq!(answer.try_recv().expect("answered").expect("taken back").ended, 9_000);
    assert_eq!(failed(&mut harness, Failure::Revoked), 9_000);
}

#[test]
fn damage_that_is_found_twice_counts_once_and_what_has_ended_is_none() {
    let (_disk, mut harness) = opened(&small());
    let seq = harness.deliver(batch("b1", 1, &[0, 1, 2], START, HOUR)).expect("accepted").seq;
    harness.deliver(batch("b2", 2, &[3], START, HOUR)).expect("accepted");
    let (damaged, ended) = (live(&harness, 0, 1), live(&harness, 3, 2));
    harness.arrive(3, 2);
    harness.arrive(1, 1);
    harness.sink.take();
    for _ in 0..2 {
        harness.engine.found_damaged(&damaged);
        harness.engine.found_damaged(&ended);
        harness.engine.maintain(harness.now).expect("the disk works");
        harness.engine.found_damaged(&damaged);
    }
    harness.settle().expect("the disk works");
    harness.engine.found_damaged(&damaged);
    harness.settle().expect("the disk works");
    let told = harness.sink.take();
    assert_eq!(told.len(), 2, "{told:?}");
    for n in [0, 2] {
        assert!(told.contains(&Told::Ended(device(n), seq, Failure::Storage)), "{told:?}");
    }
    assert_eq!((storage(&mut harness), harness.figure("damaged"), harness.totals().pending), (2, 1, 0));
}

/// All lists are looked through part by part: what is found damaged meanwhile is looked for in those that were passed, too, and what arrives
/// meanwhile has arrived.
#[test]
fn what_happens_while_lists_are_looked_through_counts() {
    let mut any_late = 0;
    for turns in 0..10 {
        let (disk, mut harness) = opened(&small());
        for message in 1..=2 {
            harness
                .deliver(batch(&format!("b{message}"), message, &[0, 1, 2, 3], START, HOUR))
                .expect("accepted");
        }
        let [first, second] = [1, 2].map(|message| live(&harness, 0, message));
        harness.engine.found_damaged(&first);
        for _ in 0..turns {
            harness.engine.maintain(harness.now).expect("the disk works");
        }
        harness.engine.found_damaged(&second);
        harness.commit().expect("the disk works");
        // The first one may have ended by now.
        let late = u64::from(!messages(&harness, 1).contains(&1));
        harness.acks(vec![ack(1, 1, &[(1, Event::Arrive), (2, Event::Arrive)], harness.now)]);
        harness.settle().expect("the disk works");
        for start in 0..2 {
            let totals = harness.totals();
            assert_eq!(
                (totals.arrived, storage(&mut harness), totals.pending),
                (2 - late, 6 + late, 0),
                "{turns}, {start}"
            );
            assert!((0..4).all(|n| messages(&harness, n).is_empty()));
            harness = again(&disk, harness, &small());
        }
        any_late += late;
    }
    assert!((1..9).contains(&any_late), "{any_late}");
}

/// There is no room to say that it ended. It waits, as what expires does.
#[test]
fn damage_waits_for_room() {
    let options =
        StoreOptions { max_bytes: 6 * SEGMENT, reserve_segments: 0, checkpoint_bytes: 20_000, ..small() };
    let (disk, mut harness) = opened(&options);
    harness.deliver(batch("b1", 1, &[2, 3], START, HOUR)).expect("accepted");
    flip(&disk, places(&harness, record::BATCH)[0].1);
    for n in 1..1_000 {
        let mut new = batch(&format!("f-{n}"), 10 + n, &[0], START, 10 * HOUR);
        new.body = vec![7; 1_000].into();
        if harness.deliver(new).is_err() {
            break;
        }
    }
    super::wakeups::fill_to_the_brim(&mut harness);
    harness.now += HOUR;
    for _ in 0..3 {
        harness.settle().expect("the disk works");
        assert_eq!(storage(&mut harness), 0);
        assert_eq!(messages(&harness, 3), [0; 0], "it has expired");
        assert!(
            harness.engine.next_wakeup().is_some_and(|at| at <= harness.now + 1_000),
            "it is looked at again"
        );
        harness.now += 1_000;
    }
    let pending = harness.totals().pending;
    // The disk's owner makes room.
    let more = StoreOptions { max_bytes: 12 * SEGMENT, ..options };
    harness = again(&disk, harness, &more);
    pass(&mut harness, 2_000);
    assert_eq!((storage(&mut harness), harness.totals().pending), (2, pending - 2));
    let told =
        harness.sink.take().into_iter().filter(|told| matches!(told, Told::Ended(.., Failure::Storage)));
    assert_eq!(told.count(), 2);
}

/// Damage that a start finds is ended part by part. Wherever that is cut short, the next start goes on with it: no checkpoint passes it before.
#[test]
fn a_start_that_is_cut_short_leaves_what_is_lost_to_the_next_one() {
    let options = StoreOptions { checkpoint_bytes: 1, ..small() };
    let (disk, mut harness) = opened(&StoreOptions { checkpoint_bytes: u64::MAX, ..options.clone() });
    for message in 1..=4 {
        harness.deliver(batch(&format!("b{message}"), message, &[0, 1], START, HOUR)).expect("accepted");
    }
    pass(&mut harness, 10_000);
    let head = harness.head();
    for (_, place) in &places(&harness, record::BATCH)[1..3] {
        flip(&disk, *place);
    }
    let now = harness.now;
    drop(harness);
    disk.kill();
    for turns in 0..60 {
        let disk = Arc::new(disk.fork());
        let mut harness = Harness::open(&disk, &options, now);
        for _ in 0..turns {
            harness.commit().expect("the disk works");
            harness.engine.maintain(now).expect("the disk works");
        }
        let mut harness = again(&disk, harness, &options);
        harness.settle().expect("the disk works");
        let totals = harness.totals();
        assert_eq!((storage(&mut harness), totals.pending), (4, 4), "{turns} turns");
        let told = harness.stream(head).into_iter().filter_map(|(_, event)| match event {
            StreamEvent::Mass(mass) => Some(mass.count),
            _ => None,
        });
        assert_eq!(told.sum::<u32>(), 4, "{turns} turns");
    }
}
