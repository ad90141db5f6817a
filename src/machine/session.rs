//! One authenticated session: a cursor that drains its device's pending list within a window.
//!
//! Invariants: at most [`limits::WINDOW`] entries are in the window, which both priorities share, at most [`limits::OVERDUE`] watched beside it;
//! first transmissions of one priority follow the list's order, and high ones go ahead of normal ones not yet sent; an entry is sent again at most once on one session; Acks come numbered from 1 without gaps.
//! An entry that is not acknowledged within `ack_deadline` leaves the window, so that it blocks nothing, and is sent again once, marked;
//! whatever is left is the next session's. Time is an argument, I/O is the shard's.

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
    first_sent: Millis,
    deadline: Millis,
    overdue: bool,
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

/// A session's state. An idle one owns no memory outside itself.
#[derive(Debug)]
pub struct Session<E> {
    in_flight: Vec<InFlight<E>>,
    /// Everything up to here was pulled.
    cursor: Reached,
    /// The newest Ack read; the next is one more.
    acks_read: u64,
    acks_confirmed: u64,
    last_read: Millis,
    heartbeat_s: u32,
    in_window: u16,
    /// There may be entries behind the cursor.
    newer: bool,
    /// What is in flight is unacknowledged for so long that the device may be gone.
    suspect: bool,
}

impl<E: Entry> Session<E> {
    /// A session that begins now, with everything pending still to come.
    pub fn new(now: Millis, heartbeat_s: u32) -> Self {
        Self {
            in_flight: Vec::new(),
            cursor: Reached::START,
            acks_read: 0,
            acks_confirmed: 0,
            last_read: now,
            heartbeat_s,
            in_window: 0,
            newer: !fault::is(Fault::ForgetPending),
            suspect: false,
        }
    }

    /// Bytes came from the device.
    pub fn handle_read(&mut self, now: Millis) {
        self.last_read = now;
    }

    /// When bytes last came.
    pub fn last_read(&self) -> Millis {
        self.last_read
    }

    /// When the device becomes suspect: nothing came for so long since a push was written that is not acknowledged. `None`: nothing is in flight,
    /// or it is suspect already.
    pub fn suspect_at(&self, patience_ms: u64) -> Option<Millis> {
        let oldest = self.in_flight.iter().map(|f| f.first_sent).min().filter(|_| !self.suspect)?;
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
        self.in_flight.push(InFlight {
            entry,
            first_sent: now,
            deadline: now + ack_deadline_ms,
            overdue: false,
        });
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
        events: Vec<(MessageId, Event, Millis)>,
    ) -> Result<Vec<Acked>, DeviceError> {
        if number != self.acks_read + 1 {
            return Err(DeviceError::Malformed("Acks are numbered from 1 without gaps"));
        }
        self.acks_read = number;
        let before =
            if fault::is(Fault::AckCumulatively) { self.accepted_before(&events) } else { Vec::new() };
        let acked = events
            .into_iter()
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
        before.map(|f| (f.entry.message(), Event::Arrive, f.first_sent)).collect()
    }

    /// When a message that is in flight was accepted.
    pub fn accepted_at(&self, message: MessageId) -> Option<Millis> {
        self.in_flight.iter().find(|f| f.entry.message() == message).map(|f| f.entry.accepted_at())
    }

    /// An entry in flight, and when it was last written.
    pub fn last_sent(&self, seq: Seq, ack_deadline_ms: u64) -> Option<(&E, Millis)> {
        let f = self.in_flight.iter().find(|f| f.entry.seq() == seq)?;
        let last = if f.overdue { f.deadline.saturating_sub(ack_deadline_ms) } else { f.first_sent };
        Some((&f.entry, last))
    }

    /// Removes a message from the window (any event implies arrive); when it was first written.
    fn settle(&mut self, message: MessageId) -> Option<Millis> {
        let at = self.in_flight.iter().position(|f| f.entry.message() == message)?;
        let settled = self.in_flight.remove(at);
        if !settled.overdue {
            self.in_window -= 1;
        }
        Some(settled.first_sent)
    }

