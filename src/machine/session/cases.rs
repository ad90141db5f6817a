//! What a session answers, case by case: at a bound, just below it and just above.

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listed {
    seq: u64,
    expires_at: Millis,
    online_only: bool,
}

impl Entry for Listed {
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
        self.online_only
    }
    fn accepted_at(&self) -> Millis {
        self.seq * 7
    }
    fn priority(&self) -> Priority {
        Priority::Normal
    }
}

const ACK_MS: u64 = 30_000;

fn listed(seq: u64) -> Listed {
    Listed { seq, expires_at: Millis::MAX, online_only: false }
}

fn arrive(seq: u64) -> Vec<(MessageId, Event, Millis)> {
    vec![(MessageId(seq * 10), Event::Arrive, 0)]
}

/// With these entries written, each a second after the one before.
fn session(entries: &[Listed]) -> Session<Listed> {
    let mut session = Session::new(500, 240);
    for entry in entries {
        session.handle_sent(entry.seq * 1_000, ACK_MS, *entry);
    }
    session
}

#[test]
fn a_new_session_has_read_its_hello_and_is_not_suspect() {
    assert_eq!(session(&[]).heartbeat_s(), 240, "as it was promised");
    let mut session = session(&[]);
    assert_eq!((session.last_read(), session.is_suspect()), (500, false));
    session.handle_read(900);
    assert_eq!(session.last_read(), 900);
}

#[test]
fn what_was_skipped_is_not_pulled_again() {
    let mut session = session(&[listed(1)]);
    session.handle_skipped(&listed(4));
    assert_eq!(session.cursor().of(Priority::Normal), Seq(4));
    assert_eq!(session.in_flight(), 1, "it takes no place in the window");
}

#[test]
fn what_is_in_flight_says_when_it_was_accepted() {
    let session = session(&[listed(1), listed(2)]);
    assert_eq!(session.accepted_at(MessageId(20)), Some(14));
    assert_eq!(session.accepted_at(MessageId(30)), None);
}

#[test]
fn what_was_sent_again_was_last_sent_then() {
    let mut session = session(&[listed(1), listed(2)]);
    assert_eq!(session.last_sent(Seq(2), ACK_MS), Some((&listed(2), 2_000)));
    assert_eq!(session.last_sent(Seq(3), ACK_MS), None);
    let now = ACK_MS + 1_400;
    assert!(matches!(session.poll_overdue(now, ACK_MS), Some(Overdue::SendAgain { .. })));
    assert_eq!(session.last_sent(Seq(1), ACK_MS), Some((&listed(1), now)));
}

#[test]
fn what_ended_leaves_the_window_and_nothing_else_does() {
    let mut session = session(&[listed(1), listed(2)]);
    session.handle_ended(Seq(3));
    assert_eq!(session.in_flight(), 2, "it wasn't in flight");
    session.handle_ended(Seq(2));
    assert_eq!((session.in_flight(), session.poll_pull(0, limits::OUTBOX_BYTES)), (1, limits::WINDOW - 1));
    assert_eq!(session.accepted_at(MessageId(10)), Some(7), "the other one stays");
    session.check();
}

#[test]
fn a_session_with_one_push_in_flight_or_none_owns_no_memory() {
    assert!(!session(&[listed(1)]).in_flight.spilled());
    let mut all = session(&[listed(1), listed(2)]);
    assert!(all.handle_ack(1, arrive(1)).is_ok());
    assert!(all.in_flight.spilled());
    assert!(all.handle_ack(2, arrive(2)).is_ok());
    let mut ended = session(&[listed(1), listed(2)]);
    ended.handle_ended(Seq(1));
    ended.handle_ended(Seq(2));
    let once = |n| Listed { online_only: true, ..listed(n) };
    let mut given_up = session(&[once(1), once(2)]);
    for _ in 0..2 {
        assert!(matches!(given_up.poll_overdue(ACK_MS + 2_000, ACK_MS), Some(Overdue::Report { .. })));
    }
    for session in [all, ended, given_up] {
        assert!(!session.in_flight.spilled());
    }
}

/// Which has read so many Acks.
fn acked(numbers: u64) -> Session<Listed> {
    let mut session = session(&[]);
    for number in 1..=numbers {
        assert!(session.handle_ack(number, arrive(9)).is_ok());
    }
    session
}

#[test]
fn a_confirmation_waits_for_the_next_frame_and_is_told_once() {
    let mut session = acked(3);
    assert_eq!(session.poll_confirm(), None, "nothing is durable");
    assert!(!session.handle_confirmed(1) && !session.handle_confirmed(2), "it can wait");
    assert_eq!(session.poll_confirm(), Some(2), "the newest says it all");
    assert_eq!(session.poll_confirm(), None, "it was told");
    assert!(!session.handle_confirmed(2) && !session.handle_confirmed(4), "told, and never read");
    assert_eq!(session.poll_confirm(), None);
    session.check();
}

#[test]
fn who_asks_is_told_of_what_was_said_before_as_soon_as_it_is_durable() {
    let mut session = acked(3);
    assert!(!session.handle_confirmed(1));
    assert!(session.handle_ping(), "two are to come");
    assert_eq!(session.poll_confirm(), Some(1));
    assert!(!session.handle_confirmed(1), "it knows that");
    assert!(session.handle_confirmed(2));
    assert_eq!(session.poll_confirm(), Some(2));
    assert!(session.handle_confirmed(3), "it asked for this one too");
    assert_eq!(session.poll_confirm(), Some(3));
    assert!(!session.handle_ping(), "all is durable");
    assert!(session.handle_ack(4, arrive(9)).is_ok());
    assert!(!session.handle_confirmed(4), "said later");
    session.check();
}

