//! A real directory.
//!
//! One process at a time: it holds a lock on the file `lock` while the [`RealDisk`] lives. Space is reserved with `fallocate`; only a file system that
//! has none gets a sparse file, and then rolling can meet a full disk after all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::ids::DigestKey;

use super::format::{Format, FormatError};
use super::{Disk, DiskFile, SyncPoint};

/// The file whose lock says who uses the directory.
pub(super) const LOCK: &str = "lock";

/// A directory of this machine, locked.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    quota: Arc<Quota>,
    /// Held open, as the lock goes with it.
    lock: Option<File>,
}

/// An open file of a [`RealDisk`].
#[derive(Debug)]
pub struct RealFile {
    file: File,
    length: AtomicU64,
    quota: Arc<Quota>,
}

/// Why a data directory can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no data in it.
    #[error("{} holds no data of an edge", .path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// Another process uses it.
    #[error("the data directory {} is in use by another process: an edge that runs, most likely; one process has it at a time", .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It can't be used; nothing was touched.
    #[error("{}: {source}", .path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The file system failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// How.
        #[source]
        source: io::Error,
    },
}

/// Bytes of all files against a maximum.
#[derive(Debug)]
struct Quota {
    max: Option<u64>,
    /// Beyond that.
    more: AtomicU64,
    used: Mutex<u64>,
}

impl Quota {
    fn take(&self, bytes: u64) -> io::Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = used.saturating_add(bytes);
        let more = self.more.load(Ordering::Relaxed);
        if self.max.is_some_and(|max| wanted > max.saturating_add(more)) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the configured size is reached"));
        }
        *used = wanted;
        Ok(())
    }

    /// Bytes beyond the maximum; `None`: there is none.
    fn over(&self) -> Option<u64> {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.max.map(|max| used.saturating_sub(max))
    }

    fn add(&self, bytes: u64) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
    }

    fn give_back(&self, bytes: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(bytes);
    }
}

impl RealDisk {
    /// Opens a data directory, or makes a new one; `max_bytes` bounds all its files together, unless they are more already: then they get no more. A directory of a newer format or in use is
    /// left untouched.
    pub fn open(path: &Path, max_bytes: Option<u64>) -> Result<(Arc<Self>, Format), OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        let unfit = |source| OpenError::Format { path: path.to_owned(), source };
        make_directory(path).map_err(failed)?;
        let quota = Quota { max: max_bytes, more: AtomicU64::new(0), used: Mutex::new(0) };
        let mut disk = Self { path: path.to_owned(), quota: Arc::new(quota), lock: None };
        // Before the lock file is made: what a newer version or something else keeps here isn't touched at all.
        Format::read(&disk).map_err(unfit)?;
        disk.lock()?;
        for name in disk.list().map_err(failed)? {
            let bytes = fs::metadata(path.join(name)).map_err(failed)?.len();
            disk.quota.add(bytes);
        }
        if let Some(over) = disk.quota.over().filter(|over| *over > 0) {
            tracing::warn!(
                directory = %path.display(), over,
                "the data directory holds more bytes than store.max_bytes: it gets no larger, and takes no batches for which its journal has no room"
            );
            // Less than what is there would keep out the checkpoint without which nothing goes.
            disk.widen(over);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| failed(io::Error::other(error)))?;
        let format = Format::open(&disk, DigestKey(key)).map_err(unfit)?;
        Ok((Arc::new(disk), format))
    }

    fn lock(&mut self) -> Result<(), OpenError> {
        let path = || self.path.clone();
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.path.join(LOCK));
        let file = file.map_err(|source| OpenError::Io { path: path(), source })?;
        match file.try_lock() {
            Ok(()) => self.lock = Some(file),
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path() }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Io { path: path(), source }),
        }
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self, file: File) -> io::Result<RealFile> {
        let length = AtomicU64::new(file.metadata()?.len());
        Ok(RealFile { file, length, quota: Arc::clone(&self.quota) })
    }
}

/// Makes the directory and, if it is new, its entry durable.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Reserves the space; a file system without reservations gets the length only.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => file.set_len(bytes).map_err(full),
        Err(error) => Err(full(error.into())),
    }
}

