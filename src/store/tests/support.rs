//! An engine over a simulated disk, and short words for what devices and routers do.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::binding::{Change, ChangeError, DeviceChange};
use crate::ids::{
    AccountDigest, AppKey, BatchId, DeviceKey, DigestKey, Generation, MessageId, Seq, SessionRef, ShardId,
};
use crate::push::{
    Accepted, Acked, Attributes, BatchPart, Counts, Event, Failure, Millis, NewBatch, OfflinePolicy,
    Priority, Reached, ReceiptGap, Rejection, Seen, StreamEvent,
};
use crate::store::disk::Disk;
use crate::store::engine::{Engine, OpenError, OpenReport, StoreFailure};
use crate::store::options::StoreOptions;
use crate::store::tables::TableKind;
use crate::store::{
    Batch, Command, CommitSink, Confirm, DayStats, DeviceAck, DeviceState, MessageState, Pulled, Query,
    QueryAnswer, RetireError, Retired, SentAlone, StreamError, StreamState,
};
use tokio::sync::oneshot;

pub(super) fn app() -> AppKey {
    AppKey::parse("app").expect("valid")
}

pub(super) fn device(n: u32) -> DeviceKey {
    DeviceKey::of(&DigestKey([7; 32]), &app(), &format!("device-{n}"))
}

pub(super) fn session(n: u32) -> SessionRef {
    SessionRef { generation: Generation(u64::from(n)), slot: n, shard: ShardId(0) }
}

/// What the sink was told.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Told {
    Batch(Seq, Vec<DeviceKey>),
    Confirmed(Confirm),
    Seen(SessionRef),
    Refused(SessionRef),
    Changed(SessionRef, Result<(), ChangeError>),
    AckRefused(SessionRef),
    Ended(DeviceKey, Seq, Failure),
    Revoked(DeviceKey),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sink(pub(super) Arc<Mutex<Vec<Told>>>);

impl Sink {
    fn tell(&self, told: Told) {
        self.0.lock().expect("not poisoned").push(told);
    }

    pub(super) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut *self.0.lock().expect("not poisoned"))
    }
}

impl Sink {
    /// The devices that were told to be revoked.
    pub(super) fn revoked(&self) -> Vec<DeviceKey> {
        let revoked = |told| if let Told::Revoked(device) = told { Some(device) } else { None };
        self.take().into_iter().filter_map(revoked).collect()
    }
}

impl CommitSink for Sink {
    fn batch(&mut self, batch: &Arc<Batch>, devices: &[DeviceKey]) {
        self.tell(Told::Batch(batch.seq, devices.to_vec()));
    }
    fn confirmed(&mut self, _: ShardId, confirms: Vec<Confirm>) {
        for confirm in confirms {
            self.tell(Told::Confirmed(confirm));
        }
    }
    fn seen(&mut self, session: SessionRef) {
        self.tell(Told::Seen(session));
    }
    fn refused(&mut self, session: SessionRef) {
        self.tell(Told::Refused(session));
    }
    fn changed(&mut self, session: SessionRef, result: Result<(), ChangeError>) {
        self.tell(Told::Changed(session, result));
    }
    fn ack_refused(&mut self, session: SessionRef) {
        self.tell(Told::AckRefused(session));
    }
    fn revoked(&mut self, device: &DeviceKey) {
        self.tell(Told::Revoked(*device));
    }
    fn ended(&mut self, device: &DeviceKey, batch: Seq, reason: Failure) {
        self.tell(Told::Ended(*device, batch, reason));
    }
}

/// Sizes small enough that every mechanism works within a few commands.
pub(super) fn small() -> StoreOptions {
    StoreOptions {
        parts: 4,
        forget_after_ms: 0,
        digest_key: DigestKey([7; 32]),
        segment_bytes: 16 * 1024,
        reserve_segments: 1,
        checkpoint_bytes: u64::MAX,
        tables: TableKind::Log,
        ..StoreOptions::default()
    }
}

pub(super) fn seen(n: u32) -> Seen {
    Seen {
        key: device(n),
        app: app(),
        device_id: format!("device-{n}").into(),
        attributes: Attributes::whole(b"attributes".as_slice().into()),
        push_on: None,
        client_ip: IpAddr::from([127, 0, 0, 1]),
        state_lost: false,
    }
}

pub(super) fn batch(id: &str, message: u64, targets: &[u32], now: Millis, keep_ms: Millis) -> NewBatch {
    NewBatch {
        id: BatchId::parse(id).expect("valid"),
        app: app(),
        message: MessageId(message),
        body: format!("body of {message}").into_bytes().into(),
        body_digest: [message as u8; 16],
        digest: [id.len() as u8; 16],
        targets: targets.iter().map(|&n| device(n)).collect(),
        part: BatchPart::default(),
        offline_policy: OfflinePolicy::Store,
        created_at: now,
        expires_at: now + keep_ms,
        online_only: false,
        job_key: "job".into(),
        priority: Priority::Normal,
        collapse_key: "".into(),
        accounts: Vec::new(),
    }
}

