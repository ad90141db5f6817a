//! The changes of presence, pure: the last one of each device under a number that grows, a bounded number of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::State;
use crate::ids::{AppKey, BuildSpread, DeviceKey, Generation};
use crate::push::Millis;

/// "Look at this device", said by the session that changed something.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The device.
    pub device: DeviceKey,
    /// The session that says so.
    pub generation: Generation,
    /// What that session thinks, when, and of whom.
    pub change: Change,
}

/// A device's state since a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The app.
    pub app: AppKey,
    /// The device's id.
    pub device_id: Arc<str>,
    /// Its state.
    pub state: State,
    /// Since when.
    pub time: Millis,
}

/// A point in the changes of one edge process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    /// The process.
    pub epoch: u64,
    /// The newest change.
    pub sequence: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    epoch: u64,
    /// The newest change's number.
    sequence: u64,
    /// Changes up to here may be gone.
    floor: u64,
    changes: BTreeMap<u64, (DeviceKey, Change)>,
    /// The number of each device's change.
    latest: HashMap<DeviceKey, u64, BuildSpread>,
    max: usize,
}

impl Hub {
    /// Without any changes; it keeps `max` devices' at most.
    pub fn new(epoch: u64, max: usize) -> Self {
        let (changes, latest) = (BTreeMap::new(), HashMap::default());
        // From 1, so that a router that knows nothing and says 0 is never taken for one that knows.
        Self { epoch, sequence: 1, floor: 1, changes, latest, max }
    }

    /// Devices whose last change is kept.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Where it stands.
    pub fn point(&self) -> Point {
        Point { epoch: self.epoch, sequence: self.sequence }
    }

    /// A session marked its device. `find` says which session the device has now.
    pub fn handle_mark(&mut self, mark: Mark, find: impl Fn(&DeviceKey) -> Option<Generation>) {
        let state = match find(&mark.device) {
            None => State::Disconnected,
            Some(generation) if generation == mark.generation => mark.change.state,
            // Another session has the device now. It has its own say: it marks the device after it entered the directory.
            Some(_) => return,
        };
        self.sequence += 1;
        if let Some(older) = self.latest.insert(mark.device, self.sequence) {
            self.changes.remove(&older);
        }
        self.changes.insert(self.sequence, (mark.device, Change { state, ..mark.change }));
        while self.changes.len() > self.max {
            let Some((number, (device, _))) = self.changes.pop_first() else { break };
            self.latest.remove(&device);
            self.floor = number;
        }
        debug_assert_eq!(self.changes.len(), self.latest.len(), "one change a device");
    }

    /// Changes may have been missed: no point up to now holds any more.
    pub fn handle_lost(&mut self) {
        self.sequence += 1;
        self.floor = self.sequence;
        self.changes = BTreeMap::new();
        self.latest = HashMap::default();
    }

    /// Whether everything behind this point is here.
    pub fn holds(&self, point: Point) -> bool {
        point.epoch == self.epoch && (self.floor..=self.sequence).contains(&point.sequence)
    }

    /// Changes behind `after` in order, at most `max`, and the point that they lead to. `None`: some are gone.
    pub fn read(&self, after: u64, max: usize) -> Option<(impl Iterator<Item = &Change>, u64)> {
        if !self.holds(Point { sequence: after, ..self.point() }) {
            return None;
        }
        let behind = self.changes.range(after + 1..);
        let upto = behind.clone().nth(max).map_or(self.sequence, |(number, _)| number - 1);
        Some((behind.take(max).map(|(_, (_, change))| change), upto))
    }
}
