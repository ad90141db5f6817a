//! What the library may rely on: what it reads is what it wrote, or the read is an error.

use super::*;
use crate::store::disk::Disk;
use crate::store::disk::sim::{Loss, SimDisk};
use rand::SeedableRng;
use rand::rngs::SmallRng;

type File = <SimDisk as Disk>::File;

/// The library's pages are blocks.
const PAGE: usize = BLOCK as usize;

fn made() -> SimDisk {
    let disk = SimDisk::new();
    disk.create("file", 0).expect("new");
    disk.sync_dir(SyncPoint::TablesEntry).expect("durable");
    disk
}

fn opened(disk: &SimDisk) -> CheckedFile<File> {
    CheckedFile::open(disk.open("file").expect("there"), false).expect("whole")
}

fn in_memory(disk: &SimDisk) -> CheckedFile<File> {
    CheckedFile::open(disk.open("file").expect("there"), true).expect("whole")
}

/// A file of so many pages behind the first, each full of its number, and a header of `header`s. All of it is durable.
fn written(disk: &SimDisk, pages: u64, header: u8) -> CheckedFile<File> {
    let file = opened(disk);
    file.set_len((1 + pages) * BLOCK).expect("grown");
    file.write(0, &[header; 320]).expect("written");
    let all: Vec<u8> = (1..=pages).flat_map(|page| vec![page as u8; PAGE]).collect();
    file.write(BLOCK, &all).expect("written");
    file.sync_data().expect("durable");
    file
}

fn page(file: &CheckedFile<File>, page: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; PAGE];
    file.read(page * BLOCK, &mut bytes).map(|()| bytes)
}

fn header(file: &CheckedFile<File>) -> [u8; 320] {
    let mut bytes = [0; 320];
    file.read(0, &mut bytes).expect("in memory");
    bytes
}

fn is_damaged<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.expect_err("it isn't what was written").kind(), io::ErrorKind::InvalidData);
}

fn flip(disk: &SimDisk, offset: u64) {
    disk.flip("file", offset, 0x10).expect("there");
}

#[test]
fn a_head_that_outlived_the_growth_of_its_file_gives_way_to_the_durable_one() {
    let disk = made();
    drop(written(&disk, 2, 1));
    // The power goes while it grows: the head reached the disk, and what makes the file longer did not.
    let file = || disk.open("file").expect("there");
    let (head, place) = newest_head(&file()).expect("there");
    let grown = Head { generation: head.generation + 1, length: 100 * BLOCK, ..head };
    file().write_at(&grown.encode(), (1 - place) * BLOCK).expect("written");
    let again = opened(&disk);
    assert_eq!(again.len().expect("known"), 3 * BLOCK);
    assert_eq!(page(&again, 1).expect("readable"), [1; PAGE]);
}

#[test]
fn pages_of_several_groups_come_back_from_wherever_they_were_written() {
    let disk = made();
    let pages = 2 * GROUP + 3;
    let file = written(&disk, pages, 9);
    // Over the border of two groups, in one piece.
    let both: Vec<u8> = [[0xaa; PAGE], [0xbb; PAGE]].concat();
    file.write(GROUP * BLOCK, &both).expect("written");
    file.sync_data().expect("durable");
    let right = |at: u64| match at {
        GROUP => 0xaa,
        _ if at == GROUP + 1 => 0xbb,
        _ => at as u8,
    };
    drop(file);
    disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
    let file = opened(&disk);
    assert_eq!((file.len().expect("known"), header(&file)), ((1 + pages) * BLOCK, [9; 320]));
    for at in 1..=pages {
        assert_eq!(page(&file, at).expect("readable"), [right(at); PAGE], "page {at}");
    }
    let mut several = vec![0; 3 * PAGE];
    file.read((GROUP - 1) * BLOCK, &mut several).expect("readable");
    assert_eq!(several, [vec![right(GROUP - 1); PAGE], both].concat());
}

