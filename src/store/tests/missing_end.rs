//! A journal whose newest segments are gone.

use std::sync::Arc;

use super::common::{HOUR, files, opened};
use super::plan::START;
use super::support::{Harness, batch, small};
use crate::ids::Seq;
use crate::store::disk::Disk;
use crate::store::disk::sim::SimDisk;

/// Removes the newest segments.
fn lose(disk: &Arc<SimDisk>, newest: usize) {
    for name in files(disk, "journal-").into_iter().rev().take(newest) {
        disk.remove(&name).expect("there");
    }
}

/// What a checkpoint or the tables have was in the journal: one that ends before is refused. What neither of them has leaves no trace but at routers, whose
/// cursors lie beyond the journal's end and are refused.
#[test]
fn whole_segments_missing_at_the_end_refuse_a_start_if_anything_knows_of_them() {
    for known in [true, false] {
        let options = small();
        let (disk, mut harness) = opened(&options);
        harness.settle().expect("the disk works");
        let mut n = 0;
        while files(&disk, "journal-").len() < 5 {
            n += 1;
            let mut new = batch(&format!("b{n}"), n, &[0], harness.now, HOUR);
            new.body = vec![7; 1_000].into();
            harness.deliver(new).expect("accepted");
        }
        let cursor = harness.head();
        if known {
            harness.now += 10_000;
            harness.settle().expect("the disk works");
        }
        drop(harness);
        disk.kill();
        lose(&disk, 2);
        match Harness::try_open(&disk, &options, START + 20_000) {
            Ok(harness) => {
                assert!(!known, "the tables hold more");
                assert!(harness.head() < cursor);
                let read = harness.engine.read_stream("main", cursor, 10, 10_000);
                assert!(read.is_err(), "a cursor of what is lost: {read:?}");
                assert!(harness.try_stream(Seq(0)).is_ok());
            }
            Err(error) => assert!(known, "{error}"),
        }
    }
}
