//! The file `format` of a data directory: which version wrote it, and the random key that digests and checksums start with. It is the
//! first file to be read and the first to be made.
//!
//! ```text
//! magic (8) version u32 reserved u32 key (32) crc u32        little-endian, CRC-32C
//! ```

use std::io;

use crate::ids::DigestKey;

use super::{Disk, DiskFile, SyncPoint};

/// The newest format of a data directory that this code reads, and the one it writes.
pub const VERSION: u32 = 5;

const NAME: &str = "format";
const TEMPORARY: &str = "format.tmp";
const MAGIC: &[u8; 8] = b"MOORDATA";
const BYTES: usize = 52;

/// What a data directory's format file says.
#[derive(Clone, Debug)]
pub struct Format {
    /// Its version.
    pub version: u32,
    /// The key that makes device keys; never changed.
    pub digest_key: DigestKey,
}

/// A data directory can't be used. Nothing in it was touched.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Made by a newer version.
    #[error("the data directory has format {found}; this program reads {VERSION}")]
    Newer {
        /// Its format.
        found: u32,
    },
    /// Made by an older version, whose records mean something else.
    #[error(
        "the data directory has format {found}, of an older program; this one reads {VERSION}: use that program, or an empty directory"
    )]
    Older {
        /// Its format.
        found: u32,
    },
    /// The format file is no format file.
    #[error(
        "the file `format` of the data directory is damaged; restore it from a copy, or use an empty directory"
    )]
    Damaged,
    /// There is data, but no format file.
    #[error(
        "the directory holds {name} but no file `format`; restore it from a copy, or use an empty directory"
    )]
    Lost {
        /// One of the files.
        name: String,
    },
    /// The disk failed.
    #[error("the file `format` of the data directory: {0}")]
    Io(#[from] io::Error),
}

impl Format {
    /// Reads the format of a directory without touching it; `None`: it is new.
    pub fn read<D: Disk>(disk: &D) -> Result<Option<Self>, FormatError> {
        let names = disk.list()?;
        if !names.iter().any(|name| name == NAME) {
            let data = |name: &&String| [".seg", ".ckpt"].iter().any(|ending| name.ends_with(ending));
            return match names.iter().find(data) {
                Some(name) => Err(FormatError::Lost { name: name.clone() }),
                None => Ok(None),
            };
        }
        let mut bytes = [0; BYTES];
        let read = disk.open(NAME)?.read_at(&mut bytes, 0)?;
        Self::decode(&bytes[..read]).map(Some)
    }

    /// Reads the format of a directory, or makes it with this key if the directory is new. The key is durable when it returns.
    pub fn open<D: Disk>(disk: &D, new_key: DigestKey) -> Result<Self, FormatError> {
        let format = match Self::read(disk)? {
            Some(format) => format,
            None => Self::make(disk, new_key)?,
        };
        // For one that was there too: the process that made it may have died before its entry was durable.
        disk.sync_dir(SyncPoint::FormatEntry)?;
        Ok(format)
    }

    fn make<D: Disk>(disk: &D, digest_key: DigestKey) -> Result<Self, FormatError> {
        match disk.remove(TEMPORARY) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let format = Self { version: VERSION, digest_key };
        let file = disk.create(TEMPORARY, 0)?;
        file.write_at(&format.encode(), 0)?;
        file.sync(SyncPoint::FormatContent)?;
        disk.rename(TEMPORARY, NAME)?;
        Ok(format)
    }

    /// The salt of the journal's checksums, for [`crate::store::journal::JournalOptions`].
    pub fn salt(&self) -> u64 {
        let digest = blake3::keyed_hash(&self.digest_key.0, b"journal checksum salt");
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[16..48].copy_from_slice(&self.digest_key.0);
        let crc = crc32c::crc32c(&out[..48]);
        out[48..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let version = bytes.get(8..12).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        let version = version.filter(|_| bytes.starts_with(MAGIC)).ok_or(FormatError::Damaged)?;
        // Before the checksum: a newer format may have another length.
        if version > VERSION {
            return Err(FormatError::Newer { found: version });
        }
        if version < VERSION {
            return Err(FormatError::Older { found: version });
        }
        let bytes: &[u8; BYTES] = bytes.try_into().map_err(|_| FormatError::Damaged)?;
        if bytes[48..] != crc32c::crc32c(&bytes[..48]).to_le_bytes() {
            return Err(FormatError::Damaged);
        }
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[16..48]);
        Ok(Self { version, digest_key: DigestKey(key) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sim::SimDisk;
    use super::*;

    #[test]
    fn another_format_is_refused_and_nothing_touched() {
        for version in [VERSION - 1, VERSION + 1] {
            let disk = SimDisk::new();
            let format = Format { version, digest_key: DigestKey([1; 32]) };
            disk.create(NAME, 0).expect("new").write_at(&format.encode(), 0).expect("fits");
            let before = disk.operations();
            let error = Format::open(&disk, DigestKey([2; 32])).expect_err("another");
            let (FormatError::Newer { found } | FormatError::Older { found }) = error else {
                panic!("{error}");
            };
            assert_eq!(found, version);
            assert_eq!(disk.operations(), before);
        }
    }

    #[test]
    fn data_without_a_format_file_never_gets_a_new_key() {
        let disk = SimDisk::new();
        disk.create("journal-0000000001.seg", 0).expect("new");
        let before = disk.operations();
        assert!(matches!(Format::open(&disk, DigestKey([2; 32])), Err(FormatError::Lost { .. })));
        assert_eq!(disk.operations(), before);
    }

    #[test]
    fn damage_is_noticed() {
        let disk = SimDisk::new();
        Format::open(&disk, DigestKey([1; 32])).expect("new");
        disk.flip(NAME, 20, 4).expect("there");
        assert!(matches!(Format::open(&disk, DigestKey([2; 32])), Err(FormatError::Damaged)));
    }

    #[test]
    fn the_salt_is_of_the_key_alone() {
        let salt = |version, key| Format { version, digest_key: DigestKey([key; 32]) }.salt();
        assert_eq!(salt(VERSION, 1), salt(VERSION + 1, 1));
        assert_ne!(salt(VERSION, 1), salt(VERSION, 2));
    }
}
