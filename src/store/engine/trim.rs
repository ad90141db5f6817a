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
use crate::push::Ordinals;
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::journal::{Place, Position, RECORD_OVERHEAD, Room, SegmentState};
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
    position: Option<Position>,
}

/// What a copy of what is live in the oldest segment costs, and what for. All in bytes.
#[derive(Clone, Copy, Debug)]
struct Weighed {
    segment_bytes: u64,
    reserve_segments: u64,
    /// Of the whole journal.
    file_bytes: u64,
    live_bytes: u64,
    room: Room,
    kept_for_ends: u64,
    /// Of the oldest segment.
    used: u64,
    /// What is live there takes this once more, at most.
    copied: u64,
}

impl Weighed {
    fn pays(&self) -> bool {
        let slack = (self.reserve_segments + 2) * self.segment_bytes;
        let much_larger = self.file_bytes > 2 * self.live_bytes + slack;
        // One that is live nearly wholly would be copied in a circle.
        let gains = much_larger || self.copied + self.segment_bytes / 8 <= self.used;
        // For a moment it may take the room of acks, as without it nothing may ever make room again; never that of ends.
        let fits = self.room.total > self.copied + self.kept_for_ends / 2;
        (much_larger || is_short(self.room, self.segment_bytes)) && gains && fits
    }
}

fn is_short(room: Room, segment_bytes: u64) -> bool {
    room.before_reserve < segment_bytes / 2
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
        let (batches, bytes) = self.live_in.get(&oldest.id).copied().unwrap_or_default();
        let weighed = Weighed {
            segment_bytes: u64::from(self.options.segment_bytes),
            reserve_segments: u64::from(self.options.reserve_segments),
            file_bytes: self.journal.file_bytes(),
            live_bytes: self.live_bytes,
            room: self.journal.room(),
            kept_for_ends: self.kept_for_ends(),
            used: u64::from(oldest.used),
            copied: bytes + batches * RECORD_OVERHEAD as u64,
        };
        weighed.pays()
    }

    /// Whether batches are refused for want of room, or soon will be.
    pub(super) fn is_short_of_room(&self) -> bool {
        is_short(self.journal.room(), u64::from(self.options.segment_bytes))
    }

    /// What is still to be copied of the segment that is being emptied.
    pub(in crate::store) fn bytes_to_copy(&self) -> Option<u64> {
        let scan = self.trim.scan?;
        let (batches, bytes) = self.live_in.get(&scan.segment).copied().unwrap_or_default();
        Some(bytes + batches * RECORD_OVERHEAD as u64)
    }

    /// Makes room at once, for an ack that finds none: the oldest segment goes, if it may, after what is live in it was copied. What is staged is made
    /// durable first: an end that isn't would be lost with what it ends. At most one segment, so that others don't wait for long.
    pub(super) fn make_room_for_acks(&mut self, now: Millis) -> Result<(), StoreFailure> {
        let before = self.shared.reader.oldest();
        // It comes to an end: each slice is further in the segment than the one before, or removes it, or answers that there is nothing to do.
        loop {
            self.commit(now)?;
            if !self.trim_slice(now)? || self.shared.reader.oldest() != before {
                return Ok(());
            }
        }
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
        let unbound = Ordinals::default();
        let copy = BatchRecord { refused: &[], refused_who: &[], targets: &targets, unbound, ..record };
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

    /// Batches of a segment that weren't copied: unless there was only no room for them, or the disk fails for the moment, their records are damaged. Where
    /// room is short, too: else one of them would hold back everything behind it, and no room would ever come of that.
    fn give_up_on(&mut self, now: Millis, segment: u32) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 16_000;

    /// A journal of ten segments, a quarter of which is live; in the oldest one nearly half.
    const LARGE: Weighed = Weighed {
        segment_bytes: SEGMENT,
        reserve_segments: 2,
        file_bytes: 10 * SEGMENT,
        live_bytes: 3 * SEGMENT - 1,
        room: Room { before_reserve: SEGMENT, total: 3 * SEGMENT },
        kept_for_ends: SEGMENT,
        used: SEGMENT,
        copied: 7_000,
    };
    /// The same, with more that is live.
    const FULL: Weighed = Weighed { live_bytes: 3 * SEGMENT, ..LARGE };

    fn short(before_reserve: u64) -> Room {
        Room { before_reserve, ..LARGE.room }
    }

    #[test]
    fn copying_pays_where_the_journal_is_more_than_twice_what_is_live() {
        // Beside that the reserve, the next segment and the active one.
        assert!(LARGE.pays());
        assert!(!FULL.pays());
        assert!(Weighed { file_bytes: 10 * SEGMENT + 1, ..FULL }.pays());
        assert!(Weighed { live_bytes: 0, file_bytes: 4 * SEGMENT + 1, ..LARGE }.pays());
        assert!(!Weighed { live_bytes: 0, file_bytes: 4 * SEGMENT, ..LARGE }.pays());
        let reserve = Weighed { reserve_segments: 3, live_bytes: 0, ..LARGE };
        assert!(Weighed { file_bytes: 5 * SEGMENT + 1, ..reserve }.pays());
        assert!(!Weighed { file_bytes: 5 * SEGMENT, ..reserve }.pays());
        // Whatever is live of the oldest segment: it goes round, but what lies between gets less.
        assert!(Weighed { copied: SEGMENT, ..LARGE }.pays());
    }

    #[test]
    fn where_room_is_short_copying_pays_if_it_gains_an_eighth_of_a_segment() {
        let short = Weighed { room: short(SEGMENT / 2 - 1), ..FULL };
        assert!(short.pays());
        assert!(!Weighed { room: self::short(SEGMENT / 2), ..FULL }.pays(), "it isn't short");
        assert!(Weighed { copied: SEGMENT / 8 * 7, ..short }.pays());
        assert!(!Weighed { copied: SEGMENT / 8 * 7 + 1, ..short }.pays());
        assert!(!Weighed { used: 8_999, ..short }.pays(), "it isn't full itself");
        assert!(Weighed { used: 9_000, ..short }.pays());
    }

    #[test]
    fn a_copy_takes_the_room_of_acks_but_never_that_of_ends() {
        let with = |total| Room { before_reserve: 0, total };
        for weighed in [LARGE, FULL] {
            assert!(Weighed { room: with(7_000 + SEGMENT / 2 + 1), ..weighed }.pays());
            assert!(!Weighed { room: with(7_000 + SEGMENT / 2), ..weighed }.pays());
        }
    }
}
