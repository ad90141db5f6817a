//! The tables in redb, whose file is one of the data directory's like any other.
//!
//! A transaction that met a full disk is undone by opening the file again, as the library asks for. If there is no space even for that, which
//! only a disk that copies what it overwrites can say, the file is opened in memory: it can be read, and the next transaction tries again.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError,
};

use super::checked::CheckedFile;
use super::{FILE, Table, Tables, TablesError, Visit, Writes, new_row, open_file, row_content};
use crate::ids::Seq;
use crate::store::disk::{Disk, DiskFile};

/// Its name while it is made.
const NEW_FILE: &str = "tables.new";
/// The row of [`Table::Single`] that tells the sequence.
const APPLIED: &[u8] = b"applied";

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(match table {
        Table::Single => "single",
        Table::Devices => "devices",
        Table::Messages => "messages",
        Table::Days => "days",
        Table::Active => "active",
    })
}

/// See the module.
pub(super) struct LibraryTables<D: Disk> {
    disk: Arc<D>,
    cache_bytes: usize,
    /// `None` only while it is opened again.
    database: RwLock<Option<Database>>,
    /// It is open in memory, as there was no space to open it for writing.
    in_memory: AtomicBool,
    applied: AtomicU64,
}

impl<D: Disk> fmt::Debug for LibraryTables<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LibraryTables").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl<D: Disk> LibraryTables<D> {
    pub(super) fn open(disk: Arc<D>, cache_bytes: usize) -> Result<Self, TablesError> {
        let database = RwLock::new(Some(open(&*disk, cache_bytes)?));
        let (in_memory, applied) = (AtomicBool::new(false), AtomicU64::new(0));
        let tables = Self { disk, cache_bytes, database, in_memory, applied };
        let applied = match tables.get(Table::Single, APPLIED)? {
            None => 0,
            Some(row) => {
                let content = row_content(Table::Single, APPLIED, &row)?;
                u64::from_le_bytes(content.try_into().map_err(|_| TablesError::Damaged {
                    what: "the row of the sequence applied has a wrong length".into(),
                })?)
            }
        };
        tables.applied.store(applied, Ordering::Release);
        Ok(tables)
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, writes: &Writes, applied: Seq) -> Result<(), redb::Error> {
        let database = self.read();
        let database = database.as_ref().ok_or(StorageError::DatabaseClosed)?;
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        for of in Table::ALL {
            let rows = writes.range((of, Vec::new())..).take_while(|((table, _), _)| *table == of);
            let rows: Vec<_> = rows.collect();
            if rows.is_empty() && of != Table::Single {
                continue;
            }
            let mut table = transaction.open_table(definition(of))?;
            for ((_, key), row) in filling(&rows) {
                match row {
                    Some(row) => drop(table.insert(key.as_slice(), row.as_slice())?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
            if of == Table::Single {
                let mut row = new_row();
                row.extend_from_slice(&applied.0.to_le_bytes());
                table.insert(APPLIED, row.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }

    /// After a transaction that failed the library takes no other until it has looked at its file again.
    fn reopen(&self) -> Result<(), TablesError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        let opened = open(&*self.disk, self.cache_bytes);
        let is_full = matches!(opened, Err(TablesError::Full));
        *database = Some(if is_full {
            let file = self.disk.open(FILE).map_err(TablesError::io("opened"))?;
            open_in(file, self.cache_bytes, true)?
        } else {
            opened?
        });
        self.in_memory.store(is_full, Ordering::Release);
        Ok(())
    }
}

/// All of them, but three of five first. The library splits a full page in the middle, so that keys which grow leave every page half empty: here the
/// others fill them up.
fn filling<T>(rows: &[T]) -> impl Iterator<Item = &T> {
    let is_first = |at: usize| (at % 5).is_multiple_of(2);
    let of = move |first| rows.iter().enumerate().filter(move |(at, _)| is_first(*at) == first);
    of(true).chain(of(false)).map(|(_, row)| row)
}

/// A new file gets its name when it is whole: the library doesn't open one that it was interrupted in making.
fn open<D: Disk>(disk: &D, cache_bytes: usize) -> Result<Database, TablesError> {
    let names = disk.list().map_err(TablesError::io("found"))?;
    let known = |name: &str| names.iter().any(|known| known == name);
    if !known(FILE) {
        if known(NEW_FILE) {
            disk.remove(NEW_FILE).map_err(TablesError::io("made"))?;
        }
        drop(open_in(disk.create(NEW_FILE, 0).map_err(TablesError::io("made"))?, cache_bytes, false)?);
        disk.rename(NEW_FILE, FILE).map_err(TablesError::io("made"))?;
    }
    open_in(open_file(disk, FILE)?, cache_bytes, false)
}

fn open_in<F: DiskFile>(file: F, cache_bytes: usize, in_memory: bool) -> Result<Database, TablesError> {
    let file = CheckedFile::open(file, in_memory).map_err(failed_io("opened"))?;
    Database::builder()
        .set_cache_size(cache_bytes)
        .create_with_backend(file)
        .map_err(|error: DatabaseError| failed("opened")(error.into()))
}

fn failed_io(doing: &'static str) -> impl FnOnce(io::Error) -> TablesError {
    move |error| match error.kind() {
        io::ErrorKind::InvalidData => TablesError::Damaged { what: error.to_string() },
        _ => TablesError::io(doing)(error),
    }
}

fn failed(doing: &'static str) -> impl FnOnce(redb::Error) -> TablesError {
    move |error| match error {
        redb::Error::Io(source) => failed_io(doing)(source),
        redb::Error::Corrupted(what) => TablesError::Damaged { what },
        other => TablesError::Io { doing, source: io::Error::other(other) },
    }
}

impl<D: Disk> Tables for LibraryTables<D> {
    fn applied(&self) -> Seq {
        Seq(self.applied.load(Ordering::Acquire))
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TablesError> {
        let get = || -> Result<Option<Vec<u8>>, redb::Error> {
            let database = self.read();
            let reading = database.as_ref().ok_or(StorageError::DatabaseClosed)?.begin_read()?;
            let table = match reading.open_table(definition(table)) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(None),
                table => table?,
            };
            Ok(table.get(key)?.map(|row| row.value().to_vec()))
        };
        get().map_err(failed("read"))
    }

    fn scan(&self, table: Table, visit: &mut Visit<'_>) -> Result<(), TablesError> {
        let mut scan = || -> Result<(), redb::Error> {
            let database = self.read();
            let reading = database.as_ref().ok_or(StorageError::DatabaseClosed)?.begin_read()?;
            let table = match reading.open_table(definition(table)) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(()),
                table => table?,
            };
            for row in table.iter()? {
                let (key, row) = row?;
                visit(key.value(), row.value());
            }
            Ok(())
        };
        scan().map_err(failed("read"))
    }

    fn apply(&self, writes: &Writes, applied: Seq) -> Result<(), TablesError> {
        if self.in_memory.load(Ordering::Acquire) {
            self.reopen()?;
            if self.in_memory.load(Ordering::Acquire) {
                return Err(TablesError::Full);
            }
        }
        match self.write(writes, applied).map_err(failed("written")) {
            Ok(()) => {
                self.applied.store(applied.0, Ordering::Release);
                Ok(())
            }
            Err(TablesError::Full) => {
                self.reopen()?;
                Err(TablesError::Full)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_written_once() {
        for count in 0..20 {
            let rows: Vec<usize> = (0..count).collect();
            let mut written: Vec<usize> = filling(&rows).copied().collect();
            written.sort_unstable();
            assert_eq!(written, rows);
        }
    }
}
