//! A data directory at rest, as the next start would find it: its files are only read, and what is written stays in memory. So the engine
//! itself can be opened on it, to see what a start would do, without doing it.
//!
//! A lock that others may share is held meanwhile: an edge that is started doesn't get its own, and two such looks don't disturb each other.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::format::Format;
use super::real::{LOCK, OpenError, read_fully};
use super::{Disk, DiskFile, SyncPoint};

/// Bytes that are kept in memory where one of them is written.
const BLOCK: u64 = 4096;

/// A directory, with what would change in it.
#[derive(Debug)]
pub struct OverlayDisk {
    path: PathBuf,
    files: Mutex<BTreeMap<String, Source>>,
    /// Held open, as the lock goes with it. A copy may be without.
    _lock: Option<File>,
}

#[derive(Clone, Debug)]
enum Source {
    /// Never opened.
    Untouched,
    /// Opened, made or renamed.
    Known(OverlayFile),
}

/// An open file of an [`OverlayDisk`].
#[derive(Clone, Debug)]
pub struct OverlayFile(Arc<Layer>);

#[derive(Debug)]
struct Layer {
    /// `None`: it is in no directory.
    base: Option<File>,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    length: u64,
    /// Bytes of the file below that still count.
    base_length: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK as usize]>>,
}

