//! What goes wrong, and what operators do about it: time that leaps, connections that break, processes that die and start again.

use std::sync::atomic::Ordering;

use mooring::ids::HistoryId;
use mooring::sim::{Edge, Pipe, START};
use mooring::store::disk::sim::Loss;
use mooring::store::{AppChange, Command};
use rand::Rng;
use tokio::sync::oneshot;

use super::chance::once_in;
use super::device::Device;
use super::oracle::ensure;
use super::router::{APPS, Router};
use super::{Parts, World, app};

/// How the process dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Death {
    /// The process alone.
    Process,
    /// The power, and what that leaves.
    Power(Loss),
}

impl World {
    pub(super) fn pass_time(&mut self) {
        let rng = &mut self.chances.schedule;
        let micros: u64 = match rng.random_range(0..100) {
            0..60 => rng.random_range(0..20_000),
            60..97 => rng.random_range(0..200_000),
            97 | 98 => rng.random_range(0..2_000_000),
            _ => rng.random_range(0..10_000_000),
        };
        // Sessions report their activity that often at least: no step takes longer where something rests on it.
        let longest = match self.plan.store.forget_after_ms {
            0 => u64::MAX,
            after => after * 1_000 / 16,
        };
        let micros = micros.min(longest);
        self.time.micros.fetch_add(micros, Ordering::Relaxed);
        let rng = &mut self.chances.clock;
        if !self.is_calm && once_in(rng, 200) {
            self.wall_off = match rng.random_range(0..3) {
                0 => 0,
                1 => rng.random_range(-5_000..5_000),
                _ => rng.random_range(-3_600_000..3_600_000),
            };
            let off = self.wall_off;
            self.note(format_args!("the wall clock is {off} ms off"));
        }
        let wall = (START + self.now()).saturating_add_signed(self.wall_off);
        self.time.wall.store(wall, Ordering::Relaxed);
    }

    pub(super) fn break_things(&mut self) {
        if let Some(percent) = self.memory.press(&mut self.chances.memory) {
            self.note(format_args!("others have {percent} percent of the memory"));
        }
        let rng = &mut self.chances.process;
        if self.edge.is_some() && once_in(rng, 120) {
            let loss = match rng.random_range(0..4) {
                0 => Loss::All,
                1 => Loss::Nothing,
                _ => Loss::Some,
            };
            let death = if rng.random_ratio(1, 3) { Death::Process } else { Death::Power(loss) };
            if rng.random() {
                self.die(death);
            } else {
                // Somewhere in what it writes next.
                self.dies = death;
                let at = self.disk.operations() + rng.random_range(0..40);
                self.disk.crash_at(at);
            }
        }
        let now = self.now();
        if let Some(what) = self.reads.strike(&self.disk, &mut self.chances.reads) {
            self.trace.note(now, format_args!("{what}"));
        }
        let is_quiet = self.edge.as_ref().is_some_and(|edge| !edge.has_staged()) && !self.disk.is_down();
        if let Some(what) = self.damage.strike(&self.disk, is_quiet, &mut self.chances.damage) {
            self.trace.note(now, format_args!("{what}"));
        }
        self.back_up();
        let rng = &mut self.chances.network;
        for device in &mut self.devices {
            if device.has_link() && once_in(rng, 120) {
                let cut = rng.random();
                self.trace.note(now, format_args!("{} is cut off", device.id));
                device.disconnect(now, mooring::client::device::End::Broken, cut, &mut self.oracle);
                let longest = if once_in(rng, 5) { 60_000 } else { 4_000 };
                device.connect_at += rng.random_range(0..longest);
            }
            let after = self.plan.store.forget_after_ms;
            if after > 0 && once_in(&mut self.chances.forgetting, 150) {
                let away = self.chances.forgetting.random_range(0..after * 4);
                self.trace.note(now, format_args!("{} goes away for {away} ms", device.id));
                device.disconnect(
                    now,
                    mooring::client::device::End::Broken,
                    away.is_multiple_of(2),
                    &mut self.oracle,
                );
                device.connect_at = now + away;
            }
            if device.has_link() && once_in(rng, 200) {
                self.trace.note(now, format_args!("{} connects anew", device.id));
                device.forget_connection(now, &mut self.oracle);
            }
            if once_in(rng, 100) {
                for ghost in device.ghosts.drain(..) {
                    ghost.cut();
                }
            }
        }
        for router in &mut self.routers {
            if router.has_link() && once_in(rng, 150) {
                self.trace.note(now, format_args!("{} is cut off", router.name));
                router.disconnect(now, rng.random_range(0..3_000));
            }
        }
    }

