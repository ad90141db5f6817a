//! What the streams say of messages: receipts, the same end for many, and what is missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Attributes, Failure, Millis, Ordinals};
use crate::binding::{DeviceChange, DeviceEvent};
use crate::ids::{AppKey, BatchId, MessageId, Seq};

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

/// A receipt whose parts stand elsewhere: in its record, or in the index.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ReceiptRef<'a> {
    /// [`Receipt::kind`].
    pub kind: ReceiptKind,
    /// [`Receipt::outcome`].
    pub outcome: Option<Result<(), Failure>>,
    /// [`Receipt::app`].
    pub app: &'a str,
    /// [`Receipt::message`].
    pub message: MessageId,
    /// [`Receipt::target`].
    pub target: Option<(&'a str, u32)>,
    /// [`Receipt::device_id`].
    pub device_id: &'a str,
    /// [`Receipt::event_time`].
    pub event_time: Millis,
    /// [`Receipt::raw_event_time`].
    pub raw_event_time: Millis,
    /// [`Receipt::sent_at`].
    pub sent_at: Millis,
    /// [`Receipt::channel`].
    pub channel: Channel,
    /// [`Receipt::last_active`].
    pub last_active: Millis,
    /// [`Receipt::client_ip`].
    pub client_ip: Option<std::net::IpAddr>,
    /// [`Receipt::attributes`], see [`Attributes::parts`].
    pub attributes: [&'a [u8]; 3],
    /// [`Receipt::job_key`].
    pub job_key: &'a str,
    /// [`Receipt::after`].
    pub after: Option<Failure>,
    /// [`Receipt::late`].
    pub late: bool,
    /// [`Receipt::unmatched`].
    pub unmatched: bool,
    /// [`Receipt::implied`].
    pub implied: bool,
}

impl ReceiptRef<'_> {
    /// The same on its own. `None`: its names are none.
    pub fn to_receipt(&self) -> Option<Receipt> {
        let target = match self.target {
            Some((batch, ordinal)) => Some((BatchId::parse(batch)?, ordinal)),
            None => None,
        };
        Some(Receipt {
            kind: self.kind,
            outcome: self.outcome,
            app: AppKey::parse(self.app)?,
            message: self.message,
            target,
            device_id: self.device_id.into(),
            event_time: self.event_time,
            raw_event_time: self.raw_event_time,
            sent_at: self.sent_at,
            channel: self.channel,
            last_active: self.last_active,
            client_ip: self.client_ip,
            attributes: Attributes::whole(self.attributes.concat().into()),
            job_key: self.job_key.into(),
            after: self.after,
            late: self.late,
            unmatched: self.unmatched,
            implied: self.implied,
        })
    }
}

impl Receipt {
    /// Its parts where they are.
    pub fn borrowed(&self) -> ReceiptRef<'_> {
        ReceiptRef {
            kind: self.kind,
            outcome: self.outcome,
            app: self.app.as_str(),
            message: self.message,
            target: self.target.as_ref().map(|(batch, ordinal)| (batch.as_str(), *ordinal)),
            device_id: &self.device_id,
            event_time: self.event_time,
            raw_event_time: self.raw_event_time,
            sent_at: self.sent_at,
            channel: self.channel,
            last_active: self.last_active,
            client_ip: self.client_ip,
            attributes: self.attributes.parts(),
            job_key: &self.job_key,
            after: self.after,
            late: self.late,
            unmatched: self.unmatched,
            implied: self.implied,
        }
    }

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
    /// Whose.
    pub ordinals: Ordinals,
    /// How many. More, with reason `storage`, where what told the ordinals is damaged.
    pub count: u32,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
}

/// Stands in a gap for what could not be read: some events, or none.
pub const UNREADABLE: &str = "unreadable";

/// Events of a stream that went because nobody read it up to its hard bound, or that can't be read.
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

    /// What lay in this range can't be read: some events, or none.
    pub fn unreadable(first: Seq, last: Seq) -> Self {
        let mut gap = Self::new(first, last);
        gap.count(UNREADABLE, 1);
        gap
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
