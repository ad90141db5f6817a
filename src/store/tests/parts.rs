//! Parts of a large batch: each by itself, under one id.

use super::common::{HOUR, again, messages, opened, pass};
use super::plan::START;
use super::support::{Harness, app, batch, of_account, small};
use crate::binding::{Binding, Change};
use crate::ids::{BatchId, Seq};
use crate::push::{Accepted, BatchPart, Failure, NewBatch, Refusal, Rejection, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::{AppChange, Command};
use tokio::sync::oneshot;

/// Of a batch of 100,000 to nobody in particular, these.
fn part(number: u32, first: u32, targets: &[u32], to_come: u32) -> NewBatch {
    let part = BatchPart { number, first, to_come, ..BatchPart::default() };
    NewBatch { part, ..batch("large", 1, targets, START, HOUR) }
}

fn log_in(harness: &mut Harness<SimDisk>, n: u32, account: &str) {
    harness.change(n, Change::Bind(Binding::Account(account.into()))).expect("logged in");
    harness.settle().expect("the disk works");
}

/// The ends of whole parts: reason and ordinals.
fn mass_ends(harness: &Harness<SimDisk>) -> Vec<(Failure, Vec<u32>)> {
    let events = harness.stream(Seq(0)).into_iter();
    let ends = events.filter_map(|(_, event)| match event {
        StreamEvent::Mass(mass) => {
            assert_eq!((mass.batch.as_str(), mass.count), ("large", mass.ordinals.len()));
            Some((mass.reason, mass.ordinals.iter().collect()))
        }
        _ => None,
    });
    ends.collect()
}

fn arrived(harness: &Harness<SimDisk>) -> Vec<u32> {
    let events = harness.stream(Seq(0)).into_iter();
    let ordinals = events.filter_map(|(_, event)| match event {
        StreamEvent::Receipt(receipt) => receipt.target.map(|(id, ordinal)| {
            assert_eq!(id.as_str(), "large");
            ordinal
        }),
        _ => None,
    });
    ordinals.collect()
}

#[test]
fn each_part_is_accepted_by_itself_and_remembered_by_its_number() {
    let options = small();
    let (disk, mut harness) = opened(&options);
    let first = harness.deliver(part(0, 0, &[0, 99], 2)).expect("accepted");
    assert_eq!((first.accepted, first.refused.as_slice()), (1, &[(1, Refusal::DeviceUnknown)][..]));
    // The edge dies before the next one is taken.
    let mut harness = again(&disk, harness, &options);
    let same = |first: &Accepted| Ok(Accepted { repeated: true, ..first.clone() });
    assert_eq!(harness.deliver(part(0, 0, &[0, 99], 2)), same(&first));
    let second = harness.deliver(part(99, 99_998, &[98, 1], 0)).expect("accepted");
    assert_eq!((second.accepted, second.refused.as_slice()), (1, &[(99_998, Refusal::DeviceUnknown)][..]));
    assert!(!second.repeated && second.seq > first.seq && second.first_seq == second.seq);
    for checkpoint in [true, false] {
        if checkpoint {
            harness.checkpoint().expect("the disk works");
        }
        harness = again(&disk, harness, &options);
        assert_eq!(harness.deliver(part(99, 99_998, &[98, 1], 0)), same(&second));
        assert_eq!(harness.deliver(part(0, 0, &[0, 99], 2)), same(&first));
        let other = NewBatch { digest: [77; 16], ..part(99, 99_998, &[98, 1], 0) };
        assert_eq!(harness.deliver(other), Err(Rejection::BatchConflict));
    }
    // One arrives, the other expires; both as the router numbers them.
    let state = harness.message(1, None).expect("known");
    assert_eq!((state.counts.targets, state.counts.accepted, state.counts.pending), (4, 2, 2));
    harness.arrive(1, 1);
    assert_eq!(arrived(&harness), [99_999]);
    harness.now = START + HOUR;
    harness.settle().expect("the disk works");
    assert_eq!(mass_ends(&harness), [(Failure::Expired, vec![0])]);
    assert!(harness.totals().identity_holds());
}

#[test]
fn ends_of_a_late_part_are_as_small_as_those_of_the_first() {
    let options = small();
    let (disk, mut harness) = opened(&options);
    harness.deliver(part(99, 99_000, &[0, 1, 2, 3], 0)).expect("accepted");
    harness.now = START + HOUR;
    harness.settle().expect("the disk works");
    let expected = [(Failure::Expired, vec![99_000, 99_001, 99_002, 99_003])];
    assert_eq!(mass_ends(&harness), expected);
    let events = harness.stream(Seq(0));
    let StreamEvent::Mass(mass) = &events.last().expect("an end").1 else { panic!("{events:?}") };
    assert_eq!(mass.ordinals.parts(), (12_375, &[0b1111][..]));
    let mut harness = again(&disk, harness, &options);
    assert_eq!(mass_ends(&harness), expected);
    assert_eq!((harness.totals().pending, messages(&harness, 0)), (0, vec![]));
}

#[test]
fn the_accounts_of_a_part_are_those_of_its_targets() {
    let options = small();
    let (disk, mut harness) = opened(&options);
    log_in(&mut harness, 1, "alice");
    let mut harness = again(&disk, harness, &options);
    let of_alice = of_account("alice", part(7, 7_000, &[0, 1, 2], 0));
    assert_eq!(harness.deliver(of_alice).expect("accepted").accepted, 3);
    let stale = [(Failure::Unbound, vec![7_000, 7_002])];
    assert_eq!(mass_ends(&harness), stale);
    // Who logs out loses it: the record says that it was for an account.
    let mut harness = again(&disk, harness, &options);
    assert_eq!((mass_ends(&harness), messages(&harness, 1)), (stale.to_vec(), vec![1]));
    log_in(&mut harness, 1, "bob");
    assert!(messages(&harness, 1).is_empty());
    assert_eq!(harness.totals().failed[Failure::Unbound as usize - 1], 3);
}

#[test]
fn the_first_part_decides_for_all() {
    let control = |harness: &mut Harness<SimDisk>, change| {
        let reply = oneshot::channel().0;
        harness.apply(Command::ControlApp { app: app(), change, reply }).expect("the disk works");
        harness.settle().expect("the disk works");
    };
    // What doesn't fit as a whole isn't begun.
    let (_disk, mut harness) = opened(&StoreOptions { max_pending: 4, ..small() });
    assert_eq!(harness.deliver(part(0, 0, &[0, 1], 3)), Err(Rejection::Exhausted));
    assert_eq!(harness.deliver(part(0, 0, &[0, 1], 2)).expect("accepted").accepted, 2);
    assert_eq!(harness.deliver(part(1, 2, &[2, 3], 0)).expect("accepted").accepted, 2);
    assert_eq!(harness.deliver(part(2, 4, &[0], 0)), Err(Rejection::Exhausted), "more than was said");
    // What was begun is taken to its end, though a new batch would not be.
    let (_disk, mut harness) = opened(&small());
    assert!(harness.deliver(part(0, 0, &[0, 1], 2)).is_ok());
    control(&mut harness, AppChange::Suspend);
    assert_eq!(harness.deliver(part(1, 2, &[2], 1)).expect("accepted").accepted, 1);
    harness.now = START + HOUR;
    assert_eq!(harness.deliver(part(2, 3, &[3], 0)).expect("accepted").accepted, 1);
    harness.settle().expect("the disk works");
    let mut ends = mass_ends(&harness);
    ends.sort_unstable_by_key(|(_, ordinals)| ordinals[0]);
    assert_eq!(
        ends,
        [(Failure::Expired, vec![0, 1]), (Failure::Expired, vec![2]), (Failure::Expired, vec![3])]
    );
    let late = NewBatch { expires_at: START, ..part(0, 0, &[0], 0) };
    let late = NewBatch { id: BatchId::parse("late").expect("valid"), ..late };
    assert_eq!(harness.deliver(late), Err(Rejection::Expired));
}

#[test]
fn a_part_that_comes_too_late_takes_nobodys_place() {
    let (_disk, mut harness) = opened(&small());
    let keyed = |number, first, targets: &[u32]| NewBatch {
        collapse_key: "weather".into(),
        ..part(number, first, targets, 9)
    };
    harness.deliver(keyed(0, 0, &[0])).expect("accepted");
    let other = NewBatch { collapse_key: "weather".into(), ..batch("other", 2, &[1, 2], START, 9 * HOUR) };
    harness.deliver(other).expect("accepted");
    harness.now = START + HOUR;
    assert_eq!(harness.deliver(keyed(1, 1, &[1])).expect("accepted").accepted, 1);
    let online = NewBatch { online_only: true, ..keyed(2, 2, &[2]) };
    assert_eq!(harness.deliver(online).expect("accepted").accepted, 1);
    harness.settle().expect("the disk works");
    assert_eq!((messages(&harness, 1), messages(&harness, 2)), (vec![2], vec![2]));
    let mut ends = mass_ends(&harness);
    ends.sort_unstable_by_key(|(_, ordinals)| ordinals[0]);
    let expired = |ordinal| (Failure::Expired, vec![ordinal]);
    assert_eq!(ends, [expired(0), expired(1), (Failure::Offline, vec![2])]);
    assert!(harness.totals().identity_holds());
}

#[test]
fn all_parts_of_a_batch_are_forgotten_together_and_none_while_it_is_taken() {
    // A place for one id in each part of the index.
    let (_disk, mut harness) = opened(&StoreOptions { max_batch_ids: 4, ..small() });
    let follows = |number| {
        let mut part = part(number, number, &[number], 9 - number);
        part.part.follows = number > 0;
        part
    };
    for number in 0..4 {
        assert_eq!(harness.deliver(follows(number)).expect("accepted").accepted, 1, "part {number}");
    }
    // Of those of a repeat nobody knows whether they were taken, but for the one that is remembered.
    let again =
        |number| NewBatch { part: BatchPart { follows: false, ..follows(number).part }, ..follows(number) };
    let repeats: Vec<_> = (0..4).map(|number| harness.deliver(again(number))).collect();
    assert_eq!(repeats.iter().filter(|answer| **answer == Err(Rejection::TooOld)).count(), 3, "{repeats:?}");
    let state = harness.message(1, None).expect("known");
    assert_eq!((state.counts.batches, state.counts.accepted), (1, 4), "one batch");
}

#[test]
fn what_was_taken_in_part_is_taken_to_its_end_however_late() {
    let (_disk, mut harness) = opened(&StoreOptions { batch_window_ms: 60_000, ..small() });
    harness.deliver(part(0, 0, &[1], 1)).expect("accepted");
    pass(&mut harness, 61_000);
    assert!(harness.deliver(part(0, 0, &[1], 1)).expect("known").repeated);
    assert_eq!(harness.deliver(part(1, 1, &[2], 0)).expect("it goes on").accepted, 1);
    // Of one that is not known nobody knows whether it was.
    assert_eq!(harness.deliver(batch("another", 2, &[1], START, HOUR)), Err(Rejection::TooOld));
}
