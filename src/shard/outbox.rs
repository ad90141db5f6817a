//! What waits to be written to one connection, in the order of the wire (encrypted, under TLS). Almost always nothing: then it is one word.
//!
//! Invariants: its size is the pump's and the reader's to bound (`limits::OUTBOX_BYTES`, one frame may go over); since when it
//! stands still is known, and until when everything in it may be written: an expired message never is.

use std::rc::Rc;

use super::memory::Tally;
use crate::fault::{self, Fault};
use crate::push::Millis;

/// An outbox grows by so many bytes.
const STEP: usize = 4_096;

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
    /// What it takes in memory, as `tally` has it.
    counted: usize,
    /// Of that, what is not `bytes`.
    beside: usize,
    tally: Rc<Tally>,
}

impl Waiting {
    /// Counts what it takes now.
    fn count(&mut self) {
        let now = self.beside + self.bytes.capacity();
        let sum = &self.tally.bytes;
        sum.set(sum.get() + now - self.counted);
        self.counted = now;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.tally.outboxes.set(self.tally.outboxes.get() - 1);
        self.tally.bytes.set(self.tally.bytes.get() - self.counted);
    }
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.bytes.len())
    }

    /// What it takes in memory, and what is kept beside it.
    #[cfg(feature = "sim")]
    pub(super) fn memory(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.beside + waiting.bytes.capacity())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |waiting| &waiting.bytes)
    }

    /// Bytes that go behind the others. As long as some wait, `beside` more are taken elsewhere.
    pub(super) fn push(&mut self, tally: &Rc<Tally>, beside: usize, now: Millis, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let waiting = self.0.get_or_insert_with(|| {
            tally.outboxes.set(tally.outboxes.get() + 1);
            Box::new(Waiting {
                bytes: Vec::new(),
                since: now,
                moved_at: now,
                expires_at: Millis::MAX,
                counted: 0,
                beside: beside + size_of::<Waiting>(),
                tally: tally.clone(),
            })
        });
        let wanted = waiting.bytes.len() + bytes.len();
        if wanted > waiting.bytes.capacity() {
            // Not twice as much as is there, as a vector would: outboxes are many when memory is short.
            waiting.bytes.reserve_exact(wanted.next_multiple_of(STEP) - waiting.bytes.len());
        }
        waiting.bytes.extend_from_slice(bytes);
        waiting.count();
    }

    /// So many were written.
    pub(super) fn written(&mut self, now: Millis, count: usize) {
        let Some(waiting) = &mut self.0 else { return };
        if count == waiting.bytes.len() {
            self.0 = None;
        } else if count > 0 {
            waiting.bytes.drain(..count);
            waiting.moved_at = now;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_since_when_it_stands_still_and_until_when_it_may_be_written() {
        let tally = Rc::new(Tally::default());
        let mut outbox = Outbox::default();
        outbox.expires(5);
        assert!(outbox.is_empty() && !outbox.is_expired(Millis::MAX) && outbox.still_since().is_none());
        outbox.push(&tally, 0, 10, b"abc");
        outbox.expires(100);
        outbox.push(&tally, 0, 20, b"def");
        outbox.expires(200);
        assert_eq!((outbox.bytes(), outbox.still_since()), (&b"abcdef"[..], Some(10)));
        outbox.written(30, 2);
        assert_eq!((outbox.bytes(), outbox.still_since()), (&b"cdef"[..], Some(30)));
        assert!(!outbox.is_expired(99) && outbox.is_expired(100));
        outbox.written(40, 4);
        assert!(outbox.is_empty() && !outbox.is_expired(Millis::MAX));
        outbox.push(&tally, 0, 50, b"g");
        assert!(!outbox.is_expired(1_000), "of earlier bytes nothing is left");
        assert!(outbox.may_hold(50) && !outbox.may_hold(49));
    }

    #[test]
    fn what_it_takes_is_counted_and_given_back() {
        let tally = Rc::new(Tally::default());
        let told = || (tally.outboxes.get(), tally.bytes.get());
        let (mut one, mut other) = (Outbox::default(), Outbox::default());
        one.push(&tally, 0, 1, &[0; 100]);
        let alone = told().1;
        assert!(told().0 == 1 && (STEP..STEP + 200).contains(&alone));
        other.push(&tally, 16_384, 1, &[0; 100]);
        assert_eq!(told(), (2, 2 * alone + 16_384));
        one.push(&tally, 0, 2, &[0; 10_000]);
        assert!(told().1 > alone + 10_000 + 16_384);
        one.written(3, 10_000);
        assert!(told().0 == 2 && one.len() == 100);
        one.written(3, 100);
        assert_eq!(told(), (1, alone + 16_384));
        drop(other);
        assert_eq!(told(), (0, 0));
    }

    #[test]
    fn an_idle_one_is_a_word() {
        assert_eq!(size_of::<Outbox>(), size_of::<usize>());
    }
}
