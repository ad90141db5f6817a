//! What the store says that it holds: it follows what is there, caches give way, and everything is given back.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::plan::START;
use super::support::{Harness, ack, batch, seen, small};
use crate::budget::{Budget, Part};
use crate::ids::ShardId;
use crate::push::Event;
use crate::store::Command;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::thread::{Inbox, Wakes};

const HOUR: u64 = 3_600_000;
const BUDGET: usize = 1 << 30;
/// Messages, each of a body of so many bytes to two devices.
const MESSAGES: u64 = 60;
const BODY: usize = 500;

/// An edge with messages pending.
fn filled(budget: &Arc<Budget>) -> Harness<SimDisk> {
    let options = StoreOptions {
        body_cache_bytes: BODY * MESSAGES as usize,
        message_cache_bytes: 4_000,
        device_cache_bytes: 4_000,
        budget: budget.clone(),
        segment_bytes: 1024 * 1024,
        ..small()
    };
    let mut harness = Harness::open(&Arc::new(SimDisk::new()), &options, START);
    for n in 0..100 {
        harness.see(n);
    }
    harness.settle().expect("the disk works");
    for message in 1..=MESSAGES {
        let mut new = batch(&format!("b{message}"), message, &[1, 2], START, HOUR);
        new.body = vec![7; BODY].into();
        harness.deliver(new).expect("accepted");
    }
    settle(&mut harness);
    harness
}

/// Until every part of the index was measured again.
fn settle(harness: &mut Harness<SimDisk>) {
    for _ in 0..8 {
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
}

#[test]
fn parts_follow_what_is_there_and_are_given_back() {
    let budget = Arc::new(Budget::default());
    let mut harness = filled(&budget);
    let part = |part| budget.part(part);
    assert!((MESSAGES as usize * BODY..MESSAGES as usize * (BODY + 100)).contains(&part(Part::Bodies)));
    let full = [Part::Index, Part::PushRecords, Part::DeviceRows].map(part);
    assert!(full.iter().all(|bytes| *bytes > 0), "{full:?}");
    for message in 1..=MESSAGES {
        harness.arrive(1, message);
        harness.arrive(2, message);
    }
    settle(&mut harness);
    // Batches that have ended are swept out of the cache's queue when there are more of them.
    assert!(part(Part::Bodies) < MESSAGES as usize * BODY / 2, "{}", part(Part::Bodies));
    assert!(part(Part::Index) + 300 * (MESSAGES as usize) < full[0], "live batches and entries are gone");
    drop(harness);
    assert_eq!(budget.used(), 0);
}

#[test]
fn beyond_the_low_mark_caches_give_way_and_beyond_the_high_one_new_devices_are_refused() {
    let budget = Arc::new(Budget::new(BUDGET));
    let mut harness = filled(&budget);
    let mut others = budget.hold(Part::Base);
    let bodies = budget.part(Part::Bodies);
    let before = harness.engine.message_cache_bytes();
    others.set(BUDGET / 100 * 65);
    settle(&mut harness);
    assert!(budget.part(Part::Bodies) < bodies / 2, "{} of {bodies}", budget.part(Part::Bodies));
    assert_eq!(harness.engine.message_cache_bytes(), before / 4);

    let is_known = |harness: &Harness<SimDisk>, n| harness.is_current(&seen(n));
    harness.see(200);
    harness.commit().expect("the disk works");
    assert!(is_known(&harness, 200), "not yet");
    others.set(BUDGET / 100 * 80);
    settle(&mut harness);
    harness.see(201);
    harness.commit().expect("the disk works");
    assert!(!is_known(&harness, 201) && is_known(&harness, 1));
    // What is there goes on: bodies that left memory are read, and messages arrive.
    assert_eq!(harness.pull(1).len() as u64, MESSAGES);
    let acked = ack(1, 1, &[(1, Event::Arrive)], harness.now);
    harness.acks(vec![acked]);
    harness.commit().expect("the disk works");
    assert_eq!(harness.totals().arrived, 1);

    others.set(0);
    settle(&mut harness);
    harness.see(201);
    harness.commit().expect("the disk works");
    assert!(is_known(&harness, 201));
    assert_eq!(harness.engine.message_cache_bytes(), before);
}

#[test]
fn batches_leave_room_in_the_queue_to_acks() {
    let budget = Arc::new(Budget::default());
    let inbox = Inbox::new(&budget, 100_000);
    let deliver = || {
        let mut new = batch("b", 1, &[1], START, HOUR);
        new.body = vec![7; 4_000].into();
        Command::Deliver { batch: Box::new(new), reply: oneshot::channel().0 }
    };
    let acks = || Command::Acks { shard: ShardId(0), acks: vec![ack(1, 1, &[(1, Event::Arrive)], START)] };
    let count = |put: &dyn Fn() -> Command| (0..10_000).take_while(|_| inbox.put(put()).is_ok()).count();
    let batches = count(&deliver);
    assert!((10..=75_000 / 4_000).contains(&batches), "{batches}");
    let counted = budget.part(Part::StoreWork);
    assert!(counted > batches * 5_000, "with what they will take: {counted}");
    assert!(count(&acks) > 50, "a quarter is left to them");
    inbox.close();
    let mut taken = Vec::new();
    while inbox.take(std::time::Duration::ZERO, Wakes::Any, &mut taken).is_some() {
        taken.clear();
    }
    assert_eq!(budget.used(), 0);
}

/// As many push records as there may be, all of them in memory: each new one takes the place of the oldest, for ever.
#[test]
fn messages_that_come_and_are_forgotten_leave_nothing_behind() {
    let budget = Arc::new(Budget::default());
    let options = StoreOptions { max_messages: 40, max_batch_ids: 40, budget: budget.clone(), ..small() };
    let mut harness = Harness::open(&Arc::new(SimDisk::new()), &options, START);
    harness.see(1);
    let mut message = 0;
    let mut come = |harness: &mut Harness<SimDisk>, messages: u64| {
        for _ in 0..messages {
            message += 1;
            harness.now += 100;
            let (id, now) = (format!("b{message}"), harness.now);
            harness.deliver(batch(&id, message, &[1], now, HOUR)).expect("accepted");
            harness.arrive(1, message);
            harness.ack_stream(harness.head());
            harness.settle().expect("the disk works");
        }
        settle(harness);
        budget.part(Part::Index)
    };
    let early = come(&mut harness, 3_000);
    let late = come(&mut harness, 6_000);
    assert!(late < early + 2_000 * 16, "{early} bytes of index became {late}");
}
