//! Bodies in memory, within a number of bytes: the first that came in goes first. A mass push is read by everybody within
//! seconds, so age tells what will be wanted as well as use would, and costs a session nothing to keep.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, Weak};

use super::batch::Batch;
use crate::fault::{self, Fault};
use crate::sync::{Mutex, MutexGuard};

/// See the module.
#[derive(Debug)]
pub(super) struct BodyCache {
    max_bytes: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: usize,
    queue: VecDeque<Weak<Batch>>,
    /// Batches in `queue` that have ended since.
    stale: usize,
}

impl BodyCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes: AtomicUsize::new(max_bytes), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It may hold so many bytes from now on.
    pub(super) fn set_max(&self, bytes: usize) {
        if self.max_bytes.swap(bytes, Ordering::Relaxed) > bytes {
            self.lock().make_room(bytes);
        }
    }

    /// Puts a body in; the oldest go as far as they must.
    pub(super) fn insert(&self, batch: &Arc<Batch>, body: Arc<[u8]>) {
        let mut inner = self.lock();
        if !batch.is_live() && !fault::is(Fault::KeepEndedBody) {
            // It ended while its body was read: nobody would take the body out again.
            return;
        }
        let len = body.len();
        let before = batch.set_body(Some(body));
        inner.bytes = inner.bytes - before + len;
        if before == 0 {
            inner.queue.push_back(Arc::downgrade(batch));
        }
        inner.make_room(self.max_bytes.load(Ordering::Relaxed));
    }

    /// A batch ended: its body goes.
    pub(super) fn remove(&self, batch: &Batch) {
        let mut inner = self.lock();
        let before = batch.set_body(None);
        if before == 0 {
            return;
        }
        inner.bytes -= before;
        inner.stale += 1;
        // What has ended since is swept out when it makes up most of the queue: constant work per batch.
        if inner.stale > inner.queue.len() / 2 + 64 {
            inner.queue.retain(|batch| batch.upgrade().is_some_and(|batch| batch.body().is_some()));
            inner.stale = 0;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// What all of it takes in memory: the bodies, each an allocation, and batches that are kept by their place in the queue alone.
    pub(super) fn memory(&self) -> usize {
        let inner = self.lock();
        let bodies = inner.queue.len() - inner.stale.min(inner.queue.len());
        inner.bytes
            + bodies * BESIDE_BODY
            + inner.queue.capacity() * size_of::<Weak<Batch>>()
            + inner.stale * size_of::<Batch>()
    }
}

/// Bytes that a body takes beside its own: two counts, and what an allocator keeps.
const BESIDE_BODY: usize = 32;

impl Inner {
    /// The oldest go as far as they must. The newest stays whatever its size: a session waits for it.
    fn make_room(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes && self.queue.len() > 1 {
            let Some(oldest) = self.queue.pop_front() else { break };
            let freed = oldest.upgrade().map_or(0, |batch| batch.set_body(None));
            self.bytes -= freed;
            if freed == 0 {
                self.stale = self.stale.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{MessageId, Seq};

    fn batch(seq: u64) -> Arc<Batch> {
        let batch = Batch::of_test(Seq(seq), MessageId(seq), 0);
        batch.count_live(1);
        Arc::new(batch)
    }

    fn put(cache: &BodyCache, seq: u64, bytes: usize) -> Arc<Batch> {
        let batch = batch(seq);
        cache.insert(&batch, vec![7; bytes].into());
        batch
    }

    /// Of these, the ones whose body is in memory.
    fn there(batches: &[Arc<Batch>]) -> Vec<u64> {
        batches.iter().filter(|batch| batch.body().is_some()).map(|batch| batch.seq.0).collect()
    }

    #[test]
    fn the_first_that_came_goes_first_and_the_newest_stays_whatever_its_size() {
        let cache = BodyCache::new(1_000);
        let all: Vec<_> = (1..=4).map(|seq| put(&cache, seq, 400)).collect();
        assert_eq!((there(&all), cache.bytes()), (vec![3, 4], 800));
        let large = put(&cache, 5, 5_000);
        assert_eq!((there(&all), cache.bytes()), (vec![], 5_000));
        let next = put(&cache, 6, 1_000);
        assert_eq!(
            (there(&[large, next.clone()]), cache.bytes()),
            (vec![6], 1_000),
            "the bound itself is room"
        );
        // The same one again counts once.
        cache.insert(&next, vec![7; 300].into());
        assert_eq!(cache.bytes(), 300);
        let other = put(&cache, 7, 700);
        cache.set_max(1_000);
        assert_eq!(there(&[next.clone(), other.clone()]), [6, 7]);
        cache.set_max(999);
        assert_eq!((there(&[next, other]), cache.bytes()), (vec![7], 700), "a smaller bound holds at once");
    }

    #[test]
    fn what_ended_gives_its_bytes_back_and_is_not_put_in_again() {
        let cache = BodyCache::new(1_000);
        let (one, other) = (put(&cache, 1, 400), put(&cache, 2, 500));
        one.count_live(0);
        cache.remove(&one);
        cache.remove(&one);
        assert_eq!((there(&[one.clone(), other]), cache.bytes()), (vec![2], 500));
        cache.insert(&one, vec![7; 400].into());
        assert_eq!((one.body(), cache.bytes()), (None, 500));
    }

    #[test]
    fn among_many_that_ended_the_bound_still_holds_in_the_same_order() {
        let cache = BodyCache::new(10_000);
        let mut all: Vec<_> = (0..1_000).map(|seq| put(&cache, seq, 10)).collect();
        let ended = |batch: &Arc<Batch>| !batch.seq.0.is_multiple_of(10);
        for batch in all.iter().filter(|batch| ended(batch)) {
            batch.count_live(0);
            cache.remove(batch);
        }
        assert_eq!(cache.bytes(), 1_000);
        // Those that ended have no place in the queue for long, though nobody made room.
        let queued = cache.lock().queue.len();
        assert!(queued < 400, "{queued} in the queue, of which 100 live");
        all.retain(|batch| !ended(batch));
        let more: Vec<_> = (1_000..1_012).map(|seq| put(&cache, seq, 800)).collect();
        let kept: Vec<u64> = (60..100).map(|tenth| tenth * 10).collect();
        assert_eq!((there(&all), there(&more).len(), cache.bytes()), (kept, 12, 10_000));
        drop((all, more));
        assert!(cache.memory() >= 10_000);
    }
}
