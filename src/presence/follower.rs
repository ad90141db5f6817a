//! One router's way through presence: a snapshot if it needs one, then changes. It owns a number, and nothing of what it hasn't sent yet.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::{Change, Point, Presence, Scope, Slice, SliceRequest, lock};
use crate::ids::ShardId;
use crate::telemetry::{self, Counter};

/// Changes of one update.
const UPDATE_CHANGES: usize = 1_024;
/// After so many changes that were none of its business a follower is told where presence stands, so that it can resume there.
const QUIET_CHANGES: u64 = 16_384;

/// What a follower is told in one piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// Where it leads to. Of a snapshot: where it began.
    pub point: Point,
    /// Part of a snapshot.
    pub snapshot: bool,
    /// The last part.
    pub snapshot_end: bool,
    /// The devices. In a snapshot only those that are connected.
    pub changes: Vec<Change>,
}

/// Follows presence; stops when dropped.
#[derive(Debug)]
pub struct Follower {
    presence: Arc<Presence>,
    scope: Scope,
    newest: watch::Receiver<u64>,
    at: At,
    /// The part of the snapshot that a shard was asked for.
    asked: Option<oneshot::Receiver<Slice>>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// A snapshot is needed.
    Begin,
    /// In the snapshot that began at `start`.
    Snapshot { start: u64, shard: u16, slot: u32 },
    /// It goes on where it was, and has to be told so.
    Resumed { after: u64 },
    /// Everything up to `after` was told or is none of its business; `told` was the last number said.
    Changes { after: u64, told: u64 },
}

impl Follower {
    pub(super) fn new(presence: Arc<Presence>, scope: Scope, resumed: Option<u64>) -> Self {
        let newest = presence.newest.subscribe();
        let at = resumed.map_or(At::Begin, |after| At::Resumed { after });
        Self { presence, scope, newest, at, asked: None }
    }

    /// The next update: waits for one. If this is dropped while it waits, nothing is lost.
    pub async fn next(&mut self) -> Update {
        loop {
            match self.at {
                At::Begin => {
                    let start = lock(&self.presence.inside).hub.point().sequence;
                    telemetry::add(Counter::PresenceSnapshots, 1);
                    self.at = At::Snapshot { start, shard: 0, slot: 0 };
                }
                At::Snapshot { start, shard, slot } => {
                    if let Some(update) = self.slice(start, shard, slot).await {
                        return update;
                    }
                }
                At::Resumed { after } => {
                    self.at = At::Changes { after, told: after };
                    return self.update(after, Vec::new());
                }
                At::Changes { after, told } => {
                    // Seen before it is looked at, so that what comes in between wakes it.
                    self.newest.borrow_and_update();
                    if let Some(update) = self.changes(after, told) {
                        return update;
                    }
                    let idle = matches!(self.at, At::Changes { after: now, .. } if now == after);
                    if idle && self.newest.changed().await.is_err() {
                        // The sender lives in `self.presence`.
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }

    /// One part of a snapshot; `None` if it would be empty.
    async fn slice(&mut self, start: u64, shard: u16, slot: u32) -> Option<Update> {
        let begun = self.update(start, Vec::new()).point;
        if !lock(&self.presence.inside).hub.holds(begun) {
            // More changed than is kept: what was told so far can't be completed any more.
            (self.at, self.asked) = (At::Begin, None);
            return None;
        }
        let asked = self.asked.get_or_insert_with(|| {
            let (reply, answer) = oneshot::channel();
            (self.presence.ask)(
                ShardId(shard),
                SliceRequest { from: slot, scope: self.scope.clone(), reply },
            );
            answer
        });
        // A shard that has left has no sessions.
        let slice = asked.await.unwrap_or_default();
        self.asked = None;
        let (shard, slot) = slice.next.map_or((shard + 1, 0), |slot| (shard, slot));
        let snapshot_end = usize::from(shard) >= self.presence.marks.len();
        self.at = if snapshot_end {
            At::Changes { after: start, told: start }
        } else {
            At::Snapshot { start, shard, slot }
        };
        (snapshot_end || !slice.sessions.is_empty()).then(|| Update {
            snapshot: true,
            snapshot_end,
            ..self.update(start, slice.sessions)
        })
    }

    /// What changed since; `None`: nothing of its business, or too much to know.
    fn changes(&mut self, after: u64, told: u64) -> Option<Update> {
        let inside = lock(&self.presence.inside);
        let Some((changes, upto)) = inside.hub.read(after, UPDATE_CHANGES) else {
            drop(inside);
            self.at = At::Begin;
            return None;
        };
        let changes: Vec<_> = changes.filter(|change| self.scope.contains(&change.app)).cloned().collect();
        drop(inside);
        if changes.is_empty() && upto - told < QUIET_CHANGES {
            self.at = At::Changes { after: upto, told };
            return None;
        }
        self.at = At::Changes { after: upto, told: upto };
        Some(self.update(upto, changes))
    }

    fn update(&self, sequence: u64, changes: Vec<Change>) -> Update {
        let epoch = lock(&self.presence.inside).hub.point().epoch;
        Update { point: Point { epoch, sequence }, snapshot: false, snapshot_end: false, changes }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.presence.leave();
    }
}
