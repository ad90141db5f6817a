//! Reading bodies back: on a thread of its own, so that neither a session nor a commit waits for it.
//!
//! A read that fails is tried again, and who wants the body waits, until [`Batch::is_given_up`]: an error of the disk may pass, and what is pending
//! ends for good.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Inbox;
use crate::clock::Clock;
use crate::ids::SessionRef;
use crate::limits;
use crate::push::Millis;
use crate::store::batch::Batch;
use crate::store::disk::Disk;
use crate::store::engine::Shared;
use crate::store::journal::ReadError;
use crate::store::record::{BATCH, BatchRecord, COPY};
use crate::store::stats::StoreStats;
use crate::store::{BodySink, Busy};
use crate::sync::{Condvar, Mutex};

/// Milliseconds between two reads of a body that fail.
const AGAIN_MS: Millis = 500;
/// How often a body's place is looked up again because its record moved meanwhile.
const MOVED_RETRIES: usize = 4;

/// Bodies that sessions wait for.
#[derive(Debug, Default)]
pub(in crate::store) struct Wanted {
    queue: Mutex<WantedQueue>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct WantedQueue {
    wanted: VecDeque<(Arc<Batch>, SessionRef)>,
    /// The disk failed to read these.
    failing: Vec<Failing>,
    closed: bool,
}

/// A body that is read again later.
#[derive(Debug)]
struct Failing {
    batch: Arc<Batch>,
    /// Who waits for it: no more than there are.
    sessions: BTreeSet<SessionRef>,
    due: Millis,
}

impl WantedQueue {
    /// What is to be read now, and who wants it.
    fn take(&mut self, now: Millis) -> Option<(Arc<Batch>, BTreeSet<SessionRef>)> {
        while let Some((batch, session)) = self.wanted.pop_front() {
            match self.failing.iter_mut().find(|failing| failing.batch.seq == batch.seq) {
                Some(failing) => {
                    failing.sessions.insert(session);
                }
                None => return Some((batch, [session].into())),
            }
        }
        let due = self.failing.iter().position(|failing| failing.due <= now)?;
        let Failing { batch, sessions, .. } = self.failing.swap_remove(due);
        Some((batch, sessions))
    }
}

impl Wanted {
    pub(in crate::store) fn put(&self, batch: Arc<Batch>, session: SessionRef) -> Result<(), Busy> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed || queue.wanted.len() + queue.failing.len() >= limits::BODY_READS {
            return Err(Busy);
        }
        queue.wanted.push_back((batch, session));
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }

    pub(in crate::store) fn close(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        queue.wanted.clear();
        queue.failing.clear();
        drop(queue);
        self.filled.notify_all();
    }

    /// The disk failed to read it: it is read again.
    fn put_back(&self, batch: Arc<Batch>, sessions: BTreeSet<SessionRef>, due: Millis) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.closed {
            queue.failing.push(Failing { batch, sessions, due });
        }
    }

    fn next(&self, clock: &Clock) -> Option<(Arc<Batch>, BTreeSet<SessionRef>)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(next) = queue.take(clock.now()) {
                return Some(next);
            }
            if queue.closed {
                return None;
            }
            queue = if queue.failing.is_empty() {
                self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner)
            } else {
                let wait = Duration::from_millis(AGAIN_MS);
                self.filled.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

/// Reads bodies back until there is nobody left to want one.
pub(in crate::store) fn read_bodies<D: Disk>(
    shared: &Shared<D>,
    wanted: &Wanted,
    inbox: &Inbox,
    clock: &Clock,
    sink: &dyn BodySink,
) {
    while let Some((batch, sessions)) = wanted.next(clock) {
        load(shared, (wanted, inbox), clock.now(), sink, batch, sessions);
    }
}

/// Reads back every body that is wanted by now.
#[cfg(feature = "sim")]
pub(in crate::store) fn read_waiting<D: Disk>(
    shared: &Shared<D>,
    wanted: &Wanted,
    inbox: &Inbox,
    clock: &Clock,
    sink: &dyn BodySink,
) {
    let now = clock.now();
    loop {
        let next = wanted.queue.lock().unwrap_or_else(PoisonError::into_inner).take(now);
        let Some((batch, sessions)) = next else { return };
        load(shared, (wanted, inbox), now, sink, batch, sessions);
    }
}

/// Reads one body back and tells who wants it; if the disk fails, later.
fn load<D: Disk>(
    shared: &Shared<D>,
    (wanted, inbox): (&Wanted, &Inbox),
    now: Millis,
    sink: &dyn BodySink,
    batch: Arc<Batch>,
    sessions: BTreeSet<SessionRef>,
) {
    if batch.body().is_none() && batch.is_live() {
        match read_body(shared, &batch) {
            Ok(body) => {
                batch.was_read();
                StoreStats::add(&shared.stats.body_reads, 1);
                shared.bodies.insert(&batch, body);
            }
            Err(error) if !batch.is_given_up(&error, now) => {
                return wanted.put_back(batch, sessions, now + AGAIN_MS);
            }
            Err(error) => {
                tracing::error!(%error, sequence = %batch.seq, "a body can't be read back");
                inbox.report_damaged(batch);
            }
        }
    }
    for session in sessions {
        sink.loaded(session);
    }
}

/// Reads a body from the journal, wherever its record is now.
pub(in crate::store) fn read_body<D: Disk>(
    shared: &Shared<D>,
    batch: &Batch,
) -> Result<Arc<[u8]>, ReadError> {
    let mut read = Err(ReadError::Gone);
    for _ in 0..MOVED_RETRIES {
        let place = batch.place();
        read = shared.reader.read(place).and_then(|(_, kind, payload)| {
            let record = BatchRecord::decode(&payload).ok().filter(|record| record.seq == batch.seq);
            let record = record.filter(|_| matches!(kind, BATCH | COPY));
            record.map(|record| record.body.into()).ok_or(ReadError::Damaged(place))
        });
        // The record was copied and its segment removed between the two looks: it has a new place.
        if !matches!(read, Err(ReadError::Gone)) || batch.place() == place {
            break;
        }
    }
    read
}
