//! QUIC of the client side: one UDP socket for all connections of a [`QuicClient`], and one stream a connection.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    AckFrequencyConfig, ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that the edge may send before they are read.
const RECEIVE_BYTES: u32 = 64 * 1024;

/// Bytes that the kernel may keep for a socket that many connections share, each way, as far as it allows. With its default, a push to a few hundred
/// devices of one socket loses datagrams, and each of those comes again a second later at the earliest.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// How long a stream that was ended waits for the edge to have all of it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where QUIC connections start from.
pub struct QuicClient {
    config: ClientConfig,
    name: String,
    /// A socket for each source address and family, bound when the first connection needs it.
    endpoints: Mutex<Vec<(SocketAddr, Endpoint)>>,
}

impl fmt::Debug for QuicClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicClient").field("name", &self.name).finish_non_exhaustive()
    }
}

impl QuicClient {
    /// With these settings of TLS; the name is checked against the edge's certificate.
    pub fn new(tls: &rustls::ClientConfig, name: &ServerName<'_>) -> io::Result<Arc<Self>> {
        Self::taking(tls, name, RECEIVE_BYTES)
    }

    /// Likewise; the edge may send so many bytes before they are read.
    pub fn taking(tls: &rustls::ClientConfig, name: &ServerName<'_>, bytes: u32) -> io::Result<Arc<Self>> {
        let crypto = QuicClientConfig::try_from(tls.clone()).map_err(io::Error::other)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        // The edge's acknowledgement of what a device says comes at once, while the radio is on, instead of 25 ms later; and the edge needs no timer for it.
        let mut acks = AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(0));
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .stream_receive_window(VarInt::from_u32(bytes))
            .receive_window(VarInt::from_u32(bytes))
            .mtu_discovery_config(None)
            .ack_frequency_config(Some(acks))
            // The device's own heartbeat notices silence.
            .max_idle_timeout(None);
        config.transport_config(Arc::new(transport));
        Ok(Arc::new(Self { config, name: name.to_str().into_owned(), endpoints: Mutex::default() }))
    }

    /// Connects and opens the stream. The edge notices that stream with the first bytes written.
    pub async fn connect(&self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<QuicStream> {
        let endpoint = self.endpoint(to, source)?;
        let connecting =
            endpoint.connect_with(self.config.clone(), to, &self.name).map_err(io::Error::other)?;
        let connection = connecting.await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(QuicStream { endpoint, connection, send, recv, finished: None })
    }

    /// All connections go on from new ports, as those of a phone do when NAT forgets it or it changes networks.
    pub fn rebind(&self) -> io::Result<()> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.iter().try_for_each(|(from, endpoint)| endpoint.rebind(bind(*from)?))
    }

    fn endpoint(&self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<Endpoint> {
        let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let from = SocketAddr::new(source.unwrap_or(any), 0);
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, endpoint)) = endpoints.iter().find(|(address, _)| *address == from) {
            return Ok(endpoint.clone());
        }
        let socket = bind(from)?;
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        endpoints.push((from, endpoint.clone()));
        Ok(endpoint)
    }
}

fn bind(from: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(from)?;
    let buffers = SockRef::from(&socket);
    buffers.set_recv_buffer_size(BUFFER_BYTES)?;
    buffers.set_send_buffer_size(BUFFER_BYTES)?;
    Ok(socket)
}

/// A QUIC connection and its one stream. Dropped, it closes the connection, whatever is on its way: shut it down first.
pub struct QuicStream {
    endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    /// Completes when the edge has everything.
    finished: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl fmt::Debug for QuicStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicStream").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl QuicStream {
    /// Goes on from another address, as a phone does that changes networks. The other connections of its [`QuicClient`] go along.
    pub fn rebind(&self, socket: UdpSocket) -> io::Result<()> {
        self.endpoint.rebind(socket)
    }

    /// Refuses what the edge still sends.
    pub fn stop_reading(&mut self) {
        // Stopped before, or all read: then it is so already.
        self.recv.stop(VarInt::from_u32(0)).ok();
    }

    /// Takes back what was written and did not arrive, and writes nothing more.
    pub fn abandon(&mut self) {
        // Finished before: then it is so already.
        self.send.reset(VarInt::from_u32(0)).ok();
    }

    /// The connection beneath, for what is no stream of frames.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.get_mut().recv), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.get_mut().send), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.get_mut().send), cx)
    }

    /// Ends the stream, and waits until the edge has all of it, or is gone.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let finished = this.finished.get_or_insert_with(|| {
            // Finished before: then only the wait is left.
            this.send.finish().ok();
            let stopped = this.send.stopped();
            Box::pin(async move {
                // Either way it is over: an edge that is gone can't say that it has everything.
                tokio::time::timeout(LAST_WORDS, stopped).await.ok();
            })
        });
        finished.as_mut().poll(cx).map(Ok)
    }
}
