//! What one device saw, frame by frame, and what of it an edge must not have done. Pure.

use std::collections::{HashMap, HashSet};

use mooring::wire::pb::device::{EventType, Push};

use super::outages::Outages;

/// Milliseconds.
type Millis = u64;

/// Times that one session may write a message: once, and once again after the ack deadline.
const TIMES_A_SESSION: u8 = 2;

/// Everything that one device saw.
#[derive(Default, Debug)]
pub(super) struct DeviceLog {
    /// Messages that it kept.
    stored: HashSet<u64>,
    /// Of each session, in the order in which they came: (message, whether of high priority).
    sessions: Vec<Vec<(u64, bool)>>,
    /// How often each came on the session that there is.
    times: HashMap<u64, u8>,
    /// Times at which it did not read.
    pub(super) deaf: Outages,
    /// (message, expiry, when it came), of those that came after their expiry.
    after_expiry: Vec<(u64, Millis, Millis)>,
    /// Pushes of messages whose arrival had been confirmed, or that came too often on one session.
    pub(super) duplicates: Vec<u64>,
    /// Pushes that came marked as redelivered.
    pub(super) redelivered: u64,
    /// Messages that its user tapped or dismissed.
    reactions: Vec<(u64, EventType)>,
    /// How many were to be made, and came to nothing, as the message was taken back before.
    withdrawn: u64,
    /// How many the library could not take.
    pub(super) dropped: u64,
}

impl DeviceLog {
    /// A session began.
    pub(super) fn welcomed(&mut self) {
        self.sessions.push(Vec::new());
        self.times.clear();
    }

    /// A push came, at this edge time. `unconfirmed`: its arrival was told before, and not confirmed yet.
    pub(super) fn came(&mut self, push: &Push, at: Millis, unconfirmed: bool) {
        let id = push.message_id;
        self.redelivered += u64::from(push.redelivered);
        let times = self.times.entry(id).or_default();
        *times += 1;
        let known = !self.stored.insert(id);
        if (known && !unconfirmed) || *times > TIMES_A_SESSION {
            self.duplicates.push(id);
        }
        if *times == 1
            && let Some(session) = self.sessions.last_mut()
        {
            session.push((id, push.priority > 0));
        }
        if push.expires_milliseconds > 0 && at > push.expires_milliseconds {
            self.after_expiry.push((id, push.expires_milliseconds, at));
        }
    }

    /// The user taps or dismisses a message.
    pub(super) fn reacted(&mut self, message: u64, event: EventType) {
        self.reactions.push((message, event));
    }

    /// The message was taken back before its user could do that: there is nothing left to tap.
    pub(super) fn withdrawn(&mut self, message: u64) {
        let before = self.reactions.len();
        self.reactions.retain(|(id, _)| *id != message);
        self.withdrawn += (before - self.reactions.len()) as u64;
    }

    /// In the end: so many clicks and cleans its library took.
    pub(super) fn ended(&mut self, taken: u64) {
        self.dropped = (self.reactions.len() as u64 + self.withdrawn).saturating_sub(taken);
    }

    /// What its user tapped and dismissed.
    pub(super) fn reactions(&self) -> &[(u64, EventType)] {
        &self.reactions
    }

    /// Whether it has the message.
    pub(super) fn has(&self, message: u64) -> bool {
        self.stored.contains(&message)
    }

    /// All messages that it has.
    pub(super) fn messages(&self) -> impl Iterator<Item = u64> {
        self.stored.iter().copied()
    }

    /// How many sessions it had.
    pub(super) fn sessions(&self) -> u64 {
        self.sessions.len() as u64
    }

    /// Messages that came although they had expired longer ago than `slack`, by time in which it read and the edge ran.
    pub(super) fn late(&self, edge: &Outages, slack: Millis) -> Vec<u64> {
        let late = self.after_expiry.iter();
        late.filter(|(_, expiry, at)| self.deaf.whole(edge, *expiry, *at) > slack).map(|l| l.0).collect()
    }

    /// Of each session, once for each priority: the messages that came, in the order in which they came first.
    pub(super) fn firsts(&self) -> impl Iterator<Item = impl Iterator<Item = u64>> {
        self.sessions.iter().flat_map(|session| {
            [false, true].map(|of| session.iter().filter(move |(_, high)| *high == of).map(|first| first.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(message_id: u64) -> Push {
        Push { message_id, expires_milliseconds: 1_000, ..Push::default() }
    }

    fn log(messages: &[(u64, Millis, bool)]) -> DeviceLog {
        let mut log = DeviceLog::default();
        log.welcomed();
        for (id, at, unconfirmed) in messages {
            log.came(&push(*id), *at, *unconfirmed);
        }
        log
    }

    #[test]
    fn what_comes_again_is_a_duplicate_once_its_arrival_was_confirmed() {
        assert!(log(&[(1, 1, false), (1, 2, true)]).duplicates.is_empty());
        assert_eq!(log(&[(1, 1, false), (1, 2, false)]).duplicates, [1]);
    }

    #[test]
    fn a_session_may_write_a_message_twice() {
        let mut log = log(&[(1, 1, false), (1, 2, true), (1, 3, true)]);
        assert_eq!(log.duplicates, [1]);
        log.welcomed();
        log.came(&push(1), 4, true);
        assert_eq!(log.duplicates, [1]);
    }

    #[test]
    fn late_is_what_comes_after_its_expiry_by_time_in_which_all_worked() {
        let mut log = log(&[(1, 999, false), (2, 1_300, false), (3, 1_600, false)]);
        let mut edge = Outages::default();
        assert_eq!(log.late(&edge, 200), [2, 3]);
        edge.add(1_050, 1_250);
        assert_eq!(log.late(&edge, 200), [3]);
        log.deaf.add(900, 1_600);
        assert_eq!(log.late(&edge, 200), [] as [u64; 0]);
    }

    #[test]
    fn what_the_library_could_not_take_is_what_it_neither_took_nor_lost_to_a_revoke() {
        let mut log = log(&[(1, 1, false), (2, 2, false), (3, 3, false)]);
        (1..=3).for_each(|message| log.reacted(message, EventType::Click));
        log.withdrawn(2);
        assert_eq!(log.reactions(), [(1, EventType::Click), (3, EventType::Click)]);
        log.ended(2);
        assert_eq!(log.dropped, 1);
    }

    #[test]
    fn firsts_are_of_each_session_and_priority_and_do_not_come_again() {
        let mut log = log(&[(3, 1, false), (1, 2, false), (3, 2, true)]);
        log.came(&Push { priority: 1, ..push(2) }, 3, false);
        log.welcomed();
        log.came(&push(3), 4, true);
        let firsts: Vec<Vec<_>> = log.firsts().map(Iterator::collect).collect();
        assert_eq!(firsts, [vec![3, 1], vec![2], vec![3], vec![]]);
    }
}
