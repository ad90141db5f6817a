//! A simulated router: the client library's ledger, and a link that comes and goes.

use std::collections::{BTreeMap, VecDeque};

use mooring::client::router::Ledger;
use mooring::ids::DigestKey;
use mooring::push::Millis;
use mooring::sim::Pipe;
use mooring::wire::frame::{FrameError, ROUTER_HEAD, put_router_frame, router_frame};
use mooring::wire::pb::{device, router as pb};
use prost::Message;
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;
use super::link::Link;
use super::oracle::{Oracle, Sent, ensure};

/// The stream that it reads.
const STREAM: &str = "main";

pub(crate) struct Router {
    pub(crate) name: String,
    pub(crate) app: String,
    ledger: Ledger,
    link: Option<Open>,
    pub(crate) connect_at: Millis,
    batches: u64,
    messages: Vec<Kept>,
    /// Everything that it stored, by sequence.
    stored: BTreeMap<u64, Vec<pb::StreamEvent>>,
    /// Up to here it stored everything.
    cursor: u64,
    /// It reads nothing until then.
    stopped_until: Millis,
    /// Batches as they were sent, to be repeated though they were answered.
    sent: Vec<pb::DeliverBatch>,
}

struct Open {
    link: Link,
    opened: bool,
    /// The last sequence that came on this link.
    last: u64,
    /// Cursors that will be acknowledged, and when.
    owed: VecDeque<(Millis, u64)>,
}

/// A message that may get more targets.
#[derive(Clone)]
struct Kept {
    id: u64,
    body: device::Push,
    high: bool,
    collapse_key: String,
}

/// What batches a run has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batches {
    pub(crate) devices: usize,
    pub(crate) collapse: bool,
    pub(crate) online: bool,
}

fn find(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let Some(head) = bytes.first_chunk::<ROUTER_HEAD>() else { return Ok(None) };
    let length = router_frame(*head, usize::MAX)?;
    Ok((bytes.len() >= ROUTER_HEAD + length).then_some((ROUTER_HEAD, length)))
}

impl Router {
    pub(crate) fn new(name: &str, app: &str, rng: &mut SmallRng) -> Self {
        Self {
            name: name.into(),
            app: app.into(),
            ledger: Ledger::new(DigestKey([3; 32])),
            link: None,
            connect_at: rng.random_range(0..500),
            batches: 0,
            messages: Vec::new(),
            stored: BTreeMap::new(),
            cursor: 0,
            stopped_until: 0,
            sent: Vec::new(),
        }
    }

    pub(crate) fn pipe(&self) -> Option<&Pipe> {
        self.link.as_ref().map(|open| &open.link.pipe)
    }

