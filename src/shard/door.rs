//! Places for connections that have not said Hello yet, `max_handshakes` on each shard.
//!
//! A newcomer gets one as soon as somebody may be sent away for it: the one that has waited longest among those of the address that takes the
//! most ([`crate::machine::door`]), as at the routers' door. But here a storm is honest as a rule: after a restart of a balancer all devices come
//! at once, and all from one address. Sending handshakes away that are half done would then be the worst to do: their devices come again, and
//! nobody ever gets in. So nobody is sent away before its time:
//!
//! * Who has shown nothing of itself has [`SHOW_MS`]. A device's first bytes come right behind its connection. What lies unread because the
//!   shard is busy counts as shown.
//! * Who was answered (TLS: its `ClientHello` was whole; QUIC: always) has [`FINISH_MS`] from its accept: a round trip over a bad radio link, lost
//!   packets included. Bytes that only trickle in don't prolong it.
//! * Whose Hello is on its way to the journal stays.
//!
//! Until somebody's time has come the newcomer waits, one a listener; the others wait with the kernel. So silent connections hold a place for half
//! a second each once places are short, and a stranger has to open `max_handshakes` twice a second on each shard to make others wait: then
//! a limit per address in front has to help.
//!
//! Rejected: making room at once, as routers' links do. Their storms are small.

use std::time::Duration;

use super::state::{ConnRef, Phase, Shard, Shared};
use super::stream::Stream;
use crate::error::DeviceError;
use crate::push::Millis;

/// Milliseconds from accept in which a connection shows something of itself.
const SHOW_MS: Millis = 500;
/// Milliseconds from accept in which a connection that was answered says Hello.
const FINISH_MS: Millis = 3_000;
/// Milliseconds after which a connection whose bytes nobody has read yet is looked at again.
const LOOK_MS: Millis = 100;

/// Waits until the shard has a place for a newcomer.
pub(super) async fn place(shard: &Shared) {
    loop {
        let (gate, wait) = {
            let mut shard = shard.borrow_mut();
            let Some(wait) = shard.make_place() else { return };
            (shard.gate.clone(), Duration::from_millis(wait))
        };
        // Whether somebody left, or has to leave now: looked at again.
        tokio::time::timeout(wait, gate.notified()).await.ok();
    }
}

impl Shard {
    /// Gives a place to a connection that was accepted now.
    pub(super) fn enter_door(&mut self, conn: ConnRef) {
        let Some(connection) = self.connection(conn) else { return };
        let patience = match connection.stream {
            Stream::Tcp(_) => SHOW_MS,
            Stream::Quic(_) => FINISH_MS,
            #[cfg(feature = "sim")]
            Stream::Simulated(_) => SHOW_MS,
        };
        let (address, until) = (connection.peer.ip(), connection.since + patience);
        self.door.enter(conn, address, until);
    }

    /// It showed something that was answered.
    pub(super) fn was_answered(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn) {
            let until = connection.since + FINISH_MS;
            self.door.postpone(conn, until);
        }
    }

    /// Its Hello is on its way to the journal.
    pub(super) fn stays_at_door(&mut self, conn: ConnRef) {
        self.door.postpone(conn, Millis::MAX);
    }

    /// Makes room for a newcomer, perhaps at the cost of another. `None`: there is room; else look again after so many milliseconds.
    pub(super) fn make_place(&mut self) -> Option<Millis> {
        self.begin();
        let now = self.now();
        while self.door.len() >= self.context.config.max_handshakes {
            let (conn, until) = self.door.first()?;
            if until > now {
                return Some(until - now);
            }
            if self.is_unheard(conn) {
                // Each is put off or sent away: this ends.
                self.door.postpone(conn, now + LOOK_MS);
            } else {
                self.fail(conn, DeviceError::Evicted);
            }
        }
        None
    }

    /// It has said something that the shard has not read yet, and has time left.
    fn is_unheard(&mut self, conn: ConnRef) -> bool {
        let now = self.now();
        self.connection(conn).is_some_and(|connection| {
            matches!(connection.phase, Phase::Greeting { .. })
                && connection.since + FINISH_MS > now
                && connection.stream.has_unread()
        })
    }
}
