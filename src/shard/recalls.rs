//! Telling devices of messages that were taken back.
//!
//! Who is connected is told at once: the shard passes over its sessions, some each turn, and asks the store whether each may have one of the
//! messages. Who connects later is told of what is newer than its last session. Both read the store's list from a place of their own, so
//! nothing is kept for each message and session, and the work of a turn is bounded by [`limits::TURN_RECALLS`] looks.
//!
//! A session that attaches while a pass goes on is told by its own reading, whether the pass has gone by its slot or not; being told twice
//! does no harm. A session whose outbox is full is told when it has room. Until a session's device is known to have been told, its activity isn't
//! reported to the store ([`crate::machine::told`]): the next session is told again.

use std::collections::VecDeque;
use std::sync::Arc;

use super::seldom::UnsentCopy;
use super::state::{ConnRef, Connection, Phase, Shard};
use crate::error::DeviceError;
use crate::ids::Seq;
use crate::limits;
use crate::machine::told::Told;
use crate::push::{Failure, Millis};
use crate::store::Recall;
use crate::wire::device as wire;

/// Messages of one pass over all sessions.
const PASS_MESSAGES: usize = 16;
/// Messages of one reading of one session.
const READ_MESSAGES: usize = 64;
/// Milliseconds before a device's last activity from which on it is told again: a connection that broke may have lost what was written to it.
const LOST_MS: Millis = 60_000;

/// What is to be told. A session stands in `began` or `full` once at most, which its connection's flags say.
#[derive(Debug)]
pub(super) struct Recalls {
    /// Sessions that began, each with the place that it is at.
    began: VecDeque<Reading>,
    /// Those whose outbox was full.
    full: Vec<Reading>,
    /// All sessions were told up to here.
    told: Seq,
    /// There may be newer ones.
    newer: bool,
    pass: Option<Pass>,
}

/// A session on its way through the list.
#[derive(Clone, Copy, Debug)]
struct Reading {
    conn: ConnRef,
    after: Seq,
    since: Millis,
}

/// A pass over all sessions.
#[derive(Debug)]
struct Pass {
    messages: Vec<Arc<Recall>>,
    next_slot: usize,
}

impl Recalls {
    /// For a shard without sessions.
    pub(super) fn new(told: Seq) -> Self {
        Self { began: VecDeque::new(), full: Vec::new(), told, newer: false, pass: None }
    }

    /// A message was taken back.
    pub(super) fn note(&mut self) {
        self.newer = true;
    }

    /// Whether some have to be looked at again.
    pub(super) fn waits(&self) -> bool {
        !self.full.is_empty()
    }

    /// Those whose outbox was full are looked at again.
    pub(super) fn retry(&mut self) {
        self.began.extend(self.full.drain(..));
    }
}

impl Shard {
    /// A session began whose device was last active then: it is told of what is newer.
    pub(super) fn catch_up_from(&mut self, conn: ConnRef, last_active: Option<Millis>) {
        // A device that was unknown has nothing.
        let Some(last_active) = last_active else { return };
        let since = last_active.saturating_sub(LOST_MS);
        if self.context.store.recalls(Seq(0), since, 1).is_empty() {
            return;
        }
        if let Some(connection) = self.connection(conn) {
            connection.flags.behind_on_recalls = true;
            if let Phase::Live(live) = &mut connection.phase {
                live.seldom.put(|parts| parts.told = Told::owing());
            }
            self.recalls.began.push_back(Reading { conn, after: Seq(0), since });
        }
    }

    /// A session began, or its device was told: the store learns that it is active.
    pub(super) fn report_active(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &connection.phase
        {
            let active = live.last_active();
            self.last_active.extend(active);
            self.work.notify_one();
        }
    }

    /// Tells some sessions. Whether there is more to do right away.
    pub(super) fn tell_recalls(&mut self) -> bool {
        let mut left = limits::TURN_RECALLS;
        while left > 0
            && let Some(reading) = self.recalls.began.pop_front()
        {
            left = left.saturating_sub(self.tell_one(reading));
        }
        while left > 0 {
            let Some(mut pass) = self.recalls.pass.take().or_else(|| self.next_pass()) else { return false };
            while left > 0 && pass.next_slot < self.connections.capacity() {
                left = left.saturating_sub(self.tell_slot(pass.next_slot, &pass.messages));
                pass.next_slot += 1;
            }
            if pass.next_slot < self.connections.capacity() {
                self.recalls.pass = Some(pass);
            } else if let Some(last) = pass.messages.last() {
                self.recalls.told = last.seq;
            }
        }
        true
    }

    fn next_pass(&mut self) -> Option<Pass> {
        if !std::mem::take(&mut self.recalls.newer) {
            return None;
        }
        let messages = self.context.store.recalls(self.recalls.told, 0, PASS_MESSAGES);
        self.recalls.newer = messages.len() == PASS_MESSAGES;
        (!messages.is_empty()).then_some(Pass { messages, next_slot: 0 })
    }

