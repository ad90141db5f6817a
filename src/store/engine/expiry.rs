//! What ends when its time comes: all that is pending of a batch at once.

use std::ops::Bound;
use std::sync::Arc;

use super::acks::receipt_bytes;
use super::ends::Got;
use super::{Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::DeviceKey;
use crate::push::{Failure, Millis};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::journal::ReadError;
use crate::store::part::{Device, Entry};
use crate::store::record::{BATCH, BatchRecord, COPY, Target};

/// Targets looked at in one slice, whether anything of them is left or not: about a millisecond. A single larger batch is a slice of its own: its end
/// is one record.
const SLICE_TARGETS: usize = 1_024;
/// Batches looked at in one slice.
const SLICE_BATCHES: usize = 1_024;
/// How long to wait for room on a full disk.
pub(super) const RETRY_MS: Millis = 1_000;

/// A pending entry as its end needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) target: Target,
    pub(super) written: bool,
    /// Written and not reported as sent: bytes of the receipt that would say so, at most. Else 0.
    pub(super) receipt_bytes: usize,
}

impl Live {
    /// An entry of this device.
    pub(super) fn of(key: DeviceKey, device: &Device, entry: &Entry) -> Self {
        let written = entry.written_at().is_some();
        let receipt_bytes =
            if written && !entry.sent_reported() { receipt_bytes(device.attributes_len()) } else { 0 };
        let target = Target { ordinal: entry.ordinal, key, number: device.number };
        Self { target, written, receipt_bytes }
    }
}

impl<D: Disk> Engine<D> {
    /// Ends what is due, one slice. Answers whether there was anything.
    pub(super) fn expire(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if now < self.expiry_retry_at {
            return Ok(false);
        }
        let (mut targets, mut batches) = (0, 0);
        // What can't be read for now is passed over.
        let mut passed = Bound::Unbounded;
        while targets < SLICE_TARGETS && batches < SLICE_BATCHES {
            let Some(&due) = self.expiry.range((passed, Bound::Unbounded)).next() else { break };
            let (at, seq, home) = due;
            let late_ms = if fault::is(Fault::ExpireLate) { 5_000 } else { 0 };
            if at + late_ms > now {
                break;
            }
            batches += 1;
            let Some(batch) = self.live_batch(seq, home) else {
                self.expiry.remove(&due);
                continue;
            };
            let (looked_at, live) = match self.live_targets(&batch) {
                Ok(found) => found,
                Err(error) if batch.is_given_up(&error, now) => {
                    self.expiry.remove(&due);
                    self.found_damaged(&batch);
                    continue;
                }
                Err(_) => {
                    passed = Bound::Excluded(due);
                    self.expiry_retry_at = now + RETRY_MS;
                    continue;
                }
            };
            targets += looked_at;
            if !self.end_expired(now, &batch, &live)? {
                self.expiry_retry_at = now + RETRY_MS;
                break;
            }
        }
        Ok(batches > 0)
    }

    /// When something is due.
    pub(super) fn next_expiry(&self) -> Option<Millis> {
        self.expiry.first().map(|&(at, ..)| at.max(self.expiry_retry_at))
    }

    /// What is pending of a batch, ascending by ordinal, and of how many targets in its record: each of them is looked for, so that little of a
    /// large batch takes as long as all of it. Reads the record, unless the batch has a single target.
    pub(super) fn live_targets(&self, batch: &Arc<Batch>) -> Result<(usize, Vec<Live>), ReadError> {
        let index = &self.shared.index;
        let live = |key, expected: Option<u32>| {
            let part = index.of_device(&key);
            let device = part.devices.get(&key)?;
            let entry = device.pending.iter().find(|entry| entry.batch.seq == batch.seq)?;
            let right = expected.is_none_or(|ordinal| ordinal == entry.ordinal);
            right.then_some(Live::of(key, device, entry))
        };
        if let Some(key) = batch.only {
            return Ok((1, live(key, None).into_iter().collect()));
        }
        let (_, kind, payload) = self.shared.reader.read(batch.place())?;
        let damaged = || ReadError::Damaged(batch.place());
        let record = BatchRecord::decode(&payload).map_err(|_| damaged())?;
        if !matches!(kind, BATCH | COPY) || record.seq != batch.seq {
            return Err(damaged());
        }
        batch.was_read();
        let targets = record.targets().map_err(|_| damaged())?;
        let left = targets.iter().filter_map(|target| live(target.key, Some(target.ordinal))).collect();
        // A record without targets was read as well.
        Ok((targets.len().max(1), left))
    }

    /// Ends these entries of an expired batch. `false`: there is no room for the records.
    fn end_expired(&mut self, now: Millis, batch: &Arc<Batch>, live: &[Live]) -> Result<bool, StoreFailure> {
        let reason = |live: &Live| {
            // After a recovery nobody knows who got it; it had been accepted for who was connected.
            match (batch.online_only, batch.recovered || live.written) {
                (false, _) => Failure::Expired,
                (true, true) => Failure::Unacknowledged,
                (true, false) => Failure::Offline,
            }
        };
        Ok(self.end_live(now, batch, live, reason)? != Got::NoRoom)
    }
}
