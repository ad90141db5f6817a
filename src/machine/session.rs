//! One authenticated session: a cursor that drains its device's pending list within a window.
//!
//! Invariants: at most [`limits::WINDOW`] entries are in the window, which both priorities share, at most [`limits::OVERDUE`] watched beside it;
//! first transmissions of one priority follow the list's order, and high ones go ahead of normal ones not yet sent; an entry is sent again at most once on one session; Acks come numbered from 1 without gaps,
//! and at most [`limits::UNTOLD_ACKS`] of them are durable without the device knowing.
//! An entry that is not acknowledged within `ack_deadline` leaves the window, so that it blocks nothing, and is sent again once, marked;
//! whatever is left is the next session's. Time is an argument, I/O is the shard's.

use smallvec::SmallVec;

use crate::error::DeviceError;
use crate::fault::{self, Fault};
use crate::ids::{MessageId, Seq};
use crate::limits;
use crate::push::{Acked, Event, Millis, Priority, Reached};

/// What a session needs to know of an entry.
pub trait Entry: Clone {
    /// Orders the list.
    fn seq(&self) -> Seq;
    /// What the device acknowledges.
    fn message(&self) -> MessageId;
    /// No delivery at or after this time.
    fn expires_at(&self) -> Millis;
    /// Retention 0: never sent twice.
    fn online_only(&self) -> bool;
    /// When it was accepted.
    fn accepted_at(&self) -> Millis;
    /// Which entries it goes ahead of.
    fn priority(&self) -> Priority;
}

#[derive(Clone, Debug)]
struct InFlight<E> {
    entry: E,
    times: Times,
}

/// When an entry was first written, and until when its acknowledgement is waited for: 42 bits of milliseconds, which last until the year 2109, a flag,
/// and 21 bits of milliseconds from then on, which are half an hour, where deadlines are ten minutes at most.
#[derive(Clone, Copy, Debug)]
struct Times(u64);

const PATIENCE_BITS: u32 = 21;
const OVERDUE: u64 = 1 << PATIENCE_BITS;
const SENT_BITS: u32 = u64::BITS - PATIENCE_BITS - 1;

impl Times {
    fn new(first_sent: Millis, patience: u64) -> Self {
        Self(first_sent.min((1 << SENT_BITS) - 1) << (PATIENCE_BITS + 1) | patience.min(OVERDUE - 1))
    }
}

impl<E> InFlight<E> {
    fn new(entry: E, first_sent: Millis, patience: u64) -> Self {
        Self { entry, times: Times::new(first_sent, patience) }
    }

    fn first_sent(&self) -> Millis {
        self.times.0 >> (PATIENCE_BITS + 1)
    }

    fn is_overdue(&self) -> bool {
        self.times.0 & OVERDUE != 0
    }

    fn deadline(&self) -> Millis {
        self.first_sent() + (self.times.0 & (OVERDUE - 1))
    }

    /// It is overdue, and is waited for until then.
    fn wait_again(&mut self, deadline: Millis) {
        let first_sent = self.first_sent();
        self.times = Times(Times::new(first_sent, deadline.saturating_sub(first_sent)).0 | OVERDUE);
    }
}

/// What to do about an entry that was not acknowledged in time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Overdue<E> {
    /// Report `sent` on its own, and send it again, marked.
    SendAgain {
        /// The entry.
        entry: E,
        /// When it was first written.
        first_sent: Millis,
    },
    /// Report `sent` on its own only: it expired, is online-only, or too many are overdue.
    Report {
        /// The entry.
        entry: E,
        /// When it was first written.
        first_sent: Millis,
    },
}

