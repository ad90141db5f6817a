//! One edge with its devices and routers, and what is done to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mooring::cli::output::{Failure, note};
use mooring::client::local::{LocalApp, LocalEdge};
use mooring::client::router::Asker;
use mooring::clock::Clock;
use mooring::ids::AppKey;
use mooring::push::Failure as FailReason;
use mooring::wire::pb::router::MessageState;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::disk::SmallDisk;
use super::outages::Outages;
use super::phones::{self, Order as DeviceOrder, Phones};
use super::plan::{Fault, Plan};
use super::router_log::{Batch, RouterLog, Target};
use super::upstream::{self, Order as RouterOrder, Upstream};
use super::verdict::{Ring as Judged, Verdict};

/// Milliseconds.
type Millis = u64;

/// Of the second app, beside the one that a local edge has: app key and stream.
const SECOND: (&str, &str) = ("second", "second");
/// Seconds for all devices to be welcome at first.
const WELCOME_SECONDS: u64 = 60;
/// Seconds for an edge that was told to leave.
const LEAVE_SECONDS: u64 = 40;
/// Seconds in the end without anything new, after which what is open counts as lost. Longer than any message expires, and than an edge
/// that writes again what was not acknowledged.
const QUIET_SECONDS: u64 = 45;
/// Milliseconds between two looks.
const LOOK_MS: u64 = 200;
/// Messages of each router that the edge is asked about in the end.
const ASKED: usize = 250;
/// All that has to turn many times within a minute turns.
const SETTINGS: [(&str, &str); 11] = [
    ("store.segment_bytes", "4MiB"),
    ("store.checkpoint_bytes", "2MiB"),
    ("store.message_cache_bytes", "1MiB"),
    ("store.device_cache_bytes", "1MiB"),
    ("store.table_cache_bytes", "1MiB"),
    ("store.body_cache_bytes", "1MiB"),
    ("device.ack_deadline_ms", "5000"),
    ("leave.drain_lead_ms", "50"),
    ("leave.window_ms", "300"),
    ("leave.deadline_ms", "20000"),
    ("log.filter", "warn"),
];

/// How often what was done.
pub(super) type Done = BTreeMap<&'static str, u64>;

/// How a ring is made.
pub(super) struct Make<'a> {
    pub(super) program: &'a Path,
    pub(super) dir: &'a Path,
    pub(super) disk: Option<SmallDisk>,
    pub(super) devices: u32,
    /// Targets a second.
    pub(super) rate: u64,
    pub(super) seed: u64,
    /// Targets of a batch that the edge takes in one piece.
    pub(super) part_targets: usize,
    pub(super) clock: &'a Arc<Clock>,
}

/// One edge and its peers.
pub(super) struct Ring {
    edge: LocalEdge,
    disk: Option<SmallDisk>,
    phones: Phones,
    routers: Vec<Upstream>,
    /// When the edge did not run.
    outages: Outages,
    part_targets: usize,
    plan: Plan,
    rng: SmallRng,
    clock: Arc<Clock>,
    pub(super) done: Done,
    pub(super) verdict: Verdict,
}

impl Ring {
    pub(super) async fn start(make: Make<'_>) -> Result<Self, Failure> {
        let (key, stream) = SECOND;
        let second = [LocalApp { key, stream, over_quota: "refuse_newest" }];
        let part_targets = make.part_targets.to_string();
        let settings = [&SETTINGS[..], &[("router.part_targets", &part_targets)]].concat();
        let edge = LocalEdge::prepare_with_apps(make.program, make.dir, 2, &settings, &second);
        let mut edge = edge.map_err(Failure::failed)?;
        edge.start().await.map_err(|e| Failure::failed(format!("{}: {e}", make.program.display())))?;
        let key = AppKey::parse(key).ok_or_else(|| Failure::failed("the second app's key"))?;
        let apps = [edge.app().clone(), key];
        let phones = Phones::start(&edge, &apps, make.devices, make.seed, make.clock);
        let first = make.clock.now() * 1_000;
        let routers = apps.iter().zip(["main", stream]).enumerate().map(|(number, (app, stream))| {
            let identity = upstream::Identity {
                endpoint: if number == 0 { edge.router_endpoint() } else { edge.router_endpoint_grpc() },
                app: app.clone(),
                stream: stream.to_owned(),
                devices: (0..make.devices).filter(|n| phones::app_of(*n, apps.len()) == number).collect(),
                rate: make.rate / apps.len() as u64,
                seed: make.seed ^ (number as u64 + 1) << 48,
                first: first + number as u64 * 1_000_000_000_000,
            };
            Upstream::start(identity, make.clock)
        });
        let ring = Self {
            routers: routers.collect(),
            plan: Plan::new(make.seed, apps.len(), make.disk.is_some()),
            part_targets: make.part_targets,
            edge,
            disk: make.disk,
            phones,
            outages: Outages::default(),
            rng: SmallRng::seed_from_u64(make.seed),
            clock: Arc::clone(make.clock),
            done: Done::new(),
            verdict: Verdict::default(),
        };
        ring.all_welcome().await?;
        ring.routers.iter().for_each(|router| router.load(true));
        Ok(ring)
    }

