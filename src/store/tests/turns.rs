//! What the store's thread takes into one sync, turn by turn, on a clock that goes when it is told to.
#![cfg(feature = "sim")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::plan::START;
use super::support::{Harness, ack, batch, small};
use crate::clock::{Clock, SimTime};
use crate::ids::ShardId;
use crate::limits;
use crate::push::Event;
use crate::store::Command;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::thread::{Gathered, Inbox, Turns, Wakes};
use tokio::sync::oneshot;

/// Microseconds that acks wait at most.
const WAIT: u64 = 5_000;

struct World {
    harness: Harness<SimDisk>,
    inbox: Inbox,
    turns: Turns,
    time: Arc<SimTime>,
    clock: Clock,
}

impl World {
    /// One device, for which some messages are pending and durable.
    fn new(messages: u64) -> Self {
        // Of a group as large as there are, in one segment.
        let options = StoreOptions { unmatched_per_second: u32::MAX, segment_bytes: 16 << 20, ..small() };
        let mut harness = Harness::open(&Arc::new(SimDisk::new()), &options, START);
        harness.see(0);
        for message in 1..=messages {
            let new = batch(&format!("b{message}"), message, &[0], START, 3_600_000);
            harness.deliver(new).expect("accepted");
        }
        harness.settle().expect("the disk works");
        let time = Arc::new(SimTime { wall: AtomicU64::new(START), ..SimTime::default() });
        let clock = Clock::simulated(time.clone(), 0);
        let turns = Turns::new(&harness.engine);
        Self { harness, inbox: Inbox::new(&Arc::default(), usize::MAX), turns, time, clock }
    }

    fn passes(&self, micros: u64) {
        self.time.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn arrive(&self, message: u64) {
        let acks = vec![ack(0, message, &[(message, Event::Arrive)], START)];
        self.inbox.put(Command::Acks { shard: ShardId(0), acks }).expect("there is room");
    }

    fn gather(&mut self) -> Gathered {
        let Self { harness, inbox, turns, clock, .. } = self;
        turns.gather(&mut harness.engine, inbox, clock, false).expect("the disk works")
    }

    fn commit(&mut self) {
        let Self { harness, inbox, turns, clock, .. } = self;
        turns.commit(&mut harness.engine, inbox, clock).expect("the disk works");
        assert!(!harness.engine.has_staged());
    }

    /// Until it is settled, and a while longer.
    fn rest(&mut self) {
        for _ in 0..20 {
            self.passes(2 * WAIT);
            assert_eq!(self.gather(), Gathered::Ready);
            self.commit();
        }
    }
}

#[test]
fn acks_wait_for_company_but_not_for_long() {
    let mut world = World::new(3);
    world.rest();
    world.arrive(1);
    assert_eq!(world.gather(), Gathered::Waits);
    world.passes(WAIT - 1);
    world.arrive(2);
    assert_eq!(world.gather(), Gathered::Waits);
    world.passes(1);
    assert_eq!(world.gather(), Gathered::Ready, "since the first of them");
    world.commit();
    // That was a sync just now: from there on the next ones wait.
    world.passes(WAIT / 2);
    world.arrive(3);
    assert_eq!(world.gather(), Gathered::Waits);
    world.passes(WAIT / 2);
    assert_eq!(world.gather(), Gathered::Ready);
    world.commit();
    assert_eq!(world.harness.totals().arrived, 3);
}

#[test]
fn who_comes_during_a_sync_waits_until_syncs_are_apart_and_who_comes_later_does_not() {
    let mut world = World::new(0);
    world.rest();
    let mut message = 0;
    let mut submit = |world: &World| {
        message += 1;
        let batch = Box::new(batch(&format!("b{message}"), message, &[0], START, 3_600_000));
        let deliver = Command::Deliver { batch, reply: oneshot::channel().0 };
        world.inbox.put(deliver).expect("there is room");
    };
    for (meanwhile, micros, wakes) in [(true, 300, Wakes::Many), (false, WAIT, Wakes::Urgent)] {
        let mut pauses = (0..20).map(|_| {
            submit(&world);
            assert_eq!(world.gather(), Gathered::Ready);
            if meanwhile {
                submit(&world);
            }
            world.commit();
            world.turns.pause(&world.harness.engine, &world.clock)
        });
        // Unless the tables have something to do as well.
        let first = pauses.find(|(sleep, _)| !sleep.is_zero());
        assert_eq!(first, Some((Duration::from_micros(micros), wakes)));
    }
}

#[test]
fn what_somebody_waits_for_takes_along_what_has_gathered() {
    let mut world = World::new(2);
    world.rest();
    world.arrive(1);
    assert_eq!(world.gather(), Gathered::Waits);
    world.inbox.put(Command::Flush { checkpoint: false, reply: oneshot::channel().0 }).expect("room");
    assert_eq!(world.gather(), Gathered::Ready);
    world.commit();
    assert_eq!(world.harness.totals().arrived, 1);
}

#[test]
fn a_whole_group_waits_for_nothing() {
    let mut world = World::new(1);
    world.rest();
    let sessions = vec![(super::support::device(0), START); 1_000];
    // Most of these are no news; receipts are, each of a message that nobody knows.
    world.inbox.put(Command::LastActive(sessions)).expect("there is room");
    assert_eq!(world.gather(), Gathered::Ready, "nothing is staged for that");
    world.commit();
    let mut number = 0;
    while world.harness.engine.staged_bytes() < limits::GROUP_BYTES {
        number += 1;
        let events: Vec<_> = (0..200).map(|n| (1_000_000 + number * 200 + n, Event::Click)).collect();
        let acks = vec![ack(0, number, &events, START)];
        world.inbox.put(Command::Acks { shard: ShardId(0), acks }).expect("there is room");
        let gathered = world.gather();
        let full = world.harness.engine.staged_bytes() >= limits::GROUP_BYTES;
        assert_eq!(gathered, if full { Gathered::Ready } else { Gathered::Waits }, "{number}");
    }
    world.commit();
}

#[test]
fn a_closed_inbox_is_emptied_and_then_it_is_over() {
    let mut world = World::new(1);
    world.rest();
    world.arrive(1);
    world.inbox.close();
    let mut turn = || {
        let World { harness, inbox, turns, clock, .. } = &mut world;
        turns.turn(&mut harness.engine, inbox, clock, false).expect("the disk works")
    };
    assert_eq!([turn(), turn()], [true, false], "what waited was taken, and what gathered is committed");
    assert!(!world.harness.engine.has_staged());
    assert_eq!(world.harness.totals().arrived, 1);
}
