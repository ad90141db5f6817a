//! The bytes of a segment file. All numbers little-endian.
//!
//! ```text
//! segment  = header (40) group*                             the rest of the preallocated file: zeros, or a torn group
//! header   = magic (8) version u32 id u32 first_seq u64 previous_end u32 key_check u32 reserved u32 crc u32
//! group    = magic u32 length u32 count u32 crc u32 first_seq u64 synced_before u64 time u64 record* padding to 8
//! record   = length u32 crc u32 seq u64 kind u8 payload
//! ```
//!
//! Every checksum (CRC-32C) starts with the data directory's secret salt, those of headers also with their place. So bytes inside
//! a payload, which strangers choose, can't pass for a header when a damaged segment is searched for the next good one, and a header
//! is valid only where it was written.

use std::fmt;

use crate::fault::{self, Fault};
use crate::ids::Seq;
use crate::push::Millis;

pub(super) const SEGMENT_HEADER: u32 = 40;
pub(super) const GROUP_HEADER: u32 = 40;
/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER: u32 = 17;
/// The newest format this code reads, and the one it writes.
pub(super) const VERSION: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"MOORJRNL";
const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"MGRP");

/// The salt of all checksums of a data directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt(pub(super) u64);

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

impl Salt {
    fn crc(self, place: &[u32], parts: &[&[u8]]) -> u32 {
        let mut crc = crc32c::crc32c(&self.0.to_le_bytes());
        for word in place {
            crc = crc32c::crc32c_append(crc, &word.to_le_bytes());
        }
        parts.iter().fold(crc, |crc, part| crc32c::crc32c_append(crc, part))
    }

    /// Tells a wrong salt from damage.
    fn check(self) -> u32 {
        self.crc(&[], &[b"salt"])
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) id: u32,
    /// The sequence of its first record, written or to come.
    pub(super) first: Seq,
    /// Where the valid bytes of the segment before end; what is behind was torn and counts for nothing.
    pub(super) previous_end: u32,
}

/// What stands where a segment's header should be.
pub(super) enum FoundHeader {
    Valid(SegmentHeader),
    /// Written by a newer version.
    Newer(u32),
    /// Written under another salt.
    Foreign,
    /// No header: torn, or damaged.
    Bad,
}

impl SegmentHeader {
    pub(super) fn encode(self, salt: Salt) -> [u8; SEGMENT_HEADER as usize] {
        let mut out = [0; SEGMENT_HEADER as usize];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        out[24..28].copy_from_slice(&self.previous_end.to_le_bytes());
        out[28..32].copy_from_slice(&salt.check().to_le_bytes());
        let crc = crc32c::crc32c(&out[..36]);
        out[36..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8], id: u32, salt: Salt) -> FoundHeader {
        if bytes.len() < SEGMENT_HEADER as usize
            || &bytes[..8] != SEGMENT_MAGIC
            || crc32c::crc32c(&bytes[..36]) != u32_at(bytes, 36)
        {
            return FoundHeader::Bad;
        }
        let header =
            Self { id: u32_at(bytes, 12), first: Seq(u64_at(bytes, 16)), previous_end: u32_at(bytes, 24) };
        match u32_at(bytes, 8) {
            version if version > VERSION => FoundHeader::Newer(version),
            _ if u32_at(bytes, 28) != salt.check() => FoundHeader::Foreign,
            _ if header.id != id => FoundHeader::Bad,
            _ => FoundHeader::Valid(header),
        }
    }
}

/// The header of a commit group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupHeader {
    /// Bytes of the group, header and padding included.
    pub(super) length: u32,
    /// Records in it; at least one.
    pub(super) count: u32,
    /// The sequence of its first record; the others follow without a gap.
    pub(super) first: Seq,
    /// The highest sequence that was durable before this group was written.
    pub(super) synced_before: Seq,
    /// Edge time of the commit.
    pub(super) time: Millis,
}

impl GroupHeader {
    pub(super) fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count) - 1)
    }

    pub(super) fn encode(self, out: &mut [u8], segment: u32, offset: u32, salt: Salt) {
        out[..4].copy_from_slice(&GROUP_MAGIC.to_le_bytes());
        out[4..8].copy_from_slice(&self.length.to_le_bytes());
        out[8..12].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.synced_before.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.time.to_le_bytes());
        let crc = salt.crc(&[segment, offset], &[&out[..12], &out[16..40]]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
    }

    /// The header at the start of `bytes`, if there is one for this place.
    pub(super) fn decode(bytes: &[u8], segment: u32, offset: u32, salt: Salt) -> Option<Self> {
        if bytes.len() < GROUP_HEADER as usize || u32_at(bytes, 0) != GROUP_MAGIC {
            return None;
        }
        if salt.crc(&[segment, offset], &[&bytes[..12], &bytes[16..40]]) != u32_at(bytes, 12) {
            return None;
        }
        let header = Self {
            length: u32_at(bytes, 4),
            count: u32_at(bytes, 8),
            first: Seq(u64_at(bytes, 16)),
            synced_before: Seq(u64_at(bytes, 24)),
            time: u64_at(bytes, 32),
        };
        let whole = header.length >= GROUP_HEADER && header.count > 0 && header.length.is_multiple_of(8);
        whole.then_some(header)
    }
}

/// Appends a record to a group's bytes.
pub(super) fn encode_record(out: &mut Vec<u8>, seq: Seq, kind: u8, payload: &[u8], salt: Salt) {
    let start = out.len();
    let mut header = [0; RECORD_HEADER as usize];
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[8..16].copy_from_slice(&seq.0.to_le_bytes());
    header[16] = kind;
    out.reserve(header.len() + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    let record = &mut out[start..];
    let crc = salt.crc(&[], &[&record[..4], &record[8..]]);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A record in the bytes of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawRecord<'a> {
    pub(super) seq: Seq,
    pub(super) kind: u8,
    pub(super) payload: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// The record at the start of `bytes`, if it is whole and unaltered.
    pub(super) fn decode(bytes: &'a [u8], salt: Salt) -> Option<Self> {
        let length = record_length(bytes)?;
        let record = bytes.get(..length)?;
        let crc = salt.crc(&[], &[&record[..4], &record[8..]]);
        (crc == u32_at(record, 4) || fault::is(Fault::ReadUnchecked)).then(|| Self {
            seq: Seq(u64_at(record, 8)),
            kind: record[16],
            payload: &record[RECORD_HEADER as usize..],
        })
    }

    pub(super) fn length(&self) -> u32 {
        RECORD_HEADER + self.payload.len() as u32
    }
}

/// The length that a record claims, header included.
pub(super) fn record_length(bytes: &[u8]) -> Option<usize> {
    (bytes.len() >= RECORD_HEADER as usize).then(|| u32_at(bytes, 0) as usize + RECORD_HEADER as usize)
}

/// The sequence that the record at the start of `bytes` claims.
pub(super) fn record_seq(bytes: &[u8]) -> Option<Seq> {
    (bytes.len() >= RECORD_HEADER as usize).then(|| Seq(u64_at(bytes, 8)))
}
