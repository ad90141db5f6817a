//! The edge, the devices and the routers of the demo, and how it waits: for events, never for a time; the whole has a deadline.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::Args;
use super::app::Shared;
use super::device_events::ToldOfDevices;
use super::fleet::Fleet;
use super::plan::{Draft, Plan};
use super::questions::{self, Presence};
use super::report::{Check, Report};
use super::show::{Goal, Show};
use crate::cli::output::Failure;
use crate::client::local::{LocalApp, LocalEdge};
use crate::client::router::{Options, Progress, Router, Tally};
use crate::client::{Backoff, Endpoint};
use crate::clock::Clock;
use crate::ids::{AppKey, DigestKey};

/// Milliseconds without a link after which a router gives up.
const PATIENCE_MS: u64 = 60_000;
/// Milliseconds after which the state is looked at again, whether or not something was heard.
const LOOK_MS: u64 = 200;
/// Seconds for the last receipts to come in.
const SETTLE_SECONDS: u64 = 30;
/// Seconds for the edge to leave.
const LEAVE_SECONDS: u64 = 40;
/// The second app, and the stream of its receipts and outcomes. It drops the oldest where the first one refuses the newest.
const SECOND: LocalApp<'_> = LocalApp { key: "demo-2", stream: "second", over_quota: "drop_oldest" };
/// Messages that one device may have pending.
pub(super) const MAX_PENDING: u32 = 64;

/// All that plays.
pub(super) struct Stage {
    pub(super) fleet: Fleet,
    pub(super) edge: LocalEdge,
    /// One an app, each with a stream of its own; the second one over gRPC, where that is built in.
    pub(super) routers: [Router; 2],
    progress: [watch::Receiver<Progress>; 2],
    presence: Presence,
    /// What the streams say of devices.
    pub(super) told_of_devices: Arc<ToldOfDevices>,
    pub(super) plan: Plan,
    pub(super) clock: Arc<Clock>,
    pub(super) show: Show,
    deadline: u64,
    /// Messages that devices that are online have been given.
    pub(super) expected: u64,
    /// Outcomes that are failures.
    pub(super) failing: u64,
    /// Batches that have to be rejected, of one target each.
    pub(super) rejected: u64,
    /// Devices that have to be told that a message was taken back.
    pub(super) to_be_told: u64,
    checks: Vec<Check>,
    shards: u32,
}

impl Stage {
    pub(super) async fn new(args: &Args, seed: u64, dir: &Path) -> Result<Self, Failure> {
        let clock = Arc::new(Clock::new(0));
        let mut show = Show::new(&clock);
        let how = args.transport.iter().map(|way| way.name()).collect::<Vec<_>>().join(" and ");
        let starts =
            format!("an edge of {} shards starts; devices will come over {how} (seed {seed})", args.shards);
        show.begin("start", &starts, Goal::Unknown);
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let max_pending = MAX_PENDING.to_string();
        // A short goodbye: nobody balances load here.
        let settings = [
            ("leave.drain_lead_ms", "0"),
            ("leave.window_ms", "200"),
            ("log.filter", "info"),
            ("store.max_pending_per_device", max_pending.as_str()),
        ];
        let shards = args.shards as usize;
        let mut edge = LocalEdge::prepare_with_apps(&program, dir, shards, &settings, &[SECOND])
            .map_err(Failure::failed)?;
        edge.start().await.map_err(Failure::failed)?;
        let second = AppKey::parse(SECOND.key).ok_or_else(|| Failure::failed("not an app key"))?;
        let apps = vec![edge.app().clone(), second];
        let told = Arc::new(ToldOfDevices::default());
        let routers = [
            router(edge.router_endpoint(), "main", seed, &clock, &told)?,
            router(edge.router_endpoint_grpc(), SECOND.stream, seed, &clock, &told)?,
        ];
        Ok(Self {
            fleet: Fleet::start(&edge, &apps, args.devices, &args.transport, seed, &clock)?,
            progress: [routers[0].progress(), routers[1].progress()],
            presence: Presence::follow(&edge, PATIENCE_MS, seed, &clock),
            told_of_devices: told,
            plan: Plan::new(apps, seed),
            edge,
            routers,
            deadline: clock.now() + args.deadline * 1_000,
            clock,
            show,
            expected: 0,
            failing: 0,
            rejected: 0,
            to_be_told: 0,
            checks: Vec::new(),
            shards: args.shards,
        })
    }

    /// What both routers say together.
    pub(super) fn look(&mut self) -> Progress {
        let [first, second] = &mut self.progress;
        let mut both = first.borrow_and_update().clone();
        let other = second.borrow_and_update();
        both.connected &= other.connected;
        both.links += other.links;
        both.tally += other.tally;
        both
    }

    /// Waits until something is so. Fails at the deadline, and as soon as it can't come any more.
    pub(super) async fn until(
        &mut self,
        what: &str,
        so: impl Fn(&Shared, &Progress) -> bool,
    ) -> Result<(), Failure> {
        let deadline = self.deadline;
        if self.is_so_by(deadline, so).await? {
            return Ok(());
        }
        let tally = self.look().tally;
        let log = self.edge.log_tail();
        Err(Failure::failed(format!(
            "gave up waiting until {what}: {} devices connected, {} messages handed over, {tally:?}; the end of the edge's log:\n{log}",
            self.fleet.shared.connected(),
            self.fleet.shared.received(),
        )))
    }

