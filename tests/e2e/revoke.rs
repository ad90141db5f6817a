//! Messages that are taken back: what is pending ends, what comes later ends at once, and who has it is told.

use mooring::pki::DEV_APP;
use mooring::wire::pb::device::EventType;
use mooring::wire::pb::router::{DeliverBatch, FailReason, ReceiptEvent, RejectCode};
use serde_json::Value;

use super::device::{Device, hello_of, hello_with};
use super::edge::{APP_OF_EPOCH_3, Edge, Way};
use super::router::{End, batch};
use super::sessions::narrow;

const REVOKED: End = End::Failed(FailReason::Revoked);

#[tokio::test]
async fn what_is_pending_ends_and_who_has_it_is_told_now_or_on_its_next_session() {
    let edge = Edge::start().await;
    edge.register(&["never"]).await;
    let mut router = edge.router().await;
    let mut arrived = edge.device(Way::Tls, "arrived").await;
    let mut written = edge.device(Way::Plain, "written").await;
    let mut gone = edge.device(Way::Tls, "gone").await;
    router.push(1, &["arrived", "written", "gone", "never"]).await;
    arrived.takes(1).await;
    gone.takes(1).await;
    gone.leave(&edge, "gone").await;
    assert_eq!(written.push().await.message_id, 1);
    let mut bystander = edge.device(Way::Tls, "bystander").await;
    let answer = router.revoke(DEV_APP, 1).await;
    assert_eq!((answer.code(), answer.ended), (RejectCode::Unspecified, 2));
    assert!(answer.sequence > 0);
    for ordinal in [1, 3] {
        assert_eq!(router.end("b-1", ordinal).await, REVOKED);
    }
    assert!(router.receipt(1, "written", ReceiptEvent::SentFail).await.sent_time > 0);
    arrived.is_revoked(1).await;
    written.is_revoked(1).await;
    bystander.has_nothing().await;
    assert!(bystander.revoked.is_empty(), "it was no target");
    // A late acknowledgement changes nothing.
    written.arrive(1).await;
    let late = router.receipt(1, "written", ReceiptEvent::Arrive).await;
    assert!(late.late && late.after() == FailReason::Revoked);
    let mut gone = edge.device(Way::Plain, "gone").await;
    gone.is_revoked(1).await;
    let mut never = edge.device(Way::Tls, "never").await;
    never.has_nothing().await;
    assert!(never.revoked.is_empty(), "it never got it");
    // Once more: the same answer, and nothing new.
    let again = router.revoke(DEV_APP, 1).await;
    assert_eq!((again.sequence, again.ended, again.code()), (answer.sequence, 0, RejectCode::Unspecified));
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["revoked"], &totals["arrived"]), (&2.into(), &2.into()));
}

#[tokio::test]
async fn it_is_remembered_across_a_kill_and_later_batches_end_at_once() {
    let mut edge = Edge::start().await;
    edge.register(&["d", "e"]).await;
    let mut router = edge.router().await;
    router.push(1, &["d"]).await;
    let first = router.revoke(DEV_APP, 1).await;
    assert_eq!(first.ended, 1);
    assert_eq!(router.revoke(DEV_APP, 2).await.ended, 0, "a message that nobody knows yet");
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router_from_the_oldest().await;
    assert_eq!(router.revoke(DEV_APP, 1).await.sequence, first.sequence);
    router.push(2, &["d", "e"]).await;
    for ordinal in 0..2 {
        assert_eq!(router.end("b-2", ordinal).await, REVOKED);
    }
    let more = DeliverBatch { batch_id: "more".into(), ..batch(1, &["e"]) };
    router.accepts(more, 1).await;
    assert_eq!(router.end("more", 0).await, REVOKED);
    assert_eq!(router.end("b-1", 0).await, REVOKED);
    router.push(3, &["d"]).await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.takes(3).await;
    device.has_nothing().await;
    assert_eq!(edge.totals().await["failed"]["revoked"], 4);
}

