//! The same numbers wherever they are asked for, and nothing of another app's in them.

use mooring::client::router::{AskError, Asker};
use mooring::ids::AppKey;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{EventType, PushState};
use mooring::wire::pb::router::{DeliverBatch, LinkErrorCode, OfflinePolicy, RejectCode};
use serde_json::{Value, json};

use super::device::hello_with;
use super::edge::{APP_OF_FEW_BYTES, Edge, Way};
use super::router::{End, batch};

fn app(key: &str) -> AppKey {
    AppKey::parse(key).expect("an app")
}

/// Counts by their names, without zeros.
fn by_reason(counts: impl Iterator<Item = (String, u64)>) -> Value {
    let counts = counts.filter(|(_, count)| *count > 0);
    counts.map(|(name, count)| (name, json!(count))).collect::<serde_json::Map<_, _>>().into()
}

fn without_zeros(value: &Value) -> Value {
    let counts = value.as_object().expect("by reason").iter();
    by_reason(counts.map(|(name, count)| (name.clone(), count.as_u64().expect("a count"))))
}

/// The admin port's answer, that of `inspect`, and that of Query over a link: as of one sequence, they are one.
async fn the_same_everywhere(edge: &Edge, asker: &mut Asker, message: u64, device: &str) -> Value {
    let path = format!("/v1/message/{DEV_APP}/{message}?device={device}");
    let port = edge.ports.admin;
    let line =
        format!("inspect message {DEV_APP} {message} --device {device} --admin 127.0.0.1:{port} --json");
    loop {
        let admin = edge.ask(&path).await;
        let inspect: Value = serde_json::from_str(&edge.cli(&line).await).expect("JSON");
        let (sequence, told) = asker.message(&app(DEV_APP), message, Some(device)).await.expect("an answer");
        if admin["sequence"] != sequence || inspect["sequence"] != sequence {
            // A cursor was written meanwhile.
            continue;
        }
        assert_eq!(admin, inspect);
        for (name, number) in [
            ("accepted_at", told.accepted_at),
            ("expires_at", told.expires_at),
            ("batches", told.batches.into()),
            ("targets", told.targets),
            ("accepted", told.accepted),
            ("arrived", told.arrived),
            ("pending", told.pending),
            ("sent", told.sent),
            ("clicked", told.clicked),
            ("cleaned", told.cleaned),
            ("late", told.late),
        ] {
            assert_eq!(admin[name], number, "{name}");
        }
        let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
        let refused =
            told.refused.iter().map(|r| (word(r.reason().as_str_name(), "REFUSE_REASON_"), r.count));
        assert_eq!(without_zeros(&admin["refused"]), by_reason(refused));
        let failed = told.failed.iter().map(|f| (word(f.reason().as_str_name(), "FAIL_REASON_"), f.count));
        assert_eq!(without_zeros(&admin["failed"]), by_reason(failed));
        let (on, there) = (&admin["on_device"], told.on_device.expect("asked for"));
        assert_eq!((&on["target"], &on["pending"]), (&there.target.into(), &there.pending.into()));
        assert_eq!((&on["clicked"], &on["cleaned"]), (&there.clicked.into(), &there.cleaned.into()));
        assert_eq!(on["late"], there.late);
        let reason = match (on["state"].as_str().expect("a state"), there.reason, there.refused) {
            ("failed", _, 0) => word(there.reason().as_str_name(), "FAIL_REASON_"),
            ("refused", 0, _) => word(there.refused().as_str_name(), "REFUSE_REASON_"),
            ("pending", 0, 0) => on["reason"].as_str().expect("what it waits for").into(),
            ("arrived" | "not_a_target", 0, 0) => return admin,
            other => panic!("{other:?}: {on}"),
        };
        assert_eq!(on["reason"], reason.as_str());
        return admin;
    }
}

