//! The store's threads; the one that writes the tables is in [`super::tables`]. One owns the engine: it takes everything that has queued up, makes it one commit group, and tells
//! what became of it; so the longer a sync takes, the more commands share the next one. The other reads bodies back: nobody waits for it.

mod bodies;
mod command;

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use self::command::{is_urgent, to_come, weight};
use super::batch::Batch;
use super::disk::Disk;
use super::engine::{Engine, StoreFailure};
use super::metrics::{self, Exporter};
use super::stats::StoreStats;
use super::{Command, Refused};
use crate::budget::{Budget, Held, Part};
use crate::clock::Clock;
use crate::fault::{self, Fault};
use crate::limits;
use crate::push::Millis;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::telemetry::{self, Gauge};

#[cfg(feature = "sim")]
pub(super) use bodies::read_waiting;
pub(super) use bodies::{Wanted, read_bodies, read_body};

/// Microseconds that acks wait for more of them, or for a batch, to share a sync with. They begin with the commit before, if that was just now: so where
/// messages come one behind the other, no ack wakes the thread.
const GATHER_MICROS: u64 = 5_000;
/// Commands that somebody waits for, or bytes, that end the wait for the next sync at once ([`super::options::StoreOptions::sync_spacing_us`]).
const MANY_COMMANDS: usize = 32;
const MANY_BYTES: usize = 64 * 1024;
/// Longest sleep of an idle store: to wake up costs as much as three heartbeats.
const IDLE: Duration = Duration::from_secs(10);

/// Commands waiting for the store's thread.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    filled: Condvar,
    max_bytes: usize,
}

#[derive(Debug)]
struct Queue {
    commands: VecDeque<(Command, usize)>,
    bytes: usize,
    /// What they will take beside that, once they are in the index.
    to_come: usize,
    held: Held,
    damaged: Vec<Arc<Batch>>,
    closed: bool,
    /// Something that the engine waits for has happened since it last looked.
    woken: bool,
    /// Those of them whose sync somebody waits for.
    urgent: usize,
    /// The thread sleeps, and this ends its sleep. Whoever wakes it says so here: waking one that is awake is a system call for nothing.
    asleep: Option<Wakes>,
}

/// What ends the sleep of the store's thread, beside what isn't a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wakes {
    /// Any command.
    Any,
    /// One whose sync somebody waits for, or a whole group.
    Urgent,
    /// As much as is worth a sync of its own.
    Many,
}

impl Queue {
    /// As many of a kind as may wait: batches leave a quarter to acks, ends and everything else.
    fn fits(&self, command: &Command, weight: usize, max_bytes: usize) -> bool {
        let is_batch = matches!(command, Command::Deliver { .. });
        let of = |max: usize| if is_batch { max / 4 * 3 } else { max };
        self.commands.len() < of(limits::STORE_COMMANDS)
            && (self.bytes + weight <= of(max_bytes) || self.commands.is_empty())
    }

    /// Whether there is a reason not to sleep.
    fn has_work(&self, wakes: Wakes) -> bool {
        let commands = match wakes {
            Wakes::Any => !self.commands.is_empty(),
            Wakes::Urgent => self.urgent > 0 || self.bytes >= limits::GROUP_BYTES,
            Wakes::Many => self.urgent >= MANY_COMMANDS || self.bytes >= MANY_BYTES,
        };
        commands || !self.damaged.is_empty() || self.closed || self.woken
    }

    fn count(&mut self) {
        self.held.set(self.bytes + self.to_come);
    }
}

