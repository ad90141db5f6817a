//! Stream events to `StreamBatch` frames.
//!
//! Written field by field, straight from the domain's words into the frame: a receipt carries its device's attributes as the encoded message that
//! they already are, and none of its strings is copied into a struct of protobuf first, nor into one of ours: they stand in its journal record. It is the busiest way out of the edge towards a router
//! (one receipt a delivery, at least). A property test reads it back with the generated code.

use std::net::{IpAddr, Ipv4Addr};

use prost::encoding::{WireType, encoded_len_varint};

use crate::binding::{Binding, DeviceChange, DeviceEvent};
use crate::ids::Seq;
use crate::push::{Attributes, Failure, MassOutcome, ReceiptGap, ReceiptRef, StreamEvent};
use crate::store::{EventSink, Found, StreamRead};

const TO_ROUTER_STREAM: u32 = 4;
/// Bytes of a frame before its `StreamBatch`, about: gRPC's, the field's key, and a length of three bytes.
const HEAD: usize = 5 + 1 + 3;
const STREAM_BATCH_EVENT: u32 = 4;
const EVENT_RECEIPT: u32 = 2;
const EVENT_MASS: u32 = 3;
const EVENT_GAP: u32 = 4;
const EVENT_DEVICE: u32 = 5;

/// The events of one read as frames of about `max_bytes`, each with the cursor that acknowledges it. Events of one sequence stay in one
/// frame, so that a cursor never names half of a record. No events: no frames.
pub fn stream_batches(stream: &str, epoch: u64, read: &StreamRead, max_bytes: usize) -> Vec<(Seq, Vec<u8>)> {
    let mut frames = StreamFrames::new(stream, epoch, max_bytes);
    for (seq, event) in &read.events {
        frames.put(*seq, event);
    }
    frames.finish(read.cursor)
}

/// Makes the frames of [`stream_batches`] while the events are read.
#[derive(Debug)]
pub struct StreamFrames<'a> {
    stream: &'a str,
    epoch: u64,
    max_bytes: usize,
    frames: Vec<(Seq, Vec<u8>)>,
    /// The next one as far as it is known: room for its head, and events, with the sequence of the last of them.
    body: Vec<u8>,
    last: Option<Seq>,
    inner: Vec<u8>,
}

impl<'a> StreamFrames<'a> {
    /// None yet.
    pub fn new(stream: &'a str, epoch: u64, max_bytes: usize) -> Self {
        let (frames, body, inner) = (Vec::new(), vec![0; HEAD], Vec::new());
        Self { stream, epoch, max_bytes, frames, body, last: None, inner }
    }

    fn put(&mut self, seq: Seq, event: &StreamEvent) {
        match event {
            StreamEvent::Receipt(receipt) => self.put_receipt(seq, &receipt.borrowed()),
            StreamEvent::Mass(mass) => self.put_event(seq, EVENT_MASS, |inner| put_mass(inner, mass)),
            StreamEvent::Gap(gap) => self.put_event(seq, EVENT_GAP, |inner| put_gap(inner, gap)),
            StreamEvent::Device(event) => self.put_event(seq, EVENT_DEVICE, |inner| put_device(inner, event)),
        }
    }

    fn put_receipt(&mut self, seq: Seq, receipt: &ReceiptRef<'_>) {
        self.put_event(seq, EVENT_RECEIPT, |inner| put_receipt(inner, receipt));
    }

    fn put_event(&mut self, seq: Seq, tag: u32, put: impl FnOnce(&mut Vec<u8>)) {
        let is_full = self.body.len() - HEAD >= self.max_bytes;
        if let Some(before) = self.last.filter(|before| *before != seq && is_full) {
            self.end_frame(before);
        }
        self.last = Some(seq);
        self.inner.clear();
        put(&mut self.inner);
        let length = self.inner.len() as u64;
        let bytes = 1 + encoded_len_varint(seq.0) + 1 + encoded_len_varint(length) + self.inner.len();
        Head::of(STREAM_BATCH_EVENT, WireType::LengthDelimited).varint(bytes as u64).put(&mut self.body);
        Head::of(1, WireType::Varint).varint(seq.0).put(&mut self.body);
        put_message(&mut self.body, tag, &self.inner);
    }

    fn end_frame(&mut self, cursor: Seq) {
        let body = std::mem::replace(&mut self.body, vec![0; HEAD]);
        self.frames.push((cursor, frame(self.stream, self.epoch, cursor, body)));
    }

    /// Everything up to the cursor was looked at.
    pub fn finish(mut self, cursor: Seq) -> Vec<(Seq, Vec<u8>)> {
        if self.last.is_some() {
            self.end_frame(cursor);
        }
        self.frames
    }
}

impl EventSink for StreamFrames<'_> {
    fn event(&mut self, seq: Seq, event: Found<'_>) {
        match event {
            Found::Receipt(receipt) => self.put_receipt(seq, &receipt),
            Found::Event(event) => self.put(seq, &event),
        }
    }

    fn again(&mut self) {
        self.frames.clear();
        self.body.truncate(HEAD);
        self.last = None;
    }
}

