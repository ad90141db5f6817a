//! The edge leaves in order now and then, as on SIGTERM: devices, then routers, and last the store. What was durable by then is all there is.

use mooring::push::{Counts, Millis};
use mooring::sim::{Edge, Pipe};
use mooring::store::Command;
use mooring::store::disk::sim::Loss;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;

use super::World;
use super::chance::once_in;
use super::device::Device;
use super::oracle::ensure;
use super::router::Router;

/// Milliseconds that links get to say what they have to say.
const DRAIN_MS: Millis = 10_000;
/// Milliseconds, and steps, in which it has left.
const LEFT_MS: Millis = 60_000;
const LEFT_STEPS: u64 = 400;

/// See the module.
pub(crate) struct Leaving {
    happens: bool,
    stage: Stage,
    begun: (Millis, u64),
    /// What it had counted at its end.
    left_with: Option<Counts>,
}

enum Stage {
    Serves,
    /// Devices are sent away.
    Devices,
    /// What they said becomes durable.
    Flush(oneshot::Receiver<()>),
    /// Routers hear of it, until then.
    Links(Millis),
    LastFlush(oneshot::Receiver<()>),
}

impl Leaving {
    /// Perhaps, if `may` be.
    pub(crate) fn new(may: bool, rng: &mut SmallRng) -> Self {
        Self { happens: rng.random() && may, stage: Stage::Serves, begun: (0, 0), left_with: None }
    }

    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Serves)
    }

    /// The process is gone, whatever it was about.
    pub(crate) fn is_over(&mut self) {
        self.stage = Stage::Serves;
    }

    /// After a start: what it had counted when it left, it counts now.
    pub(crate) fn check(&mut self, edge: &Edge, is_damaged: bool) -> Result<(), String> {
        if let Some(before) = self.left_with.take().filter(|_| !is_damaged) {
            let now = edge.totals();
            ensure!(now == before, "after it had left in order {now:?}, before {before:?}");
        }
        Ok(())
    }
}

fn flush(edge: &Edge, checkpoint: bool) -> Option<oneshot::Receiver<()>> {
    let (reply, done) = oneshot::channel();
    edge.submit(Command::Flush { checkpoint, reply }).ok().map(|()| done)
}

impl World {
    /// Begins to leave now and then, and goes on with it.
    pub(super) fn leave(&mut self) -> Result<(), String> {
        let (now, step) = (self.now(), self.oracle.step);
        let Some(edge) = &mut self.edge else { return Ok(()) };
        let Leaving { happens, stage, begun, .. } = &mut self.leaving;
        let is_flushed = match stage {
            Stage::Flush(done) | Stage::LastFlush(done) => done.try_recv().is_ok(),
            _ => false,
        };
        let next = match stage {
            Stage::Serves if *happens && !self.is_calm && once_in(&mut self.chances.leaving, 150) => {
                let window = self.chances.leaving.random_range(0..5_000);
                self.trace.note(now, format_args!("the edge leaves within {window} ms"));
                edge.leave(window);
                *begun = (now, step);
                Some(Stage::Devices)
            }
            Stage::Devices if edge.devices_have_left() => flush(edge, false).map(Stage::Flush),
            Stage::Flush(_) if is_flushed => {
                edge.close_links();
                Some(Stage::Links(now + DRAIN_MS))
            }
            Stage::Links(until) if edge.links_have_left() || now >= *until => {
                flush(edge, true).map(Stage::LastFlush)
            }
            Stage::LastFlush(_) if is_flushed => return self.left(),
            _ => None,
        };
        if let Some(next) = next {
            self.leaving.stage = next;
        }
        let (at, at_step) = self.leaving.begun;
        let is_late = now > at + LEFT_MS && step > at_step + LEFT_STEPS;
        ensure!(!self.leaving.has_begun() || !is_late, "it began to leave at {at}, and hasn't left");
        Ok(())
    }

    /// The last of it: the process ends; and the power may go right behind it.
    fn left(&mut self) -> Result<(), String> {
        let Some(mut edge) = self.edge.take() else { return Ok(()) };
        if let Err(failure) = edge.close() {
            ensure!(self.disk.is_down(), "the store failed: {failure}");
            drop(edge);
            let dies = self.dies;
            self.die(dies);
            return Ok(());
        }
        let totals = edge.totals();
        drop(edge);
        self.note(format_args!("the edge has left: {totals:?}"));
        self.leaving.is_over();
        self.leaving.left_with = Some(totals);
        self.newest.clear();
        let pipes =
            self.devices.iter().flat_map(Device::pipes).chain(self.routers.iter().filter_map(Router::pipe));
        pipes.for_each(Pipe::edge_died);
        if self.chances.leaving.random() {
            self.disk.kill();
        } else {
            self.disk.crash_with(Loss::All, &mut self.chances.leaving);
        }
        self.start_at = self.now() + self.chances.leaving.random_range(0..3_000);
        Ok(())
    }
}
