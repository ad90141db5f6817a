//! The records that streams are made of: receipts, and the same end for many; those of devices stand beside, and a batch says what ended at once. Each is self-contained and begins
//! with its app.

use smallvec::smallvec;

use super::device::{BindingRecord, DeviceRecord, Events, ForgottenRecord};
use super::{BATCH, BINDING, BatchRecord, DEVICE, FORGOTTEN, LOST, MASS, RECEIPT, take_lost, take_skip};
use crate::ids::{AppKey, BatchId, DeviceKey, MessageId, Seq, is_name};
use crate::limits;
use crate::push::{
    Channel, Failure, MassOutcome, Ordinals, Receipt, ReceiptGap, ReceiptKind, ReceiptRef, StreamEvent,
};
use crate::store::codec::{Malformed, Take, put_attributes, put_bytes, put_ip, put_u32, put_u64, put_varint};

/// Kind 4: a receipt as the stream gives it, with what the index needs to apply it.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::store) struct ReceiptRecord {
    pub(in crate::store) receipt: Receipt,
    pub(in crate::store) key: DeviceKey,
    pub(in crate::store) number: u32,
    /// The batch of the entry that it ends or marks; 0: of none.
    pub(in crate::store) batch: Seq,
}

const LATE: u8 = 1;
const UNMATCHED: u8 = 2;
const IMPLIED: u8 = 4;
const WITH_TARGET: u8 = 8;

/// The same, its receipt's parts where they are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(in crate::store) struct ReceiptParts<'a> {
    pub(in crate::store) receipt: ReceiptRef<'a>,
    pub(in crate::store) key: DeviceKey,
    pub(in crate::store) number: u32,
    pub(in crate::store) batch: Seq,
}

impl ReceiptRecord {
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        let Self { receipt, key, number, batch } = self;
        ReceiptParts { receipt: receipt.borrowed(), key: *key, number: *number, batch: *batch }.encode(out);
    }

    pub(in crate::store) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let ReceiptParts { receipt, key, number, batch } = ReceiptParts::decode(payload)?;
        Ok(Self { receipt: receipt.to_receipt().ok_or(Malformed)?, key, number, batch })
    }
}

impl<'a> ReceiptParts<'a> {
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        let receipt = &self.receipt;
        put_bytes(out, receipt.app.as_bytes());
        out.extend_from_slice(&self.key.0);
        put_u32(out, self.number);
        put_u64(out, self.batch.0);
        let mut flags = 0;
        flags |= if receipt.late { LATE } else { 0 };
        flags |= if receipt.unmatched { UNMATCHED } else { 0 };
        flags |= if receipt.implied { IMPLIED } else { 0 };
        flags |= if receipt.target.is_some() { WITH_TARGET } else { 0 };
        let outcome = match receipt.outcome {
            None => 0,
            Some(Ok(())) => u8::MAX,
            Some(Err(reason)) => reason as u8,
        };
        let after = receipt.after.map_or(0, |reason| reason as u8);
        out.extend_from_slice(&[receipt.kind as u8, outcome, receipt.channel as u8, after, flags]);
        put_u64(out, receipt.message.0);
        if let Some((id, ordinal)) = &receipt.target {
            put_bytes(out, id.as_bytes());
            put_varint(out, u64::from(*ordinal));
        }
        put_bytes(out, receipt.device_id.as_bytes());
        put_u64(out, receipt.event_time);
        put_u64(out, receipt.raw_event_time);
        put_u64(out, receipt.sent_at);
        put_u64(out, receipt.last_active);
        put_ip(out, receipt.client_ip);
        put_attributes(out, receipt.attributes);
        put_bytes(out, receipt.job_key.as_bytes());
    }

    pub(in crate::store) fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let app = take_name(&mut take, limits::APP_KEY_BYTES)?;
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
            Some((take_name(&mut take, limits::BATCH_ID_BYTES)?, take.varint32()?))
        };
        let receipt = ReceiptRef {
            kind,
            outcome,
            app,
            message,
            target,
            device_id: take.text()?,
            event_time: take.u64()?,
            raw_event_time: take.u64()?,
            sent_at: take.u64()?,
            channel,
            last_active: take.u64()?,
            client_ip: take.ip()?,
            attributes: [take.bytes()?, &[], &[]],
            job_key: take.text()?,
            after,
            late: flags & LATE != 0,
            unmatched: flags & UNMATCHED != 0,
            implied: flags & IMPLIED != 0,
        };
        take.0.is_empty().then_some(Self { receipt, key, number, batch }).ok_or(Malformed)
    }
}

fn take_name<'a>(take: &mut Take<'a>, max: usize) -> Result<&'a str, Malformed> {
    take.text().and_then(|text| if is_name(text, max) { Ok(text) } else { Err(Malformed) })
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
pub(in crate::store) struct MassRecord {
    pub(in crate::store) mass: MassOutcome,
    /// 0: of none that is known, see [`BatchId::lost`].
    pub(in crate::store) batch: Seq,
    /// The devices' numbers, a serialized roaring bitmap: the push record remembers who failed, for late events.
    pub(in crate::store) numbers: Vec<u8>,
}

