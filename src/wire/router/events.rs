//! Stream events to `StreamBatch` frames.
//!
//! Written field by field, straight from the domain's words into the frame: a receipt carries its device's attributes as the encoded message that
//! they already are, and none of its strings is copied into a struct of protobuf first. It is the busiest way out of the edge towards a router
//! (one receipt a delivery, at least). A property test reads it back with the generated code.

use prost::encoding::{WireType, encode_key, encode_varint};

use crate::binding::{Binding, DeviceChange, DeviceEvent};
use crate::ids::Seq;
use crate::push::{Attributes, Failure, MassOutcome, Receipt, ReceiptGap, StreamEvent};
use crate::store::StreamRead;

const TO_ROUTER_STREAM: u32 = 4;
const EVENT_RECEIPT: u32 = 2;
const EVENT_MASS: u32 = 3;
const EVENT_GAP: u32 = 4;
const EVENT_DEVICE: u32 = 5;

/// The events of one read as frames of about `max_bytes`, each with the cursor that acknowledges it. Events of one sequence stay in one
/// frame, so that a cursor never names half of a record. No events: no frames.
pub fn stream_batches(stream: &str, epoch: u64, read: &StreamRead, max_bytes: usize) -> Vec<(Seq, Vec<u8>)> {
    let mut frames = Vec::new();
    let (mut body, mut one, mut inner) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for (seq, event) in &read.events {
        match last {
            Some(before) if before != *seq && body.len() >= max_bytes => {
                frames.push((before, frame(stream, epoch, before, &body)));
                body.clear();
            }
            _ => {}
        }
        put_event(&mut one, &mut inner, *seq, event);
        put_bytes(&mut body, 4, &one);
        last = Some(*seq);
    }
    if last.is_some() {
        frames.push((read.cursor, frame(stream, epoch, read.cursor, &body)));
    }
    frames
}

/// A frame without events: nothing for this reader up to the cursor.
pub fn empty_stream_batch(stream: &str, epoch: u64, cursor: Seq) -> Vec<u8> {
    frame(stream, epoch, cursor, &[])
}

fn frame(stream: &str, epoch: u64, cursor: Seq, events: &[u8]) -> Vec<u8> {
    let mut fields = Vec::with_capacity(stream.len() + 32);
    put_bytes(&mut fields, 1, stream.as_bytes());
    put_number(&mut fields, 2, epoch);
    put_number(&mut fields, 3, cursor.0);
    let length = fields.len() + events.len();
    let mut out = Vec::with_capacity(16 + length);
    out.extend_from_slice(&[0; 5]);
    encode_key(TO_ROUTER_STREAM, WireType::LengthDelimited, &mut out);
    encode_varint(length as u64, &mut out);
    out.extend_from_slice(&fields);
    out.extend_from_slice(events);
    let body = (out.len() - 5) as u32;
    out[1..5].copy_from_slice(&body.to_be_bytes());
    out
}

fn put_event(out: &mut Vec<u8>, inner: &mut Vec<u8>, seq: Seq, event: &StreamEvent) {
    out.clear();
    inner.clear();
    put_number(out, 1, seq.0);
    match event {
        StreamEvent::Receipt(receipt) => {
            put_receipt(inner, receipt);
            put_message(out, EVENT_RECEIPT, inner);
        }
        StreamEvent::Mass(mass) => {
            put_mass(inner, mass);
            put_message(out, EVENT_MASS, inner);
        }
        StreamEvent::Gap(gap) => {
            put_gap(inner, gap);
            put_message(out, EVENT_GAP, inner);
        }
        StreamEvent::Device(event) => {
            put_device(inner, event);
            put_message(out, EVENT_DEVICE, inner);
        }
    }
}

