//! What a shard holds: its connections and what waits to be done for them.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use slab::Slab;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::DeviceContext;
use super::few::Few;
use super::identify::Grant;
use super::memory::{Memory, Tally};
use super::outbox::Outbox;
use super::recalls::Recalls;
use super::seldom::Seldom;
use super::stream::{Peer, Stream};
use super::timers::Look;
use super::tls::Tls;
use super::traffic::Traffic;
use crate::ids::{AppKey, DeviceKey, Generation, MessageId, Seq, SessionRef, ShardId};
use crate::machine::begun::Begun;
use crate::machine::door::Door;
use crate::machine::session::{Entry, Session};
use crate::machine::wheel::Wheel;
use crate::presence::SliceRequest;
use crate::push::{Millis, Priority};
use crate::store::{Batch, DeviceAck, Pulled, SentAlone};
use crate::telemetry::{self, Gauge, Transport};
use crate::wire::pb::device::ErrorCode;

/// Milliseconds in which an Ack is durable as a rule.
const CONFIRM_MS: Millis = 1_000;

/// A connection's slot, and a number that tells whether the slot has been used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct ConnRef {
    pub slot: u32,
    pub serial: u32,
}

/// One shard's state, owned by its thread.
pub(super) struct Shard {
    pub id: ShardId,
    pub context: Arc<DeviceContext>,
    pub connections: Slab<Connection>,
    next_serial: u32,
    /// Hello deadline, then heartbeat: one entry a connection.
    pub keepalive: Wheel<ConnRef>,
    /// Acknowledgement deadlines: one entry a session with something in flight.
    pub overdue: Wheel<ConnRef>,
    /// When QUIC connections have to have been heard: one entry each that was written to.
    pub unheard: Wheel<ConnRef>,
    /// Stall deadlines: one entry a connection whose outbox was not empty.
    pub stalls: Wheel<ConnRef>,
    /// When sessions with something in flight become suspect: one entry each.
    pub suspects: Wheel<ConnRef>,
    /// Parts of snapshots of presence that are asked for, one a router link at most.
    pub slices: VecDeque<SliceRequest>,
    /// Sessions to send away.
    pub leaving: Option<Leaving>,
    /// Connections that can go on: with news, or woken.
    pub ready: VecDeque<ConnRef>,
    /// What tells of news of sockets; none in a simulation.
    pub registry: Option<mio::Registry>,
    /// Sessions with something to pull, in the order in which they were told.
    pub dirty: VecDeque<ConnRef>,
    /// Those that got something of high priority go first. They may stand in `dirty` too.
    pub urgent: VecDeque<ConnRef>,
    /// Until then, or until one has come, a session may wait for a confirmation; 0: none does.
    pub confirms_until: Millis,
    /// One has come since a session began to wait.
    pub confirms_came: bool,
    /// When the mailbox is looked into for confirmations that nobody waits for.
    pub mail_at: Option<Millis>,
    /// When timers are looked at.
    pub look: Look,
    /// Read in this turn, for one command to the store.
    pub acks: Vec<DeviceAck>,
    pub sent_alone: Vec<SentAlone>,
    /// Written by sessions that have ended, until their deadline: then `sent` is reported on its own, unless it arrived on a later session.
    /// As many as are pending, at most.
    pub unreported: Wheel<SentAlone>,
    pub last_active: Vec<(DeviceKey, Millis)>,
    /// Whom to tell of messages that were taken back.
    pub recalls: Recalls,
    /// Connections that are not read because `acks` is full.
    pub paused: Vec<ConnRef>,
    /// Sessions whose body read was refused as busy.
    pub want_body: Vec<ConnRef>,
    /// Handshake steps left in this turn, and who waits for the next.
    pub handshake_steps: usize,
    pub deferred: VecDeque<ConnRef>,
    /// Who has not said Hello yet.
    pub door: Door<ConnRef>,
    /// Frames that were begun and not ended.
    pub begun: Begun<ConnRef>,
    /// What it holds, as the budget has it.
    pub memory: Memory,
    /// Of all outboxes.
    pub tally: Rc<Tally>,
    /// Connections that are over, by when they close at the latest.
    pub closing: BTreeSet<(Millis, ConnRef)>,
    /// The accept loops.
    pub accepting: Vec<AbortHandle>,
    /// Wakes the turn.
    pub work: Rc<Notify>,
    /// Wakes those who wait for a place.
    pub gate: Rc<Notify>,
    pub scratch: Scratch,
    /// Entries on their way from the store to one session; empty between.
    pub pulled: Vec<Pulled>,
    /// What was last written, as it is likely what is written next; for one turn.
    pub body: Option<(Seq, Arc<[u8]>)>,
    pub traffic: Traffic,
    now: Millis,
}

