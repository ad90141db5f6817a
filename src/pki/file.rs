//! Files of keys and certificates: written whole or not at all, readable by their owner only if they are secret.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::PkiError;

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privacy {
    /// Its owner only (0600).
    Secret,
    /// All (0644).
    Public,
}

/// Whether a file that is there already goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It stays, and the write is an error.
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes a file beside its place, syncs it, and puts it there in one step, durably.
pub fn write(path: &Path, content: &str, privacy: Privacy, existing: Existing) -> Result<(), PkiError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.into() },
        _ => PkiError::Write { path: path.into(), error },
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    if existing == Existing::Keep && path.exists() {
        return Err(PkiError::Exists { path: path.into() });
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let result = write_new(&temporary, content, privacy).and_then(|()| match existing {
        Existing::Replace => fs::rename(&temporary, path),
        // A rename would replace; a link fails if somebody was faster.
        Existing::Keep => fs::hard_link(&temporary, path).and_then(|()| fs::remove_file(&temporary)),
    });
    if result.is_err() {
        // The temporary file may not be there; the error that counts is the first.
        fs::remove_file(&temporary).ok();
    }
    result.and_then(|()| sync_directory(path)).map_err(failed)
}

/// Makes the file's name durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_new(path: &Path, content: &str, privacy: Privacy) -> io::Result<()> {
    let mode = if privacy == Privacy::Secret { 0o600 } else { 0o644 };
    // Left over from a process of the same number that was killed.
    fs::remove_file(path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// Reads a text file.
pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|error| PkiError::Read { path: path.into(), error })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_private_and_nothing_is_overwritten_unasked() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub").join("a.key");
        write(&path, "one", Privacy::Secret, Existing::Keep).expect("written");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = write(&path, "two", Privacy::Secret, Existing::Keep);
        assert!(matches!(again, Err(PkiError::Exists { .. })), "{again:?}");
        assert_eq!(read(&path).expect("read"), "one");
        write(&path, "three", Privacy::Public, Existing::Replace).expect("written");
        assert_eq!(read(&path).expect("read"), "three");
        assert_eq!(fs::read_dir(dir.path().join("sub")).expect("listed").count(), 1);
    }
}
