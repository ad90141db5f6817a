//! An edge as a child process on this machine, with all that devices and a router need to reach it: for the demo, the end-to-end tests
//! and the load generator. It can be killed and started again on the same ports and the same data.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::admin::{self, AdminError};
use super::quic::QuicClient;
use super::{Endpoint, Transport, Way};
use crate::credential::{self, Secret};
use crate::ids::AppKey;
use crate::pki::{self, DevSet};

/// Seconds from start to ready.
const READY_SECONDS: u64 = 60;
/// Milliseconds between two looks whether it is.
const READY_EVERY_MS: u64 = 20;
/// Devices that may register a second: all of one machine start at once.
const REGISTRATIONS: u32 = 100_000;
/// Lines of the log that an error shows.
const LOG_LINES: usize = 20;
/// Ports are taken below the range from which the system takes those of outgoing connections: a client that comes back while the edge
/// is down must not get the edge's own port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Why the edge isn't there.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// A file or the process can't be made.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates can't be made or read.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// The app's secret can't be read.
    #[error(transparent)]
    Secret(#[from] credential::SecretError),
    /// It ended.
    #[error("the edge ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// How.
        status: String,
        /// The last lines.
        log: String,
    },
    /// It didn't get ready.
    #[error("the edge isn't ready after {READY_SECONDS} s: {why}; the end of its log:\n{log}")]
    NotReady {
        /// What the admin port says.
        why: String,
        /// The last lines.
        log: String,
    },
    /// `ports.json` is damaged.
    #[error("{path} is not understood: {error}")]
    Ports {
        /// The file.
        path: String,
        /// Why.
        error: serde_json::Error,
    },
}

/// The ports of a running edge, which it writes to `ports.json` in its data directory.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Ports {
    /// Devices, TLS.
    pub tls: Option<u16>,
    /// Devices, QUIC.
    #[serde(default)]
    pub quic: Option<u16>,
    /// Devices, plain TCP.
    pub plain: Option<u16>,
    /// Routers.
    pub router: Option<u16>,
    /// The admin port.
    pub admin: Option<u16>,
}

impl Ports {
    /// What the edge of this data directory wrote; `None` if it never did.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, LocalError> {
        let path = data_dir.join("ports.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| LocalError::Ports { path: path.display().to_string(), error }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LocalError::Io { what: path.display().to_string(), source }),
        }
    }
}

/// One more app of a local edge.
#[derive(Clone, Copy, Debug)]
pub struct LocalApp<'a> {
    /// Its key.
    pub key: &'a str,
    /// Where its receipts and outcomes go.
    pub stream: &'a str,
    /// `refuse_newest` or `drop_oldest`.
    pub over_quota: &'a str,
}

/// An edge that belongs to this process: it is killed when this is dropped.
#[derive(Debug)]
pub struct LocalEdge {
    program: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    settings: Vec<(String, String)>,
    /// Certificates and secret.
    pub dev: DevSet,
    secret: Secret,
    app: AppKey,
    tls: Arc<ClientConfig>,
    /// One for all devices.
    quic: Arc<QuicClient>,
    router_tls: Arc<ClientConfig>,
    ports: [u16; 5],
    child: Option<Child>,
}

impl LocalEdge {
    /// Prepares an edge under `dir` (data in `dir/data`), to be run by `program`. `settings` are configuration keys and values
    /// (`leave.window_ms`, `100`).
    pub fn prepare(
        program: &Path,
        dir: &Path,
        shards: usize,
        settings: &[(&str, &str)],
    ) -> Result<Self, LocalError> {
        Self::prepare_with_apps(program, dir, shards, settings, &[])
    }

