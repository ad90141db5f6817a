//! Checkpoints are written a slice at a time, between commits, and batches are copied while others end: what comes in between is there once.

use super::common::{HOUR, again, messages, opened};
use super::plan::START;
use super::support::{ack, batch, small};
use crate::ids::Seq;
use crate::push::{Event, Failure, StreamEvent};
use crate::store::options::StoreOptions;

#[test]
fn what_comes_between_two_slices_of_a_checkpoint_is_there_once() {
    let options = StoreOptions { checkpoint_bytes: 1, ..small() };
    let mut written = 0;
    for steps in 0..30 {
        let (disk, mut harness) = opened(&options);
        harness.deliver(batch("b1", 1, &[0, 1, 2, 3], START, HOUR)).expect("accepted");
        for _ in 0..steps {
            harness.engine.maintain(START).expect("the disk works");
        }
        // Each of these may be the newest that a slice reflects.
        harness.deliver(batch("b2", 2, &[3, 2, 1, 0], START, HOUR)).expect("accepted");
        harness.engine.maintain(START).expect("the disk works");
        harness.acks(vec![ack(1, 1, &[(1, Event::Arrive)], START), ack(2, 1, &[(2, Event::Click)], START)]);
        harness.commit().expect("the disk works");
        harness.engine.maintain(START).expect("the disk works");
        harness.deliver(batch("b3", 3, &[0, 1], START, HOUR)).expect("accepted");
        let totals = harness.totals();
        // Until a checkpoint is finished; the tables need their time, too.
        for _ in 0..20 {
            harness.engine.maintain(harness.now).expect("the disk works");
        }
        for start in 0..2 {
            harness = again(&disk, harness, &options);
            let lists: Vec<_> = (0..4).map(|n| messages(&harness, n)).collect();
            assert_eq!(
                lists,
                [vec![1, 2, 3], vec![2, 3], vec![1], vec![1, 2]],
                "{steps} steps, start {start}"
            );
            assert_eq!(harness.totals(), totals, "{steps} steps, start {start}");
            assert_eq!(
                harness.deliver(batch("b2", 2, &[3, 2, 1, 0], START, HOUR)).expect("known").accepted,
                4
            );
            assert_eq!(harness.totals(), totals, "a repeat adds nothing");
            written += u64::from(harness.report.checkpoint > Seq(0));
            harness.now += 10_000;
            harness.settle().expect("the disk works");
        }
    }
    assert!(written > 20, "{written}");
}

#[test]
fn a_batch_whose_record_was_copied_ends_for_those_who_still_had_it() {
    let options = StoreOptions {
        checkpoint_bytes: 20_000,
        unmatched_per_second: u32::MAX,
        record_kept_ms: 10 * HOUR,
        ..small()
    };
    let (disk, mut harness) = opened(&options);
    harness.deliver(batch("old", 1, &[0, 1, 2, 3], START, 5 * HOUR)).expect("accepted");
    harness.deliver(batch("older", 2, &[3], START, 5 * HOUR)).expect("accepted");
    harness.arrive(0, 1);
    // Time and traffic, until the journal's oldest segments go.
    for n in 0..400 {
        let mut new = batch(&format!("b-{n}"), 100 + n, &[0], harness.now, HOUR);
        new.body = vec![7; 1_000].into();
        harness.deliver(new).expect("accepted");
        harness.arrive(0, 100 + n);
        harness.ack_stream(harness.head());
        harness.now += 1_000;
        harness.settle().expect("the disk works");
    }
    assert!(harness.figure("copied_bytes") > 0 && harness.figure("segments_removed") > 5);
    assert!(harness.engine.live_bytes() < 2_000, "{} live", harness.engine.live_bytes());
    harness.arrive(1, 1);
    for _ in 0..2 {
        harness = again(&disk, harness, &options);
        let lists: Vec<_> = (0..4).map(|n| messages(&harness, n)).collect();
        assert_eq!(lists, [vec![], vec![], vec![1], vec![1, 2]]);
    }
    let before = harness.head();
    harness.now = START + 5 * HOUR + 1_000;
    harness.settle().expect("the disk works");
    let totals = harness.totals();
    assert_eq!((totals.pending, totals.failed[Failure::Expired as usize - 1]), (0, 3), "{totals:?}");
    assert!(totals.identity_holds());
    let ends = harness.stream(before).into_iter().map(|(_, event)| match event {
        StreamEvent::Receipt(_) => 1,
        StreamEvent::Mass(mass) => u64::from(mass.count),
        StreamEvent::Gap(gap) => panic!("{gap:?}"),
        StreamEvent::Device(_) => 0,
    });
    assert_eq!(ends.sum::<u64>(), 3, "each said once");
    assert_eq!(harness.engine.live_bytes(), 0);
}
