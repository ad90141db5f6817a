//! A router of one edge: it makes load, keeps what it is told, vanishes and comes back.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooring::client::router::{Keeper, Options, Router};
use mooring::client::{Backoff, Endpoint};
use mooring::clock::Clock;
use mooring::ids::{AppKey, DigestKey};
use mooring::wire::pb::device::{Kind, Priority, Push};
use mooring::wire::pb::router::{
    BatchAccepted, BatchRejected, DeliverBatch, OfflinePolicy, PushSource, Target,
};
use mooring::wire::router::told::StreamEvents;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::outages::Outages;
use super::phones::device_id;
use super::router_log::{Kept, RouterLog};

/// Milliseconds.
type Millis = u64;

/// Batches without an answer; beyond, no new ones are made.
const UNANSWERED: usize = 128;
/// Targets of a batch.
pub(super) const TARGETS: std::ops::RangeInclusive<usize> = 1..=20;
/// Their mean, tenths.
const MEAN_TARGETS_TENTHS: u64 = 105;
/// Seconds that a message is kept which must arrive.
const LONG_SECONDS: u32 = 7_200;
/// Milliseconds without a link after which a router gives up: longer than any outage.
const PATIENCE_MS: Millis = 300_000;
/// Milliseconds between two looks at whether a deaf router may go on.
const DEAF_STEP_MS: u64 = 20;
/// Orders that wait.
const ORDERS: usize = 8;

/// What happens to a router.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// It is gone, and another one takes its place after so long.
    Vanish(Millis),
    /// It doesn't read for so long.
    Deaf(Millis),
}

/// Who a router is.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) endpoint: Endpoint,
    pub(super) app: AppKey,
    pub(super) stream: String,
    /// Numbers of the devices that are the app's.
    pub(super) devices: Vec<u32>,
    /// Targets a second.
    pub(super) rate: u64,
    pub(super) seed: u64,
    /// The first message id.
    pub(super) first: u64,
}

/// A router.
pub(super) struct Upstream {
    pub(super) app: AppKey,
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    loading: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// What lives on when a router vanishes.
struct Shared {
    log: Mutex<RouterLog>,
    /// When it was not there, or did not read.
    away: Mutex<Outages>,
    /// Messages to be taken back, without an answer yet.
    revokes: Mutex<HashSet<u64>>,
    deaf_until: AtomicU64,
    clock: Arc<Clock>,
    /// Routers that ended by themselves: why.
    ended: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstream {
    /// Starts it, with its load once [`Self::load`] is called.
    pub(super) fn start(identity: Identity, clock: &Arc<Clock>) -> Self {
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            away: Mutex::default(),
            revokes: Mutex::default(),
            deaf_until: AtomicU64::new(0),
            clock: Arc::clone(clock),
            ended: Mutex::default(),
        });
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (loading, load) = watch::channel(false);
        let app = identity.app.clone();
        let life = Life {
            router: start(&identity, &shared, 0),
            load: Load { rng: SmallRng::seed_from_u64(identity.seed), made: 0 },
            identity,
            shared: Arc::clone(&shared),
            lives: 1,
        };
        Self { app, shared, orders, loading, task: tokio::spawn(life.run(ordered, load)) }
    }

    /// Begins, or ends, the load.
    pub(super) fn load(&self, on: bool) {
        self.loading.send_replace(on);
    }

    /// Orders something, unless too much is ordered already.
    pub(super) fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }

    /// Targets and revokes without an answer or an end.
    pub(super) fn open(&self) -> usize {
        lock(&self.shared.log).open() + lock(&self.shared.revokes).len()
    }

    /// Clicks and cleans that it was told of.
    pub(super) fn reactions(&self) -> usize {
        lock(&self.shared.log).reactions()
    }

    /// How often a router ended by itself, and why.
    pub(super) fn ended(&self) -> Vec<String> {
        lock(&self.shared.ended).clone()
    }

    /// Ends it: what it was told, and when it was not there.
    pub(super) async fn end(self) -> (RouterLog, Outages) {
        drop(self.orders);
        if let Err(error) = self.task.await {
            std::panic::resume_unwind(error.into_panic());
        }
        (std::mem::take(&mut *lock(&self.shared.log)), lock(&self.shared.away).clone())
    }
}

fn start(identity: &Identity, shared: &Arc<Shared>, life: u64) -> Arc<Router> {
    let options = Options {
        endpoint: identity.endpoint.clone(),
        name: format!("chaos, life {life}"),
        streams: vec![identity.stream.clone()],
        backoff: Backoff::fast(),
        patience: PATIENCE_MS,
        only: None,
        seed: identity.seed ^ life,
    };
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&identity.seed.to_le_bytes());
    let keeper = Box::new(Told(Arc::clone(shared)));
    Arc::new(Router::start_keeping(options, Arc::clone(&shared.clock), DigestKey(digest), keeper))
}

struct Told(Arc<Shared>);

