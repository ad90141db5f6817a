//! What each frame of a device brings about.

use super::state::{ConnRef, Live, Phase, Shard, Waiting, get};
use crate::binding::{Change, ChangeError};
use crate::error::DeviceError;
use crate::fault::{self, Fault};
use crate::ids::{MessageId, SessionRef};
use crate::push::{Event, Millis};
use crate::store::{Command, DeviceAck};
use crate::telemetry::{self, Timer};
use crate::wire::device::{self as wire, ToEdge};
use crate::wire::pb::device::ErrorCode;

impl Shard {
    /// Handles one frame; answers go to `out`.
    pub(super) fn handle(
        &mut self,
        conn: ConnRef,
        frame: ToEdge,
        out: &mut Vec<u8>,
    ) -> Result<(), DeviceError> {
        let now = self.now();
        if self.is_revoked(conn) {
            return Err(DeviceError::Unauthenticated);
        }
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        match (&connection.phase, frame) {
            (Phase::Greeting { .. }, ToEdge::Hello(hello)) => self.hello(conn, *hello, out),
            (Phase::Greeting { .. }, _) | (_, ToEdge::Hello(_)) => Err(DeviceError::HelloExpected),
            (_, ToEdge::Ping) => {
                self.ping(conn);
                wire::put_pong(out, now);
                Ok(())
            }
            (_, ToEdge::Ack { number, events }) => {
                if fault::is(Fault::ConfirmOnRead) {
                    wire::put_ack_confirm(out, number);
                }
                self.ack(conn, number, &events)
            }
            (_, ToEdge::Request { request_id, change }) => {
                self.request(conn, request_id, change, out);
                Ok(())
            }
            (_, ToEdge::Unknown) => Ok(()),
        }
    }

    /// The Pong confirms what is durable by now; what becomes so later is confirmed then.
    fn ping(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
            && live.session.handle_ping()
        {
            self.expect_confirms();
        }
    }

    /// Appends what is durable and the device doesn't know yet, to what is written to it anyway.
    pub(super) fn put_confirm(&mut self, conn: ConnRef, out: &mut Vec<u8>) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
            && let Some(number) = live.session.poll_confirm()
        {
            wire::put_ack_confirm(out, number);
        }
    }

    /// Whether the session's credential was revoked since the last turn: the next one ends it, and nothing that it says until then counts.
    fn is_revoked(&mut self, conn: ConnRef) -> bool {
        if !self.context.mailboxes[usize::from(self.id.0)].has_revoked() {
            return false;
        }
        let context = self.context.clone();
        let phase = self.connection(conn).map(|connection| &connection.phase);
        matches!(phase, Some(Phase::Live(live)) if context.store.revocation(&live.device).ends(live.epoch))
    }

    /// Acks are collected over a turn, and go to the store in one command.
    fn ack(
        &mut self,
        conn: ConnRef,
        number: u64,
        events: &[(MessageId, Event, Millis)],
    ) -> Result<(), DeviceError> {
        let (now, shard) = (self.now(), self.id);
        self.note_move(conn);
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        let client_ip = Some(connection.client_ip());
        let Phase::Live(live) = &mut connection.phase else { return Ok(()) };
        for (message, event, _) in events {
            if *event == Event::Arrive
                && let Some(accepted_at) = live.session.accepted_at(*message)
            {
                telemetry::observe(Timer::AcceptToArrive, now.saturating_sub(accepted_at) as f64 / 1e3);
            }
        }
        let events = live.session.handle_ack(number, events)?;
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
        let ack = DeviceAck { device: live.device, session, number, client_ip, events };
        let has_newer = live.session.has_newer();
        self.acks.push(ack);
        // Room in the window, for what there is more to send.
        if has_newer {
            self.mark_dirty(conn);
        }
        self.work.notify_one();
        Ok(())
    }

    /// A device that goes on from another address, as QUIC allows: its receipts say so from here on.
    fn note_move(&mut self, conn: ConnRef) {
        let Self { id: shard, context, connections, .. } = self;
        let Some(connection) = get(connections, conn) else { return };
        let moved = connection.stream.moved_to().filter(|address| address.ip() != connection.peer.ip());
        let (Some(address), Phase::Live(live)) = (moved, &connection.phase) else { return };
        let change = Box::new(Change::Moved(address.ip().to_canonical()));
        // No slot has this number: nobody waits for an answer.
        let session = SessionRef { generation: live.generation, slot: u32::MAX, shard: *shard };
        // A store that is busy is told with the next Ack.
        if context.store.submit(Command::Change { device: live.device, session, change }).is_ok() {
            connection.peer = address.into();
        }
    }

    /// A request: answered once, when it is durable, in the order of asking.
    fn request(
        &mut self,
        conn: ConnRef,
        request_id: u64,
        change: Result<Box<Change>, ErrorCode>,
        out: &mut Vec<u8>,
    ) {
        let shard = self.id;
        let store = self.context.store.clone();
        let Some(connection) = self.connection(conn) else { return };
        let Phase::Live(live) = &mut connection.phase else { return };
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
        let submitted = change.and_then(|change| {
            let command = Command::Change { device: live.device, session, change };
            store.submit(command).map_err(|_refused| ErrorCode::ResourceExhausted)
        });
        // What is not on its way to the journal still waits for those before it.
        let waiting = Waiting { request_id, answer: submitted.err().map(Err) };
        live.seldom.put(|parts| parts.replies.push(waiting));
        live.put_replies(out);
    }

    /// The oldest request that was submitted is durable, or has no room.
    pub(super) fn changed(&mut self, conn: ConnRef, result: Result<(), ChangeError>, out: &mut Vec<u8>) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
        {
            live.seldom.edit(|parts| {
                let oldest = parts.replies.iter_mut().find(|waiting| waiting.answer.is_none());
                if let Some(oldest) = oldest {
                    oldest.answer = Some(result.map_err(|error| match error {
                        ChangeError::TooMany(_) => ErrorCode::Invalid,
                        ChangeError::Exhausted => ErrorCode::ResourceExhausted,
                    }));
                }
            });
            live.put_replies(out);
        }
    }
}

impl Live {
    /// The replies that are next and known.
    fn put_replies(&mut self, out: &mut Vec<u8>) {
        while let Some(&Waiting { request_id, answer: Some(answer) }) = self.seldom.replies().first() {
            if request_id != 0 {
                wire::put_reply(out, request_id, answer);
            }
            self.seldom.edit(|parts| parts.replies.remove(0));
        }
    }
}
