//! Who is not let in, and what ends a link.

use std::time::Duration;

use mooring::limits;
use mooring::router::{Pace, Phase};
use mooring::telemetry;
use mooring::wire::pb::router as pb;
use pb::LinkErrorCode;
use pb::from_router::Frame;
use pb::to_router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::support::{Ca, Edge, NEVER, deliver, encode, open};

/// The alert that a client was sent, whether its own handshake had ended already (TLS 1.3) or not.
async fn alert(edge: &Edge, identity: Option<super::support::Identity>) -> String {
    let error = match edge.connect_as(identity, None).await {
        Err(error) => error,
        Ok(mut router) => {
            // As a router would: Open and a batch behind it, at once.
            let mut bytes = encode(open(vec![]));
            bytes.extend(encode(deliver("b", 1)));
            router.say_bytes(&bytes).await;
            router.try_hear().await.expect_err("no link")
        }
    };
    error.to_string()
}

#[tokio::test]
async fn a_router_without_a_valid_certificate_gets_an_alert_and_no_frame_of_it_is_read() {
    let renderer = telemetry::install();
    let edge = Edge::start().await;
    let none = alert(&edge, None).await;
    assert!(none.contains("CertificateRequired"), "{none}");
    let foreign = alert(&edge, Some(Ca::new().issue("r1"))).await;
    assert!(foreign.contains("alert"), "{foreign}");
    assert!(edge.store.submitted_ids().is_empty());
    // Nobody else is affected.
    let (mut router, _) = edge.open(vec![]).await;
    router.nothing_more_comes(1).await;
    drop(router);
    // Both are counted once their links have ended.
    edge.phase.send_replace(Phase::Closing);
    timeout(NEVER, edge.served).await.expect("every link has ended").expect("no panic");
    let metrics = renderer.render();
    assert!(metrics.contains("mooring_router_link_ends_total{reason=\"tls\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_name_that_is_not_in_the_configuration_is_unauthorized() {
    let edge = Edge::start().await;
    let mut router = edge.connect("stranger").await;
    assert_eq!(router.hear_error().await, LinkErrorCode::Unauthorized);
}

#[tokio::test]
async fn the_first_frame_is_open_and_no_other_is() {
    let edge = Edge::start().await;
    let mut router = edge.connect("r1").await;
    router.say(deliver("b", 1)).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::OpenExpected);
    let (mut router, _) = edge.open(vec![]).await;
    router.say(open(vec![])).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::OpenExpected);
    assert!(edge.store.submitted_ids().is_empty());
}

#[tokio::test]
async fn another_version_is_refused() {
    let edge = Edge::start().await;
    let mut router = edge.connect("r1").await;
    router.say(Frame::Open(pb::Open { version: 2, ..Default::default() })).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::Version);
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused_by_its_head() {
    let edge = Edge::start().await;
    let mut router = edge.connect("r1").await;
    router.say_bytes(&[0, 0, 0x20, 0, 0]).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::FrameTooLarge);
    let (mut router, _) = edge.open(vec![]).await;
    router.say_bytes(&[0, 1, 0, 0, 1]).await;
    assert_eq!(router.hear_error().await, LinkErrorCode::FrameTooLarge);
}

#[tokio::test]
async fn bytes_that_are_no_frame_are_malformed() {
    let edge = Edge::start().await;
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        // A good head, and no message behind it.
        &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff],
        // A compressed frame.
        &[1, 0, 0, 0, 0],
    ] {
        let mut router = edge.connect("r1").await;
        router.say_bytes(garbage).await;
        assert_eq!(router.hear_error().await, LinkErrorCode::Malformed);
        let (mut router, _) = edge.open(vec![]).await;
        router.say_bytes(garbage).await;
        assert_eq!(router.hear_error().await, LinkErrorCode::Malformed);
    }
}

