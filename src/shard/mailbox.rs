//! What other threads tell a shard. Bounded without ever waiting: hand-overs say only "newer exists", so when too many are waiting they are
//! dropped for one mark, "look at all sessions".

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::binding::ChangeError;
use crate::fault::{self, Fault};
use crate::ids::{Seq, SessionRef};
use crate::limits;
use crate::presence::SliceRequest;
use crate::push::{Failure, Priority};
use crate::store::Confirm;
use crate::sync::{Mutex, step};

/// One shard's mailbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    inside: Mutex<Mail>,
    notify: Notify,
    /// A revocation lies in it.
    has_revoked: AtomicBool,
    /// A session waits for a confirmation.
    waits: AtomicBool,
}

/// What lies in a mailbox.
#[derive(Debug, Default)]
pub struct Mail {
    /// Sessions whose list has something newer.
    pub newer: Vec<SessionRef>,
    /// Sessions whose list has something newer of high priority.
    pub urgent: Vec<SessionRef>,
    /// Look at all sessions: hand-overs were dropped.
    pub rescan: bool,
    /// Acks that are durable.
    pub confirms: Vec<Confirm>,
    /// Hellos that are durable; false: the store is at a maximum.
    pub seen: Vec<(SessionRef, bool)>,
    /// Changes that are durable, or can't be, in their order. What they ended stands in `ended` by then.
    pub changed: Vec<(SessionRef, Result<(), ChangeError>)>,
    /// Bodies that are in memory again.
    pub loaded: Vec<SessionRef>,
    /// Sessions of which an Ack can't be kept: to be ended before any confirmation is told.
    pub ack_refused: Vec<SessionRef>,
    /// Sessions that a newer one replaced.
    pub replaced: Vec<SessionRef>,
    /// Sessions whose device has revoked credentials.
    pub revoked: Vec<SessionRef>,
    /// Entries that ended without the device's doing.
    pub ended: Vec<(SessionRef, Seq, Failure)>,
    /// Parts of snapshots of presence that are asked for.
    pub slices: Vec<SliceRequest>,
    /// Messages were taken back.
    pub recalled: bool,
    /// Leave, spread over so many milliseconds.
    pub leave: Option<u64>,
}

impl Mailbox {
    fn put(&self, change: impl FnOnce(&mut Mail)) {
        if fault::is(Fault::RingBeforePut) {
            self.notify.notify_one();
            step();
        }
        self.put_quietly(change);
        if !fault::is(Fault::RingBeforePut) {
            self.notify.notify_one();
        }
    }

    /// The shard finds it when it wakes for something else.
    fn put_quietly(&self, change: impl FnOnce(&mut Mail)) {
        let mut inside = match self.inside.lock() {
            Ok(inside) => inside,
            Err(poisoned) => poisoned.into_inner(),
        };
        change(&mut inside);
        drop(inside);
        step();
    }

    /// One batch's sessions on this shard; `sessions` is empty afterwards. Whether they fitted.
    pub fn newer(&self, priority: Priority, sessions: &mut Vec<SessionRef>) -> bool {
        let mut fits = true;
        self.put(|mail| {
            fits = mail.newer.len() + mail.urgent.len() + sessions.len() <= limits::MAILBOX_SLOTS;
            if fits {
                match priority {
                    Priority::High => mail.urgent.append(sessions),
                    Priority::Normal => mail.newer.append(sessions),
                }
            } else {
                // Urgent ones stay: there are `limits::MAILBOX_SLOTS` of them at most.
                mail.rescan = true;
                mail.newer = Vec::new();
                sessions.clear();
            }
        });
        fits
    }

    /// Acks of this shard's sessions are durable: nothing to wake it for, unless a session waits. Bounded by the unconfirmed Acks a session may have.
    pub fn confirmed(&self, mut confirms: Vec<Confirm>) {
        self.put_quietly(|mail| mail.confirms.append(&mut confirms));
        if self.waits.load(Ordering::SeqCst) {
            self.notify.notify_one();
        }
    }

    /// Whether the shard is to be woken for confirmations. Those that came before it said so it finds by looking once more.
    pub fn wait_for_confirms(&self, waits: bool) {
        self.waits.store(waits, Ordering::SeqCst);
    }

    /// A Hello is durable (or refused). Bounded: a session waits for one.
    pub fn seen(&self, session: SessionRef, taken: bool) {
        self.put(|mail| mail.seen.push((session, taken)));
    }

    /// A change is durable (or refused). Bounded by the requests that a session may have waiting.
    pub fn changed(&self, session: SessionRef, result: Result<(), ChangeError>) {
        self.put(|mail| mail.changed.push((session, result)));
    }

