//! The edge, the devices and the router of the demo, and the scenes that they play. A scene ends with an event, never after a time; the
//! whole has a deadline.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::Args;
use super::fleet::{Fleet, Shared};
use super::plan::Plan;
use super::report::{Check, Report};
use crate::cli::output::{Failure, note};
use crate::client::Backoff;
use crate::client::local::LocalEdge;
use crate::client::router::{Options, Progress, Router, Tally};
use crate::clock::Clock;
use crate::ids::DigestKey;
use crate::limits;

/// Milliseconds without a link after which the router gives up.
const PATIENCE_MS: u64 = 60_000;
/// Milliseconds after which the state is looked at again, whether or not something was heard.
const LOOK_MS: u64 = 200;
/// Single messages, at most.
const SINGLES: u32 = 2_000;
/// Seconds for the last receipts to come in.
const SETTLE_SECONDS: u64 = 30;
/// Seconds for the edge to leave.
const LEAVE_SECONDS: u64 = 40;

/// All that plays.
pub(super) struct Stage {
    pub(super) fleet: Fleet,
    edge: LocalEdge,
    router: Router,
    progress: watch::Receiver<Progress>,
    plan: Plan,
    clock: Arc<Clock>,
    started: u64,
    deadline: u64,
    /// Messages that devices that are online have been given.
    expected: u64,
    /// Outcomes that are failures.
    failing: u64,
    checks: Vec<Check>,
    shards: u32,
}

impl Stage {
    pub(super) async fn new(args: &Args, seed: u64, dir: &Path) -> Result<Self, Failure> {
        let clock = Arc::new(Clock::new(0));
        let started = clock.now();
        let program = std::env::current_exe().map_err(Failure::failed)?;
        // A short goodbye: nobody balances load here.
        let settings = [
            ("leave.drain_lead_ms", "0"),
            ("leave.window_ms", "200"),
            ("log.filter", "info"),
            // After a crash a device over QUIC learns of it when it says something.
            ("device.quic_heartbeat_min_s", "1"),
            ("device.quic_heartbeat_default_s", "1"),
        ];
        let mut edge =
            LocalEdge::prepare(&program, dir, args.shards as usize, &settings).map_err(Failure::failed)?;
        edge.start().await.map_err(Failure::failed)?;
        let mut digest = [0; 32];
        getrandom::fill(&mut digest).map_err(Failure::failed)?;
        let options = Options {
            endpoint: edge.router_endpoint(),
            name: "mooring demo".into(),
            streams: vec!["main".into()],
            backoff: Backoff::fast(),
            patience: PATIENCE_MS,
            seed,
        };
        let router = Router::start(options, Arc::clone(&clock), DigestKey(digest), Box::new(|_| {}));
        Ok(Self {
            fleet: Fleet::start(&edge, args.devices, &args.transport, seed, &clock),
            progress: router.progress(),
            plan: Plan::new(edge.app().as_str(), seed),
            edge,
            router,
            clock,
            started,
            deadline: started + args.deadline * 1_000,
            expected: 0,
            failing: 0,
            checks: Vec::new(),
            shards: args.shards,
        })
    }

    /// Says what happens next, with the time.
    pub(super) fn say(&self, what: &str) {
        let passed = self.clock.now().saturating_sub(self.started);
        note(&format!("{:6.2} s  {what}", passed as f64 / 1_000.0));
    }

    /// Waits until something is so. Fails at the deadline, and as soon as it can't come any more.
    async fn until(&mut self, what: &str, so: impl Fn(&Shared, &Progress) -> bool) -> Result<(), Failure> {
        let deadline = self.deadline;
        if self.is_so_by(deadline, so).await? {
            return Ok(());
        }
        let tally = self.progress.borrow().tally;
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
            if so(&self.fleet.shared, &self.progress.borrow_and_update()) {
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
            tokio::select! {
                () = self.fleet.shared.changed.notified() => {}
                changed = self.progress.changed() => {
                    changed.map_err(|_| Failure::failed("the router has ended"))?;
                }
                () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => {}
            }
        }
    }

