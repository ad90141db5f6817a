//! One part of the pending index. A device's record and list, a message's push record and live batches, and a batch id's
//! answer each live in exactly one part, chosen by their digest, and every effect of a journal record belongs to exactly one
//! part: so a checkpoint can be written part by part while batches and acks go on.
//!
//! A device's hot row is here for as long as it is known: what admission, delivery, expiry and forgetting need. What receipts and operators need
//! of it beside that is its cold row, [`super::device_row`], which is here only while it is used or not written yet.
//!
//! Only the store's thread changes a part, but for four annotations that no record rests on: when an entry was first written to a
//! connection, where a device came from last, that it comes back just now, and that its cold row is in memory because its Hello said what is in it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;

use super::batch::Batch;
use super::batch_ids::BatchIds;
use super::device_map::Devices;
use super::device_row::{About, Bound, Says, Warmth};
use super::push_record::{MessageKey, PushRecord};
use super::recalls::Recall;
use super::record::ReceiptRecord;
use crate::binding::{Binding, Step};
use crate::credential::Revocation;
use crate::fault::{self, Fault};
use crate::ids::{AccountDigest, AppKey, DeviceKey, DigestKey, MessageId, Seq};
use crate::push::{Millis, Priority, ReceiptKind};

/// Keys are digests: their own bytes are the hash.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length of an array: no news.
    fn write_usize(&mut self, _: usize) {}

    fn write_u64(&mut self, value: u64) {
        // Sequences are no digests: an odd factor spreads them over high and low bits.
        let mixed = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

/// See [`SpreadHasher`].
pub(super) type Spread = BuildHasherDefault<SpreadHasher>;

/// One pending message of one device: 16 bytes.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) batch: Arc<Batch>,
    pub(super) ordinal: u32,
    /// Two flags; the rest: 0, or 1 + milliseconds from acceptance to the first writing.
    mark: u32,
}

/// `sent` was reported on its own.
const SENT_REPORTED: u8 = 1;
/// It was resolved from the account that the device is bound to: it ends when that binding goes.
pub(super) const OF_ACCOUNT: u8 = 2;
/// Bits of flags.
const FLAGS: u32 = 2;

impl Entry {
    pub(super) fn new(batch: Arc<Batch>, ordinal: u32, flags: u8) -> Self {
        Self { batch, ordinal, mark: u32::from(flags) & ((1 << FLAGS) - 1) }
    }

    /// Flags as [`Entry::new`] takes them: what checkpoints keep.
    pub(super) fn flags(&self) -> u8 {
        (self.mark & ((1 << FLAGS) - 1)) as u8
    }

    pub(super) fn is_of_account(&self) -> bool {
        self.flags() & OF_ACCOUNT != 0
    }

    pub(super) fn written_at(&self) -> Option<Millis> {
        let after = (self.mark >> FLAGS).checked_sub(1)?;
        Some(self.batch.accepted_at + u64::from(after))
    }

    /// The first writing counts. 30 bits of milliseconds are 12 days, retention is three.
    pub(super) fn mark_written(&mut self, now: Millis) {
        if self.mark >> FLAGS == 0 {
            let after = now.saturating_sub(self.batch.accepted_at).min(u64::from(u32::MAX >> FLAGS) - 1);
            self.mark |= (after as u32 + 1) << FLAGS;
        }
    }

    pub(super) fn sent_reported(&self) -> bool {
        self.flags() & SENT_REPORTED != 0
    }

    pub(super) fn report_sent(&mut self) {
        self.mark |= u32::from(SENT_REPORTED);
    }
}

/// A device's list: high priority before normal, each oldest first.
pub(super) type Pending = SmallVec<[Entry; 1]>;

/// Takes the entry at this place out.
pub(super) fn take_at(pending: &mut Pending, at: usize) -> Entry {
    let entry = pending.remove(at);
    if pending.spilled() && pending.len() <= 1 {
        // A list that grew long is rare: the room goes back.
        pending.shrink_to_fit();
    }
    entry
}

/// An app, by its place among those that are known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct AppId(pub(super) u32);

/// A device as its record describes it, without its cold row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Described {
    pub(super) number: u32,
    pub(super) app: AppId,
    pub(super) push_on: bool,
    /// Digest and length of its attributes.
    pub(super) attributes: (u64, u16),
    pub(super) last_active: Millis,
}

