//! An edge on one thread: a store and a shard as `serve` has them, with connections in memory. What each part of a delivery takes of the core is told
//! apart.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mooring::apps::Apps;
use mooring::binding::ChangeError;
use mooring::clock::Clock;
use mooring::config::{self, PendingBounds, Registration, RegistrationPolicy};
use mooring::credential::{Secret, issue};
use mooring::directory::Directory;
use mooring::ids::{DeviceKey, Seq, SessionRef, ShardId};
use mooring::presence::Presence;
use mooring::push::{Failure, NewBatch, Rates};
use mooring::shard::{DeviceContext, Gates, Handover, Loaded, Mailbox, Places, ShardFigures};
use mooring::sim::{Accepted, LocalShard, Sink};
use mooring::store::disk::real::RealDisk;
use mooring::store::embedded::{EmbeddedStore, Hands};
use mooring::store::options::StoreOptions;
use mooring::store::{Batch, Command, CommitSink, Confirm, Store};
use mooring::token::VerifyingKeys;
use mooring::wire::frame::put_device_frame;
use mooring::wire::pb::device as pb;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::common::{DIGEST_KEY, app, device_id, key};

const SECRET: [u8; 32] = [9; 32];
/// Connections that say Hello at a time.
const GROUP: usize = 4_096;
/// Sets of attributes that devices share.
const ATTRIBUTES: usize = 500;
/// Milliseconds without a message after which nothing of it is left in memory.
pub(crate) const QUIET_MS: u64 = 10_000;
/// Connections that become readable together.
const READY: usize = 1_024;
/// Frames that are the same but for a number of one byte or two may be longer by so much, and by a confirmation.
const BESIDE: u64 = 16;

/// Nanoseconds that this thread has had a core.
pub(crate) fn on_core() -> u64 {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    at.tv_sec.unsigned_abs() * 1_000_000_000 + at.tv_nsec.unsigned_abs()
}

/// Nanoseconds of a core, by what they went into.
#[derive(Clone, Copy, Default)]
pub(crate) struct Spent {
    /// The store accepts the batch: decides, writes, syncs.
    pub(crate) accept: u64,
    /// Its devices are looked up in the directory and handed over.
    pub(crate) hand_over: u64,
    /// The shard pulls and writes.
    pub(crate) write: u64,
    /// The shard is told of what came.
    pub(crate) wake: u64,
    /// They read, and the shard collects the acks.
    pub(crate) read: u64,
    /// The store makes the acks durable.
    pub(crate) settle: u64,
}

/// The hand-over, measured.
struct Measured {
    inner: Handover,
    nanos: Arc<AtomicU64>,
}

impl CommitSink for Measured {
    fn batch(&mut self, batch: &Arc<Batch>, devices: &[DeviceKey]) {
        let began = on_core();
        self.inner.batch(batch, devices);
        self.nanos.fetch_add(on_core() - began, Ordering::Relaxed);
    }
    fn confirmed(&mut self, shard: ShardId, confirms: Vec<Confirm>) {
        self.inner.confirmed(shard, confirms);
    }
    fn seen(&mut self, session: SessionRef) {
        self.inner.seen(session);
    }
    fn changed(&mut self, session: SessionRef, result: Result<(), ChangeError>) {
        self.inner.changed(session, result);
    }
    fn ended(&mut self, device: &DeviceKey, batch: Seq, reason: Failure) {
        self.inner.ended(device, batch, reason);
    }
}

/// What a device has at its end.
pub(crate) struct Device {
    pub(crate) key: DeviceKey,
    sink: Sink,
    connection: Cell<Option<Accepted>>,
    acks: Cell<u32>,
}

/// See the module.
pub(crate) struct Edge {
    store: Arc<EmbeddedStore<RealDisk>>,
    hands: Hands<RealDisk>,
    context: Arc<DeviceContext>,
    shard: LocalShard,
    pub(crate) devices: Vec<Device>,
    connected: usize,
    handed_over: Arc<AtomicU64>,
    message: u64,
    pub(crate) spent: Spent,
}

