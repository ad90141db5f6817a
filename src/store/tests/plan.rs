//! A random list of what devices, a router and time do to the engine, the same for the same seed; and what was promised to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

use super::support::{Harness, Told, account_digest, ack, app, batch, seen, session};
use crate::binding::{Binding, Change, ChangeError, Unbind};
use crate::ids::{AccountDigest, DeviceKey, MessageId, Seq, ShardId};
use crate::push::{
    Accepted, Attributes, Event, Failure, Millis, NewBatch, Priority, Rejection, Revoked, StreamEvent,
};
use crate::store::disk::sim::SimDisk;
use crate::store::engine::StoreFailure;
use crate::store::{Command, Confirm, DeviceAck, Pulled, SentAlone};

pub(super) const START: Millis = 1_800_000_000_000;
/// Devices are numbered from 0; the last one is never seen.
pub(super) const DEVICES: u32 = 5;
pub(super) const MESSAGES: u64 = 12;
/// They have sessions all the time; the others may be forgotten.
pub(super) const CONNECTED: [u32; 3] = [0, 1, 3];
const EVENTS: [Event; 3] = [Event::Arrive, Event::Click, Event::Clean];

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A Hello, with one of a few sets of attributes.
    See {
        n: u32,
        push_on: Option<bool>,
        lost: bool,
        attributes: u8,
    },
    Change {
        n: u32,
        change: Change,
    },
    Active(u32),
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
    Revoke(u64),
}

/// So many steps of a seed.
pub(super) fn plan(seed: u64, length: usize) -> Vec<Step> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut now = START;
    let mut batches: Vec<NewBatch> = Vec::new();
    let mut steps: Vec<Step> =
        (0..DEVICES - 1).map(|n| Step::See { n, push_on: None, lost: false, attributes: 0 }).collect();
    while steps.len() < length {
        let number = steps.len() as u64;
        steps.push(match rng.random_range(0..100) {
            0..3 => {
                let n = rng.random_range(0..DEVICES - 1);
                let attributes = rng.random_range(0..ATTRIBUTES);
                Step::See { n, push_on: Some(rng.random_bool(0.7)), lost: rng.random_bool(0.4), attributes }
            }
            3..8 => Step::Change { n: rng.random_range(0..DEVICES - 1), change: change(&mut rng) },
            8 => Step::Active(rng.random_range(0..DEVICES - 1)),
            9..28 => {
                let new = new_batch(&mut rng, number, now);
                batches.push(new.clone());
                Step::Deliver(new)
            }
            28..31 if !batches.is_empty() => {
                Step::Deliver(batches[rng.random_range(0..batches.len())].clone())
            }
            31..50 => {
                let n = rng.random_range(0..DEVICES - 1);
                let event = |rng: &mut SmallRng| {
                    let newest = rng.random_range(1..=MESSAGES);
                    (newest, EVENTS[rng.random_range(0..EVENTS.len())])
                };
                let events: Vec<(u64, Event)> =
                    (0..rng.random_range(1..4)).map(|_| event(&mut rng)).collect();
                Step::Ack(ack(n, number, &events, now), n)
            }
            50..54 => Step::Pull(rng.random_range(0..DEVICES)),
            54..56 => {
                let (n, attributes) = (rng.random_range(0..DEVICES - 1), rng.random_range(0..ATTRIBUTES));
                Step::See { n, push_on: None, lost: false, attributes }
            }
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
            87 => Step::Revoke(rng.random_range(1..=MESSAGES)),
            _ => Step::Commit,
        });
    }
    steps.extend([Step::Commit, Step::Maintain, Step::Commit]);
    steps
}

const ACCOUNTS: [&str; 2] = ["alice", "bob"];
/// Sets of them.
const ATTRIBUTES: u8 = 2;

fn attributes(which: u8) -> Attributes {
    Attributes::whole(format!("attributes {which}").into_bytes().into())
}

fn change(rng: &mut SmallRng) -> Change {
    let account = ACCOUNTS[rng.random_range(0..ACCOUNTS.len())];
    match rng.random_range(0..11) {
        0..5 => Change::Bind(Binding::Account(account.into())),
        5..7 => Change::Unbind(Unbind::Account(account.into())),
        7 => Change::Bind(Binding::Tag(account.into())),
        8 => Change::Unbind(Unbind::Tag(account.into())),
        9 => Change::Attributes { attributes: attributes(rng.random_range(0..ATTRIBUTES)), push_on: None },
        _ => Change::Push(rng.random_bool(0.8)),
    }
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
    let collapses = new.message.0 % 4 == 1;
    new.collapse_key = if collapses { "weather".into() } else { "".into() };
    if rng.random_bool(0.5) {
        let account = |rng: &mut SmallRng| ACCOUNTS.get(rng.random_range(0..ACCOUNTS.len() + 1)).copied();
        new.accounts = targets.iter().map(|_| account(rng).map(account_digest)).collect();
    }
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
    /// Devices that said that they lost their state.
    pub(super) tried_lost: BTreeSet<u32>,
    /// What devices were told is bound.
    pub(super) told_bound: Vec<(u32, Binding)>,
    /// Promises that were broken on the way.
    pub(super) broken: Vec<String>,
    pub(super) seen: BTreeSet<u32>,
    pub(super) ended: Vec<(DeviceKey, Seq, Failure)>,
    /// What the router has stored of the stream.
    pub(super) events: History,
    pub(super) read_to: Seq,
    pub(super) acked_to: Seq,
    pub(super) tried_revokes: BTreeSet<u64>,
    pub(super) revoked: BTreeSet<u64>,
    recalling: Vec<(u64, oneshot::Receiver<Result<Revoked, Rejection>>)>,
    waiting: BTreeMap<String, Vec<oneshot::Receiver<Result<Accepted, Rejection>>>>,
    sent_acks: BTreeMap<u64, DeviceAck>,
    sent_changes: BTreeMap<u32, VecDeque<Change>>,
    sent_hellos: BTreeMap<u32, VecDeque<bool>>,
    /// Who is logged in, as the device was told last.
    accounts: BTreeMap<u32, Option<AccountDigest>>,
}