/// A session's state: 64 bytes. An idle one owns no memory outside itself, nor does one with a single push in flight.
#[derive(Debug)]
pub struct Session<E> {
    in_flight: SmallVec<[InFlight<E>; 1]>,
    /// Everything up to here was pulled.
    cursor: Reached,
    last_read: Millis,
    /// The newest Ack read; the next is one more.
    acks_read: u32,
    /// So many of the newest ones aren't durable.
    unconfirmed: u16,
    /// So many of the newest durable ones the device was not told of.
    untold: u16,
    /// All but so many of the newest ones are told as soon as they are durable. May be more, where these were told long ago.
    unasked: u16,
    heartbeat_s: u16,
    in_window: u8,
    /// There may be entries behind the cursor.
    newer: bool,
    /// What is in flight is unacknowledged for so long that the device may be gone.
    suspect: bool,
}

impl<E: Entry> Session<E> {
    /// A session that begins now, with everything pending still to come.
    pub fn new(now: Millis, heartbeat_s: u32) -> Self {
        Self {
            in_flight: SmallVec::new(),
            cursor: Reached::START,
            acks_read: 0,
            unconfirmed: 0,
            untold: 0,
            unasked: 0,
            last_read: now,
            heartbeat_s: u16::try_from(heartbeat_s).unwrap_or(u16::MAX),
            in_window: 0,
            newer: !fault::is(Fault::ForgetPending),
            suspect: false,
        }
    }

    /// Bytes came from the device.
    pub fn handle_read(&mut self, now: Millis) {
        self.last_read = now;
    }

    /// The longest time between two signs of life that the device has promised, seconds.
    pub fn heartbeat_s(&self) -> u32 {
        self.heartbeat_s.into()
    }

    /// When bytes last came.
    pub fn last_read(&self) -> Millis {
        self.last_read
    }

    /// When the device becomes suspect: nothing came for so long since a push was written that is not acknowledged. `None`: nothing is in flight,
    /// or it is suspect already.
    pub fn suspect_at(&self, patience_ms: u64) -> Option<Millis> {
        let oldest = self.in_flight.iter().map(InFlight::first_sent).min().filter(|_| !self.suspect)?;
        Some(oldest.max(self.last_read) + patience_ms)
    }

    /// The device is suspect, or no longer.
    pub fn handle_suspect(&mut self, suspect: bool) {
        self.suspect = suspect;
    }

    /// Whether the device is suspect.
    pub fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// The list has something newer.
    pub fn handle_newer(&mut self) {
        self.newer = true;
    }

    /// Whether the list may have something newer.
    pub fn has_newer(&self) -> bool {
        self.newer
    }

    /// Where to pull from.
    pub fn cursor(&self) -> Reached {
        self.cursor
    }

    /// How many entries may be pulled now, when so many bytes of `most` wait to be written.
    pub fn poll_pull(&self, outbox_bytes: usize, most: usize) -> usize {
        if !self.newer || outbox_bytes >= most {
            return 0;
        }
        limits::WINDOW.saturating_sub(usize::from(self.in_window))
    }

    /// The entry was written to the connection.
    pub fn handle_sent(&mut self, now: Millis, ack_deadline_ms: u64, entry: E) {
        debug_assert!(
            entry.seq() > self.cursor.of(entry.priority()),
            "first transmissions follow the list's order"
        );
        debug_assert!(usize::from(self.in_window) < limits::WINDOW, "the window is bounded");
        self.cursor.pass(entry.priority(), entry.seq());
        self.in_window += 1;
        self.in_flight.push(InFlight::new(entry, now, ack_deadline_ms));
    }

    /// The entry is not for this session (it expired meanwhile, or the device has it already).
    pub fn handle_skipped(&mut self, entry: &E) {
        debug_assert!(entry.seq() > self.cursor.of(entry.priority()), "the cursor only grows");
        self.cursor.pass(entry.priority(), entry.seq());
    }

    /// Less came than was asked for: the list is drained until something newer is announced.
    pub fn handle_drained(&mut self) {
        self.newer = false;
    }

