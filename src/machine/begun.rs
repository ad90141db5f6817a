//! Frames that were begun and not ended: how many bytes they hold, and whose have to go.
//!
//! Most sessions hold none, and are not in here. The one to end when the bytes are too many is the one whose frame was begun first among those
//! that hold more than [`SMALL_BYTES`]: an honest device ends its frame within a round trip, so that it is never the oldest for long, and what
//! it says is small nearly always. Only where nobody holds more, the oldest of all has to go.
//!
//! Rejected: whoever holds most. Many who hold a little less than an honest device with a long list of tags would have that one ended.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::push::Millis;

/// Bytes of a frame that is too small to go first: nearly all that devices say, but for long lists of tags and Acks.
pub const SMALL_BYTES: usize = 1_024;

/// What is held, each under a key of its own.
#[derive(Debug)]
pub struct Begun<K> {
    held: HashMap<K, Held>,
    /// Those that hold more than [`SMALL_BYTES`], and the others, by when they were begun.
    large: BTreeSet<(Millis, K)>,
    small: BTreeSet<(Millis, K)>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since: Millis,
    bytes: usize,
}

impl<K> Default for Begun<K> {
    fn default() -> Self {
        Self { held: HashMap::new(), large: BTreeSet::new(), small: BTreeSet::new(), bytes: 0 }
    }
}

impl<K: Copy + Eq + Hash + Ord> Begun<K> {
    /// It holds so many bytes now. `anew`: of a frame that was begun just now; else of the one that it had begun before, if any.
    pub fn hold(&mut self, key: K, bytes: usize, now: Millis, anew: bool) {
        let before = self.release(key);
        if bytes > 0 {
            let since = before.filter(|_| !anew).unwrap_or(now);
            self.held.insert(key, Held { since, bytes });
            self.those_of(bytes).insert((since, key));
            self.bytes += bytes;
        }
    }

    /// It holds nothing any more. Since when it did.
    pub fn release(&mut self, key: K) -> Option<Millis> {
        let Held { since, bytes } = self.held.remove(&key)?;
        self.those_of(bytes).remove(&(since, key));
        self.bytes -= bytes;
        Some(since)
    }

    /// Its time begins anew: it could not go on for a reason of the edge's.
    pub fn restart(&mut self, key: K, now: Millis) {
        if let Some(Held { bytes, .. }) = self.held.get(&key).copied() {
            self.hold(key, bytes, now, true);
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Who has to go if the bytes are too many.
    pub fn crowding(&self) -> Option<K> {
        self.large.first().or_else(|| self.small.first()).map(|(_, key)| *key)
    }

    /// The frame that was begun first, and when.
    pub fn oldest(&self) -> Option<(K, Millis)> {
        let firsts = self.large.first().into_iter().chain(self.small.first());
        firsts.min_by_key(|(since, _)| *since).map(|(since, key)| (*key, *since))
    }

    fn those_of(&mut self, bytes: usize) -> &mut BTreeSet<(Millis, K)> {
        if bytes > SMALL_BYTES { &mut self.large } else { &mut self.small }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is held, released and begun anew: the sum is right, and those who have to go are the ones that a look at all of them finds.
        #[test]
        fn the_oldest_large_one_goes_first(
            steps in proptest::collection::vec((0u32..12, 0usize..3_000, any::<bool>(), any::<bool>()), 1..100),
        ) {
            let mut begun = Begun::default();
            // Key, since, bytes.
            let mut model: Vec<(u32, Millis, usize)> = Vec::new();
            for (now, (key, bytes, anew, is_restart)) in (0..).zip(steps) {
                let at = model.iter().position(|held| held.0 == key);
                if is_restart {
                    begun.restart(key, now);
                    if let Some(at) = at {
                        model[at].1 = now;
                    }
                } else {
                    begun.hold(key, bytes, now, anew);
                    let since = at.map(|at| model.remove(at).1).filter(|_| !anew);
                    if bytes > 0 {
                        model.push((key, since.unwrap_or(now), bytes));
                    }
                }
                prop_assert_eq!(begun.bytes(), model.iter().map(|held| held.2).sum::<usize>());
                let goes = model.iter().min_by_key(|held| (held.2 <= SMALL_BYTES, held.1, held.0));
                prop_assert_eq!(begun.crowding(), goes.map(|held| held.0));
                let oldest = model.iter().map(|held| held.1).min();
                prop_assert_eq!(begun.oldest().map(|held| held.1), oldest);
            }
            for (key, since, _) in model {
                prop_assert_eq!(begun.release(key), Some(since));
            }
            prop_assert!(begun.bytes() == 0 && begun.crowding().is_none() && begun.oldest().is_none());
        }
    }

    #[test]
    fn small_frames_are_not_ended_while_somebody_holds_more() {
        let mut begun = Begun::default();
        begun.hold("old and small", SMALL_BYTES, 1, true);
        begun.hold("young and large", 60_000, 3, true);
        begun.hold("older and large", SMALL_BYTES + 1, 2, true);
        assert_eq!(begun.crowding(), Some("older and large"));
        begun.release("older and large");
        assert_eq!((begun.crowding(), begun.oldest()), (Some("young and large"), Some(("old and small", 1))));
        begun.release("young and large");
        assert_eq!(begun.crowding(), Some("old and small"));
    }
}
