//! The words of the domain as types: what a push is inside the edge, and what can become of it. Wire formats stop at [`crate::wire`].

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::binding::{DeviceChange, DeviceEvent};
use crate::ids::{AccountDigest, AppKey, BatchId, DeviceKey, MessageId, Seq};

mod apps;

pub use apps::{AppControl, RateChange, RateOverrides, Rates};

/// Milliseconds since 1970-01-01 UTC in edge time, which never goes back.
pub type Millis = u64;

/// Why a target is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// Never seen here.
    DeviceUnknown = 1,
    /// The push switch is off.
    PushDisabled = 2,
    /// Not connected, under the offline policy `return`.
    Offline = 3,
    /// The device has its maximum pending.
    OverQuota = 4,
    /// The device still has this message pending, or stands twice in the batch.
    Duplicate = 5,
}

/// Why an accepted target ended without arriving.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Failure {
    /// Its time passed.
    Expired = 1,
    /// Retention 0: was not connected.
    Offline = 2,
    /// Retention 0: connected, but no arrive within the online window.
    Unacknowledged = 3,
    /// The app drops the oldest.
    OverQuota = 4,
    /// Taken back.
    Revoked = 5,
    /// By a newer message with its collapse key.
    Replaced = 6,
    /// Switched off after acceptance.
    PushDisabled = 7,
    /// The device was unseen for too long.
    Forgotten = 8,
    /// The account it was resolved from is bound no more.
    Unbound = 9,
    /// The app was reinstalled.
    Reinstalled = 10,
    /// Its record was found damaged.
    Storage = 11,
}

impl Failure {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Expired,
        Self::Offline,
        Self::Unacknowledged,
        Self::OverQuota,
        Self::Revoked,
        Self::Replaced,
        Self::PushDisabled,
        Self::Forgotten,
        Self::Unbound,
        Self::Reinstalled,
        Self::Storage,
    ];

    /// The word for it in labels and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Offline => "offline",
            Self::Unacknowledged => "unacknowledged",
            Self::OverQuota => "over_quota",
            Self::Revoked => "revoked",
            Self::Replaced => "replaced",
            Self::PushDisabled => "push_disabled",
            Self::Forgotten => "forgotten",
            Self::Unbound => "unbound",
            Self::Reinstalled => "reinstalled",
            Self::Storage => "storage",
        }
    }

    /// The reason with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

impl Refusal {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::DeviceUnknown, Self::PushDisabled, Self::Offline, Self::OverQuota, Self::Duplicate];

    /// The word for it in labels and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::DeviceUnknown => "device_unknown",
            Self::PushDisabled => "push_disabled",
            Self::Offline => "offline",
            Self::OverQuota => "over_quota",
            Self::Duplicate => "duplicate",
        }
    }

    /// The reason with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// What became of a message on a device. There is no other state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TargetState {
    /// No batch of the message named it.
    #[default]
    NotATarget,
    /// It was named, and not accepted.
    Refused(Refusal),
    /// Accepted, and not ended.
    Pending,
    /// It has the message.
    Arrived,
    /// Ended without arriving.
    Failed(Failure),
}

impl TargetState {
    /// The word for it in JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotATarget => "not_a_target",
            Self::Refused(_) => "refused",
            Self::Pending => "pending",
            Self::Arrived => "arrived",
            Self::Failed(_) => "failed",
        }
    }

    /// Whether it was accepted.
    pub fn is_accepted(self) -> bool {
        matches!(self, Self::Pending | Self::Arrived | Self::Failed(_))
    }
}

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
    /// The devices; a target's position is its ordinal. 1 to `limits::BATCH_TARGETS`.
    pub targets: Vec<DeviceKey>,
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
    /// By ordinal: the account that the target was resolved from, if any. Empty: none has one.
    pub accounts: Vec<Option<AccountDigest>>,
}

/// The answer to an accepted batch; a repeat gets the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Accepted {
    /// Its place in the journal: the order of delivery.
    pub seq: Seq,
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

/// Why a batch that passed the stateless checks is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejection {
    /// The id was used with other content.
    BatchConflict,
    /// The message id was used with another body.
    MessageConflict,
    /// Created before batch ids are remembered.
    TooOld,
    /// It expired while it waited.
    Expired,
    /// A maximum is reached (pending entries, messages, the queue to the journal).
    Exhausted,
    /// The disk is full, or the store is leaving.
    Unavailable,
    /// The stream that would report this app's outcomes is at its soft bound: nobody reads it.
    StreamFull,
    /// An operator suspended the app.
    Suspended,
}

/// The checked attributes of a device: an encoded `device.v1.Attributes` without request id and push state, within limits.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attributes(pub Arc<[u8]>);

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

/// Which way a message went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Channel {
    /// Not written, or not known.
    Unknown = 0,
    /// Written live.
    Online = 1,
    /// Drained after waiting.
    Offline = 2,
}

/// What a receipt says happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ReceiptKind {
    /// Written, but no arrive within the deadline.
    Sent = 1,
    /// Ended without arriving.
    SentFail = 2,
    /// Acknowledged.
    Arrive = 3,
    /// Tapped.
    Click = 4,
    /// Dismissed.
    Clean = 5,
}

impl ReceiptKind {
    /// The word for it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::SentFail => "sent_fail",
            Self::Arrive => "arrive",
            Self::Click => "click",
            Self::Clean => "clean",
        }
    }
}

