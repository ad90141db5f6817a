//! What happened to a device, or to one message on it, read back from the journal: for who troubleshoots.
//!
//! Nothing is kept in memory for it. One question looks no further than [`BOUNDS`], on the asker's thread.
//! Rejected: the last events of each device in memory, which would double what an idle device costs.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;

use super::codec::Malformed;
use super::disk::Disk;
use super::journal::{JournalReader, ReadError, Record};
use super::push_record::take_bitmap;
use super::record::{self, BatchRecord, MassRecord, ReceiptRecord, take_refused};
use super::{Happened, History, HistoryOf, What};
use crate::clock::Clock;
use crate::ids::Seq;
use crate::push::{Failure, Millis, ReceiptKind};

/// How far one question looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of records.
    pub(super) bytes: u64,
    /// Time, in microseconds.
    pub(super) micros: u64,
}

/// Of every question.
pub(super) const BOUNDS: Bounds = Bounds { bytes: 64 * 1024 * 1024, micros: 2_000_000 };
/// Events of an answer; more are dropped from the oldest end.
const EVENTS: usize = 64;

struct Scan<'a> {
    of: &'a HistoryOf,
    /// The device's targets: batch and ordinal. As many as there are batches in what is looked at.
    targets: HashSet<(Seq, u32)>,
    events: VecDeque<Happened>,
}

