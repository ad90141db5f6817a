//! `inspect`: asks the admin port what became of a message, what is known of a device, and how the accounts stand.

use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::Value;

use super::admin::{Asking, app_in_path, escaped};
use super::output::{self, Failure};
use crate::account::WHAT_TO_DO;

/// Flags of `inspect`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    edge: Asking,
}

/// What is asked.
#[derive(Debug, Subcommand)]
enum What {
    /// What became of a message, and on one device if given
    #[command(after_help = "Examples:\n  mooring inspect message demo 868947123456789 --device d-1")]
    Message {
        /// The app key
        app: String,
        /// The message id
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// A device
        #[arg(long, value_name = "ID")]
        device: Option<String>,
    },
    /// What is known of a device: known, push on and connected are three answers
    #[command(after_help = "Examples:\n  mooring inspect device demo d-1 --json")]
    Device {
        /// The app key
        app: String,
        /// The device id
        id: String,
    },
    /// Everything since the data directory was made
    #[command(after_help = "Examples:\n  mooring inspect totals")]
    Totals,
    /// What happened to an app's messages and devices each day
    #[command(
        after_help = "Examples:\n  mooring inspect stats demo --days 3\n  mooring inspect stats demo --days 30 --json"
    )]
    Stats {
        /// The app key
        app: String,
        /// So many days, today first
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=30))]
        days: u32,
    },
    /// Every word that says why, with what to do next; asks no edge
    #[command(after_help = "Examples:\n  mooring inspect reasons\n  mooring inspect reasons --json")]
    Reasons,
    /// Bytes of memory: the budget, what each part holds or keeps free (admission: room for large frames), and from where on what is refused
    #[command(after_help = "Examples:\n  mooring inspect memory\n  mooring inspect memory --json")]
    Memory,
    /// Sessions and deliveries of each shard
    #[command(after_help = "Examples:\n  mooring inspect shards")]
    Shards,
}

const EXAMPLES: &str = "\
Examples:
  mooring inspect message demo 868947123456789
  mooring inspect message demo 868947123456789 --device d-1
  mooring inspect device demo d-1 --admin edge-1:7480
  mooring inspect stats demo --days 7
  mooring inspect totals --dev data --json";

/// Runs `inspect`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    if let What::Reasons = args.what {
        let (json, words) = reasons();
        args.edge.show(&json, |_| words);
        return Ok(());
    }
    let answer = args.edge.get(&path(&args.what)?)?;
    args.edge.show(&answer, |answer| match answer["days"].as_array() {
        Some(days) => days_lines(days).join("\n"),
        None => output::table(&rows(answer)),
    });
    Ok(())
}

/// The table of reasons, as JSON and in its own order; no edge is asked.
fn reasons() -> (Value, String) {
    let json = WHAT_TO_DO.iter().map(|(word, todo)| ((*word).to_owned(), Value::from(*todo)));
    let rows: Vec<_> =
        WHAT_TO_DO.iter().map(|(word, todo)| ((*word).to_owned(), (*todo).to_owned())).collect();
    (Value::Object(json.collect()), output::table(&rows))
}

fn path(what: &What) -> Result<String, Failure> {
    let app = app_in_path;
    Ok(match what {
        What::Message { app: key, id, device: None } => format!("/v1/message/{}/{id}", app(key)?),
        What::Message { app: key, id, device: Some(device) } => {
            format!("/v1/message/{}/{id}?device={}", app(key)?, escaped(device))
        }
        What::Device { app: key, id } => format!("/v1/device/{}/{}", app(key)?, escaped(id)),
        What::Stats { app: key, days } => format!("/v1/stats/{}?days={days}", app(key)?),
        What::Totals | What::Reasons => "/v1/totals".into(),
        What::Memory => "/v1/memory".into(),
        What::Shards => "/v1/shards".into(),
    })
}

/// One line a day; what was refused and failed is summed over the reasons.
fn days_lines(days: &[Value]) -> Vec<String> {
    const COLUMNS: [&str; 12] = [
        "day",
        "targets",
        "refused",
        "accepted",
        "sent",
        "arrived",
        "failed",
        "clicked",
        "cleaned",
        "late",
        "registered",
        "active",
    ];
    let cell = |day: &Value, name: &str| match &day[name] {
        Value::Object(reasons) => reasons.values().filter_map(Value::as_u64).sum::<u64>().to_string(),
        Value::String(text) => output::printable(text),
        other => other.to_string(),
    };
    let row =
        |cells: Vec<String>| cells.iter().map(|cell| format!("{cell:>10}")).collect::<Vec<_>>().join(" ");
    let head = row(COLUMNS.iter().map(|name| (*name).to_owned()).collect());
    let rows = days.iter().map(|day| row(COLUMNS.iter().map(|name| cell(day, name)).collect()));
    std::iter::once(head).chain(rows).collect()
}

