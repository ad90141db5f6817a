//! Which message goes first, which takes another's place, which is taken back, and how much one device may have pending.

use std::sync::Arc;

use super::common::{HOUR, messages, opened};
use super::plan::START;
use super::support::{Harness, app, batch, device, small};
use crate::ids::{DeviceKey, MessageId, Seq};
use crate::push::{
    Accepted, Failure, NewBatch, Priority, Reached, ReceiptKind, Refusal, Rejection, Revoked, StreamEvent,
};
use crate::store::Command;
use crate::store::disk::sim::{Loss, SimDisk};
use crate::store::options::{Quota, StoreOptions};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;

fn crash(disk: &Arc<SimDisk>, harness: Harness<SimDisk>, options: &StoreOptions) -> Harness<SimDisk> {
    let now = harness.now;
    drop(harness);
    disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
    Harness::open(disk, options, now)
}

fn new(message: u64, targets: &[u32]) -> NewBatch {
    batch(&format!("b{message}"), message, targets, START, HOUR)
}

fn keyed(message: u64, targets: &[u32]) -> NewBatch {
    NewBatch { collapse_key: "weather".into(), ..new(message, targets) }
}

fn high(message: u64, targets: &[u32]) -> NewBatch {
    NewBatch { priority: Priority::High, ..new(message, targets) }
}

/// The ends in the stream: message, reason, how many, and whether it says when it was written.
fn ends(harness: &Harness<SimDisk>) -> Vec<(u64, Failure, u32, bool)> {
    let events = harness.stream(Seq(0)).into_iter();
    let end = |(_, event)| match event {
        StreamEvent::Receipt(receipt) => match receipt.outcome {
            Some(Err(reason)) => Some((receipt.message.0, reason, 1, receipt.sent_at > 0)),
            _ => None,
        },
        StreamEvent::Mass(mass) => Some((mass.message.0, mass.reason, mass.count, false)),
        StreamEvent::Gap(_) | StreamEvent::Device(_) => None,
    };
    events.filter_map(end).collect()
}

fn revoke(harness: &mut Harness<SimDisk>, message: u64) -> Result<Revoked, Rejection> {
    let (reply, mut answer) = oneshot::channel();
    harness
        .apply(Command::Revoke { app: app(), message: MessageId(message), reply })
        .expect("the disk works");
    harness.settle().expect("the disk works");
    answer.try_recv().expect("answered")
}

fn may_have(harness: &Harness<SimDisk>, message: u64) -> Vec<u32> {
    let shared = harness.engine.shared();
    let all = shared.recalls.read(Seq(0), 0, 100);
    let Some(recall) = all.iter().find(|one| one.message.0 == message) else { return Vec::new() };
    (0..4).filter(|n| shared.index.may_have(&device(*n), recall, shared.opened_at)).collect()
}

#[test]
fn high_priority_goes_first_and_each_priority_has_its_own_place() {
    let (_disk, mut harness) = opened(&small());
    for batch in [new(1, &[0]), high(2, &[0]), new(3, &[0]), high(4, &[0])] {
        harness.deliver(batch).expect("accepted");
    }
    let pull = |harness: &Harness<SimDisk>, after: Reached, max: usize| -> Vec<u64> {
        let mut out = Vec::new();
        harness.engine.pull(&device(0), after, max, harness.now, &mut out);
        out.iter().map(|pulled| pulled.batch.message.0).collect()
    };
    assert_eq!(pull(&harness, Reached::START, 10), [2, 4, 1, 3]);
    assert_eq!(pull(&harness, Reached::START, 3), [2, 4, 1]);
    assert_eq!(pull(&harness, Reached::START.high_only(), 10), [2, 4]);
    let mut after = Reached::START;
    after.pass(Priority::High, harness.head());
    assert_eq!(pull(&harness, after, 10), [1, 3]);
    after.pass(Priority::Normal, harness.head());
    harness.deliver(high(5, &[0])).expect("accepted");
    assert_eq!(pull(&harness, after, 10), [5]);
}

