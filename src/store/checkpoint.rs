//! Checkpoint files: opaque slices, written piece by piece between commits, all or nothing in effect.
//!
//! ```text
//! file   = magic (8) version u32 id u32 reserved u32 crc u32 slice* footer         little-endian, CRC-32C
//! slice  = length u32 crc u32 bytes
//! footer = FFFFFFFF crc u32 slices u32 id u32 covers u64 start u64                 32 bytes, the last of the file
//! ```
//!
//! A checkpoint is written under `checkpoint-<id>.tmp`, synced, renamed to `checkpoint-<id>.ckpt`; then the directory is synced, and only then all
//! but the two newest are removed. So at any moment the newest finished one survives a power loss, and if it turns out damaged, the
//! one before it is still there. The journal may be trimmed up to what the *older* of the two covers.
//!
//! Long writes are synced every few MiB, so that no single sync delays the commits that come between.

use std::io;
use std::sync::Arc;

use crate::ids::Seq;

use super::disk::{Disk, DiskFile, SyncPoint};

const MAGIC: &[u8; 8] = b"MOORCKPT";
/// The newest format this code reads, and the one it writes.
const VERSION: u32 = 1;
const HEADER: usize = 24;
const SLICE_HEADER: usize = 8;
const FOOTER: usize = 32;
const FOOTER_MARK: u32 = u32::MAX;
/// Bytes gathered before they are written.
const BUFFER: usize = 256 * 1024;
/// Bytes written before they are synced.
const SYNC_EVERY: u64 = 4 * 1024 * 1024;

/// What a checkpoint can't do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk failed. `StorageFull` is no reason to stop: [`CheckpointWriter::abandon`] it and try again later.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// Written by a newer version. Nothing was touched.
    #[error("{name} has format {version}; this program reads up to {VERSION}")]
    Newer {
        /// The file.
        name: String,
        /// Its format.
        version: u32,
    },
    /// Altered since it was checked.
    #[error("{name} is damaged")]
    Damaged {
        /// The file.
        name: String,
    },
}

impl CheckpointError {
    /// Whether there was no space.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }

    /// There is no space for something else that it needs.
    pub(super) fn full(doing: &str) -> Self {
        Self::Io { doing: doing.to_owned(), source: io::ErrorKind::StorageFull.into() }
    }

    fn io(doing: &str, name: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let doing = format!("{doing} {name}");
        move |source| Self::Io { doing, source }
    }
}

/// A finished checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finished {
    /// Its id.
    pub id: u32,
    /// Every record up to here is reflected in it.
    pub covers: Seq,
    /// What the older of the two kept covers: trimming may not pass it. 0: there is no second one.
    pub oldest_kept: Seq,
}

fn final_name(id: u32) -> String {
    format!("checkpoint-{id:010}.ckpt")
}

fn temporary_name(id: u32) -> String {
    format!("checkpoint-{id:010}.tmp")
}

fn parse(name: &str, ending: &str) -> Option<u32> {
    let digits = name.strip_prefix("checkpoint-")?.strip_suffix(ending)?;
    (digits.len() == 10).then(|| digits.parse().ok())?
}

/// The ids of finished checkpoints, newest first, and the names of unfinished ones.
fn list<D: Disk>(disk: &D) -> Result<(Vec<u32>, Vec<String>), CheckpointError> {
    let names = disk.list().map_err(CheckpointError::io("listing", "the data directory"))?;
    let mut ids: Vec<u32> = names.iter().filter_map(|name| parse(name, ".ckpt")).collect();
    ids.sort_unstable_by(|a, b| b.cmp(a));
    let unfinished = names.into_iter().filter(|name| parse(name, ".tmp").is_some()).collect();
    Ok((ids, unfinished))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

fn slice_crc(index: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), bytes)
}

#[derive(Clone, Copy)]
struct Footer {
    slices: u32,
    id: u32,
    covers: Seq,
    /// Where the footer begins.
    start: u64,
}

