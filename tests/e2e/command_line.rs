//! What commands say and how they end where something isn't as it should be.

use std::process::Output;

use mooring::pki::DEV_APP;
use serde_json::Value;

use super::edge::{Edge, Way};

impl Edge {
    /// How a command ends that speaks to it as a router: exit code, standard output and error.
    async fn routes(&self, line: &str) -> (Option<i32>, String, String) {
        let flags = format!(
            "--address 127.0.0.1:{} --server-name localhost --ca DIR/pki/dev/ca.pem --certificate DIR/pki/dev/router.pem --key DIR/pki/dev/router.key --app {DEV_APP}",
            self.ports.router
        );
        ended(self.cli_command(&format!("{line} {flags}")).output().await.expect("it runs"))
    }
}

fn ended(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn who_gets_no_link_is_told_why() {
    let mut edge = Edge::start().await;
    edge.kill().await;
    for line in ["push --device d --title t --for 1", "revoke 7 --for 1", "presence --for 1"] {
        let (code, _, said) = edge.routes(line).await;
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains("refused"), "{line}: {said}");
    }
    let (_, out, _) = edge.routes("push --device d --title t --for 1 --json").await;
    let json: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["targets"], &json["unanswered_batches"]), (&1.into(), &1.into()));
}

#[tokio::test]
async fn only_its_own_message_counts_for_a_push_that_follows_the_stream() {
    let edge = Edge::start().await;
    let mut device = edge.device(Way::Plain, "d").await;
    let mut router = edge.router().await;
    router.push(1, &["d"]).await;
    device.takes(1).await;
    drop(router);
    let pushing = edge.routes("push --device d --title t --message-id 2 --follow-stream main --json");
    let ((code, out, said), _) = tokio::join!(pushing, device.takes(2));
    assert_eq!(code, Some(0), "{said}");
    let json: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["arrived"], &json["receipts"]["arrive"]), (&1.into(), &1.into()), "{json}");
}

#[tokio::test]
async fn what_is_unknown_is_an_error_with_json_too() {
    let edge = Edge::start().await;
    for line in ["query message 7", "query message 7 --json"] {
        let (code, _, said) = edge.routes(line).await;
        assert!(code == Some(1) && said.contains("no push record"), "{line}: {said}");
    }
    let admin = format!("--admin 127.0.0.1:{}", edge.ports.admin);
    for line in ["inspect stats nosuch", "inspect device nosuch d"] {
        let (code, _, said) =
            ended(edge.cli_command(&format!("{line} {admin}")).output().await.expect("it runs"));
        assert!(code == Some(1) && said.contains("not an app of this edge"), "{line}: {said}");
    }
}

#[tokio::test]
async fn a_directory_without_a_development_edge_is_named_with_what_to_do() {
    let edge = Edge::start().await;
    for line in ["push --dev DIR/none --device d --title t", "device --dev DIR/none --device d"] {
        let (code, _, said) = ended(edge.cli_command(line).output().await.expect("it runs"));
        assert!(code == Some(2) && said.contains("serve --dev --data-dir"), "{line}: {said}");
    }
}