#[test]
fn a_newer_message_with_the_same_collapse_key_takes_the_place_of_older_ones() {
    let options = small();
    let (disk, mut harness) = opened(&options);
    harness.deliver(keyed(1, &[0, 1, 2])).expect("accepted");
    harness.deliver(new(2, &[0, 1, 2])).expect("accepted");
    // One has it in flight: its end says when it was written.
    assert_eq!(messages(&harness, 0), [1, 2]);
    harness.now += 1_000;
    let answer = harness.deliver(keyed(3, &[0, 1, 3])).expect("accepted");
    assert_eq!(answer.accepted, 3);
    assert_eq!(ends(&harness), [(1, Failure::Replaced, 1, true), (1, Failure::Replaced, 1, false)]);
    for (n, expected) in [(0, vec![2, 3]), (1, vec![2, 3]), (2, vec![1, 2]), (3, vec![3])] {
        assert_eq!(messages(&harness, n), expected, "device {n}");
    }
    // What comes now is late.
    harness.arrive(0, 1);
    let state = harness.message(1, Some(0)).expect("known");
    assert_eq!((state.counts.late, state.counts.sent, state.counts.arrived), (1, 1, 0));
    // The same message again is a duplicate, and takes nobody's place.
    let again = NewBatch {
        id: crate::ids::BatchId::parse("again").expect("valid"),
        digest: [9; 16],
        ..keyed(3, &[0])
    };
    assert_eq!(harness.deliver(again).expect("accepted").refused, [(0, Refusal::Duplicate)]);
    let counts = harness.totals();
    let mut harness = crash(&disk, harness, &options);
    assert_eq!(messages(&harness, 0), [2, 3]);
    assert_eq!(harness.totals(), counts);
    assert!(counts.identity_holds());
}

#[test]
fn who_does_not_get_the_newer_message_keeps_the_older() {
    let (_disk, mut harness) = opened(&small());
    harness.connected.lock().expect("not poisoned").insert(device(0));
    harness.deliver(keyed(1, &[0, 1])).expect("accepted");
    let online = NewBatch { online_only: true, expires_at: START + 10_000, ..keyed(2, &[0, 1]) };
    assert_eq!(harness.deliver(online).expect("accepted").accepted, 2);
    assert_eq!((messages(&harness, 0), messages(&harness, 1)), (vec![2], vec![1]));
    let back = NewBatch { offline_policy: crate::push::OfflinePolicy::Return, ..keyed(3, &[1]) };
    assert_eq!(harness.deliver(back).expect("accepted").refused, [(0, Refusal::Offline)]);
    assert_eq!(messages(&harness, 1), [1]);
    revoke(&mut harness, 4).expect("revoked");
    harness.deliver(keyed(4, &[1])).expect("accepted");
    assert_eq!(messages(&harness, 1), [1], "a message that was taken back takes nobody's place");
}

fn with_quota(quota: Quota) -> StoreOptions {
    StoreOptions { app_quotas: [(app(), quota)].into(), ..small() }
}

#[test]
fn an_app_may_drop_the_oldest_normal_ones_first() {
    let options = with_quota(Quota { max_entries: 3, max_bytes: u64::MAX, drop_oldest: true });
    let (_disk, mut harness) = opened(&options);
    for batch in [high(1, &[0]), new(2, &[0, 1]), new(3, &[0])] {
        assert_eq!(
            harness.deliver(batch).expect("accepted").accepted,
            1 + u32::from(harness.totals().accepted == 3)
        );
    }
    for (message, left) in [(4, vec![1, 3, 4]), (5, vec![1, 4, 5])] {
        assert!(harness.deliver(new(message, &[0])).expect("accepted").refused.is_empty());
        assert_eq!(messages(&harness, 0), left);
    }
    for (message, left) in [(6, vec![1, 6, 5]), (7, vec![1, 6, 7]), (8, vec![6, 7, 8])] {
        harness.deliver(high(message, &[0])).expect("accepted");
        assert_eq!(messages(&harness, 0), left);
    }
    assert_eq!(messages(&harness, 1), [2]);
    let ended: Vec<u64> = ends(&harness)
        .into_iter()
        .map(|(message, reason, ..)| {
            assert_eq!(reason, Failure::OverQuota);
            message
        })
        .collect();
    assert_eq!(ended, [2, 3, 4, 5, 1]);
    assert!(harness.totals().identity_holds());
}

