//! Every reason of the closed lists, provoked over real sockets: what the router is told, what `inspect` says of it, and that the sums hold.

use mooring::account::what_to_do;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{EventType, Hello, Push, PushState, bind};
use mooring::wire::pb::router::{DeliverBatch, FailReason, OfflinePolicy, ReceiptEvent, RefuseReason};
use serde_json::Value;

use super::device::{Device, hello_of, hello_with};
use super::edge::{APP_DROPPING_THE_OLDEST, APP_OF_FEW_BYTES, Edge, Way};
use super::router::{End, Router, batch, now, of_account, refused};

/// What `mooring inspect message --device --json` says.
async fn inspected(edge: &Edge, app: &str, message: u64, device: &str) -> Value {
    let port = edge.ports.admin;
    let line = format!("inspect message {app} {message} --device {device} --admin 127.0.0.1:{port} --json");
    let answer: Value = serde_json::from_str(&edge.cli(&line).await).expect("JSON");
    assert_eq!(answer["identity"], true, "{answer}");
    answer
}

/// The one state of a message on a device, with its reason, its time, and what to do.
async fn stands(edge: &Edge, (app, message, device): (&str, u64, &str), state: &str, reason: &str) -> Value {
    let on = inspected(edge, app, message, device).await["on_device"].take();
    assert_eq!((&on["state"], &on["reason"]), (&state.into(), &reason.into()), "message {message}: {on}");
    let time = on["time"].as_u64().unwrap_or_else(|| panic!("message {message} has no time: {on}"));
    assert!(time > 1_600_000_000_000 && time <= now() + 60_000, "{on}");
    let todo = if on["late"] == true { "late" } else { reason };
    assert_eq!(on["what_to_do"], what_to_do(todo), "{on}");
    on
}

/// A device that was known ends so.
async fn fails(edge: &Edge, router: &mut Router, of: (&str, u64, &str), reason: FailReason, word: &str) {
    assert_eq!(router.end(&format!("b-{}", of.1), 0).await, End::Failed(reason), "{word}");
    stands(edge, of, "failed", word).await;
}

fn kept_for(seconds: u32, batch: DeliverBatch) -> DeliverBatch {
    DeliverBatch { retention_seconds: Some(seconds), ..batch }
}

fn of(app: &str, batch: DeliverBatch) -> DeliverBatch {
    DeliverBatch { app_key: app.into(), ..batch }
}

async fn of_app(edge: &Edge, app: &str) -> Device {
    edge.device_saying(Way::Tls, hello_with(app, "d", edge.credential(app, "d", 1))).await
}

#[tokio::test]
async fn every_refusal_is_told_and_found() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    edge.register(&["away", "twice"]).await;
    let mut off = edge.device(Way::Tls, "off").await;
    off.switch(PushState::Off).await;
    of_app(&edge, APP_OF_FEW_BYTES).await.link.close().await.expect("closed");
    let large = |message| {
        let body = Push { body: "x".repeat(900), ..batch(message, &[]).body.unwrap_or_default() };
        of(APP_OF_FEW_BYTES, DeliverBatch { body: Some(body), ..batch(message, &["d"]) })
    };
    router.accepts(large(99), 1).await;
    let elsewhere = OfflinePolicy::Return.into();
    let table = [
        (batch(1, &["nobody"]), RefuseReason::DeviceUnknown, "device_unknown"),
        (batch(2, &["off"]), RefuseReason::PushDisabled, "push_disabled"),
        (DeliverBatch { offline_policy: elsewhere, ..batch(3, &["away"]) }, RefuseReason::Offline, "offline"),
        (large(4), RefuseReason::OverQuota, "over_quota"),
    ];
    for (batch, reason, word) in table {
        let (app, message) = (batch.app_key.clone(), batch.message_id);
        let device = batch.targets[0].device_id.clone();
        let answer = router.accepts(batch, 0).await;
        assert_eq!(refused(&answer, reason), [0], "{word}");
        let of = (app.as_str(), message, device.as_str());
        let on = stands(&edge, of, "refused", word).await;
        assert_eq!((&on["target"], &on["refusals"][0]["reason"]), (&false.into(), &word.into()));
    }
    // A duplicate has another state beside: that of the first.
    let answer = router.accepts(batch(5, &["twice", "twice"]), 1).await;
    assert_eq!(refused(&answer, RefuseReason::Duplicate), [1]);
    let on = stands(&edge, (DEV_APP, 5, "twice"), "pending", "waiting_for_connection").await;
    assert_eq!(on["refusals"][0]["reason"], "duplicate");
    assert_eq!(on["refusals"][0]["what_to_do"], what_to_do("duplicate"));
    // Who registers afterwards was unknown then all the same.
    edge.register(&["nobody"]).await;
    stands(&edge, (DEV_APP, 1, "nobody"), "refused", "device_unknown").await;
    let not = inspected(&edge, DEV_APP, 1, "away").await["on_device"].take();
    assert_eq!((&not["state"], &not["reason"]), (&"not_a_target".into(), &Value::Null));
    assert_eq!(not["what_to_do"], what_to_do("not_a_target"));
    let totals = edge.totals().await;
    for word in ["device_unknown", "push_disabled", "offline", "over_quota", "duplicate"] {
        assert_eq!(totals["refused"][word], 1, "{word}: {totals}");
    }
}

