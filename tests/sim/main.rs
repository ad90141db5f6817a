//! The whole edge, simulated: see `world`.

mod world;

use world::{Options, run};

/// Fresh seeds begin here.
const FRESH: u64 = 1_000;
const SEEDS: u64 = 200;
const THREADS: u64 = 2;

fn holds(seed: u64) {
    if let Err(violation) = run(Options::of(seed)) {
        panic!("{violation}");
    }
}

/// On as many threads as the test's time needs.
#[test]
fn fresh_seeds_hold() {
    println!("seeds {FRESH} to {}", FRESH + SEEDS - 1);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || (FRESH + thread..FRESH + SEEDS).step_by(THREADS as usize).for_each(holds));
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
