//! What bad input from devices gets: a code, an end, a count by reason; and nobody else notices.

use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{ErrorCode, Ping, to_edge};
use tokio::io::AsyncWriteExt;

use super::device::{hello_of, hello_with, is_closed, is_refused};
use super::edge::{APP_OF_EPOCH_3, APP_WITH_PACKAGES, Edge, Way};

/// A healthy device beside the bad one, which gets a push afterwards.
struct Neighbour {
    device: super::device::Device,
    router: super::router::Router,
    message: u64,
}

impl Neighbour {
    async fn of(edge: &Edge) -> Self {
        let device = edge.device(Way::Tls, "neighbour").await;
        Self { device, router: edge.router().await, message: 1_000 }
    }

    async fn is_unaffected(&mut self) {
        self.message += 1;
        self.router.push(self.message, &["neighbour"]).await;
        self.device.takes(self.message).await;
    }
}

/// Writes bytes that need be no frame.
async fn write(link: mooring::client::device::Link, bytes: &[u8]) -> mooring::client::device::Link {
    let mut stream = link.into_inner();
    stream.write_all(bytes).await.expect("written");
    stream.flush().await.expect("written");
    mooring::client::device::Link::over(stream)
}

fn handshakes(result: &str) -> String {
    format!("mooring_handshakes_total{{result=\"{result}\"}}")
}

