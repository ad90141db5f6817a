//! The library's file in blocks, each with a checksum that is looked at on every read.
//!
//! The library (redb 4.1) has checksums of its own, but verifies them only when it repairs a file: a page that is read is taken as it is, and one
//! that a disk altered is found by an assertion, an index out of bounds, or not at all. So what it reads comes through here: either it is what was
//! written, or the read is an error that names the place.
//!
//! ```text
//! file   = head head group*                                    blocks of 4,096 bytes, little-endian, CRC-32C
//! head   = magic (8) version u32 reserved u32 generation u64 length u64 start (512) crc u32      the rest zeros
//! group  = sums block{1024}                                    the last one may have fewer blocks
//! sums   = u32{1024}                                           of the block's number and its bytes; 0: never written, all zeros
//! ```
//! `start` is the beginning of the library's own header, which it writes in place; `length` are the bytes that it believes its file to have. The
//! block that would hold the header isn't kept elsewhere.
//!
//! # Invariants
//! - A head is written where the older one stands, and only after a sync the other place gets a copy: so one whole head is always durable, and in
//!   quiet times both say the same. One that wasn't synced may outlive what makes its file longer: then the other one counts.
//! - Sums are written before the sync that makes their blocks durable, and before the head that may name these. The library never writes a block in
//!   place that its durable header reaches: so of those blocks both the bytes and the sums are durable.
//! - A sector of sums holds those of its neighbours as well, and is written with their bytes unchanged: it is taken that a disk which loses power leaves
//!   of a sector the old or the new bytes.
//!
//! Opened in memory, a file takes writes without any of them reaching the disk: so a full one can still be read.
//!
//! # Rejected
//! Walking all pages at the start (the library's `check_integrity`): it reads the whole file, asserts on what it meets, and says nothing of what a
//! disk alters later. Unwinding from the library's panics: the release build aborts on a panic, on purpose, and altered values would still pass. A
//! sum beside each block: then no block is aligned, and each write touches two pages.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::StorageBackend;

use crate::store::disk::{DiskFile, SyncPoint};

const BLOCK: u64 = 4096;
/// Blocks under one block of sums.
const GROUP: u64 = BLOCK / 4;
const MAGIC: &[u8; 8] = b"MOORTABL";
const VERSION: u32 = 1;
/// Bytes of the library's header that heads keep: it has 320.
const START: usize = 512;
/// Bytes of a head before its checksum.
const HEAD: usize = 32 + START;

/// Where the library's header is kept.
#[derive(Clone, Debug)]
struct Head {
    generation: u64,
    length: u64,
    start: [u8; START],
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.start);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.resize(BLOCK as usize, 0);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let crc = u32::from_le_bytes(*rest.first_chunk()?);
        let known = head.starts_with(MAGIC) && head[8..12] == VERSION.to_le_bytes();
        if !known || crc32c::crc32c(head) != crc {
            return None;
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let mut start = [0; START];
        start.copy_from_slice(&head[32..]);
        Some(Self { generation: word(16), length: word(24), start })
    }
}

/// What only the one that writes needs.
#[derive(Debug)]
struct Writing {
    head: Head,
    /// Which of the two places has the newest durable head.
    place: u64,
    /// The other one has a newer head, which isn't durable.
    unsynced: bool,
    /// Sums that aren't in the file yet: by group, the first and behind the last.
    dirty: BTreeMap<u64, (u64, u64)>,
}

/// See the module.
pub(super) struct CheckedFile<F> {
    file: F,
    writing: Mutex<Writing>,
    /// By block, the library's second one first.
    sums: RwLock<Vec<u32>>,
    /// `Some`: what was written stays here, by block.
    memory: Option<RwLock<BTreeMap<u64, Vec<u8>>>>,
}

impl<F> fmt::Debug for CheckedFile<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedFile").finish_non_exhaustive()
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Blocks behind the one that the heads stand for.
fn blocks(length: u64) -> u64 {
    length.div_ceil(BLOCK).saturating_sub(1)
}

/// Where a group's sums stand.
fn sums_at(group: u64) -> u64 {
    (2 + group * (GROUP + 1)) * BLOCK
}

fn block_at(block: u64) -> u64 {
    sums_at(block / GROUP) + (1 + block % GROUP) * BLOCK
}

/// Bytes of the file for so many that the library believes in.
fn file_bytes(length: u64) -> u64 {
    blocks(length).checked_sub(1).map_or(2 * BLOCK, |last| block_at(last) + BLOCK)
}

fn sum_of(block: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block.to_le_bytes()), bytes).max(1)
}