/// Reads within the bounds; a segment that is trimmed meanwhile ends it early.
pub(super) fn read<D: Disk>(
    reader: &JournalReader<D>,
    clock: &Clock,
    of: &HistoryOf,
    bounds: Bounds,
) -> std::io::Result<History> {
    let mut after = match of.message {
        Some((_, first)) => Seq(first.0.saturating_sub(1)),
        None => reader.tail(bounds.bytes),
    };
    after = after.max(Seq(reader.oldest().0.saturating_sub(1)));
    let mut scan = Scan { of, targets: HashSet::new(), events: VecDeque::new() };
    let (mut bytes, mut times, mut is_cut) = (0, None::<(Millis, Millis)>, false);
    let until = clock.micros() + bounds.micros;
    let scanned = reader.scan(after, &mut None, &mut |record| {
        bytes += record.payload.len() as u64;
        let from = times.map_or(record.group_time, |(from, _)| from);
        times = Some((from, record.group_time));
        // A record that isn't understood is no reason to say nothing of the others.
        if scan.take(record).is_err() {
            tracing::debug!(sequence = %record.seq, "a record isn't understood");
        }
        is_cut = bytes >= bounds.bytes || clock.micros() >= until;
        if is_cut { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match scanned {
        Ok(()) => {}
        Err(ReadError::Gone | ReadError::Damaged(_)) => is_cut = true,
        Err(ReadError::Io(error)) => return Err(error),
    }
    let now = clock.now();
    let (from, to) = times.unwrap_or((now, now));
    Ok(History { events: scan.events.into(), from, to, is_cut })
}

impl Scan<'_> {
    fn take(&mut self, at: Record<'_>) -> Result<(), Malformed> {
        match at.kind {
            record::BATCH => self.batch(&BatchRecord::decode(at.payload)?),
            record::RECEIPT => {
                self.receipt(&ReceiptRecord::decode(at.payload)?);
                Ok(())
            }
            record::MASS => self.mass(&MassRecord::decode(at.payload)?),
            _ => Ok(()),
        }
    }

    fn wants(&self, app: &str, message: crate::ids::MessageId) -> bool {
        app == self.of.app.as_str() && self.of.message.is_none_or(|(wanted, _)| wanted == message)
    }

    fn note(&mut self, event: Happened) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn batch(&mut self, batch: &BatchRecord<'_>) -> Result<(), Malformed> {
        if !self.wants(batch.app, batch.message) {
            return Ok(());
        }
        let happened = |what| Happened { at: batch.accepted_at, what, message: batch.message, sent_at: None };
        let target = batch.targets()?.into_iter().find(|target| target.key == self.of.device);
        if let Some(target) = target {
            self.targets.insert((batch.seq, target.ordinal));
            self.note(happened(What::Accepted));
            // Its end stands in the same record.
            if batch.unbound.contains(target.ordinal) {
                self.note(happened(What::Failed(Failure::Unbound)));
            }
        }
        for (who, (_, why)) in record::take_who(batch.refused_who)?.iter().zip(take_refused(batch.refused)?) {
            if who.is(&self.of.device, self.of.number) {
                self.note(happened(What::Refused(why)));
            }
        }
        Ok(())
    }

    fn receipt(&mut self, record: &ReceiptRecord) {
        let receipt = &record.receipt;
        if record.key != self.of.device || !self.wants(receipt.app.as_str(), receipt.message) {
            return;
        }
        let what = match (receipt.kind, receipt.outcome) {
            _ if receipt.unmatched => What::Unmatched,
            (_, Some(Ok(()))) => What::Arrived,
            (_, Some(Err(why))) => What::Failed(why),
            (ReceiptKind::Arrive, None) => What::Late,
            (ReceiptKind::Click, None) => What::Clicked,
            (ReceiptKind::Clean, None) => What::Cleaned,
            (ReceiptKind::Sent | ReceiptKind::SentFail, None) => What::Sent,
        };
        let sent_at = (receipt.sent_at > 0).then_some(receipt.sent_at);
        self.note(Happened { at: receipt.event_time, what, message: receipt.message, sent_at });
    }

    fn mass(&mut self, record: &MassRecord) -> Result<(), Malformed> {
        let mass = &record.mass;
        if !self.wants(mass.app.as_str(), mass.message) {
            return Ok(());
        }
        let is_named = self
            .targets
            .iter()
            .any(|(batch, ordinal)| *batch == record.batch && mass.ordinals.contains(*ordinal));
        let is_numbered = match self.of.number {
            Some(number) if !is_named => take_bitmap(&record.numbers)?.contains(number),
            _ => false,
        };
        // Entries whose record was lost have no ordinal: of those, the push record knows.
        let is_lost = mass.reason == Failure::Storage
            && mass.ordinals.is_empty()
            && self.targets.iter().any(|(batch, _)| *batch == record.batch);
        if is_named || is_numbered || is_lost {
            let what = What::Failed(mass.reason);
            self.note(Happened { at: mass.event_time, what, message: mass.message, sent_at: None });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use super::*;
    use crate::ids::{AppKey, BatchId, DeviceKey, MessageId};
    use crate::push::MassOutcome;
    use crate::store::push_record::bitmap_bytes;

    fn mass(reason: Failure, batch: u64, ordinals: &[u32], numbers: &[u32]) -> MassRecord {
        let mass = MassOutcome {
            app: AppKey::parse("app").expect("valid"),
            message: MessageId(1),
            batch: BatchId::parse("b").expect("valid"),
            reason,
            event_time: 9,
            ordinals: ordinals.iter().copied().collect(),
            count: 1,
            job_key: "".into(),
        };
        let numbers: RoaringBitmap = numbers.iter().copied().collect();
        MassRecord { mass, batch: Seq(batch), numbers: bitmap_bytes(&numbers) }
    }

    /// Whether an end is told of the device with this number, which is the third target of batch 5.
    fn is_told(number: Option<u32>, record: &MassRecord) -> bool {
        let app = AppKey::parse("app").expect("valid");
        let of = HistoryOf { app, device: DeviceKey([1; 16]), number, message: Some((MessageId(1), Seq(1))) };
        let targets = [(Seq(5), 2)].into();
        let mut scan = Scan { of: &of, targets, events: VecDeque::new() };
        scan.mass(record).expect("well formed");
        let told: Vec<_> = scan.events.iter().map(|event| (event.at, event.what, event.message)).collect();
        assert!(told.is_empty() || told == [(9, What::Failed(record.mass.reason), MessageId(1))], "{told:?}");
        !told.is_empty()
    }

    #[test]
    fn an_end_of_many_is_told_of_those_whom_it_names_and_nobody_else() {
        use Failure::{Expired, Storage};
        let cases = [
            (Expired, 5, &[2][..], &[][..], true, "by its place"),
            (Expired, 5, &[1, 3], &[8], false, "others of the same batch"),
            (Expired, 6, &[2], &[8], false, "the same place in another batch"),
            (Expired, 6, &[1], &[7], true, "by its number"),
            (Expired, 5, &[], &[8], false, "nobody's place is known, and it expired"),
            (Storage, 5, &[], &[], true, "its batch is lost"),
            (Storage, 6, &[], &[], false, "another one is"),
            (Storage, 5, &[1], &[8], false, "of its batch others are"),
        ];
        for (reason, batch, ordinals, numbers, told, what) in cases {
            assert_eq!(is_told(Some(7), &mass(reason, batch, ordinals, numbers)), told, "{what}");
        }
        assert!(is_told(None, &mass(Expired, 5, &[2], &[])) && !is_told(None, &mass(Expired, 6, &[2], &[7])));
    }

    #[test]
    fn who_is_named_by_its_place_needs_no_number() {
        let mut record = mass(Failure::Expired, 5, &[2], &[]);
        record.numbers = vec![1];
        assert!(is_told(Some(7), &record));
    }

    #[test]
    fn an_end_of_another_message_or_app_is_not_told() {
        let mut message = mass(Failure::Expired, 5, &[2], &[7]);
        message.mass.message = MessageId(2);
        let mut app = mass(Failure::Expired, 5, &[2], &[7]);
        app.mass.app = AppKey::parse("other").expect("valid");
        assert!(!is_told(Some(7), &message) && !is_told(Some(7), &app));
    }
}
