//! A router link without a runtime: what its futures would do is done when the simulation says so. Frames, admission, credit, the window
//! and the fences are the link's own; only the waiting is here.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::answers::{self, Work};
use super::credit::Credit;
use super::link::open_streams;
use super::outbox::{self, Outbox, Queue};
use super::reader::{Incoming, Reader, examine};
use super::receipts::{Position, Reading};
use super::{Phase, Rights, RouterContext, admission, presence};
use crate::ids::Seq;
use crate::limits;
use crate::presence::Follower;
use crate::sim::Pipe;
use crate::store::Command;
use crate::wire::frame::{ROUTER_HEAD, router_frame};
use crate::wire::router::{self as wire, FromRouter, LinkError};

/// See the module.
pub struct SimLink {
    context: Arc<RouterContext>,
    router: String,
    rights: Arc<Rights>,
    pipe: Pipe,
    read: Vec<u8>,
    out: VecDeque<u8>,
    readings: Vec<Arc<Reading>>,
    streams: Vec<Stream>,
    opened: bool,
    credit: Credit,
    in_flight: VecDeque<Work>,
    queries: Arc<Semaphore>,
    events_a_read: usize,
    phase: watch::Receiver<Phase>,
    /// The router knows that the edge is leaving.
    told_to_go: bool,
    presence: Option<Follower>,
    unused: Unused,
}

/// What a reader has beside what it uses here.
struct Unused {
    outbox: Outbox,
    _queue: Queue,
    work: mpsc::Sender<Work>,
}

/// One stream on its way out.
struct Stream {
    reading: Arc<Reading>,
    at: Position,
    /// Read, and not sent for want of room.
    waiting: VecDeque<(Seq, Vec<u8>)>,
    closed: bool,
}

impl std::fmt::Debug for SimLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimLink").field("router", &self.router).finish_non_exhaustive()
    }
}

impl SimLink {
    /// A link whose certificate names `router`; a stream is read so many events at a time.
    pub fn new(
        context: Arc<RouterContext>,
        router: &str,
        pipe: Pipe,
        events_a_read: usize,
        phase: watch::Receiver<Phase>,
    ) -> Option<Self> {
        let rights = context.routers.get(router)?.clone();
        let (outbox, queue) = outbox::outbox(&context.room);
        let (work, _line) = answers::line();
        Some(Self {
            credit: Credit::new(context.credit_targets, context.credit_bytes),
            router: router.into(),
            rights,
            pipe,
            read: Vec::new(),
            out: VecDeque::new(),
            readings: Vec::new(),
            streams: Vec::new(),
            opened: false,
            in_flight: VecDeque::new(),
            queries: answers::query_room(),
            events_a_read,
            phase,
            told_to_go: false,
            presence: None,
            unused: Unused { outbox, _queue: queue, work },
            context,
        })
    }

    /// Reads, answers, goes on with streams, writes. False: the link has ended.
    pub fn poll(&mut self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut buffer = [0; 4_096];
        while self.out.len() < limits::LINK_OUTBOX_BYTES {
            match self.pipe.poll_read(&mut cx, &mut buffer) {
                std::task::Poll::Pending => break,
                std::task::Poll::Ready(Ok(0) | Err(_)) => {
                    self.pipe.close();
                    return false;
                }
                std::task::Poll::Ready(Ok(count)) => self.read.extend_from_slice(&buffer[..count]),
            }
        }
        let result = self.frames();
        self.answers();
        self.follow();
        self.follow_presence();
        self.go_away();
        if let Err(error) = &result {
            self.out.extend(wire::link_error(error));
        }
        self.write();
        let over = result.is_err() || self.has_left();
        if over {
            self.pipe.close();
        }
        !over
    }

    fn go_away(&mut self) {
        if self.opened && !self.told_to_go && *self.phase.borrow() >= Phase::Leaving {
            self.told_to_go = true;
            self.out.extend(wire::go_away("this edge is leaving"));
        }
    }

    /// Its answers are given, and its streams are at the journal's head.
    fn has_left(&self) -> bool {
        let head = *self.context.store.head().borrow();
        let is_at_head =
            |stream: &Stream| stream.closed || stream.waiting.is_empty() && stream.at.read >= head;
        *self.phase.borrow() >= Phase::Closing
            && self.in_flight.is_empty()
            && self.out.is_empty()
            && self.streams.iter().all(is_at_head)
    }