    pub(super) async fn connect_all(&mut self) -> Result<(), Failure> {
        let all = u64::from(self.fleet.devices);
        self.until("all devices are connected", |fleet, _| fleet.connected() == all).await
    }

    pub(super) async fn send_away(&mut self) -> Result<(), Failure> {
        self.fleet.send_away();
        let online = u64::from(self.fleet.online());
        self.until("the offline quarter has left", |fleet, _| fleet.connected() == online).await?;
        // The edge has noticed too: what is pushed from here on waits for them.
        while self.edge_sessions().await? != online {
            tokio::time::sleep(Duration::from_millis(LOOK_MS / 10)).await;
            if self.clock.now() >= self.deadline {
                return Err(Failure::failed("the edge doesn't notice that devices have left"));
            }
        }
        Ok(())
    }

    async fn edge_sessions(&self) -> Result<u64, Failure> {
        let shards = self.edge.ask("/v1/shards").await.map_err(Failure::failed)?;
        let sessions = shards.as_array().into_iter().flatten().filter_map(|s| s["sessions"].as_u64());
        Ok(sessions.sum())
    }

    async fn deliver(
        &mut self,
        message: u64,
        targets: Vec<Option<u32>>,
        retention: Option<u32>,
    ) -> Result<(), Failure> {
        let batch = self.plan.batch(self.clock.now(), message, targets, retention);
        if self.router.deliver(batch).await { Ok(()) } else { Err(Failure::failed("the router has ended")) }
    }

    /// Every batch is answered, and who is online has everything.
    async fn delivered(&mut self, what: &str) -> Result<(), Failure> {
        let expected = self.expected;
        self.until(what, |fleet, router| router.tally.unanswered() == 0 && fleet.received() >= expected).await
    }

    /// One message to all, in several batches.
    pub(super) async fn broadcast(&mut self) -> Result<(), Failure> {
        let message = self.plan.message();
        for targets in self.parts(5) {
            self.deliver(message, targets, None).await?;
        }
        self.expected += u64::from(self.fleet.online());
        self.delivered("a broadcast has reached who is online").await
    }

    /// All devices in so many parts, each with some who are online and some who aren't.
    fn parts(&self, parts: u32) -> Vec<Vec<Option<u32>>> {
        let parts = parts.max(self.fleet.devices / limits::BATCH_TARGETS as u32 + 1);
        let part = |p| (0..self.fleet.devices).filter(|n| n % parts == p).map(Some).collect();
        (0..parts).map(part).collect()
    }

    /// Messages to one device each, in batches of one.
    pub(super) async fn singles(&mut self) -> Result<(), Failure> {
        for _ in 0..self.fleet.devices.min(SINGLES) {
            let (message, device) = (self.plan.message(), self.plan.any(self.fleet.devices));
            self.deliver(message, vec![Some(device)], None).await?;
            self.expected += u64::from(device < self.fleet.online());
        }
        self.delivered("single messages have reached who is online").await
    }

    /// What can't arrive: unknown devices, a device named twice, a message that expires, and one for who is connected only.
    pub(super) async fn oddities(&mut self) -> Result<(), Failure> {
        let (online, offline) = (self.fleet.online(), self.fleet.offline());
        let some = self.fleet.devices / 20;
        let away = |plan: &mut Plan, count| -> Vec<u32> {
            let picked = plan.some(count, offline);
            picked.into_iter().map(|n| n + online).collect()
        };
        let message = self.plan.message();
        let mut targets = vec![None; 5];
        targets.extend([Some(0), Some(1), Some(0)]);
        self.deliver(message, targets, None).await?;
        self.expected += 2;

        let expiring = away(&mut self.plan, some);
        self.failing += expiring.len() as u64;
        let message = self.plan.message();
        self.deliver(message, expiring.into_iter().map(Some).collect(), Some(1)).await?;

        let absent = away(&mut self.plan, some);
        let present = self.plan.some(some, online);
        self.failing += absent.len() as u64;
        self.expected += present.len() as u64;
        let message = self.plan.message();
        self.deliver(message, absent.into_iter().chain(present).map(Some).collect(), Some(0)).await?;

        let failing = self.failing;
        self.until("what can't arrive has failed", |_, router| {
            router.tally.ended() - router.tally.arrived >= failing
        })
        .await?;
        self.delivered("the others have arrived").await
    }

