//! What strangers, and devices that mean no harm, can do at the device door: nobody else is kept out, and what they hold is bounded.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use mooring::client::device::Link;
use mooring::client::{Endpoint, Transport};
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{ErrorCode, Ping, ToEdge, to_device, to_edge};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::device::{Device, SECONDS, hello_of, is_closed, is_refused};
use super::edge::{APP_SLOW, Edge, LOOK, NEVER, Way};
use super::registration::{install, registering, registers};
use super::sessions::{large, narrow};

const EVICTED: &str = "mooring_handshakes_total{result=\"evicted\"}";
const STRANGER: [u8; 4] = [127, 0, 0, 66];

/// A connection that says nothing, not even TLS.
async fn silent(edge: &Edge, way: Way) -> Link {
    let source = Some(IpAddr::from(STRANGER));
    let transport = Transport::Plain;
    let endpoint = Endpoint { transport, source, ..edge.device_endpoint(way) };
    Link::connect(&endpoint).await.expect("connected")
}

#[tokio::test]
async fn silent_strangers_keep_nobody_out() {
    // Longer than anybody waits here.
    let settings = [("shards", "1"), ("device.max_handshakes", "4"), ("device.hello_deadline_ms", "60_000")];
    let edge = Edge::start_with(&settings).await;
    let mut strangers = Vec::new();
    for (n, way) in (1..).zip(Way::ALL) {
        // As many as may be at both doors, and as many again.
        for silent_way in Way::BOTH {
            for _ in 0..8 {
                strangers.push(silent(&edge, silent_way).await);
            }
        }
        let mut device = edge.device(way, "d").await;
        device.has_nothing().await;
        edge.counted(EVICTED, f64::from(n)).await;
        device.leave(&edge, "d").await;
    }
}

#[tokio::test]
async fn a_stranger_that_breaks_off_in_the_middle_of_tls_keeps_nobody_out() {
    let settings = [("shards", "1"), ("device.max_handshakes", "2"), ("device.hello_deadline_ms", "60_000")];
    let edge = Edge::start_with(&settings).await;
    // TLS is there, and Hello never comes.
    let mut strangers = Vec::new();
    for _ in 0..6 {
        let endpoint = Endpoint { source: Some(IpAddr::from(STRANGER)), ..edge.device_endpoint(Way::Tls) };
        strangers.push(Link::connect(&endpoint).await.expect("connected"));
    }
    for way in [Way::Tls, Way::Plain] {
        edge.device(way, "d").await.has_nothing().await;
    }
    edge.counted(EVICTED, 1.0).await;
}

#[tokio::test]
async fn a_storm_from_one_address_gets_in_through_few_places() {
    const DEVICES: usize = 40;
    let edge = Edge::start_with(&[("shards", "1"), ("device.max_handshakes", "2")]).await;
    let edge = &edge;
    let connected = join_all((0..DEVICES).map(|n| async move {
        let way = Way::ALL[n % 3];
        Device::over(edge.connect(way).await, hello_of(edge, &format!("d-{n}"))).await
    }));
    let devices = timeout(NEVER, connected).await.expect("all get in");
    edge.metric_comes_to("mooring_handshakes_in_flight", |count| count == 0.0).await;
    assert!(edge.metric(EVICTED).await < 0.5, "nobody was sent away");
    edge.counted("mooring_handshakes_total{result=\"ok\"}", DEVICES as f64).await;
    drop(devices);
}

fn ends(reason: &str) -> String {
    format!("mooring_session_ends_total{{reason=\"{reason}\"}}")
}

/// Bytes that need be no frame.
pub(crate) async fn write(link: Link, bytes: &[u8]) -> Link {
    let mut stream = link.into_inner();
    stream.write_all(bytes).await.expect("written");
    stream.flush().await.expect("written");
    Link::over(stream)
}

/// Bytes of a frame that is begun.
pub(crate) const BEGUN: usize = 50_000;

/// So many bytes of a frame that is longer.
pub(crate) fn beginning(bytes: usize) -> Vec<u8> {
    // A length of 65,535.
    let mut begun = vec![0xff, 0xff, 0x03];
    begun.resize(bytes, 0);
    begun
}

