//! Admission: which batches are not taken at all, and what becomes of one that is. Its targets: [`super::decide`].

use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use roaring::RoaringBitmap;
use tokio::sync::oneshot;

use super::apply::Together;
use super::collapse::Displaced;
use super::decide::Decided;
use super::{Effect, Engine, StoreFailure};
use crate::push::{Accepted, Failure, Millis, NewBatch, Ordinals, Rejection};
use crate::store::batch::Batch;
use crate::store::batch_ids::{IdBounds, Remembered, id_key};
use crate::store::disk::Disk;
use crate::store::options::StoreOptions;
use crate::store::part_messages::{Acceptance, RecordBounds};
use crate::store::push_record::{MessageKey, Numbers};
use crate::store::record::{self, BatchRecord, Target, Who, put_refused, put_targets, put_who};
use crate::store::stats::StoreStats;

/// Bytes of a batch record beside body, label and targets, at most.
const BATCH_HEAD_BYTES: usize = 320;
/// Bytes of a target, at most: key, number, gap; or of a refusal, which is less.
const TARGET_BYTES: usize = 25;

/// The bounds of one part's share.
pub(super) fn id_bounds(options: &StoreOptions, parts: usize) -> IdBounds {
    IdBounds { window_ms: options.batch_window_ms, max: options.max_batch_ids.div_ceil(parts) }
}

/// The same for push records: before finished ones are forgotten.
pub(super) fn record_bounds(options: &StoreOptions, parts: usize) -> RecordBounds {
    RecordBounds {
        max: options.max_messages.div_ceil(parts as u64) as usize,
        kept_ms: options.record_kept_ms,
    }
}

/// Bytes of a batch's record, at most.
pub(super) fn batch_bytes(batch: &NewBatch) -> usize {
    let fixed = BATCH_HEAD_BYTES + batch.body.len() + batch.job_key.len();
    // Where ordinals are far apart, there are more bits than targets.
    let bits = if batch.accounts.is_empty() { 0 } else { 2 * together(batch).bit_bytes() };
    fixed + batch.targets.len() * TARGET_BYTES + bits
}

/// All of its targets.
fn together(batch: &NewBatch) -> Together {
    (0..batch.targets.len()).map(|position| batch.part.ordinal(position)).collect()
}

impl<D: Disk> Engine<D> {
    /// Accepts a batch, answers a repeat, or says why not.
    pub(super) fn deliver(
        &mut self,
        now: Millis,
        batch: NewBatch,
        reply: oneshot::Sender<Result<Accepted, Rejection>>,
    ) -> Result<(), StoreFailure> {
        let key = id_key(&batch.app, &batch.id, batch.part.number);
        let home = MessageKey::of(&batch.app, batch.message);
        let verdict = if let Some(verdict) = self.answered_before(now, key, &batch) {
            verdict
        } else {
            self.warm(home)?;
            match self.admit(now, home, &batch) {
                Ok(displaced) => return self.accept(now, key, home, batch, displaced, reply),
                Err(rejection) => Err(rejection),
            }
        };
        let stats = &self.shared.stats;
        let first = u64::from(batch.part.number == 0);
        StoreStats::add(if verdict.is_ok() { &stats.repeats } else { &stats.rejected }, first);
        self.effects.push(Effect::Answer(reply, verdict));
        Ok(())
    }

    /// What a batch id that was used, or may have been, is answered with.
    fn answered_before(
        &self,
        now: Millis,
        key: u128,
        batch: &NewBatch,
    ) -> Option<Result<Accepted, Rejection>> {
        let part = self.shared.index.lock(self.shared.index.part_of_id(key));
        let Some(known) = part.ids.get(key) else {
            let forgotten = batch.created_at <= part.ids.watermark();
            // Of a later part that was said of the first one, which is known: one that was taken in part is taken to its end, however late.
            let is_old = batch.created_at.saturating_add(self.options.batch_window_ms) < now;
            let too_old = forgotten || is_old && batch.part.number == 0;
            return (too_old && !batch.part.follows).then_some(Err(Rejection::TooOld));
        };
        if known.digest != batch.digest {
            return Some(Err(Rejection::BatchConflict));
        }
        // An answer that was written by this program can be read by it; if not, the router's repeat must not be accepted twice.
        Some(known.answer().map_err(|_| Rejection::TooOld))
    }

