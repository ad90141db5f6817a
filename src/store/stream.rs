//! Streams: what goes upstream, read straight from the journal. A stream keeps one durable cursor, up to which its reader has
//! everything; what lies behind it keeps its segments from being trimmed, up to the hard bound: then the oldest go, and a gap takes their place.
//!
//! A cursor that moves over nothing but foreign records is not written: else each cursor's own record would be something new to
//! acknowledge, and an idle edge would write for ever.
//!
//! A cursor that comes from outside is good only in the history that it was read in ([`histories`]).
//!
//! What lies between a cursor and the head and can't be read is a gap too, which says `unreadable`. It stands in no list: sequences have no holes, so
//! whoever reads the journal sees where some are missing, each time anew. Who is past them is told by a record that a start writes which finds records
//! lost: batches that were accepted there may be gone.
//!
//! Invariants: the streams and their routes are those of the start; at run time only cursors, gaps and retirements change, on the
//! engine's thread and after they are durable. Between a stream's cursor and the oldest kept record there is nothing of it but gaps.

pub(super) mod gaps;
pub(super) mod histories;
pub(super) mod saved;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use super::disk::Disk;
use super::journal::{JournalReader, Position, ReadError, Record, SegmentState};
use super::record::{LOST, RECEIPT, ReceiptParts, app_of, stream_events};
use super::{EventSink, Found, StreamBounds, StreamError, StreamState};
use crate::fault::{self, Fault};
use crate::ids::{HistoryId, Seq};
use crate::push::{Millis, ReceiptGap, StreamEvent};
use gaps::Gaps;
use histories::Histories;
use saved::{Routes, SavedStream, SavedStreams, StreamId};

/// Journal bytes looked at in one read, in multiples of the bytes asked for: where a stream has few events, a read ends without any.
const LOOKED_AT: usize = 16;
/// How often a read begins again because segments went under its hands.
const RETRIES: usize = 3;

#[derive(Debug)]
struct Stream {
    id: StreamId,
    name: Arc<str>,
    configured: bool,
    retired: AtomicBool,
    /// Durable, or as good as: no event lies between it and the durable one.
    cursor: AtomicU64,
    last_event: AtomicU64,
    /// No event lies between this and the cursor: it is the last one that was read, or a little more.
    passed: AtomicU64,
    gaps: Mutex<Gaps>,
    /// Where the newest gap ends.
    gap_end: AtomicU64,
    /// The newest cursor that a reader was given since the start.
    read_to: AtomicU64,
    /// Bytes of segments that it holds back.
    pinned: AtomicU64,
    /// Since when there is something unread, about; 0: there is nothing.
    unread_since: AtomicU64,
    full: AtomicBool,
    /// Where the read that ended at this sequence left off.
    hint: Mutex<Option<(Seq, Position)>>,
}

/// All streams: those of the configuration first, in its order, then those that wait to be retired.
#[derive(Debug)]
pub(super) struct Streams {
    all: Vec<Stream>,
    routes: Routes,
    next_id: StreamId,
    histories: Mutex<Histories>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    fn cursor(&self) -> Seq {
        Seq(self.cursor.load(Ordering::Acquire))
    }

    /// Behind it the stream needs the journal.
    fn pin(&self) -> Seq {
        self.cursor().max(Seq(self.gap_end.load(Ordering::Acquire)))
    }

    fn pins(&self) -> bool {
        self.last_event.load(Ordering::Relaxed) > self.pin().0 && !self.retired.load(Ordering::Relaxed)
    }

    fn has_unread(&self) -> bool {
        self.pin() > self.cursor() || self.last_event.load(Ordering::Relaxed) > self.cursor().0
    }
}

impl Streams {
    pub(super) fn new(saved: SavedStreams, configured: &[Arc<str>]) -> Self {
        let stream = |saved: SavedStream| Stream {
            configured: configured.contains(&saved.name),
            id: saved.id,
            name: saved.name,
            retired: AtomicBool::new(false),
            cursor: AtomicU64::new(saved.cursor.0),
            last_event: AtomicU64::new(saved.last_event.0),
            passed: AtomicU64::new(saved.last_event.min(saved.cursor).0),
            gap_end: AtomicU64::new(saved.gaps.end().0),
            gaps: Mutex::new(saved.gaps),
            read_to: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            unread_since: AtomicU64::new(0),
            full: AtomicBool::new(false),
            hint: Mutex::default(),
        };
        Self {
            all: saved.streams.into_iter().map(stream).collect(),
            routes: saved.routes,
            next_id: saved.next_id,
            histories: Mutex::new(saved.histories),
        }
    }

