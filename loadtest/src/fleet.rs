//! The devices of a load: the client library's, one task each, with ids, utdids and source addresses of their own and 500 sets of
//! attributes, as a real fleet of one app would have.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooring::cli::output::{self, Failure};
use mooring::client::device::{Device, Handler, Leave, Machine, Reaction, Settings, Stopped};
use mooring::client::{Backoff, Endpoint, Way};
use mooring::clock::Clock;
use mooring::wire::pb::device::{Attributes, DeviceType, Push};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::mqtt;
use crate::target::Target;
use crate::workers::Workers;

/// Devices that connect at a time.
const CONNECTING: u64 = 128;
/// Sockets of all devices that connect by QUIC.
const QUIC_SOCKETS: u32 = 64;
/// Sets of attributes, but for the utdid.
const ATTRIBUTE_SETS: u32 = 500;
/// Seconds without any progress after which waiting ends.
pub(crate) const STALLED_SECONDS: u64 = 30;
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(1);

/// Told of every message: the number of the device, the message's id, and the time of its coming in microseconds of the clock.
pub(crate) type OnPush = dyn Fn(u32, u64, u64) + Send + Sync;

/// What all devices count together.
#[derive(Default)]
pub(crate) struct Counts {
    connected: AtomicU64,
    received: AtomicU64,
    reconnects: AtomicU64,
    sessions: AtomicU64,
    expired: AtomicU64,
    failure: Mutex<Option<String>>,
}

/// Connected, received, reconnects, sessions, expired.
pub(crate) type Snapshot = [u64; 5];

impl Counts {
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.all().map(|count| count.load(Ordering::Acquire))
    }

    /// Adds what another process counted since it counted `before`.
    pub(crate) fn add(&self, before: Snapshot, now: Snapshot) {
        for ((count, before), now) in self.all().into_iter().zip(before).zip(now) {
            // Devices may have left: it wraps around.
            count.fetch_add(now.wrapping_sub(before), Ordering::AcqRel);
        }
    }

    fn all(&self) -> [&AtomicU64; 5] {
        [&self.connected, &self.received, &self.reconnects, &self.sessions, &self.expired]
    }

    pub(crate) fn connected(&self) -> u64 {
        self.connected.load(Ordering::Acquire)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    /// Sessions that broke: a measurement with some is none.
    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Acquire)
    }

    /// Sessions.
    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// Messages that had expired when they were read: acknowledged, and not handed to the app.
    pub(crate) fn expired(&self) -> u64 {
        self.expired.load(Ordering::Acquire)
    }

    /// Why a device was turned away for good, if one was.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A device has ended: if not as it was asked to, that is a failure.
    pub(crate) fn stopped(&self, device_id: &str, why: Stopped) {
        let Stopped::Ended(end) = why else { return };
        self.turned_away(device_id, &format!("{end:?}"));
    }

    fn turned_away(&self, device_id: &str, why: &str) {
        self.fail(format!("{device_id} was turned away: {why}"));
    }

    /// The first failure is told.
    pub(crate) fn fail(&self, why: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(why);
    }
}

/// Devices that are connected, or on their way.
pub(crate) struct Fleet {
    pub(crate) counts: Arc<Counts>,
    pub(crate) size: u32,
    /// The number of its first device.
    first: u32,
    way: Way,
    clock: Arc<Clock>,
    on_push: Arc<OnPush>,
    stay: watch::Sender<Leave>,
    /// Changes when devices are to ask whether their connections still stand.
    probes: watch::Sender<()>,
    tasks: JoinSet<()>,
    seed: u64,
    /// How long devices wait before they try again.
    backoff: Backoff,
    /// Where its devices are, if not here.
    workers: Option<Workers>,
}

/// A device of whatever is measured.
pub(crate) enum Client {
    Edge(Box<Device<App>>),
    Broker(Box<mqtt::Device>),
}

