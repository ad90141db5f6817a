//! An older copy of the data directory is put back: a router that comes with a cursor of the time that was lost is told so, however far the edge
//! has come since, and misses nothing.

use std::path::Path;

use mooring::client::ClientError;
use mooring::client::router::open;
use mooring::wire::pb::router::{
    LinkErrorCode, Open, OpenStream, ReceiptEvent, open_stream, stream_event, to_router,
};

use super::device::SECONDS;
use super::edge::{Edge, Way};
use super::router::Router;

/// All files of a directory, into a new one.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("there").map(|entry| entry.expect("readable")) {
        if entry.file_type().expect("known").is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

fn after(cursor: u64, history: u64) -> Vec<OpenStream> {
    let from = Some(open_stream::From::After(cursor));
    vec![OpenStream { stream: "main".into(), from, history }]
}

/// A router that keeps cursors of its own: it reads up to the arrival of a message, acknowledges nothing, and answers with its cursor and what
/// that is of.
async fn read_up_to(edge: &Edge, message: u64) -> (u64, u64) {
    let main = OpenStream { stream: "main".into(), ..OpenStream::default() };
    let said = Open { version: 1, streams: vec![main], ..Open::default() };
    let (_sender, mut receiver, opened) = open(&edge.router_endpoint(), said).await.expect("a link");
    loop {
        let frame = receiver.recv(SECONDS).await.expect("a frame");
        let to_router::Frame::Stream(batch) = frame else { continue };
        let is_it = |event: &stream_event::Event| matches!(event, stream_event::Event::Receipt(r) if r.message_id == message);
        if batch.events.iter().filter_map(|event| event.event.as_ref()).any(is_it) {
            return (batch.cursor, opened.streams[0].history);
        }
    }
}

/// One message that arrives.
async fn arrives(edge: &Edge, message: u64) {
    let mut router = Router::open(&edge.router_endpoint(), vec![]).await;
    router.push(message, &["d-1"]).await;
    let mut device = edge.device(Way::Plain, "d-1").await;
    device.takes(message).await;
    edge.totals_when(|totals| totals["pending"] == 0).await;
}

async fn refused(edge: &Edge, (cursor, history): (u64, u64)) -> String {
    let said = Open { version: 1, streams: after(cursor, history), ..Open::default() };
    match open(&edge.router_endpoint(), said).await {
        Err(ClientError::Link { code: LinkErrorCode::Cursor, text }) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_router_that_comes_with_a_cursor_of_the_lost_time_is_refused_and_misses_nothing() {
    let mut edge = Edge::start().await;
    edge.register(&["d-1"]).await;
    arrives(&edge, 1).await;
    let kept = read_up_to(&edge, 1).await;
    edge.kill().await;
    let older = edge.dir.path().join("older");
    copy(&edge.data_dir(), &older);
    // What will be lost.
    edge.run().await;
    arrives(&edge, 2).await;
    let lost = read_up_to(&edge, 2).await;
    assert!(lost.0 > kept.0 && lost.1 != kept.1 && lost.1 != 0, "{kept:?} {lost:?}");
    edge.kill().await;
    edge.run().await;
    // A start that loses nothing changes nothing.
    for good in [kept, lost] {
        drop(Router::open(&edge.router_endpoint(), after(good.0, good.1)).await);
    }
    edge.kill().await;

    std::fs::remove_dir_all(edge.data_dir()).expect("removed");
    std::fs::rename(&older, edge.data_dir()).expect("put back");
    edge.run().await;
    for message in 10..14 {
        arrives(&edge, message).await;
    }
    let head = edge.totals().await["sequence"].as_u64().expect("a number");
    assert!(head > lost.0, "by the number alone it looks good: {head}, {lost:?}");
    let text = refused(&edge, lost).await;
    assert!(text.contains("put back from an older copy") && text.contains("without a cursor"), "{text}");
    assert!(refused(&edge, (lost.0, 0)).await.contains("no history"));
    // Whoever names no cursor gets everything; and what the copy had is good still, to read it again.
    let durable = vec![OpenStream { stream: "main".into(), ..OpenStream::default() }];
    for streams in [durable, after(kept.0, kept.1)] {
        let mut router = Router::open(&edge.router_endpoint(), streams).await;
        for message in 10..14 {
            router.receipt(message, "d-1", ReceiptEvent::Arrive).await;
        }
    }
}
