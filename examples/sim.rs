//! Long runs of the simulation, and single seeds again: `cargo run --release --example sim -- --seeds 10000`.

#[path = "../tests/sim/world/mod.rs"]
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use world::planted::{PLANTED, find};
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
    /// Only a mistake of `src/fault.rs` that the edge makes, by its name, or `all`: after how many of the seeds each is found.
    #[arg(long)]
    plant: Option<String>,
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
    if let Some(name) = &arguments.plant {
        return plant(name, arguments.from, arguments.seeds);
    }
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

fn plant(name: &str, from: u64, seeds: u64) -> ExitCode {
    let mut are_found = true;
    for mistake in PLANTED.into_iter().filter(|mistake| name == "all" || format!("{mistake:?}") == name) {
        let found = find(mistake, from, seeds);
        are_found &= found.is_some();
        match found {
            Some((seeds, what)) => println!("{mistake:?}: {seeds} seeds: {what}"),
            None => println!("{mistake:?}: not found"),
        }
    }
    ExitCode::from(u8::from(!are_found))
}
