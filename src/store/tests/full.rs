//! A disk that stays full: what is said then is true, and space comes back from the journal itself.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::common::{HOUR, opened};
use super::support::{Harness, Told, ack, batch, device, session, small};
use crate::ids::Seq;
use crate::push::{Event, Rejection};
use crate::store::Command;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

/// Delivers until one is rejected; how many were accepted.
pub(super) fn fill(harness: &mut Harness<SimDisk>, first: u64) -> u64 {
    for n in first..10_000 {
        let mut new = batch(&format!("b-{n}"), n, &[0, 1], harness.now, HOUR);
        new.body = vec![7; 3_000].into();
        match harness.deliver(new) {
            Ok(_) => harness.settle().expect("the disk works"),
            Err(why) => {
                assert_eq!(why, Rejection::Unavailable);
                return n - first;
            }
        }
    }
    panic!("never full");
}

/// Acks that free nothing, until one isn't confirmed; its number.
pub(super) fn use_up(harness: &mut Harness<SimDisk>) -> u64 {
    for number in 1..10_000 {
        harness.acks(vec![ack(0, number, &[(999_999 + number, Event::Click)], harness.now)]);
        harness.commit().expect("the disk works");
        if !harness.sink.take().iter().any(|told| matches!(told, Told::Confirmed(_))) {
            return number;
        }
    }
    panic!("never full");
}

fn options() -> StoreOptions {
    StoreOptions { unmatched_per_second: u32::MAX, checkpoint_bytes: 20_000, ..small() }
}

#[test]
fn an_ack_that_cannot_be_kept_ends_its_session_and_so_do_the_ids_of_hello() {
    let (disk, mut harness) = opened(&options());
    disk.set_capacity(Some(disk.used()));
    fill(&mut harness, 1);
    harness.sink.take();
    use_up(&mut harness);
    for number in [1, 0] {
        harness.acks(vec![ack(0, number, &[(999_000 + number, Event::Click)], harness.now)]);
        harness.commit().expect("the disk works");
        assert_eq!(harness.sink.take(), [Told::AckRefused(session(0))], "number {number}");
    }
}

#[test]
fn what_expires_and_what_the_router_has_read_makes_room_again_on_a_disk_that_stays_full() {
    let (disk, mut harness) = opened(&options());
    disk.set_capacity(Some(disk.used() + 10 * 16 * 1024));
    let accepted = fill(&mut harness, 1);
    assert!(accepted > 10);
    use_up(&mut harness);
    // Nothing is freed from outside: time passes, and the router reads its stream.
    for _ in 0..50 {
        harness.now += HOUR;
        harness.settle().expect("the disk works");
        let head = harness.head();
        harness.ack_stream(head);
        harness.settle().expect("the disk works");
    }
    assert_eq!(harness.totals().pending, 0);
    let again = fill(&mut harness, 10_000 - 9_000);
    assert!(again > 10, "only {again}");
    assert!(harness.totals().identity_holds());
    assert!(harness.stream(Seq(harness.head().0 - 1)).len() <= 1);
}

#[test]
fn a_disk_too_small_for_many_checkpoints_goes_on_for_ever() {
    // A checkpoint is due only when the journal has filled the disk.
    for (quota, checkpoint_bytes) in [(10, 200_000), (10, 60_000), (20, 100_000)] {
        let options = StoreOptions { checkpoint_bytes, max_messages: 40, max_batch_ids: 40, ..options() };
        let (disk, mut harness) = opened(&options);
        disk.set_capacity(Some(quota * 16 * 1024));
        let mut refused = 0;
        for n in 1..3_000 {
            let mut new = batch(&format!("b-{n}"), n, &[0], harness.now, HOUR);
            new.body = vec![7; 500].into();
            if harness.deliver(new).is_ok() {
                refused = 0;
                harness.arrive(0, n);
            } else {
                refused += 1;
                assert!(refused < 100, "stuck at {n} with {quota} segments");
            }
            harness.ack_stream(harness.head());
            harness.now += 1_000;
            harness.settle().expect("the disk works");
            if n % 250 == 0 {
                let (before, now) = (harness.totals(), harness.now);
                drop(harness);
                disk.crash(&mut SmallRng::seed_from_u64(n));
                harness = Harness::open(&disk, &options, now);
                assert_eq!(harness.totals(), before);
            }
        }
        assert!(harness.totals().identity_holds());
    }
}

#[test]
fn activity_that_finds_no_room_is_not_taken_for_journaled() {
    let options = StoreOptions { forget_after_ms: 80_000, ..options() };
    let (disk, mut harness) = opened(&options);
    disk.set_capacity(Some(disk.used()));
    fill(&mut harness, 1);
    use_up(&mut harness);
    let active = |harness: &mut Harness<SimDisk>| {
        let now = harness.now;
        harness.apply(Command::LastActive(vec![(device(0), now)])).expect("the disk works");
        harness.commit().expect("the disk works");
        harness.state_of(0).expect("known").last_active == now
    };
    // Each time more than the grain in which it is journaled once.
    let mut noted = 0;
    while active(&mut harness) {
        harness.now += 20_000;
        noted += 1;
        assert!(noted < 1_000, "it is noted though nothing says so durably");
    }
    disk.set_capacity(None);
    harness.now += 2_000;
    harness.settle().expect("the disk works");
    assert!(active(&mut harness));
    let now = harness.now;
    drop(harness);
    disk.kill();
    let mut harness = Harness::open(&disk, &options, now);
    assert_eq!(harness.state_of(0).expect("known").last_active, now, "journaled as soon as there was room");
}
