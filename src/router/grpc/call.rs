//! One call of `Link`: what its head has to say, and the transport that it is.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::super::transport::Transport;
use super::super::{LinkEnd, Rights};
use super::body::{FromRouterBody, ToRouterBody, Verdict};
use crate::limits;
use crate::telemetry::RouterTransport;

/// The way from the head of a call to the connection's links.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) queue: mpsc::Sender<Call>,
    pub(super) links: Arc<Semaphore>,
}

/// A call that was taken.
pub(super) struct Call {
    read: FromRouterBody,
    write: DuplexStream,
    verdict: Verdict,
    room: OwnedSemaphorePermit,
}

impl Call {
    /// The transport of its link, and the room that it takes.
    pub(super) fn into_transport(
        self,
        peer: SocketAddr,
        (router, rights): (String, Arc<Rights>),
    ) -> (Transport<FromRouterBody, DuplexStream>, OwnedSemaphorePermit) {
        let Self { read, write, verdict, room } = self;
        let ending = Box::new(move |end: &LinkEnd| {
            // Only here, and a link ends once.
            verdict.set(status(end)).ok();
        });
        (Transport { kind: RouterTransport::Grpc, peer, router, rights, read, write, ending }, room)
    }
}

/// The status stands beside the last frame, for those who look at nothing else: the frame says more.
pub(super) fn status(end: &LinkEnd) -> Status {
    match end {
        LinkEnd::Closed | LinkEnd::Left => Status::ok(""),
        LinkEnd::Refused(error) => Status::aborted(error.to_string()),
        other => Status::unavailable(other.to_string()),
    }
}

/// Takes a call: from here on its body is a link's.
pub(super) async fn link(Extension(calls): Extension<Calls>, request: Request) -> Response {
    match take(&calls, request) {
        Ok(body) => answer(Body::new(body)),
        Err(status) => status.into_http(),
    }
}

pub(super) fn answer(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn take(calls: &Calls, request: Request) -> Result<ToRouterBody, Status> {
    check(request.headers())?;
    let full = || Status::resource_exhausted("this edge has as many router links as it takes");
    let room = Arc::clone(&calls.links).try_acquire_owned().map_err(|_| full())?;
    let (write, pipe) = duplex(limits::GRPC_PIPE_BYTES);
    let verdict = Verdict::default();
    let body = ToRouterBody::new(pipe, Arc::clone(&verdict));
    let read = FromRouterBody::new(request.into_body());
    calls.queue.try_send(Call { read, write, verdict, room }).map_err(|_| full())?;
    Ok(body)
}

/// gRPC, with messages as they are.
fn check(head: &HeaderMap) -> Result<(), Status> {
    let text = |name| head.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if !text("content-type").is_some_and(|kind| kind.starts_with("application/grpc")) {
        return Err(Status::invalid_argument("the content type is not application/grpc"));
    }
    if text("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        let mut status = Status::unimplemented("messages are not taken compressed");
        let identity = tonic::metadata::MetadataValue::from_static("identity");
        status.metadata_mut().insert("grpc-accept-encoding", identity);
        return Err(status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::router::LinkError;
    use tonic::Code;

    #[test]
    fn only_grpc_without_compression_is_taken() {
        let check = |pairs: &[(&'static str, &'static str)]| {
            let head = pairs.iter().map(|&(name, value)| {
                (axum::http::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            super::check(&head.collect()).map_err(|status| status.code())
        };
        assert_eq!(check(&[("content-type", "application/grpc")]), Ok(()));
        assert_eq!(
            check(&[("content-type", "application/grpc+proto"), ("grpc-encoding", "identity")]),
            Ok(())
        );
        assert_eq!(check(&[]), Err(Code::InvalidArgument));
        assert_eq!(check(&[("content-type", "text/plain")]), Err(Code::InvalidArgument));
        let gzip = [("content-type", "application/grpc"), ("grpc-encoding", "gzip")];
        assert_eq!(check(&gzip), Err(Code::Unimplemented));
    }

    #[test]
    fn every_end_has_a_status() {
        assert_eq!(status(&LinkEnd::Closed).code(), Code::Ok);
        assert_eq!(status(&LinkEnd::Left).code(), Code::Ok);
        assert_eq!(status(&LinkEnd::Stalled).code(), Code::Unavailable);
        let refused = status(&LinkEnd::Refused(LinkError::Deadline("no Open in time")));
        assert_eq!((refused.code(), refused.message()), (Code::Aborted, "no Open in time"));
    }
}
