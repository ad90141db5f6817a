//! What is kept of a message after its batches are gone: its counts, and who got, tapped or missed it, so that an ack that
//! comes late can be told from one that matches nothing.
//!
//! Sets hold the dense numbers of devices: most messages go to one device, some to millions; both cost little.

use std::sync::Arc;

use roaring::RoaringBitmap;
use smallvec::SmallVec;

use super::OnDevice;
use super::codec::{Malformed, Take, put_bytes, put_u32, put_u64, put_varint};
use crate::ids::{AppKey, MessageId, Seq};
use crate::limits;
use crate::push::{Counts, Failure, Millis, Refusal, TargetState};

/// A message under its app: the key of its push record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct MessageKey(pub(super) u128);

impl MessageKey {
    /// A digest, so that the key has a fixed size and spreads evenly; 128 bits, so that two never meet.
    pub(super) fn of(app: &AppKey, message: MessageId) -> Self {
        Self(digest(b'm', app, &message.0.to_le_bytes()))
    }
}

/// The 128-bit digest of (`domain`, app, name).
pub(super) fn digest(domain: u8, app: &AppKey, name: &[u8]) -> u128 {
    // One a batch, and one an event: no allocation.
    let mut input = SmallVec::<[u8; 2 + limits::APP_KEY_BYTES + limits::BATCH_ID_BYTES]>::new();
    input.extend_from_slice(&[domain, app.as_str().len() as u8]);
    input.extend_from_slice(app.as_str().as_bytes());
    input.extend_from_slice(name);
    let digest = blake3::hash(&input);
    let mut short = [0; 16];
    short.copy_from_slice(&digest.as_bytes()[..16]);
    u128::from_le_bytes(short)
}

/// Numbers to be added to sets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Numbers<'a> {
    One(u32),
    Many(&'a RoaringBitmap),
}

/// A set of device numbers.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) enum NumberSet {
    #[default]
    Empty,
    One(u32),
    Many(Box<RoaringBitmap>),
}

impl NumberSet {
    pub(super) fn contains(&self, number: u32) -> bool {
        match self {
            Self::Empty => false,
            Self::One(one) => *one == number,
            Self::Many(many) => many.contains(number),
        }
    }

    /// Whether it is new.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        match self {
            Self::Empty => {
                *self = Self::One(number);
                true
            }
            Self::One(one) if *one == number => false,
            Self::One(one) => {
                *self = Self::Many(Box::new(RoaringBitmap::from_iter([*one, number])));
                true
            }
            Self::Many(many) => many.insert(number),
        }
    }

    pub(super) fn add(&mut self, numbers: &Numbers<'_>) {
        match numbers {
            Numbers::One(number) => {
                self.insert(*number);
            }
            Numbers::Many(numbers) => self.union(numbers),
        }
    }

    fn union(&mut self, numbers: &RoaringBitmap) {
        if numbers.is_empty() {
            return;
        }
        if let (Self::Empty, 1, Some(number)) = (&*self, numbers.len(), numbers.min()) {
            *self = Self::One(number);
            return;
        }
        let mut all = match std::mem::take(self) {
            Self::Empty => Box::default(),
            Self::One(one) => Box::new(RoaringBitmap::from_iter([one])),
            Self::Many(many) => many,
        };
        *all |= numbers;
        *self = Self::Many(all);
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.len(),
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Empty => out.push(0),
            Self::One(number) => {
                out.push(1);
                put_u32(out, *number);
            }
            Self::Many(many) => {
                out.push(2);
                put_bytes(out, &bitmap_bytes(many));
            }
        }
    }

    pub(super) fn decode(take: &mut Take<'_>) -> Result<Self, Malformed> {
        Ok(match take.u8()? {
            0 => Self::Empty,
            1 => Self::One(take.u32()?),
            2 => Self::Many(Box::new(take_bitmap(take.bytes()?)?)),
            _ => return Err(Malformed),
        })
    }
}

