//! The devices that are known: each Hello or request that says something new is a record, and its events.
//!
//! What ends with a change is staged before the change itself: whatever part of a group a crash leaves, nothing is pending that a change
//! which is kept has ended.
//!
//! When a device was last active is kept in memory, and journaled coarsely: it changes with every session, and only forgetting rests on it.

use std::sync::Arc;

use super::acks::receipt_bytes;
use super::apply::Pointed;
use super::forget;
use super::rows::Who;
use super::{Effect, Engine, StoreFailure};
use crate::binding::{Change, ChangeError, Unbind};
use crate::ids::{DeviceKey, SessionRef};
use crate::push::{Attributes, Failure, Millis, Seen};
use crate::store::attributes::digest;
use crate::store::device_row::{Bound, Says};
use crate::store::disk::Disk;
use crate::store::part::{Described, Entry};
use crate::store::record::device::{ACTIVE_BYTES, ATTRIBUTES, NEW, ROW, STATE_LOST, SWITCH, put_active};
use crate::store::record::{self, BindingRecord, DeviceRecord};
use crate::telemetry::{self, Counter, MemoryRefusal};

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
    /// A device says Hello with something new. Refused: there is no room for another device, or for what is new.
    pub(super) fn seen(&mut self, now: Millis, seen: &Seen, session: SessionRef) -> Result<(), StoreFailure> {
        let taken = match self.greeted(now, seen) {
            Some(update) => self.update_if_any(now, &update)?.is_ok(),
            None => false,
        };
        self.effects.push(if taken { Effect::Seen(session) } else { Effect::Refused(session) });
        Ok(())
    }

    /// What a Hello changes; `None`: there is no room for another device. A Hello says who it is, so that nothing has to be read.
    fn greeted(&mut self, now: Millis, seen: &Seen) -> Option<Update> {
        let attributes = self.shared.index.attributes.share(&seen.attributes);
        let known = {
            let part = self.shared.index.of_device(&seen.key);
            part.devices.get(&seen.key).map(|device| (device.described(), device.is_lost()))
        };
        let Some((known, is_lost)) = known else {
            if self.devices >= self.options.max_devices || self.next_number == u32::MAX {
                return None;
            }
            if self.is_memory_full() {
                telemetry::add(Counter::MemoryRefused(MemoryRefusal::Devices), 1);
                return None;
            }
            let push_on = seen.push_on.unwrap_or(true);
            let who = Who::says(seen, self.next_number, attributes, now);
            let changed = if push_on { NEW } else { NEW | SWITCH };
            let (ended, reason) = (Vec::new(), Failure::Forgotten);
            return Some(Update { who, push_on, changed, ended, reason });
        };
        let who = Who::says(seen, known.number, attributes, known.last_active);
        let mut update = self.described(now, who, Some(&seen.attributes), seen.push_on);
        if is_lost {
            update.changed |= ROW;
        }
        if seen.state_lost {
            update.changed |= STATE_LOST;
            update.reason = Failure::Reinstalled;
            update.ended = self.pending_of(&seen.key, |_| true);
        }
        self.came_from(&seen.key, seen.client_ip);
        if let Some(device) = self.shared.index.of_device(&seen.key).devices.get_mut(&seen.key) {
            // Until its session says that it is active.
            device.returns();
        }
        Some(update)
    }

    /// Phones change their address with every network: worth knowing, not worth a record each time.
    fn came_from(&self, key: &DeviceKey, address: std::net::IpAddr) {
        let mut part = self.shared.index.of_device(key);
        if let Some(about) = part.devices.get_mut(key).and_then(|device| device.about.as_mut()) {
            about.client_ip = Some(address);
        }
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
        let (is_on, is_new) = {
            let part = self.shared.index.of_device(&who.key);
            let device = part.devices.get(&who.key);
            let has = |said: &Attributes| {
                device.is_some_and(|device| device.has_attributes(digest(said), said.len()))
            };
            (device.is_none_or(|device| device.push_on), attributes.filter(|said| !has(said)))
        };
        if let Some(attributes) = is_new {
            who.attributes = self.shared.index.attributes.share(attributes);
            changed |= ATTRIBUTES;
        }
        who.last_active = now.max(who.last_active);
        let push_on = push_on.unwrap_or(is_on);
        if push_on != is_on {
            changed |= SWITCH;
        }
        let ended = if push_on { Vec::new() } else { self.pending_of(&who.key, |_| true) };
        Update { who, push_on, changed, ended, reason: Failure::PushDisabled }
    }

    /// Entries of a device as their end needs them.
    pub(super) fn pending_of(&self, key: &DeviceKey, which: impl Fn(&Entry) -> bool) -> Vec<Pointed> {
        let part = self.shared.index.of_device(key);
        let Some(device) = part.devices.get(key) else { return Vec::new() };
        device.pending.iter().filter(|entry| which(entry)).map(Pointed::from).collect()
    }

    /// Stages the ends, the record and its effect. `false`: there is no room, and nothing has changed.
    fn update(&mut self, now: Millis, update: &Update) -> Result<bool, StoreFailure> {
        let Update { who, push_on, changed, ended, reason, .. } = update;
        let bytes = receipt_bytes(who.attributes.len()).max(BindingRecord::BYTES);
        if self.is_behind() || !self.has_room_beside_ends(2 + ended.len(), bytes) {
            return Ok(false);
        }
        for pointed in ended {
            self.fail_one(now, who, pointed, *reason)?;
        }
        if changed & STATE_LOST != 0 {
            self.log_out(now, who)?;
        }
        self.scratch.clear();
        DeviceRecord {
            app: who.app.as_str(),
            key: who.key,
            number: who.number,
            push_on: *push_on,
            device_id: &who.device_id,
            attributes: &who.attributes.bytes(),
            client_ip: who.client_ip,
            last_active: who.last_active,
            changed: *changed,
        }
        .encode(&mut self.scratch);
        if changed & (NEW | ATTRIBUTES | SWITCH) == 0 {
            // It tells nobody anything: nothing to be read.
            self.stage(record::DEVICE)?;
        } else {
            self.stage_event(record::DEVICE, who.app.as_str())?;
        }
        self.shared.index.note_staged(who.key);
        self.know(update);
        self.ledger.registered(&who.app, who.number, now);
        self.ledger.active(&who.app, who.number, now);
        if changed & NEW != 0 {
            self.devices += 1;
            self.next_number += 1;
        }
        Ok(true)
    }

    /// The device's rows as an update has them.
    fn know(&mut self, update: &Update) {
        let Update { who, push_on, changed, .. } = update;
        let index = &self.shared.index;
        let described = Described {
            number: who.number,
            app: self.apps.id(&who.app),
            push_on: *push_on,
            attributes: (digest(&who.attributes), who.attributes.len() as u16),
            last_active: who.last_active,
        };
        let mut part = index.of_device(&who.key);
        part.know(who.key, &described, &index.warmth);
        if is_in_row(*changed) {
            let (device_id, attributes) = (who.device_id.clone(), who.attributes.clone());
            let says = Says { device_id, attributes, client_ip: who.client_ip };
            if part.rewrite(&who.key, says, bound_by(*changed), &index.warmth) {
                self.ledger.changed_rows.push(who.key);
            }
        } else {
            drop(part);
            who.client_ip.into_iter().for_each(|address| self.came_from(&who.key, address));
        }
    }

    /// Stages the scratch buffer as a record that is an event of its app's stream.
    pub(super) fn stage_event(&mut self, kind: u8, app: &str) -> Result<(), StoreFailure> {
        let (seq, _) = self.stage(kind)?;
        self.shared.streams.note_event(app, seq);
        Ok(())
    }

    /// A reinstalled app has lost its login.
    fn log_out(&mut self, now: Millis, who: &Who) -> Result<(), StoreFailure> {
        let has_account = self
            .shared
            .index
            .of_device(&who.key)
            .devices
            .get(&who.key)
            .is_some_and(|device| device.account.is_some());
        if !has_account {
            return Ok(());
        }
        let Some(bindings) = self.bindings_of(&who.key)? else { return Ok(()) };
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
        let result = match (self.who(key)?, change) {
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
                self.came_from(key, *address);
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
            self.not_journaled(active);
            return Ok(());
        }
        let grain = forget::grain_ms(self.options.forget_after_ms);
        let mut news = Vec::new();
        for (key, at) in active {
            let before = {
                let mut part = self.shared.index.of_device(key);
                if let Some(device) = part.devices.get(key) {
                    self.ledger.active(self.apps.key(device.app), device.number, *at);
                }
                part.was_active(key, *at)
            };
            // Not all at the same time: each device has its own beginning of a grain.
            let grain_of = |at: Millis| at.saturating_add(key.spread() % grain) / grain;
            if before.is_some_and(|before| grain_of(before) < grain_of(*at)) {
                news.push((*key, *at));
            }
        }
        self.stage_active(&news)
    }

    /// Journals when these were there.
    pub(in crate::store) fn stage_active(
        &mut self,
        news: &[(DeviceKey, Millis)],
    ) -> Result<(), StoreFailure> {
        // A fraction of a segment each, however small segments are. There is room: what a record each would take beside its content is more than what is
        // lost at the ends of segments.
        let most = (self.options.segment_bytes as usize / 4 / ACTIVE_BYTES).clamp(1, 4_096);
        for news in news.chunks(most) {
            self.scratch.clear();
            put_active(&mut self.scratch, news);
            if self.journal.fits(self.scratch.len(), true) {
                self.stage(record::ACTIVE)?;
            } else {
                // It would take a mistake in the figures; nothing rests on these records that is worth the store's end.
                self.not_journaled(news);
            }
        }
        Ok(())
    }

    /// Nobody is forgotten because the disk was full when it was there.
    fn not_journaled(&self, active: &[(DeviceKey, Millis)]) {
        for (key, _) in active {
            if let Some(device) = self.shared.index.of_device(key).devices.get_mut(key) {
                device.returns();
            }
        }
    }
}

/// Whether the device's cold row is another one for it.
pub(super) fn is_in_row(changed: u8) -> bool {
    changed & (NEW | ATTRIBUTES | ROW) != 0
}

/// What the device is bound to, if a record of what changed tells.
pub(super) fn bound_by(changed: u8) -> Option<Bound> {
    (changed & (NEW | ROW) != 0).then_some(Bound::Known(None))
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
