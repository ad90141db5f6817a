//! A batch as it lives in memory: what sessions need of it, shared by every entry that points to it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::journal::{Place, ReadError};
use super::push_record::MessageKey;
use crate::fault::{self, Fault};
use crate::ids::{AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::limits;
use crate::push::{Millis, Priority};
use crate::sync::step;

/// One accepted batch with live entries.
#[derive(Debug)]
pub struct Batch {
    /// Its place in the one sequence: the order of delivery.
    pub seq: Seq,
    /// The app.
    pub app: AppKey,
    /// The message.
    pub message: MessageId,
    /// The router's name for it.
    pub id: BatchId,
    /// The sender's label, or empty.
    pub job_key: Arc<str>,
    /// When it was accepted.
    pub accepted_at: Millis,
    /// No delivery at or after this time.
    pub expires_at: Millis,
    /// Retention 0.
    pub online_only: bool,
    /// It was pending at a recovery: everything goes out as redelivered.
    pub recovered: bool,
    /// Where its message's push record is: its home.
    pub(super) home: MessageKey,
    /// The only accepted target, so that its end needs no look into the journal.
    pub(super) only: Option<DeviceKey>,
    /// Where its newest whole record is in the journal (segment, offset), packed; changed when the record is copied.
    pub(super) place: AtomicU64,
    /// Bytes of that record.
    pub(super) bytes: AtomicU32,
    /// Entries still pending, as its home part counts them.
    pub(super) live: AtomicU32,
    /// Its record can't be read.
    pub(super) damaged: AtomicBool,
    /// Since when reads of its record fail; 0: they don't.
    pub(super) unreadable_since: AtomicU64,
    /// The encoded push, while it is in memory.
    pub(super) body: RwLock<Option<Arc<[u8]>>>,
    /// Which messages it goes ahead of.
    pub priority: Priority,
    /// It takes the place of older messages with this key, unless that is empty.
    pub(super) collapse_key: Box<str>,
    /// Bytes of the encoded push.
    pub(super) body_bytes: u32,
    /// Its message was taken back: no session gets it any more.
    pub(super) revoked: AtomicBool,
}

impl Batch {
    /// Where its newest whole record is.
    pub(super) fn place(&self) -> Place {
        step();
        Place::unpack(self.place.load(Ordering::Acquire))
    }

    /// It was copied.
    pub(super) fn moved_to(&self, place: Place, bytes: u32) {
        self.place.store(place.pack(), Ordering::Release);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether entries of it are pending.
    pub fn is_live(&self) -> bool {
        step();
        self.live.load(Ordering::Relaxed) > 0
    }

    /// One of which nothing is pending.
    #[cfg(test)]
    pub(crate) fn of_test(seq: Seq, message: MessageId, now: Millis) -> Self {
        let app = AppKey::parse("app").expect("valid");
        Self {
            seq,
            home: MessageKey::of(&app, message),
            app,
            message,
            id: BatchId::parse("b").expect("valid"),
            job_key: "".into(),
            accepted_at: now,
            expires_at: now + limits::RETENTION_MS,
            online_only: false,
            recovered: false,
            only: None,
            place: AtomicU64::new(0),
            bytes: AtomicU32::new(0),
            live: AtomicU32::new(0),
            damaged: AtomicBool::new(false),
            unreadable_since: AtomicU64::new(0),
            body: RwLock::new(None),
            priority: Priority::Normal,
            collapse_key: "".into(),
            body_bytes: 0,
            revoked: AtomicBool::new(false),
        }
    }

    /// Its record is looked for where another one's is.
    #[cfg(test)]
    pub(super) fn misplace(&self, other: &Self) {
        self.moved_to(other.place(), self.bytes.load(Ordering::Relaxed));
    }

    /// So many entries of it are pending.
    #[cfg(test)]
    pub(crate) fn count_live(&self, entries: u32) {
        self.live.store(entries, Ordering::Relaxed);
    }

    /// Its record can't be read. Whether that is how it will stay: what is there is no record, or reads have failed for long. An error of the
    /// disk alone may pass.
    pub(super) fn is_given_up(&self, error: &ReadError, now: Millis) -> bool {
        let ReadError::Io(why) = error else { return true };
        if why.kind() == io::ErrorKind::UnexpectedEof || fault::is(Fault::GiveUpAtOnce) {
            return true;
        }
        let begun =
            self.unreadable_since.compare_exchange(0, now.max(1), Ordering::Relaxed, Ordering::Relaxed);
        let since = begun.map_or_else(|since| since, |_| now);
        if begun.is_ok() {
            tracing::warn!(
                app = %self.app, message = %self.message, sequence = %self.seq, error = %why,
                "the record of a batch can't be read; it is tried again for a minute"
            );
        }
        now.saturating_sub(since) >= limits::UNREADABLE_MS
    }

    /// Its record was read.
    pub(super) fn was_read(&self) {
        self.unreadable_since.store(0, Ordering::Relaxed);
    }

    /// Whether its message was taken back.
    pub fn is_revoked(&self) -> bool {
        step();
        self.revoked.load(Ordering::Relaxed)
    }

    /// Its message was taken back.
    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    /// The body, if it is in memory.
    pub(super) fn body(&self) -> Option<Arc<[u8]>> {
        step();
        self.body.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the body in, or takes it out; says how many bytes were there before.
    pub(super) fn set_body(&self, body: Option<Arc<[u8]>>) -> usize {
        step();
        let before = std::mem::replace(&mut *self.body.write().unwrap_or_else(PoisonError::into_inner), body);
        before.map_or(0, |body| body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_disk_may_pass_for_a_minute_and_nothing_else_may() {
        let batch = || Batch::of_test(Seq(1), MessageId(1), 0);
        let io = |kind: io::ErrorKind| ReadError::Io(kind.into());
        let place = Place { segment: 1, offset: 40 };
        for error in [ReadError::Gone, ReadError::Damaged(place), io(io::ErrorKind::UnexpectedEof)] {
            assert!(batch().is_given_up(&error, 5), "{error}");
        }
        let (batch, error) = (batch(), io(io::ErrorKind::Other));
        let given_up = |now| batch.is_given_up(&error, now);
        assert_eq!([5, 6, 5 + limits::UNREADABLE_MS - 1].map(given_up), [false; 3]);
        assert!(given_up(5 + limits::UNREADABLE_MS));
        batch.was_read();
        let again = 10 * limits::UNREADABLE_MS;
        assert!(!given_up(again) && !given_up(again + limits::UNREADABLE_MS - 1), "it was read meanwhile");
        assert!(given_up(again + limits::UNREADABLE_MS));
    }
}
