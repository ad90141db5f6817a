//! Damage: below what was durable it is reported and skipped, in the tail it is a torn write; and files that are not ours to touch.

use std::sync::Arc;

use mooring::ids::Seq;
use mooring::store::checkpoint::{
    CheckpointError, CheckpointReader, CheckpointWriter, oldest_kept_covers, remove_one,
};
use mooring::store::disk::sim::SimDisk;
use mooring::store::disk::{Disk, DiskFile, SyncPoint};
use mooring::store::journal::{Journal, JournalError, JournalOptions, Place, ReadError, Recovery};

pub(super) const FIRST: &str = "journal-0000000001.seg";
pub(super) const SEGMENT: u32 = 2048;
pub(super) const HEADER: u32 = 40;

pub(super) fn options() -> JournalOptions {
    JournalOptions { segment_bytes: SEGMENT, reserve_segments: 1, salt: 42, ..JournalOptions::default() }
}

pub(super) type Recovered = Result<(Journal<SimDisk>, Recovery, Vec<u64>), JournalError>;

pub(super) fn recover(disk: &SimDisk, after: u64) -> Recovered {
    recover_durable(disk, (after, after))
}

/// Everything up to the second one is known to have been durable.
pub(super) fn recover_durable(disk: &SimDisk, (after, durable): (u64, u64)) -> Recovered {
    let mut found = Vec::new();
    let known = (Seq(after), Seq(durable));
    let (journal, report) = Journal::recover(Arc::new(disk.clone()), options(), known, &mut |record| {
        assert_eq!(record.payload, payload(record.seq.0), "record {}", record.seq);
        found.push(record.seq.0);
    })?;
    Ok((journal, report, found))
}

pub(super) fn payload(seq: u64) -> Vec<u8> {
    format!("record {seq} {}", "x".repeat(seq as usize % 40)).into_bytes()
}

/// Groups of three records over several segments; answers their places.
pub(super) fn filled(groups: u64) -> (SimDisk, Vec<Place>) {
    let disk = SimDisk::new();
    let (mut journal, ..) = recover(&disk, 0).expect("new");
    let mut places = Vec::new();
    for group in 0..groups {
        journal.replenish().expect("works");
        for _ in 0..3 {
            let seq = journal.next_seq().0;
            places.push(journal.stage(1, &payload(seq)).expect("fits").1);
        }
        journal.commit(group).expect("works");
    }
    (disk, places)
}

pub(super) fn name(place: Place) -> String {
    format!("journal-{:010}.seg", place.segment)
}

#[test]
fn a_flipped_bit_anywhere_below_the_tail_is_reported_and_the_other_records_survive() {
    let (disk, places) = filled(30);
    let tail = places[places.len() - 3];
    for segment in 1..=tail.segment {
        let ours = |place: &&Place| place.segment == segment;
        let first = places.iter().find(ours).expect("a record in each");
        let last = places.iter().rfind(ours).expect("a record in each");
        let end = if segment == tail.segment { tail.offset - HEADER } else { last.offset + 17 };
        assert_eq!(first.offset, 2 * HEADER);
        for offset in (0..end).step_by(5) {
            let disk = disk.fork();
            disk.flip(&name(*first), u64::from(offset), 1 << (offset % 8)).expect("there");
            let (journal, report, found) = recover(&disk, 0).expect("goes on");
            assert_eq!(journal.head(), Seq(90));
            let missing: Vec<u64> = (1..=90).filter(|seq| !found.contains(seq)).collect();
            let told: Vec<u64> =
                report.corrupt.iter().filter_map(|damage| damage.lost).flat_map(|(a, b)| a.0..=b.0).collect();
            assert_eq!(missing, told, "segment {segment} offset {offset}");
            // Padding may hide a flip; a record never does. A damaged group header costs its group, a damaged record only itself.
            assert!(missing.len() <= 3, "segment {segment} offset {offset}: {missing:?}");
            let in_record = places.iter().enumerate().any(|(index, place)| {
                let length = 17 + payload(index as u64 + 1).len() as u32;
                place.segment == segment && (place.offset..place.offset + length).contains(&offset)
            });
            assert!(!in_record || missing.len() == 1, "segment {segment} offset {offset}: {missing:?}");
            assert_eq!(report.torn_bytes, 0, "segment {segment} offset {offset}");
        }
    }
}

