//! `store`: a data directory that no edge uses. Is it whole, what is in it, and its journal record by record.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Map, Value, json};

use super::output::{self, Failure, Paint, line, moment, printable};
use crate::config::{Config, Overrides};
use crate::ids::{AppKey, Seq};
use crate::push::{Counts, Failure as End};
use crate::server::store_options;
use crate::store::offline::{AtRest, Filter, Finding, NAMED, Report, State, Step, Weight};
use crate::store::options::StoreOptions;

/// Flags of `store`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read everything and say what isn't as it was written, and what the next start would make of it
    ///
    /// Changes nothing. Takes about the memory that the edge takes. Exit code 0: nothing is lost; 1: something is, or the next start fails;
    /// 2: it can't be read.
    /// With the edge's configuration the next start is tried with its streams, apps and maxima; without, with those of no configuration.
    #[command(
        after_help = "Examples:\n  mooring store check data\n  mooring store check --config mooring.toml\n  mooring store check /backup/mooring --config mooring.toml --json"
    )]
    Check(Look),
    /// What is in it: records, devices, what is pending, bytes
    #[command(after_help = "Examples:\n  mooring store stats data\n  mooring store stats data --json")]
    Stats(Look),
    /// The journal's records, one JSON object a line, the oldest first
    ///
    /// Bodies, attributes, addresses and what devices are bound to are left out without --personal.
    #[command(after_help = "Examples:
  mooring store dump data --kind batch,receipt --app demo
  mooring store dump data --app demo --device d-1
  mooring store dump data --from 1000 --to 2000 --personal")]
    Dump(DumpArgs),
}

#[derive(Debug, ClapArgs)]
struct Look {
    /// The data directory [default: the configuration's]
    #[arg(required_unless_present = "config")]
    dir: Option<PathBuf>,
    /// The configuration that the next start will have
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
struct DumpArgs {
    /// The data directory
    dir: PathBuf,
    /// From this sequence on
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
    from: u64,
    /// Up to this sequence
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true, value_name = "SEQUENCE")]
    to: u64,
    /// Records of these kinds only
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(AtRest::kinds()))]
    kind: Vec<String>,
    /// Records of this app only
    #[arg(long, value_parser = app)]
    app: Option<AppKey>,
    /// Records that name this device of the app
    #[arg(long, requires = "app", value_name = "ID")]
    device: Option<String>,
    /// With bodies (BASE64), attributes, addresses, accounts, aliases, tags and phones
    #[arg(long)]
    personal: bool,
}

const EXAMPLES: &str = "\
Examples:
  mooring store check data
  mooring store stats data --json
  mooring store dump data --kind batch --app demo";

fn app(text: &str) -> Result<AppKey, String> {
    AppKey::parse(text).ok_or_else(|| "not an app key".to_owned())
}

/// Runs `store`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    match &args.what {
        What::Check(look) => {
            let report = examine(look)?;
            if look.json {
                line(&check_json(&report).to_string());
            } else {
                check_text(&report, Paint::stdout());
            }
            if report.is_whole() { Ok(()) } else { Err(Failure::failed("the data directory isn't whole")) }
        }
        What::Stats(look) => {
            let report = examine(look)?;
            if look.json {
                line(&stats_json(&report).to_string());
            } else {
                line(&output::table(&stats_rows(&report)));
            }
            Ok(())
        }
        What::Dump(args) => dump(args),
    }
}

fn open(dir: &Path, options: StoreOptions) -> Result<AtRest, Failure> {
    AtRest::open(dir, options).map_err(|error| {
        let hint = match error {
            crate::store::disk::real::OpenError::Locked { .. } => {
                ": stop the edge first, or look at a snapshot of its file system"
            }
            _ => "",
        };
        Failure::usage(format!("{error}{hint}"))
    })
}

fn examine(look: &Look) -> Result<Report, Failure> {
    let config = look.config.as_ref().map(|file| {
        let overrides = Overrides::from_env(std::env::vars_os());
        Config::load(Some(file), &overrides).map_err(|errors| Failure::usage(errors.to_string()))
    });
    let config = config.transpose()?;
    let options = config.as_ref().map(store_options).unwrap_or_default();
    let dir = look.dir.clone().or_else(|| config.as_ref().map(|config| config.data_dir.clone()));
    // The arguments ask for one of the two.
    let dir = dir.ok_or_else(|| Failure::usage("which data directory?"))?;
    let at_rest = open(&dir, options)?;
    let bar = output::bar(0, "{spinner} {msg} {elapsed}", look.json);
    bar.enable_steady_tick(Duration::from_millis(100));
    let report = at_rest.check(&mut |step| {
        bar.set_message(match step {
            Step::Journal(bytes) => format!("reading {} MiB of journal", bytes >> 20),
            Step::Checkpoints => "reading checkpoints".into(),
            Step::Start => "opening it as the next start would".into(),
            Step::Compare => "comparing lists and rows".into(),
        });
    });
    bar.finish_and_clear();
    let report = report.map_err(|error| Failure::usage(format!("{}: {error}", dir.display())))?;
    if let (Some(config), Some(state)) = (&config, &report.state) {
        let streams: Vec<Arc<str>> = state.streams.iter().map(|(name, _)| name.as_str().into()).collect();
        // An edge with this configuration would not start.
        config.check_streams(&streams).unwrap_or_else(|errors| output::note(&format!("warning: {errors}")));
    }
    Ok(report)
}

fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let filter = Filter {
        from: Seq(args.from),
        to: Seq(args.to),
        kinds: args.kind.iter().cloned().collect(),
        app: args.app.clone(),
        device: args.device.clone(),
        personal: args.personal,
    };
    open(&args.dir, StoreOptions::default())?
        .dump(&filter, &mut |record| line(&record.to_string()))
        .map_err(Failure::failed)
}

