//! Taking a message back: what is pending of it ends as `revoked`, and so does what comes of it later, until the message expires.
//!
//! The decision is one record. From its staging on no session gets the message any more; the ends follow, in the same group as far as one
//! slice goes and in slices of [`Engine::maintain`] behind that, and only then the router is answered and shards are told. After a crash
//! between, the start finds what the decision left pending, and goes on with it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::ends::Got;
use super::expiry::RETRY_MS;
use super::{Effect, Engine, StoreFailure};
use crate::ids::{AppKey, MessageId};
use crate::limits;
use crate::push::{Failure, Millis, Rejection, Revoked};
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::push_record::MessageKey;
use crate::store::recalls::Recall;
use crate::store::record::{self, RecallRecord};

/// Targets looked at in one slice; a single larger batch is a slice of its own.
const SLICE_TARGETS: usize = 1_024;
/// Milliseconds that a recall is remembered at least, so that who is connected is told even of a message that has expired.
const LEAST_MS: Millis = 10 * 60 * 1_000;
/// Bytes of the record, at most.
const RECORD_BYTES: usize = 128;

/// Who waits for it.
pub(super) type Reply = oneshot::Sender<Result<Revoked, Rejection>>;

/// A message whose pending entries end.
#[derive(Debug)]
pub(super) struct Recalling {
    recall: Arc<Recall>,
    batches: VecDeque<Arc<Batch>>,
    ended: u32,
    /// `None`: it was asked for before a crash.
    reply: Option<Reply>,
}

