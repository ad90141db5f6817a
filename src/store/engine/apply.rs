//! Staging: a decision becomes a record, and the record changes the index.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;

use super::ends::Cost;
use super::rows::Who;
use super::tables::part_with;
use super::{Effect, Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::Seq;
use crate::push::{Channel, Failure, Millis, Receipt, ReceiptKind};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::journal::Place;
use crate::store::part_messages::{End, Ended};
use crate::store::push_record::{MessageKey, Numbers, bitmap_bytes};
use crate::store::record::{self, MassRecord, ReceiptRecord};

/// Written within this time of the acceptance is live.
const LIVE_MS: Millis = 1_000;
/// What staging needs of an entry.
#[derive(Clone, Debug)]
pub(super) struct Pointed {
    pub(super) batch: Arc<Batch>,
    pub(super) ordinal: u32,
    pub(super) written_at: Option<Millis>,
    pub(super) sent_reported: bool,
}

/// Targets that end together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Together {
    count: usize,
    /// Of their ordinals.
    lowest: u32,
    highest: u32,
}

impl Together {
    pub(super) fn add(&mut self, ordinal: u32) {
        if self.count == 0 {
            (self.lowest, self.highest) = (ordinal, ordinal);
        }
        self.count += 1;
        self.lowest = self.lowest.min(ordinal);
        self.highest = self.highest.max(ordinal);
    }

    pub(super) fn is_nobody(self) -> bool {
        self.count == 0
    }

    /// Bytes of a bit for each ordinal, from the lowest to the highest.
    pub(super) fn bit_bytes(self) -> usize {
        (self.highest / 8 - self.lowest / 8) as usize + 1
    }

    /// Bytes of a mass record about them, at most.
    pub(super) fn mass_bytes(self) -> usize {
        // Names and numbers; the ordinals' bits; and a bitmap of numbers costs most where each has a container of its own.
        319 + self.bit_bytes() + self.count * 10
    }
}

impl FromIterator<u32> for Together {
    fn from_iter<I: IntoIterator<Item = u32>>(ordinals: I) -> Self {
        let mut together = Self::default();
        ordinals.into_iter().for_each(|ordinal| together.add(ordinal));
        together
    }
}

/// Which way a message went.
pub(super) fn channel(accepted_at: Millis, sent_at: Option<Millis>) -> Channel {
    match sent_at {
        None | Some(0) => Channel::Unknown,
        Some(at) if at <= accepted_at.saturating_add(LIVE_MS) => Channel::Online,
        Some(_) => Channel::Offline,
    }
}

/// A receipt about this device with nothing said yet but who it is.
pub(super) fn receipt_of(who: &Who, pointed: Option<&Pointed>, kind: ReceiptKind) -> Receipt {
    let batch = pointed.map(|pointed| &pointed.batch);
    Receipt {
        kind,
        outcome: None,
        app: who.app.clone(),
        message: batch.map_or(crate::ids::MessageId(0), |batch| batch.message),
        target: pointed.map(|pointed| (pointed.batch.id.clone(), pointed.ordinal)),
        device_id: who.device_id.clone(),
        event_time: 0,
        raw_event_time: 0,
        sent_at: 0,
        channel: Channel::Unknown,
        last_active: who.last_active,
        client_ip: who.client_ip,
        attributes: who.attributes.clone(),
        job_key: batch.map_or_else(|| "".into(), |batch| batch.job_key.clone()),
        after: None,
        late: false,
        unmatched: false,
        implied: false,
    }
}

impl<D: Disk> Engine<D> {
    /// Whether `records` records of at most `bytes` each can be staged, with the help of the reserve: each may need a segment's rest.
    pub(super) fn has_room(&self, records: usize, bytes: usize) -> bool {
        self.has_room_for(Cost::of(records, bytes))
    }

    /// The same for what comes from outside, so that half of the reserve stays for ends and trimming: they give space back. Without it a
    /// disk that is full once would stay so.
    pub(super) fn has_room_beside_ends(&self, records: usize, bytes: usize) -> bool {
        self.has_room_for_beside_ends(Cost::of(records, bytes))
    }

