//! Models of what threads do to each other: the code itself, run on a scheduler's threads in thousands of orders.
//!
//! # What runs
//! The store with its threads, the index, the journal on a simulated disk, the directory, mailboxes and whole shards with their sessions, with the
//! client library's machine at the other end: [`edge`]. The store's inbox alone: `store::thread::tests`. Their locks and condition variables are
//! the scheduler's ([`sync`]); where something else is shared (an atomic, a channel, the directory's map, the disk) the code says
//! [`crate::sync::step`], which any other build has nothing of. A call of the map, a notification or an operation of the disk is one step: what they
//! do inside is their authors' to prove.
//!
//! # How orders are chosen
//! By [shuttle](https://docs.rs/shuttle): half of them at random, half by PCT, which keeps priorities and changes them a few times, and so finds what
//! needs one thread to be slow for long. Loom, which would go through every order, was rejected: none of these models is small enough, its locks
//! can't be under a map, a runtime's notification or an engine, and there is no lock-free structure here that it would be for. What shuttle doesn't
//! show is a wrong memory order: here every atomic is sequentially consistent. Nothing rests on one: what threads hand to each other goes
//! through a lock, and an atomic beside it (the committed sequence, whether a batch is live) stands for itself alone.
//!
//! A thread that waits for what never comes is found as a deadlock. A sleep that only a second's time would end counts as one.
//!
//! # A schedule again
//! Schedules come in sets of 25, each from a seed; a failure says the seed, and how to run its set again. `MODEL_SETS` sets instead of the usual number
//! are tried for a long run. That the models find mistakes is tested too: each plants one ([`crate::fault`]), and says after how many
//! schedules it was found.

mod edge;
mod mailbox;
mod phone;
pub(crate) mod sync;
mod world;

use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

use crate::clock::SimTime;
use crate::fault::{self, Fault};

/// Schedules of one seed.
const SET: usize = 25;
/// How often PCT changes priorities in one schedule.
const CHANGES: usize = 3;
/// Sets within which a planted mistake has to be found.
const SETS_TO_FIND: u64 = 80;
/// Bytes of a thread's stack.
const STACK: usize = 1 << 20;

thread_local! {
    static IN_MODEL: Cell<bool> = const { Cell::new(false) };
    static TIME: RefCell<Option<Arc<SimTime>>> = const { RefCell::new(None) };
}

/// Whether this code runs in a model. All its threads are of one thread of the system.
fn in_model() -> bool {
    IN_MODEL.get()
}

/// The model's clock from now on.
fn set_time(time: &Arc<SimTime>) {
    TIME.set(Some(time.clone()));
}

/// Time passes in the model.
fn pass(time: Duration) {
    TIME.with_borrow(|clock| {
        if let Some(clock) = clock {
            let micros = clock.micros.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
            let passed = (micros + time.as_micros() as u64) / 1_000 - micros / 1_000;
            clock.wall.fetch_add(passed, Ordering::Relaxed);
        }
    });
}

/// Runs the model in this many sets of schedules, of seeds that nobody tried before.
pub(crate) fn holds(sets: u64, model: fn()) {
    let given = |name: &str| {
        let value = std::env::var(name).ok()?;
        Some(value.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (first, sets) = match given("MODEL_SEED") {
        Some(seed) => (seed, 1),
        None => (rand::rng().random_range(0..1 << 40), given("MODEL_SETS").unwrap_or(sets)),
    };
    for seed in first..first + sets {
        if let Err(failed) = catch_unwind(|| run(seed, None, model, &Arc::default())) {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            eprintln!("again: MODEL_SEED={seed} cargo test -p mooring --lib {name} -- --exact");
            std::panic::resume_unwind(failed);
        }
    }
}

/// Runs the model with a mistake planted until it is found. Panics if it isn't.
pub(crate) fn finds(mistake: Fault, model: fn()) {
    for set in 0..SETS_TO_FIND {
        if let Some(schedule) = found_by(set, mistake, model) {
            eprintln!("{mistake:?} is found by schedule {}", set as usize * SET + schedule);
            return;
        }
    }
    panic!("{mistake:?} is not found in {} schedules", SETS_TO_FIND as usize * SET);
}

/// Which schedule of the set finds the mistake, if one does; counted from 1.
fn found_by(seed: u64, mistake: Fault, model: fn()) -> Option<usize> {
    let schedules = Arc::new(AtomicUsize::new(0));
    let found = catch_unwind(|| run(seed, Some(mistake), model, &schedules)).is_err();
    found.then(|| schedules.load(Ordering::Relaxed))
}

/// One set of schedules.
fn run(seed: u64, mistake: Option<Fault>, model: fn(), schedules: &Arc<AtomicUsize>) {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            fault::make(None);
            IN_MODEL.set(false);
            TIME.set(None);
        }
    }
    let _over = Over;
    fault::make(mistake);
    IN_MODEL.set(true);
    let mut config = Config::new();
    config.stack_size = STACK;
    config.silence_warnings = true;
    if mistake.is_some() {
        config.failure_persistence = FailurePersistence::None;
    }
    let counted = schedules.clone();
    let model = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    };
    if seed.is_multiple_of(2) {
        Runner::new(RandomScheduler::new_from_seed(seed, SET), config).run(model);
    } else {
        Runner::new(PctScheduler::new_from_seed(seed, CHANGES, SET), config).run(model);
    }
}
