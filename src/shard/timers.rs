//! Deadlines of a shard's connections. Timers are lazy: what is due is looked at, and put back if its deadline has moved.
//!
//! The shard sleeps until something is due. Rejected: a look each second. Where nobody says anything for seconds, to wake up finds no line of memory
//! in any cache, and costs 70 µs.

use super::ahead::AHEAD;
use super::state::{ConnRef, Phase, Shard};
use super::stream::Stream;
use crate::error::DeviceError;
use crate::fault::{self, Fault};
use crate::machine::wheel::Wheel;
use crate::push::Millis;

/// Milliseconds between two looks at timers, at least.
pub(super) const TICK_MS: Millis = 100;
/// The same where sessions only have to be heard: to wake up for that costs as much as three of their heartbeats.
const REST_MS: Millis = 1_000;
/// Milliseconds after which a shard looks around whatever is due.
const LONGEST_MS: Millis = 10_000;

/// When timers are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Look {
    /// From then on by a shard that is awake anyway.
    pub soonest: Millis,
    /// Then it wakes for them.
    pub wakes_at: Millis,
}

/// What a due entry of the keepalive wheel means.
enum Due {
    Later(Millis),
    End(DeviceError),
    Close,
}

impl Shard {
    /// When timers are to be looked at. Whatever puts something into a wheel comes here afterwards: a turn at its end, and who does so between turns wakes
    /// one.
    fn due(&self) -> Look {
        let now = self.now();
        if self.waits_for_ticks() {
            return Look { soonest: now + TICK_MS, wakes_at: now + TICK_MS };
        }
        let sessions = [&self.overdue, &self.unheard, &self.stalls, &self.suspects].map(Wheel::next);
        let others = sessions.into_iter().chain([self.unreported.next(), self.mail_at]).flatten();
        let others = others.min().unwrap_or(Millis::MAX);
        let heartbeats = self.keepalive.next().unwrap_or(Millis::MAX);
        let at_rest = heartbeats.max(now + REST_MS).min(now + LONGEST_MS);
        Look {
            soonest: others.min(heartbeats).min(at_rest),
            wakes_at: others.min(at_rest).max(now + TICK_MS),
        }
    }

    /// After a turn, which may have looked at timers: in how many milliseconds it wakes for them, if that is not as it was.
    pub(super) fn next_look(&mut self, looked: bool) -> Option<Millis> {
        let due = self.due();
        self.look.soonest = due.soonest;
        let changes = looked || due.wakes_at < self.look.wakes_at;
        changes.then(|| {
            self.look.wakes_at = due.wakes_at;
            due.wakes_at - self.now()
        })
    }

    /// Whether there is something that stands in no wheel, and is looked at tick by tick.
    fn waits_for_ticks(&self) -> bool {
        !(self.door.is_empty()
            && self.closing.is_empty()
            && self.begun.bytes() == 0
            && self.want_body.is_empty()
            && self.acks.is_empty()
            && self.sent_alone.is_empty()
            && self.last_active.is_empty()
            && !self.recalls.waits()
            && self.confirms_until == 0
            && self.leaving.is_none())
    }

    /// Everything that is due.
    pub(super) fn fire(&mut self) {
        let now = self.now();
        let mut due = Vec::new();
        self.keepalive.advance(now, &mut due);
        self.each_due(&mut due, |shard, conn| shard.check_keepalive(conn, now));
        self.overdue.advance(now, &mut due);
        self.each_due(&mut due, Self::check_overdue);
        self.stalls.advance(now, &mut due);
        self.each_due(&mut due, |shard, conn| shard.check_stall(conn, now));
        self.unheard.advance(now, &mut due);
        self.each_due(&mut due, |shard, conn| shard.check_unheard(conn, now));
        self.check_begun(now);
        self.suspects.advance(now, &mut due);
        self.each_due(&mut due, |shard, conn| shard.check_suspect(conn, now));
        self.recalls.retry();
        self.unreported.advance(now, &mut self.sent_alone);
        for conn in std::mem::take(&mut self.want_body) {
            if let Some(connection) = self.connection(conn) {
                connection.flags.waits_for_body = false;
            }
            self.mark_dirty(conn);
        }
        self.fire_leaving(now);
    }

    /// Looks at each of these, and takes it out.
    fn each_due(&mut self, due: &mut Vec<ConnRef>, check: impl Fn(&mut Self, ConnRef)) {
        for (n, conn) in due.iter().enumerate() {
            if n % AHEAD == 0 {
                self.touch(due[n..].iter().map(|conn| conn.slot));
            }
            check(self, *conn);
        }
        due.clear();
    }

    fn check_keepalive(&mut self, conn: ConnRef, now: Millis) {
        let report_ms = self.context.store.report_ms();
        let Some(connection) = self.connection(conn) else { return };
        let due = match &connection.phase {
            Phase::Greeting { deadline } if *deadline <= now => Due::End(DeviceError::Deadline),
            Phase::Registering(r) if r.deadline <= now => Due::End(DeviceError::Unavailable),
            Phase::Live(live) if live.session.silent_at() <= now => Due::End(DeviceError::Silent),
            Phase::Closing { deadline } if *deadline <= now => Due::Close,
            Phase::Greeting { deadline } | Phase::Closing { deadline } => Due::Later(*deadline),
            Phase::Registering(registering) => Due::Later(registering.deadline),
            // In between its activity is reported.
            Phase::Live(live) => Due::Later(live.session.silent_at().min(now.saturating_add(report_ms))),
        };
        // Who stays connected for months is not forgotten if the edge then stops.
        let active = match &connection.phase {
            Phase::Live(live) if !fault::is(Fault::ActivityUnsaid) => live.last_active(),
            _ => None,
        };
        self.last_active.extend(active);
        let Some(connection) = self.connection(conn) else { return };
        match due {
            Due::Later(deadline) => self.keepalive.insert(deadline, conn),
            Due::End(error) => self.fail(conn, error),
            Due::Close => {
                connection.flags.broken = true;
                self.wake(conn);
            }
        }
    }

