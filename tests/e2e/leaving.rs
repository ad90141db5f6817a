//! SIGTERM: not ready, goodbyes, everything durable, exit 0.

use mooring::pki::DEV_APP;
use mooring::wire::pb::device::GoAwayReason;
use mooring::wire::pb::router::RejectCode;
use rustix::process::{Pid, Signal, kill_process};

use super::device::is_closed;
use super::edge::{Edge, LOOK, NEVER, Way};
use super::router::{End, batch};

#[tokio::test]
async fn a_graceful_leave_says_goodbye_keeps_everything_and_exits_0() {
    let settings = [("leave.drain_lead_ms", "1500"), ("leave.window_ms", "300")];
    let mut edge = Edge::start_with(&settings).await;
    edge.register(&["offline"]).await;
    let mut router = edge.router().await;
    let mut tls = edge.device(Way::Tls, "tls").await;
    let mut plain = edge.device(Way::Plain, "plain").await;
    router.push(1, &["tls", "plain", "offline"]).await;
    assert_eq!(tls.push().await.message_id, 1);
    plain.takes(1).await;
    assert_eq!(edge.get("/readyz").await.status, 200);
    edge.terminate();
    let not_ready = async {
        while edge.get("/readyz").await.status != 503 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(NEVER, not_ready).await.expect("not ready");
    assert_eq!(edge.get("/healthz").await.status, 200);
    // Balancers take a while to notice: who still comes is served.
    let mut late = edge.device(Way::Tls, "late").await;
    late.has_nothing().await;
    for device in [&mut tls, &mut plain, &mut late] {
        assert_eq!(device.goes_away().await, GoAwayReason::Leaving);
        is_closed(&mut device.link).await;
    }
    while !router.goes_away {
        router.step().await;
    }
    let refused = router.rejects(batch(9, &["offline"]), RejectCode::Unavailable, "").await;
    assert!(refused.retry_after_milliseconds > 0);
    // The devices' side of closing: the edge waits for it, for a while.
    drop((tls, plain, late));
    assert_eq!(router.end("b-1", 1).await, End::Arrived);
    loop {
        match router.receiver.recv(60).await {
            Ok(_) => {}
            Err(mooring::client::ClientError::Closed) => break,
            Err(error) => panic!("an orderly end was expected, not {error}"),
        }
    }
    drop(router);
    let status = edge.ended().await;
    assert_eq!(status.code(), Some(0), "{}", edge.log());
    edge.run().await;
    assert_eq!(edge.totals().await["pending"], 2);
    let mut router = edge.router().await;
    for id in ["tls", "offline"] {
        edge.device(Way::Tls, id).await.takes(1).await;
    }
    assert_eq!(router.end("b-1", 0).await, End::Arrived);
    assert_eq!(router.end("b-1", 2).await, End::Arrived);
    edge.device(Way::Plain, "plain").await.has_nothing().await;
    assert_eq!(edge.totals().await["arrived"], 3);
}

#[tokio::test]
async fn who_does_not_close_after_goodbye_cannot_hold_the_process_beyond_its_deadline() {
    let settings = [("leave.window_ms", "50"), ("leave.deadline_ms", "400")];
    let mut edge = Edge::start_with(&settings).await;
    let mut router = edge.router().await;
    let device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    edge.terminate();
    let status = edge.ended().await;
    assert_eq!(status.code(), Some(1));
    assert!(edge.log().contains("leave.deadline_ms"), "{}", edge.log());
    drop((device, router));
    edge.run().await;
    edge.device(Way::Tls, "d").await.takes(1).await;
}

#[tokio::test]
async fn a_router_that_stays_does_not_make_the_edge_leave_late() {
    let settings = [("leave.drain_lead_ms", "0"), ("leave.window_ms", "0"), ("leave.deadline_ms", "1_500")];
    let mut edge = Edge::start_with(&settings).await;
    edge.register(&["offline"]).await;
    let mut router = edge.router().await;
    router.push(1, &["offline"]).await;
    edge.terminate();
    // It neither reads nor closes: the edge has time for that, but not more than its deadline.
    let status = edge.ended().await;
    assert!(status.success(), "{status}: {}", edge.log());
    drop(router);
}

#[tokio::test]
async fn a_device_of_the_command_line_says_on_sigterm_what_it_counted() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let port = edge.ports.plain.expect("a port");
    let line = format!(
        "device --transport tcp --address 127.0.0.1:{port} --app {DEV_APP} --register --device phone --state DIR/phones --json"
    );
    let device = edge.cli_command(&line).stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    let kept = edge.dir.path().join("phones").join(DEV_APP).join("phone.json");
    let look = async {
        loop {
            let kept: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&kept).unwrap_or_default()).unwrap_or_default();
            if let Some(id) = kept["device_id"].as_str().filter(|id| !id.is_empty()) {
                return id.to_owned();
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let id = tokio::time::timeout(NEVER, look).await.expect("it registers");
    router.push(1, &[&id]).await;
    assert_eq!(router.end("b-1", 0).await, End::Arrived);
    let pid = device.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
    kill_process(pid, Signal::TERM).expect("it is there");
    let output =
        tokio::time::timeout(NEVER, device.wait_with_output()).await.expect("it ends").expect("an end");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("text");
    let last: serde_json::Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["event"], &last["tally"]["received"]), (&"tally".into(), &1.into()), "{said}");
}
