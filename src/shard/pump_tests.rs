//! What is sent again, and what no more.

use std::sync::Arc;

use super::super::recalls::tests::{begins, shard};
use super::super::state::{InList, Phase};
use crate::ids::{MessageId, Seq};
use crate::store::Batch;

#[tokio::test]
async fn what_ended_meanwhile_keeps_nothing_behind_it_from_being_sent_again() {
    let (mut shard, _store) = shard();
    let (conn, _far) = begins(&mut shard).await;
    let now = shard.now();
    let deadline_ms = shard.context.config.ack_deadline_ms;
    let batches = [Batch::of_test(Seq(6), MessageId(1), now), Batch::of_test(Seq(7), MessageId(2), now)];
    batches[1].count_live(1);
    let Phase::Live(live) = &mut shard.connection(conn).expect("there").phase else { panic!("a session") };
    for batch in batches {
        live.session.handle_sent(now, deadline_ms, InList(Arc::new(batch)));
    }
    shard.context.clock.raise(now + deadline_ms);
    shard.begin();
    shard.check_overdue(conn);
    let Phase::Live(live) = &mut shard.connection(conn).expect("there").phase else { panic!("a session") };
    // The store of this test reads no bodies: the second one waits for its own.
    let waits = live.session.peek_again(now + deadline_ms).map(|entry| entry.0.seq);
    assert_eq!((waits, live.session.in_flight()), (Some(Seq(7)), 1));
}