impl OverlayDisk {
    /// Looks at a data directory that is there. Nothing in it is changed.
    pub fn open(path: &Path) -> Result<(Arc<Self>, Format), OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        // First, so that nothing comes or goes while the names are read.
        let lock = share_lock(path)?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_file = entry.file_type().map_err(failed)?.is_file();
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK
                && is_file
            {
                files.insert(name, Source::Untouched);
            }
        }
        let disk = Self { path: path.to_owned(), files: Mutex::new(files), _lock: lock };
        match Format::read(&disk) {
            Ok(Some(format)) => Ok((Arc::new(disk), format)),
            Ok(None) => Err(OpenError::Empty { path: path.to_owned() }),
            Err(source) => Err(OpenError::Format { path: path.to_owned(), source }),
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Source>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn share_lock(path: &Path) -> Result<Option<File>, OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    let file = match File::open(path.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

impl Disk for OverlayDisk {
    type File = OverlayFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn create(&self, name: &str, preallocate: u64) -> io::Result<OverlayFile> {
        let mut files = self.files();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = OverlayFile::new(None, preallocate);
        files.insert(name.to_owned(), Source::Known(file.clone()));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<OverlayFile> {
        let mut files = self.files();
        let source = files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        if let Source::Known(file) = source {
            return Ok(file.clone());
        }
        let base = File::open(self.path.join(name))?;
        let length = base.metadata()?.len();
        let file = OverlayFile::new(Some(base), length);
        *source = Source::Known(file.clone());
        Ok(file)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        // Under its new name the directory would not find it.
        let file = self.open(from)?;
        let mut files = self.files();
        files.remove(from);
        files.insert(to.to_owned(), Source::Known(file));
        Ok(())
    }

    fn sync_dir(&self, _point: SyncPoint) -> io::Result<()> {
        Ok(())
    }
}

impl OverlayFile {
    fn new(base: Option<File>, length: u64) -> Self {
        let base_length = if base.is_some() { length } else { 0 };
        let changes = Mutex::new(Changes { length, base_length, blocks: BTreeMap::new() });
        Self(Arc::new(Layer { base, changes }))
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.0.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is below, zeros behind its end.
    fn read_base(&self, base_length: u64, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let there = base_length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (below, behind) = buffer.split_at_mut(there);
        behind.fill(0);
        let Some(base) = self.0.base.as_ref().filter(|_| !below.is_empty()) else { return Ok(()) };
        let read = read_fully(base, below, offset)?;
        if read < below.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl DiskFile for OverlayFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut changes = self.changes();
        let end = offset + bytes.len() as u64;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (number, within) = (at / BLOCK, (at % BLOCK) as usize);
            let (now, later) = rest.split_at(rest.len().min(BLOCK as usize - within));
            if !changes.blocks.contains_key(&number) {
                let mut block = Box::new([0; BLOCK as usize]);
                self.read_base(changes.base_length, &mut block[..], number * BLOCK)?;
                changes.blocks.insert(number, block);
            }
            if let Some(block) = changes.blocks.get_mut(&number) {
                block[within..within + now.len()].copy_from_slice(now);
            }
            (at, rest) = (at + now.len() as u64, later);
        }
        changes.length = changes.length.max(end);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let changes = self.changes();
        let there = changes.length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if there == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..there];
        self.read_base(changes.base_length, buffer, offset)?;
        let end = offset + there as u64;
        for (number, block) in changes.blocks.range(offset / BLOCK..=(end - 1) / BLOCK) {
            let start = number * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
        Ok(there)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().length)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = self.changes();
        if len < changes.length {
            changes.base_length = changes.base_length.min(len);
            changes.blocks.split_off(&len.div_ceil(BLOCK));
            if let Some(block) = changes.blocks.get_mut(&(len / BLOCK)) {
                block[(len % BLOCK) as usize..].fill(0);
            }
        }
        changes.length = len;
        Ok(())
    }

    fn sync(&self, _point: SyncPoint) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::real::RealDisk;
    use std::fs::OpenOptions;

    use super::*;

    fn empty() -> (tempfile::TempDir, Arc<OverlayDisk>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        drop(RealDisk::open(dir.path(), None).expect("a new directory"));
        let (disk, _) = OverlayDisk::open(dir.path()).expect("a data directory");
        (dir, disk)
    }

    #[test]
    fn a_directory_in_use_is_refused_and_one_that_is_looked_at_is_in_use() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (edge, _) = RealDisk::open(dir.path(), None).expect("a new directory");
        assert!(matches!(OverlayDisk::open(dir.path()), Err(OpenError::Locked { .. })));
        drop(edge);
        let first = OverlayDisk::open(dir.path()).expect("at rest");
        let second = OverlayDisk::open(dir.path()).expect("looked at twice");
        assert!(matches!(RealDisk::open(dir.path(), None), Err(OpenError::Locked { .. })));
        drop((first, second));
        RealDisk::open(dir.path(), None).expect("at rest again");
    }

    #[test]
    fn what_is_no_data_directory_is_refused_and_not_touched() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(matches!(OverlayDisk::open(dir.path()), Err(OpenError::Empty { .. })));
        assert!(matches!(OverlayDisk::open(&dir.path().join("none")), Err(OpenError::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn names_change_in_memory_only() {
        let (dir, disk) = empty();
        fs::write(dir.path().join("old"), b"bytes").expect("writable");
        let (disk, _) = {
            drop(disk);
            OverlayDisk::open(dir.path()).expect("at rest")
        };
        disk.rename("old", "new").expect("there");
        disk.create("other", 8).expect("free");
        disk.remove("format").expect("there");
        assert_eq!(disk.list().expect("listed"), ["new", "other"]);
        let mut bytes = [0; 9];
        let read = disk.open("new").expect("there").read_at(&mut bytes, 0).expect("readable");
        assert_eq!(&bytes[..read], b"bytes");
        assert!(disk.open("old").is_err());
        assert_eq!(fs::read(dir.path().join("old")).expect("untouched"), b"bytes");
        assert!(dir.path().join("format").exists());
    }

    #[test]
    fn what_can_not_be_looked_at_is_an_error_and_not_taken_for_free_or_for_zeros() {
        let (dir, disk) = empty();
        drop(disk);
        fs::write(dir.path().join("file"), [7; 100]).expect("writable");
        let (disk, _) = OverlayDisk::open(dir.path()).expect("at rest");
        let file = disk.open("file").expect("there");
        // Somebody cuts it below.
        OpenOptions::new()
            .write(true)
            .open(dir.path().join("file"))
            .expect("there")
            .set_len(10)
            .expect("cut");
        let error = file.read_at(&mut [0; 100], 0).expect_err("its bytes are gone");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        drop((file, disk));
        // A lock that nobody can open says nothing of whether the directory is in use.
        fs::remove_file(dir.path().join(LOCK)).expect("there");
        std::os::unix::fs::symlink(LOCK, dir.path().join(LOCK)).expect("a loop");
        assert!(matches!(OverlayDisk::open(dir.path()), Err(OpenError::Io { .. })));
    }

    #[test]
    fn around_the_border_of_two_blocks_every_byte_is_its_own() {
        let (_dir, disk) = empty();
        let file = disk.create("new", 0).expect("in memory");
        let bytes: Vec<u8> = (0..2 * BLOCK).map(|at| (at % 251) as u8).collect();
        file.write_at(&bytes, 0).expect("in memory");
        for from in BLOCK - 2..BLOCK + 3 {
            for to in from + 1..BLOCK + 4 {
                let mut seen = vec![0; (to - from) as usize];
                assert_eq!(file.read_at(&mut seen, from).expect("there"), seen.len());
                assert_eq!(seen, bytes[from as usize..to as usize], "{from} to {to}");
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Cut(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..20_000, proptest::collection::vec(1u8.., 1..9_000)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            1 => (0u64..30_000).prop_map(Step::Cut),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// It reads like a file to which all that was done, and the file has what it had.
        #[test]
        fn it_reads_as_a_changed_file_would(base in proptest::collection::vec(1u8.., 0..12_000), steps in proptest::collection::vec(step(), 0..12)) {
            let (dir, disk) = empty();
            drop(disk);
            let path = dir.path().join("file");
            fs::write(&path, &base).expect("writable");
            let (disk, _) = OverlayDisk::open(dir.path()).expect("at rest");
            let file = disk.open("file").expect("there");
            let mut model = base.clone();
            for step in steps {
                match step {
                    Step::Write(at, bytes) => {
                        let (at, end) = (at as usize, at as usize + bytes.len());
                        model.resize(model.len().max(end), 0);
                        model[at..end].copy_from_slice(&bytes);
                        file.write_at(&bytes, at as u64).expect("in memory");
                    }
                    Step::Cut(len) => {
                        model.resize(len as usize, 0);
                        file.set_len(len).expect("in memory");
                    }
                }
                prop_assert_eq!(file.len().expect("known"), model.len() as u64);
                for at in [0, 1, 4_095, 4_096, 9_999] {
                    let mut seen = vec![7; 11_000];
                    let read = file.read_at(&mut seen, at as u64).expect("readable");
                    let there = model.get(at..).unwrap_or_default();
                    prop_assert_eq!(&seen[..read], &there[..there.len().min(11_000)]);
                }
            }
            prop_assert_eq!(fs::read(&path).expect("there"), base);
        }
    }
}
