//! CPU per pointer of accepting batches, and per ack, on a disk that costs nothing, of many targets and of one; beside looking up and pushing the same
//! pointers in a bare hash map, which is the floor. The figures are for comparing with each other on one machine.
#![allow(missing_docs)]
#![allow(clippy::disallowed_methods)] // A part of each round is measured.

mod common;

use std::collections::HashMap;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{NOW, NoSink, ack, batch, key, seen, session};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mooring::clock::Clock;
use mooring::ids::{DeviceKey, SessionRef, ShardId};
use mooring::push::{Attributes, NewBatch, Reached, Seen};
use mooring::store::disk::real::RealDisk;
use mooring::store::disk::{Disk, DiskFile, SyncPoint};
use mooring::store::embedded::EmbeddedStore;
use mooring::store::engine::Engine;
use mooring::store::options::StoreOptions;
use mooring::store::tables::TableKind;
use mooring::store::{BodySink, Command, Pulled, Store};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

const DEVICES: usize = 100_000;
const BATCHES: usize = 100;
const TARGETS: usize = 1_000;

/// Takes everything, keeps nothing.
#[derive(Debug)]
struct NoDisk;
#[derive(Debug)]
struct NoFile(u64);

impl Disk for NoDisk {
    type File = NoFile;
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn create(&self, _: &str, preallocate: u64) -> io::Result<NoFile> {
        Ok(NoFile(preallocate))
    }
    fn open(&self, _: &str) -> io::Result<NoFile> {
        Ok(NoFile(64 * 1024 * 1024))
    }
    fn remove(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn sync_dir(&self, _: SyncPoint) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for NoFile {
    fn write_at(&self, bytes: &[u8], _: u64) -> io::Result<()> {
        black_box(bytes);
        Ok(())
    }
    fn read_at(&self, buffer: &mut [u8], _: u64) -> io::Result<usize> {
        buffer.fill(0);
        Ok(buffer.len())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn sync(&self, _: SyncPoint) -> io::Result<()> {
        Ok(())
    }
}

fn keys() -> Vec<DeviceKey> {
    (0..DEVICES as u64).map(key).collect()
}

/// An engine that knows all devices.
fn engine(keys: &[DeviceKey]) -> Engine<NoDisk> {
    engine_on(Arc::new(NoDisk), keys)
}

fn options() -> StoreOptions {
    // That disk gives nothing back, so that tables in memory have to do.
    StoreOptions { checkpoint_bytes: u64::MAX, tables: TableKind::Log, ..StoreOptions::default() }
}

fn engine_on<D: Disk>(disk: Arc<D>, keys: &[DeviceKey]) -> Engine<D> {
    let opened = Engine::open(disk, &options(), Box::new(NoSink), Box::new(|_| true));
    let (mut engine, _) = opened.expect("opens");
    for n in 0..keys.len() as u64 {
        let device = Box::new(Seen { attributes: Attributes::whole([7; 150].as_slice().into()), ..seen(n) });
        engine.apply(NOW, Command::Seen { device, session: session() }).expect("no disk fails");
        if n.is_multiple_of(1_000) {
            engine.commit(NOW).expect("no disk fails");
        }
    }
    engine.commit(NOW).expect("no disk fails");
    engine
}

fn targets(keys: &[DeviceKey]) -> Vec<Vec<DeviceKey>> {
    let mut rng = SmallRng::seed_from_u64(1);
    let one = |rng: &mut SmallRng| (0..TARGETS).map(|_| keys[rng.random_range(0..keys.len())]).collect();
    (0..BATCHES).map(|_| one(&mut rng)).collect()
}

fn deliver(engine: &mut Engine<impl Disk>, targets: &[Vec<DeviceKey>]) {
    deliver_from(engine, 0, targets);
}

/// The batches with ids from so many on.
fn deliver_from(engine: &mut Engine<impl Disk>, first: usize, targets: &[Vec<DeviceKey>]) {
    for (n, targets) in (first..).zip(targets) {
        let (reply, answer) = oneshot::channel();
        let batch = batch(&format!("b{n}"), n as u64 + 1, targets);
        engine.apply(NOW, Command::Deliver { batch, reply }).expect("no disk fails");
        engine.commit(NOW).expect("no disk fails");
        black_box(answer);
    }
}

fn acknowledge(engine: &mut Engine<NoDisk>, targets: &[Vec<DeviceKey>]) {
    acknowledge_from(engine, 0, targets);
}

fn acknowledge_from(engine: &mut Engine<NoDisk>, first: usize, targets: &[Vec<DeviceKey>]) {
    for (n, targets) in (first..).zip(targets) {
        let acks = targets.iter().map(|&device| ack(device, n as u64 + 1)).collect();
        engine.apply(NOW, Command::Acks { shard: ShardId(0), acks }).expect("no disk fails");
        engine.commit(NOW).expect("no disk fails");
    }
}

fn accept(c: &mut Criterion) {
    let keys = keys();
    let targets = targets(&keys);
    let mut group = c.benchmark_group("pointers");
    group.sample_size(10).throughput(Throughput::Elements((BATCHES * TARGETS) as u64));
    group.bench_function("floor: push into a hash map", |b| {
        b.iter_batched(
            || keys.iter().map(|key| (*key, Vec::new())).collect::<HashMap<DeviceKey, Vec<(u64, u32)>>>(),
            |mut map| {
                for (n, targets) in targets.iter().enumerate() {
                    for (ordinal, key) in (0..).zip(targets) {
                        map.get_mut(key).expect("known").push((n as u64, ordinal));
                    }
                }
                map
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("accept", |b| {
        b.iter_batched(
            || engine(&keys),
            |mut engine| {
                deliver(&mut engine, &targets);
                engine
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("arrive", |b| {
        let delivered = || {
            let mut engine = engine(&keys);
            deliver(&mut engine, &targets);
            engine
        };
        b.iter_batched(
            delivered,
            |mut engine| {
                acknowledge(&mut engine, &targets);
                engine
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// What becomes of pointers but an ack: a device's list is read, as its session does; or their time is over. For that the journal is read, so this is on
/// a disk: the one of the build directory.
fn ends(c: &mut Criterion) {
    let keys = keys();
    let targets = targets(&keys);
    let mut group = c.benchmark_group("pointers");
    group.sample_size(10).throughput(Throughput::Elements((BATCHES * TARGETS) as u64));
    group.bench_function("drain", |b| {
        b.iter_batched(
            || drained(&keys, &targets),
            |(store, mut entries)| {
                for key in &keys {
                    store.pull(key, Reached::START, usize::MAX, NOW, &mut entries);
                }
                assert!(entries.len() > BATCHES * TARGETS / 10 * 9, "but for those that were named twice");
                (store, entries)
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("expire", |b| {
        let delivered = || {
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
            let (disk, _) = RealDisk::open(directory.path(), None).expect("opens");
            let mut engine = engine_on(disk, &keys);
            deliver(&mut engine, &targets);
            (directory, engine)
        };
        b.iter_batched(
            delivered,
            |(directory, mut engine)| {
                let later = NOW + 3_600_001;
                // What is pending is said by each slice, so not before the first.
                loop {
                    engine.maintain(later).expect("the disk works");
                    engine.commit(later).expect("the disk works");
                    if engine.stats().pending.load(Ordering::Relaxed) == 0 {
                        break;
                    }
                }
                (directory, engine)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// A store with these pointers, as sessions see it, and room for what they read.
fn drained(keys: &[DeviceKey], targets: &[Vec<DeviceKey>]) -> (Arc<EmbeddedStore<NoDisk>>, Vec<Pulled>) {
    let (clock, sink) = (Arc::new(Clock::new(0)), Box::new(NoSink));
    let opened = EmbeddedStore::open_by_hand(
        Arc::new(NoDisk),
        options(),
        clock,
        sink,
        Arc::new(NoBodies),
        Box::new(|_| true),
    );
    let (store, mut hands) = opened.expect("opens");
    let mut turns = || (0..4).for_each(|_| hands.half_turn().expect("no disk fails"));
    for (n, _) in keys.iter().enumerate() {
        let device = Box::new(seen(n as u64));
        store.submit(Command::Seen { device, session: session() }).expect("room");
        if n % 1_000 == 0 {
            turns();
        }
    }
    for (n, targets) in targets.iter().enumerate() {
        let now = store.oldest_created_at();
        let batch = NewBatch { created_at: now, ..*batch(&format!("b{n}"), n as u64 + 1, targets) };
        let (reply, _) = oneshot::channel();
        store.submit(Command::Deliver { batch: Box::new(batch), reply }).expect("room");
        turns();
    }
    (store, Vec::with_capacity(BATCHES * TARGETS))
}

struct NoBodies;

impl BodySink for NoBodies {
    fn loaded(&self, _: SessionRef) {}
}

/// One batch for all devices, and the acks of it, while each has so many messages pending. The store's thread does nothing else meanwhile.
fn long_lists(c: &mut Criterion) {
    let keys = keys();
    let mut group = c.benchmark_group("long lists");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    for (devices, pending) in [(100_000, 1), (100_000, 100), (10_000, 1_000)] {
        let keys = &keys[..devices];
        let all = [keys.to_vec()];
        let mut engine = engine(keys);
        for n in 0..pending - 1 {
            deliver_from(&mut engine, n, &all);
        }
        let mut next = pending;
        // `true`: the batch is measured, `false`: its acks. Afterwards the lists are what they were.
        let mut measure = |rounds: u64, accept: bool| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                let began = Instant::now();
                deliver_from(&mut engine, next, &all);
                took += if accept { began.elapsed() } else { Duration::ZERO };
                let began = Instant::now();
                acknowledge_from(&mut engine, next, &all);
                took += if accept { Duration::ZERO } else { began.elapsed() };
                next += 1;
            }
            took
        };
        group.throughput(Throughput::Elements(devices as u64));
        group.bench_function(format!("accept, {pending} pending"), |b| {
            b.iter_custom(|rounds| measure(rounds, true));
        });
        group.bench_function(format!("arrive, {pending} pending"), |b| {
            b.iter_custom(|rounds| measure(rounds, false));
        });
    }
    group.finish();
}

/// Messages for one device each, a batch of its own, and their acks: so many in a commit, as where devices are pushed to one by one. With what the engine
/// does between commits.
fn single(c: &mut Criterion) {
    const GROUP: usize = 16;
    let keys = keys();
    let mut rng = SmallRng::seed_from_u64(2);
    let mut engine = engine(&keys);
    let mut now = NOW;
    let mut next = 0_u64;
    let mut group = c.benchmark_group("single messages");
    group.sample_size(10).throughput(Throughput::Elements(1));
    group.bench_function("accept and arrive", |b| {
        b.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            let mut done = 0;
            while done < rounds {
                let ids = next..next + GROUP as u64;
                let devices: Vec<DeviceKey> =
                    ids.clone().map(|_| keys[rng.random_range(0..DEVICES)]).collect();
                let batches: Vec<_> = ids
                    .clone()
                    .zip(&devices)
                    .map(|(n, device)| {
                        Box::new(NewBatch {
                            created_at: now,
                            expires_at: now + 3_600_000,
                            ..*batch(&format!("single-{n}"), n + 1_000_000, &[*device])
                        })
                    })
                    .collect();
                let acks: Vec<_> = ids.zip(&devices).map(|(n, &device)| ack(device, n + 1_000_000)).collect();
                let began = Instant::now();
                for batch in batches {
                    let (reply, answer) = oneshot::channel();
                    engine.apply(now, Command::Deliver { batch, reply }).expect("no disk fails");
                    black_box(answer);
                }
                engine.commit(now).expect("no disk fails");
                engine.maintain(now).expect("no disk fails");
                engine.apply(now, Command::Acks { shard: ShardId(0), acks }).expect("no disk fails");
                engine.commit(now).expect("no disk fails");
                engine.maintain(now).expect("no disk fails");
                took += began.elapsed();
                next += GROUP as u64;
                done += GROUP as u64;
                now += 1;
            }
            took.mul_f64(rounds as f64 / done as f64)
        });
    });
    group.finish();
}

criterion_group!(benches, accept, ends, long_lists, single);
criterion_main!(benches);
