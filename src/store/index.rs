//! The pending index: all parts, and what sessions may ask of them from their own threads.
//!
//! Locks are short, and only one part is locked at a time, but by who touches many and waits for none. What is not durable yet is in the index already, but no session
//! sees it: a list is only read up to the committed sequence.

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smallvec::SmallVec;

use super::Pulled;
use super::attributes::{SharedAttributes, digest};
use super::device_row::{About, Says, Warmth};
use super::part::{Device, Entry, Part, Spread};
use super::push_record::MessageKey;
use super::recalls::Recall;
use crate::credential::Revocation;
use crate::fault::{self, Fault};
use crate::ids::{DeviceKey, Seq};
use crate::push::{Millis, Reached, Seen};
use crate::sync::{Mutex, MutexGuard, step};

/// The entry as a session writes it now, from then on marked as written; `None`: not to be written any more.
fn take(entry: &mut Entry, now: Millis) -> Option<Pulled> {
    let batch = &entry.batch;
    let redelivered = entry.written_at().is_some() || batch.recovered;
    let is_repeat = batch.online_only && redelivered && !fault::is(Fault::RepeatOnlineOnly);
    if batch.expires_at <= now || batch.is_revoked() || is_repeat {
        return None;
    }
    let pulled = Pulled { batch: batch.clone(), ordinal: entry.ordinal, redelivered };
    entry.mark_written(now);
    Some(pulled)
}

/// Devices that are touched together.
pub(super) const TOUCHED: usize = 32;

/// All parts.
#[derive(Debug)]
pub(super) struct Index {
    parts: Box<[Mutex<Part>]>,
    /// Everything up to here is durable.
    committed: AtomicU64,
    /// Arrivals are being taken: out of their lists already, and perhaps not yet in their push records.
    arriving: AtomicBool,
    /// Devices of the group being staged: what is new of them isn't durable.
    staged: Mutex<HashSet<DeviceKey, Spread>>,
    /// Of the devices' cold rows.
    pub(super) warmth: Warmth,
    pub(super) attributes: SharedAttributes,
}

impl Index {
    /// With so many bytes of cold rows in memory, about.
    pub(super) fn new(parts: usize, device_cache_bytes: usize) -> Self {
        Self {
            parts: (0..parts.max(1)).map(|_| Mutex::default()).collect(),
            committed: AtomicU64::new(0),
            arriving: AtomicBool::new(false),
            staged: Mutex::default(),
            warmth: Warmth::new(device_cache_bytes),
            attributes: SharedAttributes::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn lock(&self, part: usize) -> MutexGuard<'_, Part> {
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a digest that the hash of a map doesn't use.
    fn choose(&self, digest: u128) -> usize {
        (digest >> 64) as u32 as usize % self.parts.len()
    }

    pub(super) fn part_of_device(&self, key: &DeviceKey) -> usize {
        self.choose(u128::from_le_bytes(key.0))
    }

    pub(super) fn part_of_message(&self, key: MessageKey) -> usize {
        self.choose(key.0)
    }

    pub(super) fn part_of_id(&self, key: u128) -> usize {
        self.choose(key)
    }

    pub(super) fn of_device(&self, key: &DeviceKey) -> MutexGuard<'_, Part> {
        self.lock(self.part_of_device(key))
    }

    pub(super) fn of_message(&self, key: MessageKey) -> MutexGuard<'_, Part> {
        self.lock(self.part_of_message(key))
    }

    pub(super) fn committed(&self) -> Seq {
        step();
        Seq(self.committed.load(Ordering::Acquire))
    }

    pub(super) fn set_committed(&self, seq: Seq) {
        step();
        self.committed.store(seq.0, Ordering::Release);
        // Its room goes back too: a storm is no reason to keep it.
        *self.staged.lock().unwrap_or_else(PoisonError::into_inner) = HashSet::default();
    }

