//! The devices of the demo: real ones. Who they are follows from their numbers: a quarter belongs to the second app, half of them
//! register, the last quarter goes away and comes back over another transport, some of those with push switched off.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::app::{App, Shared};
use crate::binding::Binding;
use crate::cli::output::Failure;
use crate::client::device::{Device, End, Leave, Machine, Request, Settings, Stopped, Tally};
use crate::client::local::LocalEdge;
use crate::client::{Backoff, Endpoint, Way};
use crate::clock::Clock;
use crate::credential::InstallSecret;
use crate::ids::AppKey;
use crate::wire::pb::device::{Attributes, DeviceType};

/// New connections a second at the start.
const CONNECTS_PER_SECOND: u64 = 4_000;
/// Source addresses: 127.0.0.2 and up.
const SOURCES: u32 = 16;
/// Who leaves in the end waits so long for what it said to be confirmed. All is settled by then, so it waits for nothing, unless the edge lost an ack.
const LAST_CONFIRMATIONS: Duration = Duration::from_secs(10);
/// Of so many devices that come back, one has push switched off.
const SWITCHED_OFF: u32 = 10;

/// Of so many devices that come back, one was reinstalled.
const REINSTALLED: u32 = 10;
/// Of so many devices that stay, one is bound.
const BOUND: u32 = 20;
/// Bindings of each of those.
pub(super) const BINDINGS: u64 = 4;

/// The account that a device is bound to.
pub(super) fn account_of(n: u32) -> String {
    format!("user-{n}")
}

fn bindings(n: u32) -> [Binding; BINDINGS as usize] {
    [
        Binding::Account(account_of(n).into()),
        Binding::Alias(format!("alias-{n}").into()),
        Binding::Tag("demo".into()),
        Binding::Phone(format!("139{n:08}").into()),
    ]
}

/// Which app a device belongs to, by their numbers.
pub(super) fn app_of(n: u32) -> usize {
    usize::from(n % 16 >= 12)
}

/// Whether it registers, or has been given id and credential.
fn registers(n: u32) -> bool {
    n / 2 % 2 == 1
}

/// All devices: the first three quarters stay, the last quarter goes away and comes back.
pub(super) struct Fleet {
    pub(super) shared: Arc<Shared>,
    pub(super) devices: u32,
    ways: Vec<Way>,
    tasks: JoinSet<(u32, Device<App>)>,
    stay: watch::Sender<Leave>,
    first_stay: watch::Sender<Leave>,
    come_back: watch::Sender<bool>,
    probe: watch::Sender<()>,
}

/// What the devices say in the end.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// By number: the messages that its app was handed, in that order.
    pub(super) got: Vec<Vec<u64>>,
    pub(super) duplicates: u64,
    pub(super) tally: Tally,
    /// How many registered.
    pub(super) registered: u64,
    /// How many were connected in the end, by transport.
    pub(super) transports: BTreeMap<&'static str, u64>,
}

impl Fleet {
    pub(super) fn start(
        edge: &LocalEdge,
        apps: &[AppKey],
        devices: u32,
        ways: &[Way],
        seed: u64,
        clock: &Arc<Clock>,
    ) -> Result<Self, Failure> {
        let (stay, staying) = watch::channel(Leave::Stay);
        let (first_stay, first_staying) = watch::channel(Leave::Stay);
        let (come_back, coming_back) = watch::channel(false);
        let (probe, probes) = watch::channel(());
        let mut fleet = Self {
            shared: Arc::new(Shared::new(devices)),
            devices,
            ways: ways.to_vec(),
            tasks: JoinSet::new(),
            stay,
            first_stay,
            come_back,
            probe,
        };
        for n in 0..devices {
            let settings = settings(edge, apps, n, seed, &fleet.shared)?;
            let app = App::new(n, settings.seed, &fleet.shared);
            let endpoint = endpoint(edge, n, fleet.way(n, 0));
            let mut machine = Machine::new(settings);
            if fleet.is_bound(n) {
                for binding in bindings(n) {
                    machine.request(Request::Bind(binding));
                }
            }
            let mut device = Device::new(endpoint, machine, app, Arc::clone(clock));
            device.probe_on(probes.clone());
            let mut life = Life {
                n,
                wait: Duration::from_millis(u64::from(n) * 1_000 / CONNECTS_PER_SECOND),
                stays: vec![staying.clone()],
                come_back: coming_back.clone(),
                elsewhere: self::endpoint(edge, n, fleet.way(n, 1)),
                switch_off: false,
                reinstall: false,
                shared: Arc::clone(&fleet.shared),
            };
            if n >= fleet.online() {
                life.stays.insert(0, first_staying.clone());
                life.switch_off = fleet.is_switched_off(n);
                life.reinstall = fleet.is_reinstalled(n);
            }
            fleet.tasks.spawn(life.run(device));
        }
        Ok(fleet)
    }

    /// How a device connects in its first, or a later, life.
    fn way(&self, n: u32, life: usize) -> Way {
        self.ways.get((n as usize + life) % self.ways.len().max(1)).copied().unwrap_or(Way::Tls)
    }

