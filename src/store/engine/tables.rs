//! What goes into the tables and comes from them.
//!
//! # How it works
//! Push records, devices, totals and statistics change in memory as records are staged. Now and then, between two groups, everything that has changed
//! is encoded and goes to the tables in one transaction with the journal's head, on a thread of its own. Until that is durable a changed
//! record stays in memory, so that whoever looks finds the newest there, and only then in the tables. A start applies a record to them
//! exactly if it is newer than the sequence that they name.
//!
//! The rows of devices that it takes along are in [`super::rows`].
//!
//! # Invariants
//! - A transaction is cut when nothing is staged: it holds exactly the effects of what is durable.
//! - A checkpoint gets its name only when the tables hold everything that any of its slices reflects; trimming never passes what they hold.
//! - A record that isn't in the tables as it is never leaves memory.
//!
//! # Rejected
//! Waiting for the tables at each commit: a transaction costs two syncs. Writing changed records one by one: then what they add up to
//! would be of many sequences.

use std::sync::Arc;

use super::memory::writes_bytes;
use super::rows::Room;
use super::{Engine, StoreFailure};
use crate::fault::{self, Fault};
use crate::ids::Seq;
use crate::push::Millis;
use crate::store::codec::Take;
use crate::store::disk::Disk;
use crate::store::index::Index;
use crate::store::ledger::Ledger;
use crate::store::part::{Cold, Part};
use crate::store::push_record::{MessageKey, PushRecord};
use crate::store::second_chance::Look;
use crate::store::stats::StoreStats;
use crate::store::tables::{Job, Table, Tables, TablesError, Writer, Writes, new_row, row_content};
use crate::sync::MutexGuard;

/// Milliseconds between two transactions, at least; and so many times what the last one took, at most.
const PAUSE_MS: Millis = 200;
const PAUSE_TIMES: Millis = 10;
const PAUSE_MAX_MS: Millis = 5_000;
/// Changed push records and devices that don't wait for the pause to end.
const MANY: usize = 20_000;
/// How long to wait for space.
const RETRY_MS: Millis = 1_000;
/// Keys of forgotten push records that are not worth a sweep.
const LEAST_SWEPT: usize = 1_024;
/// Push records looked at in one slice of making room.
const LOOKED_AT: usize = 4_096;

/// What is known of the tables.
#[derive(Debug)]
pub(super) struct State {
    pub(super) tables: Arc<dyn Tables>,
    pub(super) writer: Writer,
    /// Everything up to here is durable in them.
    pub(super) applied: Seq,
    /// What found no space.
    again: Writes,
    /// The last transaction found none, if only for saying how far the tables are.
    no_space: bool,
    /// Rows of the transaction that is under way.
    under_way: usize,
    /// Bytes of them, about.
    under_way_bytes: usize,
    began_at: Millis,
    next_at: Millis,
    /// A checkpoint waits for them.
    pub(super) awaited: bool,
    /// They have spare segments' space, which must not be taken back meanwhile.
    pub(super) borrows: bool,
    /// Push records that are still looked at to make room.
    pub(super) looks: usize,
    /// The same for rows of devices.
    pub(super) rows: Room,
}

impl State {
    pub(super) fn new(tables: Arc<dyn Tables>) -> Self {
        Self {
            writer: Writer::new(tables.clone()),
            applied: tables.applied(),
            tables,
            again: Writes::new(),
            no_space: false,
            under_way: 0,
            under_way_bytes: 0,
            began_at: 0,
            next_at: 0,
            awaited: false,
            borrows: false,
            looks: 0,
            rows: Room::default(),
        }
    }

    /// Bytes of rows that are written, or wait for space, about.
    pub(super) fn bytes_under_way(&self) -> usize {
        self.under_way_bytes
    }
}

