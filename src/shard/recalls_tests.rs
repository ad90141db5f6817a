//! A shard without a runtime of its own, over a store that says what the test wants.

use std::collections::HashMap;
use std::sync::Mutex;

use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::apps::Apps;
use crate::clock::Clock;
use crate::config;
use crate::credential::Revocation;
use crate::directory::Directory;
use crate::ids::{AppKey, DeviceKey, DigestKey, MessageId, SessionRef, ShardId};
use crate::machine::session::Session;
use crate::machine::told;
use crate::presence::Presence;
use crate::push::{Reached, Seen};
use crate::shard::identify::Grant;
use crate::shard::output::flush;
use crate::shard::seldom::Seldom;
use crate::shard::sockets::Socket;
use crate::shard::state::{InList, Live};
use crate::shard::stream::Stream;
use crate::shard::{DeviceContext, Gates, Mailbox, Places, ShardFigures};
use crate::store::{Batch, Busy, Command, Pulled, Refused, Store, StreamBounds, StreamError, StreamRead};
use crate::telemetry::Transport;
use crate::wire::frame::{device_frame, put_device_frame};
use crate::wire::pb::device::{Ping, ToDevice, ToEdge, to_device, to_edge};

const HOUR_MS: Millis = 3_600_000;

/// It knows one device, which was active long ago, and one message that was taken back since.
#[derive(Debug)]
pub(in crate::shard) struct OneRecall {
    recall: Arc<Recall>,
    last_active: Mutex<Millis>,
    head: watch::Sender<Seq>,
}

impl Store for OneRecall {
    fn submit(&self, command: Command) -> Result<(), Refused> {
        if let Command::LastActive(active) = command {
            let mut last = self.last_active.lock().expect("unpoisoned");
            *last = active.iter().map(|(_, at)| *at).fold(*last, Millis::max);
        }
        Ok(())
    }
    fn pull(&self, _: &DeviceKey, _: Reached, _: usize, _: Millis, _: &mut Vec<Pulled>) {}
    fn is_current(&self, _: &Seen) -> bool {
        true
    }
    fn revocation(&self, _: &DeviceKey) -> Revocation {
        Revocation::default()
    }
    fn body(&self, _: &Arc<Batch>) -> Option<Arc<[u8]>> {
        None
    }
    fn want_body(&self, _: &Arc<Batch>, _: SessionRef) -> Result<(), Busy> {
        Err(Busy)
    }
    fn recalls(&self, after: Seq, since: Millis, _: usize) -> Vec<Arc<Recall>> {
        let is_newer = self.recall.seq > after && self.recall.at >= since;
        is_newer.then(|| self.recall.clone()).into_iter().collect()
    }
    fn may_have(&self, _: &DeviceKey, _: &Recall) -> bool {
        true
    }
    fn last_active(&self, _: &DeviceKey) -> Option<Millis> {
        Some(*self.last_active.lock().expect("unpoisoned"))
    }
    fn stream_bounds(&self, _: &str) -> Result<StreamBounds, StreamError> {
        Err(StreamError::Unknown)
    }
    fn read_stream(&self, _: &str, _: Seq, _: usize, _: usize) -> Result<StreamRead, StreamError> {
        Err(StreamError::Unknown)
    }
    fn head(&self) -> watch::Receiver<Seq> {
        self.head.subscribe()
    }
    fn oldest_created_at(&self) -> Millis {
        0
    }
}

const DEVICE: DeviceKey = DeviceKey([7; 16]);

fn app() -> AppKey {
    AppKey::parse("app").expect("valid")
}

/// A shard, whose store's device was active two hours ago. The message was taken back an hour ago.
pub(in crate::shard) fn shard() -> (Shard, Arc<OneRecall>) {
    let clock = Arc::new(Clock::new(0));
    let now = clock.now();
    let at = now - HOUR_MS;
    let recall = Arc::new(Recall::new(Seq(5), app(), MessageId(9), at, now + HOUR_MS));
    let last_active = Mutex::new(now - 2 * HOUR_MS);
    let store = Arc::new(OneRecall { recall, last_active, head: watch::Sender::new(Seq(5)) });
    let directory = Arc::new(Directory::new());
    let context = DeviceContext {
        config: config::Device::default(),
        apps: HashMap::new(),
        doors: Arc::new(Apps::new(&[], store.clone(), now)),
        gates: Gates::new(&[]),
        digest_key: DigestKey([1; 32]),
        directory: directory.clone(),
        store: store.clone(),
        presence: Arc::new(Presence::new(directory, 1, now, Box::new(|_, _| {}))),
        clock,
        budget: Arc::default(),
        tls: None,
        quic: None,
        mailboxes: Arc::from([Mailbox::default()]),
        places: Places::default(),
        figures: Arc::from([ShardFigures::default()]),
    };
    (Shard::new(ShardId(0), Arc::new(context)), store)
}

