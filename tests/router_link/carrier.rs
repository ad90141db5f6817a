//! Frames straight on TLS.

use std::sync::Arc;

pub(crate) use mooring::router::serve;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Bytes both ways.
pub(crate) type Stream = TlsStream<TcpStream>;

/// A link as the client sees it: with TLS 1.3 the edge may still refuse.
pub(crate) async fn connect(config: ClientConfig, socket: TcpStream) -> std::io::Result<Stream> {
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}
