//! One process of an edge over a simulated disk, network and clock, wired as `server` does it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use rustls::server::ResolvesServerCertUsingSni;
use tokio::sync::watch;

use super::timers::Timers;
use super::{LiveSession, Pipe, SimLink, SimShard, SimTime};
use crate::apps::Apps;
use crate::clock::Clock;
use crate::config::{self, PendingBounds, Registration, RegistrationPolicy};
use crate::credential::{Revocation, Secret};
use crate::directory::Directory;
use crate::ids::{AppKey, DeviceKey, Seq, SessionRef, ShardId};
use crate::presence::Presence;
use crate::push::{Counts, Millis, Rates};
use crate::router::{
    Allowed, Aside, FailureLines, Pace, Phase, Rights, Room, RouterContext, Rules, StreamRegistry,
};
use crate::shard::{DeviceContext, Gates, Handover, Loaded, Mailbox, Places, ShardFigures};
use crate::store::disk::sim::SimDisk;
use crate::store::embedded::{EmbeddedStore, Hands};
use crate::store::engine::{OpenError, OpenReport, StoreFailure};
use crate::store::options::StoreOptions;
use crate::store::{Command, Refused, Store};
use crate::token::VerifyingKeys;

/// When simulations begin, milliseconds since 1970 UTC.
pub const START: Millis = 1_800_000_000_000;
/// The secret of every app of a simulation: credentials are made with it.
pub const SECRET: [u8; 32] = [9; 32];

/// What an edge is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its shards.
    pub shards: usize,
    /// Its apps.
    pub apps: Vec<AppKey>,
    /// Of their credentials.
    pub epoch: u32,
    /// New devices that may register with each app in a second.
    pub registrations_per_s: u32,
    /// The routers that may connect: to all apps and streams.
    pub routers: Vec<String>,
    /// `[device]`.
    pub device: config::Device,
    /// The store. Its streams and its digest key are the edge's.
    pub store: StoreOptions,
    /// Targets that are taken to the store in one piece.
    pub part_targets: usize,
    /// Events of one read of a stream.
    pub events_a_read: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Edge {
    shards: Vec<SimShard>,
    links: Vec<Option<SimLink>>,
    /// Of the links: shards have their own.
    timers: Timers,
    hands: Hands<SimDisk>,
    store: Arc<EmbeddedStore<SimDisk>>,
    routers: Arc<RouterContext>,
    directory: Arc<Directory>,
    clock: Arc<Clock>,
    context: Arc<DeviceContext>,
    phase: watch::Sender<Phase>,
}

/// An edge whose shards don't run yet.
pub(crate) struct Wired {
    pub(crate) context: Arc<DeviceContext>,
    pub(crate) hands: Hands<SimDisk>,
    pub(crate) store: Arc<EmbeddedStore<SimDisk>>,
    pub(crate) routers: Arc<RouterContext>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) clock: Arc<Clock>,
}

