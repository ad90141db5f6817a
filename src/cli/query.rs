//! `query`: asks an edge as a router does, over a link that reads no stream. `inspect` asks the admin port, which only operators reach.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::inspect::rows;
use super::output::{self, Failure, line};
use super::peer::{Edge, RouterIdentity};
use crate::account::what_to_do;
use crate::client::router::Asker;
use crate::ids::AppKey;
use crate::limits;
use crate::push::{Failure as Reason, Refusal, TargetState};
use crate::wire::pb::router::{DeviceState, MessageOnDevice, MessageState, Outcome};

/// Flags of `query`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// What every question needs.
#[derive(Debug, ClapArgs)]
struct Asking {
    /// One JSON line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    identity: RouterIdentity,
}

/// What is asked.
#[derive(Debug, Subcommand)]
enum What {
    /// What became of a message, and on one device if given
    #[command(after_help = "Examples:\n  mooring query message 868947123456789 --dev data --device d-1")]
    Message {
        /// The message id
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// A device
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        #[command(flatten)]
        asking: Asking,
    },
    /// What is known of devices, at most 10,000: known, push on and connected are three answers
    #[command(after_help = "Examples:\n  mooring query devices d-1 d-2 --dev data\n  \
        mooring query devices --targets ids.txt --dev data --json")]
    Devices {
        /// The device ids
        #[arg(required_unless_present = "targets")]
        ids: Vec<String>,
        /// A list of devices, one a line; '-': standard input
        #[arg(long, value_name = "FILE")]
        targets: Option<PathBuf>,
        #[command(flatten)]
        asking: Asking,
    },
}

const EXAMPLES: &str = "\
Examples:
  mooring query message 868947123456789 --dev data
  mooring query message 868947123456789 --dev data --device d-1 --json
  mooring query devices d-1 d-2 --address edge.example:7400 --ca ca.pem \\
      --certificate router.pem \\
      --key router.key --app 23456789";

/// Runs `query`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::failed)?;
    match &args.what {
        What::Message { id, device, asking } => {
            let (app, mut asker) = asking.open()?;
            let answer = runtime.block_on(asker.message(&app, *id, device.as_deref()));
            let (sequence, state) = answer.map_err(Failure::failed)?;
            if state.known || asking.json {
                asking.show(&message(*id, sequence, &state));
            }
            if !state.known {
                return Err(Failure::failed(format!(
                    "message {id} has no push record at this edge: it was never accepted here, or too long ago"
                )));
            }
        }
        What::Devices { ids, targets, asking } => {
            let ids = all(ids, targets.as_ref())?;
            let (app, mut asker) = asking.open()?;
            let answer = runtime.block_on(asker.devices(&app, &ids));
            let (sequence, states) = answer.map_err(Failure::failed)?;
            let devices: Vec<Value> = states.devices.iter().map(device).collect();
            if asking.json {
                line(&json!({ "as_of": sequence, "devices": devices }).to_string());
            } else {
                line(&format!("as of {sequence}"));
                states.devices.iter().for_each(|state| line(&device_line(state)));
            }
        }
    }
    Ok(())
}

/// The ids of the command line and of the list.
fn all(ids: &[String], targets: Option<&PathBuf>) -> Result<Vec<String>, Failure> {
    let mut all = ids.to_vec();
    if let Some(path) = targets {
        let name = path.display();
        let wrong = |e| Failure::usage(format!("{name} can't be read: {e}"));
        let input: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(std::io::BufReader::new(std::fs::File::open(path).map_err(wrong)?))
        };
        // One more than may be, so that it is noticed.
        for text in input.lines().take(limits::QUERY_DEVICES + 1) {
            let text = text.map_err(wrong)?;
            all.extend(Some(text.trim().to_owned()).filter(|id| !id.is_empty()));
        }
    }
    if all.is_empty() {
        return Err(Failure::usage("there are no devices to ask about"));
    }
    if all.len() > limits::QUERY_DEVICES {
        let most = limits::QUERY_DEVICES;
        return Err(Failure::usage(format!(
            "at most {most} devices can be asked about at once: split the list"
        )));
    }
    Ok(all)
}