#[test]
fn a_device_is_told_before_too_many_are_durable_without_its_knowing() {
    let mut session = acked(2 * limits::UNTOLD_ACKS);
    assert!(!session.handle_confirmed(limits::UNTOLD_ACKS - 1));
    assert!(session.handle_confirmed(limits::UNTOLD_ACKS));
    assert_eq!(session.poll_confirm(), Some(limits::UNTOLD_ACKS));
    assert!(!session.handle_confirmed(2 * limits::UNTOLD_ACKS - 1), "those that it was told of don't count");
    assert!(session.handle_confirmed(2 * limits::UNTOLD_ACKS));
}

#[test]
fn reading_pauses_while_too_many_acks_are_unconfirmed() {
    let mut session = session(&[]);
    for number in 1..limits::UNCONFIRMED_ACKS {
        assert!(session.handle_ack(number, arrive(9)).is_ok());
        assert!(!session.is_behind_on_acks(), "{number}");
    }
    assert!(session.handle_ack(limits::UNCONFIRMED_ACKS, arrive(9)).is_ok());
    assert!(session.is_behind_on_acks());
    session.handle_confirmed(1);
    assert!(!session.is_behind_on_acks(), "told or not");
    session.handle_confirmed(limits::UNCONFIRMED_ACKS);
    assert!(!session.is_behind_on_acks(), "it counts those that wait, not all");
}

#[test]
fn the_first_deadline_is_the_next_one() {
    assert_eq!(session(&[]).overdue_at(), None);
    let mut session = session(&[listed(1), listed(2)]);
    assert_eq!(session.overdue_at(), Some(ACK_MS + 1_000));
    // Sent again at its deadline: due once more that much later.
    assert!(matches!(session.poll_overdue(ACK_MS + 1_000, ACK_MS), Some(Overdue::SendAgain { .. })));
    assert_eq!(session.overdue_at(), Some(ACK_MS + 2_000));
    assert!(matches!(session.poll_overdue(ACK_MS + 2_000, ACK_MS), Some(Overdue::SendAgain { .. })));
    assert_eq!(session.overdue_at(), Some(2 * ACK_MS + 1_000));
}

#[test]
fn what_is_looked_at_is_what_is_sent_again() {
    let due = ACK_MS + 1_000;
    let mut ordinary = session(&[listed(1)]);
    assert_eq!(ordinary.peek_again(due - 1), None, "not due");
    assert_eq!(ordinary.peek_again(due), Some(&listed(1)));
    assert!(matches!(ordinary.poll_overdue(due, ACK_MS), Some(Overdue::SendAgain { .. })));
    assert_eq!(ordinary.peek_again(due + ACK_MS), None, "sent twice already");

    for (expires_at, online_only) in [(due, false), (due - 1, false), (due + 1, true)] {
        let entry = Listed { seq: 1, expires_at, online_only };
        let mut other = session(&[entry]);
        assert_eq!(other.peek_again(due), None, "{entry:?}");
        assert!(matches!(other.poll_overdue(due, ACK_MS), Some(Overdue::Report { .. })), "{entry:?}");
    }
    let entry = Listed { expires_at: due + 1, ..listed(1) };
    assert_eq!(session(&[entry]).peek_again(due), Some(&entry), "it has a millisecond left");
}

#[test]
fn so_many_are_watched_beside_the_window_and_no_more() {
    let mut session = session(&[]);
    let (mut again, mut reported, mut seq) = (0, 0, 0);
    while reported == 0 {
        while session.poll_pull(0, limits::OUTBOX_BYTES) > 0 {
            seq += 1;
            session.handle_sent(0, ACK_MS, listed(seq));
        }
        while let Some(overdue) = session.poll_overdue(ACK_MS, 10 * ACK_MS) {
            match overdue {
                Overdue::SendAgain { .. } => again += 1,
                Overdue::Report { .. } => reported += 1,
            }
            session.check();
        }
    }
    assert_eq!(again, limits::OVERDUE);
}

#[test]
fn a_list_may_have_something_newer_until_it_is_drained() {
    let mut session = session(&[]);
    let pulls = |session: &Session<Listed>| (session.has_newer(), session.poll_pull(0, 1) > 0);
    assert_eq!(pulls(&session), (true, true), "nobody has looked yet");
    session.handle_drained();
    assert_eq!(pulls(&session), (false, false));
    session.handle_newer();
    assert_eq!(pulls(&session), (true, true));
}

#[test]
fn times_of_an_entry_in_flight_stand_in_one_word() {
    assert_eq!(size_of::<InFlight<Box<u8>>>(), 16);
    let last = (1 << SENT_BITS) - 1;
    for first_sent in [0, 1_800_000_000_000, last] {
        let mut in_flight = InFlight::new((), first_sent, 600_000);
        assert_eq!((in_flight.first_sent(), in_flight.deadline()), (first_sent, first_sent + 600_000));
        assert!(!in_flight.is_overdue());
        in_flight.wait_again(first_sent + 1_200_000);
        assert_eq!((in_flight.first_sent(), in_flight.deadline()), (first_sent, first_sent + 1_200_000));
        assert!(in_flight.is_overdue());
        // A clock that leaps: it is overdue sooner than it need be.
        in_flight.wait_again(u64::MAX);
        assert_eq!((in_flight.first_sent(), in_flight.deadline() - first_sent), (first_sent, OVERDUE - 1));
    }
}