impl<D: Disk> Engine<D> {
    /// Takes a message back. Doing it again changes nothing.
    pub(super) fn recall(
        &mut self,
        now: Millis,
        app: &AppKey,
        message: MessageId,
        reply: Reply,
    ) -> Result<(), StoreFailure> {
        let home = MessageKey::of(app, message);
        let known = self.shared.index.of_message(home).recalls.get(&home).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.holds(now)) {
            let again = Revoked { seq: known.seq, ended: 0 };
            self.effects.push(Effect::RecallAnswer(reply, Ok(again)));
            return Ok(());
        }
        if known.is_none() && self.recalls >= self.options.max_recalls {
            self.forget_recalls(now);
        }
        let refused = if known.is_none() && self.recalls >= self.options.max_recalls {
            Some(Rejection::Exhausted)
        } else if !self.has_room_beside_ends(1, RECORD_BYTES) {
            Some(Rejection::Unavailable)
        } else {
            None
        };
        if let Some(refused) = refused {
            self.effects.push(Effect::RecallAnswer(reply, Err(refused)));
            return Ok(());
        }
        self.recalls += u64::from(known.is_none());
        self.warm(home)?;
        let until = self.shared.index.of_message(home).messages.get(&home).map(|record| record.expires_at);
        let until = until.unwrap_or(now + limits::RETENTION_MS).max(now + LEAST_MS);
        self.scratch.clear();
        RecallRecord { app: app.as_str(), message, at: now, until }.encode(&mut self.scratch);
        let (seq, _) = self.stage(record::RECALL)?;
        let recall = Arc::new(Recall::new(seq, app.clone(), message, now, until));
        self.begin_recalling(recall, Some(reply));
        // Targets stand in records, which can be read once they are durable.
        let head = self.journal.head();
        let readable = |batch: &Arc<Batch>| batch.only.is_some() || batch.seq <= head;
        if self.recalling.iter().all(|recalling| recalling.batches.iter().all(readable)) {
            self.recall_slice(now)?;
        }
        Ok(())
    }

    /// It holds from now on; the ends are due.
    fn begin_recalling(&mut self, recall: Arc<Recall>, reply: Option<Reply>) {
        let mut part = self.shared.index.of_message(recall.home);
        part.recalls.insert(recall.home, recall.clone());
        let live = part.batches.values().filter(|batch| batch.home == recall.home);
        let mut batches: Vec<Arc<Batch>> = live.cloned().collect();
        drop(part);
        batches.sort_unstable_by_key(|batch| batch.seq);
        for batch in &batches {
            batch.revoke();
        }
        self.recalling.push_back(Recalling { recall, batches: batches.into(), ended: 0, reply });
    }

    /// Whether batches of this message end at once.
    pub(super) fn is_revoked(&self, now: Millis, home: MessageKey) -> bool {
        let part = self.shared.index.of_message(home);
        part.recalls.get(&home).is_some_and(|recall| recall.holds(now))
    }

    /// Those that are over make room for others.
    fn forget_recalls(&mut self, now: Millis) {
        if now < self.recalls_full_until {
            return;
        }
        let (mut left, mut next) = (0, Millis::MAX);
        for part in 0..self.shared.index.len() {
            let mut part = self.shared.index.lock(part);
            part.recalls.retain(|_, recall| recall.holds(now));
            left += part.recalls.len() as u64;
            let until = part.recalls.values().map(|one| one.until.load(std::sync::atomic::Ordering::Relaxed));
            next = until.min().unwrap_or(Millis::MAX).min(next);
        }
        self.recalls = left;
        self.recalls_full_until = if left >= self.options.max_recalls { next } else { 0 };
    }

    /// Ends what is due, one slice. Answers whether there was anything.
    pub(super) fn recall_slice(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if now < self.recall_retry_at {
            return Ok(false);
        }
        let mut targets = 0;
        while targets < SLICE_TARGETS {
            let Some(recalling) = self.recalling.front_mut() else { return Ok(targets > 0) };
            let Some(batch) = recalling.batches.front().cloned() else {
                self.end_recalling();
                targets += 1;
                continue;
            };
            let live = self.live_targets(&batch);
            let got = match &live {
                Ok((_, live)) if batch.is_live() => self.end_live(now, &batch, live, |_| Failure::Revoked)?,
                Ok(_) => Got::All(0),
                Err(error) if batch.is_given_up(error, now) => {
                    self.found_damaged(&batch);
                    Got::All(0)
                }
                // Not for now: it waits, as for room.
                Err(_) => Got::NoRoom,
            };
            targets += live.map_or(1, |(looked_at, _)| looked_at);
            let Some(recalling) = self.recalling.front_mut() else { break };
            match got {
                Got::NoRoom => {
                    self.recall_retry_at = now + RETRY_MS;
                    break;
                }
                Got::Part(ended) => recalling.ended += ended,
                Got::All(ended) => {
                    recalling.ended += ended;
                    recalling.batches.pop_front();
                }
            }
        }
        Ok(true)
    }

    /// Nothing of the first one is pending any more: everybody is told, once that is durable.
    fn end_recalling(&mut self) {
        let Some(Recalling { recall, ended, reply, .. }) = self.recalling.pop_front() else { return };
        self.effects.push(Effect::Recalled(recall.clone()));
        if let Some(reply) = reply {
            self.effects.push(Effect::RecallAnswer(reply, Ok(Revoked { seq: recall.seq, ended })));
        }
    }

    /// When a slice is due, if nothing else happens before.
    pub(super) fn next_recalling(&self) -> Option<Millis> {
        (!self.recalling.is_empty()).then_some(self.recall_retry_at)
    }

    /// After a recovery: all that is remembered, and what a crash left pending of it.
    pub(super) fn resume_recalling(&mut self) -> Result<(), StoreFailure> {
        let mut found = Vec::new();
        for part in 0..self.shared.index.len() {
            found.extend(self.shared.index.lock(part).recalls.values().cloned());
        }
        self.recalls = found.len() as u64;
        // Over, it has nothing pending left to end: what is there was accepted after it.
        found.retain(|recall| recall.holds(self.shared.opened_at));
        for recall in &found {
            // It stays in memory: shards ask it who may have the message.
            self.warm(recall.home)?;
            self.begin_recalling(recall.clone(), None);
        }
        self.recalling.retain(|recalling| !recalling.batches.is_empty());
        self.shared.recalls.load(found);
        Ok(())
    }
}
