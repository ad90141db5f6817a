//! Every reject code of admission, with its field.

use super::*;
use crate::router::Allowed;
use crate::wire::router::{FromRouter, parse};

const NOW: Millis = 1_700_000_000_000;

type Change = fn(&mut pb::DeliverBatch);

fn rules() -> Rules {
    let apps = ["demo", "other"].map(|key| AppKey::parse(key).expect("valid"));
    Rules { apps: apps.into(), digest_key: DigestKey([3; 32]), online_window_ms: 10_000 }
}

fn rights() -> Rights {
    let mine = AppKey::parse("demo").expect("valid");
    Rights { apps: Allowed::Only([mine].into()), streams: Allowed::All }
}

fn batch() -> pb::DeliverBatch {
    pb::DeliverBatch {
        batch_id: "b-1".into(),
        app_key: "demo".into(),
        message_id: 868_947_123_456_789,
        body: Some(device::Push {
            kind: device::Kind::Notification.into(),
            title: "title".into(),
            body: "body".into(),
            extras: r#" {"k": [1, "v"]}"#.into(),
            ..Default::default()
        }),
        targets: ["d-1", "d-2"].map(target).into(),
        created_at: NOW - 1_000,
        job_key: "job".into(),
        ..Default::default()
    }
}

fn target(device_id: &str) -> pb::Target {
    pb::Target { device_id: device_id.into(), account: String::new() }
}

fn check_at(now: Millis, batch: &pb::DeliverBatch) -> Result<NewBatch, Rejected> {
    let frame = pb::FromRouter { frame: Some(pb::from_router::Frame::Deliver(batch.clone())) };
    let bytes = frame.encode_to_vec();
    let Ok(FromRouter::Deliver(deliver)) = parse(&bytes) else { panic!("no batch") };
    admit(now, &deliver, &rights(), &rules())
}

fn check(change: impl FnOnce(&mut pb::DeliverBatch)) -> Result<NewBatch, Rejected> {
    let mut batch = batch();
    change(&mut batch);
    check_at(NOW, &batch)
}

fn refused(change: impl FnOnce(&mut pb::DeliverBatch)) -> (Reject, String) {
    let rejected = check(change).expect_err("refused");
    (rejected.code, rejected.field)
}

fn push(batch: &mut pb::DeliverBatch) -> &mut device::Push {
    batch.body.as_mut().expect("a body")
}

#[test]
fn a_good_batch_becomes_the_one_encoding_that_devices_get() {
    let new = check(|batch| {
        // What the edge sets is set, whatever the router put there.
        let push = push(batch);
        push.message_id = 1;
        push.redelivered = true;
        push.expires_milliseconds = 5;
        push.collapse_key = "c".into();
    })
    .expect("good");
    let sent = device::Push::decode(&*new.body).expect("a push");
    assert_eq!(sent.message_id, 868_947_123_456_789);
    assert_eq!(sent.expires_milliseconds, NOW - 1_000 + limits::RETENTION_MS);
    assert_eq!((sent.redelivered, sent.collapse_key.as_str(), sent.title.as_str()), (false, "", "title"));
    assert_eq!(new.expires_at, sent.expires_milliseconds);
    assert!(!new.online_only);
    let app = AppKey::parse("demo").expect("valid");
    let keys = ["d-1", "d-2"].map(|id| DeviceKey::of(&rules().digest_key, &app, id));
    assert_eq!(new.targets, keys);
}

#[test]
fn retention_zero_ends_with_the_online_window_and_long_retention_is_refused() {
    let new = check(|batch| batch.retention_seconds = Some(0)).expect("good");
    assert!(new.online_only);
    assert_eq!(new.expires_at, NOW + 10_000);
    let kept = check(|batch| batch.retention_seconds = Some(60)).expect("good");
    assert_eq!((kept.online_only, kept.expires_at), (false, NOW + 59_000));
    let field = ("retention_seconds".to_owned(), Reject::Invalid);
    let (code, name) = refused(|batch| batch.retention_seconds = Some(259_201));
    assert_eq!((name, code), field);
}

