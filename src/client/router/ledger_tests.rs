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