/// The message's part, with its record in memory if there is one. The tables are read while no part is locked.
pub(super) fn part_with<'a>(
    index: &'a Index,
    tables: &dyn Tables,
    ledger: &mut Ledger,
    key: MessageKey,
) -> Result<MutexGuard<'a, Part>, TablesError> {
    let row = {
        let mut part = index.of_message(key);
        if let Some(record) = part.messages.get_mut(&key) {
            record.touched = true;
            return Ok(part);
        }
        match part.cold.get(&key) {
            None => return Ok(part),
            Some(cold) => cold.row,
        }
    };
    ledger.reads += 1;
    let found = tables.get(Table::Messages, &row.0.to_be_bytes())?;
    let content = match &found {
        Some(bytes) => row_content(Table::Messages, &row.0.to_be_bytes(), bytes)?,
        None => &[],
    };
    let record = found.as_ref().and_then(|bytes| {
        let mut take = Take(content);
        let head = take_head(&mut take)?;
        let record = PushRecord::decode(&mut take).ok()?;
        (head.0 == key).then_some(PushRecord { row, bytes: bytes.len() as u32, touched: true, ..record })
    });
    let mut part = index.of_message(key);
    part.cold.remove(&key);
    if let Some(record) = record {
        ledger.hot_bytes += record.bytes as usize;
        ledger.hot.push(key);
        part.messages.insert(key, record);
    } else {
        tracing::error!(row = row.0, "a push record isn't in the tables as it was written: it is forgotten");
    }
    Ok(part)
}

/// What stands before a push record in its row: whose it is, and what is needed of it while it is not in memory.
fn take_head(take: &mut Take<'_>) -> Option<(MessageKey, Cold)> {
    let key = MessageKey(u128::from_le_bytes(take.array().ok()?));
    let (accepted_at, pending) = (take.u64().ok()?, take.flag().ok()?);
    Some((key, Cold::new(Seq(0), accepted_at, pending)))
}

fn put_row(out: &mut Vec<u8>, key: MessageKey, record: &PushRecord) {
    out.extend_from_slice(&key.0.to_le_bytes());
    out.extend_from_slice(&record.accepted_at.to_le_bytes());
    out.push(u8::from(record.pending > 0));
    record.encode(out);
}

/// Which push records the tables hold; how many rows made no sense.
pub(super) fn read_index(tables: &dyn Tables, index: &Index) -> Result<u64, TablesError> {
    let (mut malformed, mut newer) = (0, None);
    tables.scan(Table::Messages, &mut |key, row| {
        let row = row_content(Table::Messages, key, row).unwrap_or_else(|error| {
            newer.get_or_insert(error);
            &[]
        });
        let row_key = key.try_into().map(u64::from_be_bytes);
        let (Ok(row_key), Some((message, cold))) = (row_key, take_head(&mut Take(row))) else {
            malformed += 1;
            return;
        };
        let mut part = index.of_message(message);
        part.cold.insert(message, cold.at(Seq(row_key)));
        part.message_order.push_back(message);
    })?;
    newer.map_or(Ok(malformed), Err)
}

/// How long the tables rest after a transaction that took so long.
fn pause(took: Millis) -> Millis {
    (took * PAUSE_TIMES).clamp(PAUSE_MS, PAUSE_MAX_MS)
}

/// How many of these keys of push records are looked at after a transaction, `gone` of which are of none any more.
fn looks(is_full: bool, keys: usize, gone: usize) -> usize {
    if is_full {
        // Twice around: what was touched once is looked at again.
        2 * keys
    } else if gone > LEAST_SWEPT.max(keys / 2) {
        // Once around: else the keys of what was forgotten would stay for as long as there is room.
        keys
    } else {
        0
    }
}

impl<D: Disk> Engine<D> {
    /// From now on the tables are written by a thread, which calls `over` after each transaction.
    pub(in crate::store) fn start_tables(
        &mut self,
        over: impl Fn() + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        self.tables.writer.start_thread(over)
    }