    /// An outbox may have stood still for too long. What it holds stays pending, for the device's next session.
    fn check_stall(&mut self, conn: ConnRef, now: Millis) {
        let patience = self.context.config.stall_deadline_ms;
        let Some(connection) = self.connection(conn) else { return };
        match connection.outbox.still_since().map(|since| since + patience) {
            None => connection.flags.stall_armed = false,
            Some(at) if at > now => self.stalls.insert(at, conn),
            Some(_) => self.fail(conn, DeviceError::Stalled),
        }
    }

    /// A QUIC connection was written to: what is sent makes the peer answer, or it can't be reached any more.
    pub(super) fn expect_answer(&mut self, conn: ConnRef) {
        let (now, patience) = (self.now(), Millis::from(self.context.config.user_timeout_ms));
        if let Some(connection) = self.connection(conn)
            && let Stream::Quic(quic) = &connection.stream
            && quic.wrote(now)
        {
            self.unheard.insert(now + patience, conn);
        }
    }

    /// As `TCP_USER_TIMEOUT` does: nothing came for so long since something was written.
    fn check_unheard(&mut self, conn: ConnRef, now: Millis) {
        let patience = Millis::from(self.context.config.user_timeout_ms);
        let Some(connection) = self.connection(conn) else { return };
        let Stream::Quic(quic) = &connection.stream else { return };
        match quic.unanswered_since() {
            None => {}
            Some(since) if since + patience > now => self.unheard.insert(since + patience, conn),
            Some(_) => self.fail(conn, DeviceError::Unreachable),
        }
    }

    fn fire_leaving(&mut self, now: Millis) {
        let Some(leaving) = &mut self.leaving else { return };
        let mut due = Vec::new();
        leaving.wheel.advance(now, &mut due);
        let force = leaving.until <= now;
        for conn in due {
            self.fail(conn, DeviceError::Leaving);
        }
        if force {
            for conn in self.all() {
                if let Some(connection) = self.connection(conn) {
                    connection.flags.broken = true;
                }
                self.wake(conn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use super::*;
    use crate::ids::{Generation, SessionRef, ShardId};
    use crate::shard::recalls;
    use crate::shard::turn::turn;
    use crate::store::Confirm;

    fn wakes_in(shard: &Shard) -> Millis {
        shard.due().wakes_at - shard.now()
    }

    #[test]
    fn a_confirmation_that_takes_longer_is_waited_for_until_it_comes() {
        let shard = Rc::new(RefCell::new(recalls::tests::shard().0));
        // A device asked for what is not durable yet, and a second has passed since.
        let context = {
            let mut shard = shard.borrow_mut();
            shard.begin();
            shard.expect_confirms();
            shard.confirms_until = shard.now() - 1;
            shard.context.clone()
        };
        let mailbox = &context.mailboxes[0];
        let confirm = || {
            let session = SessionRef { generation: Generation(1), slot: 0, shard: ShardId(0) };
            mailbox.confirmed(vec![Confirm { session, number: 1 }]);
            pin!(mailbox.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        turn(&shard, true);
        assert!(confirm(), "it rings, however late");
        turn(&shard, false);
        assert_eq!(shard.borrow().confirms_until, 0);
        assert!(!confirm(), "nobody waits any more");
    }

    #[test]
    fn a_shard_sleeps_until_something_is_due() {
        let (mut shard, _) = recalls::tests::shard();
        let (now, conn) = (shard.now(), ConnRef { slot: 0, serial: 1 });
        let slots = |ms: Millis| ms..ms + 100;
        assert_eq!(wakes_in(&shard), LONGEST_MS);
        shard.keepalive.insert(now + 9_000, conn);
        assert!(slots(9_000).contains(&wakes_in(&shard)));
        // Heartbeats are many, and none is missed for a second; who is awake looks at once.
        shard.keepalive.insert(now + 300, conn);
        assert_eq!(wakes_in(&shard), REST_MS);
        assert!(slots(300).contains(&(shard.due().soonest - now)));
        shard.unheard.insert(now + 500, conn);
        assert!(slots(500).contains(&wakes_in(&shard)));
        shard.mail_at = Some(now + 200);
        assert_eq!(wakes_in(&shard), 200);
        shard.suspects.insert(now, conn);
        assert_eq!(wakes_in(&shard), TICK_MS);
    }

    #[test]
    fn it_wakes_sooner_if_something_is_due_sooner_and_later_only_once_it_has_looked() {
        let (mut shard, _) = recalls::tests::shard();
        let (now, conn) = (shard.now(), ConnRef { slot: 0, serial: 1 });
        assert_eq!(shard.next_look(true), Some(LONGEST_MS));
        assert_eq!(shard.next_look(false), None);
        shard.stalls.insert(now + 5_000, conn);
        assert!(shard.next_look(false).is_some_and(|ms| (5_000..5_100).contains(&ms)));
        shard.stalls.advance(now + 5_100, &mut Vec::new());
        assert_eq!(shard.next_look(false), None);
        assert_eq!(shard.next_look(true), Some(LONGEST_MS));
    }

    #[test]
    fn what_stands_in_no_wheel_is_looked_at_tick_by_tick() {
        let (mut shard, _) = recalls::tests::shard();
        let conn = ConnRef { slot: 0, serial: 1 };
        shard.want_body.push(conn);
        assert_eq!(wakes_in(&shard), TICK_MS);
    }
}
