//! Two priorities: each in the order of acceptance, high ones ahead of normal ones that were not sent yet.

use std::collections::HashSet;

use mooring::wire::pb::device::{EventType, Priority};
use mooring::wire::pb::router::DeliverBatch;

use super::edge::{Edge, Way};
use super::router::{End, batch};

pub(super) fn high(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    DeliverBatch { priority: Priority::High.into(), ..batch(message_id, device_ids) }
}

#[tokio::test]
async fn high_ones_go_ahead_of_normal_ones_that_were_not_sent() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    for message in 1..=3 {
        router.push(message, &["d"]).await;
    }
    for message in 4..=5 {
        router.accepts(high(message, &["d"]), 1).await;
    }
    let mut device = edge.device(Way::Tls, "d").await;
    for message in [4, 5, 1, 2, 3] {
        let push = device.takes(message).await;
        assert_eq!(push.priority() == Priority::High, message > 3);
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    // The window is full of normal ones that nobody acknowledges: the next one that fits is the high one.
    for message in 101..=140 {
        router.push(message, &["d"]).await;
    }
    for message in 101..=132 {
        assert_eq!(device.push().await.message_id, message);
    }
    router.accepts(high(141, &["d"]), 1).await;
    device.has_nothing().await;
    device.say(&[(101, EventType::Arrive), (102, EventType::Arrive)]).await;
    for message in [141, 133] {
        assert_eq!(device.push().await.message_id, message);
    }
}

/// Takes pushes until `last` came: in the order of their first coming, and acknowledges some of them.
async fn drain(edge: &Edge, way: Way, last: &[u64], acknowledge: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut device = edge.device(way, "d").await;
    let mut seen = Vec::new();
    while !last.iter().all(|message| seen.contains(message)) {
        let push = device.push().await;
        if acknowledge(push.message_id) {
            device.arrive(push.message_id).await;
        }
        seen.push(push.message_id);
    }
    device.leave(edge, "d").await;
    seen
}

#[tokio::test]
async fn through_reconnects_and_a_kill_each_priority_is_first_seen_in_the_order_of_acceptance() {
    const MESSAGES: u64 = 60;
    let mut edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let is_high = |message: u64| message.is_multiple_of(3);
    let accept = async |router: &mut super::router::Router, message: u64| {
        let new = if is_high(message) { high(message, &["d"]) } else { batch(message, &["d"]) };
        router.accepts(new, 1).await;
    };
    let mut seen = Vec::new();
    for message in 1..=MESSAGES / 2 {
        accept(&mut router, message).await;
    }
    // All of the window is seen, half of it acknowledged.
    seen.extend(drain(&edge, Way::Tls, &[20], |message| message % 2 == 0).await);
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router_from_the_oldest().await;
    for message in MESSAGES / 2 + 1..=MESSAGES {
        accept(&mut router, message).await;
    }
    seen.extend(drain(&edge, Way::Plain, &[40], |message| message < 30 || is_high(message)).await);
    seen.extend(drain(&edge, Way::Tls, &[MESSAGES - 1], |_| true).await);
    let mut known = HashSet::new();
    let first: Vec<u64> = seen.into_iter().filter(|message| known.insert(*message)).collect();
    assert_eq!(first.len() as u64, MESSAGES);
    for priority in [true, false] {
        let of: Vec<u64> = first.iter().copied().filter(|message| is_high(*message) == priority).collect();
        assert!(of.is_sorted(), "in order of acceptance: {of:?}");
    }
    for message in 1..=MESSAGES {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["pending"]), (&MESSAGES.into(), &0.into()));
}
