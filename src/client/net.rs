//! Connecting: plain TCP, TLS 1.3 or QUIC, from a chosen source address, under a deadline.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientError;
#[cfg(feature = "grpc")]
use super::grpc::{self, GrpcStream};
use super::quic::{QuicClient, QuicStream};

/// Seconds for connecting, the TLS handshake included.
pub const CONNECT_SECONDS: u64 = 10;
/// Seconds in which something that is written must go out.
pub const WRITE_SECONDS: u64 = 30;

/// The ways in which bytes can travel, as they are named on command lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Way {
    /// TLS 1.3 over TCP.
    Tls,
    /// QUIC, over UDP.
    Quic,
    /// Plain TCP, where the edge has it switched on.
    Tcp,
}

impl Way {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// How bytes travel, with what that takes.
#[derive(Clone, Debug)]
pub enum Transport {
    /// TLS 1.3 over TCP; the name is checked against the edge's certificate.
    Tls(Arc<ClientConfig>, ServerName<'static>),
    /// Plain TCP, where the operator switched it on.
    Plain,
    /// One stream of a QUIC connection.
    Quic(Arc<QuicClient>),
    /// A call of the router service over gRPC; the name is checked against the edge's certificate.
    #[cfg(feature = "grpc")]
    Grpc(Arc<ClientConfig>, ServerName<'static>),
}

/// Where to connect to, and how.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// "host:port".
    pub address: Arc<str>,
    /// How bytes travel.
    pub transport: Transport,
    /// The source address, for loads over 127.0.0.0/8; `None`: the system chooses.
    pub source: Option<IpAddr>,
}

impl Endpoint {
    /// Connects, the TLS handshake included, within [`CONNECT_SECONDS`].
    pub async fn connect(&self) -> Result<Stream, ClientError> {
        let connect = async {
            match &self.transport {
                Transport::Plain => Ok(Stream::Plain(self.tcp().await?)),
                Transport::Tls(config, name) => {
                    let connector = TlsConnector::from(Arc::clone(config));
                    let tcp = self.tcp().await?;
                    Ok(Stream::Tls(Box::new(connector.connect(name.clone(), tcp).await?)))
                }
                Transport::Quic(client) => Ok(Stream::Quic(Box::new(self.quic(client).await?))),
                #[cfg(feature = "grpc")]
                Transport::Grpc(config, name) => {
                    // On the heap: it is large, and every other transport would carry it along.
                    let call = Box::pin(grpc::call(config, name.clone(), self.tcp().await?)).await?;
                    Ok(Stream::Grpc(Box::new(call)))
                }
            }
        };
        deadline("connection", CONNECT_SECONDS, connect)
            .await?
            .map_err(|source| ClientError::Connect { address: self.address.to_string(), source })
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.addresses().await? {
            match self.tcp_to(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }

    async fn quic(&self, client: &QuicClient) -> io::Result<QuicStream> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.addresses().await? {
            match client.connect(address, self.source).await {
                Ok(stream) => return Ok(stream),
                Err(e) => failure = e,
            }
        }
        Err(failure)
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.address.parse() {
            return Ok(vec![address]);
        }
        Ok(lookup_host(&*self.address).await?.collect())
    }

    async fn tcp_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(address).await
    }
}

/// Waits for `work` at most so many seconds.
pub async fn deadline<F: Future>(
    what: &'static str,
    seconds: u64,
    work: F,
) -> Result<F::Output, ClientError> {
    tokio::time::timeout(Duration::from_secs(seconds), work)
        .await
        .map_err(|_| ClientError::Deadline { what, seconds })
}

/// A connection of any transport.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS; boxed, as it is large and most of it is cold.
    Tls(Box<TlsStream<TcpStream>>),
    /// QUIC; boxed likewise.
    Quic(Box<QuicStream>),
    /// A call over gRPC.
    #[cfg(feature = "grpc")]
    Grpc(Box<GrpcStream>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            Self::Quic(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            #[cfg(feature = "grpc")]
            Self::Grpc(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            Self::Quic(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            #[cfg(feature = "grpc")]
            Self::Grpc(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            Self::Quic(s) => Pin::new(s.as_mut()).poll_flush(cx),
            #[cfg(feature = "grpc")]
            Self::Grpc(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
            Self::Quic(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
            #[cfg(feature = "grpc")]
            Self::Grpc(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}
