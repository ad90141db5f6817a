//! What an operator sees of the store and changes about it while it runs.

use std::sync::Arc;

use super::StreamBounds;
use crate::ids::Seq;
use crate::push::{Millis, RateChange, ReceiptGap};

/// What an operator changes about an app.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppChange {
    /// New pushes are refused.
    Suspend,
    /// New pushes are taken again.
    Resume,
    /// Its rates.
    Rates(RateChange),
}

/// A stream for an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamState {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the configuration names it; if not, it waits to be retired.
    pub configured: bool,
    /// Where it stands.
    pub bounds: StreamBounds,
    /// Whether there is something behind the cursor.
    pub unread: bool,
    /// Since when there is, without the cursor having moved; about.
    pub unread_since: Option<Millis>,
    /// Bytes of the journal that it holds back.
    pub pinned_bytes: u64,
    /// At its soft bound: batches of its apps are refused.
    pub full: bool,
    /// What its reader will find missing.
    pub gaps: Vec<ReceiptGap>,
}

/// A stream was retired, or what was unread of it dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    /// As of this sequence.
    pub sequence: Seq,
    /// Whether it is no more. If not, the configuration names it: it goes on.
    pub ended: bool,
}

/// Why a stream isn't retired.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RetireError {
    /// There is none of this name.
    #[error("no such stream")]
    Unknown,
    /// Apps map to it.
    #[error("the configuration names this stream")]
    Configured,
    /// Another one is being dropped.
    #[error("another stream is being dropped")]
    Busy,
    /// The disk has no room for the record.
    #[error("the disk is full")]
    Full,
}
