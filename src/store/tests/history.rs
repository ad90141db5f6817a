//! What is told of a device's past: each thing that happened to it, in order, and nothing that happened to others.

use std::sync::Arc;

use super::support::{Harness, account_digest, ack, app, batch, device, of_account, seen, small};
use crate::binding::{Binding, Change};
use crate::clock::Clock;
use crate::ids::{AppKey, MessageId, Seq};
use crate::push::{Event, Failure, Refusal};
use crate::store::disk::sim::SimDisk;
use crate::store::history::{BOUNDS, Bounds, read};
use crate::store::{Command, Happened, History, HistoryOf, What};
use tokio::sync::oneshot;

const START: u64 = 1_800_000_000_000;
const HOUR: u64 = 3_600_000;

fn opened(devices: u32) -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &small(), START);
    for n in 0..devices {
        harness.see(n);
    }
    harness.commit().expect("the disk works");
    (disk, harness)
}

fn of(harness: &mut Harness<SimDisk>, n: u32, message: Option<(u64, Seq)>) -> History {
    let number = harness.state_of(n).map(|state| state.number);
    let message = message.map(|(message, first)| (MessageId(message), first));
    let of = HistoryOf { app: app(), device: device(n), number, message };
    read(&harness.engine.shared().reader, &Clock::new(0), &of, BOUNDS).expect("readable")
}

/// Message and what, of everything.
fn told(harness: &mut Harness<SimDisk>, n: u32) -> Vec<(u64, What)> {
    of(harness, n, None).events.iter().map(|event| (event.message.0, event.what)).collect()
}

#[test]
fn what_a_device_and_its_messages_went_through_stands_in_order_and_nothing_of_others() {
    let (_, mut harness) = opened(3);
    let first = harness.deliver(batch("b1", 1, &[0, 1, 99], START, HOUR)).expect("accepted").seq;
    harness.now += 1_000;
    let second = harness.deliver(batch("b2", 2, &[1, 0], harness.now, HOUR)).expect("accepted").seq;
    harness.sent(0, first, START + 500);
    harness.now += 1_000;
    let now = harness.now;
    harness.acks(vec![ack(0, 1, &[(1, Event::Arrive), (2, Event::Click), (77, Event::Arrive)], now)]);
    harness.commit().expect("the disk works");
    harness.acks(vec![ack(0, 2, &[(1, Event::Click), (2, Event::Clean)], now + 1)]);
    harness.commit().expect("the disk works");
    let history = of(&mut harness, 0, None);
    let whats: Vec<(u64, What)> = history.events.iter().map(|event| (event.message.0, event.what)).collect();
    let expected = [
        (1, What::Accepted),
        (2, What::Accepted),
        (1, What::Sent),
        (1, What::Arrived),
        (2, What::Arrived),
        (2, What::Clicked),
        (77, What::Unmatched),
        (1, What::Clicked),
        (2, What::Cleaned),
    ];
    assert_eq!(whats, expected);
    assert_eq!((history.to, history.is_cut), (now, false));
    let sent = |event: &&Happened| event.what == What::Sent;
    assert_eq!(history.events.iter().find(sent).expect("told").sent_at, Some(START + 500));
    assert_eq!(history.events[0].sent_at, None, "an acceptance says nothing of it");
    assert_eq!(history.events[6].sent_at, None, "nobody knows when an unmatched one was sent");
    assert_eq!((history.events[0].at, history.events[1].at), (START, START + 1_000));
    // One message only; who was named and is unknown; another app's device of the same key.
    let one = of(&mut harness, 0, Some((2, second)));
    assert!(one.events.iter().all(|event| event.message == MessageId(2)) && one.events.len() == 4, "{one:?}");
    assert_eq!(one.from, START + 1_000, "what is older isn't looked at");
    assert_eq!(told(&mut harness, 99), [(1, What::Refused(Refusal::DeviceUnknown))]);
    assert_eq!(told(&mut harness, 1), [(1, What::Accepted), (2, What::Accepted)]);
    assert_eq!(told(&mut harness, 2), []);
    let first_number = harness.message(1, Some(0)).expect("known").on_device.expect("named");
    assert!(!first_number.refused.contains(&true), "who is unknown has no number: {first_number:?}");
    let elsewhere = HistoryOf {
        app: AppKey::parse("other").expect("valid"),
        device: device(0),
        number: Some(0),
        message: None,
    };
    let elsewhere =
        read(&harness.engine.shared().reader, &Clock::new(0), &elsewhere, BOUNDS).expect("readable");
    assert_eq!(elsewhere.events, []);
}

#[test]
fn ends_without_the_devices_doing_are_told_of_those_that_they_ended_for() {
    let (_, mut harness) = opened(4);
    harness.deliver(batch("b1", 1, &[0, 1], START, 1_000)).expect("accepted");
    harness.deliver(batch("b2", 2, &[1, 2], START, HOUR)).expect("accepted");
    harness.arrive(1, 1);
    harness.now += 2_000;
    harness.settle().expect("the disk works");
    let (reply, _answer) = oneshot::channel();
    harness.apply(Command::Revoke { app: app(), message: MessageId(2), reply }).expect("the disk works");
    harness.settle().expect("the disk works");
    // Resolved from an account that isn't the device's any more: accepted, and ended by the same record.
    harness.deliver(of_account("alice", batch("b3", 3, &[2, 3], harness.now, HOUR))).expect("accepted");
    // Too late: it has ended.
    let now = harness.now;
    harness.acks(vec![ack(0, 1, &[(1, Event::Arrive)], now)]);
    harness.commit().expect("the disk works");
    let expired = What::Failed(Failure::Expired);
    assert_eq!(told(&mut harness, 0), [(1, What::Accepted), (1, expired), (1, What::Late)]);
    let revoked = (2, What::Failed(Failure::Revoked));
    assert_eq!(
        told(&mut harness, 1),
        [(1, What::Accepted), (2, What::Accepted), (1, What::Arrived), revoked]
    );
    let unbound = (3, What::Failed(Failure::Unbound));
    assert_eq!(told(&mut harness, 2), [(2, What::Accepted), revoked, (3, What::Accepted), unbound]);
    assert_eq!(told(&mut harness, 3), [(3, What::Accepted), unbound]);
    harness.change(3, Change::Bind(Binding::Account("alice".into()))).expect("bound");
    harness.deliver(of_account("alice", batch("b4", 4, &[2, 3], harness.now, HOUR))).expect("accepted");
    assert_eq!(told(&mut harness, 3)[2..], [(4, What::Accepted)]);
    assert_ne!(account_digest("alice"), account_digest("bob"));
}

