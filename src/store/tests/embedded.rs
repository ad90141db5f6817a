//! The embedded store on its threads, over a simulated disk: through the contract only.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use super::support::{Sink, ack, app, batch, device, seen, session, small};
use crate::clock::Clock;
use crate::ids::{HistoryId, MessageId, Seq, SessionRef, ShardId};
use crate::push::{Accepted, Event, Failure, NewBatch, Reached, Rejection};
use crate::store::disk::Disk;
use crate::store::disk::SyncPoint;
use crate::store::disk::real::RealDisk;
use crate::store::disk::sim::SimDisk;
use crate::store::embedded::{EmbeddedStore, Opened};
use crate::store::options::StoreOptions;
use crate::store::{AppChange, Batch, BodySink, Command, HistoryOf, Store, What};
use tokio::sync::oneshot;

struct Bodies(mpsc::SyncSender<SessionRef>);

impl BodySink for Bodies {
    fn loaded(&self, session: SessionRef) {
        self.0.send(session).expect("the test listens");
    }
}

struct Opening<D: Disk> {
    store: Arc<EmbeddedStore<D>>,
    opened: Opened,
    sink: Sink,
    bodies: mpsc::Receiver<SessionRef>,
    clock: Arc<Clock>,
}

fn open<D: Disk>(disk: &Arc<D>, options: StoreOptions) -> Opening<D> {
    let (sender, bodies) = mpsc::sync_channel(64);
    let sink = Sink::default();
    let clock = Arc::new(Clock::new(0));
    let (store, opened) = EmbeddedStore::open(
        disk.clone(),
        options,
        clock.clone(),
        Box::new(sink.clone()),
        Arc::new(Bodies(sender)),
        Box::new(|_| true),
    )
    .expect("opens");
    Opening { store, opened, sink, bodies, clock }
}

impl<D: Disk> Opening<D> {
    fn flush(&self) {
        let (reply, done) = oneshot::channel();
        self.store.submit(Command::Flush { checkpoint: false, reply }).expect("room");
        done.blocking_recv().expect("flushed");
    }

    fn deliver(&self, batch: NewBatch) -> Result<Accepted, Rejection> {
        let (reply, answer) = oneshot::channel();
        self.store.submit(Command::Deliver { batch: Box::new(batch), reply }).expect("room");
        answer.blocking_recv().expect("answered")
    }

    fn see(&self, n: u32) {
        self.store.submit(Command::Seen { device: Box::new(seen(n)), session: session(n) }).expect("room");
    }

    fn arrive(&self, n: u32, message: u64) {
        let acks = vec![ack(n, 1, &[(message, Event::Arrive)], self.clock.now())];
        self.store.submit(Command::Acks { shard: ShardId(0), acks }).expect("room");
    }

    fn pulled(&self, n: u32) -> Vec<u64> {
        let mut out = Vec::new();
        self.store.pull(&device(n), Reached::START, 10, self.clock.now(), &mut out);
        out.iter().map(|pulled| pulled.batch.message.0).collect()
    }
}

#[test]
fn the_whole_way_through_the_contract() {
    let disk = Arc::new(SimDisk::new());
    let one = open(&disk, small());
    assert!(!one.store.is_current(&seen(0)));
    one.see(0);
    one.see(1);
    let answer = one.deliver(batch("b1", 1, &[0, 1], one.clock.now(), 60_000)).expect("accepted");
    assert_eq!(answer.accepted, 2);
    assert!(one.store.is_current(&seen(0)));
    assert_eq!((one.pulled(0), one.pulled(1)), (vec![1], vec![1]));
    one.arrive(0, 1);
    one.flush();
    assert!(one.pulled(0).is_empty());
    let head = *one.store.head().borrow();
    let read = one.store.read_stream("main", Seq(0), 100, 100_000).expect("readable");
    assert_eq!((read.events.len(), read.cursor), (3, head), "two registered, one arrived");
    assert_eq!(one.sink.take().len(), 4, "two seen, one batch, one confirmed");
    one.store.close();
    assert!(one.store.submit(Command::Sent(Vec::new())).is_err());
    let Opening { opened, store, .. } = one;
    assert!(opened.failed.blocking_recv().is_err(), "it closed in order");
    drop(store);

    let two = open(&disk, small());
    assert_eq!(two.opened.report.pending, 1);
    assert_eq!((two.pulled(0), two.pulled(1)), (vec![], vec![1]));
    two.store.close();
}

