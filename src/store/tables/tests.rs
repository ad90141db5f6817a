use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::store::disk::crash::{CrashTest, everywhere};
use crate::store::disk::real::RealDisk;
use crate::store::disk::sim::{Loss, SimDisk};
use crate::store::disk::{DiskFile, SyncPoint};

const KINDS: [TableKind; 2] = [TableKind::Library, TableKind::Log];
const CACHE: usize = 1024 * 1024;

fn row(table: Table, key: u32, row: Option<&[u8]>) -> ((Table, Vec<u8>), Option<Vec<u8>>) {
    ((table, key.to_be_bytes().to_vec()), row.map(<[u8]>::to_vec))
}

/// Keys and rows.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn rows(tables: &dyn Tables, table: Table) -> Rows {
    let mut rows = Vec::new();
    tables.scan(table, &mut |key, row| rows.push((key.to_vec(), row.to_vec()))).expect("readable");
    rows
}

fn does_everything<D: Disk>(disk: &Arc<D>, kind: TableKind) {
    let tables = open(disk, kind, CACHE).expect("opens");
    assert_eq!((tables.applied(), tables.get(Table::Days, b"x").expect("readable")), (Seq(0), None));
    assert!(rows(&*tables, Table::Devices).is_empty());
    let writes = [
        row(Table::Devices, 2, Some(b"two")),
        row(Table::Devices, 1, Some(b"one")),
        row(Table::Messages, 1, Some(&vec![7; 100_000])),
    ];
    tables.apply(&Writes::from(writes), Seq(5)).expect("written");
    let changes = [row(Table::Devices, 1, None), row(Table::Devices, 3, Some(b""))];
    tables.apply(&Writes::from(changes), Seq(9)).expect("written");
    drop(tables);
    let tables = open(disk, kind, CACHE).expect("opens again");
    assert_eq!(tables.applied(), Seq(9));
    let two = (2u32.to_be_bytes().to_vec(), b"two".to_vec());
    assert_eq!(rows(&*tables, Table::Devices), [two, (3u32.to_be_bytes().to_vec(), Vec::new())]);
    let long = tables.get(Table::Messages, &1u32.to_be_bytes()).expect("readable");
    assert_eq!(long.as_deref(), Some(vec![7; 100_000].as_slice()));
}

