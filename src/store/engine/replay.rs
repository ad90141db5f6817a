//! Replay: what a record had decided is applied to every part that doesn't reflect it yet.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::deliver::{id_bounds, record_bounds, recovered_batch};
use super::devices::{bound_by, is_in_row};
use super::load::Loaded;
use super::rows::device_with;
use super::tables::part_with;
use crate::fault::{self, Fault};
use crate::ids::{AppKey, DeviceKey, Seq};
use crate::push::{Failure, Ordinals, ReceiptKind};
use crate::store::attributes::digest_of;
use crate::store::batch::Batch;
use crate::store::batch_ids::{Remembered, id_key};
use crate::store::body_cache::BodyCache;
use crate::store::codec::{Malformed, Take};
use crate::store::device_row::{About, Says};
use crate::store::journal::Record;
use crate::store::ledger::Ledger;
use crate::store::options::StoreOptions;
use crate::store::part::{Described, Entry, OF_ACCOUNT, Part, Spread};
use crate::store::part_messages::{Acceptance, End};
use crate::store::push_record::{MessageKey, Numbers, take_bitmap};
use crate::store::recalls::Recall;
use crate::store::record::device::take_active;
use crate::store::record::{
    self, BatchRecord, BindingRecord, DeviceRecord, ForgottenRecord, MassRecord, RecallRecord, ReceiptRecord,
    Target, take_epoch, take_refused, take_who,
};
use crate::store::tables::{Tables, TablesError};
use crate::sync::MutexGuard;

fn is_of_streams(kind: u8) -> bool {
    matches!(
        kind,
        record::CURSOR | record::STREAM | record::ROUTE | record::GAP | record::RETIRED | record::HISTORY
    )
}

/// The index, on its way to the journal's head.
pub(super) struct Replay<'a> {
    pub(super) loaded: Loaded,
    pub(super) options: &'a StoreOptions,
    pub(super) bodies: &'a BodyCache,
    pub(super) tables: &'a dyn Tables,
    pub(super) ledger: Ledger,
    /// The tables couldn't be read.
    pub(super) failed: Option<TablesError>,
    /// What the checkpoint covers. Older records are replayed only for tables that lack them.
    pub(super) covers: Seq,
    /// Ordinals that ended together, by batch. They leave the lists at the end, in one pass: whose they were stands in records that may be gone.
    pub(super) masses: HashMap<Seq, Vec<Ordinals>, Spread>,
    /// Records that couldn't be understood.
    pub(super) malformed: u64,
    /// What earlier starts found lost, and have said so.
    pub(super) told_lost: Vec<(Seq, Seq)>,
    /// The newest record so far.
    pub(super) newest: Seq,
    /// Sequences, from and to, between records: they are lost.
    pub(super) skipped: Vec<(Seq, Seq)>,
}

