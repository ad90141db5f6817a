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
