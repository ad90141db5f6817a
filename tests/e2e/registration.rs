//! Registration: one installation is one device, whatever breaks in between, and only who may gets in.

use mooring::client::Transport;
use mooring::client::device::Link;
use mooring::credential::InstallSecret;
use mooring::pki::DEV_APP;
use mooring::token::{Audience, Claims, SigningKey, bound_to};
use mooring::wire::frame::{device_frame, put_device_frame};
use mooring::wire::pb::device::{
    Attributes, ErrorCode, Hello, PushState, Register, ToEdge, Welcome, hello, to_edge,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::device::{Device, hello_with, is_refused};
use super::edge::{APP_CLOSED, APP_OF_EPOCH_3, APP_SLOW, APP_WITH_TOKENS, Edge, LOOK, NEVER, Way};

/// A Hello that registers this installation.
pub(crate) fn registering(app: &str, install_secret: [u8; 16], token: &str) -> Hello {
    let register = Register { install_secret: install_secret.into(), token: token.into() };
    let attributes = Attributes { brand: "vivo".into(), app_version: "5.20".into(), ..Attributes::default() };
    Hello {
        app_key: app.into(),
        identity: Some(hello::Identity::Register(register)),
        attributes: Some(attributes),
        ..Hello::default()
    }
}

/// The n-th installation.
pub(crate) fn install(n: usize) -> [u8; 16] {
    (n as u128 + 1).to_be_bytes()
}

/// Registers, and gets exactly one reply.
pub(crate) async fn registers(edge: &Edge, way: Way, hello: Hello) -> Welcome {
    let mut device = edge.device_saying(way, hello).await;
    device.has_nothing().await;
    assert!(!device.welcome.device_id.is_empty() && !device.welcome.credential.is_empty());
    device.welcome
}

async fn refused(edge: &Edge, hello: Hello, code: ErrorCode) -> mooring::wire::pb::device::Error {
    let mut link = edge.connect(Way::Plain).await;
    link.send(to_edge::Frame::Hello(hello)).await.expect("sent");
    is_refused(&mut link, code).await
}

/// Waits until the edge counts so many devices.
pub(crate) async fn devices_are(edge: &Edge, count: usize) {
    edge.metric_comes_to("mooring_devices", |devices| (devices - count as f64).abs() < 0.5).await;
}

#[tokio::test]
async fn a_device_registers_gets_the_same_again_and_logs_in_with_it() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let id = edge.registered_id(DEV_APP, install(0));
    for (n, way) in (1..).zip(Way::ALL) {
        let mut hello = registering(DEV_APP, install(0), "");
        hello.attributes.as_mut().expect("attributes").push = PushState::On.into();
        let first = registers(&edge, way, hello.clone()).await;
        assert_eq!(first.device_id, id, "the way makes no difference");
        let again = registers(&edge, way, hello).await;
        assert_eq!((&again.device_id, &again.credential), (&id, &first.credential));
        let mut device = edge.device_saying(way, hello_with(DEV_APP, &id, first.credential)).await;
        assert!(device.welcome.device_id.is_empty() && device.welcome.credential.is_empty());
        router.push(n, &[&id]).await;
        device.takes(n).await;
    }
    edge.counted("mooring_registrations_total{result=\"ok\"}", 2.0 * Way::ALL.len() as f64).await;
    devices_are(&edge, 1).await;
    assert_eq!(edge.ask(&format!("/v1/device/{DEV_APP}/{id}")).await["attributes"]["brand"], "vivo");
    let other = registers(&edge, Way::Tls, registering(APP_OF_EPOCH_3, install(0), "")).await;
    assert_ne!(other.device_id, id, "another app's device is another one");
    assert_eq!(other.credential, edge.credential(APP_OF_EPOCH_3, &other.device_id, 3), "of its app's epoch");
    devices_are(&edge, 2).await;
}

