//! A router against a scripted edge over in-memory streams.

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

use super::*;
use crate::client::Transport;
use crate::wire::frame::{ROUTER_HEAD, put_router_frame, router_frame};
use crate::wire::pb::router::{
    BatchAccepted, Error, FromRouter, ReceiptGap, StreamBatch, StreamEvent, Target, ToRouter, from_router,
    stream_event,
};

struct Edge {
    stream: DuplexStream,
}

impl Edge {
    async fn recv(&mut self) -> from_router::Frame {
        let mut head = [0; ROUTER_HEAD];
        self.stream.read_exact(&mut head).await.expect("a head");
        let mut body = vec![0; router_frame(head, 1 << 24).expect("a frame")];
        self.stream.read_exact(&mut body).await.expect("a body");
        FromRouter::decode(&body[..]).expect("decodes").frame.expect("a known frame")
    }

    async fn batch(&mut self) -> String {
        match self.recv().await {
            from_router::Frame::Deliver(batch) => batch.batch_id,
            other => panic!("not a batch: {other:?}"),
        }
    }

    async fn send(&mut self, frame: to_router::Frame) {
        let mut out = Vec::new();
        put_router_frame(&mut out, &ToRouter { frame: Some(frame) });
        self.stream.write_all(&out).await.expect("writes");
    }

    async fn accept(&mut self, id: &str) {
        let (batch_id, app_key) = (id.into(), "demo".into());
        let answer = BatchAccepted { batch_id, app_key, accepted: 1, ..BatchAccepted::default() };
        self.send(to_router::Frame::Accepted(answer)).await;
    }
}

type Halves = (Sender<WriteHalf<DuplexStream>>, Receiver<ReadHalf<DuplexStream>>);

fn link() -> (Halves, Edge) {
    let (near, far) = duplex(65_536);
    let (read, write) = split(near);
    ((Sender::over(write), Receiver::over(read)), Edge { stream: far })
}

/// What a handle holds; the driver ends with it.
struct Handle {
    batches: mpsc::Sender<DeliverBatch>,
    _life: watch::Sender<()>,
}

impl Handle {
    async fn deliver(&self, batch: DeliverBatch) {
        self.batches.send(batch).await.expect("room");
    }
}

fn driver(on_events: OnEvents) -> (Driver, Handle, watch::Receiver<Progress>) {
    let (life, end) = watch::channel(());
    let (batches, incoming) = mpsc::channel(BATCHES);
    let (report, progress) = watch::channel(Progress::default());
    let endpoint = Endpoint { address: "127.0.0.1:1".into(), transport: Transport::Plain, source: None };
    let options = Options {
        endpoint,
        name: "test".into(),
        streams: vec!["main".into()],
        backoff: Backoff::fast(),
        patience: 1_000,
        only: None,
        seed: 1,
    };
    let driver = Driver {
        rng: SmallRng::seed_from_u64(1),
        options,
        clock: Arc::new(Clock::new(0)),
        ledger: Ledger::new(DigestKey([1; 32])),
        incoming,
        revokes: Revokes::new(mpsc::channel(1).1),
        end,
        report,
        keeper: Box::new(EventsOnly(on_events)),
    };
    (driver, Handle { batches, _life: life }, progress)
}

fn batch(id: &str) -> DeliverBatch {
    let target = Target { device_id: "d".into(), account: String::new() };
    DeliverBatch {
        batch_id: id.into(),
        app_key: "demo".into(),
        message_id: 1,
        targets: vec![target],
        ..DeliverBatch::default()
    }
}

fn welcome() -> Opened {
    Opened { credit_targets: 100, credit_bytes: 100_000, ..Opened::default() }
}

#[tokio::test]
async fn batches_are_pipelined_and_repeated_on_the_next_link() {
    let (mut driver, batches, progress) = driver(Box::new(|_| {}));
    for id in ["a", "b", "c"] {
        batches.deliver(batch(id)).await;
    }
    let (((sender, receiver), mut edge), opened) = (link(), welcome());
    let script = async move {
        for id in ["a", "b", "c"] {
            assert_eq!(edge.batch().await, id, "sent without waiting for answers");
        }
        edge.accept("b").await;
        drop(edge);
    };
    let (ended, ()) = tokio::join!(driver.session(sender, receiver, &opened), script);
    assert!(matches!(ended, Ended::Broken(_)));

    let (((sender, receiver), mut edge), opened) = (link(), welcome());
    let script = async move {
        for id in ["a", "c"] {
            assert_eq!(edge.batch().await, id);
            edge.accept(id).await;
        }
        let mut progress = progress;
        progress.wait_for(|p| p.tally.unanswered() == 0).await.expect("the driver runs");
        drop(batches);
        edge
    };
    let (ended, _edge) = tokio::join!(driver.session(sender, receiver, &opened), script);
    assert!(matches!(ended, Ended::Asked));
    assert_eq!(driver.ledger.tally().accepted, 3);
}

#[tokio::test]
async fn a_stream_is_acknowledged_after_its_events_were_kept() {
    let (kept, mut keeping) = watch::channel(0);
    let (mut driver, batches, _progress) =
        driver(Box::new(move |batch| kept.send_modify(|k| *k = batch.cursor)));
    let (((sender, receiver), mut edge), opened) = (link(), welcome());
    let script = async {
        let stream = StreamBatch { stream: "main".into(), epoch: 1, cursor: 7, events: Vec::new() };
        edge.send(to_router::Frame::Stream(stream)).await;
        let from_router::Frame::StreamAck(ack) = edge.recv().await else { panic!("not an ack") };
        assert_eq!((ack.stream.as_str(), ack.cursor), ("main", 7));
        assert_eq!(*keeping.borrow_and_update(), 7);
        drop(batches);
    };
    let (ended, ()) = tokio::join!(driver.session(sender, receiver, &opened), script);
    assert!(matches!(ended, Ended::Asked));
}

