//! The batch ids that were accepted, with their answers: a repeat gets the same answer, also after a crash.
//!
//! An id is kept for the batch window and as long as there is room. When the oldest goes, the watermark rises to the time it
//! was created: an unknown id from then or before may be one that was forgotten, and is refused as too old instead of being
//! accepted twice. Forgetting happens only when an id is added and depends on nothing but the ids before it and the
//! record's time, so that a replay forgets the same ones.

use std::collections::{BTreeSet, HashMap};

use super::codec::{Malformed, Take, put_bytes, put_u32, put_u64, put_varint};
use super::part::Spread;
use super::part_memory::{map_bytes, tree_bytes};
use super::push_record::digest;
use super::record::take_refused;
use crate::fault::{self, Fault};
use crate::ids::{AppKey, BatchId, Seq};
use crate::push::{Accepted, Millis};

/// Bytes of refused ordinals that count as much as one id.
const REFUSED_BYTES: usize = 256;
/// Bytes of an id in a checkpoint, at least.
const ENCODED_BYTES: usize = 68;

/// An accepted batch's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Remembered {
    /// Of all that the router said.
    pub(super) digest: [u8; 16],
    pub(super) seq: Seq,
    pub(super) accepted: u32,
    pub(super) created_at: Millis,
    pub(super) accepted_at: Millis,
    pub(super) expires_at: Millis,
    /// As in the record.
    pub(super) refused: Box<[u8]>,
}

impl Remembered {
    /// The answer to a repeat.
    pub(super) fn answer(&self) -> Result<Accepted, Malformed> {
        Ok(Accepted {
            seq: self.seq,
            first_seq: self.seq,
            accepted: self.accepted,
            refused: take_refused(&self.refused)?,
            accepted_at: self.accepted_at,
            expires_at: self.expires_at,
            repeated: true,
        })
    }

    /// What it counts towards the maximum: a long list of refused ordinals stands for many ids.
    fn weight(&self) -> usize {
        1 + self.refused.len() / REFUSED_BYTES
    }
}

/// The key of a batch id under its app; of a later part of a large batch, one of its own.
pub(super) fn id_key(app: &AppKey, id: &BatchId, part: u32) -> u128 {
    if part == 0 || fault::is(Fault::OneKeyForParts) {
        return digest(b'b', app, id.as_str().as_bytes());
    }
    // No id has a slash.
    let mut name = id.as_str().as_bytes().to_vec();
    name.push(b'/');
    name.extend_from_slice(&part.to_le_bytes());
    // All of one batch in one place of the index: what is forgotten there is forgotten of all of them.
    let place = u128::from(u64::MAX) << 64;
    id_key(app, id, 0) & place | digest(b'b', app, &name) & !place
}

/// How long and how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdBounds {
    pub(super) window_ms: Millis,
    /// Of one part.
    pub(super) max: usize,
}

/// The ids of one part.
#[derive(Debug, Default)]
pub(super) struct BatchIds {
    known: HashMap<u128, Remembered, Spread>,
    /// By age.
    order: BTreeSet<(Millis, u128)>,
    weight: usize,
    watermark: Millis,
}

impl BatchIds {
    pub(super) fn get(&self, key: u128) -> Option<&Remembered> {
        self.known.get(&key)
    }

    /// Bytes that they take, about.
    pub(super) fn memory(&self) -> usize {
        let refused = (self.weight - self.known.len()) * REFUSED_BYTES;
        map_bytes(self.known.capacity(), size_of::<(u128, Remembered)>())
            + tree_bytes(self.order.len(), size_of::<(Millis, u128)>())
            + refused
    }

    /// Ids created then or before may have been forgotten.
    pub(super) fn watermark(&self) -> Millis {
        self.watermark
    }

    /// Remembers an answer, and forgets what is too old or too much.
    pub(super) fn insert(&mut self, key: u128, id: Remembered, bounds: IdBounds) {
        let now = id.accepted_at;
        self.put(key, id);
        while let Some(&(created_at, oldest)) = self.order.first() {
            if created_at.saturating_add(bounds.window_ms) >= now && self.weight <= bounds.max {
                break;
            }
            self.order.pop_first();
            if let Some(gone) = self.known.remove(&oldest) {
                self.weight -= gone.weight();
            }
            self.watermark = self.watermark.max(created_at);
        }
    }

    /// Forgets those whose batch is gone.
    pub(super) fn forget(&mut self, is_gone: impl Fn(Seq) -> bool) {
        let Self { known, order, weight, .. } = self;
        known.retain(|key, id| {
            let gone = is_gone(id.seq);
            if gone {
                order.remove(&(id.created_at, *key));
                *weight -= id.weight();
            }
            !gone
        });
    }

