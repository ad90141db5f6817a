//! The closed lists of why: a target is not accepted, an accepted one ended without arriving, a batch is not taken. What to do about each is
//! [`crate::account`]'s.

use super::Millis;

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
    /// Created so many milliseconds after the edge's time: more than a router's clock may be ahead.
    Ahead(Millis),
}
