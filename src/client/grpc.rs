//! A router link as a call of the gRPC service: the same frames, carried by HTTP/2. The call's two bodies are a stream of bytes to
//! whoever speaks the link, so that there is one client of the protocol.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Join, duplex, join};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes that wait in each direction for one who doesn't read.
const WINDOW: u32 = 1024 * 1024;
/// Bytes of one piece of what is said.
const PIECE_BYTES: usize = 16 * 1024;

/// Bytes both ways. Dropping it ends the call.
pub(super) type GrpcStream = Join<DuplexStream, DuplexStream>;

/// Begins a call of `Link` over a connection of its own; the caller has the deadline.
pub(super) async fn call(
    config: &ClientConfig,
    name: ServerName<'static>,
    socket: TcpStream,
) -> io::Result<GrpcStream> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (mut sender, connection) = http.handshake(TokioIo::new(tls)).await.map_err(io::Error::other)?;
    // Ends with its call; what it fails with, the call says too.
    tokio::spawn(async move { connection.await.ok() });
    let (write, says) = duplex(WINDOW as usize);
    let request = Request::post("https://edge/mooring.router.v1.Router/Link")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(pieces(says))))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::OK {
        return Err(io::Error::other(format!("the edge answers the call with {}", response.status())));
    }
    let (read, hears) = duplex(WINDOW as usize);
    tokio::spawn(hear(sender, response, hears));
    Ok(join(read, write))
}

/// What is said, as the request's body; its end is the end of the pipe.
fn pieces(says: DuplexStream) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::unfold(says, |mut says| async {
        let mut piece = vec![0; PIECE_BYTES];
        // A pipe does not fail to be read; if it did, that would be its end.
        let bytes = says.read(&mut piece).await.unwrap_or(0);
        piece.truncate(bytes);
        (bytes > 0).then(|| (Ok(Frame::data(Bytes::from(piece))), says))
    })
}

/// Passes on what comes until the call ends, or until nobody listens.
async fn hear<B>(sender: SendRequest<B>, mut response: Response<Incoming>, mut hears: DuplexStream) {
    while let Some(Ok(frame)) = response.body_mut().frame().await {
        if let Ok(data) = frame.into_data()
            && hears.write_all(&data).await.is_err()
        {
            break;
        }
    }
    drop(sender);
}
