//! The gaps of a stream: ranges of sequences whose events went at the hard bound. They stand for those events wherever the stream is read: what
//! lies in a gap is never read again, even while the journal still has it, so that every reading of the same range says the same.
//!
//! Ranges don't overlap and ascend. A new one covers what it replaces: a longer one with the same first, or several in one.

use crate::ids::Seq;
use crate::push::ReceiptGap;
use crate::store::codec::{Malformed, Take, put_bytes, put_u64, put_varint};

/// Gaps kept of one stream; beyond, the oldest two become one, or the oldest goes if its reader is past it.
pub(in crate::store) const MAX_GAPS: usize = 32;
/// Kinds of events named in one gap.
const KINDS: u64 = 64;

/// Ascending.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::store) struct Gaps(Vec<ReceiptGap>);

impl Gaps {
    /// Puts one in, in place of those that it covers.
    pub(in crate::store) fn insert(&mut self, gap: ReceiptGap) {
        self.0.retain(|old| old.last < gap.first || old.first > gap.last);
        let at = self.0.partition_point(|old| old.first < gap.first);
        self.0.insert(at, gap);
        if self.0.len() > MAX_GAPS {
            let oldest = self.0.remove(0);
            // One that another doesn't follow at once was passed by the reader: only rewinds miss it.
            if let Some(next) = self.0.first_mut()
                && next.first.0 == oldest.last.0 + 1
            {
                *next = joined(oldest, next);
            }
        }
    }

    /// Where the newest ends; 0: there is none.
    pub(in crate::store) fn end(&self) -> Seq {
        self.0.last().map_or(Seq(0), |gap| gap.last)
    }

    /// The newest.
    pub(in crate::store) fn newest(&self) -> Option<&ReceiptGap> {
        self.0.last()
    }

    /// The first that isn't wholly at or before the cursor.
    pub(in crate::store) fn behind(&self, cursor: Seq) -> Option<&ReceiptGap> {
        self.0.iter().find(|gap| gap.last > cursor)
    }

    /// All that aren't wholly at or before the cursor.
    pub(in crate::store) fn unread(&self, cursor: Seq) -> Vec<ReceiptGap> {
        self.0.iter().filter(|gap| gap.last > cursor && gap.events > 0).cloned().collect()
    }

    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        for gap in &self.0 {
            put(out, gap);
        }
    }

    pub(in crate::store) fn decode(from: &mut Take<'_>) -> Result<Self, Malformed> {
        let mut gaps = Self::default();
        for _ in 0..from.varint()? {
            gaps.insert(take(from)?);
        }
        Ok(gaps)
    }
}

/// Two that follow each other as one.
pub(in crate::store) fn joined(first: ReceiptGap, second: &ReceiptGap) -> ReceiptGap {
    let mut gap = ReceiptGap { last: second.last, events: first.events + second.events, ..first };
    for (event, count) in &second.by_event {
        *gap.by_event.entry(event.clone()).or_default() += count;
    }
    gap
}

pub(super) fn put(out: &mut Vec<u8>, gap: &ReceiptGap) {
    put_u64(out, gap.first.0);
    put_u64(out, gap.last.0);
    put_varint(out, gap.by_event.len() as u64);
    for (event, count) in &gap.by_event {
        put_bytes(out, event.as_bytes());
        put_varint(out, *count);
    }
}

pub(in crate::store) fn take(take: &mut Take<'_>) -> Result<ReceiptGap, Malformed> {
    let mut gap = ReceiptGap::new(Seq(take.u64()?), Seq(take.u64()?));
    let kinds = take.varint()?;
    if kinds > KINDS || gap.first > gap.last {
        return Err(Malformed);
    }
    for _ in 0..kinds {
        let event = take.text()?.to_owned();
        gap.count(&event, take.varint()?);
    }
    Ok(gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(first: u64, last: u64, events: u64) -> ReceiptGap {
        let mut gap = ReceiptGap::new(Seq(first), Seq(last));
        gap.count("arrive", events);
        gap
    }

    #[test]
    fn a_longer_gap_takes_the_place_of_what_it_covers() {
        let mut gaps = Gaps::default();
        gaps.insert(gap(3, 7, 2));
        gaps.insert(gap(3, 9, 5));
        gaps.insert(gap(20, 30, 1));
        assert_eq!(gaps.0, [gap(3, 9, 5), gap(20, 30, 1)]);
        assert_eq!((gaps.end(), gaps.behind(Seq(8)).map(|gap| gap.first)), (Seq(30), Some(Seq(3))));
        assert_eq!(gaps.behind(Seq(9)).map(|gap| gap.first), Some(Seq(20)));
        assert_eq!(gaps.behind(Seq(30)), None);
        let mut bytes = Vec::new();
        gaps.encode(&mut bytes);
        assert_eq!(Gaps::decode(&mut Take(&bytes)), Ok(gaps));
    }

    #[test]
    fn there_are_never_many_and_no_event_is_forgotten() {
        let mut gaps = Gaps::default();
        for n in 0..100 {
            gaps.insert(gap(n * 10 + 1, n * 10 + 10, 1));
        }
        assert_eq!(gaps.0.len(), MAX_GAPS);
        assert_eq!(gaps.0.iter().map(|gap| gap.events).sum::<u64>(), 100);
        assert_eq!((gaps.0[0].first, gaps.0[0].by_event["arrive"]), (Seq(1), 69));
    }

    #[test]
    fn what_is_new_covers_what_it_replaces_and_nothing_beside_it() {
        let mut gaps = Gaps::default();
        for gap in [gap(20, 20, 1), gap(7, 7, 1), gap(9, 9, 1), gap(10, 12, 1), gap(6, 6, 1)] {
            gaps.insert(gap);
        }
        // One that grew from a single sequence, and covers another one up to its last.
        gaps.insert(gap(7, 9, 2));
        assert_eq!(gaps.0, [gap(6, 6, 1), gap(7, 9, 2), gap(10, 12, 1), gap(20, 20, 1)]);
    }

    #[test]
    fn of_too_many_that_lie_apart_the_oldest_goes() {
        let apart = |n: u64| gap(n * 10 + 1, n * 10 + 9, n);
        let mut gaps = Gaps::default();
        (1..=MAX_GAPS as u64).for_each(|n| gaps.insert(apart(n)));
        assert_eq!(gaps.0.first(), Some(&apart(1)), "as many as there may be");
        gaps.insert(apart(MAX_GAPS as u64 + 1));
        assert_eq!((gaps.0.len(), gaps.0.first()), (MAX_GAPS, Some(&apart(2))), "its reader is past it");
    }

    #[test]
    fn what_is_no_gap_is_malformed() {
        let taken = |gap: &ReceiptGap| {
            let mut bytes = Vec::new();
            put(&mut bytes, gap);
            take(&mut Take(&bytes))
        };
        let of_kinds = |kinds: u64| {
            let mut gap = ReceiptGap::new(Seq(3), Seq(3));
            (0..kinds).for_each(|kind| gap.count(&format!("kind {kind}"), 2));
            gap
        };
        for whole in [gap(5, 5, 3), of_kinds(0), of_kinds(KINDS)] {
            assert_eq!(taken(&whole), Ok(whole));
        }
        for no_gap in [gap(6, 5, 3), of_kinds(KINDS + 1)] {
            assert_eq!(taken(&no_gap), Err(Malformed));
        }
    }
}
