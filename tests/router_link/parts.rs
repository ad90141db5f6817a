//! Large batches, which go to the store part by part.

use mooring::push::Rejection;
use mooring::wire::pb::router as pb;
use pb::from_router::Frame;
use pb::{RefuseReason, RejectCode};

use super::support::{Edge, Router, batch, deliver, encode, main_stream, until};

/// Its store holds everything back.
async fn in_twos() -> (Edge, Router) {
    let edge = Edge::start_with(|context| context.part_targets = 2).await;
    edge.store.hold();
    let (router, _) = edge.open(vec![]).await;
    (edge, router)
}

async fn submitted(edge: &Edge, ids: &[&str]) {
    until(&edge.store.submitted, |count| *count >= ids.len()).await;
    assert_eq!(edge.store.submitted_ids(), ids);
}

#[tokio::test]
async fn a_huge_batch_goes_in_a_hundred_parts() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(vec![]).await;
    router.say(deliver("huge", 100_000)).await;
    let huge = router.hear_accepted().await;
    assert_eq!((huge.accepted, huge.repeated, huge.first_sequence, huge.sequence), (100_000, false, 1, 100));
    assert_eq!(edge.store.submitted_ids().len(), 100);
}

#[tokio::test]
async fn what_is_behind_a_large_batch_does_not_wait_for_all_of_it() {
    let (edge, mut router) = in_twos().await;
    let mut bytes = encode(deliver("large", 5));
    bytes.extend(encode(deliver("small", 1)));
    router.say_bytes(&bytes).await;
    submitted(&edge, &["large", "small"]).await;
    edge.store.release("small");
    assert_eq!(router.hear_accepted().await.batch_id, "small");
    edge.store.release("large");
    submitted(&edge, &["large", "small", "large"]).await;
    edge.store.release("large");
    submitted(&edge, &["large", "small", "large", "large"]).await;
    edge.store.release("large");
    assert_eq!(router.hear_accepted().await.accepted, 5);
}

#[tokio::test]
async fn the_answer_is_of_all_parts() {
    let (edge, mut router) = in_twos().await;
    let mut twice = batch("b", 5);
    // Both places in the first part, and one more target for it.
    twice.targets[4] = twice.targets[2].clone();
    router.say(Frame::Deliver(twice.clone())).await;
    for parts in [&["b"][..], &["b", "b"], &["b", "b", "b"]] {
        submitted(&edge, parts).await;
        edge.store.release("b");
    }
    let first = router.hear_accepted().await;
    assert_eq!((first.accepted, first.repeated), (4, false));
    assert_eq!((first.first_sequence, first.sequence), (1, 3));
    assert_eq!(first.refused, [pb::Refused { reason: RefuseReason::Duplicate.into(), ordinals: vec![4] }]);
    // Again, on another link: the same answer.
    let (mut again, _) = edge.open(vec![]).await;
    again.say(Frame::Deliver(twice.clone())).await;
    for parts in 4..=6 {
        until(&edge.store.submitted, |count| *count == parts).await;
        edge.store.release("b");
    }
    assert_eq!(again.hear_accepted().await, pb::BatchAccepted { repeated: true, ..first });
    // Its first part says that it conflicts, and there are no others.
    twice.targets.swap(0, 1);
    again.say(Frame::Deliver(twice)).await;
    until(&edge.store.submitted, |count| *count == 7).await;
    edge.store.release("b");
    assert_eq!(again.hear_rejected().await.code(), RejectCode::BatchConflict);
    assert_eq!(edge.store.submitted_ids().len(), 7);
}

#[tokio::test]
async fn a_batch_that_was_taken_in_part_is_taken_to_its_end_by_a_repeat() {
    let (edge, mut router) = in_twos().await;
    router.say(deliver("b", 7)).await;
    submitted(&edge, &["b"]).await;
    // The next one waits for room, as long as there may be some.
    edge.store.busy(true);
    edge.store.release("b");
    router.nothing_more_comes(1).await;
    edge.store.busy(false);
    submitted(&edge, &["b", "b"]).await;
    // What is no question of time is said at once.
    edge.store.refuse(Some(Rejection::Unavailable));
    edge.store.release("b");
    let rejected = router.hear_rejected().await;
    assert_eq!((rejected.code(), rejected.batch_id.as_str()), (RejectCode::Unavailable, "b"));
    assert!(rejected.retry_after_milliseconds > 0);
    edge.store.refuse(None);
    router.say(deliver("b", 7)).await;
    for parts in 3..=6 {
        until(&edge.store.submitted, |count| *count == parts).await;
        edge.store.release("b");
    }
    let answer = router.hear_accepted().await;
    assert_eq!((answer.accepted, answer.repeated, answer.first_sequence), (7, true, 1));
}

