//! A router made of frames: it reads when the test waits for something, and keeps what came.

use std::collections::HashMap;

use mooring::client::Endpoint;
use mooring::client::router::{Receiver, Sender, frame_name, open};
use mooring::clock::Clock;
use mooring::pki::DEV_APP;
use mooring::wire::pb::device;
use mooring::wire::pb::router::{
    BatchAccepted, BatchRejected, DeliverBatch, DeviceEvent, FailReason, Open, OpenStream, Outcome, Receipt,
    ReceiptEvent, RefuseReason, RejectCode, Revoke, Revoked, StreamAck, Target, binding, device_event,
    from_router, open_stream, stream_event, to_router,
};

use super::device::SECONDS;
use super::edge::Edge;

/// One end: message, device (or batch and ordinal, of a mass end), and how.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum End {
    Arrived,
    Failed(FailReason),
}

/// An open link, with everything that came over it.
pub(crate) struct Router {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    pub(crate) answers: HashMap<String, Result<BatchAccepted, BatchRejected>>,
    pub(crate) receipts: Vec<Receipt>,
    /// What was said of devices, in order, each with its sequence.
    pub(crate) devices: Vec<(u64, DeviceEvent)>,
    /// Places of the stream that could not be read.
    pub(crate) unreadable: u64,
    /// How each target ended: (batch, ordinal).
    pub(crate) ends: HashMap<(String, u32), Vec<End>>,
    pub(crate) cursor: u64,
    pub(crate) goes_away: bool,
    pub(crate) revoked: HashMap<u64, Revoked>,
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    Clock::new(0).now()
}

/// A message to these devices, as a batch of the same number.
pub(crate) fn batch(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    let target = |id: &&str| Target { device_id: (*id).into(), ..Target::default() };
    DeliverBatch {
        batch_id: format!("b-{message_id}"),
        app_key: DEV_APP.into(),
        message_id,
        body: Some(device::Push {
            kind: device::Kind::Notification.into(),
            title: format!("title {message_id}"),
            body: "body".into(),
            ..device::Push::default()
        }),
        targets: device_ids.iter().map(target).collect(),
        created_at: now(),
        ..DeliverBatch::default()
    }
}

/// The same, each target resolved from this account.
pub(crate) fn of_account(account: &str, mut batch: DeliverBatch) -> DeliverBatch {
    for target in &mut batch.targets {
        target.account = account.into();
    }
    batch
}

impl Edge {
    /// A link that reads the stream.
    pub(crate) async fn router(&self) -> Router {
        self.router_reading(vec![OpenStream { stream: "main".into(), ..OpenStream::default() }]).await
    }

    /// A link that reads the stream from its oldest event on, whatever was acknowledged.
    pub(crate) async fn router_from_the_oldest(&self) -> Router {
        let from = Some(open_stream::From::Oldest(true));
        self.router_reading(vec![OpenStream { stream: "main".into(), from, ..OpenStream::default() }]).await
    }

    /// A link that reads these streams.
    pub(crate) async fn router_reading(&self, streams: Vec<OpenStream>) -> Router {
        Router::open(&self.router_endpoint(), streams).await
    }
}

impl Router {
    /// A link that reads these streams.
    pub(crate) async fn open(endpoint: &Endpoint, streams: Vec<OpenStream>) -> Self {
        let said = Open { version: 1, name: "test".into(), streams, ..Open::default() };
        let (sender, receiver, _) = open(endpoint, said).await.expect("a link");
        Self::over(sender, receiver)
    }

    /// Over an open link.
    pub(crate) fn over(sender: Sender, receiver: Receiver) -> Self {
        Self {
            sender,
            receiver,
            answers: HashMap::new(),
            receipts: Vec::new(),
            devices: Vec::new(),
            unreadable: 0,
            ends: HashMap::new(),
            cursor: 0,
            goes_away: false,
            revoked: HashMap::new(),
        }
    }

