//! Large batches go to the store part by part. The store's thread takes a command in one piece, and a hundred thousand targets keep it for a tenth of a
//! second: whoever acknowledges or pushes a single message would wait for all of them.
//!
//! # How it works
//! A part is a batch of its own for the store: with the same id and body, a number, and its targets' ordinals; the store remembers an id and a number.
//! The first part goes in the order of the link's frames, and decides for the batch: whether it is a repeat, conflicts, comes too late, or doesn't
//! fit. The others follow, one after the other, so that what else there is gets in between, and the router's answer is of all together.
//!
//! A part that finds the store's queue or a maximum full waits for a while. If the edge stays full, or dies, before the last part, the batch has an
//! answer that says to try again, or none: the router repeats it, the parts that were taken answer as they did, and the others are taken now. An
//! answer says how many targets it is of, and the next part begins behind them: so who took the first parts may have cut them otherwise.
//!
//! # Invariants
//! - A device that stands twice in a batch stands in its first part only, so that admission sees both places at once.
//! - On one link nothing overtakes a large batch with the same collapse key: it would be replaced by what was sent before it.
//! - What is only for who is connected now has its window from when its part is taken to the store, not from when the batch came.
//!
//! Rejected: two parts at a time in the store's queue, which takes 620,000 targets a second instead of 520,000, and lets single messages wait half as long again
//! (p99 beside 100,000 targets 11 ms instead of 7: `loadtest unicast --beside`). Parts within the store, under one sequence. Sessions go through their lists by sequence, so that an entry that comes later than others
//! with higher ones is never seen; and a batch that is half decided would have to be decided anew whenever something else changed in between.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::{RouterContext, admission};
use crate::budget::Held;
use crate::ids::{AccountDigest, AppKey, BuildSpread, DeviceKey};
use crate::push::{Accepted, BatchPart, Millis, NewBatch, Rejection};
use crate::store::Command;
use crate::telemetry::{self, Counter, TargetResult};
use crate::wire::router::Rejected;

/// How long a part waits for room in the store before the router is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);
/// From one try to the next, at first and at last.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// Bytes that a target takes in the index, about, once it is there.
const TO_COME: usize = 40;

/// A batch, part by part.
#[derive(Debug)]
pub(super) struct Parts {
    whole: NewBatch,
    /// Positions in it, as they are taken; empty: one after the other.
    order: Vec<u32>,
    /// Targets of the first part, and of each other.
    first: usize,
    each: usize,
    /// The next part: how many targets are in those before, and its number.
    at: usize,
    number: u32,
    /// The part before was taken just now: so this one wasn't before.
    follows: bool,
    /// Its targets, in the budget, as long as they wait.
    held: Option<Held>,
}

/// Positions of devices that stand in it more than once.
fn repeated(targets: &[DeviceKey]) -> BTreeSet<u32> {
    let mut seen = HashSet::with_capacity_and_hasher(targets.len(), BuildSpread::default());
    let twice: HashSet<&DeviceKey> = targets.iter().filter(|key| !seen.insert(**key)).collect();
    if twice.is_empty() {
        return BTreeSet::new();
    }
    (0..).zip(targets).filter(|(_, key)| twice.contains(key)).map(|(position, _)| position).collect()
}

impl Parts {
    /// Of so many targets each, but where more than that belong into the first one.
    pub(super) fn new(whole: NewBatch, each: usize) -> Self {
        let all = whole.targets.len();
        let mut parts = Self {
            whole,
            order: Vec::new(),
            first: each,
            each,
            at: 0,
            number: 0,
            follows: false,
            held: None,
        };
        if all > each {
            parts.first = each.max(parts.put_in_order());
        }
        parts
    }

    /// Devices that stand in it more than once go first, whatever the size of parts: how many places that are.
    fn put_in_order(&mut self) -> usize {
        let repeated = repeated(&self.whole.targets);
        if !repeated.is_empty() {
            let all = self.whole.targets.len();
            self.order.reserve_exact(all);
            self.order.extend(&repeated);
            self.order.extend((0..all as u32).filter(|position| !repeated.contains(position)));
        }
        repeated.len()
    }

