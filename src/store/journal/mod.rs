//! The journal: one sequence of records, durable in commit groups, in segment files that go away from the oldest end only.
//!
//! ```text
//! journal-0000000007.seg   the oldest: removed by remove_oldest, once nothing needs it
//! journal-0000000008.seg   full
//! journal-0000000009.seg   the active one: groups are appended and synced here
//! spare-3.seg …            preallocated zeros: the next segment, and the reserve
//! ```
//!
//! # Invariants
//! - One group is written and synced before the next one is begun. So every group but the very last of the journal is durable, and
//!   every segment but the last is durable as a whole: what is bad there is corruption, never a torn write.
//! - A segment with a torn end is never appended to again: the next group opens a new segment, whose header says where the valid bytes of
//!   the one before end. So torn bytes stay what they are and never mix with live ones.
//! - Rolling only renames a preallocated file; it needs no space on the disk. [`Journal::stage`] refuses what would not fit into the
//!   segments that are there, so [`Journal::commit`] fails only if the disk does.
//! - After a failed write or sync the journal is poisoned. What the sync dropped may still be shown by reads; therefore a recovery writes the
//!   last group once more before it syncs it, instead of syncing pages that only look clean.
//!
//! # Rejected
//! A sync of the new segment's header before its first group: the group's own sync makes both durable, and neither counts without the other.
//! Appending to a torn segment after zeroing its end: one write and one sync more at every recovery, to save a part of a file.
//! Reusing old segments as spares: saves an allocation, but old groups then lie where new ones are searched.

use std::sync::Arc;

use crate::ids::Seq;
use crate::limits;
use crate::push::Millis;

use super::disk::{Disk, DiskFile, SyncPoint};
use format::{GROUP_HEADER, GroupHeader, RECORD_HEADER, SEGMENT_HEADER, Salt, SegmentHeader};
use segments::{Segment, Shared};

pub use reader::{JournalReader, Position};
pub use segments::name as segment_name;
pub use types::{
    Damage, GROUP_OVERHEAD, JournalError, JournalOptions, Place, RECORD_OVERHEAD, ReadError, Record,
    Recovery, Room, SegmentState,
};

mod format;
mod reader;
mod recover;
mod segments;
mod spares;
mod types;
mod walk;

/// A group being staged: bytes for one segment.
#[derive(Debug)]
struct Part {
    segment: u32,
    offset: u32,
    first: Seq,
    count: u32,
    /// The group header's place, then the records.
    bytes: Vec<u8>,
}

impl Part {
    fn end(&self) -> u64 {
        u64::from(self.offset) + self.bytes.len().next_multiple_of(8) as u64
    }
}

/// The writer: one per data directory.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    disk: Arc<D>,
    options: JournalOptions,
    salt: Salt,
    shared: Arc<Shared<D>>,
    /// Where the next group goes.
    active: Active,
    /// Names of the spare files, the first is used first.
    spares: Vec<String>,
    next_spare: u64,
    /// Bytes of all its files at the start.
    found_bytes: u64,
    parts: Vec<Part>,
    /// An old group's memory, for the next one.
    buffer: Vec<u8>,
    next: Seq,
    poisoned: bool,
}

/// The segment that is appended to.
#[derive(Clone, Copy, Debug)]
struct Active {
    id: u32,
    /// Where the next group goes; valid bytes end here.
    end: u32,
    /// Where the segment ends for new groups: its size, or `end` if it is sealed.
    limit: u32,
}

impl<D: Disk> Journal<D> {
    /// The sequence that the next staged record gets.
    pub fn next_seq(&self) -> Seq {
        self.next
    }

    /// The newest durable sequence.
    pub fn head(&self) -> Seq {
        self.shared.head()
    }

    /// A reader of durable records, for any thread.
    pub fn reader(&self) -> JournalReader<D> {
        JournalReader::new(Arc::clone(&self.shared))
    }

