use super::*;
use crate::wire::pb::router::{self as pb, Binding, FailReason, Refused, Registered};

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(DigestKey([1; 32]));
    ledger.handle_opened(1_000, 1_000_000);
    ledger
}

fn batch(id: &str, targets: usize) -> DeliverBatch {
    let target = |n| pb::Target { device_id: format!("d-{n}"), account: String::new() };
    DeliverBatch {
        batch_id: id.into(),
        app_key: "demo".into(),
        message_id: 1,
        targets: (0..targets).map(target).collect(),
        ..DeliverBatch::default()
    }
}

fn sent(ledger: &mut Ledger) -> Vec<String> {
    std::iter::from_fn(|| ledger.poll_send(0).map(|b| b.batch_id.clone())).collect()
}

fn accept(ledger: &mut Ledger, id: &str, accepted: u32) {
    ledger.handle_accepted(&BatchAccepted {
        batch_id: id.into(),
        app_key: "demo".into(),
        accepted,
        ..BatchAccepted::default()
    });
}

const DEVICES: [&str; 10] = ["d-0", "d-1", "d-2", "d-3", "d-4", "d-5", "d-6", "d-7", "d-8", "d-9"];

fn receipt(event: ReceiptEvent, outcome: Outcome, ordinal: u32) -> Receipt<'static> {
    Receipt {
        event: event.into(),
        outcome: outcome.into(),
        app_key: "demo",
        message_id: 1,
        batch_id: "a",
        ordinal,
        device_id: DEVICES[ordinal as usize],
        ..Receipt::default()
    }
}

fn stream(ledger: &mut Ledger, receipts: Vec<Receipt<'_>>) {
    let events = receipts.into_iter().map(|receipt| (1, Told::Receipt(receipt))).collect();
    ledger.handle_stream(&StreamEvents { events, ..StreamEvents::default() });
}

#[test]
fn batches_go_out_in_order_within_the_credit() {
    let mut ledger = ledger();
    for (id, targets) in [("a", 600), ("b", 300), ("c", 200), ("d", 1)] {
        ledger.deliver(batch(id, targets));
    }
    assert_eq!(sent(&mut ledger), ["a", "b"], "c doesn't fit, and d must not overtake it");
    accept(&mut ledger, "b", 300);
    assert_eq!(sent(&mut ledger), ["c", "d"], "801 of 1,000");
}

#[test]
fn a_batch_beyond_the_whole_credit_goes_alone() {
    let mut ledger = ledger();
    ledger.deliver(batch("a", 1));
    ledger.deliver(batch("b", 5_000));
    assert_eq!(sent(&mut ledger), ["a"]);
    accept(&mut ledger, "a", 1);
    assert_eq!(sent(&mut ledger), ["b"]);
}

#[test]
fn what_was_not_answered_is_repeated_in_order_on_the_next_link_and_counted_once() {
    let mut ledger = ledger();
    for id in ["a", "b", "c"] {
        ledger.deliver(batch(id, 10));
    }
    assert_eq!(sent(&mut ledger), ["a", "b", "c"]);
    accept(&mut ledger, "b", 10);
    ledger.deliver(batch("d", 10));
    ledger.handle_opened(1_000, 1_000_000);
    assert_eq!(sent(&mut ledger), ["a", "c", "d"]);
    for id in ["a", "c", "d", "b"] {
        accept(&mut ledger, id, 10);
    }
    let tally = ledger.tally();
    assert_eq!((tally.accepted, tally.batches_accepted, tally.unanswered()), (40, 4, 0));
}

#[test]
fn put_off_is_sent_again_after_the_delay_and_rejected_is_not() {
    let mut ledger = ledger();
    ledger.deliver(batch("a", 10));
    ledger.deliver(batch("b", 10));
    sent(&mut ledger);
    let reject = |id: &str, code: RejectCode| BatchRejected {
        batch_id: id.into(),
        app_key: "demo".into(),
        code: code.into(),
        retry_after_milliseconds: 500,
        ..BatchRejected::default()
    };
    ledger.handle_rejected(1_000, reject("a", RejectCode::Unavailable));
    ledger.handle_rejected(1_000, reject("b", RejectCode::PayloadTooLarge));
    assert_eq!(ledger.next_timeout(), Some(1_500));
    assert!(ledger.poll_send(1_499).is_none());
    assert_eq!(ledger.poll_send(1_500).map(|b| b.batch_id.clone()), Some("a".into()));
    let tally = ledger.tally();
    assert_eq!((tally.put_off, tally.batches_rejected, tally.targets_rejected), (1, 1, 10));
    assert_eq!(ledger.first_rejection().map(|r| r.code), Some(RejectCode::PayloadTooLarge));
}

