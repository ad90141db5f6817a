//! The router links: batches come in, answers and streams go out.
//!
//! One task a link, on the router thread's runtime, and within it a reader, the answers in flight, the streams and one writer as futures of one
//! straight line (`link`): no part of a link outlives it, and none can be forgotten. The order of frames on a link is the order of submission
//! to the store, of large batches that of their first parts (`parts`). Parsing and admitting a large batch happens off the runtime, so that links wait for each other only for small ones.
//!
//! What is bounded: links, frames, batches and queries in flight, credit, the outbox, stream batches unacknowledged; every wait on a peer has
//! a deadline ([`Pace`]).

mod admission;
mod answers;
mod aside;
mod credit;
mod door;
mod framed;
mod frames;
#[cfg(feature = "grpc")]
mod grpc;
mod link;
mod outbox;
mod parts;
mod presence;
mod reader;
mod receipts;
mod registry;
mod rights;
mod room;
#[cfg(feature = "sim")]
pub mod sim;
mod stranger;
mod tls;
mod transport;
mod who;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use admission::{Rules, admit};
pub use aside::Aside;
pub use framed::serve;
#[cfg(feature = "grpc")]
pub use grpc::serve as serve_grpc;
pub use registry::{StreamReader, StreamRegistry};
pub use rights::{Allowed, Rights};
pub use room::Room;
pub use who::FailureLines;

use crate::apps::Apps;
use crate::clock::Clock;
use crate::ids::DeviceKey;
use crate::limits;
use crate::presence::Presence;
use crate::store::Store;
use crate::telemetry::RouterLinkEnd;
use crate::wire::router::LinkError;

/// Whether the device has a session now.
pub type IsConnected = Box<dyn Fn(&DeviceKey) -> bool + Send + Sync>;

/// What all links share.
pub struct RouterContext {
    /// The edge's name and version, as routers are told.
    pub edge: String,
    /// Where batches go and streams come from.
    pub store: Arc<dyn Store>,
    /// Edge time.
    pub clock: Arc<Clock>,
    /// Mutual TLS 1.3.
    pub tls: Arc<rustls::ServerConfig>,
    /// What admission has to know.
    pub rules: Rules,
    /// The routers by the common name of their certificates.
    pub routers: HashMap<String, Arc<Rights>>,
    /// Targets in flight on one link; at least `limits::BATCH_TARGETS`.
    pub credit_targets: u64,
    /// Bytes of batches in flight on one link; at least `limits::ROUTER_FRAME_BYTES`.
    pub credit_bytes: u64,
    /// Targets that are taken to the store in one piece.
    pub part_targets: usize,
    /// How long batch ids are remembered.
    pub batch_window_ms: u64,
    /// Whether the device has a session now.
    pub is_connected: IsConnected,
    /// Who is connected, as a stream.
    pub presence: Arc<Presence>,
    /// Deadlines.
    pub pace: Pace,
    /// Memory, of the whole edge.
    pub room: Room,
    /// The apps' rates.
    pub doors: Arc<Apps>,
    /// Who reads which stream.
    pub streams: Arc<StreamRegistry>,
    /// Where long work is done.
    pub aside: Aside,
    /// Events of one read of a stream, at most: `limits::STREAM_BATCH_EVENTS`.
    pub events_a_read: usize,
    /// How many lines failures may write.
    pub failure_lines: FailureLines,
}

impl std::fmt::Debug for RouterContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouterContext").field("edge", &self.edge).finish_non_exhaustive()
    }
}

/// Deadlines and delays of a link. The defaults are the protocol's.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// `TCP_USER_TIMEOUT`: how long the kernel waits for the peer's acknowledgement of what was written.
    pub user_timeout: Duration,
    /// From there to Open.
    pub open: Duration,
    /// The longest time without a whole frame from the router.
    pub silence: Duration,
    /// The longest time without progress in writing.
    pub stall: Duration,
    /// After [`Phase::Closing`]: for answers and streams.
    pub drain: Duration,
    /// For the last frame, and until the router closes too.
    pub settle: Duration,
    /// How long a stream that had caught up waits for more after the first new record, so that one frame carries many.
    pub gather: Duration,
    /// How often a stream without events moves its cursor past many records.
    pub idle: Duration,
    /// How often it does so past few. Each acknowledged cursor is a record too: without this, an idle edge would write for ever.
    pub quiet: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            user_timeout: Duration::from_secs(30),
            open: Duration::from_secs(10),
            silence: Duration::from_millis(limits::ROUTER_SILENCE_MS),
            stall: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            settle: Duration::from_secs(2),
            gather: Duration::from_millis(4),
            idle: Duration::from_secs(1),
            quiet: Duration::from_secs(60),
        }
    }
}

