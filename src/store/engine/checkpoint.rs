//! Checkpoints without a pause: a slice at a time, between commits.
//!
//! ```text
//! head      version, parts, next device number, the streams, what operators set for apps
//! homes     one a part: live batches, batch ids, recalls, and the sequence as of which
//! devices   one a part: hot rows of devices with their lists, what is revoked of devices, and the sequence as of which
//! ```
//! Each slice is of its own time; at a recovery a record is applied to what a slice holds only if it is newer than that. All homes stand before all
//! devices, so that the batches that a list names are there when the list is read, unless they are younger than their home's slice: those entries
//! are held back until the batch's record is replayed.
//!
//! Cold rows of devices, push records, totals and statistics are in the tables, as of the sequence that these name. A checkpoint gets its name only when the tables have
//! reached what its slices reflect: so a start never has to bring them further than what it reads of the journal anyway.

use std::sync::atomic::Ordering;

use super::load::KnownApps;
use super::{Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::Seq;
use crate::push::Millis;
use crate::store::batch::Batch;
use crate::store::checkpoint::{CheckpointError, CheckpointWriter, remove_one};
use crate::store::codec::{put_bytes, put_u32, put_u64, put_varint};
use crate::store::disk::Disk;
use crate::store::part::{AppId, Part};
use crate::store::record::put_epoch;
use crate::store::stats::StoreStats;

pub(super) const VERSION: u8 = 5;
pub(super) const HEAD: u8 = 0;
pub(super) const HOME: u8 = 1;
pub(super) const DEVICES: u8 = 2;
/// Flags of a device.
pub(super) const PUSH_ON: u8 = 1;
pub(super) const MAY_BE_BOUND: u8 = 2;
pub(super) const WITH_ACCOUNT: u8 = 4;
/// How long to wait after a checkpoint that couldn't be written.
const RETRY_MS: Millis = 5_000;

/// What was done so that a checkpoint fits on a full disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Squeeze {
    /// Nothing yet.
    None,
    /// The spare segments' space is lent to it.
    Spares,
    /// The older checkpoint's too.
    Older,
}

/// How far a checkpoint has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// A piece was written.
    Written,
    /// It is whole but for its name, and waits for the tables.
    Waits,
    /// It is the newest.
    Finished,
}

/// What is known of checkpoints.
#[derive(Debug)]
pub(super) struct State<D: Disk> {
    writing: Option<Writing<D>>,
    squeeze: Squeeze,
    /// Journal bytes since the last one began.
    bytes: u64,
    /// What the newest covers.
    covers: Seq,
    /// What the older of the two kept covers.
    oldest_kept: Seq,
    retry_at: Millis,
}

#[derive(Debug)]
struct Writing<D: Disk> {
    writer: CheckpointWriter<D>,
    /// Slices of parts written.
    written: usize,
    covers: Seq,
    /// The newest sequence that a slice reflects.
    reflects: Seq,
}

impl<D: Disk> State<D> {
    pub(super) fn new(bytes: u64, covers: Seq, oldest_kept: Seq) -> Self {
        Self { writing: None, squeeze: Squeeze::None, bytes, covers, oldest_kept, retry_at: 0 }
    }

    pub(super) fn note_bytes(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether it has the spare segments' space, which must not be taken back meanwhile.
    pub(super) fn borrows(&self) -> bool {
        self.squeeze != Squeeze::None
    }

    pub(super) fn oldest_kept(&self) -> Seq {
        self.oldest_kept
    }
}

impl<D: Disk> Engine<D> {
    /// One slice, if a checkpoint is due or being written. Answers whether there was anything to do.
    /// A checkpoint that can't be written is given up, and tried again later: until then a start takes longer, and nothing is trimmed.
    pub(super) fn checkpoint_slice(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if now >= self.checkpoints.retry_at {
            // Looked at again: if none is due now, only what happens makes one due.
            self.checkpoints.retry_at = 0;
        }
        if self.checkpoints.writing.is_none() && !self.checkpoint_is_due(now) {
            return Ok(false);
        }
        match self.checkpoint_step() {
            Ok(Step::Written) => {}
            // Their turn may have passed already: who rested now would wait for nothing.
            Ok(Step::Waits) => return Ok(!self.tables.writer.is_busy() && self.transaction_is_due(now)),
            Ok(Step::Finished) => self.end_squeeze(now)?,
            Err(error) => self.give_up_checkpoint(now, &error)?,
        }
        Ok(true)
    }

    /// After enough journal bytes; and when there is no room, as a newer checkpoint may let old segments go.
    fn checkpoint_is_due(&self, now: Millis) -> bool {
        let state = &self.checkpoints;
        // What damage took is found by what the journal says, which a newer checkpoint would pass.
        if now < state.retry_at || self.lost.is_some() {
            return false;
        }
        // A second one of the same is worth writing only for what the older one still holds back.
        state.bytes >= self.options.checkpoint_bytes && self.journal.head() > state.covers
            || self.is_short_of_room() && self.holds_back()
    }

