//! Batches, answers, credit, queries.

use mooring::push::Rejection;
use mooring::wire::pb::router as pb;
use pb::from_router::Frame;
use pb::{RejectCode, to_router};

use super::support::{Edge, batch, deliver, until};

#[tokio::test]
async fn pipelined_batches_are_answered_as_they_become_ready() {
    let edge = Edge::start().await;
    edge.store.hold();
    let (mut router, opened) = edge.open(vec![]).await;
    assert_eq!((opened.max_targets, opened.oldest_created_at), (100_000, 77));
    for id in ["b1", "b2", "b3"] {
        router.say(deliver(id, 2)).await;
    }
    until(&edge.store.submitted, |count| *count == 3).await;
    assert_eq!(edge.store.submitted_ids(), ["b1", "b2", "b3"]);
    for id in ["b3", "b1", "b2"] {
        edge.store.release(id);
        let accepted = router.hear_accepted().await;
        assert_eq!((accepted.batch_id.as_str(), accepted.app_key.as_str()), (id, "demo"));
        assert_eq!((accepted.accepted, accepted.repeated), (2, false));
    }
}

#[tokio::test]
async fn refused_ordinals_and_a_repeat_and_a_conflict() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    let mut twice = batch("b", 3);
    twice.targets[2] = twice.targets[0].clone();
    router.say(Frame::Deliver(twice.clone())).await;
    let first = router.hear_accepted().await;
    assert_eq!(first.accepted, 2);
    assert_eq!(
        first.refused,
        [pb::Refused { reason: pb::RefuseReason::Duplicate.into(), ordinals: vec![2] }]
    );
    // On another link: the same answer.
    let (mut again, _) = edge.open(vec![]).await;
    again.say(Frame::Deliver(twice.clone())).await;
    assert_eq!(again.hear_accepted().await, pb::BatchAccepted { repeated: true, ..first });
    twice.targets.pop();
    again.say(Frame::Deliver(twice)).await;
    let rejected = again.hear_rejected().await;
    assert_eq!((rejected.code(), rejected.field.as_str()), (RejectCode::BatchConflict, "batch_id"));
}

#[tokio::test]
async fn a_router_that_says_no_more_gets_what_is_under_way() {
    let edge = Edge::start().await;
    edge.store.hold();
    let (mut router, _) = edge.open(vec![]).await;
    router.say(deliver("b1", 2)).await;
    router.say_no_more().await;
    until(&edge.store.submitted, |count| *count == 1).await;
    edge.store.release("b1");
    assert_eq!(router.hear_accepted().await.accepted, 2);
    assert!(router.try_hear().await.is_err(), "the link ends");
    // Without anything under way it ends at once.
    let (mut router, _) = edge.open(vec![]).await;
    router.say_no_more().await;
    assert!(router.try_hear().await.is_err(), "the link ends");
}

#[tokio::test]
async fn a_batch_over_the_credit_is_refused_and_taken_once_there_is_credit() {
    let edge = Edge::start_with(|context| context.credit_targets = 10).await;
    edge.store.hold();
    let (mut router, opened) = edge.open(vec![]).await;
    assert_eq!(opened.credit_targets, 10);
    router.say(deliver("b1", 8)).await;
    router.say(deliver("b2", 3)).await;
    let rejected = router.hear_rejected().await;
    assert_eq!((rejected.batch_id.as_str(), rejected.code()), ("b2", RejectCode::ResourceExhausted));
    assert!(rejected.retry_after_milliseconds > 0);
    edge.store.release("b1");
    assert_eq!(router.hear_accepted().await.batch_id, "b1");
    router.say(deliver("b2", 3)).await;
    until(&edge.store.submitted, |count| *count == 2).await;
    edge.store.release("b2");
    assert_eq!(router.hear_accepted().await.batch_id, "b2");
}

#[tokio::test]
async fn bytes_count_against_the_credit_too() {
    let edge = Edge::start_with(|context| context.credit_bytes = 1_000).await;
    edge.store.hold();
    let (mut router, _) = edge.open(vec![]).await;
    router.say(deliver("b1", 50)).await;
    router.say(deliver("b2", 50)).await;
    assert_eq!(router.hear_rejected().await.code(), RejectCode::ResourceExhausted);
    // Nothing of the refused one was submitted.
    assert_eq!(edge.store.submitted_ids(), ["b1"]);
}

#[tokio::test]
async fn a_full_queue_to_the_journal_is_said_and_gives_the_credit_back() {
    let edge = Edge::start_with(|context| context.credit_targets = 10).await;
    let (mut router, _) = edge.open(vec![]).await;
    edge.store.busy(true);
    for _ in 0..3 {
        router.say(deliver("b1", 10)).await;
        let rejected = router.hear_rejected().await;
        assert_eq!(rejected.code(), RejectCode::ResourceExhausted);
        assert!(rejected.retry_after_milliseconds > 0);
    }
    edge.store.busy(false);
    router.say(deliver("b1", 10)).await;
    assert_eq!(router.hear_accepted().await.accepted, 10);
}