/// A known device: its hot row. 64 bytes.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) pending: Pending,
    /// The account that it is bound to.
    pub(super) account: Option<AccountDigest>,
    /// Digest of its attributes: whether a Hello has others.
    attributes: u64,
    /// Its cold row, while that is in memory.
    pub(super) about: Option<Box<About>>,
    /// Of this device since it is known; nobody had it before, and nobody gets it again.
    pub(super) number: u32,
    /// In seconds since 1970, rounded down.
    active_s: u32,
    pub(super) app: AppId,
    attributes_len: u16,
    pub(super) push_on: bool,
    /// The flags that follow.
    flags: u8,
}

/// A Hello found it known, or its session has ended, and when it was last active isn't known since: it isn't forgotten meanwhile.
const RETURNING: u8 = 1;
/// It may be bound to something.
const MAY_BE_BOUND: u8 = 2;
/// Its row can't be read, and nothing but its next Hello tells what was in it.
const LOST: u8 = 4;

impl Device {
    pub(super) fn new(described: &Described) -> Self {
        let mut device = Self {
            pending: Pending::new(),
            account: None,
            attributes: 0,
            about: None,
            number: described.number,
            active_s: seconds(described.last_active),
            app: described.app,
            attributes_len: 0,
            push_on: false,
            flags: 0,
        };
        device.describe(described);
        device
    }

    /// It is now as a record says; its list and what it is bound to stay. So does the time of its last activity, which its sessions report: a Hello
    /// alone does not mean that it was told what it has to be.
    fn describe(&mut self, described: &Described) {
        (self.attributes, self.attributes_len) = described.attributes;
        self.number = described.number;
        self.app = described.app;
        self.push_on = described.push_on;
    }

    /// As [`Self::describe`] takes it.
    pub(super) fn described(&self) -> Described {
        Described {
            number: self.number,
            app: self.app,
            push_on: self.push_on,
            attributes: (self.attributes, self.attributes_len),
            last_active: self.last_active(),
        }
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn set(&mut self, flag: u8, on: bool) {
        if on { self.flags |= flag } else { self.flags &= !flag }
    }

    pub(super) fn is_returning(&self) -> bool {
        self.has(RETURNING)
    }

    pub(super) fn returns(&mut self) {
        self.set(RETURNING, true);
    }

    pub(super) fn may_be_bound(&self) -> bool {
        self.has(MAY_BE_BOUND)
    }

    pub(super) fn set_may_be_bound(&mut self, may: bool) {
        self.set(MAY_BE_BOUND, may);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.has(LOST)
    }

    /// As exactly as it is kept: rounded down to a second.
    pub(super) fn last_active(&self) -> Millis {
        Millis::from(self.active_s) * 1_000
    }

    /// The last moment at which it may have been active.
    pub(super) fn active_until(&self) -> Millis {
        self.last_active() + 999
    }

    /// Whether these are its attributes, by their digest and length.
    pub(super) fn has_attributes(&self, digest: u64, len: usize) -> bool {
        (self.attributes, self.attributes_len()) == (digest, len)
    }

    pub(super) fn attributes_len(&self) -> usize {
        usize::from(self.attributes_len)
    }

    /// What its row in the table has of its bindings, as far as the hot row tells.
    pub(super) fn bound_in_table(&self) -> Bound {
        if self.may_be_bound() && !fault::is(Fault::LoseBindings) {
            Bound::InTable
        } else {
            Bound::Known(None)
        }
    }
}

fn seconds(at: Millis) -> u32 {
    u32::try_from(at / 1_000).unwrap_or(u32::MAX)
}

impl Device {
    /// Puts an entry in. In normal work it is the newest of its priority; while a checkpoint is completed by replay an older one may follow.
    pub(super) fn push(&mut self, entry: Entry) {
        let rank = |entry: &Entry| {
            let by_place = fault::is(Fault::OrderByPlace);
            let order = if by_place { entry.batch.place().pack() } else { entry.batch.seq.0 };
            (entry.batch.priority == Priority::Normal, order)
        };
        let new = rank(&entry);
        let at = self.pending.iter().rposition(|other| rank(other) <= new).map_or(0, |i| i + 1);
        self.pending.insert(at, entry);
    }

    /// Where high priority ends and normal begins.
    pub(super) fn first_normal(&self) -> usize {
        self.pending.partition_point(|entry| entry.batch.priority == Priority::High)
    }

