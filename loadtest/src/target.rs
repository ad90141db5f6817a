//! The server that is measured, an edge or a broker: one that is started for it, or one that runs already.

mod args;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mooring::cli::output::Failure;
use mooring::cli::peer::{Credentials, Edge, Issuer};
use mooring::cli::serve::sessions_of;
use mooring::client::admin;
use mooring::client::local::{LocalEdge, Ports, Scratch, enough_descriptors};
use mooring::client::{Endpoint, Way};
use mooring::config::usual_shards;
use mooring::ids::AppKey;

pub(crate) use self::args::{Args, EdgeArgs, Kind};
use crate::mqtt;
use crate::process::Process;

/// Descriptors that are needed beside those of devices.
pub(crate) const SPARE_DESCRIPTORS: u64 = 256;
/// Where a broker listens by default.
const BROKER: &str = "127.0.0.1:1883";
/// Milliseconds within which an edge notices that its devices have left.
const LEFT_MS: u64 = 30_000;
/// Milliseconds between two looks whether it has.
const LOOK_MS: u64 = 50;

/// What is measured: an edge, or a broker.
pub(crate) struct Target {
    /// Where devices connect, in each way that is used.
    devices: Vec<(Way, Endpoint)>,
    /// `None`: a broker.
    pub(crate) edge: Option<EdgeSide>,
    pub(crate) process: Process,
    /// The same for who looks from elsewhere.
    process_id: Arc<AtomicU32>,
    /// Where its admin port is and its data, if that is known.
    pub(crate) admin: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
    own: Option<Own>,
}

/// What an edge has and a broker hasn't.
pub(crate) struct EdgeSide {
    pub(crate) router: Endpoint,
    pub(crate) app: AppKey,
    issuer: Issuer,
}

impl EdgeSide {
    pub(crate) fn credential(&self, device_id: &str) -> Vec<u8> {
        self.issuer.credential(&self.app, device_id)
    }
}

/// What was started for the measurement; it is ended when this goes.
enum Own {
    /// The edge goes before its directory does.
    Edge {
        edge: Box<LocalEdge>,
        _scratch: Scratch,
    },
    Broker(mqtt::Server),
}

impl Own {
    fn alive(&mut self) -> Result<(), Failure> {
        match self {
            Self::Edge { edge, .. } => edge.alive().map_err(Failure::failed),
            Self::Broker(broker) => broker.alive(),
        }
    }

    async fn kill(&mut self) -> Result<(), Failure> {
        match self {
            Self::Edge { edge, .. } => edge.kill().await.map_err(Failure::failed),
            Self::Broker(broker) => broker.kill().await,
        }
    }

    fn start_again(&mut self) -> Result<(), Failure> {
        match self {
            Self::Edge { edge, .. } => edge.launch().map_err(Failure::failed),
            Self::Broker(broker) => broker.start_again(),
        }
    }

    fn pid(&self) -> Result<u32, Failure> {
        match self {
            Self::Edge { edge, .. } => edge.pid().ok_or_else(|| Failure::failed("the edge has ended")),
            Self::Broker(broker) => broker.pid(),
        }
    }
}

impl Target {
    /// Starts an edge, or looks up the one that is given.
    pub(crate) async fn new(args: &Args) -> Result<Self, Failure> {
        if args.per_process.is_some() {
            return Err(Failure::usage("--per-process is for hold, unicast, broadcast and flood"));
        }
        Self::with(args, args.devices).await
    }

    /// Likewise, for devices that workers hold where this process can't.
    pub(crate) async fn for_workers(args: &Args) -> Result<Self, Failure> {
        let share = args.share();
        Self::with(args, if args.devices > share { 0 } else { args.devices }).await
    }

    /// So many devices are in this process.
    async fn with(args: &Args, here: u32) -> Result<Self, Failure> {
        args.check()?;
        // Those over QUIC share sockets.
        let here = if args.transport == Way::Quic { 0 } else { here };
        let target = if args.target == Kind::Mqtt {
            Self::broker(args, here).await?
        } else {
            Self::over(&args.edge, &[args.transport], here, &[]).await?
        };
        target.has_room(args)?;
        Ok(target)
    }