/// What a gap says of messages.
pub(super) fn of_messages(gap: &ReceiptGap) -> u64 {
    let of_devices = DeviceChange::LABELS.iter().filter_map(|label| gap.by_event.get(*label));
    gap.events - of_devices.sum::<u64>()
}

pub(super) fn account_digest(account: &str) -> AccountDigest {
    AccountDigest::of(&DigestKey([7; 32]), &app(), account)
}

/// The same, each target resolved from this account.
pub(super) fn of_account(account: &str, mut batch: NewBatch) -> NewBatch {
    batch.accounts = vec![Some(account_digest(account)); batch.targets.len()];
    batch
}

pub(super) fn ack(n: u32, number: u64, events: &[(u64, Event)], time: Millis) -> DeviceAck {
    let acked = |&(message, event)| Acked { message: MessageId(message), event, time, sent_at: None };
    DeviceAck {
        device: device(n),
        session: session(n),
        number,
        client_ip: None,
        events: events.iter().map(acked).collect(),
    }
}

/// An engine, and what it told.
#[derive(Debug)]
pub(super) struct Harness<D: Disk> {
    pub(super) engine: Engine<D>,
    pub(super) report: OpenReport,
    pub(super) sink: Sink,
    pub(super) connected: Arc<Mutex<HashSet<DeviceKey>>>,
    pub(super) now: Millis,
}

impl<D: Disk> Harness<D> {
    pub(super) fn try_open(disk: &Arc<D>, options: &StoreOptions, now: Millis) -> Result<Self, OpenError> {
        let sink = Sink::default();
        let connected = Arc::new(Mutex::new(HashSet::new()));
        let directory = connected.clone();
        let is_connected =
            Box::new(move |key: &DeviceKey| directory.lock().expect("not poisoned").contains(key));
        let (engine, report) = Engine::open(disk.clone(), options, Box::new(sink.clone()), is_connected)?;
        Ok(Self { engine, report, sink, connected, now })
    }

    pub(super) fn open(disk: &Arc<D>, options: &StoreOptions, now: Millis) -> Self {
        Self::try_open(disk, options, now).expect("opens")
    }

    pub(super) fn apply(&mut self, command: Command) -> Result<(), StoreFailure> {
        self.engine.apply(self.now, command)
    }

    pub(super) fn commit(&mut self) -> Result<(), StoreFailure> {
        self.engine.commit(self.now)
    }

    /// Until nothing is due, committing what is staged. What would be due at once all the same would keep the store's thread turning.
    pub(super) fn settle(&mut self) -> Result<(), StoreFailure> {
        for _ in 0..100_000 {
            self.engine.commit(self.now)?;
            if !self.engine.maintain(self.now)? && !self.engine.has_staged() {
                let (due, now) = (self.engine.next_wakeup(), self.now);
                assert!(
                    due.is_none_or(|due| due > now),
                    "nothing is due, and yet it wakes up at {due:?} ({now})"
                );
                return Ok(());
            }
        }
        panic!("it never rests");
    }

    pub(super) fn stage_batch(&mut self, batch: NewBatch) -> oneshot::Receiver<Result<Accepted, Rejection>> {
        let (reply, answer) = oneshot::channel();
        self.apply(Command::Deliver { batch: Box::new(batch), reply }).expect("the disk works");
        answer
    }

    pub(super) fn deliver(&mut self, batch: NewBatch) -> Result<Accepted, Rejection> {
        let mut answer = self.stage_batch(batch);
        self.commit().expect("the disk works");
        answer.try_recv().expect("answered after the commit")
    }

    pub(super) fn see(&mut self, n: u32) {
        self.apply(Command::Seen { device: Box::new(seen(n)), session: session(n) }).expect("the disk works");
    }

    /// Whether a Hello says nothing new.
    pub(super) fn is_current(&self, seen: &Seen) -> bool {
        self.engine.shared().index.is_current(seen)
    }

    /// One of the store's figures.
    pub(super) fn figure(&self, name: &str) -> u64 {
        let all = self.engine.stats().all();
        all.into_iter().find(|figure| figure.0 == name).expect("a figure").1
    }

    pub(super) fn acks(&mut self, acks: Vec<DeviceAck>) {
        self.apply(Command::Acks { shard: ShardId(0), acks }).expect("the disk works");
    }

    pub(super) fn arrive(&mut self, n: u32, message: u64) {
        let now = self.now;
        self.acks(vec![ack(n, 1, &[(message, Event::Arrive)], now)]);
        self.commit().expect("the disk works");
    }

    pub(super) fn sent(&mut self, n: u32, batch: Seq, sent_at: Millis) {
        let sent = vec![SentAlone { device: device(n), batch, sent_at }];
        self.apply(Command::Sent(sent)).expect("the disk works");
    }

