//! `mooring serve`: runs the edge.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::allocator;
use super::output::note;
use super::signals::Signals;
use crate::config::{Config, Device, Overrides};
use crate::pki::{self, DevSet};
use crate::server::{self, Ports, ServeError};
use crate::store::disk::real::RealDisk;
use crate::telemetry;

/// Runs the edge until SIGTERM or SIGINT, then leaves gracefully.
#[derive(ClapArgs, Debug)]
#[command(after_help = "Examples:
  mooring serve --dev                          try it: certificates and an app are made under the data directory
  mooring serve --config /etc/mooring/mooring.toml
  mooring serve --config /etc/mooring/mooring.toml --check     before a restart: is the configuration right?
  MOORING_LOG=debug mooring serve --config mooring.toml --shards 2

Exit codes: 0 left gracefully, or nothing is wrong, 1 could not start or go on, 2 the configuration is wrong.
Every key of the configuration stands in deploy/mooring.toml.")]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "MOORING_CONFIG")]
    config: Option<PathBuf>,
    /// Where everything durable is kept [default: mooring-data, or what the file says]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Shards [default: what the file says, else the number of cores less one, at least 1]
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// Only read the configuration, certificates, keys and secrets, and say what is wrong: exit code 2. Nothing is opened or bound
    #[arg(long, conflicts_with = "dev")]
    check: bool,
    /// Make a CA, certificates and an app under the data directory if they aren't there, use them, and print how to connect and push
    #[arg(long, conflicts_with = "config")]
    dev: bool,
}

