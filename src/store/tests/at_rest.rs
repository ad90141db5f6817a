//! A data directory at rest: what is said of it is what is in it, and what is damaged is named, with what follows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::fixture::live;
use super::support::{app, device};
use crate::ids::{DigestKey, Seq};
use crate::store::disk::Disk;
use crate::store::offline::{AtRest, DumpError, Filter, Report, Weight};
use crate::store::options::StoreOptions;
use crate::store::record;

/// What an edge with some of everything left when it was killed; and what it knew.
struct Left {
    dir: TempDir,
    options: StoreOptions,
    totals: crate::push::Counts,
    oldest: Seq,
    head: Seq,
    pending: Vec<u64>,
    now: u64,
}

fn left() -> Left {
    let mut life = live();
    // All into the tables, which know then what lists should have.
    life.pass(10_000);
    let totals = life.harness.totals();
    let pending = (0..4).map(|n| life.harness.pulled(n).len() as u64).collect();
    let head = life.harness.engine.head();
    let oldest = life.harness.engine.shared().reader.oldest();
    life.disk.kill();
    let dir = tempfile::tempdir().expect("a directory");
    for name in life.disk.list().expect("there") {
        std::fs::write(dir.path().join(&name), life.disk.content(&name).expect("there")).expect("written");
    }
    Left { dir, options: life.options.clone(), totals, oldest, head, pending, now: life.harness.now }
}

impl Left {
    fn at_rest(&self) -> AtRest {
        // Salt and key stand in the directory itself, whatever the options say.
        let other = DigestKey([99; 32]);
        let options = StoreOptions { salt: !self.options.salt, digest_key: other, ..self.options.clone() };
        AtRest::open(self.dir.path(), options).expect("nobody uses it")
    }

    fn check(&self) -> Report {
        self.at_rest().check(&mut |_| {}).expect("readable")
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).expect("there");
        let paths = entries.map(|entry| entry.expect("readable").path());
        let mut paths: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
        paths.sort();
        paths
    }

    fn bytes(&self, ending: &str) -> u64 {
        self.files(ending).iter().map(|path| std::fs::metadata(path).expect("there").len()).sum()
    }

    fn dump(&self, filter: &Filter) -> Vec<Value> {
        let mut lines = Vec::new();
        self.at_rest().dump(filter, &mut |line| lines.push(line.clone())).expect("readable");
        lines
    }
}

fn flip(path: &Path, offset: u64) {
    let mut bytes = std::fs::read(path).expect("readable");
    bytes[offset as usize] ^= 4;
    std::fs::write(path, bytes).expect("writable");
}

fn all() -> Filter {
    Filter {
        from: Seq(0),
        to: Seq(u64::MAX),
        kinds: BTreeSet::new(),
        app: None,
        device: None,
        personal: false,
    }
}

fn only(kind: &str) -> Filter {
    Filter { kinds: [kind.to_owned()].into(), ..all() }
}

#[test]
fn of_a_whole_directory_everything_is_counted() {
    let left = left();
    let report = left.check();
    assert_eq!((report.worst(), report.findings.len()), (None, 0), "{:?}", report.findings);
    let state = report.state.as_ref().expect("the next start works");
    assert_eq!(state.totals, left.totals);
    let verified = &state.verified;
    assert_eq!(verified.pending, left.totals.pending);
    assert_eq!(verified.pending_of.iter().map(|(_, count)| count).sum::<u64>(), verified.pending);
    let of_app = verified.pending_of.iter().find(|(name, _)| name == app().as_str()).expect("something").1;
    assert_eq!(of_app, left.pending.iter().sum::<u64>());
    // Of the other app one device waits, too.
    let waiting = left.pending.iter().filter(|count| **count > 0).count() as u64 + 1;
    assert_eq!((verified.waiting_devices, verified.device_rows), (waiting, state.devices));
    assert_eq!((verified.malformed_rows, verified.wrong_records), (0, 0));
    assert!(verified.unequal.is_empty(), "{:?}", verified.unequal);
    assert_eq!((state.devices, state.revoked), (6, 1), "one was forgotten");
    assert!(verified.batches > 0 && verified.batches <= state.messages, "{verified:?}");
    assert_eq!(state.streams.len(), 1);
    assert!(state.streams[0].0 == "main" && state.streams[0].1 > Seq(0) && state.streams[0].1 <= left.head);
    assert!(state.live_bytes > 0 && state.live_bytes < report.journal_bytes);
    let bytes = [left.bytes(".seg"), left.bytes(".ckpt"), left.bytes("tables.redb")];
    assert_eq!([report.journal_bytes, report.checkpoint_bytes, report.tables_bytes], bytes);
    let segments = left.files(".seg").into_iter().filter(|path| path.to_string_lossy().contains("journal-"));
    assert_eq!((report.segments.len(), report.checkpoints.len()), (segments.count(), 2));
    assert!(report.checkpoints[0].1 > report.checkpoints[1].1, "the newest first");
    let (first, last) = report.sequences.expect("there are records");
    assert!(first > Seq(1), "trimmed");
    assert_eq!((first, last), (left.oldest, left.head));
    let (from, to) = report.times.expect("there are records");
    assert!(from <= to && to <= left.now, "{from} {to}");
    let counted: u64 = report.records.values().map(|(count, _)| count).sum();
    let dumped = left.dump(&all());
    assert_eq!((counted, counted), (last.0 - first.0 + 1, dumped.len() as u64));
    for (name, (count, bytes)) in &report.records {
        let those: Vec<_> = dumped.iter().filter(|line| line["kind"] == *name).collect();
        let sum: u64 = those.iter().filter_map(|line| line["bytes"].as_u64()).sum();
        assert_eq!((those.len() as u64, sum), (*count, *bytes), "{name}");
    }
}

