//! One part of the pending index. A device's record and list, a message's push record and live batches, and a batch id's
//! answer each live in exactly one part, chosen by their digest, and every effect of a journal record belongs to exactly one
//! part: so a checkpoint can be written part by part while batches and acks go on.
//!
//! Only the store's thread changes a part, but for three annotations that no record rests on: when an entry was first
//! written to a connection, where a device came from last, and that it comes back just now.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::batch::Batch;
use super::batch_ids::BatchIds;
use super::fault::{self, Fault};
use super::push_record::{MessageKey, PushRecord};
use super::recalls::Recall;
use super::record::ReceiptRecord;
use crate::binding::{Binding, Bindings, Step};
use crate::credential::Revocation;
use crate::ids::{AccountDigest, AppKey, DeviceKey, DigestKey, MessageId, Seq};
use crate::push::{Attributes, Millis, Priority, ReceiptKind};

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

/// What receipts say of a device; apart, because admission looks at many devices and needs none of it.
#[derive(Clone, Debug)]
pub(super) struct About {
    pub(super) app: AppKey,
    pub(super) device_id: Arc<str>,
    pub(super) attributes: Attributes,
    pub(super) client_ip: Option<IpAddr>,
    /// Journaled about once in an eighth of the time after which a device is forgotten, and with every record about it.
    pub(super) last_active: Millis,
    /// Shared with nobody but copies of this made for receipts; `None`: none.
    pub(super) bindings: Option<Arc<Bindings>>,
}

/// A known device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) number: u32,
    pub(super) push_on: bool,
    /// A Hello found it known, and its session hasn't said so yet: it isn't forgotten meanwhile.
    pub(super) returning: bool,
    pub(super) pending: Pending,
    pub(super) about: Box<About>,
    /// The account that it is bound to.
    pub(super) account: Option<AccountDigest>,
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
        let entry = self.pending.remove(at);
        if self.pending.spilled() && self.pending.len() <= 1 {
            // A list that grew long is rare: the room goes back.
            self.pending.shrink_to_fit();
        }
        Some(entry)
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
    pub(super) fn apply_step(&mut self, step: &Step, digest_key: &DigestKey) {
        let bindings = Arc::make_mut(self.about.bindings.get_or_insert_default());
        bindings.apply(step);
        if bindings.is_empty() {
            self.about.bindings = None;
        }
        if let Binding::Account(account) = &step.binding {
            self.account = step.bound.then(|| AccountDigest::of(digest_key, &self.about.app, account));
            if !fault::is(Fault::KeepUnbound) {
                self.pending.retain(|entry| !entry.is_of_account());
            }
        }
    }

    pub(super) fn entry(&self, message: MessageId) -> Option<&Entry> {
        self.pending.iter().find(|entry| entry.batch.message == message)
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
    pub(super) devices: HashMap<DeviceKey, Device, Spread>,
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

    /// Push records, wherever they are.
    pub(super) fn known_messages(&self) -> usize {
        self.messages.len() + self.cold.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_sixteen_bytes_and_a_device_forty_eight() {
        assert_eq!((size_of::<Entry>(), size_of::<Cold>()), (16, 16));
        assert_eq!(size_of::<Device>(), 48);
    }
}
