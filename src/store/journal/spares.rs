//! Preallocated files: the next segment, and the reserve. A spare becomes a segment by a rename, so that rolling needs no space.

use std::io;
use std::sync::Arc;

use super::{Disk, DiskFile, Journal, JournalError};

pub(super) fn name(number: u64) -> String {
    format!("spare-{number}.seg")
}

pub(super) fn parse_name(name: &str) -> Option<u64> {
    name.strip_prefix("spare-")?.strip_suffix(".seg")?.parse().ok()
}

/// The spares found at a start: (number, name), in order, and the bytes of all that were there. One that is not whole, or has been written to (its
/// renaming to a segment was lost with the power), is removed.
pub(super) fn adopt<D: Disk>(
    disk: &Arc<D>,
    names: &[String],
    segment_bytes: u32,
) -> Result<(Vec<(u64, String)>, u64), JournalError> {
    let mut found: Vec<(u64, String)> =
        names.iter().filter_map(|name| parse_name(name).map(|number| (number, name.clone()))).collect();
    found.sort_unstable();
    let (mut kept, mut bytes) = (Vec::with_capacity(found.len()), 0);
    for (number, name) in found {
        let (is_clean, length) = looked_at::<D>(disk, &name, segment_bytes)
            .map_err(JournalError::io(format!("reading {name}")))?;
        bytes += length;
        if is_clean {
            kept.push((number, name));
        } else {
            disk.remove(&name).map_err(JournalError::io(format!("removing {name}")))?;
        }
    }
    Ok((kept, bytes))
}

/// Whether it is whole and empty, and its length.
fn looked_at<D: Disk>(disk: &Arc<D>, name: &str, segment_bytes: u32) -> io::Result<(bool, u64)> {
    let file = disk.open(name)?;
    let length = file.len()?;
    if length != u64::from(segment_bytes) {
        return Ok((false, length));
    }
    let mut start = [0; super::SEGMENT_HEADER as usize];
    file.read_at(&mut start, 0)?;
    Ok((start.iter().all(|&byte| byte == 0), length))
}

impl<D: Disk> Journal<D> {
    /// Whether the next segment and the whole reserve are there.
    pub fn is_replenished(&self) -> bool {
        self.spares_left() > self.options.reserve_segments as usize
    }

    /// Whether a spare file more would make it larger than it may be. The active segment, which may be of a time when segments were larger, and the next
    /// one and the reserve beside it are always allowed: it only goes when the next one begins. And where it was larger at the start than it may be
    /// now, it gets its reserve as long as it is no larger than then: acks and ends are what makes it smaller.
    pub fn is_at_max(&self) -> bool {
        let (max, segment) = (self.options.max_bytes, u64::from(self.options.segment_bytes));
        let (active, reserve) =
            (self.shared.newest().map_or(0, |active| active.size), self.options.reserve_segments);
        let allowed = max.max(active + segment * (u64::from(reserve) + 1));
        let lacks_reserve = self.spares.len() < reserve as usize;
        let allowed = if lacks_reserve { allowed.max(self.found_bytes) } else { allowed };
        max != 0 && self.file_bytes() + segment > allowed
    }

    /// Removes spare files, so that something else can use their space until [`Journal::replenish`]. How many there were, at most `most`. Only
    /// between commits.
    pub fn release_spares(&mut self, most: usize) -> Result<usize, JournalError> {
        debug_assert!(self.parts.is_empty(), "what is staged may need them");
        let kept = self.spares.len().saturating_sub(most);
        let released = self.spares.split_off(kept);
        for name in &released {
            self.disk.remove(name).map_err(JournalError::io(format!("removing {name}")))?;
        }
        Ok(released.len())
    }

    /// Makes one spare file more, whatever the maximum, also that of all files together. Whether the disk had room for it.
    pub fn add_spare_beyond(&mut self) -> Result<bool, JournalError> {
        self.disk.widen(u64::from(self.options.segment_bytes));
        self.add_spare()
    }

    /// Makes one spare file more, whatever the journal's maximum. Whether the disk had room for it.
    pub fn add_spare(&mut self) -> Result<bool, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let name = name(self.next_spare);
        self.next_spare += 1;
        match self.disk.create(&name, u64::from(self.options.segment_bytes)) {
            Ok(_) => self.spares.push(name),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(false),
            Err(error) => return Err(JournalError::io(format!("making {name}"))(error)),
        }
        Ok(true)
    }

    /// Makes spare files until the next segment and the whole reserve are there, or the journal is as large as it may be. A full disk is not an
    /// error: [`Journal::room`] says what is left. Cheap if nothing is missing; call it after commits, so that the next roll doesn't use the reserve.
    pub fn replenish(&mut self) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        while !self.is_replenished() && !self.is_at_max() {
            if !self.add_spare()? {
                break;
            }
        }
        Ok(())
    }
}