    /// How many looks that took.
    fn tell_slot(&mut self, slot: usize, messages: &[Arc<Recall>]) -> usize {
        let Some(connection) = self.connections.get_mut(slot) else { return 1 };
        let conn = ConnRef { slot: slot as u32, serial: connection.serial };
        if connection.may_write_one_of(messages, self.context.config.ack_deadline_ms) {
            self.fail(conn, DeviceError::Stalled);
            return 1;
        }
        // What waits behind a session that has ended may be one of them, and nobody knows any more.
        if matches!(connection.phase, Phase::Closing { .. }) && !connection.outbox.is_empty() {
            connection.flags.broken = true;
            self.wake(conn);
            return 1;
        }
        // One that reads for itself comes to these too.
        if !matches!(connection.phase, Phase::Live(_)) || connection.flags.behind_on_recalls {
            return 1;
        }
        if connection.outbox.len() >= limits::OUTBOX_BYTES {
            // It reads for itself, from before the first of these.
            connection.flags.behind_on_recalls = true;
            let after = Seq(messages.first().map_or(0, |first| first.seq.0.saturating_sub(1)));
            self.recalls.full.push(Reading { conn, after, since: 0 });
            return 1;
        }
        self.tell(conn, messages)
    }

    fn tell_one(&mut self, reading: Reading) -> usize {
        let Some(connection) = self.connection(reading.conn) else { return 1 };
        if connection.outbox.len() >= limits::OUTBOX_BYTES {
            self.recalls.full.push(reading);
            return 1;
        }
        let messages = self.context.store.recalls(reading.after, reading.since, READ_MESSAGES);
        let looks = self.tell(reading.conn, &messages);
        let now = self.now();
        if let Some(last) = messages.last().filter(|_| messages.len() == READ_MESSAGES) {
            self.recalls.began.push_back(Reading { after: last.seq, ..reading });
        } else if let Some(connection) = self.connection(reading.conn) {
            connection.flags.behind_on_recalls = false;
            if let Phase::Live(live) = &mut connection.phase {
                live.seldom.edit(|parts| parts.told.handle_written(now));
            }
        }
        looks
    }

    /// Tells a session of those messages that its device may have. How many looks that took.
    fn tell(&mut self, conn: ConnRef, messages: &[Arc<Recall>]) -> usize {
        let store = self.context.store.clone();
        let Some(connection) = self.connection(conn) else { return 1 };
        let Phase::Live(live) = &connection.phase else { return 1 };
        let (device, app) = (live.device, live.app.clone());
        let of_app = messages.iter().filter(|recall| recall.app == app);
        let mut looks = 1;
        let mut told = Vec::new();
        for recall in of_app {
            looks += 1;
            if store.may_have(&device, recall) {
                told.push(recall.message);
            }
        }
        if !told.is_empty() {
            self.with_frames(conn, |_, out| {
                for message in told {
                    wire::put_revoke(out, message);
                }
                Ok(())
            });
        }
        looks
    }

    /// An entry ended without the device's doing. A copy that was taken back and may wait unsent must not be written any more, nor one that ended as
    /// its user wants no pushes. As frames can't be taken out of a stream of bytes, the session ends then, and the device comes again. Any other
    /// copy may still be taken back, with no entry there to say so: it is remembered as long as it may wait.
    pub(super) fn forget_entry(&mut self, conn: ConnRef, batch: Seq, reason: Failure) {
        let ack_deadline_ms = self.context.config.ack_deadline_ms;
        let Some(connection) = self.connection(conn) else { return };
        let Phase::Live(live) = &mut connection.phase else { return };
        let unsent = live.session.last_sent(batch, ack_deadline_ms).and_then(|(entry, sent_at)| {
            let copy = UnsentCopy { batch, message: entry.0.message, sent_at };
            connection.outbox.may_hold(sent_at).then_some((copy, entry.0.is_revoked()))
        });
        live.session.handle_ended(batch);
        live.seldom.edit(|parts| parts.unwritten.retain(|entry| entry.batch.seq != batch));
        let must_not_be_seen = match unsent {
            None => false,
            // Nobody is to see it any more: not who has the phone now, if it was for who had it before.
            Some((_, true)) => true,
            Some(_) if matches!(reason, Failure::Unbound | Failure::PushDisabled) => true,
            Some((copy, false)) => !live.seldom.keep_unsent(copy, &connection.outbox),
        };
        if must_not_be_seen {
            return self.fail(conn, DeviceError::Stalled);
        }
        self.mark_dirty(conn);
    }
}

impl Connection {
    /// Whether a copy of one of these may wait unsent. Its entry has ended, whether word of that came or not.
    fn may_write_one_of(&self, messages: &[Arc<Recall>], ack_deadline_ms: u64) -> bool {
        if self.outbox.is_empty() {
            return false;
        }
        let Phase::Live(live) = &self.phase else { return false };
        let in_flight = live.session.written(ack_deadline_ms).map(|(entry, sent_at)| UnsentCopy {
            batch: entry.0.seq,
            message: entry.0.message,
            sent_at,
        });
        let mut copies = in_flight.chain(live.seldom.unsent().iter().copied());
        copies.any(|copy| {
            let is_taken_back = |recall: &Arc<Recall>| {
                recall.message == copy.message && recall.seq > copy.batch && recall.app == live.app
            };
            self.outbox.may_hold(copy.sent_at) && messages.iter().any(is_taken_back)
        })
    }
}

#[cfg(test)]
#[path = "recalls_tests.rs"]
pub(in crate::shard) mod tests;
