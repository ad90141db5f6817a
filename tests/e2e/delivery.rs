//! The main job: accepted is kept, delivered in order, acknowledged, counted once.

use mooring::wire::pb::device::EventType;
use mooring::wire::pb::router::{Channel, ReceiptEvent};

use super::device::hello_of;
use super::edge::{Edge, Way};
use super::router::End;

#[tokio::test]
async fn a_push_to_who_is_connected_arrives_and_its_end_is_reported() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (message, way) in [(1, Way::Tls), (2, Way::Plain)] {
        let id = format!("d-{message}");
        let mut device = edge.device(way, &id).await;
        router.push(message, &[&id]).await;
        let push = device.takes(message).await;
        assert_eq!(push.title, format!("title {message}"));
        assert!(!push.redelivered);
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
        let receipt = router.receipt(message, &id, ReceiptEvent::Arrive).await;
        assert_eq!(receipt.channel(), Channel::Online);
        assert_eq!(receipt.client_ip, "127.0.0.1");
        assert_eq!(receipt.attributes.expect("as of the event").brand, "vivo");
        assert!(receipt.sent_time > 0);
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["accepted"], &totals["arrived"]), (&2.into(), &2.into()));
}

#[tokio::test]
async fn offline_then_online() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    for message in 1..=40 {
        router.push(message, &["d"]).await;
    }
    assert_eq!(edge.totals().await["pending"], 40);
    let mut device = edge.device(Way::Tls, "d").await;
    // More than the window takes, in the order of acceptance.
    for message in 1..=40 {
        let push = device.takes(message).await;
        assert!(!push.redelivered);
    }
    for message in 1..=40 {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    device.has_nothing().await;
    assert_eq!(edge.totals().await["arrived"], 40);
}

#[tokio::test]
async fn ids_received_before_are_arrive_acks_and_are_not_sent_again() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    for message in 1..=3 {
        router.push(message, &["d"]).await;
    }
    let mut hello = hello_of(&edge, "d");
    hello.received = vec![1, 3];
    let mut device = edge.device_saying(Way::Tls, hello).await;
    device.takes(2).await;
    for message in 1..=3 {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    device.has_nothing().await;
    assert_eq!(edge.totals().await["arrived"], 3);
}

#[tokio::test]
async fn acks_without_confirmation_come_again_under_new_numbers_and_count_once() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    assert_eq!(device.push().await.message_id, 1);
    device.say(&[(1, EventType::Arrive)]).await;
    // It goes before it reads the confirmation, and says it all again.
    device.leave(&edge, "d").await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.arrive(1).await;
    assert_eq!(device.confirmed, 1, "numbers begin at 1 in each session");
    device.has_nothing().await;
    router.push(2, &["d"]).await;
    device.takes(2).await;
    assert_eq!(router.end("b-2", 0).await, End::Arrived);
    assert_eq!(router.end("b-1", 0).await, End::Arrived);
    assert_eq!(router.count(1, "d", ReceiptEvent::Arrive), 1);
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["late"]), (&2.into(), &0.into()));
}

#[tokio::test]
async fn clicks_and_cleans_count_once_and_imply_arrive() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    router.push(2, &["d"]).await;
    device.takes(1).await;
    assert_eq!(device.push().await.message_id, 2);
    for _ in 0..2 {
        device.say(&[(1, EventType::Click), (1, EventType::Clean), (2, EventType::Clean)]).await;
    }
    let last = device.say(&[(2, EventType::Arrive)]).await;
    device.is_confirmed(last).await;
    router.push(3, &["d"]).await;
    device.takes(3).await;
    assert_eq!(router.end("b-3", 0).await, End::Arrived);
    for (message, event, count) in [
        (1, ReceiptEvent::Arrive, 1),
        (1, ReceiptEvent::Click, 1),
        (1, ReceiptEvent::Clean, 1),
        (2, ReceiptEvent::Arrive, 1),
        (2, ReceiptEvent::Clean, 1),
        (2, ReceiptEvent::Click, 0),
    ] {
        assert_eq!(router.count(message, "d", event), count, "{message} {event:?}");
    }
    assert!(router.receipt(2, "d", ReceiptEvent::Arrive).await.implied);
    assert_eq!(router.end("b-2", 0).await, End::Arrived);
    let totals = edge.totals().await;
    assert_eq!(
        (&totals["clicked"], &totals["cleaned"], &totals["arrived"]),
        (&1.into(), &2.into(), &3.into())
    );
}
