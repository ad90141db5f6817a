//! Disks that are full, and disks that fail.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mooring::config::{Config, Overrides};
use mooring::server::{self, ServeError};
use mooring::store::disk::real::{RealDisk, RealFile};
use mooring::store::disk::{Disk, DiskFile, SyncPoint};
use mooring::telemetry;
use mooring::wire::pb::device::{Attributes, ErrorCode, EventType, Hello, to_device};
use mooring::wire::pb::router::{DeliverBatch, RejectCode};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::device::{Device, hello_of};
use super::edge::{Edge, LOOK, NEVER, Way};
use super::router::{End, Router, batch};

/// What is wrong with a disk.
#[derive(Debug, Default)]
struct Trouble {
    /// No room for new files.
    full: AtomicBool,
    /// Commits can't be synced.
    failing: AtomicBool,
}

/// A real directory with troubles.
#[derive(Debug)]
struct Troubled {
    real: Arc<RealDisk>,
    trouble: Arc<Trouble>,
}

#[derive(Debug)]
struct TroubledFile {
    real: RealFile,
    trouble: Arc<Trouble>,
}

impl Disk for Troubled {
    type File = TroubledFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.real.list()
    }

    fn create(&self, name: &str, preallocate: u64) -> io::Result<TroubledFile> {
        if self.trouble.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(TroubledFile { real: self.real.create(name, preallocate)?, trouble: self.trouble.clone() })
    }

    fn open(&self, name: &str) -> io::Result<TroubledFile> {
        Ok(TroubledFile { real: self.real.open(name)?, trouble: self.trouble.clone() })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.real.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn sync_dir(&self, point: SyncPoint) -> io::Result<()> {
        self.real.sync_dir(point)
    }
}

impl DiskFile for TroubledFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.real.write_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.real.read_at(buffer, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.real.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.real.set_len(len)
    }

    fn sync(&self, point: SyncPoint) -> io::Result<()> {
        if point == SyncPoint::GroupCommit && self.trouble.failing.load(Ordering::SeqCst) {
            return Err(io::Error::other("the medium is worn out"));
        }
        self.real.sync(point)
    }
}

/// An edge in this process, on a disk with troubles.
struct Inside {
    edge: Edge,
    trouble: Arc<Trouble>,
    served: JoinHandle<Result<(), ServeError>>,
}

impl Inside {
    async fn serve(mut edge: Edge) -> Self {
        let file = edge.dir.path().join("edge.toml");
        let config = Config::load(Some(&file), &Overrides::default()).expect("a configuration");
        let (real, format) = RealDisk::open(&config.data_dir, None).expect("a data directory");
        let trouble = Arc::new(Trouble::default());
        let disk = Arc::new(Troubled { real, trouble: trouble.clone() });
        let (ready, ports) = oneshot::channel();
        let ready = move |ports| ready.send(ports).expect("somebody waits");
        let never = std::future::pending();
        let serving = server::serve(config, disk, format, telemetry::install(), ready, never);
        let served = tokio::spawn(serving);
        edge.ports = ports.await.expect("it serves");
        Self { edge, trouble, served }
    }
}

/// A message that takes much room in the journal.
fn large(message_id: u64, device_ids: &[&str]) -> DeliverBatch {
    let mut batch = batch(message_id, device_ids);
    batch.body.as_mut().expect("a body").body = "x".repeat(3_900);
    batch
}

/// Sends large messages until one is rejected; the first message and the number of those that were accepted.
async fn fill(router: &mut Router, devices: &[&str]) -> u64 {
    const AT_ONCE: u64 = 50;
    for first in (1..20_000).step_by(AT_ONCE as usize) {
        for message in first..first + AT_ONCE {
            // One device has a bounded list: they take turns.
            let device = devices[message as usize % devices.len()];
            router.send(large(message, &[device])).await;
        }
        for message in first..first + AT_ONCE {
            if let Err(rejected) = router.answer(&format!("b-{message}")).await {
                assert_eq!(rejected.code(), RejectCode::Unavailable, "{rejected:?}");
                assert!(rejected.retry_after_milliseconds > 0);
                return message - 1;
            }
        }
    }
    panic!("it never becomes full");
}

