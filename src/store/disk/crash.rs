//! The proof by crashing everywhere: a run is repeated once for each operation boundary on the simulated disk, interrupted there by a power loss or
//! the death of the process, recovered (the recovery too is interrupted, at a boundary of its own), and checked against what was promised.
//!
//! ```text
//! for each boundary n:  run … crash at n ─┬─ for each kind of death ── [open … crash at m] ── check
//! ```
//!
//! A test describes its run and its check by [`CrashTest`]; [`everywhere`] answers the first violation with all that is needed to repeat it.

use std::fmt;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::sim::{Loss, SimDisk};

/// A run whose promises must hold wherever it is interrupted.
pub trait CrashTest {
    /// What was promised by the time the disk failed.
    type Promised;

    /// Does the same every time, up to the end or until the disk fails; answers what had been promised until then.
    fn run(&self, disk: &SimDisk) -> Self::Promised;

    /// Opens the disk as a start after a crash does, and goes no further. Must not panic if the disk fails.
    fn open(&self, disk: &SimDisk);

    /// Opens the disk, compares with the promises, goes on and may crash the disk again. Says what is wrong.
    fn check(&self, disk: &SimDisk, promised: &Self::Promised, rng: &mut SmallRng) -> Result<(), String>;
}

/// How a run ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// The process alone: what was written can still be read.
    Process,
    /// The power: this much of what was not synced is lost.
    Power(Loss),
}

/// Some by chance is tried more often, as it is the one that varies.
const DEATHS: [Death; 6] = [
    Death::Process,
    Death::Power(Loss::All),
    Death::Power(Loss::Some),
    Death::Power(Loss::Some),
    Death::Power(Loss::Some),
    Death::Power(Loss::Nothing),
];

impl Death {
    fn happen(self, disk: &SimDisk, rng: &mut SmallRng) {
        match self {
            Self::Process => disk.kill(),
            Self::Power(loss) => disk.crash_with(loss, rng),
        }
    }
}

/// A promise that a crash broke.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The seed given to [`everywhere`].
    pub seed: u64,
    /// The operation before which the run was interrupted.
    pub boundary: u64,
    /// How.
    pub death: Death,
    /// The operation of the following recovery before which that was interrupted, if it was.
    pub recovery_boundary: Option<u64>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, boundary, death, recovery_boundary, what } = self;
        write!(f, "seed {seed}: {death:?} before operation {boundary}")?;
        if let Some(boundary) = recovery_boundary {
            write!(f, ", then again before operation {boundary} of the recovery")?;
        }
        write!(f, ": {what}")
    }
}

/// Runs the test with a crash before every operation, starting from copies of `fresh` (its capacity and skipped syncs hold for all). Answers
/// how many boundaries there were, or the first violation.
pub fn everywhere<T: CrashTest>(seed: u64, fresh: &SimDisk, test: &T) -> Result<u64, Box<Violation>> {
    let start = fresh.operations();
    let mut boundary = 0;
    loop {
        let disk = fresh.fork();
        disk.crash_at(start + boundary);
        let promised = test.run(&disk);
        let finished = !disk.is_down();
        for (number, death) in DEATHS.into_iter().enumerate() {
            let mut rng = SmallRng::seed_from_u64(seed ^ boundary << 8 ^ (number as u64) << 56);
            let disk = disk.fork();
            death.happen(&disk, &mut rng);
            let violation = |recovery_boundary, what| {
                Box::new(Violation { seed, boundary, death, recovery_boundary, what })
            };
            let again = interrupted_recovery(&disk, test, &mut rng);
            test.check(&disk, &promised, &mut rng).map_err(|what| violation(None, what))?;
            if let Some((disk, at)) = again {
                test.check(&disk, &promised, &mut rng).map_err(|what| violation(Some(at), what))?;
            }
        }
        if finished {
            return Ok(boundary);
        }
        boundary += 1;
    }
}

/// A copy of the disk on which a recovery was interrupted at a random boundary, and which; `None` if a recovery changes nothing.
fn interrupted_recovery<T: CrashTest>(
    disk: &SimDisk,
    test: &T,
    rng: &mut SmallRng,
) -> Option<(SimDisk, u64)> {
    let whole = disk.fork();
    test.open(&whole);
    let start = disk.operations();
    let operations = whole.operations() - start;
    let at = (operations > 0).then(|| rng.random_range(0..operations))?;
    let copy = disk.fork();
    copy.crash_at(start + at);
    test.open(&copy);
    let death = if rng.random() { Death::Process } else { Death::Power(Loss::Some) };
    death.happen(&copy, rng);
    Some((copy, at))
}
