//! What strangers, and devices that mean no harm, can do at the device door: nobody else is kept out, and what they hold is bounded.

use std::net::IpAddr;

use futures_util::future::join_all;
use mooring::client::device::Link;
use mooring::client::{Endpoint, Transport};
use tokio::time::timeout;

use super::device::{Device, hello_of};
use super::edge::{Edge, NEVER, Way};

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
