//! What is particular to QUIC: the rest of a session's life is tested beside TCP's.

use std::collections::HashSet;
use std::net::UdpSocket;

use futures_util::FutureExt;
use futures_util::future::join_all;
use mooring::client::device::Link;
use mooring::client::local::free_port;
use mooring::client::net::Stream;
use mooring::client::quic::{QuicClient, QuicStream};
use mooring::client::{Endpoint, Transport};
use mooring::wire::pb::device::{ErrorCode, GoAwayReason, Ping, to_edge};
use mooring::wire::pb::router::ReceiptEvent;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use super::device::{Device, hello_of, is_closed, is_gone, is_refused};
use super::edge::{Edge, NEVER, Way, localhost};
use super::router::End;

const SESSIONS: &str = "mooring_sessions{transport=\"quic\"}";

fn handshakes(result: &str) -> String {
    format!("mooring_handshakes_total{{result=\"{result}\"}}")
}

/// The QUIC connection beneath a device.
async fn beneath<T>(device: Device, work: impl AsyncFnOnce(&mut QuicStream) -> T) -> (Device, T) {
    let Device { link, welcome, acks, confirmed, .. } = device;
    let mut stream = link.into_inner();
    let Stream::Quic(quic) = &mut stream else { panic!("QUIC") };
    let done = work(quic).await;
    (Device::resumed(Link::over(stream), welcome, acks, confirmed), done)
}

/// How many sessions each shard has.
async fn sessions(edge: &Edge) -> Vec<u64> {
    let shards = edge.ask("/v1/shards").await;
    let shards = shards.as_array().expect("shards");
    shards.iter().map(|shard| shard["sessions"].as_u64().expect("a count")).collect()
}

/// Which shards have an endpoint.
async fn endpoints(edge: &Edge) -> Vec<bool> {
    let shards = edge.ask("/v1/shards").await;
    let shards = shards.as_array().expect("shards");
    shards.iter().map(|shard| shard["quic"].as_bool().expect("yes or no")).collect()
}

#[tokio::test]
async fn a_device_over_quic_gets_what_waited_and_what_comes() {
    let edge = Edge::start().await;
    assert_eq!(edge.ports.quic, edge.ports.tls, "one number for both");
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    router.push(1, &["d"]).await;
    let mut device = edge.device(Way::Quic, "d").await;
    assert_eq!(device.welcome.heartbeat_seconds, 25);
    device.takes(1).await;
    edge.counted(SESSIONS, 1.0).await;
    router.push(2, &["d"]).await;
    device.takes(2).await;
    assert_eq!(edge.totals().await["arrived"], 2);
    device.leave(&edge, "d").await;
    edge.metric_comes_to(SESSIONS, |count| count == 0.0).await;
}

#[tokio::test]
async fn a_device_that_changes_its_address_keeps_its_session_and_its_shard() {
    // By the kernel's own choice each new address would have come to another shard three times out of four.
    const MOVES: u8 = 32;
    let edge = Edge::start_with(&[("shards", "4")]).await;
    assert_eq!(endpoints(&edge).await, [true; 4]);
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Quic, "d").await;
    let home = sessions(&edge).await;
    assert_eq!(home.iter().sum::<u64>(), 1);
    for n in 1..=MOVES {
        let message = u64::from(n) * 10;
        // One that may be on its way, and one behind the move.
        router.push(message, &["d"]).await;
        let from = [127, 0, 0, 10 + n].into();
        let socket = UdpSocket::bind((std::net::IpAddr::V4(from), 0)).expect("bound");
        (device, ()) = beneath(device, async |quic| quic.rebind(socket).expect("moved")).await;
        device.takes(message).await;
        assert_eq!(sessions(&edge).await, home, "on the same shard");
        router.push(message + 1, &["d"]).await;
        device.takes(message + 1).await;
        let receipt = router.receipt(message + 1, "d", ReceiptEvent::Arrive).await;
        assert_eq!(receipt.client_ip, from.to_string(), "what it says from there on is said from there");
    }
    device.has_nothing().await;
    assert!((edge.metric(&handshakes("ok")).await - 1.0).abs() < 0.5, "one Welcome");
    assert_eq!(edge.totals().await["arrived"], 2 * u64::from(MOVES));
}

