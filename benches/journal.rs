//! What a commit costs beside the least that it could: the same bytes written and synced without a journal, on the same file system.
//!
//! `cargo bench --bench journal` ends with the ratios, measured in turns, as a disk's speed varies.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group};
use mooring::clock::Clock;
use mooring::ids::Seq;
use mooring::store::disk::real::{RealDisk, RealFile};
use mooring::store::disk::{Disk, DiskFile, SyncPoint};
use mooring::store::journal::{GROUP_OVERHEAD, Journal, JournalOptions, RECORD_OVERHEAD};

/// Bytes of a record: an outcome.
const PAYLOAD: usize = 100;
/// Records in a commit.
const GROUPS: [usize; 2] = [1, 1_000];
/// Turns of the comparison.
const TURNS: u64 = 300;

/// A journal that forgets its old segments.
struct Log(Journal<RealDisk>);

impl Log {
    fn new(dir: &Path) -> Self {
        let (disk, format) = RealDisk::open(dir, None).expect("a new directory");
        let options = JournalOptions { salt: format.salt(), ..JournalOptions::default() };
        Self(Journal::recover(disk, options, (Seq(0), Seq(0)), &mut |_| {}).expect("a new journal").0)
    }

    fn commit(&mut self, records: usize) {
        for _ in 0..records {
            self.0.stage(1, &[7; PAYLOAD]).expect("there is room");
        }
        self.0.commit(1).expect("a working disk");
        self.0.replenish().expect("a working disk");
        if self.0.segments().len() > 2 {
            self.0.remove_oldest().expect("not the active one");
        }
    }
}

/// The same bytes in a preallocated file, and nothing else.
struct Bare {
    disk: Arc<RealDisk>,
    file: RealFile,
    at: u64,
    bytes: Vec<u8>,
}

impl Bare {
    const FILE: u64 = 64 * 1024 * 1024;

    fn new(dir: &Path) -> Self {
        let (disk, _) = RealDisk::open(dir, None).expect("a new directory");
        let file = disk.create("bare", Self::FILE).expect("there is room");
        Self { disk, file, at: 0, bytes: Vec::new() }
    }

    fn commit(&mut self, records: usize) {
        let bytes = records * (PAYLOAD + RECORD_OVERHEAD) + GROUP_OVERHEAD;
        if self.at + bytes as u64 > Self::FILE {
            self.disk.remove("bare").expect("there");
            self.file = self.disk.create("bare", Self::FILE).expect("there is room");
            self.at = 0;
        }
        self.bytes.resize(bytes, 7);
        self.file.write_at(&self.bytes, self.at).expect("a working disk");
        self.file.sync(SyncPoint::GroupCommit).expect("a working disk");
        self.at += bytes as u64;
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build directory is writable")
}

fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    group.sample_size(20);
    for records in GROUPS {
        group.throughput(Throughput::Elements(records as u64));
        let dir = scratch();
        let mut log = Log::new(dir.path());
        group.bench_function(format!("journal/{records}"), |bencher| bencher.iter(|| log.commit(records)));
        let dir = scratch();
        let mut bare = Bare::new(dir.path());
        group.bench_function(format!("bare/{records}"), |bencher| bencher.iter(|| bare.commit(records)));
    }
    group.finish();
}

fn scans(criterion: &mut Criterion) {
    let dir = scratch();
    let mut log = Log::new(dir.path());
    for _ in 0..100 {
        log.commit(1_000);
    }
    let reader = log.0.reader();
    let mut group = criterion.benchmark_group("scan");
    group.sample_size(20).throughput(Throughput::Elements(100_000));
    group.bench_function("records", |bencher| {
        bencher.iter(|| {
            let mut bytes = 0;
            let scanned = reader.scan(Seq(0), &mut None, &mut |record| {
                bytes += record.payload.len();
                ControlFlow::Continue(())
            });
            scanned.expect("readable");
            assert_eq!(bytes, 100_000 * PAYLOAD);
        });
    });
    group.finish();
}

/// Both in turns, so that a slow moment of the disk meets both.
fn ratios() {
    let clock = Clock::new(0);
    let dirs = (scratch(), scratch());
    let (mut log, mut bare) = (Log::new(dirs.0.path()), Bare::new(dirs.1.path()));
    for records in GROUPS {
        let (mut journal_micros, mut bare_micros) = (0, 0);
        for _ in 0..TURNS {
            let start = clock.micros();
            log.commit(records);
            let middle = clock.micros();
            bare.commit(records);
            journal_micros += middle - start;
            bare_micros += clock.micros() - middle;
        }
        let (journal, bare) = (journal_micros / TURNS, bare_micros / TURNS);
        let ratio = journal as f64 / bare.max(1) as f64;
        println!("commit of {records}: journal / bare = {ratio:.2} ({journal} µs / {bare} µs)");
    }
}

criterion_group!(benches, commits, scans);

fn main() {
    benches();
    ratios();
    Criterion::default().configure_from_args().final_summary();
}
