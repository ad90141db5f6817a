//! The sockets that devices connect to, bound before any shard starts: each shard has the same number of each kind.

use std::io;
use std::net::{SocketAddr, TcpListener};

use super::ServeError;
use crate::config;
use crate::shard::{self, Listeners, quic};
use crate::telemetry::{self, Gauge};

/// Attempts to find a port number that is free for both TCP and UDP, where the system chooses.
const ATTEMPTS: usize = 64;
/// Listening sockets of TCP there are at least, over all shards: the kernel keeps a queue for each, by default of 4,096 connections
/// (`net.core.somaxconn`), and after a restart more devices than that come at once.
const LISTENERS: usize = 4;

/// All of them.
pub(super) struct Sockets {
    tls: Vec<TcpListener>,
    pub(super) quic: Option<quic::Group>,
    plain: Vec<TcpListener>,
}

impl Sockets {
    /// Binds what is configured.
    pub(super) fn bind(device: &config::Device, shards: usize) -> Result<Self, ServeError> {
        let (tls, quic) = match device.tls {
            Some(address) => bind_both(device, shards, address)?,
            None => (Vec::new(), None),
        };
        let plain = match device.plain {
            Some(address) => bind(device, shards, "device.plain", address)?,
            None => Vec::new(),
        };
        let endpoints = quic.as_ref().map_or(0, quic::Group::endpoints);
        telemetry::set(Gauge::QuicEndpoints, endpoints as f64);
        if let Some(error) = quic.as_ref().and_then(|group| group.refused.as_ref()) {
            tracing::warn!(%error, "the kernel doesn't steer datagrams to their shards: shard 0 has all of QUIC");
        } else if endpoints == 1 && shards > 1 {
            tracing::warn!("device.quic_steering is off: shard 0 has all of QUIC");
        }
        Ok(Self { tls, quic, plain })
    }

    /// The ports in use: TLS, QUIC, plain TCP.
    pub(super) fn ports(&self) -> [Option<u16>; 3] {
        let port = |sockets: &[TcpListener]| Some(sockets.first()?.local_addr().ok()?.port());
        let tls = port(&self.tls);
        [tls, tls.filter(|_| self.quic.is_some()), port(&self.plain)]
    }

    /// Each shard's. The group is to be kept as long as a shard serves.
    pub(super) fn by_shard(self, shards: usize) -> Result<(Vec<Listeners>, Option<quic::Group>), ServeError> {
        let (mut tls, mut plain) = (self.tls.into_iter(), self.plain.into_iter());
        let of = |sockets: &mut std::vec::IntoIter<TcpListener>| sockets.take(a_shard(shards)).collect();
        let clone = |shard| self.quic.as_ref().map_or(Ok(None), |group| group.socket(shard));
        let one = |shard| {
            let quic = clone(shard).map_err(|error| ServeError::Thread { what: "a shard", error })?;
            Ok(Listeners { tls: of(&mut tls), plain: of(&mut plain), quic })
        };
        let listeners = (0..shards).map(one).collect::<Result<_, ServeError>>()?;
        Ok((listeners, self.quic))
    }
}

/// TCP, and UDP on the same number.
fn bind_both(
    device: &config::Device,
    shards: usize,
    address: SocketAddr,
) -> Result<(Vec<TcpListener>, Option<quic::Group>), ServeError> {
    let mut attempts = if address.port() == 0 { ATTEMPTS } else { 1 };
    loop {
        let tls = bind(device, shards, "device.tls", address)?;
        if !device.quic {
            return Ok((tls, None));
        }
        let of_tls = tls.first().map_or(Ok(address), TcpListener::local_addr);
        let of_tls = of_tls.map_err(failed("device.tls", address))?;
        attempts -= 1;
        match quic::bind(of_tls, shards, device.quic_steering) {
            Ok(group) => return Ok((tls, Some(group))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 0 => {}
            Err(error) => return Err(failed("device.tls, for QUIC over UDP,", of_tls)(error)),
        }
    }
}

/// Those of all shards.
fn bind(
    device: &config::Device,
    shards: usize,
    key: &'static str,
    address: SocketAddr,
) -> Result<Vec<TcpListener>, ServeError> {
    shard::bind(address, shards * a_shard(shards), device).map_err(failed(key, address))
}

/// Listening sockets of a kind that a shard has.
fn a_shard(shards: usize) -> usize {
    LISTENERS.div_ceil(shards)
}

fn failed(key: &'static str, address: SocketAddr) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::Listen { key, address, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A storm finds as long queues with the kernel, however few shards there are.
    #[tokio::test]
    async fn each_shard_has_as_many_listeners_of_each_kind() {
        let any = "127.0.0.1:0".parse().ok();
        let device = config::Device { tls: any, plain: any, quic: false, ..config::Device::default() };
        for (shards, each) in [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)] {
            let (listeners, _) =
                Sockets::bind(&device, shards).expect("bound").by_shard(shards).expect("split");
            assert_eq!(listeners.len(), shards);
            assert!(listeners.iter().all(|of| of.tls.len() == each && of.plain.len() == each), "{shards}");
        }
    }
}
