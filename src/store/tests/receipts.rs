//! What receipts say beside what happened: when, by whose clock, how it went, and under which label.

use std::sync::Arc;

use smallvec::smallvec;

use super::plan::START;
use super::support::{Harness, ack, app, batch, device, seen, session, small};
use crate::ids::{MessageId, Seq};
use crate::push::{Acked, Channel, Event, Failure, Millis, Receipt, ReceiptKind, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::{Command, DeviceAck};

const MINUTE: u64 = 60_000;

/// A device that one message was accepted for, which was written to it so much later.
fn written_after(after: Millis) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &small(), START);
    harness.see(1);
    harness.deliver(batch("b", 7, &[1], START, MINUTE)).expect("accepted");
    harness.now = START + after;
    assert_eq!(harness.pulled(1), [(7, false)]);
    (disk, harness)
}

fn acked(harness: &mut Harness<SimDisk>, event: Event, time: Millis, sent_at: Option<Millis>) {
    let event = Acked { message: MessageId(7), event, time, sent_at };
    harness.acks(vec![DeviceAck {
        device: device(1),
        session: session(1),
        number: 1,
        client_ip: None,
        events: smallvec![event],
    }]);
    harness.commit().expect("the disk works");
}

fn receipts(harness: &Harness<SimDisk>) -> Vec<Receipt> {
    let events = harness.stream(Seq(0)).into_iter();
    let receipt = |(_, event)| if let StreamEvent::Receipt(receipt) = event { Some(*receipt) } else { None };
    let receipts: Vec<Receipt> = events.filter_map(receipt).collect();
    for receipt in &receipts {
        assert_eq!((&receipt.app, receipt.message, &*receipt.job_key), (&app(), MessageId(7), "job"));
    }
    receipts
}

/// Kind; the event's time, as the edge takes it and as it was said; when it was written; which way it went.
fn times(receipt: &Receipt) -> (ReceiptKind, Millis, Millis, Millis, Channel) {
    (receipt.kind, receipt.event_time, receipt.raw_event_time, receipt.sent_at, receipt.channel)
}

#[test]
fn an_arrive_says_when_it_was_written_and_keeps_what_a_wrong_clock_said() {
    for (after, channel) in [(1_000, Channel::Online), (1_001, Channel::Offline)] {
        let (_disk, mut harness) = written_after(after);
        let sent_at = START + after;
        harness.now += 10;
        acked(&mut harness, Event::Arrive, 5, None);
        let [arrive] = &receipts(&harness)[..] else { panic!("one receipt") };
        assert_eq!(times(arrive), (ReceiptKind::Arrive, START, 5, sent_at, channel));
        assert!(arrive.outcome == Some(Ok(())) && !arrive.implied);
    }
}

#[test]
fn a_tap_implies_the_arrive_and_only_that_says_when_it_was_written() {
    let (_disk, mut harness) = written_after(400);
    let (sent_at, tapped) = (START + 400, START + 2_000);
    harness.now = tapped + 10;
    acked(&mut harness, Event::Click, tapped, None);
    // And the message that is over by then.
    let future = START + 9 * MINUTE;
    acked(&mut harness, Event::Clean, future, Some(sent_at));
    let now = harness.now;
    let [arrive, click, clean] = &receipts(&harness)[..] else { panic!("three receipts") };
    assert_eq!(times(arrive), (ReceiptKind::Arrive, tapped, tapped, sent_at, Channel::Online));
    assert_eq!(times(click), (ReceiptKind::Click, tapped, tapped, 0, Channel::Online));
    assert_eq!(times(clean), (ReceiptKind::Clean, now, future, 0, Channel::Online));
    assert_eq!([arrive.implied, click.implied, clean.implied], [true, false, false]);
    assert_eq!([arrive.outcome, click.outcome, clean.outcome], [Some(Ok(())), None, None]);
}

#[test]
fn sent_alone_says_when_it_was_written_and_what_ends_then_does_not_again() {
    let (_disk, mut harness) = written_after(1_500);
    let sent_at = harness.now;
    let batch = harness.pull(1)[0].batch.seq;
    harness.now += 30_000;
    harness.sent(1, batch, sent_at);
    harness.now = START + MINUTE;
    harness.settle().expect("the disk works");
    let [sent, ..] = &receipts(&harness)[..] else { panic!("a receipt") };
    assert_eq!(times(sent), (ReceiptKind::Sent, sent_at, sent_at, sent_at, Channel::Offline));
    assert_eq!(harness.totals().sent, 1);
}

#[test]
fn an_end_of_what_was_written_says_when() {
    let (_disk, mut harness) = written_after(300);
    harness.now = START + MINUTE;
    harness.settle().expect("the disk works");
    let (now, sent_at) = (harness.now, START + 300);
    let [end] = &receipts(&harness)[..] else { panic!("one receipt") };
    assert_eq!(times(end), (ReceiptKind::SentFail, now, now, sent_at, Channel::Online));
    assert_eq!(end.outcome, Some(Err(Failure::Expired)));
}

#[test]
fn a_receipt_tells_the_address_of_the_last_hello() {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &small(), START);
    harness.see(0);
    harness.commit().expect("the disk works");
    let elsewhere = std::net::IpAddr::from([127, 0, 0, 9]);
    let moved = crate::push::Seen { client_ip: elsewhere, ..seen(0) };
    harness.apply(Command::Seen { device: Box::new(moved), session: session(0) }).expect("the disk works");
    harness.deliver(batch("b1", 1, &[0], START, 60_000)).expect("accepted");
    harness.arrive(0, 1);
    let events = harness.stream(Seq(0));
    let Some((_, StreamEvent::Receipt(receipt))) = events.last() else { panic!("{events:?}") };
    assert_eq!(receipt.client_ip, Some(elsewhere));
}

#[test]
fn what_is_sent_tapped_and_cleaned_counts_once_on_the_day_on_which_it_happened() {
    const DAY: u64 = 24 * 60 * MINUTE;
    let mut harness = Harness::open(&Arc::new(SimDisk::new()), &small(), START);
    (1..3).for_each(|n| harness.see(n));
    harness.deliver(batch("b", 7, &[1, 2], START, 3 * DAY - MINUTE)).expect("accepted");
    assert_eq!(harness.pulled(1), [(7, false)]);
    let acks = |harness: &mut Harness<SimDisk>, n: u32, events: &[Event]| {
        for (number, event) in events.iter().enumerate() {
            let now = harness.now;
            harness.acks(vec![ack(n, number as u64 + 1, &[(7, *event)], now)]);
            harness.commit().expect("the disk works");
        }
    };
    harness.now += DAY;
    acks(&mut harness, 1, &[Event::Arrive, Event::Arrive]);
    harness.now += DAY;
    acks(&mut harness, 1, &[Event::Click, Event::Clean, Event::Click, Event::Clean]);
    // Of this one nobody knows when it was written.
    acks(&mut harness, 2, &[Event::Arrive]);
    let days = harness.days(3);
    let of = |counts: &crate::push::Counts| [counts.sent, counts.arrived, counts.clicked, counts.cleaned];
    let all: Vec<_> = days.iter().map(|day| of(&day.counts)).collect();
    assert_eq!(all, [[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]], "the newest first");
    assert_eq!(of(&harness.totals()), [2, 2, 1, 1]);
    let on_device = harness.message(7, Some(1)).expect("known").on_device.expect("named");
    assert!(on_device.clicked && on_device.cleaned && !on_device.late, "{on_device:?}");
}
