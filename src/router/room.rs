//! What router links hold in memory, as the budget has it.
//!
//! A link's own bounds (credit, its outbox) hold for each of them. Large frames, which are whole in memory before anything can be said about them, have
//! room for all links together as well: who sends one waits, unread, until there is some. Small frames don't wait.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::budget::{Budget, Held, Part};
use crate::limits;

/// The semaphore counts in these bytes.
const UNIT: usize = 1024;
/// Bytes that examining a frame takes beside it, at most: keys and accounts of its targets, and what their digest is made of.
const EXAMINED_BYTES: usize = limits::BATCH_TARGETS * 60;

/// See the module.
#[derive(Clone, Debug)]
pub struct Room {
    budget: Arc<Budget>,
    frames: Arc<Semaphore>,
    /// Bytes that may wait to be written on one link.
    outbox_bytes: usize,
    /// What large frames may take, counted from the start: nobody can say no to one before it is there.
    _frames_held: Arc<Held>,
}

impl Default for Room {
    fn default() -> Self {
        Self::new(&Arc::default(), limits::CREDIT_BYTES as usize, limits::LINK_OUTBOX_BYTES)
    }
}

impl Room {
    /// With so many bytes for large frames, of which the largest always has room, and for what waits to be written on one link.
    pub fn new(budget: &Arc<Budget>, frame_bytes: usize, outbox_bytes: usize) -> Self {
        let frames = frame_bytes.max(limits::ROUTER_FRAME_BYTES);
        let mut held = budget.hold(Part::Admission);
        held.set(frames + EXAMINED_BYTES);
        Self {
            budget: budget.clone(),
            frames: Arc::new(Semaphore::new(frames.div_ceil(UNIT))),
            outbox_bytes: outbox_bytes.clamp(limits::LEAST_LINK_OUTBOX_BYTES, limits::LINK_OUTBOX_BYTES),
            _frames_held: Arc::new(held),
        }
    }

    /// The budget.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes that may wait to be written on one link. One frame may go over.
    pub(super) fn outbox_bytes(&self) -> usize {
        self.outbox_bytes
    }

    /// Room for a large frame, until it is examined; waits for it.
    pub(super) async fn frame(&self, length: usize) -> Option<OwnedSemaphorePermit> {
        let units = length.min(limits::ROUTER_FRAME_BYTES).div_ceil(UNIT) as u32;
        // Never closed, so this is a permit.
        Arc::clone(&self.frames).acquire_many_owned(units).await.ok()
    }

    /// A link's buffer.
    pub(super) fn buffer(&self, bytes: usize) -> Held {
        self.hold(Part::Links, bytes)
    }

    /// What is to be written to a router.
    pub(super) fn outgoing(&self, bytes: usize) -> Held {
        self.hold(Part::Links, bytes)
    }

    /// Targets that wait in a link.
    pub(super) fn waiting(&self) -> Held {
        self.budget.hold(Part::Admission)
    }

    fn hold(&self, part: Part, bytes: usize) -> Held {
        let mut held = self.budget.hold(part);
        held.set(bytes);
        held
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn large_frames_wait_for_each_other_and_their_room_is_counted_from_the_start() {
        let budget = Arc::new(Budget::default());
        let room = Room::new(&budget, 0, 0);
        let least = limits::ROUTER_FRAME_BYTES + EXAMINED_BYTES;
        assert_eq!(budget.part(Part::Admission), least);
        let largest = room.frame(limits::ROUTER_FRAME_BYTES).await;
        assert!(timeout(Duration::ZERO, room.frame(100_000)).await.is_err());
        drop(largest);
        assert!(timeout(Duration::ZERO, room.frame(100_000)).await.is_ok());
        assert_eq!(budget.used(), least);
        let (buffer, outgoing) = (room.buffer(10), room.outgoing(20));
        assert_eq!(budget.part(Part::Links), 30);
        drop((buffer, outgoing, room));
        assert_eq!(budget.used(), 0);
    }
}
