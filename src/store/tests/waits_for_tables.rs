//! A checkpoint that is whole but for the tables.

use super::brim::filler;
use super::common::{HOUR, opened};
use super::support::{batch, small};
use crate::store::options::StoreOptions;

/// The pause between two transactions isn't over, and no time passes.
#[test]
fn a_checkpoint_that_waits_for_the_tables_leaves_no_idle_second() {
    for between in 0..9 {
        let (_disk, mut harness) = opened(&StoreOptions { checkpoint_bytes: 4_000, ..small() });
        harness.now += 10_000;
        harness.settle().expect("the disk works");
        for round in 0..20 {
            let checkpoints = harness.figure("checkpoints");
            for part in 0..5 {
                let message = 1 + round * 5 + part;
                let mut new = batch(&format!("b{message}"), message, &[0], harness.now, HOUR);
                new.body = vec![7; 1_000].into();
                harness.deliver(new).expect("accepted");
            }
            for _ in 0..between {
                harness.engine.maintain(harness.now).expect("the disk works");
                harness.commit().expect("the disk works");
            }
            harness.settle().expect("the disk works");
            assert!(harness.figure("checkpoints") > checkpoints, "round {round} after {between}: it waits");
        }
    }
}

/// There is nothing to write but how far they are, and no space for that.
#[test]
fn tables_without_space_for_an_empty_transaction_rest() {
    let (disk, mut harness) = opened(&StoreOptions { checkpoint_bytes: 10, ..small() });
    harness.now += 10_000;
    harness.settle().expect("the disk works");
    let checkpoints = harness.figure("checkpoints");
    // The spare segments aren't lent, as the only other one is in use.
    disk.set_capacity(Some(disk.used()));
    assert!(filler(&mut harness), "no row tells of it");
    for _ in 0..3 {
        harness.settle().expect("a full disk is no failure");
        let next = harness.engine.next_wakeup().expect("it tries again");
        assert!(next <= harness.now + 1_000, "{}", next - harness.now);
        harness.now = next;
    }
    assert_eq!(harness.figure("checkpoints"), checkpoints);
    disk.set_capacity(None);
    harness.now = harness.engine.next_wakeup().expect("it tries again");
    harness.settle().expect("the disk works");
    assert_eq!(harness.figure("checkpoints"), checkpoints + 1);
}
