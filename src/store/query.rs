//! What the store is asked as of a sequence, and its answers.

use std::sync::Arc;

use crate::binding::Bindings;
use crate::ids::{AppKey, DeviceKey, MessageId, Seq};
use crate::push::{Attributes, Counts, Failure, Millis, Refusal, TargetState};

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

impl DayStats {
    /// Whether nothing happened on it.
    pub fn is_empty(&self) -> bool {
        let Self { day: _, counts, registered, active } = self;
        *counts == Counts::default() && (*registered, *active) == (0, 0)
    }
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
