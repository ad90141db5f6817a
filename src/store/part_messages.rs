//! A part's push records and live batches: how each journal record changes them. The same code runs when a record is made and when it is
//! replayed. A record that is looked for must be in memory: see [`super::engine`]'s tables.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::batch::Batch;
use super::ledger::Ledger;
use super::part::{Entry, Part};
use super::push_record::{MessageKey, Numbers, PushRecord};
use super::record::Who;
use crate::ids::{AppKey, MessageId, Seq};
use crate::push::{Failure, Millis, Receipt, ReceiptKind, Refusal};

/// Push records that are looked at for what may go when a new one comes: of those that may all go, and unfinished ones are passed over.
const PASSED_OVER: usize = 16;

/// What a batch record says to its message's push record.
pub(super) struct Acceptance<'a> {
    pub(super) app: &'a AppKey,
    pub(super) message: MessageId,
    pub(super) seq: Seq,
    pub(super) body_digest: [u8; 16],
    pub(super) accepted_at: Millis,
    pub(super) expires_at: Millis,
    pub(super) job_key: &'a Arc<str>,
    /// Which part of a batch: the batch counts with the first one.
    pub(super) part: u32,
    pub(super) named: u32,
    pub(super) refused: &'a [(u32, Refusal)],
    /// In the same order.
    pub(super) refused_who: &'a [Who],
    pub(super) numbers: Numbers<'a>,
    pub(super) accepted: u32,
}

/// How many push records a part keeps, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordBounds {
    pub(super) max: usize,
    pub(super) kept_ms: Millis,
}

/// An end of entries, for the push record.
pub(super) struct End<'a> {
    pub(super) app: &'a AppKey,
    pub(super) at: Millis,
    pub(super) outcome: Result<(), Failure>,
    pub(super) count: u32,
    pub(super) numbers: Numbers<'a>,
}

/// An entry that is gone from its device's list: it arrived, as its record says.
pub(super) struct Arrival {
    pub(super) entry: Entry,
    /// Of that record.
    pub(super) seq: Seq,
    pub(super) number: u32,
    pub(super) event_time: Millis,
    /// As the record has it: 0 if it isn't known, or was reported before.
    pub(super) sent_at: Millis,
}

impl Part {
    /// A batch was accepted: its push record and the statistics.
    pub(super) fn accept(
        &mut self,
        key: MessageKey,
        what: &Acceptance<'_>,
        bounds: RecordBounds,
        ledger: &mut Ledger,
    ) {
        if !self.messages.contains_key(&key) {
            self.forget_messages(what.accepted_at, bounds, ledger);
            self.message_order.push_back(key);
            let of = (what.app.clone(), what.message);
            let job_key = what.job_key.clone();
            let mut record =
                PushRecord::new(of, what.body_digest, what.accepted_at, what.expires_at, job_key);
            record.row = what.seq;
            ledger.hot_bytes += record.bytes as usize;
            ledger.hot.push(key);
            self.messages.insert(key, record);
        }
        let Some(record) = self.messages.get_mut(&key) else { return };
        let (named, accepted) = (u64::from(what.named), u64::from(what.accepted));
        record.expires_at = record.expires_at.max(what.expires_at);
        let first = u32::from(what.part == 0);
        record.batches += first;
        record.named += named;
        record.accepted += accepted;
        record.pending += accepted;
        record.targets.add(&what.numbers);
        if let Numbers::Many(numbers) = what.numbers {
            // Until its row is written, and tells.
            let bytes = numbers.serialized_size() as u32;
            record.bytes += bytes;
            ledger.hot_bytes += bytes as usize;
        }
        for (&(_, reason), who) in what.refused.iter().zip(what.refused_who) {
            record.add_refused(reason, who.number());
        }
        changed(record, key, ledger);
        ledger.count_pending(accepted, 0);
        ledger.count(what.app, what.accepted_at, |counts| {
            counts.batches += u64::from(first);
            counts.targets += named;
            counts.accepted += accepted;
            for &(_, reason) in what.refused {
                counts.refused[reason as usize - 1] += 1;
            }
        });
    }

