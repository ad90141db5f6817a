//! Where chance comes from: one stream for each kind of thing, all from one seed, so that with fewer faults of one kind the others stay as they are.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The streams of one run.
pub(crate) struct Chances {
    /// How time passes, and who has a turn when.
    pub(crate) schedule: SmallRng,
    /// What fits into a connection, what arrives of it, and when it breaks.
    pub(crate) network: SmallRng,
    /// When the process dies, how, and for how long.
    pub(crate) process: SmallRng,
    /// What a power loss leaves; when the disk is full.
    pub(crate) disk: SmallRng,
    /// Jumps of the wall clock.
    pub(crate) clock: SmallRng,
    /// What devices do.
    pub(crate) devices: SmallRng,
    /// What routers do.
    pub(crate) routers: SmallRng,
    /// What operators do.
    pub(crate) operators: SmallRng,
    /// How much memory others use.
    pub(crate) memory: SmallRng,
    /// What is flipped at rest.
    pub(crate) damage: SmallRng,
    /// When the disk is copied, and the copy put back.
    pub(crate) restore: SmallRng,
    /// Who registers, and whose credentials are revoked when.
    pub(crate) credentials: SmallRng,
    /// Who stays away so long that it is forgotten.
    pub(crate) forgetting: SmallRng,
    /// Which reads of the disk fail.
    pub(crate) reads: SmallRng,
    /// Who follows presence.
    pub(crate) presence: SmallRng,
    /// When the edge leaves.
    pub(crate) leaving: SmallRng,
    /// How many targets are taken in one piece.
    pub(crate) parts: SmallRng,
    /// What operators change in the configuration.
    pub(crate) settings: SmallRng,
}

impl Chances {
    pub(crate) fn of(seed: u64) -> Self {
        let stream = |number: u64| {
            SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number))
        };
        Self {
            schedule: stream(1),
            network: stream(2),
            process: stream(3),
            disk: stream(4),
            clock: stream(5),
            devices: stream(6),
            routers: stream(7),
            operators: stream(8),
            memory: stream(9),
            damage: stream(10),
            restore: stream(20),
            credentials: stream(11),
            forgetting: stream(12),
            reads: stream(13),
            presence: stream(14),
            leaving: stream(15),
            parts: stream(16),
            settings: stream(17),
        }
    }
}

/// Once in so many times.
pub(crate) fn once_in(rng: &mut SmallRng, times: u32) -> bool {
    rng.random_ratio(1, times)
}
