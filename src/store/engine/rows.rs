//! The devices' cold rows: read where they are needed, written with everything else that has changed, and let go of when they take too much room.
//!
//! # How it works
//! A row that has changed is *dirty*, and stays in memory until the transaction that has it is durable. A clean one leaves memory when all of
//! them take more than the configured bytes, by second chance: a hand walks around the hot rows, [`super::super::device_map`]. Whoever needs one
//! that isn't in memory reads it, about 4 µs, and it is warm from then on. Only the store's thread reads, and the start; never a shard's thread, and
//! never while a part is locked.
//!
//! Admission, delivery, mass ends, presence and a router's questions about many devices need hot rows only. A cold one is read for the ack of a
//! device that said no Hello since its row left memory (who says Hello brings it along, see [`super::super::index::Index::is_current`]), for a
//! request of its session, when it is forgotten, and for `inspect`. The one case with many at a time: entries that were written to connections
//! and end unacknowledged have receipts of their own, up to 1,024 in a slice, so 4 ms if none of these devices, who were all connected
//! lately, is in memory.
//!
//! # Invariants
//! - What isn't in memory is durable in the table as it is: transactions are over before room is made.
//! - `Bound::InTable` means that the durable row has what the device is bound to: who changes that reads it first.
//! - At a start the hot row and the cold row each have a filter of their own: a record changes the one if it is newer than the part's slice
//!   of the checkpoint, and the other if it is newer than what the tables hold. A device's number says whether both are about the same one:
//!   who was forgotten and came back has another.
//!
//! A row that can't be read as it was written: the device's list and its push switch are as they were, and messages go out. But nobody knows what
//! its receipts should say, so its acks aren't taken: its session ends, its next Hello writes the row anew under the same number, and then it
//! says them again. Ends that don't wait for it have receipts without its id. What it was bound to is lost but for the digest of its account, by
//! which targets are still accepted for it, until it binds again.
//!
//! # What it costs
//! A million devices, each with 250 bytes of attributes of its own (`cargo bench --bench devices`, the median of groups on a busy machine with two
//! cores; before: all of it in memory and in the checkpoint):
//!
//! | a device | before | now |
//! |---|---|---|
//! | memory, when all rows are cold | 607 B | 172 B |
//! | checkpoint | 318 B | 37 B |
//! | an ack whose row is in memory, without its share of a commit | 2.0 to 2.5 µs | 2.0 to 2.2 µs |
//! | an ack whose row is read | | 9.3 µs |
//!
//! A hot row is 64 bytes, 81 with its key in the map; the rest is places of the maps that are free, fewest with 1.8 million devices: 100 B.
//!
//! # Rejected
//! A queue of those that are in memory, for second chance: 20 bytes each.
//! Attributes in the map by their digest, for phones that say the same: an id of its own among them, as real ones have, makes each one different.
//! Writing a row whenever its device comes from another address: receipts have the address of their ack, and nobody else asks.

use std::net::IpAddr;
use std::sync::Arc;

use super::load::KnownApps;
use super::{Engine, StoreFailure};
use crate::binding::Bindings;
use crate::ids::{AppKey, DeviceKey};
use crate::push::{Attributes, Millis, Seen};
use crate::store::device_row::{About, Bound, Row, Says};
use crate::store::disk::Disk;
use crate::store::index::Index;
use crate::store::ledger::Ledger;
use crate::store::part::{Device, Part};
use crate::store::tables::{Table, Tables, TablesError, Writes, row_content};
use crate::sync::MutexGuard;

/// Devices looked at in one slice of making room, and of one part while it is locked.
const LOOKED_AT: usize = 4_096;
const LOOKED_AT_LOCKED: usize = 256;

/// A known device, as receipts have it.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) key: DeviceKey,
    pub(super) number: u32,
    pub(super) app: AppKey,
    pub(super) device_id: Arc<str>,
    pub(super) attributes: Attributes,
    pub(super) client_ip: Option<IpAddr>,
    pub(super) last_active: Millis,
}

