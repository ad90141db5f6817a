//! The message ids that a device has seen: what makes at-least-once delivery look like once to the app.

use std::collections::{HashSet, VecDeque};

use crate::limits;
use crate::push::Millis;

/// Ids kept; when more come within the retention the oldest goes.
pub(super) const SEEN_IDS: usize = 100_000;
/// Milliseconds beyond the longest retention that an id is kept: clocks differ.
const MARGIN_MS: Millis = 3_600_000;

/// Ids, each kept for the longest retention and a margin.
#[derive(Debug, Default)]
pub(super) struct Seen {
    ids: HashSet<u64>,
    by_age: VecDeque<(Millis, u64)>,
}

impl Seen {
    /// Notes an id; `false` if it was seen already.
    pub(super) fn insert(&mut self, id: u64, now: Millis) -> bool {
        while let Some(&(at, oldest)) = self.by_age.front() {
            let too_old = at + limits::RETENTION_MS + MARGIN_MS < now;
            if !too_old && self.by_age.len() < SEEN_IDS {
                break;
            }
            self.by_age.pop_front();
            self.ids.remove(&oldest);
        }
        let new = self.ids.insert(id);
        if new {
            self.by_age.push_back((now, id));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_for_the_retention_and_no_longer() {
        let mut seen = Seen::default();
        assert!(seen.insert(7, 0));
        assert!(!seen.insert(7, limits::RETENTION_MS));
        assert!(seen.insert(7, limits::RETENTION_MS + MARGIN_MS + 1));
    }

    #[test]
    fn the_oldest_goes_beyond_the_bound() {
        let mut seen = Seen::default();
        for id in 0..=SEEN_IDS as u64 {
            assert!(seen.insert(id, 1));
        }
        assert_eq!(seen.ids.len(), SEEN_IDS);
        assert!(!seen.insert(SEEN_IDS as u64, 1));
    }
}
