//! A simulated connection: bytes both ways, each way with what the kernels hold of it. Whoever holds the device's end decides when bytes arrive,
//! how much fits, and when the connection breaks.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::push::Millis;

/// When something was written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp {
    /// At which step of the simulation.
    pub step: u64,
    /// In edge time, which may fall back to the journal's last time when an edge starts again.
    pub edge: Millis,
}

/// One connection. Clones are handles of the same one: the edge has one, its peer another.
#[derive(Clone, Debug)]
pub struct Pipe(Arc<Mutex<Inside>>);

#[derive(Debug)]
struct Inside {
    /// Sent by the peer, arrived at the edge.
    to_edge: VecDeque<u8>,
    /// Written by the edge, still in its kernel.
    to_peer: VecDeque<u8>,
    /// Up to which byte of all was written when, for those not taken yet.
    written: VecDeque<(u64, Stamp)>,
    written_bytes: u64,
    taken_bytes: u64,
    /// Bytes that the edge's kernel takes.
    room: usize,
    /// As the driver of the simulation last said.
    now: Stamp,
    /// The peer sends no more.
    peer_ended: bool,
    /// The edge sends no more.
    edge_ended: bool,
    /// Nothing goes either way any more.
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    /// A connection whose kernel at the edge takes so many bytes.
    pub fn new(room: usize) -> Self {
        Self(Arc::new(Mutex::new(Inside {
            to_edge: VecDeque::new(),
            to_peer: VecDeque::new(),
            written: VecDeque::new(),
            written_bytes: 0,
            taken_bytes: 0,
            room,
            now: Stamp::default(),
            peer_ended: false,
            edge_ended: false,
            broken: false,
            reader: None,
            writer: None,
        })))
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The edge's end.

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut inside = self.inside();
        if inside.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if inside.to_edge.is_empty() {
            if inside.peer_ended {
                return Poll::Ready(Ok(0));
            }
            inside.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = into.len().min(inside.to_edge.len());
        for (place, byte) in into.iter_mut().zip(inside.to_edge.drain(..count)) {
            *place = byte;
        }
        Poll::Ready(Ok(count))
    }

    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.inside().writer = Some(cx.waker().clone());
                Poll::Pending
            }
            written => Poll::Ready(written),
        }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut inside = self.inside();
        if inside.broken || inside.edge_ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(inside.room.saturating_sub(inside.to_peer.len()));
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        inside.to_peer.extend(&bytes[..count]);
        inside.written_bytes += count as u64;
        let mark = (inside.written_bytes, inside.now);
        inside.written.push_back(mark);
        Ok(count)
    }

    pub(crate) fn shut(&self) {
        self.inside().edge_ended = true;
    }

    pub(crate) fn is_ended(&self) -> bool {
        let inside = self.inside();
        inside.broken || inside.peer_ended && inside.to_edge.is_empty()
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.inside().to_edge.is_empty()
    }

    /// The edge has dropped it.
    pub(crate) fn close(&self) {
        self.inside().edge_ended = true;
    }

    // The peer's end.

    /// What time it is until this is called again.
    pub fn set_now(&self, now: Stamp) {
        self.inside().now = now;
    }

    /// Bytes arrive at the edge.
    pub fn send(&self, bytes: &[u8]) {
        let mut inside = self.inside();
        if !inside.broken && !inside.peer_ended {
            inside.to_edge.extend(bytes);
            let waker = inside.reader.take();
            drop(inside);
            wake(waker);
        }
    }

    /// Takes at most so many bytes that the edge wrote, each piece with the time when it was written.
    pub fn take(&self, most: usize) -> Vec<(Vec<u8>, Stamp)> {
        let mut inside = self.inside();
        let mut pieces = Vec::new();
        let mut left = most;
        while left > 0 {
            let Some(&(end, at)) = inside.written.front() else { break };
            let count = ((end - inside.taken_bytes) as usize).min(left);
            pieces.push((inside.to_peer.drain(..count).collect(), at));
            inside.taken_bytes += count as u64;
            left -= count;
            if inside.taken_bytes == end {
                inside.written.pop_front();
            }
        }
        let waker = if pieces.is_empty() { None } else { inside.writer.take() };
        drop(inside);
        wake(waker);
        pieces
    }

    /// Bytes that wait for the peer.
    pub fn waiting(&self) -> usize {
        self.inside().to_peer.len()
    }

    /// Whether the edge has ended it, with nothing left to take.
    pub fn is_over(&self) -> bool {
        let inside = self.inside();
        inside.broken || inside.edge_ended && inside.to_peer.is_empty()
    }

    /// The peer sends no more; what it sent arrives.
    pub fn end(&self) {
        let mut inside = self.inside();
        inside.peer_ended = true;
        let wakers = [inside.reader.take(), inside.writer.take()];
        drop(inside);
        wakers.into_iter().for_each(wake);
    }

    /// The edge's process is gone: what it wrote may still arrive.
    pub fn edge_died(&self) {
        let mut inside = self.inside();
        inside.edge_ended = true;
        inside.to_edge.clear();
    }

    /// It breaks: what is under way, both ways, is gone.
    pub fn cut(&self) {
        let mut inside = self.inside();
        inside.broken = true;
        inside.to_edge.clear();
        inside.to_peer.clear();
        inside.written.clear();
        let wakers = [inside.reader.take(), inside.writer.take()];
        drop(inside);
        wakers.into_iter().for_each(wake);
    }
}

/// The edge's end, for links.
impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pipe::poll_read(&self, cx, into.initialize_unfilled());
        read.map_ok(|count| into.advance(count))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pipe::poll_write(&self, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut();
        Poll::Ready(Ok(()))
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
