//! What was promised to whom, and whether it holds.
//!
//! The oracle sees what peers see, never the edge's inside: answers, confirmations, pushes, stream events. What it concludes at the end rests
//! on that alone.

mod damaged;
mod in_time;
mod order;
mod stored;

use std::collections::{BTreeMap, BTreeSet};

use super::credentials::Revoked;
use super::known::Known;
use mooring::push::{Counts, Failure, Millis};
use mooring::wire::pb::router as pb;

use damaged::Damaged;
use in_time::InTime;
use stored::Stored;

macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}
pub(crate) use ensure;

/// What the router wants of a batch, as far as it matters what becomes of it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) message: u64,
    pub(crate) targets: Vec<String>,
    pub(crate) online_only: bool,
    /// Who is offline is not to be pushed to.
    pub(crate) returns: bool,
    pub(crate) collapse_key: String,
    /// By ordinal: the account that the target was resolved from, or empty.
    pub(crate) accounts: Vec<String>,
}

/// What the edge answered.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Answer {
    /// Of its first part; without parts, the same as the next one.
    pub(crate) first_sequence: u64,
    pub(crate) sequence: u64,
    pub(crate) accepted: u32,
    pub(crate) refused: BTreeMap<u32, i32>,
    pub(crate) accepted_at: Millis,
    pub(crate) expires_at: Millis,
}

/// An end, and the sequence that tells it.
pub(crate) type End = (Result<(), Failure>, u64);

/// One session as its device saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) device: String,
    /// First transmissions, and whether of high priority.
    pub(crate) firsts: Vec<(u64, bool)>,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each says what a run has, and none depends on another")]
pub(crate) struct Oracle {
    pub(crate) batches: BTreeMap<String, Sent>,
    pub(crate) answers: BTreeMap<String, Answer>,
    pub(crate) rejected: BTreeMap<String, pb::RejectCode>,
    pub(crate) ends: BTreeMap<(String, u32), End>,
    /// Told by a receipt: device, message, event.
    pub(crate) receipts: BTreeSet<(String, u64, i32)>,
    /// The same, with the batch that it concerns: at which sequence.
    pub(crate) told: BTreeMap<((String, u64, i32), String), u64>,
    /// Confirmed to the device as durable.
    pub(crate) confirmed: BTreeSet<(String, u64, i32)>,
    /// What devices ever said of messages.
    pub(crate) said: BTreeSet<(String, u64)>,
    pub(crate) sessions: Vec<Seen>,
    /// Of retention 0: the sessions on which a device got a message.
    pub(crate) online: BTreeMap<(String, u64), BTreeSet<u32>>,
    pub(crate) streams: BTreeMap<String, Stored>,
    pub(crate) revokes_asked: BTreeSet<u64>,
    /// Taken back: at which sequence, and at which step the router was told.
    pub(crate) revoked: BTreeMap<u64, (u64, u64)>,
    /// An app was suspended at some time.
    pub(crate) suspends: bool,
    /// Devices that ever switched push off, lost their state, or changed their account.
    pub(crate) switched_off: BTreeSet<String>,
    pub(crate) reinstalled: BTreeSet<String>,
    /// Of the simulation.
    pub(crate) step: u64,
    /// The newest edge time that was seen.
    pub(crate) edge_now: Millis,
    pub(crate) gaps: u64,
    /// From which sequence to which they were, each.
    pub(crate) missed: Vec<(u64, u64)>,
    /// Streams are kept up to a small bound only.
    pub(crate) may_have_gaps: bool,
    /// By message: title and body as the router wrote them.
    pub(crate) bodies: BTreeMap<u64, (String, String)>,
    /// At which step the edge has said that something on its disk is damaged. From then on records may be missing: an end, a change of account,
    /// a receipt.
    pub(crate) damaged_at: Option<u64>,
    /// What that excuses.
    pub(crate) damaged: Damaged,
    /// An older copy of the edge's disk was put back.
    pub(crate) is_restored: bool,
    /// Batches that routers repeat, as the edge may have lost them, until they are answered.
    pub(crate) to_repeat: BTreeSet<String>,
    /// Which devices the edge knows.
    pub(crate) known: Known,
    /// By device: what operators revoked.
    pub(crate) credentials: BTreeMap<String, Revoked>,
    /// The epoch of the apps' credentials.
    pub(crate) epoch: u32,
    /// Reads of the disk fail now and then.
    pub(crate) reads_fail: bool,
    /// Some app drops the oldest of what a device has pending.
    pub(crate) quota: bool,
    /// Targets of a batch that the edge takes in one piece, if each life takes as many.
    pub(crate) part_targets: Option<usize>,
    /// When what is due had to be told.
    pub(crate) in_time: InTime,
}

