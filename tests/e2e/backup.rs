//! A backup of an edge that runs: it is held while its files are copied, under load. Whatever was answered before is in the copy.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::edge::{Edge, Way};
use super::restore::copy;
use super::router::batch;

const BATCHES: u64 = 400;

#[tokio::test]
async fn everything_that_was_accepted_or_confirmed_before_is_in_a_copy_of_an_edge_that_was_held() {
    let mut edge = Edge::start().await;
    edge.register(&["d-1", "away"]).await;
    let mut router = edge.router().await;
    let confirmed = Arc::new(Mutex::new(BTreeSet::new()));
    let mut device = edge.device(Way::Tls, "d-1").await;
    let noted = confirmed.clone();
    let takes = tokio::spawn(async move {
        for _ in 0..BATCHES {
            let message = device.push().await.message_id;
            device.arrive(message).await;
            noted.lock().expect("not poisoned").insert(message);
        }
    });
    for message in 1..=BATCHES {
        router.send(batch(message, &["d-1", "away"])).await;
    }
    router.answer(&format!("b-{}", BATCHES / 4)).await.expect("accepted");
    edge.pause().await;
    let answered = router.answers.len() as u64;
    let before = confirmed.lock().expect("not poisoned").clone();
    let backup = edge.dir.path().join("backup");
    copy(&edge.data_dir(), &backup);
    edge.resume();
    // Nobody noticed.
    router.answer(&format!("b-{BATCHES}")).await.expect("accepted");
    takes.await.expect("all came");
    edge.kill().await;

    std::fs::remove_dir_all(edge.data_dir()).expect("removed");
    std::fs::rename(&backup, edge.data_dir()).expect("put back");
    let check = edge.cli("store check DIR/data --config DIR/edge.toml --json").await;
    assert!(check.contains("\"whole\":true"), "{check}");
    edge.run().await;
    let accepted = edge.totals().await["accepted"].as_u64().expect("a number");
    assert!(accepted >= 2 * answered && answered < BATCHES, "{accepted} of {answered} batches");
    let mut away = edge.device(Way::Plain, "away").await;
    for message in 1..=accepted / 2 {
        away.takes(message).await;
    }
    let mut device = edge.device(Way::Tls, "d-1").await;
    while edge.totals().await["pending"] != 0 {
        let message = device.push().await.message_id;
        assert!(!before.contains(&message), "{message} was confirmed");
        device.arrive(message).await;
    }
}
