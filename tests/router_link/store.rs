//! A store in memory: it accepts batches when the test lets it, and its one stream has the events that the test puts there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use mooring::credential::Revocation;
use mooring::ids::{AppKey, DeviceKey, HistoryId, MessageId, Seq, SessionRef};
use mooring::push::{
    Accepted, Attributes, Channel, Counts, Millis, NewBatch, Reached, Receipt, ReceiptKind, Refusal,
    Rejection, Revoked, Seen, StreamEvent,
};
use mooring::store::{
    Batch, Busy, Command, DeviceState, MessageState, Pulled, Query, QueryAnswer, Refused, Store,
    StreamBounds, StreamError, StreamRead,
};
use tokio::sync::{oneshot, watch};

use super::support::NEVER;

/// The one that its cursors are of.
pub(crate) const HISTORY: u64 = 77;

type Reply = oneshot::Sender<Result<Accepted, Rejection>>;

#[derive(Debug, Default)]
struct State {
    seq: u64,
    /// Batches are kept back until released.
    hold: bool,
    busy: bool,
    /// Every batch gets this.
    refuse: Option<Rejection>,
    held: Vec<(Box<NewBatch>, Reply)>,
    answers: HashMap<String, ([u8; 16], Accepted)>,
    submitted: Vec<String>,
    events: Vec<(Seq, StreamEvent)>,
    cursor: Seq,
    oldest: Seq,
    retired: bool,
}

#[derive(Debug)]
pub(crate) struct FakeStore {
    state: Mutex<State>,
    head: watch::Sender<Seq>,
    /// Batch ids in order of submission, as they grow.
    pub(crate) submitted: watch::Sender<usize>,
    /// The durable cursor as it moves.
    pub(crate) cursor: watch::Sender<Seq>,
    /// Reads of the stream so far.
    pub(crate) reads: watch::Sender<usize>,
}

impl FakeStore {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            head: watch::Sender::new(Seq(0)),
            submitted: watch::Sender::new(0),
            cursor: watch::Sender::new(Seq(0)),
            reads: watch::Sender::new(0),
        })
    }

    pub(crate) fn hold(&self) {
        self.state.lock().expect("lock").hold = true;
    }

    pub(crate) fn busy(&self, busy: bool) {
        self.state.lock().expect("lock").busy = busy;
    }

    pub(crate) fn refuse(&self, why: impl Into<Option<Rejection>>) {
        self.state.lock().expect("lock").refuse = why.into();
    }

    pub(crate) fn submitted_ids(&self) -> Vec<String> {
        self.state.lock().expect("lock").submitted.clone()
    }

    /// Answers a batch that was held back.
    pub(crate) fn release(&self, id: &str) {
        let mut state = self.state.lock().expect("lock");
        let at = state.held.iter().position(|(batch, _)| batch.id.as_str() == id).expect("held");
        let (batch, reply) = state.held.remove(at);
        let answer = state.accept(&batch);
        reply.send(answer).ok();
    }

    /// Appends events to the stream, each its own record.
    pub(crate) fn append(&self, events: impl IntoIterator<Item = StreamEvent>) {
        let mut state = self.state.lock().expect("lock");
        for event in events {
            state.seq += 1;
            let seq = Seq(state.seq);
            state.events.push((seq, event));
        }
        self.head.send_replace(Seq(state.seq));
    }

    /// Records that are nothing to the stream.
    pub(crate) fn pass(&self, records: u64) {
        let mut state = self.state.lock().expect("lock");
        state.seq += records;
        self.head.send_replace(Seq(state.seq));
    }

    /// An event, and behind it a record that can be read already and of which nobody was told.
    pub(crate) fn append_and_one_untold(&self, event: StreamEvent) {
        let mut state = self.state.lock().expect("lock");
        let seq = Seq(state.seq + 1);
        state.seq += 2;
        state.events.push((seq, event));
        self.head.send_replace(seq);
    }

    /// What the untold record says: the stream is retired. Now everybody is told.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock().expect("lock");
        state.retired = true;
        self.head.send_replace(Seq(state.seq));
    }

    /// What lies before is gone.
    pub(crate) fn trim(&self, oldest: Seq) {
        let mut state = self.state.lock().expect("lock");
        state.oldest = oldest;
        state.events.retain(|(seq, _)| *seq > oldest);
    }

    /// Waits until no link reads the stream.
    pub(crate) async fn nobody_follows(&self) {
        tokio::time::timeout(NEVER, self.head.closed()).await.expect("in time");
    }

    fn deliver(&self, batch: Box<NewBatch>, reply: Reply) {
        let mut state = self.state.lock().expect("lock");
        state.submitted.push(batch.id.as_str().to_owned());
        if state.hold {
            state.held.push((batch, reply));
        } else {
            let answer = state.accept(&batch);
            reply.send(answer).ok();
        }
        let count = state.submitted.len();
        self.submitted.send_replace(count);
    }
}