#[tokio::test]
async fn inspect_the_admin_port_and_query_give_the_same_numbers() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    edge.register(&["away", "gone"]).await;
    let mut tapped = edge.device(Way::Tls, "tapped").await;
    let mut quick = edge.device(Way::Quic, "quick").await;
    let mut off = edge.device(Way::Plain, "off").await;
    off.switch(PushState::Off).await;
    let all = ["tapped", "quick", "away", "off", "nobody", "quick"];
    router.accepts(batch(1, &all), 3).await;
    let second = DeliverBatch {
        batch_id: "second".into(),
        retention_seconds: Some(1),
        offline_policy: OfflinePolicy::Store.into(),
        ..batch(1, &["gone"])
    };
    router.accepts(second, 1).await;
    tapped.takes(1).await;
    let number = tapped.say(&[(1, EventType::Click), (1, EventType::Clean)]).await;
    tapped.is_confirmed(number).await;
    assert_eq!(quick.push().await.message_id, 1);
    assert!(matches!(router.end("second", 0).await, End::Failed(_)));
    let mut gone = edge.device(Way::Tls, "gone").await;
    gone.arrive(1).await;
    let mut asker = Asker::new(edge.router_endpoint(), "test");
    let mut states = Vec::new();
    for device in ["tapped", "quick", "away", "gone", "off", "bystander"] {
        let answer = the_same_everywhere(&edge, &mut asker, 1, device).await;
        assert_eq!(answer["identity"], true);
        states.push(answer["on_device"]["state"].as_str().expect("a state").to_owned());
    }
    assert_eq!(states, ["arrived", "pending", "pending", "failed", "refused", "not_a_target"]);
    let ids = ["tapped", "away", "off", "nobody"].map(str::to_owned);
    let (_, link) = asker.devices(&app(DEV_APP), &ids).await.expect("an answer");
    for known in link.devices {
        let admin = edge.ask(&format!("/v1/device/{DEV_APP}/{}", known.device_id)).await;
        assert_eq!((&admin["known"], &admin["connected"]), (&known.known.into(), &known.connected.into()));
        if known.known {
            assert_eq!(
                (&admin["push_on"], &admin["pending"]),
                (&known.push_on.into(), &known.pending.into())
            );
            assert_eq!(admin["last_active"], known.last_active_time);
            let brand = known.attributes.expect("some").brand;
            assert_eq!(admin["attributes"]["brand"], brand.as_str());
        }
    }
    // The only message: the totals are its own, and so are the metrics.
    let totals = edge.totals().await;
    let message = edge.ask(&format!("/v1/message/{DEV_APP}/1")).await;
    let names = ["batches", "targets", "refused", "accepted", "arrived", "failed", "pending", "sent"];
    for name in names.into_iter().chain(["clicked", "cleaned", "late"]) {
        assert_eq!(totals[name], message[name], "{name}");
    }
    let count = |value: &Value| value.as_f64().expect("a count");
    for (series, expected) in [
        ("mooring_targets_total{result=\"accepted\"}", &totals["accepted"]),
        ("mooring_targets_total{result=\"duplicate\"}", &totals["refused"]["duplicate"]),
        ("mooring_outcomes_total{outcome=\"arrived\"}", &totals["arrived"]),
        ("mooring_outcomes_total{outcome=\"expired\"}", &totals["failed"]["expired"]),
        ("mooring_late_total", &totals["late"]),
        ("mooring_pending", &totals["pending"]),
    ] {
        edge.metric_comes_to(series, |value| (value - count(expected)).abs() < 0.5).await;
    }
}

#[tokio::test]
async fn apps_see_nothing_of_each_other() {
    let edge = Edge::start_with(&[("rights.apps", "[\"demo\"]")]).await;
    let mut router = edge.router().await;
    let mut mine = edge.device(Way::Tls, "d").await;
    // The same id under another app, to which this router has no right.
    let hello = hello_with(APP_OF_FEW_BYTES, "d", edge.credential(APP_OF_FEW_BYTES, "d", 1));
    let mut other = edge.device_saying(Way::Plain, hello).await;
    router.push(1, &["d"]).await;
    let foreign = DeliverBatch { app_key: APP_OF_FEW_BYTES.into(), ..batch(2, &["d"]) };
    let nobodys = DeliverBatch { app_key: "nobody".into(), ..batch(3, &["d"]) };
    let refused = router.rejects(foreign, RejectCode::UnknownApp, "app_key").await;
    let unknown = router.rejects(nobodys, RejectCode::UnknownApp, "app_key").await;
    assert_eq!(refused.text, unknown.text, "that the app exists is nobody's business");
    assert_eq!(router.revoke(APP_OF_FEW_BYTES, 1).await.code(), RejectCode::UnknownApp);
    mine.takes(1).await;
    other.has_nothing().await;
    // What it says of a message of the other app is unmatched, and in no sum.
    let number = other.say(&[(1, EventType::Click)]).await;
    other.is_confirmed(number).await;
    let mut asker = Asker::new(edge.router_endpoint(), "test");
    for answer in [
        asker.message(&app(APP_OF_FEW_BYTES), 1, Some("d")).await.map(drop),
        asker.devices(&app(APP_OF_FEW_BYTES), &["d".to_owned()]).await.map(drop),
    ] {
        assert!(
            matches!(answer, Err(AskError::Refused { code: LinkErrorCode::Unauthorized, .. })),
            "{answer:?}"
        );
    }
    let message = edge.ask(&format!("/v1/message/{DEV_APP}/1?device=d")).await;
    assert_eq!((&message["arrived"], &message["clicked"]), (&1.into(), &0.into()));
    let path = format!("/v1/message/{APP_OF_FEW_BYTES}/1");
    assert_eq!(edge.get(&path).await.status, 404);
    let known = edge.ask(&format!("/v1/device/{APP_OF_FEW_BYTES}/d")).await;
    let what: Vec<_> = known["last_events"].as_array().expect("events").iter().map(|e| &e["what"]).collect();
    assert_eq!(what, ["unmatched"]);
    let mine = edge.ask(&format!("/v1/device/{DEV_APP}/d")).await;
    assert_eq!(mine["last_events"].as_array().map(Vec::len), Some(2), "accepted and arrived: {mine}");
    edge.totals().await;
}
