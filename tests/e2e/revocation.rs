//! Revocation of one device's credentials: at once, durably, and of no other device.

use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{ErrorCode, Hello, to_edge};

use super::device::{Device, hello_of, hello_with, is_refused};
use super::edge::{APP_OF_EPOCH_3, Edge, LOOK, NEVER, Way};
use super::registration::registering;

const INSTALL: [u8; 16] = [9; 16];

async fn refused(edge: &Edge, hello: &Hello) {
    let mut link = edge.connect(Way::Plain).await;
    link.send(to_edge::Frame::Hello(hello.clone())).await.expect("sent");
    is_refused(&mut link, ErrorCode::Unauthenticated).await;
}

#[tokio::test]
async fn a_revoked_device_is_out_at_once_and_stays_out_over_a_kill_until_it_may_register() {
    let mut edge = Edge::start().await;
    let register = registering(DEV_APP, INSTALL, "");
    let id = edge.registered_id(DEV_APP, INSTALL);
    for way in Way::ALL {
        let mut device = edge.device_saying(way, register.clone()).await;
        let login = hello_with(DEV_APP, &id, device.welcome.credential.clone());
        let mut neighbour = edge.device(way, "neighbour").await;
        let namesake = hello_with(APP_OF_EPOCH_3, &id, edge.credential(APP_OF_EPOCH_3, &id, 3));
        let mut namesake = edge.device_saying(way, namesake).await;

        let said = edge.cli(&format!("keys revoke {DEV_APP} {id} --data-dir DIR/data --json")).await;
        assert!(said.contains("\"registration\":\"locked\"") && said.contains("\"known\":true"), "{said}");
        is_refused(&mut device.link, ErrorCode::Unauthenticated).await;
        for hello in [&login, &register] {
            refused(&edge, hello).await;
        }
        neighbour.has_nothing().await;
        namesake.has_nothing().await;
        edge.kill().await;
        edge.run().await;
        for hello in [&login, &register] {
            refused(&edge, hello).await;
        }
        let known = edge.ask(&format!("/v1/device/{DEV_APP}/{id}")).await;
        assert_eq!(known["revoked"]["registration"], "locked");

        // Let in again: with a new credential, and only with that.
        edge.cli(&format!("keys revoke {DEV_APP} {id} --allow-registration --data-dir DIR/data")).await;
        refused(&edge, &login).await;
        let welcome = edge.device_saying(way, register.clone()).await.welcome;
        let epoch =
            edge.ask(&format!("/v1/device/{DEV_APP}/{id}")).await["revoked"]["credentials_before_epoch"]
                .as_u64()
                .expect("an epoch");
        assert_eq!(welcome.credential, edge.credential(DEV_APP, &id, epoch as u32));
        refused(&edge, &login).await;
        edge.kill().await;
        edge.run().await;
        let login = hello_with(DEV_APP, &id, welcome.credential);
        assert!(edge.device_saying(way, login).await.welcome.credential.is_empty(), "nothing to renew");
    }
    edge.device(Way::Tls, "neighbour").await;
}

#[tokio::test]
async fn a_revoked_session_is_counted_and_its_messages_wait() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    edge.cli(&format!("keys revoke {DEV_APP} d --allow-registration --data-dir DIR/data")).await;
    is_refused(&mut device.link, ErrorCode::Unauthenticated).await;
    edge.counted("mooring_session_ends_total{reason=\"revoked\"}", 1.0).await;
    router.push(1, &["d"]).await;
    refused(&edge, &hello_of(&edge, "d")).await;
    // An issuer may make a credential of the epoch that the edge named.
    let hello = hello_with(DEV_APP, "d", edge.credential(DEV_APP, "d", 2));
    Device::over(edge.connect(Way::Tls).await, hello).await.takes(1).await;
}

#[tokio::test]
async fn revoking_needs_the_token_and_an_app_of_this_edge() {
    let edge = Edge::start().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let port = edge.ports.admin;
    let refused = async |line: String, says: &str| {
        let output = edge.cli_command(&line).output().await.expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(says), "{line}: {error}");
    };
    refused(format!("keys revoke {DEV_APP} d --admin 127.0.0.1:{port}"), "admin token").await;
    std::fs::write(edge.dir.path().join("wrong.token"), "0123456789abcdef").expect("written");
    let wrong = format!("keys revoke {DEV_APP} d --admin 127.0.0.1:{port} --token-file DIR/wrong.token");
    refused(wrong, "admin.token").await;
    refused("keys revoke nobody d --data-dir DIR/data".into(), "not an app of this edge").await;
    device.has_nothing().await;
    // One that was never seen can be revoked before it comes, and the answer says so.
    let said = edge.cli(&format!("keys revoke {DEV_APP} never --data-dir DIR/data")).await;
    assert!(said.contains("never seen"), "{said}");
    self::refused(&edge, &hello_of(&edge, "never")).await;
    device.has_nothing().await;
}

#[tokio::test]
async fn a_device_whose_credential_is_revoked_registers_again_by_itself() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let port = edge.ports.plain.expect("a port");
    let line = format!(
        "device --transport tcp --fast --address 127.0.0.1:{port} --app {DEV_APP} --register --device phone \
         --state DIR/phones --messages 1 --json"
    );
    let kept = edge.dir.path().join("phones").join(DEV_APP).join("phone.json");
    let device = edge.cli_command(&line).stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    let keeps = async |before: &str| {
        let look = async {
            loop {
                let text = std::fs::read(&kept).unwrap_or_default();
                let kept: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                let word = |name: &str| kept[name].as_str().unwrap_or_default().to_owned();
                let (id, credential) = (word("device_id"), word("credential"));
                if !credential.is_empty() && credential != before {
                    return (id, credential);
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(NEVER, look).await.expect("it registers")
    };
    let (id, first) = keeps("").await;
    edge.cli(&format!("keys revoke {DEV_APP} {id} --allow-registration --data-dir DIR/data")).await;
    let (same, second) = keeps(&first).await;
    assert_eq!((&same, second != first), (&id, true));
    router.push(1, &[&id]).await;
    let output = tokio::time::timeout(NEVER, device.wait_with_output()).await.expect("it ends");
    assert!(output.expect("an end").status.success());

    // Locked out it stops, and says why.
    edge.cli(&format!("keys revoke {DEV_APP} {id} --data-dir DIR/data")).await;
    let output = tokio::time::timeout(NEVER, edge.cli_command(&line).output()).await.expect("it ends");
    let output = output.expect("an end");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("unauthenticated"));
}
