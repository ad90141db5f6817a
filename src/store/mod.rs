//! Where accepted messages are kept: the contract that shards and router links rely on. The embedded engine stands behind it;
//! an implementation on a distributed engine can take its place.
//!
//! Commands go in through [`Store::submit`], which never waits; what became of them comes back through their reply or the
//! [`CommitSink`], and only once it is durable.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::{oneshot, watch};

use crate::binding::{Bindings, Change, ChangeError};
use crate::credential::Revocation;
use crate::ids::{AppKey, DeviceKey, HistoryId, MessageId, Seq, SessionRef, ShardId};
use crate::push::{
    Accepted, Acked, AppControl, Attributes, Counts, Failure, Millis, NewBatch, Reached, Refusal, Rejection,
    Revoked, Seen, StreamEvent, TargetState,
};

/// A committed batch as sessions see it: immutable, shared by all entries that point to it.
pub use self::batch::Batch;
pub use self::found::{EventSink, Found};
pub use self::operator::{AppChange, RetireError, Retired, StreamState};
pub use self::recalls::Recall;
#[cfg(feature = "sim")]
pub use self::record::samples::Sample;

mod attributes;
pub mod batch;
mod batch_ids;
mod body_cache;
pub mod checkpoint;
mod codec;
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
mod recalls;
mod record;
mod second_chance;
pub mod stats;
mod stream;
pub mod tables;
#[cfg(test)]
mod tests;
mod thread;

/// What the store is told. Everything is answered only when durable.
#[derive(Debug)]
pub enum Command {
    /// Accept a batch.
    Deliver {
        /// What the router wants.
        batch: Box<NewBatch>,
        /// The answer, once durable.
        reply: oneshot::Sender<Result<Accepted, Rejection>>,
    },
    /// A device says Hello with something new: it was unknown, or its attributes or switch changed. Answered by [`CommitSink::seen`].
    Seen {
        /// What it says.
        device: Box<Seen>,
        /// Who waits.
        session: SessionRef,
    },
    /// A device changes something about itself. Answered by [`CommitSink::changed`], also if that changes nothing.
    Change {
        /// The device; known, as sessions are of known ones.
        device: DeviceKey,
        /// Who waits.
        session: SessionRef,
        /// What it changes.
        change: Box<Change>,
    },
    /// Acks of one turn of one shard. Each is answered by one [`Confirm`].
    Acks {
        /// The shard.
        shard: ShardId,
        /// The acks, in the order received.
        acks: Vec<DeviceAck>,
    },
    /// Written, but not acknowledged within the deadline: a receipt `sent` of its own.
    Sent(Vec<SentAlone>),
    /// The sessions that ended or went quiet: when each device was last active.
    LastActive(Vec<(DeviceKey, Millis)>),
    /// A router has stored everything of the stream up to the cursor.
    StreamAck {
        /// The stream.
        stream: Arc<str>,
        /// Up to here, inclusive.
        cursor: Seq,
    },
    /// An operator changes what an app may do.
    ControlApp {
        /// The app.
        app: AppKey,
        /// What changes.
        change: AppChange,
        /// What holds from then on, once durable; `None`: the disk has no room for it.
        reply: oneshot::Sender<Option<(Seq, AppControl)>>,
    },
    /// Take a message back where it is pending, and what comes of it later. Answered when nothing of it is pending.
    Revoke {
        /// The app.
        app: AppKey,
        /// The message.
        message: MessageId,
        /// The answer, once durable.
        reply: oneshot::Sender<Result<Revoked, Rejection>>,
    },
    /// Ends a stream that the configuration no longer names, with what is unread of it; or, with `force`, drops what is unread of one that it
    /// does name: a gap takes its place.
    RetireStream {
        /// The stream.
        stream: Arc<str>,
        /// Also one that apps map to.
        force: bool,
        /// The answer, once durable.
        reply: oneshot::Sender<Result<Retired, RetireError>>,
    },
    /// A question, answered as of a durable sequence.
    Query {
        /// What is asked.
        query: Query,
        /// The answer and the sequence as of which it holds.
        reply: oneshot::Sender<(Seq, QueryAnswer)>,
    },
    /// Revoke every credential that a device has; its session ends ([`CommitSink::revoked`]).
    RevokeCredentials {
        /// The device; it need not be known.
        device: DeviceKey,
        /// Its app's epoch.
        epoch: u32,
        /// Whether it may register again, for a credential above all that it had. Else it is locked out.
        allow_registration: bool,
        /// What is revoked of it now, once durable.
        reply: oneshot::Sender<Result<Revocation, Rejection>>,
    },
    /// Answered when everything submitted before is durable; with `checkpoint`, after a whole checkpoint too.
    Flush {
        /// Whether to write a checkpoint, so that the next start is quick.
        checkpoint: bool,
        /// Done.
        reply: oneshot::Sender<()>,
    },
}

/// One Ack frame of one session.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceAck {
    /// The device.
    pub device: DeviceKey,
    /// The session to confirm to.
    pub session: SessionRef,
    /// Its number in that session; 0: nothing to confirm (ids of Hello).
    pub number: u64,
    /// Where it came from; `None`: from where the device is known to be.
    pub client_ip: Option<IpAddr>,
    /// Its events; most have one.
    pub events: SmallVec<[Acked; 1]>,
}

/// An Ack that is durable now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Confirm {
    /// The session.
    pub session: SessionRef,
    /// The Ack's number.
    pub number: u64,
}

/// A message that was written and not acknowledged in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SentAlone {
    /// The device.
    pub device: DeviceKey,
    /// The batch.
    pub batch: Seq,
    /// When it was first written.
    pub sent_at: Millis,
}

