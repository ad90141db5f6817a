//! A full disk: refused before anything is written, with a reserve for what must go on.

use std::ops::ControlFlow;
use std::sync::Arc;

use mooring::ids::Seq;
use mooring::store::disk::Disk;
use mooring::store::disk::real::RealDisk;
use mooring::store::disk::sim::SimDisk;
use mooring::store::journal::{GROUP_OVERHEAD, Journal, JournalError, JournalOptions, RECORD_OVERHEAD, Room};

const SEGMENT: u32 = 4096;

fn journal(disk: &SimDisk, reserve_segments: u32) -> Journal<SimDisk> {
    let options =
        JournalOptions { segment_bytes: SEGMENT, reserve_segments, salt: 1, ..JournalOptions::default() };
    Journal::recover(Arc::new(disk.clone()), options, (Seq(0), Seq(0)), &mut |_| {}).expect("recovers").0
}

#[test]
fn a_full_disk_refuses_before_the_reserve_then_lives_on_it_and_recovers_by_itself() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(u64::from(SEGMENT) * 6));
    let mut journal = journal(&disk, 2);
    let record = vec![7; 500];
    let mut before_reserve = 0;
    while journal.fits(record.len(), false) {
        journal.stage(1, &record).expect("there was room");
        journal.commit(1).expect("there was room");
        journal.replenish().expect("a full disk is no error");
        before_reserve += 1;
    }
    assert!(journal.room().before_reserve < (record.len() + RECORD_OVERHEAD) as u64);
    assert!(journal.room().total >= 2 * u64::from(SEGMENT) - 200);
    let mut with_reserve = 0;
    while journal.fits(record.len(), true) {
        journal.stage(2, &record).expect("there was room");
        journal.commit(1).expect("there was room");
        with_reserve += 1;
    }
    assert_eq!((before_reserve, with_reserve), (4 * 7, 2 * 7), "records of either kind");
    let (next, staged) = (journal.next_seq(), journal.staged_bytes());
    assert!(matches!(journal.stage(3, &record), Err(JournalError::Full)));
    assert_eq!((journal.next_seq(), journal.staged_bytes()), (next, staged), "nothing changed");
    journal.commit(2).expect("nothing to do");

    // Trimming gives the space back.
    journal.remove_oldest().expect("not the active one");
    journal.remove_oldest().expect("not the active one");
    journal.replenish().expect("works");
    assert!(journal.fits(record.len(), true) && !journal.fits(record.len(), false), "the reserve first");
    journal.remove_oldest().expect("not the active one");
    journal.replenish().expect("works");
    assert!(journal.fits(record.len(), false));
    journal.stage(4, &record).expect("there is room");
    assert_eq!(journal.commit(3).expect("works"), next);
}

#[test]
fn a_start_on_a_full_disk_works_and_has_no_room() {
    let disk = SimDisk::new();
    let mut first = journal(&disk, 0);
    first.stage(1, &[1; 3000]).expect("fits");
    first.commit(1).expect("works");
    drop(first);
    disk.set_capacity(Some(disk.used()));
    let mut second = journal(&disk, 3);
    assert_eq!(second.head(), Seq(1));
    assert_eq!(second.room().total, u64::from(SEGMENT) - 40 - (3000 + 17 + 40 + 7) - 40);
    assert_eq!(second.room().before_reserve, 0, "what is left is the reserve");
    assert!(!second.fits(1, false));
    let fits = (second.room().total as usize) - RECORD_OVERHEAD - GROUP_OVERHEAD;
    second.stage(1, &vec![2; fits]).expect("the rest of the segment");
    assert_eq!(second.commit(2).expect("works"), Seq(2));
    assert!(matches!(second.stage(1, &[3; 500]), Err(JournalError::Full)));
    disk.set_capacity(None);
    assert_eq!(second.room(), Room { before_reserve: second.room().total, ..second.room() });
    second.replenish().expect("works");
    assert!(second.fits(500, false));
}

#[test]
fn a_record_larger_than_a_segment_is_refused() {
    let mut journal = journal(&SimDisk::new(), 1);
    let most = SEGMENT as usize - 40 - 40 - RECORD_OVERHEAD;
    assert!(matches!(journal.stage(1, &vec![0; most + 1]), Err(JournalError::TooLarge(_))));
    journal.stage(1, &vec![0; most]).expect("just fits");
    journal.commit(1).expect("works");
}

#[test]
fn one_commit_may_fill_several_segments() {
    let disk = SimDisk::new();
    let mut journal = journal(&disk, 4);
    let mut places = Vec::new();
    for number in 0..20u8 {
        places.push(journal.stage(number, &[number; 700]).expect("fits").1);
    }
    assert!(journal.reader().read(places[0]).is_err(), "not before the commit");
    assert_eq!(journal.commit(1).expect("works"), Seq(20));
    assert_eq!(journal.segments().len(), 4);
    for (number, place) in places.into_iter().enumerate() {
        let (seq, kind, payload) = journal.reader().read(place).expect("durable");
        assert_eq!((seq, kind, payload), (Seq(number as u64 + 1), number as u8, vec![number as u8; 700]));
    }
}