    /// See [`part_with`].
    pub(super) fn warm(&mut self, key: MessageKey) -> Result<(), StoreFailure> {
        drop(part_with(&self.shared.index, &*self.tables.tables, &mut self.ledger, key)?);
        Ok(())
    }

    /// Takes in what became of a transaction, begins the next one, or makes room. Answers whether there was anything to do.
    pub(super) fn tables_slice(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        if self.tables.writer.is_busy() {
            return self.transaction_over(now, false);
        }
        if self.transaction_is_due(now) {
            self.begin_transaction(now, false)?;
            return Ok(true);
        }
        if !self.tables.again.is_empty() {
            // What found no space is in no table yet, though nothing says so beside it.
            return Ok(false);
        }
        Ok(self.make_room() || self.make_room_for_rows())
    }

    /// Whether one begins with the next slice, unless one is under way.
    pub(super) fn transaction_is_due(&self, now: Millis) -> bool {
        let behind = self.tables.applied < self.journal.head();
        let changed = self.ledger.changed.len() + self.ledger.changed_rows.len();
        behind && (self.tables.awaited || changed >= MANY) && !self.tables.no_space
            || self.next_transaction().is_some_and(|at| now >= at)
    }

    /// When the next transaction is due.
    pub(super) fn next_transaction(&self) -> Option<Millis> {
        let due_at = if self.tables.no_space { Some(0) } else { self.ledger.due_at() };
        let due_at = due_at.filter(|_| !self.tables.writer.is_busy());
        due_at.map(|at| at.max(self.tables.next_at))
    }

    /// Whether too much waits for the tables, which have no space or are slow: what would change more is refused until some of it is written.
    pub(in crate::store) fn is_behind(&self) -> bool {
        let changed =
            self.ledger.changed.len() + self.ledger.changed_rows.len() + self.ledger.gone_rows.len();
        changed + self.tables.again.len() + self.tables.under_way >= self.options.max_unwritten
    }

    fn begin_transaction(&mut self, now: Millis, all: bool) -> Result<(), StoreFailure> {
        debug_assert_eq!(self.journal.staged_bytes(), 0, "what is staged may never become durable");
        let mut writes = std::mem::take(&mut self.tables.again);
        self.ledger.put(now, all, &mut writes);
        self.put_rows(&mut writes)?;
        for key in std::mem::take(&mut self.ledger.changed) {
            let mut part = self.shared.index.of_message(key);
            // Gone since, or there twice.
            let Some(record) = part.messages.get_mut(&key).filter(|record| record.dirty) else { continue };
            record.dirty = false;
            let mut row = new_row();
            row.reserve(record.bytes as usize);
            put_row(&mut row, key, record);
            self.ledger.hot_bytes = self.ledger.hot_bytes + row.len() - record.bytes as usize;
            record.bytes = row.len() as u32;
            writes.insert((Table::Messages, record.row.0.to_be_bytes().to_vec()), Some(row));
        }
        self.tables.began_at = now;
        self.tables.under_way = writes.len();
        self.tables.under_way_bytes = writes_bytes(&writes);
        self.tables.writer.begin(Job { writes, applied: self.journal.head() });
        Ok(())
    }

    fn transaction_over(&mut self, now: Millis, wait: bool) -> Result<bool, StoreFailure> {
        let Some(done) = self.tables.writer.done(wait) else { return Ok(false) };
        self.tables.under_way = 0;
        self.tables.under_way_bytes = 0;
        let done = done?;
        self.tables.no_space = done.is_err();
        match done {
            Ok(applied) => {
                self.tables.applied = applied;
                self.tables.awaited = false;
                if std::mem::take(&mut self.tables.borrows) {
                    self.replenish_at = 0;
                    self.replenish(now)?;
                }
                self.tables.next_at = now + pause(now.saturating_sub(self.tables.began_at));
                let is_full = self.ledger.hot_bytes > self.message_cache_bytes();
                self.tables.looks = looks(is_full, self.ledger.hot.len(), self.ledger.hot_gone);
                self.tables.rows.reset();
                StoreStats::add(&self.shared.stats.table_writes, 1);
            }
            Err(job) => {
                tracing::warn!(
                    rows = job.writes.len(),
                    "there is no space for the tables; the journal keeps what they don't"
                );
                self.tables.under_way_bytes = writes_bytes(&job.writes);
                self.tables.again = job.writes;
                self.tables.looks = 0;
                let lent = !self.tables.borrows && self.lend_spares();
                self.tables.borrows |= lent;
                self.tables.next_at = if lent { now } else { now + RETRY_MS };
            }
        }
        Ok(true)
    }

