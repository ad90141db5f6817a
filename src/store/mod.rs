//! Where accepted messages are kept: the contract that shards and router links rely on. The embedded engine stands behind it;
//! an implementation on a distributed engine can take its place.
//!
//! Commands go in through [`Store::submit`], which never waits; what became of them comes back through their reply or the
//! [`CommitSink`], and only once it is durable.

use std::sync::Arc;

use tokio::sync::watch;

use crate::binding::ChangeError;
use crate::credential::Revocation;
use crate::ids::{AppKey, DeviceKey, HistoryId, Seq, SessionRef, ShardId};
use crate::push::{AppControl, Failure, Millis, Reached, Seen, StreamEvent};

/// A committed batch as sessions see it: immutable, shared by all entries that point to it.
pub use self::batch::Batch;
pub use self::command::{Busy, Command, Confirm, DeviceAck, Refused, SentAlone};
pub use self::found::{EventSink, Found};
pub use self::operator::{AppChange, RetireError, Retired, StreamState};
pub use self::query::{
    DayStats, DeviceState, Happened, History, HistoryOf, MessageState, OnDevice, Query, QueryAnswer, What,
};
pub use self::recalls::Recall;
#[cfg(feature = "sim")]
pub use self::record::samples::Sample;

mod attributes;
pub mod batch;
mod batch_ids;
mod body_cache;
pub mod checkpoint;
mod codec;
mod command;
mod counts;
mod device_map;
mod device_row;
pub mod disk;
pub mod embedded;
pub mod engine;
mod found;
mod history;
mod index;
pub mod journal;
mod ledger;
mod metrics;
pub mod offline;
pub mod operator;
pub mod options;
mod part;
mod part_memory;
mod part_messages;
mod push_record;
mod query;
mod recalls;
mod record;
mod second_chance;
pub mod stats;
mod stream;
pub mod tables;
#[cfg(test)]
mod tests;
mod thread;

/// The next thing to write to a device.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The batch; its sequence orders the list.
    pub batch: Arc<Batch>,
    /// The target's ordinal in it.
    pub ordinal: u32,
    /// It was written before, or may have been: before this session, or before a recovery.
    pub redelivered: bool,
}

/// A stream can't be read from there.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Older than the oldest kept.
    #[error("events after {asked} are gone; the oldest cursor kept is {oldest}")]
    Gone {
        /// The cursor asked for.
        asked: Seq,
        /// The oldest that can be named.
        oldest: Seq,
    },
    /// Beyond the newest.
    #[error("cursor {asked} is beyond the newest, {head}")]
    Beyond {
        /// The cursor asked for.
        asked: Seq,
        /// The newest durable sequence.
        head: Seq,
    },
    /// No such stream.
    #[error("no stream of this name is configured")]
    Unknown,
    /// The journal couldn't be read.
    #[error("the journal can't be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Where a stream stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamBounds {
    /// The durable cursor of its reader.
    pub cursor: Seq,
    /// The oldest cursor that a rewind can name.
    pub oldest: Seq,
    /// The newest durable sequence.
    pub head: Seq,
}

/// Events of one read, and where the next one starts.
#[derive(Debug)]
pub struct StreamRead {
    /// Events in journal order.
    pub events: Vec<(Seq, StreamEvent)>,
    /// Everything up to here, inclusive, was looked at.
    pub cursor: Seq,
}

