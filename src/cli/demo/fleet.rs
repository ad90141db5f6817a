//! The devices of the demo: real ones, each with an app that notes what it was handed.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::client::device::{Device, End, Handler, Leave, Machine, Reaction, Settings, Stopped, Tally};
use crate::client::local::LocalEdge;
use crate::client::{Backoff, Way};
use crate::clock::Clock;
use crate::wire::pb::device::{Attributes, DeviceType, EventType, Kind, Push};

/// New connections a second at the start.
const CONNECTS_PER_SECOND: u64 = 4_000;
/// Source addresses: 127.0.0.2 and up.
const SOURCES: u32 = 16;
/// Of a hundred messages so many are tapped.
const CLICKS: u8 = 10;
/// Of a hundred messages so many are dismissed.
const CLEANS: u8 = 5;
/// The user reacts within so many milliseconds; half of the reactions come at once, in the same Ack as the arrive.
const REACTION_MS: u64 = 300;

/// The id of device `n`.
pub(super) fn device_id(n: u32) -> String {
    format!("d-{n}")
}

/// What all apps count together, and whether something changed.
#[derive(Debug, Default)]
pub(super) struct Shared {
    connected: AtomicU64,
    /// Devices with events that are not confirmed, or still to be made.
    unsettled: AtomicU64,
    received: AtomicU64,
    clicked: AtomicU64,
    cleaned: AtomicU64,
    failure: Mutex<Option<String>>,
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn connected(&self) -> u64 {
        self.connected.load(Ordering::Acquire)
    }

    pub(super) fn unsettled(&self) -> u64 {
        self.unsettled.load(Ordering::Acquire)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    pub(super) fn clicked(&self) -> u64 {
        self.clicked.load(Ordering::Acquire)
    }

    pub(super) fn cleaned(&self) -> u64 {
        self.cleaned.load(Ordering::Acquire)
    }

    /// Why a device gave up, if one did.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.changed.notify_one();
    }
}

/// The app of one device.
#[derive(Debug)]
pub(super) struct App {
    pub(super) got: Vec<u64>,
    rng: SmallRng,
    shared: Arc<Shared>,
    connected: bool,
    unsettled: bool,
}

impl App {
    /// Messages handed over more than once.
    fn duplicates(&self) -> u64 {
        let distinct: HashSet<_> = self.got.iter().collect();
        (self.got.len() - distinct.len()) as u64
    }
}

impl Handler for App {
    fn push(&mut self, push: Push) -> Option<Reaction> {
        self.got.push(push.message_id);
        self.shared.received.fetch_add(1, Ordering::AcqRel);
        if push.kind() != Kind::Notification {
            return None;
        }
        let (event, count) = match self.rng.random_range(0..100) {
            roll if roll < CLICKS => (EventType::Click, &self.shared.clicked),
            roll if roll < CLICKS + CLEANS => (EventType::Clean, &self.shared.cleaned),
            _ => return None,
        };
        count.fetch_add(1, Ordering::AcqRel);
        let delay = if self.rng.random() { 0 } else { self.rng.random_range(1..REACTION_MS) };
        Some(Reaction { event, delay })
    }

    fn turn(&mut self, machine: &Machine) {
        let (connected, unsettled) = (machine.is_connected(), machine.unsettled() > 0);
        note_change(&self.shared.connected, &mut self.connected, connected);
        note_change(&self.shared.unsettled, &mut self.unsettled, unsettled);
        self.shared.changed.notify_one();
    }
}

fn note_change(count: &AtomicU64, was: &mut bool, is: bool) {
    match (*was, is) {
        (false, true) => count.fetch_add(1, Ordering::AcqRel),
        (true, false) => count.fetch_sub(1, Ordering::AcqRel),
        _ => return,
    };
    *was = is;
}

/// All devices: the first three quarters stay, the last quarter goes away and comes back.
pub(super) struct Fleet {
    pub(super) shared: Arc<Shared>,
    pub(super) devices: u32,
    tasks: JoinSet<(u32, Device<App>)>,
    stay: watch::Sender<Leave>,
    first_stay: watch::Sender<Leave>,
    come_back: watch::Sender<bool>,
}

/// What the devices say in the end.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// By number: the messages that its app was handed.
    pub(super) got: Vec<HashSet<u64>>,
    pub(super) duplicates: u64,
    pub(super) tally: Tally,
}

impl Fleet {
    pub(super) fn start(edge: &LocalEdge, devices: u32, ways: &[Way], seed: u64, clock: &Arc<Clock>) -> Self {
        let (stay, staying) = watch::channel(Leave::Stay);
        let (first_stay, first_staying) = watch::channel(Leave::Stay);
        let (come_back, coming_back) = watch::channel(false);
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        let online = devices - devices / 4;
        for n in 0..devices {
            let way = ways.get(n as usize % ways.len().max(1)).copied().unwrap_or(Way::Tls);
            let device = device(edge, n, way, seed, clock, &shared);
            let wait = Duration::from_millis(u64::from(n) * 1_000 / CONNECTS_PER_SECOND);
            let mut lives = vec![staying.clone()];
            if n >= online {
                lives.insert(0, first_staying.clone());
            }
            tasks.spawn(life(n, device, wait, lives, coming_back.clone(), Arc::clone(&shared)));
        }
        Self { shared, devices, tasks, stay, first_stay, come_back }
    }