/// The portable serialization.
pub(super) fn bitmap_bytes(bitmap: &RoaringBitmap) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(bitmap.serialized_size());
    bitmap.serialize_into(&mut bytes).expect("a vector takes every write");
    bytes
}

/// What [`bitmap_bytes`] wrote.
pub(super) fn take_bitmap(bytes: &[u8]) -> Result<RoaringBitmap, Malformed> {
    RoaringBitmap::deserialize_from(bytes).map_err(|_| Malformed)
}

/// Bytes of a new record, about.
const NEW_BYTES: u32 = 160;

/// The push record of a message. `accepted = arrived + failed + pending` at all times.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct PushRecord {
    /// Its app and message: the key is only their digest, and an end may have to be told when no batch is left that names them.
    pub(super) app: AppKey,
    pub(super) message: MessageId,
    pub(super) body_digest: [u8; 16],
    pub(super) accepted_at: Millis,
    pub(super) expires_at: Millis,
    pub(super) job_key: Arc<str>,
    pub(super) batches: u32,
    pub(super) named: u64,
    pub(super) accepted: u64,
    pub(super) arrived: u64,
    pub(super) pending: u64,
    pub(super) late: u64,
    /// Few messages have any. With the devices that were known: of others the journal knows.
    pub(super) refused: Vec<(Refusal, u64, NumberSet)>,
    /// Entries, and the devices that they were of.
    pub(super) failed: Vec<(Failure, u64, NumberSet)>,
    pub(super) targets: NumberSet,
    pub(super) arrived_on: NumberSet,
    pub(super) sent_to: NumberSet,
    pub(super) clicked: NumberSet,
    pub(super) cleaned: NumberSet,
    pub(super) arrived_late: NumberSet,
    /// Its row in the tables: the sequence of its first batch.
    pub(super) row: Seq,
    /// Bytes of the row when it was last written or read.
    pub(super) bytes: u32,
    /// It has changed since.
    pub(super) dirty: bool,
    /// It was looked at since there was last a look for what may leave memory.
    pub(super) touched: bool,
}

impl PushRecord {
    pub(super) fn new(
        (app, message): (AppKey, MessageId),
        body_digest: [u8; 16],
        accepted_at: Millis,
        expires_at: Millis,
        job_key: Arc<str>,
    ) -> Self {
        Self {
            app,
            message,
            body_digest,
            accepted_at,
            expires_at,
            job_key,
            batches: 0,
            named: 0,
            accepted: 0,
            arrived: 0,
            pending: 0,
            late: 0,
            refused: Vec::new(),
            failed: Vec::new(),
            targets: NumberSet::Empty,
            arrived_on: NumberSet::Empty,
            sent_to: NumberSet::Empty,
            clicked: NumberSet::Empty,
            cleaned: NumberSet::Empty,
            arrived_late: NumberSet::Empty,
            row: Seq(0),
            bytes: NEW_BYTES,
            dirty: false,
            touched: true,
        }
    }

    pub(super) fn add_refused(&mut self, reason: Refusal, number: Option<u32>) {
        let at = self.refused.iter().position(|(known, ..)| *known == reason).unwrap_or_else(|| {
            self.refused.push((reason, 0, NumberSet::Empty));
            self.refused.len() - 1
        });
        let (_, count, devices) = &mut self.refused[at];
        *count += 1;
        if let Some(number) = number {
            devices.insert(number);
        }
    }

    /// What became of it on a device. `pending`: when its entry there was accepted, and when it was written.
    pub(super) fn on_device(&self, number: u32, pending: Option<(Millis, Option<Millis>)>) -> OnDevice {
        let mut refused = [false; Refusal::ALL.len()];
        for (reason, _, devices) in &self.refused {
            refused[*reason as usize - 1] = devices.contains(number);
        }
        let refusal = Refusal::ALL.into_iter().find(|reason| refused[*reason as usize - 1]);
        let state = if pending.is_some() {
            TargetState::Pending
        } else if self.arrived_on.contains(number) {
            TargetState::Arrived
        } else if let Some(reason) = self.failure_on(number) {
            TargetState::Failed(reason)
        } else if self.targets.contains(number) {
            // Its entry was lost with damaged records; the sums say the same.
            TargetState::Failed(Failure::Storage)
        } else {
            refusal.map_or(TargetState::NotATarget, TargetState::Refused)
        };
        OnDevice {
            state,
            number: Some(number),
            refused,
            accepted_at: pending.map(|(accepted_at, _)| accepted_at),
            sent_at: pending.and_then(|(_, written_at)| written_at),
            late: self.arrived_late.contains(number),
            clicked: self.clicked.contains(number),
            cleaned: self.cleaned.contains(number),
        }
    }

