//! Streams: what goes upstream, read straight from the journal. A stream keeps one durable cursor, up to which its reader has
//! everything; what lies behind it keeps its segments from being trimmed.
//!
//! A cursor that moves over nothing but foreign records is not written: else each cursor's own record would be something new to
//! acknowledge, and an idle edge would write for ever.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::disk::Disk;
use super::journal::{JournalReader, Place, ReadError};
use super::options::StoreOptions;
use super::record::{app_of, stream_events};
use super::{StreamBounds, StreamError, StreamRead};
use crate::ids::Seq;

/// Journal bytes looked at in one read, in multiples of the bytes asked for: where a stream has few events, a read ends without any.
const LOOKED_AT: usize = 16;

#[derive(Debug)]
struct Stream {
    name: Arc<str>,
    /// Durable, or as good as: no event lies between it and the durable one.
    cursor: AtomicU64,
    last_event: AtomicU64,
    full: AtomicBool,
    /// Where the read that ended at this sequence left off.
    hint: Mutex<Option<(Seq, Place)>>,
}

/// All streams of the configuration.
#[derive(Debug)]
pub(super) struct Streams(Vec<Stream>);

impl Streams {
    pub(super) fn new(names: &[Arc<str>]) -> Self {
        let stream = |name: &Arc<str>| Stream {
            name: name.clone(),
            cursor: AtomicU64::new(0),
            last_event: AtomicU64::new(0),
            full: AtomicBool::new(false),
            hint: Mutex::default(),
        };
        Self(names.iter().map(stream).collect())
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|stream| &*stream.name == name)
    }

    pub(super) fn name(&self, stream: usize) -> &Arc<str> {
        &self.0[stream].name
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn cursor(&self, stream: usize) -> Seq {
        Seq(self.0[stream].cursor.load(Ordering::Acquire))
    }

    /// Never back.
    pub(super) fn set_cursor(&self, stream: usize, cursor: Seq) {
        self.0[stream].cursor.fetch_max(cursor.0, Ordering::AcqRel);
    }

    /// The cursor behind which nothing may go. A stream with nothing to read holds nothing back: it may have no reader at all.
    pub(super) fn oldest_cursor(&self) -> Seq {
        let unread = (0..self.0.len()).filter(|&stream| self.has_unread(stream));
        unread.map(|stream| self.cursor(stream)).min().unwrap_or(Seq(u64::MAX))
    }

    pub(super) fn note_event(&self, stream: usize, seq: Seq) {
        if let Some(stream) = self.0.get(stream) {
            stream.last_event.fetch_max(seq.0, Ordering::Relaxed);
        }
    }

    /// Whether there is an event behind the cursor.
    pub(super) fn has_unread(&self, stream: usize) -> bool {
        self.0[stream].last_event.load(Ordering::Relaxed) > self.cursor(stream).0
    }

    pub(super) fn is_full(&self, stream: usize) -> bool {
        self.0.get(stream).is_some_and(|stream| stream.full.load(Ordering::Relaxed))
    }

    pub(super) fn set_full(&self, stream: usize, full: bool) {
        self.0[stream].full.store(full, Ordering::Relaxed);
    }

    /// See [`super::Store::stream_bounds`].
    pub(super) fn bounds<D: Disk>(
        &self,
        reader: &JournalReader<D>,
        stream: &str,
    ) -> Result<StreamBounds, StreamError> {
        let stream = self.position(stream).ok_or(StreamError::Unknown)?;
        let oldest = oldest_cursor(reader);
        Ok(StreamBounds { cursor: self.cursor(stream).max(oldest), oldest, head: reader.head() })
    }

    /// See [`super::Store::read_stream`].
    pub(super) fn read<D: Disk>(
        &self,
        reader: &JournalReader<D>,
        options: &StoreOptions,
        name: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<StreamRead, StreamError> {
        let StreamBounds { oldest, head, .. } = self.bounds(reader, name)?;
        if after > head {
            return Err(StreamError::Beyond { asked: after, head });
        }
        if after < oldest {
            return Err(StreamError::Gone { asked: after, oldest });
        }
        let stream = self.position(name).ok_or(StreamError::Unknown)?;
        let mut read = StreamRead { events: Vec::new(), cursor: after };
        let hint = *self.0[stream].hint.lock().unwrap_or_else(PoisonError::into_inner);
        let mut position = hint.filter(|&(seq, _)| seq == after).map(|(_, place)| place);
        let (mut bytes, mut looked_at, mut stopped) = (0, 0, false);
        let scanned = reader.scan(after, &mut position, &mut |record| {
            looked_at += record.payload.len();
            // A record that passes its checksum and isn't understood was written by a newer program: not ours to forward.
            let ours = matches!(app_of(record.kind, record.payload), Ok(Some(app))
                if self.0.len() == 1 || options.stream_of(app) == stream);
            if ours && let Ok(events) = stream_events(record.kind, record.payload) {
                bytes += record.payload.len();
                read.events.extend(events.into_iter().map(|event| (record.seq, event)));
            }
            read.cursor = record.seq;
            let enough = read.events.len() >= max_events
                || bytes >= max_bytes
                || looked_at >= max_bytes.saturating_mul(LOOKED_AT);
            stopped = enough;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match scanned {
            // Damage at the very end was looked at too: else a reader would ask for it again for ever.
            Ok(()) if !stopped => read.cursor = read.cursor.max(head),
            Ok(()) => {}
            Err(ReadError::Gone) => {
                return Err(StreamError::Gone { asked: after, oldest: oldest_cursor(reader) });
            }
            Err(ReadError::Io(error)) => return Err(error.into()),
            Err(ReadError::Damaged(place)) => {
                return Err(std::io::Error::other(format!("damaged record at {place:?}")).into());
            }
        }
        *self.0[stream].hint.lock().unwrap_or_else(PoisonError::into_inner) =
            position.map(|place| (read.cursor, place));
        Ok(read)
    }
}

/// The oldest cursor that can be named.
fn oldest_cursor<D: Disk>(reader: &JournalReader<D>) -> Seq {
    Seq(reader.oldest().0.saturating_sub(1))
}
