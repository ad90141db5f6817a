//! Presence as a router keeps it: a map that follows the edge ([`PresenceMap`], pure), and a link that keeps it up to date ([`follow_presence`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::driver::is_final;
use super::{Receiver, Sender, Stop, link};
use crate::client::{Backoff, ClientError, Endpoint};
use crate::clock::Clock;
use crate::push::Millis;
use crate::wire::pb::router::{
    Open, OpenPresence, Ping, Presence, PresenceChange, PresenceState, from_router, to_router,
};

/// Milliseconds without a frame before a Ping.
const PING_MS: Millis = 30_000;
/// Milliseconds after a Ping within which something has to come.
const PONG_MS: Millis = 30_000;

/// Which devices are connected, as far as the edge has said.
///
/// A snapshot replaces everything, but only once it is complete: until then the older map stands.
#[derive(Clone, Debug, Default)]
pub struct PresenceMap {
    apps: Apps,
    /// A snapshot that isn't complete, and where it began: (epoch, sequence).
    building: Option<((u64, u64), Apps)>,
    /// (epoch, sequence) up to which the map is right.
    point: (u64, u64),
}

/// App → device id → state and since when; who isn't in it is disconnected.
type Apps = HashMap<String, HashMap<String, (PresenceState, Millis)>>;

impl PresenceMap {
    /// What to say in Open, so that the edge goes on where this map ends.
    pub fn open(&self, app_keys: &[String]) -> OpenPresence {
        let (epoch, sequence) = self.point;
        OpenPresence { app_keys: app_keys.to_vec(), epoch, sequence }
    }

    /// A device's state.
    pub fn state(&self, app_key: &str, device_id: &str) -> PresenceState {
        find(&self.apps, app_key, device_id).unwrap_or(PresenceState::Disconnected)
    }

    /// Devices that are connected or suspect.
    pub fn connected(&self) -> usize {
        self.apps.values().map(HashMap::len).sum()
    }

    /// (epoch, sequence) up to which the map is right; zeros: it knows nothing yet.
    pub fn point(&self) -> (u64, u64) {
        self.point
    }

    /// A frame. What is different now: of a snapshot when it is complete, in no order. A device that a snapshot no longer names is disconnected
    /// since a time that nobody knows: 0.
    pub fn handle(&mut self, frame: Presence) -> Vec<PresenceChange> {
        let point = (frame.epoch, frame.sequence);
        if !frame.snapshot {
            self.building = None;
            self.point = point;
            return frame.changes.into_iter().filter(|change| put(&mut self.apps, change)).collect();
        }
        // Of another point: an older snapshot was given up.
        let same = self.building.take().filter(|(begun, _)| *begun == point);
        let (_, mut building) = same.unwrap_or_default();
        for change in &frame.changes {
            put(&mut building, change);
        }
        if !frame.snapshot_end {
            self.building = Some((point, building));
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.apps, building);
        self.point = point;
        let come = each(&self.apps)
            .filter(|(app, id, (state, _))| find(&before, app, id) != Some(*state))
            .map(|(app, id, (state, time))| change(app, id, state, time));
        let gone = each(&before)
            .filter(|(app, id, _)| find(&self.apps, app, id).is_none())
            .map(|(app, id, _)| change(app, id, PresenceState::Disconnected, 0));
        gone.chain(come).collect()
    }
}

fn each(apps: &Apps) -> impl Iterator<Item = (&str, &str, (PresenceState, Millis))> {
    apps.iter().flat_map(|(app, devices)| devices.iter().map(move |(id, known)| (&**app, &**id, *known)))
}

fn find(apps: &Apps, app_key: &str, device_id: &str) -> Option<PresenceState> {
    Some(apps.get(app_key)?.get(device_id)?.0)
}

fn change(app_key: &str, device_id: &str, state: PresenceState, time: Millis) -> PresenceChange {
    PresenceChange { app_key: app_key.into(), device_id: device_id.into(), state: state.into(), time }
}

/// Whether this changes anything.
fn put(apps: &mut Apps, change: &PresenceChange) -> bool {
    let state = change.state();
    if state == PresenceState::Disconnected {
        let devices = apps.get_mut(&change.app_key);
        return devices.is_some_and(|devices| devices.remove(&change.device_id).is_some());
    }
    let devices = apps.entry(change.app_key.clone()).or_default();
    let before = devices.insert(change.device_id.clone(), (state, change.time));
    before.map(|(state, _)| state) != Some(state)
}

