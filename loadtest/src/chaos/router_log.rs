//! What a router sent and was told, kept over its lives as its database would: batches until they are answered, answers, ends. Pure.

use std::collections::HashMap;

use mooring::push::{Failure, Refusal};
use mooring::wire::pb::router::{
    BatchAccepted, BatchRejected, DeliverBatch, Outcome, ReceiptEvent, RejectCode,
};
use mooring::wire::router::told::{Receipt, StreamEvents, Told};

/// Milliseconds.
type Millis = u64;

/// What a message was sent for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    /// To be kept until it arrives: its retention is longer than the run.
    Long,
    /// May expire before its device is back.
    Short,
    /// Retention 0.
    Online,
}

/// The end of one target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct End {
    /// `None`: it arrived.
    pub(super) failure: Option<Failure>,
    /// Where it stands in the journal.
    pub(super) sequence: u64,
    /// When the router was told.
    pub(super) told: Millis,
    /// When it was first written to a connection, as the edge says; 0: not, or not known.
    pub(super) sent: Millis,
}

/// What the edge said of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Target {
    /// Nothing yet.
    #[default]
    Open,
    /// Not taken.
    Refused(Refusal),
    /// Its end.
    Ended(End),
}

/// The answer to a batch, of all its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Accepted {
    /// Where the first part stands in the journal, and the last one: the same, if there is one only.
    pub(super) first: u64,
    pub(super) last: u64,
    /// When the last part was accepted.
    pub(super) at: Millis,
    pub(super) expires_at: Millis,
}

/// One batch; each is a message of its own.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) message: u64,
    pub(super) kept: Kept,
    /// The router asked to take it back.
    pub(super) revoked: bool,
    /// By ordinal: which device.
    pub(super) devices: Vec<u32>,
    /// By ordinal.
    pub(super) targets: Vec<Target>,
    /// What is to be sent again by the router's next life; until it is answered.
    unanswered: Option<DeliverBatch>,
    pub(super) accepted: Option<Accepted>,
    pub(super) rejected: Option<RejectCode>,
}

/// Everything of one router.
#[derive(Default, Debug)]
pub(super) struct RouterLog {
    /// In the order in which they were made.
    pub(super) batches: Vec<Batch>,
    by_id: HashMap<String, usize>,
    /// (epoch, sequence) of the newest event of the stream.
    newest: (u64, u64),
    /// Clicks and cleans, and which record told each: (message, device id, event).
    reactions: HashMap<(u64, String, ReceiptEvent), u64>,
    /// Second ends of a target that differ from the first, second answers, clicks and cleans that were counted twice or matched nothing.
    pub(super) conflicts: u64,
    /// Events behind one that stands later in the journal, read over one opening of the stream.
    pub(super) reordered: u64,
    /// Events that the edge says it dropped.
    pub(super) gaps: u64,
    /// Ends of batches and targets that this router never had.
    pub(super) foreign: u64,
    /// Events that were told again.
    pub(super) repeated: u64,
    /// Times a batch was put off.
    pub(super) put_off: u64,
    /// Batches without an answer.
    pub(super) waiting: usize,
}

impl RouterLog {
    /// Notes a batch before it is sent.
    pub(super) fn made(&mut self, batch: &DeliverBatch, devices: Vec<u32>, kept: Kept) {
        self.by_id.insert(batch.batch_id.clone(), self.batches.len());
        self.waiting += 1;
        self.batches.push(Batch {
            message: batch.message_id,
            kept,
            revoked: false,
            targets: vec![Target::Open; devices.len()],
            devices,
            unanswered: Some(batch.clone()),
            accepted: None,
            rejected: None,
        });
    }

    /// What the next life of the router sends again, in its order.
    pub(super) fn unanswered(&self) -> Vec<DeliverBatch> {
        self.batches.iter().filter_map(|batch| batch.unanswered.clone()).collect()
    }

