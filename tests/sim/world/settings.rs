//! What an operator has changed in the configuration when an edge starts again.

use mooring::sim::Plan;
use mooring::store::options::Quota;
use rand::Rng;
use rand::rngs::SmallRng;

use super::app;
use super::chance::once_in;

/// Bytes of the smallest journal segment in which everything has room that is sent here.
const SEGMENT_BYTES: u32 = 16 * 1024;

/// See the module.
pub(crate) struct Settings {
    vary: bool,
}

impl Settings {
    /// In one run of three others hold after each start.
    pub(crate) fn new(rng: &mut SmallRng) -> Self {
        Self { vary: once_in(rng, 3) }
    }

    /// The largest that a stream's bound, or a quota, may ever be in this run is what the plan says now.
    pub(crate) fn change(&self, plan: &mut Plan, rng: &mut SmallRng) -> Option<String> {
        if !self.vary {
            return None;
        }
        let store = &mut plan.store;
        plan.shards = rng.random_range(1..=4);
        store.segment_bytes = SEGMENT_BYTES * rng.random_range(1..=3);
        store.reserve_segments = [16, 20, 32][rng.random_range(0..3)];
        let least = u64::from(store.segment_bytes) * u64::from(store.reserve_segments + 2);
        store.max_bytes = if rng.random() { 0 } else { least * rng.random_range(1..=3) };
        store.checkpoint_bytes = [4, 16, 64][rng.random_range(0..3)] * 1024;
        store.message_cache_bytes = [0, 1_000, 1_000_000][rng.random_range(0..3)];
        store.device_cache_bytes = [0, 1_000, 1_000_000][rng.random_range(0..3)];
        store.body_cache_bytes = [0, 1_000, 1_000_000][rng.random_range(0..3)];
        if let Some(quota) = store.app_quotas.get_mut(&app(0)) {
            let (max_entries, drop_oldest) = (rng.random_range(1..10), rng.random());
            *quota = Quota { max_entries, drop_oldest, ..*quota };
        }
        if store.stream_hard_bytes < 1 << 30 {
            store.stream_soft_bytes = 1024 * rng.random_range(16..64);
            store.stream_hard_bytes = store.stream_soft_bytes + 2 * u64::from(store.segment_bytes);
        }
        Some(format!(
            "{} shards, segments of {}, {} in reserve, at most {}, streams {}, quotas {:?}",
            plan.shards,
            store.segment_bytes,
            store.reserve_segments,
            store.max_bytes,
            store.stream_hard_bytes,
            store.app_quotas.values()
        ))
    }
}
