//! A batch as it lives in memory: what sessions need of it, shared by every entry that points to it.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, RwLock};

use crate::ids::{AppKey, BatchId, MessageId, Seq};
use crate::push::Millis;

/// One accepted batch with live entries.
#[derive(Debug)]
pub struct Batch {
    /// Its place in the one sequence: the order of delivery.
    pub seq: Seq,
    /// The app.
    pub app: AppKey,
    /// The message.
    pub message: MessageId,
    /// The router's name for it.
    pub id: BatchId,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
    /// When it was accepted.
    pub accepted_at: Millis,
    /// No delivery at or after this time.
    pub expires_at: Millis,
    /// Retention 0.
    pub online_only: bool,
    /// It was pending at a recovery: everything goes out as redelivered.
    pub recovered: bool,
    /// Where its newest whole record is in the journal (segment, offset), packed; changed when the record is copied.
    pub(super) place: AtomicU64,
    /// Entries still pending.
    pub(super) live: AtomicU32,
    /// The encoded push, while it is in memory.
    pub(super) body: RwLock<Option<Arc<[u8]>>>,
}
