//! One connection of a router: gRPC's length-prefixed frames over mutual TLS, in two halves, as the link is full duplex.

use std::sync::Arc;

use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf, split};

use crate::client::frames::{self, Incoming, Input};
use crate::client::net::Stream;
use crate::client::{ClientError, Endpoint};
use crate::limits;
use crate::wire::frame::{FrameError, ROUTER_HEAD, put_router_frame, put_router_frame_of, router_frame};
use crate::wire::pb::router::{
    DeliverBatch, FromRouter, Open, Opened, Ping, Revoke, StreamAck, ToRouter, from_router, to_router,
};
use crate::wire::router::told::{StreamEvents, stream_in};

/// Seconds for the edge's answer to Open.
const OPEN_SECONDS: u64 = 15;
/// The field of `FromRouter` that holds a `DeliverBatch`.
const DELIVER: u32 = 2;

impl Incoming for ToRouter {
    type Frame = to_router::Frame;
    const READ_BYTES: usize = 64 * 1024;
    const KEPT_BYTES: usize = 1024 * 1024;

    fn whole(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
        let Some(head) = bytes.first_chunk::<ROUTER_HEAD>() else { return Ok(None) };
        let body = router_frame(*head, limits::ROUTER_FRAME_BYTES)?;
        Ok((bytes.len() >= ROUTER_HEAD + body).then_some((ROUTER_HEAD, body)))
    }

    fn frame(self) -> Option<to_router::Frame> {
        self.frame
    }
}

/// Connects, says Open and waits for Opened.
pub async fn open(endpoint: &Endpoint, open: Open) -> Result<(Sender, Receiver, Opened), ClientError> {
    let (read, write) = split(endpoint.connect().await?);
    let (mut sender, mut receiver) = (Sender::over(write), Receiver::over(read));
    sender.send(from_router::Frame::Open(open)).await?;
    match receiver.recv(OPEN_SECONDS).await? {
        to_router::Frame::Opened(opened) => Ok((sender, receiver, opened)),
        to_router::Frame::Error(e) => Err(ClientError::Link { code: e.code(), text: e.text }),
        other => Err(ClientError::Unexpected { got: frame_name(&other), wanted: "Opened" }),
    }
}

/// What a router has to say on an open link.
#[derive(Debug)]
pub(super) enum Outgoing {
    Ack(StreamAck),
    Revoke(Revoke),
    Batch(Arc<DeliverBatch>),
    Ping(Ping),
}

/// The half that writes.
#[derive(Debug)]
pub struct Sender<W = WriteHalf<Stream>> {
    stream: W,
    output: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    /// A sender over an open stream.
    pub fn over(stream: W) -> Self {
        Self { stream, output: Vec::new() }
    }

    /// Queues and writes one frame.
    pub async fn send(&mut self, frame: from_router::Frame) -> Result<(), ClientError> {
        self.queue(frame);
        self.flush().await
    }

    /// Puts a frame behind those that wait for [`Self::flush`].
    pub fn queue(&mut self, frame: from_router::Frame) {
        put_router_frame(&mut self.output, &FromRouter { frame: Some(frame) });
    }

    /// The same with a batch that stays where it is: one for 100,000 devices is not copied to be sent, or sent again.
    pub fn queue_batch(&mut self, batch: &DeliverBatch) {
        put_router_frame_of(&mut self.output, DELIVER, batch);
    }

    pub(super) fn put(&mut self, next: Outgoing) {
        match next {
            Outgoing::Ack(ack) => self.queue(from_router::Frame::StreamAck(ack)),
            Outgoing::Revoke(revoke) => self.queue(from_router::Frame::Revoke(revoke)),
            Outgoing::Batch(batch) => self.queue_batch(&batch),
            Outgoing::Ping(ping) => self.queue(from_router::Frame::Ping(ping)),
        }
    }

    /// Bytes that wait.
    pub fn queued(&self) -> usize {
        self.output.len()
    }

    /// Writes what is queued, under a deadline.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        frames::flush(&mut self.stream, &mut self.output, ToRouter::KEPT_BYTES).await
    }

    /// Says that nothing more comes.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        frames::close(&mut self.stream).await
    }

    /// The stream beneath, for bytes that are no frames.
    pub fn into_inner(self) -> W {
        self.stream
    }
}

/// What the edge said.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    /// Events of a stream.
    Events(StreamEvents<'a>),
    /// Something else; `None`: something newer than this program.
    Frame(Option<to_router::Frame>),
}

/// The half that reads.
#[derive(Debug)]
pub struct Receiver<R = ReadHalf<Stream>> {
    stream: R,
    input: Input<ToRouter>,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// A receiver over an open stream.
    pub fn over(stream: R) -> Self {
        Self { stream, input: Input::new() }
    }

    /// The next frame, within so many seconds.
    pub async fn recv(&mut self, seconds: u64) -> Result<to_router::Frame, ClientError> {
        self.input.recv(&mut self.stream, seconds).await
    }

    /// The next frame that has been read already. Unknown ones are skipped.
    pub fn buffered(&mut self) -> Result<Option<to_router::Frame>, ClientError> {
        self.input.buffered()
    }

    /// The same with the events of a stream as they stand in their frame.
    pub(super) fn heard(&mut self) -> Result<Option<Heard<'_>>, ClientError> {
        let Some(body) = self.input.body()? else { return Ok(None) };
        Ok(Some(match stream_in(body)? {
            Some(bytes) => Heard::Events(StreamEvents::read(bytes).ok_or(FrameError::Malformed)?),
            None => Heard::Frame(ToRouter::decode(body)?.frame),
        }))
    }

    /// Reads more. Can be cancelled without losing bytes; the caller has the deadline.
    pub async fn fill(&mut self) -> Result<(), ClientError> {
        self.input.fill(&mut self.stream).await
    }
}

/// The name of a frame, for messages.
pub fn frame_name(frame: &to_router::Frame) -> &'static str {
    match frame {
        to_router::Frame::Opened(_) => "Opened",
        to_router::Frame::Accepted(_) => "BatchAccepted",
        to_router::Frame::Rejected(_) => "BatchRejected",
        to_router::Frame::Stream(_) => "StreamBatch",
        to_router::Frame::StreamClosed(_) => "StreamClosed",
        to_router::Frame::Presence(_) => "Presence",
        to_router::Frame::Revoked(_) => "Revoked",
        to_router::Frame::Answer(_) => "Answer",
        to_router::Frame::Pong(_) => "Pong",
        to_router::Frame::Error(_) => "Error",
        to_router::Frame::GoAway(_) => "GoAway",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pb::router::Target;

    #[test]
    fn a_batch_that_stays_where_it_is_makes_the_same_frame() {
        let targets = vec![Target { device_id: "d".into(), account: String::new() }; 300];
        let batch = DeliverBatch { batch_id: "b".into(), message_id: 7, targets, ..DeliverBatch::default() };
        let mut sender = Sender::over(tokio::io::sink());
        sender.queue_batch(&batch);
        let kept = std::mem::take(&mut sender.output);
        sender.queue(from_router::Frame::Deliver(batch));
        assert_eq!(kept, sender.output);
    }
}
