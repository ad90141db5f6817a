//! Draining: a session's pending entries onto its connection, within the window and the outbox.

use super::state::{ConnRef, InList, Live, Phase, Shard, get};
use crate::fault::{self, Fault};
use crate::ids::SessionRef;
use crate::limits;
use crate::machine::session::Overdue;
use crate::push::{Millis, Priority};
use crate::store::{Pulled, SentAlone, Store};
use crate::wire::device as wire;

/// Milliseconds after which a body that is not in memory, or room in the outbox, is looked for again.
const RETRY_MS: u64 = 1_000;

impl Live {
    /// What is to be written next, at most `max` beside what waits: high ones that wait for their body, newer high ones, normal ones that wait,
    /// and only behind those what else is pending. Whether the list has no more.
    fn next_entries(&mut self, store: &dyn Store, max: usize, now: Millis, into: &mut Vec<Pulled>) -> bool {
        into.clear();
        // What was pulled isn't pulled again, though it wasn't written.
        let mut after = self.session.cursor();
        let mut unwritten =
            self.seldom.edit(|parts| std::mem::take(&mut parts.unwritten)).unwrap_or_default();
        for entry in &unwritten {
            after.pass(entry.batch.priority, entry.batch.seq);
        }
        let high = unwritten.partition_point(|entry| entry.batch.priority == Priority::High);
        into.extend(unwritten.drain(..high));
        let all = unwritten.is_empty();
        let room = max.saturating_sub(into.len());
        let waited = into.len();
        store.pull(&self.device, if all { after } else { after.high_only() }, room, now, into);
        into.append(&mut unwritten);
        let drained = all && into.len() - waited < room;
        if drained {
            self.session.handle_drained();
        }
        drained
    }
}

impl Shard {
    /// Writes what the session's list has and its window and outbox take. How many pushes that were.
    pub(super) fn pump(&mut self, conn: ConnRef) -> usize {
        let (mut pushes, mut expires_at) = (0, Millis::MAX);
        self.with_frames(conn, |shard, out| {
            (pushes, expires_at) = shard.pull(conn, out);
            Ok(())
        });
        if pushes > 0 {
            self.after_pushes(conn, pushes as u64, expires_at);
        }
        pushes
    }

    /// Counts them. What the socket didn't take expires; if it took everything, there may be room for more.
    fn after_pushes(&mut self, conn: ConnRef, pushes: u64, expires_at: Millis) {
        self.traffic.deliveries += pushes;
        self.arm_suspect(conn);
        let most = self.outbox_bytes();
        let Some(connection) = self.connection(conn) else { return };
        connection.outbox.expires(expires_at);
        if let Phase::Live(live) = &connection.phase
            && live.session.poll_pull(connection.outbox.len(), most) > 0
            && !connection.flags.waits_for_body
        {
            self.mark_dirty(conn);
        }
    }

    /// Appends pushes to `out`: how many, and when the first of them expires.
    fn pull(&mut self, conn: ConnRef, out: &mut Vec<u8>) -> (usize, Millis) {
        let (now, shard, most) = (self.now(), self.id, self.outbox_bytes());
        // Nothing that all shards share is touched more often than it must be: they pass it to and fro.
        let Self { context, connections, pulled, body: newest, .. } = self;
        let Some(connection) = get(connections, conn) else { return (0, Millis::MAX) };
        let Phase::Live(live) = &mut connection.phase else { return (0, Millis::MAX) };
        let (mut pushes, mut expires_at, mut missing) = (0, Millis::MAX, None);
        while missing.is_none() && !connection.flags.waits_for_body {
            // What is pulled counts as written: never more than fits, so that one frame at most goes over.
            let waiting = connection.outbox.len() + out.len();
            let fits = most.saturating_sub(waiting) / limits::PUSH_ENCODED_BYTES;
            let max = live.session.poll_pull(waiting, most).min(fits.max(1));
            if max == 0 && waiting >= most && fault::is(Fault::DropOnFullOutbox) {
                live.next_entries(&*context.store, 1, now, pulled);
                for entry in pulled.drain(..) {
                    live.session.handle_skipped(&InList(entry.batch));
                }
            }
            if max == 0 {
                break;
            }
            let drained = live.next_entries(&*context.store, max, now, pulled);
            let mut room = max;
            let mut entries = pulled.drain(..);
            while room > 0
                && let Some(entry) = entries.next()
            {
                let Pulled { batch, ordinal, redelivered } = entry;
                let is_over = batch.expires_at <= now || batch.is_revoked();
                let has = live.seldom.received().is_some_and(|has| has.covers(batch.seq, batch.message));
                if is_over || has {
                    live.session.handle_skipped(&InList(batch));
                    continue;
                }
                if newest.as_ref().is_none_or(|(seq, _)| *seq != batch.seq) {
                    *newest = context.store.body(&batch).map(|body| (batch.seq, body));
                }
                let Some((_, body)) = &newest else {
                    if !batch.is_live() {
                        // It ended while it waited for its body: nobody reads that any more.
                        live.session.handle_skipped(&InList(batch));
                        continue;
                    }
                    missing = Some(batch.clone());
                    let entry = Pulled { batch, ordinal, redelivered };
                    live.seldom.put(|parts| parts.unwritten.push(entry));
                    break;
                };
                wire::put_push(out, body, redelivered);
                expires_at = expires_at.min(batch.expires_at);
                live.session.handle_sent(now, context.config.ack_deadline_ms, InList(batch));
                pushes += 1;
                room -= 1;
            }
            live.seldom.put_unwritten(entries);
            if live.seldom.has_unwritten() {
                live.session.handle_newer();
            }
            if drained && missing.is_none() {
                live.seldom.edit(|parts| parts.received = None);
            }
        }
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
        let overdue_at = live.session.overdue_at();
        if let Some(batch) = missing {
            connection.flags.waits_for_body = true;
            if context.store.want_body(&batch, session).is_err() {
                self.want_body.push(conn);
            }
        }
        self.arm_overdue(conn, overdue_at);
        (pushes, expires_at)
    }

