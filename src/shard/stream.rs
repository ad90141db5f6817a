//! What carries a connection's bytes: TCP, or one stream of a QUIC connection. Both look the same from here on: bytes in order, news of them
//! that makes the connection ready, an end in each direction.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use quinn::{RecvStream, SendStream, VarInt};
use socket2::SockRef;

use super::sockets::Socket;
use crate::push::Millis;

/// Bytes both ways.
pub(super) enum Stream {
    /// TCP, with TLS above it or plain.
    Tcp(Socket),
    /// QUIC. Boxed: most of what a session is does not depend on it.
    Quic(Box<QuicStream>),
    /// A simulated one, like TCP.
    #[cfg(feature = "sim")]
    Simulated(crate::sim::Near),
}

/// Where a connection comes from: 20 bytes instead of the 32 of a `SocketAddr`, which has room for what only some addresses have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip(), port: address.port() }
    }
}

impl Peer {
    pub(super) fn ip(self) -> IpAddr {
        self.ip
    }

    pub(super) fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

/// A QUIC connection and the one stream that a device opens on it. Dropped, it closes the connection.
#[derive(Default)]
pub(super) struct QuicStream {
    /// `None` during QUIC's handshake.
    connection: Option<quinn::Connection>,
    /// `None` until the device opened its stream.
    streams: Option<(SendStream, RecvStream)>,
    /// Of its task.
    task: Option<Waker>,
    unanswered: Option<Unanswered>,
}

/// Something was written, and nothing came since.
#[derive(Clone, Copy)]
struct Unanswered {
    since: Millis,
    /// Datagrams that had come by then.
    heard: u64,
}

impl QuicStream {
    /// The handshake is done.
    pub(super) fn connected(&mut self, connection: quinn::Connection) {
        self.connection = Some(connection);
    }

    /// The device opened its stream.
    pub(super) fn opened(&mut self, streams: (SendStream, RecvStream)) {
        self.streams = Some(streams);
    }

    /// The task to wake is this one.
    pub(super) fn note_task(&mut self, task: &Waker) {
        if !self.task.as_ref().is_some_and(|waker| waker.will_wake(task)) {
            self.task = Some(task.clone());
        }
    }

    /// Lets its task look again.
    pub(super) fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// Something was written. Whether a time begins in which it has to be answered: else one is running already.
    pub(super) fn wrote(&mut self, now: Millis) -> bool {
        let Some(heard) = self.heard() else { return false };
        let was_armed = self.unanswered.is_some();
        if self.unanswered.is_none_or(|unanswered| unanswered.heard != heard) {
            self.unanswered = Some(Unanswered { since: now, heard });
        }
        !was_armed
    }

    /// Since when something was written and nothing has come. Whatever comes shows that the peer is there: what it lacks is sent again.
    pub(super) fn unanswered_since(&mut self) -> Option<Millis> {
        self.unanswered?;
        let heard = self.heard();
        self.unanswered = self.unanswered.filter(|unanswered| Some(unanswered.heard) == heard);
        self.unanswered.map(|unanswered| unanswered.since)
    }

    /// Datagrams that have come. quinn copies all that it counts for that.
    fn heard(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.stats().udp_rx.datagrams)
    }

    fn streams(&mut self) -> io::Result<&mut (SendStream, RecvStream)> {
        self.streams.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        // What had to be said was said in frames.
        if let Some(connection) = &self.connection {
            connection.close(VarInt::from_u32(0), b"");
        }
    }
}

impl Stream {
    /// Reads what is there; 0: the peer's end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.read(into),
            Self::Quic(quic) => quic.streams()?.1.poll_read(cx, into).map_err(io::Error::from),
            #[cfg(feature = "sim")]
            Self::Simulated(near) => near.poll_read(cx, into),
        }
    }

    /// Writes as much as goes.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Quic(quic) => {
                Pin::new(&mut quic.streams()?.0).poll_write(cx, bytes).map_err(io::Error::from)
            }
            #[cfg(feature = "sim")]
            Self::Simulated(near) => near.poll_write(cx, bytes),
        }
    }

    /// Writes what goes without waiting, outside of the connection's step. If something stays, a step learns when more goes.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let task = if let Self::Quic(quic) = self { quic.task.clone() } else { None };
        let written = match self {
            #[cfg(feature = "sim")]
            Self::Simulated(near) => return near.try_write(bytes),
            _ => self.poll_write(&mut Context::from_waker(task.as_ref().unwrap_or(Waker::noop())), bytes),
        };
        match written {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Nothing more will be written.
    pub(super) fn shut(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.shut(),
            Self::Quic(quic) => quic.streams()?.0.finish().map_err(io::Error::from),
            #[cfg(feature = "sim")]
            Self::Simulated(near) => {
                near.shut();
                Ok(())
            }
        }
    }

    /// Whether the peer has ended it, with nothing left to read.
    pub(super) fn is_ended(&self) -> bool {
        match self {
            Self::Tcp(tcp) => match SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]) {
                Ok(bytes) => bytes == 0,
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            },
            Self::Quic(quic) => quic.connection.as_ref().is_some_and(|quic| quic.close_reason().is_some()),
            #[cfg(feature = "sim")]
            Self::Simulated(near) => near.is_ended(),
        }
    }

    /// Whether something came that was not read yet; of QUIC nobody knows.
    pub(super) fn has_unread(&self) -> bool {
        match self {
            Self::Tcp(tcp) => {
                SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|bytes| bytes > 0)
            }
            Self::Quic(_) => false,
            #[cfg(feature = "sim")]
            Self::Simulated(near) => near.has_unread(),
        }
    }

    /// The peer's address now, where it may change: a QUIC connection survives that.
    pub(super) fn moved_to(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_) => None,
            Self::Quic(quic) => quic.connection.as_ref().map(quinn::Connection::remote_address),
            #[cfg(feature = "sim")]
            Self::Simulated(_) => None,
        }
    }
}
