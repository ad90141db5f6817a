//! A timing wheel: one small entry a timer, no heap, no per-session allocation.
//!
//! An entry fires at its tick or up to one tick later. Timers are lazy: whoever is woken looks whether its deadline moved, and is put back
//! then. So a heartbeat costs nothing but a number in the session, and a session never has more than one entry in a wheel.
//! (Rejected: a `tokio::time::Sleep` a session, about 100 bytes and a lock each.)
//!
//! A slot that has fired has no room: kept for the next turn it would grow to what the fullest second of a day needs, in each of all slots, which a soak saw as
//! memory that grows for hours.

use std::mem;

use crate::push::Millis;

/// Milliseconds of one tick.
const TICK_MS: u64 = 100;
/// Ticks of one turn; a longer deadline is looked at once a turn.
const TICKS: usize = 8_192;
/// Slots of which one word tells whether anything is in them.
const WORD: usize = u64::BITS as usize;

/// Entries of type `T`, each with a deadline.
#[derive(Debug)]
pub struct Wheel<T> {
    slots: Box<[Vec<T>]>,
    /// A bit a slot: whether anything is in it.
    filled: Box<[u64]>,
    /// The next tick to fire.
    tick: u64,
    entries: usize,
}

impl<T> Wheel<T> {
    /// An empty wheel that starts at `now`.
    pub fn new(now: Millis) -> Self {
        let slots = (0..TICKS).map(|_| Vec::new()).collect();
        Self { slots, filled: vec![0; TICKS / WORD].into(), tick: now / TICK_MS, entries: 0 }
    }

    /// Puts in an entry that fires at `deadline`, or as soon as possible if that has passed.
    /// A deadline farther away than one turn fires early: lazy timers look again.
    pub fn insert(&mut self, deadline: Millis, entry: T) {
        let tick = deadline.div_ceil(TICK_MS).clamp(self.tick, self.tick + TICKS as u64 - 1);
        let slot = (tick % TICKS as u64) as usize;
        self.slots[slot].push(entry);
        self.filled[slot / WORD] |= 1 << (slot % WORD);
        self.entries += 1;
    }

    /// When the next entry fires, if there is one.
    pub fn next(&self) -> Option<Millis> {
        if self.entries == 0 {
            return None;
        }
        let first = (self.tick % TICKS as u64) as usize;
        // From the slot of the next tick on, and in the end what lies before it in its word.
        let words = (0..=self.filled.len()).map(|n| (first / WORD + n) % self.filled.len());
        let slot = words.enumerate().find_map(|(n, word)| {
            let before = (1 << (first % WORD)) - 1;
            let wanted = if n == 0 { !before } else { u64::MAX };
            let filled = self.filled[word] & wanted;
            (filled != 0).then(|| word * WORD + filled.trailing_zeros() as usize)
        })?;
        let ahead = (slot + TICKS - first) % TICKS;
        Some((self.tick + ahead as u64) * TICK_MS)
    }

    /// Moves what is due at `now` to `due`.
    pub fn advance(&mut self, now: Millis, due: &mut Vec<T>) {
        let until = now / TICK_MS;
        // A clock that leapt by more than a turn fires everything once.
        if until >= self.tick + TICKS as u64 {
            for slot in &mut self.slots {
                due.append(&mut mem::take(slot));
            }
            self.filled.fill(0);
            self.entries = 0;
            self.tick = until + 1;
            return;
        }
        while self.tick <= until {
            let slot = (self.tick % TICKS as u64) as usize;
            let fired = &mut self.slots[slot];
            self.entries -= fired.len();
            due.append(&mut mem::take(fired));
            self.filled[slot / WORD] &= !(1 << (slot % WORD));
            self.tick += 1;
        }
    }

    /// Entries in it.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Nothing fires before its deadline (but what is farther than a turn), and nothing is late by more than a tick.
        #[test]
        fn entries_fire_once_and_on_time(
            start in 0u64..10_000_000,
            deadlines in proptest::collection::vec(0u64..900_000, 0..200),
            steps in proptest::collection::vec(0u64..60_000, 1..60),
        ) {
            let turn = TICK_MS * (TICKS as u64 - 1);
            let mut wheel = Wheel::new(start);
            for (i, d) in deadlines.iter().enumerate() {
                wheel.insert(start + d, i);
            }
            let mut now = start;
            let mut fired = vec![0; deadlines.len()];
            for step in steps {
                now += step;
                let (next, mut due) = (wheel.next(), Vec::new());
                prop_assert_eq!(next.is_some(), !wheel.is_empty());
                // Whoever sleeps until then misses nothing, and doesn't wake in vain.
                if let Some(before) = next.and_then(|next| next.min(now).checked_sub(1)) {
                    wheel.advance(before, &mut due);
                    prop_assert!(due.is_empty());
                }
                wheel.advance(now, &mut due);
                prop_assert_eq!(next.is_some_and(|next| next <= now), !due.is_empty());
                for i in due {
                    fired[i] += 1;
                    prop_assert!(start + deadlines[i].min(turn - TICK_MS) <= now);
                }
                for (i, d) in deadlines.iter().enumerate() {
                    if start + d + TICK_MS <= now {
                        prop_assert_eq!(fired[i], 1, "deadline {} at {}", d, now - start);
                    }
                }
            }
            prop_assert_eq!(wheel.len(), fired.iter().filter(|f| **f == 0).count());
        }
    }

    #[test]
    fn after_a_leap_it_goes_on_tick_by_tick() {
        const LEAP_MS: Millis = 2 * TICK_MS * TICKS as u64;
        let (mut wheel, mut due) = (Wheel::new(0), Vec::new());
        wheel.insert(1_000, 'a');
        wheel.advance(LEAP_MS, &mut due);
        assert_eq!((due.as_slice(), wheel.is_empty()), (&['a'][..], true));
        // Whoever puts an entry back at once must not see it again in the same tick.
        wheel.insert(LEAP_MS, 'b');
        wheel.advance(LEAP_MS, &mut due);
        assert_eq!((due.as_slice(), wheel.len(), wheel.is_empty()), (&['a'][..], 1, false));
        wheel.advance(LEAP_MS + TICK_MS, &mut due);
        assert_eq!((due.as_slice(), wheel.is_empty()), (&['a', 'b'][..], true));
    }

    #[test]
    fn a_slot_that_has_fired_has_no_room() {
        let (mut wheel, mut due) = (Wheel::new(0), Vec::new());
        let room = |wheel: &Wheel<u64>| wheel.slots.iter().map(Vec::capacity).sum::<usize>();
        // Entries in each slot, over a turn and a half.
        for tick in 0..TICKS as u64 * 3 / 2 {
            (0..3).for_each(|n| wheel.insert((tick + 1) * TICK_MS, n));
            wheel.advance((tick + 1) * TICK_MS, &mut due);
            assert_eq!(due.len(), 3);
            due.clear();
        }
        assert_eq!(room(&wheel), 0);
        // A leap past a whole turn.
        wheel.insert(u64::MAX, 1);
        wheel.advance(10 * TICK_MS * TICKS as u64, &mut due);
        assert_eq!((due.len(), room(&wheel)), (1, 0));
    }
}
