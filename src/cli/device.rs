//! `device`: one device or many that connect, print what they get, and click or clean some of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::output::{self, Failure, line, note};
use super::peer::{Credentials, Edge, Identities};
use super::signals::Signals;
use crate::client::device::{
    Device, End, Handler, Installation, Leave, Machine, REQUESTS, Reaction, Request, Settings, Stopped, Tally,
};
use crate::client::{Backoff, ClientError, Endpoint, Transport, Way};
use crate::clock::Clock;
use crate::limits;
use crate::wire::pb::device::{Attributes, DeviceType, ErrorCode, EventType, Kind, Push, PushState};

/// New connections a second, so that a load doesn't begin as a storm.
const CONNECTS_PER_SECOND: u64 = 1_000;
/// Seconds for the last acks to be confirmed before the devices leave.
const SETTLE_SECONDS: u64 = 10;
/// So many devices say when they connect, and who they are.
const FEW: u32 = 10;
/// A reaction of the user comes within so many milliseconds.
const REACTION_MS: u64 = 2_000;

/// Flags of `device`.
#[derive(Debug, ClapArgs)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line are independent")]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The device id, or with --register the name of the installation; the n in braces stands for 1 to --count
    #[arg(long, value_name = "ID", default_value = "d-{n}")]
    device: String,
    /// How many devices
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Register with an install secret of its own, kept in --state, instead of logging in with a credential
    #[arg(long, conflicts_with_all = ["credential", "credential_file", "secret"])]
    register: bool,
    /// A file with a token of the app's backend to register with, read anew each time; see `mooring keys token`
    #[arg(long, value_name = "FILE", requires = "register")]
    token: Option<PathBuf>,
    /// Directory of what registered devices keep; with --dev by default a directory beside the edge's
    #[arg(long, value_name = "DIR", requires = "register")]
    state: Option<PathBuf>,
    /// How to connect
    #[arg(long, value_enum, default_value = "tls")]
    transport: Way,
    /// Over QUIC: go on from a new port every so many seconds, as phones do that change networks
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    rebind: Option<u64>,
    /// The source address to connect from
    #[arg(long, value_name = "IP")]
    source: Option<std::net::IpAddr>,
    /// The heartbeat to ask for, seconds; 0: as the edge likes
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    heartbeat: u32,
    /// The package name that runs
    #[arg(long, value_name = "NAME", default_value = "")]
    package: String,
    /// Say that the user switched push off
    #[arg(long)]
    push_off: bool,
    /// Say that the app was reinstalled: what was accepted before ends, and the account goes
    #[arg(long)]
    state_lost: bool,
    /// Ask for this once connected: 'bind account alice', 'unbind tag vip', 'unbind phone', 'push off'; may be given again
    #[arg(long = "ask", value_name = "REQUEST", value_parser = Request::parse)]
    asks: Vec<Request>,
    /// Take such requests from standard input too, one a line, while it is connected
    #[arg(long)]
    stdin: bool,
    /// Which part of the messages the user taps, 0 to 1
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    click_rate: f64,
    /// Which part of the messages the user dismisses, 0 to 1
    #[arg(long, value_name = "RATE", default_value_t = 0.0)]
    clean_rate: f64,
    /// End after so many messages, over all devices; what has come by then counts too
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Reconnect within milliseconds rather than seconds, for trying things out
    #[arg(long)]
    fast: bool,
    /// One JSON object a line: pushes as they come, then the tally
    #[arg(long)]
    json: bool,
    /// Log filter, for instance debug
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    credentials: Credentials,
}

const EXAMPLES: &str = "\
Examples:
  mooring device --dev data --device d-1       a device of the edge that runs with
                                               `serve --dev --data-dir data`
  mooring device --dev data --count 1000 --click-rate 0.1
  mooring device --dev data --transport tcp --messages 1 --json
  mooring device --dev data --device d-1 --ask 'bind account alice' \\
      --ask 'bind tag vip'
  echo 'unbind account alice' | mooring device --dev data --device d-1 --stdin --for 5
  mooring device --dev data --register --count 3
  mooring device --address edge.example:7443 --ca ca.pem --app 23456789 \\
      --register \\
      --device phone --state phones --token phone.token
  mooring device --dev data --transport quic --rebind 5 --json
  mooring device --address edge.example:7443 --ca ca.pem --app 23456789 \\
      --device 4f2a \\
      --credential-file 4f2a.credential

Ids of messages seen are kept in memory only: a new process may get again what an earlier one
got. With --json message ids are text, as JSON readers round large numbers.";