/// Takes everything that comes until this message has, with many events in one Ack.
async fn drain(device: &mut Device, last: u64) {
    loop {
        let message = device.push().await.message_id;
        let number = device.say(&[(message, EventType::Arrive)]).await;
        if message == last {
            return device.is_confirmed(number).await;
        }
    }
}

/// A device takes everything that waits for it. Its Acks find room, also while a full disk makes some by copying.
async fn drained(edge: &Edge, way: Way, id: &str) -> Device {
    let mut device = edge.device(way, id).await;
    assert!(device.takes_all().await, "an Ack of {id} found no room");
    device
}

/// Repeats a batch until it is accepted.
async fn accepted_at_last(router: &mut Router, again: &DeliverBatch) {
    let trying = async {
        while let Err(rejected) = router.deliver(again.clone()).await {
            assert_eq!(rejected.code(), RejectCode::Unavailable, "{rejected:?}");
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(NEVER, trying).await.expect("it recovers by itself");
}

#[tokio::test]
async fn a_full_disk_rejects_batches_and_acks_go_on_and_it_recovers_by_itself() {
    let edge =
        Edge::start_with(&[("store.max_bytes", "\"24MiB\""), ("store.checkpoint_bytes", "\"1MiB\"")]).await;
    edge.register(&["a", "b", "c", "d", "e", "f", "g", "h"]).await;
    let mut router = edge.router().await;
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let accepted = fill(&mut router, &ids).await;
    edge.metric_comes_to("mooring_store_room", |room| room == 0.0).await;
    edge.counted("mooring_batches_total{result=\"unavailable\"}", 1.0).await;
    // Sessions come and go, deliveries and acks go on.
    for (n, id) in ids.iter().enumerate().take(7) {
        let mut device = drained(&edge, Way::BOTH[n % 2], id).await;
        device.has_nothing().await;
        device.leave(&edge, id).await;
    }
    edge.totals().await;
    let again = large(100_000, &["a"]);
    accepted_at_last(&mut router, &again).await;
    edge.device(Way::Tls, "a").await.takes(100_000).await;
    assert_eq!(router.end("b-100000", 0).await, End::Arrived);
    edge.metric_comes_to("mooring_store_room", |room| room > 0.0).await;
    drained(&edge, Way::Tls, "h").await;
    for message in 1..=accepted {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["arrived"], &totals["pending"]), (&(accepted + 1).into(), &0.into()));
}

#[tokio::test]
async fn a_disk_that_was_filled_by_others_is_used_again_when_there_is_room() {
    let inside = Inside::serve(Edge::prepare(&[])).await;
    let edge = &inside.edge;
    edge.register(&["a", "b", "c", "d"]).await;
    let mut router = edge.router().await;
    inside.trouble.full.store(true, Ordering::SeqCst);
    fill(&mut router, &["a", "b", "c", "d"]).await;
    let mut device = edge.device(Way::Tls, "a").await;
    for message in [4, 8, 12] {
        device.takes(message).await;
    }
    device.leave(edge, "a").await;
    // Nothing happens but that somebody makes room.
    inside.trouble.full.store(false, Ordering::SeqCst);
    accepted_at_last(&mut router, &batch(100_000, &["a"])).await;
    edge.totals().await;
    inside.served.abort();
}

#[tokio::test]
async fn a_failed_sync_ends_the_process_and_the_next_start_recovers() {
    let inside = Inside::serve(Edge::prepare(&[])).await;
    let mut edge = inside.edge;
    edge.register(&["d"]).await;
    let mut router = edge.router().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.push(1, &["d"]).await;
    device.takes(1).await;
    router.push(2, &["d"]).await;
    assert_eq!(device.push().await.message_id, 2);
    inside.trouble.failing.store(true, Ordering::SeqCst);
    // Neither is told that it is durable.
    let unanswered = batch(3, &["d"]);
    router.send(unanswered.clone()).await;
    device.say(&[(2, EventType::Arrive)]).await;
    let ended = tokio::time::timeout(NEVER, inside.served).await.expect("it ends").expect("it ran");
    let error = ended.expect_err("a failure").to_string();
    assert!(error.contains("worn out") && error.contains("the next start recovers"), "{error}");
    assert_eq!(device.confirmed, 1);
    assert!(!router.answers.contains_key("b-3"));
    drop((router, device));

    // A process would be gone by now, and its lock with it; this one's threads take a moment.
    let released = async {
        while RealDisk::open(&edge.data_dir(), None).is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(NEVER, released).await.expect("the data directory is free");
    edge.run().await;
    let mut router = edge.router_from_the_oldest().await;
    let mut device = edge.device(Way::Tls, "d").await;
    router.accepts(unanswered, 1).await;
    // What was not acknowledged may have been durable all the same; what was accepted is there.
    let mut left = vec![2, 3];
    while left.contains(&3) {
        let push = device.push().await;
        device.arrive(push.message_id).await;
        left.retain(|message| *message != push.message_id);
    }
    device.arrive(2).await;
    for message in 1..=3 {
        assert_eq!(router.end(&format!("b-{message}"), 0).await, End::Arrived);
    }
    let totals = edge.totals().await;
    assert_eq!((&totals["accepted"], &totals["arrived"]), (&3.into(), &3.into()));
}

#[tokio::test]
async fn an_ack_for_which_there_is_no_room_is_covered_by_no_confirmation() {
    let inside = Inside::serve(Edge::prepare(&[])).await;
    let edge = &inside.edge;
    let ids = ["a", "c", "d", "b"];
    // Receipts carry the attributes: with long ones little of the reserve is left soon.
    let hello = |id: &str| {
        let text = "x".repeat(250);
        let attributes = Attributes {
            brand: text.clone(),
            model: text.clone(),
            os: text.clone(),
            os_version: text.clone(),
            network_type: text.clone(),
            isp: text.clone(),
            utdid: text,
            ..Attributes::default()
        };
        Hello { attributes: Some(attributes), ..hello_of(edge, id) }
    };
    for id in ids {
        edge.device_saying(Way::Plain, hello(id)).await.leave(edge, id).await;
    }
    let mut router = edge.router().await;
    inside.trouble.full.store(true, Ordering::SeqCst);
    let accepted = fill(&mut router, &ids).await;
    // Half of the reserve is for acks: what one device acknowledges uses most of it.
    let newest = (1..=accepted).rev().find(|m| m % 4 == 0).expect("some");
    drain(&mut edge.device_saying(Way::Tls, hello("a")).await, newest).await;
    let mut device = edge.device_saying(Way::Tls, hello("b")).await;
    let unkept = loop {
        let message = device.push().await.message_id;
        // An Ack that needs much room, and a small one behind it.
        let mut events = vec![(message, EventType::Arrive)];
        events.extend((0..255).map(|n| (1_000_000 + n, EventType::Arrive)));
        device.say(&events).await;
        let number = device.say(&[(2_000_000, EventType::Arrive)]).await;
        device.ping().await;
        while device.confirmed < number {
            match device.next().await {
                to_device::Frame::AckConfirm(confirm) => device.confirmed = confirm.number,
                to_device::Frame::Pong(_) => {}
                to_device::Frame::Push(push) => device.keep(push),
                to_device::Frame::Error(error) => {
                    assert_eq!(error.code(), ErrorCode::Unavailable);
                    break;
                }
                other => panic!("{other:?} came"),
            }
        }
        if device.confirmed < number {
            break message;
        }
        let on_device = edge.ask(&format!("/v1/message/demo/{message}?device=b")).await;
        assert_eq!(on_device["on_device"]["arrived"], true, "it was confirmed: {on_device}");
    };
    assert!(device.confirmed < device.acks - 1, "the Ack that was dropped isn't confirmed");
    inside.trouble.full.store(false, Ordering::SeqCst);
    accepted_at_last(&mut router, &batch(100_000, &["b"])).await;
    // The device says it again: nothing is lost.
    let mut device = edge.device_saying(Way::Tls, hello("b")).await;
    assert_eq!(device.push().await.message_id, unkept);
    device.arrive(unkept).await;
    drain(&mut device, 100_000).await;
    edge.totals().await;
    inside.served.abort();
}

#[tokio::test]
async fn an_edge_whose_log_has_no_room_serves() {
    let mut edge = Edge::prepare(&[]);
    std::os::unix::fs::symlink("/dev/full", edge.data_dir().with_file_name("log")).expect("a link");
    edge.run().await;
    let mut device = edge.device(Way::Tls, "d").await;
    edge.router().await.push(1, &["d"]).await;
    device.takes(1).await;
    // It has said something by now, and on leaving it says more.
    edge.terminate();
    assert_eq!(edge.ended().await.code(), Some(0));
}
