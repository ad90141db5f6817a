//! The simulated world: an edge, its devices, its routers, and everything that can go wrong, from one seed.
//!
//! A run has two halves. In the first everything happens at once, and faults among it; in the second all is calm: everybody connects, reads and
//! acknowledges, and the edge must come to rest with every message at its end. Then the power goes once more, and what it had counted must
//! still be so.

mod chance;
mod device;
mod link;
mod memory;
mod oracle;
mod router;
mod trace;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mooring::config;
use mooring::fault::{self, Fault};
use mooring::ids::{AppKey, DeviceKey, DigestKey, Generation};
use mooring::push::Millis;
use mooring::sim::{Edge, Pipe, Plan, START, SimTime, Stamp};
use mooring::store::disk::sim::{Loss, SimDisk};
use mooring::store::options::{Quota, StoreOptions};
use mooring::store::tables::TableKind;
use mooring::store::{AppChange, Command};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;

use chance::{Chances, once_in};
use device::Device;
use memory::Memory;
use oracle::{Oracle, ensure};
use router::{APPS, Batches, Router, STREAMS};
use trace::Trace;

/// Milliseconds of simulated time in which a calm world must come to rest, beside some for each step before.
const REST_MS: Millis = 240_000;
/// Steps within which a shard has read its mail.
pub(crate) const MAIL_STEPS: u64 = 30;
/// How often a shard's timers fire, milliseconds.
const TICK_MS: Millis = 100;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// Steps with faults.
    pub(crate) steps: u32,
    /// A mistake that the edge makes.
    pub(crate) planted: Option<Fault>,
    /// Prints everything that happens.
    pub(crate) prints: bool,
}

impl Options {
    pub(crate) fn of(seed: u64) -> Self {
        Self { seed, steps: 500, planted: None, prints: false }
    }
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    /// Of everything that happened.
    pub(crate) digest: String,
    pub(crate) accepted: u64,
    pub(crate) arrived: u64,
    pub(crate) crashes: u64,
    pub(crate) sessions: usize,
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Violation {
    pub(crate) seed: u64,
    pub(crate) what: String,
    /// The end of the trace.
    pub(crate) last: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.last {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "again: cargo run --release --example sim -- --seed {} --trace", self.seed)
    }
}

/// Runs one seed to its end, on this thread.
pub(crate) fn run(options: Options) -> Result<Report, Box<Violation>> {
    fault::make(options.planted);
    let mut world = World::new(options);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
    fault::make(None);
    let ran = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    });
    let report = ran.map_err(|what| {
        let last = world.trace.last().map(str::to_owned).collect();
        Box::new(Violation { seed: options.seed, what, last })
    })?;
    Ok(report)
}

/// How the process dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Death {
    /// The process alone.
    Process,
    /// The power, and what that leaves.
    Power(Loss),
}

struct World {
    options: Options,
    chances: Chances,
    time: Arc<SimTime>,
    disk: SimDisk,
    plan: Plan,
    edge: Option<Edge>,
    /// When the edge starts again.
    start_at: Millis,
    /// How it dies when the disk fails it.
    dies: Death,
    ticked: Vec<Millis>,
    devices: Vec<Device>,
    routers: Vec<Router>,
    oracle: Oracle,
    trace: Trace,
    is_calm: bool,
    crashes: u64,
    batches: Batches,
    /// By app: an operator has suspended it, as far as he knows.
    is_suspended: Vec<bool>,
    /// The newest session of each device since the edge started.
    newest: HashMap<DeviceKey, Generation>,
    /// Sessions that the directory doesn't name, and for how many steps.
    unnamed: BTreeMap<Generation, u64>,
    /// How far the wall clock is off, milliseconds.
    wall_off: i64,
    memory: Memory,
}

/// Something that the edge may do next.
#[derive(Clone, Copy, Debug)]
enum Part {
    Store,
    Bodies,
    Turn(usize, bool),
    Connection(usize, u64),
    Link(usize),
}

fn app(number: usize) -> AppKey {
    AppKey::parse(APPS[number]).expect("valid")
}

