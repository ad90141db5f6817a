//! What the engine does with each command, on a disk that loses nothing but what a crash takes.

use std::sync::Arc;

use super::common::{HOUR, opened};
use super::plan::START;
use super::support::{Harness, Told, ack, batch, device, seen, session, small};
use crate::ids::Seq;
use crate::push::{
    Event, Failure, NewBatch, OfflinePolicy, ReceiptKind, Refusal, Rejection, Seen, StreamEvent,
};
use crate::store::Command;
use crate::store::disk::sim::SimDisk;
use rand::SeedableRng;
use rand::rngs::SmallRng;

fn crash(disk: &Arc<SimDisk>, harness: Harness<SimDisk>) -> Harness<SimDisk> {
    let now = harness.now;
    drop(harness);
    disk.crash(&mut SmallRng::seed_from_u64(1));
    Harness::open(disk, &small(), now)
}

#[test]
fn a_batch_is_seen_only_after_its_commit() {
    let (_disk, mut harness) = opened(&small());
    let mut answer = harness.stage_batch(batch("b1", 1, &[0, 1, 9, 0], START, HOUR));
    assert!(harness.pull(0).is_empty() && harness.sink.take().is_empty());
    assert!(answer.try_recv().is_err(), "nothing is answered before the commit");
    harness.commit().expect("the disk works");
    let answer = answer.try_recv().expect("answered").expect("accepted");
    assert_eq!(answer.accepted, 2);
    assert_eq!(answer.refused, [(2, Refusal::DeviceUnknown), (3, Refusal::Duplicate)]);
    assert_eq!(harness.sink.take(), [Told::Batch(answer.seq, vec![device(0), device(1)])]);
    assert_eq!(harness.pulled(0), [(1, false)]);
    assert_eq!(harness.pulled(0), [(1, true)], "what was written before is a redelivery");
}

#[test]
fn a_device_is_current_only_when_what_it_said_is_durable() {
    let (_disk, mut harness) = opened(&small());
    let is_current = |harness: &Harness<SimDisk>, n| harness.engine.shared().index.is_current(&seen(n));
    assert!(is_current(&harness, 0) && !is_current(&harness, 9));
    harness.see(9);
    assert!(!is_current(&harness, 9), "a second session must not be welcome before the first one is");
    assert!(is_current(&harness, 0));
    harness.see(9);
    harness.commit().expect("the disk works");
    assert_eq!(harness.sink.take(), [Told::Seen(session(9)), Told::Seen(session(9))]);
    assert!(is_current(&harness, 9));
    // What it says of its switch is news if it is otherwise.
    let with = |switch| Seen { push_on: switch, ..seen(9) };
    let currents = |harness: &Harness<SimDisk>| {
        [None, Some(true), Some(false)].map(|switch| harness.is_current(&with(switch)))
    };
    assert_eq!(currents(&harness), [true, true, false]);
    let off = Command::Seen { device: Box::new(with(Some(false))), session: session(9) };
    harness.apply(off).expect("the disk works");
    harness.commit().expect("the disk works");
    assert_eq!(currents(&harness), [true, false, true]);
}

#[test]
fn what_is_pending_at_a_crash_comes_again_in_order_and_marked() {
    let (disk, mut harness) = opened(&small());
    for message in 1..=3 {
        harness.deliver(batch(&format!("b{message}"), message, &[0, 1], START, HOUR)).expect("accepted");
    }
    harness.arrive(0, 2);
    let mut lost = harness.stage_batch(batch("lost", 4, &[0], START, HOUR));
    let mut harness = crash(&disk, harness);
    assert!(lost.try_recv().is_err());
    assert_eq!(harness.pulled(0), [(1, true), (3, true)]);
    assert_eq!(harness.pulled(1), [(1, true), (2, true), (3, true)]);
    let counts = harness.totals();
    assert!(counts.identity_holds(), "{counts:?}");
    assert_eq!((counts.accepted, counts.arrived, counts.pending), (6, 1, 5));
}

#[test]
fn a_repeated_batch_gets_the_same_answer_also_after_a_crash() {
    let (disk, mut harness) = opened(&small());
    let first = harness.deliver(batch("b1", 1, &[0, 9], START, HOUR)).expect("accepted");
    assert!(!first.repeated);
    // Also within one group.
    let mut new = harness.stage_batch(batch("b2", 2, &[0], START, HOUR));
    let mut repeat = harness.stage_batch(batch("b2", 2, &[0], START, HOUR));
    harness.commit().expect("the disk works");
    let (new, repeat) = (new.try_recv().expect("told"), repeat.try_recv().expect("told"));
    assert_eq!(
        (new.expect("accepted").seq, true),
        repeat.map(|again| (again.seq, again.repeated)).expect("same")
    );
    for _ in 0..2 {
        harness = crash(&disk, harness);
        let again = harness.deliver(batch("b1", 1, &[0, 9], START, HOUR)).expect("repeated");
        assert_eq!(again, crate::push::Accepted { repeated: true, ..first.clone() });
        let mut other = batch("b1", 1, &[0, 1], START, HOUR);
        other.digest = [99; 16];
        assert_eq!(harness.deliver(other), Err(Rejection::BatchConflict));
        harness.checkpoint().expect("the disk works");
    }
    let mut old = batch("never-seen", 7, &[0], START, HOUR);
    old.created_at = START - 25 * HOUR;
    assert_eq!(harness.deliver(old), Err(Rejection::TooOld));
}

