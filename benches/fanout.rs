//! What a session holds and what a delivery costs in one process with a million sessions.
//!
//! The shard with its tasks, turns and timers, the directory, the hand-over and the store are the edge's own, on one thread and one runtime as in
//! `serve`; only what carries the bytes is in memory (`mooring::sim::Sink`), and is made before memory is looked at. The store is on the disk of the
//! build directory. Each round is a batch, its acceptance, its hand-over, the writes, the wake of each connection's task with an Ack, the reads, and the
//! acks durable. CPU is that of the thread, told apart by these steps.
//!
//! `cargo bench --bench fanout`; `-- --help` for other numbers, `-- --quick` for 20,000 sessions. The last line is JSON.
//!
//! # Measured
//! On 27 November 2026, two virtual cores (AMD EPYC, 32 MB of third-level cache), Linux 6.18, rustc 1.95, glibc's allocator with the thresholds of `serve`. **Others
//! built on both cores all the time**: bytes don't mind, CPU is an upper bound and says something in comparison only. Single runs. "Tasks": when each connection had a task of the runtime; a shard
//! polls its sockets itself since.
//!
//! | | tasks | now |
//! |---|---|---|
//! | bytes a session, from 250,000 over 500,000 to 1,000,000, everything that it brings: connection, directory, the store's rows | 1,066 | 690, on 28 November |
//! | a delivery with its ack, 1,000,000 sessions, batches of 1,000 random targets | 7.8 µs | 3.9 µs: hand-over 0.4, write 2.1, news 0.1, read 1.3 |
//! | the store beside that: accept, acks | 1.4, 5.4 µs | 1.1, 3.0 µs |
//! | to all 1,000,000 | 11.1 µs, with 20,000 tasks woken at a time instead of 1,024 | 3.4 µs: 0.2, 1.9, 0.3, 1.0; the store 0.6, 2.5 |
//!
//! On 28 November 2026, another machine (two virtual cores of an Intel Xeon of 2023, huge pages by request only), nothing else on it, without link-time optimisation, 1,000,000
//! sessions, single runs one behind the other; its clock varies by a third from one minute to the next, and "news", of which almost all is the bench's own, says how it was.
//!
//! | | one session behind the other | touched ahead, 32 at a time |
//! |---|---|---|
//! | a delivery with its ack, random targets | 3.6 µs: hand-over 0.36, write 1.97, news 0.14, read 1.15 | 2.1 µs: 0.22, 1.16, 0.09, 0.67 |
//! | to all | 3.5 µs: 0.24, 1.88, 0.27, 1.11 | 2.7 µs: 0.18, 1.50, 0.23, 0.77 |
//! | the store beside that, random targets: accept, acks | 1.2, 2.4 µs | 0.6, 1.6 µs |
//! | the same, to all | 0.8, 2.3 µs | 0.5, 1.7 µs |
//!
//! The bars are 700 bytes, which is met, and 0.5 µs, which is missed.
//!
//! # What the bytes are
//! A connection with its session is 224, in a table that has just doubled 235. At 1,000,000 the directory has just doubled too, so an entry costs about twice its bytes: 69 (33). The device's row in the
//! store's index is 80, with what rows have as room and with its place 96. The device's cold row is 96 with what the allocator adds, its id 48, its place in the wheel 12; its attributes are shared with 2,000 others. Beside that the cache of the
//! tables fills up, to 64 MB.
//! It was 760 when rows of the index stood in a hash map, half empty at 1,000,000, and took 170 each.
//! It was 860 when the connection was 288, the entry in the directory 41, and the cold row 80 with a place of 20 in a queue; before that the connection was 320, and its task 128, and over TCP tokio kept 256 more a
//! socket.
//!
//! # What the CPU is
//! More than half of it was waiting for memory: with 2,000 sessions, which caches hold, a delivery took 1.5 to 1.8 µs where with 1,000,000 it took 3.5. So much are instructions, and looking at several sessions at
//! a time brings a delivery near to it, but no further. In `perf record` `fan_out` and `Index::pull`, which first touched the connection and the store's row, had 13 % of all (1,000,000 sessions) and have 2 (250,000);
//! what touches these ahead has 9. What is left of the waiting are the places and rows in the store that are passed by, as their part is locked already, and the bench's own connections, 8 %, which nothing
//! touches ahead. Of the instructions none of the shard's functions has more than 2 %: 0.5 µs would take a delivery, its read and its ack of a third of them.
#![allow(missing_docs)]

mod common;
#[path = "common/edge.rs"]
mod edge;

use std::os::unix::process::CommandExt;
use std::process::{Command as Process, ExitCode};

use clap::Parser;
use common::{batch, resident};
use edge::{Edge, QUIET_MS, Spent};
use mooring::sim::LocalShard;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Targets of one batch, at most.
const BATCH: usize = 20_000;
/// Bytes of a push.
const BODY: usize = 200;

