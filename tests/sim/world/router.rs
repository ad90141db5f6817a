//! A simulated router: the client library's ledger, and a link that comes and goes. What routers store of streams they store together, as the
//! processes of one router would in their database.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mooring::client::router::{Ledger, PresenceMap, Tally};
use mooring::ids::DigestKey;
use mooring::push::Millis;
use mooring::sim::Pipe;
use mooring::wire::frame::{FrameError, ROUTER_HEAD, put_router_frame, router_frame};
use mooring::wire::pb::{device, router as pb};
use mooring::wire::router::told::StreamEvents;
use prost::Message;
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;
use super::link::Link;
use super::oracle::{Oracle, Sent};

pub(crate) struct Router {
    pub(crate) name: String,
    ledger: Ledger,
    link: Option<Open>,
    pub(crate) connect_at: Millis,
    batches: u64,
    messages: Vec<Kept>,
    /// It reads nothing until then.
    stopped_until: Millis,
    /// Batches as they were sent, to be repeated though they were answered.
    sent: Vec<pb::DeliverBatch>,
    /// Its next link goes on where the edge believes it to be.
    asks_edge: bool,
    /// Messages that it wants taken back, by request.
    revokes: BTreeMap<u64, u64>,
    /// Streams of which it named its cursor.
    named: BTreeSet<String>,
    /// When it says that it is there.
    ping_at: Millis,
    /// When it repeats what the edge may have lost.
    repeat_at: Millis,
    /// Who is connected, if it wants to know.
    presence: Option<PresenceMap>,
}

struct Open {
    link: Link,
    opened: bool,
    /// What its cursors are of.
    history: u64,
    /// The last sequence that came on this link, by stream.
    last: BTreeMap<String, u64>,
    /// Cursors that will be acknowledged, and when.
    owed: VecDeque<(Millis, String, u64)>,
}

/// A message that may get more targets.
#[derive(Clone)]
struct Kept {
    id: u64,
    app: usize,
    body: device::Push,
    high: bool,
    collapse_key: String,
}

/// What batches a run has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batches {
    pub(crate) devices: usize,
    pub(crate) apps: usize,
    pub(crate) collapse: bool,
    /// Bodies are as long as they may be.
    pub(crate) heavy: bool,
}

/// The apps of a run: device n belongs to app n modulo their number.
pub(crate) const APPS: [&str; 2] = ["app", "other"];
/// The stream of each.
pub(crate) const STREAMS: [&str; 2] = ["main", "second"];

/// How often it says that it is there, milliseconds.
const PING_MS: Millis = 20_000;

fn find(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let Some(head) = bytes.first_chunk::<ROUTER_HEAD>() else { return Ok(None) };
    let length = router_frame(*head, usize::MAX)?;
    Ok((bytes.len() >= ROUTER_HEAD + length).then_some((ROUTER_HEAD, length)))
}

impl Router {
    pub(crate) fn new(number: u64, follows: bool, rng: &mut SmallRng) -> Self {
        Self {
            name: format!("router-{number}"),
            ledger: Ledger::new(DigestKey([3; 32])),
            link: None,
            connect_at: rng.random_range(0..500),
            batches: 0,
            messages: Vec::new(),
            stopped_until: 0,
            sent: Vec::new(),
            asks_edge: false,
            revokes: BTreeMap::new(),
            named: BTreeSet::new(),
            ping_at: 0,
            repeat_at: 0,
            presence: follows.then(PresenceMap::default),
        }
    }

    pub(crate) fn pipe(&self) -> Option<&Pipe> {
        self.link.as_ref().map(|open| &open.link.pipe)
    }

    pub(crate) fn tally(&self) -> Tally {
        self.ledger.tally()
    }

    pub(crate) fn has_link(&self) -> bool {
        self.link.is_some()
    }

    pub(crate) fn follows(&self) -> bool {
        self.presence.is_some()
    }

    /// Whether presence says this of each device (app, id, connected), and of no other; also if it doesn't follow.
    pub(crate) fn says(&self, present: &[(&str, &str, bool)]) -> bool {
        let Some(map) = &self.presence else { return true };
        let is_so = |(app, id, is_there): &(&str, &str, bool)| {
            (map.state(app, id) != pb::PresenceState::Disconnected) == *is_there
        };
        let count = present.iter().filter(|(.., is_there)| *is_there).count();
        self.is_open() && present.iter().all(is_so) && map.connected() == count
    }

    fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(|open| open.opened)
    }

    fn say(&mut self, frame: pb::from_router::Frame) {
        let mut bytes = Vec::new();
        put_router_frame(&mut bytes, &pb::FromRouter { frame: Some(frame) });
        if let Some(open) = &mut self.link {
            open.link.queue(&bytes);
        }
    }

    /// A connection stands: says which streams it wants to read.
    pub(crate) fn connected(&mut self, pipe: Pipe, streams: &[&str], oracle: &Oracle, rng: &mut SmallRng) {
        let last = BTreeMap::new();
        self.link =
            Some(Open { link: Link::new(pipe), opened: false, history: 0, last, owed: VecDeque::new() });
        self.revokes.clear();
        let mut from = |stream: &str| match rng.random_range(0..3) {
            // From where the edge believes it to be.
            0 => None,
            1 => Some(pb::open_stream::From::Oldest(true)),
            _ => {
                let known = oracle.streams.get(stream);
                known.map(|known| pb::open_stream::From::After(known.cursor))
            }
        };
        // A cursor that has gone can't be named: where that may be, it asks the edge.
        let asks_edge = std::mem::take(&mut self.asks_edge);
        let mut open = |stream: &&str| {
            let from = from(stream).filter(|_| !asks_edge && !oracle.may_have_gaps);
            let history = oracle.streams.get(*stream).map_or(0, |known| known.history);
            pb::OpenStream { stream: (*stream).into(), from, history }
        };
        let streams: Vec<_> = streams.iter().map(&mut open).collect();
        let named = |open: &&pb::OpenStream| matches!(open.from, Some(pb::open_stream::From::After(_)));
        self.named = streams.iter().filter(named).map(|open| open.stream.clone()).collect();
        self.say(pb::from_router::Frame::Open(pb::Open {
            version: 1,
            name: self.name.clone(),
            streams,
            presence: self.presence.as_ref().map(|map| map.open(&[])),
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

    fn new_message(&mut self, what: Batches, rng: &mut SmallRng) {
        // Unique over routers.
        let number: u64 = self.name.bytes().last().map_or(0, u64::from) * 1_000_000;
        let id = number + self.messages.len() as u64 + 1;
        let keyed = what.collapse && once_in(rng, 5);
        let kind = if rng.random() { device::Kind::Notification } else { device::Kind::Message };
        let bytes = if what.heavy || once_in(rng, 8) { 3_500..3_900 } else { 0..300 };
        let body = device::Push {
            kind: kind.into(),
            title: format!("title {id}"),
            body: "x".repeat(rng.random_range(bytes)),
            ..Default::default()
        };
        self.messages.push(Kept {
            id,
            app: rng.random_range(0..what.apps),
            body,
            high: once_in(rng, 4),
            collapse_key: if keyed { format!("key-{}", rng.random_range(0..2)) } else { String::new() },
        });
    }

    /// Thinks of something to push.
    pub(crate) fn think(
        &mut self,
        clock: Millis,
        what: Batches,
        names: &[String],
        rng: &mut SmallRng,
        oracle: &mut Oracle,
    ) {
        let is_new = self.messages.is_empty() || !once_in(rng, 5);
        if is_new {
            self.new_message(what, rng);
        }
        let newest = self.messages.len();
        let kept = if is_new { newest - 1 } else { rng.random_range(newest.saturating_sub(8)..newest) };
        let Kept { id: message, app, body, high, collapse_key } = self.messages[kept].clone();
        oracle.bodies.insert(message, (body.title.clone(), body.body.clone()));
        let of_app = |number: usize| names[number / what.apps * what.apps + app].clone();
        let count = rng.random_range(1..=6);
        let mut targets: Vec<String> =
            (0..count).map(|_| of_app(rng.random_range(0..what.devices))).collect();
        if once_in(rng, 12) {
            targets.push("device-unheard-of".into());
        }
        let of_accounts = once_in(rng, 5);
        let account = |_: &String| {
            if of_accounts { format!("account-{}", rng.random_range(0..3)) } else { String::new() }
        };
        let accounts: Vec<String> = targets.iter().map(account).collect();
        let retention = match rng.random_range(0..10) {
            0 => 0,
            1 | 2 => rng.random_range(1..15),
            _ => rng.random_range(3_600..259_200),
        };
        self.batches += 1;
        let batch_id = format!("{}-{}", self.name, self.batches);
        let policy = if once_in(rng, 12) { pb::OfflinePolicy::Return } else { pb::OfflinePolicy::Store };
        let returns = policy == pb::OfflinePolicy::Return;
        let both = targets.iter().zip(&accounts);
        let target = |(id, account): (&String, &String)| pb::Target {
            device_id: id.clone(),
            account: account.clone(),
        };
        let batch = pb::DeliverBatch {
            batch_id: batch_id.clone(),
            app_key: APPS[app].into(),
            message_id: message,
            body: Some(body),
            targets: both.map(target).collect(),
            offline_policy: policy.into(),
            created_at: clock,
            retention_seconds: Some(retention),
            priority: if high { device::Priority::High } else { device::Priority::Normal }.into(),
            collapse_key: collapse_key.clone(),
            job_key: "job".into(),
            source: 0,
            target_type: String::new(),
        };
        let sent = Sent { message, targets, online_only: retention == 0, returns, collapse_key, accounts };
        oracle.batches.insert(batch_id, sent);
        self.ledger.deliver(batch);
    }

    /// Says again what was answered already.
    pub(crate) fn repeat(&mut self, rng: &mut SmallRng, oracle: &Oracle) {
        if self.sent.is_empty() || !self.is_open() {
            return;
        }
        let again = self.sent[rng.random_range(0..self.sent.len())].clone();
        if oracle.answers.contains_key(&again.batch_id) {
            self.say(pb::from_router::Frame::Deliver(again));
        }
    }

    /// Repeats what the edge may have lost, now and then, until it is answered.
    fn repeat_lost(&mut self, now: Millis, oracle: &Oracle) {
        if oracle.to_repeat.is_empty() || now < self.repeat_at || !self.is_open() {
            return;
        }
        self.repeat_at = now + 5_000;
        let lost = self.sent.iter().filter(|batch| oracle.to_repeat.contains(&batch.batch_id));
        for batch in lost.cloned().collect::<Vec<_>>() {
            self.say(pb::from_router::Frame::Deliver(batch));
        }
    }

    /// Takes back one of the last messages.
    pub(crate) fn revoke(&mut self, rng: &mut SmallRng, oracle: &mut Oracle) {
        if self.messages.is_empty() || !self.is_open() || self.revokes.len() >= 4 {
            return;
        }
        let newest = self.messages.len();
        let kept = &self.messages[rng.random_range(newest.saturating_sub(5)..newest)];
        let (message_id, app_key) = (kept.id, APPS[kept.app].into());
        let request_id = rng.random_range(1..u64::MAX);
        oracle.revokes_asked.insert(message_id);
        self.revokes.insert(request_id, message_id);
        self.say(pb::from_router::Frame::Revoke(pb::Revoke { request_id, app_key, message_id }));
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
        let mut acks = Vec::new();
        while open.owed.front().is_some_and(|(due, ..)| *due <= now || is_calm) {
            acks.extend(open.owed.pop_front().map(|(_, stream, cursor)| (stream, cursor)));
        }
        for (stream, cursor) in acks {
            trace(format!("{} has stored {stream} up to {cursor}", self.name));
            self.say(pb::from_router::Frame::StreamAck(pb::StreamAck { stream, cursor }));
        }
        if self.is_open() && now >= self.ping_at {
            self.ping_at = now + PING_MS;
            self.say(pb::from_router::Frame::Ping(pb::Ping { nonce: now }));
        }
        self.repeat_lost(now, oracle);
        while self.is_open()
            && let Some(batch) = self.ledger.poll_send(now)
        {
            let pb::DeliverBatch { batch_id, message_id, retention_seconds, .. } = &*batch;
            let targets = &oracle.batches[batch_id].targets;
            trace(format!(
                "{} sends {batch_id}: {message_id} to {targets:?}, {retention_seconds:?} s",
                self.name
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
        let name = &self.name;
        match frame {
            pb::to_router::Frame::Opened(opened) => {
                for stream in &opened.streams {
                    let (what, cursor) = (&stream.stream, stream.cursor);
                    trace(format!("{name} reads {what} from {cursor} of {}", stream.head));
                    // The edge may know that there is nothing of it up to there: from now on there must not be.
                    let stored = oracle.streams.entry(what.clone()).or_default();
                    stored.open(cursor, stream.history, self.named.contains(what))?;
                    if let Some(open) = &mut self.link {
                        open.last.insert(what.clone(), cursor);
                        open.history = stream.history;
                    }
                }
                self.ledger.handle_opened(opened.credit_targets, opened.credit_bytes);
                if let Some(open) = &mut self.link {
                    open.opened = true;
                }
            }
            pb::to_router::Frame::Accepted(answer) => {
                trace(format!(
                    "{name}: {} is accepted at {} by {}, refused {:?}{}",
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
                trace(format!("{name}: {} is rejected: {:?}", answer.batch_id, answer.code()));
                oracle.rejected(&answer)?;
                self.ledger.handle_rejected(now, answer);
            }
            pb::to_router::Frame::Revoked(revoked) => {
                let Some(message) = self.revokes.remove(&revoked.request_id) else { return Ok(()) };
                trace(format!("{name}: {message} is taken back at {}", revoked.sequence));
                if revoked.code() == pb::RejectCode::Unspecified {
                    oracle.revoked.entry(message).or_insert((revoked.sequence, oracle.step));
                }
            }
            pb::to_router::Frame::Stream(batch) => {
                let (what, cursor) = (&batch.stream, batch.cursor);
                trace(format!("{name} reads {} events of {what} up to {cursor}", batch.events.len()));
                let Some(open) = &mut self.link else { return Ok(()) };
                let last = open.last.entry(what.clone()).or_default();
                oracle.store(&batch, *last, open.history)?;
                *last = cursor.max(*last);
                let bytes = batch.encode_to_vec();
                self.ledger
                    .handle_stream(&StreamEvents::read(&bytes).ok_or("it can't be read where it stands")?);
                // Sometimes it forgets to say so.
                if is_calm || !once_in(rng, 6) {
                    let wait = if once_in(rng, 3) { rng.random_range(0..3_000) } else { 0 };
                    let due = open.owed.back().map_or(0, |(due, ..)| *due).max(now + wait);
                    open.owed.push_back((due, what.clone(), cursor));
                }
            }
            pb::to_router::Frame::StreamClosed(closed) => {
                trace(format!("{name}: {} is closed: {}", closed.stream, closed.text));
                self.disconnect(now, 500);
            }
            // Where nothing was left to read, trimming has gone past its cursor: the edge says where to go on.
            pb::to_router::Frame::Error(error) if error.code() == pb::LinkErrorCode::Cursor => {
                trace(format!("{name} is told: {}", error.text));
                // Every cursor stays good, unless what says so is damaged, or an older copy was put back.
                if error.text.contains("history") && !oracle.is_damaged() && !oracle.is_restored {
                    return Err(format!("{name} is told: {}", error.text));
                }
                self.asks_edge = true;
                self.disconnect(now, 100);
            }
            // What can't be read for the moment.
            pb::to_router::Frame::Error(error)
                if oracle.reads_fail && error.code() == pb::LinkErrorCode::Internal =>
            {
                trace(format!("{name} is told: {}", error.text));
                self.disconnect(now, 500);
            }
            // Seconds pass in a step, or it has stood still.
            pb::to_router::Frame::Error(error) if error.code() == pb::LinkErrorCode::Deadline => {
                trace(format!("{name} is told: {}", error.text));
                self.disconnect(now, 100);
            }
            pb::to_router::Frame::Presence(presence) => {
                let (changes, is_snapshot) = (presence.changes.len(), presence.snapshot);
                trace(format!("{name}: presence of {changes}, snapshot: {is_snapshot}"));
                if let Some(map) = &mut self.presence {
                    map.handle(presence);
                }
            }
            pb::to_router::Frame::Error(error) => {
                return Err(format!("{name} is told {:?}: {}", error.code(), error.text));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether everything that it sent is answered.
    pub(crate) fn is_settled(&self) -> bool {
        let tally = self.ledger.tally();
        tally.batches == tally.batches_accepted + tally.batches_rejected
    }
}
