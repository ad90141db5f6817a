//! A small disk of our own: memory, mounted where only this process and its children see it, which can be filled and emptied.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use mooring::cli::output::note;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// Its bytes.
pub(super) const BYTES: u64 = 128 * 1024 * 1024;

/// A directory with little room. It is taken away when this is dropped.
#[derive(Debug)]
pub(super) struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts it over this directory. To be called while the process has one thread: it gets a mount namespace of its own, and without root a
    /// user namespace.
    pub(super) fn mount(dir: &Path) -> io::Result<Self> {
        let (user, group) = (getuid(), getgid());
        match unshare(CloneFlags::CLONE_NEWNS) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
                // A group may be mapped only once nobody can drop groups any more.
                fs::write("/proc/self/setgroups", "deny")?;
                fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
                fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
            }
            Err(error) => return Err(error.into()),
        }
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        let options = format!("size={BYTES},mode=0700");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Takes all room that there is.
    pub(super) fn fill(&self) -> io::Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        // Smaller and smaller, until not even a page is left.
        for bytes in [1 << 20, 1 << 16, 1 << 12] {
            let zeros = vec![0; bytes];
            loop {
                match ballast.write_all(&zeros) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub(super) fn empty(&self) -> io::Result<()> {
        fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.dir, MntFlags::MNT_DETACH) {
            note(&format!("{}: can't be taken away: {error}", self.dir.display()));
        }
    }
}