fn ends(reason: &str) -> String {
    format!("mooring_session_ends_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn bytes_that_are_no_frame_get_an_error_with_a_code() {
    let edge = Edge::start().await;
    let mut neighbour = Neighbour::of(&edge).await;
    for (n, way) in (1..).zip(Way::ALL) {
        // A length of zero; a length with bytes behind it that are no message.
        for bytes in [&[0, 1, 2, 3][..], &[3, 0xff, 0xff, 0xff]] {
            let mut link = write(edge.connect(way).await, bytes).await;
            is_refused(&mut link, ErrorCode::Malformed).await;
        }
        edge.counted(&handshakes("malformed"), 2.0 * f64::from(n)).await;
        // The same of a device that is welcome.
        let device = edge.device(way, "d").await;
        let mut link = write(device.link, &[0]).await;
        is_refused(&mut link, ErrorCode::Malformed).await;
        edge.counted(&ends("malformed"), f64::from(n)).await;
    }
    neighbour.is_unaffected().await;
}

#[tokio::test]
async fn a_frame_over_the_limit_gets_an_error_with_a_code() {
    let edge = Edge::start().await;
    let mut neighbour = Neighbour::of(&edge).await;
    for (n, way) in (1..).zip(Way::ALL) {
        let mut bytes = vec![0x81, 0x80, 0x04];
        bytes.resize(65_536 + 1 + 3, 0);
        let mut link = write(edge.connect(way).await, &bytes).await;
        is_refused(&mut link, ErrorCode::FrameTooLarge).await;
        edge.counted(&handshakes("frame_too_large"), f64::from(n)).await;
        // Whoever goes on sending is told all the same.
        bytes.resize(300_000, 0);
        let device = edge.device(way, "d").await;
        let mut link = write(device.link, &bytes).await;
        is_refused(&mut link, ErrorCode::FrameTooLarge).await;
        edge.counted(&ends("frame_too_large"), f64::from(n)).await;
    }
    neighbour.is_unaffected().await;
}

#[tokio::test]
async fn a_first_frame_that_is_not_hello_gets_an_error_with_a_code() {
    let edge = Edge::start().await;
    let mut neighbour = Neighbour::of(&edge).await;
    for (n, way) in (1..).zip(Way::ALL) {
        let mut link = edge.connect(way).await;
        link.send(to_edge::Frame::Ping(Ping {})).await.expect("sent");
        is_refused(&mut link, ErrorCode::HelloExpected).await;
        edge.counted(&handshakes("hello_expected"), f64::from(n)).await;
        // And a second one of a device that is welcome.
        let mut device = edge.device(way, "d").await;
        device.link.send(to_edge::Frame::Hello(hello_of(&edge, "d"))).await.expect("sent");
        is_refused(&mut device.link, ErrorCode::HelloExpected).await;
    }
    neighbour.is_unaffected().await;
}

#[tokio::test]
async fn a_wrong_credential_an_unknown_app_and_a_foreign_package_are_told_the_same() {
    let edge = Edge::start().await;
    let mut neighbour = Neighbour::of(&edge).await;
    let genuine = edge.credential(DEV_APP, "d", 1);
    let mut changed = genuine.clone();
    *changed.last_mut().expect("bytes") ^= 1;
    let mut foreign = hello_with(APP_WITH_PACKAGES, "d", edge.credential(APP_WITH_PACKAGES, "d", 1));
    foreign.attributes.as_mut().expect("attributes").package = "com.example.other".into();
    let mut nobody = hello_of(&edge, "d");
    nobody.identity = None;
    let bad = [
        hello_with(DEV_APP, "d", changed),
        hello_with(DEV_APP, "d", Vec::new()),
        hello_with(DEV_APP, "d", vec![1; 65]),
        hello_with(DEV_APP, "another", genuine.clone()),
        hello_with("unknown", "d", genuine.clone()),
        hello_with("no app key", "d", genuine.clone()),
        hello_with(APP_WITH_PACKAGES, "d", genuine),
        foreign.clone(),
        nobody,
    ];
    for way in Way::ALL {
        let mut told = Vec::new();
        for hello in &bad {
            let mut link = edge.connect(way).await;
            link.send(to_edge::Frame::Hello(hello.clone())).await.expect("sent");
            told.push(is_refused(&mut link, ErrorCode::Unauthenticated).await);
        }
        assert!(told.iter().all(|error| *error == told[0]), "{told:?}");
    }
    edge.counted(&handshakes("unauthenticated"), (Way::ALL.len() * bad.len()) as f64).await;
    for word in ["unknown app", "wrong credential", "the package is not of this app"] {
        assert!(edge.log().contains(word), "the log says: {word}");
    }
    // With one of its packages it is welcome.
    foreign.attributes.as_mut().expect("attributes").package = "com.example.channel".into();
    edge.device_saying(Way::Tls, foreign).await;
    neighbour.is_unaffected().await;
}

#[tokio::test]
async fn a_revoked_credential_is_told_the_same_and_the_one_before_is_renewed() {
    let edge = Edge::start().await;
    for way in Way::ALL {
        let revoked = hello_with(APP_OF_EPOCH_3, "d", edge.credential(APP_OF_EPOCH_3, "d", 1));
        let mut link = edge.connect(way).await;
        link.send(to_edge::Frame::Hello(revoked)).await.expect("sent");
        let error = is_refused(&mut link, ErrorCode::Unauthenticated).await;
        let wrong = hello_with(APP_OF_EPOCH_3, "d", edge.credential(DEV_APP, "d", 1));
        let mut link = edge.connect(way).await;
        link.send(to_edge::Frame::Hello(wrong)).await.expect("sent");
        assert_eq!(is_refused(&mut link, ErrorCode::Unauthenticated).await, error);

        let before = hello_with(APP_OF_EPOCH_3, "d", edge.credential(APP_OF_EPOCH_3, "d", 2));
        let welcome = edge.device_saying(way, before).await.welcome;
        assert_eq!(welcome.credential, edge.credential(APP_OF_EPOCH_3, "d", 3));
        let renewed = hello_with(APP_OF_EPOCH_3, "d", welcome.credential);
        assert!(edge.device_saying(way, renewed).await.welcome.credential.is_empty());
    }
    assert!(edge.log().contains("revoked"));
}

#[tokio::test]
async fn silence_after_connect_is_closed_at_the_deadline() {
    let edge = Edge::start_with(&[("device.hello_deadline_ms", "300")]).await;
    let mut neighbour = Neighbour::of(&edge).await;
    for way in Way::BOTH {
        let mut link = edge.connect(way).await;
        is_refused(&mut link, ErrorCode::Deadline).await;
    }
    // Silence before TLS: nothing can be said, but it is closed.
    let mut endpoint = edge.device_endpoint(Way::Tls);
    endpoint.transport = mooring::client::Transport::Plain;
    let mut link = mooring::client::device::Link::connect(&endpoint).await.expect("connected");
    is_closed(&mut link).await;
    edge.counted(&handshakes("deadline"), 3.0).await;
    neighbour.is_unaffected().await;
}

#[tokio::test]
async fn half_a_frame_and_silence_is_closed_at_the_deadline() {
    let edge =
        Edge::start_with(&[("device.hello_deadline_ms", "300"), ("device.heartbeat_default_s", "1")]).await;
    let mut neighbour = Neighbour::of(&edge).await;
    for way in Way::ALL {
        let mut link = write(edge.connect(way).await, &[100, 1, 2]).await;
        is_refused(&mut link, ErrorCode::Deadline).await;
    }
    // Half a TLS record.
    let mut endpoint = edge.device_endpoint(Way::Tls);
    endpoint.transport = mooring::client::Transport::Plain;
    let link = mooring::client::device::Link::connect(&endpoint).await.expect("connected");
    let mut link = write(link, &[22, 3, 1, 2, 0, 1]).await;
    is_closed(&mut link).await;
    edge.counted(&handshakes("deadline"), 4.0).await;
    // A device that is welcome has its heartbeat to say something.
    let tls = write(edge.device(Way::Tls, "d-1").await.link, &[100, 1, 2]);
    let plain = write(edge.device(Way::Plain, "d-2").await.link, &[100]);
    let (mut tls, mut plain) = tokio::join!(tls, plain);
    // The neighbour has the same heartbeat and keeps to it.
    let closed = async { tokio::join!(is_closed(&mut tls), is_closed(&mut plain)) };
    tokio::pin!(closed);
    loop {
        tokio::select! {
            _ = &mut closed => break,
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => neighbour.device.has_nothing().await,
        }
    }
    edge.counted(&ends("silent"), 2.0).await;
    neighbour.is_unaffected().await;
}

#[tokio::test]
async fn bytes_that_are_no_tls_get_an_alert_and_are_counted() {
    let edge = Edge::start().await;
    let mut neighbour = Neighbour::of(&edge).await;
    let mut endpoint = edge.device_endpoint(Way::Tls);
    endpoint.transport = mooring::client::Transport::Plain;
    let link = mooring::client::device::Link::connect(&endpoint).await.expect("connected");
    let mut stream = write(link, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.into_inner();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.expect("an orderly end");
    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    edge.counted(&handshakes("tls"), 1.0).await;
    neighbour.is_unaffected().await;
}