/// How presence is followed.
#[derive(Clone, Debug)]
pub struct PresenceOptions {
    /// The edge, by mutual TLS.
    pub endpoint: Endpoint,
    /// The router's name, for the edge's log.
    pub name: String,
    /// The apps; none: all that the router may.
    pub app_keys: Vec<String>,
    /// How long it waits before it connects again.
    pub backoff: Backoff,
    /// Milliseconds without an open link after which it gives up.
    pub patience: Millis,
    /// Of the random waits.
    pub seed: u64,
}

/// News of presence.
#[derive(Debug)]
pub enum PresenceNews<'a> {
    /// A link is open; it may go on where the one before was, without a word.
    Open,
    /// The map is complete for the first time, or again after the edge could not go on where it was; the changes that led to it came before.
    Snapshot(&'a PresenceMap),
    /// Devices whose state is another now.
    Changes(&'a [PresenceChange]),
    /// There is no link, and why; it tries again.
    Broken(&'a ClientError),
}

/// Follows presence over links that break, each going on where the one before ended. Ends only when trying again can't help, or after
/// the patience; whoever wants it to end earlier drops it.
pub async fn follow_presence(
    options: PresenceOptions,
    clock: Arc<Clock>,
    mut on_news: impl FnMut(PresenceNews<'_>),
) -> Stop {
    let mut map = PresenceMap::default();
    let mut rng = SmallRng::seed_from_u64(options.seed);
    let mut backoff = options.backoff;
    let mut since = clock.now();
    loop {
        let open = Open {
            version: 1,
            name: options.name.clone(),
            streams: Vec::new(),
            presence: Some(map.open(&options.app_keys)),
        };
        let error = match link::open(&options.endpoint, open).await {
            Ok((sender, receiver, _)) => {
                backoff.reset();
                on_news(PresenceNews::Open);
                let error = session(sender, receiver, &clock, &mut map, &mut on_news).await;
                since = clock.now();
                error
            }
            Err(error) => error,
        };
        if is_final(&error) {
            return Stop::Refused(error);
        }
        let waited = clock.now().saturating_sub(since);
        if waited >= options.patience {
            return Stop::Patience { seconds: waited / 1_000, last: error };
        }
        tracing::debug!(%error, "the router link broke; connecting again");
        on_news(PresenceNews::Broken(&error));
        tokio::time::sleep(Duration::from_millis(backoff.wait(&mut rng))).await;
    }
}

/// Reads one link until it breaks.
async fn session(
    mut sender: Sender,
    mut receiver: Receiver,
    clock: &Clock,
    map: &mut PresenceMap,
    on_news: &mut impl FnMut(PresenceNews<'_>),
) -> ClientError {
    let (mut last_sent, mut pinged) = (clock.now(), None::<Millis>);
    // What came along with the answer to Open is there already.
    if let Err(error) = take(&mut receiver, map, on_news) {
        return error;
    }
    loop {
        let due = pinged.map_or(last_sent + PING_MS, |at| at + PONG_MS);
        let wait = Duration::from_millis(due.saturating_sub(clock.now()));
        tokio::select! {
            read = receiver.fill() => {
                pinged = None;
                if let Err(error) = read.and_then(|()| take(&mut receiver, map, on_news)) {
                    return error;
                }
            }
            () = tokio::time::sleep(wait) => {
                if pinged.is_some() {
                    return ClientError::Deadline { what: "frame after a ping", seconds: PONG_MS / 1_000 };
                }
                let now = clock.now();
                (last_sent, pinged) = (now, Some(now));
                if let Err(error) = sender.send(from_router::Frame::Ping(Ping { nonce: now })).await {
                    return error;
                }
            }
        }
    }
}

/// Applies every frame that was read.
fn take(
    receiver: &mut Receiver,
    map: &mut PresenceMap,
    on_news: &mut impl FnMut(PresenceNews<'_>),
) -> Result<(), ClientError> {
    while let Some(frame) = receiver.buffered()? {
        match frame {
            to_router::Frame::Presence(frame) => {
                let complete = frame.snapshot_end;
                let changes = map.handle(frame);
                if !changes.is_empty() {
                    on_news(PresenceNews::Changes(&changes));
                }
                if complete {
                    on_news(PresenceNews::Snapshot(map));
                }
            }
            to_router::Frame::Error(e) => return Err(ClientError::Link { code: e.code(), text: e.text }),
            // The edge leaves: this link goes on until it closes.
            _ => {}
        }
    }
    Ok(())
}
