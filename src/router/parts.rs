//! Large batches go to the store part by part. The store's thread takes a command in one piece, and a hundred thousand targets keep it for a tenth of a
//! second: whoever acknowledges or pushes a single message would wait for all of them.
//!
//! # How it works
//! A part is a batch of its own for the store: with the same id and body, a number, and its targets' ordinals; the store remembers an id and a number.
//! The first part goes in the order of the link's frames, and decides for the batch: whether it is a repeat, conflicts, comes too late, or doesn't
//! fit. The others follow, one after the other, so that what else there is gets in between, and the router's answer is of all together.
//!
//! If the edge dies, or is full, before the last part, the batch has no answer, or one that says to try again: the router repeats it, the parts that
//! were taken answer as they did, and the others are taken now.
//!
//! # Invariants
//! - A device that stands twice in a batch stands in its first part only, so that admission sees both places at once.
//! - On one link nothing with a collapse key overtakes a large batch with one: it would be replaced by what was sent before it.
//!
//! Rejected: two parts at a time in the store's queue, which takes 620,000 targets a second instead of 520,000, and lets single messages wait half as long again
//! (p99 beside 100,000 targets 11 ms instead of 7: `loadtest unicast --beside`). Parts within the store, under one sequence. Sessions go through their lists by sequence, so that an entry that comes later than others
//! with higher ones is never seen; and a batch that is half decided would have to be decided anew whenever something else changed in between.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::{Notify, oneshot};

use super::admission;
use crate::budget::Held;
use crate::ids::{AccountDigest, BuildSpread, DeviceKey};
use crate::push::{Accepted, BatchPart, NewBatch, Rejection};
use crate::store::{Command, Store};
use crate::wire::router::Rejected;

/// The parts of a batch that come after the first one.
#[derive(Debug)]
pub(super) struct Rest {
    whole: NewBatch,
    /// Positions in it, as they are taken; empty: one after the other.
    order: Vec<u32>,
    /// The next part: where it begins, and its number.
    at: usize,
    number: u32,
    each: usize,
    /// In the budget, as long as they wait.
    held: Option<Held>,
}

/// The first part of a batch of which each takes so many targets, and the others; `None`: it is all.
pub(super) fn split(whole: NewBatch, each: usize) -> (Box<NewBatch>, Option<Box<Rest>>) {
    let all = whole.targets.len();
    if all <= each {
        return (Box::new(whole), None);
    }
    let repeated = repeated(&whole.targets);
    let first = each.max(repeated.len());
    let mut order = Vec::new();
    if !repeated.is_empty() {
        order.reserve_exact(all);
        order.extend(&repeated);
        order.extend((0..all as u32).filter(|position| !repeated.contains(position)));
        order[..first].sort_unstable();
    }
    let mut rest = Rest { whole, order, at: 0, number: 0, each, held: None };
    let part = Box::new(rest.part(first));
    if rest.at < all { (part, Some(Box::new(rest))) } else { (part, None) }
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

impl Rest {
    /// Bytes that wait, about.
    pub(super) fn bytes(&self) -> usize {
        let account = size_of::<Option<AccountDigest>>();
        self.whole.targets.len() * size_of::<DeviceKey>()
            + self.whole.accounts.len() * account
            + self.order.len() * size_of::<u32>()
    }

    /// They count from now on.
    pub(super) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// The next part, of so many targets.
    fn part(&mut self, length: usize) -> NewBatch {
        let all = self.whole.targets.len();
        let range = self.at..(self.at + length).min(all);
        let mut part = BatchPart {
            number: self.number,
            first: range.start as u32,
            listed: Box::default(),
            to_come: (all - range.end) as u32,
        };
        let (targets, accounts): (Vec<DeviceKey>, Vec<_>);
        if self.order.is_empty() {
            targets = self.whole.targets[range.clone()].to_vec();
            accounts = self.whole.accounts.get(range.clone()).unwrap_or_default().to_vec();
        } else {
            let listed = &self.order[range.clone()];
            targets = listed.iter().map(|position| self.whole.targets[*position as usize]).collect();
            let account = |position: &u32| self.whole.accounts.get(*position as usize).copied();
            accounts = listed.iter().filter_map(account).collect();
            part.listed = listed.into();
        }
        (self.at, self.number) = (range.end, self.number + 1);
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

    fn next(&mut self) -> Option<Box<NewBatch>> {
        (self.at < self.whole.targets.len()).then(|| Box::new(self.part(self.each)))
    }

    /// Takes them to the store. The answer to all parts, with what the first one was answered.
    pub(super) async fn follow(mut self, first: Accepted, store: &dyn Store) -> Result<Accepted, Rejected> {
        let mut all = first;
        while let Some(batch) = self.next() {
            let (reply, answer) = oneshot::channel();
            store.submit(Command::Deliver { batch, reply }).map_err(|_refused| admission::queue_full())?;
            // A reply that is dropped: the store is going down.
            let answer: Result<Accepted, Rejection> = answer.await.unwrap_or(Err(Rejection::Unavailable));
            add(&mut all, answer.map_err(admission::rejected)?);
        }
        // Where a device stands twice, the first part has ordinals of all.
        all.refused.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        Ok(all)
    }
}

/// The answer to both.
fn add(all: &mut Accepted, part: Accepted) {
    all.seq = all.seq.max(part.seq);
    all.first_seq = all.first_seq.min(part.first_seq);
    all.accepted += part.accepted;
    all.refused.extend(part.refused);
    all.accepted_at = all.accepted_at.max(part.accepted_at);
    all.expires_at = all.expires_at.max(part.expires_at);
    all.repeated &= part.repeated;
}

/// Large batches with a collapse key that are under way on a link.
#[derive(Debug, Default)]
pub(super) struct Collapsing {
    under_way: AtomicU32,
    over: Notify,
}

impl Collapsing {
    /// One more. Over when the guard goes.
    pub(super) fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    /// Waits until none is.
    pub(super) async fn none(&self) {
        while self.under_way.load(Ordering::Relaxed) > 0 {
            // A permit is kept for who comes late, and one reader waits.
            self.over.notified().await;
        }
    }
}

/// A large batch with a collapse key is under way.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Collapsing>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.over.notify_one();
    }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;