#[tokio::test]
async fn a_part_waits_while_a_maximum_is_reached() {
    let (edge, mut router) = in_twos().await;
    router.say(deliver("b", 3)).await;
    submitted(&edge, &["b"]).await;
    edge.store.release("b");
    submitted(&edge, &["b", "b"]).await;
    edge.store.refuse(Some(Rejection::Exhausted));
    edge.store.release("b");
    submitted(&edge, &["b", "b", "b"]).await;
    edge.store.refuse(None);
    edge.store.release("b");
    assert_eq!(router.hear_accepted().await.accepted, 3);
}

#[tokio::test]
async fn a_router_that_leaves_takes_what_is_left_with_it_and_may_repeat_it() {
    let (edge, _) = in_twos().await;
    let (mut router, _) = edge.open(main_stream()).await;
    router.say(deliver("b", 3)).await;
    submitted(&edge, &["b"]).await;
    drop(router);
    edge.store.nobody_follows().await;
    edge.store.release("b");
    let (mut router, _) = edge.open(vec![]).await;
    router.say(deliver("b", 3)).await;
    submitted(&edge, &["b", "b"]).await;
    edge.store.release("b");
    submitted(&edge, &["b", "b", "b"]).await;
    edge.store.release("b");
    assert_eq!(router.hear_accepted().await.accepted, 3);
}

#[tokio::test]
async fn what_replaces_something_waits_for_what_it_may_replace() {
    let (edge, mut router) = in_twos().await;
    let keyed = |id: &str, key: &str, targets| {
        Frame::Deliver(pb::DeliverBatch { collapse_key: key.into(), ..batch(id, targets) })
    };
    router.say(keyed("old", "k", 3)).await;
    router.say(keyed("other", "another", 1)).await;
    router.say(keyed("new", "k", 1)).await;
    router.say(keyed("newest", "k", 3)).await;
    // What waits keeps nobody waiting but its key.
    router.nothing_more_comes(1).await;
    submitted(&edge, &["old", "other"]).await;
    edge.store.release("old");
    submitted(&edge, &["old", "other", "old"]).await;
    edge.store.release("other");
    assert_eq!(router.hear_accepted().await.batch_id, "other");
    edge.store.release("old");
    assert_eq!(router.hear_accepted().await.batch_id, "old");
    submitted(&edge, &["old", "other", "old", "new"]).await;
    edge.store.release("new");
    assert_eq!(router.hear_accepted().await.batch_id, "new");
    submitted(&edge, &["old", "other", "old", "new", "newest"]).await;
    edge.store.release("newest");
    submitted(&edge, &["old", "other", "old", "new", "newest", "newest"]).await;
    edge.store.release("newest");
    assert_eq!(router.hear_accepted().await.accepted, 3);
}

#[tokio::test]
async fn a_repeat_to_an_edge_with_larger_parts_is_taken_to_its_end() {
    let edge = Edge::start_with(|context| context.part_targets = 2).await;
    edge.store.hold();
    let (mut router, _) = edge.open(main_stream()).await;
    router.say(deliver("b", 5)).await;
    submitted(&edge, &["b"]).await;
    // The first part is durable, and then the edge dies.
    edge.store.busy(true);
    edge.store.release("b");
    router.nothing_more_comes(1).await;
    drop(router);
    edge.store.nobody_follows().await;
    edge.store.busy(false);
    // Its next life takes five targets in one piece.
    let store = edge.store.clone();
    let later = Edge::start_with(|context| {
        context.store = store;
        context.part_targets = 5;
    })
    .await;
    let (mut router, _) = later.open(vec![]).await;
    router.say(deliver("b", 5)).await;
    submitted(&edge, &["b", "b"]).await;
    edge.store.release("b");
    submitted(&edge, &["b", "b", "b"]).await;
    edge.store.release("b");
    let answer = router.hear_accepted().await;
    assert_eq!((answer.accepted, answer.refused.len()), (5, 0), "{answer:?}");
}
