//! Damage: a batch whose record can't be read has lost its body and the list of its targets. Its entries are looked for in
//! all lists, part by part, and end as `storage`.
//!
//! A batch whose record is damaged at a start, and which no checkpoint has, is in no list at all; but the tables may have counted it, and its
//! push record would count it as pending for ever. So after a start that found damage each push record is compared with the live batches of its
//! message, and what it counts beyond them ends as `storage`: in the sums, and by a record of its own that the router reads. It names the
//! message and how many; which batch and which ordinals stood in what is lost, and which devices is what the push record answers. The other way
//! round, an end that is lost and counted already, the entry is in its list again: the device gets it once more, and the sums stay.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;

use super::apply::Together;
use super::expiry::RETRY_MS;
use super::replay::Replay;
use super::tables::part_with;
use super::{Engine, StoreFailure};
use crate::ids::{BatchId, Seq};
use crate::push::{Failure, MassOutcome, Millis, Ordinals};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::journal::Recovery;
use crate::store::part::{Part, Spread};
use crate::store::part_messages::End;
use crate::store::push_record::{MessageKey, Numbers, bitmap_bytes};
use crate::store::record::{self, MassRecord, Target};
use crate::store::stats::StoreStats;

/// One pass over all lists, for all batches that were found damaged before it began.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    batches: HashMap<Seq, (Arc<Batch>, Vec<Target>), Spread>,
    next_part: usize,
}

/// Push records looked at in one slice: each may be a read from the tables.
const SLICE_RECORDS: usize = 256;

/// What a start that found damage has to end: first what batches count and no list has, then, in one pass over the push records, what they
/// count as pending and no batch has. See the module.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Sequences of lost records that no stream was told of.
    untold: Vec<(Seq, Seq)>,
    /// Batches, and how many of their entries are in no list.
    missing: Vec<(Arc<Batch>, u32)>,
    next_part: usize,
    /// Of the part before.
    keys: VecDeque<MessageKey>,
    /// The disk had no room: not before this time again.
    retry_at: Millis,
    /// The journal became larger than it may be, for what has to be said.
    extended: bool,
}

impl Replay<'_> {
    /// What has to be done about what is lost, if anything is damaged.
    pub(super) fn lost(&self, recovery: &Recovery) -> Option<Lost> {
        if recovery.corrupt.is_empty() && self.left_out() == 0 {
            return None;
        }
        let ranges = recovery.corrupt.iter().filter_map(|damage| damage.lost);
        // What the checkpoint covers is in it.
        let lost: Vec<_> = ranges
            .filter(|(_, last)| *last > self.covers)
            .map(|(first, last)| (first.max(Seq(self.covers.0 + 1)), last))
            .collect();
        let is_told = |(first, last): &(Seq, Seq)| {
            self.told_lost.iter().any(|told| told.0 <= *first && *last <= told.1)
        };
        self.forget_ids(&lost);
        let untold = lost.iter().copied().filter(|range| !is_told(range)).collect();
        Some(Lost { untold, missing: self.reconcile(), ..Lost::default() })
    }

    /// The id of a batch whose record is lost may be known all the same, where its slice of the checkpoint was cut later than that of the entries. A
    /// repeat must not be answered as if they were there.
    fn forget_ids(&self, lost: &[(Seq, Seq)]) {
        let parts = self.loaded.index.len();
        let is_lost = |seq: Seq| lost.iter().any(|(first, last)| (*first..=*last).contains(&seq));
        let live: HashSet<Seq> = (0..parts)
            .flat_map(|part| {
                let part = self.loaded.index.lock(part);
                part.batches.keys().copied().filter(|seq| is_lost(*seq)).collect::<Vec<_>>()
            })
            .collect();
        for part in 0..parts {
            self.loaded.index.lock(part).ids.forget(|seq| is_lost(seq) && !live.contains(&seq));
        }
    }

    /// Makes batches count what lists have: an end that is lost with its record, in one of the two only, would leave them apart. Answers the batches that
    /// count more than there is, and how much; those entries are to end.
    fn reconcile(&self) -> Vec<(Arc<Batch>, u32)> {
        let mut listed: HashMap<Seq, u32, Spread> = HashMap::default();
        for part in 0..self.loaded.index.len() {
            let part = self.loaded.index.lock(part);
            for entry in part.devices.values().flat_map(|device| &device.pending) {
                *listed.entry(entry.batch.seq).or_default() += 1;
            }
        }
        let mut missing = Vec::new();
        for part in 0..self.loaded.index.len() {
            for (seq, batch) in &self.loaded.index.lock(part).batches {
                let there = listed.get(seq).copied().unwrap_or(0);
                let counted = batch.live.load(Ordering::Relaxed);
                if there > counted {
                    batch.live.store(there, Ordering::Relaxed);
                } else if there < counted {
                    missing.push((batch.clone(), counted - there));
                }
            }
        }
        // In an order of their own: a map has none.
        missing.sort_unstable_by_key(|(batch, _)| std::cmp::Reverse(batch.seq));
        missing
    }
}

impl Part {
    /// Messages of which something is pending, by their push records.
    fn counted_pending(&self) -> VecDeque<MessageKey> {
        let pending = |key: &&MessageKey| match self.messages.get(key) {
            Some(record) => record.pending > 0,
            None => self.cold.get(key).is_some_and(|cold| cold.is_pending()),
        };
        self.message_order.iter().filter(pending).copied().collect()
    }

    /// Entries pending of each message, by its batches.
    fn live_by_message(&self) -> HashMap<MessageKey, u64> {
        let mut live = HashMap::new();
        for batch in self.batches.values() {
            *live.entry(batch.home).or_default() += u64::from(batch.live.load(Ordering::Relaxed));
        }
        live
    }
}

