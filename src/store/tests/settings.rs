//! What an operator changes between two starts.

use super::common::{HOUR, SEGMENT, again, messages};
use super::plan::START;
use super::streams::{device_records, event, of_other, opened, other_event, reopened, said, two};
use super::support::{Harness, app, batch, device, small};
use crate::ids::Seq;
use crate::push::{BatchPart, NewBatch, Rejection};
use crate::store::disk::sim::SimDisk;
use crate::store::options::{Quota, StoreOptions};

/// What a stream says of messages, from its first event on.
fn told(harness: &Harness<SimDisk>, stream: &str) -> Vec<i64> {
    said(&harness.try_stream_of(stream, Seq(0)).expect("readable"))
}

/// Time passes until everything that lives so long has expired.
fn outlive(harness: &mut Harness<SimDisk>, ms: u64) {
    harness.now += ms + 1_000;
    for _ in 0..4 {
        harness.settle().expect("the disk works");
    }
}

/// Its router has lost the answer, perhaps, and must not take what was accepted for refused.
#[test]
fn a_repeat_from_ahead_gets_its_answer_however_little_clocks_may_differ_by_now() {
    let with = |max_clock_skew_ms| StoreOptions { max_clock_skew_ms, ..small() };
    let ahead =
        |id: &str, message| NewBatch { created_at: START + 60_000, ..batch(id, message, &[0], START, HOUR) };
    let part = |number, new: NewBatch| NewBatch { part: BatchPart { number, ..BatchPart::default() }, ..new };
    let (disk, mut harness) = opened(&with(60_000));
    let first = harness.deliver(ahead("taken", 1)).expect("accepted");
    assert_eq!(
        harness.deliver(NewBatch { created_at: START + 60_001, ..ahead("far", 2) }),
        Err(Rejection::Ahead(60_001))
    );
    for max_clock_skew_ms in [59_999, 0] {
        harness = again(&disk, harness, &with(max_clock_skew_ms));
        let repeat = harness.deliver(ahead("taken", 1)).expect("it was accepted");
        assert_eq!((repeat.seq, repeat.accepted, repeat.repeated), (first.seq, 1, true));
        let other = NewBatch { job_key: "another".into(), digest: [9; 16], ..ahead("taken", 1) };
        assert_eq!(harness.deliver(other), Err(Rejection::BatchConflict));
        assert_eq!(harness.deliver(ahead("new", 2)), Err(Rejection::Ahead(60_000)), "{max_clock_skew_ms}");
    }
    // What was taken in part is taken to its end.
    let rest = NewBatch { targets: vec![device(1)], ..ahead("taken", 1) };
    assert_eq!(harness.deliver(part(1, rest)).expect("the first part was accepted").accepted, 1);
    // Time passes, and it is ahead no more.
    harness.now += 60_000;
    harness.deliver(ahead("new", 2)).expect("accepted");
}

/// The first stream by name is another app's: its router must not read what is left.
#[test]
fn what_is_left_of_an_app_that_is_removed_is_told_where_it_was_told_before() {
    let (disk, mut harness) = opened(&two("main", "second"));
    event(&mut harness, 1);
    other_event(&mut harness, 2);
    for (message, hours) in [(3, 1), (4, 5)] {
        let new = batch(&format!("left-{message}"), message, &[0], START, hours * HOUR);
        harness.deliver(of_other(new, 0)).expect("accepted");
    }
    let without = StoreOptions {
        streams: vec!["main".into()],
        app_streams: [(app(), "main".into())].into(),
        ..small()
    };
    for _ in 0..2 {
        harness = again(&disk, harness, &without);
    }
    outlive(&mut harness, HOUR);
    for start in 0..2 {
        assert_eq!((told(&harness, "main"), told(&harness, "second")), (vec![1], vec![2, 1_000]), "{start}");
        assert!(harness.stream_state("second").expect("kept").unread);
        harness.checkpoint().expect("the disk works");
        harness = again(&disk, harness, &without);
    }
    // Whoever retires it wants nothing of it any more: nobody else gets that.
    assert!(harness.retire("second", false).expect("no app has it").ended);
    harness = again(&disk, harness, &without);
    outlive(&mut harness, 5 * HOUR);
    let totals = harness.totals();
    assert!(totals.identity_holds() && totals.pending == 0, "{totals:?}");
    harness = again(&disk, harness, &without);
    assert_eq!(told(&harness, "main"), [1]);
    // The app comes back, with another stream.
    harness = again(&disk, harness, &two("main", "main"));
    let back = batch("back", 5, &[0], harness.now, 10_000);
    harness.deliver(of_other(back, 0)).expect("accepted");
    outlive(&mut harness, 10_000);
    assert_eq!(told(&harness, "main"), [1, 1_000]);
}

/// All that the first one holds back is in the segment that is being written, and can't go yet.
#[test]
fn a_stream_whose_gap_can_not_be_made_yet_keeps_no_other_from_its_own() {
    let streams = two("main", "second");
    let (disk, mut harness) = opened(&streams);
    other_event(&mut harness, 1);
    device_records(&mut harness, 5 * SEGMENT as usize);
    harness.ack_stream_of("main", harness.head());
    event(&mut harness, 2);
    harness = reopened(&disk, harness, &StoreOptions { stream_hard_bytes: 100, ..streams });
    harness.settle().expect("the disk works");
    let states = ["main", "second"].map(|name| harness.stream_state(name).expect("known"));
    assert!(states[0].unread && states[0].pinned_bytes > 100, "{states:?}");
    assert_eq!(states.map(|state| state.gaps.len()), [0, 1]);
}

/// Of each device some of what is too much goes with each new message, and its list never becomes longer.
#[test]
fn a_much_lower_quota_is_reached_message_by_message() {
    let with = |max_entries| {
        let quota = Quota { max_entries, max_bytes: u64::MAX, drop_oldest: true };
        StoreOptions { app_quotas: [(app(), quota)].into(), ..small() }
    };
    let new = |message: u64| batch(&format!("b{message}"), message, &[0], START, HOUR);
    let (disk, mut harness) = opened(&with(1_000));
    for message in 1..=50 {
        harness.deliver(new(message)).expect("accepted");
    }
    harness = again(&disk, harness, &with(5));
    assert_eq!(messages(&harness, 0).len(), 50, "nothing ends by a start alone");
    for (message, left) in [(51, 35), (52, 20), (53, 5), (54, 5)] {
        assert_eq!(harness.deliver(new(message)).expect("accepted").accepted, 1);
        let newest: Vec<u64> = (message - left + 1..=message).collect();
        assert_eq!(messages(&harness, 0), newest, "the oldest went");
    }
    let totals = harness.totals();
    assert!(totals.identity_holds() && totals.pending == 5, "{totals:?}");
}
