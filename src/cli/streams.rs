//! `streams`: what routers read, how far they are, and what is held back for them.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::admin::{AdminToken, Asking, escaped};
use super::output::{self, Failure, printable};

/// Flags of `streams`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    edge: Asking,
}

#[derive(Debug, Subcommand)]
enum What {
    /// All streams: who reads them, from where to where, and how much of the journal they hold back
    #[command(
        after_help = "Examples:\n  mooring streams list --data-dir data\n  mooring streams list --json"
    )]
    List,
    /// End a stream that no app of the configuration has; what is unread of it is lost, and what messages of apps that had it and were removed will tell
    #[command(after_help = "Examples:
  mooring streams retire old --data-dir data
  mooring streams retire main --force --data-dir data      drop what is unread; a gap tells its reader")]
    Retire {
        /// The stream's name
        name: String,
        /// Even if a router reads it now, or may by the configuration; of a stream that apps map to, drop what is unread: it goes on behind a gap
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        token: AdminToken,
    },
}

const EXAMPLES: &str = "\
Examples:
  mooring streams list --data-dir data
  mooring streams list --admin edge-1:7480 --json
  mooring streams retire old --data-dir data";

/// Runs `streams`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    let answer = match &args.what {
        What::List => args.edge.get("/v1/streams")?,
        What::Retire { name, force, token } => {
            let path = format!("/v1/streams/{}/retire", escaped(name));
            args.edge.post(token, &path, &json!({ "force": force }))?
        }
    };
    args.edge.show(&answer, |answer| match &args.what {
        What::List => {
            let streams = answer["streams"].as_array().into_iter().flatten();
            streams.map(text).collect::<Vec<_>>().join("\n")
        }
        What::Retire { name, .. } if answer["ended"] == true => {
            format!("The stream {} has ended.", printable(name))
        }
        What::Retire { name, .. } => {
            format!("What was unread of {} is dropped; it goes on.", printable(name))
        }
    });
    Ok(())
}

/// One stream in a few lines.
fn text(stream: &Value) -> String {
    let number = |key: &str| stream[key].as_u64().unwrap_or(0);
    let apps: Vec<&str> = stream["apps"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let apps = match (stream["configured"] == true, apps.is_empty()) {
        (true, false) => format!("apps {}", apps.join(", ")),
        (true, true) => "no apps".into(),
        (false, _) => "not in the configuration: `mooring streams retire` ends it".into(),
    };
    let reader = match stream["reader"].as_str() {
        Some(router) => format!("read by {} (epoch {})", printable(router), number("epoch")),
        None => "nobody reads it".into(),
    };
    let unread = match (stream["unread"] == true, stream["unread_for_ms"].as_u64()) {
        (false, _) => "nothing unread".into(),
        (true, Some(age)) => format!("unread for {} s", age / 1_000),
        (true, None) => "something unread".into(),
    };
    let mut text = format!(
        "{}: {apps}; {reader}\n  cursor {}, oldest {}, head {}; {unread}, {} bytes held back",
        printable(stream["name"].as_str().unwrap_or_default()),
        number("cursor"),
        number("oldest"),
        number("head"),
        number("pinned_bytes"),
    );
    if stream["full"] == true {
        text += "\n  at its soft bound: batches of its apps are refused until it is read";
    }
    for gap in stream["gaps"].as_array().into_iter().flatten() {
        let (first, last, events) = (&gap["first"], &gap["last"], &gap["events"]);
        // A string takes everything.
        write!(text, "\n  gap from {first} to {last}: {events} events were dropped").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_what_an_operator_has_to_know() {
        let stream = json!({
            "name": "main", "configured": true, "apps": ["demo", "other"], "reader": "router-1", "epoch": 7,
            "cursor": 5, "oldest": 1, "head": 9, "unread": true, "unread_for_ms": 61_000, "pinned_bytes": 4_096,
            "full": true, "gaps": [{ "first": 6, "last": 7, "events": 2, "by_event": { "arrive": 2 } }],
        });
        let text = text(&stream);
        for word in [
            "apps demo, other",
            "router-1 (epoch 7)",
            "unread for 61 s",
            "soft bound",
            "2 events were dropped",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let ended = json!({ "name": "old", "configured": false, "apps": [], "reader": null });
        assert!(super::text(&ended).contains("retire"));
    }
}