#[test]
fn bytes_count_too_and_what_never_fits_is_refused() {
    let sized = |message, bytes: usize| NewBatch { body: vec![7; bytes].into(), ..new(message, &[0]) };
    for drop_oldest in [false, true] {
        let quota = Quota { max_entries: 100, max_bytes: 1_000, drop_oldest };
        let (disk, mut harness) = opened(&with_quota(quota));
        harness.deliver(sized(1, 600)).expect("accepted");
        harness.deliver(sized(2, 300)).expect("accepted");
        let over = |answer: Accepted| answer.refused == [(0, Refusal::OverQuota)];
        assert_eq!(over(harness.deliver(sized(3, 200)).expect("accepted")), !drop_oldest);
        assert!(over(harness.deliver(sized(4, 1_001)).expect("accepted")));
        assert!(!over(harness.deliver(sized(5, 100)).expect("accepted")));
        assert_eq!(messages(&harness, 0), if drop_oldest { vec![2, 3, 5] } else { vec![1, 2, 5] });
        harness.checkpoint().expect("the disk works");
        let mut harness = crash(&disk, harness, &with_quota(quota));
        assert!(over(harness.deliver(sized(6, 1_001)).expect("accepted")));
        assert_eq!(over(harness.deliver(sized(7, 600)).expect("accepted")), !drop_oldest);
    }
}

#[test]
fn a_newer_message_needs_no_more_room_than_those_it_replaces() {
    let quota = Quota { max_entries: 1, max_bytes: u64::MAX, drop_oldest: false };
    let (_disk, mut harness) = opened(&with_quota(quota));
    harness.deliver(keyed(1, &[0])).expect("accepted");
    assert_eq!(harness.deliver(new(2, &[0])).expect("accepted").refused, [(0, Refusal::OverQuota)]);
    assert_eq!(harness.deliver(keyed(3, &[0])).expect("accepted").accepted, 1);
    assert_eq!(messages(&harness, 0), [3]);
}

#[test]
fn a_message_is_taken_back_where_it_is_pending_and_what_comes_later_ends_at_once() {
    let options = small();
    let (disk, mut harness) = opened(&options);
    harness.deliver(new(1, &[0, 1])).expect("accepted");
    harness
        .deliver(NewBatch {
            id: crate::ids::BatchId::parse("more").expect("valid"),
            digest: [8; 16],
            ..new(1, &[2, 3])
        })
        .expect("accepted");
    harness.deliver(new(2, &[0])).expect("accepted");
    // One has it in flight, one has acknowledged it.
    harness.pull(0);
    harness.arrive(3, 1);
    harness.now += 5;
    let taken = revoke(&mut harness, 1).expect("taken back");
    assert_eq!(taken.ended, 3);
    assert_eq!(
        ends(&harness),
        [(1, Failure::Revoked, 1, true), (1, Failure::Revoked, 1, false), (1, Failure::Revoked, 1, false)]
    );
    assert_eq!((messages(&harness, 0), messages(&harness, 1)), (vec![2], vec![]));
    assert_eq!(may_have(&harness, 1), [0, 3]);
    assert_eq!(revoke(&mut harness, 1), Ok(Revoked { ended: 0, ..taken }), "again: nothing more");
    for round in 0..2 {
        let id = crate::ids::BatchId::parse(&format!("late-{round}")).expect("valid");
        let late = NewBatch { id, digest: [round; 16], ..new(1, &[0, 1]) };
        assert_eq!(harness.deliver(late).expect("accepted").accepted, 2);
        assert_eq!((messages(&harness, 0), messages(&harness, 1)), (vec![2], vec![]));
        harness.arrive(1, 1);
        assert_eq!(harness.message(1, None).expect("known").counts.late, 1, "an ack of it is late");
        if round == 0 {
            harness = crash(&disk, harness, &options);
        }
    }
    assert_eq!(
        may_have(&harness, 1),
        [0, 1, 2, 3],
        "what was pending may have been written before the start"
    );
    let counts = harness.totals();
    assert!(counts.identity_holds());
    assert_eq!((counts.failed[Failure::Revoked as usize - 1], counts.pending), (7, 1));
}

