//! Frames straight on TLS: a connection is a link.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::door::Place;
use super::transport::Transport;
use super::{Phase, RouterContext, accept, link, tls};
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
    match tls::handshake(socket, &mut place, &context.tls, &context.pace, &phase).await {
        Ok(stream) => {
            let router = tls::router_name(&stream);
            let (read, write) = tokio::io::split(stream);
            let transport = Transport { kind, peer, router, read, write, ending: Box::new(|_end| ()) };
            link::live(transport, &context, &phase).await;
        }
        Err(end) => link::Who::new(kind, peer).ended(&end),
    }
}