    /// The same with more apps, which have the secret of the first one: their keys, each with its stream.
    pub fn prepare_with_apps(
        program: &Path,
        dir: &Path,
        shards: usize,
        settings: &[(&str, &str)],
        apps: &[LocalApp<'_>],
    ) -> Result<Self, LocalError> {
        let data = dir.join("data");
        std::fs::create_dir_all(&data)
            .map_err(|source| LocalError::Io { what: data.display().to_string(), source })?;
        let dev = pki::develop(&data)?;
        let ports = [free_port()?, free_port()?, free_port()?, free_port()?, free_port()?];
        let config = dir.join("edge.toml");
        std::fs::write(&config, config_text(&data, &dev, shards, ports) + &apps_text(&dev, apps))
            .map_err(|source| LocalError::Io { what: config.display().to_string(), source })?;
        let tls = pki::client_config_device(&dev.ca)?;
        let quic = QuicClient::new(&tls, &localhost())
            .map_err(|source| LocalError::Io { what: "QUIC".into(), source })?;
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            config,
            settings: settings.iter().map(|(k, v)| (variable(k), (*v).to_owned())).collect(),
            secret: Secret::load(&dev.app_secret)?,
            app: AppKey::parse(pki::DEV_APP).ok_or_else(|| LocalError::Io {
                what: "the development app".into(),
                source: io::ErrorKind::InvalidInput.into(),
            })?,
            tls,
            quic,
            router_tls: pki::client_config_router(&dev.ca, &dev.router_certificate, &dev.router_key)?,
            dev,
            ports,
            child: None,
        })
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&mut self) -> Result<(), LocalError> {
        self.launch()?;
        self.ready().await
    }

    /// Starts it, and doesn't wait.
    pub fn launch(&mut self) -> Result<(), LocalError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| LocalError::Io { what, source }
        };
        let log = self.dir.join("edge.log");
        let log = File::options().create(true).append(true).open(&log).map_err(failed("edge.log"))?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("MOORING_")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--config"])
            .arg(&self.config)
            .envs(self.settings.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        self.child = Some(command.spawn().map_err(failed("the edge can't be started"))?);
        Ok(())
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) -> Result<(), LocalError> {
        let mut why = String::new();
        for _ in 0..READY_SECONDS * 1_000 / READY_EVERY_MS {
            self.alive()?;
            match admin::get(&self.admin(), "/readyz").await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => answer.body.trim().clone_into(&mut why),
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(READY_EVERY_MS)).await;
        }
        Err(LocalError::NotReady { why, log: self.log_tail() })
    }

    /// An error if it ended by itself.
    pub fn alive(&mut self) -> Result<(), LocalError> {
        let status = match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => return Ok(()),
            Some(Ok(Some(status))) => status.to_string(),
            Some(Err(error)) => error.to_string(),
            None => "it was not started".into(),
        };
        Err(LocalError::Ended { status, log: self.log_tail() })
    }

    /// Its process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), LocalError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().await.map_err(|source| LocalError::Io { what: "killing the edge".into(), source })
    }

    /// SIGTERM.
    pub fn terminate(&self) -> Result<(), LocalError> {
        self.signal(Signal::TERM, "ending the edge")
    }

    /// SIGSTOP: it stands still, with all its connections, until [`Self::resume`].
    pub fn pause(&self) -> Result<(), LocalError> {
        self.signal(Signal::STOP, "stopping the edge")
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<(), LocalError> {
        self.signal(Signal::CONT, "continuing the edge")
    }

    fn signal(&self, signal: Signal, what: &str) -> Result<(), LocalError> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(()) };
        kill_process(pid, signal).map_err(|e| LocalError::Io { what: what.into(), source: e.into() })
    }

    /// Waits until it ended.
    pub async fn wait(&mut self) -> Result<ExitStatus, LocalError> {
        let Some(mut child) = self.child.take() else { return Ok(ExitStatus::default()) };
        child.wait().await.map_err(|source| LocalError::Io { what: "waiting for the edge".into(), source })
    }

    /// The app that devices belong to.
    pub fn app(&self) -> &AppKey {
        &self.app
    }

    /// A device's credential.
    pub fn credential(&self, device_id: &str) -> Vec<u8> {
        self.credential_of(&self.app, device_id)
    }

    /// The credential of a device of any of its apps.
    pub fn credential_of(&self, app: &AppKey, device_id: &str) -> Vec<u8> {
        credential::issue(&self.secret, app, device_id, 1)
    }

    /// Where devices connect.
    pub fn device_endpoint(&self, way: Way, source: Option<IpAddr>) -> Endpoint {
        let [tls, plain, ..] = self.ports;
        let (port, transport) = match way {
            Way::Tls => (tls, Transport::Tls(Arc::clone(&self.tls), localhost())),
            Way::Quic => (tls, Transport::Quic(Arc::clone(&self.quic))),
            Way::Tcp => (plain, Transport::Plain),
        };
        Endpoint { address: format!("127.0.0.1:{port}").into(), transport, source }
    }

    /// Where the router connects.
    pub fn router_endpoint(&self) -> Endpoint {
        let transport = Transport::Tls(Arc::clone(&self.router_tls), localhost());
        Endpoint { address: format!("127.0.0.1:{}", self.ports[2]).into(), transport, source: None }
    }

    /// Where a router connects over gRPC; in a build without it, the same as [`Self::router_endpoint`].
    pub fn router_endpoint_grpc(&self) -> Endpoint {
        #[cfg(feature = "grpc")]
        {
            let transport = Transport::Grpc(Arc::clone(&self.router_tls), localhost());
            Endpoint { address: format!("127.0.0.1:{}", self.ports[4]).into(), transport, source: None }
        }
        #[cfg(not(feature = "grpc"))]
        self.router_endpoint()
    }

    /// "host:port" of the admin port.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.ports[3])
    }

    /// JSON of the admin port.
    pub async fn ask(&self, path: &str) -> Result<serde_json::Value, AdminError> {
        admin::get_json(&self.admin(), path).await
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("edge.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// A directory for the edge's data. It goes away in the end, unless it was named.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    keep: bool,
}

impl Scratch {
    /// The named directory, which must be new or empty; else a new one among the system's temporary files.
    pub fn new(keep: Option<&Path>) -> Result<Self, LocalError> {
        let name = format!("mooring-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let dir = keep.map_or_else(|| std::env::temp_dir().join(name), Path::to_path_buf);
        let failed = |source| LocalError::Io { what: dir.display().to_string(), source };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        if std::fs::read_dir(&dir).map_err(failed)?.next().is_some() {
            return Err(failed(io::ErrorKind::DirectoryNotEmpty.into()));
        }
        Ok(Self { dir, keep: keep.is_some() })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// It is not to go away.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "can't be removed");
        }
    }
}

/// Descriptors that this process may have once its limit is raised; `None`: any number.
pub fn most_descriptors() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum
}

