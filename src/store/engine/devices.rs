//! The devices that are known: each Hello or request that says something new is a record, and its events.
//!
//! What ends with a change is staged before the change itself: whatever part of a group a crash leaves, nothing is pending that a change
//! which is kept has ended.
//!
//! When a device was last active is kept in memory, and journaled coarsely: it changes with every session, and only forgetting rests on it.

use std::sync::Arc;

use super::acks::{Who, receipt_bytes};
use super::apply::Pointed;
use super::forget;
use super::{Effect, Engine, StoreFailure};
use crate::binding::{Change, ChangeError, Unbind};
use crate::ids::{DeviceKey, SessionRef};
use crate::push::{Attributes, Failure, Millis, Seen};
use crate::store::disk::Disk;
use crate::store::part::{About, Device, Entry, Part};
use crate::store::record::device::{ACTIVE_BYTES, ATTRIBUTES, NEW, STATE_LOST, SWITCH, put_active};
use crate::store::record::{self, BindingRecord, DeviceRecord};

/// What a device's row becomes, and what ends by that.
struct Update {
    who: Who,
    push_on: bool,
    /// As the record has it.
    changed: u8,
    ended: Vec<Pointed>,
    reason: Failure,
}

impl<D: Disk> Engine<D> {
    /// A device says Hello with something new. Refused: there is no room for another device.
    pub(super) fn seen(&mut self, now: Millis, seen: &Seen, session: SessionRef) -> Result<(), StoreFailure> {
        let taken = match self.greeted(now, seen) {
            Ok(Some(update)) => self.update(now, &update)?,
            Ok(None) => true,
            Err(()) => false,
        };
        self.effects.push(if taken { Effect::Seen(session) } else { Effect::Refused(session) });
        Ok(())
    }

    /// What a Hello changes; `None`: nothing.
    fn greeted(&mut self, now: Millis, seen: &Seen) -> Result<Option<Update>, ()> {
        let Some(who) = self.who(&seen.key) else {
            if self.devices >= self.options.max_devices || self.next_number == u32::MAX {
                return Err(());
            }
            let about = About {
                app: self.interned.app(seen.app.as_str()).unwrap_or_else(|_| seen.app.clone()),
                device_id: seen.device_id.clone(),
                attributes: self.interned.attributes(&seen.attributes.0),
                client_ip: Some(seen.client_ip),
                last_active: now,
                bindings: None,
            };
            let push_on = seen.push_on.unwrap_or(true);
            let who = Who { key: seen.key, number: self.next_number, about };
            let changed = if push_on { NEW } else { NEW | SWITCH };
            return Ok(Some(Update { who, push_on, changed, ended: Vec::new(), reason: Failure::Forgotten }));
        };
        let mut update = self.described(now, who, Some(&seen.attributes), seen.push_on);
        update.who.about.client_ip = Some(seen.client_ip);
        if seen.state_lost {
            update.changed |= STATE_LOST;
            update.reason = Failure::Reinstalled;
            update.ended = self.pending_of(&seen.key, |_| true);
        }
        let mut part = self.shared.index.of_device(&seen.key);
        if let Some(device) = part.devices.get_mut(&seen.key) {
            // Until its session says that it is active.
            device.returning = true;
            // Phones change their address with every network: worth knowing, not worth a record each time.
            device.about.client_ip = Some(seen.client_ip);
        }
        drop(part);
        if update.changed == 0 {
            return Ok(None);
        }
        Ok(Some(update))
    }

    /// A known device with these attributes and this switch, where they are said.
    fn described(
        &mut self,
        now: Millis,
        mut who: Who,
        attributes: Option<&Attributes>,
        push_on: Option<bool>,
    ) -> Update {
        let mut changed = 0;
        if let Some(attributes) = attributes.filter(|said| **said != who.about.attributes) {
            who.about.attributes = self.interned.attributes(&attributes.0);
            changed |= ATTRIBUTES;
        }
        who.about.last_active = now.max(who.about.last_active);
        let is_on = self.is_on(&who.key);
        let push_on = push_on.unwrap_or(is_on);
        if push_on != is_on {
            changed |= SWITCH;
        }
        let ended = if push_on { Vec::new() } else { self.pending_of(&who.key, |_| true) };
        Update { who, push_on, changed, ended, reason: Failure::PushDisabled }
    }