    /// Sends a batch.
    pub(crate) async fn send(&mut self, batch: DeliverBatch) {
        self.answers.remove(&batch.batch_id);
        self.sender.send(from_router::Frame::Deliver(batch)).await.expect("sent");
    }

    /// Sends a batch and waits for the answer.
    pub(crate) async fn deliver(&mut self, batch: DeliverBatch) -> Result<BatchAccepted, BatchRejected> {
        let id = batch.batch_id.clone();
        self.send(batch).await;
        self.answer(&id).await
    }

    /// The answer to a batch.
    pub(crate) async fn answer(&mut self, batch_id: &str) -> Result<BatchAccepted, BatchRejected> {
        while !self.answers.contains_key(batch_id) {
            self.step().await;
        }
        self.answers[batch_id].clone()
    }

    /// A batch is accepted for so many.
    pub(crate) async fn accepts(&mut self, batch: DeliverBatch, accepted: u32) -> BatchAccepted {
        let answer = self.deliver(batch).await.expect("accepted");
        assert_eq!(answer.accepted, accepted, "{answer:?}");
        answer
    }

    /// A batch is rejected with this code and field.
    pub(crate) async fn rejects(
        &mut self,
        batch: DeliverBatch,
        code: RejectCode,
        field: &str,
    ) -> BatchRejected {
        let answer = self.deliver(batch).await.expect_err("rejected");
        assert_eq!((answer.code(), answer.field.as_str()), (code, field), "{answer:?}");
        answer
    }

    /// A message to who is connected or known: accepted for all.
    pub(crate) async fn push(&mut self, message_id: u64, device_ids: &[&str]) {
        self.accepts(batch(message_id, device_ids), device_ids.len() as u32).await;
    }

    /// Waits until a target has ended, which happens once.
    pub(crate) async fn end(&mut self, batch_id: &str, ordinal: u32) -> End {
        let key = (batch_id.to_owned(), ordinal);
        while !self.ends.contains_key(&key) {
            self.step().await;
        }
        let ends = &self.ends[&key];
        assert_eq!(ends.len(), 1, "one end: {ends:?}");
        ends[0].clone()
    }

    /// Waits for a receipt.
    pub(crate) async fn receipt(&mut self, message_id: u64, device_id: &str, event: ReceiptEvent) -> Receipt {
        let right =
            |r: &&Receipt| r.message_id == message_id && r.device_id == device_id && r.event() == event;
        loop {
            if let Some(receipt) = self.receipts.iter().find(right) {
                return receipt.clone();
            }
            self.step().await;
        }
    }

    /// Waits until so many events of a device came; all of them as words.
    pub(crate) async fn said_of(&mut self, device_id: &str, at_least: usize) -> Vec<String> {
        loop {
            let said: Vec<String> = self
                .devices
                .iter()
                .filter(|(_, event)| event.device_id == device_id)
                .map(|(_, event)| words(event))
                .collect();
            if said.len() >= at_least {
                return said;
            }
            self.step().await;
        }
    }

    /// So many receipts of this kind came.
    pub(crate) fn count(&self, message_id: u64, device_id: &str, event: ReceiptEvent) -> usize {
        let right =
            |r: &&Receipt| r.message_id == message_id && r.device_id == device_id && r.event() == event;
        self.receipts.iter().filter(right).count()
    }

    /// Has a message taken back.
    pub(crate) async fn revoke(&mut self, app_key: &str, message_id: u64) -> Revoked {
        let revoke = Revoke { request_id: message_id, app_key: app_key.into(), message_id };
        self.revoked.remove(&message_id);
        self.sender.send(from_router::Frame::Revoke(revoke)).await.expect("sent");
        while !self.revoked.contains_key(&message_id) {
            self.step().await;
        }
        self.revoked[&message_id].clone()
    }

    /// One frame.
    pub(crate) async fn step(&mut self) {
        let frame = self.receiver.recv(SECONDS).await.expect("a frame");
        self.take(frame).await;
    }

