//! A shard's turns: connections with news, mail, fan-out within a budget, timers, one command of acks to the store, and what is to be sent over QUIC.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ahead::AHEAD;
use super::connection::step_ready;
use super::sockets::{self, Sockets};
use super::state::{ConnRef, Leaving, Phase, Shard, Shared};
use super::timers::TICK_MS;
use crate::binding::ChangeError;
use crate::error::DeviceError;
use crate::ids::SessionRef;
use crate::limits;
use crate::machine::wheel::Wheel;
use crate::push::Millis;
use crate::store::{Command, Confirm};
use crate::telemetry;

/// Times of last activity that wait for the store.
const LAST_ACTIVE: usize = 65_536;
/// Pushes, and sessions, between two looks at the clock during fan-out.
const LOOK_EVERY: usize = 32;
/// Connections with news that go on in one turn.
const TURN_STEPS: usize = 256;
/// Times of last activity that don't wait for the timers: each command wakes the store's thread.
const MANY_ACTIVE: usize = 1_024;
/// Milliseconds behind the window after which a leaving shard closes whatever is still open.
const LEAVE_GRACE_MS: Millis = 3_000;
/// How long the last packets over QUIC may take: a peer that is gone is not waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Turns, until the shard has left.
pub(super) async fn run(shard: &Shared, mut sockets: Option<Sockets>) -> io::Result<()> {
    let (work, context, id) = {
        let shard = shard.borrow();
        (shard.work.clone(), shard.context.clone(), shard.id)
    };
    let mailbox = &context.mailboxes[usize::from(id.0)];
    let mut tick = pin!(sleep(Duration::from_millis(TICK_MS)));
    // When QUIC has something to do, to the millisecond.
    let mut alarm = pin!(sleep(Duration::ZERO));
    let mut alarm_at = None;
    let mut last_words = None;
    loop {
        let is_time = tokio::select! {
            () = mailbox.notified() => false,
            () = work.notified() => false,
            told = sockets::told(sockets.as_ref()) => {
                told?;
                false
            }
            () = &mut tick => true,
            () = &mut alarm, if alarm_at.is_some() => {
                alarm_at = None;
                false
            }
        };
        let (started, now) = (context.clock.micros(), Instant::now());
        // Whatever it was woken for: while there is more to do, that is mostly something else.
        let more_news = match &mut sockets {
            Some(sockets) => sockets.take(now.into_std(), &mut shard.borrow_mut())?,
            None => false,
        };
        let can_go_on = step_ready(&mut shard.borrow_mut(), TURN_STEPS);
        // Who rang until now put what it rang for where this turn finds it. What can't go on in it is in `can_go_on`.
        mailbox.hush();
        pin!(work.notified()).as_mut().enable();
        // Whoever is awake anyway looks at what is due, and need not wake for it.
        let timers = is_time || context.clock.now() >= shard.borrow().look.soonest;
        let mut more = turn(shard, timers) | can_go_on | more_news;
        if let Some(sockets) = &mut sockets {
            let shard = &mut *shard.borrow_mut();
            more |= sockets.send(Instant::now().into_std(), shard) || !shard.ready.is_empty();
            if let Some(due) = sockets.due().filter(|due| alarm_at.is_none_or(|at| *due < at)) {
                alarm.as_mut().reset(due.into());
                alarm_at = Some(due);
            }
        }
        telemetry::observe_turn(id, (context.clock.micros() - started) as f64 / 1e6);
        if shard.borrow().has_left() {
            let until = *last_words.get_or_insert(now + LAST_WORDS);
            if sockets.as_ref().is_none_or(Sockets::is_idle) || now >= until {
                return Ok(());
            }
        }
        let wakes_in = shard.borrow_mut().next_look(timers);
        if let Some(wakes_in) = wakes_in {
            tick.as_mut().reset(Instant::now() + Duration::from_millis(wakes_in));
        }
        if more {
            // The others first: news of sockets, accepts.
            work.notify_one();
            tokio::task::yield_now().await;
        }
    }
}