/// The id of device `n`.
pub(crate) fn device_id(n: u32) -> String {
    format!("load-{n:08}")
}

/// The number of the device with this id.
pub(crate) fn device_number(id: &str) -> Option<u32> {
    id.strip_prefix("load-")?.parse().ok()
}

impl Fleet {
    /// Devices that will come in this way, with numbers from `first` on.
    pub(crate) fn new(clock: &Arc<Clock>, way: Way, first: u32, seed: u64, on_push: Arc<OnPush>) -> Self {
        Self {
            counts: Arc::default(),
            size: 0,
            first,
            way,
            clock: Arc::clone(clock),
            on_push,
            stay: watch::Sender::new(Leave::Stay),
            probes: watch::Sender::new(()),
            tasks: JoinSet::new(),
            seed,
            backoff: Backoff::fast(),
            workers: None,
        }
    }

    /// The same, whose devices are in other processes, if there are any.
    pub(crate) fn within(self, workers: Option<Workers>) -> Self {
        Self { workers, ..self }
    }

    /// CPU of those processes.
    pub(crate) fn workers_cpu_us(&self) -> Result<u64, Failure> {
        self.workers.as_ref().map_or(Ok(0), Workers::cpu_us)
    }

    /// The same, that waits so before it tries again.
    pub(crate) fn retrying(self, backoff: Backoff) -> Self {
        Self { backoff, ..self }
    }

    /// Has all of these connect at once, and doesn't wait for them. (To make them takes longer than to connect them.)
    pub(crate) fn launch(&mut self, devices: Vec<Client>) {
        for device in devices {
            self.size += 1;
            self.run(device);
        }
    }

    /// Connects more devices, until there are `size`.
    pub(crate) async fn grow(&mut self, target: &Target, size: u32, quiet: bool) -> Result<(), Failure> {
        let bar = output::bar(size.into(), "{bar:40} {pos}/{len} connected  {per_sec}  {elapsed}", quiet);
        if let Some(workers) = &mut self.workers {
            workers.grow(size).await?;
            self.size = size;
            while self.counts.connected() < size.into() {
                let connected = self.counts.connected();
                self.until("devices connect", |counts| counts.connected() > connected).await?;
                bar.set_position(self.counts.connected());
            }
        }
        while self.size < size {
            let room = u64::from(self.size) < self.counts.connected() + CONNECTING;
            if room {
                let device = self.client(target, self.first + self.size)?;
                self.launch(vec![device]);
            } else {
                let connected = self.counts.connected();
                self.until("devices connect", |counts| counts.connected() > connected).await?;
                bar.set_position(self.counts.connected());
            }
        }
        self.until("devices connect", |counts| counts.connected() >= size.into()).await?;
        bar.finish_and_clear();
        Ok(())
    }

    fn run(&mut self, device: Client) {
        let mut stay = self.stay.subscribe();
        let probes = self.probes.subscribe();
        match device {
            Client::Edge(mut device) => self.tasks.spawn(async move {
                device.probe_on(probes);
                let stopped = device.run(&mut stay).await;
                device.handler.counts.stopped(device.machine().device_id(), stopped);
            }),
            Client::Broker(device) => self.tasks.spawn(device.run(stay)),
        };
    }

    /// Device `n` of whatever is measured, which isn't connected yet.
    pub(crate) fn client(&self, target: &Target, n: u32) -> Result<Client, Failure> {
        Ok(match target.edge {
            Some(_) => Client::Edge(Box::new(self.device(target, n)?)),
            None => Client::Broker(Box::new(mqtt::Device::new(
                self.endpoint(target, n)?,
                n,
                self.app(n),
                self.backoff,
                self.seed,
            ))),
        })
    }

