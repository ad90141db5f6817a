//! What bad input from routers gets, and a router that doesn't read.

use mooring::client::router::{Receiver, Sender, open};
use mooring::client::{ClientError, Endpoint, Transport};
use mooring::limits;
use mooring::pki;
use mooring::wire::pb::device::PushState;
use mooring::wire::pb::router::{
    DeliverBatch, DeviceIds, LinkErrorCode, Open, Ping, Query, RefuseReason, RejectCode, Target, from_router,
    query, to_router,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::device::SECONDS;
use super::edge::{Carrier, Edge, LOOK, NEVER, Way};
use super::router::{End, Router, batch, now, refused};

fn links(reason: &str) -> String {
    format!("mooring_router_link_ends_total{{reason=\"{reason}\"}}")
}

/// What the edge says to a router that says this first.
async fn first_word(endpoint: &Endpoint, bytes: &[u8]) -> Result<to_router::Frame, ClientError> {
    let (read, mut write) = tokio::io::split(endpoint.connect().await?);
    // The edge may have closed already.
    write.write_all(bytes).await?;
    write.flush().await?;
    let mut receiver = Receiver::over(read);
    let word = receiver.recv(SECONDS).await?;
    match receiver.recv(SECONDS).await {
        Err(ClientError::Closed) => Ok(word),
        other => panic!("the end was expected, not {other:?}"),
    }
}

fn code(frame: &to_router::Frame) -> LinkErrorCode {
    match frame {
        to_router::Frame::Error(error) => error.code(),
        other => panic!("an error was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn a_router_without_a_valid_client_certificate_gets_a_tls_alert() {
    let edge = Edge::start().await;
    let mut healthy = edge.router().await;
    let other = tempfile::tempdir().expect("a directory");
    let stranger = pki::develop(other.path()).expect("certificates");
    let foreign = pki::client_config_router(&edge.dev.ca, &stranger.router_certificate, &stranger.router_key);
    let none = pki::client_config_device(&edge.dev.ca).expect("TLS");
    let mut none = (*none).clone();
    none.alpn_protocols.clear();
    for tls in [foreign.expect("TLS"), none.into()] {
        let mut endpoint = edge.router_endpoint();
        let Transport::Tls(_, name) = endpoint.transport else { panic!("TLS") };
        endpoint.transport = Transport::Tls(tls, name);
        let failed = match endpoint.connect().await {
            // In TLS 1.3 the client is through before the edge has looked at its certificate.
            Ok(mut stream) => stream.read_u8().await.expect_err("an alert").to_string(),
            Err(error) => error.to_string(),
        };
        assert!(failed.contains("alert"), "{failed}");
    }
    edge.counted(&links("tls"), 2.0).await;
    edge.counted("mooring_router_handshake_failures_total", 2.0).await;
    edge.register(&["d"]).await;
    healthy.push(1, &["d"]).await;
}

#[tokio::test]
async fn a_router_whose_name_is_not_configured_is_unauthorized() {
    let edge = Edge::start().await;
    for (count, carrier) in (1..).zip(Carrier::ALL) {
        let endpoint = edge.endpoint_of(*carrier, "unknown");
        let error = open(&endpoint, Open { version: 1, ..Open::default() }).await;
        let Err(ClientError::Link { code, text }) = error else { panic!("a refusal") };
        assert_eq!(code, LinkErrorCode::Unauthorized);
        assert!(text.contains("\"unknown\" is not in the configuration"), "{text}");
        edge.counted(&links("unauthorized"), f64::from(count)).await;
    }
}

#[tokio::test]
async fn who_fails_at_the_router_port_does_not_fill_the_log_nor_hide_what_a_router_does_wrong() {
    let edge = Edge::start().await;
    let mut endpoint = edge.router_endpoint();
    endpoint.transport = Transport::Plain;
    let fail = async || {
        let mut stream = endpoint.connect().await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        let mut rest = Vec::new();
        // An alert, and perhaps a reset behind it.
        stream.read_to_end(&mut rest).await.ok();
    };
    let (began, failures) = (tokio::time::Instant::now(), 300);
    for _ in 0..failures {
        fail().await;
    }
    edge.counted("mooring_router_handshake_failures_total", f64::from(failures)).await;
    let most = (began.elapsed().as_secs() + 2) * u64::from(limits::ROUTER_FAILURE_LINES);
    let lines = edge.log().lines().filter(|line| line.contains("router link ended")).count() as u64;
    assert!(lines <= most, "{lines} lines, {most} allowed");
    // In the same second, a router has lines of its own.
    let refused = open(&edge.router_endpoint(), Open { version: 9, ..Open::default() }).await;
    assert!(matches!(refused, Err(ClientError::Link { code: LinkErrorCode::Version, .. })));
    let said = |right: &dyn Fn(&str) -> bool| {
        edge.log().lines().any(|line| line.contains("router link ended") && right(line))
    };
    let look = async {
        while !said(&|line| line.contains(pki::DEV_ROUTER) && line.contains("version")) {
            tokio::time::sleep(LOOK).await;
        }
        // The next line says how many there were between.
        while !said(&|line| line.contains("suppressed=") && !line.contains("suppressed=0")) {
            fail().await;
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(NEVER, look).await.expect("both lines");
}

#[tokio::test]
async fn a_router_that_says_nothing_is_told_so_at_the_deadline_and_holds_up_nobody() {
    let edge = Edge::start().await;
    let mut silent = Vec::new();
    for carrier in Carrier::ALL {
        let stream = edge.router_endpoint_over(*carrier).connect().await.expect("connected");
        let (read, write) = tokio::io::split(stream);
        silent.push((Receiver::over(read), write));
    }
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    device.takes(1).await;
    for (receiver, _write) in &mut silent {
        let word = receiver.recv(SECONDS).await.expect("an error frame");
        assert_eq!(code(&word), LinkErrorCode::Deadline);
        assert!(matches!(receiver.recv(SECONDS).await, Err(ClientError::Closed)));
    }
    edge.counted(&links("deadline"), Carrier::ALL.len() as f64).await;
    router.push(2, &["d"]).await;
    device.takes(2).await;
}

/// What it says until it can say no more: questions whose answers it never reads.
async fn asks_and_does_not_read(endpoint: Endpoint) -> ClientError {
    let said = Open { version: 1, ..Open::default() };
    let (mut sender, receiver, _) = open(&endpoint, said).await.expect("a link");
    let ids: Vec<String> = (0..10_000).map(|n| format!("a-device-with-a-name-of-some-length-{n}")).collect();
    let mut request_id = 0;
    let error = loop {
        request_id += 1;
        let of = Some(query::Of::Devices(DeviceIds { ids: ids.clone() }));
        let query = Query { request_id, app_key: pki::DEV_APP.into(), of, ..Query::default() };
        if let Err(error) = sender.send(from_router::Frame::Query(query)).await {
            break error;
        }
    };
    drop(receiver);
    error
}

#[tokio::test]
async fn a_router_that_reads_nothing_at_all_is_cut_off_and_holds_up_nobody() {
    let edge = Edge::start_with(&[("router.user_timeout_ms", "1000")]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let deaf = tokio::spawn(asks_and_does_not_read(edge.router_endpoint()));
    // Others go on for as long as that takes.
    let mut message = 0;
    while edge.metric(&links("error")).await + edge.metric(&links("stalled")).await < 1.0 {
        message += 1;
        router.push(message, &["d"]).await;
        device.takes(message).await;
    }
    let error = timeout(NEVER, deaf).await.expect("it notices").expect("no panic");
    assert!(!matches!(error, ClientError::Deadline { .. }), "its link was cut: {error}");
    router.push(message + 1, &["d"]).await;
    device.takes(message + 1).await;
}

#[tokio::test]
async fn a_routers_bytes_that_are_no_frame_or_over_the_limit_or_not_open_get_an_error_with_a_code() {
    let edge = Edge::start().await;
    let mut healthy = edge.router().await;
    let endpoint = edge.router_endpoint();
    let ping =
        mooring::wire::pb::router::FromRouter { frame: Some(from_router::Frame::Ping(Ping { nonce: 1 })) };
    let mut framed = Vec::new();
    mooring::wire::frame::put_router_frame(&mut framed, &ping);
    for (bytes, expected, reason) in [
        (&[1, 0, 0, 0, 1, 0][..], LinkErrorCode::Malformed, "malformed"),
        (&[0, 0, 0, 0, 2, 0xff, 0xff], LinkErrorCode::Malformed, "malformed"),
        (&[0, 1, 0, 0, 1, 0], LinkErrorCode::FrameTooLarge, "frame_too_large"),
        (&framed, LinkErrorCode::OpenExpected, "open_expected"),
    ] {
        let word = first_word(&endpoint, bytes).await.expect("an error frame");
        assert_eq!(code(&word), expected);
        edge.counted(&links(reason), 1.0).await;
    }
    edge.register(&["d"]).await;
    healthy.push(1, &["d"]).await;
}

/// A batch that would be accepted, but for one thing.
struct Almost {
    edge: Edge,
    router: Router,
}

impl Almost {
    async fn new() -> Self {
        let edge = Edge::start().await;
        edge.register(&["d"]).await;
        let router = edge.router().await;
        Self { edge, router }
    }

    async fn rejects(&mut self, batch: DeliverBatch, code: RejectCode, field: &str, label: &str) {
        self.router.rejects(batch, code, field).await;
        self.edge.counted(&format!("mooring_batches_total{{result=\"{label}\"}}"), 1.0).await;
    }

    /// The link goes on, and nothing of what was rejected was taken.
    async fn goes_on(mut self, accepted_before: u32) {
        self.router.push(999, &["d"]).await;
        let totals = self.edge.totals().await;
        assert_eq!(totals["accepted"], accepted_before + 1, "{totals}");
    }
}

#[tokio::test]
async fn a_batch_that_is_expired_is_rejected() {
    let mut almost = Almost::new().await;
    let expired =
        DeliverBatch { created_at: now() - 60_000, retention_seconds: Some(30), ..batch(1, &["d"]) };
    almost.rejects(expired, RejectCode::Expired, "retention_seconds", "expired").await;
    almost.goes_on(0).await;
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_rejected() {
    let mut almost = Almost::new().await;
    let with_text = |message, bytes: usize| {
        let mut batch = batch(message, &["d"]);
        let body = batch.body.as_mut().expect("a body");
        body.body = "x".repeat(bytes - body.title.len());
        batch
    };
    almost.router.accepts(with_text(1, 4_000), 1).await;
    almost.rejects(with_text(2, 4_001), RejectCode::PayloadTooLarge, "body", "payload_too_large").await;
    almost.goes_on(1).await;
}

#[tokio::test]
async fn a_batch_without_targets_is_rejected() {
    let mut almost = Almost::new().await;
    almost.rejects(batch(1, &[]), RejectCode::NoTargets, "targets", "no_targets").await;
    almost.goes_on(0).await;
}

#[tokio::test]
async fn a_batch_over_100_000_targets_is_rejected() {
    let mut almost = Almost::new().await;
    let mut huge = batch(1, &["d"]);
    huge.targets.resize(100_001, Target { device_id: "d".into(), ..Target::default() });
    let mut largest = DeliverBatch { batch_id: "largest".into(), ..huge.clone() };
    almost.rejects(huge, RejectCode::TooManyTargets, "targets", "too_many_targets").await;
    largest.targets.pop();
    let answer = almost.router.accepts(largest, 1).await;
    assert_eq!(refused(&answer, RefuseReason::Duplicate).len(), 99_999);
    almost.goes_on(1).await;
}

#[tokio::test]
async fn a_batch_with_a_conflicting_id_is_rejected() {
    let mut almost = Almost::new().await;
    let first = batch(1, &["d"]);
    let accepted = almost.router.accepts(first.clone(), 1).await;
    let other_content = DeliverBatch { job_key: "another".into(), ..first.clone() };
    almost.rejects(other_content, RejectCode::BatchConflict, "batch_id", "batch_conflict").await;
    let mut other_body = DeliverBatch { batch_id: "b-1-more".into(), ..first.clone() };
    other_body.body.as_mut().expect("a body").title = "another".into();
    almost.rejects(other_body, RejectCode::MessageConflict, "message_id", "message_conflict").await;
    // The same once more gets the same answer.
    let again = almost.router.accepts(first, 1).await;
    assert!(again.repeated && !accepted.repeated);
    assert_eq!(mooring_without_repeated(again), accepted);
    almost.goes_on(1).await;
}

fn mooring_without_repeated(
    answer: mooring::wire::pb::router::BatchAccepted,
) -> mooring::wire::pb::router::BatchAccepted {
    mooring::wire::pb::router::BatchAccepted { repeated: false, ..answer }
}

#[tokio::test]
async fn an_unknown_device_and_one_with_push_off_are_refused_the_others_go_on() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut on = edge.device(Way::Tls, "on").await;
    let mut off = edge.device(Way::Tls, "off").await;
    off.switch(PushState::Off).await;
    edge.register(&["offline"]).await;
    let answer = router.accepts(batch(1, &["unknown", "on", "off", "offline", "on"]), 2).await;
    assert_eq!(refused(&answer, RefuseReason::DeviceUnknown), [0]);
    assert_eq!(refused(&answer, RefuseReason::PushDisabled), [2]);
    assert_eq!(refused(&answer, RefuseReason::Duplicate), [4]);
    on.takes(1).await;
    off.has_nothing().await;
    edge.device(Way::Tls, "offline").await.takes(1).await;
    assert_eq!(router.end("b-1", 1).await, End::Arrived);
    assert_eq!(router.end("b-1", 3).await, End::Arrived);
    off.switch(PushState::On).await;
    router.push(2, &["off"]).await;
    off.takes(2).await;
    let totals = edge.totals().await;
    assert_eq!(totals["refused"]["device_unknown"], 1);
    assert_eq!(totals["refused"]["push_disabled"], 1);
    assert_eq!(totals["refused"]["duplicate"], 1);
    for (result, count) in [("accepted", 3.0), ("device_unknown", 1.0), ("push_disabled", 1.0)] {
        edge.counted(&format!("mooring_targets_total{{result=\"{result}\"}}"), count).await;
    }
}

#[tokio::test]
async fn a_router_that_stops_reading_its_stream_delays_nobody_and_gets_the_rest_later() {
    let edge = Edge::start().await;
    let mut deaf = edge.router().await;
    let mut other = edge.router_reading(Vec::new()).await;
    let mut device = edge.device(Way::Tls, "d").await;
    // Each arrive is confirmed before the next: many more stream batches than the window takes.
    for message in 1..=60 {
        other.push(message, &["d"]).await;
        device.takes(message).await;
    }
    assert_eq!(edge.totals().await["arrived"], 60);
    edge.counted("mooring_stream_backlog_records{stream=\"main\"}", 60.0).await;
    for message in 1..=60 {
        assert_eq!(deaf.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    // Batches on its own link are answered as ever.
    deaf.push(61, &["d"]).await;
    device.takes(61).await;
    assert_eq!(deaf.end("b-61", 0).await, End::Arrived);
}

#[tokio::test]
async fn a_link_whose_peer_vanishes_in_the_middle_of_a_batch_takes_nothing_of_it() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let router = edge.router_reading(Vec::new()).await;
    let mut bytes = Vec::new();
    let deliver = from_router::Frame::Deliver(batch(1, &["d"]));
    mooring::wire::frame::put_router_frame(
        &mut bytes,
        &mooring::wire::pb::router::FromRouter { frame: Some(deliver) },
    );
    let Router { sender, receiver, .. } = router;
    half(sender, &bytes[..bytes.len() - 3]).await;
    drop(receiver);
    edge.counted(&links("malformed"), 1.0).await;
    assert_eq!(edge.totals().await["batches"], 0);
    let mut router = edge.router().await;
    router.push(1, &["d"]).await;
}

async fn half(sender: Sender, bytes: &[u8]) {
    let mut stream = sender.into_inner();
    stream.write_all(bytes).await.expect("written");
    stream.shutdown().await.expect("closed");
}
