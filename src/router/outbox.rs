//! What waits to be written on one link, and the one loop that writes it.
//!
//! Everything that a link says goes through here, bounded in frames and in bytes: who produces waits. A frame's bytes count until they are written,
//! so that a router that doesn't read holds `limits::LINK_OUTBOX_BYTES` and one frame of each producer, and then its link is closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::LinkEnd;
use super::room::Room;
use crate::budget::Held;
use crate::limits;
use crate::telemetry::{self, Counter, Direction};

/// Frames are gathered up to about this many bytes a write.
const GATHER_BYTES: usize = 64 * 1024;

/// The way in.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: mpsc::Sender<Queued>,
    places: Arc<Semaphore>,
    room: Room,
}

/// The way out.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Receiver<Queued>);

#[derive(Debug)]
struct Queued {
    frames: Vec<u8>,
    count: u64,
    /// Given back when they are written.
    place: Place,
}

/// Their place in the outbox, and in memory.
type Place = (OwnedSemaphorePermit, Held);

/// An empty outbox.
pub(super) fn outbox(room: &Room) -> (Outbox, Queue) {
    let (frames, queue) = mpsc::channel(limits::LINK_OUTBOX_FRAMES);
    let places = Arc::new(Semaphore::new(room.outbox_bytes()));
    (Outbox { frames, places, room: room.clone() }, Queue(queue))
}

impl Outbox {
    /// Queues a whole frame; waits for room. Once the writer has ended nothing is queued: the link ends by the writer's own word.
    pub(super) async fn send(&self, frame: Vec<u8>) {
        self.send_many(frame, 1).await;
    }

    /// The same for some that stand one behind the other.
    pub(super) async fn send_many(&self, frames: Vec<u8>, count: u64) {
        let bytes = frames.len().min(self.room.outbox_bytes()) as u32;
        let held = self.room.outgoing(frames.capacity());
        let Ok(place) = Arc::clone(&self.places).acquire_many_owned(bytes).await else { return };
        // Fails only if the writer has ended.
        self.frames.send(Queued { frames, count, place: (place, held) }).await.ok();
    }
}

/// Writes what is queued until the outbox is dropped, then says goodbye on TLS and TCP. `stall`: the longest time without any progress.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut queue: Queue,
    mut io: W,
    stall: Duration,
) -> Result<(), LinkEnd> {
    let mut gathered = Vec::new();
    while let Some(first) = queue.0.recv().await {
        let mut count = first.count;
        let mut places = vec![first.place];
        gathered = first.frames;
        while gathered.len() < GATHER_BYTES {
            let Ok(next) = queue.0.try_recv() else { break };
            gathered.extend_from_slice(&next.frames);
            places.push(next.place);
            count += next.count;
        }
        put(&mut io, &gathered, stall).await?;
        telemetry::add(Counter::RouterFrames(Direction::Out), count);
        telemetry::add(Counter::RouterBytes(Direction::Out), gathered.len() as u64);
    }
    drop(gathered);
    progress(stall, io.shutdown()).await
}

async fn put<W: AsyncWrite + Unpin>(io: &mut W, mut bytes: &[u8], stall: Duration) -> Result<(), LinkEnd> {
    while !bytes.is_empty() {
        let written = progress(stall, io.write(bytes)).await?;
        if written == 0 {
            return Err(LinkEnd::Io(std::io::ErrorKind::WriteZero.into()));
        }
        bytes = &bytes[written..];
    }
    progress(stall, io.flush()).await
}

async fn progress<T>(stall: Duration, step: impl Future<Output = std::io::Result<T>>) -> Result<T, LinkEnd> {
    match timeout(stall, step).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(LinkEnd::Io(error)),
        Err(_) => Err(LinkEnd::Stalled),
    }
}