    /// Makes room for a push record: the first accepted go that are old, or too many, but never one with pending entries. Where there are far too many,
    /// as the maximum was lowered, that takes some new ones until they fit.
    fn forget_messages(&mut self, now: Millis, bounds: RecordBounds, ledger: &mut Ledger) {
        for _ in 0..PASSED_OVER {
            let full = self.known_messages() >= bounds.max;
            let Some(oldest) = self.message_order.front().copied() else { return };
            let hot =
                self.messages.get(&oldest).map(|record| (record.row, record.accepted_at, record.pending > 0));
            let cold =
                || self.cold.get(&oldest).map(|cold| (cold.row, cold.accepted_at(), cold.is_pending()));
            let Some((row, accepted_at, pending)) = hot.or_else(cold) else {
                self.message_order.pop_front();
                continue;
            };
            if !full && accepted_at.saturating_add(bounds.kept_ms) > now {
                return;
            }
            self.message_order.pop_front();
            if pending {
                self.message_order.push_back(oldest);
                continue;
            }
            self.cold.remove(&oldest);
            if let Some(record) = self.messages.remove(&oldest) {
                ledger.hot_bytes -= record.bytes as usize;
                ledger.hot_gone += 1;
            }
            ledger.gone.push(row);
        }
    }

    /// Whether a push record could go to make room for another.
    pub(super) fn may_forget(&self) -> bool {
        let finished = |key: &MessageKey| match self.messages.get(key) {
            Some(record) => record.pending == 0,
            None => self.cold.get(key).is_none_or(|cold| !cold.is_pending()),
        };
        self.message_order.iter().take(PASSED_OVER).any(finished)
    }

    /// `count` entries of a batch ended. Answers the batch, if these were its last; [`Ended::Unknown`] if it isn't known, which only a damaged
    /// journal can cause: then nothing should change, so that the sums stay right.
    pub(super) fn end(&mut self, seq: Seq, count: u32) -> Ended {
        let Some(batch) = self.batches.get(&seq) else { return Ended::Unknown };
        // Never more than are left, whatever a damaged journal says.
        let count = count.min(batch.live.load(Ordering::Relaxed));
        if batch.live.fetch_sub(count, Ordering::Relaxed) > count {
            return Ended::Some(count);
        }
        self.batches.remove(&seq).map_or(Ended::Unknown, |batch| Ended::All(count, batch))
    }

    /// The same for the push record and the statistics.
    pub(super) fn count_end(&mut self, key: MessageKey, end: &End<'_>, ledger: &mut Ledger) {
        let Some(record) = self.messages.get_mut(&key) else { return };
        let count = u64::from(end.count).min(record.pending);
        record.pending -= count;
        match end.outcome {
            Ok(()) => {
                record.arrived += count;
                record.arrived_on.add(&end.numbers);
            }
            Err(reason) => {
                let (failed, devices) = record.failed_by(reason);
                *failed += count;
                devices.add(&end.numbers);
            }
        }
        changed(record, key, ledger);
        ledger.count_pending(0, count);
        ledger.count(end.app, end.at, |counts| match end.outcome {
            Ok(()) => counts.arrived += count,
            Err(reason) => counts.failed[reason as usize - 1] += count,
        });
    }

    /// What [`Self::count_receipt`], [`Self::end`] and [`Self::count_end`] do, for arrivals of one batch at once. What is left of it.
    pub(super) fn arrived(&mut self, batch: &Batch, arrivals: &[Arrival], ledger: &mut Ledger) -> Ended {
        let ended = self.end(batch.seq, arrivals.len() as u32);
        let Some(record) = self.messages.get_mut(&batch.home) else { return ended };
        let sent = arrivals.iter().filter(|one| record.sent_to.insert(one.number));
        let times = sent.map(|one| if one.sent_at == 0 { one.event_time } else { one.sent_at });
        ledger.count_times(&batch.app, times, |counts, times| counts.sent += times);
        // Fewer only if the journal was damaged.
        let arrivals = &arrivals[..ended.count().unwrap_or(0) as usize];
        for one in arrivals {
            record.arrived_on.insert(one.number);
        }
        let count = (arrivals.len() as u64).min(record.pending);
        record.pending -= count;
        record.arrived += count;
        changed(record, batch.home, ledger);
        ledger.count_pending(0, count);
        let times = arrivals[..count as usize].iter().map(|one| one.event_time);
        ledger.count_times(&batch.app, times, |counts, times| counts.arrived += times);
        ended
    }

