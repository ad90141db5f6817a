//! What benches have in common: an app, devices, a batch, an ack; a sink that tells nobody; what the kernel says of this process.
#![allow(dead_code)] // Each bench needs some of it.

use std::hint::black_box;
use std::sync::Arc;

use mooring::binding::ChangeError;
use mooring::ids::{AppKey, BatchId, DeviceKey, DigestKey, Generation, MessageId, Seq, SessionRef, ShardId};
use mooring::push::{
    Acked, Attributes, BatchPart, Event, Failure, Millis, NewBatch, OfflinePolicy, Priority, Seen,
};
use mooring::store::{Batch, CommitSink, Confirm, DeviceAck};
use smallvec::smallvec;

pub(crate) const NOW: Millis = 1_800_000_000_000;
pub(crate) const DIGEST_KEY: DigestKey = DigestKey([7; 32]);

/// Nobody is told.
pub(crate) struct NoSink;

impl CommitSink for NoSink {
    fn batch(&mut self, _: &Arc<Batch>, devices: &[DeviceKey]) {
        black_box(devices);
    }
    fn confirmed(&mut self, _: ShardId, confirms: Vec<Confirm>) {
        black_box(confirms);
    }
    fn seen(&mut self, _: SessionRef) {}
    fn changed(&mut self, _: SessionRef, _: Result<(), ChangeError>) {}
    fn ended(&mut self, _: &DeviceKey, _: Seq, _: Failure) {}
}

pub(crate) fn app() -> AppKey {
    AppKey::parse("app").expect("valid")
}

pub(crate) fn session() -> SessionRef {
    SessionRef { generation: Generation(1), slot: 0, shard: ShardId(0) }
}

/// The id of a device.
pub(crate) fn device_id(n: u64) -> String {
    format!("device-{n:016x}")
}

/// Its key.
pub(crate) fn key(n: u64) -> DeviceKey {
    DeviceKey::of(&DIGEST_KEY, &app(), &device_id(n))
}

/// What it says of itself: as many bytes as phones say, its own ones.
pub(crate) fn seen(n: u64) -> Seen {
    let mut attributes = vec![7; 250];
    attributes[..8].copy_from_slice(&n.to_le_bytes());
    Seen {
        key: key(n),
        app: app(),
        device_id: device_id(n).into(),
        attributes: Attributes::whole(attributes.into()),
        push_on: None,
        client_ip: [127, 0, 0, 1].into(),
        state_lost: false,
    }
}

/// A batch that stays an hour, with 300 bytes of body.
pub(crate) fn batch(id: &str, message: u64, targets: &[DeviceKey]) -> Box<NewBatch> {
    Box::new(NewBatch {
        id: BatchId::parse(id).expect("valid"),
        app: app(),
        message: MessageId(message),
        body: vec![7; 300].into(),
        body_digest: [7; 16],
        digest: [7; 16],
        targets: targets.to_vec(),
        part: BatchPart::default(),
        offline_policy: OfflinePolicy::Store,
        created_at: NOW,
        expires_at: NOW + 3_600_000,
        online_only: false,
        job_key: "".into(),
        priority: Priority::Normal,
        collapse_key: "".into(),
        accounts: Vec::new(),
    })
}

/// The message arrived.
pub(crate) fn ack(device: DeviceKey, message: u64) -> DeviceAck {
    let event = Acked { message: MessageId(message), event: Event::Arrive, time: NOW, sent_at: Some(NOW) };
    DeviceAck { device, session: session(), number: 1, client_ip: None, events: smallvec![event] }
}

/// Bytes of this process in memory.
pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number") * 4096
}
