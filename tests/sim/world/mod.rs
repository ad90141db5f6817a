//! The simulated world: an edge, its devices, its routers, and everything that can go wrong, from one seed.
//!
//! A run has two halves. In the first everything happens at once, and faults among it; in the second all is calm: everybody connects, reads and
//! acknowledges, and the edge must come to rest with every message at its end. Then the power goes once more, and what it had counted must
//! still be so.

mod chance;
mod check;
mod credentials;
mod damage;
mod device;
mod faults;
mod known;
mod leaving;
mod link;
mod memory;
mod oracle;
mod plan;
pub(crate) mod planted;
mod presence;
mod reads;
mod restore;
mod router;
mod settings;
mod trace;
mod turns;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mooring::fault::{self, Fault};
use mooring::ids::{AppKey, DeviceKey, Generation};
use mooring::push::Millis;
use mooring::sim::{Edge, Plan, START, SimTime};
use mooring::store::disk::sim::{Loss, SimDisk};
use rand::Rng;
use rand::rngs::SmallRng;

use chance::{Chances, once_in};
use credentials::Credentials;
use damage::Damage;
use device::Device;
use faults::Death;
use known::Known;
use leaving::Leaving;
use memory::Memory;
use oracle::{Oracle, ensure};
use plan::plan;
use reads::Reads;
use restore::Restore;
use router::{APPS, Batches, Router};
use settings::Settings;
use trace::Trace;

/// Milliseconds of simulated time in which something must come to its end in a calm world, until all has. A bound of the whole would be one of
/// how much there is to do: batches wait for each other where a stream's bound is small.
const REST_MS: Millis = 240_000;
/// Steps within which a shard has read its mail.
pub(crate) const MAIL_STEPS: u64 = 30;

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
    damage: Damage,
    restore: Restore,
    credentials: Credentials,
    leaving: Leaving,
    reads: Reads,
    parts: Parts,
    settings: Settings,
    /// The power has gone since an edge last started.
    lost_power: bool,
    /// Presence is gathered again from then on.
    gather_at: Millis,
    /// The ids of the devices.
    names: Vec<String>,
}

/// How many targets of a batch are taken in one piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    Large,
    Small,
    /// Others after each start.
    Vary,
}

impl Parts {
    fn of(rng: &mut SmallRng) -> Self {
        match rng.random_range(0..3) {
            0 => Self::Large,
            1 => Self::Small,
            _ => Self::Vary,
        }
    }
}

fn app(number: usize) -> AppKey {
    AppKey::parse(APPS[number]).expect("valid")
}

impl World {
    fn new(options: Options) -> Self {
        let mut chances = Chances::of(options.seed);
        let mut plan = plan(&mut chances.schedule);
        let damage = Damage::new(&mut chances.damage);
        let restore = Restore::new(&mut chances.restore, damage.happens);
        // Which part of a batch lies where nothing can be read isn't told: what damage excuses would be too much.
        let parts = if damage.happens { Parts::Large } else { Parts::of(&mut chances.parts) };
        if let Parts::Small = parts {
            plan.part_targets = chances.parts.random_range(1..4);
        }
        // What is held against all that was said before has no place in a run that takes some of it back.
        let keeps_time = !restore.happens;
        if once_in(&mut chances.forgetting, 3) && keeps_time {
            plan.store.forget_after_ms = chances.forgetting.random_range(3_000..12_000);
        }
        let memory = Memory::new();
        plan.store.budget = memory.budget();
        let heavy = once_in(&mut chances.routers, 4);
        let devices = chances.devices.random_range(if heavy { 1..=2 } else { 2..=8 }) * plan.apps.len();
        let time = Arc::new(SimTime::default());
        time.wall.store(START, Ordering::Relaxed);
        let batches = Batches { devices, apps: plan.apps.len(), collapse: chances.routers.random(), heavy };
        let credentials = Credentials::new(&mut plan, keeps_time, &mut chances.credentials);
        let device = |number: usize| {
            let app = &plan.apps[number % plan.apps.len()];
            let install = credentials.install_secret(&mut chances.credentials);
            Device::new(number, app, &plan.store.digest_key, install, &mut chances.devices)
        };
        let devices: Vec<Device> = (0..devices).map(device).collect();
        let follows = once_in(&mut chances.presence, 3);
        let routers =
            (1..=plan.routers.len() as u64).map(|number| Router::new(number, follows, &mut chances.routers));
        let routers = routers.collect();
        let mut oracle = Oracle {
            edge_now: START,
            quota: !plan.store.app_quotas.is_empty(),
            may_have_gaps: plan.store.stream_hard_bytes < 1 << 30,
            known: Known::new(plan.store.forget_after_ms),
            epoch: plan.epoch,
            part_targets: (parts != Parts::Vary).then_some(plan.part_targets),
            ..Oracle::default()
        };
        let reads = Reads::new(keeps_time, &mut chances.reads);
        oracle.reads_fail = reads.happen;
        Self {
            edge: None,
            start_at: 0,
            dies: Death::Process,
            ticked: vec![0; plan.shards],
            names: devices.iter().map(|device| device.id.clone()).collect(),
            devices,
            credentials,
            leaving: Leaving::new(keeps_time, &mut chances.leaving),
            reads,
            parts,
            settings: Settings::new(&mut chances.settings),
            lost_power: false,
            gather_at: 0,
            routers,
            oracle,
            trace: Trace::new(options.prints),
            is_calm: false,
            crashes: 0,
            memory,
            damage,
            restore,
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
        let stalled =
            if self.damage.flipped > 0 { self.come_to_rest_damaged()? } else { self.come_to_rest()? };
        let totals = self.edge.as_ref().ok_or("no edge")?.totals();
        self.oracle.finish(&totals, stalled)?;
        self.check_ledger()?;
        self.check_at_rest()?;
        self.check_presence()?;
        // What it counted holds after a power loss too.
        let totals = self.edge.as_ref().ok_or("no edge")?.totals();
        self.die(Death::Power(Loss::All));
        self.start_at = 0;
        self.start()?;
        let again = self.edge.as_ref().ok_or("no edge")?.totals();
        ensure!(again.identity_holds(), "after a power loss {again:?}");
        ensure!(again == totals, "after a power loss {again:?}, before {totals:?}");
        Ok(Report {
            digest: self.trace.digest(),
            accepted: totals.accepted,
            arrived: totals.arrived,
            crashes: self.crashes,
            sessions: self.oracle.sessions.len(),
        })
    }

    /// Until nothing is left to be done. Whether something is all the same.
    fn come_to_rest(&mut self) -> Result<bool, String> {
        let (mut ended, mut until) = (0, self.now() + REST_MS);
        while !self.is_at_rest() && self.now() < until {
            self.step()?;
            if self.oracle.ended_so_far() > ended {
                (ended, until) = (self.oracle.ended_so_far(), self.now() + REST_MS);
            }
        }
        Ok(!self.is_at_rest())
    }

    fn step(&mut self) -> Result<(), String> {
        self.oracle.step += 1;
        self.pass_time();
        if !self.is_calm {
            self.break_things();
            self.operate();
        }
        self.revoke_credentials();
        self.leave()?;
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
        self.damage.heal(&self.disk);
        self.disk.fail_reads_between(0..0);
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
}