    /// A receipt's effect beside the end of its entry.
    pub(super) fn count_receipt(
        &mut self,
        key: MessageKey,
        receipt: &Receipt,
        number: u32,
        ledger: &mut Ledger,
    ) {
        let Some(record) = self.messages.get_mut(&key) else { return };
        let app = &receipt.app;
        if receipt.says_sent() && record.sent_to.insert(number) {
            let at = if receipt.sent_at == 0 { receipt.event_time } else { receipt.sent_at };
            ledger.count(app, at, |counts| counts.sent += 1);
        }
        match receipt.kind {
            ReceiptKind::Click if record.clicked.insert(number) => {
                ledger.count(app, receipt.event_time, |counts| counts.clicked += 1);
            }
            ReceiptKind::Clean if record.cleaned.insert(number) => {
                ledger.count(app, receipt.event_time, |counts| counts.cleaned += 1);
            }
            ReceiptKind::Arrive if receipt.late => {
                record.arrived_late.insert(number);
            }
            _ => {}
        }
        if receipt.late {
            record.late += 1;
            ledger.count(app, receipt.event_time, |counts| counts.late += 1);
        }
        changed(record, key, ledger);
    }
}

/// It has to be written.
fn changed(record: &mut PushRecord, key: MessageKey, ledger: &mut Ledger) {
    if !std::mem::replace(&mut record.dirty, true) {
        ledger.changed.push(key);
    }
}

/// What is left of a batch whose entries ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The batch isn't known.
    Unknown,
    /// So many ended, others are pending.
    Some(u32),
    /// So many ended, and nothing is left.
    All(u32, Arc<Batch>),
}

