//! The edge that is measured: one that is started for it, or one that runs already.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use mooring::cli::output::Failure;
use mooring::cli::peer::{Credentials, Edge, Issuer};
use mooring::client::local::{LocalEdge, Scratch, enough_descriptors};
use mooring::client::{Endpoint, Transport, Way};
use mooring::ids::AppKey;

use crate::process::Process;

/// Descriptors that are needed beside those of devices.
const SPARE_DESCRIPTORS: u64 = 256;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// A Mooring edge.
    Mooring,
}

/// Flags that say which edge.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "edge")]
pub(crate) struct Args {
    /// What is measured
    #[arg(long, value_enum, default_value = "mooring")]
    pub(crate) target: Kind,
    /// How devices connect
    #[arg(long, value_enum, default_value = "tcp")]
    pub(crate) transport: Way,
    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(3..=15_000_000))]
    pub(crate) devices: u32,
    /// Of what is chosen at random
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Bytes of a message's body
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=4_000))]
    pub(crate) payload_bytes: u32,
    /// The result as one JSON line, no progress bars
    #[arg(long)]
    pub(crate) json: bool,
    /// The program that is started as the edge; by default `mooring` beside this one
    #[arg(long, value_name = "FILE", help_heading = "An edge of our own")]
    program: Option<PathBuf>,
    /// Its shards; 0: one a core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "An edge of our own")]
    shards: usize,
    /// An edge that runs already by `serve --dev` on this data directory
    #[arg(long, value_name = "DATA_DIR", help_heading = "An edge that runs already")]
    dev: Option<PathBuf>,
    /// Where its devices connect
    #[arg(long, value_name = "HOST:PORT", help_heading = "An edge that runs already", requires_all = ["router_addr", "ca", "certificate", "key", "secret", "app"])]
    addr: Option<String>,
    /// Where its routers connect
    #[arg(long, value_name = "HOST:PORT", help_heading = "An edge that runs already")]
    router_addr: Option<String>,
    /// The CA of its certificates, PEM
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    ca: Option<PathBuf>,
    /// A router's certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    key: Option<PathBuf>,
    /// The app's secret
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    secret: Option<PathBuf>,
    /// The app key
    #[arg(long, value_name = "KEY", help_heading = "An edge that runs already")]
    app: Option<String>,
    /// Its process, on this machine: memory and CPU are read from /proc
    #[arg(long, value_name = "PID", help_heading = "An edge that runs already")]
    server_pid: Option<u32>,
}

/// An edge to measure.
pub(crate) struct Target {
    device: Endpoint,
    pub(crate) router: Endpoint,
    pub(crate) app: AppKey,
    issuer: Issuer,
    pub(crate) process: Process,
    /// Ended when this goes, before the directory does.
    own: Option<(LocalEdge, Scratch)>,
}

impl Target {
    /// Starts an edge, or looks up the one that is given.
    pub(crate) async fn new(args: &Args) -> Result<Self, Failure> {
        enough_descriptors(u64::from(args.devices) + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
        if args.addr.is_none() && args.dev.is_none() { Self::start(args).await } else { Self::given(args) }
    }

    async fn start(args: &Args) -> Result<Self, Failure> {
        let program = match &args.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(Failure::failed)?.with_file_name("mooring"),
        };
        let scratch = Scratch::new(None).map_err(Failure::failed)?;
        let settings = [("leave.drain_lead_ms", "0"), ("leave.window_ms", "200"), ("log.filter", "warn")];
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
            device: edge.device_endpoint(args.transport, None),
            router: edge.router_endpoint(),
            app: edge.app().clone(),
            issuer: secret.issuer(&no_edge())?,
            process: Process::new(pid)?,
            own: Some((edge, scratch)),
        })
    }

    fn given(args: &Args) -> Result<Self, Failure> {
        let pid = args.server_pid;
        let pid =
            pid.ok_or_else(|| Failure::usage("--server-pid is needed: memory and CPU are the server's"))?;
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
        Ok(Self {
            device: devices.device_endpoint(args.transport, None)?,
            router: routers.router_endpoint(args.certificate.as_deref(), args.key.as_deref())?,
            app: devices.app()?,
            issuer: secret.issuer(&devices)?,
            process: Process::new(pid)?,
            own: None,
        })
    }

    /// Whether devices share sockets, as over QUIC they can.
    pub(crate) fn shares_sockets(&self) -> bool {
        matches!(self.device.transport, Transport::Quic(_))
    }

    /// Where a device connects, from this address.
    pub(crate) fn device(&self, source: Option<IpAddr>) -> Endpoint {
        Endpoint { source, ..self.device.clone() }
    }

    pub(crate) fn credential(&self, device_id: &str) -> Vec<u8> {
        self.issuer.credential(&self.app, device_id)
    }

    /// Whether devices can have addresses of their own: the edge is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        self.own.is_some() || self.device.address.starts_with("127.")
    }

    /// Ends the edge, if it is ours.
    pub(crate) async fn end(self) -> Result<(), Failure> {
        let Some((mut edge, scratch)) = self.own else { return Ok(()) };
        edge.alive().map_err(Failure::failed)?;
        edge.kill().await.map_err(Failure::failed)?;
        drop(scratch);
        Ok(())
    }
}

fn no_edge() -> Edge {
    Edge { dev: None, address: None, ca: None, server_name: None, app: None }
}
