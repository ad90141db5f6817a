//! The payloads of the journal's records. **A record is a decision**: what was checked when it was made is not checked again
//! when it is replayed, so that a restart under other limits changes no outcome.
//!
//! | kind | says | changes |
//! |---|---|---|
//! | 1 batch | accepted: content, body once, targets with their dense numbers, refused ordinals | home part, id's part, each target's part |
//! | 2 copy | a batch as above, only what is still live, under its original sequence | its place |
//! | 3 device | a device as it is now | its part |
//! | 4 receipt | one event of one device, perhaps the end of its entry | the device's part, the message's part |
//! | 5 mass | the same end for many entries of one batch | the devices' parts, the message's part |
//! | 6 cursor | a stream's reader has everything up to here | the stream |
//!
//! Receipts and mass ends are self-contained, so that a stream is read straight from the journal without a look-up, and the
//! two can't disagree with the outcome that they are. Each begins with its app, which says whose stream it belongs to.
//!
//! Targets stand with key and number (20 bytes). Numbers alone would need 4, but then a damaged device record would take
//! the batches of its device along.

use std::net::IpAddr;

use super::codec::{Malformed, Take, put_bytes, put_ip, put_u32, put_u64, put_varint};
use crate::ids::{AppKey, BatchId, DeviceKey, MessageId, Seq};
use crate::push::{
    Attributes, Channel, Failure, MassOutcome, Millis, Receipt, ReceiptKind, Refusal, StreamEvent,
};

pub(super) const BATCH: u8 = 1;
pub(super) const COPY: u8 = 2;
pub(super) const DEVICE: u8 = 3;
pub(super) const RECEIPT: u8 = 4;
pub(super) const MASS: u8 = 5;
pub(super) const CURSOR: u8 = 6;

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
    }

    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let record = Self {
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
        };
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
        let dense = ordinals.0.is_empty();
        let mut next = 0;
        let mut targets = Vec::with_capacity(count);
        for (key, number) in keys.iter().zip(numbers) {
            let ordinal =
                if dense { next } else { ordinals.varint32()?.checked_add(next).ok_or(Malformed)? };
            next = ordinal.checked_add(1).ok_or(Malformed)?;
            targets.push(Target { ordinal, key: DeviceKey(*key), number: u32::from_le_bytes(*number) });
        }
        Ok(targets)
    }

    /// The names as the types they are.
    pub(super) fn names(&self) -> Result<(AppKey, BatchId), Malformed> {
        Ok((AppKey::parse(self.app).ok_or(Malformed)?, BatchId::parse(self.id).ok_or(Malformed)?))
    }
}

/// Targets ascending by ordinal: their count, the gaps between ordinals as varints (nothing at all if there is no gap), keys, numbers.
pub(super) fn put_targets(out: &mut Vec<u8>, targets: &[Target]) {
    put_varint(out, targets.len() as u64);
    let dense = targets.last().is_none_or(|last| last.ordinal as usize + 1 == targets.len());
    let mut gaps = Vec::new();
    if !dense {
        let mut next = 0;
        for target in targets {
            put_varint(&mut gaps, u64::from(target.ordinal - next));
            next = target.ordinal + 1;
        }
    }
    put_bytes(out, &gaps);
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

/// Kind 3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct DeviceRecord<'a> {
    pub(super) key: DeviceKey,
    pub(super) number: u32,
    pub(super) push_on: bool,
    pub(super) app: &'a str,
    pub(super) device_id: &'a str,
    pub(super) attributes: &'a [u8],
    pub(super) client_ip: Option<IpAddr>,
    pub(super) last_active: Millis,
}

impl<'a> DeviceRecord<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.0);
        put_u32(out, self.number);
        out.push(u8::from(self.push_on));
        put_bytes(out, self.app.as_bytes());
        put_bytes(out, self.device_id.as_bytes());
        put_bytes(out, self.attributes);
        put_ip(out, self.client_ip);
        put_u64(out, self.last_active);
    }

    pub(super) fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let record = Self {
            key: DeviceKey(take.array()?),
            number: take.u32()?,
            push_on: take.flag()?,
            app: take.text()?,
            device_id: take.text()?,
            attributes: take.bytes()?,
            client_ip: take.ip()?,
            last_active: take.u64()?,
        };
        take.0.is_empty().then_some(record).ok_or(Malformed)
    }
}

