//! What is kept and not hot: rows of devices, push records and daily statistics, under a trait of four calls.
//!
//! # Contract
//! A transaction is all or nothing, durable when it returns, and carries the journal sequence up to which everything is in the tables
//! ([`Tables::applied`]). After a crash the tables hold exactly a prefix of the transactions. Who reads must look first at what isn't written
//! yet. One thread writes, any number read.
//!
//! # Which library, and why
//! redb 4.1, in one file `tables.redb`. Measured on two cores beside fjall 3.1 (`cargo bench --bench tables` repeats redb's part): rows of 300
//! bytes, 500,000 of them, 64 MiB of cache, each transaction durable; CPU µs and bytes written a row. All figures here are from before the file's
//! blocks were checked (`checked`), whose cost isn't measured:
//!
//! | | redb, keys that grow | redb, keys all over | fjall, all over |
//! |---|---|---|---|
//! | new rows, 5,000 a transaction | **2.0 µs, 610 B** | 10 µs, 4,310 B | 2.5 µs, 576 B |
//! | random changes, 5,000 a transaction | 15 µs, 4,894 B | 13 µs, 4,761 B | **2.9 µs, 615 B** |
//! | random changes, 100 a transaction | 29 µs, 9,723 B | 23 µs, 8,878 B | **4.0 µs, 380 B** |
//! | a transaction of 5,000, slowest | 22 ms | 118 ms | 76 ms |
//! | random read, warm | **4.0 µs** | 4.1 µs | 5.4 µs |
//! | memory of the process, file | **74 MB**, 297 MB | 76 MB, 292 MB | 161 MB, 166–375 MB |
//! | to open after an orderly end | **1 ms** | 1 ms | 560 ms |
//!
//! With 1,000,000 rows, on a machine that others used at the same time (so CPU and bytes count, the times don't): keys that grow, new rows 2.1 µs
//! and 615 B, random changes 17 µs and 5,723 B (5,000 a transaction), 32 µs and 11,122 B (100 a transaction); keys all over 13 µs and 4,948 B, 15 µs
//! and 5,462 B, 37 µs and 11,077 B. 75 to 80 MB held; the file has 1,077 MB after that.
//!
//! The library splits a full page in the middle: keys that grow leave every page half empty behind them. So what is written at once goes in in an order
//! that fills them (`library`); the figures above are from before that. 300,000 devices' rows take 335 bytes each since then, 558 before
//! (`cargo bench --bench state`). Rows that come a few at a time still leave pages half empty.
//!
//! A log-structured library takes random changes at a fifth of the cost. So no key here is random: a device's row stands under its
//! dense number, a push record under the sequence of its first batch, and what is new or was touched lately shares pages at the end
//! of its tree. Then the B-tree costs the same, and it has what the other lacks: it reaches its file through a trait, so that it runs on
//! [`Disk`] like everything else here, and the crash tests tear *its* writes too; it has no threads of its own and no dependencies.
//! `SQLite` (C) and `LMDB` (a licence of its own) weren't measured.
//!
//! What it reads is checked against checksums of ours first, as it takes pages as they are (see `checked`): so a file that a disk altered is an
//! error that names the place, at the start or whenever it is met. Nothing mends it: the journal keeps only what came after.
//!
//! Pages are written for good in two phases and the free list with every transaction ("quick repair"): a start after a crash doesn't read the
//! whole file. That costs 10 to 15 % CPU, and is in the figures of growing keys.

mod checked;
mod library;
mod log;
mod writer;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

pub(super) use writer::{Job, Writer};

use super::disk::Disk;
use crate::ids::Seq;

/// The version of rows: their first byte, so that a program that knows no newer one says so instead of guessing. The tables as a whole have the
/// data directory's format.
const ROW_VERSION: u8 = 1;

/// The table library's file.
pub const FILE: &str = "tables.redb";

/// A table: its keys are ordered by their bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Table {
    /// What there is one of: key is a name.
    Single = 1,
    /// Devices, by their dense number.
    Devices = 2,
    /// Push records, by the sequence of their first batch.
    Messages = 3,
    /// Daily statistics, by app and day.
    Days = 4,
    /// Devices that were active, by app and day.
    Active = 5,
}

impl Table {
    const ALL: [Self; 5] = [Self::Single, Self::Devices, Self::Messages, Self::Days, Self::Active];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == number)
    }
}

