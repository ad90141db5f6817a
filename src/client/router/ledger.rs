//! A router's knowledge of its batches. Pure: no I/O, no clock.
//!
//! Invariants:
//! - A batch goes out in the order in which it was given, within the credit; it is repeated, unchanged and under its id, until it is
//!   answered.
//! - A target has one outcome, a (message, device, event) counts once, however often the edge reports them.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use prost::Message;

use super::Tally;
use crate::ids::{AppKey, BuildSpread, DeviceKey, DigestKey};
use crate::push::{Failure, Millis, Refusal};
use crate::wire::pb::router::{
    BatchAccepted, BatchRejected, DeliverBatch, DeviceEvent, MassOutcome, Outcome, ReceiptEvent, RejectCode,
    device_event,
};
use crate::wire::router::told::{Receipt, StreamEvents, Told};

/// (message, device)s whose events are remembered; beyond, they are counted without looking for repeats.
const TARGETS: usize = if cfg!(test) { 4 } else { 20_000_000 };
/// Milliseconds before a batch is repeated that was put off without a delay.
const PUT_OFF_MS: Millis = 100;

/// Why the edge took nothing of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// The batch.
    pub batch_id: String,
    /// Why.
    pub code: RejectCode,
    /// The field at fault.
    pub field: String,
    /// For an operator.
    pub text: String,
}

/// A router's batches, and what became of them.
#[derive(Debug)]
pub struct Ledger {
    batches: HashMap<String, Entry>,
    /// To be sent, in order.
    waiting: VecDeque<String>,
    /// Sent on this link, without an answer.
    in_flight: VecDeque<String>,
    /// Put off until then.
    later: Vec<(Millis, String)>,
    credit: Credit,
    used: Credit,
    /// A bit for each event that came.
    events: HashMap<Target, u8, BuildSpread>,
    digest: DigestKey,
    /// The message whose receipts are counted; `None`: those of all.
    only: Option<u64>,
    /// The app of the last receipt: mostly that of the next.
    app: Option<AppKey>,
    /// Where a batch's key is put together.
    key: String,
    /// By stream: up to where device events were counted. As many as streams were opened.
    devices_to: HashMap<String, u64>,
    tally: Tally,
    first_rejection: Option<Arc<Rejection>>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Credit {
    targets: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    /// Until it is answered.
    batch: Option<Arc<DeliverBatch>>,
    size: Credit,
    /// Answered, and taken: where it stands in the edge's journal.
    accepted: Option<u64>,
    /// A number for each ordinal: 0 none yet, 1 arrived, 255 refused, else 1 + the failure's.
    outcomes: Vec<u8>,
}

/// Who got what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Target {
    message_id: u64,
    device: DeviceKey,
}

impl Hash for Target {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // A device's key is spread evenly. Its messages are kept apart by an odd factor, folded: the low bits of a product know nothing of the high
        // ones, which are all that differs in ids made of a time.
        let mixed = self.message_id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.device.hash(state);
        state.write_u64(mixed ^ mixed >> 32);
    }
}

const ARRIVED: u8 = 1;
const REFUSED: u8 = 255;

/// What became of one target of an accepted batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was not accepted.
    Refused,
    /// Its end is not known yet.
    Pending,
    /// It arrived.
    Arrived,
    /// It failed.
    Failed(Failure),
}

impl Ledger {
    /// An empty ledger; the key is of its device digests and needs only to be unpredictable.
    pub fn new(digest: DigestKey) -> Self {
        Self {
            batches: HashMap::new(),
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            later: Vec::new(),
            credit: Credit::default(),
            used: Credit::default(),
            events: HashMap::default(),
            digest,
            only: None,
            app: None,
            key: String::new(),
            devices_to: HashMap::new(),
            tally: Tally::default(),
            first_rejection: None,
        }
    }

    /// Only receipts of this message are counted.
    pub(super) fn count_only(&mut self, message: Option<u64>) {
        self.only = message;
    }

    /// What was counted.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The first batch that was rejected for good.
    pub fn first_rejection(&self) -> Option<Arc<Rejection>> {
        self.first_rejection.clone()
    }