impl Ended {
    /// How many.
    pub(super) fn count(&self) -> Option<u32> {
        match self {
            Self::Unknown => None,
            Self::Some(count) | Self::All(count, _) => Some(*count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::{Attributes, Channel};
    use roaring::RoaringBitmap;

    const DAY: Millis = 86_400_000;

    fn app() -> AppKey {
        AppKey::parse("app").expect("valid")
    }

    fn key(message: u64) -> MessageKey {
        MessageKey::of(&app(), MessageId(message))
    }

    /// A message for two devices, accepted on the day of its number.
    fn accept(part: &mut Part, ledger: &mut Ledger, message: u64, max: usize) {
        accept_on(message, part, ledger, message, max);
    }

    fn accept_on(day: u64, part: &mut Part, ledger: &mut Ledger, message: u64, max: usize) {
        let numbers = RoaringBitmap::from_iter([1, 2]);
        let what = Acceptance {
            app: &app(),
            message: MessageId(message),
            seq: Seq(message),
            body_digest: [1; 16],
            accepted_at: day * DAY,
            expires_at: day * DAY + 1,
            job_key: &"job".into(),
            part: 0,
            named: 2,
            refused: &[],
            refused_who: &[],
            numbers: Numbers::Many(&numbers),
            accepted: 2,
        };
        part.accept(key(message), &what, RecordBounds { max, kept_ms: 7 * DAY }, ledger);
        let bytes: usize = part.messages.values().map(|record| record.bytes as usize).sum();
        assert_eq!(ledger.hot_bytes, bytes, "what is counted as in memory is what is there");
    }

    fn end(part: &mut Part, ledger: &mut Ledger, message: u64) {
        let numbers = Numbers::One(1);
        let end = End { app: &app(), at: message * DAY, outcome: Ok(()), count: 2, numbers };
        part.count_end(key(message), &end, ledger);
    }

    fn arrive(arrival: &Arrival) -> Receipt {
        Receipt {
            kind: ReceiptKind::Arrive,
            outcome: Some(Ok(())),
            app: app(),
            message: MessageId(1),
            target: None,
            device_id: "d".into(),
            event_time: arrival.event_time,
            raw_event_time: arrival.event_time,
            sent_at: arrival.sent_at,
            channel: Channel::Online,
            last_active: 0,
            client_ip: None,
            attributes: Attributes::whole([].as_slice().into()),
            job_key: "job".into(),
            after: None,
            late: false,
            unmatched: false,
            implied: false,
        }
    }

    /// Two devices acknowledge, on two days. `live`: entries that the batch has; one is missing only if the journal was damaged.
    #[test]
    fn arrivals_change_the_same_at_once_as_one_by_one() {
        for (live, left) in [(3, true), (2, false), (1, false)] {
            let batch = Arc::new(Batch::of_test(Seq(1), MessageId(1), DAY));
            let made = || {
                let (mut part, mut ledger) = (Part::default(), Ledger::new(0));
                accept(&mut part, &mut ledger, 1, 9);
                batch.count_live(live);
                part.batches.insert(Seq(1), batch.clone());
                (part, ledger)
            };
            let arrival = |number: u32, event_time: Millis, sent_at: Millis| Arrival {
                entry: Entry::new(batch.clone(), number, 0),
                seq: Seq(9),
                number,
                event_time,
                sent_at,
            };
            let arrivals = [arrival(1, DAY + 5, 0), arrival(2, 2 * DAY, DAY + 7)];
            let (mut apart, mut ledger_apart) = made();
            for one in &arrivals {
                apart.count_receipt(key(1), &arrive(one), one.number, &mut ledger_apart);
                if let Some(count) = apart.end(Seq(1), 1).count() {
                    let numbers = Numbers::One(one.number);
                    let end = End { app: &app(), at: one.event_time, outcome: Ok(()), count, numbers };
                    apart.count_end(key(1), &end, &mut ledger_apart);
                }
            }
            let (mut together, mut ledger) = made();
            together.arrived(&batch, &arrivals, &mut ledger);
            assert_eq!(together.messages, apart.messages);
            assert_eq!(together.batches.contains_key(&Seq(1)), left);
            assert_eq!(batch.live.load(Ordering::Relaxed), live.saturating_sub(2));
            assert_eq!(ledger.totals, ledger_apart.totals);
            assert_eq!(ledger.days(&app(), 3, 3 * DAY), ledger_apart.days(&app(), 3, 3 * DAY));
        }
    }

    fn known(part: &Part) -> Vec<u64> {
        (1..30).filter(|message| part.messages.contains_key(&key(*message))).collect()
    }

    #[test]
    fn push_records_go_when_they_are_old_or_too_many_but_not_while_something_is_pending() {
        let (mut part, mut ledger) = (Part::default(), Ledger::new(0));
        for message in 1..=3 {
            accept(&mut part, &mut ledger, message, 3);
        }
        assert!(!part.may_forget(), "all are pending");
        end(&mut part, &mut ledger, 2);
        assert!(part.may_forget());
        accept(&mut part, &mut ledger, 4, 3);
        assert_eq!(
            (known(&part), &ledger.gone[..]),
            (vec![1, 3, 4], &[Seq(2)][..]),
            "the first that has ended"
        );
        for message in [1, 3, 4] {
            end(&mut part, &mut ledger, message);
        }
        // A week is over for the one of the third day with its last millisecond, for that of the fourth not yet.
        accept(&mut part, &mut ledger, 10, 9);
        assert_eq!(known(&part), [4, 10]);
        accept(&mut part, &mut ledger, 11, 9);
        assert_eq!((known(&part), ledger.gone.len()), (vec![10, 11], 4));
    }

    /// The configuration allows fewer than are known. A bounded number goes for each new one, and the one with pending entries stays.
    #[test]
    fn a_lower_maximum_of_push_records_is_reached() {
        let (mut part, mut ledger) = (Part::default(), Ledger::new(0));
        for message in 1..=40 {
            accept_on(1, &mut part, &mut ledger, message, 50);
        }
        (2..=40).for_each(|message| end(&mut part, &mut ledger, message));
        for (message, left) in [(41, 26), (42, 11), (43, 5), (44, 5)] {
            accept_on(1, &mut part, &mut ledger, message, 5);
            assert_eq!(part.messages.len(), left, "{message}");
            assert!([1, message].iter().all(|one| part.messages.contains_key(&key(*one))));
        }
        assert_eq!(ledger.gone.len(), 39);
    }
}
