//! The devices of one edge, each with a log of what it sees. They keep what they know when their connection is cut: a real SDK keeps it in a
//! file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooring::client::device::{Device, End, Handler, Leave, Machine, Reaction, Settings, Stopped};
use mooring::client::local::LocalEdge;
use mooring::client::{Backoff, Way};
use mooring::clock::Clock;
use mooring::ids::AppKey;
use mooring::wire::pb::device::{EventType, Push, to_device};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::device_log::DeviceLog;
use crate::fleet::{attributes, source};

/// Milliseconds.
type Millis = u64;

/// Sockets of all devices of an edge that connect by QUIC.
const QUIC_SOCKETS: u32 = 16;
/// One message in so many is clicked, another one dismissed.
const ONE_IN: u64 = 8;
/// Orders that wait for a device.
const ORDERS: usize = 4;

/// What happens to a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Its connection breaks, and it comes back at once.
    Cut,
    /// It is gone for so long.
    Away(Millis),
    /// It stays connected and doesn't read for so long.
    Deaf(Millis),
}

/// What all devices count together.
#[derive(Default)]
pub(super) struct Counts {
    connected: AtomicU64,
    unsettled: AtomicU64,
    /// Devices that were turned away for good: why.
    turned_away: Mutex<Vec<String>>,
}

/// All devices of an edge.
pub(super) struct Phones {
    logs: Vec<Arc<Mutex<DeviceLog>>>,
    orders: Vec<mpsc::Sender<Order>>,
    counts: Arc<Counts>,
    leave: watch::Sender<Leave>,
    probes: watch::Sender<()>,
    tasks: JoinSet<()>,
}

/// The id of device `n` of an edge.
pub(super) fn device_id(n: u32) -> String {
    format!("chaos-{n:06}")
}

/// Of this many apps, whose device `n` is.
pub(super) fn app_of(n: u32, apps: usize) -> usize {
    n as usize % apps
}

impl Phones {
    /// Starts them: a third each over TCP, TLS and QUIC.
    pub(super) fn start(edge: &LocalEdge, apps: &[AppKey], size: u32, seed: u64, clock: &Arc<Clock>) -> Self {
        let mut phones = Self {
            logs: Vec::new(),
            orders: Vec::new(),
            counts: Arc::default(),
            leave: watch::Sender::new(Leave::Stay),
            probes: watch::Sender::new(()),
            tasks: JoinSet::new(),
        };
        for n in 0..size {
            let log: Arc<Mutex<DeviceLog>> = Arc::default();
            let (orders, ordered) = mpsc::channel(ORDERS);
            let (id, app) = (device_id(n), &apps[app_of(n, apps.len())]);
            let settings = Settings {
                app_key: app.as_str().into(),
                credential: edge.credential_of(app, &id),
                device_id: id,
                install_secret: None,
                attributes: Arc::new(attributes(n)),
                heartbeat_seconds: 0,
                backoff: Backoff::fast(),
                seed: seed ^ u64::from(n) << 32,
            };
            let phone = Phone {
                log: Arc::clone(&log),
                counts: Arc::clone(&phones.counts),
                clock: Arc::clone(clock),
                state: (false, false),
            };
            let way = [Way::Tcp, Way::Tls, Way::Quic][n as usize / apps.len() % 3];
            let from = if way == Way::Quic { n % QUIC_SOCKETS } else { n };
            let endpoint = edge.device_endpoint(way, Some(source(from)));
            let mut device = Device::new(endpoint, Machine::new(settings), phone, Arc::clone(clock));
            device.probe_on(phones.probes.subscribe());
            phones.tasks.spawn(live(device, ordered, phones.leave.subscribe()));
            phones.logs.push(log);
            phones.orders.push(orders);
        }
        phones
    }

    /// Orders something of some devices. Who has too many orders waiting is spared.
    pub(super) fn order(&self, devices: impl Iterator<Item = usize>, order: Order) -> u64 {
        devices.filter_map(|n| self.orders.get(n)?.try_send(order).ok()).count() as u64
    }

    pub(super) fn len(&self) -> usize {
        self.logs.len()
    }

    pub(super) fn connected(&self) -> u64 {
        self.counts.connected.load(Ordering::Acquire)
    }

    /// All ask whether their connection stands: the answer confirms what they have said.
    pub(super) fn probe(&self) {
        self.probes.send_replace(());
    }