impl Footer {
    fn encode(self) -> [u8; FOOTER] {
        let mut out = [0; FOOTER];
        out[..4].copy_from_slice(&FOOTER_MARK.to_le_bytes());
        out[8..12].copy_from_slice(&self.slices.to_le_bytes());
        out[12..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.covers.0.to_le_bytes());
        out[24..].copy_from_slice(&self.start.to_le_bytes());
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn read<F: DiskFile>(file: &F, id: u32) -> io::Result<Option<Self>> {
        let length = file.len()?;
        let Some(start) = length.checked_sub(FOOTER as u64) else { return Ok(None) };
        let mut bytes = [0; FOOTER];
        let read = file.read_at(&mut bytes, start)?;
        let footer = Self {
            slices: word(&bytes, 8),
            id: word(&bytes, 12),
            covers: Seq(long(&bytes, 16)),
            start: long(&bytes, 24),
        };
        let whole = read == FOOTER
            && word(&bytes, 0) == FOOTER_MARK
            && word(&bytes, 4) == crc32c::crc32c(&bytes[8..]);
        Ok((whole && footer.id == id && footer.start == start).then_some(footer))
    }
}

/// Writes a checkpoint piece by piece.
#[derive(Debug)]
pub struct CheckpointWriter<D: Disk> {
    disk: Arc<D>,
    file: D::File,
    id: u32,
    slices: u32,
    buffer: Vec<u8>,
    /// Bytes written, without the buffer.
    written: u64,
    synced: u64,
}

impl<D: Disk> CheckpointWriter<D> {
    /// Begins a checkpoint under the next id; removes what unfinished ones left.
    pub fn begin(disk: Arc<D>) -> Result<Self, CheckpointError> {
        let (ids, unfinished) = list(&*disk)?;
        for name in unfinished {
            disk.remove(&name).map_err(CheckpointError::io("removing", &name))?;
        }
        let id = ids.first().map_or(1, |newest| newest + 1);
        let name = temporary_name(id);
        let file = disk.create(&name, 0).map_err(CheckpointError::io("making", &name))?;
        let mut buffer = Vec::with_capacity(BUFFER);
        buffer.extend_from_slice(MAGIC);
        for word in [VERSION, id, 0] {
            buffer.extend_from_slice(&word.to_le_bytes());
        }
        buffer.extend_from_slice(&crc32c::crc32c(&buffer).to_le_bytes());
        Ok(Self { disk, file, id, slices: 0, buffer, written: 0, synced: 0 })
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Appends a slice of less than 4 GiB.
    pub fn slice(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&slice_crc(self.slices, bytes).to_le_bytes());
        self.buffer.extend_from_slice(bytes);
        self.slices += 1;
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        if self.written - self.synced >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        let failed = CheckpointError::io("writing", &temporary_name(self.id));
        self.file.write_at(&self.buffer, self.written).map_err(failed)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), CheckpointError> {
        let failed = CheckpointError::io("syncing", &temporary_name(self.id));
        self.file.sync(SyncPoint::CheckpointContent).map_err(failed)?;
        self.synced = self.written;
        Ok(())
    }

    /// Makes it durable and the newest, then removes all but the two newest. `covers`: every record up to here is reflected in every slice. After an
    /// error, the older ones are still there; a checkpoint that may have its final name already is as good as they are.
    pub fn finish(mut self, covers: Seq) -> Result<Finished, CheckpointError> {
        let footer = Footer { slices: self.slices, id: self.id, covers, start: self.bytes() };
        self.buffer.extend_from_slice(&footer.encode());
        self.flush()?;
        self.sync()?;
        let (from, to) = (temporary_name(self.id), final_name(self.id));
        self.disk.rename(&from, &to).map_err(CheckpointError::io("naming", &to))?;
        self.disk.sync_dir(SyncPoint::CheckpointEntry).map_err(CheckpointError::io("naming", &to))?;
        let (ids, _) = list(&*self.disk)?;
        for id in ids.into_iter().skip(2) {
            let name = final_name(id);
            self.disk.remove(&name).map_err(CheckpointError::io("removing", &name))?;
        }
        Ok(Finished { id: self.id, covers, oldest_kept: oldest_kept_covers(&self.disk)? })
    }

