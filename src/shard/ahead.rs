//! A look ahead. Of a million sessions the next one is in no cache, and what is done for it reads one line of memory behind the other, some 0.1 µs
//! each. Lines that don't say where the others are the processor reads at the same time: so some sessions are touched in a loop that does nothing else,
//! right before they are worked on one by one. (There is an instruction for that, but not without unsafe code.)

use std::hint::black_box;

use slab::Slab;
use smallvec::SmallVec;

use super::state::{ConnRef, Connection, Phase, Shard};
use crate::ids::DeviceKey;

/// Sessions that are touched together: half a kilobyte each, which stays in the nearest cache until they are worked on.
pub(super) const AHEAD: usize = 32;

/// Reads something of each line of a connection. Its device, if there may be something to pull for it.
fn touch(connections: &Slab<Connection>, slot: u32) -> Option<DeviceKey> {
    let connection = connections.get(slot as usize)?;
    black_box((connection.serial, connection.flags.dirty, connection.outbox.is_empty()));
    let Phase::Live(live) = &connection.phase else { return None };
    black_box((live.generation, live.epoch, live.session.in_flight(), live.seldom.get().is_none()));
    live.session.has_newer().then_some(live.device)
}

impl Shard {
    /// Touches what is worked on next: [`AHEAD`] of these.
    pub(super) fn touch(&self, slots: impl ExactSizeIterator<Item = u32>) {
        if slots.len() > 1 {
            for slot in slots.take(AHEAD) {
                black_box(touch(&self.connections, slot));
            }
        }
    }

    /// The same of those that are pumped next, with what is pending for them.
    pub(super) fn touch_dirty(&self) {
        if self.urgent.len() + self.dirty.len() > 1 {
            let next = self.urgent.iter().chain(&self.dirty).take(AHEAD);
            let devices: SmallVec<[DeviceKey; AHEAD]> =
                next.filter_map(|ConnRef { slot, .. }| touch(&self.connections, *slot)).collect();
            self.context.store.touch(&devices);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::from_ref;

    use super::*;
    use crate::shard::recalls::tests::{begins, shard};

    #[tokio::test]
    async fn what_is_read_of_a_connection_stands_on_each_of_its_lines() {
        let (mut shard, _store) = shard();
        let (conn, _far) = begins(&mut shard).await;
        let connection = shard.connection(conn).expect("there");
        let begin = from_ref(connection).addr();
        let Phase::Live(live) = &connection.phase else { panic!("a session") };
        let mut read = [
            from_ref(&connection.serial).addr(),
            from_ref(&connection.flags.dirty).addr(),
            from_ref(&connection.outbox).addr(),
            from_ref(&live.generation).addr(),
            from_ref(&live.epoch).addr(),
            from_ref(&live.session).addr(),
            from_ref(&live.seldom).addr(),
            from_ref(&live.device).addr(),
        ]
        .map(|at| at - begin);
        read.sort_unstable();
        let ends = [0].into_iter().chain(read).zip(read.into_iter().chain([size_of::<Connection>()]));
        assert!(ends.into_iter().all(|(at, next)| next - at <= 64), "{read:?}");
    }
}