fn answer(query: &Query) -> QueryAnswer {
    match query {
        Query::Message { message: MessageId(404), .. } => QueryAnswer::Message(None),
        Query::Message { .. } => QueryAnswer::Message(Some(Box::new(MessageState {
            counts: Counts {
                targets: 3,
                accepted: 2,
                arrived: 2,
                refused: [1, 0, 0, 0, 0],
                ..Counts::default()
            },
            accepted_at: 5,
            expires_at: 6,
            job_key: "job".into(),
            first: mooring::ids::Seq(1),
            on_device: None,
        }))),
        Query::Devices(keys) => QueryAnswer::Devices(keys.iter().map(|key| known(*key)).collect()),
        Query::Totals => QueryAnswer::Totals(Box::default()),
        Query::Stats { .. } => QueryAnswer::Stats(Vec::new()),
    }
}

/// Every other device, by its key.
fn known(key: DeviceKey) -> Option<DeviceState> {
    key.0[0].is_multiple_of(2).then(|| DeviceState {
        push_on: true,
        last_active: 7,
        pending: 1,
        oldest_pending_at: Some(1),
        number: 0,
        attributes: Some(Attributes::whole(Arc::from([]))),
        bindings: None,
    })
}

impl State {
    fn accept(&mut self, batch: &NewBatch) -> Result<Accepted, Rejection> {
        if let Some(why) = self.refuse {
            return Err(why);
        }
        let name = format!("{} {} {}", batch.app, batch.id.as_str(), batch.part.number);
        if let Some((digest, before)) = self.answers.get(&name) {
            let same = *digest == batch.digest;
            return if same {
                Ok(Accepted { repeated: true, ..before.clone() })
            } else {
                Err(Rejection::BatchConflict)
            };
        }
        self.seq += 1;
        let mut seen = std::collections::HashSet::new();
        let twice = |(position, key): (usize, &DeviceKey)| {
            (!seen.insert(*key)).then_some((batch.part.ordinal(position), Refusal::Duplicate))
        };
        let refused: Vec<_> = batch.targets.iter().enumerate().filter_map(twice).collect();
        let accepted = Accepted {
            seq: Seq(self.seq),
            first_seq: Seq(self.seq),
            accepted: (batch.targets.len() - refused.len()) as u32,
            refused,
            accepted_at: batch.created_at,
            expires_at: batch.expires_at,
            repeated: false,
        };
        self.answers.insert(name, (batch.digest, accepted.clone()));
        Ok(accepted)
    }
}

impl Store for FakeStore {
    fn submit(&self, command: Command) -> Result<(), Refused> {
        if self.state.lock().expect("lock").busy {
            return Err(Refused(Box::new(command)));
        }
        match command {
            Command::Deliver { batch, reply } => self.deliver(batch, reply),
            Command::StreamAck { stream, cursor } => {
                assert_eq!(&*stream, "main");
                let mut state = self.state.lock().expect("lock");
                state.cursor = state.cursor.max(cursor);
                self.cursor.send_replace(state.cursor);
            }
            Command::Query { query, reply } => {
                let answer = answer(&query);
                reply.send((*self.head.borrow(), answer)).ok();
            }
            Command::Revoke { message, reply, .. } => {
                let full = message == MessageId(404);
                let taken = Revoked { seq: Seq(7), ended: 2 };
                reply.send(if full { Err(Rejection::Exhausted) } else { Ok(taken) }).ok();
            }
            other => panic!("a router link submits no {other:?}"),
        }
        Ok(())
    }

