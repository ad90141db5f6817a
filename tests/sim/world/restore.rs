//! An older copy of the disk that is put back, in some runs: made as a kill or a power loss would leave the disk, put back before a start.
//!
//! What was written since is gone, and its sequences are given to other things. Routers repeat what has no end; who reads a stream from a cursor of the
//! time that was lost has to be refused, and opens without one. Then everything holds as if that time had never been, but for what peers remember
//! of it: devices may get again what they have, and accounts are those of then.

use std::collections::BTreeSet;
use std::sync::Arc;

use mooring::client::device::End;
use mooring::sim::Edge;
use mooring::store::disk::sim::{Loss, SimDisk};
use rand::Rng;
use rand::rngs::SmallRng;

use super::World;
use super::chance::once_in;
use super::oracle::Oracle;

/// See the module.
pub(super) struct Restore {
    pub(super) happens: bool,
    copy: Option<Copy>,
    /// It was put back.
    pub(super) is_done: bool,
    /// Disk operations of the time that was lost: a start is never named twice.
    pub(super) lost_operations: u64,
}

/// The disk, and what was confirmed to devices as durable by then.
struct Copy {
    disk: SimDisk,
    confirmed: BTreeSet<(String, u64, i32)>,
}

impl Restore {
    /// Never in a run with damage: what was damaged since the copy was made would be whole again.
    pub(super) fn new(rng: &mut SmallRng, is_damaged: bool) -> Self {
        Self { happens: once_in(rng, 8) && !is_damaged, copy: None, is_done: false, lost_operations: 0 }
    }
}

impl World {
    /// A copy is made, now and then; the first one stays.
    pub(super) fn back_up(&mut self) {
        let rng = &mut self.chances.restore;
        if !self.restore.happens
            || self.restore.is_done
            || self.restore.copy.is_some()
            || self.disk.is_down()
            || !once_in(rng, 100)
        {
            return;
        }
        let disk = self.disk.fork();
        match rng.random_range(0..3) {
            0 => disk.kill(),
            1 => disk.crash_with(Loss::All, rng),
            _ => disk.crash_with(Loss::Some, rng),
        }
        self.restore.copy = Some(Copy { disk, confirmed: self.oracle.confirmed.clone() });
        self.note(format_args!("the disk is copied"));
    }

    /// Before a start: perhaps on the older copy.
    pub(super) fn put_back(&mut self) -> Result<(), String> {
        if self.restore.is_done || self.is_calm || !once_in(&mut self.chances.restore, 3) {
            return Ok(());
        }
        let Some(copy) = self.restore.copy.take() else { return Ok(()) };
        copy.disk.set_capacity(None);
        let mut plan = self.plan.clone();
        plan.store.budget = Arc::default();
        let probe = Edge::start(&copy.disk.fork(), &self.time, &plan);
        let head =
            probe.map_err(|error| format!("the copy can't be started: {error}"))?.report().journal.head.0;
        self.note(format_args!("the older copy is put back, up to {head}"));
        let now = self.now();
        for device in &mut self.devices {
            device.ghosts.drain(..).for_each(|ghost| ghost.cut());
            device.disconnect(now, End::Broken, true, &mut self.oracle);
            device.forget_reinstallation();
        }
        self.routers.iter_mut().for_each(|router| router.disconnect(now, 0));
        self.restore.lost_operations += self.disk.operations();
        self.restore.is_done = true;
        self.disk = copy.disk;
        self.oracle.restored(head, copy.confirmed);
        Ok(())
    }
}

impl Oracle {
    /// Everything behind this sequence is as if it had never been.
    fn restored(&mut self, head: u64, confirmed: BTreeSet<(String, u64, i32)>) {
        self.is_restored = true;
        self.ends.retain(|_, (_, sequence)| *sequence <= head);
        let ends = &self.ends;
        let has_ended = |id: &String, targets: usize| {
            (0..targets as u32).all(|ordinal| ends.contains_key(&(id.clone(), ordinal)))
        };
        let open = self
            .answers
            .iter()
            .filter(|(id, answer)| answer.sequence > head || !has_ended(id, self.batches[*id].targets.len()));
        self.to_repeat = open.map(|(id, _)| id.clone()).collect();
        self.answers.retain(|_, answer| answer.sequence <= head);
        self.told.retain(|_, sequence| *sequence <= head);
        self.revoked.retain(|_, (sequence, _)| *sequence <= head);
        self.confirmed = confirmed;
        // What they saw was in the order of a time that was lost in part.
        self.sessions.clear();
        self.online.clear();
        self.missed.retain(|(first, _)| *first <= head);
        self.streams.values_mut().for_each(|stream| stream.restored(head));
    }
}