    pub(super) fn kept_for_ends(&self) -> u64 {
        u64::from(self.options.reserve_segments) * u64::from(self.options.segment_bytes) / 2
    }

    /// The same for records of various sizes.
    pub(super) fn has_room_for(&self, cost: Cost) -> bool {
        cost.fits(self.journal.room().total, self.options.segment_bytes)
    }

    /// The same for what comes from outside.
    pub(super) fn has_room_for_beside_ends(&self, cost: Cost) -> bool {
        cost.fits(self.room_beside_ends(), self.options.segment_bytes)
    }

    /// Bytes for what comes from outside. While a segment is emptied, what its copies still take is kept, and half of what is kept for ends else: the room
    /// that copies have taken comes back with the segment.
    pub(in crate::store) fn room_beside_ends(&self) -> u64 {
        let ends = self.kept_for_ends();
        let kept = self.bytes_to_copy().map_or(ends, |bytes| bytes + ends / 2);
        self.journal.room().total.saturating_sub(kept)
    }

    /// Stages what stands in the scratch buffer. Room was asked for before: that it's missing now is as impossible to go on from as a failed disk.
    pub(super) fn stage(&mut self, kind: u8) -> Result<(Seq, Place), StoreFailure> {
        Ok(self.journal.stage(kind, &self.scratch)?)
    }

    /// Stages a receipt and applies it.
    /// `home`: of its message.
    pub(super) fn stage_receipt(
        &mut self,
        record: &ReceiptRecord,
        home: MessageKey,
    ) -> Result<Seq, StoreFailure> {
        self.scratch.clear();
        record.encode(&mut self.scratch);
        let seq = if fault::is(Fault::EndUnsaid) && record.receipt.outcome.is_some() {
            Seq(self.journal.next_seq().0 - 1)
        } else {
            self.stage(record::RECEIPT)?.0
        };
        self.shared.streams.note_event(record.receipt.app.as_str(), seq);
        self.apply_receipt(record, home)?;
        Ok(seq)
    }