    fn is_on(&self, key: &DeviceKey) -> bool {
        self.shared.index.of_device(key).devices.get(key).is_none_or(|device| device.push_on)
    }

    /// Entries of a device as their end needs them.
    pub(super) fn pending_of(&self, key: &DeviceKey, which: impl Fn(&Entry) -> bool) -> Vec<Pointed> {
        let part = self.shared.index.of_device(key);
        let Some(device) = part.devices.get(key) else { return Vec::new() };
        device.pending.iter().filter(|entry| which(entry)).map(Pointed::from).collect()
    }

    /// Stages the ends, the record and its effect. `false`: there is no room, and nothing has changed.
    fn update(&mut self, now: Millis, update: &Update) -> Result<bool, StoreFailure> {
        let Update { who, push_on, changed, ended, reason } = update;
        self.tidy_attributes();
        if !self.has_room_beside_ends(2 + ended.len(), receipt_bytes(&who.about).max(BindingRecord::BYTES)) {
            return Ok(false);
        }
        for pointed in ended {
            self.fail_one(now, who.key, who.number, &who.about, pointed, *reason)?;
        }
        if changed & STATE_LOST != 0 {
            self.log_out(now, who)?;
        }
        let about = &who.about;
        self.scratch.clear();
        DeviceRecord {
            app: about.app.as_str(),
            key: who.key,
            number: who.number,
            push_on: *push_on,
            device_id: &about.device_id,
            attributes: &about.attributes.0,
            client_ip: about.client_ip,
            last_active: about.last_active,
            changed: *changed,
        }
        .encode(&mut self.scratch);
        if changed & (NEW | ATTRIBUTES | SWITCH) == 0 {
            // It tells nobody anything: nothing to be read.
            self.stage(record::DEVICE)?;
        } else {
            self.stage_event(record::DEVICE, about.app.as_str())?;
        }
        self.shared.index.note_staged(who.key);
        self.shared.index.of_device(&who.key).know(who.key, who.number, *push_on, about.clone());
        self.ledger.registered(&about.app, who.number, now);
        self.ledger.active(&about.app, who.number, now);
        if changed & NEW != 0 {
            self.devices += 1;
            self.next_number += 1;
        }
        Ok(true)
    }

    /// Stages the scratch buffer as a record that is an event of its app's stream.
    pub(super) fn stage_event(&mut self, kind: u8, app: &str) -> Result<(), StoreFailure> {
        let (seq, _) = self.stage(kind)?;
        self.shared.streams.note_event(self.options.stream_of(app), seq);
        Ok(())
    }

    /// A reinstalled app has lost its login.
    fn log_out(&mut self, now: Millis, who: &Who) -> Result<(), StoreFailure> {
        let Some(bindings) = &who.about.bindings else { return Ok(()) };
        let account = bindings.account.clone().map(Unbind::Account);
        let Some(step) = account.and_then(|account| bindings.unbind(&account)) else { return Ok(()) };
        self.take_step(now, who, step)
    }