#[test]
fn records_are_shown_by_kind_app_device_and_sequence() {
    let left = left();
    let everything = left.dump(&all());
    assert!(everything.iter().all(|line| line["malformed"].is_null()));
    let sequences: Vec<u64> = everything.iter().filter_map(|line| line["sequence"].as_u64()).collect();
    let (first, last) = (sequences[0], *sequences.last().expect("some"));
    assert_eq!(sequences, (first..=last).collect::<Vec<_>>());
    let some = left.dump(&Filter { from: Seq(last - 3), to: Seq(last - 1), ..all() });
    assert_eq!(some, everything[everything.len() - 4..everything.len() - 1]);
    // A word for each kind, and with it what only records of this kind have.
    let fields: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("batch", &["app", "message", "batch", "accepted", "refused", "expires_at", "priority"][..]),
        ("copy", &["app", "message", "accepted"]),
        ("device", &["app", "device", "number", "push_on", "new"]),
        ("receipt", &["app", "message", "device", "event"]),
        ("mass", &["app", "message", "outcome", "devices"]),
        ("cursor", &["stream", "cursor"]),
        ("active", &["devices"]),
        ("epoch", &["min_epoch", "locked"]),
        ("recall", &["app", "message", "until"]),
        ("retired", &["number"]),
        ("route", &["number", "app"]),
        ("history", &["history"]),
    ]);
    for (kind, names) in fields {
        let lines = left.dump(&only(kind));
        assert!(!lines.is_empty(), "{kind}");
        for line in lines {
            assert!(line["kind"] == kind && names.iter().all(|name| !line[*name].is_null()), "{line}");
        }
    }
    let of_app = left.dump(&Filter { app: Some(app()), ..all() });
    assert!(of_app.iter().all(|line| line["app"] == "app") && of_app.len() < everything.len());
    let of_device = Filter { app: Some(app()), device: Some("device-0".into()), ..all() };
    let about: Vec<_> = left.dump(&of_device);
    let batches: Vec<_> = about.iter().filter(|line| line["kind"] == "batch").collect();
    assert_eq!(batches.len(), 7, "{batches:?}");
    assert!(about.iter().filter(|line| line["kind"] == "receipt").all(|line| line["device"] == "device-0"));
    let nobody = Filter { device: Some("nobody".into()), ..of_device };
    assert!(left.dump(&nobody).is_empty());
    let no_app = left.at_rest().dump(&Filter { device: Some("device-0".into()), ..all() }, &mut |_| {});
    assert!(matches!(no_app, Err(DumpError::NoApp)));
}

#[test]
fn what_a_batch_and_a_receipt_say_and_what_is_personal_only_if_asked_for() {
    let left = left();
    let of_message = |kind: &str, message: &str, personal: bool| {
        let lines = left.dump(&Filter { personal, ..only(kind) });
        lines.into_iter().filter(|line| line["message"] == message).collect::<Vec<_>>()
    };
    let batch = &of_message("batch", "16", false)[0];
    assert_eq!((&batch["targets"], &batch["accepted"]), (&2.into(), &1.into()));
    assert_eq!(batch["refused"], serde_json::json!({ "device_unknown": 1 }));
    assert_eq!((&batch["priority"], &batch["online_only"]), (&"normal".into(), &false.into()));
    assert_eq!((&batch["job_key"], &batch["unbound"]), (&"job".into(), &0.into()));
    assert!(batch["body"].is_null() && batch["collapse_key"].is_null());
    assert_eq!(of_message("batch", "11", false)[0]["priority"], "high");
    assert_eq!(of_message("batch", "13", false)[0]["collapse_key"], "weather");
    assert!(of_message("batch", "13", true)[0]["body"].is_string());
    let arrived = of_message("receipt", "10", false);
    assert_eq!(arrived.len(), 1);
    assert_eq!((&arrived[0]["outcome"], &arrived[0]["device"]), (&"arrived".into(), &"device-2".into()));
    assert!(arrived[0]["client_ip"].is_null() && arrived[0]["attributes"].is_null());
    assert!(of_message("receipt", "10", true)[0]["attributes"].is_string());
    assert_eq!(of_message("receipt", "999", false)[0]["unmatched"], true);
    let hello = &left.dump(&Filter { personal: true, ..only("device") })[0];
    assert!(hello["attributes"].is_string() && hello["client_ip"] == "127.0.0.1");
    assert!(left.dump(&only("device")).iter().all(|line| line["client_ip"].is_null()));
    assert_eq!(left.dump(&only("device")).iter().filter(|line| line["new"] == true).count(), 0);
    assert!(left.dump(&only("epoch")).iter().all(|line| line["min_epoch"] == 2 && line["locked"] == true));
}