    /// The router asks to take a message back from now on.
    pub(super) fn revoking(&mut self, message: u64) {
        // Lately made, as a rule.
        if let Some(batch) = self.batches.iter_mut().rev().find(|batch| batch.message == message) {
            batch.revoked = true;
        }
    }

    /// Targets without an answer or an end, and batches without an answer: parts of these may have ended before.
    pub(super) fn open(&self) -> usize {
        let open = |b: &Batch| b.targets.iter().filter(|t| **t == Target::Open).count();
        self.batches.iter().filter(|b| b.rejected.is_none()).map(open).sum::<usize>() + self.waiting
    }

    /// A batch is durable.
    pub(super) fn accepted(&mut self, answer: &BatchAccepted) {
        let Some(batch) = self.of(&answer.batch_id) else { return };
        let said = Accepted {
            first: if answer.first_sequence > 0 { answer.first_sequence } else { answer.sequence },
            last: answer.sequence,
            at: answer.accepted_at,
            expires_at: answer.expires_at,
        };
        let first = batch.accepted.is_none();
        let conflict = batch.rejected.is_some() || batch.accepted.is_some_and(|before| before != said);
        let answered = usize::from(batch.unanswered.take().is_some());
        batch.accepted = Some(said);
        let (mut refused, mut had_end) = (0, false);
        for refusals in &answer.refused {
            let reason = u8::try_from(refusals.reason).ok().and_then(Refusal::from_number);
            for ordinal in &refusals.ordinals {
                refused += 1;
                let target = batch.targets.get_mut(*ordinal as usize);
                let (Some(target), Some(reason)) = (target, reason) else { continue };
                had_end |= matches!(target, Target::Ended(_));
                *target = Target::Refused(reason);
            }
        }
        // What is counted and what is listed must be one.
        let adds_up = answer.accepted as usize + refused == batch.targets.len();
        self.waiting -= answered;
        self.conflicts += u64::from(conflict || had_end || (first && !adds_up));
    }

    /// A batch was not taken; of one that was put off, parts may have been.
    pub(super) fn rejected(&mut self, answer: &BatchRejected) {
        let code = answer.code();
        if matches!(code, RejectCode::ResourceExhausted | RejectCode::Unavailable) {
            self.put_off += 1;
            return;
        }
        let Some(batch) = self.of(&answer.batch_id) else { return };
        let answered = usize::from(batch.unanswered.take().is_some());
        batch.rejected = Some(code);
        let conflict = batch.accepted.is_some();
        self.waiting -= answered;
        self.conflicts += u64::from(conflict);
    }

    fn of(&mut self, batch_id: &str) -> Option<&mut Batch> {
        if let Some(at) = self.by_id.get(batch_id) {
            return self.batches.get_mut(*at);
        }
        self.foreign += 1;
        None
    }

    /// Events came, at this time.
    pub(super) fn events(&mut self, came: &StreamEvents<'_>, at: Millis) {
        for (sequence, event) in &came.events {
            let sequence = *sequence;
            if self.newest.0 == came.epoch && sequence < self.newest.1 {
                self.reordered += 1;
            }
            self.newest = (came.epoch, sequence);
            match event {
                Told::Receipt(receipt) => {
                    let failure = match receipt.outcome() {
                        Outcome::None => {
                            self.receipt(sequence, receipt);
                            continue;
                        }
                        Outcome::Arrived => None,
                        Outcome::Failed => match receipt.failure() {
                            // A reason that nobody knows is none.
                            None => continue,
                            known => known,
                        },
                    };
                    let end = End { failure, sequence, told: at, sent: receipt.sent_time };
                    self.ended(receipt.batch_id, receipt.ordinal, end);
                }
                Told::Mass(mass) => {
                    let Some(failure) = mass.failure() else { continue };
                    let end = End { failure: Some(failure), sequence, told: at, sent: 0 };
                    for ordinal in mass.targets().iter() {
                        self.ended(&mass.batch_id, ordinal, end);
                    }
                }
                Told::Gap(gap) => self.gaps += gap.events,
                Told::Device(_) | Told::Unknown => {}
            }
        }
    }

