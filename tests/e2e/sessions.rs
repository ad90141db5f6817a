//! Sessions: one a device, bounded in number, patience and memory.

use mooring::client::device::Link;
use mooring::client::net::Stream;
use mooring::client::{ClientError, Transport};
use mooring::limits;
use mooring::wire::pb::device::{
    Ack, Attributes, Bind, ErrorCode, Event, EventType, GoAwayReason, Ping, PushState, ToEdge, to_device,
    to_edge,
};
use mooring::wire::pb::router::{DeliverBatch, FailReason, ReceiptEvent};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use super::device::{Device, SECONDS, hello_of, is_gone, is_refused};
use super::edge::{Edge, Way};
use super::router::{End, batch};

/// Bytes that may wait for one device: the bound, and one frame that may go over.
const OUTBOX: f64 = (limits::OUTBOX_BYTES + limits::PUSH_ENCODED_BYTES + BESIDE) as f64;
/// What is counted beside the bytes of an outbox: what QUIC keeps of what was sent, and the room that the last step of growing left.
const BESIDE: usize = 16 * 1024 + 4_096 + 256;

/// A connection whose kernel takes little before the device reads.
pub(crate) async fn narrow(edge: &Edge, way: Way) -> Link {
    let mut endpoint = edge.device_endpoint(way);
    if way == Way::Quic {
        endpoint.transport = edge.quic(4_096);
        return Link::connect(&endpoint).await.expect("connected");
    }
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let tcp = socket.connect(endpoint.address.parse().expect("an address")).await.expect("connected");
    Link::over(match endpoint.transport {
        Transport::Plain => Stream::Plain(tcp),
        Transport::Tls(config, name) => {
            let tls = TlsConnector::from(config).connect(name, tcp).await.expect("TLS");
            Stream::Tls(Box::new(tls))
        }
        Transport::Quic(_) => unreachable!("connected above"),
        #[cfg(feature = "grpc")]
        Transport::Grpc(..) => unreachable!("devices don't speak it"),
    })
}

/// A message of the largest size.
pub(crate) fn large(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
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
        let way = Way::ALL[message as usize % 3];
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
    for (round, way) in (0..).zip(Way::ALL) {
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
        let bytes = edge.metric("mooring_memory_bytes{part=\"outboxes\"}").await;
        assert!((1.0..=OUTBOX).contains(&bytes), "the outbox is bounded: {bytes} bytes");
        for message in first..first + 60 {
            deaf.takes(message).await;
        }
        edge.metric_comes_to("mooring_memory_bytes{part=\"outboxes\"}", |bytes| bytes == 0.0).await;
        assert_eq!(router.end(&format!("b-{}", first + 59), 0).await, End::Arrived);
        deaf.leave(&edge, "deaf").await;
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["pending"]), (&240.into(), &0.into()));
}

