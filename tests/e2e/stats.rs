//! Daily statistics: each event counts once, also over a kill -9 and for messages whose push record left memory long ago.

use mooring::wire::pb::device::EventType;
use serde_json::Value;

use super::edge::{Edge, Way};
use super::router::batch;

/// A figure over all the days that were asked for: no test looks at the clock to see which day it is.
fn sum(stats: &Value, name: &str) -> u64 {
    let days = stats["days"].as_array().expect("days");
    let count = |day: &Value| match &day[name] {
        Value::Object(reasons) => reasons.values().filter_map(Value::as_u64).sum(),
        count => count.as_u64().expect("a count"),
    };
    days.iter().map(count).sum()
}

#[tokio::test]
async fn days_count_each_event_once_over_a_kill() {
    let mut edge = Edge::start().await;
    edge.register(&["away"]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.accepts(batch(1, &["d", "away", "unknown"]), 2).await;
    device.takes(1).await;
    router.push(2, &["d"]).await;
    device.takes(2).await;
    device.say(&[(1, EventType::Click)]).await;
    edge.totals_when(|totals| totals["clicked"] == 1).await;
    let before = edge.ask("/v1/stats/demo?days=2").await;
    let figures = |stats: &Value| {
        ["targets", "refused", "accepted", "arrived", "sent", "clicked", "registered"]
            .map(|name| sum(stats, name))
    };
    assert_eq!(figures(&before), [4, 1, 3, 2, 2, 1, 2], "{before}");
    assert!((2..=4).contains(&sum(&before, "active")), "{before}");
    edge.kill().await;
    edge.run().await;
    let after = edge.ask("/v1/stats/demo?days=2").await;
    assert_eq!(figures(&after), figures(&before), "{after}");
    let totals = edge.totals().await;
    assert_eq!((&totals["accepted"], &totals["clicked"]), (&3.into(), &1.into()));

    // A click on a message of before, said twice: read back from the tables, counted once.
    let mut device = edge.device(Way::Plain, "d").await;
    device.say(&[(2, EventType::Click), (2, EventType::Click)]).await;
    edge.totals_when(|totals| totals["clicked"] == 2).await;
    assert_eq!(sum(&edge.ask("/v1/stats/demo?days=2").await, "clicked"), 2);
    let answer = edge.get("/v1/stats/demo?days=many").await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert_eq!(edge.get("/v1/stats/other").await.status, 404, "not an app of this edge");
}