#[test]
fn a_flipped_bit_in_the_last_group_is_a_torn_tail() {
    let (disk, places) = filled(4);
    let last = places[9];
    for offset in last.offset - HEADER..places[11].offset + 17 {
        let disk = disk.fork();
        disk.flip(&name(last), u64::from(offset), 1).expect("there");
        let (mut journal, report, found) = recover(&disk, 0).expect("goes on");
        assert_eq!((found.len(), journal.head(), report.corrupt.len()), (9, Seq(9), 0), "{offset}");
        assert!(report.torn_bytes > 0, "{offset}");
        // What replaces it goes elsewhere, and the torn bytes are neither damage nor data from then on.
        journal.stage(1, &payload(10)).expect("fits");
        journal.commit(9).expect("works");
        drop(journal);
        let (journal, report, found) = recover(&disk, 0).expect("goes on");
        assert_eq!((found.len(), journal.head(), report.corrupt.len()), (10, Seq(10), 0), "{offset}");
        assert_eq!(report.torn_bytes, 0);
    }
}

#[test]
fn what_a_checkpoint_covers_is_never_a_torn_tail() {
    let (disk, places) = filled(4);
    disk.flip(&name(places[9]), u64::from(places[10].offset) + 20, 1).expect("there");
    let (journal, report, found) = recover(&disk, 11).expect("goes on");
    assert_eq!((journal.next_seq(), found), (Seq(13), vec![12]));
    assert_eq!(report.corrupt[0].lost, Some((Seq(11), Seq(11))));

    disk.flip(&name(places[9]), u64::from(places[9].offset) - 20, 1).expect("there");
    let (journal, report, _) = recover(&disk, 11).expect("goes on");
    assert_eq!(report.corrupt[0].lost, Some((Seq(10), Seq(11))));
    assert_eq!(journal.next_seq(), Seq(12), "no sequence that a checkpoint covers is given twice");
}

pub(super) fn told(report: &Recovery) -> Vec<u64> {
    report.corrupt.iter().filter_map(|damage| damage.lost).flat_map(|(a, b)| a.0..=b.0).collect()
}

#[test]
fn a_flipped_bit_in_the_last_group_is_damage_if_something_knows_that_it_was_durable() {
    // The last group at the end of a segment with others, and alone in its segment: there its damaged header, or that of the segment, is all there is.
    for groups in 4..30 {
        let (disk, places) = filled(groups);
        let head = groups * 3;
        let last = places[places.len() - 3];
        let end = places[places.len() - 1].offset + 17;
        let alone = last.offset == 2 * HEADER;
        let from = if alone { 0 } else { last.offset - HEADER };
        for offset in (from..end).step_by(if alone { 1 } else { 7 }) {
            let disk = disk.fork();
            disk.flip(&name(last), u64::from(offset), 1 << (offset % 8)).expect("there");
            let mut again = Vec::new();
            for start in 0..3 {
                let (mut journal, report, found) = recover_durable(&disk, (0, head)).expect("goes on");
                let missing: Vec<u64> = (1..=head).filter(|seq| !found.contains(seq)).collect();
                assert_eq!(missing, told(&report), "{groups} groups, offset {offset}, start {start}");
                assert!(missing.len() <= 3 && report.torn_bytes == 0, "offset {offset}: {missing:?}");
                assert_eq!(
                    journal.next_seq(),
                    Seq(head + 1 + again.len() as u64),
                    "no sequence is given twice"
                );
                if start > 0 {
                    journal.stage(1, &payload(journal.next_seq().0)).expect("fits");
                    again.push(journal.commit(9).expect("works").0);
                }
            }
            let (_, report, found) = recover(&disk, 0).expect("goes on without being told, too");
            assert_eq!((&found[found.len() - 2..], told(&report).len() <= 3), (&again[..], true));
        }
    }
}

