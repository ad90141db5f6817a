//! An edge as a child process: its own data directory, ports of the system's choice, certificates of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mooring::client::quic::QuicClient;
use mooring::client::{Endpoint, Transport, admin};
use mooring::credential::{self, InstallSecret, Secret};
use mooring::ids::AppKey;
use mooring::pki::file::Existing;
use mooring::pki::{self, DevSet};
use mooring::server::Ports;
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// What a test waits for comes at once, or never.
pub(crate) const NEVER: Duration = Duration::from_secs(60);
/// Between two looks at what can only be looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// Its credentials are of epoch 3: those of 2 are renewed, those of 1 revoked.
pub(crate) const APP_OF_EPOCH_3: &str = "epochs";
/// It ships under `com.example.main` and `com.example.channel` only.
pub(crate) const APP_WITH_PACKAGES: &str = "packed";

/// Devices register with a token of its backend only: HS256 with the bytes of the app's secret, or `EdDSA` with `token.key`.
pub(crate) const APP_WITH_TOKENS: &str = "tokens";
/// No device registers.
pub(crate) const APP_CLOSED: &str = "closed";
/// One device a second registers.
pub(crate) const APP_SLOW: &str = "slow";
/// Its devices keep three messages, the newest.
pub(crate) const APP_DROPPING_THE_OLDEST: &str = "dropping";
/// Its devices keep 1,000 bytes.
pub(crate) const APP_OF_FEW_BYTES: &str = "few-bytes";

/// How a device's bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Tls,
    Plain,
    Quic,
}

impl Way {
    /// Over TCP.
    pub(crate) const BOTH: [Self; 2] = [Self::Tls, Self::Plain];
    pub(crate) const ALL: [Self; 3] = [Self::Tls, Self::Plain, Self::Quic];
}

/// How a router's frames travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carrier {
    Framed,
    #[cfg(feature = "grpc")]
    Grpc,
}

impl Carrier {
    pub(crate) const ALL: &'static [Self] = &[
        Self::Framed,
        #[cfg(feature = "grpc")]
        Self::Grpc,
    ];
}

/// An edge; killed when dropped.
pub(crate) struct Edge {
    pub(crate) dir: TempDir,
    pub(crate) dev: DevSet,
    pub(crate) ports: Ports,
    secret: Secret,
    device_tls: Arc<ClientConfig>,
    router_tls: Arc<ClientConfig>,
    child: Option<Child>,
    /// That it may have; `None`: as many as this process.
    descriptors: Option<u32>,
}

