//! Listening sockets, and accepting. Who was accepted waits until it has a place (`door`), and the next one with the kernel.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use super::Listeners;
use super::door::place;
use super::sockets::{self, Listener};
use super::state::{ConnRef, Shard, Shared};
use super::stream::Stream;
use super::tls::Tls;
use crate::config;
use crate::telemetry::{self, Counter, Gauge};

/// Connections that the kernel completes before they are accepted, a listener: as many as `net.core.somaxconn` allows. After a restart all devices
/// come at once, and what doesn't fit comes again a second later.
const BACKLOG: i32 = 65_535;
/// Pause after a failed accept (no descriptors left, mostly), so that it doesn't spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// So many sockets that share one address; the kernel spreads connections over them. Port 0: they share whichever the first one got.
pub fn bind(address: SocketAddr, sockets: usize, config: &config::Device) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut bound = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        // Before anybody can come: what is accepted has what its listener had then.
        tune(&socket, config)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?;
        bound.push(listener);
    }
    Ok(bound)
}

/// Starts accepting on a shard's sockets.
pub(super) fn start(shard: &Shared, listeners: Listeners) -> io::Result<()> {
    let tls = shard.borrow().context.tls.clone();
    let encrypted =
        listeners.tls.into_iter().filter(|_| tls.is_some()).map(|listener| (listener, tls.clone()));
    let plain = listeners.plain.into_iter().map(|listener| (listener, None));
    let mut tasks = Vec::new();
    for (listener, tls) in encrypted.chain(plain) {
        let listener = Listener::new(listener)?;
        tasks.push(tokio::task::spawn_local(accept(shard.clone(), listener, tls)).abort_handle());
    }
    shard.borrow_mut().accepting = tasks;
    Ok(())
}

async fn accept(shard: Shared, listener: Listener, tls: Option<Arc<rustls::ServerConfig>>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                place(&shard).await;
                if let Err(error) = take_in(&shard, stream, peer, tls.as_ref()) {
                    tracing::warn!(%error, "a connection can't be waited for; if watches ran out, raise fs.epoll.max_user_watches");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accepting failed; if descriptors ran out, raise LimitNOFILE");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Shard {
    /// Counts a connection that was taken in.
    pub(super) fn started(&mut self, conn: ConnRef) {
        if let Some(connection) = self.connection(conn) {
            telemetry::add(Counter::Connections(connection.transport()), 1);
        }
        telemetry::adjust(Gauge::HandshakesInFlight, 1);
        self.context.figures(self.id).handshakes.fetch_add(1, Ordering::Relaxed);
    }
}

/// An error: the kernel has no place for another socket that is waited for.
fn take_in(
    shard: &Shared,
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<&Arc<rustls::ServerConfig>>,
) -> io::Result<()> {
    let shard = &mut *shard.borrow_mut();
    let tls = match tls.map(|config| Tls::new(config.clone())).transpose() {
        Ok(tls) => tls.map(Box::new),
        Err(error) => {
            tracing::error!(%error, "TLS can't start; check the device certificate");
            return Ok(());
        }
    };
    let conn = shard.add(Stream::Tcp(sockets::Socket::new(stream)), peer, tls);
    shard.started(conn);
    shard.watch(conn).inspect_err(|_| shard.remove(conn))
}

/// Small frames go out at once; what the kernel holds unsent is bounded; a peer that is gone is noticed while data is on its way. Asked for on each connection
/// these are three system calls.
fn tune(socket: &Socket, config: &config::Device) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(config.send_buffer_bytes)?;
    socket.set_tcp_user_timeout(Some(Duration::from_millis(config.user_timeout_ms.into())))
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    /// From the first one on, which may come before the listener's shard has begun.
    #[tokio::test]
    async fn what_is_accepted_has_what_its_listener_was_given() {
        let config =
            config::Device { user_timeout_ms: 7_000, send_buffer_bytes: 40_000, ..config::Device::default() };
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = bind(any, 1, &config).expect("a port").remove(0);
        let address = listener.local_addr().expect("an address");
        let near = std::net::TcpStream::connect(address).expect("connects");
        let listener = Listener::new(listener).expect("waited for");
        let (stream, _) = listener.accept().await.expect("accepted");
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().expect("set"), Some(Duration::from_secs(7)));
        assert!(socket.tcp_nodelay().expect("set"));
        // Linux doubles it, for what it keeps beside the bytes.
        assert_eq!(socket.send_buffer_size().expect("set") % 40_000, 0);
        drop(near);
    }
}
