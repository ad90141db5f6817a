//! A random list of what devices, a router and time do to the engine, the same for the same seed; and what was promised to them.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

use super::support::{Harness, Told, ack, batch, seen, session};
use crate::ids::{DeviceKey, Seq, ShardId};
use crate::push::{Accepted, Event, Failure, Millis, NewBatch, Priority, Rejection, StreamEvent};
use crate::store::disk::sim::SimDisk;
use crate::store::engine::StoreFailure;
use crate::store::{Command, Confirm, DeviceAck, SentAlone};

pub(super) const START: Millis = 1_800_000_000_000;
/// Devices are numbered from 0; the last one is never seen.
pub(super) const DEVICES: u32 = 5;
pub(super) const MESSAGES: u64 = 12;
const EVENTS: [Event; 3] = [Event::Arrive, Event::Click, Event::Clean];

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Step {
    See { n: u32, push_on: Option<bool> },
    Deliver(NewBatch),
    Ack(DeviceAck, u32),
    Pull(u32),
    Sent(u32),
    Commit,
    Maintain,
    Advance(Millis),
    ReadStream,
    AckStream,
    Checkpoint,
}

/// So many steps of a seed.
pub(super) fn plan(seed: u64, length: usize) -> Vec<Step> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut now = START;
    let mut batches: Vec<NewBatch> = Vec::new();
    let mut steps: Vec<Step> = (0..DEVICES - 1).map(|n| Step::See { n, push_on: None }).collect();
    while steps.len() < length {
        let number = steps.len() as u64;
        steps.push(match rng.random_range(0..100) {
            0..3 => Step::See { n: rng.random_range(0..DEVICES - 1), push_on: Some(rng.random_bool(0.7)) },
            3..25 => {
                let new = new_batch(&mut rng, number, now);
                batches.push(new.clone());
                Step::Deliver(new)
            }
            25..28 if !batches.is_empty() => {
                Step::Deliver(batches[rng.random_range(0..batches.len())].clone())
            }
            28..50 => {
                let n = rng.random_range(0..DEVICES - 1);
                let event = |rng: &mut SmallRng| {
                    let newest = rng.random_range(1..=MESSAGES);
                    (newest, EVENTS[rng.random_range(0..EVENTS.len())])
                };
                let events: Vec<(u64, Event)> =
                    (0..rng.random_range(1..4)).map(|_| event(&mut rng)).collect();
                Step::Ack(ack(n, number, &events, now), n)
            }
            50..56 => Step::Pull(rng.random_range(0..DEVICES)),
            56..58 => Step::Sent(rng.random_range(0..DEVICES)),
            58..73 => Step::Maintain,
            73..76 => {
                let passed = rng.random_range(0..4_000);
                now += passed;
                Step::Advance(passed)
            }
            76..81 => Step::ReadStream,
            81..86 => Step::AckStream,
            86 => Step::Checkpoint,
            _ => Step::Commit,
        });
    }
    steps.extend([Step::Commit, Step::Maintain, Step::Commit]);
    steps
}

fn new_batch(rng: &mut SmallRng, number: u64, now: Millis) -> NewBatch {
    let targets: Vec<u32> = (0..rng.random_range(1..6)).map(|_| rng.random_range(0..DEVICES)).collect();
    let keep = if rng.random_bool(0.3) { rng.random_range(1..8_000) } else { 3_600_000 };
    let id = format!("batch-{number}");
    let mut new = batch(&id, rng.random_range(1..=MESSAGES), &targets, now, keep);
    new.digest = [number as u8; 16];
    new.online_only = rng.random_bool(0.1);
    // One message has one of each: they are part of its body.
    new.priority = if new.message.0.is_multiple_of(3) { Priority::High } else { Priority::Normal };
    // Long enough that a few of them fill a segment.
    new.body = format!("{:>200}", new.message.0).into_bytes().into();
    new
}