    /// The entry ended without the device's doing.
    pub fn handle_ended(&mut self, seq: Seq) {
        if let Some(at) = self.in_flight.iter().position(|f| f.entry.seq() == seq) {
            let ended = self.in_flight.remove(at);
            if !ended.overdue {
                self.in_window -= 1;
            }
            self.release();
        }
    }

    fn release(&mut self) {
        if self.in_flight.is_empty() {
            self.in_flight = Vec::new();
        }
    }

    /// The Ack of this number is durable. Whether the device is to be told.
    pub fn handle_confirmed(&mut self, number: u64) -> bool {
        let newer = number > self.acks_confirmed && number <= self.acks_read;
        if newer {
            self.acks_confirmed = number;
        }
        newer
    }

    /// Whether so many Acks wait for their confirmation that reading has to pause.
    pub fn is_behind_on_acks(&self) -> bool {
        self.acks_read - self.acks_confirmed >= limits::UNCONFIRMED_ACKS
    }

    /// When the device counts as gone if nothing is read before: 1.5 heartbeats and 10 s.
    pub fn silent_at(&self) -> Millis {
        self.last_read + u64::from(self.heartbeat_s) * 1_500 + 10_000
    }

    /// When to call [`Session::poll_overdue`]; `None`: nothing is in flight.
    pub fn overdue_at(&self) -> Option<Millis> {
        self.in_flight.iter().map(|f| f.deadline).min()
    }

    /// The entry that [`Session::poll_overdue`] would say to send again.
    pub fn peek_again(&self, now: Millis) -> Option<&E> {
        let next = self.in_flight.iter().find(|f| f.deadline <= now && !f.overdue)?;
        (!next.entry.online_only() && next.entry.expires_at() > now).then_some(&next.entry)
    }

    /// The next entry whose acknowledgement is overdue. Call until it says `None`.
    pub fn poll_overdue(&mut self, now: Millis, ack_deadline_ms: u64) -> Option<Overdue<E>> {
        loop {
            let at = self.in_flight.iter().position(|f| f.deadline <= now)?;
            if self.in_flight[at].overdue {
                // Sent twice on this session: the rest is the next one's.
                self.in_flight.remove(at);
                self.release();
                continue;
            }
            self.in_window -= 1;
            let overdue = self.in_flight.len() - usize::from(self.in_window) - 1;
            let f = &mut self.in_flight[at];
            let (entry, first_sent) = (f.entry.clone(), f.first_sent);
            if entry.online_only() || entry.expires_at() <= now || overdue >= limits::OVERDUE {
                self.in_flight.remove(at);
                self.release();
                return Some(Overdue::Report { entry, first_sent });
            }
            f.overdue = true;
            f.deadline = now + ack_deadline_ms;
            return Some(Overdue::SendAgain { entry, first_sent });
        }
    }

    /// The session has ended. What it wrote and nobody acknowledged or reported: when it was first written, and when it is overdue.
    pub fn handle_end(&mut self) -> impl Iterator<Item = (E, Millis, Millis)> {
        self.in_window = 0;
        let left = std::mem::take(&mut self.in_flight).into_iter();
        left.filter(|f| !f.overdue).map(|f| (f.entry, f.first_sent, f.deadline))
    }

    /// Entries written and neither acknowledged nor given up.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What must hold after every call.
    #[cfg(test)]
    fn check(&self) {
        let in_window = self.in_flight.iter().filter(|f| !f.overdue).count();
        assert_eq!(in_window, usize::from(self.in_window));
        assert!(in_window <= limits::WINDOW);
        assert!(self.in_flight.len() - in_window <= limits::OVERDUE + 1);
        assert!(self.acks_confirmed <= self.acks_read);
    }
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Fake {
        seq: u64,
        expires_at: Millis,
        priority: Priority,
    }

    fn fake(seq: u64, expires_at: Millis) -> Fake {
        Fake { seq, expires_at, priority: Priority::Normal }
    }

    impl Entry for Fake {
        fn seq(&self) -> Seq {
            Seq(self.seq)
        }
        fn message(&self) -> MessageId {
            MessageId(self.seq * 10)
        }
        fn expires_at(&self) -> Millis {
            self.expires_at
        }
        fn online_only(&self) -> bool {
            false
        }
        fn accepted_at(&self) -> Millis {
            0
        }
        fn priority(&self) -> Priority {
            self.priority
        }
    }