    pub(super) fn checkpoint(&mut self) -> Result<(), StoreFailure> {
        let (reply, _done) = oneshot::channel();
        self.apply(Command::Flush { checkpoint: true, reply })?;
        self.commit()
    }

    pub(super) fn query(&mut self, query: Query) -> QueryAnswer {
        let (reply, mut answer) = oneshot::channel();
        self.apply(Command::Query { query, reply }).expect("the disk works");
        self.commit().expect("the disk works");
        answer.try_recv().expect("answered after the commit").1
    }

    pub(super) fn totals(&mut self) -> Counts {
        match self.query(Query::Totals) {
            QueryAnswer::Totals(counts) => *counts,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn days(&mut self, days: u32) -> Vec<DayStats> {
        match self.query(Query::Stats { app: app(), days }) {
            QueryAnswer::Stats(days) => days,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn message(&mut self, message: u64, on: Option<u32>) -> Option<MessageState> {
        let query = Query::Message { app: app(), message: MessageId(message), device: on.map(device) };
        match self.query(query) {
            QueryAnswer::Message(state) => state.map(|state| *state),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn pull(&self, n: u32) -> Vec<Pulled> {
        let mut out = Vec::new();
        self.engine.pull(&device(n), Reached::START, usize::MAX, self.now, &mut out);
        out
    }

    pub(super) fn pulled(&self, n: u32) -> Vec<(u64, bool)> {
        self.pull(n).iter().map(|pulled| (pulled.batch.message.0, pulled.redelivered)).collect()
    }

    /// What became of messages, after the cursor.
    pub(super) fn stream(&self, after: Seq) -> Vec<(Seq, StreamEvent)> {
        let all = self.try_stream(after).expect("readable").into_iter();
        all.filter(|(_, event)| !matches!(event, StreamEvent::Device(_))).collect()
    }

    /// What was said of a device, after the cursor.
    pub(super) fn device_events(&self, n: u32, after: Seq) -> Vec<DeviceChange> {
        let all = self.try_stream(after).expect("readable").into_iter();
        let of_device = all.filter_map(|(_, event)| match event {
            StreamEvent::Device(event) if *event.device_id == *format!("device-{n}") => Some(event.change),
            _ => None,
        });
        of_device.collect()
    }

    pub(super) fn stage_change(&mut self, n: u32, change: Change) {
        let change = Command::Change { device: device(n), session: session(n), change: Box::new(change) };
        self.apply(change).expect("the disk works");
    }

    /// What a change is answered with; everything else that was told is thrown away.
    pub(super) fn change(&mut self, n: u32, change: Change) -> Result<(), ChangeError> {
        self.stage_change(n, change);
        self.commit().expect("the disk works");
        let told = self.sink.take().into_iter().filter_map(|told| match told {
            Told::Changed(_, result) => Some(result),
            _ => None,
        });
        let told: Vec<_> = told.collect();
        assert_eq!(told.len(), 1, "one answer");
        told[0]
    }

    pub(super) fn state_of(&mut self, n: u32) -> Option<DeviceState> {
        match self.query(Query::Devices(vec![device(n)])) {
            QueryAnswer::Devices(states) => states.into_iter().next().flatten(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn try_stream(&self, after: Seq) -> Result<Vec<(Seq, StreamEvent)>, StreamError> {
        self.try_stream_of("main", after)
    }

    pub(super) fn try_stream_of(
        &self,
        stream: &str,
        after: Seq,
    ) -> Result<Vec<(Seq, StreamEvent)>, StreamError> {
        let (mut events, mut cursor) = (Vec::new(), after);
        loop {
            let read = self.engine.read_stream(stream, cursor, 7, 4096)?;
            if read.cursor == cursor {
                return Ok(events);
            }
            cursor = read.cursor;
            events.extend(read.events);
        }
    }

    pub(super) fn ack_stream(&mut self, cursor: Seq) {
        self.ack_stream_of("main", cursor);
    }

    pub(super) fn ack_stream_of(&mut self, stream: &str, cursor: Seq) {
        self.apply(Command::StreamAck { stream: stream.into(), cursor }).expect("the disk works");
        self.commit().expect("the disk works");
    }

    pub(super) fn stream_state(&self, stream: &str) -> Option<StreamState> {
        self.engine.stream_states().into_iter().find(|state| &*state.name == stream)
    }

    pub(super) fn retire(&mut self, stream: &str, force: bool) -> Result<Retired, RetireError> {
        let (reply, mut answer) = oneshot::channel();
        self.apply(Command::RetireStream { stream: stream.into(), force, reply }).expect("the disk works");
        self.settle().expect("the disk works");
        answer.try_recv().expect("answered")
    }

    pub(super) fn head(&self) -> Seq {
        self.engine.head()
    }
}