#[tokio::test]
async fn rights_places_and_other_apps() {
    let edge = Edge::start_with(&[("store.max_recalls", "1")]).await;
    let mut router = edge.router().await;
    // The same device id and message id under another app.
    let other = hello_with(APP_OF_EPOCH_3, "d", edge.credential(APP_OF_EPOCH_3, "d", 3));
    let mut other = edge.device_saying(Way::Tls, other).await;
    let mut mine = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    let foreign =
        DeliverBatch { app_key: APP_OF_EPOCH_3.into(), batch_id: "other".into(), ..batch(1, &["d"]) };
    router.accepts(foreign, 1).await;
    assert_eq!(mine.push().await.message_id, 1);
    assert_eq!(other.push().await.message_id, 1);
    assert_eq!(router.revoke("nobody", 1).await.code(), RejectCode::UnknownApp);
    assert_eq!(router.revoke(DEV_APP, 1).await.ended, 1);
    mine.is_revoked(1).await;
    other.has_nothing().await;
    assert!(other.revoked.is_empty());
    other.arrive(1).await;
    assert_eq!(router.end("other", 0).await, End::Arrived);
    assert_eq!(router.revoke(DEV_APP, 2).await.code(), RejectCode::ResourceExhausted);
    mine.say(&[(1, EventType::Click)]).await;
    assert!(router.receipt(1, "d", ReceiptEvent::Click).await.late);
}

#[tokio::test]
async fn a_copy_that_waits_in_an_outbox_is_not_written() {
    // Fewer bytes than an outbox takes, so that the last one is in it too, and many more than the kernels take.
    const PUSHES: u64 = 14;
    let edge = Edge::start_with(&[("device.send_buffer_bytes", "4096")]).await;
    let mut router = edge.router().await;
    // It doesn't read, and its kernel takes little: much of what it gets stays in its outbox.
    let mut device = Device::over(narrow(&edge, Way::Plain).await, hello_of(&edge, "d")).await;
    for message in 1..=PUSHES {
        let mut large = batch(message, &["d"]);
        large.body.as_mut().expect("a body").body = "x".repeat(3_900);
        router.accepts(large, 1).await;
    }
    edge.metric_comes_to("mooring_memory_bytes{part=\"outboxes\"}", |bytes| bytes > 20_000.0).await;
    let answer = router.revoke(DEV_APP, PUSHES).await;
    assert_eq!(answer.ended, 1);
    // The session ends, and what it wrote before has no byte of that message.
    let mut got = Vec::new();
    while let Some(frame) = device.next_to_the_end().await {
        if let mooring::wire::pb::device::to_device::Frame::Push(push) = frame {
            got.push(push.message_id);
        }
    }
    assert!(!got.contains(&PUSHES), "{got:?}");
    assert!(got.len() < PUSHES as usize - 1, "it was cut, not drained: {got:?}");
    let mut device = edge.device(Way::Tls, "d").await;
    for message in 1..PUSHES {
        device.takes(message).await;
    }
    assert_eq!(edge.totals().await["failed"]["revoked"], 1);
}

#[tokio::test]
async fn the_command_takes_a_message_back() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    router.push(77, &["d"]).await;
    let run = async |app: &str| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mooring"));
        command.args(["revoke", "77", "--json", "--app", app, "--server-name", "localhost"]);
        command.args(["--address", &edge.router_endpoint().address]);
        command.arg("--ca").arg(&edge.dev.ca).arg("--certificate").arg(&edge.dev.router_certificate);
        command.arg("--key").arg(&edge.dev.router_key);
        command.output().await.expect("it ran")
    };
    let done = run(DEV_APP).await;
    let said: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!((&said["message_id"], &said["ended"]), (&"77".into(), &1.into()));
    let refused = run("nobody").await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("unknown_app"));
    assert_eq!(router.end("b-77", 0).await, REVOKED);
}
