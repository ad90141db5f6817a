//! The payloads of the journal's records. **A record is a decision**: what was checked when it was made is not checked again
//! when it is replayed, so that a restart under other limits changes no outcome.
//!
//! | kind | says | changes |
//! |---|---|---|
//! | 1 batch | accepted: content, body once, targets with their dense numbers, refused ordinals, those that ended at once | home part, id's part, each target's part |
//! | 2 copy | a batch as above, only what is still live, under its original sequence | its place |
//! | 3 device | a device as it is now, and what of it changed | its part |
//! | 4 receipt | one event of one device, perhaps the end of its entry | the device's part, the message's part |
//! | 5 mass | the same end for many entries of one batch | the devices' parts, the message's part |
//! | 6 cursor | a stream's reader has everything up to here | the stream |
//! | 11 binding | a device is bound to something, or no more | its part |
//! | 12 forgotten | a device is known no more | its part |
//! | 13 active | when devices were active | their parts |
//! | 16 epoch | which credentials of a device are revoked | its part |
//! | 20 stream | a stream of this number and name | the streams |
//! | 21 route | from here on an app's records belong to this stream | the streams |
//! | 22 gap | what a stream lost at its hard bound | the stream |
//! | 23 retired | a stream is no more | the streams |
//! | 24 recall | a message was taken back, and is remembered until then | the message's part |
//! | 25 history | a start: from here on everything is of this history | the histories |
//! | 26 app | what an operator set for an app, all of it | the app |
//! | 27 lost | a start found that records of these sequences can't be read | nothing |
//!
//! Receipts, mass ends and what is said of devices are self-contained, so that a stream is read straight from the journal without a look-up,
//! and an event can't disagree with the outcome or the change that it is. Each begins with its app, which says whose stream it belongs to.
//!
//! Targets stand with key and number (20 bytes). Numbers alone would need 4, but then a damaged device record would take
//! the batches of its device along.

use super::codec::{Malformed, Take, put_bytes, put_u32, put_u64, put_varint};
use crate::credential::Revocation;
use crate::ids::{AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::limits;
use crate::push::{Failure, MassOutcome, Millis, Ordinals, Priority, Refusal};

pub(super) use device::{BindingRecord, DeviceRecord, ForgottenRecord};
pub(super) use lost::{put_lost, take_lost};
pub(super) use receipt::{MassRecord, ReceiptParts, ReceiptRecord, app_of, stream_events};
pub(super) use refused::{Who, put_who, take_who};

pub(super) mod device;
mod lost;
mod receipt;
mod refused;
#[cfg(feature = "sim")]
pub(super) mod samples;

pub(super) const BATCH: u8 = 1;
pub(super) const COPY: u8 = 2;
pub(super) const DEVICE: u8 = 3;
pub(super) const RECEIPT: u8 = 4;
pub(super) const MASS: u8 = 5;
pub(super) const CURSOR: u8 = 6;
pub(super) const BINDING: u8 = 11;
pub(super) const FORGOTTEN: u8 = 12;
pub(super) const ACTIVE: u8 = 13;
pub(super) const EPOCH: u8 = 16;
pub(super) const STREAM: u8 = 20;
pub(super) const ROUTE: u8 = 21;
pub(super) const GAP: u8 = 22;
pub(super) const RETIRED: u8 = 23;
pub(super) const RECALL: u8 = 24;
pub(super) const HISTORY: u8 = 25;
pub(super) const APP: u8 = 26;
pub(super) const LOST: u8 = 27;

/// An accepted target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) ordinal: u32,
    pub(super) key: DeviceKey,
    /// The device's dense number.
    pub(super) number: u32,
}

