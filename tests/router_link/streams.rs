//! Streams: cursors, the window, rewinds, fencing, and routers that don't read.

use std::time::Duration;

use mooring::ids::Seq;
use mooring::push::StreamEvent;
use mooring::router::Pace;
use mooring::wire::pb::router as pb;
use pb::open_stream::From;
use pb::{LinkErrorCode, StreamBatch, stream_event, to_router};

use super::store::{HISTORY, receipt};
use super::support::{Edge, Router, deliver, main_after, main_from, main_stream, open, until};

fn messages(batch: &StreamBatch) -> Vec<u64> {
    let receipts = batch.events.iter().map(|event| match &event.event {
        Some(stream_event::Event::Receipt(receipt)) => receipt.message_id,
        other => panic!("no receipt: {other:?}"),
    });
    receipts.collect()
}

/// Reads stream batches until this many events have come.
async fn gather(router: &mut Router, count: usize) -> (Vec<u64>, u64) {
    let (mut all, mut cursor) = (Vec::new(), 0);
    while all.len() < count {
        let batch = router.hear_stream().await;
        all.extend(messages(&batch));
        cursor = batch.cursor;
    }
    (all, cursor)
}

fn small(messages: std::ops::Range<u64>) -> impl Iterator<Item = StreamEvent> {
    messages.map(|message| receipt(message, 0))
}

#[tokio::test]
async fn events_come_in_order_and_the_acknowledged_cursor_is_where_the_next_link_begins() {
    let edge = Edge::start().await;
    edge.store.append(small(1..4));
    let (mut router, opened) = edge.open(main_stream()).await;
    assert_eq!((opened.streams[0].cursor, opened.streams[0].head), (0, 3));
    let (all, cursor) = gather(&mut router, 3).await;
    assert_eq!((all, cursor), (vec![1, 2, 3], 3));
    router.acknowledge(cursor).await;
    until(&edge.store.cursor, |cursor| *cursor == Seq(3)).await;
    // What comes while the link is open.
    edge.store.append(small(4..6));
    assert_eq!(gather(&mut router, 2).await.0, [4, 5]);
    // Not acknowledged: it comes again.
    drop(router);
    let (mut router, opened) = edge.open(main_stream()).await;
    assert_eq!(opened.streams[0].cursor, 3);
    assert_eq!(gather(&mut router, 2).await.0, [4, 5]);
}

#[tokio::test]
async fn a_rewind_reads_again_and_a_cursor_that_cannot_be_is_refused() {
    let edge = Edge::start().await;
    edge.store.append(small(1..11));
    edge.store.trim(Seq(2));
    let (mut router, _) = edge.open(main_from(From::Oldest(true))).await;
    let (all, cursor) = gather(&mut router, 8).await;
    assert_eq!(all, (3..11).collect::<Vec<_>>());
    router.acknowledge(cursor).await;
    until(&edge.store.cursor, |cursor| *cursor == Seq(10)).await;
    let (mut router, opened) = edge.open(main_after(5, HISTORY)).await;
    assert_eq!((opened.streams[0].cursor, opened.streams[0].oldest), (5, 2));
    assert_eq!(opened.streams[0].history, HISTORY);
    assert_eq!(gather(&mut router, 5).await.0, (6..11).collect::<Vec<_>>());
    for (cursor, history) in [(1, HISTORY), (11, HISTORY), (5, 0), (5, HISTORY + 1)] {
        let mut router = edge.connect("r1").await;
        router.say(open(main_after(cursor, history))).await;
        assert_eq!(router.hear_error().await, LinkErrorCode::Cursor);
    }
}

#[tokio::test]
async fn no_more_than_the_window_is_sent_unacknowledged() {
    let edge = Edge::start().await;
    // Each over the bytes of a batch: a batch each.
    edge.store.append((1..21).map(|message| receipt(message, 1024 * 1024)));
    let (mut router, opened) = edge.open(main_stream()).await;
    let window = u64::from(opened.stream_window);
    for message in 1..=window {
        assert_eq!(messages(&router.hear_stream().await), [message]);
    }
    router.nothing_more_comes(1).await;
    router.acknowledge(2).await;
    for message in window + 1..=window + 2 {
        assert_eq!(messages(&router.hear_stream().await), [message]);
    }
    router.nothing_more_comes(2).await;
}

#[tokio::test]
async fn acknowledging_what_was_not_sent_is_an_error() {
    let edge = Edge::start().await;
    edge.store.append(small(1..3));
    let (mut router, _) = edge.open(main_stream()).await;
    gather(&mut router, 2).await;
    router.acknowledge(3).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::Cursor);
    assert_eq!(*edge.store.cursor.borrow(), Seq(0));
}

#[tokio::test]
async fn acknowledging_a_stream_that_was_not_opened_is_an_error() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    router.acknowledge(0).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::UnknownStream);
}

#[tokio::test]
async fn an_acknowledgement_that_finds_the_queue_full_is_not_forgotten() {
    let edge = Edge::start().await;
    edge.store.append(small(1..3));
    let (mut router, _) = edge.open(main_stream()).await;
    let (_, cursor) = gather(&mut router, 2).await;
    edge.store.busy(true);
    router.acknowledge(cursor).await;
    router.nothing_more_comes(1).await;
    edge.store.busy(false);
    until(&edge.store.cursor, |cursor| *cursor == Seq(2)).await;
}

