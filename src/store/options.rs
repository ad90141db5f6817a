//! What an operator may choose about the embedded store.

use std::collections::HashMap;
use std::sync::Arc;

use super::tables::TableKind;
use crate::budget::Budget;
use crate::ids::{AppKey, DigestKey, HistoryId};
use crate::limits;
use crate::push::Millis;

/// Sizes, maxima and streams of the embedded store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Parts of the pending index. An existing checkpoint keeps its own number.
    pub parts: usize,
    /// Bytes of a journal segment.
    pub segment_bytes: u32,
    /// Preallocated segments that batches may not use.
    pub reserve_segments: u32,
    /// The data directory's own salt of every checksum.
    pub salt: u64,
    /// Bytes of the journal's files; 0: as much as the disk has.
    pub max_bytes: u64,
    /// Microseconds that pass from one sync to the next where messages come quicker than syncs: a sync costs more than all that is done for a
    /// message otherwise, and who waits for it then wakes fewer times.
    pub sync_spacing_us: u64,
    /// Journal bytes after which a checkpoint is written.
    pub checkpoint_bytes: u64,
    /// Milliseconds that a batch id is remembered.
    pub batch_window_ms: Millis,
    /// Milliseconds that a batch may be created after the edge's time.
    pub max_clock_skew_ms: Millis,
    /// Batch ids remembered.
    pub max_batch_ids: usize,
    /// Pending entries of a device.
    pub max_pending_per_device: usize,
    /// Pending entries.
    pub max_pending: u64,
    /// Push records.
    pub max_messages: u64,
    /// Milliseconds that a push record is kept after its acceptance; one with pending entries stays.
    pub record_kept_ms: Millis,
    /// Bytes of push records in memory, about; those that have changed stay until they are written.
    pub message_cache_bytes: usize,
    /// Bytes of devices' rows in memory, about; those that have changed stay until they are written.
    pub device_cache_bytes: usize,
    /// Rows of the tables, of push records and devices, that have changed and aren't written; beyond, batches, new devices and changes of devices
    /// are refused.
    pub max_unwritten: usize,
    /// What the tables are made of.
    pub tables: TableKind,
    /// Bytes of the tables' pages in memory.
    pub table_cache_bytes: usize,
    /// Days of statistics begin at midnight so many minutes east of UTC.
    pub utc_offset_minutes: i32,
    /// Known devices.
    pub max_devices: u64,
    /// Bytes of bodies in memory.
    pub body_cache_bytes: usize,
    /// Journal bytes behind a stream's cursor beyond which batches of its apps are refused.
    pub stream_soft_bytes: u64,
    /// Journal bytes behind a stream's cursor beyond which its oldest events go, and a gap takes their place.
    pub stream_hard_bytes: u64,
    /// Receipts a second about messages that nothing is known of; more are dropped.
    pub unmatched_per_second: u32,
    /// Milliseconds unseen after which a device is forgotten; 0: never.
    pub forget_after_ms: Millis,
    /// Makes the digests of accounts: the data directory's own, never changed.
    pub digest_key: DigestKey,
    /// The names of the streams; the first is the one of apps that neither `app_streams` names nor a start before did.
    pub streams: Vec<Arc<str>>,
    /// Which stream an app belongs to.
    pub app_streams: HashMap<AppKey, Arc<str>>,
    /// What one device of an app may have pending, where that isn't [`StoreOptions::max_pending_per_device`] alone.
    pub app_quotas: HashMap<AppKey, Quota>,
    /// Messages taken back that are remembered.
    pub max_recalls: u64,
    /// Bytes of commands that wait.
    pub command_bytes: usize,
    /// Memory, of the whole edge.
    pub budget: Arc<Budget>,
    /// The history that this start begins; `None`: a random one.
    pub history: Option<HistoryId>,
}

/// What one device may have pending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Messages.
    pub max_entries: usize,
    /// Bytes of their encodings; `u64::MAX`: any.
    pub max_bytes: u64,
    /// The oldest end for a newer one, instead of the newest being refused.
    pub drop_oldest: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            parts: limits::INDEX_PARTS,
            segment_bytes: 64 * 1024 * 1024,
            reserve_segments: 2,
            salt: 0,
            max_bytes: 0,
            sync_spacing_us: 300,
            checkpoint_bytes: 512 * 1024 * 1024,
            batch_window_ms: 24 * 3600 * 1000,
            max_clock_skew_ms: 300_000,
            max_batch_ids: 1_000_000,
            max_pending_per_device: 1_000,
            max_pending: 50_000_000,
            max_messages: 5_000_000,
            record_kept_ms: 14 * 24 * 3600 * 1000,
            message_cache_bytes: 256 * 1024 * 1024,
            device_cache_bytes: 512 * 1024 * 1024,
            max_unwritten: 1_000_000,
            tables: TableKind::Library,
            table_cache_bytes: 64 * 1024 * 1024,
            utc_offset_minutes: 8 * 60,
            max_devices: 10_000_000,
            body_cache_bytes: 256 * 1024 * 1024,
            stream_soft_bytes: 8 * 1024 * 1024 * 1024,
            stream_hard_bytes: 16 * 1024 * 1024 * 1024,
            unmatched_per_second: 100,
            forget_after_ms: 90 * 24 * 3600 * 1000,
            digest_key: DigestKey([0; 32]),
            streams: vec!["main".into()],
            app_streams: HashMap::new(),
            app_quotas: HashMap::new(),
            max_recalls: 10_000,
            command_bytes: limits::STORE_COMMAND_BYTES,
            budget: Arc::default(),
            history: None,
        }
    }
}

impl StoreOptions {
    /// What one device of an app may have pending.
    pub(super) fn quota_of(&self, app: &AppKey) -> Quota {
        let default =
            Quota { max_entries: self.max_pending_per_device, max_bytes: u64::MAX, drop_oldest: false };
        self.app_quotas.get(app).copied().unwrap_or(default)
    }

    /// The position of a configured app's stream among [`StoreOptions::streams`]. Of others the store knows which one they had.
    pub(super) fn stream_of(&self, app: &str) -> usize {
        self.app_streams
            .get(app)
            .and_then(|name| self.streams.iter().position(|stream| stream == name))
            .unwrap_or(0)
    }
}