    /// Puts the session into the wheel of acknowledgement deadlines, unless it is there.
    fn arm_overdue(&mut self, conn: ConnRef, at: Option<u64>) {
        if let Some(at) = at
            && let Some(connection) = self.connection(conn)
            && !connection.flags.overdue_armed
        {
            connection.flags.overdue_armed = true;
            self.overdue.insert(at, conn);
        }
    }

    /// An acknowledgement deadline may have passed: report `sent` on its own, send once more, marked.
    pub(super) fn check_overdue(&mut self, conn: ConnRef) {
        let now = self.now();
        let (mut again, mut expires_at) = (0, Millis::MAX);
        self.with_frames(conn, |shard, out| {
            (again, expires_at) = shard.send_again(conn, now, out);
            Ok(())
        });
        if again > 0 {
            self.after_pushes(conn, again, expires_at);
        }
        self.mark_dirty(conn);
    }

    fn send_again(&mut self, conn: ConnRef, now: Millis, out: &mut Vec<u8>) -> (u64, Millis) {
        let context = self.context.clone();
        let shard = self.id;
        let mut reports = Vec::new();
        let Some(connection) = self.connection(conn) else { return (0, Millis::MAX) };
        connection.flags.overdue_armed = false;
        let Phase::Live(live) = &mut connection.phase else { return (0, Millis::MAX) };
        let (mut again, mut expires_at, mut retry) = (0, Millis::MAX, None);
        let deadline_ms = context.config.ack_deadline_ms;
        loop {
            if connection.outbox.may_hold(now.saturating_sub(deadline_ms)) {
                // What is due may wait there still: it can be taken back as long as its session knows of it. If the outbox never was empty since, it may
                // have left long ago, and is sent again later than it could be.
                retry = Some(now + RETRY_MS);
                break;
            }
            let mut body = None;
            if let Some(entry) = live.session.peek_again(now) {
                // It may have ended by an Ack that came before it was written: of an earlier batch with the same message. (Of a batch that others still
                // wait for it is sent again, which devices know to drop.)
                if entry.0.is_revoked() || !entry.0.is_live() {
                    let ended = entry.0.seq;
                    live.session.handle_ended(ended);
                    continue;
                }
                if connection.outbox.len() + out.len() >= limits::OUTBOX_BYTES {
                    retry = Some(now + RETRY_MS);
                    break;
                }
                body = context.store.body(&entry.0);
                if body.is_none() {
                    let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
                    // Busy or not: it is looked for again, and by then it is there.
                    context.store.want_body(&entry.0, session).ok();
                    retry = Some(now + RETRY_MS);
                    break;
                }
            }
            let Some(overdue) = live.session.poll_overdue(now, deadline_ms) else { break };
            let (entry, sent_at) = match overdue {
                Overdue::SendAgain { entry, first_sent } => {
                    if let Some(body) = body {
                        wire::put_push(out, &body, true);
                        expires_at = expires_at.min(entry.0.expires_at);
                        again += 1;
                    }
                    (entry, first_sent)
                }
                Overdue::Report { entry, first_sent } => (entry, first_sent),
            };
            reports.push(SentAlone { device: live.device, batch: entry.0.seq, sent_at });
        }
        let next = retry.or(live.session.overdue_at());
        self.sent_alone.append(&mut reports);
        self.arm_overdue(conn, next);
        (again, expires_at)
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
