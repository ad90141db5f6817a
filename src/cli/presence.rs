//! `presence`: follows who is connected, as a router does.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::json;

use super::output::{self, Failure, line, note};
use super::peer::{Edge, RouterIdentity};
use super::signals::Signals;
use crate::client::Backoff;
use crate::client::router::{PresenceNews, PresenceOptions, follow_presence};
use crate::clock::Clock;
use crate::wire::pb::router::{PresenceChange, PresenceState};

/// Milliseconds without a link after which it gives up.
const PATIENCE_MS: u64 = 30_000;

/// Flags of `presence`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// All apps of the router, not only --app
    #[arg(long)]
    all_apps: bool,
    /// End with the first snapshot: who is connected now
    #[arg(long)]
    once: bool,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Log filter, for instance debug
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    identity: RouterIdentity,
}

const EXAMPLES: &str = "\
Examples:
  mooring presence --dev data                    who comes and goes, and who leaves a push unacknowledged
  mooring presence --dev data --once --json      who is connected now
  mooring presence --address edge.example:7400 --ca ca.pem \\
      --certificate router.pem --key router.key \\
      --app 23456789

Changes are coalesced over a second. A device is `suspect` if a push is unacknowledged for longer
than device.suspect_after_ms and nothing came from it since.";

/// Runs `presence`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    crate::telemetry::log(crate::telemetry::Format::Human, &args.log).map_err(Failure::usage)?;
    let app_keys = if args.all_apps { Vec::new() } else { vec![args.edge.app()?.to_string()] };
    let options = PresenceOptions {
        endpoint: args.identity.endpoint(&args.edge)?,
        name: "mooring presence".into(),
        app_keys,
        backoff: Backoff::fast(),
        patience: PATIENCE_MS,
        seed: rand::random(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(follow(args, options))
}

async fn follow(args: &Args, options: PresenceOptions) -> Result<(), Failure> {
    let (whole, mut is_whole) = tokio::sync::watch::channel(false);
    let mut is_broken = false;
    let show = |news: PresenceNews<'_>| match news {
        PresenceNews::Broken(error) if !std::mem::replace(&mut is_broken, true) => {
            note(&format!("no link to the edge, trying for {} s: {error}", PATIENCE_MS / 1_000));
        }
        PresenceNews::Broken(_) => {}
        PresenceNews::Open => is_broken = false,
        PresenceNews::Changes(changes) => changes.iter().for_each(|change| line(&shown(change, args.json))),
        PresenceNews::Snapshot(map) => {
            let ((epoch, sequence), connected) = (map.point(), map.connected());
            if args.json {
                let (epoch, sequence) = (epoch.to_string(), sequence.to_string());
                let snapshot = json!({ "connected": connected, "epoch": epoch, "sequence": sequence });
                line(&json!({ "snapshot": snapshot }).to_string());
            } else {
                note(&format!("{connected} devices are connected"));
            }
            whole.send_replace(true);
        }
    };
    let was_whole = is_whole.clone();
    let until = Duration::from_secs(args.seconds.unwrap_or(u64::MAX).min(u64::from(u32::MAX)));
    let signal = Signals::new().map_err(Failure::failed)?.first();
    tokio::select! {
        stop = follow_presence(options, Arc::new(Clock::new(0)), show) => return Err(Failure::failed(stop)),
        // A closed channel means that following has ended, which has the first word.
        Ok(_) = is_whole.wait_for(|whole| *whole), if args.once => return Ok(()),
        () = tokio::time::sleep(until) => {}
        () = signal => {}
    }
    if *was_whole.borrow() {
        return Ok(());
    }
    Err(Failure::failed("the edge has not said yet who is connected"))
}

fn shown(change: &PresenceChange, as_json: bool) -> String {
    let state = match change.state() {
        PresenceState::Connected => "connected",
        PresenceState::Disconnected => "disconnected",
        PresenceState::Suspect => "suspect",
        PresenceState::Unspecified => "unspecified",
    };
    let PresenceChange { app_key, device_id, time, .. } = change;
    if as_json {
        return json!({ "app_key": app_key, "device_id": device_id, "state": state, "time": time })
            .to_string();
    }
    format!("{state:<12}  {}  {}", output::printable(app_key), output::printable(device_id))
}
