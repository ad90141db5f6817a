//! A session against a list kept as simply as possible, whatever order things come in.

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
        let ahead = |f: &Fake| (f.priority == now.priority && f.seq < now.seq) || f.priority > now.priority;
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
                        m.session.handle_confirmed(acks);
                        prop_assert_eq!(m.session.poll_confirm(), Some(acks));
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
    session.handle_confirmed(3);
    assert_eq!(session.poll_confirm(), None, "never read");
    session.handle_confirmed(2);
    assert_eq!(session.poll_confirm(), Some(2));
    session.handle_confirmed(1);
    assert_eq!(session.poll_confirm(), None, "already covered");
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
    assert!(session.handle_ack(1, acks).is_ok());
    assert_eq!(session.suspect_at(PATIENCE_MS), None, "all is acknowledged");
}

#[test]
fn an_expired_entry_is_not_sent_again() {
    let mut session = Session::<Fake>::new(0, 240);
    session.handle_sent(0, ACK_MS, fake(1, 20_000));
    assert!(matches!(session.poll_overdue(ACK_MS, ACK_MS), Some(Overdue::Report { .. })));
    assert_eq!((session.poll_overdue(ACK_MS, ACK_MS), session.in_flight()), (None, 0));
}