#[derive(Clone, Debug, Parser)]
struct Args {
    /// Sessions.
    #[arg(long, default_value_t = 1_000_000)]
    sessions: usize,
    /// Broadcasts to all of them that are measured.
    #[arg(long, default_value_t = 3)]
    broadcasts: usize,
    /// Batches to so many random sessions.
    #[arg(long, default_value_t = 300)]
    batches: usize,
    /// Targets of those.
    #[arg(long, default_value_t = 1_000)]
    targets: usize,
    /// Few sessions, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

async fn broadcast(edge: &mut Edge, targets: &[u32], name: &str) {
    for (n, targets) in targets.chunks(BATCH).enumerate() {
        let mut batch = batch(&format!("{name}-{n}"), 1, &[]);
        batch.body = vec![7; BODY].into();
        edge.deliver(batch, targets).await;
    }
}

fn tell(what: &str, spent: Spent, deliveries: usize) -> Value {
    let micros = |nanos: u64| nanos as f64 / 1e3 / deliveries as f64;
    let Spent { accept, hand_over, write, wake, read, settle } = spent;
    let shard = hand_over + write + wake + read;
    println!(
        "{what}: {:.3} µs a delivery with its ack (hand-over {:.3}, write {:.3}, wake {:.3}, read {:.3}); \
         the store beside that: accept {:.3}, acks {:.3}",
        micros(shard),
        micros(hand_over),
        micros(write),
        micros(wake),
        micros(read),
        micros(accept),
        micros(settle)
    );
    json!({
        "us_per_delivery": micros(shard),
        "hand_over_us": micros(hand_over),
        "write_us": micros(write),
        "wake_us": micros(wake),
        "read_us": micros(read),
        "store_accept_us": micros(accept),
        "store_acks_us": micros(settle),
    })
}

async fn run(args: &Args) -> Value {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut rng = SmallRng::seed_from_u64(1);
    let mut edge = Edge::start(directory.path(), args.sessions);
    for (part, bytes) in LocalShard::sizes() {
        println!("{part}: {bytes} bytes");
    }
    let sessions = args.sessions;
    let mut memory = Vec::new();
    for (step, upto) in [sessions / 4, sessions / 2, sessions].into_iter().enumerate() {
        edge.connect(upto).await;
        let mut all: Vec<u32> = (0..upto as u32).collect();
        all.shuffle(&mut rng);
        for n in 0..3 {
            broadcast(&mut edge, &all, &format!("fill-{step}-{n}")).await;
        }
        drop(all);
        edge.rest(QUIET_MS + 500).await;
        memory.push((upto as f64, resident() as f64));
        println!("{upto} sessions: {:.0} MB resident", resident() as f64 / 1e6);
    }
    let [first, middle, last] = memory[..] else { unreachable!("three steps") };
    let slope = |from: (f64, f64), to: (f64, f64)| (to.1 - from.1) / (to.0 - from.0);
    let bytes = slope(first, last);
    println!(
        "bytes a session: {bytes:.0} ({:.0} over the first half, {:.0} over the second)",
        slope(first, middle),
        slope(middle, last)
    );
    let mut all: Vec<u32> = (0..sessions as u32).collect();
    all.shuffle(&mut rng);
    edge.spent = Spent::default();
    for n in 0..args.broadcasts {
        broadcast(&mut edge, &all, &format!("all-{n}")).await;
    }
    let to_all = tell("broadcast", edge.spent, args.broadcasts * sessions);
    edge.spent = Spent::default();
    for n in 0..args.batches {
        let from = rng.random_range(0..=sessions - args.targets);
        let (targets, _) = all[from..from + args.targets].split_at(args.targets);
        let targets = targets.to_vec();
        broadcast(&mut edge, &targets, &format!("some-{n}")).await;
    }
    let to_some = tell("random targets", edge.spent, args.batches * args.targets);
    json!({
        "sessions": sessions,
        "bytes_per_session": bytes,
        "broadcast": to_all,
        "random": to_some,
        "sizes": LocalShard::sizes().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

/// The allocator's thresholds are those that `serve` gives itself.
fn as_serve() {
    const THRESHOLDS: [(&str, &str); 2] =
        [("MALLOC_MMAP_THRESHOLD_", "524288"), ("MALLOC_TRIM_THRESHOLD_", "1048576")];
    if std::env::var_os(THRESHOLDS[0].0).is_none() {
        let program = std::env::current_exe().expect("a path");
        let error = Process::new(program).args(std::env::args_os().skip(1)).envs(THRESHOLDS).exec();
        panic!("it starts itself once more: {error}");
    }
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.sessions, args.batches) = (20_000, 20);
    }
    if args.sessions < 4 || args.targets > args.sessions {
        eprintln!("--sessions must be four at least, and not less than --targets");
        return ExitCode::from(2);
    }
    as_serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    println!("{}", runtime.block_on(local.run_until(run(&args))));
    ExitCode::SUCCESS
}
