//! Every accepted message has one end: expiry, retention 0, and what comes too late.

use mooring::wire::pb::device::EventType;
use mooring::wire::pb::router::{
    DeliverBatch, FailReason, OfflinePolicy, ReceiptEvent, RefuseReason, RejectCode,
};

use super::edge::{Edge, Way};
use super::router::{End, batch, now, refused};

fn kept_for(seconds: u32, message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    DeliverBatch { retention_seconds: Some(seconds), ..batch(message_id, device_ids) }
}

#[tokio::test]
async fn an_expired_message_is_never_written_and_its_end_is_reported() {
    let edge = Edge::start().await;
    edge.register(&["d-1", "d-2"]).await;
    let mut router = edge.router().await;
    router.accepts(kept_for(1, 1, &["d-1", "d-2"]), 2).await;
    router.push(2, &["d-1"]).await;
    for ordinal in 0..2 {
        assert_eq!(router.end("b-1", ordinal).await, End::Failed(FailReason::Expired));
    }
    let mut device = edge.device(Way::Tls, "d-1").await;
    device.takes(2).await;
    device.has_nothing().await;
    edge.device(Way::Plain, "d-2").await.has_nothing().await;
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["expired"], &totals["pending"]), (&2.into(), &0.into()));
    edge.counted("mooring_outcomes_total{outcome=\"expired\"}", 2.0).await;
}

#[tokio::test]
async fn a_late_ack_after_expiry_is_counted_late_and_changes_no_outcome() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.accepts(kept_for(1, 1, &["d"]), 1).await;
    assert_eq!(device.push().await.message_id, 1);
    assert_eq!(router.end("b-1", 0).await, End::Failed(FailReason::Expired));
    // It is confirmed all the same, and counts once however often it is said.
    device.arrive(1).await;
    device.arrive(1).await;
    let receipt = router.receipt(1, "d", ReceiptEvent::Arrive).await;
    assert!(receipt.late && !receipt.unmatched);
    assert_eq!(receipt.after(), FailReason::Expired);
    router.push(2, &["d"]).await;
    device.takes(2).await;
    assert_eq!(router.end("b-2", 0).await, End::Arrived);
    assert_eq!(router.end("b-1", 0).await, End::Failed(FailReason::Expired));
    assert_eq!(router.count(1, "d", ReceiptEvent::Arrive), 1);
    let totals = edge.totals().await;
    assert_eq!(
        (&totals["arrived"], &totals["failed"]["expired"], &totals["late"]),
        (&1.into(), &1.into(), &1.into())
    );
    edge.counted("mooring_late_total", 1.0).await;
}

#[tokio::test]
async fn an_ack_that_matches_nothing_is_confirmed_forwarded_and_in_no_sum() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let number = device.say(&[(77, EventType::Arrive), (78, EventType::Click)]).await;
    device.is_confirmed(number).await;
    assert!(router.receipt(77, "d", ReceiptEvent::Arrive).await.unmatched);
    assert!(router.receipt(78, "d", ReceiptEvent::Click).await.unmatched);
    let totals = edge.totals().await;
    for word in ["accepted", "arrived", "clicked", "late"] {
        assert_eq!(totals[word], 0, "{word}: {totals}");
    }
    edge.counted("mooring_unmatched_total", 2.0).await;
}

#[tokio::test]
async fn retention_0_goes_to_who_is_connected_and_ends_at_once_for_the_others() {
    let edge = Edge::start().await;
    edge.register(&["offline"]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "online").await;
    router.accepts(kept_for(0, 1, &["online", "offline"]), 2).await;
    device.takes(1).await;
    assert_eq!(router.end("b-1", 0).await, End::Arrived);
    assert_eq!(router.end("b-1", 1).await, End::Failed(FailReason::Offline));
    edge.device(Way::Tls, "offline").await.has_nothing().await;
    assert_eq!(edge.totals().await["failed"]["offline"], 1);
}

