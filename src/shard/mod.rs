//! Shards: each one OS thread with one current-thread runtime, its own listeners and its own sessions, whose state therefore needs no lock.
//!
//! Shared are only the directory, the store and the mailboxes. No file is touched on a shard's thread. Work comes in three ways: news of
//! sockets, the mailbox and timers (`turn`), and an accept (`listener`). A turn is budgeted, so that a fan-out to everybody does not keep reads, acks and timers waiting.

mod ahead;
mod begun;
mod closing;
mod connection;
mod door;
mod few;
mod frames;
mod greeting;
mod identify;
mod listener;
#[cfg(feature = "sim")]
pub mod local;
pub mod mailbox;
mod memory;
mod outbox;
mod output;
mod places;
mod presence;
mod pump;
pub mod quic;
mod recalls;
mod seldom;
#[cfg(feature = "sim")]
pub mod sim;
mod sockets;
mod state;
mod stream;
mod timers;
mod tls;
mod traffic;
mod turn;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use crate::apps::Apps;
use crate::binding::ChangeError;
use crate::budget::Budget;
use crate::clock::Clock;
use crate::config;
use crate::directory::Directory;
use crate::fault::{self, Fault};
use crate::ids::{AppKey, DeviceKey, DigestKey, Seq, SessionRef, ShardId};
use crate::machine::fanout::ByShard;
use crate::presence::Presence;
use crate::push::Failure;
use crate::store::{Batch, BodySink, CommitSink, Confirm, Store};
use crate::telemetry::{self, Counter, Timer};

pub use identify::Gates;
pub use listener::bind;
pub use mailbox::Mailbox;
pub use places::Places;

/// What all shards share.
#[derive(Debug)]
pub struct DeviceContext {
    /// Bounds and deadlines of the device side.
    pub config: config::Device,
    /// The apps of this edge.
    pub apps: HashMap<AppKey, config::App>,
    /// Their rates, and their sessions.
    pub doors: Arc<Apps>,
    /// What bounds their strangers.
    pub gates: Gates,
    /// Makes device keys.
    pub digest_key: DigestKey,
    /// Who is connected.
    pub directory: Arc<Directory>,
    /// Where messages are kept.
    pub store: Arc<dyn Store>,
    /// Who of them is told to routers.
    pub presence: Arc<Presence>,
    /// Edge time.
    pub clock: Arc<Clock>,
    /// Memory, of the whole edge.
    pub budget: Arc<Budget>,
    /// TLS of the device listeners.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// QUIC, where it is on.
    pub quic: Option<quic::Settings>,
    /// One a shard.
    pub mailboxes: Arc<[Mailbox]>,
    /// Sessions of all shards, for the maxima.
    pub places: Places,
    /// Figures a shard.
    pub figures: Arc<[ShardFigures]>,
}

/// What a shard counts for the admin port.
#[derive(Debug, Default)]
pub struct ShardFigures {
    /// Sessions now.
    pub sessions: AtomicUsize,
    /// Handshakes in flight now.
    pub handshakes: AtomicUsize,
    /// Pushes written since the start.
    pub deliveries: AtomicU64,
    /// Whether it has a QUIC endpoint; set before it starts.
    pub quic: AtomicBool,
}

/// A shard's listening sockets.
#[derive(Debug, Default)]
pub struct Listeners {
    /// TLS.
    pub tls: Vec<TcpListener>,
    /// Plain TCP, where switched on.
    pub plain: Vec<TcpListener>,
    /// QUIC.
    pub quic: Option<UdpSocket>,
}

/// Runs a shard on this thread until it has left.
pub fn run(id: ShardId, context: Arc<DeviceContext>, mut listeners: Listeners) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let shard = Rc::new(RefCell::new(state::Shard::new(id, context.clone())));
        let endpoint = match (&context.quic, listeners.quic.take()) {
            (Some(settings), Some(socket)) => Some(quic::endpoint(id, settings, socket)?),
            _ => None,
        };
        let (sockets, registry) = sockets::Sockets::new(endpoint)?;
        shard.borrow_mut().registry = Some(registry);
        listener::start(&shard, listeners)?;
        turn::run(&shard, Some(sockets)).await
    }))
}