#[tokio::test]
async fn frames_that_are_never_ended_hold_a_bounded_number_of_bytes() {
    for way in Way::ALL {
        let bound = 128 * 1_024;
        let settings = [("shards", "1"), ("device.max_begun_bytes", "131072")];
        let edge = Edge::start_with(&settings).await;
        // An honest device in the middle of a small frame: the oldest of all.
        let mut ping = Vec::new();
        let frame = ToEdge { frame: Some(to_edge::Frame::Ping(Ping {})) };
        mooring::wire::frame::put_device_frame(&mut ping, &frame);
        let (half, rest) = ping.split_at(1);
        let honest = write(edge.device(way, "honest").await.link, half).await;
        let mut hoarders = Vec::new();
        for n in 1..=6 {
            let device = edge.device(way, &format!("d-{n}")).await;
            hoarders.push(write(device.link, &beginning(BEGUN)).await);
            let all = (BEGUN * n.min(2)) as f64;
            let bytes = edge
                .metric_comes_to("mooring_memory_bytes{part=\"begun_frames\"}", |bytes| bytes >= all)
                .await;
            assert!(bytes <= f64::from(bound), "{bytes}");
            if n > 2 {
                // The one that began first, and no other.
                is_refused(&mut hoarders.remove(0), ErrorCode::ResourceExhausted).await;
                edge.counted(&ends("crowded"), (n - 2) as f64).await;
            }
        }
        let mut honest = write(honest, rest).await;
        assert!(matches!(honest.recv(SECONDS).await, Ok(to_device::Frame::Pong(_))));
        assert!((edge.metric(&ends("crowded")).await - 4.0).abs() < 0.5);
        drop((honest, hoarders));
        edge.metric_comes_to("mooring_memory_bytes{part=\"begun_frames\"}", |bytes| bytes == 0.0).await;
    }
}