/// One turn. Whether there is more to do right away.
pub(super) fn turn(owner: &Shared, timers: bool) -> bool {
    let shard = &mut *owner.borrow_mut();
    shard.begin();
    shard.handshake_steps = limits::TURN_HANDSHAKE_STEPS;
    for _ in 0..limits::TURN_HANDSHAKE_STEPS {
        let Some(conn) = shard.deferred.pop_front() else { break };
        shard.wake(conn);
    }
    shard.take_mail();
    if timers {
        shard.fire();
    }
    let more = shard.tell_recalls() | shard.fan_out() | shard.answer_slice();
    shard.submit(timers);
    shard.count_memory();
    shard.tell_traffic();
    more || !shard.deferred.is_empty()
}

impl Shard {
    fn take_mail(&mut self) {
        let mailbox = &self.context.mailboxes[usize::from(self.id.0)];
        let now = self.now();
        self.mail_at = self.mail_at.filter(|at| *at > now);
        let mail = mailbox.take();
        self.confirms_came |= !mail.confirms.is_empty() || !mail.ack_refused.is_empty();
        // Where a sync takes longer, it goes on until then.
        if self.confirms_until != 0 && self.confirms_until < now && self.confirms_came {
            self.confirms_until = 0;
            mailbox.wait_for_confirms(false);
        }
        for session in mail.replaced {
            if let Some(conn) = self.session(session) {
                self.fail(conn, DeviceError::Replaced);
            }
        }
        for session in mail.revoked {
            self.check_revoked(session);
        }
        for session in mail.ack_refused {
            if let Some(conn) = self.session(session) {
                self.fail(conn, DeviceError::Unavailable);
            }
        }
        // Before anything that may write, and before the replies to what ended them.
        for (session, batch, reason) in mail.ended {
            if let Some(conn) = self.session(session) {
                self.forget_entry(conn, batch, reason);
            }
        }
        for (session, taken) in mail.seen {
            self.take_seen(session, taken);
        }
        for (session, result) in mail.changed {
            self.take_changed(session, result);
        }
        self.take_confirms(&mail.confirms);
        for session in mail.loaded {
            if let Some(conn) = self.session(session) {
                if let Some(connection) = self.connection(conn) {
                    connection.flags.waits_for_body = false;
                }
                self.mark_dirty(conn);
            }
        }
        if mail.rescan {
            let all: Vec<ConnRef> = self.all();
            for conn in all {
                self.take_newer(conn);
            }
        }
        for (n, session) in mail.newer.iter().enumerate() {
            if n % AHEAD == 0 {
                self.touch(mail.newer[n..].iter().map(|session| session.slot));
            }
            if let Some(conn) = self.session(*session) {
                self.take_newer(conn);
            }
        }
        for session in mail.urgent {
            if let Some(conn) = self.session(session) {
                self.take_urgent(conn);
            }
        }
        if mail.recalled {
            self.recalls.note();
        }
        // Behind what was replaced: a session that has lost its place is in no snapshot.
        self.slices.extend(mail.slices);
        if let Some(window_ms) = mail.leave {
            self.start_leaving(window_ms);
        }
    }

    pub(super) fn all(&self) -> Vec<ConnRef> {
        self.connections.iter().map(|(slot, c)| ConnRef { slot: slot as u32, serial: c.serial }).collect()
    }

    fn take_newer(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
        {
            live.session.handle_newer();
            self.mark_dirty(conn);
        }
    }

    fn take_urgent(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
        {
            live.session.handle_newer();
            self.mark_urgent(conn);
        }
    }

    /// A Hello is durable: welcome.
    fn take_seen(&mut self, session: SessionRef, taken: bool) {
        let Some(conn) = self.session(session) else { return };
        self.with_frames(conn, |shard, out| shard.registered(conn, taken, out));
        self.resume(conn);
    }

    /// A request is durable: reply.
    fn take_changed(&mut self, session: SessionRef, result: Result<(), ChangeError>) {
        let Some(conn) = self.session(session) else { return };
        let Some(connection) = self.connection(conn) else { return };
        let Phase::Live(live) = &connection.phase else { return };
        let was_full = live.seldom.replies().len() >= limits::SESSION_REQUESTS;
        self.with_frames(conn, |shard, out| {
            shard.changed(conn, result, out);
            Ok(())
        });
        if was_full {
            self.resume(conn);
        }
    }

