//! What the edge says to a router: whole frames, head included. Stream events are in `events`.

use std::sync::Arc;

use prost::Message;

use super::{LinkError, Rejected, pb};
use crate::ids::{HistoryId, Seq};
use crate::limits;
use crate::presence::Update;
use crate::push::{Accepted, Counts, Failure, Millis, Refusal, Revoked, TargetState};
use crate::store::{DeviceState, MessageState, OnDevice, StreamBounds};
use crate::wire::frame::{ROUTER_HEAD, put_router_frame};
use crate::wire::pb::device;

use pb::to_router::Frame;

/// Which batch an answer is about, in the router's own words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchName {
    /// As the router said.
    pub batch_id: String,
    /// As the router said.
    pub app_key: String,
}

impl BatchName {
    /// Takes both, cut to a length at which no valid one is cut: an answer is never larger than what it answers.
    pub fn new(batch_id: &str, app_key: &str) -> Self {
        Self { batch_id: clip(batch_id), app_key: clip(app_key) }
    }
}

fn clip(text: &str) -> String {
    const MOST: usize = 128;
    let end = (0..=text.len().min(MOST)).rev().find(|&end| text.is_char_boundary(end));
    text[..end.unwrap_or(0)].to_owned()
}

/// A stream that this link reads now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenedStream {
    /// Its name.
    pub stream: Arc<str>,
    /// The epoch of this reader.
    pub epoch: u64,
    /// Reading starts after this.
    pub start: Seq,
    /// Where the stream stands.
    pub bounds: StreamBounds,
    /// What its cursors are of.
    pub history: Option<HistoryId>,
}

/// What [`opened`] tells the router about this edge.
#[derive(Clone, Debug)]
pub struct Welcome<'a> {
    /// The edge's name and version.
    pub edge: &'a str,
    /// Now.
    pub now: Millis,
    /// Targets in flight.
    pub credit_targets: u64,
    /// Bytes in flight.
    pub credit_bytes: u64,
    /// How long batch ids are remembered.
    pub batch_window_ms: u64,
    /// Batches created before are too old.
    pub oldest_created_at: Millis,
    /// The streams, in the order asked.
    pub streams: &'a [OpenedStream],
}

fn whole(frame: Frame) -> Vec<u8> {
    let message = pb::ToRouter { frame: Some(frame) };
    let mut out = Vec::with_capacity(ROUTER_HEAD + message.encoded_len());
    put_router_frame(&mut out, &message);
    out
}

/// The answer to Open.
pub fn opened(welcome: &Welcome<'_>) -> Vec<u8> {
    let streams = welcome.streams.iter().map(|opened| pb::OpenedStream {
        stream: opened.stream.to_string(),
        epoch: opened.epoch,
        cursor: opened.start.0,
        oldest: opened.bounds.oldest.0,
        head: opened.bounds.head.0,
        history: opened.history.map_or(0, HistoryId::get),
    });
    whole(Frame::Opened(pb::Opened {
        edge: welcome.edge.to_owned(),
        edge_time: welcome.now,
        credit_targets: welcome.credit_targets,
        credit_bytes: welcome.credit_bytes,
        max_targets: limits::BATCH_TARGETS as u32,
        max_frame_bytes: limits::ROUTER_FRAME_BYTES as u32,
        batch_window_milliseconds: welcome.batch_window_ms,
        oldest_created_at: welcome.oldest_created_at,
        stream_window: limits::STREAM_WINDOW as u32,
        streams: streams.collect(),
    }))
}

/// The batch is durable.
pub fn accepted(name: &BatchName, answer: &Accepted) -> Vec<u8> {
    let by_reason = |reason: Refusal| {
        let mut ordinals: Vec<u32> =
            answer.refused.iter().filter(|(_, why)| *why == reason).map(|(ordinal, _)| *ordinal).collect();
        ordinals.sort_unstable();
        (!ordinals.is_empty()).then_some(pb::Refused { reason: i32::from(reason as u8), ordinals })
    };
    whole(Frame::Accepted(pb::BatchAccepted {
        batch_id: name.batch_id.clone(),
        app_key: name.app_key.clone(),
        sequence: answer.seq.0,
        accepted: answer.accepted,
        refused: Refusal::ALL.into_iter().filter_map(by_reason).collect(),
        repeated: answer.repeated,
        accepted_at: answer.accepted_at,
        expires_at: answer.expires_at,
        first_sequence: if answer.first_seq == answer.seq { 0 } else { answer.first_seq.0 },
    }))
}

/// The batch was not taken, or not all of it.
pub fn rejected(name: &BatchName, why: &Rejected) -> Vec<u8> {
    whole(Frame::Rejected(pb::BatchRejected {
        batch_id: name.batch_id.clone(),
        app_key: name.app_key.clone(),
        code: i32::from(why.code as u8),
        field: why.field.clone(),
        text: why.text.clone(),
        retry_after_milliseconds: why.retry_after_ms,
    }))
}

/// A message was taken back, or why not.
pub fn revoked(request_id: u64, answer: &Result<Revoked, Rejected>) -> Vec<u8> {
    let answer = match answer {
        Ok(taken) => {
            pb::Revoked { request_id, sequence: taken.seq.0, ended: taken.ended, ..Default::default() }
        }
        Err(why) => {
            let code = i32::from(why.code as u8);
            pb::Revoked { request_id, code, text: why.text.clone(), ..Default::default() }
        }
    };
    whole(Frame::Revoked(answer))
}

