//! Damage: a batch whose record can't be read has lost its body and the list of its targets. Its entries are looked for in
//! all lists, part by part, and end as `storage`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Engine, StoreFailure};
use crate::ids::Seq;
use crate::push::{Failure, Millis};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::part::Spread;
use crate::store::record::Target;
use crate::store::stats::StoreStats;

/// One pass over all lists, for all batches that were found damaged before it began.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    batches: HashMap<Seq, (Arc<Batch>, Vec<Target>), Spread>,
    next_part: usize,
}

impl<D: Disk> Engine<D> {
    /// This batch's record can't be read.
    pub fn found_damaged(&mut self, batch: &Arc<Batch>) {
        if batch.damaged.swap(true, Ordering::Relaxed) || !batch.is_live() {
            return;
        }
        StoreStats::add(&self.shared.stats.damaged, 1);
        tracing::error!(
            app = %batch.app, message = %batch.message, sequence = %batch.seq,
            "the record of a batch can't be read; what is pending of it ends as storage"
        );
        // A sweep that has begun may have passed its entries.
        if self.damaged.back().is_none_or(|sweep| sweep.next_part > 0) {
            self.damaged.push_back(Sweep::default());
        }
        if let Some(sweep) = self.damaged.back_mut() {
            sweep.batches.insert(batch.seq, (batch.clone(), Vec::new()));
        }
    }

    /// One part of a sweep; at its end the entries end. Answers whether there was anything to do.
    pub(super) fn sweep_damaged(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        let Some(sweep) = self.damaged.front_mut() else { return Ok(false) };
        if sweep.next_part < self.shared.index.len() {
            let part = self.shared.index.lock(sweep.next_part);
            for (key, device) in &part.devices {
                for entry in &device.pending {
                    if let Some((_, found)) = sweep.batches.get_mut(&entry.batch.seq) {
                        found.push(Target { ordinal: entry.ordinal, key: *key, number: device.number });
                    }
                }
            }
            sweep.next_part += 1;
            return Ok(true);
        }
        let Some(sweep) = self.damaged.pop_front() else { return Ok(false) };
        for (seq, (batch, mut found)) in sweep.batches {
            found.sort_unstable_by_key(|target| target.ordinal);
            // What arrived while the sweep went on has ended already.
            found.retain(|target| {
                let part = self.shared.index.of_device(&target.key);
                let device = part.devices.get(&target.key);
                device.is_some_and(|device| device.pending.iter().any(|entry| entry.batch.seq == seq))
            });
            let highest = found.last().map_or(0, |last| last.ordinal);
            if !self.has_room(2, Self::mass_bytes(found.len(), highest)) {
                // Not now: it is found again when it expires, or when somebody wants its body.
                batch.damaged.store(false, Ordering::Relaxed);
                let home = self.shared.index.part_of_message(batch.home) as u32;
                self.expiry.insert((batch.expires_at, batch.seq, home));
                self.expiry_retry_at = now + super::expiry::RETRY_MS;
                continue;
            }
            if !found.is_empty() {
                self.fail_many(now, &batch, Failure::Storage, &found)?;
            }
            let missing = batch.live.load(Ordering::Relaxed);
            if missing > 0 {
                self.fail_missing(now, &batch, missing)?;
            }
        }
        Ok(true)
    }

    /// Entries that the push record counts and no list has: what ended them was lost with damaged records. They end in the sums.
    pub(super) fn fail_missing(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        missing: u32,
    ) -> Result<(), StoreFailure> {
        StoreStats::add(&self.shared.stats.damaged, u64::from(missing));
        self.fail_counted(now, batch, Failure::Storage, &[], missing)
    }
}
