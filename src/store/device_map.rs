//! The hot rows of a part, by the keys of their devices. The rows stand one behind the other, and a hash map has their places: a map that has just doubled is
//! half empty, and should be so in places of four bytes rather than of eighty. It costs a look-up one more line of memory, and nothing has to be moved
//! but the places when the map grows.
//!
//! A hand walks around the rows: so who looks for cold rows to let go needs no queue of those that are in memory, which would take as much for each as
//! its key. Where a row moves, as one before it went, it is passed by or looked at twice: that doesn't matter to who looks again.

use hashbrown::HashTable;

use super::part::Device;
use super::part_memory::{LEAST_ROOM, map_bytes};
use crate::ids::DeviceKey;

/// Rows grow by this share of what is there: the rest of the room stays empty until then.
const GROWTH: usize = 8;

type Row = (DeviceKey, Device);

/// See the module. Keys are digests: their own bytes are the hash.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// Where in `rows` a device stands.
    places: HashTable<u32>,
    rows: Vec<Row>,
    /// The row that is looked at next.
    hand: usize,
}

impl Devices {
    fn place(&self, key: &DeviceKey) -> Option<usize> {
        self.places.find(key.spread(), |at| self.rows[*at as usize].0 == *key).map(|at| *at as usize)
    }

    pub(super) fn get(&self, key: &DeviceKey) -> Option<&Device> {
        Some(&self.rows[self.place(key)?].1)
    }

    pub(super) fn get_mut(&mut self, key: &DeviceKey) -> Option<&mut Device> {
        let at = self.place(key)?;
        Some(&mut self.rows[at].1)
    }

    pub(super) fn get_or_insert_with(&mut self, key: DeviceKey, new: impl FnOnce() -> Device) -> &mut Device {
        let at = self.place(&key).unwrap_or_else(|| self.push((key, new())));
        &mut self.rows[at].1
    }

    pub(super) fn insert(&mut self, key: DeviceKey, device: Device) {
        match self.get_mut(&key) {
            Some(known) => *known = device,
            None => {
                self.push((key, device));
            }
        }
    }

    /// Of a device that isn't there. Where it stands now.
    fn push(&mut self, row: Row) -> usize {
        if self.rows.len() == self.rows.capacity() {
            self.rows.reserve_exact((self.rows.len() / GROWTH).max(4));
        }
        let at = self.rows.len();
        self.rows.push(row);
        let rows = &self.rows;
        self.places.insert_unique(rows[at].0.spread(), at as u32, |at| rows[*at as usize].0.spread());
        at
    }

