//! A broadcast that goes on beside a load: messages to all of so many devices, one after the other, each once the one before is accepted.
//!
//! These devices have been here once, so that the edge knows them, and are away: what others are to notice of it is admission, the journal, the pending
//! lists, and the ends, as each message expires soon. (What it costs to write to connected ones `broadcast` measures.)
//!
//! It has a thread, a runtime and a router link of its own: to make a batch of 100,000 targets takes milliseconds, and nothing that takes the time of other
//! messages may wait for that. It keeps nothing of batches that are answered, so that it may go on for an hour.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mooring::cli::output::{Failure, note};
use mooring::client::local::enough_descriptors;
use mooring::client::router::{Receiver, Sender, open};
use mooring::clock::Clock;
use mooring::limits;
use mooring::push::Refusal;
use mooring::wire::pb::router::{
    BatchAccepted, BatchRejected, DeliverBatch, Open, RejectCode, from_router, to_router,
};
use tokio::sync::oneshot;

use crate::fleet::{Fleet, STALLED_SECONDS};
use crate::messages::Messages;
use crate::target::{self, SPARE_DESCRIPTORS, Target};

/// Devices that are made known at a time: each has a descriptor meanwhile.
const GROUP: u32 = 1_000;
/// Seconds for which messages are kept.
const KEPT_S: u32 = 5;
/// Messages a second, at most: with few devices they would come so quickly that each has more pending than an edge allows (1,000).
const MESSAGES_PER_S: u64 = 100;
/// Milliseconds before a batch is repeated that was put off without a delay.
const PUT_OFF_MS: u32 = 100;
/// Message ids begin so far behind those of the load.
const IDS: u64 = 1 << 40;

/// Has devices `first..first + count` connect once and leave.
pub(crate) async fn make_known(
    args: &target::Args,
    clock: &Arc<Clock>,
    target: &Target,
    count: u32,
) -> Result<(), Failure> {
    enough_descriptors(u64::from(GROUP) + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
    let devices = args.devices..args.devices + count;
    let start = clock.micros();
    for first in devices.clone().step_by(GROUP as usize) {
        let mut group = Fleet::new(clock, args.transport, first, args.seed, Arc::new(|_, _, _| {}));
        group.grow(target, GROUP.min(devices.end - first), true).await?;
        group.end().await;
        // Their descriptors in the server are free again.
        target.until_all_left().await?;
    }
    note(&format!("{count} devices made known in {:.1} s", (clock.micros() - start) as f64 / 1e6));
    Ok(())
}

/// What a broadcast came to.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sum {
    /// Messages, each to all of its devices.
    pub(crate) messages: u64,
    /// Accepted, each message counted once a device.
    pub(crate) targets: u64,
    pub(crate) seconds: f64,
}

/// One that goes on until it is ended.
pub(crate) struct Broadcast {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Sum, Failure>>,
}