/// Tells shards what was committed: called on the store's sequencing thread, never waits.
#[derive(Debug)]
pub struct Handover {
    directory: Arc<Directory>,
    mailboxes: Arc<[Mailbox]>,
    clock: Arc<Clock>,
    by_shard: ByShard,
}

impl Handover {
    /// For these shards.
    pub fn new(directory: Arc<Directory>, mailboxes: Arc<[Mailbox]>, clock: Arc<Clock>) -> Self {
        let by_shard = ByShard::new(mailboxes.len());
        Self { directory, mailboxes, clock, by_shard }
    }

    fn mailbox(&self, shard: ShardId) -> Option<&Mailbox> {
        self.mailboxes.get(usize::from(shard.0))
    }
}

impl CommitSink for Handover {
    fn batch(&mut self, batch: &Arc<Batch>, devices: &[DeviceKey]) {
        let started = self.clock.micros();
        let by_shard = &mut self.by_shard;
        self.directory.find_all(devices, |session| {
            if !fault::is(Fault::ForgetHandover) {
                by_shard.add(session);
            }
        });
        for (shard, sessions) in self.by_shard.drain() {
            let fits =
                self.mailboxes.get(usize::from(shard.0)).is_none_or(|m| m.newer(batch.priority, sessions));
            if !fits {
                telemetry::add(Counter::MailboxOverflows, 1);
            }
        }
        telemetry::observe(Timer::FanoutTargets, devices.len() as f64);
        telemetry::observe(Timer::Fanout, (self.clock.micros() - started) as f64 / 1e6);
    }

    fn confirmed(&mut self, shard: ShardId, confirms: Vec<Confirm>) {
        if let Some(mailbox) = self.mailbox(shard) {
            mailbox.confirmed(confirms);
        }
    }

    fn seen(&mut self, session: SessionRef) {
        if let Some(mailbox) = self.mailbox(session.shard) {
            mailbox.seen(session, true);
        }
    }

    fn refused(&mut self, session: SessionRef) {
        if let Some(mailbox) = self.mailbox(session.shard) {
            mailbox.seen(session, false);
        }
    }

    fn ack_refused(&mut self, session: SessionRef) {
        if let Some(mailbox) = self.mailbox(session.shard) {
            mailbox.ack_refused(session);
        }
    }

    fn recalled(&mut self, _seq: Seq) {
        for mailbox in self.mailboxes.iter() {
            mailbox.recalled();
        }
    }

    fn revoked(&mut self, device: &DeviceKey) {
        if let Some(session) = self.directory.find(device)
            && let Some(mailbox) = self.mailbox(session.shard)
        {
            mailbox.revoked(session);
        }
    }

    fn changed(&mut self, session: SessionRef, result: Result<(), ChangeError>) {
        if let Some(mailbox) = self.mailbox(session.shard) {
            mailbox.changed(session, result);
        }
    }

    fn ended(&mut self, device: &DeviceKey, batch: Seq, reason: Failure) {
        if let Some(session) = self.directory.find(device)
            && let Some(mailbox) = self.mailbox(session.shard)
        {
            mailbox.ended(session, batch, reason);
        }
    }
}

/// Tells shards that a body is in memory again.
#[derive(Debug)]
pub struct Loaded {
    mailboxes: Arc<[Mailbox]>,
}

impl Loaded {
    /// For these shards.
    pub fn new(mailboxes: Arc<[Mailbox]>) -> Self {
        Self { mailboxes }
    }
}

impl BodySink for Loaded {
    fn loaded(&self, session: SessionRef) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(session.shard.0)) {
            mailbox.loaded(session);
        }
    }
}

impl DeviceContext {
    fn figures(&self, shard: ShardId) -> &ShardFigures {
        &self.figures[usize::from(shard.0)]
    }
}
