use std::sync::Arc;

use super::*;
use crate::wire::pb::device::{AckConfirm, Error, GoAway, GoAwayReason, Pong, Reply};

fn machine() -> Machine {
    Machine::new(Settings {
        app_key: "demo".into(),
        device_id: "d-1".into(),
        credential: vec![1; 37],
        install_secret: None,
        attributes: Arc::new(Attributes::default()),
        heartbeat_seconds: 0,
        backoff: Backoff::standard(),
        seed: 1,
    })
}

fn welcome(m: &mut Machine, now: Millis) -> Hello {
    let hello = m.handle_connected(now);
    assert!(m.poll_send(now).is_none(), "nothing but Hello goes out before the Welcome");
    let frame = Welcome {
        heartbeat_seconds: 60,
        server_time_milliseconds: now + 1_000,
        max_ack_events: 3,
        ..Welcome::default()
    };
    assert!(matches!(m.handle_frame(now, to_device::Frame::Welcome(frame)), Asked::Welcomed));
    hello
}

fn push(m: &mut Machine, now: Millis, id: u64, redelivered: bool) -> bool {
    let push = Push { message_id: id, redelivered, ..Push::default() };
    matches!(m.handle_frame(now, to_device::Frame::Push(push)), Asked::Deliver(_))
}

fn acks(m: &mut Machine, now: Millis) -> Vec<(u64, Vec<u64>)> {
    let mut out = Vec::new();
    while let Some(frame) = m.poll_send(now) {
        match frame {
            to_edge::Frame::Ack(ack) => {
                out.push((ack.number, ack.events.iter().map(|e| e.message_id).collect()));
            }
            other => panic!("not an Ack: {other:?}"),
        }
    }
    out
}

fn confirm(m: &mut Machine, number: u64) {
    m.handle_frame(0, to_device::Frame::AckConfirm(AckConfirm { number }));
}

#[test]
fn a_message_is_acknowledged_each_time_it_comes_and_handed_over_once() {
    let mut m = machine();
    welcome(&mut m, 10);
    assert!(push(&mut m, 10, 7, false));
    assert_eq!(acks(&mut m, 10), [(1, vec![7])]);
    assert!(!push(&mut m, 11, 7, true), "before the confirmation");
    assert_eq!(acks(&mut m, 11), [], "its Ack is on the way already");
    confirm(&mut m, 1);
    assert!(!push(&mut m, 12, 7, true), "after the confirmation");
    assert_eq!(acks(&mut m, 12), [(2, vec![7])]);
    assert_eq!(m.tally.received, 1);
    assert_eq!(m.tally.duplicates_dropped, 2);
    assert_eq!(m.tally.redelivered, 2);
}

#[test]
fn a_probe_is_one_ping_at_once() {
    let mut m = machine();
    m.probe();
    welcome(&mut m, 10);
    assert!(m.poll_send(10).is_none(), "a new connection needs none");
    m.probe();
    m.probe();
    assert!(matches!(m.poll_send(10), Some(to_edge::Frame::Ping(_))));
    assert!(m.poll_send(10).is_none());
    m.handle_frame(11, to_device::Frame::Pong(Pong::default()));
    assert!(m.poll_send(60_009).is_none());
    assert!(matches!(m.poll_send(60_010), Some(to_edge::Frame::Ping(_))), "the heartbeat goes on from there");
    m.probe();
    assert_eq!(m.handle_timeout(90_009), None);
    assert_eq!(m.handle_timeout(90_010), Some(End::Silent));
}

