//! Device → session: who is connected, on which shard, in which slot. The only user of dashmap.
//!
//! Invariants: the newest generation wins; leaving compares generations, so that a late goodbye never removes a newcomer. No guard is held
//! across another call; who looks many devices up holds all maps for a run of them, in their order.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::{DashMap, Entry};

use crate::fault::{self, Fault};
use crate::ids::{BuildSpread, DeviceKey, Generation, SessionRef, ShardId};
use crate::limits;
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

/// A session and how it is connected: 16 bytes, where one behind the other takes 32. In bits, from above: the generation (46: 22 years of 100,000 sessions
/// a second), since when (42: until the year 2109), the slot (28), the shard (10), the transport (2).
#[derive(Clone, Copy, Debug)]
struct Held(u128);

/// Devices that are looked up while the maps are held.
const FOUND_TOGETHER: usize = 256;

const TRANSPORT_BITS: u32 = 2;
const SHARD_BITS: u32 = 10;
const SLOT_BITS: u32 = 28;
const SINCE_BITS: u32 = 42;

const _: () = assert!(Transport::ALL.len() <= 1 << TRANSPORT_BITS && limits::SHARDS <= 1 << SHARD_BITS);

/// The lowest bits of a number.
fn lowest(number: u128, bits: u32) -> u128 {
    number & ((1 << bits) - 1)
}

impl Held {
    fn new(session: SessionRef, way: Way) -> Self {
        let SessionRef { generation, slot, shard } = session;
        let mut packed = u128::from(generation.0);
        packed = packed << SINCE_BITS | lowest(way.since.into(), SINCE_BITS);
        // A slot that is too high for it, which nobody has the memory for, is found as another, whose generation tells that it isn't.
        packed = packed << SLOT_BITS | lowest(slot.into(), SLOT_BITS);
        packed = packed << SHARD_BITS | lowest(shard.0.into(), SHARD_BITS);
        Self(packed << TRANSPORT_BITS | way.transport as u128)
    }

    fn generation(self) -> Generation {
        Generation((self.0 >> (SINCE_BITS + SLOT_BITS + SHARD_BITS + TRANSPORT_BITS)) as u64)
    }

    fn session(self) -> SessionRef {
        let slot = lowest(self.0 >> (SHARD_BITS + TRANSPORT_BITS), SLOT_BITS) as u32;
        let shard = ShardId(lowest(self.0 >> TRANSPORT_BITS, SHARD_BITS) as u16);
        SessionRef { generation: self.generation(), slot, shard }
    }

    fn way(self) -> Way {
        let since = lowest(self.0 >> (SLOT_BITS + SHARD_BITS + TRANSPORT_BITS), SINCE_BITS) as Millis;
        Way { since, transport: Transport::ALL[lowest(self.0, TRANSPORT_BITS) as usize] }
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
            .remove_if(device, |_, held| {
                held.generation() == generation || fault::is(Fault::RemoveAnySession)
            })
            .is_some()
    }

    /// The device's session.
    pub fn find(&self, device: &DeviceKey) -> Option<SessionRef> {
        step();
        self.sessions.get(device).map(|held| held.session())
    }

    /// The sessions of these devices, as far as they have one. All maps are held while a run is looked up: to take a lock is to wait for whatever is
    /// read before it, and without one in between the processor reads lines of several entries at the same time.
    pub fn find_all(&self, devices: &[DeviceKey], mut found: impl FnMut(SessionRef)) {
        for run in devices.chunks(FOUND_TOGETHER) {
            let maps = self.sessions.shards();
            if run.len() < maps.len() {
                run.iter().filter_map(|device| self.find(device)).for_each(&mut found);
                continue;
            }
            step();
            // In their order, so that nobody waits for who waits for him; whoever enters or leaves holds one.
            let maps: Vec<_> = maps.iter().map(|map| map.read()).collect();
            for device in run {
                let hash = self.sessions.hash_usize(device);
                let map = &maps[self.sessions.determine_shard(hash)];
                if let Some((_, held)) = map.get(hash as u64, |(key, _)| key == device) {
                    found(held.get().session());
                }
            }
        }
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
    fn many_are_found_as_each_is() {
        let directory = Directory::new();
        let key = |n: u64| {
            DeviceKey((u128::from(n) << 64 | u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes())
        };
        for n in (0..2_000).step_by(2) {
            assert_eq!(directory.enter(key(n), session(&directory, n as u32), WAY), Ok(None));
        }
        // Some of which aren't there, in runs of all lengths, the last of which is short.
        for devices in [0..0, 0..1, 0..7, 5..300, 0..2_000] {
            let devices: Vec<DeviceKey> = devices.map(key).collect();
            let mut found = Vec::new();
            directory.find_all(&devices, |session| found.push(session));
            let each: Vec<SessionRef> = devices.iter().filter_map(|device| directory.find(device)).collect();
            assert_eq!(found, each);
        }
    }

    #[test]
    fn an_entry_is_thirty_two_bytes_and_comes_back_whole() {
        assert_eq!(size_of::<(DeviceKey, Held)>(), 32);
        for &transport in Transport::ALL {
            for (generation, slot, shard, since) in [
                (0, 0, 0, 0),
                (1 << 45, 1 << 27, 1 << 8, 1 << 41),
                ((1 << 46) - 1, (1 << 28) - 1, 1_023, (1 << 42) - 1),
            ] {
                let session = SessionRef { generation: Generation(generation), slot, shard: ShardId(shard) };
                let held = Held::new(session, Way { since, transport });
                assert_eq!((held.session(), held.way()), (session, Way { since, transport }));
            }
        }
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
