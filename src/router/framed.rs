//! Frames straight on TLS: a connection is a link.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::door::Place;
use super::transport::Transport;
use super::who::Who;
use super::{Phase, RouterContext, accept, link, stranger, tls};
use crate::telemetry::RouterTransport;

/// Accepts router links until the edge leaves, then waits until they have ended.
pub async fn serve(listener: TcpListener, context: Arc<RouterContext>, phase: watch::Receiver<Phase>) {
    let live = |socket, peer, place| live(socket, peer, place, Arc::clone(&context), phase.clone());
    accept(listener, &phase, live).await;
}

/// From accept to the end.
async fn live(
    socket: TcpStream,
    peer: SocketAddr,
    mut place: Place,
    context: Arc<RouterContext>,
    phase: watch::Receiver<Phase>,
) {
    let kind = RouterTransport::Tcp;
    let stream = match tls::handshake(socket, &mut place, &context.tls, &context.pace, &phase).await {
        Ok(stream) => stream,
        Err(end) => return Who::new(kind, peer).ended(&end, &context),
    };
    let router = tls::router_name(&stream);
    let (read, write) = tokio::io::split(stream);
    let Some(rights) = context.routers.get(&router).cloned() else {
        let end = stranger::turn_away((read, write), &router, &mut place, &context, &phase).await;
        return Who::stranger(kind, peer, &router).ended(&end, &context);
    };
    if let Err(end) = place.admit() {
        return Who::router(kind, peer, &router).ended(&end, &context);
    }
    let transport = Transport { kind, peer, router, rights, read, write, ending: Box::new(|_end| ()) };
    link::live(transport, &context, &phase).await;
}
