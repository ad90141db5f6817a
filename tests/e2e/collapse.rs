//! Collapse keys: a newer message takes the place of older ones that the device has not acknowledged.

use mooring::wire::pb::router::{DeliverBatch, FailReason, ReceiptEvent, RejectCode};

use super::edge::{Edge, Way};
use super::router::{End, batch};

fn weather(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    DeliverBatch { collapse_key: "weather".into(), ..batch(message_id, device_ids) }
}

#[tokio::test]
async fn a_newer_message_takes_the_place_of_older_ones_also_of_those_in_flight() {
    let mut edge = Edge::start().await;
    edge.register(&["offline"]).await;
    let mut router = edge.router().await;
    let mut online = edge.device(Way::Tls, "online").await;
    let both = ["online", "offline"];
    router.accepts(weather(1, &both), 2).await;
    router.push(2, &["offline"]).await;
    assert_eq!(online.push().await.message_id, 1);
    router.accepts(weather(3, &both), 2).await;
    let replaced = End::Failed(FailReason::Replaced);
    for ordinal in 0..2 {
        assert_eq!(router.end("b-1", ordinal).await, replaced);
    }
    // It was on its way: that it was sent is known, and its acknowledgement is late.
    let failed = router.receipt(1, "online", ReceiptEvent::SentFail).await;
    assert!(failed.sent_time > 0);
    let push = online.push().await;
    assert_eq!((push.message_id, push.collapse_key.as_str()), (3, "weather"));
    online.arrive(1).await;
    online.arrive(3).await;
    assert!(router.receipt(1, "online", ReceiptEvent::Arrive).await.late);
    assert_eq!(router.receipt(1, "online", ReceiptEvent::Arrive).await.after(), FailReason::Replaced);
    assert_eq!(router.end("b-3", 0).await, End::Arrived);
    edge.kill().await;
    edge.run().await;
    let mut offline = edge.device(Way::Plain, "offline").await;
    for message in [2, 3] {
        offline.takes(message).await;
    }
    offline.has_nothing().await;
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["replaced"], &totals["pending"]), (&2.into(), &0.into()));
    assert_eq!((&totals["late"], &totals["sent"]), (&1.into(), &4.into()));
}

#[tokio::test]
async fn a_collapse_key_over_64_bytes_is_refused() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let long = DeliverBatch { collapse_key: "k".repeat(65), ..batch(1, &["d"]) };
    router.rejects(long, RejectCode::Invalid, "collapse_key").await;
}