/// Kind 4: a receipt as the stream gives it, with what the index needs to apply it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct ReceiptRecord {
    pub(super) receipt: Receipt,
    pub(super) key: DeviceKey,
    pub(super) number: u32,
    /// The batch of the entry that it ends or marks; 0: of none.
    pub(super) batch: Seq,
}

const LATE: u8 = 1;
const UNMATCHED: u8 = 2;
const IMPLIED: u8 = 4;
const WITH_TARGET: u8 = 8;

impl ReceiptRecord {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let receipt = &self.receipt;
        put_bytes(out, receipt.app.as_str().as_bytes());
        out.extend_from_slice(&self.key.0);
        put_u32(out, self.number);
        put_u64(out, self.batch.0);
        out.push(receipt.kind as u8);
        out.push(match receipt.outcome {
            None => 0,
            Some(Ok(())) => u8::MAX,
            Some(Err(reason)) => reason as u8,
        });
        out.push(receipt.channel as u8);
        out.push(receipt.after.map_or(0, |reason| reason as u8));
        let mut flags = 0;
        flags |= if receipt.late { LATE } else { 0 };
        flags |= if receipt.unmatched { UNMATCHED } else { 0 };
        flags |= if receipt.implied { IMPLIED } else { 0 };
        flags |= if receipt.target.is_some() { WITH_TARGET } else { 0 };
        out.push(flags);
        put_u64(out, receipt.message.0);
        if let Some((id, ordinal)) = &receipt.target {
            put_bytes(out, id.as_str().as_bytes());
            put_varint(out, u64::from(*ordinal));
        }
        put_bytes(out, receipt.device_id.as_bytes());
        put_u64(out, receipt.event_time);
        put_u64(out, receipt.raw_event_time);
        put_u64(out, receipt.sent_at);
        put_u64(out, receipt.last_active);
        put_ip(out, receipt.client_ip);
        put_bytes(out, &receipt.attributes.0);
        put_bytes(out, receipt.job_key.as_bytes());
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
        let key = DeviceKey(take.array()?);
        let number = take.u32()?;
        let batch = Seq(take.u64()?);
        let kind = take_kind(take.u8()?)?;
        let outcome = match take.u8()? {
            0 => None,
            u8::MAX => Some(Ok(())),
            reason => Some(Err(Failure::from_number(reason).ok_or(Malformed)?)),
        };
        let channel = take_channel(take.u8()?)?;
        let after = match take.u8()? {
            0 => None,
            reason => Some(Failure::from_number(reason).ok_or(Malformed)?),
        };
        let flags = take.u8()?;
        let message = MessageId(take.u64()?);
        let target = if flags & WITH_TARGET == 0 {
            None
        } else {
            Some((BatchId::parse(take.text()?).ok_or(Malformed)?, take.varint32()?))
        };
        let receipt = Receipt {
            kind,
            outcome,
            app,
            message,
            target,
            device_id: take.text()?.into(),
            event_time: take.u64()?,
            raw_event_time: take.u64()?,
            sent_at: take.u64()?,
            channel,
            last_active: take.u64()?,
            client_ip: take.ip()?,
            attributes: Attributes(take.bytes()?.into()),
            job_key: take.text()?.into(),
            after,
            late: flags & LATE != 0,
            unmatched: flags & UNMATCHED != 0,
            implied: flags & IMPLIED != 0,
        };
        take.0.is_empty().then_some(Self { receipt, key, number, batch }).ok_or(Malformed)
    }
}

fn take_kind(number: u8) -> Result<ReceiptKind, Malformed> {
    Ok(match number {
        1 => ReceiptKind::Sent,
        2 => ReceiptKind::SentFail,
        3 => ReceiptKind::Arrive,
        4 => ReceiptKind::Click,
        5 => ReceiptKind::Clean,
        _ => return Err(Malformed),
    })
}

fn take_channel(number: u8) -> Result<Channel, Malformed> {
    Ok(match number {
        0 => Channel::Unknown,
        1 => Channel::Online,
        2 => Channel::Offline,
        _ => return Err(Malformed),
    })
}

/// Kind 5: a mass end as the stream gives it, with what the index needs to apply it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MassRecord {
    pub(super) mass: MassOutcome,
    pub(super) batch: Seq,
    /// The devices' numbers, a serialized roaring bitmap: the push record remembers who failed, for late events.
    pub(super) numbers: Vec<u8>,
}