/// Kinds 1 and 2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BatchRecord<'a> {
    /// Of the batch; a batch record's own sequence says the same, a copy's doesn't.
    pub(super) seq: Seq,
    pub(super) app: &'a str,
    pub(super) message: MessageId,
    pub(super) id: &'a str,
    pub(super) job_key: &'a str,
    pub(super) body_digest: [u8; 16],
    pub(super) digest: [u8; 16],
    pub(super) created_at: Millis,
    pub(super) accepted_at: Millis,
    pub(super) expires_at: Millis,
    pub(super) online_only: bool,
    /// Targets that the router named.
    pub(super) named: u32,
    /// See [`put_refused`].
    pub(super) refused: &'a [u8],
    pub(super) body: &'a [u8],
    /// See [`put_targets`] and [`BatchRecord::targets`].
    pub(super) targets: &'a [u8],
    pub(super) priority: Priority,
    pub(super) collapse_key: &'a str,
    /// Who was refused, see [`put_who`].
    pub(super) refused_who: &'a [u8],
    /// Resolved from an account that is bound there.
    pub(super) of_account: Ordinals,
    /// From one that isn't. Its end, `unbound`, is part of this record: whatever part of a group a crash leaves, the phone's user never sees it.
    pub(super) unbound: Ordinals,
    /// Which part of the router's batch, see [`crate::push::BatchPart`].
    pub(super) part: u32,
}

impl<'a> BatchRecord<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.seq.0);
        put_bytes(out, self.app.as_bytes());
        put_u64(out, self.message.0);
        put_bytes(out, self.id.as_bytes());
        put_bytes(out, self.job_key.as_bytes());
        out.extend_from_slice(&self.body_digest);
        out.extend_from_slice(&self.digest);
        put_u64(out, self.created_at);
        put_u64(out, self.accepted_at);
        put_u64(out, self.expires_at);
        out.push(u8::from(self.online_only));
        put_varint(out, u64::from(self.named));
        put_bytes(out, self.refused);
        put_bytes(out, self.body);
        put_bytes(out, self.targets);
        out.push(self.priority as u8);
        put_bytes(out, self.collapse_key.as_bytes());
        put_bytes(out, self.refused_who);
        let ((account_skip, of_account), (unbound_skip, unbound)) =
            (self.of_account.parts(), self.unbound.parts());
        put_bytes(out, of_account);
        put_bytes(out, unbound);
        // Nothing more of a batch in one part whose bits begin with its first targets.
        if (self.part, account_skip, unbound_skip) != (0, 0, 0) {
            put_varint(out, u64::from(self.part));
            put_varint(out, u64::from(account_skip));
            put_varint(out, u64::from(unbound_skip));
        }
    }

    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let mut record = Self {
            seq: Seq(take.u64()?),
            app: take.text()?,
            message: MessageId(take.u64()?),
            id: take.text()?,
            job_key: take.text()?,
            body_digest: take.array()?,
            digest: take.array()?,
            created_at: take.u64()?,
            accepted_at: take.u64()?,
            expires_at: take.u64()?,
            online_only: take.flag()?,
            named: take.varint32()?,
            refused: take.bytes()?,
            body: take.bytes()?,
            targets: take.bytes()?,
            priority: take_priority(take.u8()?)?,
            collapse_key: take.text()?,
            refused_who: take.bytes()?,
            of_account: Ordinals::default(),
            unbound: Ordinals::default(),
            part: 0,
        };
        let (of_account, unbound) = (take.bytes()?, take.bytes()?);
        let (mut account_skip, mut unbound_skip) = (0, 0);
        if !take.0.is_empty() {
            record.part = take.varint32()?;
            account_skip = take_skip(&mut take)?;
            unbound_skip = take_skip(&mut take)?;
        }
        record.of_account = Ordinals::from_parts(account_skip, of_account);
        record.unbound = Ordinals::from_parts(unbound_skip, unbound);
        take.0.is_empty().then_some(record).ok_or(Malformed)
    }

    /// The accepted targets, ascending by ordinal.
    pub(super) fn targets(&self) -> Result<Vec<Target>, Malformed> {
        let mut take = Take(self.targets);
        let count = take.varint32()? as usize;
        let mut ordinals = Take(take.bytes()?);
        let (keys, left) = take.0.split_at_checked(count.saturating_mul(16)).ok_or(Malformed)?;
        if left.len() != count * 4 {
            return Err(Malformed);
        }
        let (keys, _) = keys.as_chunks::<16>();
        let (numbers, _) = left.as_chunks::<4>();
        let mut next = 0;
        let mut targets = Vec::with_capacity(count);
        for (key, number) in keys.iter().zip(numbers) {
            let gap = if ordinals.0.is_empty() { 0 } else { ordinals.varint32()? };
            let ordinal = gap.checked_add(next).ok_or(Malformed)?;
            next = ordinal.checked_add(1).ok_or(Malformed)?;
            targets.push(Target { ordinal, key: DeviceKey(*key), number: u32::from_le_bytes(*number) });
        }
        Ok(targets)
    }

    /// The end of those that ended at once, as the stream gives it; `None`: there are none.
    pub(super) fn mass(&self) -> Result<Option<MassOutcome>, Malformed> {
        if self.unbound.is_empty() {
            return Ok(None);
        }
        let (app, batch) = self.names()?;
        Ok(Some(MassOutcome {
            app,
            message: self.message,
            batch,
            reason: Failure::Unbound,
            event_time: self.accepted_at,
            ordinals: self.unbound.clone(),
            count: self.unbound.len(),
            job_key: self.job_key.into(),
        }))
    }

    /// The names as the types they are.
    pub(super) fn names(&self) -> Result<(AppKey, BatchId), Malformed> {
        Ok((AppKey::parse(self.app).ok_or(Malformed)?, BatchId::parse(self.id).ok_or(Malformed)?))
    }
}