#[test]
fn admission_refuses_target_by_target_and_batch_by_batch() {
    let (_disk, mut harness) = opened(&small());
    let mut off = seen(3);
    off.push_on = Some(false);
    harness.apply(Command::Seen { device: Box::new(off), session: session(3) }).expect("the disk works");
    let mut only_connected = batch("b1", 1, &[0, 1, 3], START, HOUR);
    only_connected.offline_policy = OfflinePolicy::Return;
    harness.connected.lock().expect("not poisoned").insert(device(1));
    let answer = harness.deliver(only_connected).expect("accepted");
    assert_eq!(answer.refused, [(0, Refusal::Offline), (2, Refusal::PushDisabled)]);
    let again = harness.deliver(batch("b2", 1, &[1, 2], START, HOUR)).expect("accepted");
    assert_eq!(again.refused, [(0, Refusal::Duplicate)]);
    let mut other_body = batch("b3", 1, &[0], START, HOUR);
    other_body.body_digest = [77; 16];
    assert_eq!(harness.deliver(other_body), Err(Rejection::MessageConflict));
    let late = batch("b4", 5, &[0], START - HOUR, HOUR);
    assert_eq!(harness.deliver(late), Err(Rejection::Expired));
    let counts = harness.message(1, None).expect("known").counts;
    assert!(counts.identity_holds() && counts.targets == 5 && counts.accepted == 2, "{counts:?}");
}

#[test]
fn acks_end_entries_once_and_late_ones_are_marked() {
    let (_disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1, 2], START, HOUR)).expect("accepted");
    harness.sink.take();
    let now = START + 10;
    harness.now = now;
    harness.acks(vec![
        ack(0, 1, &[(1, Event::Arrive), (1, Event::Arrive), (1, Event::Click)], now),
        ack(1, 1, &[(1, Event::Clean)], now - 999_999),
        ack(1, 0, &[(1, Event::Clean)], now),
        ack(1, 2, &[(77, Event::Arrive)], now),
    ]);
    assert!(harness.sink.take().is_empty(), "nothing is confirmed before the commit");
    harness.commit().expect("the disk works");
    assert_eq!(harness.sink.take().len(), 3);
    harness.now = START + HOUR;
    harness.settle().expect("the disk works");
    assert_eq!(harness.sink.take().len(), 1, "the one that is left ends as expired");
    harness.acks(vec![ack(2, 3, &[(1, Event::Arrive), (1, Event::Arrive), (1, Event::Click)], harness.now)]);
    harness.commit().expect("the disk works");
    let state = harness.message(1, Some(2)).expect("known");
    let counts = state.counts;
    assert!(counts.identity_holds(), "{counts:?}");
    assert_eq!((counts.arrived, counts.failed[0], counts.pending), (2, 1, 0));
    assert_eq!((counts.clicked, counts.cleaned, counts.late), (2, 1, 2));
    let on = state.on_device.expect("asked for");
    assert!(on.clicked && on.late);
    assert_eq!(on.state, crate::push::TargetState::Failed(crate::push::Failure::Expired));

    let events: Vec<StreamEvent> = harness.stream(Seq(0)).into_iter().map(|(_, event)| event).collect();
    let kinds: Vec<String> = events
        .iter()
        .map(|event| match event {
            StreamEvent::Receipt(receipt) => {
                let marks = [
                    (receipt.outcome.is_some(), "outcome"),
                    (receipt.implied, "implied"),
                    (receipt.late, "late"),
                    (receipt.unmatched, "unmatched"),
                ];
                let marks: Vec<&str> = marks.iter().filter(|mark| mark.0).map(|mark| mark.1).collect();
                assert!(receipt.event_time >= START || receipt.unmatched);
                assert_eq!(receipt.late, receipt.after == Some(Failure::Expired));
                format!("{:?} {}", receipt.kind, marks.join(" "))
            }
            StreamEvent::Mass(mass) => format!("Mass {:?} {:?}", mass.reason, mass.ordinals.parts().1),
            StreamEvent::Gap(gap) => panic!("{gap:?}"),
            StreamEvent::Device(_) => unreachable!("left out"),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "Arrive outcome",
            "Click ",
            "Arrive outcome implied",
            "Clean ",
            "Arrive unmatched",
            "Mass Expired [4]",
            "Arrive late",
            "Click late"
        ]
    );
}

