//! Trimming: the journal loses its oldest segment when both kept checkpoints and every stream are past it. What is still live
//! there is copied to the head first, under its original sequence, by which lists are ordered.
//!
//! A copied batch costs its bytes once more, so segments go only while the journal is much larger than what is live in it, or
//! when the disk has no room for another one. Only what lies at the oldest end is copied: an end (an outcome, say) never goes
//! before what it ends, since that is older.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::expiry::RETRY_MS;
use super::{Effect, Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::Seq;
use crate::push::Millis;
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::journal::{Place, RECORD_OVERHEAD, SegmentState};
use crate::store::push_record::MessageKey;
use crate::store::record::{self, BatchRecord, Target, put_targets};
use crate::store::stats::StoreStats;

/// Bytes of records looked at, and copied, in one slice.
const SLICE_BYTES: usize = 1024 * 1024;

/// The segment that is being emptied.
#[derive(Debug, Default)]
pub(super) struct State {
    scan: Option<Scan>,
    /// Something couldn't be read: not before this time again.
    retry_at: Millis,
}

#[derive(Clone, Copy, Debug)]
struct Scan {
    segment: u32,
    /// Looked at up to here.
    after: Seq,
    /// The segment's last.
    last: Seq,
    position: Option<Place>,
}

impl<D: Disk> Engine<D> {
    /// One slice. Answers whether there was anything to do.
    pub(super) fn trim_slice(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if now < self.trim.retry_at {
            return Ok(false);
        }
        let Some(scan) = self.trim.scan else {
            let segments = self.journal.segments();
            let Some(oldest) = segments.first().filter(|oldest| self.may_go(oldest)) else {
                return Ok(false);
            };
            if !self.live_in.contains_key(&oldest.id) {
                return self.remove_oldest(now);
            }
            if !self.copying_pays(oldest) {
                return Ok(false);
            }
            let after = Seq(oldest.first.0.saturating_sub(1));
            self.trim.scan = Some(Scan { segment: oldest.id, after, last: oldest.last, position: None });
            return Ok(true);
        };
        if !self.live_in.contains_key(&scan.segment) {
            self.trim.scan = None;
            return self.remove_oldest(now);
        }
        if scan.after >= scan.last {
            // Looked at everything, and some are still there: their records are damaged.
            self.trim.scan = None;
            return Ok(self.give_up_on(now, scan.segment));
        }
        self.copy_slice(scan)
    }

    /// Whether nothing but live batches could need this segment.
    fn may_go(&self, oldest: &SegmentState) -> bool {
        !oldest.active
            && oldest.last <= self.checkpoints.oldest_kept()
            && oldest.last <= self.tables.applied
            && (oldest.last <= self.shared.streams.oldest_cursor() || fault::is(Fault::TrimPastCursor))
            && self.damaged.is_empty()
    }

    fn copying_pays(&self, oldest: &SegmentState) -> bool {
        let segment = u64::from(self.options.segment_bytes);
        let slack = u64::from(self.options.reserve_segments + 2) * segment;
        let much_larger = self.journal.file_bytes() > 2 * self.live_bytes + slack;
        // No more is copied than what is live there. For a moment it may take the room of acks, as without it nothing may ever make room again; never
        // that of ends.
        let (batches, bytes) = self.live_in.get(&oldest.id).copied().unwrap_or_default();
        let copied = bytes + batches * RECORD_OVERHEAD as u64;
        let (total, kept) = (self.journal.room().total, self.kept_for_ends());
        // One that is live nearly wholly would be copied in a circle.
        let gains = much_larger || copied + segment / 8 <= u64::from(oldest.used);
        (much_larger || self.is_short_of_room()) && gains && total > copied + kept / 2
    }

    /// Whether batches are refused for want of room, or soon will be.
    pub(super) fn is_short_of_room(&self) -> bool {
        self.journal.room().before_reserve < u64::from(self.options.segment_bytes) / 2
    }

    fn remove_oldest(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if let Some(oldest) = self.journal.segments().first() {
            self.live_in.remove(&oldest.id);
        }
        self.journal.remove_oldest()?;
        StoreStats::add(&self.shared.stats.segments_removed, 1);
        self.replenish_at = 0;
        self.replenish(now)?;
        Ok(true)
    }

    fn copy_slice(&mut self, mut scan: Scan) -> Result<bool, StoreFailure> {
        let mut found: Vec<(Arc<Batch>, Vec<u8>)> = Vec::new();
        let (mut looked_at, mut last) = (0, scan.after);
        let index = &self.shared.index;
        let scanned = self.shared.reader.scan(scan.after, &mut scan.position, &mut |record| {
            if record.seq > scan.last {
                last = scan.last;
                return ControlFlow::Break(());
            }
            last = record.seq;
            looked_at += record.payload.len();
            if matches!(record.kind, record::BATCH | record::COPY)
                && let Ok(batch) = BatchRecord::decode(record.payload)
                && let Ok((app, _)) = batch.names()
            {
                let home = MessageKey::of(&app, batch.message);
                let live = index.of_message(home).batches.get(&batch.seq).cloned();
                if let Some(live) = live.filter(|live| live.place() == record.place) {
                    found.push((live, record.payload.to_vec()));
                }
            }
            if looked_at >= SLICE_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if scanned.is_err() || last == scan.after {
            last = scan.last;
        }
        for (batch, payload) in &found {
            self.copy(batch, payload)?;
        }
        self.trim.scan = Some(Scan { after: last, ..scan });
        Ok(true)
    }

    /// Copies what is live of a batch to the head. If there is no room for it, the segment stays, and is looked at again later.
    fn copy(&mut self, batch: &Arc<Batch>, payload: &[u8]) -> Result<(), StoreFailure> {
        if fault::is(Fault::ForgetCopies) {
            self.leave_segment(batch);
            return Ok(());
        }
        let Ok(record) = BatchRecord::decode(payload) else { return Ok(()) };
        let Ok(all) = record.targets() else { return Ok(()) };
        let live = |target: &Target| {
            let part = self.shared.index.of_device(&target.key);
            let device = part.devices.get(&target.key);
            device.is_some_and(|device| device.pending.iter().any(|entry| entry.batch.seq == batch.seq))
        };
        let left: Vec<Target> = all.into_iter().filter(live).collect();
        let mut targets = Vec::new();
        put_targets(&mut targets, &left);
        // The answer to a repeat is kept apart, and what ended at once has ended: a copy needs neither.
        let copy = BatchRecord { refused: &[], refused_who: &[], targets: &targets, unbound: &[], ..record };
        self.scratch.clear();
        copy.encode(&mut self.scratch);
        if !self.journal.fits(self.scratch.len(), true) {
            return Ok(());
        }
        let (_, place) = self.stage(record::COPY)?;
        let bytes = self.scratch.len() as u32;
        StoreStats::add(&self.shared.stats.copied_bytes, u64::from(bytes));
        self.effects.push(Effect::Moved(batch.clone(), place, bytes));
        Ok(())
    }

    /// A copy is durable: from now on it is the batch's record.
    pub(super) fn moved(&mut self, batch: &Arc<Batch>, place: Place, bytes: u32) {
        if !batch.is_live() {
            return;
        }
        self.leave_segment(batch);
        self.enter_segment(place.segment, bytes);
        self.live_bytes = self.live_bytes + u64::from(bytes) - u64::from(batch.bytes.load(Ordering::Relaxed));
        batch.moved_to(place, bytes);
    }

    pub(super) fn enter_segment(&mut self, segment: u32, bytes: u32) {
        let (batches, live) = self.live_in.entry(segment).or_default();
        *batches += 1;
        *live += u64::from(bytes);
    }

    /// A batch ended, or its record is elsewhere now.
    pub(super) fn leave_segment(&mut self, batch: &Batch) {
        let segment = batch.place().segment;
        if let Some((batches, live)) = self.live_in.get_mut(&segment) {
            *batches -= 1;
            *live -= u64::from(batch.bytes.load(Ordering::Relaxed));
            if *batches == 0 {
                self.live_in.remove(&segment);
            }
        }
    }

    /// Batches of a segment whose records couldn't be copied: unless there was only no room for them, or the disk fails for the moment, they are
    /// damaged.
    fn give_up_on(&mut self, now: Millis, segment: u32) -> bool {
        if self.is_short_of_room() {
            return false;
        }
        let mut lost = Vec::new();
        for part in 0..self.shared.index.len() {
            let part = self.shared.index.lock(part);
            lost.extend(part.batches.values().filter(|batch| batch.place().segment == segment).cloned());
        }
        for batch in &lost {
            let read = self.live_targets(batch).and_then(|_| self.shared.reader.read(batch.place()));
            match read {
                Ok(_) => batch.was_read(),
                Err(error) if batch.is_given_up(&error, now) => self.found_damaged(batch),
                Err(_) => self.trim.retry_at = now + RETRY_MS,
            }
        }
        !self.damaged.is_empty()
    }
}