#[test]
fn who_hurries_asks_once_behind_its_acks() {
    let mut m = machine();
    welcome(&mut m, 10);
    for id in 1..=4 {
        push(&mut m, 10, id, false);
    }
    assert_eq!(acks(&mut m, 10).len(), 2);
    m.hurry();
    assert!(matches!(m.poll_send(10), Some(to_edge::Frame::Ping(_))), "for what it has said before");
    assert!(m.poll_send(10).is_none());
    push(&mut m, 11, 5, false);
    assert!(matches!(m.poll_send(11), Some(to_edge::Frame::Ack(Ack { number: 3, .. }))));
    assert!(matches!(m.poll_send(11), Some(to_edge::Frame::Ping(_))), "though no Pong has come yet");
    assert!(m.poll_send(11).is_none());
    confirm(&mut m, 3);
    assert!(m.poll_send(12).is_none(), "nothing is unconfirmed");
    m.handle_end(End::Broken);
    welcome(&mut m, 20);
    assert!(m.poll_send(20).is_none());
    push(&mut m, 20, 6, false);
    assert!(matches!(m.poll_send(20), Some(to_edge::Frame::Ack(Ack { number: 1, .. }))));
    assert!(matches!(m.poll_send(20), Some(to_edge::Frame::Ping(_))), "on the next session too");
}

#[test]
fn acks_are_bundled_up_to_the_edges_limit_and_numbered_from_one() {
    let mut m = machine();
    welcome(&mut m, 10);
    for id in 1..=7 {
        assert!(push(&mut m, 10, id, false));
    }
    assert_eq!(acks(&mut m, 10), [(1, vec![1, 2, 3]), (2, vec![4, 5, 6]), (3, vec![7])]);
    confirm(&mut m, 2);
    assert_eq!(m.unsettled(), 1);
    confirm(&mut m, 9);
    assert_eq!(m.unsettled(), 0, "a confirmation beyond what was sent confirms what was sent");
    assert_eq!(m.tally.confirmed, 7);
}

#[test]
fn what_was_not_confirmed_is_sent_again_in_the_next_session_under_new_numbers() {
    let mut m = machine();
    welcome(&mut m, 10);
    for id in 1..=5 {
        push(&mut m, 10, id, false);
    }
    m.react(10, 1, EventType::Click, 0);
    acks(&mut m, 10);
    confirm(&mut m, 1);
    assert!(matches!(m.handle_end(End::Broken), Next::Again { wait: 0..=1_000, .. }));
    let hello = welcome(&mut m, 20);
    assert_eq!(hello.received, [4, 5], "arrived but unconfirmed; clicks are no ids received");
    assert_eq!(acks(&mut m, 20), [(1, vec![4, 5, 1])]);
    confirm(&mut m, 1);
    assert_eq!(m.unsettled(), 0);
    assert_eq!((m.tally.reconnects, m.tally.sessions), (1, 2));
}

#[test]
fn hello_names_at_most_256_ids() {
    let mut m = machine();
    welcome(&mut m, 10);
    for id in 1..=300 {
        push(&mut m, 10, id, false);
    }
    m.handle_end(End::Broken);
    assert_eq!(m.handle_connected(20).received.len(), 256);
}

#[test]
fn it_pings_when_it_sent_nothing_for_a_heartbeat_and_gives_up_on_silence() {
    let mut m = machine();
    welcome(&mut m, 0);
    assert_eq!(m.next_timeout(), 60_000);
    assert!(m.handle_timeout(59_999).is_none() && m.poll_send(59_999).is_none());
    // What the edge sends doesn't count.
    push(&mut m, 50_000, 1, false);
    acks(&mut m, 50_000);
    assert_eq!(m.next_timeout(), 110_000, "what it sent itself does");
    assert!(matches!(m.poll_send(110_000), Some(to_edge::Frame::Ping(_))));
    assert!(m.poll_send(110_000).is_none());
    m.handle_frame(110_050, to_device::Frame::Pong(Pong::default()));
    assert!(matches!(m.poll_send(170_000), Some(to_edge::Frame::Ping(_))));
    assert_eq!(m.next_timeout(), 200_000);
    assert_eq!(m.handle_timeout(200_000), Some(End::Silent));
}

#[test]
fn no_welcome_in_time_is_silence() {
    let mut m = machine();
    m.handle_connected(0);
    assert_eq!(m.next_timeout(), 15_000);
    assert_eq!(m.handle_timeout(15_000), Some(End::Silent));
}