    /// The tally of a reason.
    pub(super) fn failed_by(&mut self, reason: Failure) -> (&mut u64, &mut NumberSet) {
        let at = self.failed.iter().position(|(known, ..)| *known == reason).unwrap_or_else(|| {
            self.failed.push((reason, 0, NumberSet::Empty));
            self.failed.len() - 1
        });
        let (_, count, devices) = &mut self.failed[at];
        (count, devices)
    }

    /// Why it failed on the device, as far as known.
    pub(super) fn failure_on(&self, number: u32) -> Option<Failure> {
        self.failed.iter().find(|(_, _, devices)| devices.contains(number)).map(|(reason, ..)| *reason)
    }

    /// Whether it may be on the device, of what was known at `opened_at` or later: it was written, it arrived, or it was taken back while nobody
    /// knew whether a session before the last start had written it.
    pub(super) fn may_be_on(&self, number: u32, opened_at: Millis) -> bool {
        self.targets.contains(number)
            && (self.sent_to.contains(number)
                || self.arrived_on.contains(number)
                || self.arrived_late.contains(number)
                || self.accepted_at <= opened_at && self.failure_on(number) == Some(Failure::Revoked))
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            batches: u64::from(self.batches),
            targets: self.named,
            accepted: self.accepted,
            arrived: self.arrived,
            pending: self.pending,
            sent: self.sent_to.len(),
            clicked: self.clicked.len(),
            cleaned: self.cleaned.len(),
            late: self.late,
            ..Counts::default()
        };
        for (reason, count, _) in &self.refused {
            counts.refused[*reason as usize - 1] += count;
        }
        for (reason, count, _) in &self.failed {
            counts.failed[*reason as usize - 1] += count;
        }
        counts
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.app.as_str().as_bytes());
        put_u64(out, self.message.0);
        out.extend_from_slice(&self.body_digest);
        put_u64(out, self.accepted_at);
        put_u64(out, self.expires_at);
        put_bytes(out, self.job_key.as_bytes());
        for number in [
            u64::from(self.batches),
            self.named,
            self.accepted,
            self.arrived,
            self.pending,
            self.late,
            self.refused.len() as u64,
        ] {
            put_varint(out, number);
        }
        for (reason, count, devices) in &self.refused {
            out.push(*reason as u8);
            put_varint(out, *count);
            devices.encode(out);
        }
        put_varint(out, self.failed.len() as u64);
        for (reason, count, devices) in &self.failed {
            out.push(*reason as u8);
            put_varint(out, *count);
            devices.encode(out);
        }
        for set in [&self.targets, &self.arrived_on, &self.sent_to, &self.clicked, &self.cleaned] {
            set.encode(out);
        }
        self.arrived_late.encode(out);
    }

    pub(super) fn decode(take: &mut Take<'_>) -> Result<Self, Malformed> {
        let of = (AppKey::parse(take.text()?).ok_or(Malformed)?, MessageId(take.u64()?));
        let mut record = Self::new(of, take.array()?, take.u64()?, take.u64()?, take.text()?.into());
        record.batches = take.varint32()?;
        record.named = take.varint()?;
        record.accepted = take.varint()?;
        record.arrived = take.varint()?;
        record.pending = take.varint()?;
        record.late = take.varint()?;
        for _ in 0..take.varint()? {
            let reason = Refusal::from_number(take.u8()?).ok_or(Malformed)?;
            record.refused.push((reason, take.varint()?, NumberSet::decode(take)?));
        }
        for _ in 0..take.varint()? {
            let reason = Failure::from_number(take.u8()?).ok_or(Malformed)?;
            record.failed.push((reason, take.varint()?, NumberSet::decode(take)?));
        }
        record.targets = NumberSet::decode(take)?;
        record.arrived_on = NumberSet::decode(take)?;
        record.sent_to = NumberSet::decode(take)?;
        record.clicked = NumberSet::decode(take)?;
        record.cleaned = NumberSet::decode(take)?;
        record.arrived_late = NumberSet::decode(take)?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_grows_from_none_to_one_to_many() {
        let mut set = NumberSet::default();
        assert!(set.insert(5) && !set.insert(5) && set.len() == 1);
        assert!(set.insert(9) && set.contains(5) && set.contains(9) && !set.contains(7));
        set.union(&RoaringBitmap::from_iter([9, 10]));
        assert_eq!(set.len(), 3);
        let mut out = Vec::new();
        set.encode(&mut out);
        assert_eq!(NumberSet::decode(&mut Take(&out)), Ok(set));
    }

    #[test]
    fn a_record_comes_back_whole() {
        let of = (AppKey::parse("app").expect("valid"), MessageId(7));
        let mut record = PushRecord::new(of, [1; 16], 2, 3, "job".into());
        record.named = 3;
        record.accepted = 2;
        record.pending = 1;
        record.add_refused(Refusal::Offline, Some(9));
        let (count, devices) = record.failed_by(Failure::Expired);
        *count += 1;
        devices.insert(4);
        record.targets.insert(4);
        let mut out = Vec::new();
        record.encode(&mut out);
        assert_eq!(PushRecord::decode(&mut Take(&out)), Ok(record.clone()));
        assert_eq!(record.failure_on(4), Some(Failure::Expired));
        assert!(record.counts().identity_holds());
    }

    #[test]
    fn reasons_are_counted_apart_each_in_one_place() {
        let of = (AppKey::parse("app").expect("valid"), MessageId(7));
        let mut record = PushRecord::new(of, [1; 16], 2, 3, "job".into());
        record.batches = 2;
        for (reason, number) in
            [(Refusal::Offline, Some(9)), (Refusal::OverQuota, None), (Refusal::Offline, None)]
        {
            record.add_refused(reason, number);
        }
        for reason in [Failure::Expired, Failure::Revoked, Failure::Expired] {
            *record.failed_by(reason).0 += 1;
        }
        assert_eq!((record.refused.len(), record.failed.len()), (2, 2));
        let counts = record.counts();
        assert_eq!(counts.batches, 2);
        assert_eq!(counts.refused[Refusal::Offline as usize - 1], 2);
        assert_eq!(counts.failed[Failure::Expired as usize - 1], 2);
    }

    #[test]
    fn a_message_may_be_where_it_was_written_or_arrived_or_nobody_knows() {
        let of = (AppKey::parse("app").expect("valid"), MessageId(7));
        let mut none = PushRecord::new(of, [1; 16], 10, 30, "job".into());
        none.targets.insert(4);
        let with = |change: fn(&mut PushRecord)| {
            let mut record = none.clone();
            change(&mut record);
            record
        };
        assert!(!none.may_be_on(4, 10));
        let changes: [fn(&mut PushRecord); 3] = [
            |record| record.sent_to = NumberSet::One(4),
            |record| record.arrived_on = NumberSet::One(4),
            |record| record.arrived_late = NumberSet::One(4),
        ];
        for change in changes {
            assert!(with(change).may_be_on(4, 9) && !with(change).may_be_on(5, 9));
        }
        let revoked = with(|record| record.failed_by(Failure::Revoked).1.add(&Numbers::One(4)));
        assert!(revoked.may_be_on(4, 10) && !revoked.may_be_on(4, 9));
        let expired = with(|record| record.failed_by(Failure::Expired).1.add(&Numbers::One(4)));
        assert!(!expired.may_be_on(4, 10));
    }
}
