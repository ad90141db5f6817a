//! The devices that are known: each Hello that says something new is a record.
//!
//! When a device was last active is kept in memory and in checkpoints only: it changes with every session, no count rests on
//! it, and after a crash the last checkpoint's answer, or that of the device's last record, is near enough.

use std::sync::Arc;

use super::acks::receipt_bytes;
use super::apply::Pointed;
use super::{Effect, Engine, StoreFailure};
use crate::ids::{DeviceKey, SessionRef};
use crate::push::{Failure, Millis, Seen};
use crate::store::disk::Disk;
use crate::store::part::{About, Device, Part};
use crate::store::record::{self, DeviceRecord};

/// What a Hello changes.
struct Change {
    number: u32,
    push_on: bool,
    is_new: bool,
    switched_off: Vec<Pointed>,
}

impl<D: Disk> Engine<D> {
    /// A device says Hello with something new. Refused: there is no room for another device.
    pub(super) fn seen(&mut self, now: Millis, seen: &Seen, session: SessionRef) -> Result<(), StoreFailure> {
        let change = match self.change(seen) {
            Ok(Some(change)) => change,
            Ok(None) => {
                self.effects.push(Effect::Seen(session));
                return Ok(());
            }
            Err(()) => {
                self.effects.push(Effect::Refused(session));
                return Ok(());
            }
        };
        self.tidy_attributes();
        let about = About {
            app: self.interned.app(seen.app.as_str()).unwrap_or_else(|_| seen.app.clone()),
            device_id: seen.device_id.clone(),
            attributes: self.interned.attributes(&seen.attributes.0),
            client_ip: Some(seen.client_ip),
            last_active: now,
        };
        if !self.has_room_beside_ends(1 + change.switched_off.len(), receipt_bytes(&about)) {
            self.effects.push(Effect::Refused(session));
            return Ok(());
        }
        self.scratch.clear();
        DeviceRecord {
            key: seen.key,
            number: change.number,
            push_on: change.push_on,
            app: about.app.as_str(),
            device_id: &about.device_id,
            attributes: &about.attributes.0,
            client_ip: about.client_ip,
            last_active: now,
        }
        .encode(&mut self.scratch);
        self.stage(record::DEVICE)?;
        self.shared.index.note_staged(seen.key);
        self.shared.index.of_device(&seen.key).know(seen.key, change.number, change.push_on, about.clone());
        self.ledger.registered(&about.app, change.number, now);
        self.ledger.active(&about.app, change.number, now);
        if change.is_new {
            self.devices += 1;
            self.next_number += 1;
        }
        for pointed in &change.switched_off {
            self.fail_one(now, seen.key, change.number, &about, pointed, Failure::PushDisabled)?;
        }
        self.effects.push(Effect::Seen(session));
        Ok(())
    }

    /// What is new; `None`: nothing.
    fn change(&self, seen: &Seen) -> Result<Option<Change>, ()> {
        let part = self.shared.index.of_device(&seen.key);
        let Some(device) = part.devices.get(&seen.key) else {
            if self.devices >= self.options.max_devices || self.next_number == u32::MAX {
                return Err(());
            }
            return Ok(Some(Change {
                number: self.next_number,
                push_on: seen.push_on.unwrap_or(true),
                is_new: true,
                switched_off: Vec::new(),
            }));
        };
        let push_on = seen.push_on.unwrap_or(device.push_on);
        if push_on == device.push_on
            && device.about.attributes == seen.attributes
            && device.about.client_ip == Some(seen.client_ip)
        {
            return Ok(None);
        }
        let switched_off =
            if push_on { Vec::new() } else { device.pending.iter().map(Pointed::from).collect() };
        Ok(Some(Change { number: device.number, push_on, is_new: false, switched_off }))
    }

    /// Sessions ended or went quiet.
    pub(super) fn last_active(&mut self, active: &[(DeviceKey, Millis)]) {
        for (key, at) in active {
            if let Some(device) = self.shared.index.of_device(key).devices.get_mut(key) {
                device.about.last_active = device.about.last_active.max(*at);
                self.ledger.active(&device.about.app, device.number, *at);
            }
        }
    }
}

impl Part {
    /// A device as it is now; its list stays.
    pub(in crate::store) fn know(&mut self, key: DeviceKey, number: u32, push_on: bool, about: About) {
        if let Some(device) = self.devices.get_mut(&key) {
            device.number = number;
            device.push_on = push_on;
            *device.about = about;
        } else {
            let pending = smallvec::SmallVec::new();
            self.devices.insert(key, Device { number, push_on, pending, about: Box::new(about) });
        }
    }
}

impl From<&crate::store::part::Entry> for Pointed {
    fn from(entry: &crate::store::part::Entry) -> Self {
        Self {
            batch: Arc::clone(&entry.batch),
            ordinal: entry.ordinal,
            written_at: entry.written_at(),
            sent_reported: entry.sent_reported(),
        }
    }
}
