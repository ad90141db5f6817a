//! Wiring, and the order of starting and leaving.
//!
//! Starting: the admin port first (it tells that the journal is being recovered), then the store, then shards and router links, and only
//! then "ready". Leaving: not ready, a little longer for balancers to notice, goodbyes spread over a window, then everything durable and a
//! checkpoint, so that the next start is quick. A store that can't go on ends the process: the next start recovers.

mod memory;
mod routers;
mod sockets;
mod threads;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::admin::token::{Token, TokenError};
use crate::admin::{self, Admin, Readiness, StoreAccess};
use crate::apps::Apps;
use crate::clock::Clock;
use crate::config::{self, Config, ConfigErrors};
use crate::directory::Directory;
use crate::ids::{DigestKey, ShardId};
use crate::pki::{self, PkiError};
use crate::presence::Presence;
use crate::router;
use crate::shard::{self, DeviceContext, Handover, Loaded, Mailbox, Places, ShardFigures, quic};
use crate::store::disk::Disk;
use crate::store::disk::format::Format;
use crate::store::embedded::{EmbeddedStore, Opened};
use crate::store::engine::{OpenError, StoreFailure};
use crate::store::options::{Quota, StoreOptions};
use crate::store::{Command, Store};
use crate::telemetry::{self, Gauge, Renderer};
use memory::Memory;
use routers::Routers;
use sockets::Sockets;
use threads::Thread;

