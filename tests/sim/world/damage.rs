//! Bits that flip on the disk, in some runs: in segments of the journal that are durable as a whole, while the edge runs and while it doesn't.
//!
//! The newest two are left out: of what stands behind the last mark that says what was synced, nobody can tell a flipped bit from a torn write.

use mooring::store::disk::Disk;
use mooring::store::disk::sim::SimDisk;
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;

/// Segments at the newest end that stay whole.
const LEFT_OUT: usize = 2;

/// See the module.
pub(crate) struct Damage {
    happens: bool,
    /// How many bits were flipped.
    pub(crate) flipped: u32,
}

impl Damage {
    pub(crate) fn new(rng: &mut SmallRng) -> Self {
        Self { happens: once_in(rng, 8), flipped: 0 }
    }

    /// Flips a bit, now and then. What it was, for the trace.
    pub(crate) fn strike(&mut self, disk: &SimDisk, rng: &mut SmallRng) -> Option<String> {
        if !self.happens || !once_in(rng, 60) {
            return None;
        }
        let mut segments: Vec<_> =
            disk.list().ok()?.into_iter().filter(|name| name.starts_with("journal-")).collect();
        segments.sort_unstable();
        let old = segments.len().saturating_sub(LEFT_OUT);
        let name = segments[..old].get(rng.random_range(0..old.max(1)))?;
        let length = disk.content(name).ok()?.len() as u64;
        let (offset, mask) = (rng.random_range(0..length), 1 << rng.random_range(0..8));
        disk.flip(name, offset, mask).ok()?;
        self.flipped += 1;
        Some(format!("a bit flips in {name} at {offset}"))
    }
}