/// A priority's number, as it is written.
pub(super) fn take_priority(number: u8) -> Result<Priority, Malformed> {
    match number {
        0 => Ok(Priority::Normal),
        1 => Ok(Priority::High),
        _ => Err(Malformed),
    }
}

/// Bytes of zeros before bits of ordinals: bounded, as they take memory where all bits are wanted.
pub(super) fn take_skip(take: &mut Take<'_>) -> Result<u32, Malformed> {
    take.varint32().ok().filter(|skip| *skip as usize <= limits::BATCH_TARGETS / 8).ok_or(Malformed)
}

/// Targets ascending by ordinal: their count, the gaps before each as varints up to the last one that isn't 0, keys, numbers.
pub(super) fn put_targets(out: &mut Vec<u8>, targets: &[Target]) {
    put_varint(out, targets.len() as u64);
    let mut gaps = Vec::new();
    let (mut next, mut gaps_end) = (0, 0);
    for target in targets {
        let gap = target.ordinal - next;
        put_varint(&mut gaps, u64::from(gap));
        next = target.ordinal + 1;
        if gap > 0 {
            gaps_end = gaps.len();
        }
    }
    put_bytes(out, &gaps[..gaps_end]);
    out.reserve(targets.len() * 20);
    for target in targets {
        out.extend_from_slice(&target.key.0);
    }
    for target in targets {
        put_u32(out, target.number);
    }
}

/// Refused ordinals, ascending: the gap as a varint, then the reason.
pub(super) fn put_refused(out: &mut Vec<u8>, refused: &[(u32, Refusal)]) {
    let mut next = 0;
    for &(ordinal, reason) in refused {
        put_varint(out, u64::from(ordinal - next));
        out.push(reason as u8);
        next = ordinal + 1;
    }
}

/// What [`put_refused`] wrote.
pub(super) fn take_refused(bytes: &[u8]) -> Result<Vec<(u32, Refusal)>, Malformed> {
    let mut take = Take(bytes);
    let mut refused = Vec::new();
    let mut next = 0u32;
    while !take.0.is_empty() {
        let ordinal = next.checked_add(take.varint32()?).ok_or(Malformed)?;
        next = ordinal.checked_add(1).ok_or(Malformed)?;
        refused.push((ordinal, Refusal::from_number(take.u8()?).ok_or(Malformed)?));
    }
    Ok(refused)
}

/// Kind 24.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecallRecord<'a> {
    pub(super) app: &'a str,
    pub(super) message: MessageId,
    pub(super) at: Millis,
    pub(super) until: Millis,
}

