//! What is due ends in time: a second behind its cause at the latest, while nothing keeps the edge from its work.

use mooring::push::{Failure, Millis};

use super::{Oracle, ensure};

/// Milliseconds behind its cause.
const LATE_MS: Millis = 1_000;

/// Steps, in each of which the edge has few turns and time may jump by seconds: what was begun before comes first.
const TURNS: usize = 10;

/// One step since all is calm and the edge is there.
#[derive(Clone, Copy, Debug)]
struct Step {
    number: u64,
    /// Edge time, at which the edge has had its turns.
    now: Millis,
    /// All streams were read to their ends.
    is_read: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct InTime {
    steps: Vec<Step>,
}

impl InTime {
    /// A step is over.
    pub(crate) fn stepped(&mut self, number: u64, now: Millis, is_read: bool) {
        self.steps.push(Step { number, now, is_read });
    }

    /// Something keeps the edge from its work.
    pub(crate) fn disturbed(&mut self) {
        self.steps.clear();
    }

    /// The step by which the edge has had its turns since this time; `None`: nothing is promised.
    fn seen_by(&self, due: Millis) -> Option<usize> {
        // What was due before the first had to wait, and who knows for how long.
        let at = self.steps.partition_point(|step| step.now < due);
        (at > 0 && at + TURNS < self.steps.len()).then_some(at + TURNS)
    }

    /// The first step behind which routers had read everything since what ended then could be durable.
    fn told_by(&self, ended: Millis) -> Option<Step> {
        let at = self.steps.partition_point(|step| step.now < ended);
        self.steps.get(at + 2 * TURNS..)?.iter().find(|step| step.is_read).copied()
    }
}

impl Oracle {
    /// A target ended so, at this time.
    pub(super) fn check_in_time(
        &self,
        batch: &str,
        end: Result<(), Failure>,
        at: Millis,
    ) -> Result<(), String> {
        let Some(answer) = self.answers.get(batch).filter(|_| end == Err(Failure::Expired)) else {
            return Ok(());
        };
        // A part that came after that ends as it is taken.
        let due = answer.expires_at.max(answer.accepted_at);
        let Some(seen) = self.in_time.seen_by(due) else { return Ok(()) };
        let (step, told_by) = (self.step, self.in_time.told_by(at.max(due)));
        let seen = self.in_time.steps[seen];
        ensure!(
            at <= seen.now + LATE_MS,
            "{batch} expired at {due}, which the edge had to see by {seen:?}, and ended at {at}"
        );
        ensure!(
            told_by.is_none_or(|by| step <= by.number),
            "{batch} expired at {due}, which the edge had to see by {seen:?}; everything was read in {told_by:?}, and it is told in step {step}"
        );
        Ok(())
    }
}
