//! Who writes the tables: a thread, so that no commit of the journal waits for a transaction; or the caller, for engines without threads.
//!
//! One transaction is under way at a time. What comes meanwhile gathers with the engine and goes with the next one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use super::{Tables, TablesError, Writes};
use crate::ids::Seq;

/// A transaction.
#[derive(Debug)]
pub(in crate::store) struct Job {
    pub(in crate::store) writes: Writes,
    pub(in crate::store) applied: Seq,
}

/// What became of it: the job again, if there was no space.
type Done = Result<Result<Seq, Job>, TablesError>;

/// See the module.
#[derive(Debug)]
pub(in crate::store) struct Writer {
    tables: Arc<dyn Tables>,
    thread: Option<(SyncSender<Job>, Receiver<Done>)>,
    /// What the caller wrote itself.
    done: Option<Done>,
    busy: bool,
}

fn write(tables: &dyn Tables, job: Job) -> Done {
    match tables.apply(&job.writes, job.applied) {
        Ok(()) => Ok(Ok(job.applied)),
        Err(TablesError::Full) => Ok(Err(job)),
        Err(error) => Err(error),
    }
}

impl Writer {
    /// Writes on the caller's thread.
    pub(in crate::store) fn new(tables: Arc<dyn Tables>) -> Self {
        Self { tables, thread: None, done: None, busy: false }
    }

    /// From now on a thread writes, and says when a transaction is over. It ends when the writer is gone.
    pub(in crate::store) fn start_thread(
        &mut self,
        over: impl Fn() + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let (jobs, waiting) = sync_channel::<Job>(1);
        let (telling, done) = sync_channel(1);
        let tables = self.tables.clone();
        let thread = std::thread::Builder::new().name("tables".into()).spawn(move || {
            while let Ok(job) = waiting.recv() {
                if telling.send(write(&*tables, job)).is_err() {
                    break;
                }
                over();
            }
        })?;
        self.thread = Some((jobs, done));
        Ok(thread)
    }

    /// Whether a transaction is under way.
    pub(in crate::store) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Begins a transaction; only if none is under way.
    pub(in crate::store) fn begin(&mut self, job: Job) {
        debug_assert!(!self.busy, "one transaction at a time");
        self.busy = true;
        match &self.thread {
            None => self.done = Some(write(&*self.tables, job)),
            // A thread that is gone is found by whoever asks for the result.
            Some((jobs, _)) => drop(jobs.send(job)),
        }
    }

    /// What became of the transaction, if it is over; with `wait`, when it is. `None` also if none is under way.
    pub(in crate::store) fn done(&mut self, wait: bool) -> Option<Done> {
        if !self.busy {
            return None;
        }
        let gone = || Err(TablesError::Damaged { what: "the thread that writes them has ended".into() });
        let done = match &self.thread {
            None => self.done.take(),
            Some((_, done)) if wait => Some(done.recv().unwrap_or_else(|_| gone())),
            Some((_, done)) => match done.try_recv() {
                Ok(done) => Some(done),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(gone()),
            },
        };
        self.busy = done.is_none();
        done
    }
}
