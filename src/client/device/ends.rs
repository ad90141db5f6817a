//! How a session ends, as the edge says it, and what follows.

use crate::push::Millis;
use crate::wire::pb::device::{Error, ErrorCode, GoAway, GoAwayReason};

/// How a session, or an attempt at one, ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// No connection, or it broke, or the edge closed it.
    Broken,
    /// No Welcome, or no Pong, in time.
    Silent,
    /// The edge sent an Error.
    Refused {
        /// Says what to do next.
        code: ErrorCode,
        /// Not before this delay.
        retry_after: Millis,
    },
    /// A newer session of this device took its place.
    Replaced,
    /// The edge asked to come back later, or elsewhere.
    Away {
        /// Not before this delay.
        delay: Millis,
        /// Where to; `None`: the same address.
        address: Option<String>,
    },
}

/// What follows an end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Connect again after so many milliseconds, to this address if one is given.
    Again {
        /// The wait.
        wait: Millis,
        /// Where to; `None`: the same address.
        address: Option<String>,
    },
    /// Stop until the app restarts.
    Stop,
}

pub(super) fn go_away(away: GoAway) -> End {
    match away.reason() {
        GoAwayReason::Replaced => End::Replaced,
        _ => End::Away {
            delay: away.delay_milliseconds.into(),
            address: (!away.address.is_empty()).then_some(away.address),
        },
    }
}

pub(super) fn refused(error: &Error) -> End {
    // A code of a newer edge is one that this device doesn't know: retry with backoff.
    let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Unspecified);
    End::Refused { code, retry_after: error.retry_after_milliseconds.into() }
}