fn word(weight: Weight) -> &'static str {
    match weight {
        Weight::Harmless => "note",
        Weight::Damage => "damage",
        Weight::Fatal => "fatal",
    }
}

fn check_text(report: &Report, paint: Paint) {
    for Finding { weight, file, offset, what, means } in &report.findings {
        let name = match weight {
            Weight::Harmless => paint.faint(word(*weight)),
            Weight::Damage | Weight::Fatal => paint.bad(word(*weight)),
        };
        let place = offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        line(&format!("{name}: {file}{place}: {}\n  {means}", printable(what)));
    }
    for (weight, found) in report.found.iter().rev().filter(|(_, found)| **found > NAMED as u64) {
        line(&format!("{}: {} more like these", word(*weight), found - NAMED as u64));
    }
    let records: u64 = report.records.values().map(|(count, _)| count).sum();
    let pending = report.state.as_ref().map_or(0, |state| state.verified.pending);
    let devices = report.state.as_ref().map_or(0, |state| state.devices);
    let all = format!(
        "{records} records in {} segments, {} checkpoints, {devices} devices, {pending} messages pending",
        report.segments.len(),
        report.checkpoints.len(),
    );
    line(&match report.worst() {
        None | Some(Weight::Harmless) => format!("{}: {all}", paint.good("whole")),
        Some(Weight::Damage) => format!("{}: {all}", paint.bad("damaged")),
        Some(Weight::Fatal) => format!("{}: {all}", paint.bad("can't be started")),
    });
}

fn check_json(report: &Report) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "weight": word(finding.weight), "file": finding.file, "offset": finding.offset,
                "what": finding.what, "means": finding.means,
            })
        })
        .collect();
    let found: Map<String, Value> =
        report.found.iter().map(|(weight, count)| (word(*weight).to_owned(), (*count).into())).collect();
    json!({ "whole": report.is_whole(), "findings": findings, "found": found, "stats": stats_json(report) })
}

fn failed(counts: &Counts) -> Map<String, Value> {
    let counted = End::ALL.into_iter().map(|end| (end, counts.failed[end as usize - 1]));
    counted.filter(|(_, count)| *count > 0).map(|(end, count)| (end.label().into(), count.into())).collect()
}

fn stats_json(report: &Report) -> Value {
    let records: Map<String, Value> = report
        .records
        .iter()
        .map(|(kind, (count, bytes))| ((*kind).to_owned(), json!({ "count": count, "bytes": bytes })))
        .collect();
    let checkpoints: Vec<Value> = report
        .checkpoints
        .iter()
        .map(|(name, covers)| json!({ "name": name, "covers": covers.map(|seq| seq.0) }))
        .collect();
    let mut value = json!({
        "format": report.format, "segments": report.segments.len(), "journal_bytes": report.journal_bytes,
        "journal_used_bytes": used_bytes(report),
        "checkpoint_bytes": report.checkpoint_bytes, "tables_bytes": report.tables_bytes,
        "oldest_sequence": report.sequences.map(|(oldest, _)| oldest.0),
        "newest_sequence": report.sequences.map(|(_, newest)| newest.0),
        "oldest_time": report.times.map(|(oldest, _)| oldest), "newest_time": report.times.map(|(_, newest)| newest),
        "records": records, "checkpoints": checkpoints,
    });
    if let (Some(state), Value::Object(fields)) = (&report.state, &mut value) {
        let State { totals, verified, live_bytes, devices, revoked, messages, streams } = state;
        let pending: Map<String, Value> =
            verified.pending_of.iter().map(|(app, count)| (app.clone(), (*count).into())).collect();
        let streams: Map<String, Value> =
            streams.iter().map(|(name, cursor)| (name.clone(), cursor.0.into())).collect();
        fields.extend([
            ("accepted".into(), totals.accepted.into()),
            ("arrived".into(), totals.arrived.into()),
            ("failed".into(), failed(totals).into()),
            ("pending".into(), verified.pending.into()),
            ("pending_by_app".into(), pending.into()),
            ("waiting_devices".into(), verified.waiting_devices.into()),
            ("live_batches".into(), verified.batches.into()),
            ("live_bytes".into(), (*live_bytes).into()),
            ("devices".into(), (*devices).into()),
            ("device_rows".into(), verified.device_rows.into()),
            ("revoked_devices".into(), (*revoked).into()),
            ("push_records".into(), (*messages).into()),
            ("stream_cursors".into(), streams.into()),
        ]);
    }
    value
}

fn used_bytes(report: &Report) -> u64 {
    report.segments.iter().map(|segment| u64::from(segment.used)).sum()
}

/// The same for people: one row a number; what is one of many stands as `name.part`.
fn stats_rows(report: &Report) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let Value::Object(fields) = stats_json(report) else { return rows };
    for (name, value) in fields {
        match value {
            Value::Object(parts) => {
                for (part, value) in parts {
                    let name = format!("{name}.{}", printable(&part));
                    match value {
                        Value::Object(two) => rows.push((
                            name,
                            format!(
                                "{} ({} bytes)",
                                two.get("count").unwrap_or(&Value::Null),
                                two.get("bytes").unwrap_or(&Value::Null)
                            ),
                        )),
                        value => rows.push((name, value.to_string())),
                    }
                }
            }
            Value::Array(list) => rows.push((name, list.len().to_string())),
            Value::Null => {}
            Value::Number(at) if name.ends_with("_time") => {
                rows.push((name, moment(at.as_u64().unwrap_or(0))));
            }
            value => rows.push((name, value.to_string())),
        }
    }
    rows
}