/// Why the edge doesn't run (any more).
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A certificate or key can't be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// An address can't be listened on.
    #[error("{key} = {address} can't be listened on: {error}")]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// The admin port's token can't be had.
    #[error("the admin token: {0}")]
    Token(#[from] TokenError),
    /// QUIC's secret in the data directory can't be used.
    #[error(transparent)]
    QuicKeys(#[from] quic::KeysError),
    /// QUIC doesn't go with this TLS.
    #[error(transparent)]
    NoQuic(#[from] quic::NoQuic),
    /// The configuration doesn't go with the data directory.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The store can't be opened.
    #[error("the store can't be opened: {0}")]
    Open(#[from] OpenError),
    /// The store can't go on. What was acknowledged is safe; the next start recovers.
    #[error("the store can't go on: {0}; what was acknowledged is safe, the next start recovers")]
    Store(StoreFailure),
    /// The store's thread ended without saying why.
    #[error("the store's thread ended; the log says more")]
    StoreGone,
    /// A thread can't be started, or failed.
    #[error("{what}: {error}")]
    Thread {
        /// Which.
        what: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// Leaving took longer than `leave.deadline_ms`.
    #[error("leaving took longer than leave.deadline_ms; what was acknowledged is safe")]
    LeftLate,
}

/// The ports in use: those of the configuration, or what the system gave for port 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Ports {
    /// Devices, TLS.
    pub tls: Option<u16>,
    /// Devices, QUIC: UDP, the same number.
    pub quic: Option<u16>,
    /// Devices, plain TCP.
    pub plain: Option<u16>,
    /// Routers.
    pub router: u16,
    /// Routers, over gRPC.
    pub grpc: Option<u16>,
    /// Metrics, health, troubleshooting.
    pub admin: u16,
}

/// The name of the file in the data directory that says which [`Ports`] are in use.
pub const PORTS_FILE: &str = "ports.json";

/// What everything shares from the first moment on.
struct Foundation {
    config: Config,
    memory: Memory,
    clock: Arc<Clock>,
    directory: Arc<Directory>,
    mailboxes: Arc<[Mailbox]>,
    figures: Arc<[ShardFigures]>,
    readiness: Arc<Readiness>,
    readers: Arc<router::StreamRegistry>,
}

/// Runs the edge until `shutdown`, on the current runtime and threads of its own. `ready` is told once devices and routers are taken.
pub async fn serve<D: Disk>(
    config: Config,
    disk: Arc<D>,
    format: Format,
    renderer: Renderer,
    ready: impl FnOnce(Ports),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let digest_key = format.digest_key.clone();
    let base = foundation(config);
    let (admin, admin_port) = start_admin(&base, renderer).await?;
    let (embedded, opened) = open_store(&base, disk, format.salt(), digest_key.clone()).await?;
    let store: Arc<dyn Store> = embedded;
    let streams: Vec<_> = store.streams().into_iter().map(|stream| stream.name).collect();
    base.config.check_streams(&streams)?;
    telemetry::configure_streams(&streams);
    let doors = Arc::new(Apps::new(&base.config.apps, store.clone(), base.clock.now()));
    let access = StoreAccess {
        doors: doors.clone(),
        store: store.clone(),
        digest_key: digest_key.clone(),
        apps: base.config.apps.iter().map(|app| (app.key.clone(), app.stream.clone())).collect(),
        former_streams: base.config.former_streams.iter().map(|former| former.name.clone()).collect(),
        readers: base.readers.clone(),
        clock: base.clock.clone(),
        epochs: base.config.apps.iter().map(|app| (app.key.clone(), app.epoch)).collect(),
    };
    // Set once, here.
    admin.store.set(access).ok();

    let presence = presence(&base);
    let sockets = Sockets::bind(&base.config.device, base.config.shards)?;
    let context = device_context(
        &base,
        store.clone(),
        (doors.clone(), presence.clone()),
        digest_key.clone(),
        &sockets,
    )?;
    let [tls, quic, plain] = sockets.ports();
    let (mut shards, _group) = start_shards(sockets, &context)?;
    let mut routers = Routers::start(&base, store.clone(), (doors, presence), digest_key)?;
    let (router, grpc) = (routers.port, routers.grpc_port);
    let ports = Ports { tls, quic, plain, router, grpc, admin: admin_port };
    base.readiness.set(admin::Phase::Serving);
    ready(ports);
    tracing::info!(
        shards = base.config.shards,
        tls,
        quic,
        plain,
        router,
        grpc,
        admin = admin_port,
        "serving"
    );

    let mut failed = opened.failed;
    let error = tokio::select! {
        () = shutdown => None,
        failure = &mut failed => Some(failure.map_or(ServeError::StoreGone, ServeError::Store)),
        error = threads::any_ends(&mut shards) => Some(error),
        error = threads::any_ends(std::slice::from_mut(&mut routers.thread)) => Some(error),
    };
    if let Some(error) = error {
        base.readiness.set(admin::Phase::Failed);
        return Err(error);
    }
    let deadline = Duration::from_millis(base.config.leave.deadline_ms);
    let leaving = leave(&base, store, shards, routers);
    tokio::select! {
        left = tokio::time::timeout(deadline, leaving) => left.unwrap_or(Err(ServeError::LeftLate)),
        failure = failed => Err(failure.map_or(ServeError::StoreGone, ServeError::Store)),
    }
}

fn foundation(mut config: Config) -> Foundation {
    let memory = Memory::of(&mut config);
    let shards = config.shards;
    telemetry::set(Gauge::Shards, shards as f64);
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
    Foundation {
        config,
        memory,
        clock: Arc::new(Clock::new(0)),
        directory: Arc::new(Directory::new()),
        mailboxes: (0..shards).map(|_| Mailbox::default()).collect(),
        figures: (0..shards).map(|_| ShardFigures::default()).collect(),
        readiness: Arc::default(),
        readers: Arc::default(),
    }
}

async fn start_admin(base: &Foundation, renderer: Renderer) -> Result<(Arc<Admin>, u16), ServeError> {
    let address = base.config.admin.listen;
    let failed = |error| ServeError::Listen { key: "admin.listen", address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let (figures, directory) = (base.figures.clone(), base.directory.clone());
    let shards = move || {
        let one = |(shard, f): (u16, &ShardFigures)| admin::ShardFigures {
            shard,
            sessions: f.sessions.load(Ordering::Relaxed) as u64,
            handshakes: f.handshakes.load(Ordering::Relaxed) as u64,
            deliveries: f.deliveries.load(Ordering::Relaxed),
            quic: f.quic.load(Ordering::Relaxed),
        };
        (0u16..).zip(figures.iter()).map(one).collect()
    };
    let connected = move |device: &_| {
        let (session, way) = directory.look(device)?;
        Some(admin::Connection { shard: session.shard.0, way })
    };
    let budget = base.memory.budget.clone();
    let publish: admin::ScrapeFn = Box::new(move || memory::publish(&budget));
    let mut admin =
        Admin::new(base.readiness.clone(), renderer, Box::new(shards), Box::new(connected), vec![publish]);
    admin.budget = base.memory.budget.clone();
    admin.token = Some(Token::open(&base.config.data_dir)?);
    let admin = Arc::new(admin);
    // It serves until the process ends: health has to be told to the last.
    tokio::spawn(admin::serve(listener, admin.clone(), std::future::pending()));
    Ok((admin, port))
}

async fn open_store<D: Disk>(
    base: &Foundation,
    disk: Arc<D>,
    salt: u64,
    digest_key: DigestKey,
) -> Result<(Arc<EmbeddedStore<D>>, Opened), ServeError> {
    let options = StoreOptions {
        command_bytes: base.memory.command_bytes,
        budget: base.memory.budget.clone(),
        salt,
        digest_key,
        ..store_options(&base.config)
    };
    let sink = Handover::new(base.directory.clone(), base.mailboxes.clone(), base.clock.clone());
    let bodies = Arc::new(Loaded::new(base.mailboxes.clone()));
    let (clock, directory) = (base.clock.clone(), base.directory.clone());
    let open = move || {
        let connected = Box::new(move |device: &_| directory.find(device).is_some());
        EmbeddedStore::open(disk, options, clock, Box::new(sink), bodies, connected)
    };
    let (store, opened) = tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| ServeError::Thread { what: "recovery", error: std::io::Error::other(error) })??;
    let report = &opened.report;
    let (devices, messages, pending) = (report.devices, report.messages, report.pending);
    tracing::info!(devices, messages, pending, head = report.journal.head.0, "the store is open");
    Ok((store, opened))
}

/// What the configuration says of the store; the salt and the digest key are the data directory's.
pub fn store_options(config: &Config) -> StoreOptions {
    let store = &config.store;
    StoreOptions {
        segment_bytes: store.segment_bytes,
        reserve_segments: store.reserve_segments,
        max_bytes: store.max_bytes,
        sync_spacing_us: store.sync_spacing_us,
        checkpoint_bytes: store.checkpoint_bytes,
        batch_window_ms: store.batch_window_s * 1_000,
        max_clock_skew_ms: config.router.max_clock_skew_ms,
        max_batch_ids: store.max_batch_ids,
        max_pending_per_device: store.max_pending_per_device as usize,
        max_pending: store.max_pending,
        max_messages: store.max_messages,
        record_kept_ms: u64::from(store.message_kept_days) * 24 * 3600 * 1000,
        message_cache_bytes: store.message_cache_bytes as usize,
        device_cache_bytes: store.device_cache_bytes as usize,
        table_cache_bytes: store.table_cache_bytes as usize,
        utc_offset_minutes: config.stats.utc_offset_minutes,
        max_devices: store.max_devices,
        body_cache_bytes: store.body_cache_bytes as usize,
        stream_soft_bytes: store.stream_soft_bytes,
        stream_hard_bytes: store.stream_hard_bytes,
        forget_after_ms: store.forget_after_s * 1_000,
        streams: config.streams(),
        app_streams: config.apps.iter().map(|app| (app.key.clone(), app.stream.clone())).collect(),
        app_quotas: config.apps.iter().map(|app| (app.key.clone(), quota(&app.pending, store))).collect(),
        max_recalls: store.max_recalls,
        ..StoreOptions::default()
    }
}

/// Once edge time is right: it makes the epoch.
fn presence(base: &Foundation) -> Arc<Presence> {
    let mailboxes = base.mailboxes.clone();
    let ask = move |shard: ShardId, request| {
        if let Some(mailbox) = mailboxes.get(usize::from(shard.0)) {
            mailbox.slice(request);
        }
    };
    let (directory, now) = (base.directory.clone(), base.clock.now());
    let presence = Presence::new(directory, base.config.shards, now, Box::new(ask));
    Arc::new(presence.keeping(base.memory.presence_changes).counted_in(&base.memory.budget))
}

/// Bounds of the app's own, else the store's.
fn quota(app: &config::PendingBounds, store: &config::Store) -> Quota {
    Quota {
        max_entries: app.messages.unwrap_or(store.max_pending_per_device) as usize,
        max_bytes: app.bytes.unwrap_or(u64::MAX),
        drop_oldest: app.drop_oldest,
    }
}

/// Reads the files that the configuration names, as a start does. Binds and opens nothing.
pub fn check(config: &Config) -> Result<(), ServeError> {
    device_tls(&config.device)?;
    routers::tls(&config.router)?;
    Ok(())
}

fn device_tls(config: &config::Device) -> Result<Option<Arc<rustls::ServerConfig>>, ServeError> {
    let tls = config.tls.map(|_| pki::server_config_device(&config.certificate, &config.key));
    Ok(tls.transpose()?)
}

fn device_context(
    base: &Foundation,
    store: Arc<dyn Store>,
    (doors, presence): (Arc<Apps>, Arc<Presence>),
    digest_key: DigestKey,
    sockets: &Sockets,
) -> Result<Arc<DeviceContext>, ServeError> {
    let config = base.config.device.clone();
    let tls = device_tls(&config)?;
    let quic = match (&tls, &sockets.quic) {
        (Some(tls), Some(group)) => {
            let keys = quic::Keys::of(&base.config.data_dir)?;
            for shard in &base.figures[..group.endpoints()] {
                shard.quic.store(true, Ordering::Relaxed);
            }
            Some(quic::Settings::new(&config, tls, keys, group.endpoints())?)
        }
        _ => None,
    };
    Ok(Arc::new(DeviceContext {
        config,
        apps: base.config.apps.iter().map(|app| (app.key.clone(), app.clone())).collect(),
        doors,
        gates: shard::Gates::new(&base.config.apps),
        digest_key,
        directory: base.directory.clone(),
        store,
        presence,
        clock: base.clock.clone(),
        budget: base.memory.budget.clone(),
        tls,
        quic,
        mailboxes: base.mailboxes.clone(),
        places: Places::default(),
        figures: base.figures.clone(),
    }))
}

/// Starts the shards. What comes back beside them is to be kept until all have left.
fn start_shards(
    sockets: Sockets,
    context: &Arc<DeviceContext>,
) -> Result<(Vec<Thread>, Option<quic::Group>), ServeError> {
    let shards = context.mailboxes.len();
    let (listeners, group) = sockets.by_shard(shards)?;
    let mut threads = Vec::with_capacity(shards);
    for (id, listeners) in (0u16..).map(ShardId).zip(listeners) {
        let context = context.clone();
        let work = move || shard::run(id, context, listeners);
        threads.push(Thread::start("a shard", format!("shard-{}", id.0), work)?);
    }
    Ok((threads, group))
}

/// Goodbye, in order: balancers, devices, routers, and last the store.
async fn leave(
    base: &Foundation,
    store: Arc<dyn Store>,
    shards: Vec<Thread>,
    routers: Routers,
) -> Result<(), ServeError> {
    let leave = &base.config.leave;
    base.readiness.set(admin::Phase::Leaving);
    tracing::info!("leaving");
    tokio::time::sleep(Duration::from_millis(leave.drain_lead_ms)).await;
    routers.phase.send_replace(router::Phase::Leaving);
    for mailbox in base.mailboxes.iter() {
        mailbox.leave(leave.window_ms);
    }
    for shard in shards {
        shard.join().await?;
    }
    flush(&store, false).await;
    routers.phase.send_replace(router::Phase::Closing);
    routers.thread.join().await?;
    flush(&store, true).await;
    tracing::info!("left");
    Ok(())
}

/// Waits until everything submitted is durable. The caller's deadline bounds it.
async fn flush(store: &Arc<dyn Store>, checkpoint: bool) {
    loop {
        let (reply, done) = oneshot::channel();
        if store.submit(Command::Flush { checkpoint, reply }).is_ok() {
            // An error means that the store has stopped; what stopped it is reported elsewhere.
            done.await.ok();
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes which ports are in use, whole or not at all, for scripts and tests.
pub fn write_ports(data_dir: &Path, ports: Ports) -> std::io::Result<()> {
    let text = serde_json::to_string(&ports)?;
    let (temporary, name) = (data_dir.join("ports.json.new"), data_dir.join(PORTS_FILE));
    std::fs::write(&temporary, text)?;
    std::fs::rename(temporary, name)
}