impl Oracle {
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged_at.is_some()
    }

    /// The edge may have lost what it said, and routers repeat what has an answer.
    pub(crate) fn forgets(&self) -> bool {
        self.is_damaged() || self.is_restored
    }

    /// Each event that there was has come.
    fn is_whole(&self) -> bool {
        self.gaps == 0 && self.missed.is_empty() && !self.forgets()
    }

    /// The edge says that something is damaged.
    pub(crate) fn found_damaged(&mut self) {
        self.damaged_at.get_or_insert(self.step);
    }

    /// A batch was answered: a repeat gets the same answer.
    pub(crate) fn answered(&mut self, answer: &pb::BatchAccepted) -> Result<(), String> {
        let id = &answer.batch_id;
        let sent =
            self.batches.get(id).ok_or_else(|| format!("{id} was accepted, and nobody had sent it"))?;
        let refused = answer.refused.iter();
        let refused: BTreeMap<u32, i32> =
            refused.flat_map(|r| r.ordinals.iter().map(|ordinal| (*ordinal, r.reason))).collect();
        let targets = sent.targets.len();
        ensure!(
            answer.accepted as usize + refused.len() == targets,
            "{id}: {targets} targets, but accepted {} and refused {refused:?}",
            answer.accepted
        );
        let new = Answer {
            first_sequence: if answer.first_sequence == 0 { answer.sequence } else { answer.first_sequence },
            sequence: answer.sequence,
            accepted: answer.accepted,
            refused,
            accepted_at: answer.accepted_at,
            expires_at: answer.expires_at,
        };
        self.to_repeat.remove(id);
        if self.forgets() {
            // What was repeated while it was on its way may have come too late, and before this answer.
            self.rejected.remove(id);
        }
        ensure!(!self.rejected.contains_key(id), "{id} was rejected for good, now it is accepted");
        match self.answers.get(id).cloned() {
            Some(known) if self.is_damaged() && known != new => {
                self.accepted_again(id, &known, &new)?;
                self.answers.insert(id.clone(), new);
            }
            Some(known) => {
                ensure!(known == new, "{id}: answered {new:?}, before {known:?}");
                // Of two copies of one in parts the second may come to its end first.
                let in_parts = new.first_sequence != new.sequence;
                ensure!(answer.repeated || in_parts, "{id}: answered again as if it were new");
            }
            None => {
                if self.is_damaged() {
                    // It may have been accepted before, and the answer didn't get here.
                    self.forget_before(id, new.sequence);
                }
                self.answers.insert(id.clone(), new);
            }
        }
        Ok(())
    }

    pub(crate) fn rejected(&mut self, answer: &pb::BatchRejected) -> Result<(), String> {
        let (id, code) = (&answer.batch_id, answer.code());
        let put_off = matches!(code, pb::RejectCode::ResourceExhausted | pb::RejectCode::Unavailable);
        if put_off {
            return Ok(());
        }
        self.to_repeat.remove(id);
        if self.forgets()
            && code == pb::RejectCode::Expired
            && self.answers.contains_key(id)
            && !self.rejected_again(id)
        {
            return Ok(());
        }
        let is_known = self.answers.contains_key(id) && !self.rejected_again(id);
        ensure!(!is_known, "{id} was accepted, now it is rejected: {code:?}");
        let possible = matches!(code, pb::RejectCode::Expired | pb::RejectCode::Invalid)
            || code == pb::RejectCode::AppSuspended && self.suspends;
        ensure!(possible, "{id} is rejected as {code:?}: {}", answer.text);
        self.rejected.insert(id.clone(), code);
        Ok(())
    }

    /// An event of the stream that was not read before.
    pub(crate) fn event(&mut self, event: &pb::StreamEvent) -> Result<(), String> {
        let sequence = event.sequence;
        match &event.event {
            Some(pb::stream_event::Event::Receipt(receipt)) => {
                let failure = u8::try_from(receipt.reason).ok().and_then(Failure::from_number);
                let end = match (receipt.outcome(), failure) {
                    (pb::Outcome::None, _) => None,
                    (pb::Outcome::Arrived, _) => Some(Ok(())),
                    (pb::Outcome::Failed, Some(why)) => Some(Err(why)),
                    (pb::Outcome::Failed, None) => {
                        return Err(format!("an end without a reason: {receipt:?}"));
                    }
                };
                if let Some(end) = end {
                    self.check_in_time(&receipt.batch_id, end, receipt.event_time)?;
                    self.ended(&receipt.batch_id, receipt.ordinal, end, sequence)?;
                }
                let key = (receipt.device_id.clone(), receipt.message_id, receipt.event);
                self.receipts.insert(key.clone());
                // A message that had ended may be sent to a device again: then another batch says so.
                let of_before = self
                    .answers
                    .get(&receipt.batch_id)
                    .is_some_and(|answer| answer.first_sequence > sequence);
                if receipt.unmatched || of_before {
                    return Ok(());
                }
                let before = self.told.insert((key, receipt.batch_id.clone()), sequence);
                // Who was forgotten comes back as a new device, of whom nothing was told.
                let first = self.known.has_forgotten(&receipt.device_id)
                    || before.is_none_or(|before| self.may_end_again(&receipt.batch_id, before));
                ensure!(first, "told twice, at {sequence}, before at {before:?}: {receipt:?}");
            }
            Some(pb::stream_event::Event::MassOutcome(mass)) => {
                let why = u8::try_from(mass.reason).ok().and_then(Failure::from_number);
                let why = why.ok_or_else(|| format!("an end without a reason: {mass:?}"))?;
                if self.is_damaged() {
                    self.damaged.mass(mass)?;
                }
                self.check_in_time(&mass.batch_id, Err(why), mass.event_time)?;
                for ordinal in mass.targets().iter() {
                    self.ended(&mass.batch_id, ordinal, Err(why), sequence)?;
                }
            }
            Some(pb::stream_event::Event::Gap(gap)) => {
                self.unreadable(gap);
                // Where a read failed just then, what could be read at another time is in the gap too.
                let unreadable = gap.by_event.get("unreadable").copied().filter(|_| !self.reads_fail);
                self.gaps += gap.events - unreadable.unwrap_or(0);
                self.missed.push((gap.first, gap.last));
            }
            Some(pb::stream_event::Event::Device(device)) => self.known.event(device, sequence),
            None => {}
        }
        Ok(())
    }

    fn ended(
        &mut self,
        batch: &str,
        ordinal: u32,
        end: Result<(), Failure>,
        sequence: u64,
    ) -> Result<(), String> {
        let key = (batch.to_owned(), ordinal);
        let sent = self.batches.get(batch).ok_or_else(|| format!("{key:?} ended, and nobody had sent it"))?;
        let device = sent
            .targets
            .get(ordinal as usize)
            .ok_or_else(|| format!("{key:?} ended as {end:?}: it has no such target"))?
            .clone();
        if self.answers.get(batch).is_some_and(|answer| answer.first_sequence > sequence) {
            // Of the time before its record was lost.
            return Ok(());
        }
        if let Some(before) = self.ends.get(&key).filter(|(_, told)| !self.may_end_again(batch, *told)) {
            return Err(format!("{key:?} ended at {sequence} as {end:?}, before as {before:?}"));
        }
        self.check_end(&key, &device, sent, end)?;
        self.ends.insert(key, (end, sequence));
        Ok(())
    }

    /// Whether it can have ended like this, from all that is known.
    fn check_end(
        &self,
        key: &(String, u32),
        device: &str,
        sent: &Sent,
        end: Result<(), Failure>,
    ) -> Result<(), String> {
        let answer = self.answers.get(&key.0);
        let possible = match end {
            Ok(()) => self.said.contains(&(device.to_owned(), sent.message)),
            Err(Failure::Expired) => {
                !sent.online_only && answer.is_none_or(|answer| answer.expires_at <= self.edge_now)
            }
            Err(Failure::Offline | Failure::Unacknowledged) => sent.online_only,
            Err(Failure::Revoked) => self.revokes_asked.contains(&sent.message),
            Err(Failure::Replaced) => !sent.collapse_key.is_empty(),
            Err(Failure::OverQuota) => self.quota,
            Err(Failure::PushDisabled) => self.switched_off.contains(device),
            Err(Failure::Unbound) => !sent.accounts[key.1 as usize].is_empty(),
            Err(Failure::Reinstalled) => self.reinstalled.contains(device),
            // What is damaged is said to be so before it ends anything.
            Err(Failure::Storage) => self.is_damaged(),
            Err(Failure::Forgotten) => self.known.forgets(),
        };
        ensure!(possible, "{key:?} of {device} can't have ended as {end:?}: {sent:?}, {answer:?}");
        Ok(())
    }

    /// The batch that sends a message to a device, if it is the only one, and its ordinal there.
    pub(crate) fn only_batch(&self, device: &str, message: u64) -> Option<(&String, &Sent, usize)> {
        let targets = |sent: &Sent| sent.targets.iter().enumerate().filter(|(_, id)| *id == device).count();
        let mut of = self.batches.iter().filter(|(_, sent)| sent.message == message && targets(sent) > 0);
        let (id, sent) = of.next()?;
        let is_only = of.next().is_none() && targets(sent) == 1;
        let ordinal = sent.targets.iter().position(|target| target == device)?;
        is_only.then_some((id, sent, ordinal))
    }

    /// Whether a message that was taken back must still be remembered as such: an earlier batch of it has not expired.
    pub(crate) fn is_remembered(&self, message: u64, revoked_at: u64, edge_now: Millis) -> bool {
        self.answers.iter().any(|(id, answer)| {
            answer.sequence < revoked_at
                && answer.expires_at > edge_now + 60_000
                && self.batches.get(id).is_some_and(|sent| sent.message == message)
        })
    }

    /// Keeps what is new of a stream; what came before must be the same. `last` is where the link is, `history` what
    /// its cursors are of.
    pub(crate) fn store(&mut self, batch: &pb::StreamBatch, last: u64, history: u64) -> Result<(), String> {
        let mut by_sequence: BTreeMap<u64, Vec<pb::StreamEvent>> = BTreeMap::new();
        let mut before = last + 1;
        for event in &batch.events {
            let at = event.sequence;
            ensure!(at >= before, "an event of {at} after everything before {before} was said");
            before = at;
            by_sequence.entry(at).or_default().push(event.clone());
        }
        ensure!(batch.cursor + 1 >= before, "cursor {} before an event at {before}", batch.cursor);
        let mut stored = std::mem::take(self.streams.entry(batch.stream.clone()).or_default());
        let is_gap = |event: &pb::StreamEvent| matches!(event.event, Some(pb::stream_event::Event::Gap(_)));
        for (sequence, events) in by_sequence {
            // What was written before it was given up may be read after the gap that took its place: by a router that stood still.
            let was_missed = self.missed.iter().any(|(first, last)| (*first..=*last).contains(&sequence));
            if let Some(known) = stored.events.get_mut(&sequence) {
                // What was damaged is whole again once all is calm: then it says what a gap stood for.
                let is_healed = self.is_damaged() && known.iter().any(is_gap);
                let told = known.iter().filter(|event| !is_gap(event));
                let is_gap_only = told.clone().next().is_none();
                let same = told.eq(&events) || *known == events || events.iter().any(is_gap) || is_healed;
                ensure!(
                    same || is_gap_only && was_missed,
                    "at {sequence} the stream says {events:?}, before it said {known:?}"
                );
                if !same {
                    known.extend(events.iter().cloned());
                    events.iter().try_for_each(|event| self.event(event))?;
                }
                continue;
            }
            let read = stored.cursor;
            let gap = events.iter().find_map(|event| match &event.event {
                Some(pb::stream_event::Event::Gap(gap)) => Some(gap),
                _ => None,
            });
            let news = sequence > read || gap.is_some() || was_missed;
            ensure!(news, "new at {sequence}, after everything up to {read} was said: {events:?}");
            events.iter().try_for_each(|event| self.event(event))?;
            stored.events.insert(sequence, events);
        }
        stored.reach(batch.cursor, history);
        self.streams.insert(batch.stream.clone(), stored);
        Ok(())
    }

    /// Batches that were answered for good, and targets that came to their end: never less, and at most all there are.
    pub(crate) fn ended_so_far(&self) -> usize {
        self.answers.len() + self.rejected.len() + self.ends.len()
    }

    /// At the end, when everything should have come to an end.
    pub(crate) fn finish(&self, totals: &Counts, stalled: bool) -> Result<(), String> {
        for id in self.batches.keys() {
            let is_answered = self.answers.contains_key(id) || self.rejected.contains_key(id);
            ensure!(is_answered, "{id} was never answered");
        }
        let (mut accepted, mut arrived, mut failed) = (0u64, 0u64, [0u64; 11]);
        for (id, answer) in &self.answers {
            accepted += u64::from(answer.accepted);
            let (sent, mut endless) = (&self.batches[id], 0);
            let in_parts = answer.first_sequence != answer.sequence;
            // As of which sequence each of several parts was decided isn't told.
            if self.is_whole() && !in_parts {
                self.known.check_answer(id, sent, answer)?;
            }
            for (ordinal, device) in (0u32..).zip(&sent.targets) {
                let key = (id.clone(), ordinal);
                let end = self.ends.get(&key);
                if let Some(reason) = answer.refused.get(&ordinal) {
                    // Of an earlier batch under this id, whose record is lost and whose entry isn't: a repeat is a duplicate, and its end comes.
                    ensure!(
                        end.is_none() || self.is_damaged(),
                        "{key:?} was refused ({reason}), and ended: {end:?}"
                    );
                    continue;
                }
                if let Some(end) = end.filter(|_| self.is_whole() && !in_parts) {
                    self.known.check_end(device, answer.sequence, end)?;
                }
                match end {
                    Some((Ok(()), _)) => arrived += 1,
                    Some((Err(why), _)) => failed[*why as usize - 1] += 1,
                    None if self.is_damaged() => endless += 1,
                    None => ensure!(
                        self.gaps > 0,
                        "lost: {key:?}, message {} of {device}, was accepted at {} and never ended: {sent:?} (expires {})",
                        sent.message,
                        answer.sequence,
                        answer.expires_at
                    ),
                }
            }
            ensure!(
                self.gaps > 0 || self.damaged.excuses(id, sent.message, answer.sequence, endless),
                "lost: {endless} targets of {id}, message {}, accepted at {}, never ended: {sent:?}",
                sent.message,
                answer.sequence
            );
        }
        // Routers repeat what may be lost without waiting: one copy was rejected, of an app that was suspended, and another one taken.
        let mut two_copies = false;
        for ((id, ordinal), end) in &self.ends {
            let was_lost = self.forgets() && self.rejected.contains_key(id);
            two_copies |= was_lost && !self.is_damaged();
            ensure!(
                was_lost || self.answers.contains_key(id),
                "{id} {ordinal} ended: {end:?}, but {id} was never accepted"
            );
        }
        ensure!(!stalled, "it never came to rest: {totals:?}");
        ensure!(totals.identity_holds(), "{totals:?}");
        ensure!(totals.pending == 0, "pending at the end: {totals:?}");
        if !self.is_damaged() && !two_copies {
            ensure!(
                totals.accepted == accepted,
                "{accepted} were answered as accepted, counted are {totals:?}"
            );
        }
        if self.gaps == 0 && !self.is_damaged() && !two_copies {
            ensure!(totals.arrived == arrived, "the stream says {arrived} arrived, counted are {totals:?}");
            ensure!(totals.failed == failed, "the stream says {failed:?} failed, counted are {totals:?}");
        }
        if self.is_whole() {
            self.known.check_events()?;
        }
        if self.gaps == 0 && self.damaged.is_readable() {
            for said in &self.confirmed {
                // Of who was forgotten meanwhile nothing is kept.
                let is_kept = self.receipts.contains(said) || self.known.has_forgotten(&said.0);
                ensure!(is_kept, "confirmed, and no receipt: {said:?}");
            }
        }
        if self.damaged.is_ordered() {
            self.check_order()?;
        }
        for (of, sessions) in &self.online {
            ensure!(sessions.len() <= 1, "retention 0, but written on sessions {sessions:?}: {of:?}");
        }
        Ok(())
    }
}
