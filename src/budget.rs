//! One budget of memory over everything that grows with what devices and routers do.
//!
//! Each part of the edge counts what it holds: most from the structure itself (a map's room, a queue's bytes), once a turn or a commit group and
//! never for a single message; the rest with a guard, [`Held`], that gives back when it goes. So there is no pair of calls of which one could be
//! forgotten, and the sum can't go below nothing.
//!
//! The sum has marks, in percent of the budget. From the low one on, what can be read again leaves memory early. From the high one on, batches and
//! devices that aren't known yet are refused, with a delay: both only add. From the top one on, new sessions are turned away too; later than
//! batches, as it is a known device that comes which takes messages out of memory. What is accepted already is never touched: sessions that are
//! there go on, acks, ends and trimming are taken at any mark. A state that was reached is left only a little below its mark, so that an edge
//! at a mark does not change its mind with every batch.
//!
//! The marks stand below the budget because an allocator takes more from the system than it hands out, and because what was let in just below a mark
//! still grows: what the difference has to be is measured (`tests/e2e/overload.rs`).
//!
//! Rejected: to steer by the process's resident size. It hardly falls when memory is freed, so that an edge that was full once would stay it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

pub use crate::telemetry::MemoryPart as Part;

/// Percent of the budget at which each state but the first begins.
const MARKS: [usize; 3] = [60, 75, 88];
/// Percent of the budget that a state lasts below its mark.
const BACK: usize = 5;

/// How full memory is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum State {
    /// There is room.
    Ample = 0,
    /// Beyond the low mark: caches give way.
    Tight = 1,
    /// Beyond the high mark: batches, and devices that aren't known, are refused.
    Full = 2,
    /// Beyond the top mark: new sessions are turned away.
    Over = 3,
}

impl State {
    const ALL: [Self; 4] = [Self::Ample, Self::Tight, Self::Full, Self::Over];

    /// For operators.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ample => "ample",
            Self::Tight => "tight",
            Self::Full => "full",
            Self::Over => "over",
        }
    }

    fn of_number(number: u8) -> Self {
        Self::ALL[usize::from(number).min(Self::ALL.len() - 1)]
    }

    /// Whose mark is the highest of those that `used` has reached, when each is `below` lower.
    fn reached(used: usize, budget: usize, below: usize) -> Self {
        let marks = MARKS.iter().filter(|percent| used >= share(budget, *percent - below)).count();
        Self::ALL[marks]
    }

    /// The state after a look: up at once, down only when there is room again.
    fn next(self, used: usize, budget: usize) -> Self {
        self.clamp(Self::reached(used, budget, 0), Self::reached(used, budget, BACK))
    }
}

/// So many percent of the budget.
fn share(budget: usize, percent: usize) -> usize {
    budget / 100 * percent
}

/// See the module.
#[derive(Debug)]
pub struct Budget {
    bytes: usize,
    parts: [AtomicUsize; Part::ALL.len()],
    state: AtomicU8,
}

impl Default for Budget {
    /// Without a bound: it only counts.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Budget {
    /// Of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { bytes, parts: [const { AtomicUsize::new(0) }; Part::ALL.len()], state: AtomicU8::new(0) }
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the state begins.
    pub fn mark(&self, state: State) -> usize {
        (state as usize).checked_sub(1).map_or(0, |mark| share(self.bytes, MARKS[mark]))
    }

    /// What a part holds.
    pub fn part(&self, part: Part) -> usize {
        self.parts[part as usize].load(Ordering::Relaxed)
    }

    /// What all parts hold.
    pub fn used(&self) -> usize {
        self.parts.iter().map(|part| part.load(Ordering::Relaxed)).sum()
    }

    /// The state at the last look.
    pub fn state(&self) -> State {
        State::of_number(self.state.load(Ordering::Relaxed))
    }

