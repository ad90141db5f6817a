//! `service Router` of `router.proto`: one call of `Link` is one link.
//!
//! The bytes of a gRPC call are the bytes of the framed link: five bytes of head and a message, again and again. So a call's body goes through
//! the same frame reader and decoder, and what a link says goes into the answer's body as it is; HTTP/2 only carries. What gRPC adds
//! stands here: connections, the head of a call, the status at its end, health and reflection.
//!
//! Bounded: connections, calls on a connection, links in all; bytes that came and are not read, by HTTP/2's windows; bytes that go out, by
//! the outbox, a pipe and the router's own windows. A link that can't write for too long takes its connection with it: only so can HTTP/2
//! be made to forget what waits for its router. A connection without a link goes away as a silent link does.
//!
//! Rejected: tonic's server and a codec of messages. Its decoder makes room for a whole message as soon as its head names a size, before and
//! after Open alike, and its errors are statuses without a frame: a second set of limits and ends to keep in step with the first.

mod body;
mod call;
mod stranger;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::post;
use axum::{Extension, Router};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::call::{Call, Calls};
use super::door::Place;
use super::who::Who;
use super::{LinkEnd, Phase, Rights, RouterContext, accept, link, reached, tls};
use crate::limits;
use crate::telemetry::RouterTransport;

/// The service, as health knows it.
const SERVICE: &str = "mooring.router.v1.Router";
/// The one call of it.
const LINK: &str = "/mooring.router.v1.Router/Link";
/// Both protocols, for reflection.
const PROTOCOLS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/protocols.bin"));

/// What all connections share.
struct Shared {
    context: Arc<RouterContext>,
    phase: watch::Receiver<Phase>,
    /// Mutual TLS like the framed link's, with HTTP/2's name.
    tls: Arc<rustls::ServerConfig>,
    routes: Router,
    /// One for each link, whatever connection it is on.
    links: Arc<Semaphore>,
}

/// Accepts gRPC connections of routers until the edge leaves, then waits until they have ended.
pub async fn serve(listener: TcpListener, context: Arc<RouterContext>, phase: watch::Receiver<Phase>) {
    let mut tls = (*context.tls).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (health, routes) = routes();
    let shared = Arc::new(Shared {
        context,
        phase: phase.clone(),
        tls: tls.into(),
        routes,
        links: Arc::new(Semaphore::new(limits::ROUTER_LINKS)),
    });
    say(&health, ServingStatus::Serving).await;
    let leaving = async {
        reached(&phase, Phase::Leaving).await;
        say(&health, ServingStatus::NotServing).await;
    };
    tokio::join!(
        accept(listener, &phase, |socket, peer, place| live(socket, peer, place, Arc::clone(&shared))),
        leaving
    );
}

/// What can be called.
fn routes() -> (HealthReporter, Router) {
    let (health, service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PROTOCOLS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (
        reflection().build_v1().expect("the build encoded the protocols"),
        reflection().build_v1alpha().expect("the build encoded the protocols"),
    );
    let routes = Routes::new(service).add_service(v1).add_service(v1alpha);
    (health, routes.into_axum_router().route(LINK, post(call::link)))
}

async fn say(health: &HealthReporter, status: ServingStatus) {
    for service in ["", SERVICE] {
        health.set_service_status(service, status).await;
    }
}

/// A connection, from accept to the end of its last link.
async fn live(socket: TcpStream, peer: SocketAddr, mut place: Place, shared: Arc<Shared>) {
    let Shared { context, phase, .. } = &*shared;
    let stream = match tls::handshake(socket, &mut place, &shared.tls, &context.pace, phase).await {
        Ok(stream) => stream,
        Err(end) => return Who::new(RouterTransport::Grpc, peer).ended(&end, context),
    };
    let router = tls::router_name(&stream);
    let Some(rights) = context.routers.get(&router).cloned() else {
        let end = stranger::turn_away(stream, &router, &mut place, context, phase).await;
        return Who::stranger(RouterTransport::Grpc, peer, &router).ended(&end, context);
    };
    if let Err(end) = place.admit() {
        return Who::router(RouterTransport::Grpc, peer, &router).ended(&end, context);
    }
    let (calls, mut queue) = mpsc::channel(limits::GRPC_CALLS as usize);
    let calls = Calls { queue: calls, links: Arc::clone(&shared.links) };
    let service = TowerToHyperService::new(shared.routes.clone().layer(Extension(calls)));
    let connection = http().serve_connection(TokioIo::new(stream), service);
    let mut links = JoinSet::new();
    {
        let mut connection = std::pin::pin!(connection);
        let mut leaving = std::pin::pin!(reached(phase, Phase::Leaving));
        let mut closing = std::pin::pin!(reached(phase, Phase::Closing));
        // What a connection without links has left: first until one comes, then for its goodbye.
        let mut idle = std::pin::pin!(sleep(context.pace.silence));
        let (mut is_leaving, mut is_closing) = (false, false);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%peer, router, %error, "a gRPC connection ended");
                    }
                    break;
                }
                Some(call) = queue.recv() => {
                    let who = (router.clone(), Arc::clone(&rights));
                    links.spawn(linked(call, peer, who, Arc::clone(&shared)));
                }
                Some(ended) = links.join_next() => {
                    if matches!(ended, Ok(LinkEnd::Stalled)) {
                        break;
                    }
                    idle.set(sleep(if is_leaving { context.pace.settle } else { context.pace.silence }));
                }
                () = &mut leaving, if !is_leaving => {
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut closing, if !is_closing => {
                    is_closing = true;
                    idle.set(sleep(context.pace.settle));
                }
                () = &mut idle, if links.is_empty() => {
                    if is_leaving {
                        break;
                    }
                    is_leaving = true;
                    connection.as_mut().graceful_shutdown();
                    idle.set(sleep(context.pace.settle));
                }
            }
        }
    }
    // Without their connection they end by themselves, and each says why.
    let ended = async { while links.join_next().await.is_some() {} };
    if timeout(context.pace.settle, ended).await.is_err() {
        tracing::warn!(%peer, router, "links of a gRPC connection that is gone had to be ended");
    }
}

async fn linked(call: Call, peer: SocketAddr, who: (String, Arc<Rights>), shared: Arc<Shared>) -> LinkEnd {
    let (transport, _room) = call.into_transport(peer, who);
    link::live(transport, &shared.context, &shared.phase).await
}

fn http() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(limits::GRPC_PING_MS))
        .keep_alive_timeout(Duration::from_millis(limits::GRPC_PONG_MS))
        .max_concurrent_streams(limits::GRPC_CALLS)
        .initial_stream_window_size(limits::GRPC_CALL_WINDOW_BYTES)
        .initial_connection_window_size(limits::GRPC_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(limits::GRPC_PIPE_BYTES)
        .max_header_list_size(limits::GRPC_HEAD_BYTES);
    http
}
