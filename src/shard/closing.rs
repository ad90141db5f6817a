//! The end of a connection: out of the directory, a last frame that says why, and time to read it.

use std::sync::atomic::Ordering;

use super::state::{ConnRef, Phase, Shard, get};
use crate::error::DeviceError;
use crate::fault::{self, Fault};
use crate::presence::State;
use crate::push::Millis;
use crate::store::SentAlone;
use crate::telemetry::{self, Counter, Gauge, HandshakeResult, SessionEnd, Transport};
use crate::wire::device as wire;
use crate::wire::pb::device::GoAwayReason;

/// Milliseconds in which a closed connection may still take its last frames.
const LINGER_MS: Millis = 2_000;

impl Shard {
    /// Ends a connection: leaves the directory, tells the peer why if there is a code for it, and closes behind that.
    pub(super) fn fail(&mut self, conn: ConnRef, error: DeviceError) {
        let now = self.now();
        let Some(connection) = self.connection(conn) else { return };
        if let Phase::Closing { .. } = connection.phase {
            if error == DeviceError::Closed {
                connection.flags.broken = true;
                self.wake(conn);
            }
            return;
        }
        tracing::debug!(peer = %connection.peer, %error, "connection ends");
        let phase = std::mem::replace(&mut connection.phase, Phase::Closing { deadline: now + LINGER_MS });
        connection.partial.take();
        // A device whose credentials were revoked gets nothing more of what waits for it. One that was replaced gets it on its newer connection:
        // written to both, a push would come twice, and on this one perhaps after what is newer. Frames can't be taken out of what waits, and
        // nothing can be said behind a half: such a connection just breaks.
        let cut = matches!(error, DeviceError::Unauthenticated | DeviceError::Replaced)
            && !connection.outbox.is_empty();
        self.leave(conn, phase, error);
        self.count_closing(conn, now + LINGER_MS);
        let mut frames = Vec::new();
        match error {
            DeviceError::Replaced => wire::put_go_away(&mut frames, GoAwayReason::Replaced, 0),
            DeviceError::Leaving => {
                let spread = u32::from(conn.serial as u16) % 1_000;
                wire::put_go_away(&mut frames, GoAwayReason::Leaving, spread);
            }
            _ => wire::put_error(&mut frames, error),
        }
        let mut cipher = Vec::new();
        if !frames.is_empty() && !cut {
            self.send(conn, &frames, &mut cipher);
        }
        let Some(connection) = get(&mut self.connections, conn) else { return };
        if cut || matches!(error, DeviceError::Closed | DeviceError::Stalled | DeviceError::Unreachable) {
            connection.flags.broken = true;
        } else if let Some(tls) = &mut connection.tls {
            cipher.clear();
            tls.close(&mut cipher);
            connection.write(&self.tally, now, &cipher);
        }
        // Nothing is decrypted any more.
        if let Some(tls) = &mut connection.tls {
            tls.retained.take();
        }
        self.wake(conn);
        self.count_begun(conn);
        self.keepalive.insert(now + LINGER_MS, conn);
    }

    /// Counts the end, and takes the session out of the directory.
    fn leave(&mut self, conn: ConnRef, phase: Phase, error: DeviceError) {
        let (mut live, was_live) = match phase {
            Phase::Live(live) => (live, true),
            Phase::Registering(registering) => (registering.live, false),
            Phase::Greeting { .. } | Phase::Closing { .. } => {
                telemetry::add(Counter::Handshakes(handshake_result(error)), 1);
                return self.end_handshake(conn);
            }
        };
        let Some(transport) = self.connection(conn).map(|c| c.transport()) else { return };
        self.context.give_place(&live.app, transport);
        if was_live {
            tracing::debug!(app = %live.app, device = %live.device_id, %error, "session ends");
            if let Some((device, _)) = live.last_active() {
                self.context.store.expect_active(&device);
            }
            let is_gone = self.context.directory.leave(&live.device, live.generation);
            if is_gone && !fault::is(Fault::GoodbyeUnsaid) {
                self.mark_presence(&live, State::Disconnected);
            }
            self.last_active.extend(live.last_active());
            for (entry, sent_at, deadline) in live.session.handle_end() {
                let sent = SentAlone { device: live.device, batch: entry.0.seq, sent_at };
                if self.leaving.is_some() {
                    // Nobody is here any more when it is due.
                    self.sent_alone.push(sent);
                } else {
                    self.unreported.insert(deadline, sent);
                }
            }
            telemetry::add(Counter::SessionEnds(session_end(error)), 1);
            telemetry::adjust(Gauge::Sessions(transport), -1);
            telemetry::adjust(Gauge::ShardSessions(self.id), -1);
            self.context.figures(self.id).sessions.fetch_sub(1, Ordering::Relaxed);
            self.work.notify_one();
        } else {
            telemetry::add(Counter::Handshakes(handshake_result(error)), 1);
        }
        self.end_handshake(conn);
    }

