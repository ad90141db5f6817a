//! What waits to be written to one connection, in the order of the wire (encrypted, under TLS). Almost always nothing: then it is one word.
//!
//! Invariants: its size is the pump's and the reader's to bound (`limits::OUTBOX_BYTES`, one frame may go over); since when it
//! stands still is known, and until when everything in it may be written: an expired message never is.

use crate::fault::{self, Fault};
use crate::push::Millis;
use crate::telemetry::{self, Gauge};

/// Bytes that the socket didn't take.
#[derive(Default)]
pub(super) struct Outbox(Option<Box<Waiting>>);

struct Waiting {
    bytes: Vec<u8>,
    /// When the first of them came.
    since: Millis,
    /// When the first of them came, or some were written last.
    moved_at: Millis,
    /// The earliest expiry of the pushes among them.
    expires_at: Millis,
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.bytes.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |waiting| &waiting.bytes)
    }

    /// Bytes that go behind the others.
    pub(super) fn push(&mut self, now: Millis, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let waiting = self.0.get_or_insert_with(|| {
            telemetry::adjust(Gauge::Outboxes, 1);
            Box::new(Waiting { bytes: Vec::new(), since: now, moved_at: now, expires_at: Millis::MAX })
        });
        waiting.bytes.extend_from_slice(bytes);
        telemetry::adjust(Gauge::OutboxBytes, bytes.len() as i64);
    }

    /// So many were written.
    pub(super) fn written(&mut self, now: Millis, count: usize) {
        let Some(waiting) = &mut self.0 else { return };
        if count == waiting.bytes.len() {
            self.clear();
        } else if count > 0 {
            waiting.bytes.drain(..count);
            waiting.moved_at = now;
            telemetry::adjust(Gauge::OutboxBytes, -(count as i64));
        }
    }

    /// Pushes that expire then may be among the bytes.
    pub(super) fn expires(&mut self, at: Millis) {
        if let Some(waiting) = &mut self.0 {
            waiting.expires_at = waiting.expires_at.min(at);
        }
    }

    /// Something in it has expired: none of it may be written any more, as frames can't be taken out of a stream of bytes.
    pub(super) fn is_expired(&self, now: Millis) -> bool {
        self.0.as_ref().is_some_and(|waiting| waiting.expires_at <= now) && !fault::is(Fault::WriteExpired)
    }

    /// Whether what was sent at this time, or some of it, may wait in it.
    pub(super) fn may_hold(&self, sent_at: Millis) -> bool {
        self.0.as_ref().is_some_and(|waiting| waiting.since <= sent_at)
    }

    /// Since when it stands still; `None`: it is empty.
    pub(super) fn still_since(&self) -> Option<Millis> {
        self.0.as_ref().map(|waiting| waiting.moved_at)
    }

    fn clear(&mut self) {
        if let Some(waiting) = self.0.take() {
            telemetry::adjust(Gauge::Outboxes, -1);
            telemetry::adjust(Gauge::OutboxBytes, -(waiting.bytes.len() as i64));
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_since_when_it_stands_still_and_until_when_it_may_be_written() {
        let mut outbox = Outbox::default();
        outbox.expires(5);
        assert!(outbox.is_empty() && !outbox.is_expired(Millis::MAX) && outbox.still_since().is_none());
        outbox.push(10, b"abc");
        outbox.expires(100);
        outbox.push(20, b"def");
        outbox.expires(200);
        assert_eq!((outbox.bytes(), outbox.still_since()), (&b"abcdef"[..], Some(10)));
        outbox.written(30, 2);
        assert_eq!((outbox.bytes(), outbox.still_since()), (&b"cdef"[..], Some(30)));
        assert!(!outbox.is_expired(99) && outbox.is_expired(100));
        outbox.written(40, 4);
        assert!(outbox.is_empty() && !outbox.is_expired(Millis::MAX));
        outbox.push(50, b"g");
        assert!(!outbox.is_expired(1_000), "of earlier bytes nothing is left");
        assert!(outbox.may_hold(50) && !outbox.may_hold(49));
    }

    #[test]
    fn an_idle_one_is_a_word() {
        assert_eq!(size_of::<Outbox>(), size_of::<usize>());
    }
}