    /// Whether the server's own descriptors suffice: each session is one, but over QUIC.
    fn has_room(&self, args: &Args) -> Result<(), Failure> {
        let Some(descriptors) = self.process.most_descriptors().filter(|_| args.transport != Way::Quic)
        else {
            return Ok(());
        };
        let sessions = match args.target {
            // Of one that runs already it isn't known; fewer shards leave more.
            Kind::Mooring if args.edge.is_given() => sessions_of(descriptors, 1) as u64,
            Kind::Mooring => {
                let shards = if args.edge.shards == 0 { usual_shards() } else { args.edge.shards };
                sessions_of(descriptors, shards) as u64
            }
            Kind::Mqtt => descriptors,
        };
        if u64::from(args.devices) <= sessions {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "the server may open {descriptors} files, so it can't hold {} sessions, but {sessions} at most: fewer --devices, or a higher limit for it \
             (`ulimit -Hn`, LimitNOFILE of its unit; one that is started here has that of this command)",
            args.devices
        )))
    }

    async fn broker(args: &Args, here: u32) -> Result<Self, Failure> {
        enough_descriptors(u64::from(here) + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
        let address = args.edge.addr.clone().unwrap_or_else(|| BROKER.into());
        let broker = Edge { address: Some(address), ca: args.edge.ca.clone(), ..no_edge() };
        let endpoint = broker.device_endpoint(args.transport, None)?;
        let (own, pid) = match (&args.start, args.edge.server_pid) {
            (Some(command), _) => {
                let mut broker = mqtt::Server::start(command)?;
                broker.ready(&endpoint).await?;
                let pid = broker.pid()?;
                (Some(Own::Broker(broker)), pid)
            }
            (None, Some(pid)) => (None, pid),
            (None, None) => return Err(Failure::usage("--server-pid is needed")),
        };
        Ok(Self {
            devices: vec![(args.transport, endpoint)],
            edge: None,
            process: Process::new(pid)?,
            process_id: Arc::new(AtomicU32::new(pid)),
            admin: None,
            data_dir: None,
            own,
        })
    }

    /// Likewise, for devices that come in these ways, of which so many need a descriptor; an edge of our own has these settings beside its usual ones.
    pub(crate) async fn over(
        args: &EdgeArgs,
        ways: &[Way],
        devices: u32,
        settings: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        enough_descriptors(u64::from(devices) + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
        if args.is_given() && !args.settings.is_empty() {
            return Err(Failure::usage(
                "--set is for an edge of our own: an edge that runs has its settings",
            ));
        }
        if args.is_given() { Self::given(args, ways) } else { Self::start(args, ways, settings).await }
    }

    async fn start(args: &EdgeArgs, ways: &[Way], settings: &[(&str, &str)]) -> Result<Self, Failure> {
        let program = match &args.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(Failure::failed)?,
        };
        let scratch = Scratch::new(None).map_err(Failure::failed)?;
        let usual = [("leave.drain_lead_ms", "0"), ("leave.window_ms", "200"), ("log.filter", "warn")];
        let asked: Vec<_> = args.settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let settings = [&usual[..], settings, &asked].concat();
        let edge = LocalEdge::prepare(&program, scratch.dir(), args.shards, &settings);
        let mut edge = edge.map_err(Failure::failed)?;
        edge.start().await.map_err(|e| Failure::failed(format!("{}: {e}", program.display())))?;
        let pid = edge.pid().ok_or_else(|| Failure::failed("the edge has ended"))?;
        let secret = Credentials {
            credential: None,
            credential_file: None,
            secret: Some(edge.dev.app_secret.clone()),
            epoch: 1,
        };
        Ok(Self {
            devices: ways.iter().map(|way| (*way, edge.device_endpoint(*way, None))).collect(),
            edge: Some(EdgeSide {
                router: edge.router_endpoint(),
                app: edge.app().clone(),
                issuer: secret.issuer(&no_edge())?,
            }),
            process: Process::new(pid)?,
            process_id: Arc::new(AtomicU32::new(pid)),
            admin: Some(edge.admin()),
            data_dir: Some(edge.data_dir()),
            own: Some(Own::Edge { edge: Box::new(edge), _scratch: scratch }),
        })
    }

    fn given(args: &EdgeArgs, ways: &[Way]) -> Result<Self, Failure> {
        let pid = args.server_pid;
        let pid =
            pid.ok_or_else(|| Failure::usage("--server-pid is needed: memory and CPU are the server's"))?;
        if args.addr.is_some() && (args.router_addr.is_none() || args.secret.is_none()) {
            return Err(Failure::usage(
                "--addr of an edge needs --router-addr, --ca, --certificate, --key, --secret and --app too",
            ));
        }
        let edge = |address: &Option<String>| Edge {
            dev: args.dev.clone(),
            address: address.clone(),
            ca: args.ca.clone(),
            server_name: None,
            app: args.app.clone(),
        };
        let (devices, routers) = (edge(&args.addr), edge(&args.router_addr));
        let secret =
            Credentials { credential: None, credential_file: None, secret: args.secret.clone(), epoch: 1 };
        let endpoint = |way: &Way| Ok((*way, devices.device_endpoint(*way, None)?));
        Ok(Self {
            devices: ways.iter().map(endpoint).collect::<Result<_, Failure>>()?,
            edge: Some(EdgeSide {
                router: routers.router_endpoint(args.certificate.as_deref(), args.key.as_deref())?,
                app: devices.app()?,
                issuer: secret.issuer(&devices)?,
            }),
            process: Process::new(pid)?,
            process_id: Arc::new(AtomicU32::new(pid)),
            admin: args.dev.as_deref().map(admin_port).transpose()?.flatten(),
            data_dir: args.dev.clone(),
            own: None,
        })
    }

    /// Where a device connects in this way, from this address. `None`: nobody was to come this way.
    pub(crate) fn device(&self, way: Way, source: Option<IpAddr>) -> Option<Endpoint> {
        let (_, endpoint) = self.devices.iter().find(|(of, _)| *of == way)?;
        Some(Endpoint { source, ..endpoint.clone() })
    }

    /// Says which process it is, also after it was started again.
    pub(crate) fn process_now(&self) -> impl Fn() -> Process + Send + Sync + use<> {
        let pid = Arc::clone(&self.process_id);
        move || Process::unchecked(pid.load(Ordering::Acquire))
    }

    /// Its side that a broker hasn't.
    pub(crate) fn edge(&self) -> Result<&EdgeSide, Failure> {
        self.edge.as_ref().ok_or_else(|| Failure::usage("this is for an edge, not for a broker"))
    }

    /// Whether devices can have addresses of their own: the server is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.devices.iter().all(|(_, device)| device.address.starts_with("127."))
    }

    /// Whether it was started for the measurement, and so may be killed.
    pub(crate) fn is_ours(&self) -> bool {
        self.own.is_some()
    }

    /// SIGKILL, and waits until the process is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        let Some(own) = &mut self.own else {
            return Err(Failure::usage(
                "what runs already isn't killed: leave out --addr and --dev (a broker: --start 'COMMAND')",
            ));
        };
        own.alive()?;
        own.kill().await
    }

    /// A new process in the place of the one that was killed, on the same ports and data; [`Self::ready`] waits for it.
    pub(crate) fn start_again(&mut self) -> Result<(), Failure> {
        let Some(own) = &mut self.own else { return Ok(()) };
        own.start_again()?;
        self.process = Process::new(own.pid()?)?;
        self.process_id.store(own.pid()?, Ordering::Release);
        Ok(())
    }

    /// Waits until what was started again serves.
    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        match (&mut self.own, self.devices.first()) {
            (Some(Own::Edge { edge, .. }), _) => edge.ready().await.map_err(Failure::failed),
            (Some(Own::Broker(broker)), Some((_, endpoint))) => broker.ready(endpoint).await,
            _ => Ok(()),
        }
    }

    /// Waits until the edge knows that nobody is connected any more, if it can be asked.
    pub(crate) async fn until_all_left(&self) -> Result<(), Failure> {
        let Some(admin) = &self.admin else { return Ok(()) };
        for _ in 0..LEFT_MS / LOOK_MS {
            let metrics = admin::get(admin, "/metrics").await.map_err(Failure::failed)?;
            if sessions(&metrics.body) == 0.0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        Err(Failure::failed(format!("devices that left are still connected after {} s", LEFT_MS / 1_000)))
    }

    /// Ends the server, if it is ours.
    pub(crate) async fn end(self) -> Result<(), Failure> {
        let Some(mut own) = self.own else { return Ok(()) };
        own.alive()?;
        own.kill().await
    }
}

/// Sessions over all transports, in the text of /metrics.
fn sessions(metrics: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with("mooring_sessions{"));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// The admin port of an edge that runs on this data directory.
fn admin_port(data_dir: &Path) -> Result<Option<String>, Failure> {
    let ports = Ports::read(data_dir).map_err(Failure::failed)?;
    Ok(ports.and_then(|ports| ports.admin).map(|port| format!("127.0.0.1:{port}")))
}

fn no_edge() -> Edge {
    Edge { dev: None, address: None, ca: None, server_name: None, app: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_all_transports_are_summed() {
        let text = "mooring_sessions{transport=\"tls\"} 3\nmooring_sessions{transport=\"tcp\"} 4\n\
            mooring_shard_sessions{shard=\"0\"} 7\n";
        assert!((sessions(text) - 7.0).abs() < f64::EPSILON);
        assert!(sessions("").abs() < f64::EPSILON);
    }
}