#[test]
fn small_and_large_records_on_a_real_directory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let lengths = [0usize, 5, 4_078, 4_079, 300_000, 17, 900_000, 1];
    let mut places = Vec::new();
    for round in 0..3 {
        let (disk, format) = RealDisk::open(dir.path(), None).expect("not in use");
        let options = JournalOptions {
            segment_bytes: 1 << 20,
            reserve_segments: 1,
            salt: format.salt(),
            ..JournalOptions::default()
        };
        let mut found = 0;
        let (mut journal, report) = Journal::recover(disk, options, (Seq(0), Seq(0)), &mut |record| {
            assert_eq!(record.payload.len(), lengths[found % lengths.len()]);
            found += 1;
        })
        .expect("recovers");
        assert_eq!((found, report.corrupt.len(), report.torn_bytes), (round * lengths.len(), 0, 0));
        for length in lengths {
            places.push(journal.stage(1, &vec![9; length]).expect("fits").1);
            journal.commit(round as u64).expect("works");
            journal.replenish().expect("works");
        }
        let reader = journal.reader();
        for (number, place) in places.iter().enumerate() {
            let (seq, _, payload) = reader.read(*place).expect("durable");
            assert_eq!((seq, payload.len()), (Seq(number as u64 + 1), lengths[number % lengths.len()]));
        }
        let mut scanned = 0;
        let scan = reader.scan(Seq(0), &mut None, &mut |record| {
            assert_eq!(record.place, places[scanned]);
            scanned += 1;
            ControlFlow::Continue(())
        });
        scan.expect("readable");
        assert_eq!(scanned, places.len());
    }
}

#[test]
fn what_is_left_of_a_segment_of_the_reserve_is_reserve_too() {
    let disk = SimDisk::new();
    disk.set_capacity(Some(u64::from(SEGMENT) * 4));
    let mut journal = journal(&disk, 2);
    let record = vec![7; 500];
    while journal.fits(record.len(), false) {
        journal.stage(1, &record).expect("there was room");
        journal.commit(1).expect("there was room");
        journal.replenish().expect("a full disk is no error");
    }
    // The first that lives on the reserve makes one of its segments the active one.
    for _ in 0..3 {
        journal.stage(2, &record).expect("there was room");
        journal.commit(1).expect("there was room");
        journal.replenish().expect("a full disk is no error");
        assert!(!journal.fits(1, false) && journal.fits(record.len(), true));
        assert_eq!(journal.room().before_reserve, 0);
    }
}

#[test]
fn what_is_said_to_fit_fits_and_hardly_more() {
    // As many records as fill a segment nearly, staged in one group over several segments.
    let disk = SimDisk::new();
    disk.set_capacity(Some(u64::from(SEGMENT) * 5));
    let mut journal = journal(&disk, 1);
    let record = vec![7; 7];
    let bytes = (record.len() + RECORD_OVERHEAD) as u64;
    journal.stage(1, &record).expect("there is room");
    journal.commit(1).expect("works");
    journal.replenish().expect("a full disk is no error");
    let on_disk = disk.list().expect("works");
    let sizes = on_disk.iter().map(|name| disk.content(name).expect("there").len() as u64);
    assert_eq!(journal.file_bytes(), sizes.sum::<u64>(), "spares with them");
    let Room { before_reserve, total } = journal.room();
    let (mut staged, mut without_reserve) = (0, 0);
    while journal.fits(record.len(), true) {
        without_reserve += if journal.fits(record.len(), false) { bytes } else { 0 };
        journal.stage(1, &record).expect("it fits");
        staged += bytes;
    }
    assert!(matches!(journal.stage(1, &record), Err(JournalError::Full)));
    let slack = 5 * bytes;
    assert!((total - slack..=total).contains(&staged), "{staged} of {total}");
    assert!((before_reserve - slack..=before_reserve).contains(&without_reserve), "{without_reserve}");
    journal.commit(2).expect("works");
    assert_eq!(journal.room().before_reserve, 0);
}

#[test]
fn the_segment_that_is_written_to_stays() {
    let mut journal = journal(&SimDisk::new(), 1);
    assert!(matches!(journal.remove_oldest(), Err(JournalError::Active)), "there is none yet");
    journal.stage(1, b"one").expect("there is room");
    journal.commit(1).expect("works");
    assert!(matches!(journal.remove_oldest(), Err(JournalError::Active)));
    assert_eq!(journal.segments().len(), 1);
}