    /// Looks how full memory is. Two who look at once may leave what one of them saw: the next look is right again.
    pub fn look(&self) -> State {
        let before = self.state();
        let state = before.next(self.used(), self.bytes);
        if state != before {
            self.state.store(state as u8, Ordering::Relaxed);
        }
        state
    }

    /// A place among those who fill a part; empty at first.
    pub fn hold(self: &Arc<Self>, part: Part) -> Held {
        Held { budget: self.clone(), part, bytes: 0 }
    }
}

/// What one owner holds of a part. Given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    part: Part,
    bytes: usize,
}

impl Held {
    /// It holds so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        let part = &self.budget.parts[self.part as usize];
        if bytes > self.bytes {
            part.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            part.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// How many it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_state_is_left_below_the_mark_at_which_it_began() {
        let budget = Arc::new(Budget::new(1_000));
        let mut held = budget.hold(Part::Index);
        let mut at = |bytes| {
            held.set(bytes);
            budget.look()
        };
        assert_eq!(at(599), State::Ample);
        assert_eq!(at(600), State::Tight);
        assert_eq!(at(750), State::Full);
        assert_eq!(at(749), State::Full, "not at once");
        assert_eq!(at(701), State::Full);
        assert_eq!(at(699), State::Tight);
        assert_eq!(at(749), State::Tight, "and not before the mark");
        assert_eq!(at(2_000), State::Over);
        assert_eq!(at(830), State::Over);
        assert_eq!(at(829), State::Full);
        assert_eq!(at(0), State::Ample);
        assert_eq!([State::Ample, State::Tight, State::Over].map(|state| budget.mark(state)), [0, 600, 880]);
    }

    #[test]
    fn without_a_bound_it_only_counts() {
        let budget = Arc::new(Budget::default());
        let mut held = budget.hold(Part::Bodies);
        held.set(usize::MAX / 4);
        assert_eq!((budget.look(), budget.used()), (State::Ample, usize::MAX / 4));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Hold(usize, usize),
        Drop(usize),
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..8, 0usize..400).prop_map(|(owner, bytes)| Step::Hold(owner, bytes)),
            1 => (0usize..8).prop_map(Step::Drop),
            3 => Just(Step::Look),
        ]
    }

    proptest! {
        /// Whatever is held and given back in whatever order: each part and the sum are what the owners hold, the state follows the marks, and
        /// when all owners are gone nothing is left.
        #[test]
        fn parts_are_what_their_owners_hold(steps in proptest::collection::vec(step(), 1..200)) {
            let budget = Arc::new(Budget::new(1_000));
            let part = |owner: usize| Part::ALL[owner % 3];
            let mut owners: [Option<Held>; 8] = Default::default();
            let mut state = State::Ample;
            for step in steps {
                match step {
                    Step::Hold(owner, bytes) => {
                        owners[owner].get_or_insert_with(|| budget.hold(part(owner))).set(bytes);
                    }
                    Step::Drop(owner) => owners[owner] = None,
                    Step::Look => {
                        let used = budget.used();
                        let next = budget.look();
                        let at_least = (0..3).filter(|at| used >= MARKS[*at] * 10).count();
                        let at_most = (0..3).filter(|at| used >= (MARKS[*at] - BACK) * 10).count();
                        prop_assert!((at_least..=at_most).contains(&(next as usize)), "{used}: {next:?}");
                        // It changes only as far as it must.
                        let must = (state as usize).clamp(at_least, at_most);
                        prop_assert_eq!(next as usize, must);
                        state = next;
                    }
                }
                for of in 0..3 {
                    let held = (0..8).filter(|owner| owner % 3 == of);
                    let held: usize = held.filter_map(|owner| owners[owner].as_ref()).map(Held::bytes).sum();
                    prop_assert_eq!(budget.part(part(of)), held);
                }
            }
            drop(owners);
            prop_assert_eq!(budget.used(), 0);
            prop_assert_eq!(budget.look(), State::Ample);
        }
    }
}