#[tokio::test]
async fn what_the_store_refuses_has_its_code() {
    for (why, code) in [
        (Rejection::MessageConflict, RejectCode::MessageConflict),
        (Rejection::TooOld, RejectCode::TooOld),
        (Rejection::Expired, RejectCode::Expired),
        (Rejection::Exhausted, RejectCode::ResourceExhausted),
        (Rejection::Unavailable, RejectCode::Unavailable),
        (Rejection::StreamFull, RejectCode::ResourceExhausted),
    ] {
        let edge = Edge::start().await;
        edge.store.refuse(why);
        let (mut router, _) = edge.open(vec![]).await;
        router.say(deliver("b", 1)).await;
        assert_eq!(router.hear_rejected().await.code(), code, "{why:?}");
    }
}

#[tokio::test]
async fn what_admission_refuses_never_reaches_the_store() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    router.say(deliver("none", 0)).await;
    assert_eq!(router.hear_rejected().await.code(), RejectCode::NoTargets);
    router.say(deliver("many", 100_001)).await;
    assert_eq!(router.hear_rejected().await.code(), RejectCode::TooManyTargets);
    router.say(Frame::Deliver(pb::DeliverBatch { app_key: "nobody".into(), ..batch("b", 1) })).await;
    let rejected = router.hear_rejected().await;
    assert_eq!((rejected.code(), rejected.field.as_str()), (RejectCode::UnknownApp, "app_key"));
    assert!(edge.store.submitted_ids().is_empty());
}

#[tokio::test]
async fn an_app_of_another_router_is_unknown() {
    let edge = Edge::start().await;
    let mut router = edge.connect("r2").await;
    router.say(super::support::open(vec![])).await;
    assert!(matches!(router.hear().await, to_router::Frame::Opened(_)));
    router.say(deliver("b", 1)).await;
    assert_eq!(router.hear_rejected().await.code(), RejectCode::UnknownApp);
    router.say(Frame::Deliver(pb::DeliverBatch { app_key: "other".into(), ..batch("b", 1) })).await;
    assert_eq!(router.hear_accepted().await.accepted, 1);
}

async fn ask(router: &mut super::support::Router, query: pb::Query) -> pb::answer::Of {
    let request_id = query.request_id;
    router.say(Frame::Query(query)).await;
    let to_router::Frame::Answer(answer) = router.hear().await else { panic!("no answer") };
    assert_eq!(answer.request_id, request_id);
    answer.of.expect("an answer")
}

#[tokio::test]
async fn a_message_and_devices_can_be_asked_about() {
    use pb::query::Of;
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    let query = |of| pb::Query { request_id: 9, app_key: "demo".into(), of: Some(of), ..Default::default() };
    let pb::answer::Of::Message(message) = ask(&mut router, query(Of::MessageId(5))).await else { panic!() };
    assert_eq!((message.known, message.accepted, message.arrived, message.targets), (true, 2, 2, 3));
    let unknown = pb::RefusedCount { reason: pb::RefuseReason::DeviceUnknown.into(), count: 1 };
    assert_eq!(message.refused, [unknown]);
    let pb::answer::Of::Message(message) = ask(&mut router, query(Of::MessageId(404))).await else {
        panic!()
    };
    assert!(!message.known);

    let ids: Vec<String> = (0..50).map(|i| format!("device-{i}")).collect();
    let devices = Of::Devices(pb::DeviceIds { ids: ids.clone() });
    let pb::answer::Of::Devices(states) = ask(&mut router, query(devices)).await else { panic!() };
    let asked: Vec<_> = states.devices.iter().map(|state| state.device_id.clone()).collect();
    assert_eq!(asked, ids);
    assert!(states.devices.iter().all(|state| state.known == state.connected));
    assert!(
        states.devices.iter().any(|state| state.known) && !states.devices.iter().all(|state| state.known)
    );

    let too_many = Of::Devices(pb::DeviceIds { ids: vec!["d".into(); 10_001] });
    assert!(matches!(ask(&mut router, query(too_many)).await, pb::answer::Of::Error(_)));
    let foreign = pb::Query { app_key: "nobody".into(), ..query(Of::MessageId(5)) };
    let pb::answer::Of::Error(error) = ask(&mut router, foreign).await else { panic!() };
    assert_eq!(error.code(), pb::LinkErrorCode::Unauthorized);
}

#[tokio::test]
async fn a_revoke_without_rights_is_refused_and_unknown_frames_are_skipped() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    for (app_key, message_id, code) in [
        ("nobody", 5, RejectCode::UnknownApp),
        ("demo", 0, RejectCode::Invalid),
        ("demo", 5, RejectCode::Unspecified),
        ("demo", 404, RejectCode::ResourceExhausted),
    ] {
        let revoke = pb::Revoke { request_id: 3, app_key: app_key.into(), message_id };
        router.say(Frame::Revoke(revoke)).await;
        let to_router::Frame::Revoked(revoked) = router.hear().await else { panic!("no answer") };
        assert_eq!((revoked.request_id, revoked.code()), (3, code), "{app_key} {message_id}");
        assert_eq!(revoked.text.is_empty(), code == RejectCode::Unspecified);
    }
    // Field 100 of FromRouter: three bytes.
    router.say_bytes(&[0, 0, 0, 0, 6, 0xa2, 0x06, 3, 1, 2, 3]).await;
    router.nothing_more_comes(4).await;
}
