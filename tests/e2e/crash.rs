//! kill -9, restarts, and data directories that can't be used.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use futures_util::future::join_all;
use mooring::wire::pb::router::{BatchAccepted, ReceiptEvent};

use super::edge::{Edge, Way};
use super::router::{End, batch};

#[tokio::test]
async fn a_kill_between_accept_and_arrive_loses_nothing_and_ends_once() {
    let mut edge = Edge::start().await;
    edge.register(&["offline"]).await;
    let mut router = edge.router().await;
    let mut tls = edge.device(Way::Tls, "tls").await;
    let mut plain = edge.device(Way::Plain, "plain").await;
    router.push(1, &["tls", "plain", "offline"]).await;
    // One has it, unacknowledged; one acknowledged without seeing the confirmation; one was never there.
    assert_eq!(tls.push().await.message_id, 1);
    assert_eq!(plain.push().await.message_id, 1);
    plain.say(&[(1, mooring::wire::pb::device::EventType::Arrive)]).await;
    edge.kill().await;
    drop((tls, plain, router));
    edge.run().await;
    assert!(edge.device(Way::Tls, "tls").await.takes(1).await.redelivered);
    assert!(edge.device(Way::Tls, "offline").await.takes(1).await.redelivered);
    let mut plain = edge.device(Way::Plain, "plain").await;
    plain.arrive(1).await;
    let mut router = edge.router_from_the_oldest().await;
    for ordinal in 0..3 {
        assert_eq!(router.end("b-1", ordinal).await, End::Arrived);
    }
    router.push(2, &["plain"]).await;
    let last = loop {
        let push = plain.push().await;
        plain.arrive(push.message_id).await;
        if push.message_id == 2 {
            break push;
        }
    };
    assert!(!last.redelivered);
    assert_eq!(router.end("b-2", 0).await, End::Arrived);
    for ordinal in 0..3 {
        assert_eq!(router.end("b-1", ordinal).await, End::Arrived, "still one");
    }
    for device in ["tls", "plain", "offline"] {
        assert_eq!(router.count(1, device, ReceiptEvent::Arrive), 1);
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["accepted"], &totals["arrived"], &totals["late"]), (&4.into(), &4.into(), &0.into()));
}

