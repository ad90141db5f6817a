//! Slices of a checkpoint, each taken in by one of several threads. Reading stays on the caller's: so the order of what reaches the disk is always
//! the same.

use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};

use super::recover::OpenError;
use crate::store::checkpoint::CheckpointReader;
use crate::store::codec::Malformed;
use crate::store::disk::Disk;

/// A smaller checkpoint needs no threads; in the tests of this crate every one has them.
const ALONE_BYTES: u64 = if cfg!(test) { 1 } else { 8 * 1024 * 1024 };
/// More threads wait for the one that reads.
const MAX_THREADS: usize = 8;

/// How many threads take in what `reader` has; 1: the caller's.
pub(super) fn threads_for<D: Disk>(reader: &CheckpointReader<D>) -> usize {
    if reader.bytes() < ALONE_BYTES {
        return 1;
    }
    thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS)
}

/// What `work` makes of each slice of this kind, from `first` on, in any order; and the next slice of another kind.
pub(super) fn on_threads<D: Disk, T: Send>(
    threads: usize,
    reader: &mut CheckpointReader<D>,
    (kind, first): (u8, Option<Vec<u8>>),
    work: impl Fn(&[u8]) -> Result<T, Malformed> + Sync,
) -> Result<(Vec<T>, Option<Vec<u8>>), OpenError> {
    let mut slices = Slices { reader, kind, other: None, first };
    let mut made = Vec::new();
    if threads > 1 {
        made = with_threads(&mut slices, threads, &work)?;
    } else {
        while let Some(slice) = slices.next()? {
            made.push(work(&slice)?);
        }
    }
    Ok((made, slices.other))
}

/// Slices of one kind, and the first of another.
struct Slices<'a, D: Disk> {
    reader: &'a mut CheckpointReader<D>,
    kind: u8,
    first: Option<Vec<u8>>,
    other: Option<Vec<u8>>,
}

impl<D: Disk> Slices<'_, D> {
    fn next(&mut self) -> Result<Option<Vec<u8>>, OpenError> {
        let next = match self.first.take() {
            None => self.reader.next_slice()?,
            first => first,
        };
        if next.as_ref().is_some_and(|slice| slice.first() != Some(&self.kind)) {
            self.other = next;
            return Ok(None);
        }
        Ok(next)
    }
}

fn send<D: Disk>(slices: &mut Slices<'_, D>, to: &SyncSender<Vec<u8>>) -> Result<(), OpenError> {
    while let Some(slice) = slices.next()? {
        if to.send(slice).is_err() {
            // They say why.
            break;
        }
    }
    Ok(())
}

fn take_in<T>(
    waiting: &Mutex<Receiver<Vec<u8>>>,
    work: &impl Fn(&[u8]) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut made = Vec::new();
    loop {
        let slice = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(slice) = slice else { return Ok(made) };
        made.push(work(&slice)?);
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<Vec<T>, Malformed>>) -> Result<Vec<T>, Malformed> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn with_threads<D: Disk, T: Send>(
    slices: &mut Slices<'_, D>,
    threads: usize,
    work: &(impl Fn(&[u8]) -> Result<T, Malformed> + Sync),
) -> Result<Vec<T>, OpenError> {
    // One for each waits: memory stays small, and nobody waits long.
    let (sender, waiting) = sync_channel(threads);
    let waiting = Arc::new(Mutex::new(waiting));
    thread::scope(|scope| {
        let begin = |_| {
            let waiting = Arc::clone(&waiting);
            thread::Builder::new().name("start".into()).spawn_scoped(scope, move || take_in(&waiting, work))
        };
        let threads = (0..threads).map(begin).collect::<Result<Vec<_>, _>>();
        // Theirs alone from now on: once they have all given up, what is sent is refused.
        drop(waiting);
        // Nothing is sent unless all have begun; they end with the sender.
        let sent = threads.as_ref().map_or(Ok(()), |_| send(slices, &sender));
        drop(sender);
        let made = threads?.into_iter().map(joined).collect::<Result<Vec<_>, _>>()?;
        sent?;
        Ok(made.into_iter().flatten().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Seq;
    use crate::store::checkpoint::CheckpointWriter;
    use crate::store::disk::sim::SimDisk;

    /// Slices of kind 1, then of kind 2.
    fn written(ones: u8, twos: u8) -> CheckpointReader<SimDisk> {
        let disk = Arc::new(SimDisk::new());
        let mut writer = CheckpointWriter::begin(disk.clone()).expect("room");
        for (kind, count) in [(1, ones), (2, twos)] {
            for n in 0..count {
                writer.slice(&[kind, n]).expect("room");
            }
        }
        writer.finish(Seq(1)).expect("room");
        CheckpointReader::newest(disk).expect("readable").expect("there")
    }

    #[test]
    fn each_slice_of_the_kind_is_taken_in_once_and_the_next_one_is_left() {
        for threads in [1, 2, 5] {
            let mut reader = written(100, 50);
            let work = |slice: &[u8]| Ok((slice[0], slice[1]));
            let (mut ones, first) = on_threads(threads, &mut reader, (1, None), work).expect("readable");
            ones.sort_unstable();
            assert_eq!(ones, (0..100).map(|n| (1, n)).collect::<Vec<_>>());
            assert_eq!(first, Some(vec![2, 0]));
            let (mut twos, other) = on_threads(threads, &mut reader, (2, first), work).expect("readable");
            twos.sort_unstable();
            assert_eq!((twos, other), ((0..50).map(|n| (2, n)).collect::<Vec<_>>(), None));
        }
    }

    #[test]
    fn a_slice_that_is_not_understood_ends_the_start() {
        for threads in [1, 2, 5] {
            for bad in [0, 40, 99] {
                let work = |slice: &[u8]| if slice[1] < bad { Ok(()) } else { Err(Malformed) };
                let made = on_threads(threads, &mut written(100, 0), (1, None), work);
                assert!(matches!(made, Err(OpenError::Malformed(_))), "{threads} threads, slice {bad}");
            }
        }
    }
}