#[tokio::test]
async fn retention_0_without_an_ack_ends_with_the_online_window_and_is_on_no_other_session() {
    let edge = Edge::start_with(&[("device.online_window_ms", "700")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.accepts(kept_for(0, 1, &["d"]), 1).await;
    assert_eq!(device.push().await.message_id, 1);
    let mut newer = edge.device(Way::Tls, "d").await;
    newer.has_nothing().await;
    assert_eq!(router.end("b-1", 0).await, End::Failed(FailReason::Unacknowledged));
    newer.has_nothing().await;
    assert_eq!(edge.totals().await["failed"]["unacknowledged"], 1);
}

#[tokio::test]
async fn offline_policy_return_refuses_who_is_not_connected() {
    let edge = Edge::start().await;
    edge.register(&["offline"]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "online").await;
    let policy = OfflinePolicy::Return.into();
    let answer =
        router.accepts(DeliverBatch { offline_policy: policy, ..batch(1, &["offline", "online"]) }, 1).await;
    assert_eq!(refused(&answer, RefuseReason::Offline), [0]);
    device.takes(1).await;
    assert_eq!(edge.totals().await["refused"]["offline"], 1);
}

#[tokio::test]
async fn what_is_not_acknowledged_in_time_is_sent_once_more_marked_and_reported_as_sent() {
    let edge = Edge::start_with(&[("device.ack_deadline_ms", "300")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    assert!(!device.push().await.redelivered);
    let again = device.push().await;
    assert!(again.redelivered && again.message_id == 1);
    router.receipt(1, "d", ReceiptEvent::Sent).await;
    device.arrive(1).await;
    let arrive = router.receipt(1, "d", ReceiptEvent::Arrive).await;
    assert_eq!(arrive.sent_time, 0, "sent was reported on its own");
    assert_eq!(router.end("b-1", 0).await, End::Arrived);
    assert_eq!(router.count(1, "d", ReceiptEvent::Sent), 1);
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["sent"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn retention_0_ends_with_the_online_window_for_who_went_away_meanwhile_and_counts_as_sent() {
    let edge = Edge::start_with(&[("device.online_window_ms", "1500")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.accepts(kept_for(0, 1, &["d"]), 1).await;
    assert_eq!(device.push().await.message_id, 1);
    device.leave(&edge, "d").await;
    assert_eq!(router.end("b-1", 0).await, End::Failed(FailReason::Unacknowledged));
    // The window is shorter than the deadline of an ack: the end itself says when it was sent.
    let failed = router.receipt(1, "d", ReceiptEvent::SentFail).await;
    assert!(failed.sent_time > 0);
    edge.device(Way::Plain, "d").await.has_nothing().await;
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["unacknowledged"], &totals["sent"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn one_message_may_come_in_many_batches_and_their_counts_sum() {
    let edge = Edge::start().await;
    edge.register(&["d-1", "d-2"]).await;
    let mut router = edge.router().await;
    let part = |id: &str, devices: &[&str]| DeliverBatch { batch_id: id.into(), ..batch(1, devices) };
    router.accepts(part("a", &["d-1"]), 1).await;
    // Who still has it pending, and who stands there twice, is a duplicate.
    let answer = router.accepts(part("b", &["d-1", "d-2", "d-2"]), 1).await;
    assert_eq!(refused(&answer, RefuseReason::Duplicate), [0, 2]);
    let mut device = edge.device(Way::Tls, "d-1").await;
    device.takes(1).await;
    assert_eq!(router.end("a", 0).await, End::Arrived);
    // It has arrived there: a later batch delivers it again, and the device drops it.
    router.accepts(part("c", &["d-1"]), 1).await;
    device.takes(1).await;
    assert_eq!(router.end("c", 0).await, End::Arrived);
    for mut other in [part("e", &["d-2"]), part("f", &["d-2"])] {
        match other.batch_id.as_str() {
            "e" => other.body.as_mut().expect("a body").title.push('!'),
            _ => other.priority = mooring::wire::pb::device::Priority::High.into(),
        }
        router.rejects(other, RejectCode::MessageConflict, "message_id").await;
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["batches"], &totals["targets"]), (&3.into(), &5.into()));
    assert_eq!((&totals["accepted"], &totals["pending"]), (&3.into(), &1.into()));
    assert_eq!(totals["refused"]["duplicate"], 2);
}

#[tokio::test]
async fn a_batch_from_the_future_is_refused_and_one_a_little_ahead_is_not() {
    let mut edge = Edge::start_with(&[("router.max_clock_skew_ms", "60000")]).await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let created = |message, ahead| DeliverBatch { created_at: now() + ahead, ..batch(message, &["d"]) };
    let answer = router.rejects(created(1, 3_600_000), RejectCode::Invalid, "created_at").await;
    assert!(answer.text.contains("clock"), "{}", answer.text);
    let ahead = created(2, 30_000);
    let first = router.accepts(ahead.clone(), 1).await;
    assert!(router.accepts(ahead.clone(), 1).await.repeated);
    // That holds for what is new; what was accepted is answered as it was.
    edge.kill().await;
    edge.configure(|text| text.replace("max_clock_skew_ms = 60000", "max_clock_skew_ms = 0"));
    edge.run().await;
    let mut router = edge.router().await;
    let again = router.accepts(ahead, 1).await;
    assert_eq!((again.sequence, again.repeated), (first.sequence, true));
    router.rejects(created(3, 30_000), RejectCode::Invalid, "created_at").await;
}
