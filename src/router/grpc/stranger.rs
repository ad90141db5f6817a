//! The answer to a stranger's calls, whatever they are: a link's refusal beside the frame that says more, and a status to all others.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::post;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;
use tonic::Status;

use super::super::door::Place;
use super::super::stranger::refusal;
use super::super::{LinkEnd, Phase, RouterContext, reached};
use super::body::{ToRouterBody, Verdict};
use super::call;
use super::{LINK, http};
use crate::limits;
use crate::wire::router as wire;

/// Answers calls for as long as a stranger may stay.
pub(super) async fn turn_away(
    stream: TlsStream<TcpStream>,
    name: &str,
    place: &mut Place,
    context: &RouterContext,
    phase: &watch::Receiver<Phase>,
) -> LinkEnd {
    let (calls, bodies) = mpsc::channel(limits::GRPC_CALLS as usize);
    let service = TowerToHyperService::new(routes(name, calls));
    tokio::select! {
        // How it ended changes nothing for one that was never let in.
        _ended = http().serve_connection(TokioIo::new(stream), service) => {}
        () = hear_out(bodies) => {}
        () = sleep(context.pace.settle) => {}
        () = place.evicted() => {}
        () = reached(phase, Phase::Closing) => {}
    }
    LinkEnd::Refused(refusal(name))
}

/// Reads what the calls say: one whose other half is dropped is reset, perhaps before its answer was read.
async fn hear_out(mut bodies: mpsc::Receiver<Body>) {
    let mut heard = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(body) = bodies.recv() => {
                heard.push(body.into_data_stream().for_each(async |_piece| ()));
            }
            Some(()) = heard.next() => {}
            else => return,
        }
    }
}

fn routes(name: &str, calls: mpsc::Sender<Body>) -> Router {
    let error = refusal(name);
    let (frame, text) = (wire::link_error(&error), error.to_string());
    let status = call::status(&LinkEnd::Refused(error));
    let link = async move |request: Request| {
        // As many fit as there can be at a time.
        calls.try_send(request.into_body()).ok();
        let (mut write, pipe) = duplex(limits::GRPC_PIPE_BYTES);
        // It fits: an error is a few hundred bytes.
        write.write_all(&frame).await.ok();
        call::answer(Body::new(ToRouterBody::new(pipe, Verdict::new(status.into()))))
    };
    let other = async move || Status::permission_denied(text).into_http::<Body>();
    Router::new().route(LINK, post(link)).fallback(other)
}