/// Raises this process's limit of open files to all that it may have, and checks that it is enough.
pub fn enough_descriptors(needed: u64) -> Result<(), LocalError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|maximum| maximum < needed) {
        let what = format!("{needed} open files are needed: fewer devices, or a higher `ulimit -Hn`");
        return Err(LocalError::Io { what, source: rustix::io::Errno::MFILE.into() });
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|e| LocalError::Io { what: "the limit of open files".into(), source: e.into() })
}

fn localhost() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into())
}

/// The variable that overrides a key.
fn variable(key: &str) -> String {
    format!("MOORING_{}", key.replace('.', "_").to_uppercase())
}

/// A port number that nobody has, neither for TCP nor for UDP. Ports of one process differ; two processes begin at random places.
pub fn free_port() -> Result<u16, LocalError> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let size = PORTS.end - PORTS.start;
    NEXT.compare_exchange(0, 1 + rand::random::<u16>() % size, Ordering::Relaxed, Ordering::Relaxed).ok();
    for _ in 0..size {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % size;
        // QUIC has the number of TLS.
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            return Ok(port);
        }
    }
    Err(LocalError::Io { what: "a free port".into(), source: io::ErrorKind::AddrInUse.into() })
}

fn config_text(
    data: &Path,
    dev: &DevSet,
    shards: usize,
    [tls, plain, router, admin, grpc]: [u16; 5],
) -> String {
    let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    let (certificate, key) = (quoted(&dev.server_certificate), quoted(&dev.server_key));
    let grpc = if cfg!(feature = "grpc") { format!("127.0.0.1:{grpc}") } else { "off".into() };
    format!(
        "data_dir = {data}\nshards = {shards}\n\
         [device]\ntls = \"127.0.0.1:{tls}\"\nplain = \"127.0.0.1:{plain}\"\ncertificate = {certificate}\nkey = {key}\n\
         [router]\nlisten = \"127.0.0.1:{router}\"\ngrpc = \"{grpc}\"\ncertificate = {certificate}\nkey = {key}\nclient_ca = {ca}\n\
         [[router.routers]]\nname = \"{name}\"\napps = \"*\"\nstreams = \"*\"\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\n\
         [[apps]]\nkey = \"{app}\"\nsecret_file = {secret}\nstream = \"main\"\nregistrations_per_s = {REGISTRATIONS}\n",
        data = quoted(data),
        ca = quoted(&dev.ca),
        secret = quoted(&dev.app_secret),
        name = pki::DEV_ROUTER,
        app = pki::DEV_APP,
    )
}

fn apps_text(dev: &DevSet, apps: &[LocalApp<'_>]) -> String {
    let secret = serde_json::Value::from(dev.app_secret.display().to_string()).to_string();
    let app = |LocalApp { key, stream, over_quota }: &LocalApp<'_>| {
        format!(
            "[[apps]]\nkey = \"{key}\"\nsecret_file = {secret}\nstream = \"{stream}\"\n\
             over_quota = \"{over_quota}\"\nregistrations_per_s = {REGISTRATIONS}\n"
        )
    };
    apps.iter().map(app).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    #[test]
    fn the_configuration_is_valid_and_settings_reach_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = [("leave.window_ms", "100"), ("store.segment_bytes", "4MiB")];
        let edge = LocalEdge::prepare(Path::new("mooring"), dir.path(), 3, &settings).expect("prepared");
        let environment = edge.settings.iter().map(|(k, v)| (k.into(), v.into()));
        let overrides = Overrides::from_env(environment.collect::<Vec<_>>());
        let config = Config::load(Some(&edge.config), &overrides).expect("valid");
        assert_eq!((config.shards, config.leave.window_ms), (3, 100));
        assert_eq!(config.store.segment_bytes, 4 << 20);
        assert!(config.warnings.is_empty());
        assert_eq!(config.admin.listen.to_string(), edge.admin());
    }

    #[test]
    fn a_program_that_ends_is_reported_with_its_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut edge = LocalEdge::prepare(Path::new("false"), dir.path(), 1, &[]).expect("prepared");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert!(matches!(runtime.block_on(edge.start()), Err(LocalError::Ended { .. })));
    }

    #[test]
    fn ports_of_one_process_differ() {
        let ports: std::collections::HashSet<u16> = (0..50).map(|_| free_port().expect("a port")).collect();
        assert_eq!(ports.len(), 50);
    }
}
