//! The routers' part: their listeners, what they may do, and the thread that serves them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::threads::Thread;
use super::{Foundation, ServeError};
use crate::apps::Apps;
use crate::config::{self, Config, RouterRights, Scope};
use crate::ids::DigestKey;
use crate::pki;
use crate::presence::Presence;
use crate::router::{self, Allowed, Phase, RouterContext};
use crate::store::Store;

/// Router links have a thread of their own: what a router does never delays a shard.
pub(super) struct Routers {
    pub(super) thread: Thread,
    /// How it is told of leaving.
    pub(super) phase: watch::Sender<Phase>,
    /// Framed.
    pub(super) port: u16,
    pub(super) grpc_port: Option<u16>,
}

impl Routers {
    /// Binds the listeners and starts the thread.
    pub(super) fn start(
        base: &Foundation,
        store: Arc<dyn Store>,
        (doors, presence): (Arc<Apps>, Arc<Presence>),
        digest_key: DigestKey,
    ) -> Result<Self, ServeError> {
        let config = &base.config.router;
        let tls = tls(config)?;
        let (listener, port) = bind("router.listen", config.listen)?;
        let grpc = config.grpc.map(|address| bind("router.grpc", address)).transpose()?;
        let grpc_port = grpc.as_ref().map(|(_, port)| *port);
        let directory = base.directory.clone();
        let context = Arc::new(RouterContext {
            edge: concat!("mooring ", env!("CARGO_PKG_VERSION")).into(),
            store,
            clock: base.clock.clone(),
            tls,
            rules: rules(&base.config, digest_key),
            routers: config.routers.iter().map(|r| (r.name.clone(), Arc::new(rights(r)))).collect(),
            credit_targets: config.credit_targets,
            credit_bytes: config.credit_bytes,
            part_targets: config.part_targets,
            batch_window_ms: base.config.store.batch_window_s * 1_000,
            is_connected: Box::new(move |device| directory.find(device).is_some()),
            presence,
            room: router::Room::new(&base.memory.budget, base.memory.frame_bytes, base.memory.link_bytes),
            pace: pace(&base.config),
            doors,
            streams: base.readers.clone(),
            aside: router::Aside::Threads,
            events_a_read: crate::limits::STREAM_BATCH_EVENTS,
            failure_lines: router::FailureLines::default(),
        });
        let (phase, watched) = watch::channel(Phase::Serving);
        let thread = Thread::start("the router thread", "router".into(), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(listener, grpc.map(|(grpc, _)| grpc), context, watched))
        })?;
        Ok(Self { thread, phase, port, grpc_port })
    }
}

/// Until all links have ended.
async fn serve(
    listener: std::net::TcpListener,
    grpc: Option<std::net::TcpListener>,
    context: Arc<RouterContext>,
    phase: watch::Receiver<Phase>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let (presence, clock) = (context.presence.clone(), context.clock.clone());
    let links = async {
        #[cfg(feature = "grpc")]
        if let Some(grpc) = grpc {
            let grpc = router::serve_grpc(TcpListener::from_std(grpc)?, context.clone(), phase.clone());
            tokio::join!(router::serve(listener, context, phase), grpc);
            return Ok(());
        }
        // A build without it has refused its listener.
        #[cfg(not(feature = "grpc"))]
        drop(grpc);
        router::serve(listener, context, phase).await;
        Ok(())
    };
    tokio::select! {
        served = links => served,
        () = presence.keep(&clock) => Ok(()),
    }
}

fn rules(config: &Config, digest_key: DigestKey) -> router::Rules {
    router::Rules {
        apps: config.apps.iter().map(|app| app.key.clone()).collect(),
        digest_key,
        online_window_ms: config.device.online_window_ms,
    }
}

fn pace(config: &Config) -> router::Pace {
    let leave = &config.leave;
    let left = leave.deadline_ms.saturating_sub(leave.drain_lead_ms + leave.window_ms);
    router::Pace {
        user_timeout: Duration::from_millis(config.router.user_timeout_ms.into()),
        ..router::Pace::default().leaving_within(Duration::from_millis(left))
    }
}

/// From the files that the configuration names.
pub(super) fn tls(config: &config::Router) -> Result<Arc<rustls::ServerConfig>, ServeError> {
    Ok(pki::server_config_router(&config.certificate, &config.key, &config.client_ca)?)
}

fn bind(key: &'static str, address: SocketAddr) -> Result<(std::net::TcpListener, u16), ServeError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    };
    listen().map_err(|error| ServeError::Listen { key, address, error })
}

fn rights(router: &RouterRights) -> router::Rights {
    let streams = match &router.streams {
        // Also those that wait to be retired: somebody has to read them to their end.
        Scope::All => Allowed::All,
        Scope::Only(some) => Allowed::Only(some.iter().cloned().collect()),
    };
    let apps = match &router.apps {
        Scope::All => Allowed::All,
        Scope::Only(some) => Allowed::Only(some.iter().cloned().collect()),
    };
    router::Rights { apps, streams }
}
