//! The scenes that the demo plays, each to its end.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::fleet::{BINDINGS, app_of};
use super::plan::Account;
use super::stage::{MAX_PENDING, Stage};
use crate::admin::token::{self, TOKEN_FILE};
use crate::cli::output::Failure;
use crate::client::admin;
use crate::limits;
use crate::push::{Failure as PushFailure, Refusal};
use crate::wire::pb::router::RejectCode;

/// Single messages, at most.
const SINGLES: u32 = 2_000;
/// Messages to a device that may have fewer pending.
const FLOOD: u32 = MAX_PENDING + 16;
/// Of so many devices one is in the scenes that need some.
const ONE_OF: u32 = 20;

impl Stage {
    pub(super) async fn connect_all(&mut self) -> Result<(), Failure> {
        let all = u64::from(self.fleet.devices);
        self.until("all devices are connected", |fleet, _| fleet.connected() == all).await
    }

    pub(super) async fn send_away(&mut self) -> Result<(), Failure> {
        self.fleet.send_away();
        let online = u64::from(self.fleet.online());
        self.until("the offline quarter has left", |fleet, _| fleet.connected() == online).await?;
        // The edge has noticed too: what is pushed from here on waits for them.
        self.presence_says(self.fleet.online()).await
    }

    /// A message that expires before its devices come back.
    pub(super) async fn expiring(&mut self) -> Result<(), Failure> {
        let (_, away) = self.here_and_away();
        self.failing += away.len() as u64;
        self.plan.expect("failed: expired", away.len());
        let mut draft = self.plan.draft(away);
        draft.retention_seconds = Some(1);
        self.deliver(&draft).await
    }

    /// One message to all, in several batches.
    pub(super) async fn broadcast(&mut self) -> Result<(), Failure> {
        let mut draft = self.plan.draft([]);
        for targets in self.parts(5) {
            draft.targets = targets;
            self.deliver(&draft).await?;
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
            let device = self.plan.any(self.fleet.devices);
            let draft = self.plan.draft([device]);
            self.deliver(&draft).await?;
            self.expected += u64::from(device < self.fleet.online());
        }
        self.delivered("single messages have reached who is online").await
    }

    /// Some who are online, and some who aren't.
    fn here_and_away(&mut self) -> (Vec<u32>, Vec<u32>) {
        let (online, offline) = (self.fleet.online(), self.fleet.offline());
        let some = self.fleet.devices / ONE_OF;
        let here = self.plan.some(some, online);
        let away = self.plan.some(some, offline).into_iter().map(|n| n + online).collect();
        (here, away)
    }

    /// What can't arrive: unknown devices, a device named twice, and a message for who is connected only.
    pub(super) async fn oddities(&mut self) -> Result<(), Failure> {
        let mut draft = self.plan.draft([0, 1, 0]);
        draft.targets.extend([None; 5]);
        self.plan.expect("refused: device_unknown", 5);
        self.plan.expect("refused: duplicate", 1);
        self.deliver(&draft).await?;
        self.expected += 2;

        let (here, away) = self.here_and_away();
        self.failing += away.len() as u64;
        self.plan.expect("failed: offline", away.len());
        self.expected += here.len() as u64;
        let mut draft = self.plan.draft(away.into_iter().chain(here));
        draft.retention_seconds = Some(0);
        self.deliver(&draft).await?;

        let (here, away) = self.here_and_away();
        self.plan.expect("refused: offline", away.len());
        self.expected += here.len() as u64;
        let mut draft = self.plan.draft(here.into_iter().chain(away));
        draft.or_return = true;
        self.deliver(&draft).await?;
        self.have_failed("what can't arrive has failed").await?;
        self.delivered("the others have arrived").await
    }

    async fn have_failed(&mut self, what: &str) -> Result<(), Failure> {
        let failing = self.failing;
        self.until(what, |_, router| router.tally.ended() - router.tally.arrived >= failing).await
    }

    /// A newer message takes the place of an older one where that still waits.
    pub(super) async fn collapse(&mut self) -> Result<(), Failure> {
        let (_, away) = self.here_and_away();
        self.failing += away.len() as u64;
        self.plan.expect("failed: replaced", away.len());
        for _ in 0..2 {
            let mut draft = self.plan.draft(away.iter().copied());
            draft.collapse_key = "weather";
            self.deliver(&draft).await?;
        }
        self.have_failed("the older one of two is replaced").await?;
        self.delivered("both are accepted").await
    }

    /// Bindings are told to the routers; what was resolved from an account arrives only where that is bound.
    pub(super) async fn accounts(&mut self) -> Result<(), Failure> {
        let bound: Vec<u32> = (0..self.fleet.devices).filter(|n| self.fleet.is_bound(*n)).collect();
        let (devices, all) = (u64::from(self.fleet.devices), bound.len() as u64 * BINDINGS);
        let told = Arc::clone(&self.told_of_devices);
        self.until("routers are told of devices and bindings", move |_, _| {
            told.registered() == devices && told.bound() == all
        })
        .await?;
        self.expected += bound.len() as u64;
        let mut draft = self.plan.draft(bound.iter().copied());
        draft.account = Account::Own;
        self.deliver(&draft).await?;
        self.failing += bound.len() as u64;
        self.plan.expect("failed: unbound", bound.len());
        let mut draft = self.plan.draft(bound);
        draft.account = Account::Foreign;
        self.deliver(&draft).await?;
        self.have_failed("what is for another account has ended").await?;
        self.delivered("what is for the account has arrived").await
    }

