//! What a shard holds in memory: counted where it changes in one place, or from what is there, and told to the budget at the end of each turn.

use std::cell::Cell;
use std::sync::Arc;

use super::DeviceContext;
use super::state::Shard;
use crate::budget::{Budget, Held, Part, State};
use crate::limits;
use crate::push::Acked;
use crate::store::{DeviceAck, SentAlone};
use crate::telemetry::{self, Gauge, Transport};

/// Bytes of a connection with its session: measured (`loadtest hold`), without its device, which is the index's.
const TCP_BYTES: usize = 800;
const TLS_BYTES: usize = 4_300;
const QUIC_BYTES: usize = 19_500;
/// Bytes of a handshake beside that, until the Hello.
const HANDSHAKE_BYTES: usize = 8 * 1024;
/// Bytes of a full window of a session, about.
const IN_FLIGHT_BYTES: usize = limits::WINDOW * 32;
/// Bytes of an ack that waits for the store, beside its events.
const ACK_BYTES: usize = size_of::<DeviceAck>() + 16;

/// What all outboxes of a shard hold. They change it themselves, as they come, grow and go.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) outboxes: Cell<usize>,
    pub(super) bytes: Cell<usize>,
    /// What QUIC keeps beside an outbox that isn't empty: sent and not acknowledged.
    pub(super) beside_quic: usize,
}

/// The shard's places in the budget.
#[derive(Debug)]
pub(super) struct Memory {
    budget: Arc<Budget>,
    /// Connections, in the order of [`Transport`].
    connections: [usize; Transport::ALL.len()],
    sessions: Held,
    begun: Held,
    outboxes: Held,
    /// As the metric has it.
    outboxes_shown: usize,
}

impl Memory {
    pub(super) fn new(context: &DeviceContext) -> Self {
        let budget = context.budget.clone();
        let hold = |part| budget.hold(part);
        let (sessions, begun, outboxes) =
            (hold(Part::Sessions), hold(Part::BegunFrames), hold(Part::Outboxes));
        Self { connections: [0; 3], sessions, begun, outboxes, outboxes_shown: 0, budget }
    }

    pub(super) fn came(&mut self, transport: Transport) {
        self.connections[transport as usize] += 1;
    }

    pub(super) fn went(&mut self, transport: Transport) {
        self.connections[transport as usize] -= 1;
    }

    /// Frames that are begun hold so many bytes.
    pub(super) fn set_begun(&mut self, bytes: usize) {
        self.begun.set(bytes);
    }
}

impl Shard {
    /// Bytes that may wait for one device before its list is drained no further: little where memory is short, as there may be as many outboxes as
    /// devices that don't read.
    pub(super) fn outbox_bytes(&self) -> usize {
        match self.context.budget.state() {
            State::Ample => limits::OUTBOX_BYTES,
            State::Tight => limits::OUTBOX_BYTES / 4,
            State::Full | State::Over => limits::PUSH_ENCODED_BYTES,
        }
    }

    /// Tells the budget what is held, and looks how full memory is.
    pub(super) fn count_memory(&mut self) {
        let [tcp, tls, quic] = self.memory.connections;
        let connections = tcp * TCP_BYTES + tls * TLS_BYTES + quic * QUIC_BYTES;
        let handshakes = self.door.len() * HANDSHAKE_BYTES;
        // One entry a session with something in flight, or a connection over QUIC that was written to.
        let in_flight = self.overdue.len() * IN_FLIGHT_BYTES;
        let unreported = self.unreported.len() * size_of::<SentAlone>();
        // None, unless the store's queue is full.
        let acks = self.acks.iter().map(|ack| ACK_BYTES + ack.events.capacity() * size_of::<Acked>());
        let (outboxes, bytes) = (self.tally.outboxes.get(), self.tally.bytes.get());
        let memory = &mut self.memory;
        memory.sessions.set(connections + handshakes + in_flight + unreported + acks.sum::<usize>());
        memory.outboxes.set(bytes);
        let before = std::mem::replace(&mut memory.outboxes_shown, outboxes);
        if before != outboxes {
            telemetry::adjust(Gauge::Outboxes, outboxes as i64 - before as i64);
        }
        memory.budget.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Way;
    use crate::error::DeviceError;
    use crate::ids::{AppKey, DeviceKey, Generation, SessionRef, ShardId};
    use crate::shard::recalls;

    #[test]
    fn where_memory_is_used_up_only_devices_that_have_a_session_get_another() {
        let (mut shard, _) = recalls::tests::shard();
        let budget = Arc::new(Budget::new(1_000_000));
        let context = Arc::get_mut(&mut shard.context).expect("nobody else has it");
        context.budget = budget.clone();
        let context = shard.context.clone();
        let (app, [known, other]) =
            (AppKey::parse("app").expect("valid"), [DeviceKey([1; 16]), DeviceKey([2; 16])]);
        let session = SessionRef { generation: Generation(1), slot: 0, shard: ShardId(0) };
        let way = Way { since: 0, transport: Transport::Tcp };
        assert!(context.directory.enter(known, session, way).is_ok());
        let mut others = budget.hold(Part::Base);
        for (percent, outbox, gets_in) in [
            (0, limits::OUTBOX_BYTES, true),
            (61, limits::OUTBOX_BYTES / 4, true),
            (80, limits::PUSH_ENCODED_BYTES, true),
            (90, limits::PUSH_ENCODED_BYTES, false),
        ] {
            others.set(percent * 10_000);
            budget.look();
            assert_eq!(shard.outbox_bytes(), outbox);
            assert_eq!(context.take_place(&app, &known, Transport::Tcp, 0), Ok(()), "at {percent} percent");
            let refused = if gets_in { Ok(()) } else { Err(DeviceError::NoMemory) };
            assert_eq!(context.take_place(&app, &other, Transport::Tcp, 0), refused, "at {percent} percent");
        }
    }
}
