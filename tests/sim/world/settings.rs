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
    /// `used`: the bytes of its files, if all are as they were, also those that the power may take.
    pub(crate) fn change(&self, plan: &mut Plan, used: Option<u64>, rng: &mut SmallRng) -> Option<String> {
        if !self.vary {
            return None;
        }
        let store = &mut plan.store;
        plan.shards = rng.random_range(1..=4);
        store.segment_bytes = SEGMENT_BYTES * rng.random_range(1..=3);
        let (is_bounded, reserve) = (rng.random::<bool>(), [16, 20, 32][rng.random_range(0..3)]);
        // With less, acks may have to wait for something to expire.
        let used = used.filter(|_| is_bounded);
        store.reserve_segments = if used.is_some() { reserve.min(store.reserve_segments) } else { reserve };
        let least = u64::from(store.segment_bytes) * u64::from(store.reserve_segments + 2);
        store.max_bytes = used.map_or(0, |used| used + least * rng.random_range(1..=3));
        store.checkpoint_bytes = [4, 16, 64][rng.random_range(0..3)] * 1024;
        store.message_cache_bytes = [0, 1_000, 1_000_000][rng.random_range(0..3)];
        store.device_cache_bytes = [0, 1_000, 1_000_000][rng.random_range(0..3)];
        store.body_cache_bytes = [0, 1_000, 1_000_000][rng.random_range(0..3)];
        store.max_pending = if once_in(rng, 3) { rng.random_range(20..100) } else { u64::MAX };
        // An app's events go to another stream from then on.
        let streams = store.streams.clone();
        for app in &plan.apps {
            if once_in(rng, 3) {
                store.app_streams.insert(app.clone(), streams[rng.random_range(0..streams.len())].clone());
            }
        }
        if let Some(quota) = store.app_quotas.get_mut(&app(0)) {
            let (max_entries, drop_oldest) = (rng.random_range(1..10), rng.random());
            *quota = Quota { max_entries, drop_oldest, ..*quota };
        }
        if store.stream_hard_bytes < 1 << 30 {
            store.stream_soft_bytes = 1024 * rng.random_range(16..64);
            store.stream_hard_bytes = store.stream_soft_bytes + 2 * u64::from(store.segment_bytes);
        }
        Some(format!(
            "{} shards, segments of {}, {} in reserve, at most {}, {} pending, streams {:?} of {}, quotas {:?}",
            plan.shards,
            store.segment_bytes,
            store.reserve_segments,
            store.max_bytes,
            store.max_pending,
            plan.apps.iter().map(|app| &store.app_streams[app]).collect::<Vec<_>>(),
            store.stream_hard_bytes,
            store.app_quotas.values()
        ))
    }
}
