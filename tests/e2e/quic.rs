//! What is particular to QUIC: the rest of a session's life is tested beside TCP's.

use super::edge::{Edge, Way};

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
    edge.counted("mooring_sessions{transport=\"quic\"}", 1.0).await;
    router.push(2, &["d"]).await;
    device.takes(2).await;
    assert_eq!(edge.totals().await["arrived"], 2);
    device.leave(&edge, "d").await;
    edge.metric_comes_to("mooring_sessions{transport=\"quic\"}", |count| count == 0.0).await;
}