impl Who {
    /// `None`: its cold row isn't in memory.
    fn of(key: &DeviceKey, device: &Device, apps: &KnownApps) -> Option<Self> {
        let about = device.about.as_ref()?;
        Some(Self {
            key: *key,
            number: device.number,
            app: apps.key(device.app).clone(),
            device_id: about.device_id.clone(),
            attributes: about.attributes.clone(),
            client_ip: about.client_ip,
            last_active: device.last_active(),
        })
    }

    /// Who says Hello is whom it says.
    pub(super) fn says(seen: &Seen, number: u32, attributes: Attributes, last_active: Millis) -> Self {
        Self {
            key: seen.key,
            number,
            app: seen.app.clone(),
            device_id: seen.device_id.clone(),
            attributes,
            client_ip: Some(seen.client_ip),
            last_active,
        }
    }
}

/// A device's row under its number.
fn row_key(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// The device's part, with its cold row in memory if it has one that can be read; with `bindings` all of it. The tables are read while no part
/// is locked.
pub(super) fn device_with<'a>(
    index: &'a Index,
    tables: &dyn Tables,
    ledger: &mut Ledger,
    key: &DeviceKey,
    bindings: bool,
) -> Result<MutexGuard<'a, Part>, TablesError> {
    let number = {
        let mut part = index.of_device(key);
        let Some(device) = part.devices.get_mut(key) else { return Ok(part) };
        if device.is_lost() {
            return Ok(part);
        }
        if let Some(about) = &mut device.about {
            about.touched = true;
            if !bindings || !about.is_bound_in_table() {
                return Ok(part);
            }
        }
        device.number
    };
    ledger.row_reads += 1;
    let found = tables.get(Table::Devices, &row_key(number))?;
    let content = match &found {
        Some(row) => row_content(Table::Devices, &row_key(number), row)?,
        None => &[],
    };
    let row = Row::decode(content).ok().filter(|row| row.key == *key);
    let mut part = index.of_device(key);
    let bound = |row: &Row<'_>| Bound::Known(row.bindings.clone().map(Arc::new));
    // A shard may have brought it in meanwhile.
    let is_warm = part.about(key).is_some();
    match (row, is_warm) {
        (Some(row), true) => {
            part.edit_about(key, &index.warmth, |about| about.set_bound(bound(&row)));
        }
        (Some(row), false) => {
            let attributes = index.attributes.of_bytes(row.attributes);
            let says = Says { device_id: row.device_id.into(), attributes, client_ip: row.client_ip };
            part.warm(key, About::new(says, bound(&row)), &index.warmth);
        }
        (None, is_warm) => {
            ledger.damaged_rows += 1;
            tracing::error!(number, "the row of a device isn't in the tables as it was written");
            if !is_warm {
                part.lose(key);
            } else if part.change_about(key, &index.warmth, |about| about.set_bound(Bound::Known(None))) {
                // The rest of it came with a Hello.
                ledger.changed_rows.push(*key);
            }
        }
    }
    Ok(part)
}