/// Buffers that all connections of a shard share, one at a time.
#[derive(Default)]
pub(super) struct Scratch {
    /// As received.
    pub net: Vec<u8>,
    /// Decrypted.
    pub plain: Vec<u8>,
    /// Frames to send.
    pub frames: Vec<u8>,
    /// Encrypted.
    pub cipher: Vec<u8>,
}

/// The shard leaves.
pub(super) struct Leaving {
    pub wheel: Wheel<ConnRef>,
    pub until: Millis,
}

/// One connection.
pub(super) struct Connection {
    pub serial: u32,
    pub stream: Stream,
    /// Where it came from.
    pub peer: Peer,
    /// When it was accepted.
    pub since: Millis,
    /// `None`: plain TCP, or QUIC, which has its own.
    pub tls: Option<Box<Tls>>,
    pub phase: Phase,
    /// Received (over TLS: and decrypted) and not yet a whole frame.
    pub partial: Few<u8>,
    /// To be written when the socket takes it.
    pub outbox: Outbox,
    pub flags: Flags,
}

/// Small facts of a connection.
#[derive(Clone, Copy, Default)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Flags {
    /// In the queue of those that can go on.
    pub ready: bool,
    /// In the queue of those with something to pull.
    pub dirty: bool,
    /// In the queue of those with something of high priority.
    pub urgent: bool,
    /// An entry is in the wheel of acknowledgement deadlines.
    pub overdue_armed: bool,
    /// An entry is in the wheel of stall deadlines.
    pub stall_armed: bool,
    /// An entry is in the wheel of suspects.
    pub suspect_armed: bool,
    /// Whole frames were read that could not be handled yet.
    pub held: bool,
    /// A whole frame was handled since what is left was counted.
    pub frame_ended: bool,
    /// Counted among the frames that were begun.
    pub begun: bool,
    /// Waits for a body.
    pub waits_for_body: bool,
    /// Reads for itself of messages that were taken back.
    pub behind_on_recalls: bool,
    /// Stands among the paused.
    pub paused: bool,
    /// The write side is shut; what still comes is thrown away.
    pub shut: bool,
    /// The peer is gone: nothing more can be written.
    pub broken: bool,
}

/// Where a connection is in its life. Its session is part of it: almost all connections have one, and one allocation less is one look less into memory
/// that no cache has.
#[allow(clippy::large_enum_variant)]
pub(super) enum Phase {
    /// Until Hello, at the latest at this time.
    Greeting { deadline: Millis },
    /// Its Hello is on its way to the journal.
    Registering(Box<Registering>),
    /// Authenticated.
    Live(Live),
    /// Flushes, then lingers until the peer closes, at the latest at this time.
    Closing { deadline: Millis },
}

/// A Hello that waits until it is durable.
pub(super) struct Registering {
    pub live: Live,
    /// When the device was last active before.
    pub last_active: Option<Millis>,
    pub grant: Grant,
    pub deadline: Millis,
}

/// An authenticated session.
pub(super) struct Live {
    pub device: DeviceKey,
    pub generation: Generation,
    pub session: Session<InList>,
    pub app: AppKey,
    pub device_id: Arc<str>,
    /// Of the newest credential that the device has.
    pub epoch: u32,
    /// What almost none has.
    pub seldom: Seldom,
}

/// Messages that the device had when it said Hello: their entries end without being sent once more.
#[derive(Default)]
pub(super) struct Received {
    pub ids: Box<[MessageId]>,
    /// Of what was accepted up to here. Who sends one of them again later means it: that entry is not ended by the Hello, and has to be sent
    /// for the device to acknowledge it.
    pub until: Seq,
}

impl Received {
    /// Those that a Hello names; `None`: it names none.
    pub(super) fn of(ids: Vec<MessageId>) -> Option<Self> {
        (!ids.is_empty()).then(|| Self { ids: ids.into(), until: Seq(0) })
    }

    /// Whether the Hello ends an entry of this message.
    pub(super) fn covers(&self, seq: Seq, message: MessageId) -> bool {
        seq <= self.until && self.ids.contains(&message)
    }
}