/// What sessions, links and operators ask is answered as of what is durable.
#[test]
fn the_contract_answers_what_the_engine_knows() {
    let one = open(&Arc::new(SimDisk::new()), StoreOptions { batch_window_ms: 60_000, ..small() });
    let (store, now) = (&one.store, one.clock.now());
    (0..2).for_each(|n| one.see(n));
    let seq = one.deliver(batch("b1", 1, &[0, 1], now, 60_000)).expect("accepted").seq;
    assert_eq!(one.pulled(0), [1]);
    store.submit(Command::LastActive(vec![(device(0), now + 5_000)])).expect("room");
    one.flush();
    let active = [0, 9].map(|n| store.last_active(&device(n)));
    assert_eq!(active, [Some((now + 5_000) / 1_000 * 1_000), None]);

    let history = store.present_history().expect("it has begun");
    let other = HistoryId::new(history.get() ^ 1 << 20).expect("not zero");
    let head = *store.head().borrow();
    assert_eq!([history, other].map(|history| store.is_in_history(history, head)), [true, false]);
    let streams = store.streams();
    assert_eq!((streams.len(), &*streams[0].name, streams[0].unread), (1, "main", true));
    let of = HistoryOf { app: app(), device: device(1), number: None, message: None };
    let past = store.history(&of).expect("readable").events;
    assert_eq!(past.iter().map(|event| event.what).collect::<Vec<_>>(), [What::Accepted]);
    assert_eq!((store.body(&pulled_batch(&one)).as_deref(), seq > Seq(0)), (Some(&b"body of 1"[..]), true));

    let (reply, revoked) = oneshot::channel();
    store.submit(Command::Revoke { app: app(), message: MessageId(1), reply }).expect("room");
    revoked.blocking_recv().expect("answered").expect("taken back");
    let recalls = store.recalls(Seq(0), 0, 10);
    assert_eq!(recalls.iter().map(|recall| recall.message.0).collect::<Vec<_>>(), [1]);
    let may_have = [0, 1].map(|n| store.may_have(&device(n), &recalls[0]));
    assert_eq!(may_have, [true, false], "it was written to the one only");

    let (reply, controlled) = oneshot::channel();
    let change = AppChange::Suspend;
    store.submit(Command::ControlApp { app: app(), change, reply }).expect("room");
    controlled.blocking_recv().expect("answered").expect("there is room");
    assert!(store.app_control(&app()).suspended);
    let oldest = store.oldest_created_at();
    assert!((now - 60_000..=one.clock.now() - 60_000).contains(&oldest), "nothing was forgotten: {oldest}");
    store.close();
}

/// Of what waits for the first device.
fn pulled_batch(one: &Opening<SimDisk>) -> Arc<Batch> {
    let mut out = Vec::new();
    one.store.pull(&device(0), Reached::START, 1, one.clock.now(), &mut out);
    out[0].batch.clone()
}

#[test]
fn a_store_that_is_dropped_ends_its_threads() {
    let Opening { store, opened, bodies, .. } = open(&Arc::new(SimDisk::new()), small());
    drop(store);
    assert!(opened.failed.blocking_recv().is_err(), "the one that writes ends in order");
    assert!(bodies.recv().is_err(), "nobody reads bodies any more");
}

#[test]
fn a_body_that_was_evicted_is_read_back() {
    let disk = Arc::new(SimDisk::new());
    let one = open(&disk, StoreOptions { body_cache_bytes: 1, ..small() });
    one.see(0);
    for (id, message) in [("b1", 1), ("b2", 2)] {
        one.deliver(batch(id, message, &[0], one.clock.now(), 60_000)).expect("accepted");
    }
    let mut out = Vec::new();
    one.store.pull(&device(0), Reached::START, 1, one.clock.now(), &mut out);
    let entry = &out[0].batch;
    assert_eq!(one.store.body(entry), None);
    one.store.want_body(entry, session(5)).expect("room");
    assert_eq!(one.bodies.recv(), Ok(session(5)));
    // It doesn't fit a cache of one byte; the session gets it nevertheless.
    assert_eq!(one.store.body(entry).as_deref(), Some(b"body of 1".as_slice()));
    one.store.close();
}

#[test]
fn a_damaged_body_ends_its_entries_as_storage() {
    let disk = Arc::new(SimDisk::new());
    let one = open(&disk, StoreOptions { body_cache_bytes: 0, ..small() });
    for n in 0..3 {
        one.see(n);
    }
    let answer = one.deliver(batch("b1", 1, &[0, 1, 2], one.clock.now(), 60_000)).expect("accepted");
    one.deliver(batch("b2", 2, &[2], one.clock.now(), 60_000)).expect("accepted");
    one.arrive(2, 1);
    one.flush();
    let mut out = Vec::new();
    one.store.pull(&device(0), Reached::START, 1, one.clock.now(), &mut out);
    let name = "journal-0000000001.seg";
    let content = disk.content(name).expect("the segment");
    let at = content.windows(9).position(|bytes| bytes == b"body of 1").expect("the body is in the journal");
    disk.flip(name, at as u64, 1).expect("flipped");
    one.sink.take();
    one.store.want_body(&out[0].batch, session(5)).expect("room");
    assert_eq!(one.bodies.recv(), Ok(session(5)));
    while one.sink.0.lock().expect("not poisoned").len() < 2 {
        // The sweep goes on between commits; each flush is a commit.
        one.flush();
    }
    let mut told = one.sink.take();
    told.sort_by_key(|told| format!("{told:?}"));
    let mut ends = [0, 1].map(|n| super::support::Told::Ended(device(n), answer.seq, Failure::Storage));
    ends.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(told, ends);
    assert!(one.pulled(0).is_empty() && one.pulled(1).is_empty());
    one.store.close();
}