#[tokio::test]
async fn a_device_that_registers_with_its_switch_off_is_known_so() {
    let edge = Edge::start().await;
    let mut hello = registering(DEV_APP, install(0), "");
    hello.attributes.as_mut().expect("attributes").push = PushState::Off.into();
    let id = registers(&edge, Way::Tls, hello).await.device_id;
    let known = edge.ask(&format!("/v1/device/{DEV_APP}/{id}")).await;
    assert_eq!((&known["known"], &known["push_on"]), (&true.into(), &false.into()));
}

/// A plain connection beneath any frames.
async fn raw(edge: &Edge) -> TcpStream {
    let endpoint = edge.device_endpoint(Way::Plain);
    assert!(matches!(endpoint.transport, Transport::Plain));
    TcpStream::connect(&*endpoint.address).await.expect("connected")
}

pub(crate) fn bytes_of(hello: Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_device_frame(&mut bytes, &ToEdge { frame: Some(to_edge::Frame::Hello(hello)) });
    bytes
}

#[tokio::test]
async fn a_link_cut_at_each_byte_to_the_edge_leaves_one_device_with_one_id() {
    let edge = Edge::start().await;
    let length = bytes_of(registering(DEV_APP, install(0), "")).len();
    for cut in 0..=length {
        // An installation of its own each time, so that every registration is a first one.
        let hello = registering(DEV_APP, install(cut), "");
        let mut stream = raw(&edge).await;
        stream.write_all(&bytes_of(hello.clone())[..cut]).await.expect("written");
        drop(stream);
        let welcome = registers(&edge, Way::Plain, hello.clone()).await;
        assert_eq!(welcome.device_id, edge.registered_id(DEV_APP, install(cut)), "cut after {cut} bytes");
        assert_eq!(registers(&edge, Way::Plain, hello).await.device_id, welcome.device_id);
    }
    devices_are(&edge, length + 1).await;
}

#[tokio::test]
async fn a_link_cut_at_each_byte_to_the_device_leaves_one_device_with_one_id() {
    let edge = Edge::start().await;
    let mut length = usize::MAX;
    let mut cut = 0;
    while cut <= length {
        let hello = registering(DEV_APP, install(cut), "");
        let mut stream = raw(&edge).await;
        stream.write_all(&bytes_of(hello.clone())).await.expect("written");
        let mut got = vec![0; cut];
        let read = tokio::time::timeout(NEVER, stream.read_exact(&mut got)).await;
        read.expect("the edge writes").expect("so many bytes");
        if let Some((head, body)) = device_frame(&got).expect("a frame") {
            length = head + body;
        }
        drop(stream);
        let welcome = registers(&edge, Way::Plain, hello.clone()).await;
        assert_eq!(welcome.device_id, edge.registered_id(DEV_APP, install(cut)), "cut after {cut} bytes");
        assert_eq!(registers(&edge, Way::Plain, hello).await.credential, welcome.credential);
        cut += 1;
    }
    assert!(length > 60, "a Welcome has an id and a credential: {length} bytes");
    devices_are(&edge, length + 1).await;
}

#[tokio::test]
async fn a_kill_between_hello_and_welcome_leaves_one_device_that_can_register_again() {
    let mut edge = Edge::start().await;
    for round in 0..3 {
        let hello = registering(DEV_APP, install(round), "");
        let mut stream = raw(&edge).await;
        stream.write_all(&bytes_of(hello.clone())).await.expect("written");
        if round > 0 {
            // What a Welcome says is durable; in the first round nobody knows how far it came.
            stream.read_u8().await.expect("a byte of the Welcome");
        }
        edge.kill().await;
        edge.run().await;
        let id = edge.registered_id(DEV_APP, install(round));
        if round > 0 {
            assert_eq!(edge.ask(&format!("/v1/device/{DEV_APP}/{id}")).await["known"], true);
        }
        assert_eq!(registers(&edge, Way::Tls, hello).await.device_id, id);
        devices_are(&edge, round + 1).await;
    }
}

