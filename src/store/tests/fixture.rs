//! The data directory that later programs must still open: some of everything, made at a time far away, so that what is pending in it stays so.
//! `tests/e2e/fixture.rs` opens the one that is kept. This makes it anew, each file compressed:
//!
//! ```sh
//! MOORING_FIXTURE=tests/fixtures/format-5 cargo test --lib store::tests::fixture
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use tokio::sync::oneshot;

use super::streams::{of_other, other, other_device};
use super::support::{Harness, ack, app, batch, device, of_account, seen, session, small};
use crate::binding::{Binding, Change};
use crate::ids::{DigestKey, HistoryId, MessageId, Seq};
use crate::push::{Attributes, Event, Failure, Millis, NewBatch, Priority, Seen};
use crate::store::disk::Disk;
use crate::store::disk::format::Format;
use crate::store::disk::sim::SimDisk;
use crate::store::options::StoreOptions;
use crate::store::record;
use crate::store::tables::TableKind;
use crate::store::{AppChange, Command};
use crate::wire::pb::device as pb;

/// The first of January 2100: edge time is never before the journal's.
const START: Millis = 4_102_444_800_000;
const HOUR: Millis = 3_600_000;
/// As long as messages may be kept.
const LONG: Millis = 72 * HOUR;
const FORGET_AFTER_MS: Millis = 400_000;

fn attributes(version: u32) -> Attributes {
    let said =
        pb::Attributes { brand: "vivo".into(), app_version: version.to_string(), ..Default::default() };
    Attributes::whole(said.encode_to_vec().into())
}

fn hello(n: u32, version: u32) -> Command {
    let device = Seen { attributes: attributes(version), ..seen(n) };
    Command::Seen { device: Box::new(device), session: session(n) }
}

/// A message with a body that a device understands.
fn message(message_id: u64, targets: &[u32], now: Millis, keep_ms: Millis) -> NewBatch {
    let body = pb::Push {
        message_id,
        kind: pb::Kind::Notification.into(),
        title: format!("title {message_id}"),
        body: "kept since format 5".into(),
        expires_milliseconds: now + keep_ms,
        ..Default::default()
    };
    NewBatch {
        body: body.encode_to_vec().into(),
        ..batch(&format!("b{message_id}"), message_id, targets, now, keep_ms)
    }
}

/// An edge's life: what is called `filled` rolls segments and has old ones trimmed.
pub(super) struct Life {
    pub(super) disk: Arc<SimDisk>,
    pub(super) options: StoreOptions,
    pub(super) harness: Harness<SimDisk>,
    starts: u64,
}

impl Life {
    fn begin() -> Self {
        let disk = Arc::new(SimDisk::new());
        let format = Format::open(&*disk, DigestKey([7; 32])).expect("new");
        let options = StoreOptions {
            salt: format.salt(),
            tables: TableKind::Library,
            table_cache_bytes: 1024 * 1024,
            forget_after_ms: FORGET_AFTER_MS,
            stream_soft_bytes: 48 * 1024,
            stream_hard_bytes: 64 * 1024,
            streams: vec!["main".into(), "old".into()],
            app_streams: [(other(), "old".into())].into(),
            history: HistoryId::new(1),
            ..small()
        };
        let harness = Harness::open(&disk, &options, START);
        Self { disk, options, harness, starts: 1 }
    }

    /// Killed, and started again.
    fn restart(&mut self, change: impl FnOnce(&mut StoreOptions)) {
        self.disk.kill();
        self.starts += 1;
        self.options.history = HistoryId::new(self.starts);
        change(&mut self.options);
        self.harness = Harness::open(&self.disk, &self.options, self.harness.now);
    }

    fn apply(&mut self, command: Command) {
        self.harness.apply(command).expect("the disk works");
        self.harness.settle().expect("the disk works");
    }

    /// Time passes, in steps that let every part be looked at.
    pub(super) fn pass(&mut self, passed: Millis) {
        for _ in 0..passed / 1_000 {
            self.harness.now += 1_000;
            self.harness.settle().expect("the disk works");
        }
    }

    fn checkpoint(&mut self) {
        self.harness.checkpoint().expect("the disk works");
        self.harness.settle().expect("the disk works");
    }

    /// So many bytes of journal about one device. `main` is read meanwhile, `old` is not.
    fn fill(&mut self, bytes: usize) {
        for round in 0..bytes / 1_000 {
            let said = pb::Attributes { brand: format!("{round} {}", "x".repeat(900)), ..Default::default() };
            let device = Seen { attributes: Attributes::whole(said.encode_to_vec().into()), ..seen(3) };
            self.apply(Command::Seen { device: Box::new(device), session: session(3) });
            if round % 10 == 9 {
                self.read_main();
            }
        }
    }

    fn read_main(&mut self) {
        let head = self.harness.head();
        self.harness.ack_stream(head);
    }

    fn kinds(&self) -> BTreeSet<u8> {
        let mut kinds = BTreeSet::new();
        let reader = &self.harness.engine.shared().reader;
        let oldest = Seq(reader.oldest().0.saturating_sub(1));
        let scanned = reader.scan(oldest, &mut None, &mut |record| {
            kinds.insert(record.kind);
            ControlFlow::Continue(())
        });
        assert!(scanned.is_ok(), "{scanned:?}");
        kinds
    }
}