#[tokio::test]
async fn the_newest_reader_wins_and_the_older_moves_nothing() {
    let edge = Edge::start().await;
    edge.store.append(small(1..3));
    let (mut older, first) = edge.open(main_stream()).await;
    let (_, cursor) = gather(&mut older, 2).await;
    let (mut newer, second) = edge.open(main_stream()).await;
    assert!(second.streams[0].epoch > first.streams[0].epoch);
    let to_router::Frame::StreamClosed(closed) = older.hear().await else { panic!("not closed") };
    assert_eq!(closed.stream, "main");
    older.acknowledge(cursor).await;
    older.nothing_more_comes(1).await;
    assert_eq!(*edge.store.cursor.borrow(), Seq(0));
    // The older link is as good as ever for batches; the newer one gets the stream.
    older.say(deliver("b", 1)).await;
    assert_eq!(older.hear_accepted().await.accepted, 1);
    let (all, cursor) = gather(&mut newer, 2).await;
    assert_eq!(all, [1, 2]);
    newer.acknowledge(cursor).await;
    until(&edge.store.cursor, |durable| *durable == Seq(cursor)).await;
    edge.store.append(small(3..4));
    assert_eq!(gather(&mut newer, 1).await.0, [3]);
    older.nothing_more_comes(2).await;
}

#[tokio::test]
async fn a_stream_whose_retirement_was_read_before_it_was_told_is_closed() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(main_stream()).await;
    edge.store.append_and_one_untold(small(1..2).next().expect("one"));
    let (_, cursor) = gather(&mut router, 1).await;
    assert_eq!(cursor, 2, "the reader is ahead of what it was told");
    edge.store.retire();
    assert!(matches!(router.hear().await, to_router::Frame::StreamClosed(_)));
}

#[tokio::test]
async fn a_stream_that_can_not_be_read_any_more_is_closed_and_the_link_goes_on() {
    let edge = Edge::start().await;
    edge.store.append(small(1..3));
    let (mut router, _) = edge.open(main_stream()).await;
    gather(&mut router, 2).await;
    edge.store.trim(Seq(10));
    edge.store.pass(20);
    assert!(matches!(router.hear().await, to_router::Frame::StreamClosed(_)));
    router.nothing_more_comes(1).await;
}

#[tokio::test]
async fn an_idle_stream_moves_its_cursor_past_what_is_not_its_own() {
    let quick = Pace { idle: Duration::from_millis(1), ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = quick).await;
    let (mut router, _) = edge.open(main_stream()).await;
    edge.store.pass(1_000);
    let batch = router.hear_stream().await;
    assert!(batch.events.is_empty());
    assert_eq!(batch.cursor, 1_000);
    router.acknowledge(1_000).await;
    until(&edge.store.cursor, |cursor| *cursor == Seq(1_000)).await;
    // The cursor's own record is no reason for another one soon.
    edge.store.pass(1);
    router.nothing_more_comes(1).await;
}

#[tokio::test]
async fn a_router_that_stops_reading_holds_little_delays_nobody_and_is_closed() {
    let impatient = Pace { stall: Duration::from_millis(300), ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = impatient).await;
    let event_bytes = 64 * 1024;
    edge.store.append((1..2_000).map(|message| receipt(message, event_bytes)));
    let identity = edge.ca.issue("r1");
    let mut deaf = edge.connect_as(Some(identity), Some(4096)).await.expect("a TLS handshake");
    deaf.say(open(main_stream())).await;
    until(&edge.store.reads, |reads| *reads > 0).await;
    // Others are served meanwhile.
    let (mut other, _) = edge.open(vec![]).await;
    for id in 0..20 {
        other.say(deliver(&format!("b{id}"), 100)).await;
        assert_eq!(other.hear_accepted().await.accepted, 100);
    }
    // A frame is about a MiB: what was read is the window at most, whatever there is to read.
    let reads = *edge.store.reads.borrow();
    assert!(reads <= 17, "{reads} reads");
    // Its link ends; it gets what was under way, and then the end.
    edge.store.nobody_follows().await;
    let mut batches = 0;
    while deaf.try_hear().await.is_ok() {
        batches += 1;
    }
    assert!(batches < 17, "{batches} batches");
    other.nothing_more_comes(1).await;
}

#[tokio::test]
async fn streams_have_to_exist_and_be_allowed() {
    let edge = Edge::start().await;
    let named = |name: &str| vec![pb::OpenStream { stream: name.into(), ..pb::OpenStream::default() }];
    for (router, streams, code) in [
        ("r1", named("nothing"), LinkErrorCode::UnknownStream),
        ("r2", named("main"), LinkErrorCode::Unauthorized),
        ("r1", [named("main"), named("main")].concat(), LinkErrorCode::Malformed),
    ] {
        let mut router = edge.connect(router).await;
        router.say(open(streams)).await;
        assert_eq!(router.hear_error().await, code);
    }
}