    /// Kills the edge while a broadcast is under way: some devices have it, some batches are not answered.
    pub(super) async fn broadcast_and_kill(&mut self) -> Result<(), Failure> {
        let message = self.plan.message();
        let parts = self.parts(20);
        let (before, half) = (self.fleet.shared.received(), parts.len() / 2);
        for (i, targets) in parts.into_iter().enumerate() {
            if i == half {
                self.until("some devices have it", |fleet, _| fleet.received() > before).await?;
            }
            self.deliver(message, targets, None).await?;
        }
        self.edge.kill().await.map_err(Failure::failed)?;
        self.expected += u64::from(self.fleet.online());
        let tally = self.progress.borrow().tally;
        let got = self.fleet.shared.received() - before;
        self.say(&format!(
            "killed: {got} devices have the message, {} batches are not answered",
            tally.unanswered()
        ));
        Ok(())
    }

    pub(super) async fn restart(&mut self) -> Result<(), Failure> {
        self.edge.start().await.map_err(Failure::failed)?;
        let online = u64::from(self.fleet.online());
        self.until("devices and router are back", |fleet, router| {
            fleet.connected() == online && router.connected
        })
        .await?;
        self.delivered("the broken broadcast has reached who is online").await
    }

    pub(super) async fn bring_in(&mut self) -> Result<(), Failure> {
        self.fleet.bring_in();
        self.connect_all().await?;
        self.until("every accepted message has its outcome", |_, router| router.tally.is_settled()).await
    }

    /// Waits for the last confirmations and receipts. Whether they agree in the end is for the report to say.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        let deadline = self.deadline.min(self.clock.now() + SETTLE_SECONDS * 1_000);
        let agreed = |fleet: &Shared, router: &Progress| {
            let Tally { click, clean, .. } = router.tally;
            fleet.unsettled() == 0 && click == fleet.clicked() && clean == fleet.cleaned()
        };
        if !self.is_so_by(deadline, agreed).await? {
            note("the last receipts didn't come in");
        }
        Ok(())
    }

    /// Asks the edge for its totals: the identity has to hold at any time.
    pub(super) async fn check(&mut self, at: &str) -> Result<(), Failure> {
        let totals = self.edge.ask("/v1/totals").await.map_err(Failure::failed)?;
        self.checks.push(Check { at: at.to_owned(), holds: totals["identity"] == Value::Bool(true), totals });
        Ok(())
    }

    /// All leave; the account.
    pub(super) async fn finish(mut self) -> Result<Report, Failure> {
        let shards = self.edge.ask("/v1/shards").await.map_err(Failure::failed)?;
        let expected_shards = self.shards;
        let devices = self.fleet.end().await;
        let (ledger, ended) = self.router.close().await;
        ended.map_err(Failure::failed)?;
        self.edge.terminate().map_err(Failure::failed)?;
        let left = tokio::time::timeout(Duration::from_secs(LEAVE_SECONDS), self.edge.wait()).await;
        let graceful = matches!(left, Ok(Ok(status)) if status.success());
        Ok(Report {
            lost: self.plan.lost(&ledger, &devices),
            router: ledger.tally(),
            duplicates: devices.duplicates,
            devices: devices.tally,
            checks: self.checks,
            shards,
            expected_shards,
            graceful,
            seconds: self.clock.now().saturating_sub(self.started) as f64 / 1_000.0,
        })
    }
}
