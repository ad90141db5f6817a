//! The router protocol's codec: frames of `proto/router.proto` to domain words, and back.
//!
//! Invariants: no bytes, however odd, panic or make this module hold more than a small multiple of the frame; unknown fields and
//! unknown frames are skipped; a frame of two kinds at once is malformed.
//!
//! A `DeliverBatch` is walked, not decoded: its targets stay where they are in the frame and are visited one by one. Decoding them into
//! protobuf's own structs was rejected: a frame of 16 MiB can name eight million empty targets, 48 bytes each in memory, before
//! anybody could count them; and two allocations a target are more than everything else that admission does for it.

mod answers;
mod events;
pub mod told;

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

pub use answers::{
    AnswerTooLarge, BatchName, OpenedStream, Welcome, accepted, devices_answer, failed_answer, go_away,
    link_error, message_answer, opened, pong, presence, rejected, revoked, stream_closed,
};
pub use events::{StreamFrames, empty_stream_batch, stream_batches};

use super::pb::router as pb;
use crate::ids::{HistoryId, MessageId, Seq};
use crate::limits;
use crate::presence::Point;
use crate::push::{Failure, Ordinals};

/// What ends a link with an Error frame: the router did something that the protocol or its certificate doesn't allow.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// Bytes that are no frame.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A frame over the limit.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    FrameTooLarge {
        /// Bytes announced.
        length: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// The first frame is not Open, or a later one is.
    #[error("{0}")]
    OpenExpected(&'static str),
    /// The certificate's name is not in the configuration, or has no right to what was asked.
    #[error("{0}")]
    Unauthorized(String),
    /// No stream of this name.
    #[error("no stream {0:?} is configured, or this link did not open it")]
    UnknownStream(String),
    /// A version that this edge doesn't speak.
    #[error("version {0} is not spoken here; version 1 is")]
    Version(u32),
    /// Too slow.
    #[error("{0}")]
    Deadline(&'static str),
    /// A cursor that can't be.
    #[error("{0}")]
    Cursor(String),
    /// The edge's own fault.
    #[error("{0}")]
    Internal(&'static str),
}

impl LinkError {
    /// The code on the wire.
    fn code(&self) -> pb::LinkErrorCode {
        match self {
            Self::Malformed(_) => pb::LinkErrorCode::Malformed,
            Self::FrameTooLarge { .. } => pb::LinkErrorCode::FrameTooLarge,
            Self::OpenExpected(_) => pb::LinkErrorCode::OpenExpected,
            Self::Unauthorized(_) => pb::LinkErrorCode::Unauthorized,
            Self::UnknownStream(_) => pb::LinkErrorCode::UnknownStream,
            Self::Version(_) => pb::LinkErrorCode::Version,
            Self::Deadline(_) => pb::LinkErrorCode::Deadline,
            Self::Cursor(_) => pb::LinkErrorCode::Cursor,
            Self::Internal(_) => pb::LinkErrorCode::Internal,
        }
    }

    /// The word for it in labels and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::FrameTooLarge { .. } => "frame_too_large",
            Self::OpenExpected(_) => "open_expected",
            Self::Unauthorized(_) => "unauthorized",
            Self::UnknownStream(_) => "unknown_stream",
            Self::Version(_) => "version",
            Self::Deadline(_) => "deadline",
            Self::Cursor(_) => "cursor",
            Self::Internal(_) => "internal",
        }
    }
}

/// Why nothing of a batch is taken: `RejectCode` of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Reject {
    /// A field is wrong.
    Invalid = 1,
    /// Not an app of this edge, or not of this router.
    UnknownApp = 2,
    /// `created_at` + retention has passed.
    Expired = 3,
    /// The push is too large.
    PayloadTooLarge = 4,
    /// It names no device.
    NoTargets = 5,
    /// It names too many.
    TooManyTargets = 6,
    /// The batch id was used with other content.
    BatchConflict = 7,
    /// The message id was used with another body.
    MessageConflict = 8,
    /// Created before batch ids are remembered.
    TooOld = 9,
    /// Credit, queue, or a maximum is used up.
    ResourceExhausted = 10,
    /// The disk is full, or the edge is leaving.
    Unavailable = 11,
    /// The app takes no new pushes.
    AppSuspended = 12,
    /// This edge doesn't do what the field asks for.
    Unimplemented = 13,
}