#[test]
fn each_error_code_has_its_consequence() {
    let after = |code, install_secret| {
        let mut m = machine();
        m.settings.install_secret = install_secret;
        m.handle_connected(0);
        let error = Error { code: i32::from(code), text: String::new(), retry_after_milliseconds: 5_000 };
        let Asked::End(end) = m.handle_frame(0, to_device::Frame::Error(error)) else { panic!("no end") };
        let next = m.handle_end(end);
        (next, m)
    };
    for code in [ErrorCode::Unspecified, ErrorCode::Deadline] {
        assert!(matches!(after(code, None).0, Next::Again { wait: 0..=1_000, .. }), "{code:?}");
    }
    for code in [ErrorCode::ResourceExhausted, ErrorCode::Unavailable] {
        assert!(matches!(after(code, None).0, Next::Again { wait: 5_000..=6_000, .. }), "{code:?}");
    }
    for code in [
        ErrorCode::Malformed,
        ErrorCode::FrameTooLarge,
        ErrorCode::HelloExpected,
        ErrorCode::Unauthenticated,
        ErrorCode::RegistrationClosed,
    ] {
        assert_eq!(after(code, None).0, Next::Stop, "{code:?}");
    }
    // With an install secret a refused credential leads to a registration, once.
    let (next, mut m) = after(ErrorCode::Unauthenticated, Some([3; 16]));
    assert!(matches!(next, Next::Again { .. }) && m.is_registering());
    m.set_token(b"token".into());
    let hello = m.handle_connected(1);
    let register = Register { install_secret: vec![3; 16], token: b"token".into() };
    assert_eq!(hello.identity, Some(hello::Identity::Register(register)));
    let again = End::Refused { code: ErrorCode::Unauthenticated, retry_after: 0 };
    assert_eq!(m.handle_end(again), Next::Stop);
    // A registration that breaks off is repeated, as often as need be; one that is closed is not.
    let (_, mut m) = after(ErrorCode::Unauthenticated, Some([3; 16]));
    for _ in 0..3 {
        m.handle_connected(1);
        assert!(matches!(m.handle_end(End::Broken), Next::Again { .. }) && m.is_registering());
    }
    let closed = End::Refused { code: ErrorCode::RegistrationClosed, retry_after: 0 };
    assert_eq!(m.handle_end(closed), Next::Stop);
}

#[test]
fn a_device_that_registered_keeps_what_it_got_and_logs_in_with_it() {
    let mut m = machine();
    (m.settings.device_id, m.settings.credential) = (String::new(), Vec::new());
    (m.settings.install_secret, m.registering) = (Some([3; 16]), true);
    let hello = m.handle_connected(1);
    assert!(matches!(hello.identity, Some(hello::Identity::Register(_))));
    let given = Welcome { device_id: "d-9".into(), credential: vec![9; 37], ..Welcome::default() };
    assert!(matches!(m.handle_frame(1, to_device::Frame::Welcome(given)), Asked::Keep));
    assert_eq!((m.device_id(), m.credential(), m.is_registering()), ("d-9", &[9; 37][..], false));
    m.handle_end(End::Broken);
    let login = Login { device_id: "d-9".into(), credential: vec![9; 37] };
    assert_eq!(m.handle_connected(2).identity, Some(hello::Identity::Login(login)));
    // A renewal changes the credential alone.
    let renewed = Welcome { credential: vec![10; 37], ..Welcome::default() };
    assert!(matches!(m.handle_frame(2, to_device::Frame::Welcome(renewed)), Asked::Keep));
    assert_eq!((m.device_id(), m.credential()), ("d-9", &[10; 37][..]));
}

#[test]
fn go_away_says_when_and_where_and_replaced_stops() {
    let away = |reason: GoAwayReason, address: &str| {
        let mut m = machine();
        welcome(&mut m, 0);
        let frame =
            GoAway { reason: i32::from(reason), delay_milliseconds: 700, address: address.to_owned() };
        let Asked::End(end) = m.handle_frame(0, to_device::Frame::GoAway(frame)) else { panic!("no end") };
        m.handle_end(end)
    };
    assert_eq!(away(GoAwayReason::Leaving, ""), Next::Again { wait: 700, address: None });
    assert_eq!(
        away(GoAwayReason::Rebalance, "other:7443"),
        Next::Again { wait: 700, address: Some("other:7443".into()) }
    );
    assert_eq!(away(GoAwayReason::Replaced, ""), Next::Stop);
}

