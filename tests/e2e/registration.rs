//! Registration and credentials: one installation is one device, whatever breaks in between.

use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{Attributes, Hello, Register, hello};

use super::device::hello_with;
use super::edge::{Edge, Way};

/// A Hello that registers this installation.
fn registering(app: &str, secret: u8, token: &str) -> Hello {
    let register = Register { install_secret: vec![secret; 16], token: token.into() };
    let attributes = Attributes { brand: "vivo".into(), app_version: "5.20".into(), ..Attributes::default() };
    Hello {
        app_key: app.into(),
        identity: Some(hello::Identity::Register(register)),
        attributes: Some(attributes),
        ..Hello::default()
    }
}

#[tokio::test]
async fn a_device_registers_gets_the_same_again_and_logs_in_with_it() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut ids = Vec::new();
    for way in Way::BOTH {
        let first = edge.device_saying(way, registering(DEV_APP, 1, "")).await;
        let (id, credential) = (first.welcome.device_id.clone(), first.welcome.credential.clone());
        let again = edge.device_saying(way, registering(DEV_APP, 1, "")).await;
        assert_eq!((&again.welcome.device_id, &again.welcome.credential), (&id, &credential));
        let mut device = edge.device_saying(way, hello_with(DEV_APP, &id, credential)).await;
        assert!(device.welcome.device_id.is_empty() && device.welcome.credential.is_empty());
        let message = 1 + ids.len() as u64;
        router.push(message, &[&id]).await;
        device.takes(message).await;
        ids.push(id);
    }
    assert_eq!(ids[0], ids[1], "the way makes no difference");
    edge.counted("mooring_registrations_total{result=\"ok\"}", 4.0).await;
    edge.metric_comes_to("mooring_devices", |devices| devices == 1.0).await;
}
