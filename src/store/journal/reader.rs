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
        position: &mut Option<Place>,
        f: &mut dyn FnMut(Record<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        if after >= self.head() {
            return Ok(());
        }
        let (mut segment, mut at) = match position.and_then(|place| self.resume(after, place)) {
            Some(start) => start,
            None => (self.shared.holding(Seq(after.0 + 1)).ok_or(ReadError::Gone)?, SEGMENT_HEADER),
        };
        loop {
            let mut window = Window::new(&self.shared, &segment);
            let mut stopped = false;
            while !stopped && at < window.end {
                let Some(group) = window.group(at, after)? else {
                    at = window.end;
                    break;
                };
                at = group.at;
                stopped = group.bytes.len() > GROUP_HEADER as usize
                    && self.hand_over(&group, segment.id, after, f).is_break();
                if !stopped {
                    at = group.end();
                }
            }
            *position = Some(Place { segment: segment.id, offset: at });
            if stopped {
                return Ok(());
            }
            let (next, seen) = (self.shared.following(segment.id)?, window.end);
            match next {
                // What was committed here before the next segment began, while `f` had its time.
                Some(_) if segment.end() > seen => {}
                Some(next) => (segment, at) = (next, SEGMENT_HEADER),
                None => return Ok(()),
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
    fn resume(&self, after: Seq, place: Place) -> Option<(Arc<Segment<D>>, u32)> {
        let segment = self.shared.find(place.segment)?;
        let end = segment.end();
        if place.offset >= end {
            return (place.offset == end && segment.last() <= after).then_some((segment, place.offset));
        }
        let mut bytes = [0; GROUP_HEADER as usize];
        read_exact(&segment, &mut bytes, place.offset).ok()?;
        let header = GroupHeader::decode(&bytes, segment.id, place.offset, self.shared.salt)?;
        (header.first.0 <= after.0 + 1).then_some((segment, place.offset))
    }
}

fn read_exact<D: Disk>(segment: &Segment<D>, buffer: &mut [u8], offset: u32) -> io::Result<()> {
    let read = segment.file.read_at(buffer, u64::from(offset))?;
    if read < buffer.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// A part of a segment in memory.
struct Window<'a, D: Disk> {
    shared: &'a Shared<D>,
    segment: &'a Segment<D>,
    /// Where its durable bytes end.
    end: u32,
    base: u32,
    bytes: Vec<u8>,
}

impl<'a, D: Disk> Window<'a, D> {
    fn new(shared: &'a Shared<D>, segment: &'a Segment<D>) -> Self {
        Self { shared, segment, end: segment.end(), base: 0, bytes: Vec::new() }
    }

    /// Has the bytes from `at` on in memory, `length` of them at least, as far as there are so many. It only goes forward.
    fn load(&mut self, at: u32, length: u32) -> io::Result<Stretch<'_>> {
        let wanted_end = self.end.min(at.saturating_add(length));
        let loaded_end = self.base + self.bytes.len() as u32;
        if wanted_end > loaded_end {
            let end = self.end.min(at.saturating_add(length.max(WINDOW)));
            self.bytes.clear();
            self.bytes.resize((end - at) as usize, 0);
            self.base = at;
            read_exact(self.segment, &mut self.bytes, at)?;
        }
        let bytes = &self.bytes[(at - self.base) as usize..];
        Ok(Stretch { segment: self.segment.id, base: at, bytes, salt: self.shared.salt })
    }

    /// The group at `at`, or behind damage the next one. Of one with nothing after `after` only the header is sure to be read.
    fn group(&mut self, at: u32, after: Seq) -> io::Result<Option<Group<'_>>> {
        let (segment, salt) = (self.segment.id, self.shared.salt);
        let start = self.load(at, GROUP_HEADER)?;
        match GroupHeader::decode(start.bytes, segment, at, salt) {
            Some(header) if header.last() <= after => Ok(Some(Group::passed(at, header, salt))),
            Some(header) if header.length <= self.end - at => Ok(self.load(at, header.length)?.group_at(at)),
            _ => {
                self.shared.count_damage(Place { segment, offset: at });
                Ok(self.load(at, self.end - at)?.find_group(at + 8))
            }
        }
    }
}
