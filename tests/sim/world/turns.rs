//! Who has a turn when: peers first, then the edge's parts in any order.

use std::net::SocketAddr;

use mooring::push::Millis;
use mooring::sim::{Pipe, START, Stamp};
use rand::Rng;

use super::World;
use super::chance::once_in;
use super::faults::Death;
use super::oracle::ensure;
use super::plan::room;
use super::router::{Router, STREAMS};

/// How often a shard's timers fire, milliseconds.
const TICK_MS: Millis = 100;
/// How often presence is gathered, milliseconds.
const GATHER_MS: Millis = 1_000;

/// Something that the edge may do next.
#[derive(Clone, Copy, Debug)]
enum Part {
    Store,
    Bodies,
    Turn(usize, bool),
    Connection(usize, u64),
    Link(usize),
    Presence,
}

impl World {
    /// Peers do what they do.
    pub(super) fn act(&mut self) -> Result<(), String> {
        let now = self.now();
        let clock = START + now;
        let is_calm = self.is_calm;
        let is_leaving = self.leaving.has_begun();
        let Self { devices, routers, edge, chances, oracle, trace, batches, names, .. } = self;
        let note = &mut |what: String| trace.note(now, format_args!("{what}"));
        if let Some(edge) = edge {
            oracle.edge_now = oracle.edge_now.max(edge.now());
        }
        for device in devices {
            if !is_calm {
                device.change_mood(now, &mut chances.devices);
            }
            if let Some(edge) = edge
                && !device.has_link()
                && !is_leaving
                && now >= device.connect_at
            {
                let shard = chances.network.random_range(0..edge.shards().len());
                let pipe = Pipe::new(room(&mut chances.network));
                if edge.accept(shard, &pipe, SocketAddr::from(([127, 0, 0, 1], 1_000))) {
                    note(format!("{} connects to shard {shard}", device.id));
                    device.connected(now, pipe, edge.head(), oracle);
                }
            }
            if !is_calm && let Some(words) = device.ask(now, &mut chances.devices, oracle) {
                note(words);
            }
            device.act(now, is_calm, (&mut chances.devices, &mut chances.network), oracle, note)?;
        }
        let all = routers.len();
        for (number, router) in routers.iter_mut().enumerate() {
            if !is_calm && once_in(&mut chances.routers, 60) {
                router.revoke(&mut chances.routers, oracle);
            }
            if !is_calm && once_in(&mut chances.routers, all as u32 * if batches.heavy { 2 } else { 6 }) {
                router.think(clock, *batches, names, &mut chances.routers, oracle);
            }
            if !is_calm && once_in(&mut chances.routers, 40) {
                router.repeat(&mut chances.routers, oracle);
            }
            if !is_calm && once_in(&mut chances.routers, 200) {
                let longest = if oracle.may_have_gaps { 60_000 } else { 10_000 };
                router.stop_reading(now + chances.routers.random_range(0..longest));
            }
            if let Some(edge) = edge
                && !router.has_link()
                && !is_leaving
                && now >= router.connect_at
            {
                let pipe = Pipe::new(room(&mut chances.network));
                if edge.link(&router.name, &pipe) {
                    // In the end each stream has one reader; before, whoever wants takes it.
                    let mut takes = |at: usize| {
                        if is_calm { at % all == number } else { all == 1 || chances.routers.random() }
                    };
                    let mine = (0..batches.apps).filter(|at| takes(*at)).map(|at| STREAMS[at]);
                    let mine: Vec<_> = mine.collect();
                    router.connected(pipe, &mine, oracle, &mut chances.routers);
                }
            }
            router.act(now, is_calm, (&mut chances.routers, &mut chances.network), oracle, note)?;
        }
        Ok(())
    }

    /// The edge does some of what it could do, in any order.
    pub(super) fn drive(&mut self) -> Result<(), String> {
        let now = self.now();
        let Some(edge) = &mut self.edge else { return Ok(()) };
        edge.fire_timers();
        let (edge_now, step) = (edge.now(), self.oracle.step);
        for device in &self.devices {
            device.pipes().for_each(|pipe| pipe.set_now(Stamp { step, edge: edge_now }));
        }
        let mut parts = vec![Part::Store, Part::Bodies];
        for (number, shard) in edge.shards().iter_mut().enumerate() {
            let timers = now >= self.ticked[number] + TICK_MS;
            if timers || shard.is_due() {
                parts.push(Part::Turn(number, timers));
            }
            parts.extend(shard.woken().into_iter().map(|task| Part::Connection(number, task)));
        }
        parts.extend(edge.woken_links().into_iter().map(Part::Link));
        if now >= self.gather_at && self.routers.iter().any(Router::follows) {
            self.gather_at = now + GATHER_MS;
            parts.push(Part::Presence);
        }
        let rng = &mut self.chances.schedule;
        for at in (1..parts.len()).rev() {
            parts.swap(at, rng.random_range(0..=at));
        }
        for part in parts {
            if !self.is_calm && once_in(&mut self.chances.schedule, 6) {
                continue;
            }
            let Some(edge) = &mut self.edge else { return Ok(()) };
            match part {
                Part::Store => {
                    if let Err(failure) = edge.store_turn() {
                        let healed = !self.disk.is_down() && self.damage.heal(&self.disk);
                        let is_down = self.disk.is_down();
                        // The library of the tables takes nothing any more once a read has failed.
                        let said = failure.to_string();
                        let is_unread = said.contains("the simulated read failed")
                            || (self.reads.happen
                                && ["Previous I/O error", "Database has been closed"]
                                    .iter()
                                    .any(|why| said.contains(why)));
                        ensure!(healed || is_down || is_unread, "the store failed: {failure}");
                        let dies = if is_down || healed { self.dies } else { Death::Process };
                        self.die(dies);
                    }
                }
                Part::Bodies => edge.read_bodies(),
                Part::Turn(shard, timers) => {
                    edge.shards()[shard].turn(timers);
                    if timers {
                        self.ticked[shard] = now;
                    }
                }
                Part::Connection(shard, task) => edge.shards()[shard].poll(task),
                Part::Link(link) => edge.poll_link(link),
                Part::Presence => edge.gather_presence(),
            }
        }
        Ok(())
    }
}