impl World {
    fn new(options: Options) -> Self {
        let mut chances = Chances::of(options.seed);
        let mut plan = plan(&mut chances.schedule);
        let memory = Memory::new();
        plan.store.budget = memory.budget();
        let heavy = once_in(&mut chances.routers, 4);
        let devices = chances.devices.random_range(if heavy { 1..=2 } else { 2..=8 }) * plan.apps.len();
        let time = Arc::new(SimTime::default());
        time.wall.store(START, Ordering::Relaxed);
        let batches = Batches { devices, apps: plan.apps.len(), collapse: chances.routers.random(), heavy };
        let device = |number: usize| {
            let app = &plan.apps[number % plan.apps.len()];
            Device::new(number, app, &plan.store.digest_key, &mut chances.devices)
        };
        let oracle = Oracle {
            edge_now: START,
            quota: plan.store.app_quotas.values().any(|quota| quota.drop_oldest),
            may_have_gaps: plan.store.stream_hard_bytes < 1 << 30,
            ..Oracle::default()
        };
        Self {
            edge: None,
            start_at: 0,
            dies: Death::Process,
            ticked: vec![0; plan.shards],
            devices: (0..devices).map(device).collect(),
            routers: (1..=plan.routers.len() as u64).map(|n| Router::new(n, &mut chances.routers)).collect(),
            oracle,
            trace: Trace::new(options.prints),
            is_calm: false,
            crashes: 0,
            memory,
            wall_off: 0,
            newest: HashMap::new(),
            unnamed: BTreeMap::new(),
            is_suspended: vec![false; plan.apps.len()],
            disk: SimDisk::new(),
            time,
            plan,
            chances,
            options,
            batches,
        }
    }

    /// Milliseconds since the run began.
    fn now(&self) -> Millis {
        self.time.micros.load(Ordering::Relaxed) / 1_000
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let now = self.now();
        self.trace.note(now, what);
    }

    fn run(&mut self) -> Result<Report, String> {
        let Plan { shards, apps, routers, store, .. } = &self.plan;
        let (apps, routers, devices) = (apps.len(), routers.len(), self.devices.len());
        let (tables, quotas, gaps) = (store.tables, store.app_quotas.len(), self.oracle.may_have_gaps);
        self.trace.note(
            0,
            format_args!(
                "{shards} shards, {apps} apps, {routers} routers, {devices} devices, {tables:?}, quotas {quotas}, gaps {gaps}"
            ),
        );
        for _ in 0..self.options.steps {
            self.step()?;
        }
        self.calm_down();
        let until = self.now() + REST_MS + Millis::from(self.options.steps) * 200;
        while !self.is_at_rest() && self.now() < until {
            self.step()?;
        }
        let stalled = !self.is_at_rest();
        let totals = self.edge.as_ref().ok_or("no edge")?.totals();
        self.oracle.finish(&totals, stalled)?;
        self.check_ledger()?;
        self.check_at_rest()?;
        // What it counted holds after a power loss too.
        self.die(Death::Power(Loss::All));
        self.start_at = 0;
        self.start()?;
        let again = self.edge.as_ref().ok_or("no edge")?.totals();
        ensure!(again == totals, "after a power loss {again:?}, before {totals:?}");
        Ok(Report {
            digest: self.trace.digest(),
            accepted: totals.accepted,
            arrived: totals.arrived,
            crashes: self.crashes,
            sessions: self.oracle.sessions.len(),
        })
    }

    fn step(&mut self) -> Result<(), String> {
        self.oracle.step += 1;
        self.pass_time();
        if !self.is_calm {
            self.break_things();
            self.operate();
        }
        if self.edge.is_none() && self.now() >= self.start_at {
            self.start()?;
        }
        self.act()?;
        let rounds = self.chances.schedule.random_range(1..=3);
        for _ in 0..rounds {
            self.drive()?;
        }
        self.check()
    }

    fn pass_time(&mut self) {
        let rng = &mut self.chances.schedule;
        let micros: u64 = match rng.random_range(0..100) {
            0..60 => rng.random_range(0..20_000),
            60..97 => rng.random_range(0..200_000),
            97 | 98 => rng.random_range(0..2_000_000),
            _ => rng.random_range(0..10_000_000),
        };
        self.time.micros.fetch_add(micros, Ordering::Relaxed);
        let rng = &mut self.chances.clock;
        if !self.is_calm && once_in(rng, 200) {
            self.wall_off = match rng.random_range(0..3) {
                0 => 0,
                1 => rng.random_range(-5_000..5_000),
                _ => rng.random_range(-3_600_000..3_600_000),
            };
            let off = self.wall_off;
            self.note(format_args!("the wall clock is {off} ms off"));
        }
        let wall = (START + self.now()).saturating_add_signed(self.wall_off);
        self.time.wall.store(wall, Ordering::Relaxed);
    }

