//! The reader of a link: a frame, what it means, what is done about it; in order.

use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::answers::{self, Answer, Asked, Taken, Work};
use super::credit::Credit;
use super::frames::{Frame, FrameReader};
use super::outbox::Outbox;
use super::parts::{Collapsing, Parts};
use super::receipts::Reading;
use super::{LinkEnd, Phase, Rights, RouterContext, admission};
use crate::budget::State;
use crate::ids::{AppKey, DeviceKey, MessageId, Seq};
use crate::limits;
use crate::push::{Millis, NewBatch};
use crate::store::{Command, Query};
use crate::telemetry::{self, Counter, MemoryRefusal};
use crate::wire::router::{self as wire, BatchName, FromRouter, LinkError, QueryOf, Reject, Rejected};

/// Batches that are taken in one after the other, before everything else on the thread has its turn.
const BATCHES: u32 = 16;

/// The reading half of a link that was opened.
pub(super) struct Reader<'a> {
    pub(super) context: &'a Arc<RouterContext>,
    pub(super) rights: &'a Arc<Rights>,
    pub(super) phase: &'a watch::Receiver<Phase>,
    pub(super) outbox: &'a Outbox,
    pub(super) credit: &'a Credit,
    pub(super) collapsing: Collapsing,
    pub(super) streams: &'a [Arc<Reading>],
    pub(super) work: mpsc::Sender<Work>,
    pub(super) queries: Arc<Semaphore>,
}

/// A frame after everything that can be done about it without the link.
pub(super) enum Incoming {
    Batch { name: BatchName, targets: u64, bytes: u64, admitted: Result<Box<Parts>, Rejected> },
    Ack { stream: String, cursor: Seq },
    Query(wire::Query),
    Revoke { request_id: u64, of: Result<(AppKey, MessageId), Rejected> },
    Say(Vec<u8>),
    Nothing,
}

