//! The end of the journal after a crash: what counts, what goes, and where the next group is put.

use std::sync::Arc;

use mooring::ids::Seq;
use mooring::store::disk::sim::SimDisk;
use mooring::store::disk::{Disk, DiskFile};
use mooring::store::journal::{Journal, JournalError, Place};

use super::damage::{FIRST, HEADER, filled, name, options, payload, recover, told};

const GROUP: u32 = HEADER;

/// Journals whose last group is alone in its segment, with the places of all records.
fn begun() -> impl Iterator<Item = (SimDisk, Vec<Place>)> {
    let all = (1..30).map(filled);
    all.filter(|(_, places)| places[places.len() - 3].offset == HEADER + GROUP)
}

fn zero(disk: &SimDisk, name: &str, from: u32, to: u32) {
    let file = disk.open(name).expect("there");
    file.write_at(&vec![0; (to - from) as usize], u64::from(from)).expect("works");
}

/// Stages one more record; where it is.
fn goes_on(journal: &mut Journal<SimDisk>) -> Place {
    let place = journal.stage(1, &payload(journal.next_seq().0)).expect("fits").1;
    journal.commit(9).expect("works");
    place
}

#[test]
fn a_segment_whose_first_group_was_torn_is_no_segment_yet() {
    let mut seen = 0;
    for (disk, places) in begun() {
        let head = places.len() as u64 - 3;
        let last = places[head as usize];
        // The group, its header, the segment's header with it: something of each was not written.
        for torn in [&[last.offset + 20][..], &[last.offset - 8], &[last.offset - 8, 3]] {
            let disk = disk.fork();
            for &at in torn {
                disk.flip(&name(last), u64::from(at), 1).expect("there");
            }
            let (mut journal, report, found) = recover(&disk, 0).expect("goes on");
            assert_eq!((found.len() as u64, report.corrupt.len()), (head, 0));
            let ids: Vec<u32> = journal.segments().iter().map(|segment| segment.id).collect();
            assert_eq!(ids, (1..last.segment).collect::<Vec<_>>());
            assert!(!disk.list().expect("works").contains(&name(last)), "its room is free again");
            assert_eq!(goes_on(&mut journal), last, "a new file takes its place");
            drop(journal);
            let (journal, report, found) = recover(&disk, 0).expect("goes on");
            assert_eq!((found.len() as u64, report.corrupt.len()), (head + 1, 0));
            assert_eq!(journal.segments().len() as u32, last.segment);
        }
        seen += 1;
    }
    assert!(seen >= 3, "the first segment and others: {seen}");
}

#[test]
fn a_segment_in_which_nothing_was_written_yet_is_gone_on_with() {
    for (disk, places) in begun() {
        let last = places[places.len() - 3];
        zero(&disk, &name(last), HEADER, 2048);
        let (mut journal, report, _) = recover(&disk, 0).expect("goes on");
        assert_eq!((report.corrupt.len(), report.torn_bytes), (0, 0));
        assert_eq!(journal.segments().last().expect("it").id, last.segment);
        assert_eq!(goes_on(&mut journal), last);
        // Nor its header: then it is none.
        zero(&disk, &name(last), 0, 2048);
        let (mut journal, report, _) = recover(&disk, 0).expect("goes on");
        assert_eq!(report.corrupt.len(), 0);
        assert!(journal.segments().iter().all(|segment| segment.id < last.segment));
        assert_eq!(goes_on(&mut journal), last);
    }
}

#[test]
fn a_segment_with_one_record_that_counts_stays_whatever_was_torn_behind() {
    for (disk, places) in begun() {
        let last = places[places.len() - 3];
        // The last group is torn, and in its place comes one of a single record. Behind that, one is torn again.
        disk.flip(&name(last), u64::from(last.offset) + 20, 1).expect("there");
        let (mut journal, ..) = recover(&disk, 0).expect("goes on");
        let (one, torn) = (goes_on(&mut journal), goes_on(&mut journal));
        let head = journal.head().0 - 1;
        drop(journal);
        assert_eq!((one, torn.segment), (last, last.segment));
        for at in [torn.offset - 8, torn.offset + 20] {
            let disk = disk.fork();
            disk.flip(&name(torn), u64::from(at), 1).expect("there");
            let (mut journal, report, found) = recover(&disk, 0).expect("goes on");
            assert_eq!(
                (found.last(), report.corrupt.len()),
                (Some(&head), 0),
                "it may have been acknowledged"
            );
            assert_ne!(goes_on(&mut journal).segment, torn.segment, "not behind torn bytes");
        }
    }
}