fn config_app() -> config::App {
    config::App {
        key: app(),
        app_id: app().to_string(),
        packages: Vec::new(),
        secret_file: "secret".into(),
        secret: Secret::from_bytes(SECRET),
        epoch: 1,
        registration: Registration {
            policy: RegistrationPolicy::Open,
            keys: VerifyingKeys::default(),
            token_max_ms: 0,
            per_second: 1,
        },
        stream: "main".into(),
        rates: Rates::default(),
        pending: PendingBounds { messages: None, bytes: None, drop_oldest: false },
    }
}

impl Edge {
    /// Within a `LocalSet`. So many devices, none of them connected.
    pub(crate) fn start(directory: &Path, devices: usize) -> Self {
        let (disk, _) = RealDisk::open(directory, None).expect("opens");
        let options = StoreOptions { digest_key: DIGEST_KEY, ..StoreOptions::default() };
        let clock = Arc::new(Clock::new(0));
        let sessions = Arc::new(Directory::new());
        let mailboxes: Arc<[Mailbox]> = [Mailbox::default()].into();
        let handed_over = Arc::new(AtomicU64::new(0));
        let inner = Handover::new(sessions.clone(), mailboxes.clone(), clock.clone());
        let sink = Measured { inner, nanos: handed_over.clone() };
        let connected = sessions.clone();
        let (store, hands) = EmbeddedStore::open_by_hand(
            disk,
            options.clone(),
            clock.clone(),
            Box::new(sink),
            Arc::new(Loaded::new(mailboxes.clone())),
            Box::new(move |device| connected.find(device).is_some()),
        )
        .expect("opens");
        let apps = [config_app()];
        let shared: Arc<dyn Store> = store.clone();
        let context = Arc::new(DeviceContext {
            config: config::Device {
                max_handshakes: GROUP + 1,
                // So that a few seconds of quiet are as good as a minute.
                ack_deadline_ms: QUIET_MS,
                ..config::Device::default()
            },
            apps: apps.iter().map(|app| (app.key.clone(), app.clone())).collect(),
            doors: Arc::new(Apps::new(&apps, shared.clone(), clock.now())),
            gates: Gates::new(&apps),
            digest_key: DIGEST_KEY,
            directory: sessions.clone(),
            store: shared,
            presence: Arc::new(Presence::new(sessions, 1, clock.now(), Box::new(|_, _| ()))),
            clock,
            budget: options.budget,
            tls: None,
            quic: None,
            mailboxes,
            places: Places::default(),
            figures: [ShardFigures::default()].into(),
        });
        let device = |n| Device {
            key: key(n as u64),
            sink: Sink::default(),
            connection: Cell::new(None),
            acks: Cell::new(0),
        };
        Self {
            store,
            hands,
            shard: LocalShard::start(ShardId(0), context.clone()),
            context,
            devices: (0..devices).map(device).collect(),
            connected: 0,
            handed_over,
            message: 0,
            spent: Spent::default(),
        }
    }

    fn store_turn(&mut self) {
        self.hands.half_turn().expect("the disk works");
    }

    /// Connects devices until there are so many, and waits until all are welcome.
    pub(crate) async fn connect(&mut self, upto: usize) {
        while self.connected < upto {
            let group = self.connected..upto.min(self.connected + GROUP);
            for n in group.clone() {
                let device = &self.devices[n];
                device.sink.send(&hello(n));
                let address = Ipv4Addr::from(0x7f00_0001 + n as u32);
                let peer = SocketAddr::from((address, 40_000 + (n % 1_000) as u16));
                device.connection.set(Some(self.shard.accept(&device.sink, peer)));
            }
            for n in group.clone() {
                while self.devices[n].sink.take_written() == 0 {
                    yield_now().await;
                    self.store_turn();
                }
            }
            self.connected = group.end;
        }
    }

    /// So many milliseconds without a message.
    pub(crate) async fn rest(&mut self, ms: u64) {
        let until = self.context.clock.micros() + ms * 1_000;
        while self.context.clock.micros() < until {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            self.store_turn();
        }
    }

