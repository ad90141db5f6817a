//! Questions over a router link, and the commands that ask them.

use std::process::Stdio;

use mooring::client::router::{AskError, Asker};
use mooring::ids::AppKey;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::PushState;
use mooring::wire::pb::router::{LinkErrorCode, OfflinePolicy, Outcome};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::edge::{Edge, NEVER, Way};
use super::router::{End, batch};

fn app(key: &str) -> AppKey {
    AppKey::parse(key).expect("an app")
}

fn asker(edge: &Edge) -> Asker {
    Asker::new(edge.router_endpoint(), "test")
}

/// `mooring <words>` as a router of this edge.
fn mooring(edge: &Edge, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mooring"));
    command.args(words).args(["--app", DEV_APP, "--server-name", "localhost", "--address"]);
    command.arg(format!("127.0.0.1:{}", edge.ports.router)).arg("--ca").arg(&edge.dev.ca);
    command.arg("--certificate").arg(&edge.dev.router_certificate).arg("--key").arg(&edge.dev.router_key);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Its output as JSON, one object a line; it ends well.
async fn json(mut command: Command) -> Vec<Value> {
    let output = timeout(NEVER, command.output()).await.expect("it ends").expect("it runs");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test]
async fn known_push_on_and_connected_are_three_answers() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let _here = edge.device(Way::Tls, "here").await;
    let mut off = edge.device(Way::Plain, "off").await;
    off.switch(PushState::Off).await;
    edge.register(&["away"]).await;
    router.push(1, &["away"]).await;
    let ids = ["off", "nobody", "here", "away", "here"].map(str::to_owned);
    let mut asker = asker(&edge);
    let (sequence, states) = asker.devices(&app(DEV_APP), &ids).await.expect("an answer");
    let rows: Vec<_> = states.devices.iter().map(|d| (d.known, d.push_on, d.connected, d.pending)).collect();
    let expected = [
        (true, false, true, 0),
        (false, false, false, 0),
        (true, true, true, 0),
        (true, true, false, 1),
        (true, true, true, 0),
    ];
    assert_eq!(rows, expected);
    assert!(states.devices.iter().map(|d| &d.device_id).eq(&ids), "in the order asked");
    assert!(states.devices.iter().all(|d| (d.last_active_time > 0) == d.known));
    assert!(sequence > 0);
    // As of a later sequence, something else.
    let (later, states) = asker.devices(&app(DEV_APP), &ids[..1]).await.expect("an answer");
    assert!(later >= sequence && states.devices.len() == 1);
}

#[tokio::test]
async fn ten_thousand_devices_are_answered_and_more_are_refused() {
    let edge = Edge::start().await;
    edge.register(&["d-9999"]).await;
    let mut ids: Vec<String> = (0..10_000).map(|n| format!("d-{n}")).collect();
    let mut asker = asker(&edge);
    let (_, states) = asker.devices(&app(DEV_APP), &ids).await.expect("an answer");
    assert_eq!(states.devices.len(), 10_000);
    assert!(states.devices[9_999].known && states.devices[..9_999].iter().all(|d| !d.known));
    ids.push("one more".into());
    let refused = asker.devices(&app(DEV_APP), &ids).await;
    let Err(AskError::Refused { code, text }) = refused else { panic!("{refused:?}") };
    assert!(code == LinkErrorCode::Malformed && text.contains("10,000"), "{text}");
    // The link goes on; an app that isn't the router's is refused too.
    let refused = asker.message(&app("nobody"), 1, None).await;
    assert!(matches!(refused, Err(AskError::Refused { code: LinkErrorCode::Unauthorized, .. })));
    assert!(!asker.message(&app(DEV_APP), 1, None).await.expect("an answer").1.known);
}

#[tokio::test]
async fn a_message_is_told_with_its_counts_and_what_became_of_it_on_a_device() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut here = edge.device(Way::Tls, "here").await;
    edge.register(&["away"]).await;
    router.accepts(batch(1, &["here", "away", "nobody"]), 2).await;
    let push = here.push().await;
    let mut asker = asker(&edge);
    let on = async |asker: &mut Asker, id| {
        let (_, state) = asker.message(&app(DEV_APP), 1, Some(id)).await.expect("an answer");
        assert_eq!(state.accepted, state.arrived + state.pending);
        state.on_device.expect("asked for")
    };
    let written = on(&mut asker, "here").await;
    assert!(written.pending && written.outcome() == Outcome::None && written.sent_time > 0, "{written:?}");
    let waits = on(&mut asker, "away").await;
    assert!(waits.pending && waits.sent_time == 0);
    here.arrive(push.message_id).await;
    let arrived = on(&mut asker, "here").await;
    assert!(arrived.target && !arrived.pending && arrived.outcome() == Outcome::Arrived);
    let other = on(&mut asker, "nobody").await;
    assert!(!other.target && other.outcome() == Outcome::None);
    let inspected = edge.ask(&format!("/v1/message/{DEV_APP}/1")).await;
    let printed = json(mooring(&edge, &["query", "message", "1", "--json"])).await;
    for field in ["targets", "accepted", "arrived", "pending", "refused", "failed"] {
        assert_eq!(printed[0][field], inspected[field], "{field}");
    }
}

#[tokio::test]
async fn push_follows_its_message_and_takes_the_stream_from_nobody() {
    let edge = Edge::start().await;
    let mut reader = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let words = ["push", "--device", "d", "--title", "t", "--message-id", "7", "--retention", "60", "--json"];
    let pushed = tokio::spawn(json(mooring(&edge, &words)));
    device.takes(7).await;
    let summary = pushed.await.expect("no panic");
    assert_eq!(
        (&summary[0]["accepted"], &summary[0]["arrived"], &summary[0]["pending"]),
        (&1.into(), &1.into(), &0.into())
    );
    // The reader of the stream is still its reader.
    let receipt = reader.receipt(7, "d", mooring::wire::pb::router::ReceiptEvent::Arrive).await;
    assert_eq!(receipt.outcome(), Outcome::Arrived);
    let mut offline = batch(8, &["d", "away"]);
    offline.offline_policy = OfflinePolicy::Return.into();
    reader.accepts(offline, 1).await;
    device.takes(8).await;
    assert_eq!(reader.end("b-8", 0).await, End::Arrived);
}

#[tokio::test]
async fn the_commands_print_who_is_connected_and_what_is_known() {
    let edge = Edge::start().await;
    let _device = edge.device(Way::Tls, "d").await;
    let lines = json(mooring(&edge, &["presence", "--once", "--json"])).await;
    assert_eq!((&lines[0]["device_id"], &lines[0]["state"]), (&"d".into(), &"connected".into()));
    assert_eq!(lines[1]["snapshot"]["connected"], 1);
    let answer = json(mooring(&edge, &["query", "devices", "d", "other", "--json"])).await;
    let devices = &answer[0]["devices"];
    assert_eq!((&devices[0]["connected"], &devices[1]["known"]), (&true.into(), &false.into()));
}
