//! Why a device's connection ends: each reason with the code that the device gets, a metric label, and what it means.

use crate::wire::frame::FrameError;
use crate::wire::pb::device::ErrorCode;

/// Why a device's connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum DeviceError {
    /// Bytes that are no frame, or a frame whose content can't be.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// A frame over the limit.
    #[error("frame over the limit")]
    FrameTooLarge,
    /// The first frame isn't Hello, or Hello came twice.
    #[error("Hello is expected first, and once")]
    HelloExpected,
    /// Wrong or revoked credential, unknown app, foreign package: the device never learns which.
    #[error("unauthenticated")]
    Unauthenticated,
    /// The app takes no registrations here.
    #[error("this app doesn't register here")]
    RegistrationClosed,
    /// No Hello in time.
    #[error("no Hello before the deadline")]
    Deadline,
    /// It had not said Hello, and its place was needed for another.
    #[error("no Hello, and its place was needed for another")]
    Evicted,
    /// A maximum of the edge is reached.
    #[error("at a limit; come back later")]
    Exhausted,
    /// So many sessions over TCP as the edge has descriptors for.
    #[error("no descriptor for another session over TCP (LimitNOFILE); come back later")]
    NoDescriptor,
    /// The memory of the edge is used up.
    #[error("the memory of this edge is used up; come back later")]
    NoMemory,
    /// A rate or maximum of the app is reached.
    #[error("this app is at a limit; come back later")]
    Limited {
        /// When.
        retry_after_ms: u32,
    },
    /// The edge is leaving, or its journal can't keep up.
    #[error("unavailable; come back later")]
    Unavailable,
    /// Asked for something that this edge doesn't do.
    #[error("not implemented by this edge")]
    Unimplemented,
    /// A frame was begun and not ended in time.
    #[error("a frame was not ended before its deadline")]
    Unfinished,
    /// Too much is held for frames that were begun and not ended; this one was among the oldest.
    #[error("a frame was not ended, and its room was needed")]
    Crowded,
    /// What was sent is not answered any more.
    #[error("the device does not answer what is sent to it")]
    Unreachable,
    /// Nothing was read for longer than the heartbeat allows.
    #[error("silent for too long")]
    Silent,
    /// A newer session of the device took its place.
    #[error("replaced by a newer session")]
    Replaced,
    /// The edge leaves.
    #[error("the edge is leaving")]
    Leaving,
    /// The device closed, or the connection broke.
    #[error("closed by the peer")]
    Closed,
    /// Its outbox stood still for too long, or until something in it had expired.
    #[error("nothing could be written for too long: the device does not read")]
    Stalled,
    /// TLS failed: no common version, a broken record, an alert.
    #[error("TLS failed")]
    Tls,
}

impl DeviceError {
    /// The code for the device, and milliseconds after which it may come back; `None`: nothing is sent.
    pub fn code(self) -> Option<(ErrorCode, u32)> {
        Some(match self {
            Self::Malformed(_) => (ErrorCode::Malformed, 0),
            Self::FrameTooLarge => (ErrorCode::FrameTooLarge, 0),
            Self::HelloExpected => (ErrorCode::HelloExpected, 0),
            Self::Unauthenticated => (ErrorCode::Unauthenticated, 0),
            Self::RegistrationClosed => (ErrorCode::RegistrationClosed, 0),
            Self::Deadline | Self::Unfinished => (ErrorCode::Deadline, 0),
            Self::Evicted | Self::Crowded => (ErrorCode::ResourceExhausted, 1_000),
            Self::Exhausted | Self::NoDescriptor | Self::NoMemory => (ErrorCode::ResourceExhausted, 5_000),
            Self::Limited { retry_after_ms } => (ErrorCode::ResourceExhausted, retry_after_ms),
            Self::Unavailable => (ErrorCode::Unavailable, 2_000),
            Self::Unimplemented => (ErrorCode::Unimplemented, 0),
            Self::Silent
            | Self::Replaced
            | Self::Leaving
            | Self::Closed
            | Self::Stalled
            | Self::Unreachable
            | Self::Tls => return None,
        })
    }
}

impl From<FrameError> for DeviceError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLarge { .. } => Self::FrameTooLarge,
            FrameError::Malformed => Self::Malformed("no frame"),
        }
    }
}