/// A batch that is not taken, as the router is told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{code:?} {field}: {text}")]
pub struct Rejected {
    /// Why.
    pub code: Reject,
    /// The field at fault, or empty.
    pub field: String,
    /// For an operator's log.
    pub text: String,
    /// When to try again, milliseconds; 0: don't.
    pub retry_after_ms: u32,
}

/// A frame from a router.
#[derive(Debug)]
pub enum FromRouter<'a> {
    /// The first one.
    Open(Open),
    /// A batch, not yet checked.
    Deliver(Deliver<'a>),
    /// Everything up to the cursor is stored.
    StreamAck {
        /// The stream.
        stream: String,
        /// Up to here, inclusive.
        cursor: Seq,
    },
    /// Take a message back.
    Revoke {
        /// The answer carries it.
        request_id: u64,
        /// The app, unchecked.
        app_key: String,
        /// The message, unchecked.
        message: MessageId,
    },
    /// A question.
    Query(Query),
    /// Answered by a Pong.
    Ping {
        /// The answer carries it.
        nonce: u64,
    },
    /// A frame of a later version: skipped.
    Unknown,
}

/// Who the router is, and what it wants to read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Open {
    /// The protocol's version.
    pub version: u32,
    /// The router's process and host, for logs.
    pub name: String,
    /// The streams to read.
    pub streams: Vec<OpenStream>,
    /// It asked for presence.
    pub presence: Option<OpenPresence>,
}

/// Presence to follow, and from where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenPresence {
    /// The apps, unchecked; none: all that it may.
    pub app_keys: Vec<String>,
    /// What it knows already.
    pub point: Point,
}

/// A stream to read, and from where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenStream {
    /// Its name.
    pub stream: String,
    /// Where to begin.
    pub from: From,
}

/// Where reading begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From {
    /// After the durable cursor.
    Durable,
    /// After this cursor, which was read in this history; `None`: the router doesn't say.
    After(Seq, Option<HistoryId>),
    /// At the oldest event kept.
    Oldest,
}

/// A batch as it stands in the frame.
#[derive(Debug)]
pub struct Deliver<'a> {
    /// Every field but the targets.
    pub fields: Box<pb::DeliverBatch>,
    /// How many targets it names.
    pub target_count: usize,
    raw: &'a [u8],
}

impl<'a> Deliver<'a> {
    /// Bytes of the encoded batch: what counts against the credit.
    pub fn encoded_bytes(&self) -> u64 {
        self.raw.len() as u64
    }

    /// The targets in order. An `Err` is a target whose bytes are none; the iterator goes on behind it.
    pub fn targets(&self) -> Targets<'a> {
        Targets { rest: self.raw }
    }
}

/// One target as it stands in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Target<'a> {
    /// The device id, unchecked.
    pub device_id: &'a str,
    /// The account it was resolved from, or empty.
    pub account: &'a str,
}

/// A question about a message or about devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Query {
    /// The answer carries it.
    pub request_id: u64,
    /// The app, unchecked.
    pub app_key: String,
    /// What is asked.
    pub of: QueryOf,
}

/// What a question is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum QueryOf {
    /// A message, and what became of it on one device if that is not empty.
    Message(MessageId, String),
    /// Devices, answered in order.
    Devices(Vec<String>),
    /// It doesn't say.
    Nothing,
}

const BROKEN: LinkError = LinkError::Malformed("the frame is no FromRouter message");

/// Reads one frame, without its five-byte head.
pub fn parse(frame: &[u8]) -> Result<FromRouter<'_>, LinkError> {
    let mut found = None;
    let mut rest = frame;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| BROKEN)?;
        if !(1..=6).contains(&tag) {
            skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(|_| BROKEN)?;
        } else if wire_type != WireType::LengthDelimited {
            return Err(BROKEN);
        } else if found.replace((tag, delimited(&mut rest).ok_or(BROKEN)?)).is_some() {
            return Err(LinkError::Malformed("one frame holds two"));
        }
    }
    let Some((tag, inner)) = found else { return Ok(FromRouter::Unknown) };
    if tag == 2 {
        return deliver(inner).map(FromRouter::Deliver);
    }
    // All the others are small; what they decode to is bounded by this.
    if inner.len() > limits::ROUTER_CONTROL_BYTES {
        return Err(LinkError::FrameTooLarge {
            length: inner.len() as u64,
            limit: limits::ROUTER_CONTROL_BYTES,
        });
    }
    small(tag, inner).map_err(|_| BROKEN)
}