#[test]
fn a_journal_that_is_older_than_what_knows_of_it_is_a_clear_error_and_nothing_is_touched() {
    let (disk, places) = filled(4);
    for durable in [13, 1_000] {
        let before = disk.operations();
        let error = recover_durable(&disk, (0, durable)).expect_err("it ends at 12");
        assert!(matches!(error, JournalError::Short { head: Seq(12), durable: Seq(_) }), "{error}");
        assert_eq!(disk.operations(), before);
    }
    // A copy that was made while its last group was written: what was durable since has no room there.
    disk.flip(&name(places[9]), u64::from(places[9].offset) - 20, 1).expect("there");
    let before = disk.operations();
    let error = recover_durable(&disk, (0, 1_000)).expect_err("it ends at 9");
    assert!(matches!(error, JournalError::Short { head: Seq(9), .. }), "{error}");
    assert_eq!(disk.operations(), before);
}

#[test]
fn readers_report_or_pass_over_damage() {
    let (disk, places) = filled(4);
    let (journal, ..) = recover(&disk, 0).expect("recovers");
    disk.flip(&name(places[4]), u64::from(places[4].offset) + 20, 1).expect("there");
    let reader = journal.reader();
    assert!(matches!(reader.read(places[4]), Err(ReadError::Damaged(place)) if place == places[4]));
    let nowhere = Place { segment: 1, offset: places[4].offset + 1 };
    assert!(matches!(reader.read(nowhere), Err(ReadError::Damaged(_))));
    assert!(matches!(reader.read(Place { segment: 99, offset: 80 }), Err(ReadError::Gone)));
    // However often it is passed, it is one damaged place; who begins behind it passes none.
    for (after, damaged) in [(5, 0), (0, 1), (0, 1), (2, 1), (4, 1)] {
        let mut found = Vec::new();
        let scanned = reader.scan(Seq(after), &mut None, &mut |record| {
            found.push(record.seq.0);
            std::ops::ControlFlow::Continue(())
        });
        scanned.expect("goes on");
        let expected: Vec<u64> = (after + 1..=12).filter(|&seq| seq != 5).collect();
        assert_eq!((found, reader.damaged()), (expected, damaged), "after {after}");
    }
    assert_eq!([reader.unreported(), reader.unreported()], [1, 0], "each is told once");
    // What the start has said is not said again.
    let (journal, report, _) = recover(&disk, 0).expect("goes on");
    let reader = journal.reader();
    reader.scan(Seq(0), &mut None, &mut |_| std::ops::ControlFlow::Continue(())).expect("goes on");
    assert_eq!((report.corrupt.len(), reader.damaged()), (1, 0));
}

#[test]
fn bytes_in_a_payload_never_pass_for_a_group() {
    let (disk, _) = filled(2);
    let group = disk.content(FIRST).expect("there")[HEADER as usize..200].to_vec();
    let (mut journal, ..) = recover(&disk, 0).expect("recovers");
    let mut found = 0;
    // A copy of a real group inside a record, at every alignment, and the record's own group header is destroyed.
    for shift in 0..8 {
        let bait = [&vec![0; shift][..], &group].concat();
        let place = journal.stage(2, &bait).expect("fits").1;
        journal.commit(5).expect("works");
        journal.stage(2, b"behind").expect("fits");
        journal.commit(5).expect("works");
        disk.flip(&name(place), u64::from(place.offset) - 8, 1).expect("there");
        let _recovered =
            Journal::recover(Arc::new(disk.fork()), options(), (Seq(0), Seq(0)), &mut |record| {
                found += usize::from(record.kind == 1);
            })
            .expect("goes on");
    }
    assert_eq!(found, 8 * 6, "only the six real ones, each time");
}