impl Edge {
    /// A running edge with two shards.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A running edge with these keys of the configuration (`device.hello_deadline_ms`, `300`).
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let mut edge = Self::prepare(settings);
        edge.run().await;
        edge
    }

    /// A running edge that may have so many descriptors and no more.
    pub(crate) async fn start_with_descriptors(descriptors: u32) -> Self {
        let mut edge = Self { descriptors: Some(descriptors), ..Self::prepare(&[]) };
        edge.run().await;
        edge
    }

    /// An edge that was never started.
    pub(crate) fn prepare(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let dev = pki::develop(&dir.path().join("pki")).expect("certificates");
        std::fs::write(dir.path().join("edge.toml"), configuration(dir.path(), &dev, settings))
            .expect("a configuration");
        Self {
            secret: Secret::load(&dev.app_secret).expect("a secret"),
            device_tls: pki::client_config_device(&dev.ca).expect("TLS"),
            router_tls: pki::client_config_router(&dev.ca, &dev.router_certificate, &dev.router_key)
                .expect("TLS"),
            ports: Ports::default(),
            child: None,
            descriptors: None,
            dev,
            dir,
        }
    }

    /// `mooring serve` with this edge's configuration.
    pub(crate) fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_mooring");
        let mut command = Command::new(if self.descriptors.is_some() { "sh" } else { program });
        if let Some(most) = self.descriptors {
            command.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\""), program]);
        }
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MOORING_"))
        {
            command.env_remove(name);
        }
        command.args(["serve", "--config"]).arg(self.dir.path().join("edge.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Starts it (again), and waits until it serves.
    pub(crate) async fn run(&mut self) {
        let ports = self.data_dir().join("ports.json");
        if ports.exists() {
            std::fs::remove_file(&ports).expect("removed");
        }
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("log"));
        let child = self.command().stderr(log.expect("a log")).spawn();
        self.child = Some(child.expect("the edge starts"));
        let look = async {
            loop {
                if let Ok(text) = std::fs::read(&ports) {
                    return serde_json::from_slice(&text).expect("ports");
                }
                if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("a child"))
                {
                    panic!("the edge ended ({status}): {}", self.log());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        self.ports = timeout(NEVER, look).await.expect("the edge serves");
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What it wrote to standard error.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// SIGKILL: no goodbye, nothing flushed.
    pub(crate) async fn kill(&mut self) {
        self.child.take().expect("it runs").kill().await.expect("killed");
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP: none of its threads does anything when this returns.
    pub(crate) async fn pause(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.expect("a task").path().join("stat"));
            // The state stands behind the name, which is in brackets.
            stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        };
        let look = async {
            while !std::fs::read_dir(&tasks).expect("tasks").all(is_stopped) {
                tokio::time::sleep(LOOK).await;
            }
        };
        timeout(NEVER, look).await.expect("it stops");
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("it runs")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("signalled");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        timeout(NEVER, child.wait()).await.expect("it ends").expect("a status")
    }

    /// Where devices connect.
    pub(crate) fn device_endpoint(&self, way: Way) -> Endpoint {
        let (port, transport) = match way {
            Way::Tls => (self.ports.tls, Transport::Tls(self.device_tls.clone(), localhost())),
            Way::Plain => (self.ports.plain, Transport::Plain),
            Way::Quic => (self.ports.quic, self.quic(65_536)),
        };
        let address = format!("127.0.0.1:{}", port.expect("a port"));
        Endpoint { address: address.into(), transport, source: None }
    }

    /// The settings of devices' TLS, for those that change them.
    pub(crate) fn device_tls(&self) -> ClientConfig {
        (*self.device_tls).clone()
    }

    /// QUIC from a socket of its own; the edge may send so many bytes before they are read.
    pub(crate) fn quic(&self, bytes: u32) -> Transport {
        Transport::Quic(QuicClient::taking(&self.device_tls, &localhost(), bytes).expect("QUIC"))
    }

    /// Where routers connect.
    pub(crate) fn router_endpoint(&self) -> Endpoint {
        self.router_endpoint_over(Carrier::Framed)
    }

    /// The same, over this carrier.
    pub(crate) fn router_endpoint_over(&self, carrier: Carrier) -> Endpoint {
        self.endpoint_with(carrier, self.router_tls.clone())
    }

    /// Where a router connects whose certificate has this name.
    pub(crate) fn endpoint_of(&self, carrier: Carrier, router: &str) -> Endpoint {
        let (ca, key) = (&self.dev.ca, &self.dev.ca_key);
        let out = self.dir.path().join("routers");
        let pair = pki::make_router(router, ca, key, 30, &out, Existing::Replace).expect("made");
        let tls = pki::client_config_router(ca, &pair.certificate, &pair.key).expect("TLS");
        self.endpoint_with(carrier, tls)
    }

    fn endpoint_with(&self, carrier: Carrier, tls: Arc<ClientConfig>) -> Endpoint {
        let (port, transport) = match carrier {
            Carrier::Framed => (self.ports.router, Transport::Tls(tls, localhost())),
            #[cfg(feature = "grpc")]
            Carrier::Grpc => (self.ports.grpc.expect("a port"), Transport::Grpc(tls, localhost())),
        };
        Endpoint { address: format!("127.0.0.1:{port}").into(), transport, source: None }
    }

    /// Changes its configuration, for the next start.
    pub(crate) fn configure(&self, change: impl FnOnce(&str) -> String) {
        let file = self.dir.path().join("edge.toml");
        let text = std::fs::read_to_string(&file).expect("a configuration");
        std::fs::write(file, change(&text)).expect("written");
    }

    /// Runs a subcommand, which must do what it was asked; what it printed.
    pub(crate) async fn cli(&self, line: &str) -> String {
        let output = self.cli_command(line).output().await.expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mooring {line}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A subcommand; DIR stands for the test's directory.
    pub(crate) fn cli_command(&self, line: &str) -> Command {
        let line = line.replace("DIR", self.dir.path().to_str().expect("text"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_mooring"));
        command.args(line.split(' ')).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The id of the device that registers with this install secret.
    pub(crate) fn registered_id(&self, app: &str, install_secret: [u8; 16]) -> String {
        let install = InstallSecret::from_bytes(&install_secret).expect("16 bytes");
        credential::device_id(&self.secret, &AppKey::parse(app).expect("an app"), &install)
    }

    /// A genuine credential.
    pub(crate) fn credential(&self, app: &str, device_id: &str, epoch: u32) -> Vec<u8> {
        credential::issue(&self.secret, &AppKey::parse(app).expect("an app"), device_id, epoch)
    }

    /// What the admin port answers.
    pub(crate) async fn get(&self, path: &str) -> admin::Answer {
        admin::get(&format!("127.0.0.1:{}", self.ports.admin), path).await.expect("an answer")
    }

    /// JSON of the admin port.
    pub(crate) async fn ask(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// `/v1/totals`, in which the identity must hold.
    pub(crate) async fn totals(&self) -> Value {
        self.totals_at("/v1/totals").await
    }

    /// The first totals that are right.
    pub(crate) async fn totals_when(&self, right: impl Fn(&Value) -> bool) -> Value {
        let follow = async {
            let mut totals = self.totals().await;
            while !right(&totals) {
                totals = self.totals_at(&format!("/v1/totals?after={}", totals["sequence"])).await;
            }
            totals
        };
        if let Ok(totals) = timeout(NEVER, follow).await {
            return totals;
        }
        panic!("the totals stay at {}; the log:\n{}", self.totals().await, self.log());
    }

    async fn totals_at(&self, path: &str) -> Value {
        let totals = self.ask(path).await;
        let count = |value: &Value| value.as_u64().expect("a count");
        let sum = |value: &Value| value.as_object().expect("by reason").values().map(count).sum::<u64>();
        let accepted = count(&totals["accepted"]);
        let ends = count(&totals["arrived"]) + sum(&totals["failed"]);
        assert_eq!(
            accepted,
            ends + count(&totals["pending"]),
            "accepted = arrived + failed + pending: {totals}"
        );
        assert_eq!(count(&totals["targets"]), accepted + sum(&totals["refused"]), "{totals}");
        assert_eq!(totals["identity"], true, "{totals}");
        totals
    }

    /// The value of a series, as it is written in `/metrics`; 0 if there is none.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line =
            text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a series has a value that is right.
    pub(crate) async fn metric_comes_to(&self, series: &str, right: impl Fn(f64) -> bool) -> f64 {
        let look = async {
            loop {
                let value = self.metric(series).await;
                if right(value) {
                    return value;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if let Ok(value) = timeout(NEVER, look).await {
            return value;
        }
        panic!("{series} stays at {}; the log:\n{}", self.metric(series).await, self.log());
    }

    /// Waits until a series has reached this value.
    pub(crate) async fn counted(&self, series: &str, at_least: f64) {
        self.metric_comes_to(series, |value| value >= at_least).await;
    }
}

pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

fn configuration(dir: &Path, dev: &DevSet, settings: &[(&str, &str)]) -> String {
    let quoted = |path: &Path| Value::from(path.display().to_string()).to_string();
    let (certificate, key) = (quoted(&dev.server_certificate), quoted(&dev.server_key));
    let mut text = format!("data_dir = {}\n", quoted(&dir.join("data")));
    let in_section = |text: &mut String, section: &str, defaults: &[(&str, &str)]| {
        let of_section = |key: &str| match key.split_once('.') {
            Some((named, key)) => (named == section).then(|| key.to_owned()),
            None => section.is_empty().then(|| key.to_owned()),
        };
        let given: Vec<(String, &str)> =
            settings.iter().filter_map(|(key, value)| Some((of_section(key)?, *value))).collect();
        let rest = defaults.iter().filter(|(key, _)| given.iter().all(|(other, _)| other != key));
        for (key, value) in rest {
            writeln!(text, "{key} = {value}").expect("a string");
        }
        for (key, value) in &given {
            writeln!(text, "{key} = {value}").expect("a string");
        }
    };
    in_section(&mut text, "", &[("shards", "2")]);
    write!(text, "[device]\ncertificate = {certificate}\nkey = {key}\n").expect("a string");
    let any = ("\"127.0.0.1:0\"", "1");
    let device =
        [("tls", any.0), ("plain", any.0), ("heartbeat_min_s", any.1), ("quic_heartbeat_min_s", any.1)];
    in_section(&mut text, "device", &device);
    text += "[store]\n";
    in_section(&mut text, "store", &[("segment_bytes", "\"4MiB\""), ("reserve_segments", "1")]);
    text += "[memory]\n";
    in_section(&mut text, "memory", &[]);
    text += "[leave]\n";
    in_section(&mut text, "leave", &[("drain_lead_ms", "0"), ("window_ms", "100"), ("deadline_ms", "20000")]);
    text += "[log]\n";
    in_section(&mut text, "log", &[("filter", "\"info,mooring=debug\"")]);
    write!(
        text,
        "[admin]\nlisten = \"127.0.0.1:0\"\n\
         [router]\nlisten = \"127.0.0.1:0\"\ngrpc = \"{grpc}\"\ncertificate = {certificate}\nkey = {key}\nclient_ca = {ca}\n",
        grpc = if cfg!(feature = "grpc") { "127.0.0.1:0" } else { "off" },
        ca = quoted(&dev.ca),
    )
    .expect("a string");
    in_section(&mut text, "router", &[]);
    let router = pki::DEV_ROUTER;
    let apps = settings.iter().find(|(key, _)| *key == "rights.apps").map_or("\"*\"", |(_, apps)| apps);
    write!(text, "[[router.routers]]\nname = \"{router}\"\napps = {apps}\nstreams = \"*\"\n")
        .expect("a string");
    let secret = quoted(&dev.app_secret);
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    std::fs::write(dir.join("token.key"), pair.serialize_pem()).expect("written");
    std::fs::write(dir.join("token.pem"), pair.public_key_pem()).expect("written");
    let tokens = format!(
        "registration = \"token\"\ntoken_secret_file = {secret}\ntoken_public_key_file = \"token.pem\""
    );
    for (app, more) in [
        (pki::DEV_APP, ""),
        (APP_OF_EPOCH_3, "epoch = 3"),
        (APP_WITH_PACKAGES, "packages = [\"com.example.main\", \"com.example.channel\"]"),
        (APP_WITH_TOKENS, &tokens),
        (APP_CLOSED, "registration = \"off\""),
        (APP_SLOW, "registrations_per_s = 1"),
        (APP_DROPPING_THE_OLDEST, "max_pending_per_device = 3\nover_quota = \"drop_oldest\""),
        (APP_OF_FEW_BYTES, "max_pending_bytes_per_device = 1000"),
    ] {
        write!(text, "[[apps]]\nkey = \"{app}\"\nsecret_file = {secret}\n{more}\n").expect("a string");
    }
    text
}