#[test]
fn a_routers_clock_ahead_of_the_edge_does_not_lengthen_retention() {
    let new = check(|batch| {
        batch.created_at = NOW + 300_000;
        batch.retention_seconds = Some(60);
    })
    .expect("good");
    assert_eq!((new.created_at, new.expires_at), (NOW + 300_000, NOW + 60_000));
}

/// As one that has expired: a repeat gets its first answer, however little clocks may differ by now.
#[test]
fn a_batch_from_far_ahead_passes_to_the_store_which_alone_knows_repeats() {
    for created_at in [NOW + 300_001, u64::MAX] {
        let far = check(|batch| batch.created_at = created_at).expect("passes");
        assert_eq!((far.created_at, far.expires_at), (created_at, NOW + limits::RETENTION_MS));
    }
}

#[test]
fn priority_and_collapse_key_are_in_the_encoding_of_the_message() {
    let new = check(|batch| {
        batch.priority = device::Priority::High.into();
        batch.collapse_key = "k".repeat(64);
    })
    .expect("good");
    assert_eq!((new.priority, new.collapse_key.len()), (Priority::High, 64));
    let sent = device::Push::decode(&*new.body).expect("a push");
    assert_eq!((sent.priority(), sent.collapse_key.len()), (device::Priority::High, 64));
    assert_ne!(new.body_digest, check(|_| {}).expect("good").body_digest, "one message has one of each");
}

#[test]
fn an_expired_batch_passes_to_the_store_which_alone_knows_repeats() {
    let late = check_at(NOW + limits::RETENTION_MS, &batch()).expect("passes");
    assert!(late.expires_at <= NOW + limits::RETENTION_MS);
    assert_eq!(late.digest, check(|_| {}).expect("good").digest);
    assert_eq!(rejected(Rejection::Expired).code, Reject::Expired);
}

#[test]
fn every_field_at_fault_is_named() {
    use Reject::{Invalid, NoTargets, PayloadTooLarge, Unimplemented, UnknownApp};
    let cases: [(Reject, &str, Change); 24] = [
        (UnknownApp, "app_key", |b| b.app_key = "nobody".into()),
        (UnknownApp, "app_key", |b| b.app_key = "other".into()),
        (UnknownApp, "app_key", |b| b.app_key = "no name!".into()),
        (Invalid, "batch_id", |b| b.batch_id.clear()),
        (Invalid, "batch_id", |b| b.batch_id = "x".repeat(65)),
        (Invalid, "message_id", |b| b.message_id = 0),
        (Invalid, "body", |b| b.body = None),
        (Invalid, "body.kind", |b| push(b).kind = 0),
        (Unimplemented, "body.kind", |b| push(b).kind = 77),
        (Invalid, "body.extras", |b| push(b).extras = "[1]".into()),
        (Invalid, "body.extras", |b| push(b).extras = "{\"a\":}".into()),
        (PayloadTooLarge, "body", |b| push(b).body = "x".repeat(4_000)),
        (PayloadTooLarge, "body", |b| push(b).notification_channel = "x".repeat(8_192)),
        (NoTargets, "targets", |b| b.targets.clear()),
        (Invalid, "targets[1].device_id", |b| b.targets[1].device_id.clear()),
        (Invalid, "targets[0].device_id", |b| b.targets[0].device_id = "x".repeat(65)),
        (Invalid, "targets[1].device_id", |b| b.targets[1].device_id = "a\nb".into()),
        (Invalid, "targets[1].account", |b| b.targets[1].account = "m\ne".into()),
        (Invalid, "targets[0].account", |b| b.targets[0].account = "x".repeat(129)),
        (Invalid, "created_at", |b| b.created_at = 0),
        (Unimplemented, "offline_policy", |b| b.offline_policy = 9),
        (Unimplemented, "priority", |b| b.priority = 7),
        (Invalid, "collapse_key", |b| b.collapse_key = "c".repeat(65)),
        (Invalid, "job_key", |b| b.job_key = "j".repeat(65)),
    ];
    for (code, field, change) in cases {
        assert_eq!(refused(change), (code, field.to_owned()));
    }
}

