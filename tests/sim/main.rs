//! The whole edge, simulated: see `world`.

mod world;

use mooring::fault::Fault;
use world::planted::{PLANTED, find};
use world::{Options, run};

/// Where fresh seeds begin, to see a whole run again. Without it each run takes others.
const FIRST: &str = "MOORING_SIM_SEED";
const SEEDS: u64 = 200;
const THREADS: u64 = 2;

fn holds(seed: u64) {
    if let Err(violation) = run(Options::of(seed)) {
        panic!("{violation}");
    }
}

/// Others in each run, on as many threads as the test's time needs. A failure names its seed and the command that replays it.
#[test]
fn fresh_seeds_hold() {
    let first = match std::env::var(FIRST) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{FIRST}={text}: a number is expected")),
        Err(_) => u64::from(rand::random::<u32>()),
    };
    println!(
        "seeds {first} to {}; the same again: {FIRST}={first} cargo test --test sim fresh",
        first + SEEDS - 1
    );
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || (first + thread..first + SEEDS).step_by(THREADS as usize).for_each(holds));
        }
    });
}

/// Seeds that once failed, one a line with what they had found.
#[test]
fn kept_seeds_hold() {
    let kept = include_str!("kept.txt").lines().filter_map(|line| line.split_whitespace().next());
    kept.filter(|word| !word.starts_with('#')).map(|word| word.parse().expect("a seed")).for_each(holds);
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in [1, 2, 3] {
        let [first, second] = [(); 2].map(|()| run(Options::of(seed)).expect("holds"));
        assert_eq!(first, second);
        assert!(first.accepted > 0 && first.arrived > 0 && first.sessions > 0);
    }
}

/// Every mistake that can be planted is found, within so many seeds.
const WITHIN: u64 = 1_000;

#[test]
fn planted_mistakes_are_found() {
    let find = |thread: usize| {
        let mine = PLANTED.iter().skip(thread).step_by(THREADS as usize);
        mine.copied().filter(|mistake| !is_found(*mistake)).collect::<Vec<_>>()
    };
    let missed: Vec<Fault> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as usize).map(|thread| scope.spawn(move || find(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn is_found(mistake: Fault) -> bool {
    let found = find(mistake, 0, WITHIN);
    match &found {
        Some((seeds, what)) => println!("{mistake:?}: {seeds} seeds: {what}"),
        None => println!("{mistake:?}: not found"),
    }
    found.is_some()
}