    /// An Ack frame. Adds when this session wrote what it acknowledges.
    pub fn handle_ack(
        &mut self,
        number: u64,
        events: impl AsRef<[(MessageId, Event, Millis)]>,
    ) -> Result<SmallVec<[Acked; 1]>, DeviceError> {
        let events = events.as_ref();
        // At the end of the numbers a device has to come again: with one Ack a second that is in 136 years.
        let next = self.acks_read.checked_add(1).filter(|next| u64::from(*next) == number);
        let Some(next) = next else {
            return Err(DeviceError::Malformed("Acks are numbered from 1 without gaps"));
        };
        self.acks_read = next;
        self.unconfirmed += 1;
        self.unasked = self.unasked.saturating_add(1);
        let before =
            if fault::is(Fault::AckCumulatively) { self.accepted_before(events) } else { Vec::new() };
        let acked = events
            .iter()
            .copied()
            .chain(before)
            .map(|(message, event, time)| {
                let sent_at = self.settle(message);
                Acked { message, event, time, sent_at }
            })
            .collect();
        self.release();
        Ok(acked)
    }

    /// What is in flight and was accepted before one of these: a mistake only.
    fn accepted_before(&self, events: &[(MessageId, Event, Millis)]) -> Vec<(MessageId, Event, Millis)> {
        let of_event = |f: &&InFlight<E>| events.iter().any(|(message, ..)| *message == f.entry.message());
        let newest = self.in_flight.iter().filter(of_event).map(|f| f.entry.seq()).max();
        let before = self.in_flight.iter().filter(|f| Some(f.entry.seq()) < newest);
        before.map(|f| (f.entry.message(), Event::Arrive, f.first_sent())).collect()
    }

    /// When a message that is in flight was accepted.
    pub fn accepted_at(&self, message: MessageId) -> Option<Millis> {
        self.in_flight.iter().find(|f| f.entry.message() == message).map(|f| f.entry.accepted_at())
    }

    /// What is in flight, each with when it was last written.
    pub fn written(&self, ack_deadline_ms: u64) -> impl Iterator<Item = (&E, Millis)> {
        self.in_flight.iter().map(move |f| {
            let again = f.is_overdue().then(|| f.deadline().saturating_sub(ack_deadline_ms));
            (&f.entry, again.unwrap_or(f.first_sent()))
        })
    }

    /// An entry in flight, and when it was last written.
    pub fn last_sent(&self, seq: Seq, ack_deadline_ms: u64) -> Option<(&E, Millis)> {
        self.written(ack_deadline_ms).find(|(entry, _)| entry.seq() == seq)
    }

    /// Removes a message from the window (any event implies arrive); when it was first written.
    fn settle(&mut self, message: MessageId) -> Option<Millis> {
        let at = self.in_flight.iter().position(|f| f.entry.message() == message)?;
        let settled = self.in_flight.remove(at);
        if !settled.is_overdue() {
            self.in_window -= 1;
        }
        Some(settled.first_sent())
    }

    /// The entry ended without the device's doing.
    pub fn handle_ended(&mut self, seq: Seq) {
        if let Some(at) = self.in_flight.iter().position(|f| f.entry.seq() == seq) {
            let ended = self.in_flight.remove(at);
            if !ended.is_overdue() {
                self.in_window -= 1;
            }
            self.release();
        }
    }

    fn release(&mut self) {
        if self.in_flight.is_empty() {
            self.in_flight = SmallVec::new();
        }
    }

    /// The Ack of this number is durable. Whether the device is to be told at once: it asked, or was not told of many. Else what is written to it
    /// next says so too, [`Session::poll_confirm`].
    pub fn handle_confirmed(&mut self, number: u64) -> bool {
        let confirmed = self.acks_confirmed();
        if number > confirmed && number <= u64::from(self.acks_read) {
            // No more than were read and not confirmed.
            self.untold += (number - confirmed) as u16;
            self.unconfirmed -= (number - confirmed) as u16;
        }
        let is_asked_for = self.untold > 0 && self.unasked < self.unconfirmed + self.untold;
        is_asked_for || u64::from(self.untold) >= limits::UNTOLD_ACKS
    }