    /// Gives up and frees the space.
    pub fn abandon(self) -> Result<(), CheckpointError> {
        let name = temporary_name(self.id);
        self.disk.remove(&name).map_err(CheckpointError::io("removing", &name))
    }
}

/// Reads a checkpoint.
#[derive(Debug)]
pub struct CheckpointReader<D: Disk> {
    file: D::File,
    id: u32,
    covers: Seq,
    slices: u32,
    /// Slices read.
    index: u32,
    /// Where the next one begins.
    at: u64,
    end: u64,
    damaged: Vec<String>,
}

impl<D: Disk> CheckpointReader<D> {
    /// The newest that is whole: every slice was checked. Newer damaged ones are removed, so that they don't count as one of the two kept; the log
    /// and [`CheckpointReader::damaged`] name them. `None`: there is none.
    #[allow(clippy::needless_pass_by_value)] // as `CheckpointWriter::begin` takes it
    pub fn newest(disk: Arc<D>) -> Result<Option<Self>, CheckpointError> {
        let (ids, _) = list(&*disk)?;
        let mut damaged = Vec::new();
        let mut found = None;
        for id in ids {
            found = Self::open(&*disk, id)?;
            if found.is_some() {
                break;
            }
            damaged.push(final_name(id));
        }
        for name in &damaged {
            tracing::warn!(name, "a damaged checkpoint is removed");
            disk.remove(name).map_err(CheckpointError::io("removing", name))?;
        }
        Ok(found.map(|reader| Self { damaged, ..reader }))
    }