    fn break_things(&mut self) {
        if let Some(percent) = self.memory.press(&mut self.chances.memory) {
            self.note(format_args!("others have {percent} percent of the memory"));
        }
        let rng = &mut self.chances.process;
        if self.edge.is_some() && once_in(rng, 120) {
            let loss = match rng.random_range(0..4) {
                0 => Loss::All,
                1 => Loss::Nothing,
                _ => Loss::Some,
            };
            let death = if rng.random_ratio(1, 3) { Death::Process } else { Death::Power(loss) };
            if rng.random() {
                self.die(death);
            } else {
                // Somewhere in what it writes next.
                self.dies = death;
                let at = self.disk.operations() + rng.random_range(0..40);
                self.disk.crash_at(at);
            }
        }
        let now = self.now();
        let rng = &mut self.chances.network;
        for device in &mut self.devices {
            if device.has_link() && once_in(rng, 120) {
                let cut = rng.random();
                self.trace.note(now, format_args!("{} is cut off", device.id));
                device.disconnect(now, mooring::client::device::End::Broken, cut, &mut self.oracle);
                let longest = if once_in(rng, 5) { 60_000 } else { 4_000 };
                device.connect_at += rng.random_range(0..longest);
            }
            if device.has_link() && once_in(rng, 200) {
                self.trace.note(now, format_args!("{} connects anew", device.id));
                device.forget_connection(now, &mut self.oracle);
            }
            if once_in(rng, 100) {
                for ghost in device.ghosts.drain(..) {
                    ghost.cut();
                }
            }
        }
        for router in &mut self.routers {
            if router.has_link() && once_in(rng, 150) {
                self.trace.note(now, format_args!("{} is cut off", router.name));
                router.disconnect(now, rng.random_range(0..3_000));
            }
        }
    }

    /// Operators change their minds, and the disk has no room for a while.
    fn operate(&mut self) {
        let now = self.now();
        let (rng, oracle) = (&mut self.chances.operators, &mut self.oracle);
        for (number, is_suspended) in self.is_suspended.iter_mut().enumerate() {
            if once_in(rng, if *is_suspended { 20 } else { 400 })
                && let Some(edge) = &self.edge
            {
                *is_suspended = !*is_suspended;
                oracle.suspends = true;
                let change = if *is_suspended { AppChange::Suspend } else { AppChange::Resume };
                self.trace.note(now, format_args!("{}: {change:?}", APPS[number]));
                let (reply, _) = oneshot::channel();
                // If the queue is full, or the edge dies before, he says it again some time.
                drop(edge.submit(Command::ControlApp { app: app(number), change, reply }));
            }
        }
        if once_in(&mut self.chances.disk, 200) {
            let room =
                (!self.chances.disk.random::<bool>()).then(|| self.chances.disk.random_range(0..100_000));
            self.trace.note(now, format_args!("the disk has {room:?} bytes of room"));
            self.disk.set_capacity(room.map(|room| self.disk.used() + room));
        }
    }

    /// The process is gone, and with it everything that was not on the disk.
    fn die(&mut self, death: Death) {
        self.crashes += 1;
        self.note(format_args!("the edge dies: {death:?}"));
        self.edge = None;
        self.newest.clear();
        if death != Death::Process {
            self.devices.iter_mut().for_each(|device| device.look_at_unread(&mut self.oracle));
        }
        match death {
            Death::Process => self.disk.kill(),
            Death::Power(loss) => self.disk.crash_with(loss, &mut self.chances.disk),
        }
        // What the kernel has may still arrive, unless the machine is gone too.
        let mut end = |pipe: &Pipe| {
            if death == Death::Process && self.chances.process.random() {
                pipe.edge_died();
            } else {
                pipe.cut();
            }
        };
        self.devices.iter().flat_map(Device::pipes).for_each(&mut end);
        self.routers.iter().filter_map(Router::pipe).for_each(end);
        self.start_at = self.now() + self.chances.process.random_range(0..3_000);
    }