    /// What a checkpoint has to know, as of the head.
    pub(super) fn saved(&self, head: Seq) -> SavedStreams {
        let kept = self.all.iter().filter(|stream| !stream.retired.load(Ordering::Relaxed));
        let streams = kept.map(|stream| SavedStream {
            id: stream.id,
            name: stream.name.clone(),
            // Where there is nothing to read, a start after a crash should know so too.
            cursor: if stream.has_unread() { stream.cursor() } else { head },
            last_event: Seq(stream.last_event.load(Ordering::Relaxed)),
            gaps: lock(&stream.gaps).clone(),
        });
        SavedStreams {
            next_id: self.next_id,
            streams: streams.collect(),
            routes: self.routes.clone(),
            histories: lock(&self.histories).clone(),
        }
    }

    /// Its record is durable.
    pub(super) fn begin_history(&self, id: HistoryId, seq: Seq) {
        lock(&self.histories).begin(id, seq);
    }

    /// See [`super::Store::present_history`].
    pub(super) fn present_history(&self) -> Option<HistoryId> {
        lock(&self.histories).newest()
    }

    /// See [`super::Store::is_in_history`].
    pub(super) fn is_in_history(&self, id: HistoryId, cursor: Seq) -> bool {
        lock(&self.histories).has(id, cursor)
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|stream| &*stream.name == name && !stream.retired.load(Ordering::Relaxed))
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn name(&self, stream: usize) -> &Arc<str> {
        &self.all[stream].name
    }

    pub(super) fn id(&self, stream: usize) -> StreamId {
        self.all[stream].id
    }

    pub(super) fn is_configured(&self, stream: usize) -> bool {
        self.all[stream].configured
    }

    pub(super) fn cursor(&self, stream: usize) -> Seq {
        self.all[stream].cursor()
    }

    /// Behind it the stream needs the journal, if it [`Streams::pins`] at all.
    pub(super) fn pin(&self, stream: usize) -> Seq {
        self.all[stream].pin()
    }

    pub(super) fn pins(&self, stream: usize) -> bool {
        self.all[stream].pins()
    }

    /// Never back.
    pub(super) fn set_cursor(&self, stream: usize, cursor: Seq) {
        let stream = &self.all[stream];
        if stream.cursor.fetch_max(cursor.0, Ordering::AcqRel) < cursor.0 {
            stream.unread_since.store(0, Ordering::Relaxed);
            let last_event = stream.last_event.load(Ordering::Relaxed);
            stream.passed.store(last_event.min(cursor.0), Ordering::Relaxed);
        }
    }

    /// The cursor behind which nothing may go. A stream with nothing to read holds nothing back: it may have no reader at all.
    pub(super) fn oldest_cursor(&self) -> Seq {
        let pinning = self.all.iter().filter(|stream| stream.pins());
        pinning.map(Stream::pin).min().unwrap_or(Seq(u64::MAX))
    }

    /// Where an app's events go. `None`: to nobody, as the app isn't configured any more, and the stream that it had is retired.
    fn of_app(&self, app: &str) -> Option<&Stream> {
        let id = self.routes.now(app)?;
        self.all.iter().find(|stream| stream.id == id)
    }

    /// An event of an app.
    pub(super) fn note_event(&self, app: &str, seq: Seq) {
        if let Some(stream) = self.of_app(app) {
            stream.last_event.fetch_max(seq.0, Ordering::Relaxed);
        }
    }

    /// Something of any stream: records up to here are lost, or one says which are.
    pub(super) fn note_lost(&self, seq: Seq) {
        self.all.iter().for_each(|stream| {
            stream.last_event.fetch_max(seq.0, Ordering::Relaxed);
        });
    }

    /// Whether there is something behind the cursor: an event, or a gap.
    pub(super) fn has_unread(&self, stream: usize) -> bool {
        self.all[stream].has_unread()
    }

    /// Whether the stream of an app is over its soft bound.
    pub(super) fn is_full(&self, app: &str) -> bool {
        self.of_app(app).is_some_and(|stream| stream.full.load(Ordering::Relaxed))
    }