    /// What there is of presence, as far as the outbox has room.
    fn follow_presence(&mut self) {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let Some(follower) = &mut self.presence else { return };
        while self.out.len() < limits::LINK_OUTBOX_BYTES && *self.phase.borrow() < Phase::Closing {
            let std::task::Poll::Ready(update) = std::pin::pin!(follower.next()).poll(&mut cx) else {
                return;
            };
            self.out.extend(wire::presence(&update));
        }
    }

    fn write(&mut self) {
        while !self.out.is_empty() {
            let bytes = self.out.make_contiguous();
            match self.pipe.try_write(bytes) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(_) => return,
            }
        }
    }

    fn frames(&mut self) -> Result<(), LinkError> {
        while self.read.len() >= ROUTER_HEAD && self.out.len() < limits::LINK_OUTBOX_BYTES {
            let mut head = [0; ROUTER_HEAD];
            head.copy_from_slice(&self.read[..ROUTER_HEAD]);
            let length = router_frame(head, limits::ROUTER_FRAME_BYTES)
                .map_err(|_| LinkError::Malformed("no frame begins here"))?;
            if self.read.len() < ROUTER_HEAD + length {
                break;
            }
            let rest = self.read.split_off(ROUTER_HEAD + length);
            let frame = std::mem::replace(&mut self.read, rest);
            self.frame(&frame[ROUTER_HEAD..])?;
        }
        Ok(())
    }

    fn frame(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        if !self.opened {
            let FromRouter::Open(open) = wire::parse(frame)? else {
                return Err(LinkError::OpenExpected("the first frame has to be Open"));
            };
            return self.open(&open);
        }
        let (now, read_at) = (self.context.clock.now(), self.context.clock.micros());
        let incoming = examine(frame, now, &self.context, &self.rights)?;
        let reader = Reader {
            context: &self.context,
            rights: &self.rights,
            phase: &self.phase,
            outbox: &self.unused.outbox,
            credit: &self.credit,
            streams: &self.readings,
            work: self.unused.work.clone(),
            queries: self.queries.clone(),
        };
        match incoming {
            Incoming::Batch { name, targets, bytes, admitted } => {
                match admitted.and_then(|batch| reader.submit(batch, targets, bytes)) {
                    Ok(reply) => {
                        self.in_flight.push_back(Work::Batch { name, targets, bytes, read_at, reply });
                    }
                    Err(why) => self.out.extend(answers::reject(&name, &why)),
                }
            }
            Incoming::Ack { stream, cursor } => reader.acknowledge(&stream, cursor)?,
            Incoming::Query(query) => {
                let request_id = query.request_id;
                let (asked, query) = reader.question(query)?;
                let room = self.room()?;
                let (reply, answer) = oneshot::channel();
                match self.context.store.submit(Command::Query { query, reply }) {
                    Ok(()) => {
                        self.in_flight.push_back(Work::Query { request_id, asked, reply: answer, room });
                    }
                    Err(_full) => {
                        let error = LinkError::Internal("the queue to the journal is full: ask again");
                        self.out.extend(wire::failed_answer(request_id, &error));
                    }
                }
            }
            Incoming::Revoke { request_id, of } => {
                let (reply, answer) = oneshot::channel();
                let room = self.room()?;
                let submitted = of.and_then(|(app, message)| {
                    let command = Command::Revoke { app, message, reply };
                    self.context.store.submit(command).map_err(|_full| {
                        let text = "the queue to the journal is full";
                        let code = wire::Reject::ResourceExhausted;
                        admission::try_again(code, text, admission::RETRY_SOON_MS)
                    })
                });
                match submitted {
                    Ok(()) => self.in_flight.push_back(Work::Revoke { request_id, reply: answer, room }),
                    Err(why) => self.out.extend(wire::revoked(request_id, &Err(why))),
                }
            }
            Incoming::Say(frame) => self.out.extend(frame),
            Incoming::Nothing => {}
        }
        Ok(())
    }

    /// Simulated routers ask for less at a time than they may.
    fn room(&self) -> Result<tokio::sync::OwnedSemaphorePermit, LinkError> {
        let room = self.queries.clone().try_acquire_owned();
        room.map_err(|_| LinkError::Internal("more questions at a time than are simulated"))
    }

    fn open(&mut self, open: &wire::Open) -> Result<(), LinkError> {
        let scope = open.presence.as_ref().map(|asked| presence::scope(asked, &self.rights, &self.context));
        let scope = scope.transpose()?;
        let streams = open_streams(open, &self.rights, &self.router, &self.context)?;
        let opened: Vec<_> = streams.iter().map(|(_, opened)| opened.clone()).collect();
        self.out.extend(wire::opened(&wire::Welcome {
            edge: &self.context.edge,
            now: self.context.clock.now(),
            credit_targets: self.context.credit_targets,
            credit_bytes: self.context.credit_bytes,
            batch_window_ms: self.context.batch_window_ms,
            oldest_created_at: self.context.store.oldest_created_at(),
            streams: &opened,
        }));
        let now = self.context.clock.now();
        self.readings = streams.into_iter().map(|(reading, _)| reading).collect();
        let stream = |reading: &Arc<Reading>| Stream {
            at: Position { read: reading.start, sent: reading.start, sent_at: now },
            reading: reading.clone(),
            waiting: VecDeque::new(),
            closed: false,
        };
        self.streams = self.readings.iter().map(stream).collect();
        let follow =
            |(asked, scope): (&wire::OpenPresence, _)| self.context.presence.follow(scope, Some(asked.point));
        self.presence = open.presence.as_ref().zip(scope).map(follow);
        self.opened = true;
        Ok(())
    }

    /// The answers that are ready.
    fn answers(&mut self) {
        for work in std::mem::take(&mut self.in_flight) {
            match work {
                Work::Batch { name, targets, bytes, read_at, mut reply } => {
                    let answer = match reply.try_recv() {
                        Err(TryRecvError::Empty) => {
                            self.in_flight.push_back(Work::Batch { name, targets, bytes, read_at, reply });
                            continue;
                        }
                        Err(TryRecvError::Closed) => Err(crate::push::Rejection::Unavailable),
                        Ok(answer) => answer,
                    };
                    self.credit.give(targets, bytes);
                    self.out.extend(match answer {
                        Ok(accepted) => wire::accepted(&name, &accepted),
                        Err(why) => answers::reject(&name, &admission::rejected(why)),
                    });
                }
                Work::Query { request_id, asked, mut reply, room } => match reply.try_recv() {
                    Err(TryRecvError::Empty) => {
                        self.in_flight.push_back(Work::Query { request_id, asked, reply, room });
                    }
                    Err(TryRecvError::Closed) => {}
                    Ok((seq, answer)) => {
                        self.out.extend(answers::query_answer(request_id, seq, asked, answer, &self.context));
                    }
                },
                Work::Revoke { request_id, mut reply, room } => match reply.try_recv() {
                    Err(TryRecvError::Empty) => {
                        self.in_flight.push_back(Work::Revoke { request_id, reply, room });
                    }
                    Err(TryRecvError::Closed) => {}
                    Ok(answer) => {
                        self.out.extend(wire::revoked(request_id, &answer.map_err(admission::rejected)));
                    }
                },
            }
        }
    }

    /// Each stream goes on as far as its window and the outbox have room.
    fn follow(&mut self) {
        let Self { streams, context, out, events_a_read, .. } = self;
        for stream in streams.iter_mut().filter(|stream| !stream.closed) {
            if let Err(text) = stream.follow(context, out, *events_a_read) {
                stream.closed = true;
                out.extend(wire::stream_closed(&stream.reading.stream, &text));
            }
        }
    }
}