/// A question to the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    /// What became of a message, and on one device if given.
    Message {
        /// The app.
        app: AppKey,
        /// The message.
        message: MessageId,
        /// The device.
        device: Option<DeviceKey>,
    },
    /// What is known of devices, at most 10,000, answered in order. What may have to be read from the tables (attributes and bindings) is in
    /// the answer only if no more than [`crate::limits::QUERY_ROWS`] are asked for.
    Devices(Vec<DeviceKey>),
    /// Everything since this data directory was made.
    Totals,
    /// The newest days of an app.
    Stats {
        /// The app.
        app: AppKey,
        /// How many, at most 30.
        days: u32,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, PartialEq, Debug)]
pub enum QueryAnswer {
    /// Of a message; `None`: no push record.
    Message(Option<Box<MessageState>>),
    /// Of devices.
    Devices(Vec<Option<DeviceState>>),
    /// Of everything.
    Totals(Box<Counts>),
    /// Of days, today first, those without anything too.
    Stats(Vec<DayStats>),
}

/// What happened to an app's messages and devices on one day. An event counts on its own day.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DayStats {
    /// Days since 1970-01-01 in the configured zone.
    pub day: u32,
    /// But for `pending`, which is no day's: always 0.
    pub counts: Counts,
    /// Devices that became known.
    pub registered: u64,
    /// Devices that said Hello with something new, acknowledged something, or ended a session.
    pub active: u64,
}

/// The push record of a message.
#[derive(Clone, PartialEq, Debug)]
pub struct MessageState {
    /// Its counts.
    pub counts: Counts,
    /// When its first batch was accepted.
    pub accepted_at: Millis,
    /// When its last batch expires.
    pub expires_at: Millis,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
    /// The sequence of its first batch: nothing of it is older.
    pub first: Seq,
    /// What became of it on the device that was asked for.
    pub on_device: Option<OnDevice>,
}

/// What the push record says of a message on one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // Answers, of which any may hold.
pub struct OnDevice {
    /// What became of it there, of known devices.
    pub state: TargetState,
    /// The device's number; `None`: it isn't known.
    pub number: Option<u32>,
    /// It was refused there, indexed by `Refusal as usize - 1`.
    pub refused: [bool; Refusal::ALL.len()],
    /// While it is pending: when its batch was accepted.
    pub accepted_at: Option<Millis>,
    /// While it is pending: when it was first written, if it was.
    pub sent_at: Option<Millis>,
    /// It arrived after it had ended.
    pub late: bool,
    /// It was tapped.
    pub clicked: bool,
    /// It was dismissed.
    pub cleaned: bool,
}

/// What is asked about a device's past.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HistoryOf {
    /// The app.
    pub app: AppKey,
    /// The device.
    pub device: DeviceKey,
    /// Its number, if it is known.
    pub number: Option<u32>,
    /// One message only, and the sequence of its first batch.
    pub message: Option<(MessageId, Seq)>,
}

/// What the journal tells of a device's past, as far as it was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// In the order of the journal; the newest ones if there are many.
    pub events: Vec<Happened>,
    /// The time of the oldest record that was looked at
    pub from: Millis,
    /// and of the newest.
    pub to: Millis,
    /// There are newer ones: a bound was reached.
    pub is_cut: bool,
}

/// Something that happened to a message on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Happened {
    /// When.
    pub at: Millis,
    /// What.
    pub what: What,
    /// The message.
    pub message: MessageId,
    /// When it had first been written, if the record says so.
    pub sent_at: Option<Millis>,
}

/// See [`Happened`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A batch named the device, and it was accepted.
    Accepted,
    /// The same, and it was not.
    Refused(Refusal),
    /// It was written, and said on its own.
    Sent,
    /// It arrived.
    Arrived,
    /// It ended otherwise.
    Failed(Failure),
    /// It arrived after its end.
    Late,
    /// It was tapped.
    Clicked,
    /// It was dismissed.
    Cleaned,
    /// Something was acknowledged that no push record has.
    Unmatched,
}

impl What {
    /// The word for it in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused(_) => "refused",
            Self::Sent => "sent",
            Self::Arrived => "arrived",
            Self::Failed(_) => "failed",
            Self::Late => "late",
            Self::Clicked => "click",
            Self::Cleaned => "clean",
            Self::Unmatched => "unmatched",
        }
    }

    /// The word for why, if there is one.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Refused(why) => Some(why.label()),
            Self::Failed(why) => Some(why.label()),
            _ => None,
        }
    }

    /// Why it was refused, if it was.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Refused(why) => Some(why),
            _ => None,
        }
    }
}

/// What is known of a device.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceState {
    /// The push switch.
    pub push_on: bool,
    /// Its last connection, rounded down to a second.
    pub last_active: Millis,
    /// Entries pending.
    pub pending: u32,
    /// When the oldest of them was accepted.
    pub oldest_pending_at: Option<Millis>,
    /// Its number in sets.
    pub number: u32,
    /// What the receipt log says of it; `None`: too many devices were asked for, or its row is damaged.
    pub attributes: Option<Attributes>,
    /// What it is bound to; `None`: nothing, or as with `attributes`.
    pub bindings: Option<Arc<Bindings>>,
}

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

/// The queue to the store is full: refuse at the door, or stop reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the store's queue is full")]
pub struct Busy;

/// The queue to the store is full: the command comes back.
#[derive(Debug, thiserror::Error)]
#[error("the store's queue is full")]
pub struct Refused(pub Box<Command>);

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
