//! Which positions are whose: a cursor is a position *in a history*.
//!
//! A data directory that was put back from an older copy gives numbers a second time, to other events. By its number alone a router's cursor
//! of the lost time would be beyond the head at first, and look good as soon as the edge has come that far again; what was written in between
//! the router would never get. So each start begins a history: a random number, in a record that is durable before any event of
//! that run is. A router is told the number and keeps it beside its cursors.
//!
//! A history's positions are those before the next one's record: what it wrote, and all that it found. A cursor is good if its history is
//! known here and the position is one of it. A start after a crash or a stop changes nothing of that: what was sent was durable, and so lies
//! before the next history. After a restore the history of the lost time is either unknown, or ends before the position.
//!
//! A start that finds not even room for that record goes on in the history before until there is some: it writes nothing else either.
//!
//! Only the newest [`limits::HISTORIES`] are known. A cursor of an older one is refused like one of the lost time, and its router does the
//! same: it opens where the edge believes it to be. Rejected: a number made once for each data directory (a copy has the same one), and the
//! digest of the record at the cursor (the record may be trimmed, which a cursor at the oldest kept survives).

use std::collections::VecDeque;

use crate::ids::{HistoryId, Seq};
use crate::limits;
use crate::store::codec::{Malformed, Take, put_u64, put_varint};

/// The histories of a data directory, the oldest known first, each with the sequence of its record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::store) struct Histories(VecDeque<(HistoryId, Seq)>);

impl Histories {
    /// From its record on, everything is of this one.
    pub(in crate::store) fn begin(&mut self, id: HistoryId, seq: Seq) {
        self.0.push_back((id, seq));
        if self.0.len() > limits::HISTORIES {
            self.0.pop_front();
        }
    }

    /// The present one.
    pub(in crate::store) fn newest(&self) -> Option<HistoryId> {
        self.0.back().map(|(id, _)| *id)
    }

    /// Whether the position is one of a history that is known here; the present one has no end.
    pub(in crate::store) fn has(&self, id: HistoryId, position: Seq) -> bool {
        let Some(at) = self.0.iter().rposition(|(known, _)| *known == id) else { return false };
        self.0.get(at + 1).is_none_or(|(_, next)| position < *next)
    }

    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.0.len() as u64);
        for (id, seq) in &self.0 {
            put_u64(out, id.get());
            put_u64(out, seq.0);
        }
    }

    pub(in crate::store) fn decode(take: &mut Take<'_>) -> Result<Self, Malformed> {
        let mut histories = Self::default();
        for _ in 0..take.varint()? {
            let id = HistoryId::new(take.u64()?).ok_or(Malformed)?;
            histories.begin(id, Seq(take.u64()?));
        }
        Ok(histories)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> HistoryId {
        HistoryId::new(number).expect("not zero")
    }

    #[test]
    fn a_history_has_what_it_found_and_what_it_wrote_and_nothing_of_the_next() {
        let mut histories = Histories::default();
        assert!(histories.newest().is_none() && !histories.has(id(1), Seq(0)));
        histories.begin(id(1), Seq(1));
        histories.begin(id(2), Seq(100));
        assert_eq!(histories.newest(), Some(id(2)));
        let has = |number, position| histories.has(id(number), Seq(position));
        assert!(has(1, 0) && has(1, 99) && !has(1, 100) && !has(1, 101));
        assert!(has(2, 0) && has(2, 99) && has(2, 100) && has(2, u64::MAX));
        assert!(!has(3, 0));

        let mut bytes = Vec::new();
        histories.encode(&mut bytes);
        assert_eq!(Histories::decode(&mut Take(&bytes)).as_ref(), Ok(&histories));
        for cut in 0..bytes.len() {
            assert!(Histories::decode(&mut Take(&bytes[..cut])).is_err(), "{cut}");
        }
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut histories = Histories::default();
        for number in 1..=limits::HISTORIES as u64 + 1 {
            histories.begin(id(number), Seq(number * 10));
        }
        assert!(!histories.has(id(1), Seq(1)) && histories.has(id(2), Seq(1)));
        assert!(!histories.has(id(2), Seq(30)) && histories.has(id(2), Seq(29)));
    }
}
