//! A router link without a runtime: the link as it is, from its first frame to its last, polled when the simulation says so. Only TLS is left out, and
//! reading a stream takes no time.
//!
//! It is polled only when it was woken, so that a wake-up that is forgotten shows.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::watch;

use super::transport::Transport;
use super::{Phase, RouterContext, link};
use crate::sim::{Pipe, Woken};
use crate::telemetry::RouterTransport;

/// See the module.
pub struct SimLink {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
    pipe: Pipe,
}

impl std::fmt::Debug for SimLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimLink").field("pipe", &self.pipe).finish_non_exhaustive()
    }
}

impl SimLink {
    /// A link whose certificate names `router`, if that is one of the edge's.
    pub fn new(
        context: Arc<RouterContext>,
        router: &str,
        pipe: &Pipe,
        phase: watch::Receiver<Phase>,
    ) -> Option<Self> {
        let transport = Transport {
            kind: RouterTransport::Tcp,
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            router: router.to_owned(),
            rights: context.routers.get(router)?.clone(),
            read: pipe.clone(),
            write: pipe.clone(),
            ending: Box::new(|_end| ()),
        };
        let future = Box::pin(async move {
            link::live(transport, &context, &phase).await;
        });
        Some(Self { future, woken: Arc::default(), pipe: pipe.clone() })
    }

    /// Whether something has woken it.
    pub fn is_woken(&self) -> bool {
        self.woken.is()
    }

    /// Goes on, if it was woken. False: the link has ended.
    pub fn poll(&mut self) -> bool {
        if !self.woken.take() {
            return true;
        }
        let waker = self.woken.waker();
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => true,
            Poll::Ready(()) => {
                self.pipe.close();
                false
            }
        }
    }
}
