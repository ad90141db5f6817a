//! `apps`: what each app may do, and changing it while the edge runs.

use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Map, Value, json};

use super::admin::{AdminToken, Asking, app_in_path};
use super::output::{self, Failure, printable};

/// Flags of `apps`.
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
    /// All apps: whether they take new pushes, their sessions and rates
    #[command(after_help = "Examples:\n  mooring apps list --data-dir data\n  mooring apps list --json")]
    List,
    /// Refuse new pushes of an app; devices, and what is pending, go on. It holds over restarts
    #[command(after_help = "Examples:\n  mooring apps suspend 23456789 --data-dir data")]
    Suspend {
        /// The app key
        app: String,
        #[command(flatten)]
        token: AdminToken,
    },
    /// Take new pushes of an app again
    #[command(after_help = "Examples:\n  mooring apps resume 23456789 --data-dir data")]
    Resume {
        /// The app key
        app: String,
        #[command(flatten)]
        token: AdminToken,
    },
    /// Set rates of an app over those of the configuration; what isn't given stays. 0: no bound
    #[command(after_help = "Examples:
  mooring apps rate 23456789 --batches-per-s 50 --targets-per-s 20000 \\
      --data-dir data
  mooring apps rate 23456789 --sessions-per-s 500 --max-sessions 100000 \\
      --data-dir data
  mooring apps rate 23456789 --reset --data-dir data      as the configuration says")]
    Rate {
        /// The app key
        app: String,
        /// Batches a second
        #[arg(long, value_name = "N", conflicts_with = "reset")]
        batches_per_s: Option<u32>,
        /// Targets a second
        #[arg(long, value_name = "N", conflicts_with = "reset")]
        targets_per_s: Option<u32>,
        /// New sessions a second
        #[arg(long, value_name = "N", conflicts_with = "reset")]
        sessions_per_s: Option<u32>,
        /// Sessions at a time
        #[arg(long, value_name = "N", conflicts_with = "reset")]
        max_sessions: Option<u32>,
        /// All as the configuration says
        #[arg(long)]
        reset: bool,
        #[command(flatten)]
        token: AdminToken,
    },
}

const EXAMPLES: &str = "\
Examples:
  mooring apps list --data-dir data
  mooring apps suspend 23456789 --data-dir data
  mooring apps rate 23456789 --targets-per-s 20000 --admin edge-1:7480 \\
      --token-file admin.token";

/// The names of the rates in JSON.
const RATES: [&str; 4] = ["batches_per_s", "targets_per_s", "sessions_per_s", "max_sessions"];

/// Runs `apps`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    let post = |app: &str, what: &str, token: &AdminToken, body: &Value| {
        args.edge.post(token, &format!("/v1/apps/{}/{what}", app_in_path(app)?), body)
    };
    let answer = match &args.what {
        What::List => args.edge.get("/v1/apps")?,
        What::Suspend { app, token } => post(app, "suspend", token, &json!({}))?,
        What::Resume { app, token } => post(app, "resume", token, &json!({}))?,
        What::Rate { app, batches_per_s, targets_per_s, sessions_per_s, max_sessions, reset, token } => {
            let given = [*batches_per_s, *targets_per_s, *sessions_per_s, *max_sessions];
            post(app, "rates", token, &new_rates(given, *reset)?)?
        }
    };
    args.edge.show(&answer, |answer| match answer["apps"].as_array() {
        Some(apps) => apps.iter().map(text).collect::<Vec<_>>().join("\n"),
        None => text(answer),
    });
    Ok(())
}

fn new_rates(given: [Option<u32>; 4], reset: bool) -> Result<Value, Failure> {
    if !reset && given.iter().all(Option::is_none) {
        return Err(Failure::usage(
            "which rate? --batches-per-s, --targets-per-s, --sessions-per-s, --max-sessions or --reset",
        ));
    }
    let rates = RATES.into_iter().zip(given).filter(|(_, rate)| reset || rate.is_some());
    let body: Map<String, Value> = rates.map(|(name, rate)| (name.to_owned(), json!(rate))).collect();
    Ok(body.into())
}

/// One app in a line.
fn text(app: &Value) -> String {
    let rate = |name: &str| {
        let set = if app["set"][name].is_null() { "" } else { " (set)" };
        let words = name.replace("_per_s", " a second").replace("max_sessions", "sessions at most");
        app["rates"][name].as_u64().filter(|rate| *rate > 0).map(|rate| format!("{rate} {words}{set}"))
    };
    let rates: Vec<String> = RATES.into_iter().filter_map(rate).collect();
    format!(
        "{}: {}; {} sessions; stream {}; {}",
        printable(app["app_key"].as_str().unwrap_or_default()),
        if app["suspended"] == true { "suspended, new pushes are refused" } else { "takes pushes" },
        app["sessions"],
        printable(app["stream"].as_str().unwrap_or_default()),
        if rates.is_empty() { "no rates".into() } else { rates.join(", ") },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_is_sent_and_a_reset_is_everything() {
        let one = new_rates([None, Some(7), None, Some(0)], false).expect("something");
        assert_eq!(one, json!({ "targets_per_s": 7, "max_sessions": 0 }));
        let all = new_rates([None; 4], true).expect("a reset");
        assert_eq!(all.as_object().map(Map::len), Some(4));
        assert!(all["batches_per_s"].is_null());
        assert!(new_rates([None; 4], false).is_err());
    }

    #[test]
    fn an_app_is_a_line() {
        let app = json!({
            "app_key": "demo", "suspended": true, "sessions": 3, "stream": "main",
            "rates": { "batches_per_s": 5, "targets_per_s": 0, "sessions_per_s": 0, "max_sessions": 9 },
            "set": { "batches_per_s": 5, "max_sessions": null },
        });
        let expected = "demo: suspended, new pushes are refused; 3 sessions; stream main; \
                        5 batches a second (set), 9 sessions at most";
        assert_eq!(text(&app), expected);
    }
}
