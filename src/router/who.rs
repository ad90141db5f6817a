//! Who is at the other end of a link, and the one place where its end is counted and logged.

use std::net::SocketAddr;

use super::{LinkEnd, RouterContext};
use crate::limits;
use crate::machine::rate::Quiet;
use crate::telemetry::{self, Counter, RouterTransport};

/// How many lines links that were never opened may write. Anybody can make them as fast as he can connect, so they are bounded, and apart for
/// those who have not shown who they are: a flood of strangers must not hide what a router does wrong.
#[derive(Debug)]
pub struct FailureLines {
    strangers: Quiet,
    routers: Quiet,
}

impl Default for FailureLines {
    fn default() -> Self {
        let quiet = || Quiet::new(limits::ROUTER_FAILURE_LINES);
        Self { strangers: quiet(), routers: quiet() }
    }
}

/// Who is at the other end, as far as it is known.
pub(super) struct Who {
    kind: RouterTransport,
    peer: SocketAddr,
    /// By certificate.
    name: String,
    /// It stands in the configuration.
    is_router: bool,
    /// By its own word.
    pub(super) process: String,
    pub(super) opened: bool,
}

impl Who {
    /// Somebody who has shown nothing yet.
    pub(super) fn new(kind: RouterTransport, peer: SocketAddr) -> Self {
        Self { kind, peer, name: String::new(), is_router: false, process: String::new(), opened: false }
    }

    /// Somebody whose certificate says this, and who is no router of this edge.
    pub(super) fn stranger(kind: RouterTransport, peer: SocketAddr, name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::new(kind, peer) }
    }

    /// A router of this edge.
    pub(super) fn router(kind: RouterTransport, peer: SocketAddr, name: &str) -> Self {
        Self { is_router: true, ..Self::stranger(kind, peer, name) }
    }

    /// Counted always, logged within bounds.
    pub(super) fn ended(self, end: &LinkEnd, context: &RouterContext) {
        telemetry::add(Counter::RouterLinkEnds(end.label()), 1);
        if !self.opened {
            telemetry::add(Counter::RouterHandshakeFailures, 1);
        }
        let Self { kind, peer, name: router, is_router, process, opened } = self;
        let lines = &context.failure_lines;
        let lines = if is_router { &lines.routers } else { &lines.strangers };
        let allowed = if opened { Some(0) } else { lines.allows(context.clock.now()) };
        let Some(suppressed) = allowed else { return };
        let (transport, reason) = (kind.label(), end.label().label());
        if matches!(end, LinkEnd::Closed | LinkEnd::Left) {
            tracing::info!(%peer, transport, router, process, opened, reason, suppressed, "router link ended: {end}");
        } else {
            tracing::warn!(%peer, transport, router, process, opened, reason, suppressed, "router link ended: {end}");
        }
    }
}
