//! Flags that say what is measured.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::ValueEnum;
use mooring::cli::output::Failure;
use mooring::client::Way;
use mooring::client::local::most_descriptors;

use super::{Own, SPARE_DESCRIPTORS, Target};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// A Mooring edge.
    Mooring,
    /// Any broker of MQTT 3.1.1: QoS 1, a topic a device, sessions that stay.
    Mqtt,
}

impl Kind {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mooring => "mooring",
            Self::Mqtt => "mqtt",
        }
    }
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
    /// Devices of one process, at most; beyond, more processes hold them (hold, unicast, broadcast, flood) [default: as many as `ulimit -Hn` allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=15_000_000))]
    pub(super) per_process: Option<u32>,
    /// Of what is chosen at random
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Bytes of a message's body
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=4_000))]
    pub(crate) payload_bytes: u32,
    /// The result as one JSON line, no progress bars
    #[arg(long)]
    pub(crate) json: bool,
    /// A page with plots, and the same as JSON, into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// The command that starts the broker in the foreground; it is ended after the measurement
    #[arg(
        long,
        value_name = "COMMAND",
        help_heading = "A broker (--target mqtt)",
        conflicts_with = "server_pid"
    )]
    pub(super) start: Option<String>,
    #[command(flatten)]
    pub(super) edge: EdgeArgs,
}

impl Args {
    /// Devices that one process holds. Over QUIC they share sockets.
    pub(crate) fn share(&self) -> u32 {
        let most = most_descriptors().filter(|_| self.transport != Way::Quic).unwrap_or(u64::MAX);
        let most = u32::try_from(most.saturating_sub(SPARE_DESCRIPTORS)).unwrap_or(u32::MAX);
        // A worker takes three devices or more.
        self.per_process.unwrap_or(u32::MAX).min(most).max(3)
    }

    /// The flags of a worker for this server.
    pub(crate) fn for_worker(&self, target: &Target, share: u32) -> Vec<OsString> {
        let mut flags: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| flags.extend([name.into(), value]);
        flag("--target", self.target.name().into());
        flag("--transport", self.transport.name().into());
        flag("--devices", share.to_string().into());
        flag("--seed", self.seed.to_string().into());
        flag("--server-pid", target.process_id.load(Ordering::Acquire).to_string().into());
        if let (Some(Own::Edge { .. }), Some(dir)) = (&target.own, &target.data_dir) {
            flag("--dev", dir.into());
            return flags;
        }
        let edge = &self.edge;
        for (name, value) in
            [("--addr", &edge.addr), ("--router-addr", &edge.router_addr), ("--app", &edge.app)]
        {
            if let Some(value) = value {
                flag(name, value.into());
            }
        }
        for (name, value) in [
            ("--dev", &edge.dev),
            ("--ca", &edge.ca),
            ("--certificate", &edge.certificate),
            ("--key", &edge.key),
            ("--secret", &edge.secret),
        ] {
            if let Some(value) = value {
                flag(name, value.into());
            }
        }
        flags
    }

    /// Flags that don't go together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let edge = &self.edge;
        let wrong = match self.target {
            Kind::Mqtt if !edge.settings.is_empty() => {
                "--set is for an edge; a broker is started with its own file"
            }
            Kind::Mooring if self.start.is_some() => {
                "--start starts a broker: with --target mqtt (an edge is started by itself; --program says which)"
            }
            Kind::Mqtt if self.transport == Way::Quic => "MQTT goes over --transport tcp or tls",
            Kind::Mqtt if edge.dev.is_some() || edge.program.is_some() => {
                "--dev and --program are for an edge; for a broker --start 'COMMAND', or --addr and --server-pid"
            }
            Kind::Mqtt if self.start.is_none() && edge.server_pid.is_none() => {
                "which broker? --start 'mosquitto -c FILE', or --addr HOST:PORT and --server-pid PID of one that runs"
            }
            _ => return Ok(()),
        };
        Err(Failure::usage(wrong))
    }
}

/// Flags of the edge itself: where it is, or what is started.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EdgeArgs {
    /// The program that is started as the edge; by default this one, which holds the same edge
    #[arg(long, value_name = "FILE", help_heading = "An edge of our own")]
    pub(super) program: Option<PathBuf>,
    /// Its shards; 0: the number of cores less one, at least 1
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "An edge of our own")]
    pub(super) shards: usize,
    /// A key of its configuration, over what this scenario sets; more than once for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting, help_heading = "An edge of our own")]
    pub(super) settings: Vec<(String, String)>,
    /// An edge that runs already by `serve --dev` on this data directory
    #[arg(long, value_name = "DATA_DIR", help_heading = "An edge that runs already")]
    pub(super) dev: Option<PathBuf>,
    /// Where its devices connect; of a broker the address (127.0.0.1:1883 by default)
    #[arg(long, value_name = "HOST:PORT", help_heading = "An edge that runs already")]
    pub(super) addr: Option<String>,
    /// Where its routers connect
    #[arg(long, value_name = "HOST:PORT", help_heading = "An edge that runs already")]
    pub(super) router_addr: Option<String>,
    /// The CA of its certificates, PEM
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    pub(super) ca: Option<PathBuf>,
    /// A router's certificate, PEM
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    pub(super) certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    pub(super) key: Option<PathBuf>,
    /// The app's secret
    #[arg(long, value_name = "FILE", help_heading = "An edge that runs already")]
    pub(super) secret: Option<PathBuf>,
    /// The app key
    #[arg(long, value_name = "KEY", help_heading = "An edge that runs already")]
    pub(super) app: Option<String>,
    /// Its process, on this machine: memory and CPU are read from /proc
    #[arg(long, value_name = "PID", help_heading = "An edge that runs already")]
    pub(super) server_pid: Option<u32>,
}

impl EdgeArgs {
    /// Whether an edge is given; else one is started.
    pub(crate) fn is_given(&self) -> bool {
        self.addr.is_some() || self.dev.is_some()
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is needed, such as store.max_messages=5000")?;
    Ok((key.into(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_key_and_a_value() {
        assert_eq!(setting("a.b=c=d"), Ok(("a.b".into(), "c=d".into())));
        assert!(setting("a.b").is_err());
    }
}
