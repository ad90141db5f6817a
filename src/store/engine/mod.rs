//! The engine: what happens to each command, in the journal and in the index. It belongs to one thread.
//!
//! # How it works
//! A command is checked against the index, and what was decided becomes a journal record and is applied to the index at once. Nobody sees it
//! yet: sessions read their lists only up to the committed sequence, and everything that would tell of it (answers, confirmations, hand-overs)
//! waits until [`Engine::commit`] made the whole group durable. Between commits [`Engine::maintain`] does one bounded slice of
//! expiry, of a checkpoint, or of trimming.
//!
//! # Invariants
//! - Records are decisions; replaying them applies them, and never decides again.
//! - Every effect of a record belongs to one part and depends on no other part, so that a checkpoint may be cut part by part.
//! - Whether a record fits is known before anything is changed. Batches may not use the journal's reserve; ends, acks and copies may.
//! - Time is an argument, and there are no threads in here: the same commands give the same journal.
//!
//! # Rejected
//! Applying records only after their commit: then admission would not see the batches of its own group, and duplicates in one group would need
//! a second index of what is staged.

mod acks;
mod apply;
pub(super) mod apps;
mod bindings;
#[cfg(test)]
mod bounds_tests;
mod checkpoint;
mod collapse;
mod decide;
mod deliver;
mod devices;
mod ends;
mod expiry;
mod forget;
mod load;
mod load_threads;
mod memory;
mod query;
mod quota;
mod recall;
mod recover;
mod replay;
mod revoke;
mod rows;
mod storage;
mod streams;
mod tables;
mod trim;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{oneshot, watch};

use super::batch::Batch;
use super::body_cache::BodyCache;
use super::disk::Disk;
use super::index::Index;
use super::journal::{Journal, JournalError, JournalReader, Place, ReadError};
use super::ledger::Ledger;
use super::options::StoreOptions;
use super::recalls::{Recall, Recalls};
use super::stats::StoreStats;
use super::stream::Streams;
use super::tables::TablesError;
use super::{
    Command, CommitSink, Confirm, Pulled, QueryAnswer, RetireError, Retired, StreamBounds, StreamError,
    StreamRead, StreamState,
};
use crate::binding::ChangeError;
use crate::credential::Revocation;
use crate::fault::{self, Fault};
use crate::ids::{AppKey, DeviceKey, HistoryId, Seq, SessionRef, ShardId};
use crate::push::{Accepted, AppControl, Failure, Millis, Reached, ReceiptGap, Rejection, Revoked};
use crate::sync::step;

use apps::Controls;

pub use recover::{OpenError, OpenReport};

/// Kinds of work that [`Engine::maintain`] does.
const DUTIES: usize = 8;
/// How often to look whether a full disk has room again.
const REPLENISH_MS: Millis = 1_000;

/// Whether a device has a session now: for offline policy `return` and retention 0.
pub type IsConnected = Box<dyn Fn(&DeviceKey) -> bool + Send>;