    /// Device `n` of an edge, which isn't connected yet.
    pub(crate) fn device(&self, target: &Target, n: u32) -> Result<Device<App>, Failure> {
        let (id, edge) = (device_id(n), target.edge()?);
        let settings = Settings {
            app_key: edge.app.as_str().into(),
            credential: edge.credential(&id),
            device_id: id,
            install_secret: None,
            attributes: Arc::new(attributes(n)),
            heartbeat_seconds: 0,
            backoff: self.backoff,
            seed: self.seed ^ u64::from(n) << 32,
        };
        let machine = Machine::new(settings);
        Ok(Device::new(self.endpoint(target, n)?, machine, self.app(n), Arc::clone(&self.clock)))
    }

    fn endpoint(&self, target: &Target, n: u32) -> Result<Endpoint, Failure> {
        // Over QUIC devices share sockets.
        let from = if self.way == Way::Quic { n % QUIC_SOCKETS } else { n };
        let endpoint = target.device(self.way, target.is_local().then(|| source(from)));
        endpoint.ok_or_else(|| Failure::failed(format!("no {} here", self.way.name())))
    }

    fn app(&self, n: u32) -> App {
        App {
            n,
            counts: Arc::clone(&self.counts),
            clock: Arc::clone(&self.clock),
            on_push: Arc::clone(&self.on_push),
            connected: false,
            sessions: 0,
            expired: 0,
        }
    }

    /// Waits until something is so; gives up when nothing changes for a while. It looks by itself: to be told of each message would wake a
    /// thread for each, which takes more than the message does.
    pub(crate) async fn until(&self, what: &str, so: impl Fn(&Counts) -> bool) -> Result<(), Failure> {
        let counts = &*self.counts;
        let (mut progress, mut since) = (Progress::new(counts), self.clock.micros());
        while !so(counts) {
            if let Some(why) = counts.failure() {
                return Err(Failure::Failed(why));
            }
            tokio::time::sleep(LOOK).await;
            if progress.is_made(counts.connected(), counts.received()) {
                since = self.clock.micros();
            } else if self.clock.micros() - since > STALLED_SECONDS * 1_000_000 {
                let (connected, received) = (counts.connected(), counts.received());
                return Err(Failure::Failed(format!(
                    "gave up waiting until {what}: {connected} connected, {received} messages received"
                )));
            }
        }
        Ok(())
    }

    /// Devices of an edge ask whether their connections still stand: over QUIC nothing else tells that it has died.
    pub(crate) fn probe(&self) {
        self.probes.send_replace(());
    }