/// Runs it.
pub fn run(args: &Args) -> ExitCode {
    let given_back = allocator::give_back();
    let data_dir = args.data_dir.clone();
    let dev = match args.dev.then(|| pki::develop(&data_dir.clone().unwrap_or_else(|| "mooring-data".into())))
    {
        None => None,
        Some(Ok(dev)) => Some(dev),
        Some(Err(error)) => {
            note(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let file = args.config.clone().or(dev.as_ref().map(|dev| dev.config.clone()));
    let config = match Config::load(file.as_deref(), &overrides(args)) {
        Ok(config) => config,
        Err(errors) => {
            note(&errors.to_string());
            return ExitCode::from(2);
        }
    };
    if let Err(error) = telemetry::log(config.log.format, &config.log.filter) {
        note(&format!("error: {error}"));
        return ExitCode::from(2);
    }
    if args.check {
        return check(&config);
    }
    if let Err(error) = given_back {
        tracing::warn!(%error, "the allocator keeps what is freed: set MALLOC_MMAP_THRESHOLD_=524288 and MALLOC_TRIM_THRESHOLD_=1048576, or memory may be more than the budget");
    }
    match serve(config, dev.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            // It doesn't go with the data directory: as wrong as one that is wrong by itself.
            let is_config = matches!(error.downcast_ref(), Some(ServeError::Config(_)));
            if is_config { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// What a start reads before it opens its data directory. Whether routers name streams that the directory doesn't have is seen only then.
fn check(config: &Config) -> ExitCode {
    for warning in &config.warnings {
        note(&format!("warning: {warning}"));
    }
    match server::check(config) {
        Ok(()) => {
            note("the configuration is right, and its certificates, keys and secrets can be used");
            ExitCode::SUCCESS
        }
        Err(error) => {
            note(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

fn overrides(args: &Args) -> Overrides {
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let mut overrides = Overrides::from_env(environment);
    if let Some(dir) = &args.data_dir {
        overrides.flag("--data-dir", "data_dir", &dir.display());
    }
    if let Some(shards) = args.shards {
        overrides.flag("--shards", "shards", &shards);
    }
    overrides
}

fn serve(mut config: Config, dev: Option<&DevSet>) -> Result<(), Box<dyn std::error::Error>> {
    fit_descriptors(&mut config);
    let renderer = telemetry::install();
    let max_bytes = (config.store.max_bytes > 0).then_some(config.store.max_bytes);
    let (disk, format) = RealDisk::open(&config.data_dir, max_bytes)?;
    let data_dir = config.data_dir.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ready = |ports: Ports| {
        if let Err(error) = server::write_ports(&data_dir, ports) {
            tracing::warn!(%error, "the ports in use can't be written to the data directory");
        }
        if let Some(dev) = dev {
            print_commands(&data_dir, dev, ports);
        }
    };
    let served = runtime.block_on(async {
        let signals = Signals::new()?;
        let served = server::serve(config, disk, format, renderer, ready, signals.first());
        Ok(served.await?)
    });
    // Whoever could not leave in time is not waited for: the process ends.
    runtime.shutdown_background();
    served
}

/// Descriptors that are no sessions: the store's files, listeners, and router links.
const OTHER_DESCRIPTORS: u64 = 1_024;

/// A session over TCP is a descriptor: as many as the hard limit allows, and no more sessions than leave enough for the journal. Those over QUIC share
/// a socket, and may be more.
fn fit_descriptors(config: &mut Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let usable = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the descriptor limit can't be raised");
            limit.current
        }
    };
    let Some(usable) = usable else { return };
    let shards = config.shards;
    config.device.max_closing = config.device.max_closing.min(closing_within(usable, shards));
    config.device.max_handshakes = config.device.max_handshakes.min(handshakes_within(usable, shards));
    let beside = config.device.max_handshakes + config.device.max_closing;
    let sessions = sessions_within(usable, shards, beside);
    if config.device.max_sessions.min(config.device.max_tcp_sessions) > sessions {
        tracing::info!(
            descriptors = usable,
            sessions,
            handshakes_a_shard = config.device.max_handshakes,
            closing_a_shard = config.device.max_closing,
            "sessions over TCP and TLS are limited by descriptors, those over QUIC are not; see LimitNOFILE"
        );
        config.device.max_tcp_sessions = sessions;
    }
}

/// Sessions over TCP of an edge with so many descriptors and shards, whose other settings are the usual ones.
pub fn sessions_of(descriptors: u64, shards: usize) -> usize {
    let device = Device::default();
    let closing = device.max_closing.min(closing_within(descriptors, shards));
    let handshakes = device.max_handshakes.min(handshakes_within(descriptors, shards));
    sessions_within(descriptors, shards, handshakes + closing)
}

/// Connections of a shard that have not said Hello yet: where descriptors are few, no more of them than an eighth. Whatever they come over: there is one
/// door, and neither kind should wait longer at it than the other.
fn handshakes_within(descriptors: u64, shards: usize) -> usize {
    (descriptors as usize / 8 / shards.max(1)).max(1)
}

/// Connections of a shard that are over: where descriptors are few, no more of them than a thirty-second part, as they are worth less than sessions.
fn closing_within(descriptors: u64, shards: usize) -> usize {
    (descriptors as usize / 32 / shards.max(1)).max(1)
}

/// Sessions over TCP that leave descriptors for connections that are none yet or no more, so many a shard, and for everything else; at least one.
fn sessions_within(descriptors: u64, shards: usize, beside_a_shard: usize) -> usize {
    let beside = ((shards * beside_a_shard) as u64).min(descriptors / 4);
    descriptors.saturating_sub(OTHER_DESCRIPTORS + beside).max(1) as usize
}

fn print_commands(data_dir: &std::path::Path, dev: &DevSet, ports: Ports) {
    let dir = data_dir.display();
    let metrics = ports.admin;
    println!("Development edge: app \"demo\", certificates and secret in {}", dev.dir.display());
    println!("  connect a device:  mooring device --dev {dir} --device phone-1");
    if let (Some(tls), Some(quic)) = (ports.tls, ports.quic) {
        println!("  devices connect:   TLS on port {tls}, QUIC on UDP port {quic} (--transport quic)");
    }
    println!("  push to it:        mooring push --dev {dir} --device phone-1 --title Hello --body World");
    if let Some(port) = ports.grpc {
        println!(
            "  routers over gRPC: 127.0.0.1:{port}, mutual TLS, with reflection: see proto/router.proto"
        );
    }
    println!("  metrics:           http://127.0.0.1:{metrics}/metrics");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_leave_descriptors_for_the_journal() {
        assert_eq!(sessions_within(20_000, 2, 256), 20_000 - 1_024 - 512);
        // Those never take more than a quarter, however many shards there are.
        assert_eq!(sessions_within(20_000, 256, 256), 20_000 - 1_024 - 5_000);
        assert_eq!(sessions_within(1_024, 2, 256), 1);
        // With the default bounds, and few descriptors, nearly all are sessions still.
        assert_eq!(closing_within(20_000, 2), 312);
        assert_eq!(sessions_within(20_000, 2, 256 + 312), 20_000 - 1_024 - 1_136);
        assert!(closing_within(1_048_576, 4) > 4_096 && closing_within(16, 256) == 1);
        assert_eq!(
            (handshakes_within(20_000, 2), handshakes_within(1_024, 2), handshakes_within(4, 2)),
            (1_250, 64, 1)
        );
        assert_eq!(sessions_of(20_000, 2), 20_000 - 1_024 - 2 * (1_024 + 312));
    }
}