    /// Whether the oldest segment could go if only the older checkpoint were newer.
    fn holds_back(&self) -> bool {
        self.journal.segments().first().is_some_and(|oldest| {
            !oldest.active
                && oldest.last > self.checkpoints.oldest_kept
                && oldest.last <= self.shared.streams.oldest_cursor()
        })
    }

    /// When an idle engine should look again, because the disk had no room.
    pub(super) fn retry_checkpoint_at(&self) -> Option<Millis> {
        let retry_at = self.checkpoints.retry_at;
        (self.is_short_of_room() && retry_at > 0).then_some(retry_at)
    }

    /// A whole checkpoint at once, for a start that is quick. What is staged is made durable first.
    pub(super) fn flush(&mut self, now: Millis, checkpoint: bool) -> Result<(), StoreFailure> {
        if !checkpoint {
            return Ok(());
        }
        while self.sweep_lost(now)? {}
        self.commit(now)?;
        if self.lost.is_some() {
            return self.write_tables(now).map(drop);
        }
        if self.checkpoints.writing.is_none() && self.journal.head() <= self.checkpoints.covers {
            // What doesn't rest on records is worth keeping too.
            return self.write_tables(now).map(drop);
        }
        loop {
            match self.checkpoint_step() {
                Ok(Step::Finished) => return self.end_squeeze(now),
                Ok(Step::Written) => {}
                Ok(Step::Waits) => {
                    if !self.write_tables(now)? {
                        self.give_up_checkpoint(now, &CheckpointError::full("waiting for the tables"))?;
                        return Ok(());
                    }
                }
                Err(error) => {
                    self.give_up_checkpoint(now, &error)?;
                    if self.checkpoints.squeeze == Squeeze::None {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn give_up_checkpoint(&mut self, now: Millis, error: &CheckpointError) -> Result<(), StoreFailure> {
        StoreStats::add(&self.shared.stats.checkpoints_failed, 1);
        let abandoned = self.checkpoints.writing.take().map(|writing| writing.writer.abandon());
        let left = abandoned.and_then(Result::err);
        tracing::warn!(%error, left = left.map(tracing::field::display), "no checkpoint was written");
        // It is as due as before.
        self.checkpoints.bytes = self.checkpoints.bytes.max(self.options.checkpoint_bytes);
        if error.is_full() && self.is_short_of_room() && self.holds_back() && self.squeeze() {
            return Ok(());
        }
        self.checkpoints.retry_at = now + RETRY_MS;
        self.end_squeeze(now)
    }

    /// Finds space for a checkpoint on a full disk, as only a newer one lets old segments go: first spare segments lend theirs, as many as come back
    /// for sure, then one of the two checkpoints goes. Whether there is more now.
    fn squeeze(&mut self) -> bool {
        let dead = self.dead_segments();
        let state = &mut self.checkpoints;
        if state.squeeze == Squeeze::None {
            state.squeeze = Squeeze::Spares;
            match self.journal.release_spares(dead) {
                Ok(0) => {}
                Ok(_) => return true,
                Err(error) => {
                    tracing::warn!(%error, "spare segments can't be lent to a checkpoint");
                    return false;
                }
            }
        }
        if state.squeeze == Squeeze::Older {
            return false;
        }
        state.squeeze = Squeeze::Older;
        match remove_one(self.disk.clone()) {
            Ok(removed) => {
                state.oldest_kept = Seq(0);
                removed
            }
            Err(error) => {
                tracing::warn!(%error, "no checkpoint can make room for a newer one");
                false
            }
        }
    }

    /// Segments at the oldest end that a newer checkpoint lets go without any copying.
    pub(super) fn dead_segments(&self) -> usize {
        let cursor = self.shared.streams.oldest_cursor();
        let segments = self.journal.segments();
        let dead = segments.iter().take_while(|segment| {
            !segment.active && segment.last <= cursor && !self.live_in.contains_key(&segment.id)
        });
        dead.count()
    }

    /// What was lent comes back.
    fn end_squeeze(&mut self, now: Millis) -> Result<(), StoreFailure> {
        if self.checkpoints.borrows() {
            self.checkpoints.squeeze = Squeeze::None;
            self.replenish_at = 0;
            self.replenish(now)?;
        }
        Ok(())
    }

    /// Begins, writes one slice, or finishes.
    fn checkpoint_step(&mut self) -> Result<Step, CheckpointError> {
        let parts = self.shared.index.len();
        let Some(mut writing) = self.checkpoints.writing.take() else {
            let mut writer = CheckpointWriter::begin(self.disk.clone())?;
            self.scratch.clear();
            self.put_head();
            let head = writer.slice(&self.scratch);
            let covers = self.journal.head();
            self.checkpoints.writing = Some(Writing { writer, written: 0, covers, reflects: covers });
            self.checkpoints.bytes = 0;
            head?;
            return Ok(Step::Written);
        };
        if writing.written == 2 * parts {
            if self.tables.applied < writing.reflects && !fault::is(Fault::NameEarly) {
                self.tables.awaited = true;
                self.checkpoints.writing = Some(writing);
                return Ok(Step::Waits);
            }
            let finished = writing.writer.finish(writing.covers)?;
            self.checkpoints.covers = finished.covers;
            self.checkpoints.oldest_kept = finished.oldest_kept;
            StoreStats::add(&self.shared.stats.checkpoints, 1);
            return Ok(Step::Finished);
        }
        let (homes, number) = (writing.written < parts, writing.written % parts);
        self.scratch.clear();
        self.scratch.push(if homes { HOME } else { DEVICES });
        put_u32(&mut self.scratch, number as u32);
        put_u64(&mut self.scratch, self.journal.head().0);
        {
            let part = self.shared.index.lock(number);
            if homes {
                part.put_home(&mut self.scratch);
            } else {
                part.put_devices(&mut self.scratch, &self.apps);
            }
        }
        writing.written += 1;
        writing.reflects = self.journal.head();
        let slice = writing.writer.slice(&self.scratch);
        self.checkpoints.writing = Some(writing);
        slice?;
        Ok(Step::Written)
    }

    fn put_head(&mut self) {
        let head = self.journal.head();
        let out = &mut self.scratch;
        out.extend_from_slice(&[HEAD, VERSION]);
        put_u32(out, self.shared.index.len() as u32);
        put_u32(out, self.next_number);
        self.shared.streams.saved(head).encode(out);
        super::apps::put_all(out, &self.controls);
    }
}

impl Part {
    fn put_home(&self, out: &mut Vec<u8>) {
        put_varint(out, self.batches.len() as u64);
        for batch in self.batches.values() {
            put_batch(out, batch);
        }
        self.ids.encode(out);
        put_varint(out, self.recalls.len() as u64);
        for one in self.recalls.values() {
            put_bytes(out, one.app.as_str().as_bytes());
            put_u64(out, one.message.0);
            put_u64(out, one.seq.0);
            put_u64(out, one.at);
            put_u64(out, one.until.load(Ordering::Relaxed));
        }
    }

    fn put_devices(&self, out: &mut Vec<u8>, known: &KnownApps) {
        // In each slice, as apps may become known between two: each stands once.
        let mut apps: Vec<AppId> = self.devices.values().map(|device| device.app).collect();
        apps.sort_unstable();
        apps.dedup();
        put_varint(out, apps.len() as u64);
        for app in &apps {
            put_bytes(out, known.key(*app).as_str().as_bytes());
        }
        put_varint(out, self.devices.len() as u64);
        for (key, device) in self.devices.iter() {
            let described = device.described();
            let (digest, len) = described.attributes;
            out.extend_from_slice(&key.0);
            put_u32(out, device.number);
            let mut flags = if device.push_on { PUSH_ON } else { 0 };
            flags |= if device.may_be_bound() { MAY_BE_BOUND } else { 0 };
            flags |= if device.account.is_some() { WITH_ACCOUNT } else { 0 };
            out.push(flags);
            put_varint(out, apps.binary_search(&device.app).unwrap_or_default() as u64);
            put_u64(out, digest);
            put_varint(out, u64::from(len));
            put_u32(out, (described.last_active / 1_000) as u32);
            if let Some(account) = device.account {
                put_u64(out, account.number());
            }
            put_varint(out, device.pending.len() as u64);
            for entry in &device.pending {
                put_varint(out, entry.batch.seq.0);
                put_varint(out, u64::from(entry.ordinal));
                out.push(entry.flags());
            }
        }
        put_varint(out, self.revocations.len() as u64);
        for (device, revocation) in &self.revocations {
            put_epoch(out, device, *revocation);
        }
    }
}

fn put_batch(out: &mut Vec<u8>, batch: &Batch) {
    put_u64(out, batch.seq.0);
    put_bytes(out, batch.app.as_str().as_bytes());
    put_u64(out, batch.message.0);
    put_bytes(out, batch.id.as_str().as_bytes());
    put_bytes(out, batch.job_key.as_bytes());
    put_u64(out, batch.accepted_at);
    put_u64(out, batch.expires_at);
    out.push(u8::from(batch.online_only));
    out.push(u8::from(batch.only.is_some()));
    if let Some(only) = batch.only {
        out.extend_from_slice(&only.0);
    }
    put_u64(out, batch.place().pack());
    put_u32(out, batch.bytes.load(Ordering::Relaxed));
    put_u32(out, batch.live.load(Ordering::Relaxed));
    out.push(batch.priority as u8);
    put_bytes(out, batch.collapse_key.as_bytes());
    put_u32(out, batch.body_bytes);
}
