//! What kind of edge a run has, and what kernels take of its connections.

use std::collections::HashMap;
use std::sync::Arc;

use mooring::config;
use mooring::ids::{AppKey, DigestKey};
use mooring::limits;
use mooring::sim::Plan;
use mooring::store::options::{Quota, StoreOptions};
use mooring::store::tables::TableKind;
use rand::Rng;
use rand::rngs::SmallRng;

use super::app;
use super::chance::once_in;
use super::router::{APPS, STREAMS};

/// What kind of edge this run has.
pub(super) fn plan(rng: &mut SmallRng) -> Plan {
    let apps: Vec<AppKey> = (0..rng.random_range(1..=APPS.len())).map(app).collect();
    let routers = rng.random_range(1..=2);
    let quota = Quota { max_entries: 6, max_bytes: u64::MAX, drop_oldest: rng.random() };
    let mut store = StoreOptions {
        parts: 4,
        segment_bytes: 16 * 1024,
        // The largest Ack finds room in it.
        reserve_segments: 16,
        checkpoint_bytes: 16 * 1024,
        message_cache_bytes: 1_000,
        device_cache_bytes: 1_000,
        body_cache_bytes: if rng.random() { 1_000 } else { 1_000_000 },
        tables: if once_in(rng, 16) { TableKind::Library } else { TableKind::Log },
        forget_after_ms: 0,
        unmatched_per_second: u32::MAX,
        digest_key: DigestKey([7; 32]),
        streams: STREAMS[..apps.len()].iter().map(|name| (*name).into()).collect(),
        app_streams: apps.iter().cloned().zip(STREAMS.map(Arc::from)).collect(),
        app_quotas: if once_in(rng, 4) { [(app(0), quota)].into() } else { HashMap::new() },
        ..StoreOptions::default()
    };
    if once_in(rng, 8) {
        (store.stream_soft_bytes, store.stream_hard_bytes) = (32 * 1024, 64 * 1024);
    }
    let device = config::Device {
        ack_deadline_ms: 3_000,
        online_window_ms: 6_000,
        stall_deadline_ms: 4_000,
        hello_deadline_ms: 2_000,
        suspect_after_ms: 1_000,
        heartbeat_min_s: 2,
        heartbeat_default_s: 10,
        heartbeat_max_s: 20,
        ..config::Device::default()
    };
    Plan {
        shards: rng.random_range(1..=4),
        apps,
        epoch: 1,
        registrations_per_s: 1_000,
        routers: (1..=routers).map(|number| format!("router-{number}")).collect(),
        device,
        store,
        part_targets: limits::PART_TARGETS,
        events_a_read: rng.random_range(1..20),
    }
}

/// What a kernel takes of a connection.
pub(super) fn room(rng: &mut SmallRng) -> usize {
    match rng.random_range(0..4) {
        0 => rng.random_range(64..512),
        1 => 2_048,
        _ => 16_384,
    }
}