const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn silence_within_the_handshake_ends_at_the_deadline() {
    let pace = Pace { handshake: SHORT, ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = pace).await;
    let mut socket = edge.connect_tcp().await;
    // Half the head of a TLS record.
    socket.write_all(&[22, 3, 1]).await.expect("written");
    let mut rest = Vec::new();
    let closed = timeout(NEVER, socket.read_to_end(&mut rest)).await.expect("closed in time");
    assert!(closed.is_err() || rest.is_empty());
}

#[tokio::test]
async fn silence_before_open_ends_at_the_deadline() {
    let pace = Pace { open: SHORT, ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = pace).await;
    let mut router = edge.connect("r1").await;
    assert_eq!(router.hear_error().await, LinkErrorCode::Deadline);
}

#[tokio::test]
async fn half_a_frame_and_silence_end_at_the_deadline() {
    let pace = Pace { silence: SHORT, ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = pace).await;
    for part in [&[0, 0, 0, 0, 9, 1, 2], &encode(deliver("b", 10_000))[..100_000]] {
        let (mut router, _) = edge.open(vec![]).await;
        router.say_bytes(part).await;
        assert_eq!(router.hear_error().await, LinkErrorCode::Deadline);
    }
    assert!(edge.store.submitted_ids().is_empty());
}

#[tokio::test]
async fn a_router_that_leaves_within_a_frame_disturbs_nobody() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    router.say_bytes(&encode(deliver("half", 10_000))[..100_000]).await;
    drop(router);
    let (mut router, _) = edge.open(vec![]).await;
    router.say(deliver("whole", 1)).await;
    assert_eq!(router.hear_accepted().await.batch_id, "whole");
    assert_eq!(edge.store.submitted_ids(), ["whole"]);
}

#[tokio::test]
async fn peers_without_a_certificate_never_take_a_routers_place() {
    // They could stay for as long as they like.
    let pace = Pace { handshake: NEVER, ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = pace).await;
    let mut silent = Vec::new();
    for _ in 0..limits::ROUTER_HANDSHAKES + 16 {
        silent.push(edge.connect_tcp().await);
    }
    let (mut router, _) = edge.open(vec![]).await;
    router.nothing_more_comes(1).await;
    // The oldest ones had to go; the newest are still there, and another router gets in all the same.
    let mut rest = Vec::new();
    let closed = timeout(NEVER, silent[0].read_to_end(&mut rest)).await.expect("closed");
    assert!(closed.is_err() || rest.is_empty());
    let (mut other, _) = edge.open(vec![]).await;
    other.nothing_more_comes(2).await;
    router.nothing_more_comes(3).await;
}

#[tokio::test]
async fn whoever_is_no_router_here_is_told_and_holds_no_place() {
    // They could stay for as long as they like.
    let pace = Pace { settle: NEVER, ..Pace::default() };
    let edge = Edge::start_with(|context| context.pace = pace).await;
    let mut strangers = Vec::new();
    for _ in 0..=limits::ROUTER_LINKS {
        let mut stranger = edge.connect("stranger").await;
        let to_router::Frame::Error(error) = stranger.hear().await else { panic!("no error") };
        assert_eq!(error.code(), LinkErrorCode::Unauthorized);
        strangers.push(stranger);
    }
    let mut links = Vec::new();
    for _ in 0..limits::ROUTER_LINKS {
        links.push(edge.open(vec![]).await.0);
    }
    for link in &mut links {
        link.nothing_more_comes(1).await;
    }
}

#[tokio::test]
async fn no_more_links_than_may_be() {
    let edge = Edge::start().await;
    let mut links = Vec::new();
    for _ in 0..limits::ROUTER_LINKS {
        links.push(edge.open(vec![]).await.0);
    }
    let refused = match edge.connect_as(Some(edge.ca.issue("r1")), None).await {
        Ok(mut router) => router.try_hear().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(refused.is_err());
    for link in &mut links {
        link.nothing_more_comes(1).await;
    }
}
