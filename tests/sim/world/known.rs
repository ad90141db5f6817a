//! Which devices the edge knows, as the streams tell it: held against what it answered, and against when devices were there.

use std::collections::BTreeMap;

use mooring::push::Millis;
use mooring::wire::pb::device::PushState;
use mooring::wire::pb::router as pb;

use super::World;
use super::oracle::{Answer, End, Sent, ensure};
use mooring::push::Failure;

/// Milliseconds within which a shard looks at what is due.
const TICK_MS: Millis = 100;
/// Records in which a device that is forgotten ends, at most.
const DEVICE_RECORDS: u64 = 100;

/// See the module.
#[derive(Default)]
pub(crate) struct Known {
    /// By device: from which sequence on it was known, or no more.
    devices: BTreeMap<String, BTreeMap<u64, bool>>,
    /// By device: from which sequence on push was on, or off.
    switches: BTreeMap<String, BTreeMap<u64, bool>>,
    /// Who was forgotten at which sequence, when, and last active when as is told.
    forgotten: Vec<(String, u64, Millis, Millis)>,
    /// Each life of the edge: the sequence and the time at its start.
    lives: Vec<(u64, Millis)>,
    /// By device: when the directory had it.
    stays: BTreeMap<String, Vec<Stay>>,
    /// By device: when it was active.
    active: BTreeMap<String, Vec<Active>>,
    /// Milliseconds unseen after which devices are forgotten; 0: never.
    forget_after_ms: Millis,
    /// When the disk had a bound last.
    full_until: Millis,
}

/// A time in which a device was in the directory.
struct Stay {
    life: usize,
    from: Millis,
    to: Millis,
}

/// That a device was active, as its session knew.
struct Active {
    life: usize,
    at: Millis,
    /// When that was looked at.
    looked: Millis,
    /// Perhaps there was no room to write it down.
    is_full: bool,
}

impl Active {
    /// Whether the edge knows of it at this time of this life: what a full disk didn't take is lost with the process, and so is a first word after a
    /// long silence of which there was no time to report.
    fn counts(&self, life: usize, time: Millis, forget_after_ms: Millis) -> bool {
        let was_reported = self.looked >= self.at + forget_after_ms / 16 + TICK_MS;
        self.looked < time && (self.life == life || !self.is_full && was_reported)
    }
}

/// What holds as of a sequence.
fn as_of(changes: Option<&BTreeMap<u64, bool>>, sequence: u64) -> Option<bool> {
    changes?.range(..sequence).next_back().map(|(_, is)| *is)
}

impl Known {
    pub(crate) fn new(forget_after_ms: Millis) -> Self {
        Self { forget_after_ms, ..Self::default() }
    }

    /// The edge starts.
    pub(crate) fn begin_life(&mut self, head: u64, now: Millis) {
        self.lives.push((head, now));
    }

    /// Whether this device was ever forgotten, as far as the streams have told.
    pub(crate) fn has_forgotten(&self, device: &str) -> bool {
        self.forgotten.iter().any(|(forgotten, ..)| forgotten == device)
    }

    /// Whether devices may be forgotten.
    pub(crate) fn forgets(&self) -> bool {
        self.forget_after_ms > 0
    }

    /// The directory has this device, and had it a moment ago too, or not.
    fn has(&mut self, device: &str, now: Millis, stayed: bool) {
        let life = self.lives.len();
        let stays = self.stays.entry(device.to_owned()).or_default();
        match stays.last_mut().filter(|stay| stayed && stay.life == life) {
            Some(stay) => stay.to = now,
            None => stays.push(Stay { life, from: now, to: now }),
        }
    }

    /// This device was active at this time, as is known now.
    fn was_active(&mut self, device: &str, at: Millis, now: Millis, is_full: bool) {
        let active = Active { life: self.lives.len(), at, looked: now, is_full };
        self.active.entry(device.to_owned()).or_default().push(active);
    }

    /// An event of a device.
    pub(crate) fn event(&mut self, event: &pb::DeviceEvent, sequence: u64) {
        let id = || event.device_id.clone();
        match &event.change {
            Some(pb::device_event::Change::Registered(_)) => {
                self.devices.entry(id()).or_default().insert(sequence, true);
                self.switches.entry(id()).or_default().entry(sequence).or_insert(true);
            }
            Some(pb::device_event::Change::Push(state)) => {
                let is_on = *state == i32::from(PushState::On);
                self.switches.entry(id()).or_default().insert(sequence, is_on);
            }
            Some(pb::device_event::Change::Forgotten(told)) => {
                self.devices.entry(id()).or_default().insert(sequence, false);
                self.forgotten.push((id(), sequence, event.time, told.last_active_time));
            }
            _ => {}
        }
    }