#[test]
fn rows_come_back_in_order_from_every_kind() {
    for kind in KINDS {
        does_everything(&Arc::new(SimDisk::new()), kind);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (disk, _) = RealDisk::open(directory.path(), None).expect("opens");
    does_everything(&disk, TableKind::Library);
}

/// Transactions each change the same rows to their number: what is found must be all of one of them.
#[derive(Debug)]
struct Prefix {
    kind: TableKind,
    transactions: u64,
}

const KEYS: u32 = 12;

impl Prefix {
    fn transaction(number: u64) -> Writes {
        let long = vec![number as u8; 3_000];
        (0..KEYS).map(|key| row(Table::Messages, key * 7, Some(&long))).collect()
    }
}

impl CrashTest for Prefix {
    type Promised = u64;

    fn run(&self, disk: &SimDisk) -> u64 {
        let Ok(tables) = open(&Arc::new(disk.clone()), self.kind, CACHE) else { return 0 };
        let done = |number: &u64| tables.apply(&Self::transaction(*number), Seq(*number)).is_ok();
        (1..=self.transactions).take_while(done).last().unwrap_or(0)
    }

    fn open(&self, disk: &SimDisk) {
        drop(open(&Arc::new(disk.clone()), self.kind, CACHE));
    }

    fn check(&self, disk: &SimDisk, promised: &u64, _: &mut SmallRng) -> Result<(), String> {
        let tables = open(&Arc::new(disk.clone()), self.kind, CACHE).map_err(|error| error.to_string())?;
        let applied = tables.applied().0;
        if applied < *promised || applied > promised + 1 {
            return Err(format!("{promised} transactions were durable, {applied} are there"));
        }
        let found: Vec<u8> = rows(&*tables, Table::Messages).iter().map(|(_, row)| row[0]).collect();
        let right = if applied == 0 { Vec::new() } else { vec![applied as u8; KEYS as usize] };
        if found != right {
            return Err(format!("{applied} transactions are there, and these rows: {found:?}"));
        }
        let next = Self::transaction(applied + 1);
        tables.apply(&next, Seq(applied + 1)).map_err(|error| format!("it doesn't go on: {error}"))
    }
}

#[test]
fn a_crash_keeps_a_prefix_of_the_transactions() {
    for kind in KINDS {
        let boundaries = everywhere(1, &SimDisk::new(), &Prefix { kind, transactions: 4 });
        let boundaries = boundaries.unwrap_or_else(|violation| panic!("{kind:?}: {violation}"));
        println!("{kind:?}: {boundaries} boundaries");
    }
}

#[test]
fn leaving_out_a_sync_is_found() {
    for (kind, point) in [
        (TableKind::Library, SyncPoint::TablesContent),
        (TableKind::Log, SyncPoint::TablesContent),
        (TableKind::Log, SyncPoint::TablesEntry),
    ] {
        let disk = SimDisk::new();
        disk.skip(point);
        let test = Prefix { kind, transactions: 3 };
        // The library meets pages that it never wrote with a violation or a panic: found either way.
        let found = std::panic::catch_unwind(|| everywhere(2, &disk, &test).err().map(|found| found.what));
        assert!(!matches!(found, Ok(None)), "{kind:?}, {point:?}: a lost sync breaks the promise");
    }
}

#[test]
fn a_full_disk_changes_nothing_and_it_goes_on_when_there_is_room() {
    for kind in KINDS {
        let disk = Arc::new(SimDisk::new());
        let tables = open(&disk, kind, CACHE).expect("opens");
        tables.apply(&Writes::from([row(Table::Days, 1, Some(b"old"))]), Seq(1)).expect("room");
        disk.set_capacity(Some(disk.used() + 1_000));
        let long = vec![7; 4 * 1024 * 1024];
        let writes = Writes::from([row(Table::Days, 1, Some(&long))]);
        let full = tables.apply(&writes, Seq(2));
        assert!(matches!(full, Err(TablesError::Full)), "{kind:?}: {full:?}");
        assert_eq!(rows(&*tables, Table::Days)[0].1, b"old");
        assert_eq!(tables.applied(), Seq(1));
        disk.set_capacity(None);
        tables.apply(&writes, Seq(2)).expect("room again");
        drop(tables);
        disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
        let tables = open(&disk, kind, CACHE).expect("opens");
        assert_eq!((tables.applied(), rows(&*tables, Table::Days)[0].1.len()), (Seq(2), long.len()));
    }
}

#[test]
fn a_writer_tells_when_it_is_done_and_gives_a_job_back_that_found_no_space() {
    let disk = Arc::new(SimDisk::new());
    let tables = open(&disk, TableKind::Log, CACHE).expect("opens");
    let mut writer = Writer::new(tables.clone());
    assert!(writer.done(false).is_none());
    for threaded in [false, true] {
        let thread = threaded.then(|| writer.start_thread(|| ()).expect("a thread"));
        let first = tables.applied().0 + 1;
        writer.begin(Job { writes: Writes::new(), applied: Seq(first) });
        assert!(writer.is_busy());
        assert!(matches!(writer.done(true), Some(Ok(Ok(applied))) if applied == Seq(first)));
        disk.set_capacity(Some(disk.used()));
        writer.begin(Job { writes: Writes::new(), applied: Seq(first + 1) });
        assert!(matches!(writer.done(true), Some(Ok(Err(job))) if job.applied == Seq(first + 1)));
        disk.set_capacity(None);
        assert!(!writer.is_busy() && tables.applied() == Seq(first));
        if let Some(thread) = thread {
            drop(writer);
            thread.join().expect("it ends");
            return;
        }
    }
}

#[test]
fn a_disk_that_has_no_space_even_to_open_the_file_again_is_waited_for() {
    let disk = Arc::new(SimDisk::new());
    let tables = open(&disk, TableKind::Library, CACHE).expect("opens");
    tables.apply(&Writes::from([row(Table::Days, 1, Some(b"old"))]), Seq(1)).expect("room");
    disk.set_copies(true);
    disk.set_capacity(Some(disk.used()));
    let writes = Writes::from([row(Table::Days, 1, Some(b"new"))]);
    for _ in 0..3 {
        let full = tables.apply(&writes, Seq(2));
        assert!(matches!(full, Err(TablesError::Full)), "{full:?}");
        assert_eq!((rows(&*tables, Table::Days)[0].1.as_slice(), tables.applied()), (&b"old"[..], Seq(1)));
    }
    disk.set_capacity(None);
    tables.apply(&writes, Seq(2)).expect("room again");
    drop(tables);
    disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
    let tables = open(&disk, TableKind::Library, CACHE).expect("opens");
    assert_eq!((rows(&*tables, Table::Days)[0].1.as_slice(), tables.applied()), (&b"new"[..], Seq(2)));
}

#[test]
fn rows_under_keys_that_grow_fill_their_pages() {
    const ROWS: u32 = 150_000;
    let disk = Arc::new(SimDisk::new());
    let tables = open(&disk, TableKind::Library, CACHE).expect("opens");
    let row_bytes = vec![7; 310];
    for first in (0..ROWS).step_by(10_000) {
        let writes = (first..first + 10_000)
            .map(|n| ((Table::Devices, n.to_be_bytes().to_vec()), Some(row_bytes.clone())))
            .collect();
        tables.apply(&writes, Seq(u64::from(first) + 1)).expect("room");
    }
    let file = disk.open(FILE).expect("there").len().expect("readable");
    // The file grows to a power of two: with pages that are half empty to the next one.
    let bytes = u64::from(ROWS) * row_bytes.len() as u64;
    assert!(file < bytes * 3 / 2, "{file} bytes for {bytes} bytes of rows");
}

/// Rows of all sizes, some changed and some gone, over several groups of blocks; and what should be there.
fn grown(disk: &Arc<SimDisk>) -> Rows {
    let tables = open(disk, TableKind::Library, CACHE).expect("opens");
    let mut rng = SmallRng::seed_from_u64(9);
    for transaction in 1..=12u64 {
        let change = |rng: &mut SmallRng| {
            let long = vec![transaction as u8; rng.random_range(1..1_500)];
            let gone = rng.random_bool(0.1);
            row(Table::Messages, rng.random_range(0..6_000), (!gone).then_some(long.as_slice()))
        };
        let writes: Writes = (0..600).map(|_| change(&mut rng)).collect();
        tables.apply(&writes, Seq(transaction)).expect("written");
    }
    rows(&*tables, Table::Messages)
}

/// What is in a file that was altered, or the error that names it. It never panics.
fn look(disk: &Arc<SimDisk>) -> Result<(Seq, Rows), TablesError> {
    let tables = open(disk, TableKind::Library, CACHE)?;
    let mut rows = Vec::new();
    tables.scan(Table::Messages, &mut |key, row| rows.push((key.to_vec(), row.to_vec())))?;
    let applied = tables.applied();
    // And it goes on, or says so.
    tables.apply(&Writes::from([row(Table::Messages, 7_000, Some(b"more"))]), Seq(applied.0 + 1))?;
    Ok((applied, rows))
}

#[test]
fn a_file_altered_anywhere_is_read_as_it_was_written_or_an_error() {
    let disk = Arc::new(SimDisk::new());
    let right = grown(&disk);
    disk.crash_with(Loss::Nothing, &mut SmallRng::seed_from_u64(1));
    let length = disk.content(FILE).expect("there").len() as u64;
    assert!(length > 5 * 1024 * 1024, "more than one group: {length}");
    let (mut found, mut whole) = (0, 0);
    for seed in 0..400 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Arc::new(disk.fork());
        // The heads, the first sums, and anywhere: a bit, or many.
        let ends = [64, 8_192, 16 * 1024, 256 * 1024, length];
        let end = ends[seed as usize % ends.len()].min(length);
        let flips = if seed % 3 == 0 { 64 } else { 1 };
        for _ in 0..flips {
            disk.flip(FILE, rng.random_range(0..end), 1 << rng.random_range(0..8)).expect("there");
        }
        match look(&disk) {
            Ok((applied, rows)) => {
                assert!(applied == Seq(12) && rows == right, "seed {seed}: other rows, as of {applied}");
                whole += 1;
            }
            Err(TablesError::Damaged { what }) => {
                assert!(!what.is_empty());
                found += 1;
            }
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    println!("{found} were errors, {whole} harmless");
    assert!(found > 50 && whole > 10);
}

#[test]
fn a_file_that_was_cut_or_is_another_is_an_error() {
    let disk = Arc::new(SimDisk::new());
    let _right = grown(&disk);
    let length = disk.content(FILE).expect("there").len() as u64;
    for cut in [1, 100, 4_096, 8_192, 9_000, 100_000, length / 2, length - 1] {
        let disk = Arc::new(disk.fork());
        disk.open(FILE).expect("there").set_len(cut).expect("cut");
        assert!(matches!(look(&disk), Err(TablesError::Damaged { .. })), "{cut}");
    }
    // A file of the library without heads, as older formats had it, and one of nothing but noise.
    for noise in [b"redb\x1A\x0A\xA9\x0D\x0A".as_slice(), &[7; 100]] {
        let disk = Arc::new(disk.fork());
        let mut bytes = noise.to_vec();
        bytes.resize(100_000, 1);
        disk.open(FILE).expect("there").write_at(&bytes, 0).expect("works");
        let error = look(&disk).expect_err("none of ours");
        assert!(error.to_string().contains("move the file away"), "{error}");
    }
}

#[test]
fn one_head_is_enough() {
    let disk = Arc::new(SimDisk::new());
    let right = grown(&disk);
    disk.crash_with(Loss::Nothing, &mut SmallRng::seed_from_u64(1));
    for place in [0, 4_096] {
        let disk = Arc::new(disk.fork());
        disk.flip(FILE, place + 100, 1).expect("there");
        let (applied, rows) = look(&disk).expect("the other one is there");
        assert!(applied == Seq(12) && rows == right);
    }
}