#[tokio::test]
async fn a_restart_with_pending_for_many_devices_delivers_to_all_in_order() {
    const DEVICES: usize = 150;
    let mut edge = Edge::start().await;
    let ids: Vec<String> = (0..DEVICES).map(|n| format!("d-{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    join_all(ids.iter().map(|id| edge.device(Way::Plain, id))).await;
    let mut router = edge.router().await;
    for message in 1..=3 {
        router.push(message, &ids).await;
    }
    edge.kill().await;
    edge.run().await;
    let totals = edge.totals().await;
    assert_eq!(totals["pending"], 3 * DEVICES);
    let mut router = edge.router_from_the_oldest().await;
    router.push(4, &ids).await;
    let edge_ref = &edge;
    join_all(ids.iter().enumerate().map(|(n, id)| async move {
        let mut device = edge_ref.device(Way::ALL[n % 3], id).await;
        for message in 1..=4 {
            assert_eq!(device.takes(message).await.redelivered, message < 4);
        }
    }))
    .await;
    for message in 1..=4 {
        for ordinal in 0..DEVICES as u32 {
            assert_eq!(router.end(&format!("b-{message}"), ordinal).await, End::Arrived);
        }
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["pending"]), (&(4 * DEVICES).into(), &0.into()));
}

#[tokio::test]
async fn a_batch_repeated_after_a_crash_gets_the_same_answer_and_is_delivered_once() {
    let mut edge = Edge::start().await;
    edge.register(&["d", "e"]).await;
    let mut router = edge.router().await;
    let known = batch(1, &["d", "unknown"]);
    let first = router.accepts(known.clone(), 1).await;
    assert!(!first.repeated);
    // This one's answer is never seen: it is durable, or it isn't.
    let lost = batch(2, &["e"]);
    router.send(lost.clone()).await;
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router_from_the_oldest().await;
    for _ in 0..2 {
        let again = router.accepts(known.clone(), 1).await;
        assert!(again.repeated);
        assert_eq!(BatchAccepted { repeated: false, ..again }, first);
    }
    router.accepts(lost.clone(), 1).await;
    assert!(router.accepts(lost, 1).await.repeated);
    for (device_id, message) in [("d", 1), ("e", 2)] {
        let mut device = edge.device(Way::Tls, device_id).await;
        device.takes(message).await;
        device.has_nothing().await;
    }
    assert!(router.accepts(known, 1).await.repeated, "even when it has ended");
    assert_eq!(router.end("b-1", 0).await, End::Arrived);
    assert_eq!(router.end("b-2", 0).await, End::Arrived);
    let totals = edge.totals().await;
    assert_eq!((&totals["accepted"], &totals["batches"]), (&2.into(), &2.into()));
}

#[tokio::test]
async fn kills_at_any_moment_lose_nothing_that_was_accepted_or_confirmed() {
    let mut edge = Edge::start().await;
    edge.register(&["d"]).await;
    let mut message = 0;
    let mut accepted = Vec::new();
    let mut confirmed = Vec::new();
    for round in 0..4 {
        let mut router = edge.router().await;
        let mut device = edge.device(Way::ALL[round % 3], "d").await;
        // Accepting and acknowledging go on until the kill cuts in somewhere.
        for _ in 0..20 {
            message += 1;
            router.send(batch(message, &["d"])).await;
        }
        for n in message - 19..=message - round as u64 {
            router.answer(&format!("b-{n}")).await.expect("accepted");
            accepted.push(n);
        }
        for _ in 0..7 {
            let push = device.push().await;
            device.arrive(push.message_id).await;
            confirmed.push(push.message_id);
        }
        device.push().await;
        edge.kill().await;
        edge.run().await;
        edge.totals().await;
    }
    let mut device = edge.device(Way::Tls, "d").await;
    let left: Vec<u64> = accepted.iter().copied().filter(|m| !confirmed.contains(m)).collect();
    let mut got = Vec::new();
    while !left.iter().all(|m| got.contains(m)) {
        let push = device.push().await;
        device.arrive(push.message_id).await;
        got.push(push.message_id);
    }
    assert!(got.is_sorted(), "in order of acceptance: {got:?}");
    assert!(got.iter().all(|m| !confirmed.contains(m)), "what was confirmed never comes again");
    let mut router = edge.router_from_the_oldest().await;
    for message in accepted {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    edge.totals().await;
}

/// Every file of a directory with its content.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry"));
    files
        .map(|file| {
            let name = file.file_name().into_string().expect("a name");
            (name, std::fs::read(file.path()).expect("readable"))
        })
        .collect()
}

#[tokio::test]
async fn a_data_dir_of_a_newer_format_is_a_clear_error_and_nothing_is_touched() {
    let mut edge = Edge::start().await;
    edge.register(&["d"]).await;
    edge.kill().await;
    let format = edge.data_dir().join("format");
    let genuine = std::fs::read(&format).expect("a format file");
    let mut newer = genuine.clone();
    newer[8] = 9;
    std::fs::write(&format, &newer).expect("written");
    let before = content(&edge.data_dir());
    let output = edge.command().stderr(Stdio::piped()).output().await.expect("it ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("format 9") && said.contains(&edge.data_dir().display().to_string()), "{said}");
    assert_eq!(content(&edge.data_dir()), before);
    // Whoever comes with the right program finds everything.
    std::fs::write(&format, &genuine).expect("written");
    edge.run().await;
    edge.router().await.push(1, &["d"]).await;
}

#[tokio::test]
async fn a_data_dir_locked_by_another_process_is_a_clear_error_and_nothing_is_touched() {
    let edge = Edge::start().await;
    edge.register(&["d"]).await;
    let ports = std::fs::read(edge.data_dir().join("ports.json")).expect("ports");
    let output = edge.command().stderr(Stdio::piped()).output().await.expect("it ran");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    assert!(said.contains(&edge.data_dir().display().to_string()), "{said}");
    assert_eq!(std::fs::read(edge.data_dir().join("ports.json")).expect("ports"), ports);
    let mut device = edge.device(Way::Tls, "d").await;
    edge.router().await.push(1, &["d"]).await;
    device.takes(1).await;
}