    /// One batch to these devices, from its acceptance until their acks are durable.
    pub(crate) async fn deliver(&mut self, mut batch: Box<NewBatch>, targets: &[u32]) {
        self.message += 1;
        let message = self.message;
        let (length, written) = (batch.body.len() as u64, self.deliveries());
        batch.message = mooring::ids::MessageId(message);
        batch.created_at = self.context.clock.now();
        batch.expires_at = batch.created_at + 3_600_000;
        batch.targets = targets.iter().map(|&n| self.devices[n as usize].key).collect();
        let (reply, mut answer) = oneshot::channel();
        self.store.submit(Command::Deliver { batch, reply }).expect("room");
        let (began, handed_over) = (on_core(), self.handed_over.load(Ordering::Relaxed));
        while answer.try_recv().is_err() {
            self.store_turn();
        }
        let (accepted, handed_over) = (on_core(), self.handed_over.load(Ordering::Relaxed) - handed_over);
        while self.deliveries() < written + targets.len() as u64 {
            yield_now().await;
        }
        let delivered = on_core();
        let frames = self.answer(message, length, targets);
        // As many as the runtime hears of at a time where sockets carry the bytes.
        for (targets, frames) in targets.chunks(READY).zip(frames.chunks(READY)) {
            let began = on_core();
            for (&n, frame) in targets.iter().zip(frames) {
                let device = &self.devices[n as usize];
                device.sink.send(frame);
                self.shard.tell(device.connection.get().expect("connected"));
            }
            let woken = on_core();
            for &n in targets {
                while !self.devices[n as usize].sink.is_read() {
                    yield_now().await;
                }
            }
            self.spent.wake += woken - began;
            self.spent.read += on_core() - woken;
        }
        let read = on_core();
        // The turn that hands the last acks to the store.
        for _ in 0..4 {
            yield_now().await;
        }
        self.spent.read += on_core() - read;
        let read = on_core();
        let (reply, mut answer) = oneshot::channel();
        self.store.submit(Command::Flush { checkpoint: false, reply }).expect("room");
        while answer.try_recv().is_err() {
            self.store_turn();
        }
        let spent = &mut self.spent;
        spent.accept += accepted - began - handed_over;
        spent.hand_over += handed_over;
        spent.write += delivered - accepted;
        spent.settle += on_core() - read;
        let totals = self.hands.totals();
        assert_eq!(totals.pending, 0, "all have arrived");
    }

    fn deliveries(&self) -> u64 {
        self.context.figures[0].deliveries.load(Ordering::Relaxed)
    }

    /// What the devices say, once each got the message.
    fn answer(&self, message: u64, length: u64, targets: &[u32]) -> Vec<Rc<[u8]>> {
        let time = self.context.clock.now();
        // Most have acknowledged the same number before.
        let mut latest: Option<(u32, Rc<[u8]>)> = None;
        let mut frame = |number: u32| {
            if latest.as_ref().is_none_or(|(of, _)| *of != number) {
                latest = Some((number, ack(number.into(), message, time)));
            }
            latest.as_ref().expect("just made").1.clone()
        };
        let answers = targets.iter().map(|&n| {
            let device = &self.devices[n as usize];
            let written = device.sink.take_written();
            assert!((length..length + BESIDE).contains(&written), "{written} bytes of {length}");
            device.acks.set(device.acks.get() + 1);
            frame(device.acks.get())
        });
        answers.collect()
    }
}

fn put(frame: pb::to_edge::Frame) -> Rc<[u8]> {
    let mut bytes = Vec::new();
    put_device_frame(&mut bytes, &pb::ToEdge { frame: Some(frame) });
    bytes.into()
}

fn hello(n: usize) -> Rc<[u8]> {
    let device_id = device_id(n as u64);
    let credential = issue(&Secret::from_bytes(SECRET), &app(), &device_id, 1);
    let set = n % ATTRIBUTES;
    let attributes = pb::Attributes {
        package: "org.example.app".into(),
        app_version: format!("1.{set}"),
        sdk_version: "3.1.0".into(),
        brand: "Example".into(),
        model: format!("Model {}", set % 50),
        os: "android".into(),
        os_version: "14".into(),
        network_type: "wifi".into(),
        ..pb::Attributes::default()
    };
    put(pb::to_edge::Frame::Hello(pb::Hello {
        app_key: app().as_str().into(),
        identity: Some(pb::hello::Identity::Login(pb::Login { device_id, credential })),
        attributes: Some(attributes),
        ..pb::Hello::default()
    }))
}

fn ack(number: u64, message: u64, time: u64) -> Rc<[u8]> {
    let event =
        pb::Event { message_id: message, r#type: pb::EventType::Arrive.into(), time_milliseconds: time };
    put(pb::to_edge::Frame::Ack(pb::Ack { number, events: vec![event] }))
}