#[test]
fn a_torn_group_that_was_replaced_never_comes_back() {
    // It reads whole again, and the header of the segment behind, which says where this one ends, is damaged.
    let (disk, places) = filled(4);
    let torn = places[9];
    disk.flip(&name(torn), u64::from(torn.offset) + 20, 1).expect("there");
    let (mut journal, ..) = recover(&disk, 0).expect("goes on");
    let place = journal.stage(1, b"in its place").expect("fits").1;
    journal.commit(9).expect("works");
    assert_eq!((journal.head(), place.segment), (Seq(10), torn.segment + 1));
    drop(journal);
    disk.flip(&name(torn), u64::from(torn.offset) + 20, 1).expect("there");
    disk.flip(&name(place), 17, 1).expect("there");
    let mut found = Vec::new();
    let recovered = Journal::recover(Arc::new(disk), options(), (Seq(0), Seq(0)), &mut |record| {
        found.push((record.seq.0, record.payload.to_vec()));
    });
    let (journal, report) = recovered.expect("goes on");
    assert_eq!((found.len(), journal.head()), (10, Seq(10)));
    assert_eq!(found[9], (10, b"in its place".to_vec()));
    assert_eq!(report.corrupt.iter().filter(|damage| damage.lost.is_some()).count(), 0);
}

#[test]
fn segments_without_a_header_and_a_group_are_a_new_journal_only_if_nothing_knows_better() {
    let zeros = |name: &str| {
        let disk = SimDisk::new();
        disk.create(name, 0).and_then(|file| file.write_at(&[0; 2048], 0)).expect("works");
        disk
    };
    let first = zeros(FIRST);
    assert!(matches!(recover(&first, 5), Err(JournalError::NoSegments(Seq(5)))));
    let third = zeros("journal-0000000003.seg");
    assert!(matches!(recover(&third, 0), Err(JournalError::NoSegments(Seq(0)))));
    // The very first one, made and not written to when the power went.
    let (mut journal, report, found) = recover(&first, 0).expect("new");
    assert_eq!((journal.next_seq(), report.corrupt.len(), found.len()), (Seq(1), 0, 0));
    assert_eq!(goes_on(&mut journal).segment, 1);
}

#[test]
fn what_isnt_read_is_known_by_what_stands_behind_it() {
    let (disk, places) = filled(40);
    let before = recover(&disk, 0).expect("recovers").0.segments();
    assert!(before.len() > 3);
    let head = places.len() as u64;
    for after in [0, 30, head] {
        let (journal, report, found) = recover(&disk, after).expect("recovers");
        // Nothing of what the caller has is handed over again.
        assert_eq!(found, (after + 1..=head).collect::<Vec<_>>());
        assert_eq!(report.applied, head - after);
        let states = journal.segments();
        assert_eq!(states, before, "after {after}");
        assert!(states.windows(2).all(|pair| pair[0].last.0 + 1 == pair[1].first.0));
    }
}

#[test]
fn what_a_torn_group_says_was_durable_is_lost_if_it_cant_be_read_and_not_given_twice() {
    let (disk, places) = filled(4);
    disk.flip(&name(places[6]), u64::from(places[6].offset) - 8, 1).expect("there");
    disk.flip(&name(places[9]), u64::from(places[9].offset) + 20, 1).expect("there");
    let (journal, report, found) = recover(&disk, 0).expect("goes on");
    assert_eq!((found.len(), told(&report), journal.next_seq()), (6, vec![7, 8, 9], Seq(10)));
}

#[test]
fn a_record_inside_a_damaged_one_is_none() {
    let (disk, places) = filled(1);
    let length = places[1].offset - places[0].offset;
    let content = disk.content(FIRST).expect("there");
    let whole = content[places[0].offset as usize..][..length as usize].to_vec();
    let (mut journal, ..) = recover(&disk, 0).expect("recovers");
    journal.stage(1, &payload(4)).expect("fits");
    let bait = journal.stage(2, &[b"xyz", &*whole].concat()).expect("fits").1;
    journal.stage(1, &payload(6)).expect("fits");
    journal.commit(5).expect("works");
    // Its length: what it says is its end isn't, and it is looked for at each byte.
    disk.flip(FIRST, u64::from(bait.offset), 64).expect("there");
    let (journal, report, found) = recover(&disk, 6).expect("goes on");
    assert_eq!((found.len(), journal.next_seq()), (0, Seq(7)));
    assert_eq!((told(&report), report.corrupt[0].place), (vec![5], bait));
    let mut seen = Vec::new();
    let reader = journal.reader();
    let scanned = reader.scan(Seq(0), &mut None, &mut |record| {
        seen.push(record.seq.0);
        std::ops::ControlFlow::Continue(())
    });
    scanned.expect("goes on");
    assert_eq!(seen, [1, 2, 3, 4, 6]);
}
