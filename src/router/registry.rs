//! Who reads which stream. The newest reader wins; the one before is fenced by its epoch. Epochs begin at the edge's time, which never falls
//! below the journal's, and grow by at least one: they grow over restarts too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::push::Millis;

/// The readers of all streams.
#[derive(Debug, Default)]
pub struct StreamRegistry(Mutex<HashMap<Arc<str>, Stream>>);

#[derive(Debug, Default)]
struct Stream {
    newest: watch::Sender<u64>,
    /// The router that reads it now, by the name in its certificate.
    reader: Option<Arc<str>>,
}

/// A router that reads a stream now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamReader {
    /// By the name in its certificate.
    pub router: Arc<str>,
    /// Of this reader.
    pub epoch: u64,
}

impl StreamRegistry {
    /// A new reader; the one before is fenced. Call it for streams that there are only: there are no more entries than those.
    pub(super) fn enter(self: &Arc<Self>, stream: &Arc<str>, router: &str, now: Millis) -> Fence {
        let mut streams = self.lock();
        let entry = streams.entry(Arc::clone(stream)).or_default();
        entry.newest.send_modify(|epoch| *epoch = now.max(*epoch + 1));
        entry.reader = Some(router.into());
        let (newest, epoch) = (entry.newest.subscribe(), *entry.newest.borrow());
        Fence { epoch, newest, stream: Arc::clone(stream), registry: Arc::clone(self) }
    }

    /// Who reads a stream now.
    pub fn reader(&self, stream: &str) -> Option<StreamReader> {
        let streams = self.lock();
        let stream = streams.get(stream)?;
        let epoch = *stream.newest.borrow();
        stream.reader.clone().map(|router| StreamReader { router, epoch })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a reader is still the newest; it reads until this is dropped.
#[derive(Debug)]
pub(super) struct Fence {
    pub(super) epoch: u64,
    newest: watch::Receiver<u64>,
    stream: Arc<str>,
    registry: Arc<StreamRegistry>,
}

impl Fence {
    pub(super) fn is_newest(&self) -> bool {
        *self.newest.borrow() == self.epoch
    }

    /// Waits for a newer reader.
    pub(super) async fn replaced(&self) {
        let mut newest = self.newest.clone();
        // The registry outlives every link: the wait ends by a newer reader or not at all.
        if newest.wait_for(|newest| *newest != self.epoch).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        let mut streams = self.registry.lock();
        if let Some(stream) = streams.get_mut(&self.stream)
            && *stream.newest.borrow() == self.epoch
        {
            stream.reader = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_reader_wins_and_epochs_grow() {
        let registry = Arc::new(StreamRegistry::default());
        let main: Arc<str> = "main".into();
        let first = registry.enter(&main, "r1", 1_000);
        assert!(first.is_newest());
        let second = registry.enter(&main, "r2", 1_000);
        assert!(!first.is_newest() && second.is_newest());
        assert!(second.epoch > first.epoch);
        let other = registry.enter(&"other".into(), "r1", 1_000);
        assert!(second.is_newest() && other.is_newest());
        // After a restart the registry is empty, but time went on.
        assert!(Arc::new(StreamRegistry::default()).enter(&main, "r1", 2_000).epoch > second.epoch);
        // A late goodbye takes no newcomer along.
        drop(first);
        let reader = StreamReader { router: "r2".into(), epoch: second.epoch };
        assert_eq!(registry.reader("main"), Some(reader));
        drop(second);
        assert_eq!((registry.reader("main"), registry.reader("none")), (None, None));
        assert!(registry.reader("other").is_some());
    }
}
