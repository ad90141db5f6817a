//! What is told of devices, what they are bound to, and that a phone's next user sees nothing of the one before.

use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{
    Attributes, ErrorCode, PushState, PushSwitch, bind, to_device, to_edge, unbind,
};
use mooring::wire::pb::router::FailReason;
use serde_json::json;

use super::device::{Device, bind as bind_frame, hello_of, unbind as unbind_frame};
use super::edge::{Edge, Way};
use super::router::{End, batch, of_account};
use super::sessions::{large, narrow};

fn account(name: &str) -> bind::Binding {
    bind::Binding::Account(name.into())
}

#[tokio::test]
async fn each_event_of_a_device_comes_once_and_in_order_also_across_a_kill() {
    let mut edge = Edge::start().await;
    let mut device = edge.device(Way::Tls, "d").await;
    let attributes = Attributes { request_id: 1, brand: "OPPO".into(), ..Attributes::default() };
    let off = PushSwitch { request_id: 2, state: PushState::Off.into() };
    // Asked for all at once, answered in the order of asking.
    for request in [
        to_edge::Frame::Attributes(attributes),
        to_edge::Frame::PushSwitch(off),
        to_edge::Frame::PushSwitch(PushSwitch { request_id: 3, state: PushState::On.into() }),
        bind_frame(4, account("alice")),
        bind_frame(5, bind::Binding::Alias("a\n".into())),
        bind_frame(6, bind::Binding::Alias("x".into())),
        bind_frame(7, account("bob")),
        bind_frame(8, account("bob")),
        unbind_frame(9, unbind::Binding::Tag("never bound".into())),
        bind_frame(10, bind::Binding::Phone("13800000000".into())),
        unbind_frame(11, unbind::Binding::Phone(true)),
        bind_frame(12, bind::Binding::Tag("vip".into())),
    ] {
        device.ask(request).await;
    }
    for id in 1..=12 {
        let expected = if id == 5 { Err(ErrorCode::Invalid) } else { Ok(()) };
        assert_eq!(device.reply().await, (id, expected));
    }
    device.has_nothing().await;
    let expected = [
        "registered vivo",
        "attributes OPPO",
        "switch off",
        "switch on",
        "bound account alice",
        "bound alias x",
        "unbound account alice",
        "bound account bob",
        "bound phone 13800000000",
        "unbound phone 13800000000",
        "bound tag vip",
    ];
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router().await;
    assert_eq!(router.said_of("d", expected.len()).await, expected);
    let known = edge.ask(&format!("/v1/device/{DEV_APP}/d")).await;
    assert_eq!(known["bindings"], json!({"account": "bob", "aliases": ["x"], "tags": ["vip"]}));
    // Saying it again is no news.
    let mut device = edge.device(Way::Plain, "d").await;
    device.bind(account("bob")).await;
    device.bind(bind::Binding::Tag("vip".into())).await;
    device.unbind(unbind::Binding::Alias("x".into())).await;
    let said = router.said_of("d", expected.len() + 2).await;
    assert_eq!(said[expected.len()..], ["attributes vivo", "unbound alias x"]);
    let again: Vec<u64> = router.devices.iter().map(|(sequence, _)| *sequence).collect();
    assert!(again.is_sorted());
}

#[tokio::test]
async fn a_binding_cut_off_at_any_moment_is_made_once_and_answered_once_a_session() {
    let edge = Edge::start().await;
    for round in 0..6 {
        let mut device = edge.device(Way::BOTH[round % 2], "d").await;
        device.ask(bind_frame(1, account(&format!("user-{round}")))).await;
        // It goes, sooner or later, and says it again on its next session until it is answered.
        if round % 3 != 0 {
            device.link.close().await.expect("closed");
        } else {
            drop(device);
        }
        let mut device = edge.device(Way::BOTH[round % 2], "d").await;
        device.bind(account(&format!("user-{round}"))).await;
        device.has_nothing().await;
    }
    let mut router = edge.router().await;
    // The last repeats may still be on their way: what a marker follows is all there is.
    let mut device = edge.device(Way::Tls, "d").await;
    device.bind(bind::Binding::Tag("marker".into())).await;
    let expected: Vec<String> = (0..6)
        .flat_map(|round| {
            let gone = (round > 0).then(|| format!("unbound account user-{}", round - 1));
            gone.into_iter().chain([format!("bound account user-{round}")])
        })
        .collect();
    let said = router.said_of("d", expected.len() + 2).await;
    assert_eq!(said[1..=expected.len()], expected);
    assert_eq!(said[expected.len() + 1], "bound tag marker");
}