/// A request that is not answered yet.
pub(super) struct Waiting {
    pub request_id: u64,
    /// Known, but not before its turn.
    pub answer: Option<Result<(), ErrorCode>>,
}

/// A pending entry as the session machine sees it.
#[derive(Clone, Debug)]
pub(super) struct InList(pub Arc<Batch>);

impl Entry for InList {
    fn seq(&self) -> Seq {
        self.0.seq
    }
    fn message(&self) -> MessageId {
        self.0.message
    }
    fn expires_at(&self) -> Millis {
        self.0.expires_at
    }
    fn online_only(&self) -> bool {
        self.0.online_only
    }
    fn accepted_at(&self) -> Millis {
        self.0.accepted_at
    }
    fn priority(&self) -> Priority {
        self.0.priority
    }
}

/// The connection, if it still is that one.
pub(super) fn get(connections: &mut Slab<Connection>, conn: ConnRef) -> Option<&mut Connection> {
    connections.get_mut(conn.slot as usize).filter(|c| c.serial == conn.serial)
}

/// The shard, shared by what runs on its thread.
pub(super) type Shared = Rc<RefCell<Shard>>;

impl Shard {
    pub(super) fn new(id: ShardId, context: Arc<DeviceContext>) -> Self {
        let now = context.clock.now();
        Self {
            id,
            connections: Slab::new(),
            next_serial: 0,
            keepalive: Wheel::new(now),
            overdue: Wheel::new(now),
            unheard: Wheel::new(now),
            stalls: Wheel::new(now),
            suspects: Wheel::new(now),
            slices: VecDeque::new(),
            leaving: None,
            ready: VecDeque::new(),
            registry: None,
            dirty: VecDeque::new(),
            urgent: VecDeque::new(),
            confirms_until: 0,
            confirms_came: false,
            mail_at: None,
            look: Look { soonest: now, wakes_at: now },
            acks: Vec::new(),
            sent_alone: Vec::new(),
            unreported: Wheel::new(now),
            last_active: Vec::new(),
            recalls: Recalls::new(*context.store.head().borrow()),
            paused: Vec::new(),
            want_body: Vec::new(),
            handshake_steps: crate::limits::TURN_HANDSHAKE_STEPS,
            deferred: VecDeque::new(),
            door: Door::default(),
            begun: Begun::default(),
            memory: Memory::new(&context),
            tally: Rc::new(Tally { beside_quic: context.config.send_buffer_bytes, ..Tally::default() }),
            closing: BTreeSet::new(),
            accepting: Vec::new(),
            work: Rc::new(Notify::new()),
            gate: Rc::new(Notify::new()),
            scratch: Scratch::default(),
            pulled: Vec::new(),
            body: None,
            traffic: Traffic::default(),
            now,
            context,
        }
    }

    /// Edge time as of the beginning of this turn or poll.
    pub(super) fn now(&self) -> Millis {
        self.now
    }

    /// A turn or a connection's poll begins.
    pub(super) fn begin(&mut self) {
        self.now = self.context.clock.now();
    }

    /// Takes in an accepted connection.
    pub(super) fn add(&mut self, stream: Stream, peer: SocketAddr, tls: Option<Box<Tls>>) -> ConnRef {
        self.begin();
        self.next_serial = self.next_serial.wrapping_add(1);
        let serial = self.next_serial;
        let deadline = self.now() + self.context.config.hello_deadline_ms;
        let connection = Connection {
            serial,
            stream,
            peer: peer.into(),
            since: self.now,
            tls,
            phase: Phase::Greeting { deadline },
            partial: Few::default(),
            outbox: Outbox::default(),
            flags: Flags::default(),
        };
        self.memory.came(connection.transport());
        let slot = self.connections.insert(connection);
        let conn = ConnRef { slot: slot as u32, serial };
        self.enter_door(conn);
        self.keepalive.insert(deadline, conn);
        // A shard that rests looks at its timers again.
        self.work.notify_one();
        conn
    }

    /// The connection, if it still is that one.
    pub(super) fn connection(&mut self, conn: ConnRef) -> Option<&mut Connection> {
        get(&mut self.connections, conn)
    }

    /// The connection of a session, if it is still that one.
    pub(super) fn session(&mut self, session: SessionRef) -> Option<ConnRef> {
        let connection = self.connections.get(session.slot as usize)?;
        let generation = match &connection.phase {
            Phase::Live(live) => live.generation,
            Phase::Registering(registering) => registering.live.generation,
            Phase::Greeting { .. } | Phase::Closing { .. } => return None,
        };
        (generation == session.generation)
            .then_some(ConnRef { slot: session.slot, serial: connection.serial })
    }