#[test]
fn text_of_exactly_4000_bytes_with_the_long_text_passes() {
    let fill = |batch: &mut pb::DeliverBatch, bytes: usize| {
        let push = push(batch);
        let long = device::LongText { text: "x".repeat(1_000) };
        push.style = Some(device::Style { style: Some(device::style::Style::LongText(long)) });
        push.extras = "{}".into();
        push.title = "t".into();
        push.body = "x".repeat(bytes - 1_000 - 3);
    };
    assert!(check(|batch| fill(batch, 4_000)).is_ok());
    assert_eq!(refused(|batch| fill(batch, 4_001)).0, Reject::PayloadTooLarge);
}

#[test]
fn a_hundred_thousand_targets_pass_and_one_more_does_not() {
    let many = |count| (0..count).map(|i| target(&format!("d-{i}"))).collect();
    assert_eq!(check(|batch| batch.targets = many(100_000)).expect("good").targets.len(), 100_000);
    assert_eq!(refused(|b| b.targets = many(100_001)), (Reject::TooManyTargets, "targets".to_owned()));
}

#[test]
fn a_target_that_is_no_utf8_is_named() {
    let mut bytes = pb::FromRouter { frame: Some(pb::from_router::Frame::Deliver(batch())) }.encode_to_vec();
    let at = bytes.windows(3).position(|window| window == b"d-2").expect("the second target");
    bytes[at] = 0xff;
    let Ok(FromRouter::Deliver(deliver)) = parse(&bytes) else { panic!("no batch") };
    let rejected = admit(NOW, &deliver, &rights(), &rules()).expect_err("refused");
    assert_eq!((rejected.code, rejected.field.as_str()), (Reject::Invalid, "targets[1]"));
}

#[test]
fn the_digest_sees_every_field_and_the_body_digest_only_the_body() {
    let first = check(|_| {}).expect("good");
    let repeated = check_at(NOW + 5_000, &batch()).expect("good");
    assert_eq!((first.digest, first.body_digest), (repeated.digest, repeated.body_digest));
    let others: [Change; 9] = [
        |b| b.targets[0].account = "me".into(),
        |b| b.targets[1].account = "me".into(),
        |b| b.targets.swap(0, 1),
        |b| b.targets.truncate(1),
        |b| b.created_at -= 1,
        |b| b.retention_seconds = Some(60),
        |b| b.job_key.clear(),
        |b| b.offline_policy = pb::OfflinePolicy::Return.into(),
        |b| b.target_type = "tag".into(),
    ];
    for change in others {
        let other = check(change).expect("good");
        assert_ne!(first.digest, other.digest);
        assert_eq!(first.body_digest, other.body_digest);
    }
    let body = check(|b| push(b).title.push('!')).expect("good");
    assert_ne!(first.body_digest, body.body_digest);
    assert_ne!(first.digest, body.digest);
    // The default, said: the same.
    let said = check(|b| b.retention_seconds = Some(259_200)).expect("good");
    assert_eq!(first.digest, said.digest);
}

#[test]
fn accounts_stand_beside_their_targets_and_cost_nothing_where_there_are_none() {
    assert!(check(|_| {}).expect("good").accounts.is_empty());
    let accounts = check(|b| b.targets[1].account = "me".into()).expect("good").accounts;
    let app = AppKey::parse("demo").expect("valid");
    assert_eq!(accounts, [None, Some(AccountDigest::of(&rules().digest_key, &app, "me"))]);
    let other = check(|b| b.targets[1].account = "you".into()).expect("good").accounts;
    assert_ne!(accounts, other);
}

#[test]
fn what_may_be_tried_again_says_when() {
    for why in [Rejection::Exhausted, Rejection::Unavailable, Rejection::StreamFull] {
        assert!(rejected(why).retry_after_ms > 0, "{why:?}");
    }
    for why in [Rejection::BatchConflict, Rejection::MessageConflict, Rejection::TooOld, Rejection::Expired] {
        assert_eq!(rejected(why).retry_after_ms, 0, "{why:?}");
    }
    let ahead = rejected(Rejection::Ahead(3_600_999));
    assert_eq!((ahead.code, &*ahead.field, ahead.retry_after_ms), (Reject::Invalid, "created_at", 0));
    assert!(ahead.text.starts_with("3600 s ahead"), "{}", ahead.text);
}