    fn apply_receipt(&mut self, record: &ReceiptRecord, key: MessageKey) -> Result<(), StoreFailure> {
        let receipt = &record.receipt;
        if record.batch != Seq(0) {
            let mut part = self.shared.index.of_device(&record.key);
            if let Some(device) = part.devices.get_mut(&record.key) {
                device.apply_receipt(record);
            }
        }
        if matches!(receipt.kind, ReceiptKind::Arrive | ReceiptKind::Click | ReceiptKind::Clean) {
            self.ledger.active(&receipt.app, record.number, receipt.event_time);
        }
        if receipt.unmatched {
            return Ok(());
        }
        let mut part = part_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, key)?;
        part.count_receipt(key, receipt, record.number, &mut self.ledger);
        let Some(outcome) = receipt.outcome else { return Ok(()) };
        let ended = part.end(record.batch, 1);
        if let Some(count) = ended.count() {
            let numbers = Numbers::One(record.number);
            let end = End { app: &receipt.app, at: receipt.event_time, outcome, count, numbers };
            part.count_end(key, &end, &mut self.ledger);
        }
        drop(part);
        self.entries_ended(ended);
        Ok(())
    }

    pub(super) fn entries_ended(&mut self, ended: Ended) {
        match ended {
            Ended::Unknown => {}
            Ended::Some(count) => self.pending -= u64::from(count),
            Ended::All(count, batch) => {
                self.pending -= u64::from(count);
                self.settle(&batch);
            }
        }
    }

    /// Ends one entry for a reason of the edge's own.
    pub(super) fn fail_one(
        &mut self,
        now: Millis,
        who: &Who,
        pointed: &Pointed,
        reason: Failure,
    ) -> Result<(), StoreFailure> {
        let sent_at = if pointed.sent_reported { None } else { pointed.written_at };
        let receipt = Receipt {
            outcome: Some(Err(reason)),
            event_time: now,
            raw_event_time: now,
            sent_at: sent_at.unwrap_or(0),
            channel: channel(pointed.batch.accepted_at, pointed.written_at),
            ..receipt_of(who, Some(pointed), ReceiptKind::SentFail)
        };
        let Who { key, number, .. } = *who;
        let record = ReceiptRecord { receipt, key, number, batch: pointed.batch.seq };
        self.stage_receipt(&record, pointed.batch.home)?;
        self.effects.push(Effect::Ended(vec![key], pointed.batch.seq, reason));
        Ok(())
    }

    /// Ends entries of one batch for the same reason: one record. `ended` are (ordinal, key, number) of pending entries.
    pub(super) fn fail_many(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        reason: Failure,
        ended: &[record::Target],
    ) -> Result<(), StoreFailure> {
        self.fail_counted(now, batch, reason, ended, ended.len() as u32)
    }

    /// The same for `count` entries, of which only those in `ended` are known.
    pub(super) fn fail_counted(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        reason: Failure,
        ended: &[record::Target],
        count: u32,
    ) -> Result<(), StoreFailure> {
        let ordinals = ended.iter().map(|target| target.ordinal).collect();
        let numbers: RoaringBitmap = ended.iter().map(|target| target.number).collect();
        let mass = crate::push::MassOutcome {
            app: batch.app.clone(),
            message: batch.message,
            batch: batch.id.clone(),
            reason,
            event_time: now,
            ordinals,
            count,
            job_key: batch.job_key.clone(),
        };
        let record = MassRecord { mass, batch: batch.seq, numbers: bitmap_bytes(&numbers) };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        let (seq, _) = self.stage(record::MASS)?;
        self.shared.streams.note_event(batch.app.as_str(), seq);
        for target in ended {
            if let Some(device) = self.shared.index.of_device(&target.key).devices.get_mut(&target.key) {
                device.take(batch.seq);
            }
        }
        self.count_failed(now, batch, reason, &numbers, count)?;
        let keys = ended.iter().map(|target| target.key).collect();
        self.effects.push(Effect::Ended(keys, batch.seq, reason));
        Ok(())
    }

    /// So many entries of a batch failed: at home, and in the push record.
    pub(super) fn count_failed(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        reason: Failure,
        numbers: &RoaringBitmap,
        count: u32,
    ) -> Result<(), StoreFailure> {
        let mut part = part_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, batch.home)?;
        let outcome = part.end(batch.seq, count);
        if let Some(count) = outcome.count() {
            let numbers = Numbers::Many(numbers);
            let end = End { app: &batch.app, at: now, outcome: Err(reason), count, numbers };
            part.count_end(batch.home, &end, &mut self.ledger);
        }
        drop(part);
        self.entries_ended(outcome);
        Ok(())
    }

    /// A live batch by its sequence.
    pub(super) fn live_batch(&self, seq: Seq, home: u32) -> Option<Arc<Batch>> {
        self.shared.index.lock(home as usize).batches.get(&seq).cloned()
    }

    /// A new live batch: it counts from now on.
    pub(super) fn begin(&mut self, batch: &Arc<Batch>) {
        let place = self.place_of_expiry(batch);
        self.expiry.insert(place);
        self.count_live(batch);
    }

    /// As [`Engine::expiry`] has it.
    pub(super) fn place_of_expiry(&self, batch: &Batch) -> (Millis, Seq, u32) {
        (batch.expires_at, batch.seq, self.shared.index.part_of_message(batch.home) as u32)
    }

    /// It counts among what is live.
    pub(super) fn count_live(&mut self, batch: &Batch) {
        self.live_bytes += u64::from(batch.bytes.load(Ordering::Relaxed));
        self.pending += u64::from(batch.live.load(Ordering::Relaxed));
        self.enter_segment(batch.place().segment, batch.bytes.load(Ordering::Relaxed));
    }
}