    /// A receipt that is no end.
    fn receipt(&mut self, sequence: u64, receipt: &Receipt<'_>) {
        if !matches!(receipt.event(), ReceiptEvent::Click | ReceiptEvent::Clean) {
            return;
        }
        let key = (receipt.message_id, receipt.device_id.to_owned(), receipt.event());
        match self.reactions.insert(key, sequence) {
            Some(before) if before == sequence => self.repeated += 1,
            Some(_) => self.conflicts += 1,
            None => {}
        }
        self.conflicts += u64::from(receipt.unmatched);
    }

    /// Whether it was told of a click or clean.
    pub(super) fn was_told(&self, message: u64, device_id: &str, event: ReceiptEvent) -> bool {
        self.reactions.contains_key(&(message, device_id.to_owned(), event))
    }

    /// Clicks and cleans that it was told of.
    pub(super) fn reactions(&self) -> usize {
        self.reactions.len()
    }

    fn ended(&mut self, batch_id: &str, ordinal: u32, end: End) {
        let target = self.of(batch_id).map(|batch| batch.targets.get_mut(ordinal as usize));
        match target {
            None => {}
            Some(None) => self.foreign += 1,
            Some(Some(target)) => match *target {
                Target::Open => *target = Target::Ended(end),
                Target::Ended(before) if before.failure == end.failure => self.repeated += 1,
                Target::Ended(_) | Target::Refused(_) => self.conflicts += 1,
            },
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mooring::wire::pb::router::{MassOutcome, Refused};

    use super::super::phones::device_id;
    use super::*;

    pub(in super::super) fn made(message: u64, devices: &[u32], kept: Kept) -> RouterLog {
        let mut log = RouterLog::default();
        let batch = DeliverBatch { batch_id: "b".into(), message_id: message, ..DeliverBatch::default() };
        log.made(&batch, devices.to_vec(), kept);
        log
    }

    pub(in super::super) fn accepted(count: u32) -> BatchAccepted {
        BatchAccepted {
            batch_id: "b".into(),
            sequence: 7,
            accepted: count,
            expires_at: 1_000,
            ..Default::default()
        }
    }

    pub(in super::super) fn events(sequence: u64, event: Told<'_>) -> StreamEvents<'_> {
        StreamEvents { stream: "main", epoch: 1, cursor: sequence, events: vec![(sequence, event)] }
    }

    pub(in super::super) fn arrived(ordinal: u32) -> Told<'static> {
        let outcome = Outcome::Arrived.into();
        Told::Receipt(Receipt { batch_id: "b", ordinal, outcome, ..Receipt::default() })
    }

    pub(in super::super) fn receipt(message_id: u64, device_id: &str, event: ReceiptEvent) -> Receipt<'_> {
        Receipt { event: event.into(), message_id, device_id, ..Receipt::default() }
    }

    pub(in super::super) fn failed(ordinals: u8, failure: Failure) -> Told<'static> {
        let (ordinals, reason) = (vec![ordinals], failure as i32);
        Told::Mass(MassOutcome { batch_id: "b".into(), ordinals, reason, ..Default::default() })
    }

    #[test]
    fn a_batch_is_sent_again_until_it_is_answered_and_settled_once_each_target_has_its_end() {
        let mut log = made(1, &[4, 5, 6], Kept::Long);
        assert_eq!((log.unanswered().len(), log.waiting, log.open()), (1, 1, 4));
        let refused = vec![Refused { reason: Refusal::Offline as i32, ordinals: vec![1] }];
        log.accepted(&BatchAccepted { refused, ..accepted(2) });
        assert_eq!((log.unanswered().len(), log.waiting, log.open()), (0, 0, 2));
        log.events(&events(8, arrived(0)), 50);
        log.events(&events(9, failed(0b100, Failure::Expired)), 60);
        assert_eq!(log.open(), 0);
        assert_eq!((log.conflicts, log.foreign, log.reordered), (0, 0, 0));
        assert_eq!(log.batches[0].targets[1], Target::Refused(Refusal::Offline));
        let (first, last) = log.batches[0].accepted.map(|a| (a.first, a.last)).unwrap_or_default();
        assert_eq!((first, last), (7, 7));
    }