#[test]
fn a_missing_segment_is_a_clear_error_and_nothing_is_touched() {
    let (disk, _) = filled(40);
    disk.remove("journal-0000000002.seg").expect("there");
    let before = disk.operations();
    let error = recover(&disk, 0).expect_err("incomplete");
    assert!(matches!(error, JournalError::Missing { from: Seq(1), segment: 2, .. }), "{error}");
    assert_eq!(disk.operations(), before);

    let empty = SimDisk::new();
    assert!(matches!(recover(&empty, 5), Err(JournalError::NoSegments(Seq(5)))));
    assert_eq!(empty.operations(), 0);
}

#[test]
fn leftovers_of_removals_are_removed_again() {
    let (disk, places) = filled(40);
    disk.remove("journal-0000000002.seg").expect("there");
    let third = places.iter().position(|place| place.segment == 3).expect("several segments");
    let (journal, report, _) = recover(&disk, third as u64).expect("nothing needed is missing");
    assert_eq!((journal.segments()[0].id, report.corrupt.len()), (3, 0));
    assert!(!disk.list().expect("works").contains(&FIRST.to_owned()));
}

#[test]
fn newer_and_foreign_segments_are_clear_errors_and_nothing_is_touched() {
    let (disk, _) = filled(4);
    let foreign = JournalOptions { salt: 43, ..options() };
    let before = disk.operations();
    let error = Journal::recover(Arc::new(disk.clone()), foreign, (Seq(0), Seq(0)), &mut |_| {})
        .expect_err("foreign");
    assert!(matches!(error, JournalError::Foreign { segment: 1 }), "{error}");
    assert_eq!(disk.operations(), before);

    let mut header = disk.content(FIRST).expect("there")[..HEADER as usize].to_vec();
    header[8] = 2;
    let crc = crc32c::crc32c(&header[..36]);
    header[36..].copy_from_slice(&crc.to_le_bytes());
    disk.open(FIRST).expect("there").write_at(&header, 0).expect("works");
    let before = disk.operations();
    let error = recover(&disk, 0).expect_err("newer");
    assert!(matches!(error, JournalError::Newer { segment: 1, version: 2 }), "{error}");
    assert_eq!(disk.operations(), before);
}

fn checkpoint(disk: &SimDisk, covers: u64, slices: usize, bytes: usize) {
    let mut writer = CheckpointWriter::begin(Arc::new(disk.clone())).expect("works");
    for slice in 0..slices {
        writer.slice(&vec![slice as u8; bytes]).expect("works");
    }
    let finished = writer.finish(Seq(covers)).expect("works");
    assert_eq!(finished.covers, Seq(covers));
}