/// Runs `device`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    crate::telemetry::log(crate::telemetry::Format::Human, &args.log).map_err(Failure::usage)?;
    for (flag, rate) in [("--click-rate", args.click_rate), ("--clean-rate", args.clean_rate)] {
        if !(0.0..=1.0).contains(&rate) {
            return Err(Failure::usage(format!("{flag} is between 0 and 1")));
        }
    }
    if args.stdin && args.count != 1 {
        return Err(Failure::usage("--stdin is for one device; --ask is for all"));
    }
    if args.count != 1 && !args.device.contains("{n}") {
        return Err(Failure::usage("--count needs {n} in --device, so that the ids differ"));
    }
    let ids: Vec<String> = (1..=args.count).map(|n| args.device.replace("{n}", &n.to_string())).collect();
    if let Some(id) = ids.iter().find(|id| !(1..=limits::DEVICE_ID_BYTES).contains(&id.len())) {
        return Err(Failure::usage(format!(
            "'{id}': a device id has 1 to {} bytes",
            limits::DEVICE_ID_BYTES
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(connect(args, ids))
}

async fn connect(args: &Args, ids: Vec<String>) -> Result<(), Failure> {
    let app = args.edge.app()?;
    let identities = if args.register {
        Identities::registered(&args.edge, args.state.clone(), &app)?
    } else {
        Identities::Issued(args.credentials.issuer(&args.edge)?)
    };
    let endpoint = args.edge.device_endpoint(args.transport, args.source)?;
    let moving = moving(args, &endpoint)?;
    let clock = Arc::new(Clock::new(0));
    let attributes = Arc::new(attributes(args));
    let (leave, leaving) = watch::channel(Leave::Stay);
    let (count, counted) = watch::channel(0u64);
    let mut devices = JoinSet::new();
    for (n, id) in ids.into_iter().enumerate() {
        let (identity, installation) = identities.of_device(&app, &id)?;
        // Who is registered needs it no more.
        if let Some(file) = args.token.as_ref().filter(|_| identity.device_id.is_empty()) {
            std::fs::metadata(file)
                .map_err(|error| Failure::usage(format!("--token: {}: {error}", file.display())))?;
        }
        let settings = Settings {
            app_key: app.as_str().into(),
            device_id: identity.device_id,
            credential: identity.credential,
            install_secret: identity.install_secret,
            attributes: Arc::clone(&attributes),
            heartbeat_seconds: args.heartbeat,
            backoff: if args.fast { Backoff::fast() } else { Backoff::standard() },
            seed: rand::random(),
        };
        let name = id.clone();
        let printer = Printer {
            id,
            device_id: settings.device_id.clone(),
            installation,
            token: args.token.clone(),
            json: args.json,
            rates: (args.click_rate, args.clean_rate),
            rng: SmallRng::seed_from_u64(settings.seed),
            count: count.clone(),
            connected: false,
            talks: args.count <= FEW,
        };
        let mut device = Device::new(endpoint.clone(), Machine::new(settings), printer, Arc::clone(&clock));
        if args.state_lost {
            device.machine_mut().lose_state();
        }
        for request in &args.asks {
            device.machine_mut().request(request.clone());
        }
        if args.stdin {
            device.take_requests(requests_of_stdin()?);
        }
        let mut leaving = leaving.clone();
        let wait = Duration::from_millis(n as u64 * 1_000 / CONNECTS_PER_SECOND);
        devices.spawn(async move {
            tokio::time::sleep(wait).await;
            let stopped = device.run(&mut leaving).await;
            (name, stopped, device.machine().tally)
        });
    }
    drop(leaving);
    tokio::select! {
        ended = follow(args, &leave, counted, devices) => ended,
        failure = moving => Err(failure),
    }
}

/// Changes the port from time to time, if that is wanted; ends only if that fails.
fn moving(args: &Args, endpoint: &Endpoint) -> Result<impl Future<Output = Failure> + use<>, Failure> {
    let client = match (&endpoint.transport, args.rebind) {
        (Transport::Quic(client), Some(seconds)) => Some((Arc::clone(client), Duration::from_secs(seconds))),
        (_, None) => None,
        (_, Some(_)) => return Err(Failure::usage("--rebind needs --transport quic")),
    };
    Ok(async move {
        let Some((client, every)) = client else { return std::future::pending().await };
        loop {
            tokio::time::sleep(every).await;
            if let Err(error) = client.rebind() {
                return Failure::failed(format!("no new port: {error}"));
            }
        }
    })
}

/// Requests as they are typed. A thread of its own, which the end of the process ends: nothing else can end its read.
fn requests_of_stdin() -> Result<mpsc::Receiver<Request>, Failure> {
    let (sender, requests) = mpsc::channel(REQUESTS);
    let read = move || {
        for text in std::io::stdin().lines().map_while(Result::ok) {
            match Request::parse(&text) {
                Ok(request) => {
                    if sender.blocking_send(request).is_err() {
                        return;
                    }
                }
                Err(error) => note(&format!("'{}': {error}", output::printable(&text))),
            }
        }
    };
    std::thread::Builder::new().name("stdin".into()).spawn(read).map_err(Failure::failed)?;
    Ok(requests)
}

/// Waits for the end: of the devices, of the time, of the messages, or by the user.
async fn follow(
    args: &Args,
    leave: &watch::Sender<Leave>,
    mut counted: watch::Receiver<u64>,
    mut devices: JoinSet<(String, Stopped, Tally)>,
) -> Result<(), Failure> {
    let (wanted, seconds) = (args.messages.unwrap_or(u64::MAX), args.seconds.unwrap_or(u64::MAX / 2_000));
    let mut ends = Vec::new();
    let signal = Signals::new().map_err(Failure::failed)?.first();
    tokio::select! {
        () = join(&mut devices, &mut ends) => {}
        _ = counted.wait_for(|count| *count >= wanted) => {}
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        () = signal => {}
    }
    leave.send_replace(Leave::Settle);
    let settle = Duration::from_secs(SETTLE_SECONDS);
    if tokio::time::timeout(settle, join(&mut devices, &mut ends)).await.is_err() {
        leave.send_replace(Leave::Now);
        join(&mut devices, &mut ends).await;
    }
    summary(args, &ends)
}

async fn join(devices: &mut JoinSet<(String, Stopped, Tally)>, ends: &mut Vec<(String, Stopped, Tally)>) {
    while let Some(end) = devices.join_next().await {
        match end {
            Ok(end) => ends.push(end),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn summary(args: &Args, ends: &[(String, Stopped, Tally)]) -> Result<(), Failure> {
    let sum = |f: fn(&Tally) -> u64| ends.iter().map(|(_, _, t)| f(t)).sum::<u64>();
    let rows = [
        ("received", sum(|t| t.received)),
        ("duplicates_dropped", sum(|t| t.duplicates_dropped)),
        ("redelivered", sum(|t| t.redelivered)),
        ("expired", sum(|t| t.expired)),
        ("arrived", sum(|t| t.arrived)),
        ("revoked", sum(|t| t.revoked)),
        ("clicked", sum(|t| t.clicked)),
        ("cleaned", sum(|t| t.cleaned)),
        ("confirmed", sum(|t| t.confirmed)),
        ("sessions", sum(|t| t.sessions)),
        ("reconnects", sum(|t| t.reconnects)),
    ];
    if args.json {
        let mut tally = serde_json::Map::new();
        tally.extend(rows.iter().map(|(name, n)| ((*name).to_owned(), json!(n))));
        line(&json!({"event": "tally", "devices": ends.len(), "tally": tally}).to_string());
    } else {
        let rows: Vec<_> = rows.iter().map(|(name, n)| (name.replace('_', " "), n.to_string())).collect();
        note(&format!("{}\n{}", output::many(ends.len() as u64, "device", "devices"), output::table(&rows)));
    }
    for (id, stopped, _) in ends {
        if let Stopped::Ended(end) = stopped {
            let registers = args.register && reason(end) == "unauthenticated";
            let todo = if registers {
                ": is --app right, and does it take registrations without --token, or with this one?"
            } else {
                ""
            };
            return Err(Failure::failed(format!("{id} was turned away: {}{todo}", reason(end))));
        }
    }
    if sum(|t| t.sessions) == 0 {
        return Err(Failure::failed("no device got a session; --log debug says more"));
    }
    Ok(())
}

fn reason(end: &End) -> String {
    match end {
        End::Refused { code, .. } => code.as_str_name().trim_start_matches("ERROR_CODE_").to_lowercase(),
        End::Replaced => "a newer session of the same device took its place".into(),
        End::Broken | End::Silent | End::Away { .. } => "the connection ended".into(),
    }
}

fn attributes(args: &Args) -> Attributes {
    let push = if args.push_off { PushState::Off } else { PushState::On };
    Attributes {
        device_type: DeviceType::Android.into(),
        package: args.package.clone(),
        sdk_version: env!("CARGO_PKG_VERSION").into(),
        brand: "mooring".into(),
        os: std::env::consts::OS.into(),
        push: push.into(),
        ..Attributes::default()
    }
}

/// The app of a device: prints, and taps or dismisses at random.
struct Printer {
    /// What it is called here: of one that registers that isn't what the edge calls it.
    id: String,
    /// What the edge calls it; empty until it is registered.
    device_id: String,
    /// What it keeps, if it registers.
    installation: Option<Installation>,
    token: Option<PathBuf>,
    json: bool,
    rates: (f64, f64),
    rng: SmallRng,
    count: watch::Sender<u64>,
    connected: bool,
    /// Says more of its connection, as there are few.
    talks: bool,
}

impl Handler for Printer {
    fn push(&mut self, push: Push) -> Option<Reaction> {
        // It may have come with the Welcome.
        self.is_connected(true);
        self.print(&push);
        self.count.send_modify(|count| *count += 1);
        if push.kind() != Kind::Notification {
            return None; // Only notifications can be tapped or dismissed.
        }
        let roll: f64 = self.rng.random();
        let event = match self.rates {
            (click, _) if roll < click => EventType::Click,
            (click, clean) if roll < click + clean => EventType::Clean,
            _ => return None,
        };
        Some(Reaction { event, delay: self.rng.random_range(0..REACTION_MS) })
    }

    fn revoke(&mut self, message_id: u64) {
        if self.json {
            let value = json!({"event": "revoke", "device": self.id, "message_id": message_id.to_string()});
            return line(&value.to_string());
        }
        line(&format!("{} #{message_id} revoked", self.id));
    }

    fn keep(&mut self, device_id: &str, credential: &[u8]) {
        device_id.clone_into(&mut self.device_id);
        let kept = self.installation.as_mut().map(|installation| installation.keep(device_id, credential));
        let how = match kept {
            None => "a new credential, which is kept in memory only".into(),
            Some(Ok(())) => "an id and a credential, which are kept".into(),
            Some(Err(error)) => {
                note(&format!("{}: {error}; the next start registers again", self.id));
                "an id and a credential".to_owned()
            }
        };
        if self.talks {
            note(&format!("{} got {how}: {device_id}", self.id));
        }
    }

    fn token(&mut self) -> Vec<u8> {
        let Some(path) = &self.token else { return Vec::new() };
        match std::fs::read_to_string(path) {
            Ok(text) => text.trim().into(),
            Err(error) => {
                note(&format!("{}: {}: {error}", self.id, path.display()));
                Vec::new()
            }
        }
    }

    fn failed(&mut self, error: &ClientError) {
        if self.talks && !matches!(error, ClientError::Closed) {
            note(&format!("{}: {error}", self.id));
        }
        tracing::debug!(device = %self.id, %error, "will try again");
    }

    fn replied(&mut self, request: &Request, result: Result<(), ErrorCode>) {
        let code =
            result.err().map(|code| code.as_str_name().trim_start_matches("ERROR_CODE_").to_lowercase());
        if self.json {
            let reply = json!({
                "event": "reply", "device": self.id, "request": request.words(), "ok": code.is_none(), "code": code,
            });
            line(&reply.to_string());
        } else {
            let answer = code.unwrap_or_else(|| "ok".into());
            line(&format!("{} {}: {answer}", self.id, output::printable(&request.words())));
        }
    }

    fn turn(&mut self, machine: &Machine) {
        self.is_connected(machine.is_connected());
    }
}

fn priority(push: &Push) -> String {
    push.priority().as_str_name().trim_start_matches("PRIORITY_").to_lowercase()
}

impl Printer {
    fn is_connected(&mut self, connected: bool) {
        if self.talks && self.connected != connected {
            let id = if self.device_id == self.id { String::new() } else { format!(" ({})", self.device_id) };
            note(&format!("{}{id} {}", self.id, if connected { "connected" } else { "disconnected" }));
        }
        self.connected = connected;
    }

    fn print(&self, push: &Push) {
        let kind = push.kind().as_str_name().trim_start_matches("KIND_").to_lowercase();
        if self.json {
            let value = json!({
                "event": "push", "device": self.id, "device_id": self.device_id, "message_id": push.message_id.to_string(), "kind": kind, "title": push.title,
                "body": push.body, "extras": push.extras, "priority": priority(push), "collapse_key": push.collapse_key,
                "silent": push.silent, "redelivered": push.redelivered,
                "expires_milliseconds": push.expires_milliseconds,
            });
            return line(&value.to_string());
        }
        let mut text = format!("{} #{} {kind}", self.id, push.message_id);
        let parts = [&push.title, &push.body, &push.extras];
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            text.push_str(" | ");
            text.push_str(&output::printable(part));
        }
        if push.priority() == crate::wire::pb::device::Priority::High {
            text.push_str(" (high)");
        }
        if push.silent {
            text.push_str(" (silent)");
        }
        if push.redelivered {
            text.push_str(" (redelivered)");
        }
        line(&text);
    }
}
