//! Reading durable records while the writer goes on: single ones by their place, and the sequence from any point.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ids::Seq;

use super::format::{GROUP_HEADER, GroupHeader, RECORD_HEADER, RawRecord, SEGMENT_HEADER, record_length};
use super::segments::{Segment, Shared};
use super::walk::{Group, Stretch};
use super::{Disk, DiskFile, Place, ReadError, Record};

/// Bytes that a scan reads at once.
const WINDOW: u32 = 256 * 1024;
/// Bytes that a single read begins with: most records fit.
const FIRST_READ: u32 = 4 * 1024;

/// Where a scan ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The group that it ended in, or where the next one will be.
    group: Place,
    /// Within that, where its next record is, and which.
    inside: Option<(u32, Seq)>,
}

/// Reads durable records, on any thread.
#[derive(Debug)]
pub struct JournalReader<D: Disk> {
    shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for JournalReader<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<D: Disk> JournalReader<D> {
    pub(super) fn new(shared: Arc<Shared<D>>) -> Self {
        Self { shared }
    }

    /// The newest durable sequence.
    pub fn head(&self) -> Seq {
        self.shared.head()
    }

    /// The first sequence that is still kept, or the next one if there is none.
    pub fn oldest(&self) -> Seq {
        self.shared.first().unwrap_or(Seq(self.head().0 + 1))
    }

    /// The cursor before the newest segments that together have about so many bytes.
    pub fn tail(&self, bytes: u64) -> Seq {
        let (mut seen, mut after) = (0, self.head());
        for segment in self.shared.segments().iter().rev() {
            seen += u64::from(segment.end());
            if seen > bytes && after < self.head() {
                break;
            }
            after = after.min(Seq(segment.first.0.saturating_sub(1)));
        }
        after
    }

    /// Damaged places that scans have passed so far.
    pub fn damaged(&self) -> u64 {
        self.shared.damaged.load(Ordering::Relaxed)
    }

    /// Those of them that no call has answered yet.
    pub fn unreported(&self) -> u64 {
        let all = self.damaged();
        all.saturating_sub(self.shared.reported.fetch_max(all, Ordering::Relaxed))
    }

    /// The record at a place: its sequence, kind and payload.
    pub fn read(&self, place: Place) -> Result<(Seq, u8, Vec<u8>), ReadError> {
        let segment = self.shared.find(place.segment).ok_or(ReadError::Gone)?;
        let available = segment.end().saturating_sub(place.offset);
        let mut bytes = vec![0; available.min(FIRST_READ) as usize];
        read_exact(&segment, &mut bytes, place.offset)?;
        let length = record_length(&bytes).filter(|&length| length <= available as usize);
        let length = length.ok_or(ReadError::Damaged(place))?;
        let read = bytes.len().min(length);
        bytes.resize(length, 0);
        if read < length {
            read_exact(&segment, &mut bytes[read..], place.offset + read as u32)?;
        }
        let record = RawRecord::decode(&bytes, self.shared.salt).ok_or(ReadError::Damaged(place))?;
        let (seq, kind) = (record.seq, record.kind);
        bytes.drain(..RECORD_HEADER as usize);
        Ok((seq, kind, bytes))
    }

    /// Hands the durable records after `after` to `f`, in order, until it says stop or there are no more. `position` remembers where a call
    /// ended, so that the next one with the same `after` or a later one starts there; a wrong one only costs a search. Damaged records
    /// are passed over and counted; `Gone` if the record after `after`, or what comes next, is not kept any more.
    pub fn scan(
        &self,
        after: Seq,
        position: &mut Option<Position>,
        f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if after >= self.head() {
            return Ok(());
        }
        let (mut segment, mut at, mut inside) =
            match position.and_then(|position| self.resume(after, position)) {
                Some(start) => start,
                None => (self.shared.holding(Seq(after.0 + 1)).ok_or(ReadError::Gone)?, SEGMENT_HEADER, None),
            };
        let mut buffer = self.shared.take_buffer();
        loop {
            let mut window = Window::new(&self.shared, &segment, buffer);
            let mut stopped = false;
            while !stopped && at < window.end {
                let Some(header) = window.header(at, after)? else {
                    self.shared.count_damage(Place { segment: segment.id, offset: at });
                    (at, inside) = (window.next_group(at)?, None);
                    continue;
                };
                let begin = inside.take().unwrap_or((at + GROUP_HEADER, header.first));
                let passed = if header.last() > after {
                    window.pass(at, &header, begin, after, f)?
                } else {
                    Passed::All
                };
                stopped = match passed {
                    Passed::All => false,
                    Passed::Stopped(next) => {
                        inside = Some(next);
                        true
                    }
                    Passed::Bad(next) => {
                        let group = window.load(at, header.length)?.group_at(at);
                        let after = after.max(Seq(next.0.saturating_sub(1)));
                        group.is_some_and(|group| self.hand_over(&group, segment.id, after, f).is_break())
                    }
                };
                if !stopped {
                    at += header.length;
                }
            }
            *position = Some(Position { group: Place { segment: segment.id, offset: at }, inside });
            let seen = window.end;
            buffer = window.buffer;
            if stopped {
                self.shared.keep_buffer(buffer);
                return Ok(());
            }
            match self.shared.following(segment.id)? {
                // What was committed here before the next segment began, while `f` had its time.
                Some(_) if segment.end() > seen => {}
                Some(next) => (segment, at) = (next, SEGMENT_HEADER),
                None => {
                    self.shared.keep_buffer(buffer);
                    return Ok(());
                }
            }
        }
    }

    fn hand_over(
        &self,
        group: &Group<'_>,
        segment: u32,
        after: Seq,
        f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let group_time = group.header.time;
        for record in group.records() {
            match record {
                Ok((offset, raw)) if raw.seq > after => {
                    let place = Place { segment, offset };
                    f(Record { seq: raw.seq, kind: raw.kind, payload: raw.payload, place, group_time })?;
                }
                Err((offset, _, last)) if last > after => {
                    self.shared.count_damage(Place { segment, offset });
                }
                // What lies before is nobody's question.
                Ok(_) | Err(_) => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Where an earlier scan ended, if everything after `after` is there or behind.
    fn resume(&self, after: Seq, position: Position) -> Option<Start<D>> {
        let Position { group: place, inside } = position;
        let segment = self.shared.find(place.segment)?;
        let end = segment.end();
        if place.offset >= end {
            return (place.offset == end && segment.last() <= after).then_some((segment, place.offset, None));
        }
        let mut bytes = [0; GROUP_HEADER as usize];
        read_exact(&segment, &mut bytes, place.offset).ok()?;
        let header = GroupHeader::decode(&bytes, segment.id, place.offset, self.shared.salt)?;
        let inside = inside.filter(|(_, next)| next.0 <= after.0 + 1);
        (header.first.0 <= after.0 + 1).then_some((segment, place.offset, inside))
    }
}

fn read_exact<D: Disk>(segment: &Segment<D>, buffer: &mut [u8], offset: u32) -> io::Result<()> {
    let read = segment.file.read_at(buffer, u64::from(offset))?;
    if read < buffer.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Where a scan begins: in which segment, at which group, and at which record of that.
type Start<D> = (Arc<Segment<D>>, u32, Option<(u32, Seq)>);

/// How far a group was read.
enum Passed {
    All,
    /// Somebody has enough; behind what he has, where the next record is, and which.
    Stopped((u32, Seq)),
    /// This one isn't whole.
    Bad(Seq),
}

/// A part of a segment in memory.
struct Window<'a, D: Disk> {
    shared: &'a Shared<D>,
    segment: &'a Segment<D>,
    /// Where its durable bytes end.
    end: u32,
    base: u32,
    /// So many bytes of the buffer are the segment's; the rest is of no meaning.
    loaded: usize,
    buffer: Vec<u8>,
}

impl<'a, D: Disk> Window<'a, D> {
    fn new(shared: &'a Shared<D>, segment: &'a Segment<D>, buffer: Vec<u8>) -> Self {
        Self { shared, segment, end: segment.end(), base: 0, loaded: 0, buffer }
    }

    /// Has the bytes from `at` on in memory, `length` of them at least, as far as there are so many. It goes forward, but for a group
    /// that has to be looked at once more as a whole.
    fn load(&mut self, at: u32, length: u32) -> io::Result<Stretch<'_>> {
        let wanted_end = self.end.min(at.saturating_add(length));
        let loaded_end = self.base + self.loaded as u32;
        if wanted_end > loaded_end || at < self.base {
            let end = self.end.min(at.saturating_add(length.max(WINDOW)));
            let length = (end - at) as usize;
            if self.buffer.len() < length {
                self.buffer.resize(length, 0);
            }
            self.loaded = 0;
            read_exact(self.segment, &mut self.buffer[..length], at)?;
            (self.base, self.loaded) = (at, length);
        }
        let bytes = &self.buffer[(at - self.base) as usize..self.loaded];
        Ok(Stretch { segment: self.segment.id, base: at, bytes, salt: self.shared.salt })
    }

    /// The header of the group at `at`, if there is one.
    fn header(&mut self, at: u32, after: Seq) -> io::Result<Option<GroupHeader>> {
        let (segment, salt, left) = (self.segment.id, self.shared.salt, self.end - at);
        let header = GroupHeader::decode(self.load(at, GROUP_HEADER)?.bytes, segment, at, salt);
        Ok(header.filter(|header| header.last() <= after || header.length <= left))
    }

    /// Where the next group begins behind a damaged header, or else where the segment ends.
    fn next_group(&mut self, at: u32) -> io::Result<u32> {
        let end = self.end;
        Ok(self.load(at, end - at)?.find_group(at + 8).map_or(end, |group| group.at))
    }

    /// Hands over the records of a group behind `after`, from one of them on, until one is bad. Of a large group not more is in memory than has to be.
    fn pass(
        &mut self,
        at: u32,
        header: &GroupHeader,
        (mut offset, mut next): (u32, Seq),
        after: Seq,
        f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> io::Result<Passed> {
        let (segment, end, salt) = (self.segment.id, at + header.length, self.shared.salt);
        while next <= header.last() {
            let left = end.saturating_sub(offset);
            if left < RECORD_HEADER {
                return Ok(Passed::Bad(next));
            }
            let length = record_length(self.load(offset, RECORD_HEADER)?.bytes);
            let Some(length) = length.filter(|length| *length <= left as usize) else {
                return Ok(Passed::Bad(next));
            };
            let bytes = self.load(offset, length as u32)?.bytes;
            let Some(raw) = RawRecord::decode(bytes, salt).filter(|raw| raw.seq == next) else {
                return Ok(Passed::Bad(next));
            };
            let place = Place { segment, offset };
            (offset, next) = (offset + raw.length(), Seq(next.0 + 1));
            let RawRecord { seq, kind, payload } = raw;
            let record = Record { seq, kind, payload, place, group_time: header.time };
            if seq > after && f(record).is_break() {
                return Ok(Passed::Stopped((offset, next)));
            }
        }
        Ok(Passed::All)
    }
}
