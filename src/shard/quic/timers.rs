//! When connections have something to do without having been told: one place in a queue each.
//!
//! A place moves forward only. Whose time comes before its deadline, as what came put that off, is given another without a look at the connection, which is in
//! no cache by then.

use std::collections::BTreeSet;
use std::time::Instant;

/// The queue, and the deadlines.
#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, usize)>,
    /// By the numbers of connections, which are dense.
    entries: Vec<Entry>,
}

/// A connection's.
#[derive(Clone, Copy, Default)]
struct Entry {
    deadline: Option<Instant>,
    /// Its place in the queue: never behind its deadline.
    place: Option<Instant>,
}

impl Timers {
    /// From now on this is the connection's deadline.
    pub(super) fn set(&mut self, number: usize, deadline: Option<Instant>) {
        if self.entries.len() <= number {
            self.entries.resize(number + 1, Entry::default());
        }
        let entry = &mut self.entries[number];
        entry.deadline = deadline;
        let Some(deadline) = deadline else { return };
        if entry.place.is_none_or(|place| deadline < place) {
            if let Some(place) = entry.place.replace(deadline) {
                self.queue.remove(&(place, number));
            }
            self.queue.insert((deadline, number));
        }
    }

    /// A connection whose deadline has come. It has none any more.
    pub(super) fn due(&mut self, now: Instant) -> Option<usize> {
        while let Some((place, number)) = self.queue.first().copied()
            && place <= now
        {
            self.queue.pop_first();
            let deadline = std::mem::take(&mut self.entries[number]).deadline;
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Some(number);
            }
            self.set(number, deadline);
        }
        None
    }

    /// When somebody has to look.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is set in whatever order: each comes once, not before its last deadline, and not behind the next look.
        #[test]
        fn a_connection_comes_once_at_its_last_deadline(
            sets in prop::collection::vec((0usize..8, prop::option::weighted(0.9, 0u64..1_000)), 1..40),
            looks in prop::collection::btree_set(0u64..1_100, 1..10),
        ) {
            let start = tokio::time::Instant::now().into_std();
            let at = |ms: u64| start + Duration::from_millis(ms);
            let (mut timers, mut deadlines) = (Timers::default(), [None; 8]);
            for (number, deadline) in sets {
                timers.set(number, deadline.map(at));
                deadlines[number] = deadline;
            }
            for look in looks {
                prop_assert!(timers.queue.len() <= 8);
                let mut due: Vec<usize> = std::iter::from_fn(|| timers.due(at(look))).collect();
                due.sort_unstable();
                let expected: Vec<usize> =
                    (0..8).filter(|n| deadlines[*n].is_some_and(|deadline| deadline <= look)).collect();
                prop_assert_eq!(&due, &expected);
                for number in expected {
                    deadlines[number] = None;
                }
                let soonest = deadlines.iter().flatten().min();
                // Too early is a look in vain, too late is none.
                let is_right = timers.next().map_or(soonest.is_none(), |next| {
                    next > at(look) && soonest.is_none_or(|soonest| next <= at(*soonest))
                });
                prop_assert!(is_right);
            }
        }
    }
}
