//! Every code with which a batch can be rejected, provoked over both links: code, field and delay as the router sees them, the count, and what
//! `inspect reasons` says to do about it.

use std::collections::HashSet;

use mooring::wire::pb::device::{Kind, Push};
use mooring::wire::pb::router::{DeliverBatch, RejectCode, Target};
use serde_json::Value;

use super::edge::{APP_OF_EPOCH_3, APP_WITH_PACKAGES, Carrier, Edge, Way};
use super::router::{Router, batch, now};

/// Milliseconds after which a router may repeat a batch: never, or within these.
type Delay = std::ops::RangeInclusive<u32>;
const NEVER: Delay = 0..=0;

/// Why a batch is rejected: code and field.
type Why = (RejectCode, &'static str);

/// What is wrong with a batch by itself.
fn wrong(n: u64, change: impl FnOnce(&mut DeliverBatch)) -> DeliverBatch {
    let mut batch = batch(n, &["d"]);
    change(&mut batch);
    batch
}

fn wrong_body(n: u64, change: impl FnOnce(&mut Push)) -> DeliverBatch {
    wrong(n, |batch| change(batch.body.get_or_insert_default()))
}

/// Those that need no state of the edge, from message 100 on.
fn by_themselves() -> Vec<(DeliverBatch, Why, Delay)> {
    use RejectCode as Code;
    let long = "x".repeat(65);
    let invalid = |field| (Code::Invalid, field);
    let mut next = 100;
    let mut n = || {
        next += 1;
        next
    };
    let device = |id: &str, account: &str| vec![Target { device_id: id.into(), account: account.into() }];
    [
        (wrong(n(), |b| b.batch_id = String::new()), invalid("batch_id")),
        (wrong(n(), |b| b.message_id = 0), invalid("message_id")),
        (wrong(n(), |b| b.created_at = 0), invalid("created_at")),
        (wrong(n(), |b| b.created_at += 3_600_000), invalid("created_at")),
        (wrong(n(), |b| b.retention_seconds = Some(72 * 3_600 + 1)), invalid("retention_seconds")),
        (wrong(n(), |b| b.job_key.clone_from(&long)), invalid("job_key")),
        (wrong(n(), |b| b.collapse_key.clone_from(&long)), invalid("collapse_key")),
        (wrong(n(), |b| b.target_type.clone_from(&long)), invalid("target_type")),
        (wrong(n(), |b| b.body = None), invalid("body")),
        (wrong_body(n(), |body| body.kind = Kind::Unspecified.into()), invalid("body.kind")),
        (wrong_body(n(), |body| body.extras = "[1]".into()), invalid("body.extras")),
        (wrong(n(), |b| b.targets = device("", "")), invalid("targets[0].device_id")),
        (wrong(n(), |b| b.targets = device("d", "a\nb")), invalid("targets[0].account")),
        (wrong(n(), |b| b.app_key = "nobody".into()), (Code::UnknownApp, "app_key")),
        (
            wrong(n(), |b| (b.created_at, b.retention_seconds) = (now() - 60_000, Some(30))),
            (Code::Expired, "retention_seconds"),
        ),
        (wrong_body(n(), |body| body.body = "x".repeat(4_001)), (Code::PayloadTooLarge, "body")),
        (wrong(n(), |b| b.targets.clear()), (Code::NoTargets, "targets")),
        (
            wrong(n(), |b| b.targets = vec![device("d", "").remove(0); 100_001]),
            (Code::TooManyTargets, "targets"),
        ),
        (wrong(n(), |b| b.created_at -= 25 * 3_600_000), (Code::TooOld, "created_at")),
        // What this edge doesn't know, a newer one may do.
        (wrong(n(), |b| b.priority = 7), (Code::Unimplemented, "priority")),
        (wrong(n(), |b| b.offline_policy = 7), (Code::Unimplemented, "offline_policy")),
        (wrong_body(n(), |body| body.kind = 7), (Code::Unimplemented, "body.kind")),
    ]
    .map(|(batch, why)| (batch, why, NEVER))
    .into()
}

/// Those that need the edge to be in some state, which it is.
fn by_state(taken: &DeliverBatch) -> Vec<(DeliverBatch, Why, Delay)> {
    use RejectCode as Code;
    let of = |app: &str, batch: DeliverBatch| DeliverBatch { app_key: app.into(), ..batch };
    let other_body = DeliverBatch {
        body: Some(Push { title: "another".into(), ..taken.body.clone().unwrap_or_default() }),
        batch_id: "another".into(),
        ..taken.clone()
    };
    // Beside the one that is pending.
    let strangers: Vec<String> = (0..100_000).map(|n| format!("stranger-{n}")).collect();
    let strangers: Vec<&str> = strangers.iter().map(String::as_str).collect();
    let conflict = DeliverBatch { job_key: "another".into(), ..taken.clone() };
    vec![
        (conflict, (Code::BatchConflict, "batch_id"), NEVER),
        (other_body, (Code::MessageConflict, "message_id"), NEVER),
        (of(APP_WITH_PACKAGES, batch(201, &["d"])), (Code::AppSuspended, "app_key"), NEVER),
        // A rate of the app, which says when there is room; and a maximum of the edge.
        (of(APP_OF_EPOCH_3, batch(202, &["d", "e"])), (Code::ResourceExhausted, ""), 1..=60_000),
        (batch(203, &strangers), (Code::ResourceExhausted, ""), 2_000..=2_000),
    ]
}

struct Table<'a> {
    edge: &'a Edge,
    reasons: Value,
    seen: HashSet<RejectCode>,
}