    /// A record of this device was staged.
    pub(super) fn note_staged(&self, device: DeviceKey) {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).insert(device);
    }

    fn is_staged(&self, device: &DeviceKey) -> bool {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).contains(device)
    }

    /// See [`super::Store::pull`].
    pub(super) fn pull(
        &self,
        device: &DeviceKey,
        after: Reached,
        max: usize,
        now: Millis,
        out: &mut Vec<Pulled>,
    ) {
        let committed = if fault::is(Fault::PullUncommitted) { Seq(u64::MAX) } else { self.committed() };
        let mut part = self.of_device(device);
        let Some(device) = part.devices.get_mut(device) else { return };
        let first_normal = device.first_normal();
        let (high, normal) = device.pending.split_at_mut(first_normal);
        let mut left = max;
        for (entries, after) in [(high, after.high), (normal, after.normal)] {
            let from = entries.partition_point(|entry| entry.batch.seq <= after);
            for entry in &mut entries[from..] {
                if left == 0 || entry.batch.seq > committed {
                    break;
                }
                if let Some(pulled) = take(entry, now) {
                    out.push(pulled);
                    left -= 1;
                }
            }
        }
    }

    /// See [`super::Store::touch`]; `cold_too`: what receipts need of them as well. Their parts are locked before anything is read: to take a lock is to wait
    /// for whatever is read before it. A part that somebody has, this thread for another of them perhaps, is passed by.
    pub(super) fn touch<'a>(&self, devices: impl ExactSizeIterator<Item = &'a DeviceKey>, cold_too: bool) {
        if devices.len() < 2 {
            return;
        }
        let lock = |key| Some((key, self.parts[self.part_of_device(key)].try_lock().ok()?));
        let parts: SmallVec<[_; TOUCHED]> = devices.filter_map(lock).collect();
        for (key, part) in &parts {
            let device = part.devices.get(key);
            black_box(device.map(|device| (device.number, device.pending.len())));
            if cold_too && let Some(about) = device.and_then(|device| device.about.as_ref()) {
                let attributes = about.attributes.parts().map(|part| part.first().copied());
                black_box((attributes, about.device_id.as_bytes().first().copied()));
            }
        }
    }

    /// See [`super::Store::may_have`]. One part is locked at a time: the device's first.
    pub(super) fn may_have(&self, key: &DeviceKey, recall: &Recall, opened_at: Millis) -> bool {
        let number = {
            let part = self.of_device(key);
            let Some(device) = part.devices.get(key) else { return false };
            if let Some(entry) = device.entry(recall.message)
                && (entry.written_at().is_some() || entry.batch.recovered)
            {
                return true;
            }
            device.number
        };
        let is_known = || {
            let part = self.of_message(recall.home);
            part.messages.get(&recall.home).is_some_and(|record| record.may_be_on(number, opened_at))
        };
        // What is neither here nor there is on its way; or it has come just now.
        is_known() || self.is_arriving() || is_known()
    }

    /// Arrivals are taken from here on, or no more.
    pub(super) fn set_arriving(&self, arriving: bool) {
        step();
        self.arriving.store(arriving, Ordering::Release);
    }

    fn is_arriving(&self) -> bool {
        step();
        self.arriving.load(Ordering::Acquire)
    }

    /// See [`super::Store::last_active`].
    pub(super) fn last_active(&self, key: &DeviceKey) -> Option<Millis> {
        self.of_device(key).devices.get(key).map(Device::last_active)
    }

    /// See [`super::Store::expect_active`].
    pub(super) fn expect_active(&self, key: &DeviceKey) {
        if let Some(device) = self.of_device(key).devices.get_mut(key) {
            device.returns();
        }
    }

    /// See [`super::Store::is_current`]. A Hello says all that is in the device's cold row but what it is bound to: so who comes back brings its
    /// row into memory, and nothing is read when it acknowledges.
    pub(super) fn is_current(&self, seen: &Seen) -> bool {
        if seen.state_lost {
            return false;
        }
        let attributes = digest(&seen.attributes);
        let mut part = self.of_device(&seen.key);
        let Some(device) = part.devices.get_mut(&seen.key) else { return false };
        let current = device.has_attributes(attributes, seen.attributes.len())
            && !device.is_lost()
            && seen.push_on.is_none_or(|push_on| push_on == device.push_on);
        if current {
            device.returns();
            // Phones change their address with every network: worth knowing, not worth a record each time.
            if let Some(about) = &mut device.about {
                about.client_ip = Some(seen.client_ip);
                about.touched = true;
            } else if !self.warmth.is_overfull() {
                let attributes = self.attributes.share(&seen.attributes);
                let (device_id, client_ip) = (seen.device_id.clone(), Some(seen.client_ip));
                let says = Says { device_id, attributes, client_ip };
                let about = About::new(says, device.bound_in_table());
                part.warm(&seen.key, about, &self.warmth);
            }
        }
        drop(part);
        // What another session said a moment ago and isn't durable yet is no reason to welcome this one.
        current && !self.is_staged(&seen.key)
    }

    /// See [`super::Store::revocation`].
    pub(super) fn revocation(&self, device: &DeviceKey) -> Revocation {
        self.of_device(device).revocations.get(device).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::{AppKey, MessageId};
    use crate::store::batch::Batch;
    use crate::store::part::{AppId, Described};

    #[test]
    fn touching_waits_for_nobody_and_keeps_nothing() {
        let (index, keys) = (Index::new(4, 0), [1, 2, 3, 4, 5, 6].map(|n| DeviceKey([n; 16])));
        let described =
            Described { number: 1, app: AppId(1), push_on: true, attributes: (0, 0), last_active: 0 };
        for key in &keys[1..] {
            index.of_device(key).know(*key, &described, &index.warmth);
        }
        let somebody_has = index.of_device(&keys[0]);
        index.touch(keys.iter(), true);
        drop(somebody_has);
        assert!((0..index.len()).all(|part| index.parts[part].try_lock().is_ok()));
    }

    /// While its entry is still there, the entry tells: the push record knows only of what was acknowledged.
    #[test]
    fn a_device_may_have_what_was_written_to_it_or_perhaps_was_before_the_start() {
        let (index, key) = (Index::new(1, 0), DeviceKey([1; 16]));
        let recall = Recall::new(Seq(9), AppKey::parse("app").expect("valid"), MessageId(5), 0, 1);
        let may_have = || index.may_have(&key, &recall, 0);
        assert!(!may_have(), "nobody knows the device");
        let described =
            Described { number: 1, app: AppId(1), push_on: true, attributes: (0, 0), last_active: 0 };
        index.of_device(&key).know(key, &described, &index.warmth);
        for (recovered, written) in [(false, false), (true, false), (false, true), (true, true)] {
            let batch = Batch { recovered, ..Batch::of_test(Seq(1), MessageId(5), 0) };
            let mut entry = Entry::new(Arc::new(batch), 0, 0);
            if written {
                entry.mark_written(7);
            }
            index.of_device(&key).devices.get_mut(&key).expect("known").push(entry);
            assert_eq!(may_have(), recovered || written);
            index.of_device(&key).devices.get_mut(&key).expect("known").take(Seq(1)).expect("there");
        }
        assert!(!may_have());
        index.set_arriving(true);
        assert!(may_have(), "it may be on its way from the list to the push record");
        index.set_arriving(false);
        assert!(!may_have());
    }
}