    /// Devices register, are forgotten, and register again; and nobody is forgotten who is there, or was active too short a time before.
    pub(crate) fn check_events(&self) -> Result<(), String> {
        for (device, changes) in &self.devices {
            let mut is_known = false;
            for (sequence, known) in changes {
                ensure!(*known != is_known, "{device}, known: {is_known}, at {sequence} becomes {known}");
                is_known = *known;
            }
        }
        for (device, sequence, time, told) in &self.forgotten {
            let life = self.lives.iter().rposition(|(head, _)| head < sequence).map_or(0, |at| at + 1);
            let stays = self.stays.get(device).into_iter().flatten();
            let mut seen = stays.filter(|stay| stay.life == life && stay.from < *time && stay.to > *time);
            let stay = seen.next().map(|stay| (stay.from, stay.to));
            ensure!(stay.is_none(), "{device} was forgotten at {time}, and was there (from, to): {stay:?}");
            let active = self.active.get(device).into_iter().flatten();
            let last = active
                .filter(|active| active.counts(life, *time, self.forget_after_ms))
                .map(|active| active.at)
                .max();
            ensure!(
                last.is_none_or(|last| last + self.forget_after_ms <= *time),
                "{device} was forgotten at {time}, and was active at {last:?}"
            );
            // To a second; and after a crash as it was journaled, to two eighths of that time and what turns take.
            let known = told + 1_000 + self.forget_after_ms / 2;
            ensure!(
                last.is_none_or(|last| last <= known),
                "{device} was forgotten as last active at {told}, and was at {last:?}"
            );
        }
        Ok(())
    }

    /// A target was refused for what was so then, or it wasn't and is taken.
    pub(crate) fn check_answer(&self, id: &str, sent: &Sent, answer: &Answer) -> Result<(), String> {
        for (ordinal, device) in (0u32..).zip(&sent.targets) {
            let known = as_of(self.devices.get(device), answer.sequence).unwrap_or(false);
            let push_on = as_of(self.switches.get(device), answer.sequence).unwrap_or(true);
            let refused = answer.refused.get(&ordinal).copied().unwrap_or(0);
            let fits = match pb::RefuseReason::try_from(refused) {
                Ok(pb::RefuseReason::Unspecified | pb::RefuseReason::OverQuota) => known && push_on,
                Ok(pb::RefuseReason::DeviceUnknown) => !known,
                Ok(pb::RefuseReason::PushDisabled) => known && !push_on,
                Ok(pb::RefuseReason::Offline) => known && push_on && sent.returns,
                // Perhaps of what was refused before it in the same batch.
                Ok(pb::RefuseReason::Duplicate) => true,
                Err(_) => false,
            };
            ensure!(
                fits,
                "{id}, answered at {}: {device} is refused for {refused}; known: {known}, push on: {push_on}",
                answer.sequence
            );
        }
        Ok(())
    }

    /// What was pending of a device that is forgotten ends with it, and only that ends so.
    pub(crate) fn check_end(&self, device: &str, accepted_at: u64, (end, at): &End) -> Result<(), String> {
        let next = |from: u64| self.devices.get(device)?.range(from..).find(|(_, known)| !**known);
        if *end == Err(Failure::Forgotten) {
            // Or the power went between the two records.
            let is_cut = self.lives.iter().any(|(head, _)| (*at..*at + DEVICE_RECORDS).contains(head));
            let is_forgotten = next(*at).is_some() || is_cut;
            ensure!(is_forgotten, "{device}: something ended at {at} as forgotten, and nobody was");
        }
        if let Some((forgotten_at, _)) = next(accepted_at) {
            ensure!(
                at < forgotten_at,
                "{device} was forgotten at {forgotten_at}; what was accepted at {accepted_at} ended at {at}: {end:?}"
            );
        }
        Ok(())
    }
}

impl World {
    /// Looks who is in the directory.
    pub(super) fn note_who_is_there(&mut self) {
        let Some(edge) = self.edge.as_ref().filter(|_| self.oracle.known.forgets()) else { return };
        let now = edge.now();
        if self.disk.is_limited() {
            self.oracle.known.full_until = now;
        }
        let full_until = self.oracle.known.full_until;
        for session in edge.live() {
            if let (Some(at), Some(device)) =
                (session.last_active, self.devices.iter().find(|device| device.key == session.device))
            {
                self.oracle.known.was_active(&device.id, at, now, full_until >= at);
            }
        }
        for device in &mut self.devices {
            let is_there = edge.session_of(&device.key).is_some();
            if is_there {
                self.oracle.known.has(&device.id, now, device.was_there);
            }
            device.was_there = is_there;
        }
    }
}