impl Table<'_> {
    async fn row(&mut self, router: &mut Router, row: (DeliverBatch, Why, Delay)) {
        let (batch, (code, field), delay) = row;
        let word = code.as_str_name().trim_start_matches("REJECT_CODE_").to_lowercase();
        let counter = format!("mooring_batches_total{{result=\"{word}\"}}");
        let before = self.edge.metric(&counter).await;
        let name = (batch.batch_id.clone(), batch.app_key.clone());
        let answer = router.rejects(batch, code, field).await;
        assert_eq!((&answer.batch_id, &answer.app_key), (&name.0, &name.1), "in the router's own words");
        assert!(delay.contains(&answer.retry_after_milliseconds), "{answer:?}");
        assert!(!answer.text.is_empty(), "{answer:?}");
        self.edge.counted(&counter, before + 1.0).await;
        let word = if word == "expired" { "batch_expired" } else { &word };
        let todo = self.reasons[word].as_str().unwrap_or_default();
        assert!(!todo.is_empty(), "`inspect reasons` knows {word}: {}", self.reasons);
        // What may be repeated has a delay, and the advice says the same.
        assert_eq!(todo.contains("repeat it unchanged after the delay"), *delay.end() > 0, "{word}: {todo}");
        self.seen.insert(code);
    }
}

#[tokio::test]
async fn every_code_is_told_with_field_delay_and_what_to_do() {
    let mut edge = Edge::start_with(&[
        ("store.max_pending", "100000"),
        ("leave.drain_lead_ms", "100"),
        ("leave.window_ms", "3000"),
    ])
    .await;
    let mut device = edge.device(Way::Tls, "d").await;
    let admin = format!("--admin 127.0.0.1:{} --token-file DIR/data/admin.token", edge.ports.admin);
    edge.cli(&format!("apps suspend {APP_WITH_PACKAGES} {admin}")).await;
    edge.cli(&format!("apps rate {APP_OF_EPOCH_3} --targets-per-s 1 {admin}")).await;
    let reasons = serde_json::from_str(&edge.cli("inspect reasons --json").await).expect("JSON");
    let mut routers = Vec::new();
    for carrier in Carrier::ALL {
        routers.push(Router::open(&edge.router_endpoint_over(*carrier), Vec::new()).await);
    }
    let taken = batch(1, &["d"]);
    routers[0].accepts(taken.clone(), 1).await;
    device.takes(1).await;
    edge.register(&["away"]).await;
    routers[0].push(3, &["away"]).await;
    // It owes that many seconds: more than all this takes on a slow machine.
    let emptied = DeliverBatch { app_key: APP_OF_EPOCH_3.into(), ..batch(2, &["d"; 40]) };
    routers[0].accepts(emptied, 0).await;
    let mut table = Table { edge: &edge, reasons, seen: HashSet::new() };
    for router in &mut routers {
        for row in by_themselves().into_iter().chain(by_state(&taken)) {
            table.row(router, row).await;
        }
    }
    let Table { reasons, mut seen, .. } = table;
    // Nothing of all that was taken, and the link goes on.
    for (n, router) in (300..).zip(&mut routers) {
        router.push(n, &["d"]).await;
        device.takes(n).await;
    }
    let totals = edge.totals().await;
    assert_eq!(totals["accepted"], 2 + Carrier::ALL.len(), "{totals}");
    // The last one: the edge leaves, and nobody hurries it.
    edge.terminate();
    let mut table = Table { edge: &edge, reasons, seen: std::mem::take(&mut seen) };
    for router in &mut routers {
        while !router.goes_away {
            router.step().await;
        }
        table.row(router, (batch(999, &["d"]), (RejectCode::Unavailable, ""), 2_000..=2_000)).await;
    }
    let all = (1..).map_while(|number| RejectCode::try_from(number).ok());
    let missing: Vec<RejectCode> = all.filter(|code| !table.seen.contains(code)).collect();
    assert!(missing.is_empty(), "nothing provokes {missing:?}");
    drop((device, routers));
    assert!(edge.ended().await.success());
}
