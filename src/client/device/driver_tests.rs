//! A device against a scripted edge over an in-memory stream.

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::client::device::Settings;
use crate::client::{Backoff, Transport};
use crate::wire::frame::{device_frame, put_device_frame};
use crate::wire::pb::device::{AckConfirm, Attributes, ToDevice, ToEdge, Welcome};

#[derive(Default)]
struct App {
    got: Vec<u64>,
    click: bool,
}

impl Handler for App {
    fn push(&mut self, push: Push) -> Option<Reaction> {
        self.got.push(push.message_id);
        self.click.then_some(Reaction { event: EventType::Click, delay: 0 })
    }
}

fn device(click: bool) -> Device<App> {
    let settings = Settings {
        app_key: "demo".into(),
        device_id: "d-1".into(),
        credential: vec![1],
        install_secret: None,
        attributes: Arc::new(Attributes::default()),
        heartbeat_seconds: 0,
        backoff: Backoff::fast(),
        seed: 1,
    };
    let endpoint = Endpoint { address: "127.0.0.1:1".into(), transport: Transport::Plain, source: None };
    Device::new(endpoint, Machine::new(settings), App { click, ..App::default() }, Arc::new(Clock::new(0)))
}

struct Edge {
    stream: DuplexStream,
    bytes: Vec<u8>,
}

impl Edge {
    async fn recv(&mut self) -> to_edge::Frame {
        loop {
            if let Some((head, body)) = device_frame(&self.bytes).expect("a frame") {
                let message = ToEdge::decode(&self.bytes[head..head + body]).expect("decodes");
                self.bytes.drain(..head + body);
                return message.frame.expect("a known frame");
            }
            assert_ne!(self.stream.read_buf(&mut self.bytes).await.expect("reads"), 0, "the device left");
        }
    }

    async fn send(&mut self, frames: Vec<to_device::Frame>) {
        let mut out = Vec::new();
        for frame in frames {
            put_device_frame(&mut out, &ToDevice { frame: Some(frame) });
        }
        self.stream.write_all(&out).await.expect("writes");
    }

    async fn welcome(&mut self) {
        assert!(matches!(self.recv().await, to_edge::Frame::Hello(_)));
        let welcome = Welcome { heartbeat_seconds: 60, max_ack_events: 256, ..Welcome::default() };
        self.send(vec![to_device::Frame::Welcome(welcome)]).await;
    }

    async fn ack(&mut self) -> (u64, Vec<(u64, EventType)>) {
        match self.recv().await {
            to_edge::Frame::Ack(ack) => {
                (ack.number, ack.events.iter().map(|e| (e.message_id, e.r#type())).collect())
            }
            other => panic!("not an Ack: {other:?}"),
        }
    }
}

fn push(id: u64) -> to_device::Frame {
    to_device::Frame::Push(Push { message_id: id, ..Push::default() })
}

fn confirm(number: u64) -> to_device::Frame {
    to_device::Frame::AckConfirm(AckConfirm { number })
}

#[tokio::test]
async fn it_acknowledges_then_hands_over_then_reacts_and_settles() {
    let (near, far) = duplex(4_096);
    let mut edge = Edge { stream: far, bytes: Vec::new() };
    let mut device = device(true);
    let (leave, mut leaving) = watch::channel(Leave::Stay);
    let script = async {
        edge.welcome().await;
        edge.send(vec![push(1), push(2), push(1)]).await;
        assert_eq!(edge.ack().await, (1, vec![(1, EventType::Arrive), (2, EventType::Arrive)]));
        assert_eq!(edge.ack().await, (2, vec![(1, EventType::Click), (2, EventType::Click)]));
        leave.send_replace(Leave::Settle);
        assert!(
            matches!(edge.recv().await, to_edge::Frame::Ping(_)),
            "it asks, instead of waiting for another frame"
        );
        edge.send(vec![confirm(2)]).await;
        assert_eq!(edge.stream.read_buf(&mut edge.bytes).await.expect("reads"), 0, "it left once settled");
    };
    let (end, ()) = tokio::join!(device.session(Link::over(near), &mut leaving), script);
    assert_eq!(end, None);
    assert_eq!(device.handler.got, [1, 2]);
    assert_eq!(device.machine().tally.duplicates_dropped, 1);
    assert_eq!(device.machine().unsettled(), 0);
}

#[tokio::test]
async fn a_broken_session_is_continued_by_the_next_one() {
    let (near, far) = duplex(4_096);
    let mut edge = Edge { stream: far, bytes: Vec::new() };
    let mut device = device(false);
    let (leave, mut leaving) = watch::channel(Leave::Stay);
    let first = async {
        edge.welcome().await;
        edge.send(vec![push(1), push(2)]).await;
        edge.ack().await;
        drop(edge);
    };
    let (end, ()) = tokio::join!(device.session(Link::over(near), &mut leaving), first);
    assert_eq!(end, Some(End::Broken));
    device.machine.handle_end(End::Broken);

    let (near, far) = duplex(4_096);
    let mut edge = Edge { stream: far, bytes: Vec::new() };
    let second = async {
        edge.welcome().await;
        let (number, events) = edge.ack().await;
        assert_eq!((number, events.len()), (1, 2), "the unconfirmed Ack comes again");
        edge.send(vec![push(2), push(3)]).await;
        // 2 is acknowledged already: its Ack is unconfirmed.
        assert_eq!(edge.ack().await, (2, vec![(3, EventType::Arrive)]));
        leave.send_replace(Leave::Now);
        edge
    };
    let (end, _edge) = tokio::join!(device.session(Link::over(near), &mut leaving), second);
    assert_eq!(end, None);
    assert_eq!(device.handler.got, [1, 2, 3]);
}

#[tokio::test]
async fn it_probes_when_told_to() {
    let (near, far) = duplex(4_096);
    let mut edge = Edge { stream: far, bytes: Vec::new() };
    let mut device = device(false);
    let (leave, mut leaving) = watch::channel(Leave::Stay);
    let (probe, probes) = watch::channel(());
    device.probe_on(probes);
    let script = async {
        edge.welcome().await;
        probe.send_replace(());
        assert!(matches!(edge.recv().await, to_edge::Frame::Ping(_)));
        drop(probe);
        edge.send(vec![push(1)]).await;
        edge.ack().await;
        leave.send_replace(Leave::Now);
        edge
    };
    let (end, _edge) = tokio::join!(device.session(Link::over(near), &mut leaving), script);
    assert_eq!(end, None);
    assert_eq!(device.handler.got, [1]);
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_session() {
    let (near, far) = duplex(4_096);
    let mut edge = Edge { stream: far, bytes: Vec::new() };
    let mut device = device(false);
    let (_leave, mut leaving) = watch::channel(Leave::Stay);
    let script = async {
        edge.welcome().await;
        edge.stream.write_all(&[0, 0, 0]).await.expect("writes");
        edge
    };
    let (end, _edge) = tokio::join!(device.session(Link::over(near), &mut leaving), script);
    assert_eq!(end, Some(End::Broken));
}