#[tokio::test]
async fn every_end_is_told_and_found() {
    let edge = Edge::start_with(&[("device.online_window_ms", "500")]).await;
    let mut router = edge.router().await;
    edge.register(&["away"]).await;
    let mut device = edge.device(Way::Tls, "d").await;
    // Time passes while the others go on.
    router.accepts(kept_for(1, batch(1, &["away"])), 1).await;

    router.accepts(kept_for(0, batch(2, &["away"])), 1).await;
    fails(&edge, &mut router, (DEV_APP, 2, "away"), FailReason::Offline, "offline").await;

    router.accepts(kept_for(0, batch(3, &["d"])), 1).await;
    assert_eq!(device.push().await.message_id, 3);
    fails(&edge, &mut router, (DEV_APP, 3, "d"), FailReason::Unacknowledged, "unacknowledged").await;

    let app = APP_DROPPING_THE_OLDEST;
    of_app(&edge, app).await.link.close().await.expect("closed");
    for message in 10..=13 {
        router.accepts(of(app, batch(message, &["d"])), 1).await;
    }
    fails(&edge, &mut router, (app, 10, "d"), FailReason::OverQuota, "over_quota").await;

    router.push(4, &["away"]).await;
    assert_eq!(router.revoke(DEV_APP, 4).await.ended, 1);
    fails(&edge, &mut router, (DEV_APP, 4, "away"), FailReason::Revoked, "revoked").await;

    for message in [5, 6] {
        let weather = DeliverBatch { collapse_key: "weather".into(), ..batch(message, &["away"]) };
        router.accepts(weather, 1).await;
    }
    fails(&edge, &mut router, (DEV_APP, 5, "away"), FailReason::Replaced, "replaced").await;

    router.push(7, &["d"]).await;
    assert_eq!(device.push().await.message_id, 7);
    device.switch(PushState::Off).await;
    fails(&edge, &mut router, (DEV_APP, 7, "d"), FailReason::PushDisabled, "push_disabled").await;

    fails(&edge, &mut router, (DEV_APP, 1, "away"), FailReason::Expired, "expired").await;
    // Late: it changes no outcome.
    device.arrive(7).await;
    device.say(&[(7, EventType::Click)]).await;
    let receipt = router.receipt(7, "d", ReceiptEvent::Arrive).await;
    assert!(receipt.late && receipt.after() == FailReason::PushDisabled);
    router.receipt(7, "d", ReceiptEvent::Click).await;
    let late = stands(&edge, (DEV_APP, 7, "d"), "failed", "push_disabled").await;
    assert_eq!((&late["late"], &late["after"]), (&true.into(), &"push_disabled".into()));
    assert!(late["sent_time"].as_u64() > Some(0) && late["clicked"] == true, "{late}");
    let totals = edge.totals().await;
    let ended =
        ["expired", "offline", "unacknowledged", "over_quota", "revoked", "replaced", "push_disabled"];
    for word in ended {
        assert_eq!(totals["failed"][word], 1, "{word}: {totals}");
        edge.metric_comes_to(&format!("mooring_outcomes_total{{outcome=\"{word}\"}}"), |n| {
            (0.5..1.5).contains(&n)
        })
        .await;
    }
    edge.metric_comes_to("mooring_late_total", |late| {
        (late - totals["late"].as_f64().expect("a count")).abs() < 0.5
    })
    .await;
}

#[tokio::test]
async fn an_account_that_leaves_and_an_app_that_is_installed_anew_end_what_was_theirs() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.bind(bind::Binding::Account("alice".into())).await;
    device.leave(&edge, "d").await;
    router.accepts(of_account("alice", batch(1, &["d"])), 1).await;
    // Not bound there when it was accepted, or no more afterwards.
    router.accepts(of_account("bob", batch(2, &["d"])), 1).await;
    fails(&edge, &mut router, (DEV_APP, 2, "d"), FailReason::Unbound, "unbound").await;
    let mut device = edge.device(Way::Tls, "d").await;
    assert_eq!(device.push().await.message_id, 1);
    device.bind(bind::Binding::Account("bob".into())).await;
    fails(&edge, &mut router, (DEV_APP, 1, "d"), FailReason::Unbound, "unbound").await;
    device.leave(&edge, "d").await;
    router.push(3, &["d"]).await;
    let device = edge.device_saying(Way::Tls, Hello { state_lost: true, ..hello_of(&edge, "d") }).await;
    fails(&edge, &mut router, (DEV_APP, 3, "d"), FailReason::Reinstalled, "reinstalled").await;
    drop(device);
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["unbound"], &totals["failed"]["reinstalled"]), (&2.into(), &1.into()));
}