impl Asking {
    fn open(&self) -> Result<(AppKey, Asker), Failure> {
        let endpoint = self.identity.endpoint(&self.edge)?;
        Ok((self.edge.app()?, Asker::new(endpoint, "mooring query")))
    }

    fn show(&self, answer: &Value) {
        if self.json {
            line(&answer.to_string());
        } else {
            line(&output::table(&rows(answer)));
        }
    }
}

/// The words of `inspect`, as far as the protocol has them.
fn message(id: u64, sequence: u64, state: &MessageState) -> Value {
    let refused = Refusal::ALL.map(|why| {
        let count = state.refused.iter().find(|r| r.reason == i32::from(why as u8)).map_or(0, |r| r.count);
        (why.label().to_owned(), json!(count))
    });
    let failed = Reason::ALL.map(|why| {
        let count = state.failed.iter().find(|f| f.reason == i32::from(why as u8)).map_or(0, |f| f.count);
        (why.label().to_owned(), json!(count))
    });
    let mut answer = json!({
        "as_of": sequence, "message_id": id.to_string(), "known": state.known, "accepted_at": state.accepted_at,
        "expires_at": state.expires_at, "job_key": state.job_key, "batches": state.batches, "targets": state.targets,
        "refused": serde_json::Map::from_iter(refused), "accepted": state.accepted, "arrived": state.arrived,
        "failed": serde_json::Map::from_iter(failed), "pending": state.pending, "sent": state.sent,
        "clicked": state.clicked, "cleaned": state.cleaned, "late": state.late,
    });
    if let Some(on_device) = &state.on_device {
        answer["on_device"] = on(on_device);
    }
    answer
}

fn on(device: &MessageOnDevice) -> Value {
    let state = state_of(device);
    let reason = match state {
        TargetState::Refused(why) => Some(why.label()),
        TargetState::Failed(why) => Some(why.label()),
        _ => None,
    };
    json!({
        "state": state.label(), "reason": reason, "what_to_do": reason.map(what_to_do), "target": device.target,
        "pending": device.pending, "late": device.late, "clicked": device.clicked, "cleaned": device.cleaned,
        "sent_time": (device.sent_time > 0).then_some(device.sent_time),
    })
}

/// Of a device that isn't known (any more) the push record tells nothing: `inspect` reads the journal too.
fn state_of(device: &MessageOnDevice) -> TargetState {
    let number = |number: i32| u8::try_from(number).unwrap_or(0);
    match device.outcome() {
        Outcome::Arrived => TargetState::Arrived,
        Outcome::Failed => {
            Reason::from_number(number(device.reason)).map_or(TargetState::NotATarget, TargetState::Failed)
        }
        Outcome::None if device.pending => TargetState::Pending,
        Outcome::None => {
            Refusal::from_number(number(device.refused)).map_or(TargetState::NotATarget, TargetState::Refused)
        }
    }
}

fn device(state: &DeviceState) -> Value {
    json!({
        "device_id": state.device_id, "known": state.known, "push_on": state.push_on, "connected": state.connected,
        "last_active": state.last_active_time, "pending": state.pending,
    })
}

fn device_line(state: &DeviceState) -> String {
    let id = output::printable(&state.device_id);
    let yes = |yes: bool, word: &'static str, no: &'static str| if yes { word } else { no };
    let connected = yes(state.connected, "connected", "not connected");
    if !state.known {
        return format!("  {id}  unknown  {connected}");
    }
    let push = yes(state.push_on, "push on", "push off");
    let pending = state.pending;
    let active = match state.last_active_time {
        0 => "never".to_owned(),
        at => output::moment(at),
    };
    format!("  {id}  known  {push}  {connected}  {pending} pending  last active {active}")
}
