//! Files, as the journal and the checkpoints see them: a flat directory of named files behind a trait, so that the same code runs on
//! a real directory and on a simulated one that forgets everything it may forget.
//!
//! What the users of the trait rely on, and no more: bytes are durable after [`DiskFile::sync`], directory entries after
//! [`Disk::sync_dir`]; before that each written sector and each entry may or may not survive, in any combination; a rename
//! shows the old name or the new one. A sync that failed has dropped what it should have written (Linux marks the pages clean), so it
//! is never repeated as if it could still succeed.
//!
//! Every sync names its [`SyncPoint`], so that a test can leave out exactly one and show that it is needed.

use std::fmt::Debug;
use std::io;

pub mod crash;
pub mod format;
pub mod overlay;
pub mod real;
pub mod sim;

/// A place in the code where something is made durable. Leaving out any one of them breaks a promise; a test for each shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SyncPoint {
    /// A commit group (and, with the first group, the header of its segment), before it counts as committed.
    GroupCommit,
    /// The directory, after a spare file became a segment and before the first group in it counts as committed.
    SegmentEntry,
    /// The tail that a recovery accepted, before anything rests on it.
    RecoveryTail,
    /// The directory at a recovery: the entry of the last segment may be in memory only, if just the process died.
    RecoveryEntries,
    /// The content of a checkpoint, before its temporary name is replaced by the final one.
    CheckpointContent,
    /// The directory, after a checkpoint got its final name and before what it replaces is removed.
    CheckpointEntry,
    /// A transaction of the tables, before the journal that it stands for may go.
    TablesContent,
    /// The directory, after the tables' file was made and before anything rests on it.
    TablesEntry,
    /// The content of the data directory's format file, before it gets its final name.
    FormatContent,
    /// The directory, after the format file got its final name and before its key is used.
    FormatEntry,
}

impl SyncPoint {
    /// All of them.
    pub const ALL: [SyncPoint; 10] = [
        SyncPoint::GroupCommit,
        SyncPoint::SegmentEntry,
        SyncPoint::RecoveryTail,
        SyncPoint::RecoveryEntries,
        SyncPoint::CheckpointContent,
        SyncPoint::CheckpointEntry,
        SyncPoint::TablesContent,
        SyncPoint::TablesEntry,
        SyncPoint::FormatContent,
        SyncPoint::FormatEntry,
    ];
}

/// A directory of files.
pub trait Disk: Send + Sync + Debug + 'static {
    /// One of its files, open for reading and writing.
    type File: DiskFile;

    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file of `preallocate` bytes of zeros whose space is reserved. `AlreadyExists` if there is one; `StorageFull` if it
    /// doesn't fit; on failure nothing is left behind.
    fn create(&self, name: &str, preallocate: u64) -> io::Result<Self::File>;

    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Removes a file. Whoever has it open can still read it.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames a file; what had the name `to` is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes all entries durable: what was made, removed and renamed.
    fn sync_dir(&self, point: SyncPoint) -> io::Result<()>;

    /// All files together may take so many bytes more than was configured, until it is opened again. A disk without such a bound has nothing to do.
    fn widen(&self, _bytes: u64) {}
}

/// An open file.
#[allow(clippy::len_without_is_empty)] // nobody asks
pub trait DiskFile: Send + Sync + Debug + 'static {
    /// Writes all of `bytes`. `StorageFull` if it grows by more than there is room for.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reads; less than asked for only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or makes it longer by zeros whose space is not reserved. Durable, like a write, after the next sync.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes everything written so far durable (fdatasync). After an error, what was written may be lost for good, although reads still show it.
    fn sync(&self, point: SyncPoint) -> io::Result<()>;
}