#[test]
fn retention_zero_is_for_who_is_connected_and_never_redelivered() {
    let (disk, mut harness) = opened(&small());
    harness.connected.lock().expect("not poisoned").extend([device(0), device(1)]);
    let mut new = batch("b1", 1, &[0, 1, 2], START, 10_000);
    new.online_only = true;
    let answer = harness.deliver(new.clone()).expect("accepted");
    assert_eq!(answer.accepted, 3);
    assert_eq!(
        harness.sink.take(),
        [
            Told::Batch(answer.seq, vec![device(0), device(1)]),
            Told::Ended(device(2), answer.seq, Failure::Offline)
        ]
    );
    assert_eq!(harness.pulled(0), [(1, false)]);
    assert!(harness.pull(0).is_empty() && harness.pull(2).is_empty());
    harness.settle().expect("the disk works");
    harness.now += 10_000;
    assert_eq!(harness.engine.next_wakeup(), Some(harness.now));
    harness.settle().expect("the disk works");
    let counts = harness.totals();
    assert_eq!(counts.failed[Failure::Offline as usize - 1], 2);
    assert_eq!(counts.failed[Failure::Unacknowledged as usize - 1], 1);
    // After a crash nobody gets it either.
    new.message.0 = 2;
    new.id = crate::ids::BatchId::parse("b2").expect("valid");
    new.expires_at = harness.now + 10_000;
    new.created_at = harness.now;
    harness.deliver(new).expect("accepted");
    let mut harness = crash(&disk, harness);
    assert!(harness.pull(0).is_empty());
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    assert!(harness.totals().identity_holds() && harness.totals().pending == 0);
}

#[test]
fn switching_off_ends_what_is_pending() {
    let (_disk, mut harness) = opened(&small());
    let first = harness.deliver(batch("b1", 1, &[0], START, HOUR)).expect("accepted");
    let second = harness.deliver(batch("b2", 2, &[0, 1], START, HOUR)).expect("accepted");
    harness.sink.take();
    let mut off = seen(0);
    off.push_on = Some(false);
    harness.apply(Command::Seen { device: Box::new(off), session: session(0) }).expect("the disk works");
    harness.commit().expect("the disk works");
    let ended = |seq| Told::Ended(device(0), seq, Failure::PushDisabled);
    assert_eq!(harness.sink.take(), [ended(first.seq), ended(second.seq), Told::Seen(session(0))]);
    assert!(harness.pull(0).is_empty() && harness.totals().pending == 1);
}

#[test]
fn sent_is_reported_once_and_arrive_then_stands_for_itself() {
    let (_disk, mut harness) = opened(&small());
    let answer = harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    harness.pull(0);
    harness.pull(1);
    harness.now += 30_000;
    harness.sent(0, answer.seq, START + 5);
    harness.sent(0, answer.seq, START + 5);
    harness.arrive(0, 1);
    harness.arrive(1, 1);
    let receipts: Vec<(ReceiptKind, u64)> = harness
        .stream(Seq(0))
        .into_iter()
        .filter_map(|(_, event)| match event {
            StreamEvent::Receipt(receipt) => Some((receipt.kind, receipt.sent_at)),
            StreamEvent::Mass(_) | StreamEvent::Gap(_) | StreamEvent::Device(_) => None,
        })
        .collect();
    assert_eq!(
        receipts,
        [(ReceiptKind::Sent, START + 5), (ReceiptKind::Arrive, 0), (ReceiptKind::Arrive, START)]
    );
    assert_eq!(harness.totals().sent, 2);
}

#[test]
fn a_stream_has_a_durable_cursor_that_only_moves_forward_and_rests_when_idle() {
    let (disk, mut harness) = opened(&small());
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    harness.arrive(0, 1);
    harness.arrive(1, 1);
    let events = harness.stream(Seq(0));
    assert_eq!(events.len(), 2);
    harness.ack_stream(events[0].0);
    harness.ack_stream(Seq(1));
    harness.ack_stream(Seq(999));
    let harness = crash(&disk, harness);
    assert_eq!(harness.engine.stream_bounds("main").expect("known").cursor, events[0].0);
    assert_eq!(harness.stream(events[0].0).len(), 1);
    assert!(harness.engine.read_stream("main", Seq(999), 1, 1).is_err());
    assert!(harness.engine.read_stream("none", Seq(0), 1, 1).is_err());
    let mut harness = harness;
    harness.ack_stream(harness.head());
    for _ in 0..3 {
        let head = harness.head();
        harness.ack_stream(head);
        assert_eq!(harness.head(), head, "an idle stream writes nothing");
    }
}

#[test]
fn a_batch_that_came_too_late_is_rejected_and_one_for_who_is_online_is_put_off() {
    let (_disk, mut harness) = opened(&small());
    let late = batch("late", 1, &[0], START - 5_000, 5_000);
    assert_eq!(harness.deliver(late.clone()).expect_err("too late"), Rejection::Expired);
    // Its window begins when it is taken in: only the edge itself can be late.
    let online = NewBatch { online_only: true, ..late };
    assert_eq!(harness.deliver(online).expect_err("too late"), Rejection::Unavailable);
}
