//! What the store is told, and how it says that its queue is full.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{AppChange, Query, QueryAnswer, RetireError, Retired};
use crate::binding::Change;
use crate::credential::Revocation;
use crate::ids::{AppKey, DeviceKey, MessageId, Seq, SessionRef, ShardId};
use crate::push::{Accepted, Acked, AppControl, Millis, NewBatch, Rejection, Revoked, Seen};

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
    /// A device says Hello with something new: it was unknown, or its attributes or switch changed. Answered by [`CommitSink::seen`](super::CommitSink::seen).
    Seen {
        /// What it says.
        device: Box<Seen>,
        /// Who waits.
        session: SessionRef,
    },
    /// A device changes something about itself. Answered by [`CommitSink::changed`](super::CommitSink::changed), also if that changes nothing.
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
    /// Revoke every credential that a device has; its session ends ([`CommitSink::revoked`](super::CommitSink::revoked)).
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

/// The queue to the store is full: refuse at the door, or stop reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the store's queue is full")]
pub struct Busy;

/// The queue to the store is full: the command comes back.
#[derive(Debug, thiserror::Error)]
#[error("the store's queue is full")]
pub struct Refused(pub Box<Command>);
