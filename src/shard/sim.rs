//! A shard without a thread, a runtime and a poller: what these would do is done when the simulation says so. Everything else is the shard itself:
//! its connections, its turns, its timers.
//!
//! A connection goes on only when there is news of it or it was woken, so that a wake-up that is forgotten shows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::state::{ConnRef, Phase, Shard, Shared};
use super::stream::Stream;
use super::{DeviceContext, connection, turn};
use crate::ids::{DeviceKey, Generation, SessionRef, ShardId};
use crate::push::Millis;
use crate::sim::{Near, Pipe, Woken};

/// See the module.
pub struct SimShard {
    shard: Shared,
    context: Arc<DeviceContext>,
    wires: BTreeMap<u64, Wire>,
    next_wire: u64,
    /// The last turn had more to do.
    more: bool,
}

/// A connection's.
struct Wire {
    conn: ConnRef,
    woken: Arc<Woken>,
    pipe: Pipe,
}

/// A session that is welcome, as an invariant looks at it.
#[derive(Clone, Copy, Debug)]
pub struct LiveSession {
    /// Its device.
    pub device: DeviceKey,
    /// Its name.
    pub session: SessionRef,
    /// Bytes that wait to be written.
    pub outbox: usize,
    /// Pushes in flight.
    pub in_flight: usize,
    /// When its device last said something, if the store may be told.
    pub last_active: Option<Millis>,
}

impl std::fmt::Debug for SimShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimShard").field("wires", &self.wires.len()).finish_non_exhaustive()
    }
}

impl SimShard {
    /// An empty one.
    pub fn new(id: ShardId, context: Arc<DeviceContext>) -> Self {
        let shard = Rc::new(RefCell::new(Shard::new(id, context.clone())));
        Self { shard, context, wires: BTreeMap::new(), next_wire: 0, more: false }
    }

    /// Takes in a connection, if there is a place for it at the shard's door.
    pub fn accept(&mut self, pipe: &Pipe, peer: SocketAddr) -> bool {
        let woken = Arc::<Woken>::default();
        let conn = {
            let mut shard = self.shard.borrow_mut();
            if shard.make_place().is_some() {
                drop(shard);
                self.take_ready();
                return false;
            }
            let conn = shard.add(Stream::Simulated(Near::Pipe(pipe.clone(), woken.waker())), peer, None);
            shard.started(conn);
            conn
        };
        self.wires.insert(self.next_wire, Wire { conn, woken, pipe: pipe.clone() });
        self.next_wire += 1;
        self.take_ready();
        true
    }

    /// Those that the shard woke are woken.
    fn take_ready(&mut self) {
        let mut shard = self.shard.borrow_mut();
        while let Some(conn) = shard.next_ready() {
            if let Some(wire) = self.wires.values().find(|wire| wire.conn == conn) {
                wire.woken.set();
            }
        }
    }

    /// The connections that can go on, in the order of their coming.
    pub fn woken(&self) -> Vec<u64> {
        let woken = self.wires.iter().filter(|(_, wire)| wire.woken.is());
        woken.map(|(number, _)| *number).collect()
    }

    /// Lets a connection go on, if it can.
    pub fn poll(&mut self, number: u64) {
        let Some(wire) = self.wires.get_mut(&number) else { return };
        if !wire.woken.take() {
            return;
        }
        if connection::step(&mut self.shard.borrow_mut(), wire.conn) == Poll::Ready(()) {
            wire.pipe.close();
            self.wires.remove(&number);
        }
        self.take_ready();
    }

    /// Whether something asks for a turn.
    pub fn is_due(&mut self) -> bool {
        let mailbox = &self.context.mailboxes[usize::from(self.shard.borrow().id.0)];
        let work = self.shard.borrow().work.clone();
        // Looking takes the permits: what they say is kept in `more`.
        self.more |= is_notified(pin!(mailbox.notified()));
        self.more |= is_notified(pin!(work.notified()));
        self.more
    }

    /// One turn, with timers if these are due.
    pub fn turn(&mut self, timers: bool) {
        self.more = turn::turn(&self.shard, timers);
        self.take_ready();
    }

    /// The sessions that are welcome.
    pub fn live(&self) -> Vec<LiveSession> {
        let shard = self.shard.borrow();
        let live = shard.connections.iter().filter_map(|(slot, connection)| {
            let Phase::Live(live) = &connection.phase else { return None };
            let generation: Generation = live.generation;
            Some(LiveSession {
                device: live.device,
                session: SessionRef { generation, slot: slot as u32, shard: shard.id },
                outbox: connection.outbox.len(),
                in_flight: live.session.in_flight(),
                last_active: live.last_active().map(|(_, at)| at),
            })
        });
        live.collect()
    }

    /// Bytes of all outboxes as they are counted, and as they are.
    pub fn outbox_bytes(&self) -> (usize, usize) {
        let shard = self.shard.borrow();
        let held = shard.connections.iter().map(|(_, connection)| connection.outbox.memory()).sum();
        (shard.tally.bytes.get(), held)
    }

    /// Bytes in the fullest outbox, of any connection.
    pub fn fullest_outbox(&self) -> usize {
        let shard = self.shard.borrow();
        shard.connections.iter().map(|(_, connection)| connection.outbox.len()).max().unwrap_or(0)
    }

    /// Everybody was sent away, and everything is said to the store.
    pub fn has_left(&self) -> bool {
        self.shard.borrow().has_left()
    }

    /// Connections, whatever their phase.
    pub fn connections(&self) -> usize {
        self.wires.len()
    }
}

fn is_notified(notified: Pin<&mut impl Future<Output = ()>>) -> bool {
    notified.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}