    /// The last row takes its place.
    pub(super) fn remove(&mut self, key: &DeviceKey) -> Option<Device> {
        let found = self.places.find_entry(key.spread(), |at| self.rows[*at as usize].0 == *key).ok()?;
        let (at, _) = found.remove();
        let (_, device) = self.rows.swap_remove(at as usize);
        if let Some((moved, _)) = self.rows.get(at as usize) {
            let from = self.rows.len() as u32;
            if let Some(place) = self.places.find_mut(moved.spread(), |place| *place == from) {
                *place = at;
            }
        }
        Some(device)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&DeviceKey, &Device)> {
        self.rows.iter().map(|(key, device)| (key, device))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Device> {
        self.rows.iter().map(|(_, device)| device)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Device> {
        self.rows.iter_mut().map(|(_, device)| device)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Bytes of the rows and their places, with the room that is empty.
    pub(super) fn bytes(&self) -> usize {
        map_bytes(self.places.capacity(), size_of::<u32>()) + self.rows.capacity() * size_of::<Row>()
    }

    pub(super) fn reserve(&mut self, more: usize) {
        let rows = &self.rows;
        self.places.reserve(more, |at| rows[*at as usize].0.spread());
        self.rows.reserve_exact(more);
    }

    /// Gives room back, if there is far too much.
    pub(super) fn shrink(&mut self) {
        let len = self.rows.len();
        if self.rows.capacity() > 2 * len + LEAST_ROOM {
            self.rows.shrink_to(len + len / GROWTH);
        }
        if self.places.capacity() > 4 * len + LEAST_ROOM {
            let rows = &self.rows;
            self.places.shrink_to(2 * len, |at| rows[*at as usize].0.spread());
        }
    }

    /// Shows devices from where the hand stands, each once at most. `look` says whether to go on: else the hand stays at this one.
    pub(super) fn walk(&mut self, mut look: impl FnMut(&mut Device) -> bool) {
        for _ in 0..self.rows.len() {
            if self.hand >= self.rows.len() {
                self.hand = 0;
            }
            if !look(&mut self.rows[self.hand].1) {
                return;
            }
            self.hand += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::part::{AppId, Described};

    fn device(number: u32) -> Device {
        let app = AppId(1);
        Device::new(&Described { number, app, push_on: true, attributes: (0, 0), last_active: 0 })
    }

    fn filled(devices: u32) -> Devices {
        let mut map = Devices::default();
        for n in 0..devices {
            map.insert(DeviceKey(u128::from(n).to_le_bytes()), device(n));
        }
        map
    }

    #[test]
    fn the_hand_shows_each_device_once_a_round_and_stays_where_it_was_stopped() {
        let (mut map, mut seen) = (filled(100), Vec::new());
        map.walk(|device| {
            seen.push(device.number);
            seen.len() < 40
        });
        let last = seen.pop();
        map.walk(|device| {
            seen.push(device.number);
            seen.len() < 100
        });
        assert_eq!(seen.get(39).copied(), last, "where it stood");
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        let mut rounds = 0;
        map.walk(|_| {
            rounds += 1;
            true
        });
        assert_eq!(rounds, 100, "one round");
        filled(0).walk(|_| panic!("nobody is there"));
    }

    #[test]
    fn it_is_a_map() {
        let (mut map, key) = (filled(50), |n: u32| DeviceKey(u128::from(n).to_le_bytes()));
        map.insert(key(7), device(70));
        assert_eq!((map.len(), map.get(&key(7)).map(|device| device.number)), (50, Some(70)));
        assert_eq!(map.get_or_insert_with(key(7), || device(0)).number, 70);
        assert_eq!(map.get_or_insert_with(key(60), || device(60)).number, 60);
        assert_eq!(map.remove(&key(7)).map(|device| device.number), Some(70));
        assert!(map.remove(&key(7)).is_none() && map.get(&key(7)).is_none());
        for n in 8..50 {
            map.remove(&key(n));
        }
        map.shrink();
        assert_eq!(map.len(), 8);
        let mut known: Vec<u32> = map.iter().map(|(_, device)| device.number).collect();
        known.sort_unstable();
        assert_eq!(known, [0, 1, 2, 3, 4, 5, 6, 60]);
    }

    #[test]
    fn room_that_was_full_for_a_while_goes_back() {
        let mut map = filled(10_000);
        let full = map.bytes();
        assert!((800_000..1_000_000).contains(&full), "{full}: 80 bytes a row, and its place");
        for n in 100..10_000_u32 {
            map.remove(&DeviceKey(u128::from(n).to_le_bytes())).expect("there");
        }
        map.shrink();
        assert!(map.bytes() < 20_000, "{}", map.bytes());
        assert!((0..100_u32).all(|n| map.get(&DeviceKey(u128::from(n).to_le_bytes())).is_some()));
    }

    proptest! {
        #[test]
        fn it_is_a_map_whatever_goes(steps in prop::collection::vec((any::<bool>(), 0..30_u32), 0..200)) {
            let (mut map, mut model) = (Devices::default(), BTreeMap::new());
            let key = |n: u32| DeviceKey(u128::from(n).to_le_bytes());
            for (step, (comes, n)) in (100..).zip(steps) {
                if comes {
                    map.insert(key(n), device(step));
                    model.insert(n, step);
                } else {
                    prop_assert_eq!(map.remove(&key(n)).map(|device| device.number), model.remove(&n));
                }
                for n in 0..30 {
                    prop_assert_eq!(map.get(&key(n)).map(|device| device.number), model.get(&n).copied());
                }
                prop_assert_eq!(map.len(), model.len());
            }
        }
    }
}
