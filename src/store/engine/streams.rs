//! The streams' cursors, as the engine moves them.

use super::{Effect, Engine, StoreFailure};
use crate::ids::Seq;
use crate::store::disk::Disk;
use crate::store::record::{self, put_cursor};

impl<D: Disk> Engine<D> {
    /// A router has everything up to the cursor. Only forward, and not beyond what is durable.
    pub(super) fn stream_ack(&mut self, stream: &str, cursor: Seq) -> Result<(), StoreFailure> {
        let streams = &self.shared.streams;
        let Some(at) = streams.position(stream) else { return Ok(()) };
        if cursor <= streams.cursor(at) || cursor > self.journal.head() {
            return Ok(());
        }
        // Nothing but foreign records lies between: not worth a record that would itself be the next one to acknowledge. And on a disk without any
        // room the cursor must move too, for what it held back to go: after a crash the stream begins a little earlier, or at the oldest kept.
        if !streams.has_unread(at) || !self.has_room(1, 64 + stream.len()) {
            streams.set_cursor(at, cursor);
            return Ok(());
        }
        self.scratch.clear();
        put_cursor(&mut self.scratch, stream, cursor);
        self.stage(record::CURSOR)?;
        self.effects.push(Effect::Cursor(at, cursor));
        Ok(())
    }

    /// Which streams hold more of the journal than they may, by whole segments.
    pub(super) fn measure_streams(&self) {
        let segments = self.journal.segments();
        for stream in 0..self.shared.streams.len() {
            let cursor = self.shared.streams.cursor(stream);
            let behind =
                segments.iter().filter(|segment| segment.last > cursor && segment.first <= segment.last);
            let bytes: u64 = behind.map(|segment| u64::from(segment.used)).sum();
            let full = bytes > self.options.stream_soft_bytes && self.shared.streams.has_unread(stream);
            self.shared.streams.set_full(stream, full);
        }
    }
}
