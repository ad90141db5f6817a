//! Long runs of the simulation, and single seeds again: `cargo run --release --example sim -- --seeds 10000`.

#[path = "../tests/sim/world/mod.rs"]
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use world::{Options, Report, run};

/// Simulates the whole edge from many seeds.
#[derive(Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1_000_000)]
    from: u64,
    /// Only this one.
    #[arg(long)]
    seed: Option<u64>,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Steps with faults, of each run.
    #[arg(long)]
    steps: Option<u32>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = |seed| {
        let default = Options::of(seed);
        Options { prints: arguments.trace, steps: arguments.steps.unwrap_or(default.steps), ..default }
    };
    let (from, until) = match arguments.seed {
        Some(seed) => (seed, seed + 1),
        None => (arguments.from, arguments.from + arguments.seeds),
    };
    let next = AtomicU64::new(from);
    let found = Mutex::new(Vec::new());
    let reports: Mutex<Vec<Report>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= until {
                        return;
                    }
                    match run(options(seed)) {
                        Ok(report) => reports.lock().expect("not poisoned").push(report),
                        Err(violation) => {
                            eprintln!("{violation}");
                            found.lock().expect("not poisoned").push(seed);
                        }
                    }
                }
            });
        }
    });
    let reports = reports.into_inner().expect("not poisoned");
    let found = found.into_inner().expect("not poisoned");
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    println!(
        "{} seeds held: {} accepted, {} arrived, {} crashes, {} sessions; failed: {found:?}",
        reports.len(),
        sum(|report| report.accepted),
        sum(|report| report.arrived),
        sum(|report| report.crashes),
        sum(|report| report.sessions as u64),
    );
    if let [only] = &reports[..] {
        println!("digest {}", only.digest);
    }
    ExitCode::from(u8::from(!found.is_empty()))
}
