//! What the demo pushes, and the account of it: which message went to whom, in which batch, and what has to become of it.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::SmallRng;
use rand::seq::index;
use rand::{Rng, SeedableRng};

use super::app::Shared;
use super::fleet::{Devices, account_of, app_of};
use crate::client::router::{Fate, Ledger};
use crate::ids::AppKey;
use crate::push::{Failure, Millis};
use crate::wire::pb::device::{Kind, Priority, Push};
use crate::wire::pb::router::{DeliverBatch, OfflinePolicy, PushSource, Target};

/// Message ids look like those of the receipt log.
const FIRST_MESSAGE: u64 = 868_947_123_000_000;

/// Makes batches and remembers them.
#[derive(Debug)]
pub(super) struct Plan {
    apps: Vec<AppKey>,
    rng: SmallRng,
    messages: u64,
    batches: Vec<Planned>,
    /// How many of a refusal or a failure there have to be, by the name of its line in the account.
    expected: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Planned {
    app: usize,
    batch_id: String,
    message_id: u64,
    high: bool,
    /// Numbers of devices by ordinal; `None`: one that doesn't exist.
    targets: Vec<Option<u32>>,
}

/// The account that a target was resolved from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Account {
    /// None.
    #[default]
    None,
    /// The one that the device is bound to.
    Own,
    /// One that it isn't bound to.
    Foreign,
}

/// A message to devices.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) message_id: u64,
    /// Numbers of devices; `None`: one that doesn't exist.
    pub(super) targets: Vec<Option<u32>>,
    pub(super) retention_seconds: Option<u32>,
    pub(super) collapse_key: &'static str,
    /// Refuse who isn't connected.
    pub(super) or_return: bool,
    /// Which account the targets were resolved from.
    pub(super) account: Account,
    /// For the app, not for its user: nobody taps it.
    pub(super) is_data: bool,
}

/// What became of one message of one app, in the words of the accounting.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Ends {
    pub(super) targets: u64,
    pub(super) accepted: u64,
    pub(super) arrived: u64,
    /// By `Failure as usize - 1`.
    pub(super) failed: [u64; Failure::ALL.len()],
    pub(super) pending: u64,
}

impl Plan {
    pub(super) fn new(apps: Vec<AppKey>, seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { apps, rng, messages: 0, batches: Vec::new(), expected: BTreeMap::new() }
    }

    pub(super) fn apps(&self) -> &[AppKey] {
        &self.apps
    }

    /// A new message to devices.
    pub(super) fn draft(&mut self, targets: impl IntoIterator<Item = u32>) -> Draft {
        self.messages += 1;
        let message_id = FIRST_MESSAGE + self.messages;
        Draft { message_id, targets: targets.into_iter().map(Some).collect(), ..Draft::default() }
    }

    /// So many different numbers below `below`.
    pub(super) fn some(&mut self, count: u32, below: u32) -> Vec<u32> {
        let picked = index::sample(&mut self.rng, below as usize, count.min(below) as usize);
        picked.into_iter().map(|n| n as u32).collect()
    }

    /// Any of the devices.
    pub(super) fn any(&mut self, devices: u32) -> u32 {
        self.rng.random_range(0..devices)
    }

    /// So many more have to end in this line of the account.
    pub(super) fn expect(&mut self, line: &str, count: usize) {
        *self.expected.entry(line.to_owned()).or_default() += count as u64;
    }

    pub(super) fn expected(&self) -> &BTreeMap<String, u64> {
        &self.expected
    }

    /// The batches of a message, one an app, each with the app's number. Who doesn't exist is of the first app.
    pub(super) fn batches(
        &mut self,
        now: Millis,
        draft: &Draft,
        devices: &Shared,
    ) -> Vec<(usize, DeliverBatch)> {
        let mut batches = Vec::new();
        for app in 0..self.apps.len() {
            let is_of_app = |n: &&Option<u32>| n.map_or(0, app_of) == app;
            let targets: Vec<_> = draft.targets.iter().filter(is_of_app).copied().collect();
            if !targets.is_empty() {
                batches.push((app, self.batch(now, app, draft, targets, devices)));
            }
        }
        batches
    }

