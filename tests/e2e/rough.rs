//! Peers that are neither silent nor sensible: what they do harms nobody else, and nothing is left behind.

use mooring::client::Transport;
use mooring::client::device::Link;
use mooring::wire::pb::device::{EventType, GoAwayReason};
use mooring::wire::pb::router::ReceiptEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::device::hello_of;
use super::edge::{Edge, Way};
use super::router::{End, batch};

/// The beginning of a `ClientHello` of 256 bytes, in a TLS record that is whole.
const HALF_A_CLIENT_HELLO: [u8; 10] = [22, 3, 1, 0, 5, 1, 0, 1, 0, 3];

/// Writes these bytes to the TLS port, in one piece, and answers what comes back until the end.
async fn raw_tls(edge: &Edge, bytes: &[u8]) -> Vec<u8> {
    let mut endpoint = edge.device_endpoint(Way::Tls);
    endpoint.transport = Transport::Plain;
    let mut stream = Link::connect(&endpoint).await.expect("connected").into_inner();
    stream.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(super::edge::NEVER, read).await.expect("an end").expect("an orderly end");
    answer
}

#[tokio::test]
async fn a_handshake_message_in_pieces_that_never_ends_is_closed_at_the_deadline() {
    let edge = Edge::start_with(&[("shards", "1"), ("device.hello_deadline_ms", "300")]).await;
    assert!(raw_tls(&edge, &HALF_A_CLIENT_HELLO).await.is_empty(), "nothing can be said yet");
    edge.counted("mooring_handshakes_total{result=\"deadline\"}", 1.0).await;
    edge.device(Way::Tls, "d").await.has_nothing().await;
}

#[tokio::test]
async fn a_record_of_another_type_within_a_handshake_message_breaks_tls() {
    let edge = Edge::start_with(&[("shards", "1")]).await;
    let bytes = [&HALF_A_CLIENT_HELLO[..], &[23, 3, 3, 0, 1, 0]].concat();
    raw_tls(&edge, &bytes).await;
    edge.counted("mooring_handshakes_total{result=\"tls\"}", 1.0).await;
    edge.device(Way::Tls, "d").await.has_nothing().await;
}

#[tokio::test]
async fn what_waited_for_its_body_goes_out_in_order_and_as_fresh_as_it_is() {
    let edge = Edge::start_with(&[("store.body_cache_bytes", "\"1MiB\"")]).await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    // More than the memory for bodies holds: the oldest ones have to be read back.
    let messages = 400;
    for message in 1..=messages {
        let mut batch = batch(message, &["d"]);
        batch.body.as_mut().expect("a body").body = "x".repeat(3_900);
        router.send(batch).await;
    }
    for message in 1..=messages {
        assert!(router.answer(&format!("b-{message}")).await.is_ok());
    }
    let mut device = edge.device(Way::Tls, "d").await;
    for message in 1..=messages {
        let push = device.push().await;
        assert_eq!((push.message_id, push.redelivered), (message, false), "order, and never written before");
        device.say(&[(message, EventType::Arrive)]).await;
    }
    device.is_confirmed(messages).await;
    device.has_nothing().await;
    edge.counted("mooring_bodies_read_total", 1.0).await;
    edge.totals().await;
}

#[tokio::test]
async fn what_was_written_to_a_device_that_left_without_an_ack_was_sent() {
    let edge = Edge::start_with(&[("device.ack_deadline_ms", "500")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    router.push(2, &["d"]).await;
    for message in 1..=2 {
        assert_eq!(device.push().await.message_id, message);
    }
    device.arrive(1).await;
    device.leave(&edge, "d").await;
    assert!(router.receipt(2, "d", ReceiptEvent::Sent).await.sent_time > 0);
    // It comes back: once was enough.
    let mut device = edge.device(Way::Plain, "d").await;
    assert!(device.takes(2).await.redelivered);
    assert_eq!(router.end("b-2", 0).await, End::Arrived);
    assert_eq!((router.count(1, "d", ReceiptEvent::Sent), router.count(2, "d", ReceiptEvent::Sent)), (0, 1));
    assert_eq!(edge.totals().await["sent"], 2);
}

#[tokio::test]
async fn what_was_written_before_the_edge_left_was_sent() {
    let mut edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    assert_eq!(device.push().await.message_id, 1);
    edge.terminate();
    assert_eq!(device.goes_away().await, GoAwayReason::Leaving);
    assert!(edge.ended().await.success());
    edge.run().await;
    let mut router = edge.router().await;
    assert!(router.receipt(1, "d", ReceiptEvent::Sent).await.sent_time > 0);
}

#[tokio::test]
async fn more_ids_received_before_than_the_window_takes_hold_up_nothing() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    for message in 1..=80 {
        router.push(message, &["d"]).await;
    }
    let mut hello = hello_of(&edge, "d");
    hello.received = (1..=80).filter(|message| message % 40 != 0).collect();
    let mut device = edge.device_saying(Way::Tls, hello).await;
    for message in [40, 80] {
        device.takes(message).await;
    }
    device.has_nothing().await;
    assert_eq!(edge.totals().await["arrived"], 80);
}
