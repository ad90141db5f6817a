//! An engine whose turns the bench takes, and what the system says of it meanwhile.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use mooring::clock::Clock;
use mooring::ids::ShardId;
use mooring::push::Millis;
use mooring::store::disk::real::RealDisk;
use mooring::store::engine::Engine;
use mooring::store::stats::StoreStats;
use mooring::store::{Command, DeviceAck};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::common::NOW;

/// Seconds that this process had a core, all its threads together: what others on the machine do makes it wait, and little else.
pub(crate) fn on_cores() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    // Behind the name, which may have anything in it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// Bytes on disk by what they are: journal, checkpoints, tables. Blocks, as segments are preallocated and tables have holes.
pub(crate) fn on_disk(directory: &Path) -> Value {
    use std::os::unix::fs::MetadataExt;
    let (mut journal, mut checkpoint, mut tables) = (0, 0, 0);
    for entry in fs::read_dir(directory).expect("readable") {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("there");
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("checkpoint") {
            // Two are kept.
            checkpoint = metadata.len().max(checkpoint);
        } else if name.starts_with("tables") {
            tables += metadata.blocks() * 512;
        } else {
            journal += metadata.blocks() * 512;
        }
    }
    json!({ "journal_bytes": journal, "checkpoint_bytes": checkpoint, "tables_bytes": tables })
}

/// Microseconds that this thread had a core, as of the last tick.
pub(crate) fn on_core() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok()).expect("a number") / 1_000
}

/// The longest that the store's thread did one thing, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Longest {
    /// Slices of maintenance that copied what is live.
    copying: u64,
    /// Other slices of maintenance.
    maintenance: u64,
    commit: u64,
}

impl Longest {
    pub(crate) fn json(self) -> Value {
        let ms = |micros: u64| micros as f64 / 1_000.0;
        json!({
            "copying_slice_ms": ms(self.copying),
            "maintenance_slice_ms": ms(self.maintenance),
            "commit_ms": ms(self.commit),
        })
    }
}

/// An engine, and how long it took for what.
pub(crate) struct Driven {
    pub(crate) engine: Engine<RealDisk>,
    pub(crate) clock: Clock,
    pub(crate) longest: Longest,
    pub(crate) now: Millis,
}

impl Driven {
    pub(crate) fn new(engine: Engine<RealDisk>) -> Self {
        Self { engine, clock: Clock::new(0), longest: Longest::default(), now: NOW }
    }

    pub(crate) fn stat(&self, of: impl Fn(&StoreStats) -> u64) -> u64 {
        of(self.engine.stats())
    }

    pub(crate) fn copied(&self) -> u64 {
        self.stat(|stats| stats.copied_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn pending(&self) -> u64 {
        self.stat(|stats| stats.pending.load(Ordering::Relaxed))
    }

    pub(crate) fn commit(&mut self) {
        let began = self.clock.micros();
        self.engine.commit(self.now).expect("the disk works");
        self.longest.commit = self.longest.commit.max(self.clock.micros() - began);
    }

    /// A commit, then one slice. Whether there may be more to do.
    pub(crate) fn turn(&mut self) -> bool {
        self.commit();
        let (copied, began) = (self.copied(), self.clock.micros());
        let busy = self.engine.maintain(self.now).expect("the disk works");
        let took = self.clock.micros() - began;
        let longest =
            if self.copied() > copied { &mut self.longest.copying } else { &mut self.longest.maintenance };
        *longest = took.max(*longest);
        busy
    }

    pub(crate) fn settle(&mut self) {
        while self.turn() {}
    }

    pub(crate) fn acks(&mut self, acks: Vec<DeviceAck>) {
        self.engine.apply(self.now, Command::Acks { shard: ShardId(0), acks }).expect("the disk works");
    }

    /// The router has read everything: nothing but what is live holds the journal.
    pub(crate) fn read_stream(&mut self) {
        let cursor = self.engine.stream_bounds("main").expect("there").head;
        let command = Command::StreamAck { stream: "main".into(), cursor };
        self.engine.apply(self.now, command).expect("the disk works");
    }

    pub(crate) fn checkpoint(&mut self) {
        let (reply, _) = oneshot::channel();
        self.engine.apply(self.now, Command::Flush { checkpoint: true, reply }).expect("the disk works");
        self.commit();
    }
}
