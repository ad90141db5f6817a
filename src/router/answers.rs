//! What is in flight on a link, and the answers as they become ready, in whatever order that is.

use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::credit::Credit;
use super::outbox::Outbox;
use super::parts::{Parts, Turn, count_targets};
use super::{Phase, RouterContext, admission, reached};
use crate::ids::{DeviceKey, Seq};
use crate::limits;
use crate::push::{Accepted, Rejection, Revoked};
use crate::store::QueryAnswer;
use crate::telemetry::{self, BatchResult, Counter, Timer};
use crate::wire::router::{self as wire, BatchName, LinkError, Reject, Rejected};

/// Answers are gathered up to about this many bytes.
const GATHER_BYTES: usize = 16 * 1024;

/// Of the store, to a batch or a part.
pub(super) type Answer = oneshot::Receiver<Result<Accepted, Rejection>>;

/// A batch that is on its way to the store.
#[derive(Debug)]
pub(super) enum Taken {
    /// All of it.
    Whole(Answer),
    /// Its first part, unless another batch goes first; then the others.
    Parts { first: Option<Answer>, parts: Box<Parts>, turn: Option<Turn> },
}

impl Taken {
    async fn answer(self, context: &RouterContext) -> Result<Accepted, Rejected> {
        // A reply that is dropped: the store is going down.
        let answered = async |answer: Answer| answer.await.unwrap_or(Err(Rejection::Unavailable));
        match self {
            Self::Whole(answer) => {
                let answer = answered(answer).await.map_err(admission::rejected)?;
                count_targets(&answer);
                Ok(answer)
            }
            Self::Parts { first, parts, mut turn } => {
                if let Some(turn) = &mut turn {
                    turn.come().await;
                }
                let first = match first {
                    Some(first) => Some(answered(first).await.map_err(admission::rejected)?),
                    None => None,
                };
                parts.follow(first, context).await
            }
        }
    }
}

/// Something submitted to the store.
#[derive(Debug)]
pub(super) enum Work {
    /// A batch.
    Batch {
        name: BatchName,
        targets: u64,
        bytes: u64,
        /// When its frame was read, [`crate::clock::Clock::micros`].
        read_at: u64,
        taken: Taken,
    },
    /// A question.
    Query {
        request_id: u64,
        asked: Asked,
        reply: oneshot::Receiver<(Seq, QueryAnswer)>,
        room: OwnedSemaphorePermit,
    },
    /// A message to be taken back.
    Revoke {
        request_id: u64,
        reply: oneshot::Receiver<Result<Revoked, Rejection>>,
        room: OwnedSemaphorePermit,
    },
}

/// What a question was about: the ids, which the store doesn't repeat.
#[derive(Debug)]
pub(super) enum Asked {
    Message,
    Devices(Vec<(String, DeviceKey)>),
}

/// Sends answers as they come, for as long as the link lives; once the edge closes or the reader is gone, until none is in flight.
pub(super) async fn run(
    mut work: mpsc::Receiver<Work>,
    context: &RouterContext,
    credit: &Credit,
    outbox: &Outbox,
    phase: &watch::Receiver<Phase>,
) {
    let mut in_flight = FuturesUnordered::new();
    let closing = reached(phase, Phase::Closing);
    tokio::pin!(closing);
    let (mut is_closing, mut is_over) = (false, false);
    while !((is_closing || is_over) && in_flight.is_empty() && work.is_empty()) {
        tokio::select! {
            biased;
            Some(frames) = in_flight.next() => {
                // What one sync made durable is answered in one piece.
                let (mut frames, mut count): (Vec<u8>, _) = (frames, 1);
                while frames.len() < GATHER_BYTES
                    && let Some(Some(frame)) = in_flight.next().now_or_never()
                {
                    frames.extend_from_slice(&frame);
                    count += 1;
                }
                outbox.send_many(frames, count).await;
            }
            one = work.recv(), if !is_over && in_flight.len() < limits::LINK_BATCHES => match one {
                Some(one) => in_flight.push(answer(one, context, credit)),
                None => is_over = true,
            },
            () = &mut closing, if !is_closing => is_closing = true,
        }
    }
}