fn is_right(block: u64, bytes: &[u8], sum: u32) -> bool {
    if sum == 0 { bytes.iter().all(|&byte| byte == 0) } else { sum_of(block, bytes) == sum }
}

/// The first block of an aligned range.
fn first_of(offset: u64, length: usize) -> io::Result<u64> {
    let aligned = offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK as usize);
    let first = (offset / BLOCK).checked_sub(1).filter(|_| aligned);
    first.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not whole blocks"))
}

impl<F: DiskFile> CheckedFile<F> {
    /// Opens a file, or begins an empty one. `in_memory`: nothing is written to it.
    pub(super) fn open(file: F, in_memory: bool) -> io::Result<Self> {
        let mut head = Head { generation: 0, length: 0, start: [0; START] };
        let (mut place, mut sums) = (1, Vec::new());
        let length = file.len()?;
        if length > 0 {
            (head, place) = newest_head(&file)?;
            if length < file_bytes(head.length) {
                return Err(damaged(format!(
                    "the file has {length} bytes, and should have {}",
                    file_bytes(head.length)
                )));
            }
            sums = read_sums(&file, blocks(head.length))?;
        }
        let writing = Writing { head, place, unsynced: false, dirty: BTreeMap::new() };
        let memory = in_memory.then(RwLock::default);
        let opened = Self { file, writing: Mutex::new(writing), sums: RwLock::new(sums), memory };
        if length > 0 && !in_memory {
            // What was read may be in memory only, if just the process died.
            opened.file.sync(SyncPoint::TablesContent)?;
            opened.lock().copy_head(&opened.file)?;
        }
        Ok(opened)
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sums(&self) -> RwLockReadGuard<'_, Vec<u32>> {
        self.sums.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn sums_mut(&self) -> RwLockWriteGuard<'_, Vec<u32>> {
        self.sums.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sums that aren't in the file yet go there.
    fn write_sums(&self, writing: &mut Writing) -> io::Result<()> {
        for (group, (from, to)) in std::mem::take(&mut writing.dirty) {
            let sums = self.sums();
            let sum = |at: u64| sums.get((group * GROUP + at) as usize).copied().unwrap_or(0);
            let bytes: Vec<u8> = (from..to).flat_map(|at| sum(at).to_le_bytes()).collect();
            drop(sums);
            self.file.write_at(&bytes, sums_at(group) + from * 4)?;
        }
        Ok(())
    }

    fn write_head(&self, writing: &mut Writing) -> io::Result<()> {
        if self.memory.is_some() {
            return Ok(());
        }
        self.write_sums(writing)?;
        writing.head.generation += 1;
        writing.unsynced = true;
        self.file.write_at(&writing.head.encode(), (1 - writing.place) * BLOCK)
    }

    fn sync(&self, writing: &mut Writing) -> io::Result<()> {
        if self.memory.is_some() {
            return Ok(());
        }
        self.write_sums(writing)?;
        self.file.sync(SyncPoint::TablesContent)?;
        if std::mem::take(&mut writing.unsynced) {
            writing.place = 1 - writing.place;
            writing.copy_head(&self.file)?;
        }
        Ok(())
    }

    /// Sums of blocks from `first` on, which are to be written or gone.
    fn set_sums(&self, writing: &mut Writing, first: u64, new: &[u32]) {
        let mut sums = self.sums_mut();
        let end = first as usize + new.len();
        if sums.len() < end {
            sums.resize(end, 0);
        }
        sums[first as usize..end].copy_from_slice(new);
        drop(sums);
        writing.note_dirty(first, end as u64);
    }

    fn write_blocks(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let (bytes, _) = data.as_chunks::<{ BLOCK as usize }>();
        if let Some(memory) = &self.memory {
            let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
            memory.extend((first..).zip(bytes).map(|(block, bytes)| (block, bytes.to_vec())));
        } else {
            let (mut block, mut rest) = (first, data);
            while !rest.is_empty() {
                let here = (GROUP - block % GROUP).min(rest.len() as u64 / BLOCK);
                let (now, later) = rest.split_at((here * BLOCK) as usize);
                self.file.write_at(now, block_at(block))?;
                (block, rest) = (block + here, later);
            }
        }
        let sums: Vec<u32> = (first..).zip(bytes).map(|(block, bytes)| sum_of(block, bytes)).collect();
        self.set_sums(&mut self.lock(), first, &sums);
        Ok(())
    }

    fn read_block(&self, block: u64, out: &mut [u8]) -> io::Result<()> {
        if let Some(memory) = &self.memory {
            let memory = memory.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(written) = memory.get(&block) {
                out.copy_from_slice(written);
                return Ok(());
            }
        }
        let read = self.file.read_at(out, block_at(block))?;
        let sum = self.sums().get(block as usize).copied().unwrap_or(0);
        if self.memory.is_some() && sum == 0 {
            // It was never written, whatever the file has there, or lies behind its end.
            out.fill(0);
            return Ok(());
        }
        if read < out.len() {
            return Err(damaged(format!("the file ends within the block at {}", block_at(block))));
        }
        if is_right(block, out, sum) {
            Ok(())
        } else {
            Err(damaged(format!("the block at byte {} isn't what was written", block_at(block))))
        }
    }
}

impl Writing {
    /// Where the older head stands there is a copy of the newest, which is durable already.
    fn copy_head<F: DiskFile>(&self, file: &F) -> io::Result<()> {
        file.write_at(&self.head.encode(), (1 - self.place) * BLOCK)
    }