    /// Operators change their minds, and the disk has no room for a while.
    pub(super) fn operate(&mut self) {
        let now = self.now();
        let (rng, oracle) = (&mut self.chances.operators, &mut self.oracle);
        for (number, is_suspended) in self.is_suspended.iter_mut().enumerate() {
            if once_in(rng, if *is_suspended { 20 } else { 400 })
                && let Some(edge) = &self.edge
            {
                *is_suspended = !*is_suspended;
                oracle.suspends = true;
                let change = if *is_suspended { AppChange::Suspend } else { AppChange::Resume };
                self.trace.note(now, format_args!("{}: {change:?}", APPS[number]));
                let (reply, _) = oneshot::channel();
                // If the queue is full, or the edge dies before, he says it again some time.
                drop(edge.submit(Command::ControlApp { app: app(number), change, reply }));
            }
        }
        if once_in(&mut self.chances.disk, 200) {
            let room =
                (!self.chances.disk.random::<bool>()).then(|| self.chances.disk.random_range(0..100_000));
            self.trace.note(now, format_args!("the disk has {room:?} bytes of room"));
            self.disk.set_capacity(room.map(|room| self.disk.used() + room));
        }
    }

    /// The process is gone, and with it everything that was not on the disk.
    pub(super) fn die(&mut self, death: Death) {
        self.crashes += 1;
        self.note(format_args!("the edge dies: {death:?}"));
        self.edge = None;
        self.leaving.is_over();
        self.newest.clear();
        if death != Death::Process {
            self.lost_power = true;
            self.devices.iter_mut().for_each(|device| device.look_at_unread(&mut self.oracle));
        }
        match death {
            Death::Process => self.disk.kill(),
            Death::Power(loss) => self.disk.crash_with(loss, &mut self.chances.disk),
        }
        // What the kernel has may still arrive, unless the machine is gone too.
        let mut end = |pipe: &Pipe| {
            if death == Death::Process && self.chances.process.random() {
                pipe.edge_died();
            } else {
                pipe.cut();
            }
        };
        self.devices.iter().flat_map(Device::pipes).for_each(&mut end);
        self.routers.iter().filter_map(Router::pipe).for_each(end);
        self.start_at = self.now() + self.chances.process.random_range(0..3_000);
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        self.put_back()?;
        if !self.is_calm && once_in(&mut self.chances.process, 4) {
            // It doesn't get far.
            let at = self.disk.operations() + self.chances.process.random_range(0..12);
            self.disk.crash_at(at);
            self.dies = if self.chances.process.random() { Death::Process } else { Death::Power(Loss::Some) };
        }
        self.raise_epoch();
        if !self.is_calm {
            self.reads.strike_start(&self.disk, &mut self.chances.reads);
        }
        if self.parts == Parts::Vary {
            self.plan.part_targets = self.chances.parts.random_range(1..8);
        }
        let used = (!self.lost_power).then(|| self.disk.used());
        if let Some(changed) = self.settings.change(&mut self.plan, used, &mut self.chances.settings) {
            self.note(format_args!("{changed}"));
        }
        let failed_reads = self.disk.failed_reads();
        // Never the same twice.
        self.plan.store.history = HistoryId::new(self.disk.operations() + 1 + self.restore.lost_operations);
        match Edge::start(&self.disk, &self.time, &self.plan) {
            Ok(edge) => {
                let report = edge.report();
                let (head, pending) = (report.journal.head, report.pending);
                let is_damaged = edge.says_damaged();
                ensure!(!is_damaged || self.damage.flipped > 0, "damage that nobody did: {report:?}");
                if is_damaged {
                    self.oracle.found_damaged();
                }
                for (first, last) in report.journal.corrupt.iter().filter_map(|damage| damage.lost) {
                    self.trace.note(
                        self.time.micros.load(Ordering::Relaxed) / 1_000,
                        format_args!("lost are {first} to {last}"),
                    );
                    self.oracle.lost(first.0, last.0);
                }
                let checkpoint = report.checkpoint;
                self.note(format_args!(
                    "the edge starts at {head} (checkpoint {checkpoint}), {pending} pending"
                ));
                self.leaving.check(&edge, self.oracle.is_damaged())?;
                self.check_revocations(&edge)?;
                self.oracle.known.begin_life(head.0, edge.now());
                self.edge = Some(edge);
                self.lost_power = false;
                self.ticked = vec![0; self.plan.shards];
            }
            Err(_) if self.disk.is_down() => {
                let dies = self.dies;
                self.die(dies);
            }
            // It doesn't take what it can't read for what isn't there: an operator looks after the disk.
            Err(error) if self.disk.failed_reads() > failed_reads => {
                self.note(format_args!("the edge can't start: {error}"));
                self.disk.fail_reads_between(0..0);
                self.start_at = self.now() + 1_000;
            }
            // Allocations that were not durable are gone, and somebody else has the room: an operator makes some.
            Err(error) if ["disk is full", "no space"].iter().any(|why| error.to_string().contains(why)) => {
                self.note(format_args!("the edge can't start: {error}"));
                self.disk.set_capacity(None);
                self.start_at = self.now() + 1_000;
            }
            Err(error) if self.damage.heal(&self.disk) => {
                self.note(format_args!("the edge doesn't start, and the tables are put back: {error}"));
                self.start_at = self.now() + 1_000;
            }
            Err(error) => return Err(format!("the edge can't start: {error}")),
        }
        Ok(())
    }
}
