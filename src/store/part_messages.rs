//! A part's push records: how each journal record changes them. The same code runs when a record is made and when it is
//! replayed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::Batch;
use super::part::Part;
use super::push_record::{MessageKey, Numbers, PushRecord};
use crate::ids::Seq;
use crate::push::{Failure, Millis, Receipt, ReceiptKind, Refusal};

/// Push records are kept this long: 14 days.
const RECORD_KEPT_MS: Millis = 14 * 24 * 3600 * 1000;
/// Unfinished push records that are passed over in the search for one that may go.
const PASSED_OVER: usize = 16;

/// What a batch record says to its message's part.
pub(super) struct Acceptance<'a> {
    pub(super) body_digest: [u8; 16],
    pub(super) accepted_at: Millis,
    pub(super) expires_at: Millis,
    pub(super) job_key: &'a Arc<str>,
    pub(super) named: u32,
    pub(super) refused: &'a [(u32, Refusal)],
    pub(super) numbers: Numbers<'a>,
    pub(super) accepted: u32,
}

impl Part {
    /// A batch was accepted; `batch`, if it has targets.
    pub(super) fn accept(
        &mut self,
        key: MessageKey,
        what: &Acceptance<'_>,
        batch: Option<Arc<Batch>>,
        max_messages: usize,
    ) {
        if !self.messages.contains_key(&key) {
            self.forget_messages(what.accepted_at, max_messages);
            self.message_order.push_back(key);
        }
        let record = self.messages.entry(key).or_insert_with(|| {
            PushRecord::new(what.body_digest, what.accepted_at, what.expires_at, what.job_key.clone())
        });
        if let Some(recall) = self.recalls.get(&key) {
            recall.extend(what.expires_at);
        }
        let totals = &mut self.totals;
        record.expires_at = record.expires_at.max(what.expires_at);
        record.batches += 1;
        record.named += u64::from(what.named);
        record.accepted += u64::from(what.accepted);
        record.pending += u64::from(what.accepted);
        record.targets.add(&what.numbers);
        totals.batches += 1;
        totals.targets += u64::from(what.named);
        totals.accepted += u64::from(what.accepted);
        totals.pending += u64::from(what.accepted);
        for &(_, reason) in what.refused {
            record.add_refused(reason);
            totals.refused[reason as usize - 1] += 1;
        }
        if let Some(batch) = batch {
            self.batches.insert(batch.seq, batch);
        }
    }

    /// Makes room for a push record: the first accepted goes if it is old, or if there are too many, but never one with pending entries.
    fn forget_messages(&mut self, now: Millis, max_messages: usize) {
        for _ in 0..PASSED_OVER {
            let full = self.messages.len() >= max_messages;
            let Some(oldest) = self.message_order.front().copied() else { return };
            let Some(record) = self.messages.get(&oldest) else {
                self.message_order.pop_front();
                continue;
            };
            if !full && record.accepted_at.saturating_add(RECORD_KEPT_MS) > now {
                return;
            }
            self.message_order.pop_front();
            if record.pending == 0 {
                self.messages.remove(&oldest);
                if full {
                    return;
                }
            } else {
                self.message_order.push_back(oldest);
            }
        }
    }

    /// Whether a push record could go to make room for another.
    pub(super) fn may_forget(&self) -> bool {
        let finished = |key| self.messages.get(key).is_none_or(|record| record.pending == 0);
        self.message_order.iter().take(PASSED_OVER).any(finished)
    }

    /// `count` entries of a batch ended. Answers the batch, if these were its last; `None` also if it isn't known, which only a damaged
    /// journal can cause: then nothing changes, so that the sums stay right.
    pub(super) fn end(
        &mut self,
        key: MessageKey,
        seq: Seq,
        outcome: Result<(), Failure>,
        count: u32,
        numbers: Numbers<'_>,
    ) -> Ended {
        let Some(batch) = self.batches.get(&seq) else { return Ended::Unknown };
        let Some(record) = self.messages.get_mut(&key) else { return Ended::Unknown };
        // Never more than are left, whatever a damaged journal says.
        let count = count.min(batch.live.load(Ordering::Relaxed));
        let (count64, totals) = (u64::from(count), &mut self.totals);
        record.pending -= count64;
        totals.pending -= count64;
        match outcome {
            Ok(()) => {
                record.arrived += count64;
                record.arrived_on.add(&numbers);
                totals.arrived += count64;
            }
            Err(reason) => {
                let (failed, devices) = record.failed_by(reason);
                *failed += count64;
                devices.add(&numbers);
                totals.failed[reason as usize - 1] += count64;
            }
        }
        if batch.live.fetch_sub(count, Ordering::Relaxed) > count {
            return Ended::Some(count);
        }
        self.batches.remove(&seq).map_or(Ended::Unknown, |batch| Ended::All(count, batch))
    }

    /// A receipt's effect beside the end of its entry.
    pub(super) fn count_receipt(&mut self, key: MessageKey, receipt: &Receipt, number: u32) {
        let Some(record) = self.messages.get_mut(&key) else { return };
        let totals = &mut self.totals;
        if receipt.says_sent() && record.sent_to.insert(number) {
            totals.sent += 1;
        }
        match receipt.kind {
            ReceiptKind::Click if record.clicked.insert(number) => totals.clicked += 1,
            ReceiptKind::Clean if record.cleaned.insert(number) => totals.cleaned += 1,
            ReceiptKind::Arrive if receipt.late => {
                record.arrived_late.insert(number);
            }
            _ => {}
        }
        if receipt.late {
            record.late += 1;
            totals.late += 1;
        }
    }
}

/// What is left of a batch whose entries ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The batch isn't known.
    Unknown,
    /// So many ended, others are pending.
    Some(u32),
    /// So many ended, and nothing is left.
    All(u32, Arc<Batch>),
}
