//! Figures of the store that metrics export: written on its own threads, read from anywhere.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Figures of the store. Totals since the start, unless they say "now".
        #[derive(Debug, Default)]
        pub struct StoreStats { $($(#[$doc])* pub $name: AtomicU64,)* }

        impl StoreStats {
            /// Every figure under its name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

figures! {
    /// Commit groups that were synced.
    commits,
    /// Microseconds spent in them, writing and syncing.
    commit_micros,
    /// Microseconds of the slowest.
    commit_micros_max,
    /// Bytes committed.
    commit_bytes,
    /// Batches accepted.
    batches,
    /// Batches answered again.
    repeats,
    /// Batches rejected.
    rejected,
    /// Entries pending now.
    pending,
    /// Devices known now.
    devices,
    /// Push records now.
    messages,
    /// Live batches now.
    live_batches,
    /// Journal bytes of live batches now.
    live_bytes,
    /// Bytes of the journal's files now.
    journal_bytes,
    /// Room before the reserve now, in bytes.
    room_bytes,
    /// 1 while batches are refused because the disk is full.
    disk_full,
    /// Bodies read back.
    body_reads,
    /// Bytes of bodies in memory now.
    body_bytes,
    /// Batches whose record couldn't be read, rows of devices, places that readers of streams passed over, and records or entries that a
    /// recovery had to leave out.
    damaged,
    /// Receipts that matched nothing and were over the rate.
    unmatched_dropped,
    /// Acks that couldn't be made durable, as the disk was full.
    acks_dropped,
    /// Checkpoints finished.
    checkpoints,
    /// Checkpoints given up.
    checkpoints_failed,
    /// Transactions of the tables.
    table_writes,
    /// Push records read back from the tables.
    table_reads,
    /// Rows of devices in memory now.
    device_rows,
    /// Bytes of them now, about.
    device_row_bytes,
    /// Rows of devices read from the tables.
    device_row_reads,
    /// Bytes copied to the head so that old segments could go.
    copied_bytes,
    /// Segments removed.
    segments_removed,
    /// Events of streams dropped at their hard bound.
    gap_events,
    /// Batch ids forgotten before, as created: milliseconds since 1970.
    oldest_created_at,
}

impl StoreStats {
    pub(super) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    pub(super) fn set(gauge: &AtomicU64, value: u64) {
        gauge.store(value, Ordering::Relaxed);
    }
}