    fn start(&mut self) -> Result<(), String> {
        if !self.is_calm && once_in(&mut self.chances.process, 4) {
            // It doesn't get far.
            let at = self.disk.operations() + self.chances.process.random_range(0..12);
            self.disk.crash_at(at);
            self.dies = if self.chances.process.random() { Death::Process } else { Death::Power(Loss::Some) };
        }
        match Edge::start(&self.disk, &self.time, &self.plan) {
            Ok(edge) => {
                let report = edge.report();
                let (head, pending) = (report.journal.head, report.pending);
                ensure!(
                    report.left_out == 0 && report.journal.corrupt.is_empty(),
                    "damage that nobody did: {report:?}"
                );
                let checkpoint = report.checkpoint;
                self.note(format_args!(
                    "the edge starts at {head} (checkpoint {checkpoint}), {pending} pending"
                ));
                self.edge = Some(edge);
                self.ticked.fill(0);
            }
            Err(_) if self.disk.is_down() => {
                let dies = self.dies;
                self.die(dies);
            }
            // Allocations that were not durable are gone, and somebody else has the room: an operator makes some.
            Err(error) if ["disk is full", "no space"].iter().any(|why| error.to_string().contains(why)) => {
                self.note(format_args!("the edge can't start: {error}"));
                self.disk.set_capacity(None);
                self.start_at = self.now() + 1_000;
            }
            Err(error) => return Err(format!("the edge can't start: {error}")),
        }
        Ok(())
    }

    /// Peers do what they do.
    fn act(&mut self) -> Result<(), String> {
        let now = self.now();
        let clock = START + now;
        let is_calm = self.is_calm;
        let Self { devices, routers, edge, chances, oracle, trace, batches, .. } = self;
        let note = &mut |what: String| trace.note(now, format_args!("{what}"));
        if let Some(edge) = edge {
            oracle.edge_now = oracle.edge_now.max(edge.now());
        }
        for device in devices {
            if !is_calm {
                device.change_mood(now, &mut chances.devices);
            }
            if let Some(edge) = edge
                && !device.has_link()
                && now >= device.connect_at
            {
                let shard = chances.network.random_range(0..edge.shards().len());
                let pipe = Pipe::new(room(&mut chances.network));
                if edge.accept(shard, &pipe, SocketAddr::from(([127, 0, 0, 1], 1_000))) {
                    note(format!("{} connects to shard {shard}", device.id));
                    device.connected(now, pipe, edge.head(), oracle);
                }
            }
            if !is_calm && let Some(words) = device.ask(now, &mut chances.devices, oracle) {
                note(words);
            }
            device.act(now, is_calm, (&mut chances.devices, &mut chances.network), oracle, note)?;
        }
        let all = routers.len();
        for (number, router) in routers.iter_mut().enumerate() {
            if !is_calm && once_in(&mut chances.routers, 60) {
                router.revoke(&mut chances.routers, oracle);
            }
            if !is_calm && once_in(&mut chances.routers, all as u32 * if batches.heavy { 2 } else { 6 }) {
                router.think(clock, *batches, &mut chances.routers, oracle);
            }
            if !is_calm && once_in(&mut chances.routers, 40) {
                router.repeat(&mut chances.routers, oracle);
            }
            if !is_calm && once_in(&mut chances.routers, 200) {
                let longest = if oracle.may_have_gaps { 60_000 } else { 10_000 };
                router.stop_reading(now + chances.routers.random_range(0..longest));
            }
            if let Some(edge) = edge
                && !router.has_link()
                && now >= router.connect_at
            {
                let pipe = Pipe::new(room(&mut chances.network));
                if edge.link(&router.name, &pipe) {
                    // In the end each stream has one reader; before, whoever wants takes it.
                    let mut takes = |at: usize| {
                        if is_calm { at % all == number } else { all == 1 || chances.routers.random() }
                    };
                    let mine = (0..batches.apps).filter(|at| takes(*at)).map(|at| STREAMS[at]);
                    let mine: Vec<_> = mine.collect();
                    router.connected(pipe, &mine, oracle, &mut chances.routers);
                }
            }
            router.act(now, is_calm, (&mut chances.routers, &mut chances.network), oracle, note)?;
        }
        Ok(())
    }

