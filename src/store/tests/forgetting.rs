//! Devices that were unseen for too long, and those that must not be taken for such.

use std::sync::Arc;

use super::common::pass;
use super::full::{fill, use_up};
use super::plan::START;
use super::support::{Harness, Told, batch, device, of_account, seen, session, small};
use super::wakeups::fill_to_the_brim;
use crate::binding::{Binding, Change, DeviceChange};
use crate::ids::Seq;
use crate::push::{Failure, Millis, Refusal};
use crate::store::Command;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

const AFTER: Millis = 80_000;
/// An eighth of it.
const GRAIN: Millis = 10_000;

fn options() -> StoreOptions {
    StoreOptions { forget_after_ms: AFTER, max_devices: 4, ..small() }
}

fn opened() -> (Arc<SimDisk>, Harness<SimDisk>) {
    let disk = Arc::new(SimDisk::new());
    let mut harness = Harness::open(&disk, &options(), START);
    for n in 0..4 {
        harness.see(n);
    }
    harness.settle().expect("the disk works");
    harness.sink.take();
    (disk, harness)
}

fn crash(disk: &Arc<SimDisk>, harness: Harness<SimDisk>) -> Harness<SimDisk> {
    let now = harness.now;
    drop(harness);
    disk.kill();
    Harness::open(disk, &options(), now)
}

/// Connected and silent for longer than that, with its first word just before it goes.
#[test]
fn who_has_just_left_is_not_forgotten_before_its_last_word_is_known() {
    let (_disk, mut harness) = opened();
    pass(&mut harness, AFTER - 2 * GRAIN);
    let there: Vec<_> = (0..4).map(device).collect();
    harness.connected.lock().expect("not poisoned").extend(&there);
    pass(&mut harness, 6 * GRAIN);
    let said = harness.now;
    harness.engine.shared().index.expect_active(&device(1));
    harness.connected.lock().expect("not poisoned").clear();
    pass(&mut harness, 2 * GRAIN);
    assert_eq!(known(&mut harness), [1], "of the others nothing is expected");
    harness.apply(Command::LastActive(vec![(device(1), said)])).expect("the disk works");
    pass(&mut harness, AFTER);
    assert_eq!(known(&mut harness), [1], "not too early");
    pass(&mut harness, 3 * GRAIN);
    assert!(known(&mut harness).is_empty());
}

fn known(harness: &mut Harness<SimDisk>) -> Vec<u32> {
    (0..4).filter(|&n| harness.state_of(n).is_some()).collect()
}

fn active(harness: &mut Harness<SimDisk>, n: u32) {
    let now = harness.now;
    harness.apply(Command::LastActive(vec![(device(n), now)])).expect("the disk works");
    harness.commit().expect("the disk works");
}

#[test]
fn who_was_unseen_for_too_long_is_forgotten_with_what_waits_and_makes_room() {
    let (disk, mut harness) = opened();
    harness.change(0, Change::Bind(Binding::Account("a".into()))).expect("bound");
    let waits = of_account("a", batch("b1", 1, &[0], START, 1_000_000));
    let seq = harness.deliver(waits).expect("accepted").seq;
    harness.connected.lock().expect("not poisoned").insert(device(2));
    pass(&mut harness, AFTER);
    active(&mut harness, 3);
    assert_eq!(known(&mut harness), [0, 1, 2, 3], "not one grain too early");
    harness.sink.take();
    pass(&mut harness, 3 * GRAIN);
    assert_eq!(known(&mut harness), [2, 3], "one is connected, one was active");
    let ended: Vec<_> =
        harness.sink.take().into_iter().filter(|told| matches!(told, Told::Ended(..))).collect();
    assert_eq!(ended, [Told::Ended(device(0), seq, Failure::Forgotten)]);
    let events = harness.device_events(0, Seq(0));
    assert_eq!(events.last(), Some(&DeviceChange::Forgotten { last_active: START }));
    for _ in 0..2 {
        assert_eq!(known(&mut harness), [2, 3]);
        let counts = harness.totals();
        assert!(counts.identity_holds() && counts.pending == 0, "{counts:?}");
        harness = crash(&disk, harness);
    }
    let now = harness.now;
    let answer = harness.deliver(batch("b2", 2, &[0, 3], now, 1_000_000)).expect("accepted");
    assert_eq!(answer.refused, [(0, Refusal::DeviceUnknown)]);
    // It comes back as a new one, bound to nothing; and there is room for it.
    harness.see(0);
    harness.commit().expect("the disk works");
    let state = harness.state_of(0).expect("known again");
    assert_eq!((state.bindings, state.pending), (None, 0));
    let events = harness.device_events(0, Seq(0));
    assert!(matches!(
        events[events.len() - 2..],
        [DeviceChange::Forgotten { .. }, DeviceChange::Registered(_)]
    ));
}