    async fn all_welcome(&self) -> Result<(), Failure> {
        let all = self.phones.len() as u64;
        for _ in 0..WELCOME_SECONDS * 1_000 / LOOK_MS {
            if self.phones.connected() == all {
                return Ok(());
            }
            sleep(LOOK_MS).await;
        }
        let connected = self.phones.connected();
        Err(Failure::failed(format!("{connected} of {all} devices are connected; {}", self.edge.log_tail())))
    }

    /// Breaks one thing after the other until then.
    pub(super) async fn torment(&mut self, until: Millis) -> Result<(), Failure> {
        loop {
            let (pause, fault) = self.plan.next();
            if self.clock.now() + pause >= until {
                break;
            }
            sleep(pause).await;
            self.edge.alive().map_err(|e| Failure::failed(format!("before {fault:?}: {e}")))?;
            self.totals().await;
            self.fault(fault).await.map_err(|e| Failure::failed(format!("after {fault:?}: {e}")))?;
        }
        self.routers.iter().for_each(|router| router.load(false));
        Ok(())
    }

    async fn fault(&mut self, fault: Fault) -> Result<(), Failure> {
        match fault {
            Fault::Kill { down } => {
                self.kill().await?;
                sleep(down).await;
                self.revive().await
            }
            Fault::KillTwice { down, again } => {
                self.kill().await?;
                sleep(down).await;
                self.edge.launch().map_err(Failure::failed)?;
                sleep(again).await;
                self.edge.kill().await.map_err(Failure::failed)?;
                self.count("kills", 1);
                self.revive().await
            }
            Fault::Restart => {
                self.edge.terminate().map_err(Failure::failed)?;
                self.outages.begin(self.clock.now());
                let left = tokio::time::timeout(Duration::from_secs(LEAVE_SECONDS), self.edge.wait()).await;
                let status =
                    left.map_err(|_| Failure::failed("it did not leave"))?.map_err(Failure::failed)?;
                if !status.success() {
                    return Err(Failure::failed(format!("it left with {status}; {}", self.edge.log_tail())));
                }
                self.count("restarts", 1);
                self.revive().await
            }
            Fault::Stop { lasts } => {
                self.outages.begin(self.clock.now());
                self.edge.pause().map_err(Failure::failed)?;
                sleep(lasts).await;
                self.edge.resume().map_err(Failure::failed)?;
                self.outages.end(self.clock.now());
                self.count("stops", 1);
                Ok(())
            }
            Fault::Full { lasts, kill } => self.full(lasts, kill).await,
            Fault::Cut { percent } => {
                self.devices("cuts", percent, DeviceOrder::Cut);
                Ok(())
            }
            Fault::Away { percent, lasts } => {
                self.devices("away", percent, DeviceOrder::Away(lasts));
                Ok(())
            }
            Fault::Deaf { percent, lasts } => {
                self.devices("deaf", percent, DeviceOrder::Deaf(lasts));
                Ok(())
            }
            Fault::Vanish { router, lasts } => {
                self.router("routers_vanished", router, RouterOrder::Vanish(lasts));
                Ok(())
            }
            Fault::DeafRouter { router, lasts } => {
                self.router("routers_deaf", router, RouterOrder::Deaf(lasts));
                Ok(())
            }
        }
    }

    async fn kill(&mut self) -> Result<(), Failure> {
        self.outages.begin(self.clock.now());
        self.edge.kill().await.map_err(Failure::failed)?;
        self.count("kills", 1);
        Ok(())
    }

    async fn revive(&mut self) -> Result<(), Failure> {
        self.edge.start().await.map_err(Failure::failed)?;
        self.outages.end(self.clock.now());
        Ok(())
    }

    /// No room for a while; perhaps it is killed then, and tries to start without room.
    async fn full(&mut self, lasts: Millis, kill: bool) -> Result<(), Failure> {
        let Some(disk) = &self.disk else { return Ok(()) };
        disk.fill().map_err(Failure::failed)?;
        sleep(lasts / 2).await;
        if kill {
            self.outages.begin(self.clock.now());
            self.edge.kill().await.map_err(Failure::failed)?;
            self.edge.launch().map_err(Failure::failed)?;
            // Whether it gets ready without room or not: it must once there is some.
            tokio::time::timeout(Duration::from_millis(lasts), self.edge.ready()).await.ok();
        } else {
            sleep(lasts / 2).await;
        }
        disk.empty().map_err(Failure::failed)?;
        self.count("full_disks", 1);
        if kill {
            self.count("kills", 1);
            if self.edge.alive().is_err() {
                self.count("starts_without_room_refused", 1);
                self.edge.launch().map_err(Failure::failed)?;
            }
            self.edge.ready().await.map_err(Failure::failed)?;
            self.outages.end(self.clock.now());
        }
        Ok(())
    }