/// Fields that are moments: milliseconds since 1970 in JSON, a date and a time for people.
const MOMENTS: [&str; 9] = [
    "accepted_at",
    "expires_at",
    "last_active",
    "last_events_since",
    "oldest_pending_at",
    "sent_time",
    "since",
    "time",
    "time_between",
];

/// Names and values, nested ones with the name of what they are in; what has no value is left out, and so are counts of zero by reason.
pub(super) fn rows(answer: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    // Who asks of one device wants to know that first.
    if let Some(on_device) = answer.get("on_device") {
        flatten("on device", on_device, &mut rows);
    }
    let others = answer.as_object().map(|fields| {
        let others = fields.iter().filter(|(name, _)| *name != "on_device");
        Value::Object(others.map(|(name, value)| (name.clone(), value.clone())).collect())
    });
    flatten("", others.as_ref().unwrap_or(answer), &mut rows);
    rows
}

/// A number, or each of several, as a person reads that moment.
fn as_moments(value: &Value) -> Value {
    match value {
        Value::Array(several) => several.iter().map(as_moments).collect(),
        other => other.as_u64().map_or_else(|| other.clone(), |at| output::moment(at).into()),
    }
}

fn in_one_row(value: &Value) -> String {
    let mut parts = Vec::new();
    flatten("", value, &mut parts);
    parts.into_iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let inner = |key: &str| {
        let key = key.replace('_', " ");
        if name.is_empty() { key } else { format!("{name}: {key}") }
    };
    match value {
        Value::Object(fields) => {
            let reasons = matches!(name, "refused" | "failed");
            for (key, value) in fields.iter().filter(|(_, v)| !reasons || v.as_u64() != Some(0)) {
                let moments = MOMENTS.contains(&key.as_str()).then(|| as_moments(value));
                flatten(&inner(key), moments.as_ref().unwrap_or(value), rows);
            }
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                match value {
                    // One row each, as they are compared with each other.
                    Value::Object(_) => rows.push((inner(&i.to_string()), in_one_row(value))),
                    value => flatten(&inner(&i.to_string()), value, rows),
                }
            }
        }
        Value::Null => {}
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => rows.push((name.to_owned(), output::printable(text))),
        Value::Bool(yes) => rows.push((name.to_owned(), if *yes { "yes" } else { "no" }.to_owned())),
        Value::Number(number) => rows.push((name.to_owned(), number.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_escaped_in_the_path() {
        let what = What::Device { app: "demo".into(), id: "a/b ü".into() };
        assert_eq!(path(&what).expect("a path"), "/v1/device/demo/a%2Fb%20%C3%BC");
        let what = What::Message { app: "demo".into(), id: 7, device: Some("a&b".into()) };
        assert_eq!(path(&what).expect("a path"), "/v1/message/demo/7?device=a%26b");
        assert!(path(&What::Device { app: "no app".into(), id: "x".into() }).is_err());
    }

    #[test]
    fn moments_are_told_as_people_read_them() {
        let answer = json!({"expires_at": 1_767_225_600_000u64, "connection": {"since": 5}, "time_between": [0, 5], "pending": 5,
            "last_active": null});
        let rows = rows(&answer).into_iter().map(|(name, value)| format!("{name} = {value}"));
        let expected = [
            "expires at = 2026-01-01 00:00:00.000 UTC",
            "connection: since = 1970-01-01 00:00:00.005 UTC",
            "time between: 0 = 1970-01-01 00:00:00.000 UTC",
            "time between: 1 = 1970-01-01 00:00:00.005 UTC",
            "pending = 5",
        ];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_one_of_several_is_one_row() {
        let answer = json!({"last_events": [{"what": "arrived", "time": 5, "reason": null}, {"what": "sent", "time": 0}]});
        let rows = rows(&answer).into_iter().map(|(name, value)| format!("{name} = {value}"));
        let expected = [
            "last events: 0 = what arrived, time 1970-01-01 00:00:00.005 UTC",
            "last events: 1 = what sent, time 1970-01-01 00:00:00.000 UTC",
        ];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_answer_becomes_rows() {
        let answer = json!({"accepted": 2, "after": null, "failed": {"expired": 1, "offline": 0}, "on_device": {"pending": true}});
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected =
            [pair("on device: pending", "yes"), pair("accepted", "2"), pair("failed: expired", "1")];
        assert_eq!(rows(&answer), expected);
    }
}