impl Pace {
    /// The same, with an end of links that takes at most half of `all`: what leaving has left for routers and the store's last checkpoint.
    #[must_use]
    pub fn leaving_within(self, all: Duration) -> Self {
        Self { drain: self.drain.min(all / 4), settle: self.settle.min(all / 4), ..self }
    }
}

/// Where the edge is in its life, as far as routers are concerned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Links and batches are taken.
    Serving,
    /// `GoAway` is sent: no more links, no more batches; answers and streams go on.
    Leaving,
    /// Links close when their answers are given and their streams are at the journal's head, at the latest after [`Pace::drain`].
    Closing,
}

/// Waits until the edge is at least in this phase. A server that is gone is closing.
async fn reached(phase: &watch::Receiver<Phase>, wanted: Phase) {
    // An error means that the server is gone.
    phase.clone().wait_for(|phase| *phase >= wanted).await.ok();
}

/// Why a link ended: counted once, logged once.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    /// By the router, between frames.
    #[error("closed by the router")]
    Closed,
    /// The router did what is not allowed; it is told.
    #[error("{0}")]
    Refused(#[from] LinkError),
    /// The TLS handshake failed: no valid certificate, for instance.
    #[error("TLS handshake: {0}")]
    Tls(std::io::Error),
    /// Its place was needed for another before it had shown a certificate.
    #[error("too many connections that have shown no certificate: the oldest makes room")]
    Evicted,
    /// As many links as may be.
    #[error("as many router links as may be are open: {}", limits::ROUTER_LINKS)]
    Full,
    /// No TLS handshake in time.
    #[error("no TLS handshake within the deadline")]
    HandshakeDeadline,
    /// The router doesn't read.
    #[error("nothing could be written for too long: the router does not read")]
    Stalled,
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(std::io::Error),
    /// The edge leaves.
    #[error("the edge leaves")]
    Left,
}

impl LinkEnd {
    /// A router that closes without TLS's goodbye has closed all the same.
    fn read(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
        match error.kind() {
            UnexpectedEof | ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }

    fn label(&self) -> RouterLinkEnd {
        match self {
            Self::Closed => RouterLinkEnd::Closed,
            Self::Tls(_) => RouterLinkEnd::Tls,
            Self::Evicted => RouterLinkEnd::Evicted,
            Self::Full => RouterLinkEnd::Exhausted,
            Self::HandshakeDeadline => RouterLinkEnd::Deadline,
            Self::Stalled => RouterLinkEnd::Stalled,
            Self::Io(_) => RouterLinkEnd::Error,
            Self::Left => RouterLinkEnd::Leaving,
            Self::Refused(error) => match error {
                LinkError::Malformed(_) => RouterLinkEnd::Malformed,
                LinkError::FrameTooLarge { .. } => RouterLinkEnd::FrameTooLarge,
                LinkError::OpenExpected(_) => RouterLinkEnd::OpenExpected,
                LinkError::Unauthorized(_) => RouterLinkEnd::Unauthorized,
                LinkError::UnknownStream(_) => RouterLinkEnd::UnknownStream,
                LinkError::Version(_) => RouterLinkEnd::Version,
                LinkError::Deadline(_) => RouterLinkEnd::Deadline,
                LinkError::Cursor(_) => RouterLinkEnd::Cursor,
                LinkError::Internal(_) => RouterLinkEnd::Internal,
            },
        }
    }
}

/// Accepts connections until the edge leaves, then waits until all have ended. `live` is one, from accept to its end; as long as it holds
/// its place it counts.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    phase: &watch::Receiver<Phase>,
    live: impl Fn(TcpStream, SocketAddr, door::Place) -> F,
) {
    let door = door::Door::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = reached(phase, Phase::Leaving) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((socket, peer)) => {
                let place = door.enter(peer.ip().to_canonical());
                connections.spawn(live(socket, peer, place));
            }
            Err(error) => {
                tracing::warn!(%error, "a router link can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