impl Replay<'_> {
    pub(super) fn apply(&mut self, at: Record<'_>) {
        if self.newest != Seq(0) && at.seq.0 > self.newest.0 + 1 {
            self.skipped.push((Seq(self.newest.0 + 1), Seq(at.seq.0 - 1)));
        }
        self.newest = at.seq;
        let applied = match at.kind {
            record::BATCH => self.batch(at),
            record::COPY => self.copy(at),
            record::DEVICE => self.device(at),
            record::RECEIPT => self.receipt(at),
            record::MASS => self.mass(at),
            kind if is_of_streams(kind) && at.seq <= self.covers => Ok(()),
            kind if is_of_streams(kind) => self.loaded.streams.apply(kind, at.seq, at.payload),
            record::APP => super::apps::take_into(&mut Take(at.payload), &mut self.loaded.controls),
            record::EPOCH => self.epoch(at),
            record::RECALL => self.recall(at),
            record::BINDING => self.binding(at),
            record::FORGOTTEN => self.forgotten(at),
            record::ACTIVE => self.active(at),
            record::LOST => record::take_lost(at.payload).map(|ranges| self.told_lost.extend(ranges)),
            _ => Err(Malformed),
        };
        if at.seq > self.covers
            && let Ok(Some(app)) = record::app_of(at.kind, at.payload)
        {
            self.loaded.streams.note_event(app, at.seq);
        }
        if at.seq > self.covers && at.kind == record::LOST {
            self.loaded.streams.note_lost(at.seq);
        }
        if applied.is_err() {
            self.malformed += 1;
            tracing::error!(sequence = %at.seq, kind = at.kind, "a journal record can't be understood");
        }
    }

    /// Whether its record is one that is lost, between others.
    fn is_lost(&self, seq: Seq) -> bool {
        let at = self.skipped.partition_point(|(first, _)| *first <= seq);
        self.skipped[..at].last().is_some_and(|(_, last)| seq <= *last)
    }

    /// Whether push records and statistics don't reflect it.
    fn is_new_to_tables(&self, seq: Seq) -> bool {
        seq > self.tables.applied() || fault::is(Fault::IgnoreApplied)
    }

    /// At the journal's end: whether the tables could be read.
    pub(super) fn check_tables(&mut self) -> Result<(), TablesError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The message's part with its push record in memory.
    fn part_with(&mut self, key: MessageKey) -> Option<(MutexGuard<'_, Part>, &mut Ledger)> {
        match part_with(&self.loaded.index, self.tables, &mut self.ledger, key) {
            Ok(part) => Some((part, &mut self.ledger)),
            Err(error) => {
                self.failed.get_or_insert(error);
                None
            }
        }
    }

    /// Whether the part's batches and ids don't reflect it.
    fn is_new_at_home(&self, part: usize, seq: Seq) -> bool {
        seq > self.loaded.home_floor[part] || fault::is(Fault::IgnoreFloors)
    }

    /// Whether the part's devices don't reflect it.
    fn is_new_at_device(&self, key: &DeviceKey, seq: Seq) -> bool {
        seq > self.loaded.device_floor[self.loaded.index.part_of_device(key)]
            || fault::is(Fault::IgnoreFloors)
    }

    fn batch(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = BatchRecord::decode(at.payload)?;
        let targets = record.targets()?;
        let (app, id) = record.names()?;
        let (key, home) = (id_key(&app, &id, record.part), MessageKey::of(&app, record.message));
        let parts = self.loaded.index.len();
        let id_part = self.loaded.index.part_of_id(key);
        if self.is_new_at_home(id_part, at.seq) && !fault::is(Fault::ForgetBatchIds) {
            let remembered = Remembered {
                digest: record.digest,
                seq: at.seq,
                accepted: targets.len() as u32,
                created_at: record.created_at,
                accepted_at: record.accepted_at,
                expires_at: record.expires_at,
                refused: record.refused.into(),
            };
            self.loaded.index.lock(id_part).ids.insert(key, remembered, id_bounds(self.options, parts));
        }
        let home_part = self.loaded.index.part_of_message(home);
        if self.is_new_to_tables(at.seq) {
            self.accepted_again(&record, &targets, &app, at.seq)?;
        }
        let batch = if self.is_new_at_home(home_part, at.seq) {
            self.live_again(&record, &targets, home, at)?
        } else {
            self.loaded.index.lock(home_part).batches.get(&at.seq).cloned()
        };
        let unbound = targets.iter().filter(|target| record.unbound.contains(target.ordinal));
        let numbers: RoaringBitmap = unbound.map(|target| target.number).collect();
        if !numbers.is_empty() {
            let (count, outcome) = (numbers.len() as u32, Err(Failure::Unbound));
            let numbers = Numbers::Many(&numbers);
            let end = End { app: &app, at: record.accepted_at, outcome, count, numbers };
            self.ended(home, at.seq, at.seq, end);
        }
        // Not live at home: all its entries ended before the home's slice was cut, and their ends follow; or they ended at once.
        let Some(batch) = batch.filter(|batch| batch.is_live()) else { return Ok(()) };
        let listed = targets.iter().filter(|target| !record.unbound.contains(target.ordinal));
        for target in listed {
            if self.is_new_at_device(&target.key, at.seq) {
                let of_account = record.of_account.contains(target.ordinal);
                let flags = if of_account { OF_ACCOUNT } else { 0 };
                self.point(target.key, Entry::new(batch.clone(), target.ordinal, flags));
            }
        }
        for held in self.loaded.held.remove(&at.seq).unwrap_or_default() {
            if fault::is(Fault::DropHeld) {
                continue;
            }
            self.point(held.device, Entry::new(batch.clone(), held.ordinal, held.flags));
        }
        self.bodies.insert(&batch, record.body.into());
        Ok(())
    }

    fn live_again(
        &self,
        record: &BatchRecord<'_>,
        targets: &[Target],
        home: MessageKey,
        at: Record<'_>,
    ) -> Result<Option<Arc<Batch>>, Malformed> {
        self.loaded.index.of_message(home).extend_recall(home, record.accepted_at, record.expires_at);
        if targets.is_empty() {
            return Ok(None);
        }
        let batch = Arc::new(recovered_batch(record, targets)?);
        batch.moved_to(at.place, at.payload.len() as u32);
        self.loaded.index.of_message(home).batches.insert(at.seq, batch.clone());
        Ok(Some(batch))
    }

    fn accepted_again(
        &mut self,
        record: &BatchRecord<'_>,
        targets: &[Target],
        app: &AppKey,
        seq: Seq,
    ) -> Result<(), Malformed> {
        let refused = take_refused(record.refused)?;
        let refused_who = take_who(record.refused_who)?;
        let numbers: RoaringBitmap = targets.iter().map(|target| target.number).collect();
        let what = Acceptance {
            app,
            message: record.message,
            seq,
            body_digest: record.body_digest,
            accepted_at: record.accepted_at,
            expires_at: record.expires_at,
            job_key: &record.job_key.into(),
            part: record.part,
            named: record.named,
            refused: &refused,
            refused_who: &refused_who,
            numbers: Numbers::Many(&numbers),
            accepted: targets.len() as u32,
        };
        let bounds = record_bounds(self.options, self.loaded.index.len());
        let home = MessageKey::of(app, record.message);
        if let Some((mut part, ledger)) = self.part_with(home) {
            part.accept(home, &what, bounds, ledger);
        }
        Ok(())
    }

    /// Entries of a batch ended: at home, and in the push record.
    fn ended(&mut self, key: MessageKey, batch: Seq, seq: Seq, mut end: End<'_>) {
        if self.is_new_at_home(self.loaded.index.part_of_message(key), seq) {
            let ended = self.loaded.index.of_message(key).end(batch, end.count);
            match ended.count() {
                Some(count) => end.count = count,
                // Its push record counts it as pending, and what that has beyond the live ones ends as lost: not what has ended already.
                None if self.is_lost(batch) && !self.is_new_to_tables(batch) => {}
                None => return,
            }
        }
        if self.is_new_to_tables(seq)
            && let Some((mut part, ledger)) = self.part_with(key)
        {
            part.count_end(key, &end, ledger);
        }
    }

    fn point(&self, key: DeviceKey, entry: Entry) {
        if let Some(device) = self.loaded.index.of_device(&key).devices.get_mut(&key) {
            device.push(entry);
        }
    }

    fn copy(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = BatchRecord::decode(at.payload)?;
        let (app, _) = record.names()?;
        let home = MessageKey::of(&app, record.message);
        let part = self.loaded.index.part_of_message(home);
        if !self.is_new_at_home(part, at.seq) {
            return Ok(());
        }
        let batch = self.loaded.index.lock(part).batches.get(&record.seq).cloned();
        if let Some(batch) = batch {
            batch.moved_to(at.place, at.payload.len() as u32);
            self.bodies.insert(&batch, record.body.into());
        }
        Ok(())
    }

    fn device(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = DeviceRecord::decode(at.payload)?;
        self.loaded.next_number = self.loaded.next_number.max(record.number.saturating_add(1));
        let app = self.loaded.apps.app(record.app)?;
        if self.is_new_to_tables(at.seq) {
            self.ledger.registered(&app, record.number, record.last_active);
            self.ledger.active(&app, record.number, record.last_active);
        }
        let app = self.loaded.apps.id(&app);
        let index = &self.loaded.index;
        let mut part = index.of_device(&record.key);
        if self.is_new_at_device(&record.key, at.seq) {
            let described = Described {
                number: record.number,
                app,
                push_on: record.push_on,
                attributes: (
                    digest_of([record.attributes]),
                    u16::try_from(record.attributes.len()).map_err(|_| Malformed)?,
                ),
                last_active: record.last_active,
            };
            part.know(record.key, &described, &index.warmth);
        }
        if self.is_new_to_row(part.number_of(&record.key), record.number, at.seq) && is_in_row(record.changed)
        {
            let attributes = index.attributes.of_bytes(record.attributes);
            let says = Says { device_id: record.device_id.into(), attributes, client_ip: record.client_ip };
            if part.rewrite(&record.key, says, bound_by(record.changed), &index.warmth) {
                self.ledger.changed_rows.push(record.key);
            }
        }
        Ok(())
    }

    /// Whether the row of a device doesn't reflect a record about the one with this number, and is there to be changed: who was forgotten since has
    /// none, and who has the key now is another one.
    fn is_new_to_row(&self, known: Option<u32>, number: u32, seq: Seq) -> bool {
        known == Some(number) && self.is_new_to_tables(seq) && !fault::is(Fault::SkipRows)
    }

    fn binding(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = BindingRecord::decode(at.payload)?;
        let index = &self.loaded.index;
        let known = index.of_device(&record.key).number_of(&record.key);
        if self.is_new_at_device(&record.key, at.seq)
            && let Some(device) = index.of_device(&record.key).devices.get_mut(&record.key)
        {
            device.apply_step(&record.step, &record.app, &self.options.digest_key);
        }
        if !self.is_new_to_row(known, record.number, at.seq) {
            return Ok(());
        }
        match device_with(index, self.tables, &mut self.ledger, &record.key, true) {
            Ok(mut part) => {
                let step = |about: &mut About| about.apply_step(&record.step);
                if part.change_about(&record.key, &index.warmth, step) {
                    self.ledger.changed_rows.push(record.key);
                }
            }
            Err(error) => drop(self.failed.get_or_insert(error)),
        }
        Ok(())
    }

    fn forgotten(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = ForgottenRecord::decode(at.payload)?;
        let index = &self.loaded.index;
        if self.is_new_at_device(&record.key, at.seq) && !fault::is(Fault::KeepForgotten) {
            drop(index.of_device(&record.key).forget(&record.key, &index.warmth));
        }
        if self.is_new_to_tables(at.seq) && !fault::is(Fault::SkipRows) {
            self.ledger.gone_rows.push(record.number);
        }
        Ok(())
    }

    fn active(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        for (key, time) in take_active(at.payload)? {
            if self.is_new_at_device(&key, at.seq) {
                self.loaded.index.of_device(&key).was_active(&key, time);
            }
        }
        Ok(())
    }

    fn receipt(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = ReceiptRecord::decode(at.payload)?;
        let index = &self.loaded.index;
        if record.batch != Seq(0)
            && self.is_new_at_device(&record.key, at.seq)
            && let Some(device) = index.of_device(&record.key).devices.get_mut(&record.key)
        {
            device.apply_receipt(&record);
        }
        let receipt = &record.receipt;
        let new = self.is_new_to_tables(at.seq);
        if new && matches!(receipt.kind, ReceiptKind::Arrive | ReceiptKind::Click | ReceiptKind::Clean) {
            self.ledger.active(&receipt.app, record.number, receipt.event_time);
        }
        if receipt.unmatched {
            return Ok(());
        }
        let home = MessageKey::of(&receipt.app, receipt.message);
        if new && let Some((mut part, ledger)) = self.part_with(home) {
            part.count_receipt(home, receipt, record.number, ledger);
        }
        if let Some(outcome) = receipt.outcome {
            let numbers = Numbers::One(record.number);
            let end = End { app: &receipt.app, at: receipt.event_time, outcome, count: 1, numbers };
            self.ended(home, record.batch, at.seq, end);
        }
        Ok(())
    }

    fn mass(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = MassRecord::decode(at.payload)?;
        let mass = record.mass;
        let home = MessageKey::of(&mass.app, mass.message);
        let numbers = take_bitmap(&record.numbers)?;
        let (outcome, numbers) = (Err(mass.reason), Numbers::Many(&numbers));
        let end = End { app: &mass.app, at: mass.event_time, outcome, count: mass.count, numbers };
        if record.batch == Seq(0) {
            if self.is_new_to_tables(at.seq)
                && let Some((mut part, ledger)) = self.part_with(home)
            {
                part.count_end(home, &end, ledger);
            }
            return Ok(());
        }
        self.ended(home, record.batch, at.seq, end);
        self.masses.entry(record.batch).or_default().push(mass.ordinals);
        Ok(())
    }

    fn recall(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = RecallRecord::decode(at.payload)?;
        let app = self.loaded.apps.app(record.app)?;
        let one = Arc::new(Recall::new(at.seq, app, record.message, record.at, record.until));
        let part = self.loaded.index.part_of_message(one.home);
        if self.is_new_at_home(part, at.seq) && !fault::is(Fault::ForgetRecalls) {
            self.loaded.index.lock(part).recalls.insert(one.home, one);
        }
        Ok(())
    }

    fn epoch(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let mut take = Take(at.payload);
        let (key, revocation) = take_epoch(&mut take)?;
        if !take.0.is_empty() {
            return Err(Malformed);
        }
        if self.is_new_at_device(&key, at.seq) && !fault::is(Fault::ForgetRevocations) {
            self.loaded.index.of_device(&key).revocations.insert(key, revocation);
        }
        Ok(())
    }

    /// Records that couldn't be understood, and entries whose batch has no record.
    pub(super) fn left_out(&self) -> u64 {
        let held: u64 = self.loaded.held.values().map(|held| held.len() as u64).sum();
        self.malformed + held
    }

    /// The lists without what ended. An entry of a batch that isn't live at home can only be left by a damaged record.
    pub(super) fn tidy(&mut self) {
        for part in 0..self.loaded.index.len() {
            for device in self.loaded.index.lock(part).devices.values_mut() {
                device.pending.retain(|entry| {
                    let ended = self.masses.get(&entry.batch.seq);
                    let ended =
                        ended.is_some_and(|all| all.iter().any(|ordinals| ordinals.contains(entry.ordinal)));
                    entry.batch.is_live() && !ended
                });
            }
        }
    }
}