impl Reader<'_> {
    /// Reads until the link ends.
    pub(super) async fn run<R: AsyncRead + Unpin>(&self, frames: &mut FrameReader<R>) -> LinkEnd {
        let mut batches = 0;
        loop {
            match self.turn(frames).await {
                Ok(is_batch) => batches += u32::from(is_batch),
                Err(end) => return end,
            }
            if batches >= BATCHES {
                // A router that never pauses must not keep this link's own answers and the other links waiting.
                batches = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// One frame. Whether it was a batch.
    async fn turn<R: AsyncRead + Unpin>(&self, frames: &mut FrameReader<R>) -> Result<bool, LinkEnd> {
        let silence = self.context.pace.silence;
        let frame = frames.next(limits::ROUTER_FRAME_BYTES, silence, "no frame for too long").await?;
        let (now, read_at) = (self.context.clock.now(), self.context.clock.micros());
        let incoming = match frame {
            Frame::Small(bytes) => examine(bytes, now, self.context, self.rights)?,
            Frame::Large(large) => {
                let (context, rights) = (Arc::clone(self.context), Arc::clone(self.rights));
                let work = move || examine(&large.bytes, now, &context, &rights);
                let examined = self.context.aside.run(work).await;
                examined.map_err(|_| LinkError::Internal("a frame could not be examined"))??
            }
        };
        let is_batch = matches!(incoming, Incoming::Batch { .. });
        match incoming {
            Incoming::Batch { name, targets, bytes, admitted } => {
                match admitted.and_then(|parts| self.take(*parts, targets, bytes)) {
                    Ok(taken) => self.hand_over(Work::Batch { name, targets, bytes, read_at, taken }).await,
                    Err(why) => self.outbox.send(answers::reject(&name, &why)).await,
                }
            }
            Incoming::Ack { stream, cursor } => self.acknowledge(&stream, cursor)?,
            Incoming::Query(query) => self.ask(query).await,
            Incoming::Revoke { request_id, of } => self.revoke(request_id, of).await,
            Incoming::Say(frame) => self.outbox.send(frame).await,
            Incoming::Nothing => {}
        }
        Ok(is_batch)
    }

    async fn hand_over(&self, work: Work) {
        // The other end is in the same `select`: it is gone only when this reader is too.
        self.work.send(work).await.ok();
    }

    /// Takes a batch, or its first part, to the store, unless it has to wait for another.
    fn take(&self, mut parts: Parts, targets: u64, bytes: u64) -> Result<Taken, Rejected> {
        self.may_come(&parts, targets, bytes)?;
        let batch = parts.whole();
        let mut turn = None;
        if !batch.collapse_key.is_empty() {
            turn = self.collapsing.enter(batch, parts.is_many());
        }
        // A batch of several targets may have been taken in part, by an edge that takes fewer at a time: its answer says so.
        if batch.targets.len() == 1 && turn.is_none() {
            return self.submit(parts.into_whole(), targets, bytes).map(Taken::Whole);
        }
        let mut first = None;
        if turn.as_ref().is_none_or(|turn| !turn.waits()) {
            first = Some(self.submit(parts.next(self.context.clock.now(), self.context), targets, bytes)?);
        }
        parts.hold(self.context.room.waiting());
        Ok(Taken::Parts { first, parts: Box::new(parts), turn })
    }

    /// Whether a batch may come in: then its credit is taken.
    fn may_come(&self, parts: &Parts, targets: u64, bytes: u64) -> Result<(), Rejected> {
        if *self.phase.borrow() >= Phase::Leaving {
            return Err(admission::try_again(
                Reject::Unavailable,
                "this edge is leaving",
                admission::RETRY_LATER_MS,
            ));
        }
        if self.context.room.budget().look() >= State::Full {
            telemetry::add(Counter::MemoryRefused(MemoryRefusal::Batches), 1);
            return Err(admission::try_again(
                Reject::ResourceExhausted,
                "the memory of this edge is used up",
                admission::RETRY_LATER_MS,
            ));
        }
        if !self.credit.take(targets, bytes) {
            return Err(admission::try_again(
                Reject::ResourceExhausted,
                "the credit of this link is used up",
                admission::RETRY_SOON_MS,
            ));
        }
        let now = self.context.clock.now();
        self.context.doors.batch(&parts.whole().app, targets as u32, now).map_err(|limited| {
            self.credit.give(targets, bytes);
            let text = "a rate of this app is reached";
            admission::try_again(Reject::ResourceExhausted, text, limited.retry_after_ms)
        })
    }

    fn submit(&self, batch: NewBatch, targets: u64, bytes: u64) -> Result<Answer, Rejected> {
        let (reply, answer) = oneshot::channel();
        let deliver = Command::Deliver { batch: Box::new(batch), reply };
        self.context.store.submit(deliver).map_err(|_refused| {
            self.credit.give(targets, bytes);
            admission::queue_full()
        })?;
        Ok(answer)
    }

    pub(super) fn acknowledge(&self, stream: &str, cursor: Seq) -> Result<(), LinkError> {
        let reading = self.streams.iter().find(|reading| &*reading.stream == stream);
        let reading = reading.ok_or_else(|| LinkError::UnknownStream(stream.chars().take(64).collect()))?;
        reading.acknowledge(cursor, &*self.context.store)
    }

    async fn ask(&self, query: wire::Query) {
        let request_id = query.request_id;
        // Never closed while the reader lives.
        let Ok(room) = Arc::clone(&self.queries).acquire_owned().await else { return };
        let (reply, answer) = oneshot::channel();
        let asked = self.question(query).and_then(|(asked, query)| {
            self.context
                .store
                .submit(Command::Query { query, reply })
                .map_err(|_refused| LinkError::Internal("the queue to the journal is full: ask again"))?;
            Ok(asked)
        });
        match asked {
            Ok(asked) => self.hand_over(Work::Query { request_id, asked, reply: answer, room }).await,
            Err(error) => self.outbox.send(wire::failed_answer(request_id, &error)).await,
        }
    }

    async fn revoke(&self, request_id: u64, of: Result<(AppKey, MessageId), Rejected>) {
        // Never closed while the reader lives.
        let Ok(room) = Arc::clone(&self.queries).acquire_owned().await else { return };
        let (reply, answer) = oneshot::channel();
        let asked = of.and_then(|(app, message)| {
            let revoke = Command::Revoke { app, message, reply };
            self.context.store.submit(revoke).map_err(|_refused| admission::queue_full())
        });
        match asked {
            Ok(()) => self.hand_over(Work::Revoke { request_id, reply: answer, room }).await,
            Err(why) => self.outbox.send(wire::revoked(request_id, &Err(why))).await,
        }
    }

    pub(super) fn question(&self, query: wire::Query) -> Result<(Asked, Query), LinkError> {
        let rules = &self.context.rules;
        let app = AppKey::parse(&query.app_key)
            .filter(|app| rules.apps.contains(app) && self.rights.apps.allows(app))
            .ok_or_else(|| {
                LinkError::Unauthorized("not an app of this edge, or not of this router".into())
            })?;
        let key = |id: &str| DeviceKey::of(&rules.digest_key, &app, id);
        match query.of {
            QueryOf::Message(message, device_id) => {
                let device = (!device_id.is_empty()).then(|| key(&device_id));
                Ok((Asked::Message, Query::Message { app: app.clone(), message, device }))
            }
            QueryOf::Devices(ids) if ids.len() <= limits::QUERY_DEVICES => {
                let devices: Vec<_> =
                    ids.into_iter().map(|id| (key(&id), id)).map(|(k, id)| (id, k)).collect();
                let keys = devices.iter().map(|(_, key)| *key).collect();
                Ok((Asked::Devices(devices), Query::Devices(keys)))
            }
            QueryOf::Devices(_) => Err(LinkError::Malformed("over 10,000 devices")),
            QueryOf::Nothing => Err(LinkError::Malformed("a query about nothing")),
        }
    }
}

/// Parses a frame and admits a batch: all the work that needs no link, so that it can happen elsewhere.
pub(super) fn examine(
    bytes: &[u8],
    now: Millis,
    context: &RouterContext,
    rights: &Rights,
) -> Result<Incoming, LinkError> {
    Ok(match wire::parse(bytes)? {
        FromRouter::Deliver(batch) => Incoming::Batch {
            name: BatchName::new(&batch.fields.batch_id, &batch.fields.app_key),
            targets: batch.target_count as u64,
            bytes: batch.encoded_bytes(),
            admitted: admission::admit(now, &batch, rights, &context.rules)
                .map(|batch| Box::new(Parts::new(batch, context.part_targets))),
        },
        FromRouter::StreamAck { stream, cursor } => Incoming::Ack { stream, cursor },
        FromRouter::Query(query) => Incoming::Query(query),
        FromRouter::Revoke { request_id, app_key, message } => Incoming::Revoke {
            request_id,
            of: admission::revocable(&app_key, message, rights, &context.rules).map(|app| (app, message)),
        },
        FromRouter::Ping { nonce } => Incoming::Say(wire::pong(nonce, now)),
        FromRouter::Unknown => Incoming::Nothing,
        FromRouter::Open(_) => return Err(LinkError::OpenExpected("Open comes once")),
    })
}