#[test]
fn who_was_put_off_first_is_sent_first_again() {
    let mut ledger = ledger();
    let ids = ["a", "b", "c", "d"];
    for id in ids {
        ledger.deliver(batch(id, 1));
    }
    sent(&mut ledger);
    for id in ids {
        let code = RejectCode::ResourceExhausted.into();
        let answer =
            BatchRejected { batch_id: id.into(), app_key: "demo".into(), code, ..Default::default() };
        ledger.handle_rejected(1_000, answer);
    }
    let again = std::iter::from_fn(|| ledger.poll_send(9_000)).map(|batch| batch.batch_id.clone());
    assert_eq!(again.collect::<Vec<_>>(), ids);
}

#[test]
fn events_count_once_and_the_first_outcome_stays() {
    let mut ledger = ledger();
    ledger.deliver(batch("a", 10));
    sent(&mut ledger);
    let mut arrive = receipt(ReceiptEvent::Arrive, Outcome::Arrived, 0);
    arrive.sent_time = 5;
    let click = receipt(ReceiptEvent::Click, Outcome::None, 0);
    // The outcome may come before the answer.
    stream(&mut ledger, vec![arrive, click]);
    accept(&mut ledger, "a", 10);
    stream(&mut ledger, vec![arrive, click]);
    let mut fail = receipt(ReceiptEvent::SentFail, Outcome::Failed, 0);
    fail.reason = FailReason::Expired.into();
    stream(&mut ledger, vec![fail]);
    let tally = ledger.tally();
    assert_eq!((tally.arrived, tally.arrive, tally.click, tally.sent), (1, 1, 1, 1));
    assert_eq!((tally.events_repeated, tally.conflicts, tally.pending()), (2, 1, 9));
}

#[test]
fn a_mass_outcome_ends_the_targets_of_its_bits() {
    let mut ledger = ledger();
    ledger.deliver(batch("a", 10));
    sent(&mut ledger);
    let refused = vec![Refused { reason: 1, ordinals: vec![0] }];
    ledger.handle_accepted(&BatchAccepted {
        batch_id: "a".into(),
        app_key: "demo".into(),
        accepted: 9,
        refused,
        ..BatchAccepted::default()
    });
    let mass = MassOutcome {
        app_key: "demo".into(),
        batch_id: "a".into(),
        reason: FailReason::Expired.into(),
        ordinals: vec![0b1111_1110],
        count: 7,
        ..MassOutcome::default()
    };
    // Of a later part.
    let other = MassOutcome { first_ordinal: 8, ordinals: vec![0b11], count: 2, ..mass.clone() };
    for (sequence, mass) in [(1, mass), (2, other)] {
        let events = vec![(sequence, Told::Mass(mass))];
        ledger.handle_stream(&StreamEvents { events, ..StreamEvents::default() });
    }
    let tally = ledger.tally();
    assert!(tally.is_settled());
    assert_eq!(tally.failures().collect::<Vec<_>>(), [("expired", 9)]);
    assert_eq!(tally.refusals().collect::<Vec<_>>(), [("device_unknown", 1)]);
    let fates: Vec<_> = ledger.fates("demo", "a").expect("accepted").collect();
    assert_eq!(fates[..2], [Fate::Refused, Fate::Failed(Failure::Expired)]);
    assert!(ledger.fates("demo", "b").is_none());
}

#[test]
fn what_is_said_of_devices_is_counted_once() {
    let mut ledger = ledger();
    let said = |sequence, change| {
        (sequence, Told::Device(Box::new(DeviceEvent { change: Some(change), ..DeviceEvent::default() })))
    };
    let frame = |events| StreamEvents { stream: "main", events, ..StreamEvents::default() };
    // Two events of one record.
    let registered = said(5, device_event::Change::Registered(Registered::default()));
    let first = frame(vec![registered, said(5, device_event::Change::Push(2))]);
    let then = frame(vec![said(9, device_event::Change::Bound(Binding::default()))]);
    for events in [&first, &then, &first, &then] {
        ledger.handle_stream(events);
    }
    let tally = ledger.tally();
    let counted: Vec<_> = tally.device_events().collect();
    assert_eq!(counted, [("registered", 1), ("switch", 1), ("bound", 1)]);
    assert_eq!(tally.events_repeated, 3);
}

#[test]
fn what_is_written_is_sent_once_whatever_says_so() {
    let mut ledger = ledger();
    let failed = receipt(ReceiptEvent::SentFail, Outcome::Failed, 1);
    let written = Receipt { sent_time: 5, ..failed };
    let never = Receipt { ordinal: 2, device_id: DEVICES[2], ..failed };
    let on_its_own = receipt(ReceiptEvent::Sent, Outcome::None, 0);
    let arrive = receipt(ReceiptEvent::Arrive, Outcome::Arrived, 0);
    let clean = receipt(ReceiptEvent::Clean, Outcome::None, 0);
    stream(&mut ledger, vec![on_its_own, arrive, clean, written, never]);
    let tally = ledger.tally();
    assert_eq!((tally.sent, tally.arrive, tally.clean, tally.events_repeated), (2, 1, 1, 0));
}