    fn batch(
        &mut self,
        now: Millis,
        app: usize,
        draft: &Draft,
        targets: Vec<Option<u32>>,
        devices: &Shared,
    ) -> DeliverBatch {
        let batch_id = format!("demo-{}", self.batches.len() + 1);
        let message_id = draft.message_id;
        let target = |(i, n): (usize, &Option<u32>)| Target {
            device_id: n.map_or_else(|| format!("nobody-{i}"), |n| devices.id(n).to_owned()),
            account: match (draft.account, n) {
                (Account::Own, Some(n)) => account_of(*n),
                (Account::Foreign, Some(_)) => "somebody else".into(),
                _ => String::new(),
            },
        };
        // The same message always has the same body and the same priority: one in eight is data for the app, one in four is urgent.
        let is_data = draft.is_data || message_id % 8 == 7;
        let high = message_id % 4 == 1;
        let offline = if draft.or_return { OfflinePolicy::Return } else { OfflinePolicy::Store };
        let batch = DeliverBatch {
            batch_id: batch_id.clone(),
            app_key: self.apps[app].to_string(),
            message_id,
            body: Some(Push {
                kind: if is_data { Kind::Message } else { Kind::Notification }.into(),
                title: format!("Message {}", message_id - FIRST_MESSAGE),
                body: "The whole ring, over real sockets. ".repeat(4),
                extras: "{\"from\":\"demo\"}".into(),
                ..Push::default()
            }),
            targets: targets.iter().enumerate().map(target).collect(),
            created_at: now,
            retention_seconds: draft.retention_seconds,
            offline_policy: offline.into(),
            priority: if high { Priority::High } else { Priority::Normal }.into(),
            collapse_key: draft.collapse_key.into(),
            job_key: "demo".into(),
            source: PushSource::Api.into(),
            target_type: if targets.len() > 1 { "all" } else { "device" }.into(),
        };
        self.batches.push(Planned { app, batch_id, message_id, high, targets });
        batch
    }

    /// Messages that were accepted for a device, did not fail, and that its app never got.
    pub(super) fn lost(&self, ledgers: &[Ledger], devices: &Devices) -> u64 {
        let got: Vec<std::collections::HashSet<u64>> =
            devices.got.iter().map(|got| got.iter().copied().collect()).collect();
        let mut lost = 0;
        for planned in &self.batches {
            let app = self.apps[planned.app].as_str();
            let Some(fates) = ledgers[planned.app].fates(app, &planned.batch_id) else { continue };
            for (fate, target) in fates.zip(&planned.targets) {
                let wanted = matches!(fate, Fate::Arrived | Fate::Pending);
                let got = target.and_then(|n| got.get(n as usize));
                lost += u64::from(wanted && !got.is_some_and(|got| got.contains(&planned.message_id)));
            }
        }
        lost
    }

    /// Messages that an app was handed before one of the same priority that was accepted earlier.
    pub(super) fn out_of_order(&self, ledgers: &[Ledger], devices: &Devices) -> u64 {
        let mut places: HashMap<(u64, u32), (bool, u64)> = HashMap::new();
        for planned in &self.batches {
            let app = self.apps[planned.app].as_str();
            let Some(sequence) = ledgers[planned.app].sequence(app, &planned.batch_id) else { continue };
            for n in planned.targets.iter().flatten() {
                places.insert((planned.message_id, *n), (planned.high, sequence));
            }
        }
        let mut wrong = 0;
        for (n, got) in (0..).zip(&devices.got) {
            let mut reached = [0, 0];
            for message in got {
                let Some((high, sequence)) = places.get(&(*message, n)) else { continue };
                let reached = &mut reached[usize::from(*high)];
                wrong += u64::from(sequence < reached);
                *reached = (*reached).max(*sequence);
            }
        }
        wrong
    }

    /// The account of every message, by app.
    pub(super) fn accounts(&self, ledgers: &[Ledger]) -> BTreeMap<(usize, u64), Ends> {
        let mut accounts: BTreeMap<(usize, u64), Ends> = BTreeMap::new();
        for planned in &self.batches {
            let app = self.apps[planned.app].as_str();
            let Some(fates) = ledgers[planned.app].fates(app, &planned.batch_id) else { continue };
            let account = accounts.entry((planned.app, planned.message_id)).or_default();
            for fate in fates {
                account.targets += 1;
                account.accepted += u64::from(fate != Fate::Refused);
                match fate {
                    Fate::Refused => {}
                    Fate::Pending => account.pending += 1,
                    Fate::Arrived => account.arrived += 1,
                    Fate::Failed(failure) => account.failed[failure as usize - 1] += 1,
                }
            }
        }
        accounts
    }
}