    /// An Ack of this session can't be kept. Bounded by the unconfirmed Acks a session may have.
    pub fn ack_refused(&self, session: SessionRef) {
        self.put(|mail| mail.ack_refused.push(session));
    }

    /// A body is in memory again. Bounded: a session waits for one.
    pub fn loaded(&self, session: SessionRef) {
        self.put(|mail| mail.loaded.push(session));
    }

    /// A newer session took this one's place. Bounded by the shard's sessions.
    pub fn replaced(&self, session: SessionRef) {
        self.put(|mail| mail.replaced.push(session));
    }

    /// The credentials of a session's device were revoked. Bounded by the commands of one commit group.
    pub fn revoked(&self, session: SessionRef) {
        self.put(|mail| {
            mail.revoked.push(session);
            self.has_revoked.store(true, Ordering::Release);
        });
    }

    /// Whether credentials were revoked and the shard has not looked yet.
    pub fn has_revoked(&self) -> bool {
        self.has_revoked.load(Ordering::Acquire)
    }

    /// An entry ended. Only a hint, so dropped when too many wait; but for what the phone's next user must not see, which is bounded by the requests
    /// that sessions may have waiting and the entries that a device may have.
    pub fn ended(&self, session: SessionRef, batch: Seq, reason: Failure) {
        self.put(|mail| {
            if mail.ended.len() < limits::MAILBOX_SLOTS || reason == Failure::Unbound {
                mail.ended.push((session, batch, reason));
            }
        });
    }

    /// A part of the sessions is asked for. Bounded: one a router link.
    pub fn slice(&self, request: SliceRequest) {
        self.put(|mail| mail.slices.push(request));
    }

    /// A message was taken back: the store knows which.
    pub fn recalled(&self) {
        self.put(|mail| mail.recalled = true);
    }

    /// The edge leaves: sessions are sent away within `window_ms`.
    pub fn leave(&self, window_ms: u64) {
        self.put(|mail| mail.leave = Some(window_ms));
    }

    /// What it rang for until now needs nobody to wake: before it rang, it was put where the next [`Self::take`] finds it.
    pub fn hush(&self) {
        pin!(self.notify.notified()).as_mut().enable();
    }

    /// Takes everything.
    pub fn take(&self) -> Mail {
        let mut inside = match self.inside.lock() {
            Ok(inside) => inside,
            Err(poisoned) => poisoned.into_inner(),
        };
        self.has_revoked.store(false, Ordering::Release);
        std::mem::take(&mut *inside)
    }

    /// Waits until something may be in it.
    pub async fn notified(&self) {
        self.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;
    use crate::ids::{Generation, ShardId};

    #[test]
    fn confirmations_wake_a_shard_only_if_a_session_waits_and_are_there_all_the_same() {
        let mailbox = Mailbox::default();
        let is_rung = || pin!(mailbox.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        let session = SessionRef { generation: Generation(1), slot: 1, shard: ShardId(0) };
        let confirm = |number| vec![Confirm { session, number }];
        mailbox.confirmed(confirm(1));
        assert!(!is_rung());
        mailbox.wait_for_confirms(true);
        mailbox.confirmed(confirm(2));
        assert!(is_rung());
        mailbox.wait_for_confirms(false);
        mailbox.confirmed(confirm(3));
        assert!(!is_rung());
        let numbers: Vec<_> = mailbox.take().confirms.iter().map(|confirm| confirm.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
    }

    #[test]
    fn a_turn_is_not_woken_again_for_what_it_takes_but_for_what_comes_then() {
        let mailbox = Mailbox::default();
        let is_rung = || pin!(mailbox.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        mailbox.recalled();
        mailbox.hush();
        assert!(mailbox.take().recalled && !is_rung());
        mailbox.hush();
        mailbox.recalled();
        assert!(mailbox.take().recalled && is_rung());
    }

    #[test]
    fn hand_overs_beyond_the_bound_become_one_look_at_everything() {
        let mailbox = Mailbox::default();
        let session = SessionRef { generation: Generation(1), slot: 1, shard: ShardId(0) };
        let mut full = vec![session; limits::MAILBOX_SLOTS];
        assert!(mailbox.newer(Priority::Normal, &mut full));
        assert!(full.is_empty());
        assert!(!mailbox.newer(Priority::Normal, &mut vec![session]));
        let mail = mailbox.take();
        assert!(mail.rescan && mail.newer.is_empty());
        assert!(!mailbox.take().rescan);
    }
}