#[test]
fn damage_is_named_with_its_place_and_what_follows() {
    let left = left();
    let name = |segment: &Value| format!("journal-{:010}.seg", segment.as_u64().expect("a number"));
    let of = |message: &str| {
        let lines = left.dump(&only("batch"));
        lines.into_iter().find(|line| line["message"] == message).expect("a batch")
    };
    let (lost, offset) = (of("16"), of("16")["offset"].as_u64().expect("a number"));
    flip(&left.dir.path().join(name(&lost["segment"])), offset + 40);
    let report = left.check();
    assert!(report.worst() == Some(Weight::Damage) && !report.is_whole());
    let first = &report.findings[0];
    assert_eq!((&*first.file, first.offset), (&*name(&lost["segment"]), Some(offset)));
    let record = format!("record {} is lost", lost["sequence"]);
    assert!(first.what.contains(&record) && first.means.contains("storage"), "{first:?}");
    let of_lost = report.findings.iter().filter(|finding| finding.what.contains(&record)).count();
    assert_eq!(of_lost, 1, "reading and starting find the same: {:?}", report.findings);
    let message = report.findings.iter().find(|finding| finding.what.contains("message 16 of app"));
    assert!(message.is_some_and(|finding| finding.what.contains("lists have 0")), "{:?}", report.findings);
    let state = report.state.expect("the next start works");
    let verified = &state.verified;
    assert_eq!(verified.unequal.len(), 1, "{:?}", verified.unequal);
    let (of_app, unequal, counted, there) = &verified.unequal[0];
    assert_eq!((&**of_app, unequal.0, *counted, *there), ("app", 16, 1, 0));
    let sums = report.findings.iter().any(|finding| finding.what.contains("are counted as pending"));
    assert!(sums && state.totals.pending == verified.pending + 1, "{:?}", report.findings);
    // Its start goes on: and what was lost ends.
    assert_eq!(report.found[&Weight::Damage] as usize, report.findings.len());
}

#[test]
fn several_records_that_are_lost_are_named_as_one_and_a_header_costs_nothing() {
    let left = left();
    let lines = left.dump(&all());
    let segment = |line: &Value| line["segment"].as_u64().expect("a number");
    // Of an older segment: its header says what the one before ends with, and its first group's has its first record.
    let inner = segment(&lines[lines.len() - 1]) - 1;
    let path = left.dir.path().join(format!("journal-{inner:010}.seg"));
    flip(&path, 17);
    let report = left.check();
    assert!(report.is_whole() && report.worst() == Some(Weight::Harmless), "{:?}", report.findings);
    assert!(report.findings[0].what.contains("header is damaged"), "{:?}", report.findings);
    assert_eq!(report.findings[0].offset, Some(0));
}

#[test]
fn a_damaged_checkpoint_costs_nothing_while_there_is_another() {
    let left = left();
    let checkpoints = left.files(".ckpt");
    flip(&checkpoints[1], 100);
    let report = left.check();
    assert!(report.is_whole() && report.state.is_some(), "{:?}", report.findings);
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].means.contains("the other one is used"), "{:?}", report.findings);
    assert_eq!(report.checkpoints[0].1, None);
    flip(&checkpoints[0], 100);
    let report = left.check();
    assert_eq!((report.worst(), report.state.is_none()), (Some(Weight::Fatal), true));
    assert!(report.findings.iter().any(|finding| finding.means.contains("no checkpoint is whole")));
    assert!(report.findings[0].weight == Weight::Fatal && report.findings[0].file == "start");
}

#[test]
fn what_a_crash_tore_is_harmless() {
    let left = left();
    let newest = *left.check().segments.last().expect("one");
    let path = left.dir.path().join(format!("journal-{:010}.seg", newest.id));
    let mut bytes = std::fs::read(&path).expect("readable");
    bytes[newest.used as usize + 8] = 7;
    std::fs::write(&path, bytes).expect("writable");
    let report = left.check();
    assert!(report.is_whole(), "{:?}", report.findings);
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].what.starts_with("9 bytes behind the last commit"), "{:?}", report.findings);
}

#[test]
fn every_kind_has_a_word_and_every_word_a_kind() {
    let kinds: Vec<&str> = AtRest::kinds().collect();
    assert_eq!(kinds.iter().collect::<BTreeSet<_>>().len(), kinds.len());
    assert!(kinds.contains(&"batch") && kinds.contains(&"lost"));
    assert_ne!(record::BATCH, record::COPY);
    assert_ne!(device(0), device(1));
}
