//! Groups the devices of a committed batch by the shard that holds their session: one hand-over per shard and batch, not one per device.

use crate::ids::{SessionRef, ShardId};

/// Sessions that have something newer, one list a shard.
#[derive(Debug)]
pub struct ByShard {
    lists: Vec<Vec<SessionRef>>,
}

impl ByShard {
    /// For so many shards.
    pub fn new(shards: usize) -> Self {
        Self { lists: (0..shards).map(|_| Vec::new()).collect() }
    }

    /// Adds a session to its shard's list.
    pub fn add(&mut self, session: SessionRef) {
        if let Some(list) = self.lists.get_mut(usize::from(session.shard.0)) {
            list.push(session);
        }
    }

    /// The shards that got something, and their lists; empty again afterwards, memory kept for the next batch.
    pub fn drain(&mut self) -> impl Iterator<Item = (ShardId, &mut Vec<SessionRef>)> {
        self.lists
            .iter_mut()
            .enumerate()
            .filter(|(_, list)| !list.is_empty())
            .map(|(shard, list)| (ShardId(shard as u16), list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    #[test]
    fn every_session_is_in_its_shards_list_once() {
        let mut by_shard = ByShard::new(3);
        for slot in 0..10u32 {
            let shard = ShardId((slot % 2 * 2) as u16);
            by_shard.add(SessionRef { generation: Generation(u64::from(slot)), slot, shard });
        }
        let lists: Vec<_> = by_shard.drain().map(|(s, l)| (s, std::mem::take(l).len())).collect();
        assert_eq!(lists, [(ShardId(0), 5), (ShardId(2), 5)]);
        assert_eq!(by_shard.drain().count(), 0);
    }
}
