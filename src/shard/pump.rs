//! Draining: a session's pending entries onto its connection, within the window and the outbox.

use super::state::{ConnRef, InList, Phase, Shard};
use crate::ids::SessionRef;
use crate::machine::session::Overdue;
use crate::store::SentAlone;
use crate::telemetry::{self, Counter};
use crate::wire::device as wire;

/// Milliseconds after which a body that is not in memory is looked for again.
const BODY_RETRY_MS: u64 = 1_000;

impl Shard {
    /// Writes what the session's list has and its window takes. How many pushes that were.
    pub(super) fn pump(&mut self, conn: ConnRef) -> usize {
        let mut pushes = 0;
        self.with_frames(conn, |shard, out| {
            pushes = shard.pull(conn, out);
            Ok(())
        });
        if pushes > 0 {
            telemetry::add(Counter::Deliveries(self.id), pushes as u64);
            let figures = self.context.figures(self.id);
            figures.deliveries.fetch_add(pushes as u64, std::sync::atomic::Ordering::Relaxed);
        }
        pushes
    }

    fn pull(&mut self, conn: ConnRef, out: &mut Vec<u8>) -> usize {
        let (now, shard) = (self.now(), self.id);
        let context = self.context.clone();
        let mut pulled = std::mem::take(&mut self.pulled);
        let Some(connection) = self.connection(conn) else { return 0 };
        connection.flags.dirty = false;
        let Phase::Live(live) = &mut connection.phase else { return 0 };
        let max =
            if connection.flags.waits_for_body { 0 } else { live.session.poll_pull(connection.outbox.len()) };
        pulled.clear();
        if max > 0 {
            context.store.pull(&live.device, live.session.cursor(), max, now, &mut pulled);
            if pulled.len() < max {
                live.session.handle_drained();
            }
        }
        let (mut pushes, mut missing) = (0, None);
        for entry in pulled.drain(..) {
            if entry.batch.expires_at <= now || live.received.contains(&entry.batch.message) {
                live.session.handle_skipped(entry.batch.seq);
                continue;
            }
            let Some(body) = context.store.body(&entry.batch) else {
                missing = Some(entry.batch);
                live.session.handle_newer();
                break;
            };
            wire::put_push(out, &body, entry.redelivered);
            live.session.handle_sent(now, context.config.ack_deadline_ms, InList(entry.batch));
            pushes += 1;
        }
        if max > 0 && missing.is_none() && !live.received.is_empty() && pushes < max {
            live.received = Box::default();
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
        self.pulled = pulled;
        pushes
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
        let mut again = 0;
        self.with_frames(conn, |shard, out| {
            again = shard.send_again(conn, now, out);
            Ok(())
        });
        if again > 0 {
            telemetry::add(Counter::Deliveries(self.id), again);
        }
        self.mark_dirty(conn);
    }

    fn send_again(&mut self, conn: ConnRef, now: u64, out: &mut Vec<u8>) -> u64 {
        let context = self.context.clone();
        let shard = self.id;
        let mut reports = Vec::new();
        let Some(connection) = self.connection(conn) else { return 0 };
        connection.flags.overdue_armed = false;
        let Phase::Live(live) = &mut connection.phase else { return 0 };
        let (mut again, mut retry) = (0, None);
        loop {
            let mut body = None;
            if let Some(entry) = live.session.peek_again(now) {
                body = context.store.body(&entry.0);
                if body.is_none() {
                    let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
                    // Busy or not: it is looked for again, and by then it is there.
                    context.store.want_body(&entry.0, session).ok();
                    retry = Some(now + BODY_RETRY_MS);
                    break;
                }
            }
            let Some(overdue) = live.session.poll_overdue(now, context.config.ack_deadline_ms) else { break };
            let (entry, sent_at) = match overdue {
                Overdue::SendAgain { entry, first_sent } => {
                    if let Some(body) = body {
                        wire::put_push(out, &body, true);
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
        again
    }
}
