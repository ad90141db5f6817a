//! What may leave memory, and in which order: second chance. The keys of what is in memory stand in a queue; whoever looks for something to let
//! go takes the one that was there the longest, and puts back what was touched since it was looked at last, or has to stay.
//!
//! Rejected: the least recently used, exactly. It moves an entry of a list with each use, which costs two pointers a key and a lock that
//! readers share; what it chooses better doesn't matter where a read is 4 µs.

use std::collections::VecDeque;

/// What is to become of a key that was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// There is room enough: this one wasn't looked at.
    Enough,
    /// It was touched, or has to stay.
    Stays,
    /// It has left memory, now or before.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SecondChance<K>(VecDeque<K>);

impl<K> Default for SecondChance<K> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: Copy> SecondChance<K> {
    /// It came into memory.
    pub(super) fn push(&mut self, key: K) {
        self.0.push_back(key);
    }

    /// How many are in memory; some may have gone.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Shows at most `looks` keys, each at most once. `false`: there is room enough.
    pub(super) fn look(&mut self, looks: usize, mut look: impl FnMut(K) -> Look) -> bool {
        for _ in 0..looks.min(self.0.len()) {
            let Some(key) = self.0.pop_front() else { break };
            match look(key) {
                Look::Gone => {}
                Look::Stays => self.0.push_back(key),
                Look::Enough => {
                    self.0.push_front(key);
                    return false;
                }
            }
        }
        if self.0.len() < self.0.capacity() / 4 {
            // What was full for a while gives its room back.
            self.0.shrink_to(2 * self.0.len());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_touched_is_passed_over_once() {
        let mut queue = SecondChance::default();
        (0..4).for_each(|key| queue.push(key));
        let mut touched = vec![0, 2];
        let mut gone = Vec::new();
        let mut look = |key: i32, room: usize| {
            if gone.len() >= room {
                return Look::Enough;
            }
            if let Some(at) = touched.iter().position(|other| *other == key) {
                touched.remove(at);
                return Look::Stays;
            }
            gone.push(key);
            Look::Gone
        };
        assert!(queue.look(3, |key| look(key, 9)), "not enough yet");
        assert!(!queue.look(9, |key| look(key, 3)));
        assert_eq!(gone, [1, 3, 0]);
        assert_eq!(queue.len(), 1);
    }
}