    /// All leave.
    pub(crate) async fn end(mut self) {
        self.stay.send_replace(Leave::Now);
        if let Some(workers) = self.workers.take() {
            workers.end().await;
        }
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

/// What was seen while something is waited for. A device that comes and goes, thrown out for ever perhaps, gets nobody any further.
struct Progress {
    fewest: u64,
    most: u64,
    received: u64,
}

impl Progress {
    fn new(counts: &Counts) -> Self {
        let connected = counts.connected();
        Self { fewest: connected, most: connected, received: counts.received() }
    }

    /// Whether there are more devices than ever before, or fewer, or more messages.
    fn is_made(&mut self, connected: u64, received: u64) -> bool {
        let is_new = connected > self.most || connected < self.fewest || received != self.received;
        self.most = self.most.max(connected);
        self.fewest = self.fewest.min(connected);
        self.received = received;
        is_new
    }
}

/// An address of its own for each of 16 million devices: 127.1.0.1 and up.
pub(crate) fn source(n: u32) -> IpAddr {
    let (low, rest) = (1 + n % 250, n / 250);
    IpAddr::V4(Ipv4Addr::new(127, (1 + rest / 256 % 250) as u8, (rest % 256) as u8, low as u8))
}

pub(crate) fn attributes(n: u32) -> Attributes {
    let set = n % ATTRIBUTE_SETS;
    Attributes {
        device_type: DeviceType::Android.into(),
        package: "com.example.shop".into(),
        app_version: format!("5.{}", set % 10),
        sdk_version: "1.0.0".into(),
        brand: ["vivo", "OPPO", "Xiaomi", "HUAWEI", "HONOR"][set as usize / 10 % 5].into(),
        model: format!("M{}", set / 50),
        os: "Android".into(),
        os_version: (10 + set % 5).to_string(),
        network_type: if n.is_multiple_of(3) { "4G" } else { "Wi-Fi" }.into(),
        isp: "CMCC".into(),
        utdid: format!("utdid-{n:016}"),
        ..Attributes::default()
    }
}

/// The app behind a device of a load.
pub(crate) struct App {
    n: u32,
    pub(crate) counts: Arc<Counts>,
    clock: Arc<Clock>,
    on_push: Arc<OnPush>,
    connected: bool,
    sessions: u64,
    expired: u64,
}

/// What a device of a broker tells.
impl App {
    /// A message came. One that comes again counts again.
    pub(crate) fn came(&mut self, message: u64) {
        (self.on_push)(self.n, message, self.clock.micros());
        self.counts.received.fetch_add(1, Ordering::AcqRel);
    }

    /// It is connected, and its messages will come.
    pub(crate) fn welcome(&mut self) {
        self.session_begins(1);
        count(&self.counts.connected, &mut self.connected, true);
    }

    /// It isn't connected any more.
    pub(crate) fn gone(&mut self) {
        count(&self.counts.connected, &mut self.connected, false);
    }

    /// For good.
    pub(crate) fn turned_away(&self, device_id: &str, why: &str) {
        self.counts.turned_away(device_id, why);
    }

    fn session_begins(&mut self, sessions: u64) {
        self.counts.reconnects.fetch_add(u64::from(self.sessions > 0), Ordering::AcqRel);
        self.counts.sessions.fetch_add(sessions, Ordering::AcqRel);
        self.sessions += sessions;
    }
}

impl Handler for App {
    fn store(&mut self, push: &Push) {
        (self.on_push)(self.n, push.message_id, self.clock.micros());
    }

    fn push(&mut self, _push: Push) -> Option<Reaction> {
        self.counts.received.fetch_add(1, Ordering::AcqRel);
        None
    }

    fn turn(&mut self, machine: &Machine) {
        count(&self.counts.connected, &mut self.connected, machine.is_connected());
        if machine.tally.sessions > self.sessions {
            self.session_begins(machine.tally.sessions - self.sessions);
        }
        self.counts.expired.fetch_add(machine.tally.expired - self.expired, Ordering::AcqRel);
        self.expired = machine.tally.expired;
    }
}

fn count(all: &AtomicU64, was: &mut bool, is: bool) {
    match (*was, is) {
        (false, true) => all.fetch_add(1, Ordering::AcqRel),
        (true, false) => all.fetch_sub(1, Ordering::AcqRel),
        _ => return,
    };
    *was = is;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_id_says_its_number() {
        assert_eq!(device_number(&device_id(4_711)), Some(4_711));
        assert_eq!(device_number("another"), None);
    }

    #[test]
    fn a_device_that_comes_and_goes_is_no_progress() {
        let mut progress = Progress { fewest: 5, most: 5, received: 0 };
        assert!(progress.is_made(4, 0), "one left");
        assert!(!progress.is_made(5, 0) && !progress.is_made(4, 0) && !progress.is_made(5, 0));
        assert!(progress.is_made(6, 0) && progress.is_made(6, 1));
        assert!(!progress.is_made(5, 1) && !progress.is_made(6, 1));
    }

    #[test]
    fn devices_differ_in_address_and_there_are_500_sets_of_attributes() {
        let sources: HashSet<_> = (0..100_000).map(source).collect();
        assert_eq!(sources.len(), 100_000);
        let sets: HashSet<_> = (0..3_000)
            .map(|n| {
                let a = attributes(n);
                (a.app_version, a.brand, a.model, a.os_version)
            })
            .collect();
        assert_eq!(sets.len(), 500);
    }
}