    /// Why the whole batch can't be taken, or what goes for it.
    fn admit(&self, now: Millis, home: MessageKey, batch: &NewBatch) -> Result<Displaced, Rejection> {
        // Of a batch whose first part was taken what comes too late ends as expired: it has one answer.
        if batch.expires_at <= now && batch.part.number == 0 {
            // With retention 0 that time begins when it is taken in: it has waited here for too long, which says nothing of the next time.
            return Err(if batch.online_only { Rejection::Unavailable } else { Rejection::Expired });
        }
        // Ids are remembered by when their batches were created: one from the future could be taken again once it is forgotten.
        let ahead = batch.created_at.saturating_sub(now);
        if ahead > self.options.max_clock_skew_ms && batch.part.number == 0 {
            return Err(Rejection::Ahead(ahead));
        }
        {
            let part = self.shared.index.of_message(home);
            match part.messages.get(&home) {
                Some(record) if record.body_digest != batch.body_digest => {
                    return Err(Rejection::MessageConflict);
                }
                None if self.messages >= self.options.max_messages && !part.may_forget() => {
                    return Err(Rejection::Exhausted);
                }
                _ => {}
            }
        }
        let (targets, to_come) = (batch.targets.len(), batch.part.to_come as usize);
        if self.pending + (targets + to_come) as u64 > self.options.max_pending || self.is_behind() {
            return Err(Rejection::Exhausted);
        }
        let is_suspended = self.controls.get(&batch.app).is_some_and(|control| control.suspended);
        if is_suspended && batch.part.number == 0 {
            return Err(Rejection::Suspended);
        }
        if self.shared.streams.is_full(batch.app.as_str()) {
            return Err(Rejection::StreamFull);
        }
        let mut bytes = batch_bytes(batch);
        let ends_at_once = self.is_revoked(now, home) || batch.expires_at <= now;
        if batch.online_only || ends_at_once {
            bytes += together(batch).mass_bytes();
        }
        let fits = self.journal.fits(bytes, false);
        StoreStats::set(&self.shared.stats.disk_full, u64::from(!fits));
        if !fits {
            return Err(Rejection::Unavailable);
        }
        if ends_at_once { Ok(Displaced::default()) } else { self.displace(batch, bytes) }
    }

    fn accept(
        &mut self,
        now: Millis,
        id: u128,
        home: MessageKey,
        new: NewBatch,
        displaced: Displaced,
        reply: oneshot::Sender<Result<Accepted, Rejection>>,
    ) -> Result<(), StoreFailure> {
        let seq = self.journal.next_seq();
        let batch = Arc::new(Batch {
            seq,
            app: new.app.clone(),
            message: new.message,
            id: new.id.clone(),
            job_key: new.job_key.clone(),
            accepted_at: now,
            expires_at: new.expires_at,
            online_only: new.online_only,
            recovered: false,
            home,
            only: if let [only] = new.targets[..] { Some(only) } else { None },
            place: AtomicU64::new(0),
            bytes: AtomicU32::new(0),
            live: AtomicU32::new(0),
            damaged: AtomicBool::new(false),
            unreadable_since: AtomicU64::new(0),
            body: RwLock::new(None),
            priority: new.priority,
            collapse_key: new.collapse_key.clone(),
            body_bytes: new.body.len() as u32,
            revoked: AtomicBool::new(self.is_revoked(now, home)),
        });
        let mut decided = self.decide(&new, &batch);
        let unbound: Ordinals = decided.unbound.iter().map(|target| target.ordinal).collect();
        let refused = self.stage_batch(&new, &batch, &mut decided, unbound.clone())?;
        let accepted = decided.accepted.len() as u32;
        let answer = Accepted {
            seq,
            first_seq: seq,
            accepted,
            refused: decided.refused,
            accepted_at: now,
            expires_at: new.expires_at,
            repeated: false,
        };
        let parts = self.shared.index.len();
        let remembered = Remembered {
            digest: new.digest,
            seq,
            accepted,
            created_at: new.created_at,
            accepted_at: now,
            expires_at: new.expires_at,
            refused: refused.into(),
        };
        self.remember(id, remembered, parts);
        self.add_message(home, &batch, &new, &answer, (&decided.accepted, &decided.refused_who), parts);
        if accepted > 0 {
            self.begin(&batch);
            self.shared.bodies.insert(&batch, new.body);
        }
        StoreStats::add(&self.shared.stats.batches, u64::from(new.part.number == 0));
        self.effects.push(Effect::Answer(reply, Ok(answer)));
        if !decided.unbound.is_empty() {
            self.ended_unbound(now, &batch, &decided.unbound)?;
        }
        let ends_at_once = match (batch.is_revoked(), batch.expires_at <= now) {
            (true, _) => Some(Failure::Revoked),
            (false, true) if batch.online_only => Some(Failure::Offline),
            (false, true) => Some(Failure::Expired),
            (false, false) => None,
        };
        if let Some(why) = ends_at_once {
            let mut listed = decided.accepted;
            listed.retain(|target| !unbound.contains(target.ordinal));
            return if listed.is_empty() { Ok(()) } else { self.fail_many(now, &batch, why, &listed) };
        }
        self.end_displaced(now, displaced, &decided.told)?;
        if !decided.told.is_empty() {
            self.effects.push(Effect::Batch(batch.clone(), decided.told));
        }
        if !decided.offline.is_empty() {
            self.fail_many(now, &batch, Failure::Offline, &decided.offline)?;
        }
        Ok(())
    }

