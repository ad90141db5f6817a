//! A shard on the thread and the runtime of whoever starts it, with connections in memory: its turns and its timers are what they are in `serve`. News of
//! connections is told instead of polled. For benches.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::state::{ConnRef, Connection, Live, Phase, Shard, Shared};
use super::stream::Stream;
use super::{DeviceContext, turn};
use crate::ids::ShardId;
use crate::machine::session::Session;
use crate::sim::{Near, Sink};

/// See the module.
pub struct LocalShard(Shared);

/// A connection that was taken in.
#[derive(Clone, Copy, Debug)]
pub struct Accepted(ConnRef);

impl std::fmt::Debug for LocalShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalShard").finish_non_exhaustive()
    }
}

impl LocalShard {
    /// Takes its turns from now on. Within a `tokio::task::LocalSet`.
    pub fn start(id: ShardId, context: Arc<DeviceContext>) -> Self {
        let shard = Rc::new(RefCell::new(Shard::new(id, context)));
        let turns = shard.clone();
        tokio::task::spawn_local(async move { turn::run(&turns, None).await });
        Self(shard)
    }

    /// Takes in a connection, as a listener does. There has to be a place at the door.
    pub fn accept(&self, sink: &Sink, peer: SocketAddr) -> Accepted {
        let stream = Stream::Simulated(Near::Sink(sink.clone()));
        let conn = self.0.borrow_mut().add(stream, peer, None);
        self.0.borrow_mut().started(conn);
        self.0.borrow_mut().wake(conn);
        Accepted(conn)
    }

    /// There is something to read on it.
    pub fn tell(&self, accepted: Accepted) {
        self.0.borrow_mut().wake(accepted.0);
    }

    /// Bytes of what a session is made of, each part once a session, without what it points to.
    pub fn sizes() -> Vec<(&'static str, usize)> {
        vec![
            ("connection", size_of::<Connection>()),
            ("connection: stream", size_of::<Stream>()),
            ("connection: phase", size_of::<Phase>()),
            ("live", size_of::<Live>()),
            ("live: session", size_of::<Session<super::state::InList>>()),
        ]
    }
}