    fn note_dirty(&mut self, mut from: u64, to: u64) {
        while from < to {
            let group = from / GROUP;
            let end = to.min((group + 1) * GROUP);
            let (first, last) = (from - group * GROUP, end - group * GROUP);
            let known = self.dirty.entry(group).or_insert((first, last));
            *known = (known.0.min(first), known.1.max(last));
            from = end;
        }
    }
}

/// The newest head, and its place. One whose file isn't there as far as it says was never synced, if the other's is.
fn newest_head<F: DiskFile>(file: &F) -> io::Result<(Head, u64)> {
    let length = file.len()?;
    let fits = |head: &Head| file_bytes(head.length) <= length;
    let mut newest: Option<(Head, u64)> = None;
    for place in 0..2 {
        let mut bytes = [0; HEAD + 4];
        let read = file.read_at(&mut bytes, place * BLOCK)?;
        let Some(head) = Head::decode(&bytes[..read]) else { continue };
        let rank = |head: &Head| (fits(head), head.generation);
        if newest.as_ref().is_none_or(|(known, _)| rank(known) < rank(&head)) {
            newest = Some((head, place));
        }
    }
    newest.ok_or_else(|| damaged("neither of its two heads is what was written".into()))
}

fn read_sums<F: DiskFile>(file: &F, blocks: u64) -> io::Result<Vec<u32>> {
    let mut sums = Vec::with_capacity(blocks as usize);
    for group in 0..blocks.div_ceil(GROUP) {
        let mut bytes = vec![0; ((blocks - group * GROUP).min(GROUP) * 4) as usize];
        if file.read_at(&mut bytes, sums_at(group))? < bytes.len() {
            return Err(damaged(format!("the file ends within the sums at {}", sums_at(group))));
        }
        let (words, _) = bytes.as_chunks::<4>();
        sums.extend(words.iter().map(|word| u32::from_le_bytes(*word)));
    }
    Ok(sums)
}

impl<F: DiskFile> StorageBackend for CheckedFile<F> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().head.length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset == 0 && out.len() <= START {
            out.copy_from_slice(&self.lock().head.start[..out.len()]);
            return Ok(());
        }
        let first = first_of(offset, out.len())?;
        (first..)
            .zip(out.chunks_exact_mut(BLOCK as usize))
            .try_for_each(|(block, out)| self.read_block(block, out))
    }

    /// A file that grows is synced at once: the library's header tells its length, and a header without the length would not open again.
    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut writing = self.lock();
        let (before, after) = (blocks(writing.head.length), blocks(length));
        let shrinks = after < before;
        if !shrinks && self.memory.is_none() {
            self.file.set_len(file_bytes(length))?;
        }
        writing.head.length = length;
        if shrinks {
            self.sums_mut().truncate(after as usize);
            // Of the last group, whose sums stay in the file. Those of blocks that come back are zeros again.
            writing.note_dirty(after, before.min(after.next_multiple_of(GROUP)));
        }
        self.write_head(&mut writing)?;
        self.sync(&mut writing)?;
        match &self.memory {
            None if shrinks => self.file.set_len(file_bytes(length)),
            None => Ok(()),
            Some(memory) => {
                memory.write().unwrap_or_else(PoisonError::into_inner).split_off(&after);
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(&mut self.lock())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 && data.len() <= START {
            let mut writing = self.lock();
            writing.head.start[..data.len()].copy_from_slice(data);
            return self.write_head(&mut writing);
        }
        let first = first_of(offset, data.len())?;
        self.write_blocks(first, data)
    }
}

#[cfg(test)]
mod tests;