#[test]
fn what_is_late_or_matched_nothing_is_counted_as_that_only() {
    let mut ledger = ledger();
    let late = Receipt { late: true, ..receipt(ReceiptEvent::Arrive, Outcome::None, 0) };
    let arrive = receipt(ReceiptEvent::Arrive, Outcome::None, 1);
    let unmatched = Receipt { unmatched: true, ..arrive };
    stream(&mut ledger, vec![late, unmatched]);
    let tally = ledger.tally();
    assert_eq!((tally.sent, tally.arrive, tally.late, tally.unmatched), (1, 0, 1, 1));
    // A repeat says nothing, not even that it was sent.
    stream(&mut ledger, vec![arrive, receipt(ReceiptEvent::Sent, Outcome::None, 1)]);
    let tally = ledger.tally();
    assert_eq!((tally.sent, tally.arrive, tally.events_repeated, tally.foreign), (2, 0, 1, 0));
}

#[test]
fn apps_have_batches_and_devices_of_their_own() {
    let mut ledger = ledger();
    ledger.deliver(batch("a", 2));
    // Put together, its names are the same.
    ledger.deliver(DeliverBatch { app_key: "dem".into(), ..batch("oa", 2) });
    let one = receipt(ReceiptEvent::Arrive, Outcome::Arrived, 1);
    let other = Receipt { app_key: "dem", batch_id: "oa", ..one };
    let none = Receipt { app_key: "no app", ..one };
    stream(&mut ledger, vec![one, none, other, one, receipt(ReceiptEvent::Arrive, Outcome::Arrived, 0)]);
    let tally = ledger.tally();
    assert_eq!((tally.arrived, tally.arrive, tally.foreign, tally.events_repeated), (3, 3, 1, 1));
}

#[test]
fn a_failure_is_counted_as_what_it_is_and_an_unknown_one_is_no_end() {
    let mut ledger = ledger();
    ledger.deliver(batch("a", 3));
    let failed = receipt(ReceiptEvent::SentFail, Outcome::Failed, 0);
    let newer = Receipt { reason: 99, ordinal: 1, device_id: DEVICES[1], ..failed };
    stream(&mut ledger, vec![Receipt { reason: FailReason::Revoked.into(), ..failed }, newer]);
    let (app_key, batch_id) = ("demo".into(), "a".into());
    let mass =
        MassOutcome { app_key, batch_id, reason: 99, ordinals: vec![0b100], count: 1, ..Default::default() };
    ledger.handle_stream(&StreamEvents { events: vec![(2, Told::Mass(mass))], ..StreamEvents::default() });
    assert_eq!(ledger.tally().failures().collect::<Vec<_>>(), [("revoked", 1)]);
    assert_eq!(ledger.tally().arrived, 0);
}

#[test]
fn beyond_so_many_targets_events_are_counted_without_looking_for_repeats() {
    let mut ledger = ledger();
    let arrive = |n: usize| receipt(ReceiptEvent::Arrive, Outcome::None, n as u32);
    stream(&mut ledger, (0..TARGETS).map(arrive).collect());
    let click = receipt(ReceiptEvent::Click, Outcome::None, 0);
    stream(&mut ledger, vec![arrive(TARGETS), arrive(TARGETS), arrive(0), click, click]);
    let tally = ledger.tally();
    assert_eq!((tally.unchecked, tally.events_repeated, tally.click), (2, 2, 1));
    assert_eq!((tally.arrive, tally.sent), (TARGETS as u64 + 2, TARGETS as u64 + 2));
}

#[test]
fn what_is_dropped_is_counted_and_streams_are_apart() {
    let mut ledger = ledger();
    let gap = pb::ReceiptGap { first: 1, last: 9, events: 7, ..Default::default() };
    let change = Some(device_event::Change::Push(2));
    let device = Told::Device(Box::new(DeviceEvent { change, ..DeviceEvent::default() }));
    for name in ["main", "other", "other"] {
        let events = vec![(9, Told::Gap(gap.clone())), (9, device.clone())];
        ledger.handle_stream(&StreamEvents { stream: name, events, ..StreamEvents::default() });
    }
    let tally = ledger.tally();
    assert_eq!((tally.gaps, tally.device_events[2], tally.events_repeated), (21, 2, 1));
}

/// A device's messages stand apart in a table, also where their ids are times with nothing behind.
#[test]
fn targets_are_spread_over_a_table() {
    use std::hash::BuildHasher;
    let device = DeviceKey([7; 16]);
    for shift in 0..33 {
        let place =
            |n: u64| BuildSpread::default().hash_one(Target { message_id: n << shift, device }) % 4_096;
        let places: std::collections::HashSet<u64> = (0..64).map(place).collect();
        assert!(places.len() > 32, "of ids that are multiples of 1 << {shift} {}", places.len());
    }
}