impl Keeper for Told {
    fn events(&mut self, events: &StreamEvents<'_>) {
        // A router that stands still: its thread is its own meanwhile.
        let until = self.0.deaf_until.load(Ordering::Acquire);
        while self.0.clock.now() < until {
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(DEAF_STEP_MS)));
        }
        lock(&self.0.log).events(events, self.0.clock.now());
    }

    fn accepted(&mut self, answer: &BatchAccepted) {
        lock(&self.0.log).accepted(answer);
    }

    fn rejected(&mut self, answer: &BatchRejected) {
        lock(&self.0.log).rejected(answer);
    }
}

/// The routers that follow each other under one name.
struct Life {
    identity: Identity,
    shared: Arc<Shared>,
    router: Arc<Router>,
    load: Load,
    lives: u64,
}

impl Life {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, loading: watch::Receiver<bool>) {
        let every = Duration::from_micros(MEAN_TARGETS_TENTHS * 100_000 / self.identity.rate.max(1));
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Vanish(lasts)) => self.vanish(lasts).await,
                    Some(Order::Deaf(lasts)) => {
                        let now = self.shared.clock.now();
                        self.shared.deaf_until.store(now + lasts, Ordering::Release);
                        lock(&self.shared.away).add(now, now + lasts);
                    }
                    None => return,
                },
                _ = ticks.tick() => {
                    if *loading.borrow() && lock(&self.shared.log).waiting < UNANSWERED {
                        self.one().await;
                    }
                }
            }
        }
    }

    async fn one(&mut self) {
        let (batch, devices, kept) = self.load.batch(&self.identity, self.shared.clock.now());
        lock(&self.shared.log).made(&batch, devices, kept);
        let message = batch.message_id;
        self.deliver(batch).await;
        if kept != Kept::Online && self.load.rng.random_ratio(1, 30) {
            let wait = self.load.rng.random_range(0..3_000);
            self.revoke(message, wait);
        }
    }

    async fn deliver(&self, batch: DeliverBatch) {
        if !self.router.deliver(batch).await {
            lock(&self.shared.ended).push("a router ended by itself".into());
        }
    }

    fn revoke(&self, message: u64, wait: Millis) {
        lock(&self.shared.revokes).insert(message);
        let (shared, router, app) =
            (Arc::clone(&self.shared), Arc::clone(&self.router), self.identity.app.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            lock(&shared.log).revoking(message);
            // Without an answer the router has vanished: the next one asks again.
            if router.revoke(app.as_str(), message).await.is_some() {
                lock(&shared.revokes).remove(&message);
            }
        });
    }

    async fn vanish(&mut self, lasts: Millis) {
        let clock = Arc::clone(&self.shared.clock);
        lock(&self.shared.away).begin(clock.now());
        self.router.vanish();
        tokio::time::sleep(Duration::from_millis(lasts)).await;
        self.router = start(&self.identity, &self.shared, self.lives);
        self.lives += 1;
        let unanswered = lock(&self.shared.log).unanswered();
        for batch in unanswered {
            self.deliver(batch).await;
        }
        let revokes: Vec<_> = lock(&self.shared.revokes).iter().copied().collect();
        for message in revokes {
            self.revoke(message, 0);
        }
        let (shared, mut progress) = (Arc::clone(&self.shared), self.router.progress());
        tokio::spawn(async move {
            // If it vanishes again before, that ends this too.
            progress.wait_for(|p| p.connected).await.ok();
            lock(&shared.away).end(clock.now());
        });
    }
}

struct Load {
    rng: SmallRng,
    made: u64,
}

impl Load {
    fn batch(&mut self, identity: &Identity, now: Millis) -> (DeliverBatch, Vec<u32>, Kept) {
        let rng = &mut self.rng;
        let message_id = identity.first + self.made;
        self.made += 1;
        let count = rng.random_range(TARGETS).min(identity.devices.len());
        let devices: Vec<u32> = rand::seq::index::sample(rng, identity.devices.len(), count)
            .iter()
            .map(|at| identity.devices[at])
            .collect();
        let (kept, retention) = match rng.random_range(0..100) {
            0..55 => (Kept::Long, LONG_SECONDS),
            55..90 => (Kept::Short, rng.random_range(2..=15)),
            _ => (Kept::Online, 0),
        };
        let policy = if rng.random_ratio(1, 20) { OfflinePolicy::Return } else { OfflinePolicy::Store };
        let priority = if rng.random_ratio(1, 5) { Priority::High } else { Priority::Normal };
        let bytes = if rng.random_ratio(1, 10) { 3_500 } else { 200 };
        let target = |n: &u32| Target { device_id: device_id(*n), account: String::new() };
        let batch = DeliverBatch {
            batch_id: format!("chaos-{message_id}"),
            app_key: identity.app.as_str().to_owned(),
            message_id,
            body: Some(Push { kind: Kind::Message.into(), body: "x".repeat(bytes), ..Push::default() }),
            targets: devices.iter().map(target).collect(),
            offline_policy: policy.into(),
            created_at: now,
            retention_seconds: Some(retention),
            priority: priority.into(),
            source: PushSource::Api.into(),
            target_type: "device".into(),
            ..DeliverBatch::default()
        };
        (batch, devices, kept)
    }
}