/// The rows of a transaction, ordered as the tables order them; `None`: it goes.
pub type Writes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// Why the tables can't do what they should.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// There is no space: nothing was changed, and it can be tried again.
    #[error("no space for a transaction of the tables")]
    Full,
    /// The file can't be read or written.
    #[error("the tables ({file}) can't be {doing}: {source}", file = FILE)]
    Io {
        /// What was being done.
        doing: &'static str,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// What is in the file isn't what was written.
    #[error(
        "the tables ({file}) are damaged: {what}. Put back a copy of the whole data directory; or move the file away and start: while the journal \
         still has everything it is made anew, and if not the start says so and changes nothing",
        file = FILE
    )]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// A row was written by a newer version. Nothing was touched.
    #[error(
        "the tables ({file}) were written by a newer version: the row {key} of {table:?} has version {version}, and this program reads \
         {ROW_VERSION}. Start the newer program again",
        file = FILE
    )]
    Newer {
        /// The table.
        table: Table,
        /// The row's key, in hexadecimal.
        key: String,
        /// The row's version.
        version: u8,
    },
    /// The file is missing, or of another time than the journal.
    #[error(
        "the tables ({file}) hold everything up to sequence {applied}, and the journal begins at {oldest}: the file is missing, or older than \
         the rest of the data directory. Put back the file that belongs to it; or begin with an empty data directory: devices register \
         again, what was pending is lost",
        file = FILE
    )]
    Behind {
        /// What the tables hold.
        applied: Seq,
        /// The journal's oldest record.
        oldest: Seq,
    },
    /// The journal is older than the file.
    #[error(
        "the tables ({file}) hold everything up to sequence {applied}, and the journal ends at {head}: its files are older than the tables. Put \
         back the files that belong together; or begin with an empty data directory: devices register again, what was pending is lost",
        file = FILE
    )]
    Ahead {
        /// What the tables hold.
        applied: Seq,
        /// The journal's newest record.
        head: Seq,
    },
}

impl TablesError {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io { doing, source },
        }
    }
}

/// A row's beginning.
pub(super) fn new_row() -> Vec<u8> {
    vec![ROW_VERSION]
}

/// What stands in a row of this version. Nothing, where no version ever stood: what reads it says that it is malformed.
pub(super) fn row_content<'a>(table: Table, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], TablesError> {
    match row.split_first() {
        Some((&ROW_VERSION, content)) => Ok(content),
        Some((&version, _)) if version > ROW_VERSION => {
            Err(TablesError::Newer { table, key: data_encoding::HEXLOWER.encode(key), version })
        }
        _ => Ok(&[]),
    }
}

/// Who is shown rows: key, row.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) + 'a;

/// See the module.
pub trait Tables: Send + Sync + Debug {
    /// Everything up to here is in the tables.
    fn applied(&self) -> Seq;

    /// A row.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, TablesError>;

    /// Shows every row, ordered by key.
    fn scan(&self, table: Table, visit: &mut Visit<'_>) -> Result<(), TablesError>;

    /// One transaction: the rows, and that everything up to `applied` is in them.
    fn apply(&self, writes: &Writes, applied: Seq) -> Result<(), TablesError>;
}

/// What the tables are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TableKind {
    /// The library.
    #[default]
    Library,
    /// Everything in memory, and a log of all transactions on the disk: for tests that crash everywhere, as a transaction is one write and one sync.
    Log,
}

/// Opens the tables, or makes new ones.
pub fn open<D: Disk>(
    disk: &Arc<D>,
    kind: TableKind,
    cache_bytes: usize,
) -> Result<Arc<dyn Tables>, TablesError> {
    Ok(match kind {
        TableKind::Library => Arc::new(library::LibraryTables::open(disk.clone(), cache_bytes)?),
        TableKind::Log => Arc::new(log::LogTables::open(disk.clone())?),
    })
}

/// Opens a file, or makes it. Its entry is durable afterwards.
fn open_file<D: Disk>(disk: &D, name: &str) -> Result<D::File, TablesError> {
    let known = disk.list().map_err(TablesError::io("found"))?.iter().any(|known| known == name);
    let file = if known { disk.open(name) } else { disk.create(name, 0) };
    let file = file.map_err(TablesError::io("opened"))?;
    // A file that is there may be there in memory only, if the process died after it made it.
    disk.sync_dir(super::disk::SyncPoint::TablesEntry).map_err(TablesError::io("made"))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
