//! A simulated disk in memory that forgets what it may forget.
//!
//! For each file it keeps what reads see, what is durable, and the writes between the two; for the directory the same with
//! entries. A power loss ([`SimDisk::crash`]) keeps a random subset of those: whole writes, single sectors of them, prefixes of bytes, single
//! directory operations. The death of the process alone ([`SimDisk::kill`]) keeps everything as the page cache does, durable or not.
//! A failed sync drops the writes but goes on showing them, as Linux does.
//!
//! Deterministic: chance comes only from the generator given to [`SimDisk::crash`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::Rng;

use super::{Disk, DiskFile, SyncPoint};
use inode::{Change, Inode};

pub use inode::{Loss, SECTOR};

mod inode;
#[cfg(test)]
mod tests;

/// A disk in memory. Clones are handles of the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// An open file of a [`SimDisk`]. It stops working at the next [`SimDisk::crash`] or [`SimDisk::kill`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    epoch: u64,
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    entries: BTreeMap<String, u64>,
    durable_entries: BTreeMap<String, u64>,
    pending_entries: Vec<EntryChange>,
    /// Grows whenever the process "dies": older file handles fail.
    epoch: u64,
    /// Changes made or tried so far.
    operations: u64,
    crash_at: Option<u64>,
    /// Everything fails until the crash.
    down: bool,
    capacity: Option<u64>,
    /// What is overwritten takes space too.
    copies: bool,
    skipped: BTreeSet<SyncPoint>,
    fail_next_sync: Option<SyncPoint>,
    /// Of this file reads fail.
    unreadable: Option<u64>,
    /// Reads tried so far, and those of them that fail.
    reads: u64,
    failing_reads: std::ops::Range<u64>,
    failed_reads: u64,
    /// Syncs done, by point.
    syncs: BTreeMap<SyncPoint, u64>,
}

#[derive(Clone, Debug)]
enum EntryChange {
    Create { name: String, inode: u64 },
    Remove { name: String },
    Rename { from: String, to: String, inode: u64 },
}

fn apply_entry(entries: &mut BTreeMap<String, u64>, change: &EntryChange) {
    match change {
        EntryChange::Create { name, inode } => {
            entries.insert(name.clone(), *inode);
        }
        EntryChange::Remove { name } => {
            entries.remove(name);
        }
        EntryChange::Rename { from, to, inode } => {
            if entries.get(from) == Some(inode) {
                entries.remove(from);
            }
            entries.insert(to.clone(), *inode);
        }
    }
}

impl State {
    /// Counts a change; fails from the chosen one on.
    fn change(&mut self) -> io::Result<()> {
        if !self.down && self.crash_at.is_some_and(|at| self.operations >= at) {
            self.down = true;
        }
        self.alive()?;
        self.operations += 1;
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.down { Err(io::Error::other("the simulated machine has crashed")) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.entries.values().filter_map(|inode| self.inodes.get(inode)).map(|inode| inode.seen.len).sum()
    }

    fn fits(&self, more: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used() + more > capacity => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"))
            }
            _ => Ok(()),
        }
    }

    /// Names no file: gone with the crash.
    fn drop_nameless(&mut self) {
        let State { inodes, entries, durable_entries, pending_entries, .. } = self;
        let mut named: BTreeSet<u64> = entries.values().chain(durable_entries.values()).copied().collect();
        for change in pending_entries {
            if let EntryChange::Create { inode, .. } | EntryChange::Rename { inode, .. } = change {
                named.insert(*inode);
            }
        }
        inodes.retain(|inode, _| named.contains(inode));
    }
}

impl SimDisk {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// A disk of its own with the same content, durable and not.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state().clone())) }
    }

    /// Changes (creations, removals, renames, writes, syncs) so far. Reading is not counted.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// From change number `operation` (counted from 0) on everything fails, until [`SimDisk::crash`] or [`SimDisk::kill`].
    pub fn crash_at(&self, operation: u64) {
        self.state().crash_at = Some(operation);
    }

    /// Whether the operation given to [`SimDisk::crash_at`] was reached.
    pub fn is_down(&self) -> bool {
        self.state().down
    }

    /// A power loss: what was not synced survives in pieces, by chance. Open files stop working; afterwards the disk works again.
    pub fn crash(&self, rng: &mut impl Rng) {
        let loss = match rng.random_range(0..4) {
            0 => Loss::All,
            1 => Loss::Nothing,
            _ => Loss::Some,
        };
        self.crash_with(loss, rng);
    }

    /// A power loss that keeps a chosen share.
    pub fn crash_with(&self, loss: Loss, rng: &mut impl Rng) {
        let mut state = self.state();
        for inode in state.inodes.values_mut() {
            inode.crash(loss, rng);
        }
        let mut entries = std::mem::take(&mut state.durable_entries);
        for change in std::mem::take(&mut state.pending_entries) {
            let kept = match loss {
                Loss::All => false,
                Loss::Nothing => true,
                Loss::Some => rng.random(),
            };
            if kept {
                apply_entry(&mut entries, &change);
            }
        }
        state.entries.clone_from(&entries);
        state.durable_entries = entries;
        state.restart();
    }

    /// Only the process dies: nothing is lost, but nothing more is durable than before.
    pub fn kill(&self) {
        self.state().restart();
    }

    /// Syncs of this point do nothing from now on, and say that they did.
    pub fn skip(&self, point: SyncPoint) {
        self.state().skipped.insert(point);
    }

    /// The next sync of this point, of a file, fails: what it should have written is lost at a power loss, whatever is synced later.
    pub fn fail_next_sync(&self, point: SyncPoint) {
        self.state().fail_next_sync = Some(point);
    }

    /// Reads of this file fail, until this is called with `None`.
    pub fn fail_reads(&self, of: Option<&str>) {
        let mut state = self.state();
        state.unreadable = of.and_then(|name| state.entries.get(name).copied());
    }

    /// Reads so far.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// Of all reads, counted from 0, these fail.
    pub fn fail_reads_between(&self, reads: std::ops::Range<u64>) {
        self.state().failing_reads = reads;
    }

    /// Reads that have failed by that.
    pub fn failed_reads(&self) -> u64 {
        self.state().failed_reads
    }

    /// Whether what is overwritten takes space too, as on a file system that copies on writing; it comes back at once.
    pub fn set_copies(&self, copies: bool) {
        self.state().copies = copies;
    }

    /// At most this many bytes in all files; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.state().capacity.is_some()
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Syncs of this point so far.
    pub fn syncs(&self, point: SyncPoint) -> u64 {
        self.state().syncs.get(&point).copied().unwrap_or(0)
    }

    /// Flips bits of one byte of a file, durably: damage.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.state();
        let inode = *state.entries.get(name).ok_or(io::ErrorKind::NotFound)?;
        let inode = state.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?;
        for content in [&mut inode.seen, &mut inode.durable] {
            let mut byte = [0];
            content.read(&mut byte, offset);
            content.write(offset, &[byte[0] ^ mask]);
        }
        Ok(())
    }

    /// The whole content of a file as reads see it; this one doesn't fail.
    pub fn content(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.state();
        let inode = state.entries.get(name).ok_or(io::ErrorKind::NotFound)?;
        let inode = state.inodes.get(inode).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; inode.seen.len as usize];
        inode.seen.read(&mut bytes, 0);
        Ok(bytes)
    }
}

