//! Device → session: who is connected, on which shard, in which slot. The only user of dashmap.
//!
//! Invariants: the newest generation wins; leaving compares generations, so that a late goodbye never removes a newcomer. No guard is held
//! across another call.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::{DashMap, Entry};

use crate::fault::{self, Fault};
use crate::ids::{BuildSpread, DeviceKey, Generation, SessionRef, ShardId};
use crate::push::Millis;
use crate::sync::step;
use crate::telemetry::Transport;

/// How a session is connected, for who troubleshoots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Since when.
    pub since: Millis,
    /// Over what.
    pub transport: Transport,
}

/// A session and how it is connected: 24 bytes, where one behind the other takes 32.
#[derive(Clone, Copy, Debug)]
struct Held {
    generation: Generation,
    since: Millis,
    slot: u32,
    shard: ShardId,
    transport: Transport,
}

impl Held {
    fn new(session: SessionRef, way: Way) -> Self {
        let SessionRef { generation, slot, shard } = session;
        let Way { since, transport } = way;
        Self { generation, since, slot, shard, transport }
    }

    fn session(&self) -> SessionRef {
        SessionRef { generation: self.generation, slot: self.slot, shard: self.shard }
    }

    fn way(&self) -> Way {
        Way { since: self.since, transport: self.transport }
    }
}

/// The sessions of all shards.
#[derive(Debug)]
pub struct Directory {
    sessions: DashMap<DeviceKey, Held, BuildSpread>,
    generations: AtomicU64,
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// An empty directory.
    pub fn new() -> Self {
        Self { sessions: DashMap::with_hasher(BuildSpread::default()), generations: AtomicU64::new(1) }
    }

    /// A generation newer than all before.
    pub fn next_generation(&self) -> Generation {
        Generation(self.generations.fetch_add(1, Ordering::Relaxed))
    }

    /// Enters a session. `Ok(Some)`: the older one that it replaces, to be told. `Err`: a newer one is already here, this one has lost.
    pub fn enter(
        &self,
        device: DeviceKey,
        session: SessionRef,
        way: Way,
    ) -> Result<Option<SessionRef>, SessionRef> {
        step();
        match self.sessions.entry(device) {
            Entry::Vacant(vacant) => {
                vacant.insert(Held::new(session, way));
                Ok(None)
            }
            Entry::Occupied(mut occupied) => {
                let held = occupied.get().session();
                if held.generation > session.generation && !fault::is(Fault::LetOlderIn) {
                    return Err(held);
                }
                occupied.insert(Held::new(session, way));
                Ok((held != session).then_some(held))
            }
        }
    }

    /// Removes this session, if it is still the one. Whether it was.
    pub fn leave(&self, device: &DeviceKey, generation: Generation) -> bool {
        step();
        self.sessions
            .remove_if(device, |_, held| held.generation == generation || fault::is(Fault::RemoveAnySession))
            .is_some()
    }

    /// The device's session.
    pub fn find(&self, device: &DeviceKey) -> Option<SessionRef> {
        step();
        self.sessions.get(device).map(|held| held.session())
    }

    /// The device's session, and how it is connected.
    pub fn look(&self, device: &DeviceKey) -> Option<(SessionRef, Way)> {
        step();
        self.sessions.get(device).map(|held| (held.session(), held.way()))
    }

    /// Sessions in it.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way { since: 7, transport: Transport::Tls };

    fn session(directory: &Directory, slot: u32) -> SessionRef {
        SessionRef { generation: directory.next_generation(), slot, shard: ShardId(0) }
    }

    #[test]
    fn a_late_goodbye_does_not_remove_the_newcomer() {
        let directory = Directory::new();
        let device = DeviceKey([1; 16]);
        let (old, new) = (session(&directory, 1), session(&directory, 2));
        assert_eq!(directory.enter(device, old, WAY), Ok(None));
        assert_eq!(directory.enter(device, new, WAY), Ok(Some(old)));
        assert!(!directory.leave(&device, old.generation));
        assert_eq!(directory.look(&device), Some((new, WAY)));
        assert!(directory.leave(&device, new.generation));
        assert!(directory.is_empty());
    }

    #[test]
    fn an_older_session_that_comes_late_loses() {
        let directory = Directory::new();
        let device = DeviceKey([1; 16]);
        let (old, new) = (session(&directory, 1), session(&directory, 2));
        assert_eq!(directory.enter(device, new, WAY), Ok(None));
        assert_eq!(directory.enter(device, old, WAY), Err(new));
        assert_eq!(directory.find(&device), Some(new));
    }
}