/// What the devices and the router know, by the time the disk failed.
#[derive(Debug, Default)]
pub(super) struct Promised {
    pub(super) now: Millis,
    pub(super) tried: BTreeMap<String, NewBatch>,
    pub(super) answered: BTreeMap<String, Accepted>,
    pub(super) tried_acks: BTreeSet<(u32, u64)>,
    pub(super) confirmed: Vec<DeviceAck>,
    pub(super) tried_switches: Vec<(u32, bool)>,
    pub(super) seen: BTreeSet<u32>,
    pub(super) ended: Vec<(DeviceKey, Seq, Failure)>,
    /// What the router has stored of the stream.
    pub(super) events: BTreeMap<Seq, StreamEvent>,
    pub(super) read_to: Seq,
    pub(super) acked_to: Seq,
    waiting: BTreeMap<String, Vec<oneshot::Receiver<Result<Accepted, Rejection>>>>,
    sent_acks: BTreeMap<u64, DeviceAck>,
}

impl Promised {
    pub(super) fn new() -> Self {
        Self { now: START, ..Self::default() }
    }

    /// Does one step; an error is the end.
    pub(super) fn step(&mut self, harness: &mut Harness<SimDisk>, step: &Step) -> Result<(), StoreFailure> {
        let done = self.act(harness, step);
        self.listen(harness);
        done
    }

    fn act(&mut self, harness: &mut Harness<SimDisk>, step: &Step) -> Result<(), StoreFailure> {
        match step {
            Step::See { n, push_on } => {
                self.tried_switches.extend(push_on.map(|on| (*n, on)));
                let mut device = seen(*n);
                device.push_on = *push_on;
                harness.apply(Command::Seen { device: Box::new(device), session: session(*n) })
            }
            Step::Deliver(batch) => {
                let id = batch.id.as_str().to_owned();
                let (reply, answer) = oneshot::channel();
                self.tried.insert(id.clone(), batch.clone());
                self.waiting.entry(id).or_default().push(answer);
                harness.apply(Command::Deliver { batch: Box::new(batch.clone()), reply })
            }
            Step::Ack(ack, n) => {
                self.tried_acks.extend(ack.events.iter().map(|event| (*n, event.message.0)));
                self.sent_acks.insert(ack.number, ack.clone());
                harness.apply(Command::Acks { shard: ShardId(0), acks: vec![ack.clone()] })
            }
            Step::Pull(n) => {
                harness.pull(*n);
                Ok(())
            }
            Step::Sent(n) => {
                let sent = harness.pull(*n).into_iter().map(|pulled| SentAlone {
                    device: super::support::device(*n),
                    batch: pulled.batch.seq,
                    sent_at: harness.now,
                });
                let sent = sent.collect();
                harness.apply(Command::Sent(sent))
            }
            Step::Commit => harness.commit(),
            Step::Maintain => {
                for _ in 0..3 {
                    harness.commit()?;
                    harness.engine.maintain(harness.now)?;
                }
                Ok(())
            }
            Step::Advance(passed) => {
                harness.now += passed;
                self.now = harness.now;
                Ok(())
            }
            Step::ReadStream => {
                // If the disk is down, the next commit says so.
                if let Ok(events) = harness.try_stream(self.read_to) {
                    self.read_to = harness.head();
                    self.events.extend(events);
                }
                Ok(())
            }
            Step::AckStream => {
                self.acked_to = self.read_to;
                harness.apply(Command::StreamAck { stream: "main".into(), cursor: self.read_to })
            }
            Step::Checkpoint => harness.checkpoint(),
        }
    }

    /// Takes in what the engine told.
    fn listen(&mut self, harness: &Harness<SimDisk>) {
        for told in harness.sink.take() {
            match told {
                Told::Confirmed(Confirm { number, .. }) => {
                    self.confirmed.extend(self.sent_acks.remove(&number));
                }
                Told::Seen(session) => {
                    self.seen.insert(session.slot);
                }
                Told::Ended(device, seq, reason) => self.ended.push((device, seq, reason)),
                Told::Batch(..) | Told::Refused(_) | Told::AckRefused(_) | Told::Changed(..) => {}
            }
        }
        for (id, waiting) in &mut self.waiting {
            waiting.retain_mut(|answer| match answer.try_recv() {
                Ok(Ok(accepted)) => {
                    let known = self.answered.entry(id.clone()).or_insert_with(|| accepted.clone());
                    assert_eq!(known.seq, accepted.seq, "one batch has one place");
                    false
                }
                Err(oneshot::error::TryRecvError::Empty) => true,
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
            });
        }
    }
}