#[test]
fn who_was_active_before_a_crash_is_not_taken_for_unseen_after_it() {
    let (disk, mut harness) = opened();
    for _ in 0..20 {
        pass(&mut harness, GRAIN);
        for n in 0..2 {
            active(&mut harness, n);
        }
    }
    assert_eq!(known(&mut harness), [0, 1]);
    // Nothing but the journal, and whoever may come back has had no chance yet.
    harness = crash(&disk, harness);
    pass(&mut harness, AFTER - GRAIN);
    active(&mut harness, 0);
    assert_eq!(known(&mut harness), [0, 1]);
    pass(&mut harness, 4 * GRAIN);
    assert_eq!(known(&mut harness), [0]);
}

/// What it says then can't be kept, and it is as if it had never been quiet.
#[test]
fn nobody_is_forgotten_because_the_disk_was_full_when_it_was_there() {
    let disk = Arc::new(SimDisk::new());
    let options = StoreOptions { unmatched_per_second: u32::MAX, ..options() };
    let mut harness = Harness::open(&disk, &options, START);
    (0..4).for_each(|n| harness.see(n));
    harness.settle().expect("the disk works");
    disk.set_capacity(Some(disk.used()));
    fill(&mut harness, 1);
    use_up(&mut harness);
    fill_to_the_brim(&mut harness);
    harness.now += 2 * GRAIN;
    let head = harness.head();
    active(&mut harness, 2);
    assert_eq!((harness.head(), harness.state_of(2).expect("known").last_active), (head, START));
    // For the others there is room to say so, and for saying that somebody is forgotten.
    disk.set_capacity(None);
    pass(&mut harness, 2_000);
    active(&mut harness, 3);
    pass(&mut harness, AFTER + GRAIN + 2_000);
    assert_eq!(known(&mut harness), [2, 3]);
    pass(&mut harness, 4 * GRAIN);
    assert_eq!(known(&mut harness), [2]);
    // From now on it is known when it was there.
    active(&mut harness, 2);
    pass(&mut harness, AFTER + 4 * GRAIN);
    assert_eq!(known(&mut harness), [0; 0]);
}

#[test]
fn activity_is_journaled_once_in_a_grain() {
    let (_disk, mut harness) = opened();
    let head = harness.head();
    for _ in 0..40 {
        active(&mut harness, 0);
        harness.now += GRAIN / 10;
    }
    let records = harness.head().0 - head.0;
    assert!((3..=5).contains(&records), "{records} in four grains");
}

#[test]
fn an_edge_that_was_off_forgets_nobody_at_once() {
    let (disk, mut harness) = opened();
    harness.now += 100 * AFTER;
    let mut harness = crash(&disk, harness);
    pass(&mut harness, AFTER - 1_000);
    assert_eq!(known(&mut harness), [0, 1, 2, 3]);
    harness.apply(Command::Seen { device: Box::new(seen(1)), session: session(1) }).expect("the disk works");
    active(&mut harness, 1);
    pass(&mut harness, 3 * GRAIN);
    assert_eq!(known(&mut harness), [1]);
}

#[test]
fn an_edge_on_which_nothing_happens_wakes_up_to_forget() {
    let (_, mut harness) = opened();
    for _ in 0..1_000 {
        if (0..4).all(|n| harness.state_of(n).is_none()) {
            let last = harness.device_events(0, Seq(0)).pop();
            assert!(matches!(last, Some(DeviceChange::Forgotten { .. })), "{last:?}");
            return;
        }
        harness.now = harness.engine.next_wakeup().expect("it looks again").max(harness.now);
        harness.settle().expect("the disk works");
    }
    panic!("still known at {}", harness.now);
}
