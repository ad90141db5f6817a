//! The streams, as the engine moves them: cursors, gaps at the hard bound, retirement.
//!
//! A gap is made like a checkpoint, a slice at a time between commits: the range is read and counted, then one record says all of it. Only
//! when that is durable may the range be trimmed, and from then on readers get the gap instead.

use std::ops::ControlFlow;

use tokio::sync::oneshot;

use super::{Effect, Engine, OpenError, StoreFailure};
use crate::ids::Seq;
use crate::push::{Millis, ReceiptGap, UNREADABLE};
use crate::store::disk::Disk;
use crate::store::journal::Position;
use crate::store::record::{self, app_of, put_cursor, stream_events};
use crate::store::stats::StoreStats;
use crate::store::stream::gaps::joined;
use crate::store::stream::saved::{Change, put_gap, put_history, put_retired};
use crate::store::{RetireError, Retired};

/// Bytes of records counted in one slice.
const SLICE_BYTES: usize = 1024 * 1024;
/// Bytes of a history's record.
pub(super) const HISTORY_BYTES: usize = 8;
/// Bytes of a gap record, at most: a name and a number a kind of event.
const GAP_BYTES: usize = 1024;

type Reply = oneshot::Sender<Result<Retired, RetireError>>;

/// A gap that is being made.
#[derive(Debug)]
pub(super) struct GapScan {
    stream: usize,
    /// What was looked at of it so far.
    gap: ReceiptGap,
    after: Seq,
    position: Option<Position>,
    /// An operator waits for it.
    reply: Option<Reply>,
}

impl<D: Disk> Engine<D> {
    /// Writes which history begins and what the configuration changes. Without room for it there is no start: what this run would give to a stream the next one would
    /// not find, as only these records say whose it is.
    pub(super) fn configured(&mut self, changes: &[Change], time: Millis) -> Result<(), OpenError> {
        let bytes = 64 + crate::limits::LABEL_BYTES;
        let is_changed = changes.iter().any(|change| !matches!(change, Change::History(_)));
        if is_changed && !self.has_room(changes.len(), bytes) {
            return Err(OpenError::Full);
        }
        for change in changes {
            self.scratch.clear();
            let kind = change.encode(&mut self.scratch);
            self.stage(kind)?;
        }
        self.commit(time)?;
        self.measure_streams(time);
        Ok(())
    }

    /// There may be room now for the record that the start had none for. Nothing else was written since: any other record needs more.
    pub(super) fn begin_history(&mut self) -> Result<(), StoreFailure> {
        if let Some(id) = self.history.take_if(|_| self.journal.fits(HISTORY_BYTES, true)) {
            self.scratch.clear();
            put_history(&mut self.scratch, id);
            let (seq, _) = self.stage(record::HISTORY)?;
            self.effects.push(Effect::History(id, seq));
        }
        Ok(())
    }

    /// A router has everything up to the cursor. Only forward, and not beyond what is durable.
    pub(super) fn stream_ack(&mut self, now: Millis, stream: &str, cursor: Seq) -> Result<(), StoreFailure> {
        let streams = &self.shared.streams;
        let Some(at) = streams.position(stream) else { return Ok(()) };
        if cursor <= streams.cursor(at) || cursor > self.journal.head() {
            return Ok(());
        }
        // Nothing but foreign records lies between: not worth a record that would itself be the next one to acknowledge. And on a disk without any
        // room the cursor must move too, for what it held back to go: after a crash the stream begins a little earlier, or at the oldest kept.
        if !streams.has_unread(at) || !self.has_room(1, 64 + stream.len()) {
            streams.set_cursor(at, cursor);
            self.measure_streams(now);
            return Ok(());
        }
        self.scratch.clear();
        put_cursor(&mut self.scratch, stream, cursor);
        self.stage(record::CURSOR)?;
        self.effects.push(Effect::Cursor(at, cursor));
        Ok(())
    }

    /// Which streams hold more of the journal than they may, by whole segments.
    pub(super) fn measure_streams(&self, now: Millis) {
        self.shared.streams.measure(&self.journal.segments(), self.options.stream_soft_bytes, now);
    }

    /// One slice of a gap, if one is due. Answers whether there was anything to do.
    pub(super) fn gap_slice(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        let Some(mut scan) = self.gap.take().or_else(|| self.due_gap()) else { return Ok(false) };
        let pin = self.shared.streams.pin(scan.stream);
        if pin.0 + 1 != scan.gap.first.0 {
            // Its reader came meanwhile. What an operator wanted gone is gone, or is looked at again.
            scan.gap = ReceiptGap::new(Seq(pin.0 + 1), scan.gap.last);
            (scan.after, scan.position) = (pin, None);
            if scan.reply.is_none() || pin >= scan.gap.last {
                self.answer_drop(scan.reply);
                return Ok(true);
            }
        }
        self.count_slice(&mut scan);
        if scan.after < scan.gap.last {
            self.gap = Some(scan);
            return Ok(true);
        }
        self.stage_gap(now, scan)
    }

    /// The oldest closed segments of the first stream over its hard bound that has any.
    fn due_gap(&self) -> Option<GapScan> {
        let hard = self.options.stream_hard_bytes;
        let streams = &self.shared.streams;
        let mut over =
            (0..streams.len()).filter(|&stream| streams.pins(stream) && streams.pinned(stream) > hard);
        over.find_map(|stream| self.gap_of(stream, hard)).filter(|_| self.has_room(1, GAP_BYTES))
    }

