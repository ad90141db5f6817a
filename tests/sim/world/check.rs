//! What must hold after every step, and once all is at rest.

use std::collections::BTreeMap;

use mooring::sim::Edge;

use super::oracle::ensure;
use super::router::Router;
use super::{MAIL_STEPS, World};

/// What takes longer to look at is looked at in one of so many steps.
const CHECKED_STEPS: u64 = 4;

impl World {
    /// What must hold after every step.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.memory.check(self.edge.as_mut())?;
        self.note_who_is_there();
        match self.edge.as_ref().filter(|_| self.is_calm && !self.disk.is_down()) {
            Some(edge) => {
                let is_read = self.are_streams_read(edge);
                self.oracle.in_time.stepped(self.oracle.step, edge.now(), is_read);
            }
            None => self.oracle.in_time.disturbed(),
        }
        let Some(edge) = &mut self.edge else { return Ok(()) };
        // Of a machine that has just gone nothing can be read.
        let says_damaged = !self.disk.is_down() && edge.says_damaged();
        ensure!(!says_damaged || self.damage.flipped > 0, "damage that nobody did: {:?}", edge.report());
        if says_damaged {
            self.oracle.found_damaged();
        }
        let totals = edge.totals();
        ensure!(totals.identity_holds(), "{totals:?}");
        for shard in edge.shards() {
            let most = mooring::limits::OUTBOX_BYTES + mooring::limits::DEVICE_FRAME_BYTES;
            ensure!(shard.fullest_outbox() <= most, "{} bytes in an outbox", shard.fullest_outbox());
        }
        // The newest session of a device is the one in the directory; or a newer one has come and gone, and it will be told in a moment.
        let live = edge.live();
        let mut unnamed = BTreeMap::new();
        for session in &live {
            let generation = session.session.generation;
            let of_device = live.iter().filter(|other| other.device == session.device);
            let is_newest = of_device.map(|other| other.session.generation).max() == Some(generation);
            let named = edge.session_of(&session.device);
            // When the newest one has left, an older one that comes late may enter; never while the newest is there.
            let newest = self.newest.entry(session.device).or_insert(generation);
            *newest = generation.max(named.map_or(generation, |named| named.generation)).max(*newest);
            let is_older = named.is_some_and(|named| named.generation < generation);
            ensure!(!is_older || *newest > generation, "{named:?} took the place of {session:?}");
            if is_newest && named.is_none_or(|named| named.generation < generation) {
                let steps = self.unnamed.get(&generation).map_or(1, |steps| steps + 1);
                ensure!(steps < MAIL_STEPS, "the directory has lost {session:?}, it says {named:?}");
                unnamed.insert(generation, steps);
            }
        }
        self.unnamed = unnamed;
        if self.oracle.step.is_multiple_of(CHECKED_STEPS) && !self.oracle.is_damaged() {
            let unequal = edge.unequal();
            ensure!(unequal.is_none(), "{unequal:?}");
        }
        Ok(())
    }

    fn are_streams_read(&self, edge: &Edge) -> bool {
        self.plan.store.streams.iter().all(|stream| {
            let cursor = self.oracle.streams.get(&**stream).map_or(0, |known| known.cursor);
            edge.is_read(stream, cursor)
        })
    }

    pub(super) fn is_at_rest(&self) -> bool {
        let Some(edge) = &self.edge else { return false };
        (self.damage.may_wait || edge.totals().pending == 0)
            && !edge.has_staged()
            && self.are_streams_read(edge)
            && self.routers.iter().all(Router::is_settled)
            && self.oracle.to_repeat.is_empty()
            && self.devices.iter().all(|device| device.is_connected() && device.unsettled() == 0)
            && (self.oracle.is_damaged()
                || self.oracle.answers.iter().all(|(id, answer)| {
                    (0..self.oracle.batches[id].targets.len() as u32).all(|ordinal| {
                        answer.refused.contains_key(&ordinal)
                            || self.oracle.gaps > 0
                            || self.oracle.ends.contains_key(&(id.clone(), ordinal))
                    })
                }))
    }

    /// The client library's ledger has seen nothing that can't be.
    pub(super) fn check_ledger(&self) -> Result<(), String> {
        for router in self.routers.iter().filter(|_| !self.oracle.forgets()) {
            let tally = router.tally();
            ensure!(tally.conflicts == 0, "{}: {tally:?}", router.name);
        }
        Ok(())
    }

    /// At rest each device has its one session.
    pub(super) fn check_at_rest(&self) -> Result<(), String> {
        let Some(edge) = &self.edge else { return Ok(()) };
        let live = edge.live();
        for device in &self.devices {
            let sessions = live.iter().filter(|session| session.device == device.key).count();
            ensure!(sessions == 1, "{} has {sessions} sessions", device.id);
        }
        ensure!(
            edge.connected() == self.devices.len(),
            "{} devices in the directory, {} are there",
            edge.connected(),
            self.devices.len()
        );
        Ok(())
    }
}
