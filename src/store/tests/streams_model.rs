//! Streams crashed everywhere: a reader that is too slow, a hard bound that is always near, and a configuration under which the apps change
//! their streams. Whatever happens, what the readers stored, what can be read, and what gaps say is missing are together every event, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::plan::START;
use super::streams::{of_other, other, other_device, see_all};
use super::support::{Harness, ack, app, batch, of_messages};
use crate::ids::{Seq, ShardId};
use crate::push::{Event, ReceiptGap, StreamEvent};
use crate::store::Command;
use crate::store::disk::crash::{CrashTest, everywhere};
use crate::store::disk::sim::{Loss, SimDisk};
use crate::store::engine::StoreFailure;
use crate::store::options::StoreOptions;

const STREAMS: [&str; 2] = ["main", "second"];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A message that arrives, of the one or the other app.
    Event(u64, bool),
    /// A whole run with the apps' streams exchanged begins.
    Exchange,
    Read(usize),
    Ack(usize),
    Settle,
    Checkpoint,
    Drop(usize),
}

#[derive(Debug)]
struct Model(Vec<Step>);

impl Model {
    fn new(seed: u64, length: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let step = |number: usize| match rng.random_range(0..100) {
            0..2 => Step::Exchange,
            2..8 => Step::Read(rng.random_range(0..2)),
            8..12 => Step::Ack(rng.random_range(0..2)),
            12..32 => Step::Settle,
            32..34 => Step::Checkpoint,
            34 => Step::Drop(rng.random_range(0..2)),
            _ => Step::Event(number as u64 + 1, rng.random_bool(0.5)),
        };
        Self((0..length).map(step).collect())
    }
}

fn options(exchanged: bool) -> StoreOptions {
    let of = |at: usize| Arc::from(STREAMS[at]);
    StoreOptions {
        segment_bytes: 2 * 1024,
        checkpoint_bytes: 3 * 1024,
        stream_soft_bytes: u64::MAX,
        stream_hard_bytes: 5 * 1024,
        streams: STREAMS.iter().map(|name| (*name).into()).collect(),
        app_streams: [(app(), of(usize::from(exchanged))), (other(), of(usize::from(!exchanged)))].into(),
        ..super::support::small()
    }
}

/// What a router has stored of one stream.
#[derive(Clone, Debug, Default)]
struct Router {
    events: BTreeMap<Seq, StreamEvent>,
    gaps: BTreeMap<Seq, ReceiptGap>,
    read_to: Seq,
}

impl Router {
    /// Stores what was read behind `after`: in order, no gap twice, and none that says of something else.
    fn store(&mut self, after: Seq, read: Vec<(Seq, StreamEvent)>) -> Result<(), String> {
        let mut last = after;
        for (seq, event) in read {
            if seq <= last {
                return Err(format!("{seq} after {last}"));
            }
            match event {
                StreamEvent::Gap(gap) => {
                    if gap.last != seq || gap.events == 0 || gap.first > gap.last {
                        return Err(format!("at {seq}: {gap:?}"));
                    }
                    if gap.first <= last && gap.first > Seq(after.0 + 1) {
                        return Err(format!("{gap:?} overlaps what was read before it, up to {last}"));
                    }
                    self.gaps.retain(|_, old| old.last < gap.first || old.first > gap.last);
                    self.gaps.insert(gap.first, *gap);
                }
                // Which devices there are is no concern of this one.
                StreamEvent::Device(_) => {}
                event => {
                    self.events.insert(seq, event);
                }
            }
            last = seq;
        }
        Ok(())
    }

    /// Events that are known of, or known to be missing.
    fn sum(&self) -> u64 {
        let missing = |seq: &Seq| self.gaps.values().any(|gap| (gap.first..=gap.last).contains(seq));
        let known = self.events.keys().filter(|seq| !missing(seq)).count() as u64;
        known + self.gaps.values().map(of_messages).sum::<u64>()
    }
}

#[derive(Clone, Debug, Default)]
struct Promised {
    exchanged: bool,
    routers: [Router; 2],
}

impl Promised {
    fn step(&mut self, harness: &mut Harness<SimDisk>, step: Step) -> Result<(), StoreFailure> {
        match step {
            Step::Event(message, others) => {
                let mut new = batch(&format!("b{message}"), message, &[0], START, 3_600_000);
                new.body = vec![7; 200].into();
                let mut one = ack(0, 1, &[(message, Event::Arrive)], START);
                if others {
                    (new, one.device) = (of_other(new, 0), other_device(0));
                }
                let (reply, _) = tokio::sync::oneshot::channel();
                let rejected = harness.figure("rejected");
                harness.apply(Command::Deliver { batch: Box::new(new), reply })?;
                // What found no room doesn't arrive: there may be room for the ack all the same, as that has some made.
                if harness.figure("rejected") > rejected {
                    return Ok(());
                }
                harness.apply(Command::Acks { shard: ShardId(0), acks: vec![one] })
            }
            Step::Read(at) => {
                let router = &mut self.routers[at];
                let bounds = harness.engine.stream_bounds(STREAMS[at]).expect("configured");
                // One that was away begins where it left off.
                let from = router.read_to.max(bounds.oldest);
                if let Ok(read) = harness.try_stream_of(STREAMS[at], from) {
                    router.store(from, read).expect("in order");
                    router.read_to = bounds.head;
                }
                Ok(())
            }
            Step::Ack(at) => {
                let cursor = self.routers[at].read_to;
                harness.apply(Command::StreamAck { stream: STREAMS[at].into(), cursor })
            }
            Step::Settle => harness.settle(),
            Step::Checkpoint => harness.checkpoint(),
            Step::Drop(at) => {
                let (reply, _) = tokio::sync::oneshot::channel();
                harness.apply(Command::RetireStream { stream: STREAMS[at].into(), force: true, reply })
            }
            Step::Exchange => Ok(()),
        }
    }
}

