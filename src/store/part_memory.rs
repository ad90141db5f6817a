//! What a part of the index takes in memory, from the room that its maps have: constant work, however much is in them. Entries and what else hangs
//! on devices and records is counted where all of it is known: [`super::engine`]'s memory. `cargo bench --bench memory` compares the sum with
//! what the allocator hands out.

use std::collections::HashMap;
use std::hash::Hash;

use super::batch::Batch;
use super::part::{Cold, Part, Spread};
use super::push_record::{MessageKey, PushRecord};
use crate::credential::Revocation;
use crate::ids::{DeviceKey, Seq};

/// Bytes of a live batch beside itself: two counts, its id and its keys, and what an allocator keeps of each.
const BESIDE_BATCH: usize = 112;
/// Bytes of a message that was taken back, about.
const RECALL_BYTES: usize = 256;
/// Room that a map keeps though it is empty.
pub(super) const LEAST_ROOM: usize = 64;

/// Bytes of a part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PartMemory {
    /// Devices, live batches, batch ids, and the places of push records.
    pub(super) index: usize,
    /// Push records in memory, without what is in sets.
    pub(super) records: usize,
}

/// Bytes of a hash map with room for so many: a power of two of places, of which seven eighths may be taken, and a byte for each.
pub(super) fn map_bytes(capacity: usize, entry: usize) -> usize {
    let places = match capacity {
        0 => return 0,
        1..8 => (capacity + 1).next_power_of_two(),
        _ => (capacity * 8 / 7).next_power_of_two(),
    };
    places * (entry + 1) + 16
}

/// Bytes of an ordered tree: its nodes are little more than half full.
pub(super) fn tree_bytes(len: usize, entry: usize) -> usize {
    len * entry * 2
}

/// What was full for a while gives its room back.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V, Spread>) {
    if map.capacity() > 4 * map.len() + LEAST_ROOM {
        map.shrink_to(2 * map.len());
    }
}

impl Part {
    /// Measures it, after it gave back what it has far too much of.
    pub(super) fn measure(&mut self) -> PartMemory {
        self.devices.shrink();
        shrink(&mut self.messages);
        shrink(&mut self.cold);
        shrink(&mut self.batches);
        if self.message_order.capacity() > 4 * self.message_order.len() + LEAST_ROOM {
            self.message_order.shrink_to(2 * self.message_order.len());
        }
        let devices = self.devices.bytes();
        let revoked = map_bytes(self.revocations.capacity(), size_of::<(DeviceKey, Revocation)>());
        let cold = map_bytes(self.cold.capacity(), size_of::<(MessageKey, Cold)>());
        let order = self.message_order.capacity() * size_of::<MessageKey>();
        let batches = map_bytes(self.batches.capacity(), size_of::<(Seq, usize)>())
            + self.batches.len() * (size_of::<Batch>() + BESIDE_BATCH);
        let recalls = self.recalls.len() * RECALL_BYTES;
        PartMemory {
            index: devices + revoked + cold + order + batches + recalls + self.ids.memory(),
            records: map_bytes(self.messages.capacity(), size_of::<(MessageKey, PushRecord)>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_as_large_as_its_places() {
        assert_eq!(map_bytes(0, 80), 0);
        assert_eq!(map_bytes(3, 80), 4 * 81 + 16);
        assert_eq!(map_bytes(7, 80), 8 * 81 + 16);
        for capacity in [14, 28, 7 << 10, 7 << 20] {
            assert_eq!(map_bytes(capacity, 80), capacity / 7 * 8 * 81 + 16);
        }
        let mut map: HashMap<u64, u64, Spread> = HashMap::default();
        for n in 0..1_000 {
            map.insert(n, n);
            assert!((map.len()..=2 * map.len() + 8).contains(&map.capacity()));
        }
        assert_eq!(map_bytes(map.capacity(), 16), 2_048 * 17 + 16);
        map.retain(|n, _| *n < 10);
        shrink(&mut map);
        assert!(map.len() == 10 && map.capacity() < 64, "{}", map.capacity());
    }
}