#[tokio::test]
async fn a_device_that_never_reads_again_is_closed_at_the_stall_deadline() {
    let edge = Edge::start_with(&[("device.stall_deadline_ms", "300")]).await;
    let mut router = edge.router().await;
    for (n, way) in (1..).zip(Way::ALL) {
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
    edge.metric_comes_to("mooring_memory_bytes{part=\"outboxes\"}", |bytes| bytes == 0.0).await;
}

#[tokio::test]
async fn what_expires_behind_a_device_that_does_not_read_is_never_written() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (round, way) in (0..).zip(Way::ALL) {
        let first = 1 + round * 100;
        let mut deaf = Device::over(narrow(&edge, way).await, hello_of(&edge, "deaf")).await;
        // So much that the kernel holds no more, and a little waits.
        let mut message = first;
        while edge.metric("mooring_memory_bytes{part=\"outboxes\"}").await == 0.0 {
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
    for way in Way::ALL {
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
        edge.metric_comes_to("mooring_memory_bytes{part=\"outboxes\"}", |bytes| bytes >= 60.0 * 1_024.0)
            .await;
        let bytes = edge.metric("mooring_memory_bytes{part=\"outboxes\"}").await;
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
    for (n, way) in (1..).zip(Way::ALL) {
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
async fn descriptors_bound_sessions_over_tcp_and_none_over_quic() {
    // 1,024 are the edge's own, and 190 are for handshakes and what is over.
    let edge = Edge::start_with_descriptors(1_216).await;
    assert!(edge.log().contains("limited by descriptors"), "{}", edge.log());
    let mut over_quic = Vec::new();
    for n in 0..8 {
        over_quic.push(edge.device(Way::Quic, &format!("q-{n}")).await);
    }
    let mut one = edge.device(Way::Tls, "d-1").await;
    let _two = edge.device(Way::Plain, "d-2").await;
    let mut refused = 0.0;
    // A device that has a session over QUIC has no descriptor that it could take.
    for (id, way) in [("d-3", Way::Tls), ("d-3", Way::Plain), ("q-0", Way::Tls)] {
        let mut link = edge.connect(way).await;
        link.send(to_edge::Frame::Hello(hello_of(&edge, id))).await.expect("sent");
        let error = is_refused(&mut link, ErrorCode::ResourceExhausted).await;
        assert_eq!(error.retry_after_milliseconds, 5_000);
        refused += 1.0;
        edge.counted("mooring_handshakes_total{result=\"descriptors\"}", refused).await;
    }
    over_quic[0].has_nothing().await;
    // One over TCP has.
    let mut newer = edge.device(Way::Plain, "d-1").await;
    assert_eq!(one.goes_away().await, GoAwayReason::Replaced);
    newer.has_nothing().await;
    // Over to QUIC, and its place is free for whoever comes over TCP.
    over_quic.push(edge.device(Way::Quic, "d-1").await);
    assert_eq!(newer.goes_away().await, GoAwayReason::Replaced);
    let mut other = edge.device(Way::Tls, "q-0").await;
    other.has_nothing().await;
    assert_eq!(over_quic.remove(0).goes_away().await, GoAwayReason::Replaced);
    for device in &mut over_quic {
        device.has_nothing().await;
    }
}

#[tokio::test]
async fn an_ack_out_of_number_ends_the_session_and_loses_nothing() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (message, way) in (1..).zip(Way::ALL) {
        let mut device = edge.device(way, "d").await;
        router.push(message, &["d"]).await;
        device.push().await;
        device.acks = 1;
        device.say(&[(message, EventType::Arrive)]).await;
        is_refused(&mut device.link, ErrorCode::Malformed).await;
        let mut device = edge.device(way, "d").await;
        assert!(device.takes(message).await.redelivered);
    }
    assert_eq!(edge.totals().await["arrived"], 3);
}

#[tokio::test]
async fn frames_behind_hello_and_bytes_one_by_one_are_understood() {
    let edge = Edge::start().await;
    for way in Way::ALL {
        let id = format!("{way:?}");
        // Nobody has waited for the Welcome: the device is new, so that takes a commit.
        let mut link = edge.connect(way).await;
        link.queue(to_edge::Frame::Hello(hello_of(&edge, &id)));
        for number in 1..=3 {
            let event = Event { message_id: number, r#type: EventType::Arrive.into(), ..Event::default() };
            link.queue(to_edge::Frame::Ack(Ack { number, events: vec![event] }));
        }
        link.queue(to_edge::Frame::Ping(Ping {}));
        link.flush().await.expect("written");
        let (mut welcomed, mut ponged, mut confirmed) = (false, false, 0);
        while !(welcomed && ponged && confirmed == 3) {
            match link.recv(SECONDS).await.expect("a frame") {
                to_device::Frame::Welcome(_) => welcomed = true,
                to_device::Frame::Pong(_) => ponged = true,
                to_device::Frame::AckConfirm(confirm) => confirmed = confirm.number,
                other => panic!("{other:?} came"),
            }
            assert!(welcomed, "the Welcome comes first");
        }
        // Every byte in a segment, or at least in a TLS record, of its own.
        let mut bytes = Vec::new();
        for frame in [to_edge::Frame::Hello(hello_of(&edge, &id)), to_edge::Frame::Ping(Ping {})] {
            mooring::wire::frame::put_device_frame(&mut bytes, &ToEdge { frame: Some(frame) });
        }
        let mut stream = edge.connect(way).await.into_inner();
        for byte in bytes {
            stream.write_all(&[byte]).await.expect("written");
            stream.flush().await.expect("written");
        }
        let mut link = Link::over(stream);
        assert!(matches!(link.recv(SECONDS).await, Ok(to_device::Frame::Welcome(_))));
        assert!(matches!(link.recv(SECONDS).await, Ok(to_device::Frame::Pong(_))));
    }
}

#[tokio::test]
async fn silent_connections_hold_up_others_only_until_their_deadline() {
    let settings = [("shards", "1"), ("device.max_handshakes", "1"), ("device.hello_deadline_ms", "200")];
    let edge = Edge::start_with(&settings).await;
    for round in 1..=3u8 {
        // Both listeners at their maximum; then each of them goes on, whatever the other one gets.
        let silent = [edge.connect(Way::Plain).await, edge.connect(Way::Plain).await];
        let mut tls = edge.device_endpoint(Way::Tls);
        tls.transport = Transport::Plain;
        let silent_tls =
            [Link::connect(&tls).await.expect("connected"), Link::connect(&tls).await.expect("connected")];
        edge.counted("mooring_handshakes_total{result=\"deadline\"}", f64::from(round) * 4.0).await;
        drop((silent, silent_tls));
        let way = Way::ALL[usize::from(round) % 3];
        for id in ["d-1", "d-2", "d-3"] {
            edge.device(way, id).await.leave(&edge, id).await;
        }
    }
    edge.metric_comes_to("mooring_handshakes_in_flight", |count| count == 0.0).await;
}

#[tokio::test]
async fn new_traffic_keys_in_the_middle_of_a_session_are_taken() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    for message in 1..=3 {
        let Device { link, welcome, acks, confirmed, .. } = device;
        let mut stream = link.into_inner();
        let Stream::Tls(tls) = &mut stream else { panic!("TLS") };
        tls.get_mut().1.refresh_traffic_keys().expect("new keys");
        device = Device::resumed(Link::over(stream), welcome, acks, confirmed);
        router.push(message, &["d"]).await;
        device.takes(message).await;
    }
    assert_eq!(edge.totals().await["arrived"], 3);
}

#[tokio::test]
async fn attributes_change_durably_and_the_switch_ends_what_is_pending() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let attributes = Attributes { request_id: 5, brand: "OPPO".into(), ..Attributes::default() };
    device.link.send(to_edge::Frame::Attributes(attributes)).await.expect("sent");
    let to_device::Frame::Reply(reply) = device.next().await else { panic!("no reply") };
    assert_eq!((reply.request_id, reply.ok), (5, true));
    router.push(1, &["d"]).await;
    device.takes(1).await;
    let receipt = router.receipt(1, "d", ReceiptEvent::Arrive).await;
    assert_eq!(receipt.attributes.expect("as of the event").brand, "OPPO");
    router.push(2, &["d"]).await;
    assert_eq!(device.push().await.message_id, 2);
    device.switch(PushState::Off).await;
    assert_eq!(router.end("b-2", 0).await, End::Failed(FailReason::PushDisabled));
    // What this edge doesn't know is said, and the session goes on.
    device.ask(to_edge::Frame::Bind(Bind { request_id: 6, binding: None })).await;
    assert_eq!(device.reply().await, (6, Err(ErrorCode::Unimplemented)));
    device.has_nothing().await;
    edge.totals().await;
}

#[tokio::test]
async fn every_gauge_comes_back_to_zero_when_everybody_has_left() {
    let edge = Edge::start().await;
    let mut older = edge.device(Way::Tls, "d").await;
    let mut newer = edge.device(Way::Plain, "d").await;
    assert_eq!(older.goes_away().await, GoAwayReason::Replaced);
    newer.link.send(to_edge::Frame::Hello(hello_of(&edge, "d"))).await.expect("sent");
    is_refused(&mut newer.link, ErrorCode::HelloExpected).await;
    let mut third = edge.device(Way::Tls, "d").await;
    third.has_nothing().await;
    edge.metric_comes_to("mooring_sessions{transport=\"tls\"}", |count| count > 0.0).await;
    drop((older, newer, third, edge.connect(Way::Tls).await));
    for series in [
        "mooring_sessions{transport=\"tls\"}",
        "mooring_sessions{transport=\"tcp\"}",
        "mooring_shard_sessions{shard=\"0\"}",
        "mooring_shard_sessions{shard=\"1\"}",
        "mooring_handshakes_in_flight",
        "mooring_memory_bytes{part=\"begun_frames\"}",
        "mooring_closing_connections",
        "mooring_outboxes",
        "mooring_memory_bytes{part=\"outboxes\"}",
    ] {
        edge.metric_comes_to(series, |count| count == 0.0).await;
    }
    for shard in edge.ask("/v1/shards").await.as_array().expect("shards") {
        assert_eq!((&shard["sessions"], &shard["handshakes"]), (&0.into(), &0.into()));
    }
}