    /// Takes the entry of this batch out.
    pub(super) fn take(&mut self, batch: Seq) -> Option<Entry> {
        let at = self.pending.iter().position(|entry| entry.batch.seq == batch)?;
        Some(take_at(&mut self.pending, at))
    }

    /// What a receipt about it changes here: its entry ends, or is marked.
    pub(super) fn apply_receipt(&mut self, record: &ReceiptRecord) {
        if record.receipt.outcome.is_some() {
            self.take(record.batch);
        } else if record.receipt.kind == ReceiptKind::Sent
            && let Some(entry) = self.pending.iter_mut().find(|entry| entry.batch.seq == record.batch)
        {
            entry.report_sent();
        }
    }

    /// A binding comes or goes. What ended with it was taken out before; only where those records are damaged something may be left, and
    /// nobody sees it any more.
    pub(super) fn apply_step(&mut self, step: &Step, app: &AppKey, digest_key: &DigestKey) {
        if step.bound {
            self.set_may_be_bound(true);
        }
        if let Binding::Account(account) = &step.binding {
            self.account = step.bound.then(|| AccountDigest::of(digest_key, app, account));
            if !fault::is(Fault::KeepUnbound) {
                self.pending.retain(|entry| !entry.is_of_account());
            }
        }
    }

    pub(super) fn entry(&self, message: MessageId) -> Option<&Entry> {
        self.pending.iter().find(|entry| entry.batch.message == message)
    }

    /// Whether it has an entry of the message, no batch of which is older than `first`: seen from the end, so that nothing older is looked at.
    pub(super) fn has_since(&self, message: MessageId, priority: Priority, first: Seq) -> bool {
        let end = if priority == Priority::High { self.first_normal() } else { self.pending.len() };
        let since = self.pending[..end].iter().rev();
        let mut since =
            since.take_while(|entry| entry.batch.priority == priority && entry.batch.seq >= first);
        since.any(|entry| entry.batch.message == message)
    }
}

/// A push record that is in the tables only: 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cold {
    /// Its row: the sequence of its first batch.
    pub(super) row: Seq,
    /// When it was accepted, and in the low bit whether entries are pending.
    mark: u64,
}

impl Cold {
    pub(super) fn new(row: Seq, accepted_at: Millis, pending: bool) -> Self {
        Self { row, mark: accepted_at << 1 | u64::from(pending) }
    }

    pub(super) fn at(self, row: Seq) -> Self {
        Self { row, ..self }
    }

    pub(super) fn accepted_at(self) -> Millis {
        self.mark >> 1
    }

    pub(super) fn is_pending(self) -> bool {
        self.mark & 1 == 1
    }
}

/// One part.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) devices: Devices,
    /// Devices of which credentials were revoked. Apart from `devices`: they are few, and a device that is forgotten stays revoked.
    pub(super) revocations: HashMap<DeviceKey, Revocation, Spread>,
    /// Push records in memory: what has changed, and what was touched lately.
    pub(super) messages: HashMap<MessageKey, PushRecord, Spread>,
    /// Those that are in the tables only.
    pub(super) cold: HashMap<MessageKey, Cold, Spread>,
    /// Keys of both, the first accepted first.
    pub(super) message_order: VecDeque<MessageKey>,
    /// Live batches whose message is here.
    pub(super) batches: HashMap<Seq, Arc<Batch>, Spread>,
    pub(super) ids: BatchIds,
    /// Messages of this part that were taken back.
    pub(super) recalls: HashMap<MessageKey, Arc<Recall>, Spread>,
}

impl Part {
    /// A batch of the message was accepted: if it was taken back, that is remembered as long as it lives. What was over by then stays over.
    pub(super) fn extend_recall(&self, key: MessageKey, accepted_at: Millis, expires_at: Millis) {
        if let Some(recall) = self.recalls.get(&key).filter(|recall| recall.holds(accepted_at)) {
            recall.extend(expires_at);
        }
    }

    /// A device is as its record says; its list and what it is bound to stay, if it is the one that was known before.
    pub(super) fn know(&mut self, key: DeviceKey, described: &Described, warmth: &Warmth) {
        if self.number_of(&key).is_some_and(|before| before != described.number) {
            // Its end stands in a record that couldn't be read; nothing of it is left but what still waits.
            let before = self.forget(&key, warmth);
            let pending = before.map(|before| before.pending).unwrap_or_default();
            self.devices.insert(key, Device { pending, ..Device::new(described) });
        }
        let device = self.devices.get_or_insert_with(key, || Device::new(described));
        device.describe(described);
    }

