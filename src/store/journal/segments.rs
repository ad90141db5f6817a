//! The list of segments that the writer and its readers share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::fault::{self, Fault};
use crate::ids::Seq;

use super::format::Salt;
use super::{Disk, Place, ReadError, SegmentState};

/// Damaged places that are remembered so that no pass counts one again; beyond them the oldest segment's are forgotten first.
const DAMAGED_PLACES: usize = 4_096;
/// Bytes of a buffer that is kept.
const KEPT_BYTES: usize = 1024 * 1024;

/// The file name of a segment.
pub fn name(id: u32) -> String {
    format!("journal-{id:010}.seg")
}

/// The id in a segment's file name.
pub(super) fn parse_name(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("journal-")?.strip_suffix(".seg")?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// A segment with durable records.
#[derive(Debug)]
pub(super) struct Segment<D: Disk> {
    pub(super) id: u32,
    /// The sequence of its first record, there or to come.
    pub(super) first: Seq,
    pub(super) file: Arc<D::File>,
    /// Bytes of the file.
    pub(super) size: u64,
    /// Durable bytes.
    end: AtomicU32,
    /// The last durable sequence.
    last: AtomicU64,
}

impl<D: Disk> Segment<D> {
    pub(super) fn new(id: u32, first: Seq, file: Arc<D::File>, size: u64, end: u32, last: Seq) -> Self {
        Self { id, first, file, size, end: AtomicU32::new(end), last: AtomicU64::new(last.0) }
    }

    pub(super) fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn last(&self) -> Seq {
        Seq(self.last.load(Ordering::Acquire))
    }
}

/// What the writer publishes. An open file each segment: a thousand at 64 GiB in segments of 64 MiB.
#[derive(Debug)]
pub(super) struct Shared<D: Disk> {
    pub(super) salt: Salt,
    segments: RwLock<Vec<Arc<Segment<D>>>>,
    head: AtomicU64,
    /// Damaged places that readers skipped.
    pub(super) damaged: AtomicU64,
    /// Those that were counted, here or by the start.
    places: Mutex<BTreeSet<Place>>,
    /// How many were asked for by [`super::JournalReader::unreported`].
    pub(super) reported: AtomicU64,
    /// What a scan reads into, for the next one: memory that is new costs more than what is read into it.
    buffer: Mutex<Vec<u8>>,
}

impl<D: Disk> Shared<D> {
    /// `damaged`: places that were reported already.
    pub(super) fn new(
        salt: Salt,
        segments: Vec<Arc<Segment<D>>>,
        head: Seq,
        damaged: impl Iterator<Item = Place>,
    ) -> Self {
        let (segments, places) = (RwLock::new(segments), Mutex::new(damaged.take(DAMAGED_PLACES).collect()));
        let (head, damaged, reported) = (AtomicU64::new(head.0), AtomicU64::new(0), AtomicU64::new(0));
        Self { salt, segments, head, damaged, places, reported, buffer: Mutex::default() }
    }

    /// A buffer to read into; what is in it has no meaning.
    pub(super) fn take_buffer(&self) -> Vec<u8> {
        std::mem::take(&mut *self.buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// It is needed no more, and kept unless it is large.
    pub(super) fn keep_buffer(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= KEPT_BYTES {
            *self.buffer.lock().unwrap_or_else(PoisonError::into_inner) = buffer;
        }
    }

    /// A scan has passed damage: what stood there is missing from what it hands over. Counted once, however many scans pass it.
    pub(super) fn count_damage(&self, place: Place) {
        if fault::is(Fault::DamageUnsaid) {
            return;
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.insert(place) {
            return;
        }
        if places.len() > DAMAGED_PLACES {
            places.pop_first();
        }
        drop(places);
        tracing::error!(?place, "damage in the journal: what stood here is passed over");
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Segment<D>>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Segment<D>>>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head(&self) -> Seq {
        Seq(self.head.load(Ordering::Acquire))
    }

    pub(super) fn segments(&self) -> Vec<Arc<Segment<D>>> {
        self.read().clone()
    }

    pub(super) fn newest(&self) -> Option<Arc<Segment<D>>> {
        self.read().last().cloned()
    }

    pub(super) fn oldest(&self) -> Option<u32> {
        self.read().first().map(|segment| segment.id)
    }

    pub(super) fn first(&self) -> Option<Seq> {
        self.read().first().map(|segment| segment.first)
    }

    pub(super) fn find(&self, id: u32) -> Option<Arc<Segment<D>>> {
        let segments = self.read();
        segments
            .binary_search_by_key(&id, |segment| segment.id)
            .ok()
            .map(|index| Arc::clone(&segments[index]))
    }

    /// The segment behind this one; `None`: this one is the newest. `Gone`: it was removed.
    pub(super) fn following(&self, id: u32) -> Result<Option<Arc<Segment<D>>>, ReadError> {
        let segments = self.read();
        match segments.binary_search_by_key(&(id + 1), |segment| segment.id) {
            Ok(index) => Ok(Some(Arc::clone(&segments[index]))),
            Err(_) if segments.last().is_some_and(|newest| newest.id > id) => Err(ReadError::Gone),
            Err(_) => Ok(None),
        }
    }

    /// The segment in which the sequence is, or would be.
    pub(super) fn holding(&self, seq: Seq) -> Option<Arc<Segment<D>>> {
        let segments = self.read();
        let behind = segments.partition_point(|segment| segment.first <= seq);
        behind.checked_sub(1).map(|index| Arc::clone(&segments[index]))
    }

    pub(super) fn push(&self, segment: Segment<D>) {
        self.write().push(Arc::new(segment));
    }

    pub(super) fn remove_oldest(&self) {
        self.write().remove(0);
    }

    /// A group became durable.
    pub(super) fn advance(&self, segment: &Segment<D>, end: u32, last: Seq) {
        segment.last.store(last.0, Ordering::Release);
        segment.end.store(end, Ordering::Release);
        self.head.store(last.0, Ordering::Release);
    }

    pub(super) fn states(&self, active: u32) -> Vec<SegmentState> {
        let state = |segment: &Arc<Segment<D>>| SegmentState {
            id: segment.id,
            first: segment.first,
            last: segment.last(),
            used: segment.end(),
            size: segment.size,
            active: segment.id == active,
        };
        self.read().iter().map(state).collect()
    }
}
