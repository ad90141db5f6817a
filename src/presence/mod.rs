//! Presence: who is connected, told to the routers that want to know.
//!
//! A shard only says "look at this device" ([`Presence::mark`]); what is true is looked up in the [`Directory`] when the marks of a second are
//! gathered. So the order in which marks of two shards come doesn't matter, a late goodbye can't hide a newcomer, and the last word on a device
//! is always the directory's. What a session itself knows (it is suspect) counts only while the directory names that session.
//!
//! Gathered changes get sequence numbers in a bounded map, the last one of each device ([`Hub`]). A follower is a number in that map: a slow one
//! costs nothing here, and one whose number has gone gets a new snapshot. A snapshot is asked from the shards slice by slice, through
//! their mailboxes: a device's id lives in its session, so that nothing is copied for a snapshot but the slice under way, and a session costs
//! nothing (one relaxed load a connect and disconnect) until the first router asks for presence. The changes gathered since a snapshot began
//! follow it, so that a device that changes meanwhile ends in its last state.
//!
//! Rejected: a table of all connected devices while somebody follows. It makes snapshots one walk, but measured 114 bytes a device although it
//! shared the ids with the sessions: 230 MB for two million, for something that happens once a router's life. A change in the map
//! measured 232 bytes with an id of 20 bytes: 61 MB at the bound of `limits::PRESENCE_CHANGES`, and none when nobody follows.
//!
//! Everything here is in memory: (epoch, sequence) name a point, and a restart begins another epoch.

mod follower;
mod hub;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

pub use follower::{Follower, Update};
pub use hub::{Change, Hub, Mark, Point};

use crate::budget::{Budget, Held, Part};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::ids::{AppKey, ShardId};
use crate::limits;
use crate::push::Millis;
use crate::telemetry::{self, Counter, Gauge};

/// Marks are gathered so often: the last state of a device within this time is told.
const GATHER: Duration = Duration::from_secs(1);
/// Marks that are looked up before other work of the thread has its turn.
const GATHER_MARKS: usize = 4_096;
/// Milliseconds for which changes are kept after the last follower has left, so that it may come back and go on.
const KEEP_MS: Millis = 300_000;

/// What a router is told of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum State {
    /// It has a session.
    Connected = 1,
    /// It has none.
    Disconnected = 2,
    /// It has a session on which a push is unacknowledged for too long, and nothing was read since.
    Suspect = 3,
}

/// The apps that a follower may and wants to hear of.
pub type Scope = Arc<HashSet<AppKey>>;

/// A part of a shard's sessions is asked for.
#[derive(Debug)]
pub struct SliceRequest {
    /// From this slot on.
    pub from: u32,
    /// Of these apps.
    pub scope: Scope,
    /// Gets the answer. If it is gone nobody wants it any more.
    pub reply: oneshot::Sender<Slice>,
}

/// A part of a shard's sessions, as they are now.
#[derive(Debug, Default)]
pub struct Slice {
    /// The sessions.
    pub sessions: Vec<Change>,
    /// Where the next part begins; `None`: that was all.
    pub next: Option<u32>,
}

/// Hands a request to a shard. Never waits.
pub type AskShard = Box<dyn Fn(ShardId, SliceRequest) + Send + Sync>;

/// The presence of this edge, shared by its shards and router links.
pub struct Presence {
    /// Somebody follows, or did a short time ago.
    active: AtomicBool,
    /// One list a shard, so that shards don't wait for each other.
    marks: Box<[Mutex<Marks>]>,
    inside: Mutex<Inside>,
    /// The newest sequence.
    newest: watch::Sender<u64>,
    /// Presence became active.
    opened: Notify,
    directory: Arc<Directory>,
    ask: AskShard,
}

#[derive(Debug, Default)]
struct Marks {
    list: Vec<Mark>,
    /// Too many came at once: some are not known.
    lost: bool,
}

#[derive(Debug)]
struct Inside {
    hub: Hub,
    followers: usize,
    held: Option<Held>,
}

impl Inside {
    fn count(&mut self) {
        let bytes = self.hub.len() * CHANGE_BYTES;
        if let Some(held) = &mut self.held {
            held.set(bytes);
        }
    }
}

