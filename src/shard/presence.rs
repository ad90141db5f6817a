//! What a shard says of its sessions to those who follow presence: marks when something changes, slices of all when a snapshot is made.

use super::state::{ConnRef, Live, Phase, Shard};
use crate::presence::{Change, Mark, Slice, State};
use crate::push::Millis;

/// Slots that one slice looks at: one slice a turn.
const SLICE_SLOTS: u32 = 1_024;

impl Shard {
    /// The session changed something: after the directory knows.
    pub(super) fn mark_presence(&self, live: &Live, state: State) {
        let time = self.now();
        self.context.presence.mark(self.id, || Mark {
            device: live.device,
            generation: live.generation,
            change: change(live, state, time),
        });
    }

    /// The same, of a connection.
    pub(super) fn mark_presence_of(&self, conn: ConnRef, state: State) {
        if let Some(connection) = self.connections.get(conn.slot as usize)
            && connection.serial == conn.serial
            && let Phase::Live(live) = &connection.phase
        {
            self.mark_presence(live, state);
        }
    }

    /// Bytes came: whatever is unacknowledged, the device is there.
    pub(super) fn no_longer_suspect(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
            && live.session.is_suspect()
        {
            live.session.handle_suspect(false);
            self.mark_presence_of(conn, State::Connected);
            self.arm_suspect(conn);
        }
    }

    /// Puts the session into the wheel of those that may become suspect, unless it is there or nothing is in flight.
    pub(super) fn arm_suspect(&mut self, conn: ConnRef) {
        let patience = self.context.config.suspect_after_ms;
        if let Some(connection) = self.connection(conn)
            && !connection.flags.suspect_armed
            && let Phase::Live(live) = &connection.phase
            && let Some(at) = live.session.suspect_at(patience)
        {
            connection.flags.suspect_armed = true;
            self.suspects.insert(at, conn);
        }
    }

    /// A push may be unacknowledged for too long.
    pub(super) fn check_suspect(&mut self, conn: ConnRef, now: Millis) {
        let patience = self.context.config.suspect_after_ms;
        let Some(connection) = self.connection(conn) else { return };
        connection.flags.suspect_armed = false;
        let Phase::Live(live) = &mut connection.phase else { return };
        if live.session.suspect_at(patience).is_some_and(|at| at <= now) {
            live.session.handle_suspect(true);
            self.mark_presence_of(conn, State::Suspect);
        } else {
            self.arm_suspect(conn);
        }
    }

    /// Answers one request for a part of the sessions. Whether more are waiting.
    pub(super) fn answer_slice(&mut self) -> bool {
        if let Some(request) = self.slices.pop_front() {
            let until = request.from.saturating_add(SLICE_SLOTS);
            let mut sessions = Vec::new();
            for slot in request.from..until {
                let Some(connection) = self.connections.get(slot as usize) else { continue };
                let Phase::Live(live) = &connection.phase else { continue };
                if request.scope.contains(&live.app) {
                    let state = if live.session.is_suspect() { State::Suspect } else { State::Connected };
                    sessions.push(change(live, state, connection.since));
                }
            }
            let next = ((until as usize) < self.connections.capacity()).then_some(until);
            // Whoever asked may have gone.
            request.reply.send(Slice { sessions, next }).ok();
        }
        !self.slices.is_empty()
    }
}

fn change(live: &Live, state: State, time: Millis) -> Change {
    Change { app: live.app.clone(), device_id: live.device_id.clone(), state, time }
}
