//! Sessions: one a device, bounded in number, patience and memory.

use mooring::client::device::Link;
use mooring::client::net::Stream;
use mooring::client::{ClientError, Transport};
use mooring::wire::pb::device::{ErrorCode, GoAwayReason, Ping, ToEdge, to_device, to_edge};
use mooring::wire::pb::router::{DeliverBatch, FailReason};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::device::{Device, SECONDS, hello_of, is_gone, is_refused};
use super::edge::{Edge, Way};
use super::router::{End, batch};

/// Bytes that may wait for one device: the bound, and one frame that may go over.
const OUTBOX: f64 = (mooring::limits::OUTBOX_BYTES + mooring::limits::PUSH_ENCODED_BYTES) as f64;

/// A connection whose kernel takes little before the device reads.
async fn narrow(edge: &Edge, way: Way) -> Link {
    let endpoint = edge.device_endpoint(way);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let tcp = socket.connect(endpoint.address.parse().expect("an address")).await.expect("connected");
    Link::over(match endpoint.transport {
        Transport::Plain => Stream::Plain(tcp),
        Transport::Tls(config, name) => {
            let tls = TlsConnector::from(config).connect(name, tcp).await.expect("TLS");
            Stream::Tls(Box::new(tls))
        }
    })
}

/// A message of the largest size.
fn large(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    let mut batch = batch(message_id, device_ids);
    batch.body.as_mut().expect("a body").body = "x".repeat(3_900);
    batch
}

#[tokio::test]
async fn a_duplicate_login_with_a_late_goodbye_leaves_the_newcomer_reachable() {
    let edge = Edge::start_with(&[("shards", "4")]).await;
    let mut router = edge.router().await;
    let mut older = edge.device(Way::Tls, "d").await;
    // So often that they are on the same shard and on different ones.
    for message in 1..=12 {
        let way = Way::BOTH[message as usize % 2];
        let mut newer = edge.device(way, "d").await;
        assert_eq!(older.goes_away().await, GoAwayReason::Replaced);
        router.push(message, &["d"]).await;
        newer.takes(message).await;
        // The goodbye, late.
        drop(older);
        edge.counted("mooring_session_ends_total{reason=\"replaced\"}", message as f64).await;
        newer.has_nothing().await;
        router.push(100 + message, &["d"]).await;
        newer.takes(100 + message).await;
        older = newer;
    }
    let shards = edge.ask("/v1/shards").await;
    let shards = shards.as_array().expect("shards").clone();
    let sessions: u64 = shards.iter().map(|shard| shard["sessions"].as_u64().expect("a count")).sum();
    assert_eq!(sessions, 1);
    let used = shards.iter().filter(|shard| shard["deliveries"].as_u64() > Some(0)).count();
    assert!(used > 1, "several shards delivered: {shards:?}");
    for message in 1..=12 {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    edge.totals().await;
}

#[tokio::test]
async fn a_device_that_stops_reading_hurts_itself_only_and_gets_the_rest_later() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (round, way) in (0..).zip(Way::BOTH) {
        let first = 1 + round * 100;
        edge.register(&["deaf"]).await;
        let mut other = edge.device(way, "other").await;
        for message in first..first + 40 {
            router.accepts(large(message, &["deaf"]), 1).await;
        }
        // It comes for forty at once, and reads none.
        let mut deaf = Device::over(narrow(&edge, way).await, hello_of(&edge, "deaf")).await;
        edge.metric_comes_to("mooring_outboxes", |outboxes| outboxes >= 1.0).await;
        for message in first + 40..first + 60 {
            router.accepts(large(message, &["deaf", "other"]), 2).await;
            other.takes(message).await;
        }
        let bytes = edge.metric("mooring_outbox_bytes").await;
        assert!((1.0..=OUTBOX).contains(&bytes), "the outbox is bounded: {bytes} bytes");
        for message in first..first + 60 {
            deaf.takes(message).await;
        }
        edge.metric_comes_to("mooring_outbox_bytes", |bytes| bytes == 0.0).await;
        assert_eq!(router.end(&format!("b-{}", first + 59), 0).await, End::Arrived);
        deaf.leave(&edge, "deaf").await;
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["pending"]), (&160.into(), &0.into()));
}

#[tokio::test]
async fn a_device_that_never_reads_again_is_closed_at_the_stall_deadline() {
    let edge = Edge::start_with(&[("device.stall_deadline_ms", "300")]).await;
    let mut router = edge.router().await;
    for (n, way) in (1..).zip(Way::BOTH) {
        let deaf = Device::over(narrow(&edge, way).await, hello_of(&edge, "deaf")).await;
        for message in 0..32 {
            router.accepts(large(n * 100 + message, &["deaf"]), 1).await;
        }
        edge.counted("mooring_session_ends_total{reason=\"stalled\"}", n as f64).await;
        is_gone(&edge, "deaf").await;
        drop(deaf);
        let mut device = edge.device(way, "deaf").await;
        for message in 0..32 {
            assert!(device.takes(n * 100 + message).await.redelivered || message > 0);
        }
        device.leave(&edge, "deaf").await;
    }
    edge.metric_comes_to("mooring_outbox_bytes", |bytes| bytes == 0.0).await;
}