/// Bytes of a device's last change, about: measured.
pub const CHANGE_BYTES: usize = 232;

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("active", &self.active).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Presence {
    /// For so many shards. `now` is edge time after the store was opened: it makes the epoch, which differs from every earlier one.
    pub fn new(directory: Arc<Directory>, shards: usize, now: Millis, ask: AskShard) -> Self {
        // Exact in a JSON number, and different even if two processes start in the same millisecond.
        let epoch = now * 1_000 + u64::from(rand::random::<u16>() % 1_000);
        let hub = Hub::new(epoch, limits::PRESENCE_CHANGES);
        Self {
            active: AtomicBool::new(false),
            marks: (0..shards).map(|_| Mutex::default()).collect(),
            newest: watch::Sender::new(hub.point().sequence),
            inside: Mutex::new(Inside { hub, followers: 0, held: None }),
            opened: Notify::new(),
            directory,
            ask,
        }
    }

    /// Keeps so many changes instead of `limits::PRESENCE_CHANGES`: a router that is farther behind gets a snapshot. Before anybody follows.
    #[must_use]
    pub fn keeping(self, changes: usize) -> Self {
        {
            let hub = &mut lock(&self.inside).hub;
            *hub = Hub::new(hub.point().epoch, changes);
        }
        self
    }

    /// What it keeps is counted in this budget.
    #[must_use]
    pub fn counted_in(self, budget: &Arc<Budget>) -> Self {
        lock(&self.inside).held = Some(budget.hold(Part::Presence));
        self
    }

    /// Something about a device may have changed: called after the directory was. `mark` is called only if somebody wants to know.
    pub fn mark(&self, shard: ShardId, mark: impl FnOnce() -> Mark) {
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        let Some(marks) = self.marks.get(usize::from(shard.0)) else { return };
        let mut marks = lock(marks);
        if marks.lost {
            return;
        }
        if marks.list.len() < limits::PRESENCE_MARKS {
            marks.list.push(mark());
        } else {
            *marks = Marks { list: Vec::new(), lost: true };
        }
    }

    /// Begins to follow: from `point` on if all that lies behind it is still here, else with a snapshot.
    pub fn follow(self: &Arc<Self>, scope: Scope, point: Option<Point>) -> Follower {
        let mut inside = lock(&self.inside);
        inside.followers += 1;
        let resumed = point.filter(|point| inside.hub.holds(*point));
        if !self.active.swap(true, Ordering::Relaxed) {
            self.opened.notify_one();
        }
        drop(inside);
        telemetry::adjust(Gauge::PresenceFollowers, 1);
        Follower::new(Arc::clone(self), scope, resumed.map(|point| point.sequence))
    }

    /// Gathers once a second, for as long as anybody follows or may come back. Never ends.
    pub async fn keep(&self, clock: &Clock) {
        loop {
            self.opened.notified().await;
            let mut unused_since = None;
            while self.active.load(Ordering::Relaxed) {
                tokio::time::sleep(GATHER).await;
                self.gather().await;
                let now = clock.now();
                let since = *unused_since.get_or_insert(now);
                if lock(&self.inside).followers > 0 {
                    unused_since = None;
                } else if now.saturating_sub(since) >= KEEP_MS {
                    self.close();
                }
            }
        }
    }

    /// Looks up what was marked since the last time.
    pub async fn gather(&self) {
        for marks in &self.marks {
            let Marks { list, lost } = std::mem::take(&mut *lock(marks));
            let mut list = list.into_iter();
            while list.len() > 0 {
                {
                    let find = |device: &_| self.directory.find(device).map(|session| session.generation);
                    let mut inside = lock(&self.inside);
                    for mark in list.by_ref().take(GATHER_MARKS) {
                        inside.hub.handle_mark(mark, find);
                    }
                }
                tokio::task::yield_now().await;
            }
            if lost {
                tracing::info!("too many devices came or went within a second: followers get a new snapshot");
                lock(&self.inside).hub.handle_lost();
            }
        }
        let newest = {
            let mut inside = lock(&self.inside);
            inside.count();
            inside.hub.point().sequence
        };
        self.newest.send_if_modified(|sequence| {
            telemetry::add(Counter::PresenceChanges, newest.saturating_sub(*sequence));
            std::mem::replace(sequence, newest) != newest
        });
    }

    /// Nobody has followed for long: back to costing nothing. Whoever comes gets a snapshot.
    fn close(&self) {
        let mut inside = lock(&self.inside);
        if inside.followers == 0 {
            self.active.store(false, Ordering::Relaxed);
            inside.hub.handle_lost();
            inside.count();
            for marks in &self.marks {
                *lock(marks) = Marks::default();
            }
        }
    }

    fn leave(&self) {
        lock(&self.inside).followers -= 1;
        telemetry::adjust(Gauge::PresenceFollowers, -1);
    }
}