impl<D: Disk> Engine<D> {
    /// Looks at some push records after a start that found damage. Answers whether there was anything to do.
    pub(super) fn sweep_lost(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        let Some(mut lost) = self.lost.take() else { return Ok(false) };
        if now < lost.retry_at {
            self.lost = Some(lost);
            return Ok(false);
        }
        if !lost.untold.is_empty() {
            self.tell_lost(now, &mut lost)?;
            self.lost = Some(lost);
            return Ok(true);
        }
        if !lost.missing.is_empty() {
            self.fail_unlisted(now, &mut lost)?;
            self.lost = Some(lost);
            return Ok(true);
        }
        if lost.keys.is_empty() {
            if lost.next_part == self.shared.index.len() {
                return Ok(true);
            }
            lost.keys = self.shared.index.lock(lost.next_part).counted_pending();
            lost.next_part += 1;
            self.lost = Some(lost);
            return Ok(true);
        }
        let live = self.shared.index.lock(lost.next_part - 1).live_by_message();
        for _ in 0..SLICE_RECORDS {
            let Some(&key) = lost.keys.front() else { break };
            if !self.has_room_for_lost(&mut lost, Together::default().mass_bytes())? {
                lost.retry_at = now + RETRY_MS;
                break;
            }
            self.fail_lost(now, key, live.get(&key).copied().unwrap_or(0))?;
            lost.keys.pop_front();
        }
        self.lost = Some(lost);
        Ok(true)
    }

    /// Whether there is room for a record of at most so many bytes. What damage took must be said before the next checkpoint, and without that nothing is
    /// trimmed: a journal at its maximum is given one segment more for it, once a start.
    fn has_room_for_lost(&mut self, lost: &mut Lost, bytes: usize) -> Result<bool, StoreFailure> {
        if !self.has_room(1, bytes) && self.options.max_bytes != 0 && !lost.extended {
            lost.extended = self.journal.add_spare_beyond()?;
        }
        Ok(self.has_room(1, bytes))
    }

    /// Says to every stream which records are lost: who is past their sequences would not learn it, and batches that were accepted there may be gone
    /// without a trace.
    fn tell_lost(&mut self, now: Millis, lost: &mut Lost) -> Result<(), StoreFailure> {
        let count = lost.untold.len().min(SLICE_RECORDS);
        if !self.has_room_for_lost(lost, 16 + 16 * count)? {
            lost.retry_at = now + RETRY_MS;
            return Ok(());
        }
        let told: Vec<_> = lost.untold.drain(..count).collect();
        for (first, last) in &told {
            tracing::error!(%first, %last, "records of the journal are lost; batches accepted there may be, and routers are told so");
        }
        self.scratch.clear();
        record::put_lost(&mut self.scratch, &told);
        let (seq, _) = self.stage(record::LOST)?;
        self.shared.streams.note_lost(seq);
        Ok(())
    }

    /// Some of what batches count and no list has.
    fn fail_unlisted(&mut self, now: Millis, lost: &mut Lost) -> Result<(), StoreFailure> {
        for _ in 0..SLICE_RECORDS {
            if lost.missing.is_empty() {
                break;
            }
            if !self.has_room_for_lost(lost, Together::default().mass_bytes())? {
                lost.retry_at = now + RETRY_MS;
                break;
            }
            let Some((batch, count)) = lost.missing.last() else { break };
            // Whatever ended the whole batch meanwhile has ended these too.
            let count = (*count).min(batch.live.load(Ordering::Relaxed));
            if count > 0 {
                let batch = batch.clone();
                self.fail_missing(now, &batch, count)?;
            }
            lost.missing.pop();
        }
        Ok(())
    }

    /// When the next slice is due.
    pub(super) fn next_lost(&self) -> Option<Millis> {
        self.lost.as_ref().map(|lost| lost.retry_at)
    }

    /// What a push record counts as pending beyond what is live of its message ends.
    fn fail_lost(&mut self, now: Millis, key: MessageKey, live: u64) -> Result<(), StoreFailure> {
        let mass = {
            let part = part_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, key)?;
            let Some(known) = part.messages.get(&key) else { return Ok(()) };
            let count = known.pending.saturating_sub(live);
            MassOutcome {
                app: known.app.clone(),
                message: known.message,
                batch: BatchId::lost(),
                reason: Failure::Storage,
                event_time: now,
                ordinals: Ordinals::default(),
                count: u32::try_from(count).unwrap_or(u32::MAX),
                job_key: known.job_key.clone(),
            }
        };
        if mass.count == 0 {
            return Ok(());
        }
        tracing::error!(
            app = %mass.app, message = %mass.message, count = mass.count,
            "the record of a batch is damaged; what was pending of it ends as storage"
        );
        StoreStats::add(&self.shared.stats.damaged, u64::from(mass.count));
        let nobody = RoaringBitmap::new();
        let record = MassRecord { mass, batch: Seq(0), numbers: bitmap_bytes(&nobody) };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        let (seq, _) = self.stage(record::MASS)?;
        let MassOutcome { app, count, .. } = &record.mass;
        self.shared.streams.note_event(app.as_str(), seq);
        let (outcome, numbers) = (Err(Failure::Storage), Numbers::Many(&nobody));
        let end = End { app, at: now, outcome, count: *count, numbers };
        self.shared.index.of_message(key).count_end(key, &end, &mut self.ledger);
        Ok(())
    }

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
            for (key, device) in part.devices.iter() {
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
            let together: Together = found.iter().map(|target| target.ordinal).collect();
            if !self.has_room(2, together.mass_bytes()) {
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