    /// Measures what each stream holds back, by whole segments.
    pub(super) fn measure(&self, segments: &[SegmentState], soft_bytes: u64, now: Millis) {
        for stream in &self.all {
            let (pins, pin) = (stream.pins(), stream.pin());
            let behind =
                segments.iter().filter(|segment| pins && segment.last > pin && segment.first <= segment.last);
            let bytes: u64 = behind.map(|segment| u64::from(segment.used)).sum();
            stream.pinned.store(bytes, Ordering::Relaxed);
            stream.full.store(bytes > soft_bytes, Ordering::Relaxed);
            // Only a cursor that moves ends that, and begins it anew.
            if stream.has_unread() && stream.unread_since.load(Ordering::Relaxed) == 0 {
                stream.unread_since.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Bytes of segments held back, as last measured.
    pub(super) fn pinned(&self, stream: usize) -> u64 {
        self.all[stream].pinned.load(Ordering::Relaxed)
    }

    /// The newest gap, if no reader was given it: a longer one may take its place.
    pub(super) fn growing_gap(&self, stream: usize) -> Option<ReceiptGap> {
        let stream = &self.all[stream];
        let seen = stream.read_to.load(Ordering::Acquire).max(stream.cursor().0);
        lock(&stream.gaps).newest().filter(|gap| seen < gap.last.0).cloned()
    }

    /// A gap is durable.
    pub(super) fn insert_gap(&self, stream: usize, gap: ReceiptGap) {
        let stream = &self.all[stream];
        let end = gap.last;
        lock(&stream.gaps).insert(gap);
        stream.gap_end.fetch_max(end.0, Ordering::AcqRel);
    }

    /// Its retirement is durable.
    pub(super) fn retire(&self, stream: usize) {
        self.all[stream].retired.store(true, Ordering::Relaxed);
    }

    /// Whether a record of this app is the stream's.
    pub(super) fn owns(&self, stream: usize, app: &str, seq: Seq) -> bool {
        self.routes.of(app, seq) == Some(self.all[stream].id)
    }

    /// All, for an operator.
    pub(super) fn states<D: Disk>(&self, reader: &JournalReader<D>) -> Vec<StreamState> {
        let kept = self.all.iter().filter(|stream| !stream.retired.load(Ordering::Relaxed));
        let state = |stream: &Stream| {
            let since = stream.unread_since.load(Ordering::Relaxed);
            StreamState {
                name: stream.name.clone(),
                configured: stream.configured,
                bounds: stream.bounds(reader),
                unread: stream.has_unread(),
                unread_since: (since > 0).then_some(since),
                pinned_bytes: stream.pinned.load(Ordering::Relaxed),
                full: stream.full.load(Ordering::Relaxed),
                gaps: lock(&stream.gaps).unread(stream.cursor()),
            }
        };
        kept.map(state).collect()
    }

    /// See [`super::Store::stream_bounds`].
    pub(super) fn bounds<D: Disk>(
        &self,
        reader: &JournalReader<D>,
        stream: &str,
    ) -> Result<StreamBounds, StreamError> {
        let stream = self.position(stream).ok_or(StreamError::Unknown)?;
        Ok(self.all[stream].bounds(reader))
    }

    /// See [`super::Store::pass_stream`].
    pub(super) fn read<D: Disk>(
        &self,
        reader: &JournalReader<D>,
        name: &str,
        after: Seq,
        bounds: (usize, usize),
        into: &mut dyn EventSink,
    ) -> Result<Seq, StreamError> {
        let at = self.position(name).ok_or(StreamError::Unknown)?;
        let stream = &self.all[at];
        let mut oldest = Seq(0);
        for _ in 0..RETRIES {
            // In this order: a gap is there before its segments go.
            let there = stream.bounds(reader);
            if after > there.head {
                return Err(StreamError::Beyond { asked: after, head: there.head });
            }
            oldest = there.oldest;
            if after < oldest {
                break;
            }
            let kept = oldest_kept(reader);
            let gap = lock(&stream.gaps).behind(after).cloned();
            // Before what is kept, only gaps are the stream's.
            let from = after.max(kept);
            let cursor = match gap {
                Some(gap) if gap.first.0 <= from.0 + 1 => {
                    let cursor = gap.last;
                    if gap.events > 0 {
                        into.event(cursor, Found::Event(StreamEvent::Gap(Box::new(gap))));
                    }
                    Ok(Some(cursor))
                }
                gap => {
                    let until = gap.map_or(Seq(u64::MAX), |gap| Seq(gap.first.0 - 1));
                    self.scan(reader, at, from, until.min(there.head), bounds, into)
                }
            }?;
            if let Some(cursor) = cursor {
                stream.read_to.fetch_max(cursor.0, Ordering::AcqRel);
                return Ok(cursor);
            }
            into.again();
        }
        Err(StreamError::Gone { asked: after, oldest })
    }

    /// Events of records in (after, until], and the cursor behind them. `None`: segments went meanwhile.
    fn scan<D: Disk>(
        &self,
        reader: &JournalReader<D>,
        stream: usize,
        after: Seq,
        until: Seq,
        (max_events, max_bytes): (usize, usize),
        into: &mut dyn EventSink,
    ) -> Result<Option<Seq>, StreamError> {
        let hint = *lock(&self.all[stream].hint);
        let mut position = hint.filter(|&(seq, _)| seq == after).map(|(_, place)| place);
        let mut cursor = after;
        let (mut events, mut bytes, mut looked_at, mut stopped) = (0, 0, 0, false);
        let (mut next, mut owner) = (Seq(after.0 + 1), Owner::default());
        let unreadable = |next: Seq, behind: Seq| {
            let gap = ReceiptGap::unreadable(next, Seq(behind.0 - 1));
            (gap.last, Found::Event(StreamEvent::Gap(Box::new(gap))))
        };
        let scanned = reader.scan(after, &mut position, &mut |record| {
            if record.seq > until {
                return ControlFlow::Break(());
            }
            if record.seq > next {
                let (seq, gap) = unreadable(next, record.seq);
                into.event(seq, gap);
                events += 1;
            }
            next = Seq(record.seq.0 + 1);
            looked_at += record.payload.len();
            cursor = record.seq;
            let found = self.found(stream, &record, &mut owner);
            if !found.is_empty() {
                bytes += record.payload.len();
                events += found.len();
            }
            stopped = events >= max_events
                || bytes >= max_bytes
                || looked_at >= max_bytes.saturating_mul(LOOKED_AT);
            let told = found.len() - usize::from(stopped && fault::is(Fault::SkipEvent)).min(found.len());
            for event in found.into_iter().take(told) {
                into.event(record.seq, event);
            }
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match scanned {
            Ok(()) if !stopped => {
                if next <= until {
                    let (seq, gap) = unreadable(next, Seq(until.0 + 1));
                    into.event(seq, gap);
                }
                cursor = cursor.max(until);
            }
            Ok(()) => {}
            Err(ReadError::Gone) => return Ok(None),
            Err(ReadError::Io(error)) => return Err(error.into()),
            Err(ReadError::Damaged(place)) => {
                return Err(std::io::Error::other(format!("damaged record at {place:?}")).into());
            }
        }
        *lock(&self.all[stream].hint) = position.map(|place| (cursor, place));
        Ok(Some(cursor))
    }

    /// The stream's events in a record. One that passes its checksum and isn't understood was written by a newer program: not ours to forward.
    fn found<'a>(&self, stream: usize, record: &Record<'a>, owner: &mut Owner) -> SmallVec<[Found<'a>; 1]> {
        let mut owns = |app: &str| owner.of(&self.routes, app, record.seq) == Some(self.all[stream].id);
        let ours =
            record.kind == LOST || matches!(app_of(record.kind, record.payload), Ok(Some(app)) if owns(app));
        if !ours {
            return SmallVec::new();
        }
        if record.kind == RECEIPT {
            let parts = ReceiptParts::decode(record.payload);
            return parts.map(|parts| Found::Receipt(parts.receipt)).into_iter().collect();
        }
        let events = stream_events(record.kind, record.payload).unwrap_or_default();
        events.into_iter().map(Found::Event).collect()
    }
}

/// Whose the records of the app are that was asked about last: most are of the same app as the one before.
#[derive(Debug, Default)]
struct Owner {
    app: String,
    id: Option<StreamId>,
    /// From the record that was asked about up to here.
    until: Seq,
}

impl Owner {
    /// Of a record of this app; they are asked about in the order of the journal.
    fn of(&mut self, routes: &Routes, app: &str, seq: Seq) -> Option<StreamId> {
        if self.app != app || seq > self.until {
            (self.id, self.until) = routes.of_until(app, seq);
            app.clone_into(&mut self.app);
        }
        self.id
    }
}

impl Stream {
    fn bounds<D: Disk>(&self, reader: &JournalReader<D>) -> StreamBounds {
        // In this order: what is kept may only grow less until the cursor is looked at.
        let kept = oldest_kept(reader);
        let cursor = if self.has_unread() { self.cursor() } else { self.cursor().max(kept) };
        // The journal may have gone on without the stream. Whoever has its last event misses nothing, however far that lies behind what is kept.
        let oldest = kept.min(Seq(self.passed.load(Ordering::Relaxed)));
        StreamBounds { cursor, oldest, head: reader.head() }
    }
}

/// The cursor before the oldest record that is kept.
fn oldest_kept<D: Disk>(reader: &JournalReader<D>) -> Seq {
    Seq(reader.oldest().0.saturating_sub(1))
}

#[cfg(test)]
mod tests;
