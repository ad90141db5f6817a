//! Tables in memory, with a log of their transactions: each is one write and one sync, so a crash keeps exactly a prefix of them.
//!
//! ```text
//! transaction = length u32 crc u32 applied u64 (table u8 key row)*        row: absent 0, or 1 and its bytes
//! ```
//! The checksum begins with the one before: what a torn write left behind the end never follows on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Table, Tables, TablesError, Visit, Write, open_file};
use crate::ids::Seq;
use crate::store::codec::{Malformed, Take, put_bytes, put_u64};
use crate::store::disk::{Disk, DiskFile, SyncPoint};

/// The log's file.
const FILE: &str = "tables.log";
const HEAD: usize = 8;

#[derive(Debug)]
struct State<F> {
    file: F,
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    applied: Seq,
    end: u64,
    crc: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LogTables<F>(Mutex<State<F>>);

impl<F: DiskFile> LogTables<F> {
    pub(super) fn open<D: Disk<File = F>>(disk: &D) -> Result<Self, TablesError> {
        let file = open_file(disk, FILE)?;
        let len = file.len().map_err(TablesError::io("read"))?;
        let mut bytes = vec![0; len as usize];
        let read = file.read_at(&mut bytes, 0).map_err(TablesError::io("read"))?;
        bytes.truncate(read);
        let mut state = State { file, rows: BTreeMap::new(), applied: Seq(0), end: 0, crc: 0 };
        let mut rest = bytes.as_slice();
        while let Some((head, tail)) = rest.split_at_checked(HEAD) {
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (length, crc) = (word(0) as usize, word(4));
            let Some((payload, tail)) = tail.split_at_checked(length) else { break };
            if length == 0 || crc32c::crc32c_append(state.crc, payload) != crc {
                break;
            }
            let whole = take_transaction(payload)
                .map_err(|_| TablesError::Damaged { what: "a transaction isn't of this version".into() })?;
            state.put(whole.0, whole.1);
            (state.crc, state.end) = (crc, state.end + (HEAD + length) as u64);
            rest = tail;
        }
        // What was read may be in memory only, if just the process died: nothing may rest on it before it is durable.
        state.file.sync(SyncPoint::TablesContent).map_err(TablesError::io("synced"))?;
        Ok(Self(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State<F>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> State<F> {
    fn put(&mut self, writes: Vec<Write>, applied: Seq) {
        self.applied = applied;
        for Write { table, key, row } in writes {
            match row {
                Some(row) => self.rows.insert((table, key), row),
                None => self.rows.remove(&(table, key)),
            };
        }
    }
}

fn take_transaction(payload: &[u8]) -> Result<(Vec<Write>, Seq), Malformed> {
    let mut take = Take(payload);
    let applied = Seq(take.u64()?);
    let mut writes = Vec::new();
    while !take.0.is_empty() {
        let table = Table::from_number(take.u8()?).ok_or(Malformed)?;
        let key = take.bytes()?.to_vec();
        let row = if take.flag()? { Some(take.bytes()?.to_vec()) } else { None };
        writes.push(Write { table, key, row });
    }
    Ok((writes, applied))
}

impl<F: DiskFile> Tables for LogTables<F> {
    fn applied(&self) -> Seq {
        self.lock().applied
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TablesError> {
        Ok(self.lock().rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, visit: &mut Visit<'_>) -> Result<(), TablesError> {
        for ((_, key), row) in self.lock().rows.iter().filter(|((of, _), _)| *of == table) {
            visit(key, row);
        }
        Ok(())
    }

    fn apply(&self, writes: &[Write], applied: Seq) -> Result<(), TablesError> {
        let mut payload = Vec::new();
        put_u64(&mut payload, applied.0);
        for Write { table, key, row } in writes {
            payload.push(*table as u8);
            put_bytes(&mut payload, key);
            payload.push(u8::from(row.is_some()));
            if let Some(row) = row {
                put_bytes(&mut payload, row);
            }
        }
        let mut state = self.lock();
        let crc = crc32c::crc32c_append(state.crc, &payload);
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&payload);
        state.file.write_at(&bytes, state.end).map_err(TablesError::io("written"))?;
        state.file.sync(SyncPoint::TablesContent).map_err(TablesError::io("synced"))?;
        (state.crc, state.end) = (crc, state.end + bytes.len() as u64);
        state.put(writes.to_vec(), applied);
        Ok(())
    }
}
