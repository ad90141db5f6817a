//! What goes in and out of the journal.

use std::io;

use crate::ids::Seq;
use crate::push::Millis;

use super::format::{self, GROUP_HEADER, RECORD_HEADER};

/// Bytes that a record takes beside its payload.
pub const RECORD_OVERHEAD: usize = RECORD_HEADER as usize;
/// Bytes that a commit group takes beside its records, at most.
pub const GROUP_OVERHEAD: usize = GROUP_HEADER as usize + 7;

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// The segment's id.
    pub segment: u32,
    /// Bytes from the start of its file.
    pub offset: u32,
}

impl Place {
    /// As one number; later places are greater.
    pub fn pack(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    /// Back from [`Place::pack`].
    pub fn unpack(packed: u64) -> Self {
        Self { segment: (packed >> 32) as u32, offset: packed as u32 }
    }
}

/// How a journal is laid out.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Bytes of a segment file. May differ from those of older segments.
    pub segment_bytes: u32,
    /// Spare segments that only what must go on may use.
    pub reserve_segments: u32,
    /// Spare segments are made only as far as all files of the journal take no more bytes than that. 0: as much as the disk has.
    pub max_bytes: u64,
    /// Starts every checksum: secret and the same for the life of a data directory. See [`crate::store::disk::format::Format::salt`].
    pub salt: u64,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, reserve_segments: 2, max_bytes: 0, salt: 0 }
    }
}

/// A durable record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its place in the sequence.
    pub seq: Seq,
    /// What its writer calls it.
    pub kind: u8,
    /// What its writer put in.
    pub payload: &'a [u8],
    /// Where it is.
    pub place: Place,
    /// Edge time of its commit.
    pub group_time: Millis,
}

/// What a recovery found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recovery {
    /// The newest durable sequence; the next record gets the one after it.
    pub head: Seq,
    /// Edge time of the newest group.
    pub last_time: Millis,
    /// Records handed to `apply`.
    pub applied: u64,
    /// Damage where everything had been durable.
    pub corrupt: Vec<Damage>,
    /// Bytes of a group that was never completed.
    pub torn_bytes: u64,
    /// Segments in use afterwards.
    pub segments: usize,
}

/// A damaged place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// What is wrong.
    pub what: &'static str,
    /// Where it begins.
    pub place: Place,
    /// First and last sequence that is lost by it, if any.
    pub lost: Option<(Seq, Seq)>,
}

/// Bytes (records with [`RECORD_OVERHEAD`], groups with [`GROUP_OVERHEAD`]) that can be staged without another file. A record that doesn't fit
/// into the end of a segment leaves that end unused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// Until the reserve is touched.
    pub before_reserve: u64,
    /// Until nothing is left.
    pub total: u64,
}

/// A segment in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentState {
    /// Its id.
    pub id: u32,
    /// Its first sequence.
    pub first: Seq,
    /// Its last durable sequence; before `first` if it has none.
    pub last: Seq,
    /// Bytes used.
    pub used: u32,
    /// Bytes of the file.
    pub size: u64,
    /// Groups are appended here.
    pub active: bool,
}

/// What a journal can't do.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed. At a commit: the process must end, and the next start recovers.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// There is no room in the segments that are there. Nothing changed.
    #[error("the journal is full")]
    Full,
    /// The record is larger than a segment. Nothing changed.
    #[error("a record of {0} bytes doesn't fit into a segment")]
    TooLarge(usize),
    /// A commit failed before; nothing can be committed by this process any more.
    #[error("an earlier commit failed")]
    Poisoned,
    /// Records that are needed are in no file. Nothing was touched.
    #[error(
        "the journal misses the records from {from} to before {to} (segment files up to {segment:010} are needed)"
    )]
    Missing {
        /// The first that is missing.
        from: Seq,
        /// The first that is there again.
        to: Seq,
        /// The segment before the first usable one.
        segment: u32,
    },
    /// A checkpoint or an older file says that there were records, but there is no file with any. Nothing was touched.
    #[error("there are no usable journal files, but a checkpoint covers records up to {0}")]
    NoSegments(Seq),
    /// The journal ends before what is known to have been durable: its files are older than what knows of it. Nothing was touched.
    #[error("the journal ends at {head}, and records up to {durable} were durable: its files are older")]
    Short {
        /// Its newest record.
        head: Seq,
        /// The newest that there was.
        durable: Seq,
    },
    /// A segment was written by a newer version. Nothing was touched.
    #[error("segment {segment:010} has format {version}; this program reads up to {}", format::VERSION)]
    Newer {
        /// The segment.
        segment: u32,
        /// Its format.
        version: u32,
    },
    /// A segment belongs to another data directory. Nothing was touched.
    #[error("segment {segment:010} belongs to another data directory")]
    Foreign {
        /// The segment.
        segment: u32,
    },
    /// The active segment, or there is none: not to be removed.
    #[error("the active segment can't be removed")]
    Active,
}

impl JournalError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Why a record can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk failed.
    #[error("reading the journal: {0}")]
    Io(#[from] io::Error),
    /// What is there is no record, or altered.
    #[error("no valid record at {0:?}")]
    Damaged(Place),
    /// Its segment was removed.
    #[error("the journal keeps nothing that old")]
    Gone,
}