impl Stream {
    fn follow(
        &mut self,
        context: &RouterContext,
        out: &mut VecDeque<u8>,
        events: usize,
    ) -> Result<(), String> {
        let (reading, at) = (&self.reading, &mut self.at);
        if !reading.fence.is_newest() {
            return Err("a newer reader opened it".into());
        }
        loop {
            while reading.has_room()
                && out.len() < limits::LINK_OUTBOX_BYTES
                && let Some((cursor, frame)) = self.waiting.pop_front()
            {
                reading.note_sent(cursor);
                out.extend(frame);
                (at.sent, at.sent_at) = (cursor, context.clock.now());
            }
            let head = *context.store.head().borrow();
            if !self.waiting.is_empty() || head <= at.read {
                break;
            }
            let bytes = limits::STREAM_BATCH_BYTES;
            let read = context.store.read_stream(&reading.stream, at.read, events, bytes);
            let read = read.map_err(|error| error.to_string())?;
            self.waiting.extend(wire::stream_batches(&reading.stream, reading.epoch(), &read, bytes));
            if read.cursor <= at.read {
                break;
            }
            at.read = read.cursor;
        }
        reading.resubmit(&*context.store);
        let now = context.clock.now();
        let is_due = at.empty_due(&context.pace).is_some_and(|due| due <= now);
        if is_due && self.waiting.is_empty() && reading.has_room() {
            reading.note_sent(at.read);
            out.extend(wire::empty_stream_batch(&reading.stream, reading.epoch(), at.read));
            (at.sent, at.sent_at) = (at.read, now);
        }
        Ok(())
    }
}