#[tokio::test]
async fn what_expires_behind_a_device_that_does_not_read_is_never_written() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (round, way) in (0..).zip(Way::BOTH) {
        let first = 1 + round * 100;
        let mut deaf = Device::over(narrow(&edge, way).await, hello_of(&edge, "deaf")).await;
        // So much that the kernel holds no more, and a little waits.
        let mut message = first;
        while edge.metric("mooring_outbox_bytes").await == 0.0 {
            router.accepts(large(message, &["deaf"]), 1).await;
            message += 1;
        }
        let short = DeliverBatch { retention_seconds: Some(1), ..batch(message, &["deaf"]) };
        router.accepts(short, 1).await;
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Failed(FailReason::Expired));
        router.push(message + 1, &["deaf"]).await;
        let mut got = Vec::new();
        loop {
            match deaf.link.recv(SECONDS).await {
                Ok(to_device::Frame::Push(push)) => got.push(push.message_id),
                Ok(other) => panic!("{other:?} came"),
                Err(ClientError::Closed | ClientError::Io(_)) => break,
                Err(error) => panic!("{error}"),
            }
            if got.last() == Some(&(message + 1)) {
                break;
            }
        }
        assert!(!got.contains(&message), "it was written after its expiry");
        drop(deaf);
        is_gone(&edge, "deaf").await;
        // The others are not lost.
        let mut device = edge.device(way, "deaf").await;
        for left in (first..message).chain([message + 1]) {
            device.takes(left).await;
        }
        device.leave(&edge, "deaf").await;
    }
    edge.totals().await;
}

#[tokio::test]
async fn frames_that_were_held_back_while_nothing_could_be_written_are_handled_later() {
    const PINGS: usize = 60_000;
    let edge = Edge::start().await;
    for way in Way::BOTH {
        let device = Device::over(narrow(&edge, way).await, hello_of(&edge, "d")).await;
        let mut ping = Vec::new();
        let frame = ToEdge { frame: Some(to_edge::Frame::Ping(Ping {})) };
        mooring::wire::frame::put_device_frame(&mut ping, &frame);
        let (read, mut write) = tokio::io::split(device.link.into_inner());
        let bytes = ping.repeat(PINGS);
        let writing = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await.expect("written");
            tokio::io::AsyncWriteExt::flush(&mut write).await.expect("written");
            write
        });
        edge.metric_comes_to("mooring_outbox_bytes", |bytes| bytes >= 60.0 * 1_024.0).await;
        let bytes = edge.metric("mooring_outbox_bytes").await;
        assert!(bytes <= OUTBOX, "the outbox is bounded: {bytes} bytes");
        let mut reading = Link::over(tokio::io::join(read, tokio::io::sink()));
        for n in 0..PINGS {
            match reading.recv(SECONDS).await {
                Ok(to_device::Frame::Pong(_)) => {}
                other => panic!("Pong {n} was expected, not {other:?}"),
            }
        }
        writing.await.expect("written");
    }
}

#[tokio::test]
async fn a_heartbeat_is_kept_within_the_bounds_of_the_edge() {
    let edge = Edge::start_with(&[("device.heartbeat_min_s", "60")]).await;
    for (wish, granted) in [(0, 240), (1, 60), (60, 60), (300, 300), (600, 600), (100_000, 600)] {
        let mut hello = hello_of(&edge, "d");
        hello.heartbeat_seconds = wish;
        let welcome = edge.device_saying(Way::Tls, hello).await.welcome;
        assert_eq!(welcome.heartbeat_seconds, granted, "for {wish}");
        assert_eq!((welcome.heartbeat_min_seconds, welcome.heartbeat_max_seconds), (60, 600));
        assert!(welcome.server_time_milliseconds > 0);
        assert_eq!((welcome.window, welcome.max_frame_bytes, welcome.max_ack_events), (32, 65_536, 256));
    }
}

#[tokio::test]
async fn a_session_over_the_maximum_is_told_to_come_back_later() {
    let edge = Edge::start_with(&[("device.max_sessions", "2")]).await;
    let one = edge.device(Way::Tls, "d-1").await;
    let mut two = edge.device(Way::Plain, "d-2").await;
    for (n, way) in (1..).zip(Way::BOTH) {
        let mut link = edge.connect(way).await;
        link.send(to_edge::Frame::Hello(hello_of(&edge, "d-3"))).await.expect("sent");
        let error = is_refused(&mut link, ErrorCode::ResourceExhausted).await;
        assert!(error.retry_after_milliseconds > 0);
        edge.counted("mooring_handshakes_total{result=\"exhausted\"}", f64::from(n)).await;
    }
    one.leave(&edge, "d-1").await;
    edge.device(Way::Tls, "d-3").await.has_nothing().await;
    two.has_nothing().await;
}

#[tokio::test]
async fn an_ack_out_of_number_ends_the_session_and_loses_nothing() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (message, way) in (1..).zip(Way::BOTH) {
        let mut device = edge.device(way, "d").await;
        router.push(message, &["d"]).await;
        device.push().await;
        device.acks = 1;
        device.say(&[(message, mooring::wire::pb::device::EventType::Arrive)]).await;
        is_refused(&mut device.link, ErrorCode::Malformed).await;
        let mut device = edge.device(way, "d").await;
        assert!(device.takes(message).await.redelivered);
    }
    assert_eq!(edge.totals().await["arrived"], 2);
}