fn small(tag: u32, inner: &[u8]) -> Result<FromRouter<'static>, prost::DecodeError> {
    Ok(match tag {
        1 => FromRouter::Open(open(pb::Open::decode(inner)?)),
        3 => {
            let ack = pb::StreamAck::decode(inner)?;
            FromRouter::StreamAck { stream: ack.stream, cursor: Seq(ack.cursor) }
        }
        4 => {
            let revoke = pb::Revoke::decode(inner)?;
            let message = MessageId(revoke.message_id);
            FromRouter::Revoke { request_id: revoke.request_id, app_key: revoke.app_key, message }
        }
        5 => FromRouter::Query(query(pb::Query::decode(inner)?)),
        _ => FromRouter::Ping { nonce: pb::Ping::decode(inner)?.nonce },
    })
}

fn open(open: pb::Open) -> Open {
    let streams = open.streams.into_iter().map(|wanted| OpenStream {
        stream: wanted.stream,
        from: match wanted.from {
            Some(pb::open_stream::From::After(cursor)) => {
                From::After(Seq(cursor), HistoryId::new(wanted.history))
            }
            Some(pb::open_stream::From::Oldest(true)) => From::Oldest,
            Some(pb::open_stream::From::Oldest(false)) | None => From::Durable,
        },
    });
    Open {
        version: open.version,
        streams: streams.collect(),
        presence: open.presence.map(|asked| OpenPresence {
            point: Point { epoch: asked.epoch, sequence: asked.sequence },
            app_keys: asked.app_keys,
        }),
        name: open.name,
    }
}

fn query(query: pb::Query) -> Query {
    let of = match query.of {
        Some(pb::query::Of::MessageId(id)) => QueryOf::Message(MessageId(id), query.device_id),
        Some(pb::query::Of::Devices(devices)) => QueryOf::Devices(devices.ids),
        None => QueryOf::Nothing,
    };
    Query { request_id: query.request_id, app_key: query.app_key, of }
}

const TARGETS: u32 = 5;

fn deliver(raw: &[u8]) -> Result<Deliver<'_>, LinkError> {
    let broken = LinkError::Malformed("the frame is no DeliverBatch");
    let mut fields = Box::new(pb::DeliverBatch::default());
    let mut target_count = 0;
    let mut rest = raw;
    while !rest.is_empty() {
        let Ok((tag, wire_type)) = decode_key(&mut rest) else { return Err(broken) };
        if tag == TARGETS {
            if wire_type != WireType::LengthDelimited || delimited(&mut rest).is_none() {
                return Err(broken);
            }
            target_count += 1;
        } else if fields.merge_field(tag, wire_type, &mut rest, DecodeContext::default()).is_err() {
            return Err(broken);
        }
    }
    Ok(Deliver { fields, target_count, raw })
}

/// The targets of a [`Deliver`].
#[derive(Clone, Debug)]
pub struct Targets<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Targets<'a> {
    type Item = Result<Target<'a>, LinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        // `deliver` walked these bytes: whatever fails here is the end of them.
        while !self.rest.is_empty() {
            let (tag, wire_type) = decode_key(&mut self.rest).ok()?;
            if tag == TARGETS {
                return Some(target(delimited(&mut self.rest)?).ok_or(LinkError::Malformed("no Target")));
            }
            skip_field(wire_type, tag, &mut self.rest, DecodeContext::default()).ok()?;
        }
        None
    }
}

fn target(mut rest: &[u8]) -> Option<Target<'_>> {
    let mut target = Target::default();
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        match (tag, wire_type) {
            (1, WireType::LengthDelimited) => target.device_id = text(delimited(&mut rest)?)?,
            (2, WireType::LengthDelimited) => target.account = text(delimited(&mut rest)?)?,
            (1 | 2, _) => return None,
            _ => skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?,
        }
    }
    Some(target)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Takes a length and as many bytes.
fn delimited<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

impl pb::MassOutcome {
    /// Whose end it is.
    pub fn targets(&self) -> Ordinals {
        Ordinals::from_parts(self.first_ordinal / 8, &self.ordinals)
    }

    /// Why they failed, as far as this program knows the reason.
    pub fn failure(&self) -> Option<Failure> {
        u8::try_from(self.reason).ok().and_then(Failure::from_number)
    }
}

#[cfg(test)]
#[path = "router/tests.rs"]
mod tests;