    #[test]
    fn ends_of_the_first_parts_may_come_before_the_answer() {
        let mut log = made(1, &[4, 5], Kept::Long);
        log.events(&events(6, arrived(0)), 50);
        log.events(&events(9, arrived(1)), 50);
        assert_eq!((log.open(), log.unanswered().len()), (1, 1));
        log.accepted(&BatchAccepted { first_sequence: 5, ..accepted(2) });
        assert_eq!((log.open(), log.conflicts), (0, 0));
        let (first, last) = log.batches[0].accepted.map(|a| (a.first, a.last)).unwrap_or_default();
        assert_eq!((first, last), (5, 7));
    }

    #[test]
    fn a_second_end_is_a_repeat_if_it_says_the_same_and_a_conflict_if_not() {
        let mut log = made(1, &[4], Kept::Long);
        log.accepted(&accepted(1));
        log.events(&events(8, arrived(0)), 50);
        log.events(&events(8, arrived(0)), 51);
        assert_eq!((log.repeated, log.conflicts), (1, 0));
        log.events(&events(9, failed(1, Failure::Expired)), 52);
        assert_eq!((log.repeated, log.conflicts), (1, 1));
    }

    #[test]
    fn a_click_that_matched_nothing_is_a_conflict() {
        let mut log = made(1, &[4], Kept::Long);
        let device = device_id(4);
        let unmatched = Receipt { unmatched: true, ..receipt(1, &device, ReceiptEvent::Click) };
        log.events(&events(9, Told::Receipt(unmatched)), 50);
        assert_eq!(log.conflicts, 1);
    }

    #[test]
    fn counts_that_do_not_add_up_and_changed_answers_are_conflicts() {
        let mut log = made(1, &[4, 5], Kept::Long);
        log.accepted(&accepted(1));
        assert_eq!(log.conflicts, 1);
        log.accepted(&BatchAccepted { sequence: 8, ..accepted(2) });
        assert_eq!(log.conflicts, 2);
        log.accepted(&BatchAccepted { sequence: 8, first_sequence: 7, ..accepted(2) });
        assert_eq!(log.conflicts, 3);
        log.rejected(&BatchRejected {
            batch_id: "b".into(),
            code: RejectCode::Expired.into(),
            ..Default::default()
        });
        assert_eq!(log.conflicts, 4);
    }

    #[test]
    fn an_end_of_a_refused_target_is_a_conflict_and_one_of_nobody_is_foreign() {
        let mut log = made(1, &[4], Kept::Long);
        let refused = vec![Refused { reason: Refusal::Offline as i32, ordinals: vec![0] }];
        log.accepted(&BatchAccepted { refused, ..accepted(0) });
        log.events(&events(8, arrived(0)), 50);
        assert_eq!(log.conflicts, 1);
        log.events(&events(9, arrived(3)), 50);
        assert_eq!(log.foreign, 1);
    }

    #[test]
    fn events_come_in_the_order_of_the_journal_on_each_opening() {
        let mut log = made(1, &[4, 5], Kept::Long);
        log.accepted(&accepted(2));
        log.events(&events(9, arrived(0)), 50);
        log.events(&StreamEvents { epoch: 2, ..events(8, arrived(0)) }, 50);
        assert_eq!(log.reordered, 0);
        log.events(&StreamEvents { epoch: 2, ..events(7, arrived(1)) }, 50);
        assert_eq!(log.reordered, 1);
    }
}