    /// How many of them go offline.
    pub(super) fn offline(&self) -> u32 {
        self.devices / 4
    }

    pub(super) fn online(&self) -> u32 {
        self.devices - self.offline()
    }

    /// Whether a device comes back with push switched off.
    pub(super) fn is_switched_off(&self, n: u32) -> bool {
        n.checked_sub(self.online()).is_some_and(|of_those| of_those % SWITCHED_OFF == 4)
    }

    /// Whether a device comes back after its app was reinstalled.
    pub(super) fn is_reinstalled(&self, n: u32) -> bool {
        n.checked_sub(self.online()).is_some_and(|of_those| of_those % REINSTALLED == 7)
    }

    /// Whether a device is bound to an account and more.
    pub(super) fn is_bound(&self, n: u32) -> bool {
        n < self.online() && n % BOUND == 1
    }

    pub(super) fn send_away(&self) {
        self.first_stay.send_replace(Leave::Now);
    }

    /// As if users looked at their phones: each device asks whether its connection still stands.
    pub(super) fn probe(&self) {
        self.probe.send_replace(());
    }

    pub(super) fn bring_in(&self) {
        self.come_back.send_replace(true);
    }

    /// All leave, once everything is confirmed; what they say.
    pub(super) async fn end(mut self) -> Devices {
        self.stay.send_replace(Leave::Settle);
        let mut all = Devices { got: vec![Vec::new(); self.devices as usize], ..Devices::default() };
        let patience = tokio::time::sleep(LAST_CONFIRMATIONS);
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
                    let tally = &device.machine().tally;
                    let way = self.way(n, usize::from(n >= self.online()));
                    *all.transports.entry(way.name()).or_default() += u64::from(tally.sessions > 0);
                    all.registered += u64::from(registers(n) && tally.sessions > 0);
                    all.duplicates += device.handler.duplicates();
                    add(&mut all.tally, tally);
                    all.got[n as usize] = device.handler.got;
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
    sum.revoked += one.revoked;
    sum.bound += one.bound;
    sum.arrived += one.arrived;
    sum.confirmed += one.confirmed;
    sum.clicked += one.clicked;
    sum.cleaned += one.cleaned;
    sum.reconnects += one.reconnects;
    sum.sessions += one.sessions;
}

fn settings(
    edge: &LocalEdge,
    apps: &[AppKey],
    n: u32,
    seed: u64,
    shared: &Shared,
) -> Result<Settings, Failure> {
    let app = apps.get(app_of(n)).unwrap_or(edge.app());
    let (device_id, credential, install_secret) = if registers(n) {
        let secret = InstallSecret::generate().map_err(Failure::failed)?;
        (String::new(), Vec::new(), Some(*secret.as_bytes()))
    } else {
        let id = format!("d-{n}");
        shared.set_id(n, &id);
        let credential = edge.credential_of(app, &id);
        (id, credential, None)
    };
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
    Ok(Settings {
        app_key: app.as_str().into(),
        device_id,
        credential,
        install_secret,
        attributes: Arc::new(attributes),
        heartbeat_seconds: 0,
        backoff: Backoff::fast(),
        seed: seed ^ u64::from(n) << 32,
    })
}

fn endpoint(edge: &LocalEdge, n: u32, way: Way) -> Endpoint {
    // Never 127.0.0.1: a source address of its own keeps devices' ports apart from those of others.
    let [.., low] = (2 + n / 2 % SOURCES).to_be_bytes();
    edge.device_endpoint(way, Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, low))))
}

/// What a device is to do.
struct Life {
    n: u32,
    wait: Duration,
    /// One after the other; the second one begins when it is called back.
    stays: Vec<watch::Receiver<Leave>>,
    come_back: watch::Receiver<bool>,
    /// Where it comes back to.
    elsewhere: Endpoint,
    /// Whether it comes back with push switched off.
    switch_off: bool,
    /// Whether its app was reinstalled before it comes back.
    reinstall: bool,
    shared: Arc<Shared>,
}

impl Life {
    async fn run(mut self, mut device: Device<App>) -> (u32, Device<App>) {
        tokio::time::sleep(self.wait).await;
        for (i, mut stay) in self.stays.into_iter().enumerate() {
            if i > 0 {
                if self.come_back.wait_for(|back| *back).await.is_err() {
                    break; // The demo has ended without it.
                }
                *device.endpoint_mut() = self.elsewhere.clone();
                if self.reinstall {
                    device.machine_mut().lose_state();
                }
                if self.switch_off {
                    device.machine_mut().switch_push(false);
                }
            }
            if let Stopped::Ended(end) = device.run(&mut stay).await {
                let (id, why) = (self.shared.id(self.n), reason(&end));
                self.shared.fail(format!("device {} ({id}) was turned away: {why}", self.n));
                break;
            }
        }
        (self.n, device)
    }
}

fn reason(end: &End) -> String {
    match end {
        End::Refused { code, .. } => code.as_str_name().to_owned(),
        End::Replaced => "replaced by a newer session".into(),
        End::Broken | End::Silent | End::Away { .. } => "the connection ended".into(),
    }
}