    /// Durable Acks. Most are told with the next frame, as a write of its own costs about as much as a push, and wakes a phone's radio once more.
    fn take_confirms(&mut self, confirms: &[Confirm]) {
        for (i, confirm) in confirms.iter().enumerate() {
            if i % AHEAD == 0 {
                self.touch(confirms[i..].iter().map(|confirm| confirm.session.slot));
            }
            if confirms.get(i + 1).is_some_and(|next| next.session == confirm.session) {
                continue; // the next one says more
            }
            let Some(conn) = self.session(confirm.session) else { continue };
            let Some(connection) = self.connection(conn) else { continue };
            let Phase::Live(live) = &mut connection.phase else { continue };
            let was_behind = live.session.is_behind_on_acks();
            if live.session.handle_confirmed(confirm.number) {
                self.with_frames(conn, |shard, out| {
                    shard.put_confirm(conn, out);
                    Ok(())
                });
            }
            if was_behind {
                self.resume(conn);
            }
        }
    }

    /// Pumps those who have something, high priority first, until the budget is used up. Whether more are waiting.
    fn fan_out(&mut self) -> bool {
        let context = self.context.clone();
        let started = context.clock.micros();
        let (mut deliveries, mut unlooked) = (0, 0);
        for n in 0.. {
            if n % AHEAD == 0 {
                self.touch_dirty();
            }
            let Some(conn) = self.next_dirty() else { break };
            let pushes = self.pump(conn);
            deliveries += pushes;
            unlooked += pushes + 1;
            if deliveries >= limits::TURN_DELIVERIES {
                break;
            }
            if unlooked >= LOOK_EVERY {
                unlooked = 0;
                if context.clock.micros() - started >= limits::TURN_FANOUT_MICROS {
                    break;
                }
            }
        }
        self.body = None;
        !self.dirty.is_empty() || !self.urgent.is_empty()
    }

    /// Hands what was read to the store. When that is busy, everything stays and nothing more is read.
    fn submit(&mut self, timers: bool) {
        let store = self.context.store.clone();
        if !self.acks.is_empty() {
            let acks = std::mem::take(&mut self.acks);
            if let Err(refused) = store.submit(Command::Acks { shard: self.id, acks }) {
                let Command::Acks { acks, .. } = *refused.0 else { return };
                self.acks = acks;
            } else {
                // What is confirmed wakes nobody.
                let soon = self.now() + TICK_MS;
                self.mail_at.get_or_insert(soon);
                for conn in std::mem::take(&mut self.paused) {
                    if let Some(connection) = self.connection(conn) {
                        connection.flags.paused = false;
                    }
                    self.resume(conn);
                }
            }
        }
        if !self.sent_alone.is_empty() {
            let sent = std::mem::take(&mut self.sent_alone);
            if let Err(refused) = store.submit(Command::Sent(sent))
                && let Command::Sent(sent) = *refused.0
            {
                self.sent_alone = sent;
            }
        }
        let is_worth_it = timers || self.leaving.is_some() || self.last_active.len() >= MANY_ACTIVE;
        if is_worth_it && !self.last_active.is_empty() {
            let seen = std::mem::take(&mut self.last_active);
            if let Err(refused) = store.submit(Command::LastActive(seen))
                && let Command::LastActive(seen) = *refused.0
            {
                self.last_active = seen;
                // Sessions that go on say it again: bounded by leaving out the oldest.
                let excess = self.last_active.len().saturating_sub(LAST_ACTIVE);
                self.last_active.drain(..excess);
            }
        }
    }

    /// Stops accepting, closes who has not said Hello, and spreads goodbyes over the window.
    fn start_leaving(&mut self, window_ms: u64) {
        let now = self.now();
        for task in self.accepting.drain(..) {
            task.abort();
        }
        self.unreported.advance(Millis::MAX, &mut self.sent_alone);
        let mut wheel = Wheel::new(now);
        for conn in self.all() {
            let Some(connection) = self.connection(conn) else { continue };
            if let Phase::Live(live) = &connection.phase {
                wheel.insert(now + live.device.spread() % window_ms.max(1), conn);
            } else {
                self.fail(conn, DeviceError::Leaving);
            }
        }
        self.leaving = Some(Leaving { wheel, until: now + window_ms + LEAVE_GRACE_MS });
    }

    pub(super) fn has_left(&self) -> bool {
        let settled = self.acks.is_empty() && self.sent_alone.is_empty();
        self.leaving.is_some() && self.connections.is_empty() && settled
    }
}