    async fn take(&mut self, frame: to_router::Frame) {
        match frame {
            to_router::Frame::Accepted(answer) => {
                self.answers.insert(answer.batch_id.clone(), Ok(answer));
            }
            to_router::Frame::Rejected(answer) => {
                self.answers.insert(answer.batch_id.clone(), Err(answer));
            }
            to_router::Frame::Stream(batch) => {
                for event in batch.events {
                    self.note(event.sequence, event.event.expect("an event"));
                }
                assert!(batch.cursor > self.cursor, "cursors grow");
                self.cursor = batch.cursor;
                let ack = StreamAck { stream: batch.stream, cursor: batch.cursor };
                self.sender.send(from_router::Frame::StreamAck(ack)).await.expect("acknowledged");
            }
            to_router::Frame::GoAway(_) => self.goes_away = true,
            to_router::Frame::Revoked(answer) => {
                self.revoked.insert(answer.request_id, answer);
            }
            to_router::Frame::Pong(_) => {}
            other => panic!("{} came: {other:?}", frame_name(&other)),
        }
    }

    fn note(&mut self, sequence: u64, event: stream_event::Event) {
        match event {
            stream_event::Event::Receipt(receipt) => {
                let end = match receipt.outcome() {
                    Outcome::None => None,
                    Outcome::Arrived => Some(End::Arrived),
                    Outcome::Failed => Some(End::Failed(receipt.reason())),
                };
                if let Some(end) = end {
                    self.ends.entry((receipt.batch_id.clone(), receipt.ordinal)).or_default().push(end);
                }
                self.receipts.push(receipt);
            }
            stream_event::Event::MassOutcome(mass) => {
                let ordinals = mass.targets();
                assert_eq!(ordinals.len(), mass.count);
                for ordinal in ordinals.iter() {
                    let key = (mass.batch_id.clone(), ordinal);
                    self.ends.entry(key).or_default().push(End::Failed(mass.reason()));
                }
            }
            stream_event::Event::Gap(gap) => {
                let unreadable = gap.by_event.get("unreadable").copied().unwrap_or(0);
                assert_eq!(gap.events, unreadable, "a gap: {gap:?}");
                self.unreadable += unreadable;
            }
            stream_event::Event::Device(event) => self.devices.push((sequence, event)),
        }
    }
}

/// "bound account alice", and so on.
fn words(event: &DeviceEvent) -> String {
    let binding =
        |bound: &mooring::wire::pb::router::Binding| match bound.binding.as_ref().expect("a binding") {
            binding::Binding::Account(text) => format!("account {text}"),
            binding::Binding::Alias(text) => format!("alias {text}"),
            binding::Binding::Tag(text) => format!("tag {text}"),
            binding::Binding::Phone(text) => format!("phone {text}"),
        };
    let brand = |attributes: &device::Attributes| attributes.brand.clone();
    match event.change.as_ref().expect("a change") {
        device_event::Change::Registered(registered) => {
            format!("registered {}", registered.attributes.as_ref().map(brand).unwrap_or_default())
        }
        device_event::Change::Attributes(attributes) => format!("attributes {}", brand(attributes)),
        device_event::Change::Push(state) if *state == device::PushState::On as i32 => "switch on".into(),
        device_event::Change::Push(_) => "switch off".into(),
        device_event::Change::Bound(bound) => format!("bound {}", binding(bound)),
        device_event::Change::Unbound(unbound) => format!("unbound {}", binding(unbound)),
        device_event::Change::Forgotten(forgotten) => {
            assert!(forgotten.last_active_time > 0);
            "forgotten".into()
        }
    }
}

/// The ordinals that were refused for this reason.
pub(crate) fn refused(answer: &BatchAccepted, reason: RefuseReason) -> Vec<u32> {
    answer.refused.iter().filter(|r| r.reason() == reason).flat_map(|r| r.ordinals.clone()).collect()
}