impl<'a> RecallRecord<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.app.as_bytes());
        put_u64(out, self.message.0);
        put_u64(out, self.at);
        put_u64(out, self.until);
    }

    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let record =
            Self { app: take.text()?, message: MessageId(take.u64()?), at: take.u64()?, until: take.u64()? };
        take.0.is_empty().then_some(record).ok_or(Malformed)
    }
}

/// Kind 6.
pub(super) fn put_cursor(out: &mut Vec<u8>, stream: &str, cursor: Seq) {
    put_bytes(out, stream.as_bytes());
    put_u64(out, cursor.0);
}

/// What [`put_cursor`] wrote.
pub(super) fn take_cursor(payload: &[u8]) -> Result<(&str, Seq), Malformed> {
    let mut take = Take(payload);
    Ok((take.text()?, Seq(take.u64()?)))
}

/// Kind 16. Apart from the device's own record: a device need not be known to be revoked, and stays so when it is forgotten.
pub(super) fn put_epoch(out: &mut Vec<u8>, device: &DeviceKey, revocation: Revocation) {
    out.extend_from_slice(&device.0);
    put_u32(out, revocation.min_epoch);
    out.push(u8::from(revocation.locked));
}

/// What [`put_epoch`] wrote.
pub(super) fn take_epoch(take: &mut Take<'_>) -> Result<(DeviceKey, Revocation), Malformed> {
    let device = DeviceKey(take.array()?);
    Ok((device, Revocation { min_epoch: take.u32()?, locked: take.flag()? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(ordinal: u32) -> Target {
        Target { ordinal, key: DeviceKey([ordinal as u8; 16]), number: ordinal + 7 }
    }

    #[test]
    fn a_batch_comes_back_with_its_gaps() {
        let bits = |all: &[u32]| all.iter().copied().collect::<Ordinals>();
        for (targets, of_account, unbound, part) in [
            (vec![target(0), target(1), target(2)], bits(&[1, 2]), bits(&[0]), 0),
            (vec![target(1), target(4), target(200)], bits(&[4]), bits(&[200]), 0),
            (vec![target(198), target(199), target(200)], bits(&[]), bits(&[]), 1),
            (vec![target(100), target(101), target(200)], bits(&[100]), bits(&[]), 99),
            (vec![], bits(&[]), bits(&[]), 0),
        ] {
            let (mut refused, mut encoded, mut out) = (Vec::new(), Vec::new(), Vec::new());
            let reasons = [(0, Refusal::DeviceUnknown), (3, Refusal::Duplicate), (199, Refusal::OverQuota)];
            put_refused(&mut refused, &reasons);
            put_targets(&mut encoded, &targets);
            let record = BatchRecord {
                seq: Seq(9),
                app: "app",
                message: MessageId(5),
                id: "b1",
                job_key: "",
                body_digest: [1; 16],
                digest: [2; 16],
                created_at: 3,
                accepted_at: 4,
                expires_at: 5,
                online_only: true,
                named: 201,
                refused: &refused,
                body: b"body",
                targets: &encoded,
                priority: Priority::High,
                collapse_key: "weather",
                refused_who: &[0, 1, 2, 3, 4],
                of_account,
                unbound,
                part,
            };
            record.encode(&mut out);
            assert_eq!(BatchRecord::decode(&out).as_ref(), Ok(&record));
            assert_eq!(record.targets(), Ok(targets));
            assert_eq!(take_refused(&refused), Ok(reasons.to_vec()));
            // Without what only parts and late bits have it is another batch; that a record is cut is for its checksum to tell.
            for cut in (0..out.len()).filter(|cut| cut + 3 != out.len()) {
                assert!(BatchRecord::decode(&out[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn ordinals_in_one_piece_take_no_room() {
        let bytes = |ordinals: std::ops::Range<u32>| {
            let mut out = Vec::new();
            put_targets(&mut out, &ordinals.map(target).collect::<Vec<_>>());
            out.len()
        };
        assert_eq!(bytes(99_000..100_000), bytes(0..1_000) + 3);
    }
}
