//! What an operator does while the edge runs: apps suspended and bounded, streams of their own, their ends.

use std::process::Stdio;

use mooring::client::router::{Receiver, Sender, open};
use mooring::client::{ClientError, admin};
use mooring::pki::{self, DEV_APP};
use mooring::wire::pb::device::{Attributes, ErrorCode, EventType};
use mooring::wire::pb::router::{
    DeliverBatch, LinkErrorCode, Open, OpenStream, ReceiptGap, RejectCode, StreamAck, StreamBatch,
    from_router, open_stream, stream_event, to_router,
};
use serde_json::{Value, json};
use tokio::process::Command;

use super::device::{SECONDS, hello_of, hello_with, is_refused};
use super::edge::{APP_OF_EPOCH_3, Carrier, Edge, Way};
use super::router::{End, Router, batch};

impl Edge {
    /// `mooring …` against its data directory, as JSON; or what it said on standard error.
    async fn mooring(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mooring"));
        command.args(arguments).arg("--json").arg("--data-dir").arg(self.data_dir());
        let output = command.env_remove("MOORING_ADMIN_TOKEN").output().await.expect("it runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// What an edge says that is configured so that there is no start.
    async fn does_not_start(&self) -> String {
        let output = self.command().stderr(Stdio::piped()).output().await.expect("it ran");
        assert_eq!(output.status.code(), Some(2), "as of each configuration that is wrong");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// One stream as `mooring streams list` has it.
    async fn stream(&self, name: &str) -> Option<Value> {
        let all = self.mooring(&["streams", "list"]).await.expect("listed");
        let streams = all["streams"].as_array().expect("streams").clone();
        streams.into_iter().find(|stream| stream["name"] == name)
    }

    /// A link of the router with this certificate.
    async fn link_of(
        &self,
        router: &str,
        stream: &str,
        from: Option<open_stream::From>,
    ) -> Result<(Sender, Receiver), ClientError> {
        let endpoint = self.endpoint_of(Carrier::Framed, router);
        let saying = |from, history| {
            let streams = match stream {
                "" => Vec::new(),
                name => vec![OpenStream { stream: name.into(), history, from }],
            };
            Open { version: 1, name: "test".into(), streams, ..Open::default() }
        };
        // A cursor is one of a history, which the edge names to whoever opens without one.
        let history = match from {
            Some(open_stream::From::After(_)) => {
                let (_, _, opened) = open(&endpoint, saying(None, 0)).await?;
                opened.streams.first().map_or(0, |stream| stream.history)
            }
            _ => 0,
        };
        open(&endpoint, saying(from, history)).await.map(|(sender, receiver, _)| (sender, receiver))
    }

    async fn router_of(&self, router: &str, stream: &str) -> Router {
        let (sender, receiver) = self.link_of(router, stream, None).await.expect("a link");
        Router::over(sender, receiver)
    }
}

pub(super) fn of_other(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    DeliverBatch { app_key: APP_OF_EPOCH_3.into(), ..batch(message_id, device_ids) }
}

/// `epochs` has the stream `second`; a router for each app, beside the one with all rights.
pub(super) fn two_streams(text: &str) -> String {
    let app = format!("key = \"{APP_OF_EPOCH_3}\"\n");
    let text = text.replace(&app, &format!("{app}stream = \"second\"\n"));
    format!(
        "{text}[[router.routers]]\nname = \"first\"\napps = [\"{DEV_APP}\"]\nstreams = [\"main\"]\n\
         [[router.routers]]\nname = \"second\"\napps = [\"{APP_OF_EPOCH_3}\"]\nstreams = [\"second\"]\n"
    )
}

#[tokio::test]
async fn a_configuration_is_checked_without_a_start() {
    let edge = Edge::start().await;
    let check = async || {
        let output = edge.command().arg("--check").stderr(Stdio::piped()).output().await.expect("it ran");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = check().await;
    assert_eq!(code, Some(0), "also beside an edge that serves with it: {said}");
    edge.configure(|text| text.replace("[store]", "[store]\nno_such_key = 1"));
    let (code, said) = check().await;
    assert!(code == Some(2) && said.contains("no_such_key"), "{said}");
    edge.configure(|text| text.replace("no_such_key = 1", "").replace("server.key", "ca.pem"));
    let (code, said) = check().await;
    assert!(code == Some(2) && said.contains("ca.pem"), "a certificate is no key: {said}");
}

#[tokio::test]
async fn a_suspended_app_refuses_new_pushes_and_nothing_else_also_after_a_crash() {
    let mut edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let first = batch(1, &["d"]);
    router.accepts(first.clone(), 1).await;
    let said = edge.mooring(&["apps", "suspend", DEV_APP]).await.expect("suspended");
    assert_eq!((&said["suspended"], &said["app_key"]), (&true.into(), &DEV_APP.into()));
    router.rejects(batch(2, &["d"]), RejectCode::AppSuspended, "app_key").await;
    // A repeat is no new push, and another app is another app.
    assert!(router.deliver(first.clone()).await.expect("answered again").repeated);
    let other = router.deliver(of_other(3, &["d"])).await.expect("taken");
    assert_eq!(other.accepted, 0, "nobody of that name there");
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router().await;
    router.rejects(batch(2, &["d"]), RejectCode::AppSuspended, "app_key").await;
    edge.counted("mooring_batches_total{result=\"app_suspended\"}", 1.0).await;
    // Devices come, and what is pending goes on.
    let mut device = edge.device(Way::Tls, "d").await;
    device.takes(1).await;
    assert_eq!(router.end("b-1", 0).await, End::Arrived);

    // Without the token nothing changes.
    let address = format!("127.0.0.1:{}", edge.ports.admin);
    let path = format!("/v1/apps/{DEV_APP}/resume");
    let refused = admin::post(&address, &path, "0123456789abcdef", &json!({})).await.expect("an answer");
    assert_eq!(refused.status, 401, "{}", refused.body);
    router.rejects(batch(2, &["d"]), RejectCode::AppSuspended, "app_key").await;
    let said = edge.mooring(&["apps", "resume", "nobody"]).await.expect_err("no such app");
    assert!(said.contains("mooring apps list"), "{said}");
    edge.mooring(&["apps", "resume", DEV_APP]).await.expect("resumed");
    router.push(2, &["d"]).await;
    device.takes(2).await;
}

#[tokio::test]
async fn an_app_over_its_rates_is_told_when_to_come_back() {
    let mut edge = Edge::start().await;
    edge.register(&["d"]).await;
    let said = edge.mooring(&["apps", "rate", DEV_APP, "--batches-per-s", "1"]).await.expect("set");
    assert_eq!(said["rates"]["batches_per_s"], 1);
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router().await;
    for message in 1..=20 {
        router.send(batch(message, &["d"])).await;
    }
    let mut delays = Vec::new();
    for message in 1..=20 {
        if let Err(why) = router.answer(&format!("b-{message}")).await {
            assert_eq!((why.code(), why.field.as_str()), (RejectCode::ResourceExhausted, ""), "{why:?}");
            delays.push(why.retry_after_milliseconds);
        }
    }
    assert!(
        (1..20).contains(&delays.len()) && delays.iter().all(|ms| (1..=1_000).contains(ms)),
        "{delays:?}"
    );
    edge.counted("mooring_app_limited_total{limit=\"batches\"}", delays.len() as f64).await;
    // At once: one more is allowed than there are targets in a second.
    edge.mooring(&["apps", "rate", DEV_APP, "--reset"]).await.expect("reset");
    router.accepts(batch(100, &["d"]), 1).await;
    router.accepts(batch(101, &["d"]), 1).await;

    // Sessions at a time, and a second.
    edge.mooring(&["apps", "rate", DEV_APP, "--max-sessions", "1"]).await.expect("set");
    let one = edge.device(Way::Tls, "d").await;
    let listed = edge.mooring(&["apps", "list"]).await.expect("listed");
    let app = listed["apps"].as_array().expect("apps").iter().find(|app| app["app_key"] == DEV_APP);
    assert_eq!(app.expect("listed")["sessions"], 1);
    let mut two = edge.connect(Way::Plain).await;
    two.send(mooring::wire::pb::device::to_edge::Frame::Hello(hello_of(&edge, "e"))).await.expect("sent");
    assert_eq!(is_refused(&mut two, ErrorCode::ResourceExhausted).await.retry_after_milliseconds, 5_000);
    // Another app's devices are not concerned.
    let credential = edge.credential(APP_OF_EPOCH_3, "d", 3);
    edge.device_saying(Way::Tls, hello_with(APP_OF_EPOCH_3, "d", credential)).await;
    one.leave(&edge, "d").await;
    edge.device(Way::Tls, "e").await;
    edge.mooring(&["apps", "rate", DEV_APP, "--max-sessions", "0", "--sessions-per-s", "1"])
        .await
        .expect("set");
    let mut refused = None;
    for _ in 0..200 {
        let mut link = edge.connect(Way::Plain).await;
        match link.hello(hello_of(&edge, "f")).await {
            Ok(_) => {}
            Err(ClientError::Refused { code, retry_after_milliseconds, .. }) => {
                refused = Some((code, retry_after_milliseconds));
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    let (code, delay) = refused.expect("one of them was too many");
    assert!(code == ErrorCode::ResourceExhausted && (1..=1_000).contains(&delay), "{code:?} after {delay}");
    edge.counted("mooring_app_limited_total{limit=\"sessions\"}", 1.0).await;
    edge.counted("mooring_app_limited_total{limit=\"max_sessions\"}", 1.0).await;
}

#[tokio::test]
async fn two_routers_push_to_their_apps_and_read_their_streams_and_nothing_leaks() {
    let edge = Edge::prepare(&[]);
    edge.configure(two_streams);
    let mut edge = edge;
    edge.run().await;
    let mut first = edge.router_of("first", "main").await;
    let mut second = edge.router_of("second", "second").await;
    let mut demo = edge.device(Way::Tls, "same").await;
    let credential = edge.credential(APP_OF_EPOCH_3, "same", 3);
    let mut epochs = edge.device_saying(Way::Tls, hello_with(APP_OF_EPOCH_3, "same", credential)).await;
    // The same device id and message id under two apps.
    first.accepts(batch(1, &["same"]), 1).await;
    second.accepts(of_other(1, &["same"]), 1).await;
    demo.takes(1).await;
    epochs.takes(1).await;
    assert_eq!(first.end("b-1", 0).await, End::Arrived);
    assert_eq!(second.end("b-1", 0).await, End::Arrived);
    let apps = |router: &Router| router.receipts.iter().map(|r| r.app_key.clone()).collect::<Vec<_>>();
    assert_eq!((apps(&first), apps(&second)), (vec![DEV_APP.to_owned()], vec![APP_OF_EPOCH_3.to_owned()]));
    // Crossed pushes are refused with the words for an app that there isn't.
    let foreign = first.rejects(of_other(2, &["same"]), RejectCode::UnknownApp, "app_key").await;
    let nobodys = DeliverBatch { app_key: "nobody".into(), ..batch(3, &["same"]) };
    let nobodys = first.rejects(nobodys, RejectCode::UnknownApp, "app_key").await;
    assert_eq!(foreign.text, nobodys.text);
    epochs.has_nothing().await;
    // And a stream that isn't the router's with those for a stream that there isn't.
    let refusal = async |stream: &str| match edge.link_of("first", stream, None).await {
        Err(ClientError::Link { code, text }) => (code, text),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{stream} was opened"),
    };
    let foreign = refusal("second").await;
    assert_eq!(foreign, refusal("nothing").await);
    assert_eq!(foreign.0, LinkErrorCode::Unauthorized);
    // A certificate of this CA without any rights here.
    let Err(ClientError::Link { code, .. }) = edge.link_of("stranger", "", None).await else {
        panic!("let in")
    };
    assert_eq!(code, LinkErrorCode::Unauthorized);
    let stream = edge.stream("second").await.expect("listed");
    assert_eq!((&stream["reader"], &stream["apps"]), (&"second".into(), &json!([APP_OF_EPOCH_3])));
    assert!(stream["epoch"].as_u64().expect("an epoch") > 0);
}

#[tokio::test]
async fn a_stream_whose_apps_went_elsewhere_is_drained_and_then_retired() {
    let mut edge = Edge::prepare(&[]);
    let original = std::fs::read_to_string(edge.dir.path().join("edge.toml")).expect("a configuration");
    edge.configure(two_streams);
    edge.run().await;
    let credential = edge.credential(APP_OF_EPOCH_3, "d", 3);
    let hello = hello_with(APP_OF_EPOCH_3, "d", credential);
    let mut device = edge.device_saying(Way::Tls, hello.clone()).await;
    let mut pushing = edge.router_reading(Vec::new()).await;
    pushing.accepts(of_other(1, &["d"]), 1).await;
    device.takes(1).await;
    let said = edge.mooring(&["streams", "retire", "second"]).await.expect_err("it has an app");
    assert!(said.contains("apps map to this stream"), "{said}");
    // Everything maps to `main` now.
    edge.kill().await;
    edge.configure(|_| original);
    edge.run().await;
    let waiting = edge.stream("second").await.expect("kept");
    assert_eq!((&waiting["configured"], &waiting["unread"]), (&false.into(), &true.into()));
    let mut device = edge.device_saying(Way::Tls, hello).await;
    let mut main = edge.router().await;
    main.accepts(of_other(2, &["d"]), 1).await;
    device.takes(2).await;
    assert_eq!(main.end("b-2", 0).await, End::Arrived);
    assert!(main.receipts.iter().all(|receipt| receipt.message_id == 2), "what was before is not here");
    let reading = vec![OpenStream { stream: "second".into(), ..OpenStream::default() }];
    let mut second = edge.router_reading(reading).await;
    assert_eq!(second.end("b-1", 0).await, End::Arrived);
    assert!(second.receipts.iter().all(|receipt| receipt.message_id == 1));
    let said = edge.mooring(&["streams", "retire", "second"]).await.expect_err("it is read");
    assert!(said.contains("reads this stream now"), "{said}");
    let done = edge.mooring(&["streams", "retire", "second", "--force"]).await.expect("retired");
    assert_eq!(done["ended"], true);
    // Its reader is told.
    loop {
        match second.receiver.recv(SECONDS).await.expect("a frame") {
            to_router::Frame::StreamClosed(closed) => break assert_eq!(closed.stream, "second"),
            to_router::Frame::Stream(_) => {}
            other => panic!("{other:?}"),
        }
    }
    edge.kill().await;
    edge.run().await;
    assert!(edge.stream("second").await.is_none());
    assert!(edge.stream("main").await.is_some());
}

/// A router may read it by its name, as long as the data directory has it.
#[tokio::test]
async fn a_stream_that_no_app_has_any_more_is_read_by_its_name_until_it_is_retired() {
    let mut edge = Edge::prepare(&[]);
    let original = std::fs::read_to_string(edge.dir.path().join("edge.toml")).expect("a configuration");
    let named = original.replace("streams = \"*\"", "streams = [\"main\", \"second\"]");
    assert_ne!(named, original);
    edge.configure(|_| named.clone());
    let said = edge.does_not_start().await;
    assert!(said.contains("router.routers[0].streams: `second` is not in [[apps]]"), "{said}");
    edge.configure(|_| two_streams(&original));
    edge.run().await;
    let hello = hello_with(APP_OF_EPOCH_3, "d", edge.credential(APP_OF_EPOCH_3, "d", 3));
    let mut device = edge.device_saying(Way::Tls, hello).await;
    let mut pushing = edge.router_reading(Vec::new()).await;
    pushing.accepts(of_other(1, &["d"]), 1).await;
    device.takes(1).await;
    edge.kill().await;
    edge.configure(|_| named.clone());
    edge.run().await;
    let reading = vec![OpenStream { stream: "second".into(), ..OpenStream::default() }];
    let mut second = edge.router_reading(reading).await;
    assert_eq!(second.end("b-1", 0).await, End::Arrived);
    drop(second);
    // The next start would not know it.
    let said = edge.mooring(&["streams", "retire", "second"]).await.expect_err("it is named");
    assert!(
        said.contains("read this stream by its name") || said.contains("reads this stream now"),
        "{said}"
    );
    edge.kill().await;
    edge.configure(|_| original);
    edge.run().await;
    assert_eq!(edge.mooring(&["streams", "retire", "second"]).await.expect("retired")["ended"], true);
    edge.kill().await;
    edge.configure(|_| named);
    assert!(edge.does_not_start().await.contains("`second` is not in [[apps]]"));
}

/// Gaps, and the sequences of receipts.
fn sorted(batches: &[StreamBatch]) -> (Vec<ReceiptGap>, Vec<u64>) {
    let (mut gaps, mut receipts) = (Vec::new(), Vec::new());
    for event in batches.iter().flat_map(|batch| &batch.events) {
        match &event.event {
            Some(stream_event::Event::Gap(gap)) => {
                assert!(
                    event.sequence == gap.last && receipts.iter().all(|seq| *seq < gap.first),
                    "in its place"
                );
                gaps.push(gap.clone());
            }
            Some(stream_event::Event::Receipt(_)) => receipts.push(event.sequence),
            _ => {}
        }
    }
    (gaps, receipts)
}

/// Receipts are as large as they can be there: three of each message are more than twelve MiB.
const MESSAGES: u64 = 2_100;

#[tokio::test]
async fn a_stream_that_nobody_reads_loses_its_oldest_at_the_hard_bound_and_says_so() {
    let mut edge = Edge::start_with(&[
        ("store.stream_soft_bytes", "\"1MiB\""),
        ("store.stream_hard_bytes", "\"9MiB\""),
        ("store.max_pending_per_device", "5000"),
    ])
    .await;
    let large = || "x".repeat(250);
    let mut hello = hello_of(&edge, "d");
    hello.attributes = Some(Attributes {
        package: large(),
        app_version: large(),
        sdk_version: large(),
        brand: large(),
        model: large(),
        os: large(),
        os_version: large(),
        ..Attributes::default()
    });
    let mut device = edge.device_saying(Way::Tls, hello).await;
    let mut pushing = edge.router_reading(Vec::new()).await;
    for message in 1..=MESSAGES {
        pushing.send(batch(message, &["d"])).await;
    }
    for message in 1..=MESSAGES {
        pushing.answer(&format!("b-{message}")).await.expect("accepted");
    }
    let messages: Vec<u64> = (1..=MESSAGES).collect();
    for some in messages.chunks(100) {
        let both = |id: &u64| [(*id, EventType::Click), (*id, EventType::Clean)];
        let number = device.say(&some.iter().flat_map(both).collect::<Vec<_>>()).await;
        device.is_confirmed(number).await;
    }
    edge.counted("mooring_receipt_gap_events_total", 1.0).await;
    // At the soft bound already, batches are refused.
    pushing.rejects(batch(MESSAGES + 1, &["d"]), RejectCode::ResourceExhausted, "").await;
    edge.kill().await;
    edge.run().await;

    for from in [None, Some(open_stream::From::Oldest(true)), Some(open_stream::From::After(0))] {
        let head = edge.stream("main").await.expect("listed")["head"].as_u64().expect("a head");
        let (mut sender, mut receiver) = edge.link_of(pki::DEV_ROUTER, "main", from).await.expect("a link");
        let (gaps, receipts) = sorted(&read(&mut sender, &mut receiver, head, false).await);
        let gone: u64 = gaps.iter().map(|gap| gap.events).sum();
        assert!(gone > 0 && gaps.windows(2).all(|pair| pair[0].last < pair[1].first), "{gaps:?}");
        // The first event is the registration.
        assert_eq!(
            gone + receipts.len() as u64,
            3 * MESSAGES + 1,
            "every event is here, or said to be missing"
        );
        for gap in &gaps {
            assert_eq!(gap.by_event.values().sum::<u64>(), gap.events);
            assert!(
                gap.by_event
                    .keys()
                    .all(|event| ["registered", "arrive", "click", "clean"].contains(&&**event)),
                "{gap:?}"
            );
        }
    }
    let said = edge.stream("main").await.expect("listed");
    assert_eq!(said["full"], true, "{said}");
    // Read and acknowledged, the app's batches are taken again.
    let head = said["head"].as_u64().expect("a head");
    let (mut sender, mut receiver) = edge.link_of(pki::DEV_ROUTER, "main", None).await.expect("a link");
    read(&mut sender, &mut receiver, head, true).await;
    edge.metric_comes_to("mooring_stream_pinned_bytes{stream=\"main\"}", |bytes| bytes < 1.0).await;
    edge.router_reading(Vec::new()).await.accepts(batch(MESSAGES + 2, &["d"]), 1).await;
}

/// Reads up to a sequence. Unacknowledged, no more than a window of batches may come.
async fn read(
    sender: &mut Sender,
    receiver: &mut Receiver,
    head: u64,
    acknowledge: bool,
) -> Vec<StreamBatch> {
    let mut batches: Vec<StreamBatch> = Vec::new();
    while batches.last().is_none_or(|batch| batch.cursor < head) {
        let batch = match receiver.recv(SECONDS).await.expect("a frame") {
            to_router::Frame::Stream(batch) => batch,
            other => panic!("{other:?}"),
        };
        if acknowledge {
            let ack = StreamAck { stream: batch.stream.clone(), cursor: batch.cursor };
            sender.send(from_router::Frame::StreamAck(ack)).await.expect("acknowledged");
        }
        batches.push(batch);
    }
    batches
}
