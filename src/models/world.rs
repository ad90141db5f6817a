//! What a model of the edge is made of: its threads, a router that sends batches, and a power loss that may come at any moment.

use std::sync::{Arc, Mutex, OnceLock};

use prost::Message;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};
use tokio::sync::oneshot;

use super::phone::Phone;
use super::set_time;
use crate::config;
use crate::ids::{AppKey, BatchId, DeviceKey, DigestKey, Generation, MessageId, ShardId};
use crate::push::{BatchPart, Millis, NewBatch, OfflinePolicy, Priority, Reached};
use crate::shard::DeviceContext;
use crate::sim::{Plan, START, SimShard, SimTime, Wired};
use crate::store::disk::sim::{Loss, SimDisk};
use crate::store::embedded::EmbeddedStore;
use crate::store::options::StoreOptions;
use crate::store::tables::TableKind;
use crate::store::{Command, Store};
use crate::sync::step;

pub(super) const DEVICE: &str = "device";
const DIGEST_KEY: DigestKey = DigestKey([7; 32]);
const HOUR_MS: Millis = 3_600_000;

pub(super) fn app() -> AppKey {
    AppKey::parse("app").expect("valid")
}

pub(super) fn device() -> DeviceKey {
    DeviceKey::of(&DIGEST_KEY, &app(), DEVICE)
}

pub(super) fn plan(shards: usize) -> Plan {
    let store = StoreOptions {
        parts: 2,
        segment_bytes: 16 * 1024,
        reserve_segments: 1,
        checkpoint_bytes: u64::MAX,
        // Bodies have to be read back as soon as there is a newer one.
        body_cache_bytes: 1,
        tables: TableKind::Log,
        forget_after_ms: 0,
        digest_key: DIGEST_KEY,
        ..StoreOptions::default()
    };
    Plan {
        shards,
        apps: vec![app()],
        epoch: 1,
        registrations_per_s: 1,
        routers: Vec::new(),
        device: config::Device::default(),
        store,
        part_targets: 1,
        events_a_read: 1,
    }
}

pub(super) fn time() -> Arc<SimTime> {
    let time = SimTime::default();
    time.wall.store(START, std::sync::atomic::Ordering::Relaxed);
    Arc::new(time)
}

/// A disk of an edge that knows the device. Each schedule has a copy.
pub(super) fn disk() -> SimDisk {
    static DISK: OnceLock<SimDisk> = OnceLock::new();
    let made = DISK.get_or_init(|| {
        // On a thread that knows nothing of models.
        let made = std::thread::spawn(|| {
            let disk = SimDisk::new();
            let Wired { context, mut hands, clock, .. } =
                Wired::new(&disk, &time(), &plan(1)).expect("an empty disk opens");
            let mut shard = SimShard::new(ShardId(0), context);
            let mut phone = Phone::connect(&mut shard, clock.now());
            while !phone.is_welcome {
                settle(&mut shard, &mut phone, clock.now());
                hands.half_turn().expect("the disk works");
            }
            disk
        });
        made.join().expect("a device registers")
    });
    made.fork()
}

/// See the module.
pub(super) struct World {
    pub(super) context: Arc<DeviceContext>,
    pub(super) store: Arc<EmbeddedStore<SimDisk>>,
    disk: SimDisk,
    threads: Vec<JoinHandle<()>>,
    pub(super) observed: Arc<Mutex<Observed>>,
}

/// What peers know.
#[derive(Clone, Default, Debug)]
pub(super) struct Observed {
    /// Messages that were accepted, as the router was told.
    pub(super) accepted: Vec<u64>,
    /// Messages that the device got.
    pub(super) got: Vec<u64>,
    /// Those that it acknowledged.
    pub(super) said: Vec<u64>,
    /// Those of which it was confirmed that.
    pub(super) confirmed: Vec<u64>,
}

/// What was durable at a moment, and what peers knew then.
pub(super) struct Lost {
    disk: SimDisk,
    observed: Observed,
}

impl World {
    /// The store's threads run; shards don't yet.
    pub(super) fn new(shards: usize) -> Self {
        let (disk, time) = (disk(), time());
        set_time(&time);
        let Wired { context, hands, store, .. } = Wired::new(&disk, &time, &plan(shards)).expect("it opens");
        let threads = hands.into_threads().into_iter().map(thread::spawn).collect();
        Self { context, store, disk, threads, observed: Arc::default() }
    }

    /// A router has these messages accepted, one after the other.
    pub(super) fn router(&self, messages: &[u64]) -> JoinHandle<()> {
        let (store, context, observed) = (self.store.clone(), self.context.clone(), self.observed.clone());
        let messages = messages.to_vec();
        thread::spawn(move || {
            for message in messages {
                let (reply, answer) = oneshot::channel();
                let batch = Box::new(batch(message, context.clock.now()));
                store.submit(Command::Deliver { batch, reply }).expect("there is room");
                let accepted = block_on(answer).expect("the store runs").expect("it is taken");
                assert_eq!(accepted.accepted, 1);
                assert!(*store.head().borrow() >= accepted.seq, "who has an answer finds an older head");
                observed.lock().expect("whole").accepted.push(message);
            }
        })
    }

