//! What a row of the tables costs: CPU, bytes written, memory, reads; on the disk of the working directory, every transaction durable.
//! `cargo bench --bench tables -- 2000000` for another number of rows.
#![allow(missing_docs)]

use std::sync::Arc;

use mooring::clock::Clock;
use mooring::ids::Seq;
use mooring::store::disk::real::RealDisk;
use mooring::store::tables::{self, Table, TableKind, Tables, Writes};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const ROW_BYTES: usize = 300;
const CACHE_BYTES: usize = 64 * 1024 * 1024;
const READS: usize = 200_000;

/// Seconds of this process in user space and kernel, bytes it had written, bytes it holds.
fn usage() -> (f64, f64, f64) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).expect("Linux");
    let (stat, io, statm) = (read("stat"), read("io"), read("statm"));
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name before").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("a number");
    let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("Linux");
    let pages = statm.split_whitespace().nth(1).expect("Linux");
    let (written, pages) = (written.parse().expect("a number"), pages.parse::<f64>().expect("a number"));
    ((ticks(11) + ticks(12)) / 100.0, written, pages * 4096.0)
}

struct Bench {
    tables: Arc<dyn Tables>,
    clock: Clock,
    rng: SmallRng,
    applied: u64,
    rows: u32,
    spread: bool,
}

impl Bench {
    /// A key that grows with the number, or is all over.
    fn key(&self, number: u32) -> Vec<u8> {
        if self.spread {
            SmallRng::seed_from_u64(u64::from(number)).random::<[u8; 16]>().to_vec()
        } else {
            number.to_be_bytes().to_vec()
        }
    }

    fn phase(&mut self, what: &str, count: u32, in_one: u32, random: bool) {
        let (cpu, written, _) = usage();
        let (began, mut slowest) = (self.clock.micros(), 0);
        for first in (0..count).step_by(in_one as usize) {
            let mut writes = Writes::new();
            for number in first..count.min(first + in_one) {
                let number = if random { self.rng.random_range(0..self.rows) } else { number };
                let mut row = vec![7; ROW_BYTES];
                self.rng.fill(&mut row[..60]);
                writes.insert((Table::Devices, self.key(number)), Some(row));
            }
            self.applied += 1;
            let before = self.clock.micros();
            self.tables.apply(&writes, Seq(self.applied)).expect("written");
            slowest = slowest.max(self.clock.micros() - before);
        }
        let wall = (self.clock.micros() - began) as f64 / f64::from(count);
        let (cpu_after, written_after, memory) = usage();
        println!(
            "{what}, {in_one} a transaction: {:.1} µs of CPU, {wall:.1} µs, {:.0} bytes written a row; slowest {:.1} ms; {:.0} MB held",
            (cpu_after - cpu) * 1e6 / f64::from(count),
            (written_after - written) / f64::from(count),
            slowest as f64 / 1e3,
            memory / 1e6,
        );
    }

    fn reads(&mut self) {
        let numbers: Vec<u32> = (0..READS).map(|_| self.rng.random_range(0..self.rows)).collect();
        let keys: Vec<_> = numbers.into_iter().map(|number| self.key(number)).collect();
        for _ in 0..2 {
            let began = self.clock.micros();
            let found =
                keys.iter().filter(|key| self.tables.get(Table::Devices, key).expect("readable").is_some());
            assert_eq!(found.count(), READS);
            println!("random read: {:.2} µs", (self.clock.micros() - began) as f64 / READS as f64);
        }
        let (began, mut rows) = (self.clock.micros(), 0);
        self.tables.scan(Table::Devices, &mut |_, _| rows += 1).expect("readable");
        assert_eq!(rows, self.rows);
        println!("all in order: {:.2} µs a row", (self.clock.micros() - began) as f64 / f64::from(rows));
    }
}

fn main() {
    let rows = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(500_000);
    for spread in [false, true] {
        println!("{rows} rows, {}:", if spread { "keys all over" } else { "keys that grow" });
        let directory = tempfile::tempdir_in(".").expect("a directory");
        let (disk, _) = RealDisk::open(directory.path(), None).expect("opens");
        let open = || tables::open(&disk, TableKind::Library, CACHE_BYTES).expect("opens");
        let rng = SmallRng::seed_from_u64(1);
        let mut bench = Bench { tables: open(), clock: Clock::new(0), rng, applied: 0, rows, spread };
        bench.phase("new", rows, 5_000, false);
        bench.phase("changed", rows / 4, 5_000, true);
        bench.phase("changed", rows / 8, 1_000, true);
        bench.phase("changed", rows / 50, 100, true);
        bench.reads();
        let file = std::fs::metadata(directory.path().join(tables::FILE)).expect("there");
        println!("file: {} MB", file.len() / 1_000_000);
    }
}