/// Devices 0 to 3 stay, 0 with an account, 1 with push off, 4 is forgotten, of 5 the credentials are revoked.
pub(super) fn live() -> Life {
    let mut life = Life::begin();
    for n in 0..6 {
        life.apply(hello(n, 1));
    }
    let mut others = seen(0);
    (others.app, others.key, others.attributes) = (other(), other_device(0), attributes(1));
    life.apply(Command::Seen { device: Box::new(others), session: session(9) });
    life.harness.connected.lock().expect("not poisoned").extend([0, 1, 2, 3, 5].map(device));
    life.harness.connected.lock().expect("not poisoned").insert(other_device(0));
    life.harness.sink.take();
    for binding in
        [Binding::Account("alice".into()), Binding::Tag("news".into()), Binding::Phone("+861".into())]
    {
        life.harness.change(0, Change::Bind(binding)).expect("bound");
    }
    let (reply, _answer) = oneshot::channel();
    let suspend = Command::ControlApp { app: other(), change: AppChange::Suspend, reply };
    // Long pending, old: they are copied when their segments go.
    life.harness.deliver(message(1, &[0, 1, 2], START, LONG)).expect("accepted");
    life.harness.deliver(of_account("alice", message(2, &[0, 2], START, LONG))).expect("accepted");
    life.harness.deliver(of_other(message(3, &[0], START, LONG), 0)).expect("accepted");
    life.harness.deliver(message(4, &[2, 3], START, 60_000)).expect("accepted");
    life.harness.change(1, Change::Push(false)).expect("switched");
    life.apply(suspend);
    life.read_main();
    life.fill(20_000);
    life.pass(FORGET_AFTER_MS + FORGET_AFTER_MS * 3 / 8);
    life.read_main();
    life.checkpoint();
    // The stream that nobody reads gets its gap; then it leaves the configuration, and is retired.
    life.fill(90_000);
    life.read_main();
    life.checkpoint();
    life.fill(4_000);
    life.checkpoint();
    life.fill(30_000);
    life.restart(|options| {
        options.streams.truncate(1);
        options.app_streams.insert(other(), "main".into());
    });
    life.harness.retire("old", false).expect("retired");
    recent(&mut life);
    life
}

/// Behind the newest checkpoint.
fn recent(life: &mut Life) {
    let now = life.harness.now;
    let batches = [
        message(10, &[0, 2], now, LONG),
        NewBatch { priority: Priority::High, ..message(11, &[0], now, LONG) },
        NewBatch { collapse_key: "weather".into(), ..message(12, &[0, 2], now, LONG) },
        NewBatch { collapse_key: "weather".into(), ..message(13, &[0, 2], now, LONG) },
        message(14, &[0, 2, 3], now, LONG),
        message(15, &[0], now, LONG),
        message(16, &[0, 99], now, LONG),
    ];
    let sequences: Vec<Seq> =
        batches.into_iter().map(|batch| life.harness.deliver(batch).expect("accepted").seq).collect();
    life.harness.acks(vec![
        ack(2, 1, &[(10, Event::Arrive), (13, Event::Click), (999, Event::Arrive)], now),
        ack(3, 1, &[(14, Event::Arrive)], now),
    ]);
    life.harness.sent(0, sequences[4], now);
    let (reply, _answer) = oneshot::channel();
    life.apply(Command::Revoke { app: app(), message: MessageId(15), reply });
    let (reply, _answer) = oneshot::channel();
    life.apply(Command::RevokeCredentials { device: device(5), epoch: 1, allow_registration: false, reply });
    life.apply(Command::LastActive(vec![(device(2), now)]));
    life.restart(|_| {});
}

#[test]
fn a_data_directory_with_some_of_everything() {
    let mut life = live();
    let counts = life.harness.totals();
    assert!(counts.identity_holds(), "{counts:?}");
    for failure in
        [Failure::Expired, Failure::Revoked, Failure::Replaced, Failure::PushDisabled, Failure::Unbound]
    {
        assert!(counts.failed[failure as usize - 1] > 0, "{failure:?}: {counts:?}");
    }
    let pending: Vec<u64> = life.harness.pulled(0).into_iter().map(|(message, _)| message).collect();
    assert_eq!(pending, [11, 1, 2, 10, 13, 14, 16]);
    assert_eq!((life.harness.state_of(4), life.harness.pulled(2).len()), (None, 2));
    let kinds = life.kinds();
    for kind in [
        record::BATCH,
        record::COPY,
        record::DEVICE,
        record::RECEIPT,
        record::MASS,
        record::CURSOR,
        record::ACTIVE,
        record::EPOCH,
        record::RETIRED,
        record::ROUTE,
        record::RECALL,
        record::HISTORY,
    ] {
        assert!(kinds.contains(&kind), "no record of kind {kind}: {kinds:?}");
    }
    let names = life.disk.list().expect("there");
    let of = |beginning: &str| names.iter().filter(|name| name.starts_with(beginning)).count();
    assert!(of("journal-") >= 3 && of("checkpoint-") == 2 && of("tables.redb") == 1, "{names:?}");
    if let Some(dir) = std::env::var_os("MOORING_FIXTURE") {
        life.disk.kill();
        write(&life.disk, Path::new(&dir));
    }
}

fn write(disk: &SimDisk, dir: &Path) {
    std::fs::create_dir_all(dir).expect("made");
    for name in disk.list().expect("there") {
        let file = std::fs::File::create(dir.join(format!("{name}.gz"))).expect("made");
        let mut file = GzEncoder::new(file, Compression::best());
        file.write_all(&disk.content(&name).expect("there")).and_then(|()| file.finish()).expect("written");
    }
}