/// A frame without events: nothing for this reader up to the cursor.
pub fn empty_stream_batch(stream: &str, epoch: u64, cursor: Seq) -> Vec<u8> {
    frame(stream, epoch, cursor, vec![0; HEAD])
}

/// Completes a frame: behind its events comes whose they are, and the head goes where there is room for it. So what is most of a large frame is written once.
fn frame(stream: &str, epoch: u64, cursor: Seq, mut frame: Vec<u8>) -> Vec<u8> {
    put_bytes(&mut frame, 1, stream.as_bytes());
    put_number(&mut frame, 2, epoch);
    put_number(&mut frame, 3, cursor.0);
    let length = (frame.len() - HEAD) as u64;
    let mut head = vec![0; 5];
    Head::of(TO_ROUTER_STREAM, WireType::LengthDelimited).varint(length).put(&mut head);
    let body = head.len() as u64 - 5 + length;
    head[1..5].copy_from_slice(&(body as u32).to_be_bytes());
    // The length's own length is what was guessed, unless the frame is small or very large.
    drop(frame.splice(..HEAD, head));
    frame
}

fn put_receipt(out: &mut Vec<u8>, receipt: &ReceiptRef<'_>) {
    let (outcome, reason) = match receipt.outcome {
        None => (0, None),
        Some(Ok(())) => (1, None),
        Some(Err(reason)) => (2, Some(reason)),
    };
    put_number(out, 1, receipt.kind as u64);
    put_number(out, 2, outcome);
    put_number(out, 3, number(reason));
    put_bytes(out, 4, receipt.app.as_bytes());
    put_number(out, 5, receipt.message.0);
    if let Some((batch, ordinal)) = &receipt.target {
        put_bytes(out, 6, batch.as_bytes());
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
    match receipt.client_ip {
        None => {}
        Some(IpAddr::V4(ip)) => put_ipv4(out, 14, ip),
        Some(IpAddr::V6(ip)) => put_bytes(out, 14, ip.to_string().as_bytes()),
    }
    if receipt.attributes.iter().any(|part| !part.is_empty()) {
        put_pieces(out, 15, receipt.attributes);
    }
    put_bytes(out, 16, receipt.job_key.as_bytes());
    put_number(out, 17, number(receipt.after));
    put_number(out, 18, u64::from(receipt.late));
    put_number(out, 19, u64::from(receipt.unmatched));
    put_number(out, 20, u64::from(receipt.implied));
}

/// As text, like `to_string`: one a receipt, without its detours.
fn put_ipv4(out: &mut Vec<u8>, tag: u32, ip: Ipv4Addr) {
    let (mut text, mut length) = ([0; 15], 0);
    let mut put = |byte: u8| {
        text[length] = byte;
        length += 1;
    };
    for (n, octet) in ip.octets().into_iter().enumerate() {
        if n > 0 {
            put(b'.');
        }
        if octet >= 100 {
            put(b'0' + octet / 100);
        }
        if octet >= 10 {
            put(b'0' + octet / 10 % 10);
        }
        put(b'0' + octet % 10);
    }
    put_bytes(out, tag, &text[..length]);
}

fn put_mass(out: &mut Vec<u8>, mass: &MassOutcome) {
    put_bytes(out, 1, mass.app.as_str().as_bytes());
    put_number(out, 2, mass.message.0);
    put_bytes(out, 3, mass.batch.as_str().as_bytes());
    put_number(out, 4, mass.reason as u64);
    put_number(out, 5, mass.event_time);
    let (skipped, bits) = mass.ordinals.parts();
    put_bytes(out, 6, bits);
    put_number(out, 7, u64::from(mass.count));
    put_bytes(out, 8, mass.job_key.as_bytes());
    put_number(out, 9, u64::from(skipped) * 8);
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

/// Varints before what they are of, put together: to append each byte by itself asks for room each time, which was a quarter of a receipt's time.
#[derive(Default)]
struct Head {
    bytes: [u8; 20],
    length: usize,
}

impl Head {
    fn of(tag: u32, wire_type: WireType) -> Self {
        Self::default().varint(u64::from(tag) << 3 | wire_type as u64)
    }

    /// With one more; two fit.
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.bytes[self.length] = value as u8 | 0x80;
            self.length += 1;
            value >>= 7;
        }
        self.bytes[self.length] = value as u8;
        self.length += 1;
        self
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.length]);
    }
}

/// A varint field; zero is the default and is left out.
fn put_number(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        Head::of(tag, WireType::Varint).varint(value).put(out);
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
    put_pieces(out, tag, attributes.parts());
}

/// Bytes that stand in pieces.
fn put_pieces(out: &mut Vec<u8>, tag: u32, pieces: [&[u8]; 3]) {
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    Head::of(tag, WireType::LengthDelimited).varint(length).put(out);
    for piece in pieces {
        out.extend_from_slice(piece);
    }
}

/// A message field: present even if empty.
fn put_message(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    Head::of(tag, WireType::LengthDelimited).varint(bytes.len() as u64).put(out);
    out.extend_from_slice(bytes);
}