/// What shards and router links may ask of the store. All of it is quick, but for [`Store::read_stream`], [`Store::pass_stream`] and [`Store::stream_bounds`].
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Hands over a command. Never waits.
    fn submit(&self, command: Command) -> Result<(), Refused>;

    /// The device's durable pending entries behind `after`, those of high priority first, each priority oldest first, at most `max`, appended to
    /// `out`; expired ones are left out. Each is
    /// marked as written at `now`. An entry of retention 0 that another session got is left out.
    fn pull(&self, device: &DeviceKey, after: Reached, max: usize, now: Millis, out: &mut Vec<Pulled>);

    /// These devices are pulled next: what is read of them may be brought into the processor's caches, of all at the same time.
    fn touch(&self, _devices: &[DeviceKey]) {}

    /// Whether the device is known with exactly these attributes, no change of its switch and its state: then Hello needs no [`Command::Seen`].
    /// If so, it isn't forgotten before its session says that it was active.
    fn is_current(&self, seen: &Seen) -> bool;

    /// What was revoked of the device. May be ahead of what is durable: whoever is refused for it is refused a moment early.
    fn revocation(&self, device: &DeviceKey) -> Revocation;

    /// The encoded push, if it is in memory. It comes without `redelivered`; a redelivery appends
    /// [`crate::wire::device::REDELIVERED`] to it.
    fn body(&self, batch: &Arc<Batch>) -> Option<Arc<[u8]>>;

    /// Reads a body back into memory on a thread of the store's, then calls [`BodySink::loaded`] for the session. Never waits. `Busy`: ask again
    /// on the next timer.
    fn want_body(&self, batch: &Arc<Batch>, session: SessionRef) -> Result<(), Busy>;

    /// Messages that were taken back behind `after` and at or after `since`, oldest first, at most `max`. A store that takes nothing back has none.
    fn recalls(&self, _after: Seq, _since: Millis, _max: usize) -> Vec<Arc<Recall>> {
        Vec::new()
    }

    /// Whether the device may have the message that was taken back: it was written to it, or arrived. Rather once too often than too seldom.
    fn may_have(&self, _device: &DeviceKey, _recall: &Recall) -> bool {
        false
    }

    /// When the device was last active, as far as known; `None`: it isn't known.
    fn last_active(&self, _device: &DeviceKey) -> Option<Millis> {
        None
    }

    /// A session of this device ends, and that it was active follows by a command: until then it isn't forgotten, though nobody is there.
    fn expect_active(&self, _device: &DeviceKey) {}

    /// How often it wants to hear of a device that is connected, milliseconds.
    fn report_ms(&self) -> Millis {
        Millis::MAX
    }

    /// Where a stream stands.
    fn stream_bounds(&self, stream: &str) -> Result<StreamBounds, StreamError>;

    /// The history that what is read now is of: cursors are to be kept with it. `None`: the store keeps no journal.
    fn present_history(&self) -> Option<HistoryId> {
        None
    }

    /// Whether the cursor is one of this history, as far as it is known here. If not, it may be of a time that was lost when an older copy of the
    /// data directory was put back: what is behind it by its number isn't what its reader lacks.
    fn is_in_history(&self, _history: HistoryId, _cursor: Seq) -> bool {
        false
    }

    /// What an operator set for an app. Quick: a look into memory.
    fn app_control(&self, _app: &AppKey) -> AppControl {
        AppControl::default()
    }

    /// All streams: those of the configuration, and those that wait to be retired.
    fn streams(&self) -> Vec<StreamState> {
        Vec::new()
    }

    /// Reads events after the cursor, at most `max_events` and about `max_bytes`. Reads files: never call it on a shard's thread.
    fn read_stream(
        &self,
        stream: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<StreamRead, StreamError>;

    /// The same; each event goes to `into` as it is found, and the answer is the cursor: up to here everything was looked at. After an error what `into`
    /// has counts for nothing.
    fn pass_stream(
        &self,
        stream: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
        into: &mut dyn EventSink,
    ) -> Result<Seq, StreamError> {
        let read = self.read_stream(stream, after, max_events, max_bytes)?;
        for (seq, event) in read.events {
            into.event(seq, Found::Event(event));
        }
        Ok(read.cursor)
    }

    /// What happened to a device, read from the journal within bounds. Reads files: never call it on a shard's thread, nor on the store's. A store
    /// that keeps no journal knows of nothing.
    fn history(&self, _of: &HistoryOf) -> std::io::Result<History> {
        Ok(History::default())
    }

    /// The newest durable sequence, as it grows.
    fn head(&self) -> watch::Receiver<Seq>;

    /// Batches created before this time are refused as too old.
    fn oldest_created_at(&self) -> Millis;
}

/// Told on the store's one sequencing thread, in journal order, after the sync. Must not wait.
pub trait CommitSink: Send {
    /// A batch is durable and in the index: `devices` have something newer.
    fn batch(&mut self, batch: &Arc<Batch>, devices: &[DeviceKey]);
    /// Acks are durable.
    fn confirmed(&mut self, shard: ShardId, confirms: Vec<Confirm>);
    /// A device's Hello is durable.
    fn seen(&mut self, session: SessionRef);
    /// A device's Hello can't be kept: as many devices as may be are known, or the disk is full. The session should end with a delay.
    fn refused(&mut self, session: SessionRef) {
        // A sink that doesn't care lets the session run into its deadline.
        tracing::warn!(?session, "a device is refused: there is no room for another one");
    }
    /// A device's change is durable, or was none; or why it can't be. Told after the ends that it brings about.
    fn changed(&mut self, session: SessionRef, result: Result<(), ChangeError>);
    /// There is no room for an Ack. A later Ack's confirmation would cover it, so this session has to end: the device says it again on its next one.
    fn ack_refused(&mut self, session: SessionRef) {
        tracing::warn!(?session, "an Ack can't be kept: the disk is full, and the reserve used up");
    }
    /// A message was taken back: [`Store::recalls`] has it from now on, and sessions whose device has the message are to be told.
    fn recalled(&mut self, seq: Seq) {
        tracing::debug!(%seq, "a message was taken back");
    }
    /// The device's credentials were revoked, durably: a session with one has to end. For a sink without sessions there is nothing to do.
    fn revoked(&mut self, _device: &DeviceKey) {}
    /// The device's entry ended without its doing: a session may forget it.
    fn ended(&mut self, device: &DeviceKey, batch: Seq, reason: Failure);
}

/// Told when a body is back in memory, or can't be read (its entries end as `storage`). Must not wait.
pub trait BodySink: Send + Sync {
    /// Look again.
    fn loaded(&self, session: SessionRef);
}