#[tokio::test]
async fn tokens_let_in_who_has_one_and_nobody_else() {
    let edge = Edge::start().await;
    let hmac = SigningKey::load(&edge.dev.app_secret).expect("a secret");
    let ed25519 = SigningKey::load(&edge.dir.path().join("token.key")).expect("a key");
    let now = mooring::clock::Clock::new(0).now() as f64 / 1e3;
    let aud = Audience::One(APP_WITH_TOKENS.into());
    let claims = Claims { aud, exp: now + 300.0, iat: Some(now), nbf: None, sub: None };
    let this = InstallSecret::from_bytes(&install(0)).expect("16 bytes");
    let bound = Claims { sub: Some(bound_to(&this)), ..claims.clone() };
    for key in [&hmac, &ed25519] {
        for claims in [&claims, &bound] {
            let token = key.sign(claims).expect("signed");
            registers(&edge, Way::Tls, registering(APP_WITH_TOKENS, install(0), &token)).await;
        }
    }
    let expired = Claims { exp: now - 120.0, iat: Some(now - 400.0), ..claims.clone() };
    let other_app = Claims { aud: Audience::One(DEV_APP.into()), ..claims.clone() };
    let other_key = SigningKey::Hmac(vec![7; 32]);
    // The header says that there is no signature, and there is none.
    let token = hmac.sign(&claims).expect("signed");
    let payload = token.split('.').nth(1).expect("claims");
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let bad = [
        ("no token", String::new()),
        ("malformed token", unsigned),
        ("malformed token", "x".repeat(4_096)),
        ("wrong signature", other_key.sign(&claims).expect("signed")),
        ("the token has expired", hmac.sign(&expired).expect("signed")),
    ];
    let worse = [
        ("not this app", ed25519.sign(&other_app).expect("signed")),
        ("over `token_max_s`", hmac.sign(&Claims { exp: now + 7_200.0, ..claims.clone() }).expect("signed")),
        ("another install secret", hmac.sign(&bound).expect("signed")),
    ];
    let mut told = Vec::new();
    for (n, (_, token)) in bad.iter().chain(&worse).enumerate() {
        if n == bad.len() {
            // The log has a few lines a second.
            tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        }
        let hello = registering(APP_WITH_TOKENS, install(1), token);
        told.push(refused(&edge, hello, ErrorCode::Unauthenticated).await);
    }
    assert!(told.iter().all(|error| *error == told[0]), "{told:?}");
    for (reason, _) in bad.iter().chain(&worse) {
        assert!(edge.log().contains(reason), "the log says: {reason}");
    }
    let count = told.len() as f64;
    edge.counted("mooring_registrations_total{result=\"unauthenticated\"}", count).await;
    devices_are(&edge, 1).await;
    // Who has a credential needs no token.
    let credential = edge.credential(APP_WITH_TOKENS, "d", 1);
    edge.device_saying(Way::Tls, hello_with(APP_WITH_TOKENS, "d", credential)).await;
}

#[tokio::test]
async fn where_registration_is_off_credentials_still_count() {
    let edge = Edge::start().await;
    refused(&edge, registering(APP_CLOSED, install(0), ""), ErrorCode::RegistrationClosed).await;
    edge.counted("mooring_registrations_total{result=\"closed\"}", 1.0).await;
    edge.counted("mooring_handshakes_total{result=\"registration_closed\"}", 1.0).await;
    edge.device_saying(Way::Tls, hello_with(APP_CLOSED, "d", edge.credential(APP_CLOSED, "d", 1))).await;
}

#[tokio::test]
async fn registrations_beyond_the_rate_come_back_later_and_logins_do_not_notice() {
    let edge = Edge::start().await;
    let said = |n| registering(APP_SLOW, install(n), "");
    // One a second: two of so many at once are beyond it.
    let mut beyond = 0;
    for n in 0.. {
        let mut link = edge.connect(Way::Plain).await;
        match link.hello(said(n)).await {
            Ok(_) => {}
            Err(mooring::client::ClientError::Refused { code, retry_after_milliseconds, .. }) => {
                assert_eq!(code, ErrorCode::ResourceExhausted);
                assert!(retry_after_milliseconds > 0);
                beyond += 1;
            }
            Err(other) => panic!("{other}"),
        }
        if beyond == 2 {
            break;
        }
    }
    edge.counted("mooring_registrations_total{result=\"exhausted\"}", 2.0).await;
    for _ in 0..3 {
        edge.device_saying(Way::Plain, hello_with(APP_SLOW, "d", edge.credential(APP_SLOW, "d", 1))).await;
    }
    registers(&edge, Way::Plain, registering(DEV_APP, install(0), "")).await;
}