    const ACK_MS: u64 = 30_000;

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(usize),
        Publish(u8, u8),
        Pass(u64),
        End(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..40).prop_map(Step::Arrive),
            (0u8..40, 0u8..10).prop_map(|(normal, high)| Step::Publish(normal, high)),
            (0u64..40_000).prop_map(Step::Pass),
            (0usize..40).prop_map(Step::End),
        ];
        proptest::collection::vec(step, 1..80)
    }

    /// A device's list and what was written, kept as simply as possible.
    struct Model {
        pending: BTreeMap<u64, Fake>,
        /// What was written, and whether again.
        sent: Vec<(Fake, bool)>,
        session: Session<Fake>,
        now: Millis,
    }

    impl Model {
        fn pump(&mut self) {
            loop {
                let max = self.session.poll_pull(0, limits::OUTBOX_BYTES);
                let after = self.session.cursor();
                let behind = |f: &Fake, priority| f.priority == priority && Seq(f.seq) > after.of(priority);
                let high = self.pending.values().filter(|f| behind(f, Priority::High));
                let normal = self.pending.values().filter(|f| behind(f, Priority::Normal));
                let got: Vec<Fake> = high.chain(normal).copied().take(max).collect();
                for f in &got {
                    self.session.handle_sent(self.now, ACK_MS, *f);
                    self.check_order(f);
                    self.sent.push((*f, false));
                }
                if max == 0 {
                    break;
                }
                if got.len() < max {
                    self.session.handle_drained();
                }
            }
            self.session.check();
        }

        fn is_sent(&self, f: &Fake) -> bool {
            self.sent.iter().any(|(sent, _)| sent.seq == f.seq)
        }

        /// Whatever goes before the one that is written now was written.
        fn check_order(&self, now: &Fake) {
            let ahead =
                |f: &Fake| (f.priority == now.priority && f.seq < now.seq) || f.priority > now.priority;
            assert!(self.pending.values().filter(|f| ahead(f)).all(|f| self.is_sent(f)), "{now:?}");
        }
    }

    proptest! {
        /// First transmissions are in order, high ones go ahead of normal ones not yet sent, nothing is sent more than twice on a session, and everything pending is sent as soon as the
        /// window allows, whatever is acknowledged, ends, or stays silent.
        #[test]
        fn a_session_drains_its_list_in_order(steps in steps()) {
            let mut m = Model {
                pending: BTreeMap::new(), sent: Vec::new(), session: Session::new(0, 240), now: 0,
            };
            let (mut next, mut acks) = (1u64, 0u64);
            for step in steps {
                match step {
                    Step::Publish(normal, high) => {
                        for n in 0..normal + high {
                            let priority = if n < normal { Priority::Normal } else { Priority::High };
                            m.pending.insert(next, Fake { seq: next, expires_at: u64::MAX, priority });
                            next += 1;
                        }
                        m.session.handle_newer();
                    }
                    Step::Arrive(i) => {
                        if let Some((Fake { seq, .. }, _)) = m.sent.get(i).copied() {
                            acks += 1;
                            m.pending.remove(&seq);
                            let event = (MessageId(seq * 10), Event::Arrive, m.now);
                            prop_assert!(m.session.handle_ack(acks, vec![event]).is_ok());
                            prop_assert!(m.session.handle_confirmed(acks));
                        }
                    }
                    Step::End(i) => {
                        if let Some((Fake { seq, .. }, _)) = m.sent.get(i).copied() {
                            m.pending.remove(&seq);
                            m.session.handle_ended(Seq(seq));
                        }
                    }
                    Step::Pass(ms) => {
                        m.now += ms;
                        while let Some(overdue) = m.session.poll_overdue(m.now, ACK_MS) {
                            if let Overdue::SendAgain { entry, first_sent } = overdue {
                                prop_assert!(m.now - first_sent >= ACK_MS);
                                m.sent.push((entry, true));
                            }
                        }
                    }
                }
                m.pump();
                for priority in [Priority::Normal, Priority::High] {
                    let of = m.sent.iter().filter(|(f, again)| f.priority == priority && !again);
                    let first: Vec<u64> = of.map(|(f, _)| f.seq).collect();
                    prop_assert!(first.is_sorted_by(|a, b| a < b));
                }
                let again: Vec<u64> = m.sent.iter().filter(|s| s.1).map(|s| s.0.seq).collect();
                prop_assert_eq!(again.len(), again.iter().collect::<BTreeSet<_>>().len());
                let unsent = m.pending.values().any(|f| !m.is_sent(f));
                prop_assert!(!unsent || usize::from(m.session.in_window) == limits::WINDOW);
            }
        }
    }

    #[test]
    fn an_ack_out_of_number_is_refused_and_confirms_only_grow() {
        let mut session = Session::<Fake>::new(0, 240);
        let event = vec![(MessageId(1), Event::Arrive, 0)];
        assert!(session.handle_ack(2, event.clone()).is_err());
        assert!(session.handle_ack(1, event.clone()).is_ok());
        assert!(session.handle_ack(1, event.clone()).is_err());
        assert!(session.handle_ack(2, event).is_ok());
        assert!(!session.handle_confirmed(3), "never read");
        assert!(session.handle_confirmed(2));
        assert!(!session.handle_confirmed(1), "already covered");
    }

    #[test]
    fn a_session_that_ends_leaves_what_was_not_reported() {
        let mut session = Session::<Fake>::new(0, 240);
        for seq in 1..=3 {
            session.handle_sent(seq * 1_000, ACK_MS, fake(seq, u64::MAX));
        }
        assert!(session.handle_ack(1, vec![(MessageId(20), Event::Arrive, 0)]).is_ok());
        assert!(matches!(session.poll_overdue(ACK_MS + 1_000, ACK_MS), Some(Overdue::SendAgain { .. })));
        let left: Vec<_> = session.handle_end().map(|(f, sent, due)| (f.seq, sent, due)).collect();
        assert_eq!(left, [(3, 3_000, ACK_MS + 3_000)], "one was acknowledged, one reported");
        assert_eq!((session.in_flight(), session.handle_end().count()), (0, 0));
        session.check();
    }

    #[test]
    fn what_the_edge_sends_does_not_keep_a_dead_peer_alive() {
        let mut session = Session::<Fake>::new(0, 100);
        session.handle_sent(100_000, ACK_MS, fake(1, u64::MAX));
        assert_eq!(session.silent_at(), 160_000);
        session.handle_read(1_000);
        assert_eq!(session.silent_at(), 161_000);
    }

    #[test]
    fn a_device_is_suspect_when_nothing_comes_after_a_push() {
        const PATIENCE_MS: u64 = 10_000;
        let mut session = Session::<Fake>::new(0, 240);
        assert_eq!(session.suspect_at(PATIENCE_MS), None, "nothing is in flight");
        for seq in 1..=2 {
            session.handle_sent(seq * 1_000, ACK_MS, fake(seq, u64::MAX));
        }
        assert_eq!(session.suspect_at(PATIENCE_MS), Some(11_000));
        session.handle_read(5_000);
        assert_eq!(session.suspect_at(PATIENCE_MS), Some(15_000), "it was there then");
        session.handle_suspect(true);
        assert_eq!((session.suspect_at(PATIENCE_MS), session.is_suspect()), (None, true));
        session.handle_suspect(false);
        let acks = [1, 2].map(|seq| (MessageId(seq * 10), Event::Arrive, 0));
        assert!(session.handle_ack(1, acks.to_vec()).is_ok());
        assert_eq!(session.suspect_at(PATIENCE_MS), None, "all is acknowledged");
    }

    #[test]
    fn an_expired_entry_is_not_sent_again() {
        let mut session = Session::<Fake>::new(0, 240);
        session.handle_sent(0, ACK_MS, fake(1, 20_000));
        assert!(matches!(session.poll_overdue(ACK_MS, ACK_MS), Some(Overdue::Report { .. })));
        assert_eq!((session.poll_overdue(ACK_MS, ACK_MS), session.in_flight()), (None, 0));
    }
}
