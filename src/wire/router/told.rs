//! What a stream's frame tells a router, read where it stands.
//!
//! The other end of [`super::StreamFrames`]: of a receipt's strings none is copied, and its attributes stay encoded until somebody asks for them. Decoding
//! receipts into protobuf's own structs was rejected: a dozen allocations each, attributes for the most part, were most of what a router that
//! counts did for one. What is rare is decoded. Of a message that comes twice in another the last one counts, where protobuf merges them; no edge says so.
//! Tests hold it against the generated code.
//!
//! A router trusts its edge: an event takes 176 bytes here, and two of a frame, at the least.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::{delimited, text};
use crate::push::Failure;
use crate::wire::frame::FrameError;
use crate::wire::pb::device::Attributes;
use crate::wire::pb::router::{DeviceEvent, MassOutcome, Outcome, ReceiptEvent, ReceiptGap};

/// The fields of `ToRouter`, and which holds a `StreamBatch`.
const KINDS: std::ops::RangeInclusive<u32> = 1..=11;
const STREAM: u32 = 4;

/// A `StreamBatch`: events of a stream, in the order of the journal.
#[derive(Clone, Default, Debug)]
pub struct StreamEvents<'a> {
    /// The stream's name.
    pub stream: &'a str,
    /// Of the reader that these go to.
    pub epoch: u64,
    /// Acknowledged when all events are stored.
    pub cursor: u64,
    /// Each with the sequence of its journal record; several may share one.
    pub events: Vec<(u64, Told<'a>)>,
}

/// One event of a stream.
#[derive(Clone, PartialEq, Debug)]
pub enum Told<'a> {
    /// Of one device and one message.
    Receipt(Receipt<'a>),
    /// Targets that ended together.
    Mass(MassOutcome),
    /// What can't be told any more.
    Gap(ReceiptGap),
    /// What changed about a device.
    Device(Box<DeviceEvent>),
    /// Something newer than this program.
    Unknown,
}

/// A `Receipt` of the protocol, field by field.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[allow(missing_docs)] // they are described where they are declared
pub struct Receipt<'a> {
    pub event: i32,
    pub outcome: i32,
    pub reason: i32,
    pub app_key: &'a str,
    pub message_id: u64,
    pub batch_id: &'a str,
    pub ordinal: u32,
    pub device_id: &'a str,
    pub event_time: u64,
    pub raw_event_time: u64,
    pub sent_time: u64,
    pub channel: i32,
    pub last_active_time: u64,
    pub client_ip: &'a str,
    /// Encoded: see [`Receipt::attributes`].
    pub encoded_attributes: Option<&'a [u8]>,
    pub job_key: &'a str,
    pub after: i32,
    pub late: bool,
    pub unmatched: bool,
    pub implied: bool,
}

impl Receipt<'_> {
    /// What happened; `Unspecified` too for what is newer than this program.
    pub fn event(&self) -> ReceiptEvent {
        ReceiptEvent::try_from(self.event).unwrap_or_default()
    }

    /// Whether it is its target's end; `None` too for what is newer than this program.
    pub fn outcome(&self) -> Outcome {
        Outcome::try_from(self.outcome).unwrap_or_default()
    }

    /// Why its target failed, as far as this program knows the reason.
    pub fn failure(&self) -> Option<Failure> {
        u8::try_from(self.reason).ok().and_then(Failure::from_number)
    }

    /// Its device's attributes as of the event; bytes that are none are an error.
    pub fn attributes(&self) -> Result<Option<Attributes>, prost::DecodeError> {
        self.encoded_attributes.map(Attributes::decode).transpose()
    }
}

/// The `StreamBatch` in a frame's body, if it holds one. An error: beside it is something else that this program knows, and one of them would be passed over.
pub fn stream_in(body: &[u8]) -> Result<Option<&[u8]>, FrameError> {
    let (mut found, mut known) = (None, 0);
    let read = each_field(body, |tag, field| {
        known += u32::from(KINDS.contains(&tag));
        if tag == STREAM {
            found = Some(field.bytes()?);
        }
        Some(())
    });
    match (found, known) {
        (Some(_), 2..) => Err(FrameError::Malformed),
        // What is broken the generated code says.
        _ => Ok(read.and(found)),
    }
}

impl<'a> StreamEvents<'a> {
    /// Reads an encoded `StreamBatch`; `None`: the bytes are none.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut read = Self::default();
        each_field(bytes, |tag, field| {
            match tag {
                1 => read.stream = field.text()?,
                2 => read.epoch = field.number()?,
                3 => read.cursor = field.number()?,
                4 => read.events.push(event(field.bytes()?)?),
                _ => {}
            }
            Some(())
        })?;
        Some(read)
    }
}

/// One field's value.
#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a kind that no field here has.
    Other,
}

impl<'a> Field<'a> {
    fn number(self) -> Option<u64> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    /// A number of an enum: protobuf takes the lower half of what is there.
    fn word(self) -> Option<i32> {
        self.number().map(|number| number as i32)
    }

    fn bytes(self) -> Option<&'a [u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    fn text(self) -> Option<&'a str> {
        text(self.bytes()?)
    }

    fn message<M: Message + Default>(self) -> Option<M> {
        M::decode(self.bytes()?).ok()
    }
}

/// Calls `take` with each field, in order. `None`: the bytes are no message, or `take` said so.
fn each_field<'a>(mut rest: &'a [u8], mut take: impl FnMut(u32, Field<'a>) -> Option<()>) -> Option<()> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        let field = match wire_type {
            WireType::Varint => Field::Number(decode_varint(&mut rest).ok()?),
            WireType::LengthDelimited => Field::Bytes(delimited(&mut rest)?),
            _ => {
                skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
                Field::Other
            }
        };
        take(tag, field)?;
    }
    Some(())
}

fn event(bytes: &[u8]) -> Option<(u64, Told<'_>)> {
    let (mut sequence, mut told) = (0, Told::Unknown);
    each_field(bytes, |tag, field| {
        match tag {
            1 => sequence = field.number()?,
            2 => told = Told::Receipt(receipt(field.bytes()?)?),
            3 => told = Told::Mass(field.message()?),
            4 => told = Told::Gap(field.message()?),
            5 => told = Told::Device(Box::new(field.message()?)),
            _ => {}
        }
        Some(())
    })?;
    Some((sequence, told))
}

fn receipt(bytes: &[u8]) -> Option<Receipt<'_>> {
    let mut r = Receipt::default();
    each_field(bytes, |tag, field| {
        match tag {
            1 => r.event = field.word()?,
            2 => r.outcome = field.word()?,
            3 => r.reason = field.word()?,
            4 => r.app_key = field.text()?,
            5 => r.message_id = field.number()?,
            6 => r.batch_id = field.text()?,
            7 => r.ordinal = field.number()? as u32,
            8 => r.device_id = field.text()?,
            9 => r.event_time = field.number()?,
            10 => r.raw_event_time = field.number()?,
            11 => r.sent_time = field.number()?,
            12 => r.channel = field.word()?,
            13 => r.last_active_time = field.number()?,
            14 => r.client_ip = field.text()?,
            15 => r.encoded_attributes = Some(field.bytes()?),
            16 => r.job_key = field.text()?,
            17 => r.after = field.word()?,
            18 => r.late = field.number()? != 0,
            19 => r.unmatched = field.number()? != 0,
            20 => r.implied = field.number()? != 0,
            _ => {}
        }
        Some(())
    })?;
    Some(r)
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;
