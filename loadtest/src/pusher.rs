//! What pushes to the devices: a router of an edge, which gives it batches; or a publisher of a broker, which knows none.

use std::sync::Arc;

use mooring::cli::output::Failure;
use mooring::client::router::{Progress, Router};
use mooring::clock::Clock;

use crate::messages::{self, Messages};
use crate::mqtt::Publisher;
use crate::target::{self, Target};

/// Pushes messages.
pub(crate) struct Pusher {
    clock: Arc<Clock>,
    messages: Messages,
    way: Way,
    batches: u64,
    /// Messages to one device each.
    sent: u64,
}

enum Way {
    Router(Router),
    Publisher(Box<Publisher>),
}

impl Pusher {
    pub(crate) async fn new(
        target: &Target,
        clock: &Arc<Clock>,
        messages: Messages,
        args: &target::Args,
    ) -> Result<Self, Failure> {
        let way = if let Some(edge) = &target.edge {
            Way::Router(messages::router(edge, clock, args.seed))
        } else {
            let endpoint = target.device(args.transport, None);
            let endpoint = endpoint.ok_or_else(|| Failure::failed("the broker has no address"))?;
            Way::Publisher(Box::new(Publisher::connect(&endpoint, args.payload_bytes).await?))
        };
        Ok(Self { clock: Arc::clone(clock), messages, way, batches: 0, sent: 0 })
    }

    /// Message `message` to these devices, as one batch.
    pub(crate) async fn push(
        &mut self,
        message: u64,
        devices: impl ExactSizeIterator<Item = u32>,
    ) -> Result<(), Failure> {
        self.sent += devices.len() as u64;
        self.batches += 1;
        match &mut self.way {
            Way::Router(router) => {
                let batch = self.messages.batch(self.batches, message, devices, self.clock.now());
                if router.deliver(batch).await { Ok(()) } else { Err(ended()) }
            }
            Way::Publisher(publisher) => publisher.publish(self.messages.first + message, devices).await,
        }
    }

    /// To all of these, in batches of at most so many.
    pub(crate) async fn push_to_all(
        &mut self,
        message: u64,
        devices: std::ops::Range<u32>,
        batch: u32,
    ) -> Result<(), Failure> {
        for first in devices.clone().step_by(batch as usize) {
            self.push(message, first..devices.end.min(first.saturating_add(batch))).await?;
        }
        Ok(())
    }

    /// Messages pushed so far, each counted once a device.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Waits until all is accepted: by an edge once it is durable, by a broker when it has taken it over.
    pub(crate) async fn accepted(&self) -> Result<(), Failure> {
        let router = match &self.way {
            Way::Router(router) => router,
            Way::Publisher(publisher) => return publisher.all_acked().await,
        };
        let batches = self.batches;
        let answered = |p: &Progress| p.tally.batches >= batches && p.tally.unanswered() == 0;
        messages::until(router, "all batches are answered", answered).await?;
        let progress = router.progress();
        let refused: Vec<_> =
            progress.borrow().tally.refusals().map(|(why, n)| format!("{n} {why}")).collect();
        if refused.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "targets were refused: {} (`mooring inspect reasons` says what to do; over_quota: fewer --messages)",
            refused.join(", ")
        )))
    }

    /// Waits until an edge has said the outcome of every message; a broker says none.
    pub(crate) async fn settled(&self) -> Result<(), Failure> {
        match &self.way {
            Way::Router(router) => messages::settled(router, self.batches).await,
            Way::Publisher(publisher) => publisher.all_acked().await,
        }
    }
}

fn ended() -> Failure {
    Failure::failed("the router has ended")
}