    /// The device's number, if it is known.
    pub(super) fn number_of(&self, key: &DeviceKey) -> Option<u32> {
        self.devices.get(key).map(|device| device.number)
    }

    /// A known device was active at this time; what was known before.
    pub(super) fn was_active(&mut self, key: &DeviceKey, at: Millis) -> Option<Millis> {
        let device = self.devices.get_mut(key)?;
        device.set(RETURNING, false);
        let before = device.last_active();
        device.active_s = device.active_s.max(seconds(at));
        Some(before)
    }

    /// A device is known no more.
    pub(super) fn forget(&mut self, key: &DeviceKey, warmth: &Warmth) -> Option<Device> {
        self.cool(key, warmth);
        self.devices.remove(key)
    }

    /// The cold row of a known device, as far as it is in memory.
    pub(super) fn about(&self, key: &DeviceKey) -> Option<&About> {
        self.devices.get(key)?.about.as_deref()
    }

    /// The cold row of a known device is this, in memory from now on.
    pub(super) fn warm(&mut self, key: &DeviceKey, about: About, warmth: &Warmth) {
        let Some(device) = self.devices.get_mut(key) else { return };
        device.set(LOST, false);
        let mut about = Box::new(about);
        if let Some(before) = &device.about {
            warmth.left(before);
        }
        warmth.came(&mut about);
        device.about = Some(about);
    }

    /// The row in the table can't be read as it was written.
    pub(super) fn lose(&mut self, key: &DeviceKey) {
        if let Some(device) = self.devices.get_mut(key) {
            device.set(LOST, true);
        }
    }

    /// Completes or corrects a cold row that is in memory.
    pub(super) fn edit_about(
        &mut self,
        key: &DeviceKey,
        warmth: &Warmth,
        edit: impl FnOnce(&mut About),
    ) -> Option<&mut About> {
        let about = self.devices.get_mut(key)?.about.as_mut()?;
        edit(about);
        about.touched = true;
        warmth.changed(about);
        Some(about)
    }

    /// Changes a cold row that is in memory. Whether it has to be written from now on, and hadn't to before.
    pub(super) fn change_about(
        &mut self,
        key: &DeviceKey,
        warmth: &Warmth,
        change: impl FnOnce(&mut About),
    ) -> bool {
        let about = self.edit_about(key, warmth, change);
        about.is_some_and(|about| !std::mem::replace(&mut about.dirty, true))
    }

    /// The cold row of a known device says this, and is to be written. What it is bound to stays, wherever that is, or is `bound`. Whether it
    /// hadn't to be written before.
    pub(super) fn rewrite(
        &mut self,
        key: &DeviceKey,
        says: Says,
        bound: Option<Bound>,
        warmth: &Warmth,
    ) -> bool {
        let Some(device) = self.devices.get(key) else { return false };
        if device.about.is_none() {
            let bound = bound.clone().unwrap_or_else(|| device.bound_in_table());
            self.warm(key, About::new(says.clone(), bound), warmth);
        }
        self.change_about(key, warmth, |about| {
            about.device_id = says.device_id;
            about.attributes = says.attributes;
            about.client_ip = says.client_ip;
            if let Some(bound) = bound {
                about.set_bound(bound);
            }
        })
    }

    fn cool(&mut self, key: &DeviceKey, warmth: &Warmth) {
        if let Some(about) = self.devices.get_mut(key).and_then(|device| device.about.take()) {
            warmth.left(&about);
        }
    }

    /// Cold rows that nobody used lately leave memory, as far as it is too full; only those that are in the table as they are. It goes on with the
    /// device at which it stopped. How many were looked at, at most `looks`.
    pub(super) fn make_room(&mut self, looks: usize, warmth: &Warmth) -> usize {
        let mut looked_at = 0;
        self.devices.walk(|device| {
            if looked_at == looks || !warmth.is_full() {
                return false;
            }
            looked_at += 1;
            let Some(about) = &mut device.about else { return true };
            let changed = about.dirty && !fault::is(Fault::ForgetChangedRows);
            if !std::mem::take(&mut about.touched) && !changed {
                warmth.left(about);
                device.about = None;
            }
            true
        });
        looked_at
    }

    /// Push records, wherever they are.
    pub(super) fn known_messages(&self) -> usize {
        self.messages.len() + self.cold.len()
    }
}

#[cfg(test)]
mod tests;