    fn devices(&mut self, name: &'static str, percent: u32, order: DeviceOrder) {
        let some = (0..self.phones.len()).filter(|_| self.rng.random_ratio(percent, 100));
        let some: Vec<_> = some.collect();
        let ordered = self.phones.order(some.into_iter(), order);
        self.count(name, ordered);
    }

    fn router(&mut self, name: &'static str, router: usize, order: RouterOrder) {
        let ordered = self.routers.get(router).is_some_and(|router| router.order(order));
        self.count(name, u64::from(ordered));
    }

    fn count(&mut self, name: &'static str, more: u64) {
        *self.done.entry(name).or_default() += more;
    }

    /// The edge's own sums, at any moment.
    async fn totals(&mut self) {
        // It may just have been stopped or be leaving: then there is no answer to judge.
        let Ok(totals) = self.edge.ask("/v1/totals").await else { return };
        self.count("totals_asked", 1);
        if totals["identity"] != true {
            self.verdict.violation(|| format!("the edge's own sums: {totals}"));
        }
    }

    /// Waits until everything has its end, or nothing moves any more.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        let (mut last, mut still) = (None, 0);
        loop {
            self.edge.alive().map_err(Failure::failed)?;
            let open: usize = self.routers.iter().map(Upstream::open).sum();
            let all = self.phones.len() as u64;
            let told: usize = self.routers.iter().map(Upstream::reactions).sum();
            let untold = self.phones.reactions().saturating_sub(told);
            let state = (open, untold, self.phones.unsettled(), all - self.phones.connected().min(all));
            if state == (0, 0, 0, 0) {
                return Ok(());
            }
            still = if last == Some(state) { still + LOOK_MS } else { 0 };
            if still >= QUIET_SECONDS * 1_000 {
                let (open, untold, unsettled, gone) = state;
                // Messages and receipts are judged one by one; who isn't served is a broken promise too.
                let what = format!(
                    "nothing moves any more: {open} messages open, {untold} clicks and cleans untold, \
                     {unsettled} devices unsettled, {gone} not connected"
                );
                if unsettled + gone > 0 {
                    self.verdict.violation(|| what);
                } else {
                    note(&what);
                }
                return Ok(());
            }
            last = Some(state);
            self.phones.probe();
            sleep(LOOK_MS).await;
        }
    }

    /// Ends everything, and judges.
    pub(super) async fn judge(mut self, slack: Millis) -> Result<(Done, Verdict), Failure> {
        self.totals().await;
        for text in self.phones.turned_away().into_iter().chain(self.routers.iter().flat_map(Upstream::ended))
        {
            self.verdict.violation(|| text);
        }
        let (endpoint, apps) = (self.edge.router_endpoint(), self.routers.iter().map(|r| r.app.clone()));
        let apps: Vec<_> = apps.collect();
        let mut logs = Vec::new();
        for router in self.routers {
            logs.push(router.end().await);
        }
        let devices = self.phones.end().await;
        let mut asker = Asker::new(endpoint, "chaos, questions");
        for (app, (log, _)) in apps.iter().zip(&logs) {
            for batch in sample(log) {
                let answer = asker.message(app, batch.message, None).await;
                let (_, state) = answer.map_err(Failure::failed)?;
                *self.done.entry("messages_asked").or_default() += 1;
                let ours = counts(batch);
                if ours != answered(&state) {
                    let message = batch.message;
                    self.verdict.violation(|| {
                        format!("message {message}: the edge says {state:?}, the router counted {ours:?}")
                    });
                }
            }
        }
        self.edge.kill().await.map_err(Failure::failed)?;
        self.verdict.judge(&Judged {
            routers: logs.iter().map(|(log, _)| log).collect(),
            devices: devices.iter().collect(),
            edge: &self.outages,
            away: logs.iter().map(|(_, away)| away).collect(),
            part_targets: self.part_targets,
            slack,
        });
        drop(self.disk);
        Ok((self.done, self.verdict))
    }
}

/// Messages from all over the run.
fn sample(log: &RouterLog) -> impl Iterator<Item = &Batch> {
    let taken = log.batches.iter().filter(|batch| batch.accepted.is_some());
    let step = (log.batches.len() / ASKED).max(1);
    taken.step_by(step)
}

/// Of one message: accepted, arrived, pending, failed by reason.
type Counts = (u64, u64, u64, [u64; FailReason::ALL.len()]);

fn counts(batch: &Batch) -> Counts {
    let mut counts: Counts = Default::default();
    for target in &batch.targets {
        match target {
            Target::Refused(_) => continue,
            Target::Open => counts.2 += 1,
            Target::Ended(end) => match end.failure {
                None => counts.1 += 1,
                Some(failure) => counts.3[failure as usize - 1] += 1,
            },
        }
        counts.0 += 1;
    }
    counts
}

fn answered(state: &MessageState) -> Counts {
    let mut counts: Counts = (state.accepted, state.arrived, state.pending, Default::default());
    for failed in &state.failed {
        if let Some(count) = usize::try_from(failed.reason - 1).ok().and_then(|at| counts.3.get_mut(at)) {
            *count = failed.count;
        }
    }
    counts
}

async fn sleep(milliseconds: Millis) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}