impl Wired {
    /// On what the disk holds.
    pub(crate) fn new(disk: &SimDisk, time: &Arc<SimTime>, plan: &Plan) -> Result<Self, OpenError> {
        let clock = Arc::new(Clock::simulated(time.clone(), 0));
        let directory = Arc::new(Directory::new());
        let mailboxes: Arc<[Mailbox]> = (0..plan.shards).map(|_| Mailbox::default()).collect();
        let sink = Handover::new(directory.clone(), mailboxes.clone(), clock.clone());
        let bodies = Arc::new(Loaded::new(mailboxes.clone()));
        let connected = directory.clone();
        let is_connected = Box::new(move |device: &DeviceKey| connected.find(device).is_some());
        let (store, hands) = EmbeddedStore::open_by_hand(
            Arc::new(disk.clone()),
            plan.store.clone(),
            clock.clone(),
            Box::new(sink),
            bodies,
            is_connected,
        )?;
        let apps: Vec<_> = plan.apps.iter().map(|key| app(key, plan)).collect();
        let shared: Arc<dyn Store> = store.clone();
        let doors = Arc::new(Apps::new(&apps, shared.clone(), clock.now()));
        let boxes = mailboxes.clone();
        let ask = move |shard: ShardId, request| boxes[usize::from(shard.0)].slice(request);
        let presence = Arc::new(Presence::new(directory.clone(), plan.shards, clock.now(), Box::new(ask)));
        let context = Arc::new(DeviceContext {
            config: plan.device.clone(),
            apps: apps.iter().map(|app| (app.key.clone(), app.clone())).collect(),
            doors: doors.clone(),
            gates: Gates::new(&apps),
            digest_key: plan.store.digest_key.clone(),
            directory: directory.clone(),
            store: shared.clone(),
            presence: presence.clone(),
            clock: clock.clone(),
            budget: plan.store.budget.clone(),
            tls: None,
            quic: None,
            mailboxes,
            places: Places::default(),
            figures: (0..plan.shards).map(|_| ShardFigures::default()).collect(),
        });
        let connected = directory.clone();
        let routers = Arc::new(RouterContext {
            edge: "simulated".into(),
            store: shared,
            clock: clock.clone(),
            tls: no_tls(),
            rules: Rules {
                apps: plan.apps.iter().cloned().collect(),
                digest_key: plan.store.digest_key.clone(),
                online_window_ms: plan.device.online_window_ms,
            },
            routers: plan.routers.iter().map(|name| (name.clone(), Arc::new(all_rights()))).collect(),
            credit_targets: crate::limits::CREDIT_TARGETS,
            credit_bytes: crate::limits::CREDIT_BYTES,
            part_targets: plan.part_targets,
            batch_window_ms: plan.store.batch_window_ms,
            is_connected: Box::new(move |device| connected.find(device).is_some()),
            presence,
            room: Room::new(&plan.store.budget, 0, crate::limits::LINK_OUTBOX_BYTES),
            pace: Pace::default(),
            doors,
            streams: Arc::new(StreamRegistry::default()),
            aside: Aside::Here,
            events_a_read: plan.events_a_read,
            failure_lines: FailureLines::default(),
        });
        Ok(Self { context, hands, store, routers, directory, clock })
    }
}

impl Edge {
    /// Starts on what the disk holds.
    pub fn start(disk: &SimDisk, time: &Arc<SimTime>, plan: &Plan) -> Result<Self, OpenError> {
        let Wired { context, hands, store, routers, directory, clock } = Wired::new(disk, time, plan)?;
        let (phase, _) = watch::channel(Phase::Serving);
        let shards = (0..plan.shards).map(|id| SimShard::new(ShardId(id as u16), context.clone()));
        Ok(Self {
            shards: shards.collect(),
            links: Vec::new(),
            timers: Timers::new(time),
            hands,
            store,
            routers,
            directory,
            clock,
            context,
            phase,
        })
    }

    /// What the start found.
    pub fn report(&self) -> &OpenReport {
        &self.hands.report
    }

    /// Edge time.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// A device connects to a shard. False: it has to wait.
    pub fn accept(&mut self, shard: usize, pipe: &Pipe, peer: SocketAddr) -> bool {
        self.shards[shard].accept(pipe, peer)
    }