impl MassRecord {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mass = &self.mass;
        put_bytes(out, mass.app.as_str().as_bytes());
        put_u64(out, self.batch.0);
        put_u64(out, mass.message.0);
        put_bytes(out, mass.batch.as_str().as_bytes());
        out.push(mass.reason as u8);
        put_u64(out, mass.event_time);
        put_bytes(out, &mass.ordinals);
        put_varint(out, u64::from(mass.count));
        put_bytes(out, mass.job_key.as_bytes());
        put_bytes(out, &self.numbers);
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
        let batch = Seq(take.u64()?);
        let mass = MassOutcome {
            app,
            message: MessageId(take.u64()?),
            batch: BatchId::parse(take.text()?).ok_or(Malformed)?,
            reason: Failure::from_number(take.u8()?).ok_or(Malformed)?,
            event_time: take.u64()?,
            ordinals: take.bytes()?.to_vec(),
            count: take.varint32()?,
            job_key: take.text()?.into(),
        };
        let numbers = take.bytes()?.to_vec();
        take.0.is_empty().then_some(Self { mass, batch, numbers }).ok_or(Malformed)
    }
}

/// Whether bit `ordinal` is set.
pub(super) fn has_ordinal(bits: &[u8], ordinal: u32) -> bool {
    bits.get(ordinal as usize / 8).is_some_and(|byte| byte >> (ordinal % 8) & 1 == 1)
}

/// Sets bit `ordinal`.
pub(super) fn set_ordinal(bits: &mut Vec<u8>, ordinal: u32) {
    let at = ordinal as usize / 8;
    if bits.len() <= at {
        bits.resize(at + 1, 0);
    }
    bits[at] |= 1 << (ordinal % 8);
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

/// The app of a record that belongs to a stream; `None`: it belongs to none.
pub(super) fn app_of(kind: u8, payload: &[u8]) -> Result<Option<&str>, Malformed> {
    match kind {
        RECEIPT | MASS => Take(payload).text().map(Some),
        _ => Ok(None),
    }
}

/// The record as its stream gives it; `None`: it belongs to none.
pub(super) fn stream_event(kind: u8, payload: &[u8]) -> Result<Option<StreamEvent>, Malformed> {
    match kind {
        RECEIPT => Ok(Some(StreamEvent::Receipt(Box::new(ReceiptRecord::decode(payload)?.receipt)))),
        MASS => Ok(Some(StreamEvent::Mass(Box::new(MassRecord::decode(payload)?.mass)))),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(ordinal: u32) -> Target {
        Target { ordinal, key: DeviceKey([ordinal as u8; 16]), number: ordinal + 7 }
    }

    #[test]
    fn a_batch_comes_back_with_its_gaps() {
        for targets in
            [vec![target(0), target(1), target(2)], vec![target(1), target(4), target(200)], vec![]]
        {
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
            };
            record.encode(&mut out);
            assert_eq!(BatchRecord::decode(&out).as_ref(), Ok(&record));
            assert_eq!(record.targets(), Ok(targets));
            assert_eq!(take_refused(&refused), Ok(reasons.to_vec()));
            for cut in 0..out.len() {
                assert!(BatchRecord::decode(&out[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_receipt_comes_back_whole() {
        let receipt = Receipt {
            kind: ReceiptKind::SentFail,
            outcome: Some(Err(Failure::Storage)),
            app: AppKey::parse("app").expect("valid"),
            message: MessageId(1),
            target: Some((BatchId::parse("b").expect("valid"), 4)),
            device_id: "d".into(),
            event_time: 1,
            raw_event_time: 2,
            sent_at: 3,
            channel: Channel::Offline,
            last_active: 4,
            client_ip: Some(IpAddr::from([127, 0, 0, 9])),
            attributes: Attributes((*b"attributes").into()),
            job_key: "job".into(),
            after: Some(Failure::Expired),
            late: true,
            unmatched: false,
            implied: true,
        };
        let record = ReceiptRecord { receipt, key: DeviceKey([3; 16]), number: 8, batch: Seq(6) };
        let mut out = Vec::new();
        record.encode(&mut out);
        assert_eq!(app_of(RECEIPT, &out), Ok(Some("app")));
        assert_eq!(ReceiptRecord::decode(&out), Ok(record));
    }

    #[test]
    fn ordinals_are_bits() {
        let mut bits = Vec::new();
        set_ordinal(&mut bits, 9);
        set_ordinal(&mut bits, 0);
        assert_eq!(bits, [1, 2]);
        assert!(has_ordinal(&bits, 9) && !has_ordinal(&bits, 8) && !has_ordinal(&bits, 900));
    }
}