impl Broadcast {
    /// Starts one to `count` devices that were made known, and waits until its first message is accepted.
    pub(crate) async fn start(
        args: &target::Args,
        clock: &Arc<Clock>,
        target: &Target,
        count: u32,
    ) -> Result<Self, Failure> {
        let messages = Messages::new(target, clock, args.payload_bytes);
        let batches = batches(&messages, args.devices..args.devices + count);
        let (endpoint, clock) = (target.edge()?.router.clone(), Arc::clone(clock));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (began, begins) = oneshot::channel();
        let work = async move {
            // No stream: what becomes of the messages is told to who reads it.
            let open_link = Open { version: 1, name: "loadtest-beside".into(), ..Open::default() };
            let (sender, receiver, _) = open(&endpoint, open_link).await.map_err(Failure::failed)?;
            Link { clock, sender, receiver, batches, sum: Sum::default() }.run(&stopped, began).await
        };
        let thread = std::thread::Builder::new().name("beside".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(Failure::failed)?.block_on(work)
        });
        let broadcast = Self { stop, thread: thread.map_err(Failure::failed)? };
        match begins.await {
            Ok(()) => Ok(broadcast),
            // It ended before, and says why.
            Err(_) => {
                Err(broadcast.end().err().unwrap_or_else(|| Failure::failed("--beside: nothing was sent")))
            }
        }
    }

    /// Ends it once the batch on its way is answered. A link that broke meanwhile is a failure.
    pub(crate) fn end(self) -> Result<Sum, Failure> {
        self.stop.store(true, Ordering::Release);
        match tokio::task::block_in_place(|| self.thread.join()) {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// One message to all of these, which only wants its numbers.
fn batches(messages: &Messages, devices: std::ops::Range<u32>) -> Vec<DeliverBatch> {
    let most = limits::BATCH_TARGETS;
    let batch = |first: u32| {
        let targets = first..devices.end.min(first.saturating_add(most as u32));
        DeliverBatch { retention_seconds: Some(KEPT_S), ..messages.batch(0, IDS, targets, 0) }
    };
    devices.clone().step_by(most).map(batch).collect()
}

struct Link {
    clock: Arc<Clock>,
    sender: Sender,
    receiver: Receiver,
    batches: Vec<DeliverBatch>,
    sum: Sum,
}

impl Link {
    async fn run(mut self, stop: &AtomicBool, began: oneshot::Sender<()>) -> Result<Sum, Failure> {
        let (start, mut began) = (self.clock.micros(), Some(began));
        while !stop.load(Ordering::Acquire) {
            let at = self.clock.micros();
            self.message().await?;
            // Who waits for it may have given up.
            began.take().map(|began| began.send(()).ok());
            let took = self.clock.micros() - at;
            tokio::time::sleep(Duration::from_micros((1_000_000 / MESSAGES_PER_S).saturating_sub(took)))
                .await;
        }
        self.sum.seconds = (self.clock.micros() - start) as f64 / 1e6;
        Ok(self.sum)
    }

    /// The next message to all devices.
    async fn message(&mut self) -> Result<(), Failure> {
        let n = self.sum.messages;
        for at in 0..self.batches.len() {
            let like = &self.batches[at];
            let batch = DeliverBatch {
                batch_id: format!("{}-{n}-{at}", like.batch_id),
                message_id: like.message_id + n,
                created_at: self.clock.now(),
                ..like.clone()
            };
            self.sum.targets += self.deliver(batch).await?;
        }
        self.sum.messages += 1;
        Ok(())
    }

    /// Sends a batch until it is accepted; by how many targets.
    async fn deliver(&mut self, batch: DeliverBatch) -> Result<u64, Failure> {
        loop {
            let frame = from_router::Frame::Deliver(batch.clone());
            self.sender.send(frame).await.map_err(Failure::failed)?;
            match self.answer().await? {
                Ok(accepted) => return all_of_it(&accepted),
                Err(put_off) => tokio::time::sleep(Duration::from_millis(put_off)).await,
            }
        }
    }

    /// The answer to the one batch in flight, or the delay in milliseconds after which it is to be repeated.
    async fn answer(&mut self) -> Result<Result<BatchAccepted, u64>, Failure> {
        loop {
            match self.receiver.recv(STALLED_SECONDS).await.map_err(Failure::failed)? {
                to_router::Frame::Accepted(accepted) => return Ok(Ok(accepted)),
                to_router::Frame::Rejected(rejected) => return delay(&rejected).map(Err),
                to_router::Frame::Error(error) => {
                    return Err(Failure::failed(format!(
                        "--beside: the edge closes the link: {}",
                        error.text
                    )));
                }
                _ => {}
            }
        }
    }
}

fn delay(rejected: &BatchRejected) -> Result<u64, Failure> {
    if matches!(rejected.code(), RejectCode::ResourceExhausted | RejectCode::Unavailable) {
        return Ok(rejected.retry_after_milliseconds.max(PUT_OFF_MS).into());
    }
    Err(Failure::failed(format!("--beside: a batch was rejected: {rejected:?}")))
}

/// A broadcast that reaches only some is another one than was asked for.
fn all_of_it(accepted: &BatchAccepted) -> Result<u64, Failure> {
    let Some(refused) = accepted.refused.first() else { return Ok(accepted.accepted.into()) };
    let reason = u8::try_from(refused.reason).ok().and_then(Refusal::from_number);
    Err(Failure::failed(format!(
        "--beside: targets were refused: {} {} (`mooring inspect reasons` says what to do)",
        refused.ordinals.len(),
        reason.map_or("unknown", Refusal::label)
    )))
}

#[cfg(test)]
mod tests {
    use mooring::wire::pb::router::{RefuseReason, Refused};

    use super::*;

    #[test]
    fn a_batch_that_is_put_off_is_repeated_after_its_delay() {
        let rejected = |code: RejectCode, retry_after_milliseconds| {
            delay(&BatchRejected { code: code.into(), retry_after_milliseconds, ..BatchRejected::default() })
        };
        assert_eq!(rejected(RejectCode::ResourceExhausted, 250).ok(), Some(250));
        assert_eq!(rejected(RejectCode::Unavailable, 0).ok(), Some(PUT_OFF_MS.into()));
        assert!(rejected(RejectCode::TooManyTargets, 250).is_err());
    }

    #[test]
    fn a_refused_target_is_named_with_its_reason() {
        let refused = Refused { reason: RefuseReason::OverQuota.into(), ordinals: vec![3, 4] };
        let accepted = BatchAccepted { accepted: 98, ..BatchAccepted::default() };
        assert_eq!(all_of_it(&accepted).ok(), Some(98));
        let error = all_of_it(&BatchAccepted { refused: vec![refused], ..accepted }).expect_err("refused");
        assert!(error.to_string().contains("2 over_quota"), "{error}");
    }
}