impl State {
    fn restart(&mut self) {
        self.drop_nameless();
        self.epoch += 1;
        self.down = false;
        self.crash_at = None;
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.entries.keys().cloned().collect())
    }

    fn create(&self, name: &str, preallocate: u64) -> io::Result<SimFile> {
        let mut state = self.state();
        state.change()?;
        if state.entries.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.fits(preallocate)?;
        let inode = state.next_inode;
        state.next_inode += 1;
        let mut file = Inode::default();
        if preallocate > 0 {
            file.seen.len = preallocate;
            file.pending.push(Change::Allocate { len: preallocate });
        }
        state.inodes.insert(inode, file);
        state.entries.insert(name.to_owned(), inode);
        state.pending_entries.push(EntryChange::Create { name: name.to_owned(), inode });
        Ok(SimFile { disk: self.clone(), inode, epoch: state.epoch })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let state = self.state();
        state.alive()?;
        let inode = *state.entries.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), inode, epoch: state.epoch })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        if state.entries.remove(name).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.pending_entries.push(EntryChange::Remove { name: name.to_owned() });
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        let inode = *state.entries.get(from).ok_or(io::ErrorKind::NotFound)?;
        let change = EntryChange::Rename { from: from.to_owned(), to: to.to_owned(), inode };
        apply_entry(&mut state.entries, &change);
        state.pending_entries.push(change);
        Ok(())
    }

    fn sync_dir(&self, point: SyncPoint) -> io::Result<()> {
        let mut state = self.state();
        state.change()?;
        if state.skipped.contains(&point) {
            return Ok(());
        }
        *state.syncs.entry(point).or_default() += 1;
        state.pending_entries.clear();
        state.durable_entries = state.entries.clone();
        Ok(())
    }
}

impl SimFile {
    fn with<T>(&self, change: bool, f: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.epoch != self.epoch {
            return Err(io::Error::other("a file of a process that died"));
        }
        if change {
            state.change()?;
        } else {
            state.alive()?;
        }
        f(&mut state, self.inode)
    }
}

fn inode(state: &mut State, inode: u64) -> io::Result<&mut Inode> {
    state.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl DiskFile for SimFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(true, |state, id| {
            let grows = (offset + bytes.len() as u64).saturating_sub(inode(state, id)?.seen.len);
            state.fits(if state.copies { bytes.len() as u64 } else { grows })?;
            let inode = inode(state, id)?;
            inode.seen.write(offset, bytes);
            inode.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
            Ok(())
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(false, |state, id| {
            let read = state.reads;
            state.reads += 1;
            if state.failing_reads.contains(&read) {
                state.failed_reads += 1;
                return Err(io::Error::other("the simulated read failed"));
            }
            if state.unreadable == Some(id) {
                return Err(io::Error::other("the simulated read failed"));
            }
            Ok(inode(state, id)?.seen.read(buffer, offset))
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(false, |state, id| Ok(inode(state, id)?.seen.len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(true, |state, id| {
            let grows = len.saturating_sub(inode(state, id)?.seen.len);
            state.fits(grows)?;
            let (inode, change) = (inode(state, id)?, Change::SetLen { len });
            inode.seen.apply(&change);
            inode.pending.push(change);
            Ok(())
        })
    }

    fn sync(&self, point: SyncPoint) -> io::Result<()> {
        self.with(true, |state, id| {
            if state.skipped.contains(&point) {
                return Ok(());
            }
            let failed = state.fail_next_sync == Some(point);
            state.fail_next_sync = state.fail_next_sync.filter(|_| !failed);
            *state.syncs.entry(point).or_default() += 1;
            let inode = inode(state, id)?;
            let pending = std::mem::take(&mut inode.pending);
            if failed {
                return Err(io::Error::other("the simulated sync failed"));
            }
            for change in &pending {
                inode.durable.apply(change);
            }
            Ok(())
        })
    }
}