impl Inbox {
    /// For so many bytes.
    pub(super) fn new(budget: &Arc<Budget>, max_bytes: usize) -> Self {
        let queue = Queue {
            commands: VecDeque::new(),
            bytes: 0,
            to_come: 0,
            held: budget.hold(Part::StoreWork),
            damaged: Vec::new(),
            closed: false,
            woken: false,
            urgent: 0,
            asleep: None,
        };
        Self { queue: Mutex::new(queue), filled: Condvar::default(), max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a command in, if there is room.
    pub(super) fn put(&self, command: Command) -> Result<(), Refused> {
        let weight = weight(&command);
        let mut queue = self.lock();
        if queue.closed || !queue.fits(&command, weight, self.max_bytes) {
            return Err(Refused(Box::new(command)));
        }
        queue.bytes += weight;
        queue.to_come += to_come(&command);
        queue.count();
        queue.urgent += usize::from(is_urgent(&command));
        queue.commands.push_back((command, weight));
        self.wake_for_work(queue);
        Ok(())
    }

    /// A batch whose record can't be read. As many as there are body reads at a time.
    fn report_damaged(&self, batch: Arc<Batch>) {
        let mut queue = self.lock();
        if queue.damaged.len() < limits::BODY_READS {
            queue.damaged.push(batch);
        }
        self.wake_for_work(queue);
    }

    /// Something that the engine waits for has happened.
    pub(super) fn wake(&self) {
        let mut queue = self.lock();
        // Kept, for a thread that is just about to sleep.
        queue.woken = !fault::is(Fault::ForgetWake);
        self.wake_for_work(queue);
    }

    /// Ends the thread's sleep, if there is a reason.
    fn wake_for_work(&self, mut queue: MutexGuard<'_, Queue>) {
        let wakes = queue.asleep.is_some_and(|wakes| queue.has_work(wakes));
        if wakes {
            queue.asleep = None;
        }
        drop(queue);
        if wakes {
            self.filled.notify_one();
        }
    }

    /// Nothing more is taken; the thread ends when the queue is empty.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// What waits is never done.
    fn clear(&self) {
        let mut queue = self.lock();
        queue.commands.clear();
        (queue.bytes, queue.to_come, queue.urgent) = (0, 0, 0);
        queue.count();
    }

    /// Whether somebody waits for the sync of something in it.
    fn has_urgent(&self) -> bool {
        self.lock().urgent > 0
    }

    /// Everything that waits, up to one group; sleeps first, unless there is something of what `wakes`. `None`: closed and empty.
    pub(super) fn take(
        &self,
        sleep: Duration,
        wakes: Wakes,
        into: &mut Vec<Command>,
    ) -> Option<Vec<Arc<Batch>>> {
        let mut queue = self.lock();
        if !queue.has_work(wakes) && !sleep.is_zero() {
            if fault::is(Fault::LookThenSleep) {
                drop(queue);
                queue = self.lock();
            }
            queue.asleep = Some(wakes);
            queue = self.filled.wait_timeout(queue, sleep).unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.woken = false;
        queue.asleep = None;
        let mut bytes = 0;
        while bytes < limits::GROUP_BYTES
            && let Some((command, weight)) = queue.commands.pop_front()
        {
            bytes += weight;
            queue.bytes -= weight;
            queue.to_come -= to_come(&command);
            queue.urgent -= usize::from(is_urgent(&command));
            into.push(command);
        }
        queue.count();
        let damaged = std::mem::take(&mut queue.damaged);
        let over = queue.closed && into.is_empty() && damaged.is_empty();
        (!over).then_some(damaged)
    }
}

/// Owns the engine until the inbox is closed and empty, or the journal fails; then nobody reads bodies any more.
pub(super) fn own<D: Disk>(
    engine: Engine<D>,
    inbox: &Inbox,
    wanted: &Wanted,
    clock: &Clock,
    failed: oneshot::Sender<StoreFailure>,
) {
    run(engine, inbox, clock, failed);
    wanted.close();
}

fn run<D: Disk>(mut engine: Engine<D>, inbox: &Inbox, clock: &Clock, failed: oneshot::Sender<StoreFailure>) {
    if let Err(failure) = work(&mut engine, inbox, clock) {
        tracing::error!(%failure, "the store stops; the next start recovers what is durable");
        inbox.close();
        // Commands that wait are never answered: what they ask for is not durable. Their replies see that this end is gone.
        inbox.clear();
        // The server may be on its way out for another reason.
        drop(failed.send(failure));
    }
}

fn work<D: Disk>(engine: &mut Engine<D>, inbox: &Inbox, clock: &Clock) -> Result<(), StoreFailure> {
    let mut turns = Turns::new(engine);
    while turns.turn(engine, inbox, clock, true)? {}
    Ok(())
}

/// The store's work, a turn at a time.
#[derive(Debug)]
pub(super) struct Turns {
    commands: Vec<Command>,
    busy: bool,
    exporter: Exporter,
    /// When what is staged and nobody waits for is committed at the latest, in microseconds of the clock.
    gathering: Option<u64>,
    /// Not before then is the next group taken in, in microseconds of the clock: messages come quicker than syncs.
    spaced: Option<u64>,
    /// When it took in what is to be committed.
    now: Millis,
    /// Whether it took in anything.
    worked: bool,
}

/// What a look into the inbox led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gathered {
    /// It is closed and empty.
    Nothing,
    /// More may come to share the sync.
    Waits,
    /// To be committed now.
    Ready,
}

impl Turns {
    pub(super) fn new<D: Disk>(engine: &Engine<D>) -> Self {
        let exporter = Exporter::new(engine.totals());
        Self {
            commands: Vec::new(),
            busy: false,
            exporter,
            gathering: None,
            spaced: None,
            now: 0,
            worked: false,
        }
    }

    /// Takes what waits, commits it, and does a slice of what is due; before that it sleeps until there is something, if it may. False: the
    /// inbox is closed and empty.
    pub(super) fn turn<D: Disk>(
        &mut self,
        engine: &mut Engine<D>,
        inbox: &Inbox,
        clock: &Clock,
        may_sleep: bool,
    ) -> Result<bool, StoreFailure> {
        match self.gather(engine, inbox, clock, may_sleep)? {
            Gathered::Nothing => engine.commit(clock.now())?,
            Gathered::Waits => return Ok(true),
            Gathered::Ready => {
                self.commit(engine, inbox, clock)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The first half of a turn: takes what waits into the group.
    pub(super) fn gather<D: Disk>(
        &mut self,
        engine: &mut Engine<D>,
        inbox: &Inbox,
        clock: &Clock,
        may_sleep: bool,
    ) -> Result<Gathered, StoreFailure> {
        let (sleep, wakes) = self.pause(engine, clock);
        let sleep = if may_sleep { sleep } else { Duration::ZERO };
        let Some(damaged) = inbox.take(sleep, wakes, &mut self.commands) else {
            return Ok(Gathered::Nothing);
        };
        let now = clock.now();
        self.now = now;
        for batch in &damaged {
            engine.found_damaged(batch);
        }
        self.worked = !damaged.is_empty() || !self.commands.is_empty();
        let mut urgent = !damaged.is_empty();
        for command in self.commands.drain(..) {
            urgent |= is_urgent(&command);
            engine.apply(now, command)?;
        }
        if !urgent && engine.has_staged() && engine.staged_bytes() < limits::GROUP_BYTES {
            let until = *self.gathering.get_or_insert_with(|| clock.micros() + GATHER_MICROS);
            if clock.micros() < until {
                return Ok(Gathered::Waits);
            }
        }
        self.gathering = None;
        Ok(Gathered::Ready)
    }

    /// How long it may sleep before it looks for more, and what wakes it before.
    pub(super) fn pause<D: Disk>(&mut self, engine: &Engine<D>, clock: &Clock) -> (Duration, Wakes) {
        let until = |until: u64| Duration::from_micros(until.saturating_sub(clock.micros()));
        match (self.spaced.take(), self.gathering) {
            _ if self.busy && !engine.has_staged() => (Duration::ZERO, Wakes::Any),
            (Some(spaced), _) => (until(spaced), Wakes::Many),
            (None, Some(gathering)) => (until(gathering), Wakes::Urgent),
            (None, None) if self.busy => (Duration::ZERO, Wakes::Any),
            (None, None) => (self.sleep(engine, clock), Wakes::Any),
        }
    }

    /// The second half: makes the group durable, and does a slice of what is due.
    pub(super) fn commit<D: Disk>(
        &mut self,
        engine: &mut Engine<D>,
        inbox: &Inbox,
        clock: &Clock,
    ) -> Result<(), StoreFailure> {
        let now = self.now;
        let began = clock.micros();
        let bytes = engine.staged_bytes();
        engine.commit(now)?;
        if bytes > 0 {
            let micros = clock.micros() - began;
            metrics::committed(micros, bytes as u64);
            let stats = engine.stats();
            StoreStats::add(&stats.commit_micros, micros);
            stats.commit_micros_max.fetch_max(micros, std::sync::atomic::Ordering::Relaxed);
        }
        if self.exporter.is_due(now) {
            self.exporter.export(engine.totals(), engine.stats());
            telemetry::set(Gauge::StoreQueueCommands, inbox.lock().commands.len() as f64);
        }
        self.busy = engine.maintain(clock.now())?;
        if bytes > 0 || self.worked || self.busy {
            self.exporter.owe();
        }
        let committed = (bytes > 0).then(|| clock.micros());
        self.gathering = committed.map(|at| at + GATHER_MICROS);
        // Who sends one message after the other, each when the one before is accepted, never waits here.
        self.spaced = committed.filter(|_| inbox.has_urgent()).map(|at| at + engine.sync_spacing_us());
        Ok(())
    }

    fn sleep<D: Disk>(&self, engine: &Engine<D>, clock: &Clock) -> Duration {
        if engine.has_staged() {
            return Duration::ZERO;
        }
        let due = engine.next_wakeup().into_iter().chain(self.exporter.due()).min();
        let due = due.map(|at| Duration::from_millis(at.saturating_sub(clock.now())));
        due.map_or(IDLE, |due| due.min(IDLE))
    }
}

#[cfg(test)]
mod tests;