    /// The batch.
    pub(super) fn whole(&self) -> &NewBatch {
        &self.whole
    }

    /// Whether there is more than one.
    pub(super) fn is_many(&self) -> bool {
        self.whole.targets.len() > self.first
    }

    /// The only part.
    pub(super) fn into_whole(self) -> NewBatch {
        self.whole
    }

    /// What waits counts from now on.
    pub(super) fn hold(&mut self, held: Held) {
        self.held = Some(held);
        self.count();
    }

    fn count(&mut self) {
        let left = self.whole.targets.len() - self.at;
        let here = size_of_val(&self.whole.targets[..])
            + size_of::<Option<AccountDigest>>() * self.whole.accounts.len()
            + size_of_val(&self.order[..]);
        if let Some(held) = &mut self.held {
            held.set(here + left * TO_COME);
        }
    }

    /// The next part, as it is now.
    pub(super) fn next(&self, now: Millis, context: &RouterContext) -> NewBatch {
        let mut part = self.part();
        if part.online_only && part.part.number > 0 {
            part.expires_at = now + context.rules.online_window_ms;
            part.body = admission::expiring_at(&part.body, part.expires_at);
        }
        part
    }

    fn part(&self) -> NewBatch {
        let all = self.whole.targets.len();
        let length = if self.number == 0 { self.first } else { self.each };
        let range = self.at..(self.at + length).min(all);
        let mut part = BatchPart {
            number: self.number,
            first: range.start as u32,
            listed: Box::default(),
            to_come: (all - range.end) as u32,
            follows: self.follows,
        };
        let (targets, accounts): (Vec<DeviceKey>, Vec<_>);
        if self.order.is_empty() {
            targets = self.whole.targets[range.clone()].to_vec();
            accounts = self.whole.accounts.get(range).unwrap_or_default().to_vec();
        } else {
            let mut listed = self.order[range].to_vec();
            listed.sort_unstable();
            targets = listed.iter().map(|position| self.whole.targets[*position as usize]).collect();
            let account = |position: &u32| self.whole.accounts.get(*position as usize).copied();
            accounts = listed.iter().filter_map(account).collect();
            part.listed = listed.into();
        }
        let whole = &self.whole;
        NewBatch {
            id: whole.id.clone(),
            app: whole.app.clone(),
            message: whole.message,
            body: whole.body.clone(),
            body_digest: whole.body_digest,
            digest: whole.digest,
            targets,
            part,
            offline_policy: whole.offline_policy,
            created_at: whole.created_at,
            expires_at: whole.expires_at,
            online_only: whole.online_only,
            job_key: whole.job_key.clone(),
            priority: whole.priority,
            collapse_key: whole.collapse_key.clone(),
            accounts,
        }
    }

    /// A part is taken: what it was answered says how much of the batch that was.
    fn took(&mut self, answer: &Accepted) {
        let targets = answer.accepted as usize + answer.refused.len();
        let all = self.whole.targets.len();
        self.at = (self.at + targets).min(all);
        if self.number == 0 && self.at < all && all <= self.each {
            // All of it was said, and it had been taken in part, by an edge with smaller ones.
            self.put_in_order();
        }
        self.number += 1;
        self.follows = !answer.repeated;
        self.count();
    }

    /// All parts expire when the first one does: of a batch that is repeated, by a router whose clock is ahead, that was said before.
    fn expires_with(&mut self, first: &Accepted) {
        let whole = &mut self.whole;
        if !whole.online_only && whole.expires_at != first.expires_at {
            whole.expires_at = first.expires_at;
            whole.body = admission::expiring_at(&whole.body, first.expires_at);
        }
    }

