//! The embedded store: the engine on its thread, behind the [`Store`] contract.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use super::batch::Batch;
use super::disk::Disk;
use super::engine::{Engine, IsConnected, OpenError, OpenReport, Shared, StoreFailure};
use super::history;
use super::options::StoreOptions;
use super::stats::StoreStats;
use super::thread::{self, Inbox, Wanted};
use super::{
    BodySink, Busy, Command, CommitSink, EventSink, History, HistoryOf, Pulled, Recall, Refused, Store,
    StreamBounds, StreamError, StreamRead, StreamState,
};
use crate::clock::Clock;
use crate::credential::Revocation;
use crate::ids::{AppKey, DeviceKey, HistoryId, Seq, SessionRef};
use crate::push::{AppControl, Millis, Reached, Seen};

/// A store in a data directory of its own.
#[derive(Debug)]
pub struct EmbeddedStore<D: Disk> {
    shared: Arc<Shared<D>>,
    options: StoreOptions,
    clock: Arc<Clock>,
    inbox: Arc<Inbox>,
    wanted: Arc<Wanted>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What comes with an opened store.
#[derive(Debug)]
pub struct Opened {
    /// What the start found.
    pub report: OpenReport,
    /// Resolves if the journal fails: the process should say why and exit, and the next start recovers. Dropped when the store closes in order.
    pub failed: oneshot::Receiver<StoreFailure>,
}

impl<D: Disk> EmbeddedStore<D> {
    /// Recovers what the disk holds and starts the store's threads. Edge time doesn't fall below the journal's last from then on.
    pub fn open(
        disk: Arc<D>,
        options: StoreOptions,
        clock: Arc<Clock>,
        sink: Box<dyn CommitSink>,
        bodies: Arc<dyn BodySink>,
        is_connected: IsConnected,
    ) -> Result<(Arc<Self>, Opened), OpenError> {
        let (mut engine, report) = Engine::open(disk, &options, sink, is_connected)?;
        clock.raise(report.journal.last_time);
        let (shared, wanted) = (engine.shared().clone(), Arc::default());
        let inbox = Arc::new(Inbox::new(&options.budget, options.command_bytes));
        let woken = Arc::clone(&inbox);
        let tables = engine.start_tables(move || woken.wake())?;
        let (failing, failed) = oneshot::channel();
        let store = Arc::new(Self {
            shared: shared.clone(),
            options,
            clock: clock.clone(),
            inbox: Arc::clone(&inbox),
            wanted: Arc::clone(&wanted),
            threads: Mutex::default(),
        });
        let reader = {
            let (shared, wanted, inbox) = (shared, Arc::clone(&wanted), Arc::clone(&inbox));
            let clock = clock.clone();
            std::thread::Builder::new()
                .name("bodies".into())
                .spawn(move || thread::read_bodies(&shared, &wanted, &inbox, &clock, &*bodies))?
        };
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || thread::own(engine, &inbox, &wanted, &clock, failing))?;
        store.threads.lock().unwrap_or_else(PoisonError::into_inner).extend([writer, reader, tables]);
        Ok((store, Opened { report, failed }))
    }

    /// The same without threads: what they would do is done by [`Hands`], when it is told to.
    #[cfg(feature = "sim")]
    pub fn open_by_hand(
        disk: Arc<D>,
        options: StoreOptions,
        clock: Arc<Clock>,
        sink: Box<dyn CommitSink>,
        bodies: Arc<dyn BodySink>,
        is_connected: IsConnected,
    ) -> Result<(Arc<Self>, Hands<D>), OpenError> {
        let (engine, report) = Engine::open(disk, &options, sink, is_connected)?;
        clock.raise(report.journal.last_time);
        let store = Arc::new(Self {
            shared: engine.shared().clone(),
            inbox: Arc::new(Inbox::new(&options.budget, options.command_bytes)),
            options,
            clock,
            wanted: Arc::default(),
            threads: Mutex::default(),
        });
        let turns = thread::Turns::new(&engine);
        Ok((store.clone(), Hands { store, engine, turns, bodies, is_ready: false, report }))
    }

    /// Takes nothing more, finishes what waits, and ends the threads. It waits for them: not for a shard's thread.
    pub fn close(&self) {
        self.inbox.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
    }

    /// Bytes of bodies in memory.
    #[cfg(test)]
    pub(crate) fn body_bytes(&self) -> usize {
        self.shared.bodies.bytes()
    }

    /// The store's figures.
    pub fn stats(&self) -> &StoreStats {
        &self.shared.stats
    }
}

/// What a store's threads do, a turn at a time.
#[cfg(feature = "sim")]
pub struct Hands<D: Disk> {
    store: Arc<EmbeddedStore<D>>,
    engine: Engine<D>,
    turns: thread::Turns,
    bodies: Arc<dyn BodySink>,
    /// Something was taken in, to be committed.
    is_ready: bool,
    /// What the start found.
    pub report: OpenReport,
}

#[cfg(feature = "sim")]
impl<D: Disk> std::fmt::Debug for Hands<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").field("engine", &self.engine).finish_non_exhaustive()
    }
}

#[cfg(feature = "sim")]
impl<D: Disk> Hands<D> {
    /// Half a turn of the engine's thread, which never sleeps here: takes in what waits, or commits what was taken in. Between the two, others
    /// see an index that is ahead of what is durable, as they do while the thread waits for the disk.
    pub fn half_turn(&mut self) -> Result<(), StoreFailure> {
        let Self { turns, engine, store, .. } = self;
        if std::mem::take(&mut self.is_ready) {
            return turns.commit(engine, &store.inbox, &store.clock);
        }
        self.is_ready = turns.gather(engine, &store.inbox, &store.clock, false)? == thread::Gathered::Ready;
        Ok(())
    }

