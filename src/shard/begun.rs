//! Frames that were begun and not ended: what they hold is bounded on each shard, and so is the time that each of them takes.
//!
//! Counted is all that a connection keeps of what came: the beginning of a frame, or of a TLS record, and whole frames that wait until the session
//! may be read again. Time runs only while the device could go on.

use super::state::{ConnRef, Phase, Shard};
use crate::error::DeviceError;
use crate::push::Millis;

impl Shard {
    /// Something was read and handled: counts what is left of it. If that is too much on this shard, somebody has to go.
    pub(super) fn note_begun(&mut self, conn: ConnRef) {
        self.count_begun(conn);
        while self.begun.bytes() > self.context.config.max_begun_bytes
            && let Some(conn) = self.begun.crowding()
        {
            // What it holds is thrown away by that, and counted no more.
            self.fail(conn, DeviceError::Crowded);
        }
        self.publish_begun();
    }

    /// Tells the budget, when room was made: what it says is never over the bound.
    fn publish_begun(&mut self) {
        self.memory.set_begun(self.begun.bytes());
    }

    /// Counts what a connection holds now.
    pub(super) fn count_begun(&mut self, conn: ConnRef) {
        let now = self.now();
        let Some(connection) = self.connection(conn) else { return };
        let retained = connection.tls.as_ref().map_or(0, |tls| tls.retained.len());
        let bytes = connection.partial.len() + retained;
        let anew = std::mem::take(&mut connection.flags.frame_ended);
        if bytes == 0 && !connection.flags.begun {
            return;
        }
        connection.flags.begun = bytes > 0;
        self.begun.hold(conn, bytes, now, anew);
    }

    /// Frames that should have been ended by now.
    pub(super) fn check_begun(&mut self, now: Millis) {
        let patience = self.context.config.frame_deadline_ms;
        while let Some((conn, since)) = self.begun.oldest()
            && since + patience <= now
        {
            // Before Hello there is another deadline.
            let is_live = self.connection(conn).is_some_and(|c| matches!(c.phase, Phase::Live(_)));
            if is_live && self.may_read(conn) {
                self.fail(conn, DeviceError::Unfinished);
            } else {
                self.begun.restart(conn, now);
            }
        }
        // What connections that are over held.
        self.publish_begun();
    }
}
