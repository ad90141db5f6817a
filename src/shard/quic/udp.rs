//! A shard's UDP socket: many datagrams a read, each with the address it was sent to, as answers have to come from there.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};

use mio::event::Event;
use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};

/// One datagram that came.
pub(in crate::shard) struct Datagram<'a> {
    pub from: SocketAddr,
    pub to: Option<IpAddr>,
    pub ecn: Option<EcnCodepoint>,
    pub bytes: &'a [u8],
}

/// What carries datagrams.
pub(in crate::shard) trait Wire {
    /// Whether something may have come.
    fn is_readable(&self) -> bool;
    /// Whether it may take something.
    fn is_writable(&self) -> bool;
    /// Datagrams that may be sent to one peer at a time.
    fn segments(&self) -> usize;
    /// Takes some of what has come.
    fn receive(&mut self, each: impl FnMut(Datagram<'_>));
    /// Sends, or says that there is no room now. What it refuses otherwise counts as lost on the way.
    fn send(&mut self, transmit: &Transmit, bytes: &[u8]) -> bool;
}

/// The socket. News of it is told once, as of those over TCP (`super::super::sockets`).
pub(in crate::shard) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Room for as many datagrams as the kernel hands over at a time.
    room: Box<[u8]>,
    readable: bool,
    writable: bool,
    /// Where it is told of.
    told: Option<(Registry, Token)>,
}

impl Udp {
    /// For datagrams of so many bytes at most.
    pub(super) fn new(socket: std::net::UdpSocket, largest: usize) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let room = vec![0; largest * state.gro_segments() * BATCH_SIZE].into();
        Ok(Self { socket, state, room, readable: true, writable: true, told: None })
    }

    pub(super) fn watch(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)?;
        self.told = Some((registry.try_clone()?, token));
        Ok(())
    }

    pub(super) fn note(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_error();
        if !self.writable && (event.is_writable() || event.is_error()) {
            self.set_writable(true);
        }
    }

    /// That it takes something again is asked for only when it took nothing: else the kernel tells of each datagram that has left it.
    fn set_writable(&mut self, writable: bool) {
        let interest = if writable { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        let told = self
            .told
            .as_ref()
            .map_or(Ok(()), |(registry, token)| registry.reregister(&mut self.socket, *token, interest));
        // If nobody will tell, the next turn tries again.
        self.writable = writable || told.is_err();
        if let Err(error) = told {
            tracing::warn!(%error, "QUIC: the socket can't be waited for");
        }
    }

    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl Wire for Udp {
    fn is_readable(&self) -> bool {
        self.readable
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Reads once.
    fn receive(&mut self, mut each: impl FnMut(Datagram<'_>)) {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut rooms = self.room.chunks_exact_mut(self.room.len() / BATCH_SIZE);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(rooms.next().unwrap_or_default()));
        let came = match self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas) {
            Ok(came) => came,
            Err(error) => {
                // What an address that is gone leaves behind (`ConnectionReset`) says nothing of the others.
                let goes_on =
                    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset);
                self.readable = goes_on;
                if !goes_on && error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "QUIC: datagrams can't be read; tried again when more come");
                }
                return;
            }
        };
        self.readable = came == BATCH_SIZE;
        for (meta, slice) in metas.iter().zip(&slices).take(came) {
            // The kernel puts those of one peer together.
            for bytes in slice[..meta.len].chunks(meta.stride.max(1)) {
                let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
                each(Datagram { from: meta.addr, to: meta.dst_ip, ecn, bytes });
            }
        }
    }

    fn send(&mut self, transmit: &Transmit, bytes: &[u8]) -> bool {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &bytes[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        // The only error that it returns is that the kernel has no room.
        let is_sent = self.state.send(UdpSockRef::from(&self.socket), &transmit).is_ok();
        if !is_sent {
            self.set_writable(false);
        }
        is_sent
    }
}
