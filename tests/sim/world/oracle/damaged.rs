//! What damage excuses once the edge has said that there is some, and nothing beyond it.
//!
//! At a start the edge says which records are lost. A batch whose record is among them may be forgotten: a repeat is accepted as if it were new. An end
//! whose record is among them may come once more. Everything else holds: what is told is in order and without holes, but for gaps that say
//! `unreadable`; whatever was accepted ends, if only as `storage`.

use std::collections::BTreeMap;

use mooring::wire::pb::router as pb;

use super::{Answer, Oracle, ensure};

/// See the module.
#[derive(Default)]
pub(crate) struct Damaged {
    /// From which sequence to which records are lost, as starts have said.
    lost: Vec<(u64, u64)>,
    /// From which to which a stream couldn't be read.
    unreadable: Vec<(u64, u64)>,
    /// Ends without ordinals: how many of a batch, and of a message where the batch isn't known either.
    of_batches: BTreeMap<String, u64>,
    of_messages: BTreeMap<u64, u64>,
}

impl Damaged {
    /// Whether the record is lost.
    pub(super) fn has_lost(&self, sequence: u64) -> bool {
        self.lost.iter().any(|(first, last)| (*first..=*last).contains(&sequence))
    }

    /// Whether everything of the streams could be read.
    pub(super) fn is_readable(&self) -> bool {
        self.unreadable.is_empty()
    }

    /// Whether no batch can have two places in the order.
    pub(super) fn is_ordered(&self) -> bool {
        self.lost.is_empty()
    }

    /// Ends that nobody can name.
    pub(super) fn mass(&mut self, mass: &pb::MassOutcome) -> Result<(), String> {
        let named = mass.targets().len();
        ensure!(named <= mass.count, "more ordinals than it counts: {mass:?}");
        let unnamed = u64::from(mass.count - named);
        if mass.batch_id.is_empty() {
            *self.of_messages.entry(mass.message_id).or_default() += unnamed;
        } else {
            *self.of_batches.entry(mass.batch_id.clone()).or_default() += unnamed;
        }
        Ok(())
    }

    /// Whether so many targets of a batch may be without an end that names them.
    pub(super) fn excuses(&self, id: &str, message: u64, sequence: u64, endless: u64) -> bool {
        let unnamed = self.of_batches.get(id).copied().unwrap_or(0)
            + self.of_messages.get(&message).copied().unwrap_or(0);
        endless <= unnamed || self.unreadable.iter().any(|(_, last)| *last >= sequence)
    }
}

impl Oracle {
    /// A start has said that these records are lost.
    pub(crate) fn lost(&mut self, first: u64, last: u64) {
        self.damaged.lost.push((first, last));
        // A repeat of a batch that was among them, or may have been, is a new one, which a later session may get.
        let (batches, answers, damaged) = (&self.batches, &self.answers, &self.damaged);
        self.online.retain(|(_, message), _| {
            let mut of = batches.iter().filter(|(_, sent)| sent.message == *message);
            of.all(|(id, _)| answers.get(id).is_some_and(|answer| !damaged.has_lost(answer.sequence)))
        });
    }

    /// A gap that says `unreadable`: batches that were accepted there may be lost, and are repeated.
    pub(super) fn unreadable(&mut self, gap: &pb::ReceiptGap) {
        if gap.by_event.contains_key("unreadable") {
            self.damaged.unreadable.push((gap.first, gap.last));
            let accepted = self.answers.iter();
            let there = accepted.filter(|(_, answer)| (gap.first..=gap.last).contains(&answer.sequence));
            self.to_repeat.extend(there.map(|(id, _)| id.clone()));
        }
    }

    /// A batch is accepted that was accepted before: its record is lost, and what was told of it was of the other one.
    pub(super) fn accepted_again(&mut self, id: &str, known: &Answer, new: &Answer) -> Result<(), String> {
        ensure!(
            self.damaged.has_lost(known.sequence),
            "{id}: answered {new:?} as if it were new, before {known:?}"
        );
        self.forget_before(id, new.sequence);
        Ok(())
    }

    /// What was told of a batch was of an earlier one under its id, whose record is lost.
    pub(super) fn forget_before(&mut self, id: &str, sequence: u64) {
        self.ends.retain(|(batch, _), (_, told)| batch != id || *told >= sequence);
        self.told.retain(|(_, batch), told| batch != id || *told >= sequence);
    }

    /// Whether a second end of a target is possible: the first one's record is lost, or the batch's own, and it was accepted again.
    pub(super) fn may_end_again(&self, id: &str, told: u64) -> bool {
        let accepted = self.answers.get(id).map(|answer| answer.sequence);
        self.damaged.has_lost(told)
            || self.is_damaged() && accepted.is_none_or(|accepted| self.damaged.has_lost(accepted))
    }

    /// A batch whose record is lost came too late when it was repeated, or not at a good time.
    pub(super) fn rejected_again(&mut self, id: &str) -> bool {
        if self.is_damaged() {
            self.forget_before(id, u64::MAX);
        }
        let is_lost = self.answers.get(id).is_some_and(|known| self.damaged.has_lost(known.sequence));
        if is_lost {
            self.answers.remove(id);
        }
        is_lost
    }
}