/// The store can't go on: what it said is durable, the rest is for the next start to find out.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// The journal.
    #[error("the journal failed, nothing more can be made durable: {0}")]
    Journal(#[from] JournalError),
    /// The tables.
    #[error("the tables failed, so that the journal could never be trimmed again: {0}")]
    Tables(#[from] TablesError),
}

/// What is told after the commit, in order.
#[derive(Debug)]
enum Effect {
    Answer(oneshot::Sender<Result<Accepted, Rejection>>, Result<Accepted, Rejection>),
    Batch(Arc<Batch>, Vec<DeviceKey>),
    Confirmed(ShardId, Vec<Confirm>),
    Seen(SessionRef),
    Refused(SessionRef),
    Changed(SessionRef, Result<(), ChangeError>),
    AckRefused(SessionRef),
    Ended(Vec<DeviceKey>, Seq, Failure),
    Moved(Arc<Batch>, Place, u32),
    /// A message was taken back, and nothing of it is pending any more.
    Recalled(Arc<Recall>),
    RecallAnswer(recall::Reply, Result<Revoked, Rejection>),
    Query(oneshot::Sender<(Seq, QueryAnswer)>, (Seq, QueryAnswer)),
    /// A stream, by its position.
    Cursor(usize, Seq),
    Gap(usize, Box<ReceiptGap>),
    History(HistoryId, Seq),
    StreamRetired(usize),
    App(AppKey, AppControl),
    AppAnswer(oneshot::Sender<Option<(Seq, AppControl)>>, Option<(Seq, AppControl)>),
    RetireAnswer(oneshot::Sender<Result<Retired, RetireError>>, Result<Retired, RetireError>),
    Flushed(oneshot::Sender<()>),
    /// `Some`: the device has no valid credential any more.
    Revoked(Option<DeviceKey>, oneshot::Sender<Result<Revocation, Rejection>>, Result<Revocation, Rejection>),
}

/// What the engine shares with other threads.
#[derive(Debug)]
pub(super) struct Shared<D: Disk> {
    pub(super) index: Index,
    pub(super) bodies: BodyCache,
    pub(super) streams: Streams,
    /// What operators set, as far as it is durable.
    pub(super) controls: RwLock<Controls>,
    pub(super) recalls: Recalls,
    /// The newest time in the journal at the start: what was accepted by then may have been written without anybody knowing.
    pub(super) opened_at: Millis,
    /// See [`crate::store::Store::report_ms`].
    pub(super) report_ms: Millis,
    pub(super) stats: StoreStats,
    pub(super) reader: JournalReader<D>,
    pub(super) head: watch::Sender<Seq>,
}

/// See the module.
pub struct Engine<D: Disk> {
    disk: Arc<D>,
    options: StoreOptions,
    journal: Journal<D>,
    shared: Arc<Shared<D>>,
    sink: Box<dyn CommitSink>,
    is_connected: IsConnected,
    effects: Vec<Effect>,
    /// Records are encoded here.
    scratch: Vec<u8>,
    /// Live batches by their expiry, each with its home part.
    expiry: BTreeSet<(Millis, Seq, u32)>,
    /// The disk had no room for what is due: not before this time again.
    expiry_retry_at: Millis,
    /// The disk had no room for spare segments: not before this time again.
    replenish_at: Millis,
    /// The number of the next new device.
    next_number: u32,
    devices: u64,
    /// Devices with a revocation.
    revoked: u64,
    messages: u64,
    pending: u64,
    live_bytes: u64,
    /// Live batches whose newest record is in a segment, and their bytes.
    live_in: BTreeMap<u32, (u64, u64)>,
    /// Of devices and batches.
    apps: load::KnownApps,
    unmatched: acks::Limiter,
    ledger: Ledger,
    tables: tables::State,
    /// Whose turn it is in [`Engine::maintain`].
    duty: usize,
    checkpoints: checkpoint::State<D>,
    trim: trim::State,
    /// What operators set, in the order of the journal.
    controls: Controls,
    /// The gap that is being made.
    gap: Option<streams::GapScan>,
    forget: forget::State,
    /// Batches whose record can't be read; their entries are looked for part by part.
    damaged: VecDeque<storage::Sweep>,
    /// After a start that found damage: push records that count entries which no list has.
    lost: Option<storage::Lost>,
    /// Messages that were taken back and have pending entries still.
    recalling: VecDeque<recall::Recalling>,
    /// The disk had no room for their ends: not before this time again.
    recall_retry_at: Millis,
    /// Recalls remembered, and until when all places are taken.
    recalls: u64,
    recalls_full_until: Millis,
    memory: memory::Memory,
    /// The history of this start, while the disk has no room for its record.
    history: Option<HistoryId>,
}

impl<D: Disk> std::fmt::Debug for Engine<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl<D: Disk> Engine<D> {
    /// Takes a command into the group being staged. Fails only for a failed disk.
    pub fn apply(&mut self, now: Millis, command: Command) -> Result<(), StoreFailure> {
        self.take(now, command)?;
        if fault::is(Fault::TellBeforeCommit) {
            self.release();
        }
        Ok(())
    }

    fn take(&mut self, now: Millis, command: Command) -> Result<(), StoreFailure> {
        match command {
            Command::Deliver { batch, reply } => self.deliver(now, *batch, reply),
            Command::Seen { device, session } => self.seen(now, &device, session),
            Command::Change { device, session, change } => self.change(now, &device, session, &change),
            Command::Acks { shard, acks } => self.acks(now, shard, &acks),
            Command::Sent(sent) => self.sent(now, &sent),
            Command::LastActive(active) => self.last_active(&active),
            Command::StreamAck { stream, cursor } => self.stream_ack(now, &stream, cursor),
            Command::ControlApp { app, change, reply } => self.control_app(app, change, reply),
            Command::Revoke { app, message, reply } => self.recall(now, &app, message, reply),
            Command::RetireStream { stream, force, reply } => self.retire_stream(&stream, force, reply),
            Command::Query { query, reply } => {
                // As of the newest record staged: durable when the answer goes out.
                let answer = (Seq(self.journal.next_seq().0 - 1), self.answer(now, &query)?);
                self.effects.push(Effect::Query(reply, answer));
                Ok(())
            }
            Command::RevokeCredentials { device, epoch, allow_registration, reply } => {
                self.revoke(&device, epoch, allow_registration, reply)
            }
            Command::Flush { checkpoint, reply } => {
                self.flush(now, checkpoint)?;
                self.effects.push(Effect::Flushed(reply));
                Ok(())
            }
        }
    }

    /// Makes everything staged durable, then tells everybody. After an error nothing of the group was told, and the engine is of no use.
    pub fn commit(&mut self, now: Millis) -> Result<(), StoreFailure> {
        let bytes = self.journal.staged_bytes() as u64;
        if bytes > 0 {
            step();
            let head = self.journal.commit(now)?;
            if fault::is(Fault::HandOverEarly) {
                self.release();
            }
            self.shared.index.set_committed(head);
            StoreStats::add(&self.shared.stats.commits, 1);
            StoreStats::add(&self.shared.stats.commit_bytes, bytes);
            self.checkpoints.note_bytes(bytes);
            self.memory.note_bytes(bytes);
            self.replenish(now)?;
        }
        for effect in &self.effects {
            // Before the head: it wakes the stream's reader, for the last time.
            if let Effect::StreamRetired(stream) = effect {
                self.shared.streams.retire(*stream);
            }
        }
        // Before the answers: who has one finds no older head.
        let head = self.journal.head();
        if fault::is(Fault::AnswerBeforeHead) {
            self.release();
        }
        step();
        self.shared.head.send_if_modified(|shown| std::mem::replace(shown, head) != head);
        self.release();
        if bytes > 0 {
            // With the cursors that this group moved: else what they let go would count until the next one.
            self.measure_streams(now);
        }
        // Before the first record that there is room for again.
        self.begin_history()
    }

    /// Whether something waits for [`Engine::commit`].
    pub fn has_staged(&self) -> bool {
        self.journal.staged_bytes() > 0 || !self.effects.is_empty()
    }

    /// See [`super::Store::pull`].
    pub fn pull(&self, device: &DeviceKey, after: Reached, max: usize, now: Millis, out: &mut Vec<Pulled>) {
        self.shared.index.pull(device, after, max, now, out);
    }

    /// See [`super::Store::revocation`].
    pub fn revocation(&self, device: &DeviceKey) -> Revocation {
        self.shared.index.revocation(device)
    }

    /// Reads a body, from memory or from the journal. The store's threads have a thread for that; this is for who has none.
    pub fn read_body(&self, batch: &Arc<Batch>) -> Result<Arc<[u8]>, ReadError> {
        batch.body().map_or_else(|| super::thread::read_body(&self.shared, batch), Ok)
    }

    /// See [`super::Store::stream_bounds`].
    pub fn stream_bounds(&self, stream: &str) -> Result<StreamBounds, StreamError> {
        self.shared.streams.bounds(&self.shared.reader, stream)
    }

    /// See [`super::Store::present_history`].
    pub fn present_history(&self) -> Option<HistoryId> {
        self.shared.streams.present_history()
    }

    /// See [`super::Store::is_in_history`].
    pub fn is_in_history(&self, history: HistoryId, cursor: Seq) -> bool {
        self.shared.streams.is_in_history(history, cursor)
    }

    /// See [`super::Store::streams`].
    pub fn stream_states(&self) -> Vec<StreamState> {
        self.shared.streams.states(&self.shared.reader)
    }

    /// See [`super::Store::read_stream`].
    pub fn read_stream(
        &self,
        stream: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<StreamRead, StreamError> {
        let (bounds, mut events) = ((max_events, max_bytes), Vec::new());
        let cursor = self.shared.streams.read(&self.shared.reader, stream, after, bounds, &mut events)?;
        Ok(StreamRead { events, cursor })
    }

    /// See [`StoreOptions::sync_spacing_us`].
    pub fn sync_spacing_us(&self) -> u64 {
        self.options.sync_spacing_us
    }

    /// The store's figures.
    pub fn stats(&self) -> &StoreStats {
        &self.shared.stats
    }

    /// What other threads may use.
    pub(super) fn shared(&self) -> &Arc<Shared<D>> {
        &self.shared
    }

    /// Bytes waiting for [`Engine::commit`].
    pub fn staged_bytes(&self) -> usize {
        self.journal.staged_bytes()
    }

    /// One bounded slice of what is due. Call it between commits; what it staged is for the next commit.
    /// Answers whether there may be more to do at once.
    pub fn maintain(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if self.has_staged() {
            return Ok(true);
        }
        if self.replenish_at > 0 {
            self.replenish(now)?;
            self.begin_history()?;
            if self.has_staged() {
                return Ok(true);
            }
        }
        let mut busy = false;
        for duty in 0..DUTIES {
            // In turns, so that a lot of one kind doesn't keep the others waiting.
            let duty = (self.duty + duty) % DUTIES;
            busy = match duty {
                0 => self.expire(now)?,
                1 => self.sweep_damaged(now)? || self.sweep_lost(now)?,
                2 => self.recall_slice(now)?,
                3 => self.checkpoint_slice(now)?,
                4 => self.tables_slice(now)?,
                5 => self.gap_slice(now)?,
                6 => self.forget_slice(now)?,
                _ => self.trim_slice(now)?,
            };
            if busy {
                self.duty = duty + 1;
                break;
            }
        }
        self.measure();
        self.export();
        Ok(busy)
    }

    /// When [`Engine::maintain`] is due, if nothing else happens before.
    pub fn next_wakeup(&self) -> Option<Millis> {
        let replenish = (self.replenish_at > 0).then_some(self.replenish_at);
        let retries = self.retry_checkpoint_at().into_iter().chain(self.next_recalling()).chain(replenish);
        let retries =
            retries.chain(self.next_transaction()).chain(self.next_forget()).chain(self.next_lost());
        self.next_expiry().into_iter().chain(retries).min()
    }

    /// Spare segments, as far as the disk and the configured maximum have room. While they have none it is tried again now and then: so a
    /// disk that was full is noticed when it no longer is.
    fn replenish(&mut self, now: Millis) -> Result<(), StoreFailure> {
        if now < self.replenish_at {
            return Ok(());
        }
        if self.journal.is_at_max() || self.checkpoints.borrows() || self.tables.borrows {
            // That a segment goes, or that what was lent comes back, calls for it again.
            self.replenish_at = 0;
            return Ok(());
        }
        self.journal.replenish()?;
        self.replenish_at = if self.journal.is_replenished() { 0 } else { now + REPLENISH_MS };
        Ok(())
    }

    /// Tells what the group did, in order.
    fn release(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                // A router that has left meanwhile asks again with the same id.
                Effect::Answer(reply, answer) => drop(reply.send(answer)),
                Effect::Batch(batch, devices) => self.sink.batch(&batch, &devices),
                Effect::Confirmed(shard, confirms) => self.sink.confirmed(shard, confirms),
                Effect::Seen(session) => self.sink.seen(session),
                Effect::Refused(session) => self.sink.refused(session),
                Effect::Changed(session, result) => self.sink.changed(session, result),
                Effect::AckRefused(session) => self.sink.ack_refused(session),
                Effect::Ended(devices, batch, reason) => {
                    for device in &devices {
                        self.sink.ended(device, batch, reason);
                    }
                }
                Effect::Moved(batch, place, bytes) => self.moved(&batch, place, bytes),
                Effect::Cursor(stream, cursor) => self.shared.streams.set_cursor(stream, cursor),
                Effect::Recalled(recall) => {
                    self.shared.recalls.add(recall.at, &recall);
                    self.sink.recalled(recall.seq);
                }
                Effect::History(id, seq) => self.shared.streams.begin_history(id, seq),
                Effect::Gap(stream, gap) => self.shared.streams.insert_gap(stream, *gap),
                // Done, before anybody was told of the group.
                Effect::StreamRetired(_) => {}
                Effect::App(app, control) => {
                    let controls = self.shared.controls.write();
                    controls.unwrap_or_else(PoisonError::into_inner).insert(app, control);
                }
                // Who asked may have left.
                Effect::AppAnswer(reply, answer) => drop(reply.send(answer)),
                // Who asked may have left.
                Effect::RetireAnswer(reply, answer) => drop(reply.send(answer)),
                // Who asked may have left.
                Effect::RecallAnswer(reply, answer) => drop(reply.send(answer)),
                Effect::Query(reply, answer) => drop(reply.send(answer)),
                Effect::Flushed(reply) => drop(reply.send(())),
                Effect::Revoked(device, reply, answer) => {
                    // Its session first: who asked may rely on that it ends.
                    if let Some(device) = device {
                        self.sink.revoked(&device);
                    }
                    // Who asked may have left.
                    reply.send(answer).ok();
                }
            }
        }
    }

    /// A batch has no pending entry any more.
    fn settle(&mut self, batch: &Arc<Batch>) {
        let place = self.place_of_expiry(batch);
        self.expiry.remove(&place);
        self.live_bytes -= u64::from(batch.bytes.load(Ordering::Relaxed));
        self.leave_segment(batch);
        self.shared.bodies.remove(batch);
    }

    fn export(&mut self) {
        let stats = &self.shared.stats;
        let room = self.journal.room();
        let set = |gauge: &AtomicU64, value| StoreStats::set(gauge, value);
        StoreStats::add(&stats.damaged, std::mem::take(&mut self.ledger.damaged_rows));
        let warmth = &self.shared.index.warmth;
        set(&stats.device_rows, warmth.rows() as u64);
        set(&stats.device_row_bytes, warmth.bytes() as u64);
        set(&stats.device_row_reads, self.ledger.row_reads);
        set(&stats.pending, self.pending);
        set(&stats.devices, self.devices);
        set(&stats.messages, self.messages);
        set(&stats.table_reads, self.ledger.reads);
        set(&stats.live_batches, self.expiry.len() as u64);
        set(&stats.live_bytes, self.live_bytes);
        set(&stats.journal_bytes, self.journal.file_bytes());
        set(&stats.room_bytes, room.before_reserve);
        set(&stats.body_bytes, self.shared.bodies.bytes() as u64);
    }
}
