//! The tables in redb, whose file is one of the data directory's like any other.
//!
//! A file that grows is synced at once: the library's header tells its length, and a header without the length would not open again. A
//! transaction that met a full disk is undone by opening the file again, as the library asks for.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition,
    TableError,
};

use super::{FILE, Table, Tables, TablesError, Visit, Writes, new_row, open_file, row_content};
use crate::ids::Seq;
use crate::store::disk::{Disk, DiskFile, SyncPoint};

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
        let tables = Self { disk, cache_bytes, database, applied: AtomicU64::new(0) };
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
            let mut rows =
                writes.range((of, Vec::new())..).take_while(|((table, _), _)| *table == of).peekable();
            if rows.peek().is_none() && of != Table::Single {
                continue;
            }
            let mut table = transaction.open_table(definition(of))?;
            for ((_, key), row) in rows {
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
        *database = Some(open(&*self.disk, self.cache_bytes)?);
        Ok(())
    }
}

/// A new file gets its name when it is whole: the library doesn't open one that it was interrupted in making.
fn open<D: Disk>(disk: &D, cache_bytes: usize) -> Result<Database, TablesError> {
    let names = disk.list().map_err(TablesError::io("found"))?;
    let known = |name: &str| names.iter().any(|known| known == name);
    if !known(FILE) {
        if known(NEW_FILE) {
            disk.remove(NEW_FILE).map_err(TablesError::io("made"))?;
        }
        drop(open_in(disk.create(NEW_FILE, 0).map_err(TablesError::io("made"))?, cache_bytes)?);
        disk.rename(NEW_FILE, FILE).map_err(TablesError::io("made"))?;
    }
    open_in(open_file(disk, FILE)?, cache_bytes)
}

fn open_in<F: DiskFile>(file: F, cache_bytes: usize) -> Result<Database, TablesError> {
    let file = LibraryFile(file);
    Database::builder()
        .set_cache_size(cache_bytes)
        .create_with_backend(file)
        .map_err(|error: DatabaseError| failed("opened")(error.into()))
}

fn failed(doing: &'static str) -> impl FnOnce(redb::Error) -> TablesError {
    move |error| match error {
        redb::Error::Io(source) => TablesError::io(doing)(source),
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

/// The file as the library wants it.
#[derive(Debug)]
struct LibraryFile<F>(F);

impl<F: DiskFile> StorageBackend for LibraryFile<F> {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.0.read_at(out, offset)?;
        if read < out.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.sync(SyncPoint::TablesContent)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync(SyncPoint::TablesContent)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