    /// A request of a session: answered also if it changes nothing.
    pub(super) fn change(
        &mut self,
        now: Millis,
        key: &DeviceKey,
        session: SessionRef,
        change: &Change,
    ) -> Result<(), StoreFailure> {
        let result = match (self.who(key), change) {
            // Sessions exist for known devices only: the next one makes it known.
            (None, _) => Err(ChangeError::Exhausted),
            (Some(who), Change::Attributes { attributes, push_on }) => {
                let update = self.described(now, who, Some(attributes), *push_on);
                self.update_if_any(now, &update)?
            }
            (Some(who), Change::Push(on)) => {
                let update = self.described(now, who, None, Some(*on));
                self.update_if_any(now, &update)?
            }
            (Some(_), Change::Moved(address)) => {
                // Phones change their address with every network: worth knowing, not worth a record each time.
                if let Some(device) = self.shared.index.of_device(key).devices.get_mut(key) {
                    device.about.client_ip = Some(*address);
                }
                Ok(())
            }
            (Some(who), Change::Bind(binding)) => self.bind(now, &who, binding)?,
            (Some(who), Change::Unbind(what)) => self.unbind(now, &who, what)?,
        };
        self.effects.push(Effect::Changed(session, result));
        Ok(())
    }

    fn update_if_any(
        &mut self,
        now: Millis,
        update: &Update,
    ) -> Result<Result<(), ChangeError>, StoreFailure> {
        let taken = update.changed == 0 || self.update(now, update)?;
        Ok(if taken { Ok(()) } else { Err(ChangeError::Exhausted) })
    }

    /// Sessions began, ended, or are still there. Journaled where it is news.
    pub(super) fn last_active(&mut self, active: &[(DeviceKey, Millis)]) -> Result<(), StoreFailure> {
        // Before memory says so: what it says already is journaled no more in this grain.
        if !self.has_room_beside_ends(active.len(), ACTIVE_BYTES) {
            return Ok(());
        }
        let grain = forget::grain_ms(self.options.forget_after_ms);
        let mut news = Vec::new();
        for (key, at) in active {
            let before = {
                let mut part = self.shared.index.of_device(key);
                if let Some(device) = part.devices.get(key) {
                    self.ledger.active(&device.about.app, device.number, *at);
                }
                part.was_active(key, *at)
            };
            // Not all at the same time: each device has its own beginning of a grain.
            let grain_of = |at: Millis| at.saturating_add(key.spread() % grain) / grain;
            if before.is_some_and(|before| grain_of(before) < grain_of(*at)) {
                news.push((*key, *at));
            }
        }
        // A fraction of a segment each, however small segments are.
        let most = (self.options.segment_bytes as usize / 4 / ACTIVE_BYTES).clamp(1, 4_096);
        for news in news.chunks(most) {
            if !self.has_room_beside_ends(1, news.len() * ACTIVE_BYTES) {
                break;
            }
            self.scratch.clear();
            put_active(&mut self.scratch, news);
            self.stage(record::ACTIVE)?;
        }
        Ok(())
    }
}

impl Part {
    /// A device as it is now; its list and its bindings stay. So does the time of its last activity, which its sessions report: a Hello alone does
    /// not mean that it was told what it has to be.
    pub(in crate::store) fn know(&mut self, key: DeviceKey, number: u32, push_on: bool, about: About) {
        if let Some(device) = self.devices.get_mut(&key) {
            let bindings = device.about.bindings.take();
            let last_active = device.about.last_active;
            device.number = number;
            device.push_on = push_on;
            *device.about = About { last_active, bindings, ..about };
        } else {
            let pending = smallvec::SmallVec::new();
            let about = Box::new(About { bindings: None, ..about });
            self.devices
                .insert(key, Device { number, push_on, returning: false, pending, about, account: None });
        }
    }

    /// A known device was active at this time; what was known before.
    pub(in crate::store) fn was_active(&mut self, key: &DeviceKey, at: Millis) -> Option<Millis> {
        let device = self.devices.get_mut(key)?;
        device.returning = false;
        let about = &mut device.about;
        let before = about.last_active;
        about.last_active = before.max(at);
        Some(before)
    }
}

impl From<&Entry> for Pointed {
    fn from(entry: &Entry) -> Self {
        Self {
            batch: Arc::clone(&entry.batch),
            ordinal: entry.ordinal,
            written_at: entry.written_at(),
            sent_reported: entry.sent_reported(),
        }
    }
}