#[test]
fn of_many_events_the_newest_are_told() {
    let (_, mut harness) = opened(1);
    for message in 1..=100 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    let messages: Vec<u64> = told(&mut harness, 0).into_iter().map(|(message, _)| message).collect();
    assert_eq!(messages, (37..=100).collect::<Vec<_>>());
    assert!(!of(&mut harness, 0, None).is_cut);
}

#[test]
fn words_for_what_happened() {
    let refused = What::Refused(Refusal::DeviceUnknown);
    let failed = What::Failed(Failure::Expired);
    assert_eq!([refused.label(), failed.label(), What::Late.label()], ["refused", "failed", "late"]);
    assert_eq!(refused.reason(), Some(Refusal::DeviceUnknown.label()));
    assert_eq!((failed.reason(), What::Late.reason()), (Some(Failure::Expired.label()), None));
    assert_eq!(refused.refusal(), Some(Refusal::DeviceUnknown));
    assert_eq!((failed.refusal(), What::Arrived.refusal()), (None, None));
}

#[test]
fn a_device_whose_switch_is_off_is_refused_and_told_so() {
    let (_, mut harness) = opened(2);
    let off = crate::push::Seen { push_on: Some(false), ..seen(1) };
    harness
        .apply(Command::Seen { device: Box::new(off), session: super::support::session(1) })
        .expect("works");
    harness.commit().expect("the disk works");
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    assert_eq!(told(&mut harness, 1), [(1, What::Refused(Refusal::PushDisabled))]);
}

#[test]
fn an_end_is_told_also_where_the_batch_lies_too_far_back() {
    let (_, mut harness) = opened(3);
    let first = harness.deliver(batch("b1", 1, &[0, 1], START, 1_000)).expect("accepted").seq;
    harness.now += 2_000;
    harness.settle().expect("the disk works");
    let behind = Some((1, Seq(first.0 + 1)));
    let whats = |history: History| history.events.iter().map(|event| event.what).collect::<Vec<_>>();
    let told = [0, 1, 2].map(|n| whats(of(&mut harness, n, behind)));
    let expired = vec![What::Failed(Failure::Expired)];
    assert_eq!(told, [expired.clone(), expired, Vec::new()]);
}

#[test]
fn of_a_batch_that_is_lost_its_targets_are_told_and_nobody_else() {
    let (_, mut harness) = opened(3);
    harness.deliver(batch("b1", 1, &[0, 1], START, HOUR)).expect("accepted");
    harness.deliver(batch("b2", 2, &[1, 2], START, HOUR)).expect("accepted");
    harness.arrive(1, 1);
    let lost = harness.pull(0)[0].batch.clone();
    harness.engine.found_damaged(&lost);
    harness.settle().expect("the disk works");
    let (accepted, storage) = (What::Accepted, What::Failed(Failure::Storage));
    assert_eq!(told(&mut harness, 0), [(1, accepted), (1, storage)]);
    assert_eq!(told(&mut harness, 2), [(2, accepted)]);
    // What ended otherwise isn't told as lost of others.
    harness.now += 2 * HOUR;
    harness.settle().expect("the disk works");
    assert_eq!(told(&mut harness, 0), [(1, accepted), (1, storage)]);
    assert_eq!(told(&mut harness, 2), [(2, accepted), (2, What::Failed(Failure::Expired))]);
}

#[test]
fn a_question_ends_at_its_bounds_and_says_so() {
    let (_, mut harness) = opened(1);
    for message in 1..=20 {
        harness.deliver(batch(&format!("b{message}"), message, &[0], START, HOUR)).expect("accepted");
    }
    let mut asked = |bytes, micros| {
        let number = harness.state_of(0).map(|state| state.number);
        let of = HistoryOf { app: app(), device: device(0), number, message: Some((MessageId(1), Seq(1))) };
        let any = HistoryOf { message: None, ..of.clone() };
        let reader = &harness.engine.shared().reader;
        [of, any].map(|of| read(reader, &Clock::new(0), &of, Bounds { bytes, micros }).expect("readable"))
    };
    let cut = |history: &History| (history.events.len(), history.is_cut);
    assert_eq!(asked(u64::MAX, 60_000_000).each_ref().map(cut), [(1, false), (20, false)]);
    let [one, any] = asked(1_000, 60_000_000);
    assert!(one.is_cut && any.is_cut && (1..20).contains(&any.events.len()), "so many bytes: {any:?}");
    let [one, any] = asked(u64::MAX, 0);
    assert!(one.is_cut && any.is_cut && any.events.len() < 2, "so much time: {any:?}");
}
