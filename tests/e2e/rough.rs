//! Peers that are neither silent nor sensible: what they do harms nobody else, and nothing is left behind.

use mooring::client::Transport;
use mooring::client::device::Link;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::edge::{Edge, Way};

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