impl MassRecord {
    pub(in crate::store) fn encode(&self, out: &mut Vec<u8>) {
        let mass = &self.mass;
        put_bytes(out, mass.app.as_str().as_bytes());
        put_u64(out, self.batch.0);
        put_u64(out, mass.message.0);
        put_bytes(out, mass.batch.as_str().as_bytes());
        out.push(mass.reason as u8);
        put_u64(out, mass.event_time);
        let (skip, bits) = mass.ordinals.parts();
        put_bytes(out, bits);
        put_varint(out, u64::from(mass.count));
        put_bytes(out, mass.job_key.as_bytes());
        put_bytes(out, &self.numbers);
        if skip > 0 {
            put_varint(out, u64::from(skip));
        }
    }

    pub(in crate::store) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take(payload);
        let app = AppKey::parse(take.text()?).ok_or(Malformed)?;
        let batch = Seq(take.u64()?);
        let message = MessageId(take.u64()?);
        let id = match take.text()? {
            "" if batch == Seq(0) => BatchId::lost(),
            id => BatchId::parse(id).ok_or(Malformed)?,
        };
        let reason = Failure::from_number(take.u8()?).ok_or(Malformed)?;
        let event_time = take.u64()?;
        let bits = take.bytes()?;
        let count = take.varint32()?;
        let job_key = take.text()?.into();
        let numbers = take.bytes()?.to_vec();
        let skip = if take.0.is_empty() { 0 } else { take_skip(&mut take)? };
        let ordinals = Ordinals::from_parts(skip, bits);
        let mass = MassOutcome { app, message, batch: id, reason, event_time, ordinals, count, job_key };
        take.0.is_empty().then_some(Self { mass, batch, numbers }).ok_or(Malformed)
    }
}

/// The app of a record that belongs to a stream; `None`: it belongs to none.
pub(in crate::store) fn app_of(kind: u8, payload: &[u8]) -> Result<Option<&str>, Malformed> {
    match kind {
        RECEIPT | MASS | DEVICE | BINDING | FORGOTTEN => Take(payload).text().map(Some),
        BATCH => {
            let batch = BatchRecord::decode(payload)?;
            Ok((!batch.unbound.is_empty()).then_some(batch.app))
        }
        _ => Ok(None),
    }
}

/// The record as its stream gives it: nothing, if it belongs to none.
pub(in crate::store) fn stream_events(kind: u8, payload: &[u8]) -> Result<Events, Malformed> {
    Ok(match kind {
        RECEIPT => smallvec![StreamEvent::Receipt(Box::new(ReceiptRecord::decode(payload)?.receipt))],
        MASS => smallvec![StreamEvent::Mass(Box::new(MassRecord::decode(payload)?.mass))],
        BATCH => {
            let mass = BatchRecord::decode(payload)?.mass()?;
            mass.map(|mass| StreamEvent::Mass(Box::new(mass))).into_iter().collect()
        }
        DEVICE => DeviceRecord::decode(payload)?.events()?,
        BINDING => BindingRecord::decode(payload)?.events(),
        FORGOTTEN => ForgottenRecord::decode(payload)?.events(),
        LOST => {
            let gap = |(first, last)| StreamEvent::Gap(Box::new(ReceiptGap::unreadable(first, last)));
            take_lost(payload)?.into_iter().map(gap).collect()
        }
        _ => Events::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::push::Attributes;

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
            attributes: Attributes::whole((*b"attributes").into()),
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
    fn an_end_names_its_batch_unless_the_record_of_that_is_lost() {
        let of = |batch: Seq, id: BatchId, ordinals: &[u32]| {
            let mass = MassOutcome {
                app: AppKey::parse("app").expect("valid"),
                message: MessageId(1),
                batch: id,
                reason: Failure::Storage,
                event_time: 1,
                ordinals: ordinals.iter().copied().collect(),
                count: 2,
                job_key: "job".into(),
            };
            let record = MassRecord { mass, batch, numbers: vec![3] };
            let mut out = Vec::new();
            record.encode(&mut out);
            (MassRecord::decode(&out), record)
        };
        let known = (Seq(6), BatchId::parse("b").expect("valid"));
        for (batch, id) in [known, (Seq(0), BatchId::lost())] {
            for ordinals in [&[0, 9][..], &[99_000, 99_999], &[]] {
                let (decoded, record) = of(batch, id.clone(), ordinals);
                assert_eq!(decoded, Ok(record));
            }
        }
        assert_eq!(of(Seq(6), BatchId::lost(), &[]).0, Err(Malformed));
        // What is no batch's ordinal would take memory.
        assert_eq!(of(Seq(0), BatchId::lost(), &[8 * 12_501]).0, Err(Malformed));
    }
}
