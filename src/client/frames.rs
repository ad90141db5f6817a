//! Frames over a stream of bytes, as a device and a router both read and write them: what was read and not yet handed out, and what waits to be
//! written. What differs, they say themselves ([`Incoming`]).

use std::marker::PhantomData;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ClientError;
use super::net::{WRITE_SECONDS, deadline};
use crate::wire::frame::FrameError;

/// What the edge says in frames.
pub(super) trait Incoming: Message + Default {
    /// What a message is about.
    type Frame;
    /// Bytes asked for in one read.
    const READ_BYTES: usize;
    /// Bytes that a buffer keeps when it is empty.
    const KEPT_BYTES: usize;

    /// Head and body of the first frame, in bytes, if it is there as a whole.
    fn whole(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError>;

    /// What it is about; `None`: something newer than this program.
    fn frame(self) -> Option<Self::Frame>;
}

/// Read, from `taken` on not yet handed out.
#[derive(Debug)]
pub(super) struct Input<M> {
    bytes: Vec<u8>,
    taken: usize,
    of: PhantomData<fn() -> M>,
}

impl<M: Incoming> Input<M> {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), taken: 0, of: PhantomData }
    }

    /// The next frame, within so many seconds.
    pub(super) async fn recv<R: AsyncRead + Unpin>(
        &mut self,
        stream: &mut R,
        seconds: u64,
    ) -> Result<M::Frame, ClientError> {
        deadline("frame", seconds, async {
            loop {
                if let Some(frame) = self.buffered()? {
                    return Ok(frame);
                }
                self.fill(stream).await?;
            }
        })
        .await?
    }

    /// The next frame that has been read already. Unknown ones are skipped.
    pub(super) fn buffered(&mut self) -> Result<Option<M::Frame>, ClientError> {
        while let Some(body) = self.body()? {
            if let Some(frame) = M::decode(body)?.frame() {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// The body of the next frame that has been read already, where it stands.
    pub(super) fn body(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let rest = &self.bytes[self.taken..];
        let Some((head, body)) = M::whole(rest)? else { return Ok(None) };
        self.taken += head + body;
        Ok(Some(&rest[head..head + body]))
    }

    /// Reads more. Can be cancelled without losing bytes; the caller has the deadline.
    pub(super) async fn fill<R: AsyncRead + Unpin>(&mut self, stream: &mut R) -> Result<(), ClientError> {
        // What was handed out goes, so that an idle client holds one small buffer.
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(M::KEPT_BYTES);
        }
        self.bytes.reserve(M::READ_BYTES);
        if stream.read_buf(&mut self.bytes).await? == 0 {
            return Err(ClientError::Closed);
        }
        Ok(())
    }
}

/// Writes what is queued, under a deadline; then the queue is empty and keeps so many bytes.
pub(super) async fn flush<W: AsyncWrite + Unpin>(
    stream: &mut W,
    queue: &mut Vec<u8>,
    kept_bytes: usize,
) -> Result<(), ClientError> {
    if queue.is_empty() {
        return Ok(());
    }
    let work = async {
        stream.write_all(queue).await?;
        stream.flush().await
    };
    deadline("room to write", WRITE_SECONDS, work).await??;
    queue.clear();
    queue.shrink_to(kept_bytes);
    Ok(())
}

/// Says that nothing more comes. Under a deadline; a peer that doesn't care loses nothing.
pub(super) async fn close<W: AsyncWrite + Unpin>(stream: &mut W) -> Result<(), ClientError> {
    Ok(deadline("end of the connection", WRITE_SECONDS, stream.shutdown()).await??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{put_device_frame, put_router_frame};
    use crate::wire::pb::device::{self, ToDevice, to_device};
    use crate::wire::pb::router::{self, ToRouter, to_router};

    /// A message with a field of number 100.
    const UNKNOWN: &[u8] = &[0xa0, 0x06, 1];

    /// Bytes that come one by one make these frames; one that nobody knows, between them, is passed over.
    async fn pieces<M: Incoming<Frame: PartialEq + std::fmt::Debug>>(bytes: &[u8], frames: [M::Frame; 2]) {
        let (mut near, mut far) = tokio::io::duplex(1);
        let write = async {
            far.write_all(bytes).await.expect("read");
            far.shutdown().await.expect("closed");
        };
        let read = async {
            let mut input = Input::<M>::new();
            for frame in frames {
                assert_eq!(input.recv(&mut near, 60).await.expect("a frame"), frame);
            }
            assert!(matches!(input.recv(&mut near, 60).await, Err(ClientError::Closed)));
        };
        tokio::join!(write, read);
    }

    #[tokio::test]
    async fn frames_come_whole_from_bytes_in_pieces() {
        let pong = || to_device::Frame::Pong(device::Pong::default());
        let go_away =
            || to_device::Frame::GoAway(device::GoAway { address: "x".repeat(300), ..Default::default() });
        let mut bytes = Vec::new();
        put_device_frame(&mut bytes, &ToDevice { frame: Some(pong()) });
        bytes.extend([&[UNKNOWN.len() as u8], UNKNOWN].concat());
        put_device_frame(&mut bytes, &ToDevice { frame: Some(go_away()) });
        pieces::<ToDevice>(&bytes, [pong(), go_away()]).await;

        let pong = || to_router::Frame::Pong(router::Pong { nonce: 1, edge_time: 2 });
        let go_away = || to_router::Frame::GoAway(router::GoAway { text: "x".repeat(300) });
        let mut bytes = Vec::new();
        put_router_frame(&mut bytes, &ToRouter { frame: Some(pong()) });
        bytes.extend([&[0, 0, 0, 0, UNKNOWN.len() as u8], UNKNOWN].concat());
        put_router_frame(&mut bytes, &ToRouter { frame: Some(go_away()) });
        pieces::<ToRouter>(&bytes, [pong(), go_away()]).await;
    }
}
