//! Finding groups and records in the bytes of a segment, past damage.

use crate::ids::Seq;

use super::format::{GROUP_HEADER, GroupHeader, RawRecord, Salt, record_length, record_seq};

/// Zeros that are passed at once.
const ZEROS: usize = 4_096;

/// Bytes of a segment from `base` on.
#[derive(Clone, Copy)]
pub(super) struct Stretch<'a> {
    pub(super) segment: u32,
    pub(super) base: u32,
    pub(super) bytes: &'a [u8],
    pub(super) salt: Salt,
}

impl<'a> Stretch<'a> {
    /// The group whose header is at `at`, if it is valid and lies within these bytes.
    pub(super) fn group_at(&self, at: u32) -> Option<Group<'a>> {
        let bytes = self.bytes.get((at - self.base) as usize..)?;
        let header = GroupHeader::decode(bytes, self.segment, at, self.salt)?;
        let bytes = bytes.get(..header.length as usize)?;
        Some(Group { at, header, bytes, salt: self.salt })
    }

    /// The first group at or behind `from`; headers are aligned to 8 bytes, and none begins with zeros.
    pub(super) fn find_group(&self, from: u32) -> Option<Group<'a>> {
        let end = from + self.written_behind(from) as u32;
        (from.next_multiple_of(8)..end).step_by(8).find_map(|at| self.group_at(at))
    }

    /// The group at `at`, or else the next one behind it.
    pub(super) fn group_from(&self, at: u32) -> Option<Group<'a>> {
        self.group_at(at).or_else(|| self.find_group(at.checked_add(8)?))
    }

    /// Bytes from `from` up to the last one that isn't 0. Nearly all of a young segment are zeros, and a start looks at each of them some times.
    pub(super) fn written_behind(&self, from: u32) -> u64 {
        let rest = self.bytes.get((from - self.base) as usize..).unwrap_or_default();
        let zeros: usize = rest.rchunks(ZEROS).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        let written = &rest[..rest.len() - zeros];
        written.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1)
    }
}

/// Whether there is nothing but zeros.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, byte| any | byte) == 0
}

/// A group with a valid header; its records may be damaged.
pub(super) struct Group<'a> {
    pub(super) at: u32,
    pub(super) header: GroupHeader,
    pub(super) bytes: &'a [u8],
    salt: Salt,
}

impl<'a> Group<'a> {
    /// Where the next group begins.
    pub(super) fn end(&self) -> u32 {
        self.at + self.header.length
    }

    /// Whether every record is there.
    pub(super) fn is_whole(&self) -> bool {
        self.records().all(|record| record.is_ok())
    }

    /// Its records in order with their offsets in the segment; in place of damaged ones the range of sequences that is lost.
    pub(super) fn records(&self) -> Records<'a> {
        let Self { at, header, bytes, salt } = *self;
        Records { bytes, group: at, at: GROUP_HEADER as usize, next: header.first, last: header.last(), salt }
    }
}

/// See [`Group::records`].
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    group: u32,
    at: usize,
    next: Seq,
    last: Seq,
    salt: Salt,
}

impl<'a> Records<'a> {
    fn take(&mut self, at: usize, record: RawRecord<'a>) -> (u32, RawRecord<'a>) {
        self.at = at + record.length() as usize;
        self.next = Seq(record.seq.0 + 1);
        (self.group + at as u32, record)
    }

    fn decode(&self, at: usize) -> Option<RawRecord<'a>> {
        RawRecord::decode(self.bytes.get(at..)?, self.salt)
    }

    /// The next good record behind a bad one: where the bad one says it ends, or else at any byte, as its length may be what is bad.
    fn resume(&self) -> Option<usize> {
        let wanted = |at: usize| {
            let claimed = record_seq(self.bytes.get(at..)?)?;
            let good = claimed > self.next && claimed <= self.last && self.decode(at).is_some();
            good.then_some(at)
        };
        let claimed_end =
            self.bytes.get(self.at..).and_then(record_length).and_then(|length| self.at.checked_add(length));
        claimed_end.and_then(wanted).or_else(|| (self.at + 1..self.bytes.len()).find_map(wanted))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(u32, RawRecord<'a>), (u32, Seq, Seq)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next > self.last {
            return None;
        }
        match self.decode(self.at) {
            Some(record) if record.seq == self.next => Some(Ok(self.take(self.at, record))),
            _ => {
                let (at, first) = (self.group + self.at as u32, self.next);
                let next = self.resume();
                self.at = next.unwrap_or(self.bytes.len());
                let claimed = next.and_then(|at| record_seq(&self.bytes[at..]));
                self.next = claimed.unwrap_or(Seq(self.last.0 + 1));
                Some(Err((at, first, Seq(self.next.0 - 1))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_ends_with_the_last_byte_that_is_no_zero(
            written in proptest::collection::vec(any::<u8>(), 0..3 * ZEROS),
            zeros in 0..3 * ZEROS,
            from in 0..4 * ZEROS,
        ) {
            let bytes = [written, vec![0; zeros]].concat();
            let stretch = Stretch { segment: 1, base: 64, bytes: &bytes, salt: Salt(0) };
            let rest = bytes.get(from..).unwrap_or_default();
            let last = rest.iter().rposition(|&byte| byte != 0);
            prop_assert_eq!(stretch.written_behind(64 + from as u32), last.map_or(0, |last| last as u64 + 1));
        }
    }
}
