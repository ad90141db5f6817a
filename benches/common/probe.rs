//! What a device sees while the store works: single messages at fixed times, each pulled and acknowledged as a session would do it. The store has its
//! threads; sessions and sockets are left out.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mooring::binding::ChangeError;
use mooring::clock::Clock;
use mooring::ids::{DeviceKey, Seq, SessionRef, ShardId};
use mooring::push::{Failure, Millis, Reached};
use mooring::store::disk::real::RealDisk;
use mooring::store::embedded::EmbeddedStore;
use mooring::store::options::StoreOptions;
use mooring::store::stats::StoreStats;
use mooring::store::{Batch, BodySink, Command, CommitSink, Confirm, Store};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::common::{ack, batch};

/// Microseconds between two messages.
const EVERY: u64 = 2_000;
/// Messages of probes have higher ids than all others.
const FIRST: u64 = 1 << 40;
/// Messages handed over and not pulled yet, at most.
const WAITING: usize = 10_000;
/// Entries of a list that are looked through for the message.
const LIST: usize = 1_000;
/// Microseconds for which nothing may change before the disk counts as at rest.
const REST: u64 = 3_000_000;

/// Hands a probe's message over to who pulls it.
struct HandOver(Mutex<SyncSender<(DeviceKey, Arc<Batch>)>>);

impl CommitSink for HandOver {
    fn batch(&mut self, batch: &Arc<Batch>, devices: &[DeviceKey]) {
        if let [device] = devices {
            let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            sender.send((*device, batch.clone())).expect("the probe listens");
        }
    }
    fn confirmed(&mut self, _: ShardId, _: Vec<Confirm>) {}
    fn seen(&mut self, _: SessionRef) {}
    fn changed(&mut self, _: SessionRef, _: Result<(), ChangeError>) {}
    fn ended(&mut self, _: &DeviceKey, _: Seq, _: Failure) {}
}

struct NoBodies;

impl BodySink for NoBodies {
    fn loaded(&self, _: SessionRef) {}
}

/// A store with its threads, and who probes it.
pub(crate) struct Probed {
    store: Arc<EmbeddedStore<RealDisk>>,
    pub(crate) clock: Arc<Clock>,
    arrivals: Arc<Mutex<Vec<(u64, u64)>>>,
    puller: JoinHandle<()>,
    next: AtomicU64,
}

impl Probed {
    pub(crate) fn open(directory: &Path, options: StoreOptions, now: Millis) -> Self {
        let (disk, _) = RealDisk::open(directory, None).expect("opens");
        let (sender, handed) = sync_channel(WAITING);
        let clock = Arc::new(Clock::new(now));
        let sink = Box::new(HandOver(Mutex::new(sender)));
        let bodies = Arc::new(NoBodies);
        let opened = EmbeddedStore::open(disk, options, clock.clone(), sink, bodies, Box::new(|_| true));
        let (store, _) = opened.expect("opens");
        let arrivals = Arc::default();
        let puller = {
            let (store, clock, arrivals) = (store.clone(), clock.clone(), Arc::clone(&arrivals));
            thread::spawn(move || pull(&store, &clock, &handed, &arrivals))
        };
        Self { store, clock, arrivals, puller, next: AtomicU64::new(0) }
    }

    /// Microseconds for which the store's thread waited for a core.
    fn waited() -> u64 {
        let tasks = fs::read_dir("/proc/self/task").expect("Linux");
        // One that ends meanwhile can't be read.
        let read = |task: &Path, what: &str| fs::read_to_string(task.join(what)).unwrap_or_default();
        let task = tasks.flatten().map(|task| task.path()).find(|task| read(task, "comm").trim() == "store");
        let waits = task.map(|task| read(&task, "schedstat")).unwrap_or_default();
        waits.split_whitespace().nth(1).and_then(|waits| waits.parse::<u64>().ok()).unwrap_or_default()
            / 1_000
    }

    pub(crate) fn stat(&self, of: impl Fn(&StoreStats) -> &AtomicU64) -> u64 {
        of(self.store.stats()).load(Ordering::Relaxed)
    }