#[tokio::test]
async fn of_a_device_that_was_forgotten_the_journal_still_tells() {
    let edge = Edge::start_with(&[("store.forget_after_s", "1")]).await;
    let mut router = edge.router().await;
    edge.register(&["d"]).await;
    router.push(1, &["d"]).await;
    fails(&edge, &mut router, (DEV_APP, 1, "d"), FailReason::Forgotten, "forgotten").await;
    assert_eq!(edge.ask(&format!("/v1/device/{DEV_APP}/d")).await["known"], false);
    router.accepts(batch(2, &["d"]), 0).await;
    stands(&edge, (DEV_APP, 2, "d"), "refused", "device_unknown").await;
    assert_eq!(edge.totals().await["failed"]["forgotten"], 1);
}

#[tokio::test]
async fn what_waits_says_for_what_and_what_arrived_says_when() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    edge.register(&["away"]).await;
    let mut device = edge.device(Way::Quic, "d").await;
    router.push(1, &["away"]).await;
    stands(&edge, (DEV_APP, 1, "away"), "pending", "waiting_for_connection").await;
    // A window full, and one behind it.
    for message in 101..=132 {
        router.push(message, &["d"]).await;
        assert_eq!(device.push().await.message_id, message);
    }
    router.push(133, &["d"]).await;
    let written = stands(&edge, (DEV_APP, 101, "d"), "pending", "in_flight").await;
    assert!(written["sent_time"].as_u64() > Some(0));
    let waits = stands(&edge, (DEV_APP, 133, "d"), "pending", "waiting_for_window").await;
    assert_eq!(waits["sent_time"], Value::Null);
    device.arrive(101).await;
    let arrived = inspected(&edge, DEV_APP, 101, "d").await["on_device"].take();
    assert_eq!(
        (&arrived["state"], &arrived["what_to_do"]),
        (&"arrived".into(), &what_to_do("arrived").into())
    );
    // The device says when; this one says when it connected, and no earlier than the acceptance.
    assert!(arrived["time"].as_u64() > Some(0) && arrived["sent_time"].as_u64() > Some(0), "{arrived}");

    let known = edge.ask(&format!("/v1/device/{DEV_APP}/d")).await;
    assert_eq!((&known["connection"]["transport"], &known["pending"]), (&"quic".into(), &32.into()));
    assert!(known["connection"]["since"].as_u64() > Some(0) && known["oldest_pending_at"].as_u64() > Some(0));
    let events = known["last_events"].as_array().expect("events");
    assert_eq!(events.len(), 8);
    assert_eq!((&events[0]["what"], &events[0]["message_id"]), (&"arrived".into(), &"101".into()));
    assert_eq!((&events[1]["what"], &events[1]["message_id"]), (&"accepted".into(), &"133".into()));
    let away = edge.ask(&format!("/v1/device/{DEV_APP}/away")).await;
    assert_eq!((away.get("connection"), &away["connected"]), (None, &false.into()));
}

#[tokio::test]
async fn a_damaged_record_ends_as_storage() {
    let mut edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let mut marked = batch(1, &["d"]);
    marked.body.as_mut().expect("a body").body = "the-body-that-is-damaged".into();
    router.accepts(marked, 1).await;
    router.push(2, &["d"]).await;
    drop(router);
    // Left in order, so that the lists are known without the record.
    edge.terminate();
    assert!(edge.ended().await.success());
    damage(&edge, b"the-body-that-is-damaged");
    edge.run().await;
    let mut router = edge.router_from_the_oldest().await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.takes(2).await;
    fails(&edge, &mut router, (DEV_APP, 1, "d"), FailReason::Storage, "storage").await;
    assert_eq!(router.unreadable, 1, "what lay there may have been an event");
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["storage"], &totals["arrived"]), (&1.into(), &1.into()));
}

/// Changes a byte of this text wherever the journal has it.
fn damage(edge: &Edge, text: &[u8]) {
    let mut found = 0;
    for entry in std::fs::read_dir(edge.data_dir()).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "seg") {
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a segment");
        while let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at] ^= 0x40;
            found += 1;
        }
        std::fs::write(&path, bytes).expect("written");
    }
    assert!(found > 0, "the journal has it");
}
