//! A gRPC call whose bodies are bytes, so that the tests of the framed link say here what they say there, garbage included.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::Arc;

use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Join, duplex, join};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What the client holds for one that doesn't read.
const WINDOW: u32 = 64 * 1024;

/// Bytes both ways.
pub(crate) type Stream = Join<DuplexStream, DuplexStream>;

/// A call of `Link`.
pub(crate) async fn connect(config: ClientConfig, socket: TcpStream) -> io::Result<Stream> {
    let tls = tls(config, socket).await?;
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (mut sender, connection) = http.handshake(TokioIo::new(tls)).await.map_err(|error| told(&error))?;
    let connection = tokio::spawn(connection);
    let (write, says) = duplex(WINDOW as usize);
    let request = Request::post("https://localhost/mooring.router.v1.Router/Link")
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(pieces(says))))
        .expect("a request");
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        // The connection knows more than the call.
        Err(error) => {
            return Err(connection.await.expect("no panic").map_or_else(|why| told(&why), |()| told(&error)));
        }
    };
    let (read, hears) = duplex(WINDOW as usize);
    tokio::spawn(hear(sender, response, hears));
    Ok(join(read, write))
}

/// TLS for HTTP/2.
pub(crate) async fn tls(mut config: ClientConfig, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// An error and all that is behind it.
fn told(error: &hyper::Error) -> io::Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    io::Error::other(text)
}

fn pieces(says: DuplexStream) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::unfold(says, |mut says| async {
        let mut piece = vec![0; 16 * 1024];
        let bytes = says.read(&mut piece).await.expect("a pipe");
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