#[test]
fn a_message_past_its_expiry_is_acknowledged_but_not_handed_over() {
    let mut m = machine();
    welcome(&mut m, 10_000); // edge time is 1 s ahead
    let push = Push { message_id: 9, expires_milliseconds: 10_900, ..Push::default() };
    assert!(matches!(m.handle_frame(10_000, to_device::Frame::Push(push)), Asked::Nothing));
    assert_eq!(acks(&mut m, 10_000), [(1, vec![9])]);
    assert_eq!((m.tally.expired, m.tally.received), (1, 0));
}

#[test]
fn a_later_click_is_an_event_when_its_time_comes() {
    let mut m = machine();
    welcome(&mut m, 0);
    push(&mut m, 0, 1, false);
    acks(&mut m, 0);
    confirm(&mut m, 1);
    m.react(0, 1, EventType::Clean, 100);
    assert_eq!((m.unsettled(), m.next_timeout()), (1, 100));
    assert!(acks(&mut m, 50).is_empty());
    assert!(m.handle_timeout(100).is_none());
    assert_eq!(acks(&mut m, 100), [(2, vec![1])]);
}

#[test]
fn when_too_much_is_unconfirmed_new_messages_stay_with_the_edge() {
    let mut m = machine();
    welcome(&mut m, 0);
    for id in 1..=UNCONFIRMED_EVENTS as u64 {
        assert!(push(&mut m, 0, id, false));
    }
    assert!(!push(&mut m, 0, 1_000_000, false));
    acks(&mut m, 0);
    confirm(&mut m, u64::MAX);
    assert!(push(&mut m, 0, 1_000_000, true), "it wasn't noted as seen");
}

#[test]
fn requests_go_first_and_what_was_lost_is_said_until_a_welcome() {
    let mut m = machine();
    m.lose_state();
    assert!(m.handle_connected(0).state_lost);
    m.handle_end(End::Broken);
    assert!(welcome(&mut m, 0).state_lost, "it wasn't welcome");
    push(&mut m, 0, 7, false);
    assert!(m.request(Request::parse("bind account alice").expect("valid")));
    assert!(m.request(Request::Push(false)));
    assert!(matches!(m.poll_send(0), Some(to_edge::Frame::Bind(_))));
    assert!(matches!(m.poll_send(0), Some(to_edge::Frame::PushSwitch(_))));
    assert_eq!((acks(&mut m, 0), m.unsettled()), (vec![(1, vec![7])], 3));
    m.handle_end(End::Broken);
    let hello = welcome(&mut m, 10);
    assert!(!hello.state_lost);
    assert_eq!(hello.attributes.expect("some").push(), PushState::Off, "else Hello would switch it on again");
    assert!(matches!(m.poll_send(10), Some(to_edge::Frame::Bind(_))), "asked again");
    let reply = Reply { request_id: 1, ok: true, ..Reply::default() };
    let Asked::Replied(answered) = m.handle_frame(10, to_device::Frame::Reply(reply)) else {
        panic!("no reply")
    };
    assert_eq!((answered.0.words().as_str(), answered.1), ("bind account alice", Ok(())));
}

#[test]
fn a_renewed_credential_is_used_from_then_on() {
    let mut m = machine();
    m.handle_connected(0);
    let frame = Welcome { credential: vec![9; 37], heartbeat_seconds: 60, ..Welcome::default() };
    assert!(matches!(m.handle_frame(0, to_device::Frame::Welcome(frame)), Asked::Keep));
    m.handle_end(End::Broken);
    let Some(hello::Identity::Login(login)) = m.handle_connected(1).identity else { panic!("a login") };
    assert_eq!(login.credential, [9; 37]);
}
