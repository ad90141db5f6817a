//! What goes wrong, and when: from a seed, so that a run can be had again. How processes and sockets then meet it can't.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Milliseconds.
type Millis = u64;

/// Targets of a batch that an edge takes in one piece, where a batch has twenty at most: whole batches, two parts, whose sequences its answer
/// tells, and up to five.
const PART_TARGETS: [usize; 3] = [1_000, 10, 4];
/// Quiet time between two faults of one edge.
const PAUSE_MS: std::ops::RangeInclusive<Millis> = 200..=2_500;

/// One thing that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// SIGKILL, then nothing for so long, then a start.
    Kill { down: Millis },
    /// The same, and killed again so long after the start began: in the middle of the recovery, or just behind it.
    KillTwice { down: Millis, again: Millis },
    /// SIGTERM, and a start once it has left.
    Restart,
    /// SIGSTOP and, after so long, SIGCONT.
    Stop { lasts: Millis },
    /// The disk is full for so long; `kill`: and the edge is killed meanwhile.
    Full { lasts: Millis, kill: bool },
    /// Of so many in a hundred devices the connection is cut.
    Cut { percent: u32 },
    /// So many in a hundred devices are gone for so long.
    Away { percent: u32, lasts: Millis },
    /// So many in a hundred devices don't read for so long.
    Deaf { percent: u32, lasts: Millis },
    /// A router is gone, with all that it had not kept, and another takes its place after so long.
    Vanish { router: usize, lasts: Millis },
    /// A router doesn't read for so long.
    DeafRouter { router: usize, lasts: Millis },
}

/// Targets of a batch that this edge takes in one piece: two edges of a run differ, and an edge does with the next seed.
pub(super) fn part_targets(seed: u64, edge: u8) -> usize {
    let kinds = PART_TARGETS.len() as u64;
    PART_TARGETS[((seed % kinds + u64::from(edge)) % kinds) as usize]
}

/// The faults of one edge.
pub(super) struct Plan {
    rng: SmallRng,
    routers: usize,
    small_disk: bool,
    /// Left of this round: each kind comes as often as the others, in another order each time.
    bag: Vec<Kind>,
}

#[derive(Clone, Copy)]
enum Kind {
    Kill,
    KillTwice,
    Restart,
    Stop,
    Full,
    FullKill,
    Cut,
    Away,
    Deaf,
    Vanish,
    DeafRouter,
}

/// One round.
const ROUND: [Kind; 14] = [
    Kind::Kill,
    Kind::Kill,
    Kind::Kill,
    Kind::KillTwice,
    Kind::Restart,
    Kind::Stop,
    Kind::Stop,
    Kind::Cut,
    Kind::Cut,
    Kind::Away,
    Kind::Deaf,
    Kind::Vanish,
    Kind::Vanish,
    Kind::DeafRouter,
];

impl Plan {
    pub(super) fn new(seed: u64, routers: usize, small_disk: bool) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), routers, small_disk, bag: Vec::new() }
    }

    /// The quiet time before the next fault, and that fault.
    pub(super) fn next(&mut self) -> (Millis, Fault) {
        let kind = self.kind();
        let rng = &mut self.rng;
        let pause = rng.random_range(PAUSE_MS);
        // A few devices, half, or all.
        let percent = [3, 20, 50, 100][rng.random_range(0..4)];
        let router = rng.random_range(0..self.routers);
        let down = rng.random_range(0..=1_500);
        let lasts = rng.random_range(200..=4_000);
        let fault = match kind {
            Kind::Kill => Fault::Kill { down },
            Kind::KillTwice => Fault::KillTwice { down, again: rng.random_range(0..=400) },
            Kind::Restart => Fault::Restart,
            Kind::Stop => Fault::Stop { lasts },
            Kind::Full => Fault::Full { lasts, kill: false },
            Kind::FullKill => Fault::Full { lasts, kill: true },
            Kind::Cut => Fault::Cut { percent },
            Kind::Away => Fault::Away { percent, lasts: lasts * 4 },
            Kind::Deaf => Fault::Deaf { percent, lasts },
            Kind::Vanish => Fault::Vanish { router, lasts },
            Kind::DeafRouter => Fault::DeafRouter { router, lasts },
        };
        (pause, fault)
    }

    fn kind(&mut self) -> Kind {
        if self.bag.is_empty() {
            self.bag.extend(ROUND);
            if self.small_disk {
                self.bag.extend([Kind::Full, Kind::FullKill]);
            }
            self.bag.shuffle(&mut self.rng);
        }
        self.bag.pop().unwrap_or(Kind::Kill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(seed: u64, small_disk: bool) -> Vec<(Millis, Fault)> {
        let mut plan = Plan::new(seed, 2, small_disk);
        (0..64).map(|_| plan.next()).collect()
    }

    #[test]
    fn one_seed_is_one_plan() {
        assert_eq!(some(1, true), some(1, true));
        assert_ne!(some(1, true), some(2, true));
    }

    #[test]
    fn edges_of_a_run_and_seeds_in_a_row_take_batches_in_different_parts() {
        let of_seed = |seed| [0, 1].map(|edge| part_targets(seed, edge));
        assert_eq!([of_seed(1), of_seed(2), of_seed(3)], [[10, 4], [4, 1_000], [1_000, 10]]);
        assert_eq!(part_targets(u64::MAX, 3), part_targets(u64::MAX, 0));
        let largest = *super::super::upstream::TARGETS.end();
        assert_eq!(PART_TARGETS.map(|of| largest.div_ceil(of)), [1, 2, 5]);
    }

    #[test]
    fn a_round_has_every_kind_and_only_a_small_disk_fills() {
        let kinds = |faults: &[(Millis, Fault)]| {
            let kinds = faults.iter().map(|(_, fault)| std::mem::discriminant(fault));
            kinds.collect::<std::collections::HashSet<_>>().len()
        };
        assert_eq!(kinds(&some(7, true)[..16]), 10);
        assert_eq!(kinds(&some(7, false)[..14]), 9);
        let fills = |faults: &[(Millis, Fault)]| faults.iter().any(|(_, f)| matches!(f, Fault::Full { .. }));
        assert!(!fills(&some(7, false)));
    }
}
