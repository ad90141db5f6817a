//! `revoke`: takes a message back, as a router does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::json;

use super::output::{self, Failure, line};
use super::peer::Edge;
use crate::client::Backoff;
use crate::client::router::{Options, Router};
use crate::clock::Clock;
use crate::ids::DigestKey;
use crate::wire::pb::router::RejectCode;

/// Milliseconds without a link after which `revoke` gives up.
const PATIENCE_MS: u64 = 30_000;

/// Flags of `revoke`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The message id, as `push` printed it
    #[arg(value_name = "MESSAGE_ID")]
    message_id: u64,
    /// Give up after so many seconds
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// The answer as one JSON line
    #[arg(long)]
    json: bool,
    /// Log filter, for instance debug
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
    #[command(flatten)]
    edge: Edge,
    /// The router's certificate, PEM
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  mooring revoke --dev data 1763780000000123
  mooring revoke --dev data 1763780000000123 --json
  mooring revoke --address edge.example:7400 --ca ca.pem \\
      --certificate router.pem \\
      --key router.key --app 23456789 868947123456789

What is pending ends as 'revoked', devices that have the message are told to remove it, and batches of it
that come later end at once, until the message expires. Doing it again changes nothing.";

/// Runs `revoke`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    crate::telemetry::log(crate::telemetry::Format::Human, &args.log).map_err(Failure::usage)?;
    if args.message_id == 0 {
        return Err(Failure::usage("the message id must not be 0"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(revoke(args))
}

async fn revoke(args: &Args) -> Result<(), Failure> {
    let app = args.edge.app()?;
    let options = Options {
        endpoint: args.edge.router_endpoint(args.certificate.as_deref(), args.key.as_deref())?,
        name: "mooring revoke".into(),
        streams: Vec::new(),
        backoff: Backoff::fast(),
        patience: PATIENCE_MS,
        seed: rand::random(),
        only: None,
    };
    // It reads no stream: there are no events to tell apart.
    let router = Router::start(options, Arc::new(Clock::new(0)), DigestKey([0; 32]), Box::new(|_| {}));
    let asked = router.revoke(app.as_str(), args.message_id);
    let answer = tokio::time::timeout(Duration::from_secs(args.seconds), asked).await;
    let broken = router.progress().borrow().broken.clone();
    let (_, closed) = router.close().await;
    let seconds = args.seconds;
    let why = broken.map(|why| format!(" ({why})")).unwrap_or_default();
    let answer =
        answer.map_err(|_| Failure::failed(format!("no answer within {seconds} s: ask again{why}")))?;
    let Some(answer) = answer else {
        closed.map_err(Failure::failed)?;
        return Err(Failure::failed("the link ended without an answer: ask again"));
    };
    if answer.code() != RejectCode::Unspecified {
        let code = answer.code().as_str_name().trim_start_matches("REJECT_CODE_").to_lowercase();
        return Err(Failure::failed(format!("the edge refused: {code}: {}", answer.text)));
    }
    if args.json {
        let (id, sequence) = (args.message_id.to_string(), answer.sequence);
        line(&json!({"message_id": id, "sequence": sequence, "ended": answer.ended}).to_string());
    } else {
        line(&format!("message {} is taken back: {} pending ended", args.message_id, answer.ended));
    }
    Ok(())
}