    /// Takes nothing more, and finishes what waits, as [`EmbeddedStore::close`] does.
    pub fn close(&mut self) -> Result<(), StoreFailure> {
        if std::mem::take(&mut self.is_ready) {
            self.turns.commit(&mut self.engine, &self.store.inbox, &self.store.clock)?;
        }
        self.store.inbox.close();
        while self.turns.turn(&mut self.engine, &self.store.inbox, &self.store.clock, false)? {}
        Ok(())
    }

    /// What the two threads do from now on, for who runs them.
    #[cfg(test)]
    pub(crate) fn into_threads(self) -> [Box<dyn FnOnce() + Send>; 2] {
        let Self { store, engine, bodies, .. } = self;
        // Nobody asks why it failed: what waits for an answer finds out.
        let (failing, _) = oneshot::channel();
        let other = store.clone();
        [
            Box::new(move || thread::own(engine, &store.inbox, &store.wanted, &store.clock, failing)),
            Box::new(move || {
                thread::read_bodies(&other.shared, &other.wanted, &other.inbox, &other.clock, &*bodies);
            }),
        ]
    }

    /// What the reader of bodies does.
    pub fn read_bodies(&self) {
        let EmbeddedStore { shared, wanted, inbox, clock, .. } = &*self.store;
        thread::read_waiting(shared, wanted, inbox, clock, &*self.bodies);
    }

    /// Whether something is staged and not durable.
    pub fn has_staged(&self) -> bool {
        self.engine.has_staged()
    }

    /// See [`Engine::unequal`].
    pub fn unequal(&self) -> Option<String> {
        self.engine.unequal()
    }

    /// The counts, as of everything that was applied.
    pub fn totals(&self) -> crate::push::Counts {
        self.engine.totals()
    }
}

impl<D: Disk> Drop for EmbeddedStore<D> {
    fn drop(&mut self) {
        // Whoever wants to know that everything is done calls `close` first.
        self.inbox.close();
        self.wanted.close();
    }
}

impl<D: Disk> Store for EmbeddedStore<D> {
    fn submit(&self, command: Command) -> Result<(), Refused> {
        self.inbox.put(command)
    }

    fn pull(&self, device: &DeviceKey, after: Reached, max: usize, now: Millis, out: &mut Vec<Pulled>) {
        self.shared.index.pull(device, after, max, now, out);
    }

    fn touch(&self, devices: &[DeviceKey]) {
        self.shared.index.touch(devices.iter(), false);
    }

    fn is_current(&self, seen: &Seen) -> bool {
        self.shared.index.is_current(seen)
    }

    fn revocation(&self, device: &DeviceKey) -> Revocation {
        self.shared.index.revocation(device)
    }

    fn body(&self, batch: &Arc<Batch>) -> Option<Arc<[u8]>> {
        batch.body()
    }

    fn want_body(&self, batch: &Arc<Batch>, session: SessionRef) -> Result<(), Busy> {
        self.wanted.put(batch.clone(), session)
    }

    fn recalls(&self, after: Seq, since: Millis, max: usize) -> Vec<Arc<Recall>> {
        self.shared.recalls.read(after, since, max)
    }

    fn may_have(&self, device: &DeviceKey, recall: &Recall) -> bool {
        self.shared.index.may_have(device, recall, self.shared.opened_at)
    }

    fn last_active(&self, device: &DeviceKey) -> Option<Millis> {
        self.shared.index.last_active(device)
    }

    fn expect_active(&self, device: &DeviceKey) {
        if self.shared.report_ms < Millis::MAX {
            self.shared.index.expect_active(device);
        }
    }

    fn report_ms(&self) -> Millis {
        self.shared.report_ms
    }

    fn stream_bounds(&self, stream: &str) -> Result<StreamBounds, StreamError> {
        self.shared.streams.bounds(&self.shared.reader, stream)
    }

    fn present_history(&self) -> Option<HistoryId> {
        self.shared.streams.present_history()
    }

    fn is_in_history(&self, history: HistoryId, cursor: Seq) -> bool {
        self.shared.streams.is_in_history(history, cursor)
    }

    fn app_control(&self, app: &AppKey) -> AppControl {
        let controls = self.shared.controls.read().unwrap_or_else(PoisonError::into_inner);
        controls.get(app).copied().unwrap_or_default()
    }

    fn streams(&self) -> Vec<StreamState> {
        self.shared.streams.states(&self.shared.reader)
    }

    fn read_stream(
        &self,
        stream: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<StreamRead, StreamError> {
        let mut events = Vec::new();
        let cursor = self.pass_stream(stream, after, max_events, max_bytes, &mut events)?;
        Ok(StreamRead { events, cursor })
    }

    fn pass_stream(
        &self,
        stream: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
        into: &mut dyn EventSink,
    ) -> Result<Seq, StreamError> {
        let bounds = (max_events, max_bytes);
        let read = self.shared.streams.read(&self.shared.reader, stream, after, bounds, into);
        StoreStats::add(&self.shared.stats.damaged, self.shared.reader.unreported());
        read
    }

    fn history(&self, of: &HistoryOf) -> std::io::Result<History> {
        history::read(&self.shared.reader, &self.clock, of, history::BOUNDS)
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.shared.head.subscribe()
    }

    fn oldest_created_at(&self) -> Millis {
        let forgotten = self.shared.stats.oldest_created_at.load(std::sync::atomic::Ordering::Relaxed);
        forgotten.max(self.clock.now().saturating_sub(self.options.batch_window_ms))
    }
}