/// One receipt, self-contained; if it carries an outcome, both are one journal record.
#[derive(Clone, PartialEq, Debug)]
pub struct Receipt {
    /// What happened.
    pub kind: ReceiptKind,
    /// `Some(Ok)`: arrived, `Some(Err)`: failed; the target's one terminal outcome.
    pub outcome: Option<Result<(), Failure>>,
    /// The app.
    pub app: AppKey,
    /// The message.
    pub message: MessageId,
    /// The batch and ordinal, if the entry was still pending.
    pub target: Option<(BatchId, u32)>,
    /// The device.
    pub device_id: Arc<str>,
    /// Clamped to [accepted, now].
    pub event_time: Millis,
    /// As the device said.
    pub raw_event_time: Millis,
    /// First written. 0: reported before, or forgotten in a crash. An arrive stands for `sent` in any case.
    pub sent_at: Millis,
    /// Which way it went.
    pub channel: Channel,
    /// The device's last connection before the event.
    pub last_active: Millis,
    /// Where it came from.
    pub client_ip: Option<std::net::IpAddr>,
    /// As of the event.
    pub attributes: Attributes,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
    /// Late: the target had already ended, with this reason.
    pub after: Option<Failure>,
    /// Counted as late, in no outcome.
    pub late: bool,
    /// No push record matches.
    pub unmatched: bool,
    /// An arrive implied by a click or clean.
    pub implied: bool,
}

impl Receipt {
    /// Whether it stands for `sent` too: what arrived was sent, also when a crash made the edge forget the time; and an end that says when the
    /// message was written says that it was.
    pub fn says_sent(&self) -> bool {
        match self.kind {
            ReceiptKind::Sent | ReceiptKind::Arrive => !self.unmatched,
            ReceiptKind::SentFail => self.sent_at > 0,
            ReceiptKind::Click | ReceiptKind::Clean => false,
        }
    }
}

/// The same end for many targets of one batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MassOutcome {
    /// The app.
    pub app: AppKey,
    /// The message.
    pub message: MessageId,
    /// The batch; [`BatchId::lost`]: its record is damaged, so that nobody knows which it was.
    pub batch: BatchId,
    /// The reason.
    pub reason: Failure,
    /// When.
    pub event_time: Millis,
    /// Bit `i % 8` of byte `i / 8` stands for ordinal `i`.
    pub ordinals: Vec<u8>,
    /// Bits set. More, with reason `storage`, where what told the ordinals is damaged.
    pub count: u32,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
}

/// Events of a stream that went because nobody read it up to its hard bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceiptGap {
    /// Everything of the stream from this sequence
    pub first: Seq,
    /// to this one.
    pub last: Seq,
    /// How many events: the sum of `by_event`.
    pub events: u64,
    /// By the word for the event; each target of a mass outcome is one `sent_fail`.
    pub by_event: BTreeMap<String, u64>,
}

impl ReceiptGap {
    /// Of this range, with nothing in it yet.
    pub fn new(first: Seq, last: Seq) -> Self {
        Self { first, last, events: 0, by_event: BTreeMap::new() }
    }

    /// Counts events.
    pub fn count(&mut self, event: &str, count: u64) {
        self.events += count;
        *self.by_event.entry(event.to_owned()).or_default() += count;
    }
}

/// One event of a stream.
#[derive(Clone, PartialEq, Debug)]
pub enum StreamEvent {
    /// A receipt, perhaps with an outcome.
    Receipt(Box<Receipt>),
    /// Many outcomes.
    Mass(Box<MassOutcome>),
    /// What happened to a device.
    Device(Box<DeviceEvent>),
    /// What is missing here.
    Gap(Box<ReceiptGap>),
}

impl StreamEvent {
    /// The word for it in a [`ReceiptGap`], and how often it counts.
    pub fn counted(&self) -> (&'static str, u64) {
        match self {
            Self::Receipt(receipt) => (receipt.kind.label(), 1),
            Self::Mass(mass) => (ReceiptKind::SentFail.label(), u64::from(mass.count)),
            Self::Gap(gap) => ("gap", gap.events),
            Self::Device(event) => (DeviceChange::LABELS[event.change.index()], 1),
        }
    }
}

/// Counts of one message, or of all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Batches.
    pub batches: u64,
    /// Targets named.
    pub targets: u64,
    /// Refused by reason, indexed by `Refusal as usize - 1`.
    pub refused: [u64; 5],
    /// Accepted.
    pub accepted: u64,
    /// Arrived.
    pub arrived: u64,
    /// Failed by reason, indexed by `Failure as usize - 1`.
    pub failed: [u64; 11],
    /// Still pending.
    pub pending: u64,
    /// Receipts: distinct (message, device) written to a connection, as far as known.
    pub sent: u64,
    /// Receipts: clicks.
    pub clicked: u64,
    /// Receipts: cleans.
    pub cleaned: u64,
    /// Events after the end.
    pub late: u64,
}

impl Counts {
    /// Adds the counts of another message.
    pub fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.targets += other.targets;
        self.accepted += other.accepted;
        self.arrived += other.arrived;
        self.pending += other.pending;
        self.sent += other.sent;
        self.clicked += other.clicked;
        self.cleaned += other.cleaned;
        self.late += other.late;
        for (sum, count) in self.refused.iter_mut().zip(&other.refused) {
            *sum += count;
        }
        for (sum, count) in self.failed.iter_mut().zip(&other.failed) {
            *sum += count;
        }
    }

    /// Whether `accepted = arrived + failed + pending`.
    pub fn identity_holds(&self) -> bool {
        self.accepted == self.arrived + self.failed.iter().sum::<u64>() + self.pending
            && self.targets == self.accepted + self.refused.iter().sum::<u64>()
    }
}
