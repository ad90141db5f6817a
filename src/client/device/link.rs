//! One connection of a device: frames out, frames in. No behaviour: that is [`super::Machine`]'s.

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::client::net::{WRITE_SECONDS, deadline};
use crate::client::{ClientError, Endpoint, net::Stream};
use crate::wire::frame::{device_frame, put_device_frame};
use crate::wire::pb::device::{Hello, ToDevice, ToEdge, Welcome, to_device, to_edge};

/// Seconds for the edge's answer to Hello.
pub const HELLO_SECONDS: u64 = 15;
/// Bytes asked for in one read.
const READ_BYTES: usize = 2_048;

/// A connection that speaks device frames.
#[derive(Debug)]
pub struct Link<S = Stream> {
    stream: S,
    /// Read, from `taken` on not yet handed out.
    input: Vec<u8>,
    taken: usize,
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
        Self { stream, input: Vec::new(), taken: 0, output: Vec::new() }
    }

    /// Puts a frame behind those that wait for [`Self::flush`].
    pub fn queue(&mut self, frame: to_edge::Frame) {
        put_device_frame(&mut self.output, &ToEdge { frame: Some(frame) });
    }

    /// Writes what is queued, under a deadline.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let work = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        deadline("room to write", WRITE_SECONDS, work).await??;
        self.output.clear();
        Ok(())
    }

    /// Queues and writes one frame.
    pub async fn send(&mut self, frame: to_edge::Frame) -> Result<(), ClientError> {
        self.queue(frame);
        self.flush().await
    }

    /// The next frame, within so many seconds.
    pub async fn recv(&mut self, seconds: u64) -> Result<to_device::Frame, ClientError> {
        deadline("frame", seconds, async {
            loop {
                if let Some(frame) = self.buffered()? {
                    return Ok(frame);
                }
                self.fill().await?;
            }
        })
        .await?
    }

    /// The next frame that has been read already. Unknown ones are skipped.
    pub fn buffered(&mut self) -> Result<Option<to_device::Frame>, ClientError> {
        loop {
            let Some((head, body)) = device_frame(&self.input[self.taken..])? else { return Ok(None) };
            let from = self.taken + head;
            let message = ToDevice::decode(&self.input[from..from + body])?;
            self.taken = from + body;
            if message.frame.is_some() {
                return Ok(message.frame);
            }
        }
    }

    /// Reads more. Can be cancelled without losing bytes; the caller has the deadline.
    pub async fn fill(&mut self) -> Result<(), ClientError> {
        // What was handed out goes, so that an idle device holds one small buffer.
        self.input.drain(..self.taken);
        self.taken = 0;
        self.input.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(ClientError::Closed);
        }
        Ok(())
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
        Ok(deadline("end of the connection", WRITE_SECONDS, self.stream.shutdown()).await??)
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