    /// The edge does some of what it could do, in any order.
    fn drive(&mut self) -> Result<(), String> {
        let now = self.now();
        let Some(edge) = &mut self.edge else { return Ok(()) };
        let (edge_now, step) = (edge.now(), self.oracle.step);
        for device in &self.devices {
            device.pipes().for_each(|pipe| pipe.set_now(Stamp { step, edge: edge_now }));
        }
        let mut parts = vec![Part::Store, Part::Bodies];
        for (number, shard) in edge.shards().iter_mut().enumerate() {
            let timers = now >= self.ticked[number] + TICK_MS;
            if timers || shard.is_due() {
                parts.push(Part::Turn(number, timers));
            }
            parts.extend(shard.woken().into_iter().map(|task| Part::Connection(number, task)));
        }
        parts.extend((0..edge.links()).map(Part::Link));
        let rng = &mut self.chances.schedule;
        for at in (1..parts.len()).rev() {
            parts.swap(at, rng.random_range(0..=at));
        }
        for part in parts {
            if !self.is_calm && once_in(&mut self.chances.schedule, 6) {
                continue;
            }
            let Some(edge) = &mut self.edge else { return Ok(()) };
            match part {
                Part::Store => {
                    if let Err(failure) = edge.store_turn() {
                        ensure!(self.disk.is_down(), "the store failed: {failure}");
                        let dies = self.dies;
                        self.die(dies);
                    }
                }
                Part::Bodies => edge.read_bodies(),
                Part::Turn(shard, timers) => {
                    edge.shards()[shard].turn(timers);
                    if timers {
                        self.ticked[shard] = now;
                    }
                }
                Part::Connection(shard, task) => edge.shards()[shard].poll(task),
                Part::Link(link) => edge.poll_link(link),
            }
        }
        Ok(())
    }

    /// What must hold after every step.
    fn check(&mut self) -> Result<(), String> {
        self.memory.check(self.edge.as_mut())?;
        let Some(edge) = &mut self.edge else { return Ok(()) };
        let totals = edge.totals();
        ensure!(totals.identity_holds(), "{totals:?}");
        for shard in edge.shards() {
            let most = mooring::limits::OUTBOX_BYTES + mooring::limits::DEVICE_FRAME_BYTES;
            ensure!(shard.fullest_outbox() <= most, "{} bytes in an outbox", shard.fullest_outbox());
        }
        // The newest session of a device is the one in the directory; or a newer one has come and gone, and it will be told in a moment.
        let live = edge.live();
        let mut unnamed = BTreeMap::new();
        for session in &live {
            let generation = session.session.generation;
            let of_device = live.iter().filter(|other| other.device == session.device);
            let is_newest = of_device.map(|other| other.session.generation).max() == Some(generation);
            let named = edge.session_of(&session.device);
            // When the newest one has left, an older one that comes late may enter; never while the newest is there.
            let newest = self.newest.entry(session.device).or_insert(generation);
            *newest = generation.max(named.map_or(generation, |named| named.generation)).max(*newest);
            let is_older = named.is_some_and(|named| named.generation < generation);
            ensure!(!is_older || *newest > generation, "{named:?} took the place of {session:?}");
            if is_newest && named.is_none_or(|named| named.generation < generation) {
                let steps = self.unnamed.get(&generation).map_or(1, |steps| steps + 1);
                ensure!(steps < MAIL_STEPS, "the directory has lost {session:?}, it says {named:?}");
                unnamed.insert(generation, steps);
            }
        }
        self.unnamed = unnamed;
        Ok(())
    }