#[test]
fn a_page_that_a_disk_altered_or_put_elsewhere_is_an_error_and_the_others_stay() {
    let disk = made();
    drop(written(&disk, 5, 1));
    flip(&disk, block_at(2) + 77);
    // Page 5 where page 4 should be: a checksum of the bytes alone would not know.
    let file = disk.open("file").expect("there");
    let mut last = [0; PAGE];
    file.read_at(&mut last, block_at(4)).expect("readable");
    file.write_at(&last, block_at(3)).expect("written");
    let mut sum = [0; 4];
    file.read_at(&mut sum, sums_at(0) + 4 * 4).expect("readable");
    file.write_at(&sum, sums_at(0) + 3 * 4).expect("written");
    let checked = opened(&disk);
    for at in [1, 2, 5] {
        assert_eq!(page(&checked, at).expect("readable"), [at as u8; PAGE]);
    }
    is_damaged(page(&checked, 3));
    is_damaged(page(&checked, 4));
}

#[test]
fn a_page_that_was_never_written_is_zeros_or_damaged() {
    let disk = made();
    let file = written(&disk, 2, 1);
    file.set_len(6 * BLOCK).expect("grown");
    drop(file);
    flip(&disk, block_at(4));
    let file = opened(&disk);
    assert_eq!(page(&file, 3).expect("readable"), [0; PAGE]);
    assert_eq!(page(&file, 4).expect("readable"), [0; PAGE]);
    is_damaged(page(&file, 5));
}

#[test]
fn what_was_cut_off_is_zeros_when_it_comes_back() {
    for (long, short) in [(5, 2), (GROUP + 4, 2), (GROUP + 4, GROUP), (GROUP + 4, GROUP + 1), (3, 0)] {
        let disk = made();
        let mut file = written(&disk, long, 1);
        let before = disk.open("file").expect("there").len().expect("known");
        file.set_len((1 + short) * BLOCK).expect("cut");
        let after = disk.open("file").expect("there").len().expect("known");
        assert!(after < before, "{long} to {short} pages give their room back: {before}, {after}");
        for again in [false, true] {
            if again {
                drop(file);
                disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
                file = opened(&disk);
            }
            file.set_len((1 + long) * BLOCK).expect("grown");
            for at in 1..=long {
                let right = if at <= short { at as u8 } else { 0 };
                assert_eq!(page(&file, at).expect("readable"), [right; PAGE], "{long} to {short}: page {at}");
            }
        }
    }
}

#[test]
fn a_file_that_is_too_short_is_damaged_and_a_longer_one_is_not() {
    let disk = made();
    drop(written(&disk, 3, 1));
    let file = disk.open("file").expect("there");
    let whole = file.len().expect("known");
    // The process died after it wrote a shorter length and before it cut the file.
    file.set_len(whole + 5 * BLOCK).expect("longer");
    assert_eq!(page(&opened(&disk), 3).expect("readable"), [3; PAGE]);
    file.set_len(whole).expect("as it was");
    assert_eq!(page(&opened(&disk), 3).expect("readable"), [3; PAGE]);
    file.set_len(whole - 1).expect("cut");
    is_damaged(CheckedFile::open(disk.open("file").expect("there"), false));
}

#[test]
fn one_of_the_two_heads_is_enough_and_the_newest_counts() {
    for lost in 0..2 {
        let disk = made();
        let file = written(&disk, 1, 1);
        for newer in 2..5 {
            file.write(0, &[newer; 320]).expect("written");
            file.sync_data().expect("durable");
        }
        drop(file);
        // In quiet times both say the same: also after a start, which may find one of them torn.
        flip(&disk, lost * BLOCK + 40);
        assert_eq!(header(&opened(&disk)), [4; 320], "head {lost} is lost");
        flip(&disk, (1 - lost) * BLOCK + 40);
        assert_eq!(header(&opened(&disk)), [4; 320], "the start made the other one whole again");
        flip(&disk, 40);
        flip(&disk, BLOCK + 40);
        is_damaged(CheckedFile::open(disk.open("file").expect("there"), false));
    }
}