    /// Stages the record. Answers the refused ordinals as they stand in it.
    fn stage_batch(
        &mut self,
        new: &NewBatch,
        batch: &Arc<Batch>,
        decided: &mut Decided,
        unbound: Ordinals,
    ) -> Result<Vec<u8>, StoreFailure> {
        let (mut refused, mut refused_who, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        put_refused(&mut refused, &decided.refused);
        put_who(&mut refused_who, &decided.refused_who);
        put_targets(&mut targets, &decided.accepted);
        let record = BatchRecord {
            seq: batch.seq,
            app: new.app.as_str(),
            message: new.message,
            id: new.id.as_str(),
            job_key: &new.job_key,
            body_digest: new.body_digest,
            digest: new.digest,
            created_at: new.created_at,
            accepted_at: batch.accepted_at,
            expires_at: new.expires_at,
            online_only: new.online_only,
            named: new.targets.len() as u32,
            refused: &refused,
            body: &new.body,
            targets: &targets,
            priority: new.priority,
            collapse_key: &new.collapse_key,
            refused_who: &refused_who,
            of_account: std::mem::take(&mut decided.of_account),
            unbound,
            part: new.part.number,
        };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        let (seq, place) = self.stage(record::BATCH)?;
        debug_assert_eq!(seq, batch.seq, "the next sequence is the next record's");
        batch.moved_to(place, self.scratch.len() as u32);
        batch.live.store(decided.accepted.len() as u32, Ordering::Relaxed);
        Ok(refused)
    }

    /// The batch's record says that these ended: so it is their outcome too.
    fn ended_unbound(
        &mut self,
        now: Millis,
        batch: &Arc<Batch>,
        unbound: &[Target],
    ) -> Result<(), StoreFailure> {
        let numbers: RoaringBitmap = unbound.iter().map(|target| target.number).collect();
        self.shared.streams.note_event(batch.app.as_str(), batch.seq);
        self.count_failed(now, batch, Failure::Unbound, &numbers, unbound.len() as u32)
    }

    fn remember(&mut self, id: u128, remembered: Remembered, parts: usize) {
        let bounds = id_bounds(&self.options, parts);
        let mut part = self.shared.index.lock(self.shared.index.part_of_id(id));
        part.ids.insert(id, remembered, bounds);
        self.shared.stats.oldest_created_at.fetch_max(part.ids.watermark(), Ordering::Relaxed);
    }

    fn add_message(
        &mut self,
        home: MessageKey,
        batch: &Arc<Batch>,
        new: &NewBatch,
        answer: &Accepted,
        (accepted, refused_who): (&[Target], &[Who]),
        parts: usize,
    ) {
        let many: RoaringBitmap;
        let numbers = if let [one] = accepted {
            Numbers::One(one.number)
        } else {
            many = accepted.iter().map(|target| target.number).collect();
            Numbers::Many(&many)
        };
        let what = Acceptance {
            app: &new.app,
            message: new.message,
            seq: answer.seq,
            body_digest: new.body_digest,
            accepted_at: answer.accepted_at,
            expires_at: new.expires_at,
            job_key: &new.job_key,
            part: new.part.number,
            named: new.targets.len() as u32,
            refused: &answer.refused,
            refused_who,
            numbers,
            accepted: answer.accepted,
        };
        let mut part = self.shared.index.of_message(home);
        let before = part.known_messages();
        part.accept(home, &what, record_bounds(&self.options, parts), &mut self.ledger);
        part.extend_recall(home, answer.accepted_at, answer.expires_at);
        if answer.accepted > 0 {
            part.batches.insert(batch.seq, batch.clone());
        }
        self.messages = self.messages + part.known_messages() as u64 - before as u64;
    }
}

/// A batch as a record tells of it, with entries that were pending at a recovery.
pub(super) fn recovered_batch(
    record: &BatchRecord<'_>,
    targets: &[Target],
) -> Result<Batch, crate::store::codec::Malformed> {
    let (app, id) = record.names()?;
    Ok(Batch {
        seq: record.seq,
        home: MessageKey::of(&app, record.message),
        app,
        message: record.message,
        id,
        job_key: record.job_key.into(),
        accepted_at: record.accepted_at,
        expires_at: record.expires_at,
        online_only: record.online_only,
        recovered: true,
        only: if let [only] = targets { Some(only.key) } else { None },
        place: AtomicU64::new(0),
        bytes: AtomicU32::new(0),
        live: AtomicU32::new(targets.len() as u32),
        damaged: AtomicBool::new(false),
        unreadable_since: AtomicU64::new(0),
        body: RwLock::new(None),
        priority: record.priority,
        collapse_key: record.collapse_key.into(),
        body_bytes: record.body.len() as u32,
        revoked: AtomicBool::new(false),
    })
}