    /// A message is taken back: it ends where it waits, and who has it is told.
    pub(super) async fn take_back(&mut self) -> Result<(), Failure> {
        let (here, away) = self.here_and_away();
        self.failing += away.len() as u64;
        self.plan.expect("failed: revoked", away.len());
        self.expected += here.len() as u64;
        self.to_be_told += here.len() as u64;
        let (to_be_told, waiting) = (self.to_be_told, away.len() as u64);
        let mut draft = self.plan.draft(here.into_iter().chain(away));
        draft.is_data = true;
        self.deliver(&draft).await?;
        self.delivered("a message has reached who is online").await?;
        // Who has it has said so, and the edge knows: else it would end for them too.
        let expected = self.expected;
        self.until("it has arrived", |_, router| router.tally.arrived >= expected).await?;
        let mut ended = 0;
        for (router, app) in self.routers.iter().zip(self.plan.apps()) {
            let answer = router.revoke(app.as_str(), draft.message_id).await;
            let answer = answer.ok_or_else(|| Failure::failed("a router has ended"))?;
            if answer.code() != RejectCode::Unspecified {
                let (code, text) = (answer.code().as_str_name(), &answer.text);
                return Err(Failure::failed(format!("a message can't be taken back: {code}: {text}")));
            }
            ended += u64::from(answer.ended);
        }
        if ended != waiting {
            return Err(Failure::failed(format!("{ended} entries ended as revoked, {waiting} were waiting")));
        }
        self.have_failed("what was taken back has ended").await?;
        self.until("devices are told of it", |fleet, _| fleet.told() == to_be_told).await
    }

    /// More messages than one device may have pending: the first app refuses the newest, the second one drops the oldest.
    pub(super) async fn flood(&mut self) -> Result<(), Failure> {
        for app in 0..self.plan.apps().len() {
            let away = (self.fleet.online()..self.fleet.devices).find(|n| app_of(*n) == app);
            let Some(device) = away else { continue };
            for _ in 0..FLOOD {
                let draft = self.plan.draft([device]);
                self.deliver(&draft).await?;
            }
        }
        self.until("some are over the quota of a device, either way", |_, router| {
            let tally = &router.tally;
            let refused = tally.refused[Refusal::OverQuota as usize - 1];
            let dropped = tally.failed[PushFailure::OverQuota as usize - 1];
            tally.unanswered() == 0 && refused > 0 && dropped > 0
        })
        .await
    }

    /// The second app takes no new pushes for a while.
    pub(super) async fn suspend(&mut self) -> Result<(), Failure> {
        let Some(app) = self.plan.apps().get(1).cloned() else { return Ok(()) };
        let Some(device) = (0..self.fleet.online()).find(|n| app_of(*n) == 1) else { return Ok(()) };
        self.tell(&format!("/v1/apps/{app}/suspend")).await?;
        let draft = self.plan.draft([device]);
        self.deliver(&draft).await?;
        self.rejected += 1;
        let rejected = self.rejected;
        self.until("a push of a suspended app is rejected", |_, router| {
            router.tally.batches_rejected == rejected
        })
        .await?;
        self.tell(&format!("/v1/apps/{app}/resume")).await?;
        let draft = self.plan.draft([device]);
        self.deliver(&draft).await?;
        self.expected += 1;
        self.delivered("a push of the resumed app has arrived").await
    }

    /// Changes something at the admin port.
    async fn tell(&self, path: &str) -> Result<(), Failure> {
        let token = token::read(&self.edge.data_dir().join(TOKEN_FILE)).map_err(Failure::failed)?;
        let (address, nothing) = (self.edge.admin(), Value::Object(Map::new()));
        let told = admin::post_json(&address, path, &token, &nothing).await;
        told.map(drop).map_err(Failure::failed)
    }

    /// Kills the edge while a broadcast is under way: some devices have it, some batches are not answered.
    pub(super) async fn broadcast_and_kill(&mut self) -> Result<(), Failure> {
        let mut draft = self.plan.draft([]);
        let parts = self.parts(20);
        let (before, half) = (self.fleet.shared.received(), parts.len() / 2);
        for (i, targets) in parts.into_iter().enumerate() {
            if i == half {
                self.until("some devices have it", |fleet, _| fleet.received() > before).await?;
            }
            draft.targets = targets;
            self.deliver(&draft).await?;
        }
        self.edge.kill().await.map_err(Failure::failed)?;
        self.expected += u64::from(self.fleet.online());
        let tally = self.look().tally;
        let got = self.fleet.shared.received() - before;
        self.show.say(&format!(
            "killed: {got} devices have the message, {} batches are not answered",
            tally.unanswered()
        ));
        Ok(())
    }

    pub(super) async fn restart(&mut self) -> Result<(), Failure> {
        self.edge.start().await.map_err(Failure::failed)?;
        // Over QUIC a device that has nothing to say would learn of the crash with its next heartbeat.
        self.fleet.probe();
        let online = u64::from(self.fleet.online());
        self.until("devices and routers are back", |fleet, router| {
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

    /// A message to those who came back with push switched off.
    pub(super) async fn switched_off(&mut self) -> Result<(), Failure> {
        let all = 0..self.fleet.devices;
        let off: Vec<u32> = all.filter(|n| self.fleet.is_switched_off(*n)).collect();
        self.plan.expect("refused: push_disabled", off.len());
        let draft = self.plan.draft(off);
        self.deliver(&draft).await?;
        self.until("the last message is refused", |_, router| router.tally.is_settled()).await
    }
}