    /// The device asks: whatever it has acknowledged so far is confirmed as soon as it is durable. Whether some of it isn't yet.
    pub fn handle_ping(&mut self) -> bool {
        self.unasked = 0;
        self.unconfirmed > 0
    }

    /// The newest durable Ack, if the device was not told of it; now it is.
    pub fn poll_confirm(&mut self) -> Option<u64> {
        (std::mem::take(&mut self.untold) > 0).then(|| self.acks_confirmed())
    }

    /// The newest durable Ack.
    fn acks_confirmed(&self) -> u64 {
        u64::from(self.acks_read) - u64::from(self.unconfirmed)
    }

    /// Whether so many Acks wait for their confirmation that reading has to pause.
    pub fn is_behind_on_acks(&self) -> bool {
        u64::from(self.unconfirmed) >= limits::UNCONFIRMED_ACKS
    }

    /// When the device counts as gone if nothing is read before: 1.5 heartbeats and 10 s.
    pub fn silent_at(&self) -> Millis {
        self.last_read + u64::from(self.heartbeat_s) * 1_500 + 10_000
    }

    /// When to call [`Session::poll_overdue`]; `None`: nothing is in flight.
    pub fn overdue_at(&self) -> Option<Millis> {
        self.in_flight.iter().map(InFlight::deadline).min()
    }

    /// The entry that [`Session::poll_overdue`] would say to send again.
    pub fn peek_again(&self, now: Millis) -> Option<&E> {
        let next = self.in_flight.iter().find(|f| f.deadline() <= now && !f.is_overdue())?;
        (!next.entry.online_only() && next.entry.expires_at() > now).then_some(&next.entry)
    }

    /// The next entry whose acknowledgement is overdue. Call until it says `None`.
    pub fn poll_overdue(&mut self, now: Millis, ack_deadline_ms: u64) -> Option<Overdue<E>> {
        loop {
            let at = self.in_flight.iter().position(|f| f.deadline() <= now)?;
            if self.in_flight[at].is_overdue() {
                // Sent twice on this session: the rest is the next one's.
                self.in_flight.remove(at);
                self.release();
                continue;
            }
            self.in_window -= 1;
            let overdue = self.in_flight.len() - usize::from(self.in_window) - 1;
            let f = &mut self.in_flight[at];
            let (entry, first_sent) = (f.entry.clone(), f.first_sent());
            if entry.online_only() || entry.expires_at() <= now || overdue >= limits::OVERDUE {
                self.in_flight.remove(at);
                self.release();
                return Some(Overdue::Report { entry, first_sent });
            }
            f.wait_again(now + ack_deadline_ms);
            return Some(Overdue::SendAgain { entry, first_sent });
        }
    }

    /// The session has ended. What it wrote and nobody acknowledged or reported: when it was first written, and when it is overdue.
    pub fn handle_end(&mut self) -> impl Iterator<Item = (E, Millis, Millis)> {
        self.in_window = 0;
        let left = std::mem::take(&mut self.in_flight).into_iter();
        left.filter(|f| !f.is_overdue()).map(|f| {
            let (first_sent, deadline) = (f.first_sent(), f.deadline());
            (f.entry, first_sent, deadline)
        })
    }

    /// Entries written and neither acknowledged nor given up.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What must hold after every call.
    #[cfg(test)]
    fn check(&self) {
        let in_window = self.in_flight.iter().filter(|f| !f.is_overdue()).count();
        assert_eq!(in_window, usize::from(self.in_window));
        assert!(in_window <= limits::WINDOW);
        assert!(self.in_flight.len() - in_window <= limits::OVERDUE + 1);
        assert!(u64::from(self.unconfirmed) + u64::from(self.untold) <= u64::from(self.acks_read));
        assert!(u32::from(self.unasked) <= self.acks_read);
    }
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests;
