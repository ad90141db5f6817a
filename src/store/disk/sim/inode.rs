//! The bytes of one simulated file: seen, durable, and what is between.

use rand::Rng;

/// Bytes that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// How much of what was not synced a power loss keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Nothing.
    All,
    /// Each write and each entry with a chance; some torn.
    Some,
    /// Everything survives, by luck.
    Nothing,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    /// What reads see.
    pub(super) seen: Content,
    pub(super) durable: Content,
    /// Between the two, in order.
    pub(super) pending: Vec<Change>,
}

/// Bytes of a file; behind the end of `bytes` up to `len` there are zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    bytes: Vec<u8>,
    pub(super) len: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Allocate { len: u64 },
    SetLen { len: u64 },
}

impl Content {
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(bytes);
        self.len = self.len.max(end as u64);
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(*offset, bytes),
            Change::Allocate { len } => self.len = self.len.max(*len),
            Change::SetLen { len } => {
                self.bytes.truncate(*len as usize);
                self.len = *len;
            }
        }
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let count = (buffer.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let start = (offset as usize).min(self.bytes.len());
        let stored = (self.bytes.len() - start).min(count);
        buffer[..stored].copy_from_slice(&self.bytes[start..start + stored]);
        buffer[stored..count].fill(0);
        count
    }
}

impl Inode {
    /// A power loss.
    pub(super) fn crash(&mut self, loss: Loss, rng: &mut impl Rng) {
        for change in std::mem::take(&mut self.pending) {
            survive(&mut self.durable, &change, loss, rng);
        }
        self.seen.clone_from(&self.durable);
    }
}

/// One write after a power loss: the pieces of it that survived.
fn survive(content: &mut Content, change: &Change, loss: Loss, rng: &mut impl Rng) {
    let fate = match loss {
        Loss::All => return,
        Loss::Nothing => 0,
        Loss::Some => rng.random_range(0..4),
    };
    match (fate, change) {
        (0, _) => content.apply(change),
        (1, _) => {}
        (_, Change::Allocate { .. } | Change::SetLen { .. }) => {
            if rng.random() {
                content.apply(change);
            }
        }
        (2, Change::Write { offset, bytes }) => {
            let kept = rng.random_range(0..=bytes.len());
            if kept > 0 {
                content.write(*offset, &bytes[..kept]);
            }
        }
        (_, Change::Write { offset, bytes }) => {
            let mut start = 0;
            while start < bytes.len() {
                let place = *offset as usize + start;
                let end = bytes.len().min(start + SECTOR - place % SECTOR);
                if rng.random() {
                    content.write(place as u64, &bytes[start..end]);
                }
                start = end;
            }
        }
    }
}