    fn put(&mut self, key: u128, id: Remembered) {
        self.weight += id.weight();
        self.order.insert((id.created_at, key));
        if let Some(before) = self.known.insert(key, id) {
            // Two records of one id: only a damaged journal can do that.
            self.weight -= before.weight();
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.watermark);
        put_varint(out, self.known.len() as u64);
        for (key, id) in &self.known {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&id.digest);
            put_u64(out, id.seq.0);
            put_u32(out, id.accepted);
            put_u64(out, id.created_at);
            put_u64(out, id.accepted_at);
            put_u64(out, id.expires_at);
            put_bytes(out, &id.refused);
        }
    }

    pub(super) fn decode(take: &mut Take<'_>) -> Result<Self, Malformed> {
        let mut ids = Self { watermark: take.u64()?, ..Self::default() };
        let count = take.varint()?;
        ids.known.reserve(usize::try_from(count).unwrap_or(usize::MAX).min(take.0.len() / ENCODED_BYTES));
        for _ in 0..count {
            let key = u128::from_le_bytes(take.array()?);
            let id = Remembered {
                digest: take.array()?,
                seq: Seq(take.u64()?),
                accepted: take.u32()?,
                created_at: take.u64()?,
                accepted_at: take.u64()?,
                expires_at: take.u64()?,
                refused: take.bytes()?.into(),
            };
            ids.weight += id.weight();
            ids.known.insert(key, id);
        }
        // All at once: a tree that is built from what is sorted costs a fraction.
        ids.order = ids.known.iter().map(|(key, id)| (id.created_at, *key)).collect();
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(created_at: Millis, accepted_at: Millis) -> Remembered {
        Remembered {
            digest: [0; 16],
            seq: Seq(1),
            accepted: 0,
            created_at,
            accepted_at,
            expires_at: 0,
            refused: Box::default(),
        }
    }

    #[test]
    fn the_oldest_goes_and_the_watermark_says_so() {
        let bounds = IdBounds { window_ms: 100, max: 2 };
        let mut ids = BatchIds::default();
        ids.insert(1, id(10, 10), bounds);
        ids.insert(2, id(5, 11), bounds);
        assert_eq!(ids.watermark(), 0);
        ids.insert(3, id(12, 12), bounds);
        assert!(ids.get(2).is_none() && ids.get(1).is_some() && ids.watermark() == 5);
        ids.insert(4, id(200, 200), bounds);
        assert!(ids.get(1).is_none() && ids.get(3).is_none() && ids.get(4).is_some());
        assert_eq!(ids.watermark(), 12);
        let mut out = Vec::new();
        ids.encode(&mut out);
        let again = BatchIds::decode(&mut Take(&out)).expect("whole");
        assert_eq!((again.watermark(), again.get(4)), (12, ids.get(4)));
    }

    #[test]
    fn an_id_is_kept_for_the_whole_window() {
        let bounds = IdBounds { window_ms: 100, max: 9 };
        let mut ids = BatchIds::default();
        ids.insert(1, id(10, 10), bounds);
        ids.insert(2, id(110, 110), bounds);
        assert!(ids.get(1).is_some() && ids.watermark() == 0, "its last millisecond");
        ids.insert(3, id(111, 111), bounds);
        assert!(ids.get(1).is_none() && ids.watermark() == 10);
        assert!(ids.get(2).is_some() && ids.get(3).is_some());
    }

    #[test]
    fn a_long_list_of_refused_stands_for_many_ids() {
        let bounds = IdBounds { window_ms: 1_000, max: 4 };
        let long = Remembered { refused: vec![0; 512].into(), ..id(10, 10) };
        let mut ids = BatchIds::default();
        ids.insert(1, long.clone(), bounds);
        // Two records of one id count once.
        ids.insert(1, long, bounds);
        ids.insert(2, id(11, 11), bounds);
        assert!(ids.get(1).is_some() && ids.get(2).is_some(), "three and one");
        let mut out = Vec::new();
        ids.encode(&mut out);
        let read = BatchIds::decode(&mut Take(&out)).expect("whole");
        for mut ids in [ids, read] {
            ids.insert(3, id(12, 12), bounds);
            assert!(ids.get(1).is_none() && ids.get(2).is_some(), "five are too many");
            for key in 4..6 {
                ids.insert(key, id(13, 13), bounds);
            }
            assert!(ids.get(2).is_some(), "four are not");
            ids.insert(6, id(14, 14), bounds);
            assert!(ids.get(2).is_none() && ids.watermark() == 11);
        }
    }

    #[test]
    fn ids_of_batches_that_are_gone_are_forgotten_and_nothing_is_refused_for_it() {
        let bounds = IdBounds { window_ms: 100, max: 3 };
        let mut ids = BatchIds::default();
        for n in 1..=3 {
            ids.insert(n, Remembered { seq: Seq(n as u64), ..id(10 + n as u64, 10) }, bounds);
        }
        ids.forget(|seq| seq >= Seq(2));
        assert_eq!([1, 2, 3].map(|key| ids.get(key).is_some()), [true, false, false]);
        assert_eq!(ids.watermark(), 0);
        // Their room is free again, and their places in the order are.
        for n in 4..=5 {
            ids.insert(n, id(10 + n as u64, 10), bounds);
        }
        assert!(ids.get(1).is_some() && ids.watermark() == 0);
        ids.insert(6, id(16, 10), bounds);
        assert_eq!((ids.get(1).is_none(), ids.get(4).is_some(), ids.watermark()), (true, true, 11));
    }
}