/// Events by their place: the sequence, and which of its record.
pub(super) type History = BTreeMap<(Seq, usize), StreamEvent>;

/// Events of one read in their places.
pub(super) fn placed(events: Vec<(Seq, StreamEvent)>) -> History {
    let mut history = History::new();
    for (seq, event) in events {
        let before = history.range((seq, 0)..).count();
        history.insert((seq, before), event);
    }
    history
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
            Step::See { n, push_on, lost, attributes: which } => {
                let mut device = seen(*n);
                device.push_on = *push_on;
                device.state_lost = *lost;
                device.attributes = attributes(*which);
                // As shards ask before they tell.
                if harness.is_current(&device) {
                    return Ok(());
                }
                self.tried_switches.extend(push_on.map(|on| (*n, on)));
                self.tried_lost.extend(lost.then_some(*n));
                self.sent_hellos.entry(*n).or_default().push_back(*lost);
                harness.apply(Command::Seen { device: Box::new(device), session: session(*n) })
            }
            Step::Change { n, change } => {
                if let Change::Push(on) = change {
                    self.tried_switches.push((*n, *on));
                }
                self.sent_changes.entry(*n).or_default().push_back(change.clone());
                let (device, change) = (super::support::device(*n), Box::new(change.clone()));
                harness.apply(Command::Change { device, session: session(*n), change })
            }
            Step::Active(n) => {
                let active = vec![(super::support::device(*n), harness.now)];
                harness.apply(Command::LastActive(active))
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
                self.pull(harness, *n);
                Ok(())
            }
            Step::Sent(n) => {
                let sent = self.pull(harness, *n).into_iter().map(|pulled| SentAlone {
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
                    self.events.extend(placed(events));
                }
                Ok(())
            }
            Step::AckStream => {
                self.acked_to = self.read_to;
                harness.apply(Command::StreamAck { stream: "main".into(), cursor: self.read_to })
            }
            Step::Checkpoint => harness.checkpoint(),
            Step::Revoke(message) => {
                let (reply, answer) = oneshot::channel();
                self.tried_revokes.insert(*message);
                self.recalling.push((*message, answer));
                harness.apply(Command::Revoke { app: app(), message: MessageId(*message), reply })
            }
        }
    }

    /// What a device is given must be for who is logged in, as it was told.
    fn pull(&mut self, harness: &Harness<SimDisk>, n: u32) -> Vec<Pulled> {
        let pulled = harness.pull(n);
        let told = self.accounts.get(&n).copied().flatten();
        for entry in &pulled {
            let account = self.account_of(entry);
            if account.is_some() && account != told {
                let batch = entry.batch.id.as_str();
                self.broken.push(format!("device {n} got {batch} of {account:?}, and {told:?} is bound"));
            }
        }
        pulled
    }

    /// The account that a pulled entry's target was resolved from.
    pub(super) fn account_of(&self, entry: &Pulled) -> Option<AccountDigest> {
        let batch = self.tried.get(entry.batch.id.as_str())?;
        batch.accounts.get(entry.ordinal as usize).copied().flatten()
    }

    fn told_change(&mut self, n: u32, result: Result<(), ChangeError>) {
        let change = self.sent_changes.entry(n).or_default().pop_front();
        match change {
            None => self.broken.push(format!("device {n} was answered once more than it asked")),
            // Who is forgotten has to say Hello again.
            Some(_) if result.is_err() && !CONNECTED.contains(&n) => {}
            Some(_) if result.is_err() => self.broken.push(format!("device {n}: {result:?}")),
            Some(Change::Bind(binding)) => {
                if let Binding::Account(account) = &binding {
                    self.accounts.insert(n, Some(account_digest(account)));
                }
                self.told_bound.push((n, binding));
            }
            Some(Change::Unbind(Unbind::Account(account))) => {
                let bound = self.accounts.entry(n).or_default();
                *bound = bound.filter(|bound| *bound != account_digest(&account));
            }
            Some(_) => {}
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
                    if self.sent_hellos.entry(session.slot).or_default().pop_front() == Some(true) {
                        self.accounts.insert(session.slot, None);
                    }
                }
                Told::Changed(session, result) => self.told_change(session.slot, result),
                Told::Ended(device, seq, reason) => self.ended.push((device, seq, reason)),
                Told::Batch(..) | Told::Refused(_) | Told::AckRefused(_) | Told::Revoked(_) => {}
            }
        }
        for (message, answer) in &mut self.recalling {
            if let Ok(Ok(_)) = answer.try_recv() {
                self.revoked.insert(*message);
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
