//! The TLS handshake of whoever connects as a router, and the name in its certificate.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{LinkEnd, Pace, Phase, reached};
use crate::pki;

/// Bytes that are read and forgotten after a failed handshake.
const FORGOTTEN_BYTES: u64 = 256 * 1024;

/// The handshake within its deadline, unless the edge closes.
pub(super) async fn handshake(
    socket: TcpStream,
    config: &Arc<rustls::ServerConfig>,
    pace: &Pace,
    phase: &watch::Receiver<Phase>,
) -> Result<TlsStream<TcpStream>, LinkEnd> {
    tokio::select! {
        shaken = shake(socket, config, pace) => shaken,
        () = reached(phase, Phase::Closing) => Err(LinkEnd::Left),
    }
}

async fn shake(
    socket: TcpStream,
    config: &Arc<rustls::ServerConfig>,
    pace: &Pace,
) -> Result<TlsStream<TcpStream>, LinkEnd> {
    socket.set_nodelay(true).map_err(LinkEnd::Io)?;
    let accept = TlsAcceptor::from(Arc::clone(config)).accept(socket).into_fallible();
    match timeout(pace.handshake, accept).await {
        Err(_) => Err(LinkEnd::HandshakeDeadline),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, mut socket))) => {
            // The alert is written. Closing with bytes unread would reset the connection, and the alert with it.
            let forget = async {
                socket.shutdown().await?;
                tokio::io::copy(&mut socket.take(FORGOTTEN_BYTES), &mut tokio::io::sink()).await
            };
            // Only a courtesy to the other side: it has failed already.
            timeout(pace.settle, forget).await.ok();
            Err(LinkEnd::Tls(error))
        }
    }
}

/// Who the router is by its certificate; empty if that names nobody.
pub(super) fn router_name(stream: &TlsStream<TcpStream>) -> String {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    certificate.and_then(|certificate| pki::router_name(certificate).ok()).unwrap_or_default()
}
