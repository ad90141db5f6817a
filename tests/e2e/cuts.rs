//! Links that are cut: at each byte of TLS, behind each datagram of QUIC, and dead ones that nobody has told.

use futures_util::StreamExt;
use mooring::client::device::Link;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{ToEdge, Welcome, to_edge};
use tokio::io::AsyncWriteExt;

use super::device::{hello_of, is_gone};
use super::edge::{Edge, Way};
use super::registration::{bytes_of, devices_are, install, registering, registers};
use super::relay::{self, Towards};

/// Handshakes at a time.
const AT_ONCE: usize = 16;
/// Bytes of TLS around the last thing that is said: its head and its tag, a signature that is shorter at times, and a few more.
const AROUND: usize = 64;
/// Bytes between two cuts where nothing but TLS is said.
const STEP: usize = 23;

/// Registers over a link that is cut after so many bytes. What came of it, and how many bytes passed.
async fn cut_tls(edge: &Edge, towards: Towards, bytes: usize, n: usize) -> (Option<Welcome>, usize) {
    let (endpoint, relay) = relay::tcp(&edge.device_endpoint(Way::Tls), towards, bytes).await;
    let welcome = match Link::connect(&endpoint).await {
        Ok(mut link) => link.hello(registering(DEV_APP, install(n), "")).await.ok(),
        Err(_cut) => None,
    };
    (welcome, relay.await.expect("it ends"))
}

/// The same installation registers over a good link, twice: one device, one reply, whatever came before.
async fn is_one_device(edge: &Edge, n: usize, first: Option<&Welcome>, what: &str) {
    let id = edge.registered_id(DEV_APP, install(n));
    for _ in 0..2 {
        let welcome = registers(edge, Way::Plain, registering(DEV_APP, install(n), "")).await;
        assert_eq!(welcome.device_id, id, "{what}");
        if let Some(first) = first {
            assert_eq!((&welcome.device_id, &welcome.credential), (&first.device_id, &first.credential));
        }
    }
}

async fn tls_cut_at_each_byte(towards: Towards) {
    let edge = &Edge::start().await;
    let (welcome, length) = cut_tls(edge, towards, usize::MAX, 0).await;
    let said = match towards {
        Towards::Edge => bytes_of(registering(DEV_APP, install(0), "")).len(),
        Towards::Device => prost::Message::encoded_len(&welcome.expect("welcome")),
    };
    // All of what is said, the handshake in steps, and a little more than everything.
    let from = length - said - AROUND;
    let cuts: Vec<usize> = (0..from).step_by(STEP).chain(from..=length + 8).collect();
    let all = futures_util::stream::iter(cuts.iter().enumerate()).map(|(n, cut)| async move {
        let (welcome, _) = cut_tls(edge, towards, *cut, n + 1).await;
        is_one_device(edge, n + 1, welcome.as_ref(), &format!("cut after {cut} of {length} bytes")).await;
        welcome.is_some()
    });
    let welcome: Vec<bool> = all.buffered(AT_ONCE).collect().await;
    assert!(!welcome[0] && welcome[cuts.len() - 1], "from nothing to everything");
    devices_are(edge, cuts.len() + 1).await;
}

#[tokio::test]
async fn tls_cut_at_each_byte_to_the_edge_leaves_one_device_with_one_id() {
    tls_cut_at_each_byte(Towards::Edge).await;
}

#[tokio::test]
async fn tls_cut_at_each_byte_to_the_device_leaves_one_device_with_one_id() {
    tls_cut_at_each_byte(Towards::Device).await;
}

#[tokio::test]
async fn quic_cut_behind_each_datagram_leaves_one_device_with_one_id() {
    let edge = Edge::start_with(&[("shards", "1")]).await;
    for n in 0.. {
        let relay = relay::Udp::new(&edge.device_endpoint(Way::Quic), n).await;
        let register = async {
            let mut link = Link::connect(&relay.endpoint).await.ok()?;
            let welcome = link.hello(registering(DEV_APP, install(n), "")).await.ok()?;
            Some((link, welcome))
        };
        let registered = tokio::select! {
            registered = register => registered,
            () = relay.has_lost() => None,
        };
        let welcome = registered.map(|(_, welcome)| welcome);
        // A Hello that came through may still be on its way within the edge, and replace the next one. Behind this one it isn't.
        let mut next = edge.connect(Way::Plain).await;
        let said = next.hello(registering(DEV_APP, install(n), "")).await.expect("a Welcome");
        assert_eq!(said.device_id, edge.registered_id(DEV_APP, install(n)), "cut after {n} datagrams");
        is_one_device(&edge, n, welcome.as_ref(), &format!("cut after {n} datagrams")).await;
        if welcome.is_some() {
            assert!(n > 3, "a handshake takes a few: {n}");
            devices_are(&edge, n + 1).await;
            break;
        }
        assert!(n < 100, "it gets through at last");
    }
}

#[tokio::test]
async fn a_device_over_quic_that_is_gone_is_noticed_with_the_next_push() {
    let edge = Edge::start_with(&[("device.user_timeout_ms", "1000")]).await;
    let mut router = edge.router().await;
    let relay = relay::Udp::new(&edge.device_endpoint(Way::Quic), usize::MAX).await;
    let link = Link::connect(&relay.endpoint).await.expect("connected");
    let mut device = super::device::Device::over(link, hello_of(&edge, "d")).await;
    router.push(1, &["d"]).await;
    device.takes(1).await;
    // Nobody tells the edge.
    relay.cut();
    router.push(2, &["d"]).await;
    edge.counted("mooring_session_ends_total{reason=\"unreachable\"}", 1.0).await;
    is_gone(&edge, "d").await;
    assert!(edge.device(Way::Quic, "d").await.takes(2).await.redelivered);
}

#[tokio::test]
async fn a_connection_that_was_cut_and_is_read_late_replaces_nobody() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    edge.register(&["d"]).await;
    let mut hello = Vec::new();
    let frame = ToEdge { frame: Some(to_edge::Frame::Hello(hello_of(&edge, "d"))) };
    mooring::wire::frame::put_device_frame(&mut hello, &frame);
    let (first, rest) = hello.split_at(hello.len() / 2);
    for (n, way) in (1u32..).zip(Way::BOTH) {
        let mut cut = edge.connect(way).await.into_inner();
        cut.write_all(first).await.expect("written");
        cut.flush().await.expect("written");
        edge.metric_comes_to("mooring_memory_bytes{part=\"begun_frames\"}", |bytes| bytes > 0.0).await;
        let mut device = edge.device(way, "d").await;
        // The edge reads the rest of that Hello only when the end of its connection is there too.
        edge.pause().await;
        cut.write_all(rest).await.expect("written");
        cut.shutdown().await.expect("shut");
        drop(cut);
        edge.resume();
        edge.counted("mooring_handshakes_total{result=\"closed\"}", f64::from(n)).await;
        device.has_nothing().await;
        router.push(n.into(), &["d"]).await;
        device.takes(n.into()).await;
        device.leave(&edge, "d").await;
    }
}