/// A session that begins, and the device's end of its connection.
pub(in crate::shard) async fn begins(shard: &mut Shard) -> (ConnRef, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, peer) = near.expect("accepted");
    near.writable().await.expect("connected");
    let conn = shard.add(Stream::Tcp(Socket::of(near)), peer, None);
    let context = shard.context.clone();
    context.take_place(&app(), &DEVICE, Transport::Tcp, shard.now()).expect("a place");
    let live = Live {
        device: DEVICE,
        generation: context.directory.next_generation(),
        session: Session::new(shard.now(), 240),
        app: app(),
        device_id: "d".into(),
        epoch: 1,
        seldom: Seldom::default(),
    };
    let last_active = context.store.last_active(&DEVICE);
    shard
        .attach(conn, Transport::Tcp, live, last_active, Grant::default(), &mut Vec::new())
        .expect("welcome");
    (conn, far.expect("connected"))
}

/// The device says something.
fn says_something(shard: &mut Shard, conn: ConnRef) {
    let mut ping = Vec::new();
    put_device_frame(&mut ping, &ToEdge { frame: Some(to_edge::Frame::Ping(Ping {})) });
    shard.begin();
    shard.connection(conn).expect("there").partial.set(ping);
    shard.resume(conn);
}

/// What was reported goes to the store; when the device was last active, as that knows.
fn reported(shard: &mut Shard) -> Millis {
    let active = std::mem::take(&mut shard.last_active);
    let store = shard.context.store.clone();
    store.submit(Command::LastActive(active)).expect("taken");
    store.last_active(&DEVICE).expect("known")
}

/// The first frame that came.
async fn came(far: &mut TcpStream) -> Option<to_device::Frame> {
    let mut bytes = vec![0; 64];
    far.readable().await.expect("readable");
    let count = far.try_read(&mut bytes).expect("bytes");
    let (head, body) = device_frame(&bytes[..count]).expect("a frame")?;
    ToDevice::decode(&bytes[head..head + body]).expect("a frame").frame
}

#[tokio::test]
async fn a_device_whose_session_breaks_early_is_told_again_on_its_next_one() {
    let (mut shard, store) = shard();
    let before = store.last_active(&DEVICE).expect("known");

    // It breaks before anything could be written; then right behind that, with words on their way.
    let (conn, far) = begins(&mut shard).await;
    shard.remove(conn);
    assert_eq!(reported(&mut shard), before);
    drop(far);
    let (conn, mut far) = begins(&mut shard).await;
    shard.tell_recalls();
    assert!(matches!(came(&mut far).await, Some(to_device::Frame::Revoke(revoke)) if revoke.message_id == 9));
    says_something(&mut shard, conn);
    shard.remove(conn);
    assert_eq!(reported(&mut shard), before);

    // Told, and heard of later: that counts.
    let (conn, mut far) = begins(&mut shard).await;
    shard.tell_recalls();
    assert!(matches!(came(&mut far).await, Some(to_device::Frame::Revoke(_))));
    let later = shard.now() + told::LATER_MS;
    shard.context.clock.raise(later);
    says_something(&mut shard, conn);
    assert!(reported(&mut shard) >= later);
    shard.remove(conn);

    // Once is enough.
    let (conn, _far) = begins(&mut shard).await;
    assert!(!shard.tell_recalls());
    let connection = shard.connection(conn).expect("there");
    let Phase::Live(live) = &connection.phase else { panic!("a session") };
    assert!(live.seldom.told() == Told::Settled && !connection.flags.behind_on_recalls);
}

