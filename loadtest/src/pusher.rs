//! What pushes to the devices: a router of an edge, which gives it batches.

use std::sync::Arc;

use mooring::cli::output::Failure;
use mooring::client::router::Router;
use mooring::clock::Clock;

use crate::messages::{self, Messages};
use crate::target::Target;

/// Pushes messages.
pub(crate) struct Pusher {
    clock: Arc<Clock>,
    messages: Messages,
    router: Router,
    batches: u64,
    /// Messages to one device each.
    sent: u64,
}

impl Pusher {
    pub(crate) fn new(target: &Target, clock: &Arc<Clock>, messages: Messages, seed: u64) -> Self {
        Self {
            clock: Arc::clone(clock),
            messages,
            router: messages::router(target, clock, seed),
            batches: 0,
            sent: 0,
        }
    }

    /// Message `message` to these devices, as one batch.
    pub(crate) async fn push(
        &mut self,
        message: u64,
        devices: impl ExactSizeIterator<Item = u32>,
    ) -> Result<(), Failure> {
        self.sent += devices.len() as u64;
        let batch = self.messages.batch(self.batches, message, devices, self.clock.now());
        self.batches += 1;
        if self.router.deliver(batch).await { Ok(()) } else { Err(ended()) }
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

    /// Waits until each batch is accepted, which it is once it is durable.
    pub(crate) async fn accepted(&self) -> Result<(), Failure> {
        let mut progress = self.router.progress();
        let batches = self.batches;
        let answered = |p: &mooring::client::router::Progress| {
            p.first_rejection.is_some() || p.tally.batches >= batches && p.tally.unanswered() == 0
        };
        let state = progress.wait_for(answered).await.map_err(|_| ended())?;
        if let Some(rejection) = &state.first_rejection {
            return Err(Failure::failed(format!("a batch was rejected: {rejection:?}")));
        }
        let refused: Vec<_> = state.tally.refusals().map(|(why, n)| format!("{n} {why}")).collect();
        if refused.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "targets were refused: {} (`mooring inspect reasons` says what to do; over_quota: fewer --messages)",
            refused.join(", ")
        )))
    }

    /// Waits until each batch is answered and every accepted message has its outcome.
    pub(crate) async fn settled(&self) -> Result<(), Failure> {
        messages::settled(&self.router, self.batches).await
    }
}

fn ended() -> Failure {
    Failure::failed("the router has ended")
}
