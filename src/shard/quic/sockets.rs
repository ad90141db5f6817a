//! UDP sockets that share one address, a shard each, and the program by which the kernel chooses among them.
//!
//! Invariants: sockets join the group in shard order, so that the program's answer is the shard; the program is there before the first of them
//! is bound, so that no datagram is ever steered by the sender's address once all are. They stay in the group until all shards have left: the
//! kernel puts the last one into the place of one that is closed, and datagrams of living sessions would come to the wrong shard, which would
//! reset them. [`Group`] keeps them.
//!
//! (socket2 and rustix offer the program for packet filters only, `SO_ATTACH_FILTER`; nix has this option.)

use std::io;
use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Bytes that the kernel may keep for a socket, each way, as far as it allows: a storm of connects comes in bursts.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The sockets of QUIC.
#[derive(Debug)]
pub struct Group {
    /// One a shard, in their order; or one, where the kernel can't steer.
    sockets: Vec<UdpSocket>,
    /// Why there is only one.
    pub refused: Option<io::Error>,
}

impl Group {
    /// How many endpoints there will be.
    pub fn endpoints(&self) -> usize {
        self.sockets.len()
    }

    /// The socket of a shard, if it has one. The group stays as it is until `self` is dropped.
    pub fn socket(&self, shard: usize) -> io::Result<Option<UdpSocket>> {
        self.sockets.get(shard).map(UdpSocket::try_clone).transpose()
    }
}

/// Binds one socket a shard to this address, and has datagrams steered by connection id; or one socket for all, if that is not wanted or the
/// kernel refuses.
pub fn bind(address: SocketAddr, shards: usize, steered: bool) -> io::Result<Group> {
    let mut refused = None;
    if shards > 1 && steered {
        match bind_group(address, shards, steer)? {
            Ok(sockets) => {
                sockets.iter().take(1).for_each(check_room);
                return Ok(Group { sockets, refused });
            }
            Err(error) => refused = Some(error),
        }
    }
    let socket = bind_one(address)?;
    check_room(&socket);
    Ok(Group { sockets: vec![socket], refused })
}

/// The inner error is `steer`'s: the kernel doesn't do it.
fn bind_group(
    address: SocketAddr,
    shards: usize,
    steer: fn(&Socket, u32) -> io::Result<()>,
) -> io::Result<io::Result<Vec<UdpSocket>>> {
    let mut sockets = Vec::with_capacity(shards);
    for shard in 0..shards {
        let socket = new_socket(address)?;
        socket.set_reuse_port(true)?;
        if shard == 0
            && let Err(error) = steer(&socket, shards as u32)
        {
            return Ok(Err(error));
        }
        socket.bind(&address.into())?;
        sockets.push(socket.into());
    }
    Ok(Ok(sockets))
}

fn bind_one(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new_socket(address)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    for set in [Socket::set_recv_buffer_size, Socket::set_send_buffer_size] {
        set(&socket, BUFFER_BYTES)?;
    }
    Ok(socket)
}

/// Says so if the kernel grants less than was asked for: it would lose datagrams, and nothing here would tell.
fn check_room(socket: &UdpSocket) {
    // The kernel answers with twice what it grants, as it counts its own part too (socket(7)).
    match SockRef::from(socket).recv_buffer_size() {
        Ok(bytes) if bytes / 2 < BUFFER_BYTES => tracing::warn!(
            granted = bytes / 2,
            wanted = BUFFER_BYTES,
            "QUIC: bursts of datagrams will be lost; raise net.core.rmem_max and net.core.wmem_max"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "QUIC: how much the kernel keeps isn't known"),
    }
}

/// Has the kernel choose the socket of the group by the first byte of the connection id, modulo the number of sockets. A datagram too short for
/// that goes to the first socket, which finds nothing in it.
fn steer(socket: &Socket, sockets: u32) -> io::Result<()> {
    let mut filter = program(sockets);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    setsockopt(socket, sockopt::AttachReusePortCbpf, &program).map_err(io::Error::from)
}

/// Classic BPF (linux/filter.h). A long header has version and length before the connection id, a short one has not (RFC 8999).
fn program(sockets: u32) -> [libc::sock_filter; 7] {
    let op = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let is_long = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    [
        op(byte, 0),
        libc::sock_filter { jf: 2, ..op(is_long, 0x80) },
        op(byte, 6),
        op(libc::BPF_JMP | libc::BPF_JA, 1),
        op(byte, 1),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        op(libc::BPF_RET | libc::BPF_A, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn any() -> SocketAddr {
        // A group binds its sockets one after the other, so the port has to be known.
        let probe = UdpSocket::bind(("127.0.0.1", 0)).expect("bound");
        probe.local_addr().expect("an address")
    }

    #[test]
    fn every_datagram_comes_to_the_socket_of_its_connection_id_wherever_it_is_from() {
        let address = any();
        let group = bind(address, 4, true).expect("bound");
        assert_eq!((group.endpoints(), group.refused.is_none()), (4, true));
        for socket in &group.sockets {
            socket.set_nonblocking(false).expect("set");
            socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        }
        for from in 0..20u8 {
            let sender = UdpSocket::bind(("127.0.0.1", 0)).expect("bound");
            for mark in [from, 255 - from, 97] {
                let long = [0xc3, 0, 0, 0, 1, 8, mark, 1, 2, 3];
                let short = [0x43, mark, 1, 2, 3, 4, 5, 6, 7, 8];
                for datagram in [long, short] {
                    sender.send_to(&datagram, address).expect("sent");
                    let mut came = [0; 16];
                    let socket = &group.sockets[usize::from(mark % 4)];
                    let count = socket.recv(&mut came).expect("it came to this socket");
                    assert_eq!(came[..count], datagram);
                }
            }
        }
    }

    #[test]
    fn a_kernel_that_refuses_leaves_nothing_bound() {
        let address = any();
        // As a kernel without this option answers, and as this one does for a socket that shares nothing.
        let refused = bind_group(address, 4, |_, _| Err(io::ErrorKind::Unsupported.into())).expect("sockets");
        assert_eq!(refused.expect_err("refused").kind(), io::ErrorKind::Unsupported);
        assert!(steer(&new_socket(address).expect("a socket"), 4).is_err());
        bind_one(address).expect("the address is free");
    }

    #[test]
    fn without_steering_there_is_one_socket() {
        for (shards, steered) in [(4, false), (1, true)] {
            let group = bind(any(), shards, steered).expect("bound");
            assert_eq!((group.endpoints(), group.refused.is_none()), (1, true));
            assert!(group.socket(0).expect("cloned").is_some());
            assert!(group.socket(1).expect("cloned").is_none());
        }
    }
}
