//! What a router link runs on.
//!
//! A link is frames of gRPC's form both ways (`wire::frame`), and one handler reads and writes them; a transport gives it bytes in, bytes out,
//! and who is at the other end. So there is one reader of frames, one decoder, one bound on what waits to be written, whatever is below.
//! Rejected: a transport that deals in messages. It would need a second decoder, with limits of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{LinkEnd, Rights};
use crate::telemetry::RouterTransport;

/// Bytes both ways with a router of this edge, by its certificate.
pub(super) struct Transport<R, W> {
    /// Which one: for metrics and logs.
    pub(super) kind: RouterTransport,
    /// The other end.
    pub(super) peer: SocketAddr,
    /// The common name of its certificate.
    pub(super) router: String,
    /// What the configuration says under that name.
    pub(super) rights: Arc<Rights>,
    /// Ends with 0 bytes when the router says no more.
    pub(super) read: R,
    /// Takes a write only as fast as the router reads. Shutting it down ends the link for the router.
    pub(super) write: W,
    /// Is told why the link ends before the last frame is written, unless nothing can be written any more.
    pub(super) ending: Box<dyn FnOnce(&LinkEnd) + Send>,
}