/// A quota of the file system that is used up is a full disk too.
fn full(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::QuotaExceeded { io::ErrorKind::StorageFull.into() } else { error }
}

/// Reads; less than asked for only at the end of the file.
pub(super) fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Disk for RealDisk {
    type File = RealFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK
                && entry.file_type()?.is_file()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, preallocate: u64) -> io::Result<RealFile> {
        self.quota.take(preallocate)?;
        let path = self.path.join(name);
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(full).inspect_err(|_| self.quota.give_back(preallocate))?;
        if preallocate > 0
            && let Err(error) = reserve(&file, preallocate)
        {
            self.quota.give_back(preallocate);
            fs::remove_file(&path)?;
            return Err(error);
        }
        self.file(file)
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        self.file(OpenOptions::new().read(true).write(true).open(self.path.join(name))?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        let bytes = fs::metadata(&path)?.len();
        fs::remove_file(path)?;
        self.quota.give_back(bytes);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let to = self.path.join(to);
        let replaced = match fs::metadata(&to) {
            Ok(replaced) => replaced.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        fs::rename(self.path.join(from), to)?;
        self.quota.give_back(replaced);
        Ok(())
    }

    fn sync_dir(&self, _point: SyncPoint) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn widen(&self, bytes: u64) {
        self.quota.more.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl RealFile {
    /// After a write that failed, at the end of a full disk for one: what isn't there takes no room.
    fn count_again(&self) {
        let Ok(there) = self.file.metadata() else { return };
        let counted = self.length.fetch_min(there.len(), Ordering::Relaxed);
        self.quota.give_back(counted.saturating_sub(there.len()));
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let grown = end.saturating_sub(self.length.load(Ordering::Relaxed));
        if grown > 0 {
            self.quota.take(grown)?;
            self.length.fetch_max(end, Ordering::Relaxed);
        }
        self.file.write_all_at(bytes, offset).map_err(full).inspect_err(|_| self.count_again())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        read_fully(&self.file, buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.length.load(Ordering::Relaxed);
        self.quota.take(len.saturating_sub(before))?;
        self.file
            .set_len(len)
            .map_err(full)
            .inspect_err(|_| self.quota.give_back(len.saturating_sub(before)))?;
        self.length.store(len, Ordering::Relaxed);
        self.quota.give_back(before.saturating_sub(len));
        Ok(())
    }

    fn sync(&self, _point: SyncPoint) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, max: Option<u64>) -> (Arc<RealDisk>, Format) {
        RealDisk::open(path, max).expect("a new directory")
    }

    #[test]
    fn a_used_up_quota_of_the_file_system_is_a_full_disk_and_nothing_else_is() {
        let of = |error: Errno| full(error.into()).kind();
        assert_eq!([of(Errno::NOSPC), of(Errno::DQUOT)], [io::ErrorKind::StorageFull; 2]);
        assert_eq!(of(Errno::ROFS), io::ErrorKind::ReadOnlyFilesystem);
    }

    #[test]
    fn a_directory_in_use_is_refused_by_name_and_keeps_its_key() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("data");
        let (disk, first) = open(&path, None);
        let error = RealDisk::open(&path, None).expect_err("locked");
        assert!(matches!(error, OpenError::Locked { .. }));
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        drop(disk);
        let (_disk, second) = open(&path, None);
        assert_eq!(first.digest_key.0, second.digest_key.0);
    }

    #[test]
    fn a_newer_format_is_refused_and_nothing_touched() {
        let dir = tempfile::tempdir().expect("temporary directory");
        drop(open(dir.path(), None));
        fs::remove_file(dir.path().join(LOCK)).expect("there");
        let file = OpenOptions::new().write(true).open(dir.path().join("format")).expect("there");
        file.write_all_at(&[9], 8).expect("writable");
        let error = RealDisk::open(dir.path(), None).expect_err("newer");
        let is_newer = matches!(error, OpenError::Format { source: FormatError::Newer { found: 9 }, .. });
        assert!(is_newer, "{error}");
        assert!(!dir.path().join(LOCK).exists(), "not even a lock file");
    }

    #[test]
    fn the_quota_bounds_all_files_together() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = open(dir.path(), Some(10_000));
        let file = disk.create("a", 8_000).expect("fits");
        assert_eq!(file.len().expect("open"), 8_000);
        let full = disk.create("b", 4_000).expect_err("too much");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(!disk.list().expect("readable").contains(&"b".to_owned()), "nothing is left behind");
        assert_eq!(file.write_at(&[1; 5_000], 6_000).expect_err("grows").kind(), io::ErrorKind::StorageFull);
        disk.remove("a").expect("there");
        disk.create("b", 4_000).expect("fits now");
    }

    /// Else each checkpoint that finds the disk full would make the directory's maximum smaller.
    #[test]
    fn the_quota_does_not_count_what_could_not_be_written() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = open(dir.path(), None);
        let before = *disk.quota.used.lock().expect("not poisoned");
        disk.create("a", 0).expect("fits").write_at(&[1; 100], 0).expect("works");
        let read_only = disk.file(File::open(dir.path().join("a")).expect("there")).expect("there");
        for _ in 0..3 {
            read_only.write_at(&[1; 1_000], 50).expect_err("it can't be written to");
            assert_eq!(*disk.quota.used.lock().expect("not poisoned"), before + 100);
        }
        disk.remove("a").expect("there");
        assert_eq!(*disk.quota.used.lock().expect("not poisoned"), before);
    }

    #[test]
    fn the_quota_counts_what_grows_is_cut_replaced_or_was_there() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = open(dir.path(), None);
        let format = disk.open("format").expect("there").len().expect("known");
        drop(disk);
        let (disk, _) = open(dir.path(), Some(format + 10_000));
        let is_full = |disk: &RealDisk| {
            let more = disk.create("more", 1);
            more.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull)
        };
        let a = disk.create("a", 4_000).expect("fits");
        a.write_at(&[1; 1_000], 3_500).expect("it grows by 500");
        a.write_at(&[1; 1_000], 0).expect("it doesn't grow");
        let b = disk.create("b", 5_500).expect("fits to the last byte");
        assert!(is_full(&disk));
        b.set_len(5_400).expect("cut");
        disk.create("c", 100).expect("fits");
        assert!(is_full(&disk));
        disk.rename("c", "a").expect("there");
        disk.create("d", 4_500).expect("what was replaced gave its room back");
        disk.rename("d", "e").expect("there");
        assert!(is_full(&disk), "a new name gives nothing back");
        assert_eq!(b.set_len(6_000).expect_err("it grows").kind(), io::ErrorKind::StorageFull);
        disk.remove("e").expect("there");
        b.set_len(9_900).expect("fits");
        assert!(is_full(&disk));
        drop((a, b, disk));
        assert!(
            is_full(&open(dir.path(), Some(format + 10_000)).0),
            "what is there counts at the next start"
        );
    }

    #[test]
    fn a_quota_below_what_is_there_takes_what_goes_and_no_more() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = open(dir.path(), None);
        disk.create("a", 8_000).expect("no bound");
        disk.create("b", 2_000).expect("no bound");
        drop(disk);
        let (disk, _) = open(dir.path(), Some(5_000));
        assert_eq!(disk.create("c", 1).expect_err("too much").kind(), io::ErrorKind::StorageFull);
        disk.remove("b").expect("there");
        disk.create("c", 2_000).expect("as much as went");
        assert_eq!(disk.create("d", 1).expect_err("too much").kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn names_bytes_and_lengths() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (disk, _) = open(dir.path(), None);
        let file = disk.create("a", 0).expect("new");
        assert_eq!(disk.create("a", 0).expect_err("there").kind(), io::ErrorKind::AlreadyExists);
        file.write_at(b"hello", 3).expect("writable");
        file.sync(SyncPoint::GroupCommit).expect("syncs");
        disk.rename("a", "b").expect("there");
        disk.sync_dir(SyncPoint::SegmentEntry).expect("syncs");
        let mut buffer = [1; 10];
        assert_eq!(disk.open("b").expect("there").read_at(&mut buffer, 2).expect("readable"), 6);
        assert_eq!(&buffer[..6], b"\0hello");
        assert_eq!(disk.open("a").expect_err("renamed").kind(), io::ErrorKind::NotFound);
    }
}
