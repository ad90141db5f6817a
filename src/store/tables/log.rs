//! Tables in memory, with a log of their transactions: each is one write and one sync, so a crash keeps exactly a prefix of them.
//!
//! ```text
//! transaction = length u32 crc u32 applied u64 (table u8 key row)*        row: absent 0, or 1 and its bytes
//! ```
//! The checksum begins with the one before: what a torn write left behind the end never follows on. A log that is much longer than what it
//! amounts to is written anew, under another name first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Table, Tables, TablesError, Visit, Writes, open_file};
use crate::ids::Seq;
use crate::store::codec::{Malformed, Take, put_bytes, put_u64};
use crate::store::disk::{Disk, DiskFile, SyncPoint};

/// The log's file.
const FILE: &str = "tables.log";
/// Its name while it is written anew.
const NEW_FILE: &str = "tables.log.new";
/// Bytes that a log has before it is.
const LONG: u64 = 4 * 1024;
const HEAD: usize = 8;

#[derive(Debug)]
struct State<D: Disk> {
    disk: Arc<D>,
    file: D::File,
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    applied: Seq,
    end: u64,
    crc: u32,
    /// Bytes of a log of nothing but these rows, about.
    least: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct LogTables<D: Disk>(Mutex<State<D>>);

impl<D: Disk> LogTables<D> {
    pub(super) fn open(disk: Arc<D>) -> Result<Self, TablesError> {
        let names = disk.list().map_err(TablesError::io("found"))?;
        if names.iter().any(|name| name == NEW_FILE) {
            disk.remove(NEW_FILE).map_err(TablesError::io("removed"))?;
        }
        let file = open_file(&*disk, FILE)?;
        let len = file.len().map_err(TablesError::io("read"))?;
        let mut bytes = vec![0; len as usize];
        let read = file.read_at(&mut bytes, 0).map_err(TablesError::io("read"))?;
        bytes.truncate(read);
        let mut state =
            State { disk, file, rows: BTreeMap::new(), applied: Seq(0), end: 0, crc: 0, least: 0 };
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

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> State<D> {
    /// The log without what it no longer says.
    fn write_anew(&mut self) -> Result<(), TablesError> {
        let (disk, failed) = (&self.disk, || TablesError::io("written anew"));
        let writes = self.rows.iter().map(|(place, row)| (place.clone(), Some(row.clone()))).collect();
        let (bytes, crc) = put_transaction(&writes, self.applied, 0);
        let file = disk.create(NEW_FILE, 0).map_err(failed())?;
        let written = file.write_at(&bytes, 0).and_then(|()| file.sync(SyncPoint::TablesContent));
        if let Err(error) = written {
            disk.remove(NEW_FILE).map_err(failed())?;
            return Err(failed()(error));
        }
        disk.rename(NEW_FILE, FILE).map_err(failed())?;
        disk.sync_dir(SyncPoint::TablesEntry).map_err(failed())?;
        (self.file, self.crc, self.end) = (file, crc, bytes.len() as u64);
        self.least = self.end;
        Ok(())
    }

    fn put(&mut self, writes: Writes, applied: Seq) {
        self.applied = applied;
        for (place, row) in writes {
            match row {
                Some(row) => self.rows.insert(place, row),
                None => self.rows.remove(&place),
            };
        }
    }
}

fn take_transaction(payload: &[u8]) -> Result<(Writes, Seq), Malformed> {
    let mut take = Take(payload);
    let applied = Seq(take.u64()?);
    let mut writes = Writes::new();
    while !take.0.is_empty() {
        let table = Table::from_number(take.u8()?).ok_or(Malformed)?;
        let key = take.bytes()?.to_vec();
        let row = if take.flag()? { Some(take.bytes()?.to_vec()) } else { None };
        writes.insert((table, key), row);
    }
    Ok((writes, applied))
}

/// A transaction as it stands in the log, and its checksum.
fn put_transaction(writes: &Writes, applied: Seq, crc: u32) -> (Vec<u8>, u32) {
    let mut payload = Vec::new();
    put_u64(&mut payload, applied.0);
    for ((table, key), row) in writes {
        payload.push(*table as u8);
        put_bytes(&mut payload, key);
        payload.push(u8::from(row.is_some()));
        if let Some(row) = row {
            put_bytes(&mut payload, row);
        }
    }
    let crc = crc32c::crc32c_append(crc, &payload);
    let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&payload);
    (bytes, crc)
}

impl<D: Disk> Tables for LogTables<D> {
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

    fn apply(&self, writes: &Writes, applied: Seq) -> Result<(), TablesError> {
        let mut state = self.lock();
        if state.end > LONG + 4 * state.least {
            state.write_anew()?;
        }
        let (bytes, crc) = put_transaction(writes, applied, state.crc);
        state.file.write_at(&bytes, state.end).map_err(TablesError::io("written"))?;
        state.file.sync(SyncPoint::TablesContent).map_err(TablesError::io("synced"))?;
        (state.crc, state.end) = (crc, state.end + bytes.len() as u64);
        state.put(writes.clone(), applied);
        Ok(())
    }
}
