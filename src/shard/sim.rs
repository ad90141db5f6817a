//! A shard without a thread and a runtime: what these would do is done when the simulation says so. Everything else is the shard itself: its
//! connections' tasks, its turns, its timers.
//!
//! Tasks are polled only when they were woken, so that a wake-up that is forgotten shows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::state::{Phase, Shard, Shared};
use super::stream::Stream;
use super::{DeviceContext, connection, listener, turn};
use crate::ids::{DeviceKey, Generation, SessionRef, ShardId};
use crate::push::Millis;
use crate::sim::{Near, Pipe, Woken};

/// See the module.
pub struct SimShard {
    shard: Shared,
    context: Arc<DeviceContext>,
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    /// The last turn had more to do.
    more: bool,
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
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
        f.debug_struct("SimShard").field("tasks", &self.tasks.len()).finish_non_exhaustive()
    }
}

impl SimShard {
    /// An empty one.
    pub fn new(id: ShardId, context: Arc<DeviceContext>) -> Self {
        let shard = Rc::new(RefCell::new(Shard::new(id, context.clone())));
        Self { shard, context, tasks: BTreeMap::new(), next_task: 0, more: false }
    }

    /// Takes in a connection, if there is a place for it at the shard's door.
    pub fn accept(&mut self, pipe: &Pipe, peer: SocketAddr) -> bool {
        let conn = {
            let mut shard = self.shard.borrow_mut();
            if shard.make_place().is_some() {
                return false;
            }
            shard.add(Stream::Simulated(Near::Pipe(pipe.clone())), peer, None)
        };
        listener::started(&self.shard, conn);
        let future = Box::pin(connection::run(self.shard.clone(), conn));
        self.tasks.insert(self.next_task, Task { future, woken: Arc::default(), pipe: pipe.clone() });
        self.next_task += 1;
        true
    }

    /// The connections whose tasks were woken, in the order of their coming.
    pub fn woken(&self) -> Vec<u64> {
        let woken = self.tasks.iter().filter(|(_, task)| task.woken.is());
        woken.map(|(number, _)| *number).collect()
    }

    /// Polls a connection's task, if it was woken.
    pub fn poll(&mut self, number: u64) {
        let Some(task) = self.tasks.get_mut(&number) else { return };
        if !task.woken.take() {
            return;
        }
        let waker = task.woken.waker();
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
            task.pipe.close();
            self.tasks.remove(&number);
        }
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
        self.tasks.len()
    }
}

fn is_notified(notified: Pin<&mut impl Future<Output = ()>>) -> bool {
    notified.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}
