//! The TLS handshake of whoever connects as a router, and the name in its certificate.

use std::sync::Arc;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::door::Place;
use super::{LinkEnd, Pace, Phase, reached};
use crate::pki;

/// Bytes that are read and forgotten after a failed handshake.
const FORGOTTEN_BYTES: u64 = 256 * 1024;

/// The handshake within its deadline, unless the edge closes or the place is needed for another.
pub(super) async fn handshake(
    socket: TcpStream,
    held: &mut Place,
    config: &Arc<rustls::ServerConfig>,
    pace: &Pace,
    phase: &watch::Receiver<Phase>,
) -> Result<TlsStream<TcpStream>, LinkEnd> {
    tokio::select! {
        shaken = shake(socket, config, pace) => shaken,
        () = held.evicted() => Err(LinkEnd::Evicted),
        () = reached(phase, Phase::Closing) => Err(LinkEnd::Left),
    }
}

async fn shake(
    socket: TcpStream,
    config: &Arc<rustls::ServerConfig>,
    pace: &Pace,
) -> Result<TlsStream<TcpStream>, LinkEnd> {
    tune(&socket, pace).map_err(LinkEnd::Io)?;
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

/// Small frames go out at once; a router that is gone is noticed while something is on its way to it.
fn tune(socket: &TcpStream, pace: &Pace) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_user_timeout(Some(pace.user_timeout))
}

/// Who the router is by its certificate; empty if that names nobody.
pub(super) fn router_name(stream: &TlsStream<TcpStream>) -> String {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    certificate.and_then(|certificate| pki::router_name(certificate).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_kernel_gives_up_on_a_router_that_is_gone_after_the_configured_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, pace) =
            (far.expect("accepted").0, Pace { user_timeout: Duration::from_secs(7), ..Pace::default() });
        tune(&socket, &pace).expect("tuned");
        assert_eq!(SockRef::from(&socket).tcp_user_timeout().expect("set"), Some(pace.user_timeout));
        assert!(socket.nodelay().expect("set"));
        drop(near);
    }
}