#[tokio::test]
async fn an_install_secret_that_can_not_be_is_malformed() {
    let edge = Edge::start().await;
    for secret in [vec![], vec![7; 15], vec![7; 17], vec![0; 16]] {
        let mut hello = registering(DEV_APP, install(0), "");
        hello.identity =
            Some(hello::Identity::Register(Register { install_secret: secret, token: Vec::new() }));
        refused(&edge, hello, ErrorCode::Malformed).await;
    }
}

#[tokio::test]
async fn a_fleet_with_a_wrong_credential_does_not_fill_the_log() {
    let edge = Edge::start().await;
    let wrong = hello_with(DEV_APP, "d", edge.credential(DEV_APP, "another", 1));
    let said = || edge.log().lines().filter(|line| line.contains("suppressed=")).count();
    let mut sent = 0;
    while sent <= said() {
        let mut links: Vec<Link> = Vec::new();
        for _ in 0..40 {
            let mut link = edge.connect(Way::Plain).await;
            link.send(to_edge::Frame::Hello(wrong.clone())).await.expect("sent");
            links.push(link);
            sent += 1;
        }
        for link in &mut links {
            is_refused(link, ErrorCode::Unauthenticated).await;
        }
    }
    // The next line says how many there were between.
    let look = async {
        while !edge.log().lines().any(|line| line.contains("suppressed=") && !line.contains("suppressed=0")) {
            refused(&edge, wrong.clone(), ErrorCode::Unauthenticated).await;
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(NEVER, look).await.expect("a line with the count");
}

#[tokio::test]
async fn the_command_line_registers_keeps_its_identity_and_comes_back_as_the_same_device() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let token = edge.cli(&format!("keys token --app {APP_WITH_TOKENS} --key DIR/token.key")).await;
    std::fs::write(edge.dir.path().join("phone.token"), token).expect("written");
    let port = edge.ports.plain.expect("a port");
    let line = format!(
        "device --transport tcp --address 127.0.0.1:{port} --app {APP_WITH_TOKENS} --register --device phone \
         --state DIR/phones --token DIR/phone.token --messages 1 --json"
    );
    let kept = edge.dir.path().join("phones").join(APP_WITH_TOKENS).join("phone.json");
    for message in 1..=2 {
        let device = edge.cli_command(&line).stdout(std::process::Stdio::piped()).spawn().expect("it runs");
        let look = async {
            loop {
                let text = std::fs::read(&kept).unwrap_or_default();
                let kept: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                if let Some(id) = kept["device_id"].as_str().filter(|id| !id.is_empty()) {
                    return id.to_owned();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let id = tokio::time::timeout(NEVER, look).await.expect("it registers");
        let mut batch = super::router::batch(message, &[&id]);
        batch.app_key = APP_WITH_TOKENS.into();
        router.accepts(batch, 1).await;
        let output = tokio::time::timeout(NEVER, device.wait_with_output()).await.expect("it ends");
        let output = output.expect("an end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("\"title {message}\"")));
        // The second time it needs no token: it has a credential.
        std::fs::remove_file(edge.dir.path().join("phone.token")).ok();
    }
    devices_are(&edge, 1).await;
}

#[tokio::test]
async fn the_same_device_id_under_two_apps_is_two_devices() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut one = edge.device(Way::Tls, "d").await;
    let hello = hello_with(APP_OF_EPOCH_3, "d", edge.credential(APP_OF_EPOCH_3, "d", 3));
    let mut other = Device::over(edge.connect(Way::Plain).await, hello).await;
    router.push(1, &["d"]).await;
    one.takes(1).await;
    other.has_nothing().await;
    let mut batch = super::router::batch(2, &["d"]);
    batch.app_key = APP_OF_EPOCH_3.into();
    router.accepts(batch, 1).await;
    other.takes(2).await;
    one.has_nothing().await;
    devices_are(&edge, 2).await;
}