#[tokio::test]
async fn a_frame_that_only_trickles_in_ends_its_session_long_before_silence_does() {
    let edge = Edge::start_with(&[("device.frame_deadline_ms", "400")]).await;
    for (n, way) in (1..).zip(Way::ALL) {
        let mut neighbour = edge.device(way, "neighbour").await;
        let stream = write(edge.device(way, "d").await.link, &beginning(3)).await.into_inner();
        let (read, mut write) = tokio::io::split(stream);
        let trickle = tokio::spawn(async move {
            // Until the edge has had enough.
            while write.write_all(&[0]).await.is_ok() && write.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let mut link = Link::over(tokio::io::join(read, tokio::io::sink()));
        match link.recv(SECONDS).await {
            Ok(to_device::Frame::Error(error)) => assert_eq!(error.code(), ErrorCode::Deadline),
            other => panic!("an error was expected, not {other:?}"),
        }
        edge.counted(&ends("unfinished"), f64::from(n)).await;
        trickle.abort();
        // Whole frames, however many, have no deadline.
        neighbour.has_nothing().await;
        neighbour.leave(&edge, "neighbour").await;
    }
}

#[tokio::test]
async fn connections_that_do_not_go_are_counted_and_bounded() {
    let edge = Edge::start_with(&[("shards", "1"), ("device.max_closing", "2")]).await;
    let mut lingering = Vec::new();
    let mut most = 0.0_f64;
    for _ in 0..12 {
        // Told to go, it stays.
        let mut link = write(edge.connect(Way::Plain).await, &[0]).await;
        is_refused(&mut link, ErrorCode::Malformed).await;
        lingering.push(link);
        most = most.max(edge.metric("mooring_closing_connections").await);
    }
    assert!((1.0..=2.0).contains(&most), "{most}");
    edge.metric_comes_to("mooring_closing_connections", |count| count == 0.0).await;
    edge.device(Way::Tls, "d").await.has_nothing().await;
}

#[tokio::test]
async fn what_waits_for_a_session_that_was_replaced_or_revoked_is_not_written() {
    const PUSHES: u64 = 24;
    let edge = Edge::start_with(&[("device.send_buffer_bytes", "4096")]).await;
    let mut router = edge.router().await;
    for (round, way) in (0..).zip(Way::ALL) {
        let first = 1 + round * 100;
        let mut old = Device::over(narrow(&edge, way).await, hello_of(&edge, "d")).await;
        for message in first..first + PUSHES {
            router.accepts(large(message, &["d"]), 1).await;
        }
        edge.metric_comes_to("mooring_memory_bytes{part=\"outboxes\"}", |bytes| bytes > 20_000.0).await;
        let mut newer = edge.device(Way::Plain, "d").await;
        edge.counted(&ends("replaced"), round as f64 + 1.0).await;
        let got = reads_all(&mut old).await;
        assert!(got.len() + 4 < PUSHES as usize, "it was replaced: {got:?}");
        for message in first..first + PUSHES {
            newer.takes(message).await;
        }
        newer.leave(&edge, "d").await;
    }
    let mut revoked = Device::over(narrow(&edge, Way::Tls).await, hello_of(&edge, "d")).await;
    for message in 901..901 + PUSHES {
        router.accepts(large(message, &["d"]), 1).await;
    }
    edge.metric_comes_to("mooring_memory_bytes{part=\"outboxes\"}", |bytes| bytes > 20_000.0).await;
    edge.cli(&format!("keys revoke {DEV_APP} d --data-dir DIR/data")).await;
    edge.counted(&ends("revoked"), 1.0).await;
    let got = reads_all(&mut revoked).await;
    assert!(got.len() + 4 < PUSHES as usize, "its credential was revoked: {got:?}");
}

/// All pushes up to the end of the connection.
async fn reads_all(device: &mut Device) -> Vec<u64> {
    let mut got = Vec::new();
    while let Some(frame) = device.next_to_the_end().await {
        if let to_device::Frame::Push(push) = frame {
            got.push(push.message_id);
        }
    }
    got
}

#[tokio::test]
async fn a_device_is_not_kept_out_by_its_own_older_session() {
    let edge = Edge::start_with(&[("device.max_sessions", "1")]).await;
    is_kept_out_by_others_only(&edge).await;
    let edge = Edge::start().await;
    edge.cli(&format!("apps rate {DEV_APP} --max-sessions 1 --data-dir DIR/data")).await;
    is_kept_out_by_others_only(&edge).await;
}

/// There is one place.
async fn is_kept_out_by_others_only(edge: &Edge) {
    let mut older = edge.device(Way::Tls, "d").await;
    for way in Way::ALL.into_iter().cycle().take(7) {
        let newer = edge.device(way, "d").await;
        older.goes_away().await;
        is_closed(&mut older.link).await;
        older = newer;
        let mut other = edge.connect(way).await;
        other.send(to_edge::Frame::Hello(hello_of(edge, "other"))).await.expect("sent");
        is_refused(&mut other, ErrorCode::ResourceExhausted).await;
    }
    older.leave(edge, "d").await;
    // Its place is free again, and none beside it.
    let look = async {
        loop {
            let mut link = edge.connect(Way::Tls).await;
            if link.hello(hello_of(edge, "other")).await.is_ok() {
                return link;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let _other = timeout(NEVER, look).await.expect("there is room");
    let mut link = edge.connect(Way::Tls).await;
    link.send(to_edge::Frame::Hello(hello_of(edge, "d"))).await.expect("sent");
    is_refused(&mut link, ErrorCode::ResourceExhausted).await;
}

#[tokio::test]
async fn a_phone_that_registers_again_and_again_takes_no_place_from_new_ones() {
    let edge = Edge::start().await;
    let hello = registering(APP_SLOW, install(0), "");
    // One a second may be new: the first one is.
    let id = registers(&edge, Way::Plain, hello.clone()).await.device_id;
    for way in Way::ALL.into_iter().cycle().take(30) {
        assert_eq!(registers(&edge, way, hello.clone()).await.device_id, id);
    }
    let mut fresh = edge.connect(Way::Plain).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fresh.hello(registering(APP_SLOW, install(1), "")).await.expect("its second was saved up");
}