/// This link reads the stream no more.
pub fn stream_closed(stream: &str, text: &str) -> Vec<u8> {
    whole(Frame::StreamClosed(pb::StreamClosed { stream: stream.to_owned(), text: text.to_owned() }))
}

/// Who is connected.
pub fn presence(update: &Update) -> Vec<u8> {
    let changes = update.changes.iter().map(|change| pb::PresenceChange {
        app_key: change.app.to_string(),
        device_id: change.device_id.to_string(),
        state: i32::from(change.state as u8),
        time: change.time,
    });
    whole(Frame::Presence(pb::Presence {
        epoch: update.point.epoch,
        sequence: update.point.sequence,
        snapshot: update.snapshot,
        snapshot_end: update.snapshot_end,
        changes: changes.collect(),
    }))
}

/// The answer to Ping.
pub fn pong(nonce: u64, now: Millis) -> Vec<u8> {
    whole(Frame::Pong(pb::Pong { nonce, edge_time: now }))
}

/// The edge leaves.
pub fn go_away(text: &str) -> Vec<u8> {
    whole(Frame::GoAway(pb::GoAway { text: text.to_owned() }))
}

/// The last frame before the edge closes the link.
pub fn link_error(error: &LinkError) -> Vec<u8> {
    whole(Frame::Error(pb_error(error)))
}

fn pb_error(error: &LinkError) -> pb::Error {
    pb::Error { code: error.code().into(), text: error.to_string() }
}

fn answer(request_id: u64, seq: Seq, of: pb::answer::Of) -> pb::Answer {
    pb::Answer { request_id, sequence: seq.0, of: Some(of) }
}

/// A question that can't be answered. The link goes on.
pub fn failed_answer(request_id: u64, error: &LinkError) -> Vec<u8> {
    whole(Frame::Answer(answer(request_id, Seq(0), pb::answer::Of::Error(pb_error(error)))))
}

/// What became of a message; `None`: no push record.
pub fn message_answer(request_id: u64, seq: Seq, state: Option<&MessageState>) -> Vec<u8> {
    let state = state.map_or_else(pb::MessageState::default, message_state);
    whole(Frame::Answer(answer(request_id, seq, pb::answer::Of::Message(state))))
}

fn message_state(state: &MessageState) -> pb::MessageState {
    let Counts { batches, targets, accepted, arrived, pending, sent, clicked, cleaned, late, .. } =
        state.counts;
    let refused = Refusal::ALL.into_iter().zip(state.counts.refused).filter(|(_, count)| *count > 0);
    let failed = Failure::ALL.into_iter().zip(state.counts.failed).filter(|(_, count)| *count > 0);
    pb::MessageState {
        known: true,
        accepted_at: state.accepted_at,
        expires_at: state.expires_at,
        batches: batches as u32,
        targets,
        refused: refused
            .map(|(why, count)| pb::RefusedCount { reason: i32::from(why as u8), count })
            .collect(),
        accepted,
        arrived,
        failed: failed.map(|(why, count)| pb::FailedCount { reason: i32::from(why as u8), count }).collect(),
        pending,
        sent,
        clicked,
        cleaned,
        late,
        job_key: state.job_key.to_string(),
        on_device: state.on_device.map(on_device),
    }
}

fn on_device(on: OnDevice) -> pb::MessageOnDevice {
    let (outcome, reason) = match on.state {
        TargetState::Arrived => (pb::Outcome::Arrived, 0),
        TargetState::Failed(why) => (pb::Outcome::Failed, why as u8),
        _ => (pb::Outcome::None, 0),
    };
    let refused = if let TargetState::Refused(why) = on.state { why as u8 } else { 0 };
    pb::MessageOnDevice {
        target: on.state.is_accepted(),
        outcome: outcome.into(),
        pending: on.state == TargetState::Pending,
        clicked: on.clicked,
        cleaned: on.cleaned,
        sent_time: on.sent_at.unwrap_or(0),
        reason: i32::from(reason),
        refused: i32::from(refused),
        late: on.late,
    }
}

/// The answer would be over the frame limit: fewer devices have to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the answer is over the frame limit")]
pub struct AnswerTooLarge;

/// What is known of devices, in the order asked: the id, what the store says, whether it is connected now.
pub fn devices_answer(
    request_id: u64,
    seq: Seq,
    devices: impl Iterator<Item = (String, Option<DeviceState>, bool)>,
) -> Result<Vec<u8>, AnswerTooLarge> {
    let mut states = pb::DeviceStates::default();
    let mut bytes = 0;
    for (device_id, known, connected) in devices {
        let state = device_state(device_id, known.as_ref(), connected);
        bytes += state.encoded_len() + 8;
        if bytes + 64 > limits::ROUTER_FRAME_BYTES {
            return Err(AnswerTooLarge);
        }
        states.devices.push(state);
    }
    Ok(whole(Frame::Answer(answer(request_id, seq, pb::answer::Of::Devices(states)))))
}

fn device_state(device_id: String, known: Option<&DeviceState>, connected: bool) -> pb::DeviceState {
    let Some(known) = known else { return pb::DeviceState { device_id, connected, ..Default::default() } };
    pb::DeviceState {
        device_id,
        known: true,
        push_on: known.push_on,
        connected,
        last_active_time: known.last_active,
        pending: u64::from(known.pending),
        // They were encoded by this program; if they can't be read the rest of the answer is still good.
        attributes: known
            .attributes
            .as_ref()
            .and_then(|known| device::Attributes::decode(&*known.bytes()).ok()),
    }
}
