//! What one device of an app may have pending, and which of the two ends is cut.

use mooring::wire::pb::device::Push;
use mooring::wire::pb::router::{DeliverBatch, FailReason, RefuseReason};

use super::device::hello_with;
use super::edge::{APP_DROPPING_THE_OLDEST, APP_OF_FEW_BYTES, Edge, Way};
use super::router::{End, batch, refused};

fn of(app: &str, message_id: u64) -> DeliverBatch {
    DeliverBatch { app_key: app.into(), ..batch(message_id, &["d"]) }
}

async fn comes_and_goes(edge: &Edge, app: &str) {
    let hello = hello_with(app, "d", edge.credential(app, "d", 1));
    edge.device_saying(Way::Plain, hello).await.link.close().await.expect("closed");
}

#[tokio::test]
async fn an_app_that_drops_the_oldest_keeps_the_newest() {
    let edge = Edge::start().await;
    let app = APP_DROPPING_THE_OLDEST;
    comes_and_goes(&edge, app).await;
    let mut router = edge.router().await;
    for message in 1..=5 {
        router.accepts(of(app, message), 1).await;
    }
    for message in 1..=2 {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Failed(FailReason::OverQuota));
    }
    let hello = hello_with(app, "d", edge.credential(app, "d", 1));
    let mut device = edge.device_saying(Way::Tls, hello).await;
    for message in 3..=5 {
        device.takes(message).await;
    }
    device.has_nothing().await;
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["over_quota"], &totals["arrived"]), (&2.into(), &3.into()));
    edge.counted("mooring_outcomes_total{outcome=\"over_quota\"}", 2.0).await;
}

#[tokio::test]
async fn an_app_may_bound_the_bytes_of_a_device_and_refuse_the_newest() {
    let edge = Edge::start().await;
    let app = APP_OF_FEW_BYTES;
    comes_and_goes(&edge, app).await;
    let mut router = edge.router().await;
    let sized = |message: u64, bytes: usize| {
        let body = Push { body: "x".repeat(bytes), ..of(app, message).body.unwrap_or_default() };
        DeliverBatch { body: Some(body), ..of(app, message) }
    };
    router.accepts(sized(1, 600), 1).await;
    let answer = router.accepts(sized(2, 600), 0).await;
    assert_eq!(refused(&answer, RefuseReason::OverQuota), [0]);
    router.accepts(sized(3, 100), 1).await;
    assert_eq!(edge.totals().await["refused"]["over_quota"], 1);
}
