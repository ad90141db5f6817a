//! What bytes cost: frames of devices and of routers, records of the journal; nanoseconds an item and bytes, each way that the edge goes.
//!
//! `cargo bench --bench codecs`; the bytes of each are in its name.
#![allow(missing_docs)]

mod common;

use std::hint::black_box;

use common::{NOW, app, device_id, key, seen};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mooring::ids::{BatchId, MessageId, Seq};
use mooring::push::{Accepted, Channel, Receipt, ReceiptKind, StreamEvent};
use mooring::store::{Sample, StreamRead};
use mooring::wire::device;
use mooring::wire::frame::{device_frame, put_device_frame};
use mooring::wire::pb::device as pb;
use mooring::wire::pb::router as router_pb;
use mooring::wire::router;
use prost::Message;

/// Bytes of a push.
const BODY: usize = 200;

fn frame(frame: pb::to_edge::Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_device_frame(&mut bytes, &pb::ToEdge { frame: Some(frame) });
    bytes
}

fn event(n: u64) -> pb::Event {
    pb::Event { message_id: 7_000_000_000 + n, r#type: pb::EventType::Arrive.into(), time_milliseconds: NOW }
}

fn hello() -> Vec<u8> {
    let attributes = pb::Attributes {
        package: "org.example.app".into(),
        app_version: "1.20.3".into(),
        sdk_version: "3.1.0".into(),
        brand: "Example".into(),
        model: "Model 12".into(),
        os: "android".into(),
        os_version: "14".into(),
        network_type: "wifi".into(),
        isp: "Example Mobile".into(),
        utdid: "ZmFrZS11dGRpZC0wMDAwMDE=".into(),
        ..pb::Attributes::default()
    };
    frame(pb::to_edge::Frame::Hello(pb::Hello {
        app_key: app().as_str().into(),
        identity: Some(pb::hello::Identity::Login(pb::Login {
            device_id: device_id(1),
            credential: vec![7; 37],
        })),
        attributes: Some(attributes),
        ..pb::Hello::default()
    }))
}

/// What a device says, from its bytes to the domain's types.
fn from_devices(c: &mut Criterion) {
    let mut group = c.benchmark_group("device, decode");
    let ack = |events| {
        frame(pb::to_edge::Frame::Ack(pb::Ack { number: 9, events: (0..events).map(event).collect() }))
    };
    let frames = [
        ("Ping", frame(pb::to_edge::Frame::Ping(pb::Ping {}))),
        ("Ack of 1", ack(1)),
        ("Ack of 10", ack(10)),
        ("Hello", hello()),
    ];
    for (name, bytes) in frames {
        group.bench_function(format!("{name}, {} bytes", bytes.len()), |b| {
            b.iter(|| {
                let (head, body) = device_frame(black_box(&bytes)).expect("a frame").expect("whole");
                device::parse(&bytes[head..head + body]).expect("of the protocol")
            });
        });
    }
    group.finish();
}

/// What a device is told.
fn to_devices(c: &mut Criterion) {
    let mut group = c.benchmark_group("device, encode");
    let body = vec![7; BODY];
    let mut out = Vec::new();
    let mut bench = |name: &str, put: &dyn Fn(&mut Vec<u8>)| {
        out.clear();
        put(&mut out);
        group.bench_function(format!("{name}, {} bytes", out.len()), |b| {
            b.iter(|| {
                out.clear();
                put(black_box(&mut out));
            });
        });
    };
    bench("Push", &|out| device::put_push(out, &body, false));
    bench("Push sent again", &|out| device::put_push(out, &body, true));
    bench("AckConfirm", &|out| device::put_ack_confirm(out, 9));
    bench("Pong", &|out| device::put_pong(out, NOW));
    group.finish();
}

/// What a router says: a batch with its targets, as admission goes over them.
fn from_routers(c: &mut Criterion) {
    let mut group = c.benchmark_group("router, decode");
    for targets in [1, 1_000, 100_000] {
        let target = |n| router_pb::Target { device_id: device_id(n), account: String::new() };
        let batch = router_pb::DeliverBatch {
            batch_id: "batch-0000000000000001".into(),
            app_key: app().as_str().into(),
            message_id: 7_000_000_001,
            body: Some(pb::Push {
                title: "x".repeat(20),
                body: "x".repeat(BODY - 20),
                ..pb::Push::default()
            }),
            targets: (0..targets).map(target).collect(),
            created_at: NOW,
            ..router_pb::DeliverBatch::default()
        };
        let frame = router_pb::from_router::Frame::Deliver(batch);
        let bytes = router_pb::FromRouter { frame: Some(frame) }.encode_to_vec();
        group.throughput(Throughput::Elements(targets));
        group.bench_function(format!("DeliverBatch to {targets}, {} bytes", bytes.len()), |b| {
            b.iter(|| match router::parse(black_box(&bytes)) {
                Ok(router::FromRouter::Deliver(deliver)) => {
                    assert_eq!(deliver.targets().flatten().count(), targets as usize);
                }
                other => panic!("a batch: {other:?}"),
            });
        });
    }
    group.finish();
}

fn receipt(n: u64) -> (Seq, StreamEvent) {
    let device = seen(n);
    let receipt = Receipt {
        kind: ReceiptKind::Arrive,
        outcome: Some(Ok(())),
        app: app(),
        message: MessageId(7_000_000_001),
        target: Some((BatchId::parse("batch-0000000000000001").expect("valid"), n as u32)),
        device_id: device.device_id,
        event_time: NOW,
        raw_event_time: NOW,
        sent_at: NOW,
        channel: Channel::Online,
        last_active: NOW,
        client_ip: Some([127, 0, 0, 1].into()),
        attributes: device.attributes,
        job_key: "job".into(),
        after: None,
        late: false,
        unmatched: false,
        implied: false,
    };
    (Seq(n + 1), StreamEvent::Receipt(Box::new(receipt)))
}

/// What a router is told: receipts, and that a batch is accepted.
fn to_routers(c: &mut Criterion) {
    let mut group = c.benchmark_group("router, encode");
    for receipts in [1, 1_000] {
        let read = StreamRead { events: (0..receipts).map(receipt).collect(), cursor: Seq(receipts) };
        let frames = |read| router::stream_batches("main", 1, read, usize::MAX);
        let bytes: usize = frames(&read).iter().map(|(_, frame)| frame.len()).sum();
        group.throughput(Throughput::Elements(receipts));
        group.bench_function(format!("StreamBatch of {receipts}, {bytes} bytes"), |b| {
            b.iter(|| frames(black_box(&read)));
        });
    }
    let name = router::BatchName::new("batch-0000000000000001", app().as_str());
    let answer = Accepted {
        seq: Seq(9),
        first_seq: Seq(9),
        accepted: 1_000,
        refused: Vec::new(),
        repeated: false,
        accepted_at: NOW,
        expires_at: NOW + 3_600_000,
    };
    let bytes = router::accepted(&name, &answer).len();
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("BatchAccepted, {bytes} bytes"), |b| {
        b.iter(|| router::accepted(black_box(&name), black_box(&answer)));
    });
    group.finish();
}

/// The payloads of the journal's records, without its own frame and checksum (`--bench journal` has these).
fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for sample in Sample::all() {
        let mut payload = Vec::new();
        sample.encode(&mut payload);
        let name = format!("{}, {} bytes", sample.name, payload.len());
        let mut out = Vec::new();
        group.bench_function(format!("encode {name}"), |b| {
            b.iter(|| {
                out.clear();
                sample.encode(black_box(&mut out));
            });
        });
        group.bench_function(format!("decode {name}"), |b| {
            b.iter(|| assert!(sample.decode(black_box(&payload)), "whole"));
        });
    }
    group.finish();
}

/// The key that everything is looked up by.
fn keys(c: &mut Criterion) {
    c.bench_function("device key", |b| b.iter(|| key(black_box(1))));
}

criterion_group!(benches, from_devices, to_devices, from_routers, to_routers, records, keys);
criterion_main!(benches);