    /// Devices that have something to tell, or to be told.
    pub(super) fn unsettled(&self) -> u64 {
        self.counts.unsettled.load(Ordering::Acquire)
    }

    /// Clicks and cleans of all devices.
    pub(super) fn reactions(&self) -> usize {
        self.logs.iter().map(|log| lock(log).reactions().len()).sum()
    }

    /// Devices that were turned away for good, and why.
    pub(super) fn turned_away(&self) -> Vec<String> {
        self.counts.turned_away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends them; what they saw, by number.
    pub(super) async fn end(mut self) -> Vec<DeviceLog> {
        self.leave.send_replace(Leave::Now);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        self.logs.iter().map(|log| std::mem::take(&mut *lock(log))).collect()
    }
}

fn lock(log: &Mutex<DeviceLog>) -> MutexGuard<'_, DeviceLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device's life, with what is ordered.
async fn live(
    mut device: Device<Phone>,
    mut orders: mpsc::Receiver<Order>,
    mut leave: watch::Receiver<Leave>,
) {
    let (log, clock) = (Arc::clone(&device.handler.log), Arc::clone(&device.handler.clock));
    loop {
        let ended = {
            let mut run = std::pin::pin!(device.run(&mut leave));
            loop {
                tokio::select! {
                    biased;
                    Some(order) = orders.recv() => match order {
                        Order::Deaf(lasts) => {
                            // As long as it isn't polled nothing is read.
                            let from = clock.now();
                            tokio::time::sleep(Duration::from_millis(lasts)).await;
                            lock(&log).deaf.add(from, clock.now());
                        }
                        Order::Cut => break Ok(0),
                        Order::Away(lasts) => break Ok(lasts),
                    },
                    stopped = &mut run => break Err(stopped),
                }
            }
        };
        match ended {
            Ok(lasts) => {
                device.machine_mut().handle_end(End::Broken);
                let unsettled = device.machine().unsettled() > 0;
                device.handler.note((false, unsettled));
                tokio::time::sleep(Duration::from_millis(lasts)).await;
            }
            Err(Stopped::Left) => {
                let tally = device.machine().tally;
                lock(&log).ended(tally.clicked + tally.cleaned);
                return;
            }
            Err(Stopped::Ended(end)) => {
                let text = format!("{} was turned away: {end:?}", device.machine().device_id());
                let counts = &device.handler.counts;
                counts.turned_away.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                return;
            }
        }
    }
}

/// The app of a device.
struct Phone {
    log: Arc<Mutex<DeviceLog>>,
    counts: Arc<Counts>,
    clock: Arc<Clock>,
    /// Connected, and unsettled.
    state: (bool, bool),
}

impl Handler for Phone {
    fn frame(&mut self, machine: &Machine, frame: &to_device::Frame) {
        match frame {
            to_device::Frame::Welcome(_) => lock(&self.log).welcomed(),
            to_device::Frame::Push(push) => {
                let unconfirmed = machine.is_unconfirmed(push.message_id);
                lock(&self.log).came(push, machine.edge_time(self.clock.now()), unconfirmed);
            }
            to_device::Frame::Revoke(revoke) if machine.reacts_later(revoke.message_id) => {
                lock(&self.log).withdrawn(revoke.message_id);
            }
            _ => {}
        }
    }

    fn push(&mut self, push: Push) -> Option<Reaction> {
        let event = match push.message_id % ONE_IN {
            0 => EventType::Click,
            1 => EventType::Clean,
            _ => return None,
        };
        lock(&self.log).reacted(push.message_id, event);
        Some(Reaction { event, delay: push.message_id % 1_000 })
    }

    fn turn(&mut self, machine: &Machine) {
        self.note((machine.is_connected(), machine.unsettled() > 0));
    }
}

impl Phone {
    fn note(&mut self, now: (bool, bool)) {
        count(&self.counts.connected, self.state.0, now.0);
        count(&self.counts.unsettled, self.state.1, now.1);
        self.state = now;
    }
}

fn count(all: &AtomicU64, was: bool, is: bool) {
    match (was, is) {
        (false, true) => all.fetch_add(1, Ordering::AcqRel),
        (true, false) => all.fetch_sub(1, Ordering::AcqRel),
        _ => 0,
    };
}