/// A session to which these were sent, each as (sequence, message), and none of which left its outbox.
async fn with_unsent(shard: &mut Shard, sent: &[(u64, u64)]) -> (ConnRef, TcpStream) {
    let (conn, far) = begins(shard).await;
    let (now, ack_deadline_ms) = (shard.now(), shard.context.config.ack_deadline_ms);
    let tally = shard.tally.clone();
    let connection = shard.connection(conn).expect("there");
    connection.flags.behind_on_recalls = false;
    connection.outbox.push(&tally, 0, now, b"some bytes of them");
    let Phase::Live(live) = &mut connection.phase else { panic!("a session") };
    for (seq, message) in sent {
        let batch = Arc::new(Batch::of_test(Seq(*seq), MessageId(*message), now));
        live.session.handle_sent(now, ack_deadline_ms, InList(batch));
    }
    (conn, far)
}

/// That message is taken back, as all sessions are told.
fn is_taken_back(shard: &mut Shard) {
    shard.recalls.began.clear();
    shard.recalls.told = Seq(0);
    shard.recalls.note();
    shard.tell_recalls();
}

fn is_live(shard: &mut Shard, conn: ConnRef) -> bool {
    let connection = shard.connection(conn).expect("there");
    matches!(connection.phase, Phase::Live(_)) && !connection.flags.broken
}

#[tokio::test]
async fn what_ended_unsent_and_is_taken_back_later_is_not_written_any_more() {
    for (seq, message, held, lives) in [
        (4, 9, true, false),
        // Another message; one of a batch that came after the message was taken back, when that was no longer known; and one that was written.
        (4, 8, true, true),
        (6, 9, true, true),
        (4, 9, false, true),
    ] {
        let (mut shard, _store) = shard();
        let (conn, _far) = with_unsent(&mut shard, &[(seq, message)]).await;
        shard.forget_entry(conn, Seq(seq), Failure::Replaced);
        assert!(is_live(&mut shard, conn), "it may come late");
        if !held {
            let connection = shard.connection(conn).expect("there");
            let waits = flush(connection, 1);
            let Phase::Live(live) = &connection.phase else { panic!("a session") };
            assert!(waits && live.seldom.get().is_none_or(|parts| parts.unsent.is_empty()));
        }
        is_taken_back(&mut shard);
        assert_eq!(is_live(&mut shard, conn), lives, "{message} at {seq}, {held}");
    }
}

#[tokio::test]
async fn what_is_taken_back_unsent_is_not_written_though_no_word_came_of_its_entry() {
    // Or it came again when it was no longer known that it had been taken back.
    for (seq, full, lives) in [(4, false, false), (4, true, false), (6, false, true)] {
        let (mut shard, _store) = shard();
        let (conn, _far) = with_unsent(&mut shard, &[(3, 8), (seq, 9)]).await;
        if full {
            let (now, tally) = (shard.now(), shard.tally.clone());
            shard.connection(conn).expect("there").outbox.push(
                &tally,
                0,
                now,
                &vec![0; limits::OUTBOX_BYTES],
            );
        }
        is_taken_back(&mut shard);
        assert_eq!(is_live(&mut shard, conn), lives, "{seq}, full: {full}");
    }
}

#[tokio::test]
async fn a_session_of_which_too_much_ended_unsent_ends() {
    let (mut shard, _store) = shard();
    let (conn, _far) = with_unsent(&mut shard, &[]).await;
    let (now, ack_deadline_ms) = (shard.now(), shard.context.config.ack_deadline_ms);
    for seq in 1..=limits::WINDOW as u64 + 1 {
        assert!(is_live(&mut shard, conn), "until {seq}");
        let Phase::Live(live) = &mut shard.connection(conn).expect("there").phase else {
            panic!("a session")
        };
        let batch = Arc::new(Batch::of_test(Seq(seq), MessageId(100 + seq), now));
        live.session.handle_sent(now, ack_deadline_ms, InList(batch));
        shard.forget_entry(conn, Seq(seq), Failure::Replaced);
    }
    assert!(!is_live(&mut shard, conn));
}

#[tokio::test]
async fn what_waits_behind_a_session_that_has_ended_is_not_written_once_something_is_taken_back() {
    let (mut shard, _store) = shard();
    let (conn, _far) = with_unsent(&mut shard, &[(4, 9)]).await;
    shard.fail(conn, DeviceError::Silent);
    let connection = shard.connection(conn).expect("there");
    assert!(matches!(connection.phase, Phase::Closing { .. }) && !connection.flags.broken, "it is told why");
    is_taken_back(&mut shard);
    assert!(shard.connection(conn).is_none_or(|connection| connection.flags.broken));
}