    /// `false`: it wasn't so by then.
    async fn is_so_by(
        &mut self,
        deadline: u64,
        so: impl Fn(&Shared, &Progress) -> bool,
    ) -> Result<bool, Failure> {
        loop {
            let progress = self.look();
            self.show.look(self.fleet.shared.connected(), self.fleet.shared.received());
            if so(&self.fleet.shared, &progress) {
                return Ok(true);
            }
            if let Some(why) = self.fleet.shared.failure() {
                return Err(Failure::failed(why));
            }
            if self.edge.pid().is_some() {
                self.edge.alive().map_err(Failure::failed)?;
            }
            if self.clock.now() >= deadline {
                return Ok(false);
            }
            let [first, second] = &mut self.progress;
            let ended = |_| Failure::failed("a router has ended");
            tokio::select! {
                () = self.fleet.shared.changed.notified() => {}
                changed = first.changed() => changed.map_err(ended)?,
                changed = second.changed() => changed.map_err(ended)?,
                () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => {}
            }
        }
    }

    /// Gives a message to the routers of the apps that its devices belong to.
    pub(super) async fn deliver(&mut self, draft: &Draft) -> Result<(), Failure> {
        for (app, batch) in self.plan.batches(self.clock.now(), draft, &self.fleet.shared) {
            if !self.routers[app].deliver(batch).await {
                return Err(Failure::failed("a router has ended"));
            }
        }
        Ok(())
    }

    /// Every batch is answered, and who is online has everything.
    pub(super) async fn delivered(&mut self, what: &str) -> Result<(), Failure> {
        let expected = self.expected;
        self.until(what, |fleet, router| router.tally.unanswered() == 0 && fleet.received() >= expected).await
    }

    /// Waits until presence says that the first so many devices are connected, and no others.
    pub(super) async fn presence_says(&mut self, online: u32) -> Result<(), Failure> {
        let left = Duration::from_millis(self.deadline.saturating_sub(self.clock.now()));
        let told = self.presence.until_right(self.plan.apps(), &self.fleet.shared, online);
        if tokio::time::timeout(left, told).await.is_err() {
            let count = self.presence.count();
            return Err(Failure::failed(format!("presence says {count}, not {online}, are connected")));
        }
        Ok(())
    }

    /// Waits for the last receipts. Whether they agree in the end is for the report to say.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        let deadline = self.deadline.min(self.clock.now() + SETTLE_SECONDS * 1_000);
        let agreed = |fleet: &Shared, router: &Progress| {
            let Tally { click, clean, .. } = router.tally;
            router.tally.is_settled() && click == fleet.clicked() && clean == fleet.cleaned()
        };
        if !self.is_so_by(deadline, agreed).await? {
            self.show.say("the last receipts didn't come in");
        }
        Ok(())
    }

    /// Asks the edge for its totals: the identity has to hold at any time.
    pub(super) async fn check(&mut self, at: &str) -> Result<(), Failure> {
        let totals = self.edge.ask("/v1/totals").await.map_err(Failure::failed)?;
        self.checks.push(Check { at: at.to_owned(), holds: totals["identity"] == Value::Bool(true), totals });
        Ok(())
    }

    /// What failed, and in which stage.
    pub(super) fn failed(&self, failure: &Failure) -> Failure {
        let stage = self.show.now();
        Failure::failed(format!(
            "at the stage \"{stage}\": {failure}\nWith --keep DIR the edge's data and log stay."
        ))
    }

    /// All leave; the account.
    pub(super) async fn finish(mut self) -> Result<Report, Failure> {
        let shards = self.edge.ask("/v1/shards").await.map_err(Failure::failed)?;
        let expected_shards = self.shards;
        let sessions = questions::sessions(&self.edge).await?;
        let mut compared = questions::devices(&self.edge, self.plan.apps(), &self.fleet).await?;
        let (told, presence) = (self.fleet.shared.told(), self.presence.count());
        let devices = self.fleet.end().await;
        let (mut ledgers, mut tally) = (Vec::new(), Tally::default());
        for router in self.routers {
            let (ledger, ended) = router.close().await;
            ended.map_err(Failure::failed)?;
            tally += ledger.tally();
            ledgers.push(ledger);
        }
        questions::messages(&self.edge, &self.plan, &ledgers, &mut compared).await?;
        drop(self.presence);
        self.edge.terminate().map_err(Failure::failed)?;
        self.show.begin("leave", "SIGTERM: the edge says goodbye and leaves", Goal::Unknown);
        let left = tokio::time::timeout(Duration::from_secs(LEAVE_SECONDS), self.edge.wait()).await;
        let graceful = matches!(left, Ok(Ok(status)) if status.success());
        self.show.end();
        let (stages, ms) = self.show.times();
        Ok(Report {
            lost: self.plan.lost(&ledgers, &devices),
            out_of_order: self.plan.out_of_order(&ledgers, &devices),
            expected: self.plan.expected().clone(),
            router: tally,
            duplicates: devices.duplicates,
            devices: devices.tally,
            registered: devices.registered,
            transports: devices.transports,
            sessions,
            told: (told, self.to_be_told),
            rejected: self.rejected,
            bound: self.told_of_devices.bound(),
            switched_off: self.told_of_devices.switched_off(),
            presence,
            compared,
            checks: self.checks,
            shards,
            expected_shards,
            graceful,
            stages,
            seconds: ms as f64 / 1_000.0,
        })
    }
}

fn router(
    endpoint: Endpoint,
    stream: &str,
    seed: u64,
    clock: &Arc<Clock>,
    told: &Arc<ToldOfDevices>,
) -> Result<Router, Failure> {
    let mut digest = [0; 32];
    getrandom::fill(&mut digest).map_err(Failure::failed)?;
    let options = Options {
        endpoint,
        name: format!("mooring demo, stream {stream}"),
        streams: vec![stream.into()],
        backoff: Backoff::fast(),
        patience: PATIENCE_MS,
        only: None,
        seed,
    };
    Ok(Router::start(options, Arc::clone(clock), DigestKey(digest), ToldOfDevices::listener(told)))
}