    fn pull(&self, _: &DeviceKey, _: Reached, _: usize, _: Millis, _: &mut Vec<Pulled>) {
        panic!("a router link pulls nothing");
    }

    fn revocation(&self, _: &DeviceKey) -> Revocation {
        Revocation::default()
    }

    fn is_current(&self, _: &Seen) -> bool {
        false
    }

    fn body(&self, _: &Arc<Batch>) -> Option<Arc<[u8]>> {
        None
    }

    fn want_body(&self, _: &Arc<Batch>, _: SessionRef) -> Result<(), Busy> {
        Err(Busy)
    }

    fn stream_bounds(&self, stream: &str) -> Result<StreamBounds, StreamError> {
        let state = self.state.lock().expect("lock");
        if stream != "main" {
            return Err(StreamError::Unknown);
        }
        Ok(StreamBounds { cursor: state.cursor, oldest: state.oldest, head: *self.head.borrow() })
    }

    fn present_history(&self) -> Option<HistoryId> {
        HistoryId::new(HISTORY)
    }

    fn is_in_history(&self, history: HistoryId, _: Seq) -> bool {
        history.get() == HISTORY
    }

    fn read_stream(
        &self,
        stream: &str,
        after: Seq,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<StreamRead, StreamError> {
        assert_eq!(stream, "main");
        let state = self.state.lock().expect("lock");
        self.reads.send_modify(|reads| *reads += 1);
        if state.retired {
            return Err(StreamError::Unknown);
        }
        if after < state.oldest {
            return Err(StreamError::Gone { asked: after, oldest: state.oldest });
        }
        let behind = state.events.iter().filter(|(seq, _)| *seq > after);
        let mut bytes = 0;
        let events: Vec<_> = behind
            .take(max_events)
            .take_while(|(_, event)| {
                let fits = bytes < max_bytes;
                bytes += size(event);
                fits
            })
            .cloned()
            .collect();
        let all = state.events.last().is_none_or(|last| events.last().is_some_and(|read| read.0 == last.0));
        let nothing_left = events.is_empty();
        let cursor = match events.last() {
            Some((seq, _)) if !all => *seq,
            _ if all || nothing_left => Seq(state.seq),
            _ => after,
        };
        Ok(StreamRead { events, cursor })
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }

    fn oldest_created_at(&self) -> Millis {
        77
    }
}

fn size(event: &StreamEvent) -> usize {
    match event {
        StreamEvent::Receipt(receipt) => 100 + receipt.attributes.len(),
        StreamEvent::Mass(mass) => 100 + mass.ordinals.parts().1.len(),
        StreamEvent::Gap(_) | StreamEvent::Device(_) => 100,
    }
}

/// An arrive, recognisable by its message id and as large as wanted.
pub(crate) fn receipt(message: u64, bytes: usize) -> StreamEvent {
    let attributes = if bytes == 0 { Vec::new() } else { attributes(bytes) };
    StreamEvent::Receipt(Box::new(Receipt {
        kind: ReceiptKind::Arrive,
        outcome: Some(Ok(())),
        app: AppKey::parse("demo").expect("valid"),
        message: MessageId(message),
        target: None,
        device_id: "d-1".into(),
        event_time: 1,
        raw_event_time: 1,
        sent_at: 1,
        channel: Channel::Online,
        last_active: 1,
        client_ip: None,
        attributes: Attributes::whole(attributes.into()),
        job_key: "".into(),
        after: None,
        late: false,
        unmatched: false,
        implied: false,
    }))
}

fn attributes(bytes: usize) -> Vec<u8> {
    use prost::Message;
    mooring::wire::pb::device::Attributes { brand: "x".repeat(bytes), ..Default::default() }.encode_to_vec()
}