impl<D: Disk> Engine<D> {
    /// Who a device is; `None`: it isn't known, or its row can't be read.
    pub(super) fn who(&mut self, key: &DeviceKey) -> Result<Option<Who>, StoreFailure> {
        let part = device_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, key, false)?;
        Ok(part.devices.get(key).and_then(|device| Who::of(key, device, &self.apps)))
    }

    /// The same for an end, which doesn't wait for the device: the receipt of one whose row can't be read names nobody, but its target says whose
    /// it is. `None`: it isn't known.
    pub(super) fn who_ever(&mut self, key: &DeviceKey) -> Result<Option<Who>, StoreFailure> {
        if let Some(who) = self.who(key)? {
            return Ok(Some(who));
        }
        let part = self.shared.index.of_device(key);
        let Some(device) = part.devices.get(key) else { return Ok(None) };
        let (app, attributes) = (self.apps.key(device.app).clone(), Attributes::whole(Arc::from([])));
        let (number, last_active) = (device.number, device.last_active());
        let device_id = "".into();
        Ok(Some(Who { key: *key, number, app, device_id, attributes, client_ip: None, last_active }))
    }

    /// What a known device is bound to.
    pub(super) fn bindings_of(&mut self, key: &DeviceKey) -> Result<Option<Arc<Bindings>>, StoreFailure> {
        let part = device_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, key, true)?;
        Ok(part.about(key).and_then(|about| about.bindings().cloned()))
    }

    /// Whether a device's row is known to be unreadable.
    pub(super) fn is_lost(&self, key: &DeviceKey) -> bool {
        self.shared.index.of_device(key).devices.get(key).is_some_and(Device::is_lost)
    }

    /// Changes a cold row in memory, which is to be written from now on.
    pub(super) fn change_row(&mut self, key: &DeviceKey, change: impl FnOnce(&mut About)) {
        let index = &self.shared.index;
        if index.of_device(key).change_about(key, &index.warmth, change) {
            self.ledger.changed_rows.push(*key);
        }
    }

    /// The rows that have changed, and those that go, as they are to be written.
    pub(super) fn put_rows(&mut self, writes: &mut Writes) -> Result<(), StoreFailure> {
        for number in std::mem::take(&mut self.ledger.gone_rows) {
            writes.insert((Table::Devices, row_key(number).to_vec()), None);
        }
        // Reading what is missing may find others that are damaged, and so changed.
        while let Some(key) = self.ledger.changed_rows.pop() {
            let mut part =
                device_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, &key, true)?;
            let Some(device) = part.devices.get_mut(&key) else { continue };
            let (number, app) = (device.number, self.apps.key(device.app));
            // Forgotten since and known again, or there twice.
            let Some(about) = device.about.as_mut().filter(|about| about.dirty) else { continue };
            if let Some(row) = about.row(key, app) {
                about.dirty = false;
                writes.insert((Table::Devices, row_key(number).to_vec()), Some(row));
            }
        }
        Ok(())
    }

    /// Puts something else in the place of a device's row.
    #[cfg(test)]
    pub(in crate::store) fn spoil_row(&mut self, number: u32, row: Option<Vec<u8>>) {
        let writes = Writes::from([((Table::Devices, row_key(number).to_vec()), row)]);
        self.tables.tables.apply(&writes, self.tables.applied).expect("the disk works");
    }

    /// Numbers of the rows in the table.
    #[cfg(test)]
    pub(in crate::store) fn device_rows(&self) -> Result<std::collections::BTreeSet<u32>, TablesError> {
        let mut rows = std::collections::BTreeSet::new();
        self.tables.tables.scan(Table::Devices, &mut |key, _| {
            rows.insert(u32::from_be_bytes(key.try_into().expect("a number")));
        })?;
        Ok(rows)
    }

    /// One slice of making room. Answers whether there was anything to do. Only while no transaction is under way, and all are durable.
    pub(super) fn make_room_for_rows(&mut self) -> bool {
        let index = &self.shared.index;
        let state = &mut self.tables.rows;
        if state.looks == 0 && index.warmth.is_full() && index.warmth.bytes() > state.begin_at {
            // Twice around: what was touched once is looked at again.
            state.looks = 2 * self.devices as usize;
        }
        if state.looks == 0 {
            return false;
        }
        let (most, mut looked_at) = (state.looks.min(LOOKED_AT), 0);
        for _ in 0..index.len() {
            if looked_at >= most || !index.warmth.is_full() {
                break;
            }
            let looks = (most - looked_at).min(LOOKED_AT_LOCKED);
            looked_at += index.lock(state.next_part).make_room(looks, &index.warmth);
            state.next_part = (state.next_part + 1) % index.len();
        }
        // All parts without any: there is nothing to be looked at.
        state.looks = if looked_at == 0 { 0 } else { state.looks - looked_at };
        if !index.warmth.is_full() {
            state.looks = 0;
        }
        if state.looks == 0 {
            // What is there is dirty or in use: more is looked for when there is more.
            state.begin_at = index.warmth.bytes() + index.warmth.max() / 16;
        }
        true
    }
}

/// How far making room for rows has come.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Devices that are still looked at.
    looks: usize,
    next_part: usize,
    /// Bytes at which it begins again.
    begin_at: usize,
}

impl Room {
    /// A transaction is durable: there is more to choose from.
    pub(super) fn reset(&mut self) {
        self.begin_at = 0;
    }
}
