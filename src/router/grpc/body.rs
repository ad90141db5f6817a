//! The two bodies of a call as a link reads and writes them: bytes.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::HeaderMap;
use hyper::body::{Body as _, Bytes, Frame};
use tokio::io::{AsyncRead, DuplexStream, ReadBuf};
use tonic::Status;

/// Bytes of one piece of an answer: HTTP/2's own frames have that size.
const PIECE_BYTES: usize = 16 * 1024;

/// What the router says.
pub(super) struct FromRouterBody {
    body: Body,
    /// Came and is not read yet: at most what HTTP/2 gives at once.
    piece: Bytes,
}

impl FromRouterBody {
    pub(super) fn new(body: Body) -> Self {
        Self { body, piece: Bytes::new() }
    }
}

impl AsyncRead for FromRouterBody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.piece.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                // Trailers of a request mean nothing here.
                Some(Ok(frame)) => self.piece = frame.into_data().unwrap_or_default(),
                // The call or its connection is gone: to the link that is a peer that closed without a word.
                Some(Err(error)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
            }
        }
        let bytes = self.piece.len().min(into.remaining());
        into.put_slice(&self.piece.split_to(bytes));
        Poll::Ready(Ok(()))
    }
}

/// How the call ends: said by the link before its last frame, read at the end of the answer's body.
pub(super) type Verdict = Arc<OnceLock<Status>>;

/// What the edge says: what comes through the pipe, then the status.
pub(super) struct ToRouterBody {
    pipe: DuplexStream,
    verdict: Verdict,
    ended: bool,
}

impl ToRouterBody {
    pub(super) fn new(pipe: DuplexStream, verdict: Verdict) -> Self {
        Self { pipe, verdict, ended: false }
    }

    /// The last frame.
    fn end(&mut self) -> Frame<Bytes> {
        self.ended = true;
        let mut trailers = HeaderMap::new();
        let broken = || Status::internal("the link ended without a word");
        let status = self.verdict.get().cloned().unwrap_or_else(broken);
        if let Err(status) = status.add_header(&mut trailers) {
            tracing::warn!(%status, "a status can't be said");
        }
        Frame::trailers(trailers)
    }
}

impl hyper::body::Body for ToRouterBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut piece = [0; PIECE_BYTES];
        let mut piece = ReadBuf::new(&mut piece);
        let read = ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut piece));
        let frame = match piece.filled() {
            // A pipe does not fail to be read; if it did, that would be its end.
            _ if read.is_err() => self.end(),
            [] => self.end(),
            bytes => Frame::data(Bytes::copy_from_slice(bytes)),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