    /// A shard that does what it has to.
    pub(super) fn shard(&self, id: u16, run: impl FnOnce(&mut Running) + Send + 'static) -> JoinHandle<()> {
        let (context, observed) = (self.context.clone(), self.observed.clone());
        thread::spawn(move || {
            let id = ShardId(id);
            let mut shard = SimShard::new(id, context.clone());
            let phone = Phone::connect(&mut shard, context.clock.now());
            run(&mut Running { id, shard, phone, context, observed });
        })
    }

    /// The power goes, at any moment: what was durable then is kept for later.
    pub(super) fn power_loss(&self) -> JoinHandle<Lost> {
        let (disk, observed) = (self.disk.clone(), self.observed.clone());
        thread::spawn(move || {
            step();
            let observed = observed.lock().expect("whole").clone();
            Lost { disk: disk.fork(), observed }
        })
    }

    /// Ends the store's threads.
    pub(super) fn close(self) {
        self.store.close();
        for thread in self.threads {
            thread.join().expect("it ends");
        }
    }
}

impl Lost {
    /// What a start after it finds agrees with what peers were told before.
    pub(super) fn check(self) {
        let Self { disk, observed } = self;
        disk.crash_with(Loss::All, &mut SmallRng::seed_from_u64(1));
        let opened = Wired::new(&disk, &time(), &plan(1)).expect("it recovers");
        let mut pulled = Vec::new();
        opened.store.pull(&device(), Reached::default(), usize::MAX, START, &mut pulled);
        let pending: Vec<u64> = pulled.iter().map(|entry| entry.batch.message.0).collect();
        for message in &observed.accepted {
            let is_kept = pending.contains(message) || observed.said.contains(message);
            assert!(is_kept, "{message} was accepted, and is lost: {observed:?}, pending {pending:?}");
        }
        for message in &observed.got {
            let is_kept = pending.contains(message) || observed.said.contains(message);
            assert!(
                is_kept,
                "{message} was delivered before it was durable: {observed:?}, pending {pending:?}"
            );
        }
        for message in &observed.confirmed {
            assert!(!pending.contains(message), "{message} was confirmed, and is pending: {observed:?}");
        }
    }
}

/// A shard on its thread, with a device.
pub(super) struct Running {
    pub(super) id: ShardId,
    pub(super) shard: SimShard,
    pub(super) phone: Phone,
    pub(super) context: Arc<DeviceContext>,
    observed: Arc<Mutex<Observed>>,
}

impl Running {
    /// Turns, and sleeps until there is mail, until this is so.
    pub(super) fn until(&mut self, is_so: impl Fn(&Phone) -> bool) {
        loop {
            self.settle();
            if is_so(&self.phone) {
                return;
            }
            let mailbox = &self.context.mailboxes[usize::from(self.id.0)];
            block_on(mailbox.notified());
            mailbox.hush();
            self.shard.turn(false);
        }
    }

    /// The session, while it is welcome.
    pub(super) fn generation(&self) -> Option<Generation> {
        self.shard.live().first().map(|live| live.session.generation)
    }

    /// The device hangs up.
    pub(super) fn hang_up(&mut self) {
        self.phone.pipe.end();
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let now = self.context.clock.now();
            let mut busy = turns(&mut self.shard);
            busy |= self.phone.read(now);
            self.observe();
            step();
            busy |= self.phone.say(now);
            self.observe();
            if !busy {
                return;
            }
        }
    }

    fn observe(&self) {
        let mut observed = self.observed.lock().expect("whole");
        observed.got.clone_from(&self.phone.got);
        observed.said.clone_from(&self.phone.said);
        observed.confirmed.clone_from(&self.phone.confirmed);
    }
}

fn settle(shard: &mut SimShard, phone: &mut Phone, now: Millis) {
    while turns(shard) | phone.read(now) | phone.say(now) {}
}

/// What the shard has to do at once. Whether that was anything.
fn turns(shard: &mut SimShard) -> bool {
    let mut busy = false;
    for connection in shard.woken() {
        shard.poll(connection);
        busy = true;
    }
    if shard.is_due() {
        shard.turn(false);
        busy = true;
    }
    busy
}

fn batch(message: u64, now: Millis) -> NewBatch {
    let push =
        crate::wire::pb::device::Push { message_id: message, body: "text".into(), ..Default::default() };
    NewBatch {
        id: BatchId::parse(&format!("batch-{message}")).expect("valid"),
        app: app(),
        message: MessageId(message),
        body: push.encode_to_vec().into(),
        body_digest: [message as u8; 16],
        digest: [message as u8; 16],
        targets: vec![device()],
        part: BatchPart::default(),
        offline_policy: OfflinePolicy::Store,
        created_at: now,
        expires_at: now + HOUR_MS,
        online_only: false,
        job_key: "".into(),
        priority: Priority::Normal,
        collapse_key: "".into(),
        accounts: Vec::new(),
    }
}
