//! The admin port: metrics, health, and what became of a message or a device. Plain HTTP/1.1, for an inner network.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | Prometheus text |
//! | `/healthz` | 200 while the process lives |
//! | `/readyz` | 200 while it serves, else 503; the text says why |
//! | `/v1/totals?after=&wait_s=` | everything since the data directory was made; with `after`, as soon as the journal is beyond that sequence, or after `wait_s` seconds (1 to 5, the default) as things are: who follows the totals asks again with the `sequence` of the last answer |
//! | `/v1/message/{app}/{id}?device=` | a message's counts, and what became of it on one device: one state, why, when, and what to do next |
//! | `/v1/device/{app}/{device_id}` | what is known of a device: known, push on, connected are three answers; its connection, what is pending, what happened last |
//! | `/v1/stats/{app}?days=` | the newest days of an app, today first: what was accepted, refused, arrived, failed; devices |
//! | `/v1/memory` | the budget of memory: its marks, the state, and what each part holds |
//! | `/v1/shards` | sessions, handshakes in flight and deliveries of each shard |
//! | `/v1/apps` | whether each app takes new pushes, its sessions and rates |
//! | `/v1/streams` | readers, cursors, and what is held back for them |
//!
//! POST changes something, and needs `Authorization: Bearer` with the token of [`token::TOKEN_FILE`]; bodies are JSON:
//!
//! | path | does |
//! |---|---|
//! | `/v1/ping` | nothing: whether the token is right |
//! | `/v1/apps/{app}/suspend`, `…/resume`, `…/rates` | see `apps.rs` |
//! | `/v1/streams/{name}/retire` | ends a stream that no app maps to; `{"force": true}`: see `streams.rs` |
//! | `/v1/device/{app}/{device_id}/revoke` | revokes the device's credentials; `allow_registration`: it may register for a new one |
//!
//! Every number of a `/v1` answer from the store is as of the durable `sequence` it names. Errors are JSON: `error`, `what_to_do`.
//!
//! Invariants: at most [`CONNECTIONS`] at a time and one request a connection, which is closed after [`Deadlines::connection`] whatever it is doing; a
//! body is read from who showed the token only, and is small. Rejected: `axum::serve`, which bounds neither connections nor their time.

mod answer;
mod apps;
mod handler;
mod http;
mod streams;
pub mod token;
mod writes;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;

pub(crate) use self::answer::date;
pub use self::http::serve;
use crate::apps::Apps;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::directory::Way;
use crate::ids::{AppKey, DeviceKey, DigestKey};
use crate::router::StreamRegistry;
use crate::store::Store;
use crate::telemetry::{self, Renderer};

/// Connections at a time; the next ones wait to be accepted.
pub const CONNECTIONS: u32 = 32;

/// Requests that may wait for the journal to go on, so that the others find a connection free; beyond, they are refused.
pub const WAITING: u32 = 8;

/// How long the admin port is patient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// From accept to close.
    pub connection: Duration,
    /// The answer of the store to a query.
    pub query: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connection: Duration::from_secs(10), query: Duration::from_secs(5) }
    }
}

/// Whether devices and routers are welcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    /// The journal is being recovered; nothing is listening yet.
    Starting = 0,
    /// Devices and routers are served.
    Serving = 1,
    /// SIGTERM came.
    Leaving = 2,
    /// The store failed; the process is about to exit.
    Failed = 3,
}

impl Phase {
    /// Why not, or that it is.
    pub fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting: the journal is being recovered",
            Self::Serving => "serving",
            Self::Leaving => "leaving: devices are told to reconnect elsewhere",
            Self::Failed => "failed: the store can't go on; the log says why",
        }
    }
}

/// The phase, as it changes.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    /// Goes over to a phase.
    pub fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Release);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            2 => Phase::Leaving,
            _ => Phase::Failed,
        }
    }
}

/// What one shard is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct ShardFigures {
    /// Its number.
    pub shard: u16,
    /// Authenticated sessions now.
    pub sessions: u64,
    /// Handshakes in flight now.
    pub handshakes: u64,
    /// Pushes written to devices since the start.
    pub deliveries: u64,
    /// Whether it has a QUIC endpoint of its own.
    pub quic: bool,
}

/// What the server says of its shards, in their order.
pub type ShardsFn = Box<dyn Fn() -> Vec<ShardFigures> + Send + Sync>;
/// A device's session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Its shard.
    pub shard: u16,
    /// Since when, and over what.
    pub way: Way,
}

/// The session that a device has now.
pub type ConnectedFn = Box<dyn Fn(&DeviceKey) -> Option<Connection> + Send + Sync>;
/// Copies figures that are kept elsewhere into gauges, just before they are rendered. Must not wait.
pub type ScrapeFn = Box<dyn Fn() + Send + Sync>;

/// What the admin port looks at.
pub struct Admin {
    /// The phase.
    pub readiness: Arc<Readiness>,
    /// The metrics.
    pub renderer: Renderer,
    /// The store, once it is open.
    pub store: OnceLock<StoreAccess>,
    /// Figures of shards.
    pub shards: ShardsFn,
    /// How a device is connected.
    pub connection: ConnectedFn,
    /// One question at a time reads the journal.
    pub reading: Arc<Semaphore>,
    /// Places of those who wait for the journal to go on.
    pub waiting: Semaphore,
    /// Run at every scrape, in order.
    pub scrapes: Vec<ScrapeFn>,
    /// How long it is patient.
    pub deadlines: Deadlines,
    /// Memory, of the whole edge.
    pub budget: Arc<Budget>,
    /// What writes must show; without one, there are none.
    pub token: Option<token::Token>,
}

/// The store, and what its keys are made with.
#[derive(Clone, Debug)]
pub struct StoreAccess {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Part of the data directory.
    pub digest_key: DigestKey,
    /// The apps of this edge, and the streams that they map to.
    pub apps: BTreeMap<AppKey, Arc<str>>,
    /// Streams that a router may read by their names and no app has.
    pub former_streams: Vec<Arc<str>>,
    /// Their rates and sessions.
    pub doors: Arc<Apps>,
    /// Who reads the streams.
    pub readers: Arc<StreamRegistry>,
    /// Edge time.
    pub clock: Arc<Clock>,
    /// The epoch of each app's credentials.
    pub epochs: HashMap<AppKey, u32>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

impl Admin {
    /// An admin port that knows no store yet: it tells that the edge is starting.
    pub fn new(
        readiness: Arc<Readiness>,
        renderer: Renderer,
        shards: ShardsFn,
        connection: ConnectedFn,
        scrapes: Vec<ScrapeFn>,
    ) -> Self {
        let (store, deadlines) = (OnceLock::new(), Deadlines::default());
        let reading = Arc::new(Semaphore::new(1));
        let waiting = Semaphore::new(WAITING as usize);
        Self {
            readiness,
            renderer,
            store,
            shards,
            connection,
            reading,
            waiting,
            scrapes,
            deadlines,
            budget: Arc::default(),
            token: None,
        }
    }

    /// The metrics, after what is kept elsewhere was copied.
    fn metrics(&self) -> String {
        for scrape in &self.scrapes {
            scrape();
        }
        if let Some(access) = self.store.get() {
            for stream in access.store.streams() {
                let backlog = stream.bounds.head.0.saturating_sub(stream.bounds.cursor.0);
                telemetry::set_stream(&stream.name, backlog, stream.pinned_bytes);
            }
        }
        self.renderer.render()
    }
}
