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
use crate::store::journal::{Place, ReadError};
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
    follow(
        || batch.place(),
        |place| {
            let (_, kind, payload) = shared.reader.read(place)?;
            let record = BatchRecord::decode(&payload).ok().filter(|record| record.seq == batch.seq);
            let record = record.filter(|_| matches!(kind, BATCH | COPY));
            record.map(|record| record.body.into()).ok_or(ReadError::Damaged(place))
        },
    )
}

/// Reads at a place. A record that isn't there may have been copied, and its segment removed, between the two looks: then it has a new one.
fn follow<T>(
    place: impl Fn() -> Place,
    mut read: impl FnMut(Place) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let mut at = place();
    for _ in 1..MOVED_RETRIES {
        let found = read(at);
        let now = place();
        if !matches!(found, Err(ReadError::Gone)) || now == at {
            return found;
        }
        at = now;
    }
    read(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, MessageId, Seq, ShardId};

    fn batch(seq: u64) -> Arc<Batch> {
        Arc::new(Batch::of_test(Seq(seq), MessageId(seq), 0))
    }

    fn session(n: u32) -> SessionRef {
        SessionRef { generation: Generation(u64::from(n)), slot: n, shard: ShardId(0) }
    }

    fn taken(wanted: &Wanted, now: Millis) -> Option<(u64, Vec<u32>)> {
        let taken = wanted.queue.lock().expect("not poisoned").take(now);
        taken.map(|(batch, sessions)| (batch.seq.0, sessions.iter().map(|session| session.slot).collect()))
    }

    #[test]
    fn a_body_that_fails_is_read_again_when_it_is_due_for_all_who_wait() {
        let wanted = Wanted::default();
        wanted.put(batch(1), session(1)).expect("room");
        let (one, sessions) = wanted.queue.lock().expect("not poisoned").take(0).expect("wanted");
        wanted.put_back(one, sessions, 500);
        for n in [2, 3, 2] {
            wanted.put(batch(1), session(n)).expect("room");
        }
        wanted.put(batch(2), session(4)).expect("room");
        assert_eq!(taken(&wanted, 499), Some((2, vec![4])), "others don't wait for it");
        assert_eq!(taken(&wanted, 499), None);
        assert_eq!(taken(&wanted, 500), Some((1, vec![1, 2, 3])));
        assert_eq!(taken(&wanted, 9_999), None);
    }

    #[test]
    fn so_many_may_be_wanted_and_none_once_it_is_closed() {
        let wanted = Wanted::default();
        let (failing, other) = (batch(1), batch(2));
        wanted.put_back(failing.clone(), [session(1)].into(), 500);
        for _ in 1..limits::BODY_READS {
            wanted.put(other.clone(), session(2)).expect("room");
        }
        assert_eq!(wanted.put(other.clone(), session(2)), Err(Busy), "what fails has a place, too");
        wanted.close();
        wanted.put_back(failing.clone(), [session(1)].into(), 500);
        assert_eq!((wanted.put(other, session(2)), taken(&wanted, 999)), (Err(Busy), None));
        assert_eq!(Arc::strong_count(&failing), 1, "nothing is kept");
    }

    #[test]
    fn a_record_that_moved_while_it_was_looked_for_is_looked_for_where_it_is() {
        let places: Vec<Place> = (1..=9).map(|segment| Place { segment, offset: 40 }).collect();
        // It moves after each of so many looks, and is where it is then.
        let reads = |moves: usize| {
            let (looks, reads) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
            let place = || places[looks.replace(looks.get() + 1).min(moves)];
            let found = follow(place, |at| {
                reads.set(reads.get() + 1);
                if at == places[moves] { Ok(at.segment) } else { Err(ReadError::Gone) }
            });
            (found.ok(), reads.get())
        };
        let all: Vec<_> = (0..5).map(reads).collect();
        assert_eq!(all, [(Some(1), 1), (Some(2), 2), (Some(3), 3), (Some(4), 4), (None, 4)]);
        // One that doesn't move and isn't there, or can't be read, is read once.
        let errors: [fn(Place) -> ReadError; 2] = [|_| ReadError::Gone, ReadError::Damaged];
        for error in errors {
            let mut reads = 0;
            let found = follow(
                || places[0],
                |at| {
                    reads += 1;
                    Err::<(), _>(error(at))
                },
            );
            assert!(found.is_err() && reads == 1);
        }
        let moves = std::cell::Cell::new(0);
        let place = || places[moves.replace(moves.get() + 1)];
        let found = follow(place, |at| Err::<(), _>(ReadError::Damaged(at)));
        assert!(
            matches!(found, Err(ReadError::Damaged(at)) if at == places[0]),
            "damage is no matter of place"
        );
    }
}
