//! A data directory while no edge runs on it: is it whole, what is in it, what would the next start do. Nothing is changed, and nothing is
//! decoded a second way: the journal's own recovery reads it, and the engine itself is opened on it, on a disk that keeps what is written in
//! memory ([`OverlayDisk`]). So a look needs about the memory that the edge needs.

mod check;
mod describe;
mod dump;

use std::path::Path;
use std::sync::Arc;

pub use check::{Finding, NAMED, Report, State, Step, Weight};
pub use dump::{DumpError, Filter};

use super::disk::Disk;
use super::disk::format::Format;
use super::disk::overlay::OverlayDisk;
use super::disk::real::OpenError;
use super::journal::{Journal, JournalError, JournalOptions, Record, Recovery};
use super::options::StoreOptions;
use crate::ids::Seq;

/// A data directory at rest. Nobody else can use it meanwhile, but to look at it too.
#[derive(Debug)]
pub struct AtRest {
    disk: Arc<OverlayDisk>,
    format: Format,
    /// Of the edge whose directory it is.
    options: StoreOptions,
}

impl AtRest {
    /// Opens a data directory that no edge uses. `options`: those that the next start will have, but for what the directory itself says.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let (disk, format) = OverlayDisk::open(path)?;
        Ok(Self { disk, format, options })
    }

    /// The kinds of records, as [`Filter::kinds`] names them.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        describe::KINDS.iter().map(|(_, name)| *name)
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            salt: self.format.salt(),
            digest_key: self.format.digest_key.clone(),
            // Nothing is going to be written.
            reserve_segments: 0,
            ..self.options.clone()
        }
    }

    /// Every record that is kept, the oldest first, also those that a checkpoint covers.
    fn records(
        &self,
        apply: &mut dyn FnMut(Record<'_>),
    ) -> Result<(Journal<OverlayDisk>, Recovery), JournalError> {
        let StoreOptions { segment_bytes, reserve_segments, salt, .. } = self.options();
        let layout = JournalOptions { segment_bytes, reserve_segments, salt, max_bytes: 0 };
        let read = |after: Seq, apply: &mut dyn FnMut(Record<'_>)| {
            Journal::recover(self.disk.clone(), layout.clone(), (after, Seq(0)), apply)
        };
        match read(Seq(0), apply) {
            // Trimmed: what it begins with stands in its oldest file.
            Err(JournalError::Missing { to, .. }) => read(Seq(to.0 - 1), apply),
            read => read,
        }
    }

    fn file_bytes(&self, is: impl Fn(&str) -> bool) -> std::io::Result<u64> {
        use super::disk::DiskFile;
        let mut bytes = 0;
        for name in self.disk.list()?.iter().filter(|name| is(name)) {
            bytes += self.disk.open(name)?.len()?;
        }
        Ok(bytes)
    }
}