#[test]
fn what_was_taken_back_stays_so_as_long_as_its_last_batch_lives() {
    let options = small();
    for crashes in [false, true] {
        let (disk, mut harness) = opened(&options);
        let deliver = |harness: &mut Harness<SimDisk>, n: u8, hours: u64| {
            let id = crate::ids::BatchId::parse(&format!("batch-{n}")).expect("valid");
            let (created_at, expires_at) = (harness.now, harness.now + hours * HOUR);
            let batch = NewBatch { id, digest: [n; 16], created_at, expires_at, ..new(1, &[0]) };
            harness.deliver(batch).expect("accepted");
            harness.settle().expect("the disk works");
            messages(harness, 0)
        };
        assert_eq!(deliver(&mut harness, 1, 1), [1]);
        revoke(&mut harness, 1).expect("taken back");
        assert_eq!(deliver(&mut harness, 2, 10), [0; 0]);
        if crashes {
            harness = crash(&disk, harness, &options);
        }
        harness.now += 5 * HOUR;
        assert_eq!(deliver(&mut harness, 3, 1), [0; 0], "the first has expired, the second would live yet");
        harness.now += 6 * HOUR;
        assert_eq!(deliver(&mut harness, 4, 1), [1], "it is remembered no more");
    }
}

#[test]
fn a_message_can_be_taken_back_before_it_comes_and_places_are_bounded() {
    let options = StoreOptions { max_recalls: 2, ..small() };
    let (disk, mut harness) = opened(&options);
    let first = revoke(&mut harness, 1).expect("taken back");
    assert_eq!(first.ended, 0);
    revoke(&mut harness, 2).expect("taken back");
    assert_eq!(revoke(&mut harness, 3), Err(Rejection::Exhausted));
    assert_eq!(revoke(&mut harness, 1), Ok(first));
    harness.checkpoint().expect("the disk works");
    let mut harness = crash(&disk, harness, &options);
    assert_eq!(revoke(&mut harness, 3), Err(Rejection::Exhausted));
    assert_eq!(revoke(&mut harness, 1), Ok(first));
    harness.now += 1;
    harness.deliver(new(1, &[0])).expect("accepted");
    assert!(messages(&harness, 0).is_empty());
    assert_eq!(may_have(&harness, 1), [] as [u32; 0], "nobody has it");
    harness.now += 72 * HOUR;
    let later = NewBatch { created_at: harness.now, expires_at: harness.now + HOUR, ..new(2, &[0]) };
    harness.deliver(later).expect("accepted");
    assert_eq!(messages(&harness, 0), [2], "it is remembered no more");
    revoke(&mut harness, 3).expect("there is room again");
}

