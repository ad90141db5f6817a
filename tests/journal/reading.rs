//! Reading while the writer goes on: a scan is as long as its reader makes it, and the journal doesn't wait for it.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use mooring::ids::Seq;
use mooring::store::disk::sim::SimDisk;
use mooring::store::journal::{Journal, JournalOptions, ReadError};

const SEGMENT: u32 = 4096;

fn journal() -> Journal<SimDisk> {
    let options = JournalOptions { segment_bytes: SEGMENT, reserve_segments: 8, salt: 1 };
    Journal::recover(Arc::new(SimDisk::new()), options, (Seq(0), Seq(0)), &mut |_| {}).expect("recovers").0
}

fn write(journal: &mut Journal<SimDisk>, bytes: usize) -> Seq {
    let (seq, _) = journal.stage(1, &vec![7; bytes]).expect("there is room");
    journal.commit(1).expect("the disk works");
    journal.replenish().expect("the disk works");
    seq
}

#[test]
fn a_scan_passes_nothing_that_is_committed_to_its_segment_before_the_next_one_begins() {
    let journal = RefCell::new(journal());
    write(&mut journal.borrow_mut(), 100);
    let reader = journal.borrow().reader();
    let mut seen = Vec::new();
    let mut last = Seq(0);
    reader
        .scan(Seq(0), &mut None, &mut |record| {
            seen.push(record.seq.0);
            if record.seq == Seq(1) {
                // To the segment that is being read, and then to a new one.
                write(&mut journal.borrow_mut(), 100);
                last = write(&mut journal.borrow_mut(), 3900);
            }
            ControlFlow::Continue(())
        })
        .expect("readable");
    assert_eq!(last, Seq(3));
    assert_eq!(seen, [1, 2, 3]);
}

#[test]
fn a_scan_whose_next_segment_was_removed_says_so() {
    let journal = RefCell::new(journal());
    for _ in 0..4 {
        write(&mut journal.borrow_mut(), 3000);
    }
    let reader = journal.borrow().reader();
    let mut seen = Vec::new();
    let scanned = reader.scan(Seq(0), &mut None, &mut |record| {
        seen.push(record.seq.0);
        if record.seq == Seq(1) {
            journal.borrow_mut().remove_oldest().expect("not the active one");
            journal.borrow_mut().remove_oldest().expect("not the active one");
        }
        ControlFlow::Continue(())
    });
    assert_eq!(seen, [1]);
    assert!(matches!(scanned, Err(ReadError::Gone)), "{scanned:?}: 2 was never handed over");
}
