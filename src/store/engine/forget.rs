//! Forgetting: a device that was unseen for the configured time is known no more. What is pending of it ends, an event says so, and its row goes.
//!
//! All parts are looked at once in a *grain*, an eighth of that time or a day. Sessions report their devices' activity at least twice in a grain
//! ([`report_ms`]), and it is journaled when it falls into another one, so that after a crash it is known at most two grains too early: so much
//! longer than configured a device is kept. Nobody is forgotten who is connected, nor whose last activity isn't known because the disk was full, because
//! its session has just ended or was too short to say so (until the next start, which doesn't know of that); nor soon after a start: those who were connected when the edge stopped have had no chance to come
//! back.
//!
//! Rejected: an index by time of activity. It would change with every session, for something that happens once in months.

use super::acks::receipt_bytes;
use super::apply::Pointed;
use super::expiry::RETRY_MS;
use super::rows::Who;
use super::{Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::DeviceKey;
use crate::push::{Failure, Millis};
use crate::store::disk::Disk;
use crate::store::part::Device;
use crate::store::record::{self, ForgottenRecord};

/// Devices forgotten in one slice.
const SLICE_DEVICES: usize = 256;
const DAY_MS: Millis = 24 * 3600 * 1000;

/// How exactly activity is journaled.
pub(super) fn grain_ms(forget_after_ms: Millis) -> Millis {
    (forget_after_ms / 8).clamp(1, DAY_MS)
}

/// How often sessions report that their device is active, at least.
pub(in crate::store) fn report_ms(forget_after_ms: Millis) -> Millis {
    if forget_after_ms == 0 { Millis::MAX } else { (grain_ms(forget_after_ms) / 2).max(1) }
}

/// Where the look at all devices is.
#[derive(Debug)]
pub(super) struct State {
    /// 0: nobody is forgotten.
    after_ms: Millis,
    next_part: usize,
    /// When the next part is due; `None`: nothing was looked at since the start.
    next_at: Option<Millis>,
}

impl State {
    pub(super) fn new(after_ms: Millis) -> Self {
        Self { after_ms, next_part: 0, next_at: None }
    }
}

fn is_unseen(device: &Device, since: Millis) -> bool {
    device.active_until() < since && !device.is_returning()
}

impl<D: Disk> Engine<D> {
    /// Looks at one part, if it is time. Answers whether there may be more to do at once.
    pub(super) fn forget_slice(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        let state = &self.forget;
        if state.after_ms == 0 || self.is_behind() {
            return Ok(false);
        }
        let grain = grain_ms(state.after_ms);
        let Some(at) = state.next_at else {
            self.forget.next_at = Some(now + state.after_ms.min(DAY_MS));
            return Ok(false);
        };
        if now < at {
            return Ok(false);
        }
        let unseen_since = now.saturating_sub(state.after_ms + 2 * grain);
        let part = state.next_part;
        let mut candidates: Vec<DeviceKey> = {
            let part = self.shared.index.lock(part);
            let unseen = part.devices.iter().filter(|(_, device)| is_unseen(device, unseen_since));
            unseen.map(|(key, _)| *key).collect()
        };
        // Asked when the part isn't locked: the directory has locks of its own.
        candidates.retain(|key| !(self.is_connected)(key) || fault::is(Fault::ForgetConnected));
        let more = candidates.len() > SLICE_DEVICES;
        candidates.truncate(SLICE_DEVICES);
        let (mut any, mut full) = (false, false);
        for key in &candidates {
            if !self.forget(now, key, unseen_since)? {
                full = true;
                break;
            }
            any = true;
        }
        if full {
            self.forget.next_at = Some(now + RETRY_MS);
            return Ok(any);
        }
        if !more {
            let parts = self.shared.index.len();
            self.forget.next_part = (part + 1) % parts;
            // In step with time, but what was missed while there was no time for it isn't made up for.
            let next_at = (at + (grain / parts as u64).max(1)).max(now.saturating_sub(grain));
            self.forget.next_at = Some(next_at);
        }
        // What was staged is for the next commit: nothing else is done before.
        Ok(any || self.forget.next_at.is_some_and(|at| at <= now))
    }

    /// When the next part is due. Nobody is forgotten while the tables are behind: that they no longer are wakes the engine too.
    pub(super) fn next_forget(&self) -> Option<Millis> {
        self.forget.next_at.filter(|_| !self.is_behind())
    }

    /// Forgets a device, unless it has come back meanwhile. `false`: there is no room for the records.
    fn forget(&mut self, now: Millis, key: &DeviceKey, unseen_since: Millis) -> Result<bool, StoreFailure> {
        let Some(who) = self.who_ever(key)? else { return Ok(true) };
        let device = {
            let mut part = self.shared.index.of_device(key);
            let Some(device) = part.devices.get(key) else { return Ok(true) };
            // A Hello that found it known has marked it under this lock.
            if !is_unseen(device, unseen_since) {
                return Ok(true);
            }
            let bytes = receipt_bytes(device.attributes_len());
            if !self.has_room_beside_ends(1 + device.pending.len(), bytes) {
                return Ok(false);
            }
            part.forget(key, &self.shared.index.warmth)
        };
        let pending = device.map(|device| device.pending).unwrap_or_default();
        for entry in &pending {
            self.fail_one(now, &who, &Pointed::from(entry), Failure::Forgotten)?;
        }
        let Who { key, number, app, device_id, last_active, .. } = who;
        let record = ForgottenRecord { app, key, number, device_id, time: now, last_active };
        self.scratch.clear();
        record.encode(&mut self.scratch);
        self.stage_event(record::FORGOTTEN, record.app.as_str())?;
        self.ledger.gone_rows.push(number);
        self.devices -= 1;
        Ok(true)
    }
}
