//! What the store holds in memory, told to the budget between two commit groups: counted from the structures themselves, so that nothing that comes
//! or goes has to say so.
//!
//! The parts of the index are measured in turn, a share of them each time: the more was written since, the more of them. From the low mark on the
//! caches may hold a quarter of what they may else; what they give up can be read again.

use std::sync::Arc;

use super::Engine;
use crate::budget::{Budget, Held, Part as Of, State};
use crate::ids::Seq;
use crate::push::Millis;
use crate::store::disk::Disk;
use crate::store::options::StoreOptions;
use crate::store::part::Entry;
use crate::store::part_memory::{PartMemory, tree_bytes};
use crate::store::tables::Writes;

/// Journal bytes for which one more part of the index is measured.
const BYTES_A_PART: u64 = 16 * 1024;
/// What caches may hold beyond the low mark: one so manieth.
const TIGHT: usize = 4;
/// Bytes that a row on its way to the tables takes beside its own.
const BESIDE_ROW: usize = 96;

/// The store's places in the budget.
#[derive(Debug)]
pub(super) struct Memory {
    budget: Arc<Budget>,
    index: Held,
    records: Held,
    rows: Held,
    bodies: Held,
    work: Held,
    /// Each part of the index as it was last measured, and their sum.
    measured: Box<[PartMemory]>,
    sum: PartMemory,
    next_part: usize,
    /// Journal bytes since.
    written: u64,
    state: State,
}

impl Memory {
    pub(super) fn new(options: &StoreOptions, parts: usize) -> Self {
        let budget = options.budget.clone();
        Self {
            index: budget.hold(Of::Index),
            records: budget.hold(Of::PushRecords),
            rows: budget.hold(Of::DeviceRows),
            bodies: budget.hold(Of::Bodies),
            work: budget.hold(Of::StoreWork),
            measured: vec![PartMemory::default(); parts].into(),
            sum: PartMemory::default(),
            next_part: 0,
            written: 0,
            state: State::Ample,
            budget,
        }
    }

    /// So many bytes of journal were made durable.
    pub(super) fn note_bytes(&mut self, bytes: u64) {
        self.written += bytes;
    }

    /// How full memory was at the last look.
    pub(super) fn state(&self) -> State {
        self.budget.state()
    }

    fn put(&mut self, part: usize, now: PartMemory) {
        let before = std::mem::replace(&mut self.measured[part], now);
        self.sum.index = self.sum.index - before.index + now.index;
        self.sum.records = self.sum.records - before.records + now.records;
    }
}

/// Bytes of rows on their way to the tables.
pub(super) fn writes_bytes(writes: &Writes) -> usize {
    writes.values().map(|row| BESIDE_ROW + row.as_ref().map_or(0, Vec::len)).sum()
}

impl<D: Disk> Engine<D> {
    /// Measures all of it.
    pub(super) fn measure_all(&mut self) {
        self.memory.written = u64::MAX;
        self.measure();
    }

    /// Tells the budget what is held, looks how full memory is, and does what that asks for.
    pub(super) fn measure(&mut self) {
        let index = &self.shared.index;
        let parts = 1 + (self.memory.written / BYTES_A_PART).min(index.len() as u64 - 1) as usize;
        self.memory.written = 0;
        for _ in 0..parts {
            let part = self.memory.next_part;
            let now = index.lock(part).measure();
            self.memory.put(part, now);
            self.memory.next_part = (part + 1) % index.len();
        }
        let ledger = &self.ledger;
        let entries = self.pending as usize * (size_of::<Entry>() + size_of::<Entry>() / 4);
        let expiry = tree_bytes(self.expiry.len(), size_of::<(Millis, Seq, u32)>());
        let keys = (ledger.changed.capacity() + ledger.changed_rows.capacity() + ledger.hot.len()) * 16;
        let memory = &mut self.memory;
        memory.index.set(memory.sum.index + entries + expiry + keys);
        memory.records.set(memory.sum.records + ledger.hot_bytes);
        memory.rows.set(index.warmth.bytes());
        memory.bodies.set(self.shared.bodies.memory());
        let staged = self.journal.staged_bytes() + self.scratch.capacity();
        memory.work.set(staged + self.tables.bytes_under_way());
        let state = memory.budget.look();
        let before = std::mem::replace(&mut memory.state, state);
        if state != before {
            self.memory_is(before, state);
        }
    }

    fn memory_is(&self, before: State, state: State) {
        let (budget, used) = (self.memory.budget.bytes(), self.memory.budget.used());
        if state > before && state >= State::Full {
            tracing::warn!(
                used,
                budget,
                state = state.label(),
                "memory: batches and new devices are refused"
            );
        } else {
            tracing::info!(used, budget, state = state.label(), "memory");
        }
        let share = |bytes: usize| if state == State::Ample { bytes } else { bytes / TIGHT };
        self.shared.bodies.set_max(share(self.options.body_cache_bytes));
        self.shared.index.warmth.set_max(share(self.options.device_cache_bytes));
    }

    /// Bytes of push records that may be in memory.
    pub(in crate::store) fn message_cache_bytes(&self) -> usize {
        let bytes = self.options.message_cache_bytes;
        if self.memory.state == State::Ample { bytes } else { bytes / TIGHT }
    }

    /// Whether what only adds is refused, until there is room again.
    pub(super) fn is_memory_full(&self) -> bool {
        self.memory.state() >= State::Full
    }
}
