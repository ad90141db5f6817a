//! QUIC: an endpoint a shard, on the shard's own thread, so that a session's packets, state and timers all belong to one thread.
//!
//! The sockets share one address; a small kernel program hands each datagram to the socket of its shard (`sockets`) by the connection id, which
//! carries the shard (`ids`). So a device whose address changes keeps its session. Above the stream that a device opens everything is the
//! same as over TCP: `connection` runs it.
//!
//! Rejected: one socket whose datagrams are passed between threads (a hop and a wake for each), and the kernel's own choice by address, which
//! a device that moves to another network would leave.

mod ids;
mod keys;
mod sockets;

use std::future::poll_fn;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming, TokioRuntime, TransportConfig,
    ValidationTokenConfig, VarInt,
};

use super::connection;
use super::door::place;
use super::listener::started;
use super::state::{ConnRef, Phase, Shared};
use super::stream::{QuicStream, Stream};
use crate::config;
use crate::error::DeviceError;
use crate::ids::ShardId;
use crate::limits;

pub use keys::{Keys, KeysError};
pub use sockets::{Group, bind};

/// Seconds that a leaving endpoint waits for its last packets to be sent.
const LAST_PACKETS: Duration = Duration::from_secs(1);

/// What the endpoints of all shards have in common.
#[derive(Debug)]
pub struct Settings {
    server: quinn::ServerConfig,
    keys: Keys,
    endpoints: u16,
}

/// TLS is set up in a way that QUIC can't use.
#[derive(Debug, thiserror::Error)]
#[error("TLS 1.3 with an AES-128 suite is needed for QUIC: {0}")]
pub struct NoQuic(#[from] quinn::crypto::rustls::NoInitialCipherSuite);

impl Settings {
    /// For so many endpoints, with the TLS of the device listeners.
    pub fn new(
        device: &config::Device,
        tls: &rustls::ServerConfig,
        keys: Keys,
        endpoints: usize,
    ) -> Result<Self, NoQuic> {
        let crypto = QuicServerConfig::try_from(tls.clone())?;
        let mut server = quinn::ServerConfig::new(Arc::new(crypto), keys.tokens());
        // Tokens serve Retry only; none are handed out for later connections.
        let mut none = ValidationTokenConfig::default();
        none.sent(0);
        server
            .transport_config(Arc::new(transport(device)))
            .validation_token_config(none)
            .max_incoming(limits::QUIC_INCOMING)
            .incoming_buffer_size(limits::QUIC_INCOMING_BYTES)
            .incoming_buffer_size_total(limits::QUIC_INCOMING_BYTES * limits::QUIC_INCOMING as u64);
        Ok(Self { server, keys, endpoints: endpoints as u16 })
    }
}

/// One stream of a device's, nothing else, and small windows: what waits unsent is the outbox's to keep.
fn transport(device: &config::Device) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // The session's own clock comes first, and with something unacknowledged `user_timeout_ms`, which quinn has nothing for: its idle timeout runs
    // whether something was sent or not, and heartbeats are longer. This is for connections that never became a session.
    let idle_ms = u64::from(device.quic_heartbeat_max_s) * 1_500 + 20_000;
    let idle = VarInt::from_u64(idle_ms).unwrap_or(VarInt::MAX);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(limits::QUIC_RECEIVE_BYTES))
        .receive_window(VarInt::from_u32(limits::QUIC_RECEIVE_BYTES))
        .send_window(device.send_buffer_bytes as u64)
        .mtu_discovery_config(None)
        // With it quinn keeps room for up to ten datagrams in every session, and a push is one.
        .enable_segmentation_offload(false)
        .max_idle_timeout(Some(IdleTimeout::from(idle)));
    transport
}

/// Starts this shard's endpoint, and accepting on it.
pub(super) fn start(
    shard: &Shared,
    id: ShardId,
    settings: &Settings,
    socket: UdpSocket,
) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::new(settings.keys.resets());
    let (key, endpoints) = (settings.keys.ids(), settings.endpoints);
    config
        .cid_generator(move || Box::new(ids::Generator::new(key, id.0, endpoints)))
        // Only ids with a right mark are answered with a reset, never by more bytes than came: all devices of a crashed edge may ask at once.
        .min_reset_interval(Duration::ZERO);
    let endpoint = Endpoint::new(config, Some(settings.server.clone()), socket, Arc::new(TokioRuntime))?;
    tokio::task::spawn_local(accept(shard.clone(), endpoint.clone()));
    Ok(endpoint)
}