fn put_receipt(out: &mut Vec<u8>, receipt: &Receipt) {
    let (outcome, reason) = match receipt.outcome {
        None => (0, None),
        Some(Ok(())) => (1, None),
        Some(Err(reason)) => (2, Some(reason)),
    };
    put_number(out, 1, receipt.kind as u64);
    put_number(out, 2, outcome);
    put_number(out, 3, number(reason));
    put_bytes(out, 4, receipt.app.as_str().as_bytes());
    put_number(out, 5, receipt.message.0);
    if let Some((batch, ordinal)) = &receipt.target {
        put_bytes(out, 6, batch.as_str().as_bytes());
        put_number(out, 7, u64::from(*ordinal));
    }
    put_bytes(out, 8, receipt.device_id.as_bytes());
    put_number(out, 9, receipt.event_time);
    put_number(
        out,
        10,
        if receipt.raw_event_time == receipt.event_time { 0 } else { receipt.raw_event_time },
    );
    put_number(out, 11, receipt.sent_at);
    put_number(out, 12, receipt.channel as u64);
    put_number(out, 13, receipt.last_active);
    if let Some(ip) = receipt.client_ip {
        put_bytes(out, 14, ip.to_string().as_bytes());
    }
    if !receipt.attributes.is_empty() {
        put_attributes(out, 15, &receipt.attributes);
    }
    put_bytes(out, 16, receipt.job_key.as_bytes());
    put_number(out, 17, number(receipt.after));
    put_number(out, 18, u64::from(receipt.late));
    put_number(out, 19, u64::from(receipt.unmatched));
    put_number(out, 20, u64::from(receipt.implied));
}

fn put_mass(out: &mut Vec<u8>, mass: &MassOutcome) {
    put_bytes(out, 1, mass.app.as_str().as_bytes());
    put_number(out, 2, mass.message.0);
    put_bytes(out, 3, mass.batch.as_str().as_bytes());
    put_number(out, 4, mass.reason as u64);
    put_number(out, 5, mass.event_time);
    put_bytes(out, 6, &mass.ordinals.to_bits());
    put_number(out, 7, u64::from(mass.count));
    put_bytes(out, 8, mass.job_key.as_bytes());
}

fn put_gap(out: &mut Vec<u8>, gap: &ReceiptGap) {
    put_number(out, 1, gap.first.0);
    put_number(out, 2, gap.last.0);
    put_number(out, 3, gap.events);
    let mut entry = Vec::new();
    for (event, count) in &gap.by_event {
        entry.clear();
        put_bytes(&mut entry, 1, event.as_bytes());
        put_number(&mut entry, 2, *count);
        put_message(out, 4, &entry);
    }
}

fn put_device(out: &mut Vec<u8>, event: &DeviceEvent) {
    put_bytes(out, 1, event.app.as_str().as_bytes());
    put_bytes(out, 2, event.device_id.as_bytes());
    put_number(out, 3, event.time);
    // What changed is one of several: it is there, even if it is empty.
    let mut inner = Vec::new();
    match &event.change {
        DeviceChange::Registered(attributes) => {
            if !attributes.is_empty() {
                put_attributes(&mut inner, 1, attributes);
            }
            put_message(out, 4, &inner);
        }
        DeviceChange::Attributes(attributes) => put_attributes(out, 5, attributes),
        DeviceChange::Switch(on) => put_number(out, 6, if *on { 1 } else { 2 }),
        DeviceChange::Bound(binding) => {
            put_binding(&mut inner, binding);
            put_message(out, 7, &inner);
        }
        DeviceChange::Unbound(binding) => {
            put_binding(&mut inner, binding);
            put_message(out, 8, &inner);
        }
        DeviceChange::Forgotten { last_active } => {
            put_number(&mut inner, 1, *last_active);
            put_message(out, 9, &inner);
        }
    }
}

fn put_binding(out: &mut Vec<u8>, binding: &Binding) {
    let tag = match binding {
        Binding::Account(_) => 1,
        Binding::Alias(_) => 2,
        Binding::Tag(_) => 3,
        Binding::Phone(_) => 4,
    };
    put_message(out, tag, binding.text().as_bytes());
}

fn number(reason: Option<Failure>) -> u64 {
    reason.map_or(0, |reason| reason as u64)
}

/// A varint field; zero is the default and is left out.
fn put_number(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

/// A string or bytes field; empty is the default and is left out.
fn put_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_message(out, tag, bytes);
    }
}

/// A device's attributes, put together where they are kept in parts.
fn put_attributes(out: &mut Vec<u8>, tag: u32, attributes: &Attributes) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(attributes.len() as u64, out);
    attributes.parts().iter().for_each(|part| out.extend_from_slice(part));
}

/// A message field: present even if empty.
fn put_message(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