    /// A connection that is over may still take its last frames. Beyond a bound the oldest ones of these close at once.
    fn count_closing(&mut self, conn: ConnRef, deadline: Millis) {
        self.closing.insert((deadline, conn));
        telemetry::adjust(Gauge::Closing, 1);
        // When all leave, all close at once, and there are no more than there were.
        let bound = if self.leaving.is_some() { usize::MAX } else { self.context.config.max_closing };
        while self.closing.len() > bound
            && let Some((_, oldest)) = self.closing.pop_first()
        {
            telemetry::adjust(Gauge::Closing, -1);
            if let Some(connection) = self.connection(oldest) {
                connection.flags.broken = true;
                self.wake(oldest);
            }
        }
    }

    /// The connection is done.
    pub(super) fn remove(&mut self, conn: ConnRef) {
        self.fail(conn, DeviceError::Closed);
        if let Some(connection) = self.connection(conn) {
            if let Phase::Closing { deadline } = connection.phase
                && self.closing.remove(&(deadline, conn))
            {
                telemetry::adjust(Gauge::Closing, -1);
            }
            let gone = self.connections.remove(conn.slot as usize);
            self.memory.went(gone.transport());
            self.work.notify_one();
        }
    }
}

/// Counts a connection that ended before it was taken in.
pub(super) fn count_refused(transport: Transport, error: DeviceError) {
    telemetry::add(Counter::Connections(transport), 1);
    telemetry::add(Counter::Handshakes(handshake_result(error)), 1);
}

fn handshake_result(error: DeviceError) -> HandshakeResult {
    match error {
        DeviceError::Malformed(_) => HandshakeResult::Malformed,
        DeviceError::FrameTooLarge => HandshakeResult::FrameTooLarge,
        DeviceError::HelloExpected => HandshakeResult::HelloExpected,
        DeviceError::Unauthenticated => HandshakeResult::Unauthenticated,
        DeviceError::RegistrationClosed => HandshakeResult::RegistrationClosed,
        DeviceError::Deadline | DeviceError::Silent | DeviceError::Unfinished => HandshakeResult::Deadline,
        DeviceError::Exhausted
        | DeviceError::NoMemory
        | DeviceError::Limited { .. }
        | DeviceError::Crowded => HandshakeResult::Exhausted,
        DeviceError::NoDescriptor => HandshakeResult::Descriptors,
        DeviceError::Unavailable | DeviceError::Leaving => HandshakeResult::Unavailable,
        DeviceError::Unimplemented => HandshakeResult::Unimplemented,
        DeviceError::Tls => HandshakeResult::Tls,
        DeviceError::Evicted => HandshakeResult::Evicted,
        DeviceError::Closed | DeviceError::Replaced | DeviceError::Stalled | DeviceError::Unreachable => {
            HandshakeResult::Closed
        }
    }
}

fn session_end(error: DeviceError) -> SessionEnd {
    match error {
        DeviceError::Malformed(_) | DeviceError::HelloExpected => SessionEnd::Malformed,
        DeviceError::FrameTooLarge => SessionEnd::FrameTooLarge,
        DeviceError::Silent => SessionEnd::Silent,
        DeviceError::Replaced => SessionEnd::Replaced,
        DeviceError::Leaving => SessionEnd::Leaving,
        DeviceError::Stalled => SessionEnd::Stalled,
        DeviceError::Closed => SessionEnd::Closed,
        DeviceError::Unfinished => SessionEnd::Unfinished,
        DeviceError::Crowded => SessionEnd::Crowded,
        DeviceError::Unreachable => SessionEnd::Unreachable,
        // Of a session that was welcome: its credential was revoked.
        DeviceError::Unauthenticated => SessionEnd::Revoked,
        _ => SessionEnd::Error,
    }
}