    /// Sends messages until it is over, and waits for all of them: how long they took from when they were due.
    pub(crate) fn probe(&self, devices: impl Fn(u64) -> DeviceKey, over: impl Fn(&Self) -> bool) -> Value {
        let (began, waited) = (self.clock.micros(), Self::waited());
        self.store.stats().commit_micros_max.store(0, Ordering::Relaxed);
        let mut due = Vec::new();
        while !over(self) {
            let at = began + due.len() as u64 * EVERY;
            thread::sleep(Duration::from_micros(at.saturating_sub(self.clock.micros())));
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let mut new = batch(&format!("probe-{}-{n}", self.clock.now()), FIRST + n, &[devices(n)]);
            new.created_at = self.clock.now();
            new.expires_at = new.created_at + 3_600_000;
            let (reply, _) = oneshot::channel();
            self.store.submit(Command::Deliver { batch: new, reply }).expect("room");
            due.push((FIRST + n, at));
        }
        let over_at = self.clock.micros();
        let mut arrived = Vec::new();
        while arrived.len() < due.len() {
            thread::sleep(Duration::from_millis(1));
            arrived.append(&mut self.arrivals.lock().unwrap_or_else(PoisonError::into_inner));
        }
        arrived.sort_unstable();
        let took = arrived.iter().zip(&due).map(|((message, at), (sent, due))| {
            assert_eq!(message, sent, "each arrives once");
            at.saturating_sub(*due)
        });
        let mut took: Vec<u64> = took.collect();
        took.sort_unstable();
        let ms = |micros: u64| micros as f64 / 1_000.0;
        let quantile = |percent: usize| ms(took[(took.len() - 1) * percent / 100]);
        json!({
            "seconds": (over_at - began) as f64 / 1e6,
            "messages": took.len(),
            "p50_ms": quantile(50),
            "p99_ms": quantile(99),
            "longest_ms": quantile(100),
            "longest_commit_ms": ms(self.stat(|stats| &stats.commit_micros_max)),
            "waited_for_a_core_ms": ms(Self::waited().saturating_sub(waited)),
        })
    }

    /// The router has read everything.
    pub(crate) fn read_stream(&self) {
        let cursor = self.store.stream_bounds("main").expect("there").head;
        self.store.submit(Command::StreamAck { stream: "main".into(), cursor }).expect("room");
    }

    pub(crate) fn checkpoint(&self) {
        let (reply, done) = oneshot::channel();
        self.store.submit(Command::Flush { checkpoint: true, reply }).expect("room");
        done.blocking_recv().expect("flushed");
    }

    /// Until the journal's files have been the same for a while.
    pub(crate) fn rest(&self) {
        let (mut bytes, mut since) = (0, self.clock.micros());
        while self.clock.micros() - since < REST {
            thread::sleep(Duration::from_millis(50));
            let now = self.stat(|stats| &stats.journal_bytes);
            if std::mem::replace(&mut bytes, now) != now {
                since = self.clock.micros();
            }
        }
    }

    pub(crate) fn close(self) {
        self.store.close();
        drop(self.store);
        self.puller.join().expect("ended");
    }
}

/// A session's part: takes what is new, and acknowledges it.
fn pull(
    store: &EmbeddedStore<RealDisk>,
    clock: &Clock,
    handed: &Receiver<(DeviceKey, Arc<Batch>)>,
    arrivals: &Mutex<Vec<(u64, u64)>>,
) {
    let mut pulled = Vec::new();
    // Ends when the store's thread has ended, and its sink with it.
    while let Ok((device, batch)) = handed.recv() {
        pulled.clear();
        store.pull(&device, Reached::START, LIST, clock.now(), &mut pulled);
        assert!(pulled.iter().any(|pulled| pulled.batch.seq == batch.seq), "it is in the list");
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).push((batch.message.0, clock.micros()));
        let acks = vec![ack(device, batch.message.0)];
        store.submit(Command::Acks { shard: ShardId(0), acks }).expect("room");
    }
}