    /// Brings the tables up to the journal's head, whatever the pause. `false`: there is no space.
    pub(super) fn write_tables(&mut self, now: Millis) -> Result<bool, StoreFailure> {
        self.transaction_over(now, true)?;
        if self.tables.applied < self.journal.head() || self.ledger.due_at().is_some() {
            self.begin_transaction(now, true)?;
            self.transaction_over(now, true)?;
        }
        Ok(self.tables.applied >= self.journal.head())
    }

    /// Spare segments give their space to the tables, as only what these have taken in may be trimmed. Whether any did.
    fn lend_spares(&mut self) -> bool {
        match self.journal.release_spares(self.dead_segments()) {
            Ok(released) => released > 0,
            Err(error) => {
                tracing::warn!(%error, "spare segments can't be lent to the tables");
                false
            }
        }
    }

    /// Push records that nobody touched lately leave memory, as far as it is too full. Only what is in the tables as it is may go. Once after
    /// each transaction: what was changed or touched is passed over, and there is more to choose from after the next one. Where there is room
    /// enough, only the keys of what was forgotten go.
    pub(super) fn make_room(&mut self) -> bool {
        let max = self.message_cache_bytes();
        let looks = self.tables.looks.min(LOOKED_AT).min(self.ledger.hot.len());
        self.tables.looks = if looks == 0 { 0 } else { self.tables.looks - looks };
        let (index, ledger) = (&self.shared.index, &mut self.ledger);
        let (hot_bytes, gone) = (&mut ledger.hot_bytes, &mut ledger.hot_gone);
        let full = ledger.hot.look(looks, |key| {
            if *hot_bytes <= max && *gone == 0 {
                return Look::Enough;
            }
            let mut part = index.of_message(key);
            let recalled = part.recalls.contains_key(&key);
            let Some(record) = part.messages.get_mut(&key) else {
                *gone = gone.saturating_sub(1);
                return Look::Gone;
            };
            if *hot_bytes <= max {
                return Look::Stays;
            }
            let changed = record.dirty && !fault::is(Fault::ForgetChanged);
            if std::mem::take(&mut record.touched) || changed || recalled {
                return Look::Stays;
            }
            let cold = Cold::new(record.row, record.accepted_at, record.pending > 0);
            *hot_bytes -= record.bytes as usize;
            part.messages.remove(&key);
            part.cold.insert(key, cold);
            Look::Gone
        });
        if !full {
            self.tables.looks = 0;
        }
        looks > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_rest_ten_times_as_long_as_they_took_between_two_bounds() {
        assert_eq!([0, 20, 21, 500, 501].map(pause), [200, 200, 210, 5_000, 5_000]);
    }

    #[test]
    fn push_records_are_looked_at_where_there_are_too_many_or_too_many_have_gone() {
        assert_eq!((looks(true, 70, 0), looks(false, 70, 0)), (140, 0));
        // A thousand keys are nothing, and half of many.
        assert_eq!((looks(false, 1_500, 1_024), looks(false, 1_500, 1_025)), (0, 1_500));
        assert_eq!((looks(false, 9_000, 4_500), looks(false, 9_000, 4_501)), (0, 9_000));
    }
}
