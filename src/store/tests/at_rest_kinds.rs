//! A data directory at rest: kinds of records that a long life has trimmed, and what is found in a short one.

use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::common::again;
use super::plan::START;
use super::replaying::with_foreign_record;
use super::stream_damage::{flip, places};
use super::streams::event;
use super::support::{Harness, app, small};
use crate::binding::{Binding, Change};
use crate::ids::{DigestKey, Seq};
use crate::store::disk::Disk;
use crate::store::disk::format::Format;
use crate::store::disk::sim::SimDisk;
use crate::store::offline::{AtRest, Filter};
use crate::store::options::StoreOptions;
use crate::store::tables::TableKind;
use crate::store::{AppChange, Command, record};

const FORGET_AFTER_MS: u64 = 60_000;

struct Life {
    disk: Arc<SimDisk>,
    options: StoreOptions,
    harness: Harness<SimDisk>,
}

impl Life {
    fn begin() -> Self {
        let disk = Arc::new(SimDisk::new());
        let salt = Format::open(&*disk, DigestKey([7; 32])).expect("new").salt();
        let options = StoreOptions {
            salt,
            tables: TableKind::Library,
            table_cache_bytes: 1024 * 1024,
            segment_bytes: 1024 * 1024,
            forget_after_ms: FORGET_AFTER_MS,
            ..small()
        };
        let harness = Harness::open(&disk, &options, START);
        Self { disk, options, harness }
    }

    fn settle(&mut self) {
        self.harness.settle().expect("the disk works");
    }

    /// Killed, and its files where they can be looked at.
    fn at_rest(&self) -> (TempDir, AtRest) {
        self.disk.kill();
        let dir = tempfile::tempdir().expect("a directory");
        for name in self.disk.list().expect("there") {
            std::fs::write(dir.path().join(&name), self.disk.content(&name).expect("there"))
                .expect("written");
        }
        let at_rest = AtRest::open(dir.path(), self.options.clone()).expect("nobody uses it");
        (dir, at_rest)
    }
}

fn dumped(at_rest: &AtRest, kind: &str) -> Vec<Value> {
    let filter = Filter {
        from: Seq(0),
        to: Seq(u64::MAX),
        kinds: [kind.to_owned()].into(),
        app: None,
        device: None,
        personal: true,
    };
    let mut lines = Vec::new();
    at_rest.dump(&filter, &mut |line| lines.push(line.clone())).expect("readable");
    assert!(lines.iter().all(|line| line["malformed"].is_null() && line["kind"] == kind), "{lines:?}");
    lines
}

#[test]
fn what_a_short_life_leaves_is_shown_with_what_it_says() {
    let mut life = Life::begin();
    (0..2).for_each(|n| life.harness.see(n));
    life.settle();
    for binding in [Binding::Account("alice".into()), Binding::Tag("news".into())] {
        life.harness.change(0, Change::Bind(binding)).expect("bound");
    }
    let (reply, _) = oneshot::channel();
    life.harness
        .apply(Command::ControlApp { app: app(), change: AppChange::Suspend, reply })
        .expect("the disk works");
    life.settle();
    let (reply, _) = oneshot::channel();
    life.harness
        .apply(Command::ControlApp { app: app(), change: AppChange::Resume, reply })
        .expect("the disk works");
    event(&mut life.harness, 1);
    life.harness.retire("main", true).expect("dropped");
    // The first device is seen again and again, the other one is forgotten.
    for _ in 0..8 {
        life.harness.now += FORGET_AFTER_MS / 4;
        let active = vec![(super::support::device(0), life.harness.now)];
        life.harness.apply(Command::LastActive(active)).expect("the disk works");
        life.settle();
    }
    let (_dir, at_rest) = life.at_rest();
    let bound = dumped(&at_rest, "binding");
    let said: Vec<_> = bound.iter().map(|line| [&line["to"], &line["text"], &line["bound"]]).collect();
    let [alice, news, yes] = [Value::from("alice"), Value::from("news"), Value::from(true)];
    assert_eq!(said, [[&"account".into(), &alice, &yes], [&"tag".into(), &news, &yes]]);
    assert!(bound.iter().all(|line| line["device"] == "device-0" && line["app"] == "app"));
    let suspended: Vec<_> = dumped(&at_rest, "app").iter().map(|line| line["suspended"].clone()).collect();
    assert_eq!(suspended, [true, false]);
    let forgotten = dumped(&at_rest, "forgotten");
    assert!(forgotten.len() == 1 && forgotten[0]["device"] == "device-1", "{forgotten:?}");
    assert_eq!(dumped(&at_rest, "stream")[0]["stream"], "main");
    let gaps = dumped(&at_rest, "gap");
    assert!(gaps.len() == 1 && gaps[0]["events"].as_u64() > Some(0), "{gaps:?}");
    assert!(gaps[0]["first"].as_u64() <= gaps[0]["last"].as_u64());
}

#[test]
fn a_stream_whose_reader_has_everything_is_no_finding() {
    let mut life = Life::begin();
    event(&mut life.harness, 1);
    life.settle();
    life.harness.ack_stream(life.harness.head());
    life.harness.checkpoint().expect("the disk works");
    let (_dir, at_rest) = life.at_rest();
    let report = at_rest.check(&mut |_| {}).expect("readable");
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let version = Format::open(&*life.disk, DigestKey([7; 32])).expect("there").version;
    assert_eq!(report.format, version);
    let state = report.state.expect("the next start works");
    assert_eq!(
        state.streams,
        [("main".into(), life.harness.head())],
        "where nothing is unread, up to the newest"
    );
}

#[test]
fn which_records_are_lost_is_shown_as_the_router_is_told() {
    let mut life = Life::begin();
    life.harness.see(0);
    (1..=3).for_each(|message| event(&mut life.harness, message));
    life.settle();
    let lost = places(&life.harness, record::RECEIPT)[1];
    flip(&life.disk, lost.1);
    let mut harness = again(&life.disk, life.harness, &life.options);
    harness.settle().expect("the disk works");
    life.harness = harness;
    let (_dir, at_rest) = life.at_rest();
    let told = dumped(&at_rest, "lost");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["ranges"], serde_json::json!([[lost.0.0, lost.0.0]]));
}

/// By a newer version, say.
#[test]
fn a_record_that_makes_no_sense_is_named_and_so_is_that_a_start_leaves_it_out() {
    let mut life = Life::begin();
    event(&mut life.harness, 1);
    life.settle();
    life.disk.kill();
    with_foreign_record(&life.disk, &life.options, record::RECALL, b"\xff");
    let (_dir, at_rest) = life.at_rest();
    let report = at_rest.check(&mut |_| {}).expect("readable");
    let found: Vec<_> = report.findings.iter().map(|finding| &*finding.what).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|what| what.ends_with("(recall) makes no sense")), "{found:?}");
    assert!(found.contains(&"1 records or entries can't be applied"), "{found:?}");
}
