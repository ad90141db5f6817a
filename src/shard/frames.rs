//! What each frame of a device brings about.

use super::state::{ConnRef, Phase, Shard};
use crate::error::DeviceError;
use crate::ids::{MessageId, SessionRef};
use crate::push::{Attributes, Event, Millis, Seen};
use crate::store::{Command, DeviceAck};
use crate::telemetry::{self, Timer};
use crate::wire::device::{self as wire, ToEdge};
use crate::wire::pb::device::ErrorCode;

/// Requests of one session that may wait for the journal.
const REQUESTS: usize = 8;

impl Shard {
    /// Handles one frame; answers go to `out`.
    pub(super) fn handle(
        &mut self,
        conn: ConnRef,
        frame: ToEdge,
        out: &mut Vec<u8>,
    ) -> Result<(), DeviceError> {
        let now = self.now();
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        match (&connection.phase, frame) {
            (Phase::Greeting { .. }, ToEdge::Hello(hello)) => self.hello(conn, *hello, out),
            (Phase::Greeting { .. }, _) | (_, ToEdge::Hello(_)) => Err(DeviceError::HelloExpected),
            (_, ToEdge::Ping) => {
                wire::put_pong(out, now);
                Ok(())
            }
            (_, ToEdge::Ack { number, events }) => self.ack(conn, number, events),
            (_, ToEdge::Change { request_id, attributes, push_on }) => {
                self.change(conn, request_id, attributes, push_on, out);
                Ok(())
            }
            (_, ToEdge::Unimplemented { request_id }) => {
                wire::put_reply(out, request_id, Err(ErrorCode::Unimplemented));
                Ok(())
            }
            (_, ToEdge::Unknown) => Ok(()),
        }
    }

    /// Acks are collected over a turn, and go to the store in one command.
    fn ack(
        &mut self,
        conn: ConnRef,
        number: u64,
        events: Vec<(MessageId, Event, Millis)>,
    ) -> Result<(), DeviceError> {
        let (now, shard) = (self.now(), self.id);
        self.note_move(conn);
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        let Phase::Live(live) = &mut connection.phase else { return Ok(()) };
        for (message, event, _) in &events {
            if *event == Event::Arrive
                && let Some(accepted_at) = live.session.accepted_at(*message)
            {
                telemetry::observe(Timer::AcceptToArrive, now.saturating_sub(accepted_at) as f64 / 1e3);
            }
        }
        let events = live.session.handle_ack(number, events)?;
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
        let ack = DeviceAck { device: live.device, session, number, events };
        self.acks.push(ack);
        // Room in the window: there may be more to send.
        self.mark_dirty(conn);
        self.work.notify_one();
        Ok(())
    }

    /// A device that goes on from another address, as QUIC allows: its receipts say so from here on.
    fn note_move(&mut self, conn: ConnRef) {
        let (shard, store) = (self.id, self.context.store.clone());
        let Some(connection) = self.connection(conn) else { return };
        let moved = connection.stream.moved_to().filter(|address| address.ip() != connection.peer.ip());
        let (Some(address), Phase::Live(live)) = (moved, &connection.phase) else { return };
        let seen = Seen {
            key: live.device,
            app: live.app.clone(),
            device_id: live.device_id.clone(),
            attributes: live.attributes.clone(),
            push_on: None,
            client_ip: address.ip().to_canonical(),
        };
        // No slot has this number: nobody waits for an answer.
        let nobody = SessionRef { generation: live.generation, slot: u32::MAX, shard };
        // A store that is busy is told with the next Ack.
        if store.submit(Command::Seen { device: Box::new(seen), session: nobody }).is_ok() {
            connection.peer = address;
        }
    }

    /// Attributes or the switch: answered when durable.
    fn change(
        &mut self,
        conn: ConnRef,
        request_id: u64,
        attributes: Option<Attributes>,
        push_on: Option<bool>,
        out: &mut Vec<u8>,
    ) {
        let shard = self.id;
        let store = self.context.store.clone();
        let Some(connection) = self.connection(conn) else { return };
        let client_ip = connection.client_ip();
        let Phase::Live(live) = &mut connection.phase else { return };
        if live.replies.len() >= REQUESTS {
            wire::put_reply(out, request_id, Err(ErrorCode::ResourceExhausted));
            return;
        }
        if let Some(attributes) = attributes {
            live.attributes = attributes;
        }
        let seen = Seen {
            key: live.device,
            app: live.app.clone(),
            device_id: live.device_id.clone(),
            attributes: live.attributes.clone(),
            push_on,
            client_ip,
        };
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard };
        if store.submit(Command::Seen { device: Box::new(seen), session }).is_err() {
            wire::put_reply(out, request_id, Err(ErrorCode::ResourceExhausted));
            return;
        }
        live.replies.push_back(request_id);
    }

    /// A request is durable (or the store is at a maximum): exactly one reply, in order.
    pub(super) fn replied(&mut self, conn: ConnRef, taken: bool, out: &mut Vec<u8>) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
            && let Some(request_id) = live.replies.pop_front()
        {
            let result = if taken { Ok(()) } else { Err(ErrorCode::ResourceExhausted) };
            wire::put_reply(out, request_id, result);
        }
    }
}
