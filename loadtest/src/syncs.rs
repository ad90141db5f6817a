//! The disk's floor: how long it takes to make as little durable as one message, in a file like a segment of the journal, on the disk where an edge that
//! is started here has its data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use hdrhistogram::Histogram;
use mooring::cli::output::Failure;
use mooring::clock::Clock;
use rustix::fs::FallocateFlags;

use crate::numbers::histogram;

/// Syncs before, and again after a measurement: some tenths of a second of a good disk.
const SYNCS: u64 = 1_000;
/// Microseconds after which it is enough.
const LONGEST: u64 = 5_000_000;
/// Bytes of the record of a message of 200, about.
const RECORD_BYTES: u64 = 400;

/// What syncs took, microseconds: some right before a measurement, some right after.
pub(crate) struct Around(Option<Histogram<u64>>);

impl Around {
    /// Looks for the first time, if it is wanted.
    pub(crate) async fn before(wanted: bool) -> Result<Self, Failure> {
        let Self(took) = Self(if wanted { Some(histogram()?) } else { None });
        measured(took).await.map(Self)
    }

    /// Looks again.
    pub(crate) async fn after(self) -> Result<Option<Histogram<u64>>, Failure> {
        measured(self.0).await
    }
}

async fn measured(took: Option<Histogram<u64>>) -> Result<Option<Histogram<u64>>, Failure> {
    let Some(mut took) = took else { return Ok(None) };
    let work = move || {
        sync_often(&mut took)?;
        Ok(Some(took))
    };
    let done: io::Result<_> = tokio::task::spawn_blocking(work).await.map_err(Failure::failed)?;
    done.map_err(|error| {
        Failure::failed(format!("syncing a file in {}: {error}", std::env::temp_dir().display()))
    })
}

fn sync_often(took: &mut Histogram<u64>) -> io::Result<()> {
    let (file, clock) = (preallocated()?, Clock::new(0));
    let record = [7; RECORD_BYTES as usize];
    for n in 0..SYNCS {
        let began = clock.micros();
        file.write_all_at(&record, n * RECORD_BYTES)?;
        file.sync_data()?;
        took.saturating_record((clock.micros() - began).max(1));
        if clock.micros() > LONGEST {
            break;
        }
    }
    Ok(())
}

/// A file without a name.
fn preallocated() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("loadtest-syncs-{}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SYNCS * RECORD_BYTES) {
        // As the journal does on a file system without reservations.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(SYNCS * RECORD_BYTES)?,
        reserved => reserved?,
    }
    file.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_many_syncs_before_as_after_or_none() {
        let before = Around::before(true).await.expect("a temporary directory");
        let first = before.0.as_ref().expect("wanted").len();
        assert!((1..=SYNCS).contains(&first));
        let both = before.after().await.expect("a temporary directory").expect("wanted");
        assert!(both.len() > first && both.min() > 0);
        assert!(
            Around::before(false).await.expect("nothing to do").after().await.expect("nothing").is_none()
        );
    }
}
