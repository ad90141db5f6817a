//! Reading while the writer goes on: a scan is as long as its reader makes it, and the journal doesn't wait for it.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use mooring::ids::Seq;
use mooring::store::disk::sim::SimDisk;
use mooring::store::disk::{Disk, DiskFile};
use mooring::store::journal::{Journal, JournalOptions, JournalReader, Position, ReadError};

const SEGMENT: u32 = 4096;
const FIRST: &str = "journal-0000000001.seg";

fn journal() -> Journal<SimDisk> {
    journal_on(&SimDisk::new(), SEGMENT)
}

fn journal_on(disk: &SimDisk, segment_bytes: u32) -> Journal<SimDisk> {
    let options = JournalOptions { segment_bytes, reserve_segments: 8, salt: 1, ..JournalOptions::default() };
    Journal::recover(Arc::new(disk.clone()), options, (Seq(0), Seq(0)), &mut |_| {}).expect("recovers").0
}

/// All sequences behind `after` that a scan hands over.
fn scanned(reader: &JournalReader<SimDisk>, after: u64, mut position: Option<Position>) -> Vec<u64> {
    let mut seen = Vec::new();
    let all = reader.scan(Seq(after), &mut position, &mut |record| {
        seen.push(record.seq.0);
        ControlFlow::Continue(())
    });
    all.expect("readable");
    seen
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

#[test]
fn where_a_reader_may_begin() {
    let mut journal = journal();
    let reader = journal.reader();
    assert_eq!((reader.oldest(), reader.tail(1_000)), (Seq(1), Seq(0)), "nothing yet");
    for _ in 0..5 {
        write(&mut journal, 3000);
    }
    let used: Vec<u64> = journal.segments().iter().map(|segment| u64::from(segment.used)).collect();
    assert_eq!(used.len(), 5, "one in each");
    // Whole segments, from the newest on, that have so many bytes; the newest always.
    for (bytes, after) in [(0, 4), (used[4] - 1, 4), (used[4], 4), (used[4] + used[3], 3), (u64::MAX, 0)] {
        assert_eq!(reader.tail(bytes), Seq(after), "{bytes}");
    }
    journal.remove_oldest().expect("not the active one");
    assert_eq!((reader.oldest(), reader.tail(u64::MAX)), (Seq(2), Seq(1)));
}

#[test]
fn a_position_of_another_scan_hides_nothing() {
    let mut journal = journal();
    for bytes in [100, 200, 3000, 100, 3900, 50, 60] {
        write(&mut journal, bytes);
    }
    let reader = journal.reader();
    let mut positions = vec![None];
    for stop in 1..=7 {
        let mut position = None;
        let stopped = reader.scan(Seq(0), &mut position, &mut |record| {
            if record.seq.0 < stop { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        stopped.expect("readable");
        positions.push(position);
    }
    let mut end = None;
    reader.scan(Seq(0), &mut end, &mut |_| ControlFlow::Continue(())).expect("readable");
    positions.push(end);
    for position in positions {
        for after in 0..=7 {
            let seen = scanned(&reader, after, position);
            assert_eq!(seen, (after + 1..=7).collect::<Vec<_>>(), "after {after}, {position:?}");
        }
    }
}

/// Small records, and some that are larger than what is read at once.
#[test]
fn a_scan_that_stops_within_a_group_goes_on_there() {
    for damaged in [None, Some(1), Some(2), Some(5)] {
        let disk = SimDisk::new();
        let mut journal = journal_on(&disk, 1024 * 1024);
        let staged: Vec<_> = [10, 300_000, 20, 290_000, 30]
            .map(|bytes| journal.stage(1, &vec![7; bytes]).expect("there is room"))
            .into();
        journal.commit(1).expect("the disk works");
        write(&mut journal, 40);
        for (_, place) in staged.iter().filter(|(seq, _)| Some(seq.0) == damaged) {
            disk.flip(FIRST, u64::from(place.offset) + 20, 1).expect("there");
        }
        let reader = journal.reader();
        let whole: Vec<u64> = (1..=6).filter(|seq| Some(*seq) != damaged).collect();
        for records in 1..=6 {
            let (mut position, mut seen) = (None, vec![0]);
            while seen.last() != Some(&6) {
                let (after, mut left) = (seen[seen.len() - 1], records);
                let scanned = reader.scan(Seq(after), &mut position, &mut |record| {
                    seen.push(record.seq.0);
                    left -= 1;
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                scanned.expect("readable");
            }
            assert_eq!(seen[1..], whole, "{records} at a time, {damaged:?} is damaged");
        }
        assert_eq!(reader.damaged(), u64::from(damaged.is_some()));
    }
}

#[test]
fn behind_a_damaged_header_the_next_group_is_found_however_far() {
    // The next one is near, or further than is read at once.
    for (bytes, segment_bytes) in [(10, SEGMENT), (600_000, 1024 * 1024)] {
        let disk = SimDisk::new();
        let mut journal = journal_on(&disk, segment_bytes);
        for bytes in [bytes, 10, 10] {
            write(&mut journal, bytes);
        }
        disk.flip(FIRST, 40 + 20, 1).expect("there");
        let reader = journal.reader();
        assert_eq!(scanned(&reader, 0, None), [2, 3]);
        assert_eq!(reader.damaged(), 1);
    }
}

#[test]
fn a_file_that_is_too_short_is_a_failure_of_the_disk_and_no_damage() {
    let disk = SimDisk::new();
    let mut journal = journal_on(&disk, SEGMENT);
    let (_, place) = journal.stage(1, &[7; 100]).expect("there is room");
    journal.commit(1).expect("the disk works");
    disk.open(FIRST).and_then(|file| file.set_len(u64::from(place.offset) + 50)).expect("works");
    let read = journal.reader().read(place);
    assert!(matches!(read, Err(ReadError::Io(_))), "{read:?}");
}