    /// Takes what is left to the store. The answer to all parts; `first`: to the first one, if that is taken.
    pub(super) async fn follow(
        mut self,
        first: Option<Accepted>,
        context: &RouterContext,
    ) -> Result<Accepted, Rejected> {
        let mut all = match first {
            Some(first) => first,
            None => self.take(context).await?,
        };
        self.took(&all);
        self.expires_with(&all);
        count_targets(&all);
        while self.at < self.whole.targets.len() {
            let part = self.take(context).await?;
            self.took(&part);
            count_targets(&part);
            add(&mut all, part);
        }
        // Where a device stands twice, the first part has ordinals of all.
        all.refused.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        Ok(all)
    }

    /// Takes the next part to the store; waits for room.
    async fn take(&self, context: &RouterContext) -> Result<Accepted, Rejected> {
        let until = Instant::now() + PATIENCE;
        let (mut wait, longest) = TRY_AGAIN;
        loop {
            let batch = Box::new(self.next(context.clock.now(), context));
            let (reply, answer) = oneshot::channel();
            let why = match context.store.submit(Command::Deliver { batch, reply }) {
                // A reply that is dropped: the store is going down.
                Ok(()) => match answer.await.unwrap_or(Err(Rejection::Unavailable)) {
                    Ok(accepted) => return Ok(accepted),
                    Err(why @ (Rejection::Exhausted | Rejection::StreamFull)) if self.number > 0 => {
                        admission::rejected(why)
                    }
                    Err(why) => return Err(admission::rejected(why)),
                },
                Err(_refused) => admission::queue_full(),
            };
            if Instant::now() >= until {
                return Err(why);
            }
            sleep(wait).await;
            wait = (wait * 2).min(longest);
        }
    }
}

/// Targets of a batch or a part, unless they were counted before.
pub(super) fn count_targets(accepted: &Accepted) {
    if accepted.repeated {
        return;
    }
    telemetry::add(Counter::Targets(TargetResult::Accepted), u64::from(accepted.accepted));
    for (_, why) in &accepted.refused {
        telemetry::add(Counter::Targets((*why).into()), 1);
    }
}

/// The answer to both. Whether it is a repeat the first part says: one that goes on beside another may take parts that the other has not come to.
fn add(all: &mut Accepted, part: Accepted) {
    all.seq = all.seq.max(part.seq);
    all.first_seq = all.first_seq.min(part.first_seq);
    all.accepted += part.accepted;
    all.refused.extend(part.refused);
    all.accepted_at = all.accepted_at.max(part.accepted_at);
    all.expires_at = all.expires_at.max(part.expires_at);
}

/// By app and collapse key: the end of the last one whose turn others have to wait for.
type Lasts = HashMap<(AppKey, Box<str>), oneshot::Receiver<()>>;

/// On a link, the large batches with a collapse key that are under way, and those that wait for them.
#[derive(Debug, Default)]
pub(super) struct Collapsing(Mutex<Lasts>);

impl Collapsing {
    /// A batch with a collapse key comes. `None`: it waits for nobody, and nobody has to wait for it.
    pub(super) fn enter(&self, batch: &NewBatch, is_large: bool) -> Option<Turn> {
        let mut lasts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lasts.retain(|_, last| matches!(last.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        let key = (batch.app.clone(), batch.collapse_key.clone());
        let after = lasts.remove(&key);
        if after.is_none() && !is_large {
            return None;
        }
        let (over, last) = oneshot::channel();
        lasts.insert(key, last);
        Some(Turn { after, _over: over })
    }
}

/// A batch's turn among those with its collapse key; over when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    after: Option<oneshot::Receiver<()>>,
    _over: oneshot::Sender<()>,
}

impl Turn {
    /// Whether another one goes first.
    pub(super) fn waits(&self) -> bool {
        self.after.is_some()
    }

    /// Waits until that is over.
    pub(super) async fn come(&mut self) {
        if let Some(after) = self.after.take() {
            // Dropped, never sent.
            after.await.ok();
        }
    }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
