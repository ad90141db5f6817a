//! Connection ids that say which shard they belong to.
//!
//! ```text
//! mark (1): mark mod endpoints = shard   random (5)   tag (4): keyed digest of the six bytes before
//! ```
//!
//! The mark is where the kernel program looks: byte 6 of a long header, byte 1 of a short one. Ids of two shards can't be the same, as their marks
//! differ; within a shard quinn makes another one. The mark is random among its shard's, the rest random, so that nobody can tell which ids
//! belong to one connection. The tag is by a key of the data directory: an edge that was restarted recognises the ids of the crashed one, whatever
//! its number of shards, and answers with a reset; garbage gets no answer.

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes before the tag.
const RANDOM: usize = 6;
/// Bytes of an id.
const BYTES: usize = 10;

/// Makes the ids of one shard's connections.
pub(super) struct Generator {
    key: [u8; 32],
    shard: u16,
    endpoints: u16,
    rng: StdRng,
}

impl Generator {
    /// For the endpoint of this shard among so many.
    pub(super) fn new(key: [u8; 32], shard: u16, endpoints: u16) -> Self {
        let endpoints = endpoints.clamp(1, 256);
        Self { key, shard: shard % endpoints, endpoints, rng: StdRng::from_os_rng() }
    }

    fn tag(&self, random: &[u8]) -> [u8; BYTES - RANDOM] {
        let digest = blake3::keyed_hash(&self.key, random);
        let mut tag = [0; BYTES - RANDOM];
        tag.copy_from_slice(&digest.as_bytes()[..BYTES - RANDOM]);
        tag
    }
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; BYTES];
        self.rng.fill(&mut id[1..RANDOM]);
        // As many marks as there are of this shard: those of the others below 256 may be one more or less.
        let marks = (255 - self.shard) / self.endpoints + 1;
        id[0] = (self.shard + self.endpoints * self.rng.random_range(0..marks)) as u8;
        let tag = self.tag(&id[..RANDOM]);
        id[RANDOM..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        // Public either way: nobody gains from comparing byte by byte.
        let is_ours = id.len() == BYTES && self.tag(&id[..RANDOM]) == id[RANDOM..];
        if is_ours { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_says_its_shard_and_only_its_maker_and_its_heirs_know_it(
            endpoints in 1u16..=256, shard in any::<u16>(), other in 1u16..=256, changed in 0..BYTES,
        ) {
            let shard = shard % endpoints;
            let mut ids = Generator::new([7; 32], shard, endpoints);
            let heir = Generator::new([7; 32], 0, other);
            let stranger = Generator::new([8; 32], shard, endpoints);
            for _ in 0..32 {
                let id = ids.generate_cid();
                prop_assert_eq!((id.len(), u16::from(id[0]) % endpoints), (ids.cid_len(), shard));
                prop_assert!(heir.validate(&id).is_ok());
                prop_assert!(stranger.validate(&id).is_err());
                let mut bytes = id.to_vec();
                bytes[changed] ^= 1;
                prop_assert!(heir.validate(&ConnectionId::new(&bytes)).is_err());
                prop_assert!(heir.validate(&ConnectionId::new(&bytes[..8])).is_err());
            }
        }
    }

    #[test]
    fn every_mark_of_a_shard_is_used_and_ids_differ() {
        let mut ids = Generator::new([7; 32], 2, 100);
        let many: Vec<ConnectionId> = (0..1_000).map(|_| ids.generate_cid()).collect();
        let marks: std::collections::BTreeSet<u8> = many.iter().map(|id| id[0]).collect();
        assert_eq!(marks.into_iter().collect::<Vec<_>>(), [2, 102, 202]);
        let distinct: std::collections::HashSet<&[u8]> = many.iter().map(|id| &id[..]).collect();
        assert_eq!(distinct.len(), many.len());
    }
}