#[tokio::test]
async fn after_a_crash_devices_learn_at_once_that_their_connection_is_gone() {
    const DEVICES: usize = 24;
    let tls = format!("\"127.0.0.1:{}\"", free_port().expect("a port"));
    let mut edge = Edge::start_with(&[("shards", "4"), ("device.tls", &tls)]).await;
    let ids: Vec<String> = (0..DEVICES).map(|n| format!("d-{n}")).collect();
    let mut devices = join_all(ids.iter().map(|id| edge.device(Way::Quic, id))).await;
    let used = sessions(&edge).await.into_iter().filter(|sessions| *sessions > 0).count();
    assert!(used > 1, "several shards have sessions");
    let router = edge.router().await;
    edge.kill().await;
    drop(router);
    // Each has something to say while nobody is there.
    for device in &mut devices {
        device.link.send(to_edge::Frame::Ping(Ping {})).await.expect("sent");
    }
    edge.run().await;
    let started = Instant::now();
    let edge_ref = &edge;
    let back = join_all(devices.into_iter().zip(&ids).map(|(mut device, id)| async move {
        device.link.recv(60).await.expect_err("the connection is gone");
        let Stream::Quic(quic) = device.link.into_inner() else { panic!("QUIC") };
        assert!(matches!(quic.connection().close_reason(), Some(quinn::ConnectionError::Reset)));
        edge_ref.device(Way::Quic, id).await
    }));
    let mut devices = timeout(NEVER, back).await.expect("all are back");
    let took = started.elapsed();
    println!("{DEVICES} devices were back {took:?} after the start");
    // Neither a heartbeat (25 s) nor an idle timeout can have told them.
    assert!(took.as_secs() < 20, "{took:?}");
    let mut router = edge.router().await;
    router.push(1, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for device in &mut devices {
        device.takes(1).await;
    }
}

#[tokio::test]
async fn a_device_finds_its_list_as_it_was_when_it_comes_back_another_way() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let mut message = 0;
    for (first, second) in [(Way::Quic, Way::Tls), (Way::Tls, Way::Quic), (Way::Quic, Way::Plain)] {
        for n in 1..=4 {
            router.push(message + n, &["d"]).await;
        }
        let mut device = edge.device(first, "d").await;
        device.takes(message + 1).await;
        assert_eq!(device.push().await.message_id, message + 2, "read, not acknowledged");
        // Without a goodbye, and with one.
        let mut other = edge.device(second, "d").await;
        assert_eq!(device.goes_away().await, GoAwayReason::Replaced);
        is_closed(&mut device.link).await;
        assert!(other.takes(message + 2).await.redelivered);
        other.leave(&edge, "d").await;
        let mut device = edge.device(first, "d").await;
        for n in 3..=4 {
            device.takes(message + n).await;
        }
        device.has_nothing().await;
        device.leave(&edge, "d").await;
        message += 4;
    }
    for message in 1..=message {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    assert_eq!(edge.totals().await["arrived"], message);
}

#[tokio::test]
async fn datagrams_that_are_no_quic_hurt_nobody() {
    let edge = Edge::start_with(&[("shards", "4")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Quic, "d").await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let edge_address = format!("127.0.0.1:{}", edge.ports.quic.expect("a port"));
    socket.connect(edge_address).await.expect("connected");
    for n in 0..500_usize {
        // Long and short headers, of every length, and nearly anything in them.
        let mut bytes: Vec<u8> = (0..n * 3).map(|i| (i * 31 + n * 17) as u8).collect();
        if let Some(first) = bytes.first_mut() {
            *first = if n % 2 == 0 { 0xc0 | *first } else { 0x40 | *first & 0x7f };
        }
        socket.send(&bytes).await.expect("sent");
    }
    // A version that doesn't exist is answered with those that do: the edge has looked at all that came before on this shard.
    let mut unknown = vec![0xc3, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0];
    unknown.resize(1_200, 0);
    socket.send(&unknown).await.expect("sent");
    let mut answer = [0; 2_048];
    let count = timeout(NEVER, socket.recv(&mut answer)).await.expect("an answer").expect("an answer");
    assert!(count > 7 && answer[0] & 0x80 != 0 && answer[1..5] == [0; 4], "version negotiation");
    router.push(1, &["d"]).await;
    device.takes(1).await;
    edge.device(Way::Quic, "other").await.has_nothing().await;
}

#[tokio::test]
async fn what_else_a_device_tries_over_quic_hurts_nobody() {
    let edge = Edge::start_with(&[("device.hello_deadline_ms", "500")]).await;
    let mut router = edge.router().await;
    let mut neighbour = edge.device(Way::Quic, "neighbour").await;

    // Another protocol.
    let mut tls = edge.device_tls();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let client = QuicClient::new(&tls, &localhost()).expect("QUIC");
    let endpoint = Endpoint { transport: Transport::Quic(client), ..edge.device_endpoint(Way::Quic) };
    let error = Link::connect(&endpoint).await.expect_err("no common protocol");
    assert!(error.to_string().contains("can't connect"), "{error}");
    edge.counted(&handshakes("tls"), 1.0).await;

    // No stream, and a stream without a Hello.
    let silent = edge.connect(Way::Quic).await.into_inner();
    let Stream::Quic(silent) = silent else { panic!("QUIC") };
    timeout(NEVER, silent.connection().closed()).await.expect("closed at the deadline");
    let mut stream = edge.connect(Way::Quic).await.into_inner();
    stream.write_all(&[9]).await.expect("written");
    is_refused(&mut Link::over(stream), ErrorCode::Deadline).await;
    edge.counted(&handshakes("deadline"), 2.0).await;

    // More streams, streams of one direction, datagrams: there is no room for any, and the session goes on.
    let device = edge.device(Way::Quic, "d").await;
    let (mut device, ()) = beneath(device, async |quic| {
        let connection = quic.connection();
        assert!(connection.open_bi().now_or_never().is_none());
        assert!(connection.open_uni().now_or_never().is_none());
        assert!(connection.send_datagram(b"hello"[..].into()).is_err());
    })
    .await;
    device.has_nothing().await;

    // Whoever will not read, or will not write, any more has ended its session.
    let (device, ()) = beneath(device, async |quic| quic.stop_reading()).await;
    router.push(1, &["d"]).await;
    is_gone(&edge, "d").await;
    drop(device);
    let device = edge.device(Way::Quic, "d").await;
    let (device, ()) = beneath(device, async |quic| quic.abandon()).await;
    is_gone(&edge, "d").await;
    drop(device);
    assert!(edge.device(Way::Quic, "d").await.takes(1).await.redelivered);

    router.push(2, &["neighbour"]).await;
    neighbour.takes(2).await;
    drop((neighbour, silent));
    edge.metric_comes_to("mooring_handshakes_in_flight", |count| count == 0.0).await;
    edge.metric_comes_to(SESSIONS, |count| count == 0.0).await;
}

#[tokio::test]
async fn more_devices_than_may_shake_hands_at_a_time_all_get_in() {
    const DEVICES: usize = 60;
    let edge = Edge::start_with(&[("device.max_handshakes", "3")]).await;
    let edge = &edge;
    let connected = join_all((0..DEVICES).map(|n| async move {
        let id = format!("d-{n}");
        let link = Link::connect(&edge.device_endpoint(Way::Quic)).await.expect("connected");
        Device::over(link, hello_of(edge, &id)).await
    }));
    let devices = timeout(NEVER, connected).await.expect("all get in");
    assert_eq!(sessions(edge).await.iter().sum::<u64>(), DEVICES as u64);
    drop(devices);
    edge.metric_comes_to(SESSIONS, |count| count == 0.0).await;
}

#[tokio::test]
async fn a_graceful_leave_says_goodbye_over_quic_too() {
    let mut edge = Edge::start_with(&[("shards", "4"), ("leave.window_ms", "300")]).await;
    let mut router = edge.router().await;
    let ids: Vec<String> = (0..12).map(|n| format!("d-{n}")).collect();
    let mut devices = join_all(ids.iter().map(|id| edge.device(Way::Quic, id))).await;
    router.push(1, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for device in &mut devices {
        device.takes(1).await;
    }
    edge.terminate();
    for device in &mut devices {
        assert_eq!(device.goes_away().await, GoAwayReason::Leaving);
        is_closed(&mut device.link).await;
    }
    drop((devices, router));
    assert!(edge.ended().await.success(), "{}", edge.log());
    edge.run().await;
    edge.device(Way::Quic, "d-1").await.has_nothing().await;
}

#[tokio::test]
async fn without_steering_one_shard_has_all_of_quic_and_says_so() {
    let edge = Edge::start_with(&[("shards", "4"), ("device.quic_steering", "false")]).await;
    assert_eq!(endpoints(&edge).await, [true, false, false, false]);
    edge.metric_comes_to("mooring_quic_endpoints", |count| (count - 1.0).abs() < 0.5).await;
    assert!(edge.log().contains("shard 0 has all of QUIC"), "{}", edge.log());
    let ids: Vec<String> = (0..8).map(|n| format!("d-{n}")).collect();
    let mut devices = join_all(ids.iter().map(|id| edge.device(Way::Quic, id))).await;
    assert_eq!(sessions(&edge).await, [8, 0, 0, 0]);
    let mut router = edge.router().await;
    router.push(1, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for device in &mut devices {
        device.takes(1).await;
    }
}

#[tokio::test]
async fn quic_can_be_off_and_goes_over_ipv6() {
    let mut edge = Edge::start_with(&[("device.tls", "\"[::1]:0\"")]).await;
    let port = edge.ports.quic.expect("a port");
    let endpoint = Endpoint { address: format!("[::1]:{port}").into(), ..edge.device_endpoint(Way::Quic) };
    let link = Link::connect(&endpoint).await.expect("connected");
    Device::over(link, hello_of(&edge, "d")).await.has_nothing().await;
    edge.kill().await;
    let edge = Edge::start_with(&[("device.quic", "false")]).await;
    assert_eq!((edge.ports.quic, endpoints(&edge).await), (None, vec![false, false]));
    edge.device(Way::Tls, "d").await.has_nothing().await;
}

#[tokio::test]
async fn connection_ids_spread_devices_over_all_shards() {
    let edge = Edge::start_with(&[("shards", "3")]).await;
    // From one socket, too: what counts is not where they are from.
    let shared = edge.device_endpoint(Way::Quic);
    let connected = (0..48).map(|n| {
        let (edge, shared) = (&edge, &shared);
        async move {
            let link = Link::connect(shared).await.expect("connected");
            Device::over(link, hello_of(edge, &format!("d-{n}"))).await
        }
    });
    let devices = join_all(connected).await;
    let used: HashSet<usize> =
        sessions(&edge).await.iter().enumerate().filter(|(_, n)| **n > 0).map(|(shard, _)| shard).collect();
    assert_eq!(used.len(), 3);
    drop(devices);
}