    /// How many of them go offline.
    pub(super) fn offline(&self) -> u32 {
        self.devices / 4
    }

    pub(super) fn online(&self) -> u32 {
        self.devices - self.offline()
    }

    pub(super) fn send_away(&self) {
        self.first_stay.send_replace(Leave::Now);
    }

    pub(super) fn bring_in(&self) {
        self.come_back.send_replace(true);
    }

    /// All leave, once everything is confirmed; what they say.
    pub(super) async fn end(mut self) -> Devices {
        self.stay.send_replace(Leave::Settle);
        let mut all = Devices { got: vec![HashSet::new(); self.devices as usize], ..Devices::default() };
        let patience = tokio::time::sleep(Duration::from_secs(10));
        tokio::pin!(patience);
        loop {
            let ended = tokio::select! {
                ended = self.tasks.join_next() => ended,
                () = &mut patience, if *self.stay.borrow() == Leave::Settle => {
                    self.stay.send_replace(Leave::Now);
                    continue;
                }
            };
            match ended {
                None => return all,
                Some(Ok((n, device))) => {
                    all.duplicates += device.handler.duplicates();
                    add(&mut all.tally, &device.machine().tally);
                    all.got[n as usize] = device.handler.got.into_iter().collect();
                }
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }
}

fn add(sum: &mut Tally, one: &Tally) {
    sum.received += one.received;
    sum.duplicates_dropped += one.duplicates_dropped;
    sum.redelivered += one.redelivered;
    sum.expired += one.expired;
    sum.arrived += one.arrived;
    sum.confirmed += one.confirmed;
    sum.clicked += one.clicked;
    sum.cleaned += one.cleaned;
    sum.reconnects += one.reconnects;
    sum.sessions += one.sessions;
}

fn device(
    edge: &LocalEdge,
    n: u32,
    way: Way,
    seed: u64,
    clock: &Arc<Clock>,
    shared: &Arc<Shared>,
) -> Device<App> {
    let id = device_id(n);
    let brands = ["vivo", "OPPO", "Xiaomi", "HUAWEI", "HONOR"];
    let attributes = Attributes {
        device_type: DeviceType::Android.into(),
        app_version: "1.0".into(),
        brand: brands[n as usize % brands.len()].into(),
        os: "Android".into(),
        os_version: (11 + n % 5).to_string(),
        network_type: if n.is_multiple_of(3) { "4G" } else { "Wi-Fi" }.into(),
        utdid: format!("utdid-{n}"),
        ..Attributes::default()
    };
    let settings = Settings {
        app_key: edge.app().as_str().into(),
        credential: edge.credential(&id),
        device_id: id,
        install_secret: None,
        attributes: Arc::new(attributes),
        heartbeat_seconds: 0,
        backoff: Backoff::fast(),
        seed: seed ^ u64::from(n) << 32,
    };
    // Never 127.0.0.1: a source address of its own keeps devices' ports apart from those of others.
    let [.., low] = (2 + n / 2 % SOURCES).to_be_bytes();
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, low));
    let endpoint = edge.device_endpoint(way, Some(source));
    let app = App {
        got: Vec::new(),
        rng: SmallRng::seed_from_u64(settings.seed),
        shared: Arc::clone(shared),
        connected: false,
        unsettled: false,
    };
    Device::new(endpoint, Machine::new(settings), app, Arc::clone(clock))
}

/// A device's life: one stay after the other; the second one begins when it is called back.
async fn life(
    n: u32,
    mut device: Device<App>,
    wait: Duration,
    lives: Vec<watch::Receiver<Leave>>,
    mut come_back: watch::Receiver<bool>,
    shared: Arc<Shared>,
) -> (u32, Device<App>) {
    tokio::time::sleep(wait).await;
    for (i, mut stay) in lives.into_iter().enumerate() {
        if i > 0 && come_back.wait_for(|back| *back).await.is_err() {
            break; // The demo has ended without it.
        }
        if let Stopped::Ended(end) = device.run(&mut stay).await {
            shared.fail(format!("device {} was turned away: {}", device_id(n), reason(&end)));
            break;
        }
    }
    (n, device)
}

fn reason(end: &End) -> String {
    match end {
        End::Refused { code, .. } => code.as_str_name().to_owned(),
        End::Replaced => "replaced by a newer session".into(),
        End::Broken | End::Silent | End::Away { .. } => "the connection ended".into(),
    }
}