    /// Opens and checks one; `None`: it is damaged.
    fn open(disk: &D, id: u32) -> Result<Option<Self>, CheckpointError> {
        let name = final_name(id);
        let failed = || CheckpointError::io("reading", &name);
        let file = disk.open(&name).map_err(failed())?;
        let mut header = [0; HEADER];
        // What a file that was cut lacks stays 0, here and below: no checksum is right then.
        file.read_at(&mut header, 0).map_err(failed())?;
        if &header[..8] != MAGIC || crc32c::crc32c(&header[..20]) != word(&header, 20) {
            return Ok(None);
        }
        let version = word(&header, 8);
        if version > VERSION {
            return Err(CheckpointError::Newer { name, version });
        }
        let Some(footer) = Footer::read(&file, id).map_err(failed())? else { return Ok(None) };
        let Footer { covers, slices, start: end, .. } = footer;
        let at = HEADER as u64;
        let mut reader = Self { file, id, covers, slices, index: 0, at, end, damaged: Vec::new() };
        loop {
            match reader.next_slice() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(CheckpointError::Damaged { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        (reader.index, reader.at) = (0, at);
        Ok(Some(reader))
    }

    /// Every record up to here is reflected in every slice; a slice may reflect more.
    pub fn covers(&self) -> Seq {
        self.covers
    }

    /// Slices in it.
    pub fn slices(&self) -> u32 {
        self.slices
    }

    /// Bytes of its slices.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Names of newer ones that were damaged.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// The next slice, in the order written; `None` after the last.
    pub fn next_slice(&mut self) -> Result<Option<Vec<u8>>, CheckpointError> {
        let name = final_name(self.id);
        if self.index == self.slices {
            // Anything between the last slice and the footer is as bad as a missing one.
            return if self.at == self.end { Ok(None) } else { Err(CheckpointError::Damaged { name }) };
        }
        let mut header = [0; SLICE_HEADER];
        let failed = || CheckpointError::io("reading", &name);
        self.file.read_at(&mut header, self.at).map_err(failed())?;
        let (length, start) = (word(&header, 0), self.at + SLICE_HEADER as u64);
        if start + u64::from(length) > self.end {
            return Err(CheckpointError::Damaged { name });
        }
        let mut bytes = vec![0; length as usize];
        self.file.read_at(&mut bytes, start).map_err(failed())?;
        if slice_crc(self.index, &bytes) != word(&header, 4) {
            return Err(CheckpointError::Damaged { name });
        }
        self.index += 1;
        self.at = start + u64::from(length);
        Ok(Some(bytes))
    }
}

/// All that there are, the newest first, by name, and what each covers; `None`: it is damaged. Every slice is read.
pub fn examine<D: Disk>(disk: &D) -> Result<Vec<(String, Option<Seq>)>, CheckpointError> {
    let (ids, _) = list(disk)?;
    let one = |id| Ok((final_name(id), CheckpointReader::open(disk, id)?.map(|reader| reader.covers)));
    ids.into_iter().map(one).collect()
}

/// Removes one of the two kept, so that a full disk has room for the next one: the older, unless the newer turns out to be damaged. Whether there
/// were two. Until then one is kept. It reads the newer one wholly, on a disk that takes nothing at present anyway.
#[allow(clippy::needless_pass_by_value)] // as `CheckpointWriter::begin` takes it
pub fn remove_one<D: Disk>(disk: Arc<D>) -> Result<bool, CheckpointError> {
    let (ids, _) = list(&*disk)?;
    let [newest, older @ ..] = &ids[..] else { return Ok(false) };
    if older.is_empty() {
        return Ok(false);
    }
    // The newest may have got its name without a sync, if that is what failed.
    let name = final_name(*newest);
    disk.sync_dir(SyncPoint::CheckpointEntry).map_err(CheckpointError::io("keeping", &name))?;
    if CheckpointReader::open(&*disk, *newest)?.is_none() {
        tracing::error!(name, "a damaged checkpoint makes room for the next one");
        disk.remove(&name).map_err(CheckpointError::io("removing", &name))?;
        return Ok(true);
    }
    // The oldest first: the journal goes back as far as the second newest, not further. A power loss may have brought back what was removed.
    for id in older.iter().rev() {
        let name = final_name(*id);
        disk.remove(&name).map_err(CheckpointError::io("removing", &name))?;
    }
    Ok(true)
}

/// What the older of the two newest checkpoints covers, by their footers; 0 if there are fewer than two. Trimming may not pass it.
pub fn oldest_kept_covers<D: Disk>(disk: &Arc<D>) -> Result<Seq, CheckpointError> {
    let (ids, _) = list(&**disk)?;
    let mut oldest = Seq(u64::MAX);
    for &id in ids.iter().take(2) {
        let name = final_name(id);
        let failed = || CheckpointError::io("reading", &name);
        let file = disk.open(&name).map_err(failed())?;
        let footer = Footer::read(&file, id).map_err(failed())?;
        oldest = oldest.min(footer.map_or(Seq(0), |footer| footer.covers));
    }
    Ok(if ids.len() < 2 { Seq(0) } else { oldest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::sim::SimDisk;

    #[test]
    fn a_full_disk_is_told_from_others_and_what_is_given_up_frees_its_space() {
        let disk = Arc::new(SimDisk::new());
        let before = disk.used();
        disk.set_capacity(Some(before + 100_000));
        let mut writer = CheckpointWriter::begin(disk.clone()).expect("room");
        let slice = vec![7; BUFFER];
        let error = (0..).find_map(|_| writer.slice(&slice).err()).expect("it is full");
        assert!(error.is_full() && CheckpointError::full("copying").is_full(), "{error}");
        writer.abandon().expect("removed");
        assert_eq!((disk.used(), list(&*disk).expect("readable")), (before, (Vec::new(), Vec::new())));
        disk.set_capacity(None);
        let mut writer = CheckpointWriter::begin(disk.clone()).expect("room");
        writer.slice(&slice).expect("room");
        let id = writer.finish(Seq(9)).expect("room").id;
        disk.flip(&final_name(id), 200, 1).expect("there");
        let mut reader = CheckpointReader::open(&*disk, id).expect("readable");
        assert!(reader.is_none(), "it is damaged");
        disk.flip(&final_name(id), 200, 1).expect("there");
        reader = CheckpointReader::open(&*disk, id).expect("readable");
        disk.flip(&final_name(id), 200, 1).expect("there");
        let error = reader.expect("whole").next_slice().expect_err("altered since it was checked");
        assert!(matches!(error, CheckpointError::Damaged { .. }) && !error.is_full(), "{error}");
        disk.fail_reads(Some(&final_name(id)));
        let error = CheckpointReader::open(&*disk, id).expect_err("the disk fails");
        assert!(matches!(error, CheckpointError::Io { .. }) && !error.is_full(), "{error}");
    }
}
