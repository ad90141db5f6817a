//! One connection of a device: frames out, frames in. No behaviour: that is [`super::Machine`]'s.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::frames::{self, Incoming, Input};
use crate::client::{ClientError, Endpoint, net::Stream};
use crate::wire::frame::{FrameError, device_frame, put_device_frame};
use crate::wire::pb::device::{Hello, ToDevice, ToEdge, Welcome, to_device, to_edge};

/// Seconds for the edge's answer to Hello.
pub const HELLO_SECONDS: u64 = 15;

impl Incoming for ToDevice {
    type Frame = to_device::Frame;
    const READ_BYTES: usize = 2_048;
    const KEPT_BYTES: usize = Self::READ_BYTES;

    fn whole(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
        device_frame(bytes)
    }

    fn frame(self) -> Option<to_device::Frame> {
        self.frame
    }
}

/// A connection that speaks device frames.
#[derive(Debug)]
pub struct Link<S = Stream> {
    stream: S,
    input: Input<ToDevice>,
    /// Queued, not yet written.
    output: Vec<u8>,
}

impl Link {
    /// Connects; says nothing yet.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, ClientError> {
        Ok(Self::over(endpoint.connect().await?))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// A link over an open stream.
    pub fn over(stream: S) -> Self {
        Self { stream, input: Input::new(), output: Vec::new() }
    }

    /// Puts a frame behind those that wait for [`Self::flush`].
    pub fn queue(&mut self, frame: to_edge::Frame) {
        put_device_frame(&mut self.output, &ToEdge { frame: Some(frame) });
    }

    /// Writes what is queued, under a deadline.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        frames::flush(&mut self.stream, &mut self.output, ToDevice::KEPT_BYTES).await
    }

    /// Queues and writes one frame.
    pub async fn send(&mut self, frame: to_edge::Frame) -> Result<(), ClientError> {
        self.queue(frame);
        self.flush().await
    }

    /// The next frame, within so many seconds.
    pub async fn recv(&mut self, seconds: u64) -> Result<to_device::Frame, ClientError> {
        self.input.recv(&mut self.stream, seconds).await
    }

    /// The next frame that has been read already. Unknown ones are skipped.
    pub fn buffered(&mut self) -> Result<Option<to_device::Frame>, ClientError> {
        self.input.buffered()
    }

    /// Reads more. Can be cancelled without losing bytes; the caller has the deadline.
    pub async fn fill(&mut self) -> Result<(), ClientError> {
        self.input.fill(&mut self.stream).await
    }

    /// Says Hello and waits for the Welcome.
    pub async fn hello(&mut self, hello: Hello) -> Result<Welcome, ClientError> {
        self.send(to_edge::Frame::Hello(hello)).await?;
        match self.recv(HELLO_SECONDS).await? {
            to_device::Frame::Welcome(welcome) => Ok(welcome),
            to_device::Frame::Error(e) => Err(ClientError::Refused {
                code: e.code(),
                retry_after_milliseconds: e.retry_after_milliseconds,
                text: e.text,
            }),
            other => Err(ClientError::Unexpected { got: frame_name(&other), wanted: "Welcome" }),
        }
    }

    /// Closes in order: what was written arrives. Under a deadline; a peer that doesn't care loses nothing.
    pub async fn close(mut self) -> Result<(), ClientError> {
        frames::close(&mut self.stream).await
    }

    /// The stream beneath, for bytes that are no frames.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

/// The name of a frame, for messages.
pub fn frame_name(frame: &to_device::Frame) -> &'static str {
    match frame {
        to_device::Frame::Welcome(_) => "Welcome",
        to_device::Frame::Push(_) => "Push",
        to_device::Frame::AckConfirm(_) => "AckConfirm",
        to_device::Frame::Pong(_) => "Pong",
        to_device::Frame::Reply(_) => "Reply",
        to_device::Frame::Revoke(_) => "Revoke",
        to_device::Frame::GoAway(_) => "GoAway",
        to_device::Frame::Error(_) => "Error",
    }
}
