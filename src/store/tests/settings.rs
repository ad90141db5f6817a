//! What an operator changes between two starts.

use super::common::{HOUR, again};
use super::plan::START;
use super::streams::{event, of_other, opened, other_event, said, two};
use super::support::{Harness, app, batch, small};
use crate::ids::Seq;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;

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
