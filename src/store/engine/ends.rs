//! Ends that come without an acknowledgement: what they cost, and the records that they are.
//!
//! Ends of one batch for one reason share a record. But an entry that was written to a connection and not reported as `sent` yet ends by a
//! receipt of its own, which says when it was written: else nobody upstream would learn that it was. If the disk has no room for that, all end
//! in one record: an end matters more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::apply::Together;
use super::expiry::Live;
use super::{Engine, StoreFailure};
use crate::push::{Failure, Millis};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::journal::RECORD_OVERHEAD;
use crate::store::record::Target;

/// Entries that end by receipts of their own in one slice.
const SLICE_RECEIPTS: usize = 1_024;

/// What records will take of the journal.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Cost {
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) largest: usize,
}

impl Cost {
    /// So many records of at most so many bytes each.
    pub(super) fn of(records: usize, bytes: usize) -> Self {
        Self { records, bytes: records * bytes, largest: bytes }
    }

    /// One more record of at most so many bytes.
    pub(super) fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
    }

    /// Whether all of them fit into so many bytes of segments. The end of a segment that a record doesn't fit into is lost: one record's size a
    /// segment, and there are few of them.
    pub(super) fn fits(&self, room: u64, segment_bytes: u32) -> bool {
        let segments = (room / u64::from(segment_bytes).max(1) + 2) as usize;
        let lost = segments * (self.largest + RECORD_OVERHEAD);
        room >= (self.bytes + self.records * RECORD_OVERHEAD + lost) as u64
    }
}

/// How far the ends of a batch got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Got {
    /// There is no room for any.
    NoRoom,
    /// So many have ended, others are left for the next slice.
    Part(u32),
    /// So many have ended, and nothing is left.
    All(u32),
}

impl<D: Disk> Engine<D> {
    /// What the end of these entries of one batch for one reason takes.
    pub(super) fn cost_of<'a>(ended: impl Iterator<Item = &'a Live>, apart: bool) -> Cost {
        let mut cost = Cost::default();
        let mut together = Together::default();
        for live in ended {
            if apart && live.receipt_bytes > 0 {
                cost.add(live.receipt_bytes);
            } else {
                together.add(live.target.ordinal);
            }
        }
        if !together.is_nobody() {
            cost.add(together.mass_bytes());
        }
        cost
    }

    /// Ends what is live of a batch, or as much as one slice takes. Ascending by ordinal.
    pub(super) fn end_live(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        live: &[Live],
        reason: impl Fn(&Live) -> Failure,
    ) -> Result<Got, StoreFailure> {
        let written = || live.iter().filter(|live| live.receipt_bytes > 0);
        if written().nth(SLICE_RECEIPTS).is_some()
            && self.has_room_for(Self::cost_of(written().take(SLICE_RECEIPTS), true))
        {
            for live in written().take(SLICE_RECEIPTS) {
                self.end_by_receipt(now, batch, reason(live), &live.target)?;
            }
            return Ok(Got::Part(SLICE_RECEIPTS as u32));
        }
        let mut cost = Self::cost_of(live.iter(), true);
        // A second reason, and entries that no list has.
        let together: Together = live.iter().map(|live| live.target.ordinal).collect();
        cost.add(together.mass_bytes());
        cost.add(Together::default().mass_bytes());
        let apart = self.has_room_for(cost);
        if !apart && !self.has_room(3, together.mass_bytes()) {
            return Ok(Got::NoRoom);
        }
        let missing = batch.live.load(Ordering::Relaxed).saturating_sub(live.len() as u32);
        let mut reasons: Vec<Failure> = Vec::new();
        for live in live {
            let reason = reason(live);
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        for failure in reasons {
            let ended: Vec<Live> = live.iter().filter(|live| reason(live) == failure).copied().collect();
            self.end_entries(now, batch, failure, &ended, apart)?;
        }
        if missing > 0 {
            self.fail_missing(now, batch, missing)?;
        }
        Ok(Got::All(live.len() as u32))
    }

    /// Ends these entries of a batch, with `apart` those written by receipts of their own. There is room.
    pub(super) fn end_entries(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        reason: Failure,
        ended: &[Live],
        apart: bool,
    ) -> Result<(), StoreFailure> {
        let (single, together): (Vec<&Live>, Vec<&Live>) =
            ended.iter().partition(|live| apart && live.receipt_bytes > 0);
        for live in single {
            self.end_by_receipt(now, batch, reason, &live.target)?;
        }
        if together.is_empty() {
            return Ok(());
        }
        let together: Vec<Target> = together.into_iter().map(|live| live.target).collect();
        self.fail_many(now, batch, reason, &together)
    }

    fn end_by_receipt(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        reason: Failure,
        target: &Target,
    ) -> Result<(), StoreFailure> {
        let pointed = self.pending_of(&target.key, |entry| entry.batch.seq == batch.seq).pop();
        let Some(pointed) = pointed else { return Ok(()) };
        let Some(who) = self.who_ever(&target.key)? else { return Ok(()) };
        self.fail_one(now, &who, &pointed, reason)
    }
}
