//! A checkpoint that is whole but for the tables.

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
