//! Frames off a link. Small ones are seen in place in one reused buffer; a large one gets a buffer of its own, which grows only as its bytes
//! really come and goes away with it, so that a link that once carried 16 MiB doesn't keep them.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::LinkEnd;
use super::room::Room;
use crate::budget::Held;
use crate::telemetry::{self, Counter, Direction};
use crate::wire::frame::{FrameError, ROUTER_HEAD, router_frame};
use crate::wire::router::LinkError;

/// Bytes of the reused buffer: the head and body of a small frame fit.
const BUFFER_BYTES: usize = 64 * 1024;
/// A large frame's buffer begins with this and grows as bytes come.
const LARGE_STEP: usize = 1024 * 1024;

/// Reads frames.
pub(super) struct FrameReader<R> {
    io: R,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were handed out already.
    taken: usize,
    room: Room,
    /// The buffer's.
    _held: Held,
}

/// The bytes of one frame, without its head.
pub(super) enum Frame<'a> {
    /// In the reader's buffer.
    Small(&'a [u8]),
    /// In its own.
    Large(Large),
}

/// A large frame, which gives its room back when it is dropped.
pub(super) struct Large {
    pub(super) bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R, room: &Room) -> Self {
        let held = room.buffer(BUFFER_BYTES);
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Self { io, buffer, taken: 0, room: room.clone(), _held: held }
    }

    /// The next frame, whole within `deadline`.
    pub(super) async fn next(
        &mut self,
        limit: usize,
        deadline: Duration,
        late: &'static str,
    ) -> Result<Frame<'_>, LinkEnd> {
        match timeout(deadline, self.read(limit)).await {
            Ok(frame) => {
                let frame = frame?;
                let bytes = match &frame {
                    Frame::Small(bytes) => bytes.len(),
                    Frame::Large(large) => large.bytes.len(),
                };
                telemetry::add(Counter::RouterFrames(Direction::In), 1);
                telemetry::add(Counter::RouterBytes(Direction::In), (ROUTER_HEAD + bytes) as u64);
                Ok(frame)
            }
            Err(_) => Err(LinkError::Deadline(late).into()),
        }
    }

    async fn read(&mut self, limit: usize) -> Result<Frame<'_>, LinkEnd> {
        self.fill(ROUTER_HEAD).await?;
        let mut head = [0; ROUTER_HEAD];
        head.copy_from_slice(&self.buffer[self.taken..self.taken + ROUTER_HEAD]);
        let length = router_frame(head, limit).map_err(|error| match error {
            FrameError::TooLarge { length, limit } => LinkError::FrameTooLarge { length, limit },
            FrameError::Malformed => LinkError::Malformed("no frame begins here"),
        })?;
        if ROUTER_HEAD + length > BUFFER_BYTES {
            return self.read_large(length).await.map(Frame::Large);
        }
        self.fill(ROUTER_HEAD + length).await?;
        let begin = self.taken + ROUTER_HEAD;
        self.taken = begin + length;
        Ok(Frame::Small(&self.buffer[begin..begin + length]))
    }

    async fn read_large(&mut self, length: usize) -> Result<Large, LinkEnd> {
        let room = self.room.frame(length).await;
        let mut large = Vec::with_capacity(length.min(LARGE_STEP));
        // What is in the buffer is less than the frame: all of it belongs to it.
        large.extend_from_slice(&self.buffer[self.taken + ROUTER_HEAD..]);
        self.taken = self.buffer.len();
        while large.len() < length {
            let missing = (length - large.len()) as u64;
            if (&mut self.io).take(missing).read_buf(&mut large).await.map_err(LinkEnd::read)? == 0 {
                return Err(LinkError::Malformed("the link ended within a frame").into());
            }
        }
        Ok(Large { bytes: large, _room: room })
    }

    /// Reads until `wanted` bytes are there behind `taken`.
    async fn fill(&mut self, wanted: usize) -> Result<(), LinkEnd> {
        if self.taken == self.buffer.len() {
            self.buffer.clear();
            self.taken = 0;
        } else if self.taken + wanted > BUFFER_BYTES {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        while self.buffer.len() - self.taken < wanted {
            let free = (BUFFER_BYTES - self.buffer.len()) as u64;
            if (&mut self.io).take(free).read_buf(&mut self.buffer).await.map_err(LinkEnd::read)? == 0 {
                let between = self.buffer.len() == self.taken;
                let broken = LinkError::Malformed("the link ended within a frame");
                return Err(if between { LinkEnd::Closed } else { broken.into() });
            }
        }
        Ok(())
    }

    /// Reads and forgets, until the peer closes or fails.
    pub(super) async fn discard(&mut self) {
        self.buffer.resize(BUFFER_BYTES, 0);
        while let Ok(1..) = self.io.read(&mut self.buffer).await {}
    }
}
