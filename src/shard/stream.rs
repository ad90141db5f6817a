//! What carries a connection's bytes: TCP, or one stream of a QUIC connection. Both look the same from here on: bytes in order, news of them
//! that makes the connection ready, an end in each direction.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;

use socket2::SockRef;

use super::quic::QuicStream;
use super::sockets::Socket;

/// Bytes both ways.
pub(super) enum Stream {
    /// TCP, with TLS above it or plain.
    Tcp(Socket),
    /// QUIC.
    Quic(QuicStream),
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

impl Stream {
    /// Reads what is there; 0: the peer's end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.read(into),
            Self::Quic(quic) => quic.read(into),
            #[cfg(feature = "sim")]
            Self::Simulated(near) => near.read(into),
        }
    }

    /// Writes as much as goes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Quic(quic) => quic.write(bytes),
            #[cfg(feature = "sim")]
            Self::Simulated(near) => near.write(bytes),
        }
    }

    /// Writes what goes without waiting, outside of the connection's step. If something stays, a step learns when more goes.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Self::Tcp(tcp) => tcp.write(bytes),
            Self::Quic(quic) => quic.write(bytes),
            #[cfg(feature = "sim")]
            Self::Simulated(near) => return near.try_write(bytes),
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
            Self::Quic(quic) => quic.shut(),
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
            Self::Quic(quic) => quic.is_lost(),
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
            Self::Quic(quic) => Some(quic.peer()),
            #[cfg(feature = "sim")]
            Self::Simulated(_) => None,
        }
    }
}
