//! QUIC: an endpoint a shard, on the shard's own thread, so that a session's packets, state and timers all belong to one thread.
//!
//! The sockets share one address; a small kernel program hands each datagram to the socket of its shard (`sockets`) by the connection id, which
//! carries the shard (`ids`). So a device whose address changes keeps its session. Above the stream that a device opens everything is the
//! same as over TCP: `connection` runs it.
//!
//! The protocol is `quinn_proto`'s, which does no I/O; the shard's turns drive it (`endpoint`). Rejected: quinn's own tasks for that. Each connection had two of them,
//! channels with room for dozens of events, and a timer: 9 of the 29 KB of a session.
//!
//! Rejected too: one socket whose datagrams are passed between threads (a hop and a wake for each), and the kernel's own choice by address, which
//! a device that moves to another network would leave.

mod endpoint;
mod ids;
mod keys;
mod link;
mod sockets;
mod timers;
mod udp;

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn_proto::{
    ConnectionError, EndpointConfig, IdleTimeout, TransportConfig, ValidationTokenConfig, VarInt,
};

use crate::config;
use crate::error::DeviceError;
use crate::ids::ShardId;
use crate::limits;

pub(super) use endpoint::Endpoint;
pub use keys::{Keys, KeysError};
pub(super) use link::QuicStream;
pub use sockets::{Group, bind};

/// What the endpoints of all shards have in common.
#[derive(Debug)]
pub struct Settings {
    server: Arc<quinn_proto::ServerConfig>,
    keys: Keys,
    endpoints: u16,
}

/// TLS is set up in a way that QUIC can't use.
#[derive(Debug, thiserror::Error)]
#[error("TLS 1.3 with an AES-128 suite is needed for QUIC: {0}")]
pub struct NoQuic(#[from] NoInitialCipherSuite);

impl Settings {
    /// For so many endpoints, with the TLS of the device listeners.
    pub fn new(
        device: &config::Device,
        tls: &rustls::ServerConfig,
        keys: Keys,
        endpoints: usize,
    ) -> Result<Self, NoQuic> {
        let crypto = QuicServerConfig::try_from(tls.clone())?;
        let mut server = quinn_proto::ServerConfig::new(Arc::new(crypto), keys.tokens());
        // Tokens serve Retry only; none are handed out for later connections.
        let mut none = ValidationTokenConfig::default();
        none.sent(0);
        server
            .transport_config(Arc::new(transport(device)))
            .validation_token_config(none)
            .max_incoming(limits::QUIC_INCOMING)
            .incoming_buffer_size(limits::QUIC_INCOMING_BYTES)
            .incoming_buffer_size_total(limits::QUIC_INCOMING_BYTES * limits::QUIC_INCOMING as u64);
        Ok(Self { server: Arc::new(server), keys, endpoints: endpoints as u16 })
    }
}

impl Settings {
    fn of(&self, id: ShardId) -> EndpointConfig {
        let mut config = EndpointConfig::new(self.keys.resets());
        let (key, endpoints) = (self.keys.ids(), self.endpoints);
        config
            .cid_generator(move || Box::new(ids::Generator::new(key, id.0, endpoints)))
            // Only ids with a right mark are answered with a reset, never by more bytes than came: all devices of a crashed edge may ask at once.
            .min_reset_interval(Duration::ZERO);
        config
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
        .max_idle_timeout(Some(IdleTimeout::from(idle)));
    transport
}

/// This shard's endpoint.
pub(super) fn endpoint(id: ShardId, settings: &Settings, socket: UdpSocket) -> io::Result<Endpoint> {
    Endpoint::new(settings.of(id), settings.server.clone(), socket)
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
