//! What benches of the store need besides an engine.

use std::sync::Arc;

use mooring::binding::ChangeError;
use mooring::ids::{AppKey, BatchId, DeviceKey, Generation, MessageId, Seq, SessionRef, ShardId};
use mooring::push::{Acked, Event, Failure, Millis, NewBatch, OfflinePolicy, Priority};
use mooring::store::{Batch, CommitSink, Confirm, DeviceAck};

pub(crate) const NOW: Millis = 1_800_000_000_000;

/// Nobody is told.
pub(crate) struct NoSink;

impl CommitSink for NoSink {
    fn batch(&mut self, _: &Arc<Batch>, _: &[DeviceKey]) {}
    fn confirmed(&mut self, _: ShardId, _: Vec<Confirm>) {}
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
    DeviceAck { device, session: session(), number: 1, client_ip: None, events: vec![event] }
}
