//! Leaving: no new batches, but answers and streams to the end.

use mooring::router::Phase;
use mooring::wire::pb::router as pb;
use pb::{RejectCode, to_router};
use tokio::time::timeout;

use super::store::receipt;
use super::support::{Edge, NEVER, deliver, main_stream, until};

#[tokio::test]
async fn a_leaving_edge_takes_no_batches_and_finishes_answers_and_streams() {
    let edge = Edge::start().await;
    edge.store.hold();
    let (mut router, _) = edge.open(main_stream()).await;
    router.say(deliver("before", 1)).await;
    until(&edge.store.submitted, |count| *count == 1).await;

    edge.phase.send_replace(Phase::Leaving);
    assert!(matches!(router.hear().await, to_router::Frame::GoAway(_)));
    router.say(deliver("after", 1)).await;
    let rejected = router.hear_rejected().await;
    assert_eq!((rejected.batch_id.as_str(), rejected.code()), ("after", RejectCode::Unavailable));
    assert!(rejected.retry_after_milliseconds > 0);

    // What the devices still say on their way out, and the answer under way, come before the end.
    edge.phase.send_replace(Phase::Closing);
    edge.store.append([receipt(1, 0), receipt(2, 0)]);
    edge.store.release("before");
    let (mut accepted, mut events) = (false, 0);
    while let Ok(frame) = router.try_hear().await {
        match frame {
            to_router::Frame::Accepted(answer) => accepted = answer.batch_id == "before",
            to_router::Frame::Stream(batch) => events += batch.events.len(),
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert!(accepted);
    assert_eq!(events, 2);
    timeout(NEVER, edge.served).await.expect("every link has ended").expect("no panic");
}

#[tokio::test]
async fn an_edge_without_anything_under_way_closes_at_once() {
    let edge = Edge::start().await;
    let (mut router, _) = edge.open(main_stream()).await;
    edge.phase.send_replace(Phase::Closing);
    assert!(matches!(router.hear().await, to_router::Frame::GoAway(_)));
    assert!(router.try_hear().await.is_err());
    timeout(NEVER, edge.served).await.expect("every link has ended").expect("no panic");
}