#[tokio::test]
async fn a_phones_next_user_sees_nothing_of_the_one_before_who_was_offline() {
    let mut edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.bind(account("alice")).await;
    device.leave(&edge, "d").await;
    router.accepts(of_account("alice", batch(1, &["d"])), 1).await;
    router.accepts(batch(2, &["d"]), 1).await;
    edge.kill().await;
    edge.run().await;
    let mut router = edge.router().await;
    // Alice's own message comes first as long as it is hers; whoever logs in before reading gets it too. So the app binds first.
    let mut device = edge.device(Way::Tls, "d").await;
    assert_eq!(device.push().await.message_id, 1);
    assert_eq!(device.push().await.message_id, 2);
    device.bind(account("bob")).await;
    assert_eq!(router.end("b-1", 0).await, End::Failed(FailReason::Unbound));
    device.leave(&edge, "d").await;
    router.accepts(of_account("bob", batch(3, &["d"])), 1).await;
    router.accepts(of_account("alice", batch(4, &["d"])), 1).await;
    assert_eq!(router.end("b-4", 0).await, End::Failed(FailReason::Unbound));
    let mut device = edge.device(Way::Plain, "d").await;
    device.takes(2).await;
    device.takes(3).await;
    device.has_nothing().await;
    edge.totals().await;
}

/// A device's window is full of what it doesn't acknowledge; behind that waits a message of its account.
async fn behind_a_full_window(edge: &Edge, way: Way) -> (Device, super::router::Router) {
    let mut router = edge.router().await;
    let mut device = edge.device(way, "d").await;
    device.bind(account("alice")).await;
    for message in 1..=32 {
        router.push(message, &["d"]).await;
        assert_eq!(device.push().await.message_id, message);
    }
    router.accepts(of_account("alice", batch(100, &["d"])), 1).await;
    router.accepts(batch(101, &["d"]), 1).await;
    (device, router)
}

#[tokio::test]
async fn a_phones_next_user_sees_nothing_of_the_one_before_who_was_connected() {
    let edge = Edge::start().await;
    let (mut device, mut router) = behind_a_full_window(&edge, Way::Tls).await;
    device.bind(account("bob")).await;
    assert_eq!(router.end("b-100", 0).await, End::Failed(FailReason::Unbound));
    router.accepts(of_account("alice", batch(102, &["d"])), 1).await;
    router.accepts(of_account("bob", batch(103, &["d"])), 1).await;
    for message in 1..=32 {
        device.arrive(message).await;
    }
    device.takes(101).await;
    device.takes(103).await;
    device.has_nothing().await;
    assert_eq!(router.end("b-102", 0).await, End::Failed(FailReason::Unbound));
    // Unbinding ends what waits too.
    device.leave(&edge, "d").await;
    router.accepts(of_account("bob", batch(104, &["d"])), 1).await;
    let mut device = edge.device(Way::Plain, "d").await;
    assert_eq!(device.push().await.message_id, 104);
    device.unbind(unbind::Binding::Account("bob".into())).await;
    assert_eq!(router.end("b-104", 0).await, End::Failed(FailReason::Unbound));
    let totals = edge.totals().await;
    assert_eq!((&totals["failed"]["unbound"], &totals["pending"]), (&3.into(), &0.into()));
}

#[tokio::test]
async fn a_reinstalled_app_gets_only_what_is_new() {
    let mut edge = Edge::start().await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.bind(account("alice")).await;
    device.bind(bind::Binding::Tag("vip".into())).await;
    router.push(1, &["d"]).await;
    assert_eq!(device.push().await.message_id, 1);
    device.leave(&edge, "d").await;
    router.accepts(of_account("alice", batch(2, &["d"])), 1).await;
    let mut hello = hello_of(&edge, "d");
    hello.state_lost = true;
    let mut device = edge.device_saying(Way::Tls, hello).await;
    router.push(3, &["d"]).await;
    device.takes(3).await;
    device.has_nothing().await;
    for old in ["b-1", "b-2"] {
        assert_eq!(router.end(old, 0).await, End::Failed(FailReason::Reinstalled));
    }
    assert_eq!(router.said_of("d", 4).await[3..], ["unbound account alice"]);
    router.accepts(of_account("alice", batch(4, &["d"])), 1).await;
    assert_eq!(router.end("b-4", 0).await, End::Failed(FailReason::Unbound));
    edge.kill().await;
    edge.run().await;
    let mut device = edge.device(Way::Plain, "d").await;
    device.has_nothing().await;
    let known = edge.ask(&format!("/v1/device/{DEV_APP}/d")).await;
    assert_eq!(known["bindings"], json!({"tags": ["vip"]}));
    edge.totals().await;
}