fn newest(disk: &SimDisk) -> Option<CheckpointReader<SimDisk>> {
    CheckpointReader::newest(Arc::new(disk.clone())).expect("readable")
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_older_one() {
    let disk = SimDisk::new();
    let covers = |disk: &SimDisk| oldest_kept_covers(&Arc::new(disk.clone())).expect("readable");
    assert!(newest(&disk).is_none());
    for (number, oldest) in [(1, 0), (2, 10), (3, 20)] {
        checkpoint(&disk, number * 10, 5, 100);
        assert_eq!(covers(&disk), Seq(oldest));
    }
    assert_eq!(disk.list().expect("works").len(), 2, "two are kept");
    let length = disk.content("checkpoint-0000000003.ckpt").expect("there").len() as u64;
    for offset in (0..length).filter(|offset| !(16..20).contains(offset)) {
        let disk = disk.fork();
        disk.flip("checkpoint-0000000003.ckpt", offset, 16).expect("there");
        if (8..12).contains(&offset) {
            assert!(newest(&disk).is_some(), "a flipped version is damage, not a newer format");
        }
        let reader = newest(&disk).expect("the older one");
        assert_eq!((reader.covers(), reader.slices()), (Seq(20), 5), "offset {offset}");
        assert_eq!(covers(&disk), Seq(0), "the damaged one is none of two");
        checkpoint(&disk, 40, 1, 1);
        assert_eq!(covers(&disk), Seq(20), "the whole one is kept");
    }
}

#[test]
fn where_one_of_two_checkpoints_has_to_go_it_is_the_damaged_one() {
    for is_damaged in [false, true] {
        let disk = Arc::new(SimDisk::new());
        for number in 1..=3 {
            checkpoint(&disk, number * 10, 5, 100);
        }
        if is_damaged {
            disk.flip("checkpoint-0000000003.ckpt", 60, 16).expect("there");
        }
        assert!(remove_one(disk.clone()).expect("the disk works"));
        let kept = CheckpointReader::newest(disk.clone()).expect("the disk works").expect("one");
        assert_eq!(kept.covers(), Seq(if is_damaged { 20 } else { 30 }));
        assert!(!remove_one(disk.clone()).expect("the disk works"), "the last one stays");
        assert_eq!(disk.list().expect("works").len(), 1);
    }
}

/// The journal doesn't go back as far as that one.
#[test]
fn a_checkpoint_that_came_back_is_none_of_two() {
    let disk = Arc::new(SimDisk::new());
    checkpoint(&disk, 10, 5, 100);
    checkpoint(&disk, 20, 5, 100);
    let before = disk.fork();
    checkpoint(&disk, 30, 5, 100);
    let file = disk.create("checkpoint-0000000001.ckpt", 0).expect("works");
    file.write_at(&before.content("checkpoint-0000000001.ckpt").expect("there"), 0).expect("works");
    assert_eq!(oldest_kept_covers(&disk).expect("readable"), Seq(20));
    assert!(remove_one(disk.clone()).expect("the disk works"));
    assert_eq!(disk.list().expect("works"), ["checkpoint-0000000003.ckpt"]);
}

#[test]
fn a_long_checkpoint_is_synced_piecewise_and_reads_back() {
    let disk = SimDisk::new();
    checkpoint(&disk, 7, 40, 300_000);
    assert!(disk.syncs(SyncPoint::CheckpointContent) >= 3);
    let mut reader = newest(&disk).expect("finished");
    for slice in 0..40 {
        let bytes = reader.next_slice().expect("whole").expect("there");
        assert_eq!((bytes.len(), bytes[0], bytes[299_999]), (300_000, slice, slice));
    }
    assert!(reader.next_slice().expect("whole").is_none());
}

#[test]
fn a_checkpoint_of_a_newer_version_is_a_clear_error_and_stays() {
    let disk = SimDisk::new();
    // Sequences of more than four bytes.
    checkpoint(&disk, 5_000_000_000, 1, 100);
    assert_eq!(newest(&disk).expect("whole").covers(), Seq(5_000_000_000));
    checkpoint(&disk, 6_000_000_000, 1, 100);
    assert_eq!(oldest_kept_covers(&Arc::new(disk.clone())).expect("readable"), Seq(5_000_000_000));
    let name = "checkpoint-0000000002.ckpt";
    let header = |version: u8| {
        let mut header = disk.content(name).expect("there")[..24].to_vec();
        header[8] = version;
        let crc = crc32c::crc32c(&header[..20]);
        header[20..].copy_from_slice(&crc.to_le_bytes());
        disk.open(name).expect("there").write_at(&header, 0).expect("works");
    };
    header(2);
    let error = CheckpointReader::newest(Arc::new(disk.clone())).expect_err("newer");
    assert!(matches!(&error, CheckpointError::Newer { version: 2, .. }), "{error}");
    assert!(disk.list().expect("works").contains(&name.to_owned()));
    header(0);
    assert!(newest(&disk).is_some(), "an older one is read");
    // Damaged, it is named, and gone.
    disk.flip(name, 30, 1).expect("there");
    let reader = newest(&disk).expect("the older one");
    assert_eq!(reader.damaged(), [name.to_owned()]);
    assert!(!disk.list().expect("works").contains(&name.to_owned()));
    // Nothing of a file that was cut counts.
    for length in [0_u64, 3, 23, 24, 60] {
        let disk = disk.fork();
        disk.open("checkpoint-0000000001.ckpt").and_then(|file| file.set_len(length)).expect("works");
        assert!(newest(&disk).is_none(), "{length} bytes");
    }
}
