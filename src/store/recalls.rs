//! Messages that were taken back, as shards see them: a short list, the oldest first, so that a session is told of what is newer than
//! its device's last one, and sessions that are there of what is new.
//!
//! What decides (whether a batch that comes later ends at once) is in the message's part of the index; this is its shadow for other
//! threads, and holds only what is durable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::push_record::MessageKey;
use crate::ids::{AppKey, MessageId, Seq};
use crate::push::Millis;

/// A message that was taken back.
#[derive(Debug)]
pub struct Recall {
    /// Of its record.
    pub seq: Seq,
    /// The app.
    pub app: AppKey,
    /// The message.
    pub message: MessageId,
    /// When it was taken back.
    pub at: Millis,
    /// Remembered until then; a later batch of the message may move it.
    pub(super) until: AtomicU64,
    pub(super) home: MessageKey,
}

impl Recall {
    pub(crate) fn new(seq: Seq, app: AppKey, message: MessageId, at: Millis, until: Millis) -> Self {
        let home = MessageKey::of(&app, message);
        Self { seq, app, message, at, until: AtomicU64::new(until), home }
    }

    pub(super) fn holds(&self, now: Millis) -> bool {
        self.until.load(Ordering::Relaxed) > now
    }

    /// The message lives longer than was known.
    pub(super) fn extend(&self, until: Millis) {
        self.until.fetch_max(until, Ordering::Relaxed);
    }
}

/// All that are durable.
#[derive(Debug, Default)]
pub(super) struct Recalls(RwLock<Vec<Arc<Recall>>>);

impl Recalls {
    /// One that is durable now. Those that are over go.
    pub(super) fn add(&self, now: Millis, new: &Arc<Recall>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.holds(now) && known.home != new.home);
        let at = all.partition_point(|known| known.seq < new.seq);
        all.insert(at, new.clone());
    }

    /// What a recovery found.
    pub(super) fn load(&self, mut found: Vec<Arc<Recall>>) {
        found.sort_unstable_by_key(|recall| recall.seq);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// See [`super::Store::recalls`].
    pub(super) fn read(&self, after: Seq, since: Millis, max: usize) -> Vec<Arc<Recall>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // Times grow with sequences.
        let from = all.partition_point(|known| known.seq <= after || known.at < since);
        all[from..].iter().take(max).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_from_a_sequence_or_a_time_on_and_go_when_they_are_over() {
        let app = AppKey::parse("app").expect("valid");
        let one = |seq, at, until| Arc::new(Recall::new(Seq(seq), app.clone(), MessageId(seq), at, until));
        let all = Recalls::default();
        for (seq, at, until) in [(3, 30, 1_000), (5, 50, 60), (8, 80, 1_000)] {
            all.add(at, &one(seq, at, until));
        }
        let seqs = |after, since| -> Vec<u64> {
            all.read(Seq(after), since, 10).iter().map(|recall| recall.seq.0).collect()
        };
        assert_eq!(seqs(0, 0), [3, 8], "one was over when the last came");
        assert_eq!((seqs(3, 0), seqs(0, 31), seqs(8, 0)), (vec![8], vec![8], vec![]));
        assert_eq!(seqs(0, 30), [3, 8], "of that very moment, too");
        assert_eq!(all.read(Seq(0), 0, 1).len(), 1);
        let over = one(1, 10, 60);
        assert!(over.holds(59) && !over.holds(60));
        all.add(90, &one(3, 30, 1_000));
        assert_eq!(seqs(0, 0), [3, 8], "each once");
    }
}