#[test]
fn taking_back_in_the_same_group_as_the_batch_ends_it() {
    let (_disk, mut harness) = opened(&small());
    let mut accepted = harness.stage_batch(new(1, &[0, 1, 2]));
    let (reply, mut answer) = oneshot::channel();
    harness.apply(Command::Revoke { app: app(), message: MessageId(1), reply }).expect("the disk works");
    harness.commit().expect("the disk works");
    assert!(messages(&harness, 0).is_empty(), "nobody gets it from now on");
    harness.settle().expect("the disk works");
    assert_eq!(accepted.try_recv().expect("answered").expect("accepted").accepted, 3);
    assert_eq!(answer.try_recv().expect("answered").expect("taken back").ended, 3);
    assert_eq!(harness.totals().pending, 0);
}

#[test]
fn what_was_written_and_expires_before_the_deadline_is_counted_as_sent() {
    let (_disk, mut harness) = opened(&small());
    harness.connected.lock().expect("not poisoned").insert(device(1));
    harness.deliver(batch("b1", 1, &[0, 2], START, 5_000)).expect("accepted");
    let online = NewBatch { online_only: true, ..batch("b2", 2, &[1, 3], START, 5_000) };
    harness.deliver(online).expect("accepted");
    harness.pull(0);
    harness.pull(1);
    harness.now += 5_000;
    harness.settle().expect("the disk works");
    let mut ended = ends(&harness);
    ended.sort_unstable_by_key(|(message, _, _, sent)| (*message, *sent));
    assert_eq!(
        ended,
        [
            (1, Failure::Expired, 1, false),
            (1, Failure::Expired, 1, true),
            (2, Failure::Offline, 1, false),
            (2, Failure::Unacknowledged, 1, true)
        ]
    );
    assert_eq!(harness.totals().sent, 2);
    let receipts = harness.stream(Seq(0)).into_iter().filter_map(|(_, event)| match event {
        StreamEvent::Receipt(receipt) => Some((receipt.kind, receipt.sent_at)),
        _ => None,
    });
    assert!(receipts.into_iter().all(|receipt| receipt == (ReceiptKind::SentFail, START)));
}

#[test]
fn a_batch_whose_ends_do_not_fit_is_refused_and_nothing_changes() {
    let options = StoreOptions { segment_bytes: 8 * 1024, max_bytes: 48 * 1024, ..small() };
    let (_disk, mut harness) = opened(&options);
    harness.deliver(keyed(1, &[0, 1])).expect("accepted");
    let all: Vec<DeviceKey> = (0..4).map(device).collect();
    let mut message = 2;
    for bytes in [3_000, 300, 10] {
        let refused = loop {
            let filler = NewBatch { targets: all.clone(), body: vec![1; bytes].into(), ..new(message, &[]) };
            if let Err(why) = harness.deliver(filler) {
                break why;
            }
            message += 1;
        };
        assert_eq!(refused, Rejection::Unavailable);
    }
    let before = (messages(&harness, 0), harness.totals());
    assert_eq!(harness.deliver(keyed(message + 1, &[0, 1])), Err(Rejection::Unavailable));
    assert_eq!((messages(&harness, 0), harness.totals()), before);
    let taken = revoke(&mut harness, 1).expect("the reserve is for ends");
    assert_eq!(taken.ended, 2);
}

#[test]
fn a_recall_that_is_over_stays_over_when_a_batch_comes_for_its_message() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(new(1, &[0])).expect("accepted");
    assert_eq!(revoke(&mut harness, 1).map(|revoked| revoked.ended), Ok(1));
    harness.now += 100 * HOUR;
    harness.settle().expect("the disk works");
    for (id, n) in [("later", 0), ("latest", 1)] {
        let later = batch(id, 1, &[n], harness.now, HOUR);
        assert_eq!(harness.deliver(later).map(|answer| answer.accepted), Ok(1));
    }
    for checkpoint in [false, true, true] {
        harness.settle().expect("the disk works");
        for n in [0, 1] {
            assert_eq!(messages(&harness, n), [1], "device {n}");
        }
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
        let now = harness.now;
        drop(harness);
        disk.kill();
        harness = Harness::open(&disk, &small(), now);
    }
}