#[test]
fn a_head_that_is_torn_while_it_is_written_leaves_the_one_before() {
    let disk = made();
    let file = written(&disk, 1, 1);
    for newer in 2..6 {
        let heads = || disk.content("file").expect("there")[..2 * PAGE].to_vec();
        let before = heads();
        file.write(0, &[newer; 320]).expect("written");
        let changed: Vec<usize> = heads()
            .chunks(PAGE)
            .zip(before.chunks(PAGE))
            .map(|(now, then)| usize::from(now != then))
            .collect();
        let place = changed.iter().position(|&changed| changed == 1).expect("it is written");
        assert_eq!(changed.iter().sum::<usize>(), 1, "the other one is the durable one");
        let torn = disk.fork();
        flip(&torn, place as u64 * BLOCK + 40);
        assert_eq!(header(&opened(&torn)), [newer - 1; 320]);
        file.sync_data().expect("durable");
    }
}

#[test]
fn a_header_counts_from_the_write_on_and_is_durable_with_the_sync() {
    let disk = made();
    let file = written(&disk, 1, 1);
    file.write(0, &[2; 320]).expect("written");
    assert_eq!(header(&file), [2; 320]);
    file.write(0, &[3; 64]).expect("a part of it is written");
    assert_eq!((header(&file)[..64].to_vec(), header(&file)[64]), (vec![3; 64], 2));
    drop(file);
    disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
    let file = opened(&disk);
    assert_eq!(header(&file), [1; 320], "nobody synced it");
    file.write(0, &[2; 320]).expect("written");
    file.sync_data().expect("durable");
    drop(file);
    disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
    assert_eq!(header(&opened(&disk)), [2; 320]);
}

#[test]
fn in_memory_nothing_reaches_the_disk_and_all_else_is_the_same() {
    let disk = made();
    drop(written(&disk, 4, 1));
    flip(&disk, block_at(3));
    let before = disk.content("file").expect("there");
    let file = in_memory(&disk);
    file.write(0, &[2; 320]).expect("taken");
    file.write(2 * BLOCK, &[0x22; PAGE]).expect("taken");
    file.set_len(8 * BLOCK).expect("grown");
    file.write(6 * BLOCK, &[0x66; PAGE]).expect("taken");
    file.sync_data().expect("nothing to do");
    let pages = |file: &CheckedFile<File>, all: &[(u64, u8)]| {
        for (at, right) in all {
            assert_eq!(page(file, *at).expect("readable"), [*right; PAGE], "page {at}");
        }
    };
    pages(&file, &[(1, 1), (2, 0x22), (3, 3), (5, 0), (6, 0x66), (7, 0)]);
    is_damaged(page(&file, 4));
    assert_eq!((file.len().expect("known"), header(&file)), (8 * BLOCK, [2; 320]));
    file.set_len(2 * BLOCK).expect("cut");
    file.set_len(8 * BLOCK).expect("grown");
    pages(&file, &[(1, 1), (2, 0), (3, 0), (4, 0), (6, 0)]);
    assert_eq!(disk.content("file").expect("there"), before);
}

#[test]
fn only_whole_pages_are_read_and_written() {
    let disk = made();
    let file = written(&disk, 3, 1);
    for (offset, length) in [(BLOCK, 100), (BLOCK + 100, PAGE), (100, PAGE), (0, PAGE), (100, 100)] {
        let mut bytes = vec![0; length];
        let read = file.read(offset, &mut bytes).expect_err("no page");
        let wrote = file.write(offset, &bytes).expect_err("no page");
        assert_eq!([read.kind(), wrote.kind()], [io::ErrorKind::InvalidInput; 2], "{length} at {offset}");
    }
    // The header has as many bytes as the heads keep.
    file.write(0, &[7; START]).expect("written");
    let mut bytes = [0; START];
    file.read(0, &mut bytes).expect("there");
    assert_eq!(bytes, [7; START]);
}