    /// Lets a connection look again at what it can do.
    pub(super) fn wake(&mut self, conn: ConnRef) {
        self.mark_ready(conn);
        self.work.notify_one();
    }

    /// Puts a connection into the queue of those that can go on, once.
    pub(super) fn mark_ready(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && !connection.flags.ready
        {
            connection.flags.ready = true;
            self.ready.push_back(conn);
        }
    }

    /// The next that can go on, and it stands in that queue no more.
    pub(super) fn next_ready(&mut self) -> Option<ConnRef> {
        let conn = self.ready.pop_front()?;
        if let Some(connection) = self.connection(conn) {
            connection.flags.ready = false;
        }
        Some(conn)
    }

    /// Puts a session into the queue of those with something to pull, once.
    pub(super) fn mark_dirty(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && !connection.flags.dirty
        {
            connection.flags.dirty = true;
            self.dirty.push_back(conn);
        }
    }

    /// The same, ahead of all those with nothing of high priority.
    pub(super) fn mark_urgent(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && !connection.flags.urgent
        {
            connection.flags.urgent = true;
            self.urgent.push_back(conn);
        }
    }

    /// The next session to pump, and it stands in that queue no more.
    pub(super) fn next_dirty(&mut self) -> Option<ConnRef> {
        if let Some(conn) = self.urgent.pop_front() {
            if let Some(connection) = self.connection(conn) {
                connection.flags.urgent = false;
            }
            return Some(conn);
        }
        let conn = self.dirty.pop_front()?;
        if let Some(connection) = self.connection(conn) {
            connection.flags.dirty = false;
        }
        Some(conn)
    }

    /// A session waits for a confirmation: for a while the mailbox wakes the shard for these too.
    pub(super) fn expect_confirms(&mut self) {
        self.confirms_until = self.now + CONFIRM_MS;
        self.confirms_came = false;
        self.context.mailboxes[usize::from(self.id.0)].wait_for_confirms(true);
        // Perhaps it lies there already.
        self.work.notify_one();
    }

    /// The handshake is over, one way or the other.
    pub(super) fn end_handshake(&mut self, conn: ConnRef) {
        if self.door.leave(conn) {
            // Everybody who waits looks again: one of them gets the place.
            self.gate.notify_waiters();
            telemetry::adjust(Gauge::HandshakesInFlight, -1);
            self.context.figures(self.id).handshakes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Live {
    /// When the device was last active, if that may be reported.
    pub(super) fn last_active(&self) -> Option<(DeviceKey, Millis)> {
        self.seldom.told().active(self.session.last_read()).map(|at| (self.device, at))
    }
}

impl Connection {
    pub(super) fn transport(&self) -> Transport {
        match (&self.stream, &self.tls) {
            (Stream::Quic(_), _) => Transport::Quic,
            #[cfg(feature = "sim")]
            (Stream::Simulated(_), _) => Transport::Tcp,
            (Stream::Tcp(_), Some(_)) => Transport::Tls,
            (Stream::Tcp(_), None) => Transport::Tcp,
        }
    }

    /// Where the device is now.
    pub(super) fn client_ip(&self) -> IpAddr {
        self.stream.moved_to().map_or(self.peer.ip(), |address| address.ip()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are a million of them: each eight bytes are eight megabytes. A stream is 16 bytes, and more only where mio checks how it is used.
    #[test]
    fn a_connection_takes_224_bytes_of_which_136_are_its_session() {
        assert_eq!((size_of::<Session<InList>>(), size_of::<Live>()), (64, 136));
        assert_eq!(size_of::<Connection>() - size_of::<Stream>(), 224 - 16);
        assert_eq!(
            size_of::<Option<Connection>>(),
            size_of::<Connection>(),
            "its place in the slab costs nothing"
        );
    }

    #[test]
    fn a_message_that_is_sent_again_after_the_hello_that_named_it_is_sent() {
        let received = Received { ids: [MessageId(7)].into(), until: Seq(10) };
        assert!(received.covers(Seq(10), MessageId(7)));
        assert!(!received.covers(Seq(11), MessageId(7)) && !received.covers(Seq(10), MessageId(8)));
        assert!(!Received::default().covers(Seq(1), MessageId(7)));
    }
}