    /// What brings a stream down to its bound. `None`: only the segment that is being written holds something of it.
    fn gap_of(&self, stream: usize, hard: u64) -> Option<GapScan> {
        let streams = &self.shared.streams;
        let (pin, mut left) = (streams.pin(stream), streams.pinned(stream));
        let mut last = None;
        for segment in self.journal.segments().iter().filter(|segment| segment.last > pin) {
            if segment.active || left <= hard {
                break;
            }
            left = left.saturating_sub(u64::from(segment.used));
            last = Some(segment.last);
        }
        Some(Self::scan_of(stream, pin, last?, None))
    }

    fn scan_of(stream: usize, after: Seq, last: Seq, reply: Option<Reply>) -> GapScan {
        let gap = ReceiptGap::new(Seq(after.0 + 1), last);
        GapScan { stream, gap, after, position: None, reply }
    }

    fn count_slice(&self, scan: &mut GapScan) {
        // While there was nothing to read the journal may have gone on without the stream: what it keeps no more held nothing of it.
        let kept = Seq(self.shared.reader.oldest().0.saturating_sub(1));
        if scan.after < kept {
            (scan.after, scan.position) = (kept, None);
        }
        let (mut looked_at, mut stopped, last) = (0, false, scan.gap.last);
        let mut next = Seq(scan.after.0 + 1);
        let (gap, after) = (&mut scan.gap, &mut scan.after);
        let scanned = self.shared.reader.scan(*after, &mut scan.position, &mut |record| {
            if record.seq > last {
                return ControlFlow::Break(());
            }
            if record.seq > next {
                gap.count(UNREADABLE, 1);
            }
            (*after, next) = (record.seq, Seq(record.seq.0 + 1));
            looked_at += record.payload.len();
            if record.kind == record::LOST {
                gap.count(UNREADABLE, 1);
            } else if let Ok(Some(app)) = app_of(record.kind, record.payload)
                && self.shared.streams.owns(scan.stream, app, record.seq)
                && let Ok(events) = stream_events(record.kind, record.payload)
            {
                for event in &events {
                    let (event, count) = event.counted();
                    gap.count(event, count);
                }
            }
            stopped = looked_at >= SLICE_BYTES;
            if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Err(error) = scanned {
            // How many events lie there nobody knows: but the reader learns that there may have been some, and that they are gone.
            tracing::error!(stream = %self.shared.streams.name(scan.stream), %error, "events to be dropped can't be counted");
            gap.count(UNREADABLE, 1);
        } else if !stopped && next <= last {
            gap.count(UNREADABLE, 1);
        }
        if !stopped {
            *after = last;
        }
    }

    fn stage_gap(&mut self, now: Millis, scan: GapScan) -> Result<bool, StoreFailure> {
        let streams = &self.shared.streams;
        let GapScan { stream, gap, reply, .. } = scan;
        let (cursor, pin) = (streams.cursor(stream), streams.pin(stream));
        if gap.first > gap.last {
            self.answer_drop(reply);
            return Ok(true);
        }
        if gap.events == 0 && cursor == pin {
            // Nothing of this stream lies there: that is no loss, and as durable as it was.
            streams.set_cursor(stream, gap.last);
            self.measure_streams(now);
            self.answer_drop(reply);
            return Ok(true);
        }
        if !self.has_room(1, GAP_BYTES) {
            if let Some(reply) = reply {
                self.effects.push(Effect::RetireAnswer(reply, Err(RetireError::Full)));
            }
            return Ok(false);
        }
        StoreStats::add(&self.shared.stats.gap_events, gap.events);
        let gap = match streams.growing_gap(stream) {
            Some(before) if before.last.0 + 1 == gap.first.0 => joined(before, &gap),
            _ => gap,
        };
        tracing::warn!(
            stream = %streams.name(stream),
            first = gap.first.0,
            last = gap.last.0,
            events = gap.events,
            "events of a stream that is not read are dropped"
        );
        self.scratch.clear();
        put_gap(&mut self.scratch, streams.id(stream), &gap);
        self.stage(record::GAP)?;
        self.effects.push(Effect::Gap(stream, Box::new(gap)));
        self.answer_drop(reply);
        Ok(true)
    }

    /// Tells the operator, once what is staged is durable.
    fn answer_drop(&mut self, reply: Option<Reply>) {
        let sequence = Seq(self.journal.next_seq().0 - 1);
        if let Some(reply) = reply {
            self.effects.push(Effect::RetireAnswer(reply, Ok(Retired { sequence, ended: false })));
        }
    }

    /// See [`crate::store::Command::RetireStream`].
    pub(super) fn retire_stream(
        &mut self,
        name: &str,
        force: bool,
        reply: Reply,
    ) -> Result<(), StoreFailure> {
        let streams = &self.shared.streams;
        let verdict = match streams.position(name) {
            None => Err(RetireError::Unknown),
            Some(at) if streams.is_configured(at) => {
                if force && self.gap.as_ref().is_none_or(|gap| gap.reply.is_none()) {
                    self.gap = Some(Self::scan_of(at, streams.pin(at), self.journal.head(), Some(reply)));
                    return Ok(());
                }
                Err(if force { RetireError::Busy } else { RetireError::Configured })
            }
            Some(_) if !self.has_room(1, 64) => Err(RetireError::Full),
            Some(at) => {
                self.scratch.clear();
                put_retired(&mut self.scratch, streams.id(at));
                let (sequence, _) = self.stage(record::RETIRED)?;
                self.effects.push(Effect::StreamRetired(at));
                Ok(Retired { sequence, ended: true })
            }
        };
        self.effects.push(Effect::RetireAnswer(reply, verdict));
        Ok(())
    }
}
