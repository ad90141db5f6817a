//! A stream as all its readers together have stored it.

use std::collections::BTreeMap;

use mooring::wire::pb::router as pb;

use super::ensure;

/// See the module.
#[derive(Default)]
pub(crate) struct Stored {
    /// By sequence.
    pub(super) events: BTreeMap<u64, Vec<pb::StreamEvent>>,
    /// Everything up to here.
    pub(crate) cursor: u64,
    /// The history that the cursor was read in.
    pub(crate) history: u64,
    /// The cursor is of a time that was lost: no edge may take it.
    is_lost: bool,
}

impl Stored {
    /// A link goes on from here, where its router said so or where the edge says.
    pub(crate) fn open(&mut self, cursor: u64, history: u64, is_named: bool) -> Result<(), String> {
        if std::mem::take(&mut self.is_lost) {
            ensure!(!is_named, "cursor {} of a time that was lost is taken", self.cursor);
            (self.cursor, self.history) = (cursor, history);
        }
        self.reach(cursor, history);
        Ok(())
    }

    /// Everything behind this sequence is as if it had never been.
    pub(crate) fn restored(&mut self, head: u64) {
        // A gap may have been made since the copy, and what was missing is there again.
        let is_gap = |event: &pb::StreamEvent| matches!(event.event, Some(pb::stream_event::Event::Gap(_)));
        self.events.retain(|sequence, events| *sequence <= head && !events.iter().any(is_gap));
        self.is_lost = self.cursor > head;
    }

    /// Everything up to the cursor is stored.
    pub(crate) fn reach(&mut self, cursor: u64, history: u64) {
        if cursor >= self.cursor {
            (self.cursor, self.history) = (cursor, history);
        }
    }
}
