//! Bits that flip on the disk, in some runs, while the edge runs and while it doesn't: in segments of the journal, in a checkpoint, in the tables.
//!
//! Of the journal the newest segment is left out, and the one before while the newest has no group yet: of what stands behind the last mark that says
//! what was synced, nobody can tell a flipped bit from a torn write. Of the checkpoints one stays whole. What a flipped bit makes of the tables an edge
//! refuses to use; then an operator puts back what stood there.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use mooring::store::disk::Disk;
use mooring::store::disk::sim::SimDisk;
use rand::Rng;
use rand::rngs::SmallRng;

use super::World;
use super::chance::once_in;
use super::faults::Death;

/// Milliseconds after which whatever was accepted has expired.
const ALL_EXPIRES_MS: u64 = 73 * 3_600_000;
/// Bytes of a segment before its first group.
const SEGMENT_HEADER: usize = 40;
const TABLES: &str = "tables.redb";
const BLOCK: u64 = 4_096;

/// See the module.
pub(crate) struct Damage {
    pub(crate) happens: bool,
    /// How many bits were flipped.
    pub(crate) flipped: u32,
    /// What damage has cut off from its device may wait until it expires.
    pub(crate) may_wait: bool,
    checkpoints: BTreeSet<String>,
    tables: Option<InTables>,
}

/// A flipped bit of the tables, and its block as it was left.
struct InTables {
    offset: u64,
    mask: u8,
    block: Vec<u8>,
}

/// The block of the tables in which a byte is.
fn block_of(disk: &SimDisk, offset: u64) -> Vec<u8> {
    let content = disk.content(TABLES).unwrap_or_default();
    let from = (offset / BLOCK * BLOCK) as usize;
    content.into_iter().skip(from).take(BLOCK as usize).collect()
}

impl Damage {
    pub(crate) fn new(rng: &mut SmallRng) -> Self {
        let happens = once_in(rng, 8);
        Self { happens, flipped: 0, may_wait: false, checkpoints: BTreeSet::new(), tables: None }
    }

    /// Flips a bit, now and then. What it was, for the trace. `is_quiet`: nothing is being written.
    pub(crate) fn strike(&mut self, disk: &SimDisk, is_quiet: bool, rng: &mut SmallRng) -> Option<String> {
        if !self.happens || !once_in(rng, 60) {
            return None;
        }
        let names = disk.list().ok()?;
        let name = match rng.random_range(0..10) {
            0 => self.checkpoint(names, rng)?,
            1 if self.tables.is_none() => names.into_iter().find(|name| name == TABLES)?,
            _ => Self::segment(disk, names, is_quiet, rng)?,
        };
        let length = disk.content(&name).ok()?.len() as u64;
        let (offset, mask) = (rng.random_range(0..length.max(1)), 1 << rng.random_range(0..8));
        disk.flip(&name, offset, mask).ok()?;
        if name == TABLES {
            self.tables = Some(InTables { offset, mask, block: block_of(disk, offset) });
        }
        self.flipped += 1;
        Some(format!("a bit flips in {name} at {offset}"))
    }

    /// An old segment.
    fn segment(disk: &SimDisk, names: Vec<String>, is_quiet: bool, rng: &mut SmallRng) -> Option<String> {
        let mut segments: Vec<_> = names.into_iter().filter(|name| name.starts_with("journal-")).collect();
        segments.sort_unstable();
        let newest = disk.content(segments.last()?).ok()?;
        let has_group = is_quiet && newest.iter().skip(SEGMENT_HEADER).any(|byte| *byte != 0);
        segments.truncate(segments.len().saturating_sub(if has_group { 1 } else { 2 }));
        let old = segments.len().max(1);
        segments.into_iter().nth(rng.random_range(0..old))
    }

    /// A checkpoint, if another one is whole.
    fn checkpoint(&mut self, names: Vec<String>, rng: &mut SmallRng) -> Option<String> {
        let all: Vec<_> = names.into_iter().filter(|name| name.strip_suffix(".ckpt").is_some()).collect();
        if all.len() < 2 || all.iter().any(|name| self.checkpoints.contains(name)) {
            return None;
        }
        let name = all[rng.random_range(0..all.len())].clone();
        self.checkpoints.insert(name.clone());
        Some(name)
    }

    /// An operator puts back what the tables were, if they weren't written there since. Whether there was anything to put back.
    pub(crate) fn heal(&mut self, disk: &SimDisk) -> bool {
        let Some(InTables { offset, mask, block }) = self.tables.take() else { return false };
        block_of(disk, offset) != block || disk.flip(TABLES, offset, mask).is_ok()
    }
}

impl World {
    /// As without damage, but what has lost its device ends when it expires, or at the next start, whichever comes first.
    pub(super) fn come_to_rest_damaged(&mut self) -> Result<bool, String> {
        if self.chances.damage.random() {
            self.die(Death::Process);
            self.start_at = self.now();
            return self.come_to_rest();
        }
        self.damage.may_wait = true;
        let stalled = self.come_to_rest()?;
        if stalled {
            return Ok(true);
        }
        self.damage.may_wait = false;
        if self.edge.as_ref().is_some_and(|edge| edge.totals().pending > 0) {
            self.note(format_args!("the days go by"));
            self.time.micros.fetch_add(ALL_EXPIRES_MS * 1_000, Ordering::Relaxed);
        }
        self.come_to_rest()
    }
}
