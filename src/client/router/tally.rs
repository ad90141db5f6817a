//! What a router counted, in the words of the accounting.

use crate::binding::DeviceChange;
use crate::push::{Failure, Refusal};
use crate::wire::pb::router::MessageState;

/// Counts since the router started. Repeats after a reconnect are counted once.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Batches given to it.
    pub batches: u64,
    /// Batches that the edge accepted.
    pub batches_accepted: u64,
    /// Batches that the edge rejected for good.
    pub batches_rejected: u64,
    /// Times a batch was put off by the edge (`RESOURCE_EXHAUSTED`, `UNAVAILABLE`).
    pub put_off: u64,
    /// Answers that were the answer of an earlier sending.
    pub answers_repeated: u64,
    /// Targets of all batches.
    pub targets: u64,
    /// Targets of the rejected ones.
    pub targets_rejected: u64,
    /// Targets accepted.
    pub accepted: u64,
    /// Targets refused, by `Refusal as usize - 1`.
    pub refused: [u64; 5],
    /// Outcomes: arrived.
    pub arrived: u64,
    /// Outcomes: failed, by `Failure as usize - 1`.
    pub failed: [u64; 11],
    /// Distinct (message, device): written to a connection, by a receipt of its own or the time on its arrive.
    pub sent: u64,
    /// Distinct (message, device): arrive receipts.
    pub arrive: u64,
    /// Distinct (message, device): clicks.
    pub click: u64,
    /// Distinct (message, device): cleans.
    pub clean: u64,
    /// Events after the end of their target.
    pub late: u64,
    /// Events that match no push record.
    pub unmatched: u64,
    /// Events that came again, after a reconnect.
    pub events_repeated: u64,
    /// Second outcomes that differ from the first: never, if the edge keeps its promise.
    pub conflicts: u64,
    /// Outcomes of batches that are not this router's.
    pub foreign: u64,
    /// Events that the edge says it dropped.
    pub gaps: u64,
    /// What was said of devices, by `DeviceChange::LABELS`.
    pub device_events: [u64; 6],
    /// Events that were counted without looking for repeats, as too many are remembered.
    pub unchecked: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { refused, failed, .. } = self;
        refused.iter_mut().zip(other.refused).for_each(|(sum, n)| *sum += n);
        failed.iter_mut().zip(other.failed).for_each(|(sum, n)| *sum += n);
        for (sum, n) in [
            (&mut self.batches, other.batches),
            (&mut self.batches_accepted, other.batches_accepted),
            (&mut self.batches_rejected, other.batches_rejected),
            (&mut self.put_off, other.put_off),
            (&mut self.answers_repeated, other.answers_repeated),
            (&mut self.targets, other.targets),
            (&mut self.targets_rejected, other.targets_rejected),
            (&mut self.accepted, other.accepted),
            (&mut self.arrived, other.arrived),
            (&mut self.sent, other.sent),
            (&mut self.arrive, other.arrive),
            (&mut self.click, other.click),
            (&mut self.clean, other.clean),
            (&mut self.late, other.late),
            (&mut self.unmatched, other.unmatched),
            (&mut self.events_repeated, other.events_repeated),
            (&mut self.conflicts, other.conflicts),
            (&mut self.foreign, other.foreign),
            (&mut self.gaps, other.gaps),
            (&mut self.unchecked, other.unchecked),
        ] {
            *sum += n;
        }
    }
}

impl Tally {
    /// What the edge says of a message, in the place of what was counted: over all its batches.
    pub fn take_message(&mut self, state: &MessageState) {
        let count = |counts: &mut [u64], reason: i32, count: u64| {
            if let Some(slot) = usize::try_from(reason - 1).ok().and_then(|at| counts.get_mut(at)) {
                *slot = count;
            }
        };
        (self.targets, self.accepted) = (state.targets + self.targets_rejected, state.accepted);
        (self.refused, self.failed, self.arrived) = ([0; 5], [0; 11], state.arrived);
        state.refused.iter().for_each(|r| count(&mut self.refused, r.reason, r.count));
        state.failed.iter().for_each(|f| count(&mut self.failed, f.reason, f.count));
        (self.sent, self.arrive, self.click, self.clean) =
            (state.sent, state.arrived, state.clicked, state.cleaned);
        self.late = state.late;
    }

    /// Batches without an answer.
    pub fn unanswered(&self) -> u64 {
        self.batches - self.batches_accepted - self.batches_rejected
    }

    /// Accepted targets whose end is known.
    pub fn ended(&self) -> u64 {
        self.arrived + self.failed.iter().sum::<u64>()
    }

    /// Accepted targets whose end is not known yet. (An end can be known before the answer that says accepted.)
    pub fn pending(&self) -> u64 {
        self.accepted.saturating_sub(self.ended())
    }

    /// Whether every batch is answered and every accepted target has its outcome.
    pub fn is_settled(&self) -> bool {
        self.unanswered() == 0 && self.accepted == self.ended()
    }

    /// The failures that occurred, by their words.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.failed;
        Failure::ALL.into_iter().map(move |f| (f.label(), counts[f as usize - 1])).filter(|(_, n)| *n > 0)
    }

    /// The device events that occurred, by their words.
    pub fn device_events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.device_events;
        DeviceChange::LABELS.into_iter().zip(counts).filter(|(_, n)| *n > 0)
    }

    /// The refusals that occurred, by their words.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused;
        Refusal::ALL.into_iter().map(move |r| (r.label(), counts[r as usize - 1])).filter(|(_, n)| *n > 0)
    }
}
