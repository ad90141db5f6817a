//! The words of the domain as types: what a push is inside the edge, and what can become of it. Wire formats stop at [`crate::wire`].

use std::sync::Arc;

use crate::ids::{AccountDigest, AppKey, BatchId, DeviceKey, MessageId, Seq};

mod apps;
mod attributes;
mod counts;
mod ordinals;
mod part;
mod reasons;
mod receipt;

pub use apps::{AppControl, RateChange, RateOverrides, Rates};
pub use attributes::{Attributes, Common, Parts};
pub use counts::Counts;
pub use ordinals::Ordinals;
pub use part::BatchPart;
pub use reasons::{Failure, Refusal, Rejection, TargetState};
pub use receipt::{
    Channel, MassOutcome, Receipt, ReceiptGap, ReceiptKind, ReceiptRef, StreamEvent, UNREADABLE,
};

/// Milliseconds since 1970-01-01 UTC in edge time, which never goes back.
pub type Millis = u64;

/// What a device reports about a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Event {
    /// Stored by the device.
    Arrive = 1,
    /// Tapped; implies arrive.
    Click = 2,
    /// Dismissed; implies arrive.
    Clean = 3,
}

/// One event of an Ack, as the device said it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acked {
    /// The message.
    pub message: MessageId,
    /// What happened.
    pub event: Event,
    /// When, in the device's idea of edge time; unclamped.
    pub time: Millis,
    /// When this session first wrote the message, if it did.
    pub sent_at: Option<Millis>,
}

/// What to do for those who are not connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfflinePolicy {
    /// Keep it.
    Store,
    /// Refuse them, so that another channel can take them.
    Return,
}

/// Which of a device's messages go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Priority {
    /// In the order of acceptance.
    #[default]
    Normal,
    /// The same, ahead of normal ones that were not sent yet.
    High,
}

/// How far a device's list was read: each priority has an order of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reached {
    /// Of high priority: everything up to here.
    pub high: Seq,
    /// Of normal priority: everything up to here.
    pub normal: Seq,
}

impl Reached {
    /// Nothing yet.
    pub const START: Self = Self { high: Seq(0), normal: Seq(0) };

    /// How far it is with this priority.
    pub fn of(self, priority: Priority) -> Seq {
        match priority {
            Priority::High => self.high,
            Priority::Normal => self.normal,
        }
    }

    /// An entry was read. Never back.
    pub fn pass(&mut self, priority: Priority, seq: Seq) {
        let reached = match priority {
            Priority::High => &mut self.high,
            Priority::Normal => &mut self.normal,
        };
        *reached = seq.max(*reached);
    }

    /// The same, with every normal entry behind it.
    #[must_use]
    pub fn high_only(self) -> Self {
        Self { normal: Seq(u64::MAX), ..self }
    }
}

/// A batch that passed every check that needs no state: its fields are within limits, its app exists and is the router's.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// Unique per app.
    pub id: BatchId,
    /// The app.
    pub app: AppKey,
    /// The message; never 0.
    pub message: MessageId,
    /// The encoded `device.v1.Push` as devices get it (with id and expiry, without `redelivered`).
    pub body: Arc<[u8]>,
    /// Digest of the content that must not change under one message id (the body without its expiry).
    pub body_digest: [u8; 16],
    /// Digest of everything the router said: the same id with another one is a conflict.
    pub digest: [u8; 16],
    /// The devices. 1 to `limits::BATCH_TARGETS`.
    pub targets: Vec<DeviceKey>,
    /// Which of the router's batch they are.
    pub part: BatchPart,
    /// What to do for those who are not connected.
    pub offline_policy: OfflinePolicy,
    /// When the router made it, by its own clock, which may be a little ahead: what decides whether the id may have been forgotten.
    pub created_at: Millis,
    /// No delivery at or after this time.
    pub expires_at: Millis,
    /// Retention 0: only who is connected; `expires_at` is then the end of the online window.
    pub online_only: bool,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
    /// Which messages it goes ahead of.
    pub priority: Priority,
    /// It takes the place of older messages with this key, unless that is empty.
    pub collapse_key: Box<str>,
    /// For each target: the account that it was resolved from, if any. Empty: none has one.
    pub accounts: Vec<Option<AccountDigest>>,
}

/// The answer to an accepted batch; a repeat gets the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its place in the journal: the order of delivery. Of several parts, the last one's.
    pub seq: Seq,
    /// Of several parts, the first one's.
    pub first_seq: Seq,
    /// Targets accepted.
    pub accepted: u32,
    /// Refused ordinals, ascending, each with its reason.
    pub refused: Vec<(u32, Refusal)>,
    /// When.
    pub accepted_at: Millis,
    /// Until when.
    pub expires_at: Millis,
    /// Whether this id had been accepted before.
    pub repeated: bool,
}

/// A message was taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revoked {
    /// The place of that in the journal. Doing it again names the same one.
    pub seq: Seq,
    /// Entries that were pending, and ended.
    pub ended: u32,
}

/// A device that says Hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its key.
    pub key: DeviceKey,
    /// Its app.
    pub app: AppKey,
    /// Its id.
    pub device_id: Arc<str>,
    /// What the receipt log says of it.
    pub attributes: Attributes,
    /// The push switch, if it said.
    pub push_on: Option<bool>,
    /// Where it came from.
    pub client_ip: std::net::IpAddr,
    /// The app was reinstalled: what was accepted before ends, and the account goes.
    pub state_lost: bool,
}
