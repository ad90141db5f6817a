//! What the edge answers when it is asked, compared with what devices and routers know: presence, devices, messages, sessions.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::app::Shared;
use super::fleet::{Fleet, app_of};
use super::plan::{Ends, Plan};
use crate::cli::output::{Failure, note};
use crate::client::local::LocalEdge;
use crate::client::router::{Asker, Ledger, PresenceNews, PresenceOptions, follow_presence};
use crate::client::{Backoff, Way, admin};
use crate::clock::Clock;
use crate::ids::AppKey;
use crate::limits;
use crate::wire::pb::router::{MessageState, PresenceState};

/// Messages that are asked about.
const MESSAGES: usize = 250;

/// Who is connected, as a router that follows presence knows it.
#[derive(Debug)]
pub(super) struct Presence {
    present: Arc<Mutex<HashSet<(String, String)>>>,
    heard: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Presence {
    /// Follows it until this is dropped.
    pub(super) fn follow(edge: &LocalEdge, patience: u64, seed: u64, clock: &Arc<Clock>) -> Self {
        let options = PresenceOptions {
            endpoint: edge.router_endpoint(),
            name: "mooring demo, presence".into(),
            app_keys: Vec::new(),
            backoff: Backoff::fast(),
            patience,
            seed,
        };
        let present: Arc<Mutex<HashSet<(String, String)>>> = Arc::default();
        let heard = Arc::new(Notify::new());
        let (known, news_came, clock) = (Arc::clone(&present), Arc::clone(&heard), Arc::clone(clock));
        let task = tokio::spawn(async move {
            let stop = follow_presence(options, clock, |news| {
                // What led to a snapshot came as changes.
                let PresenceNews::Changes(changes) = news else { return };
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                for change in changes {
                    let device = (change.app_key.clone(), change.device_id.clone());
                    if change.state() == PresenceState::Disconnected {
                        known.remove(&device);
                    } else {
                        known.insert(device);
                    }
                }
                news_came.notify_one();
            });
            note(&format!("presence is followed no more: {}", stop.await));
        });
        Self { present, heard, task }
    }

    /// How many are connected.
    pub(super) fn count(&self) -> u64 {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// Waits until it says what is so: that the first `online` are connected and no others.
    pub(super) async fn until_right(&self, apps: &[AppKey], devices: &Shared, online: u32) {
        while self.count() != u64::from(online) || self.wrong(apps, devices, online) > 0 {
            self.heard.notified().await;
        }
    }

    /// Devices of which it says something else than what is so: that the first `online` are connected and no others.
    fn wrong(&self, apps: &[AppKey], devices: &Shared, online: u32) -> u64 {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let device = |n| (apps[app_of(n)].to_string(), devices.id(n).to_owned());
        let truth: HashSet<_> = (0..online).map(device).collect();
        present.symmetric_difference(&truth).count() as u64
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers that were compared, and what was wrong with them.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) answers: u64,
    pub(super) differences: Vec<String>,
}

impl Compared {
    fn compare(&mut self, agrees: bool, difference: impl FnOnce() -> String) {
        self.answers += 1;
        if !agrees {
            self.differences.push(difference());
        }
    }
}

/// Every device is known and connected and has nothing pending, and push is on where it wasn't switched off.
pub(super) async fn devices(edge: &LocalEdge, apps: &[AppKey], fleet: &Fleet) -> Result<Compared, Failure> {
    let mut asker = Asker::new(edge.router_endpoint(), "mooring demo, questions");
    let mut compared = Compared::default();
    for (number, app) in apps.iter().enumerate() {
        let all: Vec<u32> = (0..fleet.devices).filter(|n| app_of(*n) == number).collect();
        for some in all.chunks(limits::QUERY_DEVICES) {
            let ids: Vec<String> = some.iter().map(|n| fleet.shared.id(*n).to_owned()).collect();
            let (_, answer) = asker.devices(app, &ids).await.map_err(Failure::failed)?;
            if answer.devices.len() != some.len() {
                return Err(Failure::failed(
                    "the edge did not answer for every device that it was asked about",
                ));
            }
            for (n, state) in some.iter().zip(answer.devices) {
                let push_on = !fleet.is_switched_off(*n);
                let agrees = state.known && state.connected && state.pending == 0 && state.push_on == push_on;
                compared.compare(agrees, || format!("the edge says of device {n}: {state:?}"));
            }
        }
    }
    Ok(compared)
}

/// What became of messages, as the edge says and as the routers counted.
pub(super) async fn messages(
    edge: &LocalEdge,
    plan: &Plan,
    ledgers: &[Ledger],
    compared: &mut Compared,
) -> Result<(), Failure> {
    let mut asker = Asker::new(edge.router_endpoint(), "mooring demo, questions");
    let mut accounts: Vec<((usize, u64), Ends)> = plan.accounts(ledgers).into_iter().collect();
    // Those to many first.
    accounts.sort_by_key(|(_, account)| std::cmp::Reverse(account.targets));
    for ((app, message), ours) in accounts.into_iter().take(MESSAGES) {
        let (_, state) = asker.message(&plan.apps()[app], message, None).await.map_err(Failure::failed)?;
        let edge = account_of(&state);
        compared.compare(edge == ours, || {
            format!("message {message}: the edge says {edge:?}, the router counted {ours:?}")
        });
    }
    Ok(())
}

fn account_of(state: &MessageState) -> Ends {
    let mut account = Ends {
        targets: state.targets,
        accepted: state.accepted,
        arrived: state.arrived,
        pending: state.pending,
        ..Ends::default()
    };
    for failed in &state.failed {
        let slot = usize::try_from(failed.reason - 1).ok().and_then(|at| account.failed.get_mut(at));
        if let Some(slot) = slot {
            *slot = failed.count;
        }
    }
    account
}

/// Sessions by transport, as the edge's metrics have them.
pub(super) async fn sessions(edge: &LocalEdge) -> Result<BTreeMap<&'static str, u64>, Failure> {
    let metrics = admin::get(&edge.admin(), "/metrics").await.map_err(Failure::failed)?.body;
    let mut sessions = BTreeMap::new();
    for way in [Way::Tls, Way::Quic, Way::Tcp] {
        let series = format!("mooring_sessions{{transport=\"{}\"}} ", way.name());
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series)?.trim().parse().ok());
        if let Some(value) = value.filter(|value| *value > 0) {
            sessions.insert(way.name(), value);
        }
    }
    Ok(sessions)
}
