//! The hot rows of a part, by the keys of their devices: a hash map with a hand that walks around its places. So who looks for cold rows to let go
//! needs no queue of those that are in memory, which would take as much for each as its key.
//!
//! Where rows move as the map grows or shrinks, some are passed by and some are looked at twice: that doesn't matter to who looks again.

use hashbrown::HashTable;

use super::part::Device;
use crate::ids::DeviceKey;

/// See the module. Keys are digests: their own bytes are the hash.
#[derive(Debug, Default)]
pub(super) struct Devices {
    table: HashTable<(DeviceKey, Device)>,
    /// The place that is looked at next.
    hand: usize,
}

fn hash(row: &(DeviceKey, Device)) -> u64 {
    row.0.spread()
}

impl Devices {
    pub(super) fn get(&self, key: &DeviceKey) -> Option<&Device> {
        let found = self.table.find(key.spread(), |(other, _)| other == key);
        found.map(|(_, device)| device)
    }

    pub(super) fn get_mut(&mut self, key: &DeviceKey) -> Option<&mut Device> {
        let found = self.table.find_mut(key.spread(), |(other, _)| other == key);
        found.map(|(_, device)| device)
    }

    pub(super) fn get_or_insert_with(&mut self, key: DeviceKey, new: impl FnOnce() -> Device) -> &mut Device {
        let entry = self.table.entry(key.spread(), |(other, _)| *other == key, hash);
        &mut entry.or_insert_with(|| (key, new())).into_mut().1
    }

    pub(super) fn insert(&mut self, key: DeviceKey, device: Device) {
        let entry = self.table.entry(key.spread(), |(other, _)| *other == key, hash);
        entry.insert((key, device));
    }

    pub(super) fn remove(&mut self, key: &DeviceKey) -> Option<Device> {
        let found = self.table.find_entry(key.spread(), |(other, _)| other == key);
        found.ok().map(|entry| entry.remove().0.1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&DeviceKey, &Device)> {
        self.table.iter().map(|(key, device)| (key, device))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Device> {
        self.table.iter().map(|(_, device)| device)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Device> {
        self.table.iter_mut().map(|(_, device)| device)
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.table.capacity()
    }

    pub(super) fn reserve(&mut self, more: usize) {
        self.table.reserve(more, hash);
    }

    pub(super) fn shrink_to(&mut self, least: usize) {
        self.table.shrink_to(least, hash);
    }

    /// Shows devices from where the hand stands, each once at most. `look` says whether to go on: else the hand stays at this one.
    pub(super) fn walk(&mut self, mut look: impl FnMut(&mut Device) -> bool) {
        let places = self.table.num_buckets();
        for _ in 0..places {
            if self.hand >= places {
                self.hand = 0;
            }
            if let Some((_, device)) = self.table.get_bucket_mut(self.hand)
                && !look(device)
            {
                return;
            }
            self.hand += 1;
        }
    }
}

#[cfg(test)]
mod tests {
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
        map.shrink_to(0);
        assert!(map.capacity() < 20 && map.len() == 8);
        let mut known: Vec<u32> = map.iter().map(|(_, device)| device.number).collect();
        known.sort_unstable();
        assert_eq!(known, [0, 1, 2, 3, 4, 5, 6, 60]);
    }
}