fn open(disk: &SimDisk, exchanged: bool) -> Result<Harness<SimDisk>, String> {
    Harness::try_open(&Arc::new(disk.clone()), &options(exchanged), START).map_err(|error| error.to_string())
}

impl CrashTest for Model {
    type Promised = Promised;

    fn run(&self, disk: &SimDisk) -> Promised {
        let mut promised = Promised::default();
        let Ok(mut harness) = open(disk, false) else { return promised };
        if see_all(&mut harness).is_err() {
            return promised;
        }
        for step in &self.0 {
            if matches!(step, Step::Exchange) {
                if harness.commit().is_err() {
                    break;
                }
                drop(harness);
                promised.exchanged = !promised.exchanged;
                match open(disk, promised.exchanged) {
                    Ok(opened) => harness = opened,
                    Err(_) => break,
                }
            } else if promised.step(&mut harness, *step).is_err() {
                break;
            }
        }
        promised
    }

    fn open(&self, disk: &SimDisk) {
        drop(open(disk, true));
    }

    fn check(&self, disk: &SimDisk, promised: &Promised, rng: &mut SmallRng) -> Result<(), String> {
        let mut promised = promised.clone();
        let mut harness = open(disk, rng.random())?;
        if harness.report.left_out > 0 {
            return Err(format!("damage: {:?}", harness.report));
        }
        see_all(&mut harness).map_err(|error| error.to_string())?;
        holds_all(&mut harness, &mut promised)?;
        // It goes on, and crashes once more.
        for message in 1_000..1_010 {
            let step = Step::Event(message, rng.random());
            promised.step(&mut harness, step).map_err(|error| error.to_string())?;
        }
        harness.settle().map_err(|error| error.to_string())?;
        drop(harness);
        disk.crash_with(Loss::Some, rng);
        holds_all(&mut open(disk, rng.random())?, &mut promised)
    }
}

/// Each router comes back to its durable cursor, and reads the rest.
fn holds_all(harness: &mut Harness<SimDisk>, promised: &mut Promised) -> Result<(), String> {
    harness.settle().map_err(|error| error.to_string())?;
    let mut seen: BTreeSet<Seq> = BTreeSet::new();
    let mut sum = 0;
    for (name, router) in STREAMS.iter().zip(&mut promised.routers) {
        let bounds = harness.engine.stream_bounds(name).map_err(|error| error.to_string())?;
        let read = |from| harness.try_stream_of(name, from).map_err(|error| format!("{name}: {error}"));
        let rest = read(bounds.cursor)?;
        // A rewind says the same.
        let all = read(bounds.oldest)?;
        let tail: Vec<_> = all.iter().filter(|(seq, _)| *seq > bounds.cursor).cloned().collect();
        if tail != rest {
            return Err(format!("{name}: a rewind reads {tail:?}, the cursor {rest:?}"));
        }
        router.store(bounds.cursor, rest)?;
        for seq in router.events.keys() {
            if !seen.insert(*seq) {
                return Err(format!("{seq} is in two streams"));
            }
        }
        sum += router.sum();
    }
    let totals = harness.totals();
    if sum != totals.arrived {
        return Err(format!("{} arrived, the streams say {sum}: {:?}", totals.arrived, promised.routers));
    }
    Ok(())
}

fn holds(seed: u64, length: usize) {
    let boundaries = everywhere(seed, &SimDisk::new(), &Model::new(seed, length));
    let boundaries = boundaries.unwrap_or_else(|violation| panic!("{violation}"));
    println!("seed {seed}: {boundaries} boundaries");
}

#[test]
fn no_event_is_lost_unsaid_wherever_it_crashes_1() {
    holds(1, 120);
}

#[test]
fn no_event_is_lost_unsaid_wherever_it_crashes_2() {
    holds(2, 160);
}

#[test]
fn a_run_has_gaps_of_every_kind() {
    for seed in 1..=2 {
        let disk = SimDisk::new();
        let promised = Model::new(seed, 160).run(&disk);
        let gaps: usize = promised.routers.iter().map(|router| router.gaps.len()).sum();
        let events: usize = promised.routers.iter().map(|router| router.events.len()).sum();
        println!("seed {seed}: {gaps} gaps, {events} events");
        assert!(gaps > 1 && events > 10, "seed {seed}: {gaps} gaps, {events} events");
    }
}