#[test]
fn what_a_reader_of_a_stream_passes_over_is_counted_as_damaged() {
    let disk = Arc::new(SimDisk::new());
    let one = open(&disk, small());
    one.see(0);
    one.deliver(batch("b1", 1, &[0], one.clock.now(), 60_000)).expect("accepted");
    one.arrive(0, 1);
    one.flush();
    let damaged = || one.store.stats().damaged.load(Ordering::Relaxed);
    let name = "journal-0000000001.seg";
    let content = disk.content(name).expect("the segment");
    let at = content.windows(9).position(|bytes| bytes == b"body of 1").expect("the body is in the journal");
    disk.flip(name, at as u64, 1).expect("flipped");
    assert_eq!(damaged(), 0);
    let read = one.store.read_stream("main", Seq(0), 100, 100_000).expect("readable");
    assert_eq!((read.events.len(), damaged()), (3, 1), "one registered, one unreadable, one arrived");
    one.store.close();
}

#[test]
fn a_failed_sync_is_reported_and_nothing_is_acknowledged() {
    let disk = Arc::new(SimDisk::new());
    let one = open(&disk, small());
    one.see(0);
    one.flush();
    one.sink.take();
    disk.fail_next_sync(SyncPoint::GroupCommit);
    let (reply, answer) = oneshot::channel();
    let new = batch("b1", 1, &[0], one.clock.now(), 60_000);
    one.store.submit(Command::Deliver { batch: Box::new(new), reply }).expect("room");
    assert!(answer.blocking_recv().is_err(), "no answer");
    let Opening { store, opened, sink, clock, .. } = one;
    let failure = opened.failed.blocking_recv().expect("the failure is reported");
    assert!(failure.to_string().contains("nothing more can be made durable"), "{failure}");
    let mut out = Vec::new();
    store.pull(&device(0), Reached::START, 10, clock.now(), &mut out);
    assert!(sink.take().is_empty() && out.is_empty());
    assert!(store.submit(Command::Sent(Vec::new())).is_err());
}

#[test]
fn tables_that_cannot_be_written_end_the_store_like_a_journal_that_cannot() {
    let disk = Arc::new(SimDisk::new());
    let one = open(&disk, small());
    disk.fail_next_sync(SyncPoint::TablesContent);
    one.see(0);
    let Opening { store, opened, .. } = one;
    let failure = opened.failed.blocking_recv().expect("the failure is reported");
    assert!(failure.to_string().contains("the tables failed"), "{failure}");
    assert!(store.submit(Command::Sent(Vec::new())).is_err());
    drop(store);
    let two = open(&disk, small());
    assert_eq!(two.opened.report.devices, 1, "what was durable is there");
    two.store.close();
}

#[test]
fn a_real_directory_keeps_what_was_accepted() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = StoreOptions { segment_bytes: 256 * 1024, ..small() };
    for round in 0..4u64 {
        let (disk, format) = RealDisk::open(directory.path(), None).expect("opens");
        let one = open(&disk, StoreOptions { salt: format.salt(), ..options.clone() });
        assert_eq!(one.opened.report.pending, round * 50, "round {round}");
        one.see(0);
        let mut answers = Vec::new();
        for n in 0..50 {
            let (reply, answer) = oneshot::channel();
            let number = round * 50 + n;
            let batch = batch(&format!("b{number}"), number + 1, &[0], one.clock.now(), 3_600_000);
            one.store.submit(Command::Deliver { batch: Box::new(batch), reply }).expect("room");
            answers.push(answer);
        }
        for answer in answers {
            answer.blocking_recv().expect("answered").expect("accepted");
        }
        let (reply, done) = oneshot::channel();
        one.store.submit(Command::Flush { checkpoint: round % 2 == 1, reply }).expect("room");
        done.blocking_recv().expect("flushed");
        let mut out = Vec::new();
        one.store.pull(&device(0), Reached::START, 1_000, one.clock.now(), &mut out);
        let messages: Vec<u64> = out.iter().map(|pulled| pulled.batch.message.0).collect();
        assert_eq!(messages, (1..=round * 50 + 50).collect::<Vec<_>>());
        let commits = one.store.stats().commits.load(std::sync::atomic::Ordering::Relaxed);
        assert!(commits >= 1, "what queues up shares a commit");
        one.store.close();
    }
}

/// Twice in a grain, which is an eighth of the time after which a device is forgotten.
#[test]
fn sessions_learn_how_often_to_say_that_their_device_is_there() {
    for (forget_after_ms, report_ms) in [(80_000, 5_000), (0, u64::MAX)] {
        let opening = open(&Arc::new(SimDisk::new()), StoreOptions { forget_after_ms, ..small() });
        assert_eq!(opening.store.report_ms(), report_ms);
    }
}
