//! Deadlines of a shard's connections. Timers are lazy: what is due is looked at, and put back if its deadline has moved.

use super::state::{ConnRef, Phase, Shard};
use super::stream::Stream;
use crate::error::DeviceError;
use crate::fault::{self, Fault};
use crate::push::Millis;

/// What a due entry of the keepalive wheel means.
enum Due {
    Later(Millis),
    End(DeviceError),
    Close,
}

impl Shard {
    /// Everything that is due.
    pub(super) fn fire(&mut self) {
        let now = self.now();
        let mut due = Vec::new();
        self.keepalive.advance(now, &mut due);
        for conn in due.drain(..) {
            self.check_keepalive(conn, now);
        }
        self.overdue.advance(now, &mut due);
        for conn in due.drain(..) {
            self.check_overdue(conn);
        }
        self.stalls.advance(now, &mut due);
        for conn in due.drain(..) {
            self.check_stall(conn, now);
        }
        self.unheard.advance(now, &mut due);
        for conn in due.drain(..) {
            self.check_unheard(conn, now);
        }
        self.check_begun(now);
        self.suspects.advance(now, &mut due);
        for conn in due.drain(..) {
            self.check_suspect(conn, now);
        }
        self.recalls.retry();
        self.unreported.advance(now, &mut self.sent_alone);
        for conn in std::mem::take(&mut self.want_body) {
            if let Some(connection) = self.connection(conn) {
                connection.flags.waits_for_body = false;
            }
            self.mark_dirty(conn);
        }
        self.fire_leaving(now);
    }

    fn check_keepalive(&mut self, conn: ConnRef, now: Millis) {
        let report_ms = self.context.store.report_ms();
        let Some(connection) = self.connection(conn) else { return };
        let due = match &connection.phase {
            Phase::Greeting { deadline } if *deadline <= now => Due::End(DeviceError::Deadline),
            Phase::Registering(r) if r.deadline <= now => Due::End(DeviceError::Unavailable),
            Phase::Live(live) if live.session.silent_at() <= now => Due::End(DeviceError::Silent),
            Phase::Closing { deadline } if *deadline <= now => Due::Close,
            Phase::Greeting { deadline } | Phase::Closing { deadline } => Due::Later(*deadline),
            Phase::Registering(registering) => Due::Later(registering.deadline),
            // In between its activity is reported.
            Phase::Live(live) => Due::Later(live.session.silent_at().min(now.saturating_add(report_ms))),
        };
        // Who stays connected for months is not forgotten if the edge then stops.
        let active = match &connection.phase {
            Phase::Live(live) if !fault::is(Fault::ActivityUnsaid) => live.last_active(),
            _ => None,
        };
        self.last_active.extend(active);
        let Some(connection) = self.connection(conn) else { return };
        match due {
            Due::Later(deadline) => self.keepalive.insert(deadline, conn),
            Due::End(error) => self.fail(conn, error),
            Due::Close => {
                connection.flags.broken = true;
                self.wake(conn);
            }
        }
    }

    /// An outbox may have stood still for too long. What it holds stays pending, for the device's next session.
    fn check_stall(&mut self, conn: ConnRef, now: Millis) {
        let patience = self.context.config.stall_deadline_ms;
        let Some(connection) = self.connection(conn) else { return };
        match connection.outbox.still_since().map(|since| since + patience) {
            None => connection.flags.stall_armed = false,
            Some(at) if at > now => self.stalls.insert(at, conn),
            Some(_) => self.fail(conn, DeviceError::Stalled),
        }
    }

    /// A QUIC connection was written to: what is sent makes the peer answer, or it can't be reached any more.
    pub(super) fn expect_answer(&mut self, conn: ConnRef) {
        let (now, patience) = (self.now(), Millis::from(self.context.config.user_timeout_ms));
        if let Some(connection) = self.connection(conn)
            && let Stream::Quic(quic) = &mut connection.stream
            && quic.wrote(now)
        {
            self.unheard.insert(now + patience, conn);
        }
    }

    /// As `TCP_USER_TIMEOUT` does: nothing came for so long since something was written.
    fn check_unheard(&mut self, conn: ConnRef, now: Millis) {
        let patience = Millis::from(self.context.config.user_timeout_ms);
        let Some(connection) = self.connection(conn) else { return };
        let Stream::Quic(quic) = &mut connection.stream else { return };
        match quic.unanswered_since() {
            None => {}
            Some(since) if since + patience > now => self.unheard.insert(since + patience, conn),
            Some(_) => self.fail(conn, DeviceError::Unreachable),
        }
    }

    fn fire_leaving(&mut self, now: Millis) {
        let Some(leaving) = &mut self.leaving else { return };
        let mut due = Vec::new();
        leaving.wheel.advance(now, &mut due);
        let force = leaving.until <= now;
        for conn in due {
            self.fail(conn, DeviceError::Leaving);
        }
        if force {
            for conn in self.all() {
                if let Some(connection) = self.connection(conn) {
                    connection.flags.broken = true;
                }
                self.wake(conn);
            }
        }
    }
}