    /// Batches that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.later.len()
    }

    /// Takes a batch; its id must be new.
    pub fn deliver(&mut self, batch: DeliverBatch) {
        let targets = batch.targets.len();
        self.tally.batches += 1;
        self.tally.targets += targets as u64;
        let key = key(&batch.app_key, &batch.batch_id);
        let size = Credit { targets: targets as u64, bytes: batch.encoded_len() as u64 };
        let entry = Entry { batch: Some(Arc::new(batch)), size, accepted: None, outcomes: vec![0; targets] };
        let former = self.batches.insert(key.clone(), entry);
        debug_assert!(former.is_none(), "batch ids are unique per app");
        self.waiting.push_back(key);
    }

    /// A link is open, with this credit: what was not answered on the last one goes first, in its order.
    pub fn handle_opened(&mut self, targets: u64, bytes: u64) {
        self.credit = Credit { targets, bytes };
        self.used = Credit::default();
        for (_, key) in self.later.drain(..) {
            self.waiting.push_back(key);
        }
        while let Some(key) = self.in_flight.pop_back() {
            self.waiting.push_front(key);
        }
    }

    /// The next batch to send, if there is one and the credit allows it.
    pub fn poll_send(&mut self, now: Millis) -> Option<Arc<DeliverBatch>> {
        // Who was put off first is first again: in any other order, one of many could be passed over for ever.
        let due = self.later.extract_if(.., |(due, _)| *due <= now);
        self.waiting.extend(due.map(|(_, key)| key));
        let entry = self.batches.get(self.waiting.front()?)?;
        let after = Credit {
            targets: self.used.targets + entry.size.targets,
            bytes: self.used.bytes + entry.size.bytes,
        };
        // A batch beyond the whole credit goes alone: the edge says what is wrong with it.
        let fits = after.targets <= self.credit.targets && after.bytes <= self.credit.bytes;
        if !fits && !self.in_flight.is_empty() {
            return None;
        }
        let batch = entry.batch.clone();
        self.used = after;
        self.in_flight.extend(self.waiting.pop_front());
        batch
    }

    /// When a batch that was put off is to be sent again.
    pub fn next_timeout(&self) -> Option<Millis> {
        self.later.iter().map(|(due, _)| *due).min()
    }

    /// Takes an answered batch out of what is in flight. `finally`: it won't be sent again, and its content goes.
    fn answered(&mut self, app: &str, batch_id: &str, finally: bool) -> Option<(String, Credit)> {
        let key = key(app, batch_id);
        let entry = self.batches.get_mut(&key)?;
        let at = self.in_flight.iter().position(|k| *k == key)?;
        self.in_flight.remove(at);
        self.used.targets -= entry.size.targets;
        self.used.bytes -= entry.size.bytes;
        if finally {
            entry.batch = None;
        }
        Some((key, entry.size))
    }

    /// A batch is durable at the edge.
    pub fn handle_accepted(&mut self, answer: &BatchAccepted) {
        let Some((key, _)) = self.answered(&answer.app_key, &answer.batch_id, true) else { return };
        if let Some(entry) = self.batches.get_mut(&key) {
            entry.accepted = Some(answer.sequence);
            for ordinal in answer.refused.iter().flat_map(|r| &r.ordinals) {
                if let Some(outcome) = entry.outcomes.get_mut(*ordinal as usize) {
                    *outcome = REFUSED;
                }
            }
        }
        let tally = &mut self.tally;
        tally.batches_accepted += 1;
        tally.answers_repeated += u64::from(answer.repeated);
        tally.accepted += u64::from(answer.accepted);
        for refused in &answer.refused {
            if let Some(reason) = u8::try_from(refused.reason).ok().and_then(Refusal::from_number) {
                tally.refused[reason as usize - 1] += refused.ordinals.len() as u64;
            }
        }
    }

    /// Nothing of a batch was taken.
    pub fn handle_rejected(&mut self, now: Millis, answer: BatchRejected) {
        let code = answer.code();
        let put_off = matches!(code, RejectCode::ResourceExhausted | RejectCode::Unavailable);
        let Some((key, size)) = self.answered(&answer.app_key, &answer.batch_id, !put_off) else { return };
        if put_off {
            self.tally.put_off += 1;
            let delay = Millis::from(answer.retry_after_milliseconds).max(PUT_OFF_MS);
            self.later.push((now + delay, key));
            return;
        }
        self.tally.batches_rejected += 1;
        self.tally.targets_rejected += size.targets;
        self.first_rejection.get_or_insert_with(|| {
            Arc::new(Rejection { batch_id: answer.batch_id, code, field: answer.field, text: answer.text })
        });
    }

    /// What became of each target of a batch, by ordinal; `None` if the batch was not accepted.
    pub fn fates(&self, app: &str, batch_id: &str) -> Option<impl Iterator<Item = Fate>> {
        let entry = self.batches.get(&key(app, batch_id)).filter(|e| e.accepted.is_some())?;
        Some(entry.outcomes.iter().map(|outcome| match *outcome {
            0 => Fate::Pending,
            ARRIVED => Fate::Arrived,
            REFUSED => Fate::Refused,
            failed => Failure::from_number(failed - ARRIVED).map_or(Fate::Pending, Fate::Failed),
        }))
    }

    /// Where a batch stands in the order of acceptance; `None` if it was not accepted.
    pub fn sequence(&self, app: &str, batch_id: &str) -> Option<u64> {
        self.batches.get(&key(app, batch_id))?.accepted
    }

    /// Events of a stream; afterwards its cursor may be acknowledged.
    pub fn handle_stream(&mut self, told: &StreamEvents<'_>) {
        for (sequence, event) in &told.events {
            match event {
                Told::Receipt(receipt) => self.receipt(receipt),
                Told::Mass(mass) => self.mass(mass),
                Told::Gap(gap) => self.tally.gaps += gap.events,
                Told::Device(device) => self.device(told.stream, *sequence, device),
                Told::Unknown => {}
            }
        }
        // Events of one record share a sequence, and come together.
        if let Some((last, _)) = told.events.last() {
            let counted = self.devices_to.entry(told.stream.to_owned()).or_default();
            *counted = (*last).max(*counted);
        }
    }

    /// They come in the order of the journal: what isn't behind the last one came before.
    fn device(&mut self, stream: &str, sequence: u64, event: &DeviceEvent) {
        if self.devices_to.get(stream).is_some_and(|to| sequence <= *to) {
            self.tally.events_repeated += 1;
            return;
        }
        let index = match &event.change {
            Some(device_event::Change::Registered(_)) => 0,
            Some(device_event::Change::Attributes(_)) => 1,
            Some(device_event::Change::Push(_)) => 2,
            Some(device_event::Change::Bound(_)) => 3,
            Some(device_event::Change::Unbound(_)) => 4,
            Some(device_event::Change::Forgotten(_)) => 5,
            None => return,
        };
        self.tally.device_events[index] += 1;
    }

    fn receipt(&mut self, receipt: &Receipt<'_>) {
        if self.only.is_some_and(|only| only != receipt.message_id) {
            return;
        }
        match receipt.outcome() {
            Outcome::None => {}
            Outcome::Arrived => self.outcome(receipt, None),
            // A reason that nobody knows is none: its target stays without an end.
            Outcome::Failed => {
                if let Some(failure) = receipt.failure() {
                    self.outcome(receipt, Some(failure));
                }
            }
        }
        if self.app.as_ref().is_none_or(|app| app.as_str() != receipt.app_key) {
            self.app = AppKey::parse(receipt.app_key);
        }
        let Some(app) = &self.app else { return };
        let device = DeviceKey::of(&self.digest, app, receipt.device_id);
        let event = receipt.event();
        // What arrived was sent, in time or late; and an end that says when it was written says that it was.
        let arrived = event == ReceiptEvent::Arrive && !receipt.unmatched;
        let written = event == ReceiptEvent::SentFail && receipt.sent_time > 0;
        let sent = if arrived || written { bit(ReceiptEvent::Sent) } else { 0 };
        let new = self.new_ones(Target { message_id: receipt.message_id, device }, bit(event), sent);
        if new & bit(event) == 0 {
            self.tally.events_repeated += 1;
            return;
        }
        self.tally.sent += u64::from(new & sent != 0);
        if receipt.late || receipt.unmatched {
            self.tally.late += u64::from(receipt.late);
            self.tally.unmatched += u64::from(receipt.unmatched);
            return;
        }
        match event {
            ReceiptEvent::Arrive => self.tally.arrive += 1,
            ReceiptEvent::Sent => self.tally.sent += 1,
            ReceiptEvent::Click => self.tally.click += 1,
            ReceiptEvent::Clean => self.tally.clean += 1,
            ReceiptEvent::SentFail | ReceiptEvent::Unspecified => {}
        }
    }

    /// Which of these have not come before: an event, and if it hasn't, what it stands for too.
    fn new_ones(&mut self, target: Target, event: u8, implied: u8) -> u8 {
        if self.events.len() >= TARGETS && !self.events.contains_key(&target) {
            self.tally.unchecked += 1;
            return event | implied;
        }
        let known = self.events.entry(target).or_default();
        if *known & event != 0 {
            return 0;
        }
        let new = (event | implied) & !*known;
        *known |= new;
        new
    }

    fn mass(&mut self, mass: &MassOutcome) {
        let Some(failure) = mass.failure() else { return };
        // Looked up once: it may be of 100,000 targets.
        let mut entry = self.batches.get_mut(&key(&mass.app_key, &mass.batch_id));
        for ordinal in mass.targets().iter() {
            outcome(entry.as_deref_mut(), &mut self.tally, ordinal, Some(failure));
        }
    }

    /// `failure`: `None` is arrived.
    fn outcome(&mut self, receipt: &Receipt<'_>, failure: Option<Failure>) {
        self.key.clear();
        put_key(&mut self.key, receipt.app_key, receipt.batch_id);
        outcome(self.batches.get_mut(&self.key), &mut self.tally, receipt.ordinal, failure);
    }
}

fn bit(event: ReceiptEvent) -> u8 {
    1 << event as u8
}

/// The outcome of one target of a batch, if that is this router's.
fn outcome(entry: Option<&mut Entry>, tally: &mut Tally, ordinal: u32, failure: Option<Failure>) {
    let outcome = failure.map_or(ARRIVED, |f| ARRIVED + f as u8);
    let Some(known) = entry.and_then(|e| e.outcomes.get_mut(ordinal as usize)) else {
        tally.foreign += 1;
        return;
    };
    if *known != 0 {
        tally.conflicts += u64::from(*known != outcome);
        return;
    }
    *known = outcome;
    match failure {
        None => tally.arrived += 1,
        Some(failure) => tally.failed[failure as usize - 1] += 1,
    }
}

fn key(app: &str, batch_id: &str) -> String {
    let mut key = String::with_capacity(app.len() + 1 + batch_id.len());
    put_key(&mut key, app, batch_id);
    key
}

/// Batch ids are unique per app only. An app key holds no '/'.
fn put_key(out: &mut String, app: &str, batch_id: &str) {
    out.push_str(app);
    out.push('/');
    out.push_str(batch_id);
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