async fn answer(work: Work, context: &RouterContext, credit: &Credit) -> Vec<u8> {
    match work {
        Work::Batch { name, targets, bytes, read_at, taken } => {
            let answer = taken.answer(context).await;
            credit.give(targets, bytes);
            match answer {
                Ok(accepted) => {
                    let micros = context.clock.micros().saturating_sub(read_at);
                    count_accepted(&accepted, micros);
                    wire::accepted(&name, &accepted)
                }
                Err(why) => reject(&name, &why),
            }
        }
        Work::Query { request_id, asked, reply, room } => {
            let frame = match reply.await {
                Ok((seq, answer)) => query_answer(request_id, seq, asked, answer, context),
                Err(_) => wire::failed_answer(request_id, &LinkError::Internal("the store is going down")),
            };
            drop(room);
            frame
        }
        Work::Revoke { request_id, reply, room } => {
            let answer = reply.await.unwrap_or(Err(Rejection::Unavailable));
            drop(room);
            wire::revoked(request_id, &answer.map_err(admission::rejected))
        }
    }
}

/// A rejection, counted, as a frame.
pub(super) fn reject(name: &BatchName, why: &Rejected) -> Vec<u8> {
    telemetry::add(Counter::Batches(result(why.code)), 1);
    wire::rejected(name, why)
}

fn count_accepted(accepted: &Accepted, micros: u64) {
    telemetry::observe(Timer::Accept, micros as f64 / 1e6);
    if accepted.repeated {
        telemetry::add(Counter::Batches(BatchResult::Repeated), 1);
        return;
    }
    telemetry::add(Counter::Batches(BatchResult::Accepted), 1);
}

fn result(code: Reject) -> BatchResult {
    match code {
        Reject::Invalid => BatchResult::Invalid,
        Reject::UnknownApp => BatchResult::UnknownApp,
        Reject::Expired => BatchResult::Expired,
        Reject::PayloadTooLarge => BatchResult::PayloadTooLarge,
        Reject::NoTargets => BatchResult::NoTargets,
        Reject::TooManyTargets => BatchResult::TooManyTargets,
        Reject::BatchConflict => BatchResult::BatchConflict,
        Reject::MessageConflict => BatchResult::MessageConflict,
        Reject::TooOld => BatchResult::TooOld,
        Reject::ResourceExhausted => BatchResult::ResourceExhausted,
        Reject::Unavailable => BatchResult::Unavailable,
        Reject::AppSuspended => BatchResult::AppSuspended,
        Reject::Unimplemented => BatchResult::Unimplemented,
    }
}

pub(super) fn query_answer(
    request_id: u64,
    seq: Seq,
    asked: Asked,
    answer: QueryAnswer,
    context: &RouterContext,
) -> Vec<u8> {
    match (asked, answer) {
        (Asked::Message, QueryAnswer::Message(state)) => {
            wire::message_answer(request_id, seq, state.as_deref())
        }
        (Asked::Devices(devices), QueryAnswer::Devices(states)) => {
            let both = devices.into_iter().zip(states);
            let rows = both.map(|((id, key), state)| (id, state, (context.is_connected)(&key)));
            wire::devices_answer(request_id, seq, rows).unwrap_or_else(|too_large| {
                tracing::debug!(%too_large, "query for devices");
                wire::failed_answer(
                    request_id,
                    &LinkError::Internal("over the frame limit: ask for fewer devices"),
                )
            })
        }
        _ => wire::failed_answer(request_id, &LinkError::Internal("the store answered another question")),
    }
}

/// How many wait between reader and answers, beside those in flight.
pub(super) const HANDED_OVER: usize = 64;

/// An empty line of work.
pub(super) fn line() -> (mpsc::Sender<Work>, mpsc::Receiver<Work>) {
    mpsc::channel(HANDED_OVER)
}

/// Permits of questions.
pub(super) fn query_room() -> Arc<tokio::sync::Semaphore> {
    Arc::new(tokio::sync::Semaphore::new(limits::LINK_QUERIES))
}
