//! What a router's link says next, and when it has been silent for too long. Pure: no I/O, no clock.

use std::collections::VecDeque;

use super::Ledger;
use super::link::Outgoing;
use super::revokes::Revokes;
use crate::client::ClientError;
use crate::push::Millis;
use crate::wire::pb::router::{Ping, StreamAck};

/// Milliseconds without a frame of ours before a Ping; the edge closes a link that was silent for 90 s.
const PING_MS: Millis = 30_000;
/// Milliseconds after a Ping within which something has to come.
const PONG_MS: Millis = 30_000;

/// A link's own state.
pub(super) struct Session {
    /// Waits for a place at the writer.
    pub(super) next: Option<Outgoing>,
    /// Acknowledgements of streams, which go before batches. Bounded by the streams' windows.
    pub(super) acks: VecDeque<StreamAck>,
    last_sent: Millis,
    /// When a Ping went out that nothing has followed.
    pub(super) pinged: Option<Millis>,
    /// The edge leaves: it takes no more batches here.
    pub(super) leaving: bool,
}

impl Session {
    pub(super) fn new(now: Millis) -> Self {
        Self { next: None, acks: VecDeque::new(), last_sent: now, pinged: None, leaving: false }
    }

    pub(super) fn poll_send(
        &mut self,
        now: Millis,
        ledger: &mut Ledger,
        revokes: &mut Revokes,
    ) -> Option<Outgoing> {
        let next = if let Some(ack) = self.acks.pop_front() {
            Some(Outgoing::Ack(ack))
        } else if let Some(revoke) = revokes.poll_send() {
            Some(Outgoing::Revoke(revoke))
        } else if let Some(batch) = (!self.leaving).then(|| ledger.poll_send(now)).flatten() {
            Some(Outgoing::Batch(batch))
        } else if self.pinged.is_none() && now >= self.last_sent + PING_MS {
            self.pinged = Some(now);
            Some(Outgoing::Ping(Ping { nonce: now }))
        } else {
            None
        };
        if next.is_some() {
            self.last_sent = now;
        }
        next
    }

    pub(super) fn next_timeout(&self) -> Millis {
        self.pinged.map_or(self.last_sent + PING_MS, |pinged| pinged + PONG_MS)
    }

    /// What is wrong if nothing has come for too long.
    pub(super) fn silent(&self, now: Millis) -> Option<ClientError> {
        let is_silent = self.pinged.is_some_and(|at| now >= at + PONG_MS);
        is_silent.then_some(ClientError::Deadline { what: "frame after a ping", seconds: PONG_MS / 1_000 })
    }
}