#[tokio::test]
async fn an_edge_that_leaves_gets_no_more_batches_and_unauthorized_is_final() {
    let (mut driver, batches, _progress) = driver(Box::new(|_| {}));
    let (((sender, receiver), mut edge), opened) = (link(), welcome());
    let script = async {
        edge.send(to_router::Frame::GoAway(crate::wire::pb::router::GoAway::default())).await;
        let stream = StreamBatch { stream: "main".into(), cursor: 1, ..StreamBatch::default() };
        edge.send(to_router::Frame::Stream(stream)).await;
        assert!(matches!(edge.recv().await, from_router::Frame::StreamAck(_)));
        batches.deliver(batch("a")).await;
        let error = Error { code: LinkErrorCode::Unauthorized.into(), text: "no".into() };
        edge.send(to_router::Frame::Error(error)).await;
        let mut rest = Vec::new();
        edge.stream.read_to_end(&mut rest).await.expect("the end");
        assert!(rest.is_empty(), "the batch was not sent");
    };
    let (ended, ()) = tokio::join!(driver.session(sender, receiver, &opened), script);
    assert!(matches!(ended, Ended::Stop(Stop::Refused(_))));
}

#[tokio::test]
async fn what_comes_along_with_the_answer_to_open_is_taken_at_once() {
    let (mut driver, _batches, _progress) = driver(Box::new(|_| {}));
    let ((sender, mut receiver), mut edge) = link();
    let mut both = Vec::new();
    let batch = StreamBatch { stream: "main".into(), cursor: 7, ..StreamBatch::default() };
    for frame in [to_router::Frame::Opened(welcome()), to_router::Frame::Stream(batch)] {
        put_router_frame(&mut both, &ToRouter { frame: Some(frame) });
    }
    edge.stream.write_all(&both).await.expect("writes");
    assert!(matches!(receiver.recv(60).await, Ok(to_router::Frame::Opened(_))));
    let acked = async {
        match tokio::time::timeout(Duration::from_secs(20), edge.recv()).await {
            Ok(from_router::Frame::StreamAck(ack)) => ack.cursor,
            other => panic!("not an acknowledgement: {other:?}"),
        }
    };
    let opened = welcome();
    let cursor = tokio::select! {
        _ = driver.session(sender, receiver, &opened) => panic!("it goes on"),
        cursor = acked => cursor,
    };
    assert_eq!(cursor, 7);
}

#[tokio::test]
async fn a_newer_frame_is_passed_over_and_two_in_one_end_the_link() {
    let (kept, keeping) = watch::channel(0);
    let (mut driver, _batches, _progress) = driver(Box::new(move |_| kept.send_modify(|k| *k += 1)));
    let (((sender, receiver), mut edge), opened) = (link(), welcome());
    let gap = stream_event::Event::Gap(ReceiptGap { events: 3, ..Default::default() });
    let events = vec![StreamEvent { sequence: 7, event: Some(gap) }];
    let batch = StreamBatch { stream: "main".into(), cursor: 7, events, ..StreamBatch::default() };
    let stream = ToRouter { frame: Some(to_router::Frame::Stream(batch)) };
    let script = async {
        // Of number 100; nothing follows what is behind it.
        let mut bytes = vec![0, 0, 0, 0, 3, 0xa0, 0x06, 1];
        put_router_frame(&mut bytes, &stream);
        edge.stream.write_all(&bytes).await.expect("writes");
        let ack = tokio::time::timeout(Duration::from_secs(20), edge.recv()).await;
        assert!(matches!(ack, Ok(from_router::Frame::StreamAck(_))), "{ack:?}");
        let two = stream.encode_to_vec().repeat(2);
        edge.stream.write_all(&[&[0, 0, 0, 0, two.len() as u8], &two[..]].concat()).await.expect("writes");
        edge
    };
    let (ended, _edge) = ended(driver.session(sender, receiver, &opened), script).await;
    assert!(matches!(ended, Ended::Broken(ClientError::Frame(FrameError::Malformed))));
    assert_eq!((driver.ledger.tally().gaps, *keeping.borrow()), (3, 1));
}

#[tokio::test]
async fn events_that_are_none_end_the_link() {
    let (mut driver, _batches, _progress) = driver(Box::new(|_| {}));
    let (((sender, receiver), mut edge), opened) = (link(), welcome());
    let script = async {
        // The name of the stream is no text.
        edge.stream.write_all(&[0, 0, 0, 0, 5, 0x22, 3, 0x0a, 1, 0xff]).await.expect("writes");
        edge
    };
    let (ended, _edge) = ended(driver.session(sender, receiver, &opened), script).await;
    assert!(matches!(ended, Ended::Broken(ClientError::Frame(FrameError::Malformed))));
}

/// How the session ends that this script is for.
async fn ended<T>(session: impl Future<Output = Ended>, script: impl Future<Output = T>) -> (Ended, T) {
    let both = async { tokio::join!(session, script) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("it ends")
}