/// Waits until the last packets are on their way.
pub(super) async fn leave(endpoint: &Endpoint) {
    endpoint.close(VarInt::from_u32(0), b"");
    // A peer that is gone is not waited for.
    tokio::time::timeout(LAST_PACKETS, endpoint.wait_idle()).await.ok();
}

async fn accept(shard: Shared, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        if is_busy(&shard) && !incoming.remote_address_validated() {
            // Whoever can't be reached at its address takes no place from others, nor makes them wait.
            if let Err(error) = incoming.retry() {
                tracing::debug!(%error, "retry");
            }
            tokio::task::yield_now().await;
            continue;
        }
        place(&shard).await;
        take_a_step(&shard).await;
        if shard.borrow().leaving.is_some() {
            // Told at once, so that the device tries the next edge.
            incoming.refuse();
        } else {
            take_in(&shard, incoming);
        }
    }
}

/// Half of the handshakes that may be in flight are.
fn is_busy(shard: &Shared) -> bool {
    let shard = shard.borrow();
    shard.door.len() * 2 >= shard.context.config.max_handshakes
}

/// Handshakes have a share of each turn.
async fn take_a_step(shard: &Shared) {
    loop {
        {
            let mut shard = shard.borrow_mut();
            if shard.handshake_steps > 0 {
                shard.handshake_steps -= 1;
                return;
            }
            shard.work.notify_one();
        }
        tokio::task::yield_now().await;
    }
}

fn take_in(shard: &Shared, incoming: Incoming) {
    let conn = shard.borrow_mut().add(Stream::Quic(Box::default()), incoming.remote_address(), None);
    started(shard, conn);
    match incoming.accept() {
        Ok(connecting) => {
            tokio::task::spawn_local(run(shard.clone(), conn, connecting));
        }
        Err(error) => end(shard, conn, &error),
    }
}

/// A QUIC connection: its handshake, its stream, and then a session like any other.
async fn run(shard: Shared, conn: ConnRef, connecting: quinn::Connecting) {
    match open(&shard, conn, connecting).await {
        Some(Ok(())) => connection::run(shard, conn).await,
        Some(Err(error)) => end(&shard, conn, &error),
        None => shard.borrow_mut().remove(conn),
    }
}

/// It ends before it was a session.
fn end(shard: &Shared, conn: ConnRef, error: &ConnectionError) {
    let mut shard = shard.borrow_mut();
    shard.begin();
    if let Some(connection) = shard.connection(conn) {
        tracing::debug!(peer = %connection.peer, %error, "QUIC");
    }
    shard.fail(conn, end_of(error));
    shard.remove(conn);
}

/// The handshake, then the stream. `None`: the connection was ended from here, for its deadline mostly.
async fn open(
    shard: &Shared,
    conn: ConnRef,
    connecting: quinn::Connecting,
) -> Option<Result<(), ConnectionError>> {
    // In a box, so that a session doesn't keep room for it.
    let mut opening = Box::pin(async {
        let connection = connecting.await?;
        with_stream(shard, conn, |quic| quic.connected(connection.clone()));
        let streams = connection.accept_bi().await?;
        with_stream(shard, conn, |quic| quic.opened(streams));
        Ok(())
    });
    poll_fn(|cx| {
        {
            let shard = &mut *shard.borrow_mut();
            let Some(connection) = shard.connection(conn) else { return Poll::Ready(None) };
            if matches!(connection.phase, Phase::Closing { .. }) {
                return Poll::Ready(None);
            }
            if let Stream::Quic(quic) = &mut connection.stream {
                quic.note_task(cx.waker());
            }
        }
        opening.as_mut().poll(cx).map(Some)
    })
    .await
}

fn with_stream(shard: &Shared, conn: ConnRef, change: impl FnOnce(&mut QuicStream)) {
    if let Some(connection) = shard.borrow_mut().connection(conn)
        && let Stream::Quic(quic) = &mut connection.stream
    {
        change(quic);
    }
}

/// What the end of a QUIC connection that was no session yet is counted as.
fn end_of(error: &ConnectionError) -> DeviceError {
    /// TLS alerts stand in QUIC's error codes from here on (RFC 9001, 4.8).
    const ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return DeviceError::Closed,
    };
    if ALERTS.contains(&code) { DeviceError::Tls } else { DeviceError::Closed }
}