    /// A router connects.
    pub fn link(&mut self, router: &str, pipe: &Pipe) -> bool {
        let phase = self.phase.subscribe();
        let link = SimLink::new(self.routers.clone(), router, pipe, phase);
        let is_known = link.is_some();
        match self.links.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = link,
            None => self.links.push(link),
        }
        is_known
    }

    /// Begins to leave, as `server` does it: no more batches, and devices are sent away within so many milliseconds.
    pub fn leave(&self, window_ms: Millis) {
        self.phase.send_replace(Phase::Leaving);
        for mailbox in self.context.mailboxes.iter() {
            mailbox.leave(window_ms);
        }
    }

    /// All devices are gone, and what they said is with the store.
    pub fn devices_have_left(&self) -> bool {
        self.shards.iter().all(SimShard::has_left)
    }

    /// Links end once they have said everything.
    pub fn close_links(&self) {
        self.phase.send_replace(Phase::Closing);
    }

    /// All links have ended.
    pub fn links_have_left(&self) -> bool {
        self.links.iter().all(Option::is_none)
    }

    /// The end of leaving: everything that waits becomes durable.
    pub fn close(&mut self) -> Result<(), StoreFailure> {
        self.links.clear();
        self.hands.close()
    }

    /// Looks up who came and went since the last time: what the edge does once a second.
    pub fn gather_presence(&self) {
        let mut gather = std::pin::pin!(self.context.presence.gather());
        let mut cx = Context::from_waker(Waker::noop());
        // It pauses for others, and waits for nobody.
        while gather.as_mut().poll(&mut cx).is_pending() {}
    }

    /// The shards.
    pub fn shards(&mut self) -> &mut [SimShard] {
        &mut self.shards
    }

    /// Wakes links that wait for a time that has come.
    pub fn fire_timers(&mut self) {
        self.timers.fire();
    }

    /// The router links that were woken.
    pub fn woken_links(&self) -> Vec<usize> {
        let woken = |place: &Option<SimLink>| place.as_ref().is_some_and(SimLink::is_woken);
        (0..self.links.len()).filter(|link| woken(&self.links[*link])).collect()
    }

    /// A router link's turn.
    pub fn poll_link(&mut self, link: usize) {
        let _timers = self.timers.enter();
        let place = &mut self.links[link];
        if place.as_mut().is_some_and(|link| !link.poll()) {
            *place = None;
        }
    }

    /// Half a turn of the store: it takes in what waits, or makes that durable.
    pub fn store_turn(&mut self) -> Result<(), StoreFailure> {
        self.hands.half_turn()
    }

    /// Whether something is decided and not durable.
    pub fn has_staged(&self) -> bool {
        self.hands.has_staged()
    }

    /// The reader of bodies does what waits for it.
    pub fn read_bodies(&self) {
        self.hands.read_bodies();
    }

    /// Tells the store something, as an operator does over the admin port.
    pub fn submit(&self, command: Command) -> Result<(), Refused> {
        self.store.submit(command)
    }

    /// What is revoked of a device's credentials.
    pub fn revocation(&self, device: &DeviceKey) -> Revocation {
        self.store.revocation(device)
    }

    /// The counts of everything, as of everything that was applied.
    pub fn totals(&self) -> Counts {
        self.hands.totals()
    }

    /// A message whose counts don't add up, or disagree with the lists, if there is one.
    pub fn unequal(&self) -> Option<String> {
        self.hands.unequal()
    }

    /// The store's figures, by name.
    pub fn figures(&self) -> Vec<(&'static str, u64)> {
        self.store.stats().all()
    }

    /// Whether it has said that something on its disk is damaged, at its start or since.
    pub fn says_damaged(&self) -> bool {
        let report = self.report();
        let since = self.store.stats().damaged.load(Ordering::Relaxed);
        report.left_out > 0
            || !report.journal.corrupt.is_empty()
            || !report.damaged_checkpoints.is_empty()
            || since > 0
    }

    /// The newest durable sequence.
    pub fn head(&self) -> u64 {
        self.store.head().borrow().0
    }

    /// Whether a stream has nothing more to read after a cursor.
    pub fn is_read(&self, stream: &str, mut after: u64) -> bool {
        loop {
            let Ok(read) = self.store.read_stream(stream, Seq(after), 1, usize::MAX) else { return false };
            if !read.events.is_empty() || read.cursor.0 <= after {
                return read.events.is_empty();
            }
            after = read.cursor.0;
        }
    }

    /// The session that the directory names.
    pub fn session_of(&self, device: &DeviceKey) -> Option<SessionRef> {
        self.directory.find(device)
    }

    /// Every session that is welcome.
    pub fn live(&self) -> Vec<LiveSession> {
        self.shards.iter().flat_map(SimShard::live).collect()
    }

    /// Devices in the directory.
    pub fn connected(&self) -> usize {
        self.directory.len()
    }
}

fn app(key: &AppKey, plan: &Plan) -> config::App {
    config::App {
        key: key.clone(),
        app_id: key.to_string(),
        packages: Vec::new(),
        secret_file: "secret".into(),
        secret: Secret::from_bytes(SECRET),
        epoch: plan.epoch,
        registration: Registration {
            policy: RegistrationPolicy::Open,
            keys: VerifyingKeys::default(),
            token_max_ms: 0,
            per_second: plan.registrations_per_s,
        },
        stream: "main".into(),
        rates: Rates::default(),
        pending: PendingBounds { messages: None, bytes: None, drop_oldest: false },
    }
}

fn all_rights() -> Rights {
    Rights { apps: Allowed::All, streams: Allowed::All }
}

/// Links are simulated above TLS.
fn no_tls() -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3");
    Arc::new(builder.with_no_client_auth().with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new())))
}