    /// Up to here it stored everything.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(crate) fn tally(&self) -> mooring::client::router::Tally {
        self.ledger.tally()
    }

    pub(crate) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    fn say(&mut self, frame: pb::from_router::Frame) {
        let mut bytes = Vec::new();
        put_router_frame(&mut bytes, &pb::FromRouter { frame: Some(frame) });
        if let Some(open) = &mut self.link {
            open.link.queue(&bytes);
        }
    }

    /// A connection stands: says what it wants to read.
    pub(crate) fn connected(&mut self, pipe: Pipe, rng: &mut SmallRng) {
        self.link = Some(Open { link: Link::new(pipe), opened: false, last: 0, owed: VecDeque::new() });
        let from = match rng.random_range(0..3) {
            // From where the edge believes it to be.
            0 => None,
            1 => Some(pb::open_stream::From::Oldest(true)),
            _ => Some(pb::open_stream::From::After(self.cursor)),
        };
        let streams = vec![pb::OpenStream { stream: STREAM.into(), from }];
        self.say(pb::from_router::Frame::Open(pb::Open {
            version: 1,
            name: self.name.clone(),
            streams,
            presence: None,
        }));
    }

    pub(crate) fn disconnect(&mut self, now: Millis, wait: Millis) {
        if let Some(open) = self.link.take() {
            open.link.pipe.cut();
        }
        self.connect_at = now + wait;
    }

    pub(crate) fn stop_reading(&mut self, until: Millis) {
        self.stopped_until = until;
    }

    /// Thinks of something to push.
    pub(crate) fn think(&mut self, clock: Millis, what: Batches, rng: &mut SmallRng, oracle: &mut Oracle) {
        let is_new = self.messages.is_empty() || !once_in(rng, 5);
        let kept = if is_new {
            let id = self.messages.len() as u64 + 1;
            let high = once_in(rng, 4);
            let collapse_key = if what.collapse && once_in(rng, 5) {
                format!("key-{}", rng.random_range(0..2))
            } else {
                String::new()
            };
            let kind = if rng.random() { device::Kind::Notification } else { device::Kind::Message };
            let body = device::Push {
                kind: kind.into(),
                title: format!("title {id}"),
                body: "x".repeat(rng.random_range(0..300)),
                ..Default::default()
            };
            self.messages.push(Kept { id, body, high, collapse_key });
            self.messages.len() - 1
        } else {
            rng.random_range(self.messages.len().saturating_sub(8)..self.messages.len())
        };
        let Kept { id: message, body, high, collapse_key } = self.messages[kept].clone();
        let count = rng.random_range(1..=6);
        let mut targets: Vec<String> =
            (0..count).map(|_| format!("device-{}", rng.random_range(0..what.devices))).collect();
        if once_in(rng, 12) {
            targets.push("device-unheard-of".into());
        }
        let retention = match rng.random_range(0..10) {
            0 if what.online => 0,
            0..=2 => rng.random_range(1..15),
            _ => rng.random_range(3_600..259_200),
        };
        self.batches += 1;
        let batch_id = format!("{}-{}", self.name, self.batches);
        let returns = once_in(rng, 12);
        let policy = if returns { pb::OfflinePolicy::Return } else { pb::OfflinePolicy::Store };
        let target = |device_id: &String| pb::Target { device_id: device_id.clone(), account: String::new() };
        let batch = pb::DeliverBatch {
            batch_id: batch_id.clone(),
            app_key: self.app.clone(),
            message_id: message,
            body: Some(body),
            targets: targets.iter().map(target).collect(),
            offline_policy: policy.into(),
            created_at: clock,
            retention_seconds: Some(retention),
            priority: if high { device::Priority::High } else { device::Priority::Normal }.into(),
            collapse_key: collapse_key.clone(),
            job_key: "job".into(),
            source: 0,
            target_type: String::new(),
        };
        let online_only = retention == 0;
        let sent = Sent { message, targets, online_only, collapse_key, of_account: false };
        oracle.batches.insert(batch_id, sent);
        self.ledger.deliver(batch);
    }

    /// Says again what was answered already.
    pub(crate) fn repeat(&mut self, rng: &mut SmallRng) {
        if !self.sent.is_empty() && self.link.as_ref().is_some_and(|open| open.opened) {
            let again = self.sent[rng.random_range(0..self.sent.len())].clone();
            self.say(pb::from_router::Frame::Deliver(again));
        }
    }

    pub(crate) fn act(
        &mut self,
        now: Millis,
        is_calm: bool,
        (rng, network): (&mut SmallRng, &mut SmallRng),
        oracle: &mut Oracle,
        trace: &mut dyn FnMut(String),
    ) -> Result<(), String> {
        let Some(open) = &mut self.link else { return Ok(()) };
        let is_stopped = now < self.stopped_until && !is_calm;
        if !is_stopped {
            open.link.fill(usize::MAX);
        }
        while let Some(open) = &mut self.link {
            let frame = open.link.next(find);
            let frame = frame.map_err(|error| format!("{} got what is no frame: {error}", self.name))?;
            let Some((bytes, _)) = frame else { break };
            let frame = pb::ToRouter::decode(&*bytes).map_err(|error| error.to_string())?;
            let Some(frame) = frame.frame else { continue };
            self.hear(now, is_calm, frame, rng, oracle, trace)?;
        }
        let Some(open) = &mut self.link else { return Ok(()) };
        if open.link.pipe.is_over() && !is_stopped {
            trace(format!("{}'s link is over", self.name));
            self.disconnect(now, rng.random_range(0..2_000));
            return Ok(());
        }
        let opened = open.opened;
        let mut acks = Vec::new();
        while let Some(&(_, cursor)) = open.owed.front().filter(|(due, _)| *due <= now || is_calm) {
            open.owed.pop_front();
            acks.push(cursor);
        }
        for cursor in acks {
            trace(format!("{} has stored everything up to {cursor}", self.name));
            self.say(pb::from_router::Frame::StreamAck(pb::StreamAck { stream: STREAM.into(), cursor }));
        }
        while opened && let Some(batch) = self.ledger.poll_send(now) {
            trace(format!(
                "{} sends {}: {} to {:?}, {:?} s",
                self.name,
                batch.batch_id,
                batch.message_id,
                oracle.batches[&batch.batch_id].targets,
                batch.retention_seconds
            ));
            self.sent.push((*batch).clone());
            self.say(pb::from_router::Frame::Deliver((*batch).clone()));
        }
        if let Some(open) = &mut self.link {
            open.link.flush(network, is_calm);
        }
        Ok(())
    }

    fn hear(
        &mut self,
        now: Millis,
        is_calm: bool,
        frame: pb::to_router::Frame,
        rng: &mut SmallRng,
        oracle: &mut Oracle,
        trace: &mut dyn FnMut(String),
    ) -> Result<(), String> {
        match frame {
            pb::to_router::Frame::Opened(opened) => {
                let stream = opened.streams.first().ok_or("no stream was opened")?;
                trace(format!("{} reads from {} of {}", self.name, stream.cursor, stream.head));
                ensure!(
                    stream.cursor <= self.cursor,
                    "{} is told to go on after {}, but it stored up to {} only",
                    self.name,
                    stream.cursor,
                    self.cursor
                );
                self.ledger.handle_opened(opened.credit_targets, opened.credit_bytes);
                if let Some(open) = &mut self.link {
                    (open.opened, open.last) = (true, stream.cursor);
                }
            }
            pb::to_router::Frame::Accepted(answer) => {
                trace(format!(
                    "{}: {} is accepted at {} by {}, refused {:?}{}",
                    self.name,
                    answer.batch_id,
                    answer.sequence,
                    answer.accepted,
                    answer.refused,
                    if answer.repeated { ", again" } else { "" }
                ));
                oracle.answered(&answer)?;
                self.ledger.handle_accepted(&answer);
            }
            pb::to_router::Frame::Rejected(answer) => {
                trace(format!("{}: {} is rejected: {:?}", self.name, answer.batch_id, answer.code()));
                oracle.rejected(&answer)?;
                self.ledger.handle_rejected(now, answer);
            }
            pb::to_router::Frame::Stream(batch) => {
                trace(format!("{} reads {} events up to {}", self.name, batch.events.len(), batch.cursor));
                self.store(&batch, oracle)?;
                self.ledger.handle_stream(&batch);
                // Sometimes it forgets to say so.
                if let Some(open) = &mut self.link
                    && (is_calm || !once_in(rng, 6))
                {
                    let wait = if once_in(rng, 3) { rng.random_range(0..3_000) } else { 0 };
                    let due = open.owed.back().map_or(0, |(due, _)| *due).max(now + wait);
                    open.owed.push_back((due, batch.cursor));
                }
            }
            pb::to_router::Frame::StreamClosed(closed) => {
                trace(format!("{}: {}", self.name, closed.text));
                self.disconnect(now, 500);
            }
            pb::to_router::Frame::Error(error) => {
                return Err(format!("{} is told {:?}: {}", self.name, error.code(), error.text));
            }
            _ => {}
        }
        Ok(())
    }

    /// Keeps what is new; what came before must be the same.
    fn store(&mut self, batch: &pb::StreamBatch, oracle: &mut Oracle) -> Result<(), String> {
        let Some(open) = &mut self.link else { return Ok(()) };
        let mut by_sequence: BTreeMap<u64, Vec<pb::StreamEvent>> = BTreeMap::new();
        let mut last = 0;
        for event in &batch.events {
            ensure!(event.sequence >= last, "events out of order: {} after {last}", event.sequence);
            ensure!(
                event.sequence > open.last,
                "an event of {} after everything up to {} was said",
                event.sequence,
                open.last
            );
            last = event.sequence;
            by_sequence.entry(event.sequence).or_default().push(event.clone());
        }
        ensure!(batch.cursor >= last, "cursor {} before an event at {last}", batch.cursor);
        for (sequence, events) in by_sequence {
            if let Some(known) = self.stored.get(&sequence) {
                let same = *known == events;
                ensure!(same, "at {sequence} the stream says {events:?}, before it said {known:?}");
                continue;
            }
            let read = self.cursor;
            ensure!(sequence > read, "new at {sequence}, after everything up to {read} was said: {events:?}");
            events.iter().try_for_each(|event| oracle.event(event))?;
            self.stored.insert(sequence, events);
        }
        open.last = batch.cursor.max(open.last);
        self.cursor = self.cursor.max(batch.cursor);
        Ok(())
    }

    /// Whether everything that it sent is answered.
    pub(crate) fn is_settled(&self) -> bool {
        let tally = self.ledger.tally();
        tally.batches == tally.batches_accepted + tally.batches_rejected
    }
}