    fn calm_down(&mut self) {
        self.note(format_args!("all is calm"));
        self.is_calm = true;
        self.memory.relax();
        if self.edge.is_some() && self.disk.is_down() {
            let dies = self.dies;
            self.die(dies);
        }
        // No crash waits any more.
        self.disk.crash_at(u64::MAX);
        self.disk.set_capacity(None);
        let now = self.now();
        self.start_at = self.start_at.min(now);
        for router in &mut self.routers {
            router.disconnect(now, 0);
        }
        for device in &mut self.devices {
            device.calm_down();
            device.connect_at = device.connect_at.min(now + 1_000);
            for ghost in device.ghosts.drain(..) {
                ghost.cut();
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        let Some(edge) = &self.edge else { return false };
        edge.totals().pending == 0
            && !edge.has_staged()
            && self.plan.store.streams.iter().all(|stream| {
                let cursor = self.oracle.streams.get(&**stream).map_or(0, |known| known.cursor);
                edge.is_read(stream, cursor)
            })
            && self.routers.iter().all(Router::is_settled)
            && self.devices.iter().all(|device| device.is_connected() && device.unsettled() == 0)
            && self.oracle.answers.iter().all(|(id, answer)| {
                (0..self.oracle.batches[id].targets.len() as u32).all(|ordinal| {
                    answer.refused.contains_key(&ordinal)
                        || self.oracle.gaps > 0
                        || self.oracle.ends.contains_key(&(id.clone(), ordinal))
                })
            })
    }

    /// The client library's ledger has seen nothing that can't be.
    fn check_ledger(&self) -> Result<(), String> {
        for router in &self.routers {
            let tally = router.tally();
            ensure!(tally.conflicts == 0, "{}: {tally:?}", router.name);
        }
        Ok(())
    }

    /// At rest each device has its one session.
    fn check_at_rest(&self) -> Result<(), String> {
        let Some(edge) = &self.edge else { return Ok(()) };
        let live = edge.live();
        for device in &self.devices {
            let sessions = live.iter().filter(|session| session.device == device.key).count();
            ensure!(sessions == 1, "{} has {sessions} sessions", device.id);
        }
        ensure!(
            edge.connected() == self.devices.len(),
            "{} devices in the directory, {} are there",
            edge.connected(),
            self.devices.len()
        );
        Ok(())
    }
}

/// What kind of edge this run has.
fn plan(rng: &mut SmallRng) -> Plan {
    let apps: Vec<AppKey> = (0..rng.random_range(1..=APPS.len())).map(app).collect();
    let routers = rng.random_range(1..=2);
    let quota = Quota { max_entries: 6, max_bytes: u64::MAX, drop_oldest: rng.random() };
    let mut store = StoreOptions {
        parts: 4,
        segment_bytes: 16 * 1024,
        // The largest Ack finds room in it.
        reserve_segments: 16,
        checkpoint_bytes: 16 * 1024,
        message_cache_bytes: 1_000,
        device_cache_bytes: 1_000,
        body_cache_bytes: if rng.random() { 1_000 } else { 1_000_000 },
        tables: if once_in(rng, 16) { TableKind::Library } else { TableKind::Log },
        forget_after_ms: 0,
        unmatched_per_second: u32::MAX,
        digest_key: DigestKey([7; 32]),
        streams: STREAMS[..apps.len()].iter().map(|name| (*name).into()).collect(),
        app_streams: apps.iter().cloned().zip(STREAMS.map(Arc::from)).collect(),
        app_quotas: if once_in(rng, 4) { [(app(0), quota)].into() } else { HashMap::new() },
        ..StoreOptions::default()
    };
    if once_in(rng, 8) {
        (store.stream_soft_bytes, store.stream_hard_bytes) = (32 * 1024, 64 * 1024);
    }
    let device = config::Device {
        ack_deadline_ms: 3_000,
        online_window_ms: 6_000,
        stall_deadline_ms: 4_000,
        hello_deadline_ms: 2_000,
        suspect_after_ms: 1_000,
        heartbeat_min_s: 2,
        heartbeat_default_s: 10,
        heartbeat_max_s: 20,
        ..config::Device::default()
    };
    Plan {
        shards: rng.random_range(1..=4),
        apps,
        routers: (1..=routers).map(|number| format!("router-{number}")).collect(),
        device,
        store,
        events_a_read: rng.random_range(1..20),
    }
}

/// What a kernel takes of a connection.
fn room(rng: &mut SmallRng) -> usize {
    match rng.random_range(0..4) {
        0 => rng.random_range(64..512),
        1 => 2_048,
        _ => 16_384,
    }
}
