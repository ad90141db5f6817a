//! Replay: what a record had decided is applied to every part that doesn't reflect it yet.

use std::collections::HashMap;
use std::sync::Arc;

use roaring::RoaringBitmap;

use super::deliver::{id_bounds, messages_of_part, recovered_batch};
use super::load::Loaded;
use crate::ids::{DeviceKey, Seq};
use crate::push::Failure;
use crate::store::batch::Batch;
use crate::store::batch_ids::{Remembered, id_key};
use crate::store::body_cache::BodyCache;
use crate::store::codec::{Malformed, Take};
use crate::store::fault::{self, Fault};
use crate::store::journal::Record;
use crate::store::options::StoreOptions;
use crate::store::part::{About, Entry, OF_ACCOUNT, Spread};
use crate::store::part_messages::Acceptance;
use crate::store::push_record::{MessageKey, Numbers, take_bitmap};
use crate::store::record::device::take_active;
use crate::store::record::{
    self, BatchRecord, BindingRecord, DeviceRecord, ForgottenRecord, MassRecord, ReceiptRecord, Target,
    has_ordinal, take_epoch, take_refused,
};

/// The index, on its way to the journal's head.
pub(super) struct Replay<'a> {
    pub(super) loaded: Loaded,
    pub(super) options: &'a StoreOptions,
    pub(super) bodies: &'a BodyCache,
    /// Ordinals that ended together, by batch. They leave the lists at the end, in one pass: whose they were stands in records that may be gone.
    pub(super) masses: HashMap<Seq, Vec<Vec<u8>>, Spread>,
    /// Records that couldn't be understood.
    pub(super) malformed: u64,
}

