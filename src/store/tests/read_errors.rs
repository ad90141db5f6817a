//! Reads that fail for a while: nothing ends by that, and what is due happens once they work again. What can't be read for long ends as `storage`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::plan::START;
use super::support::{Harness, Sink, batch, device, seen, session, small};
use crate::clock::{Clock, SimTime};
use crate::ids::SessionRef;
use crate::push::{Failure, Millis, Reached};
use crate::store::disk::sim::SimDisk;
use crate::store::embedded::EmbeddedStore;
use crate::store::options::StoreOptions;
use crate::store::{BodySink, Command, Store};
use tokio::sync::oneshot;

const SEGMENT: &str = "journal-0000000001.seg";

fn opened() -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &small(), START);
    for n in 0..3 {
        harness.see(n);
    }
    // Two targets, so that its end needs a look into the journal.
    harness.deliver(batch("b1", 1, &[0, 1], START, 10_000)).expect("accepted");
    harness.deliver(batch("b2", 2, &[2], START, 10_000)).expect("accepted");
    (disk, harness)
}

fn pass(harness: &mut Harness<SimDisk>, ms: Millis) {
    harness.now += ms;
    harness.settle().expect("the disk works");
}

fn failed(harness: &mut Harness<SimDisk>, why: Failure) -> u64 {
    let totals = harness.totals();
    assert!(totals.identity_holds(), "{totals:?}");
    totals.failed[why as usize - 1]
}

#[test]
fn what_expires_while_it_can_not_be_read_expires_later() {
    let (disk, mut harness) = opened();
    disk.fail_reads(Some(SEGMENT));
    pass(&mut harness, 10_000);
    assert_eq!(failed(&mut harness, Failure::Expired), 1, "who needs no look into the journal doesn't wait");
    pass(&mut harness, 20_000);
    assert_eq!(failed(&mut harness, Failure::Storage), 0);
    assert_eq!(harness.totals().pending, 2);
    disk.fail_reads(None);
    pass(&mut harness, 1_000);
    assert_eq!((failed(&mut harness, Failure::Expired), harness.totals().pending), (3, 0));
}

#[test]
fn what_can_not_be_read_for_long_ends_as_storage() {
    let (disk, mut harness) = opened();
    disk.fail_reads(Some(SEGMENT));
    for _ in 0..200 {
        pass(&mut harness, 1_000);
    }
    assert_eq!((failed(&mut harness, Failure::Storage), harness.totals().pending), (2, 0));
    assert_eq!(failed(&mut harness, Failure::Expired), 1);
}

#[test]
fn what_is_taken_back_while_it_can_not_be_read_ends_later() {
    let (disk, mut harness) = opened();
    disk.fail_reads(Some(SEGMENT));
    let (reply, mut answer) = oneshot::channel();
    let (app, message) = (super::support::app(), crate::ids::MessageId(1));
    harness.apply(Command::Revoke { app, message, reply }).expect("the disk works");
    pass(&mut harness, 1_000);
    assert_eq!(harness.totals().pending, 3);
    assert!(answer.try_recv().is_err(), "answered before anything has ended");
    disk.fail_reads(None);
    pass(&mut harness, 1_000);
    assert_eq!((failed(&mut harness, Failure::Revoked), failed(&mut harness, Failure::Storage)), (2, 0));
    answer.try_recv().expect("answered").expect("taken back");
}

struct Bodies(std::sync::mpsc::SyncSender<SessionRef>);

impl BodySink for Bodies {
    fn loaded(&self, session: SessionRef) {
        self.0.send(session).expect("the test listens");
    }
}

/// A body that isn't in memory, and whose reads fail for so long: whether it is read in the end.
fn body_after(fails_for: Millis) -> bool {
    let disk = Arc::new(SimDisk::new());
    let time = Arc::new(SimTime::default());
    time.wall.store(START, Ordering::Relaxed);
    let (sender, loaded) = std::sync::mpsc::sync_channel(64);
    let (store, mut hands) = EmbeddedStore::open_by_hand(
        disk.clone(),
        StoreOptions { body_cache_bytes: 0, ..small() },
        Arc::new(Clock::simulated(time.clone(), 0)),
        Box::new(Sink::default()),
        Arc::new(Bodies(sender)),
        Box::new(|_| true),
    )
    .expect("opens");
    store.submit(Command::Seen { device: Box::new(seen(0)), session: session(0) }).expect("room");
    for message in [1, 2] {
        let batch = Box::new(batch(&format!("b{message}"), message, &[0], START, 600_000));
        let (reply, _) = oneshot::channel();
        store.submit(Command::Deliver { batch, reply }).expect("room");
    }
    (0..20).for_each(|_| hands.half_turn().expect("the disk works"));
    let mut out = Vec::new();
    store.pull(&device(0), Reached::START, 1, START, &mut out);
    let wanted = &out[0].batch;
    assert_eq!(store.body(wanted), None);
    disk.fail_reads(Some(SEGMENT));
    store.want_body(wanted, session(5)).expect("room");
    let mut passed = 0;
    loop {
        hands.read_bodies();
        (0..20).for_each(|_| hands.half_turn().expect("the disk works"));
        if loaded.try_recv().is_ok() {
            return store.body(wanted).is_some();
        }
        assert!(hands.totals().pending == 2 && passed < 300_000, "nothing ends, and nobody waits for ever");
        passed += 500;
        time.micros.fetch_add(500_000, Ordering::Relaxed);
        if passed >= fails_for {
            disk.fail_reads(None);
        }
    }
}

#[test]
fn a_body_that_can_not_be_read_for_a_while_is_read_later() {
    assert!(body_after(500));
    assert!(body_after(20_000));
    assert!(!body_after(200_000), "at some time it is given up");
}