    /// Bytes staged and not committed.
    pub fn staged_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum()
    }

    /// Bytes of all files of the journal, spares included.
    pub fn file_bytes(&self) -> u64 {
        let segments: u64 = self.shared.segments().iter().map(|segment| segment.size).sum();
        segments + self.spares.len() as u64 * u64::from(self.options.segment_bytes)
    }

    /// What can still be staged.
    pub fn room(&self) -> Room {
        let capacity = u64::from(self.options.segment_bytes - SEGMENT_HEADER - GROUP_HEADER);
        let here = match self.parts.last() {
            Some(part) => u64::from(self.limit_of(part.segment)).saturating_sub(part.end()),
            None => u64::from(self.active.limit.saturating_sub(self.active.end + GROUP_HEADER)),
        };
        let (spares, reserve) = (self.spares_left(), self.options.reserve_segments as usize);
        // With a spare of the reserve in use, the rest of that segment is reserve too.
        let before_reserve = spares.checked_sub(reserve).map_or(0, |free| here + free as u64 * capacity);
        Room { before_reserve, total: here + spares as u64 * capacity }
    }

    /// Whether a record of this payload can be staged now: with the help of the reserve, or without.
    pub fn fits(&self, payload: usize, with_reserve: bool) -> bool {
        let spares = self.spares_left();
        let reserve = if with_reserve { 0 } else { self.options.reserve_segments as usize };
        spares >= reserve && self.fits_here(payload) || spares > reserve && self.fits_segment(payload)
    }

    /// Spares that what is staged doesn't need yet.
    fn spares_left(&self) -> usize {
        self.spares.len() - self.parts.iter().filter(|part| part.segment != self.active.id).count()
    }

    fn limit_of(&self, segment: u32) -> u32 {
        if segment == self.active.id { self.active.limit } else { self.options.segment_bytes }
    }

    fn fits_segment(&self, payload: usize) -> bool {
        let whole = u64::from(SEGMENT_HEADER + GROUP_HEADER + RECORD_HEADER) + payload as u64;
        whole.next_multiple_of(8) <= u64::from(self.options.segment_bytes)
    }

    /// Whether the record fits into the segment that is being staged for.
    fn fits_here(&self, payload: usize) -> bool {
        let record = u64::from(RECORD_HEADER) + payload as u64;
        let (end, limit) = match self.parts.last() {
            Some(part) => (u64::from(part.offset) + part.bytes.len() as u64, self.limit_of(part.segment)),
            None => (u64::from(self.active.end) + u64::from(GROUP_HEADER), self.active.limit),
        };
        (end + record).next_multiple_of(8) <= u64::from(limit)
    }

    /// Appends a record to the group being staged. Its sequence and place are final, but it counts only after [`Journal::commit`].
    pub fn stage(&mut self, kind: u8, payload: &[u8]) -> Result<(Seq, Place), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        if !self.fits_here(payload.len()) {
            if !self.fits_segment(payload.len()) {
                return Err(JournalError::TooLarge(payload.len()));
            }
            if self.spares_left() == 0 {
                return Err(JournalError::Full);
            }
            let segment = self.parts.last().map_or(self.active.id, |part| part.segment) + 1;
            self.begin_part(segment, SEGMENT_HEADER);
        } else if self.parts.is_empty() {
            self.begin_part(self.active.id, self.active.end);
        }
        let (seq, salt) = (self.next, self.salt);
        let part = self.parts.last_mut().expect("a part was begun above");
        let place = Place { segment: part.segment, offset: part.offset + part.bytes.len() as u32 };
        format::encode_record(&mut part.bytes, seq, kind, payload, salt);
        part.count += 1;
        self.next = Seq(seq.0 + 1);
        Ok((seq, place))
    }

    fn begin_part(&mut self, segment: u32, offset: u32) {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        bytes.resize(GROUP_HEADER as usize, 0);
        self.parts.push(Part { segment, offset, first: self.next, count: 0, bytes });
    }

    /// Writes what is staged and makes it durable; the answer is the newest durable sequence. With nothing staged it does nothing. After an error
    /// every later call fails: whether the records are durable is known only to the next recovery.
    pub fn commit(&mut self, time: Millis) -> Result<Seq, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        for part in std::mem::take(&mut self.parts) {
            self.write_part(part, time).inspect_err(|_| self.poisoned = true)?;
        }
        Ok(self.head())
    }

    /// One group in one segment. Each is synced before the next is begun: see the invariants.
    fn write_part(&mut self, mut part: Part, time: Millis) -> Result<(), JournalError> {
        if part.segment != self.active.id {
            self.roll(part.segment, part.first)?;
        }
        part.bytes.resize(part.bytes.len().next_multiple_of(8), 0);
        let length = part.bytes.len() as u32;
        let header =
            GroupHeader { length, count: part.count, first: part.first, synced_before: self.head(), time };
        header.encode(&mut part.bytes, part.segment, part.offset, self.salt);
        let segment = self.shared.newest().expect("the active segment is listed");
        let doing = || format!("writing {}", segments::name(part.segment));
        segment.file.write_at(&part.bytes, u64::from(part.offset)).map_err(JournalError::io(doing()))?;
        segment.file.sync(SyncPoint::GroupCommit).map_err(JournalError::io(doing()))?;
        self.active.end = part.offset + length;
        self.shared.advance(&segment, self.active.end, header.last());
        if part.bytes.capacity() <= limits::GROUP_BYTES * 2 {
            self.buffer = part.bytes;
        }
        Ok(())
    }

    /// Makes a spare file the next segment. All groups of the one before are durable: each was synced at its commit.
    fn roll(&mut self, id: u32, first: Seq) -> Result<(), JournalError> {
        let name = segments::name(id);
        let spare = self.spares.remove(0);
        let doing = || format!("making {spare} the segment {name}");
        let file = self.disk.open(&spare).map_err(JournalError::io(doing()))?;
        let header = SegmentHeader { id, first, previous_end: self.active.end };
        file.write_at(&header.encode(self.salt), 0).map_err(JournalError::io(doing()))?;
        self.disk.rename(&spare, &name).map_err(JournalError::io(doing()))?;
        self.disk.sync_dir(SyncPoint::SegmentEntry).map_err(JournalError::io(doing()))?;
        let size = u64::from(self.options.segment_bytes);
        self.shared.push(Segment::new(id, first, Arc::new(file), size, SEGMENT_HEADER, Seq(first.0 - 1)));
        self.active = Active { id, end: SEGMENT_HEADER, limit: self.options.segment_bytes };
        Ok(())
    }

    /// The segments in use, oldest first.
    pub fn segments(&self) -> Vec<SegmentState> {
        self.shared.states(self.active.id)
    }

    /// Removes the oldest segment. The caller answers for it that nothing needs it, even after a power loss. Its entry may come back with one.
    pub fn remove_oldest(&mut self) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let id = self.shared.oldest().filter(|&id| id < self.active.id).ok_or(JournalError::Active)?;
        let name = segments::name(id);
        self.disk.remove(&name).map_err(JournalError::io(format!("removing {name}")))?;
        self.shared.remove_oldest();
        Ok(())
    }
}