#[tokio::test]
async fn a_device_that_was_unseen_for_too_long_is_forgotten_and_may_come_back() {
    let settings = [("store.forget_after_s", "1"), ("store.max_devices", "2")];
    let mut edge = Edge::start_with(&settings).await;
    let mut router = edge.router().await;
    let mut there = edge.device(Way::Tls, "there").await;
    let mut device = edge.device(Way::Tls, "d").await;
    device.bind(account("alice")).await;
    router.push(1, &["d"]).await;
    assert_eq!(device.push().await.message_id, 1);
    device.leave(&edge, "d").await;
    assert_eq!(router.end("b-1", 0).await, End::Failed(FailReason::Forgotten));
    let said = router.said_of("d", 3).await;
    assert_eq!(said[..], ["registered vivo", "bound account alice", "forgotten"]);
    assert_eq!(edge.ask(&format!("/v1/device/{DEV_APP}/d")).await["known"], false);
    router.accepts(batch(2, &["d"]), 0).await;
    there.has_nothing().await;
    router.push(3, &["there"]).await;
    there.takes(3).await;
    // Another one takes its place among the known.
    edge.device(Way::Plain, "other").await.has_nothing().await;
    edge.kill().await;
    edge.run().await;
    assert_eq!(edge.ask(&format!("/v1/device/{DEV_APP}/d")).await["known"], false);
    edge.totals().await;
}

#[tokio::test]
async fn what_has_to_be_read_back_is_not_read_to_the_next_user() {
    let edge = Edge::start_with(&[("store.body_cache_bytes", "\"1MiB\"")]).await;
    edge.register(&["other"]).await;
    let mut router = edge.router().await;
    for way in [Way::Tls, Way::Plain] {
        let id = format!("{way:?}");
        let mut device = edge.device(way, &id).await;
        device.bind(account("alice")).await;
        device.leave(&edge, &id).await;
        let first = if way == Way::Tls { 1 } else { 1_001 };
        router.accepts(of_account("alice", large(first, &[&id])), 1).await;
        // More than the memory for bodies holds.
        for message in first + 1..first + 400 {
            router.send(large(message, &["other"])).await;
        }
        router.answer(&format!("b-{}", first + 399)).await.expect("accepted");
        router.accepts(batch(first + 500, &[&id]), 1).await;
        // The next user logs in with the very first frames: her message may come before the reply, and never behind it.
        let mut link = edge.connect(way).await;
        link.queue(to_edge::Frame::Hello(hello_of(&edge, &id)));
        link.queue(bind_frame(1, account("bob")));
        link.flush().await.expect("written");
        let (mut replied, mut got) = (false, 0);
        while !(replied && got == first + 500) {
            match link.recv(super::device::SECONDS).await.expect("a frame") {
                to_device::Frame::Reply(reply) => replied = reply.ok,
                to_device::Frame::Push(push) => {
                    assert!(!replied || push.message_id != first, "a message of the user before");
                    got = push.message_id;
                }
                to_device::Frame::Welcome(_) => {}
                other => panic!("{other:?} came"),
            }
        }
        assert_eq!(router.end(&format!("b-{first}"), 0).await, End::Failed(FailReason::Unbound));
    }
    edge.totals().await;
}

#[tokio::test]
async fn what_waits_behind_a_device_that_does_not_read_is_not_sent_to_the_next_user() {
    let edge = Edge::start().await;
    let mut router = edge.router().await;
    for (n, way) in (1..).zip([Way::Tls, Way::Plain]) {
        let mut deaf = Device::over(narrow(&edge, way).await, hello_of(&edge, "d")).await;
        deaf.bind(account("alice")).await;
        // So much that the kernel holds no more, and something waits.
        let mut message = n * 1_000;
        while edge.metric("mooring_memory_bytes{part=\"outboxes\"}").await == 0.0 {
            router.accepts(of_account("alice", large(message, &["d"])), 1).await;
            message += 1;
        }
        deaf.ask(bind_frame(1, account("bob"))).await;
        // Frames can't be taken out of a stream of bytes: the session ends, and the device asks again.
        edge.counted("mooring_session_ends_total{reason=\"stalled\"}", n as f64).await;
        let mut got = Vec::new();
        while let Some(frame) = deaf.next_to_the_end().await {
            match frame {
                to_device::Frame::Push(push) => got.push(push.message_id),
                other => panic!("{other:?} came"),
            }
        }
        assert!(got.last() < Some(&(message - 1)), "the last one waited, and was sent");
        let mut device = edge.device(way, "d").await;
        device.bind(account("bob")).await;
        device.has_nothing().await;
        for ended in n * 1_000..message {
            assert_eq!(router.end(&format!("b-{ended}"), 0).await, End::Failed(FailReason::Unbound));
        }
        device.unbind(unbind::Binding::Account("bob".into())).await;
        device.leave(&edge, "d").await;
    }
    edge.totals().await;
}