impl Replay<'_> {
    pub(super) fn apply(&mut self, at: Record<'_>) {
        let applied = match at.kind {
            record::BATCH => self.batch(at),
            record::COPY => self.copy(at),
            record::DEVICE => self.device(at),
            record::RECEIPT => self.receipt(at),
            record::MASS => self.mass(at),
            record::CURSOR | record::STREAM | record::ROUTE | record::GAP | record::RETIRED => {
                self.loaded.streams.apply(at.kind, at.seq, at.payload)
            }
            record::EPOCH => self.epoch(at),
            record::BINDING => self.binding(at),
            record::FORGOTTEN => self.forgotten(at),
            record::ACTIVE => self.active(at),
            _ => Err(Malformed),
        };
        if let Ok(Some(app)) = record::app_of(at.kind, at.payload) {
            self.loaded.streams.note_event(app, at.seq);
        }
        if applied.is_err() {
            self.malformed += 1;
            tracing::error!(sequence = %at.seq, kind = at.kind, "a journal record can't be understood");
        }
    }

    /// Whether the part's push records, batches and ids don't reflect it.
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
        let (key, home) = (id_key(&app, &id), MessageKey::of(&app, record.message));
        let parts = self.loaded.index.len();
        let id_part = self.loaded.index.part_of_id(key);
        if self.is_new_at_home(id_part, at.seq) {
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
        let batch = if self.is_new_at_home(home_part, at.seq) {
            self.accepted_again(&record, &targets, home, at)?
        } else {
            self.loaded.index.lock(home_part).batches.get(&at.seq).cloned()
        };
        // Not live at home: all its entries ended before the home's slice was cut, and their ends follow.
        let Some(batch) = batch else { return Ok(()) };
        let listed = targets.iter().filter(|target| !has_ordinal(record.unbound, target.ordinal));
        for target in listed {
            if self.is_new_at_device(&target.key, at.seq) {
                let of_account = has_ordinal(record.of_account, target.ordinal);
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

    fn accepted_again(
        &mut self,
        record: &BatchRecord<'_>,
        targets: &[Target],
        home: MessageKey,
        at: Record<'_>,
    ) -> Result<Option<Arc<Batch>>, Malformed> {
        let refused = take_refused(record.refused)?;
        let live = if targets.is_empty() {
            None
        } else {
            let batch = recovered_batch(record, targets)?;
            batch.moved_to(at.place, at.payload.len() as u32);
            Some(Arc::new(batch))
        };
        let numbers: RoaringBitmap = targets.iter().map(|target| target.number).collect();
        let what = Acceptance {
            body_digest: record.body_digest,
            accepted_at: record.accepted_at,
            expires_at: record.expires_at,
            job_key: &record.job_key.into(),
            named: record.named,
            refused: &refused,
            numbers: Numbers::Many(&numbers),
            accepted: targets.len() as u32,
        };
        let max = messages_of_part(self.options, self.loaded.index.len());
        let mut part = self.loaded.index.of_message(home);
        part.accept(home, &what, live.clone(), max);
        let unbound = targets.iter().filter(|target| has_ordinal(record.unbound, target.ordinal));
        let numbers: RoaringBitmap = unbound.clone().map(|target| target.number).collect();
        let count = unbound.count() as u32;
        if count > 0 {
            part.end(home, record.seq, Err(Failure::Unbound), count, Numbers::Many(&numbers));
        }
        Ok(live.filter(|batch| batch.is_live()))
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
        if !self.is_new_at_device(&record.key, at.seq) {
            return Ok(());
        }
        let about = About {
            app: self.loaded.interned.app(record.app)?,
            device_id: record.device_id.into(),
            attributes: self.loaded.interned.attributes(record.attributes),
            client_ip: record.client_ip,
            last_active: record.last_active,
            bindings: None,
        };
        let mut part = self.loaded.index.of_device(&record.key);
        part.know(record.key, record.number, record.push_on, about);
        Ok(())
    }

    fn binding(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = BindingRecord::decode(at.payload)?;
        if self.is_new_at_device(&record.key, at.seq)
            && let Some(device) = self.loaded.index.of_device(&record.key).devices.get_mut(&record.key)
        {
            device.apply_step(&record.step, &self.options.digest_key);
        }
        Ok(())
    }

    fn forgotten(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = ForgottenRecord::decode(at.payload)?;
        if self.is_new_at_device(&record.key, at.seq) {
            self.loaded.index.of_device(&record.key).devices.remove(&record.key);
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
        let home = MessageKey::of(&receipt.app, receipt.message);
        if receipt.unmatched || !self.is_new_at_home(index.part_of_message(home), at.seq) {
            return Ok(());
        }
        let mut part = index.of_message(home);
        part.count_receipt(home, receipt, record.number);
        if let Some(outcome) = receipt.outcome {
            part.end(home, record.batch, outcome, 1, Numbers::One(record.number));
        }
        Ok(())
    }

    fn mass(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let record = MassRecord::decode(at.payload)?;
        let mass = record.mass;
        let home = MessageKey::of(&mass.app, mass.message);
        if self.is_new_at_home(self.loaded.index.part_of_message(home), at.seq) {
            let numbers = take_bitmap(&record.numbers)?;
            let mut part = self.loaded.index.of_message(home);
            part.end(home, record.batch, Err(mass.reason), mass.count, Numbers::Many(&numbers));
        }
        self.masses.entry(record.batch).or_default().push(mass.ordinals);
        Ok(())
    }

    fn epoch(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        let mut take = Take(at.payload);
        let (key, revocation) = take_epoch(&mut take)?;
        if !take.0.is_empty() {
            return Err(Malformed);
        }
        if self.is_new_at_device(&key, at.seq) {
            self.loaded.index.of_device(&key).revocations.insert(key, revocation);
        }
        Ok(())
    }

    /// The lists without what ended. An entry of a batch that isn't live at home can only be left by a damaged record.
    pub(super) fn tidy(&mut self) {
        for part in 0..self.loaded.index.len() {
            for device in self.loaded.index.lock(part).devices.values_mut() {
                device.pending.retain(|entry| {
                    let ended = self.masses.get(&entry.batch.seq);
                    let ended =
                        ended.is_some_and(|all| all.iter().any(|bits| has_ordinal(bits, entry.ordinal)));
                    entry.batch.is_live() && !ended
                });
            }
        }
    }
}
