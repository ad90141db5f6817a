//! Whether the budget's sums are near the truth: what the kernel counts for this process, beside what the parts of the budget say, while the store fills
//! up with devices, with entries, and with single messages that arrive. On the disk of the working directory; memory is the same in every build.
//! `cargo bench --bench memory -- 100000` for another number of each than 300,000.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::Command as Process;
use std::sync::Arc;

use common::{NOW, NoSink, ack, batch, key, resident, seen, session};
use mooring::budget::{Budget, Part};
use mooring::ids::{DeviceKey, ShardId};
use mooring::store::Command;
use mooring::store::disk::real::RealDisk;
use mooring::store::engine::Engine;
use mooring::store::options::StoreOptions;
use tokio::sync::oneshot;

const GROUP: usize = 1_000;
/// Entries a device, of batches with so many targets.
const LISTED: usize = 8;
const TARGETS: usize = 10_000;

/// An engine, and what was there before anything is put into it.
struct Measured {
    engine: Engine<RealDisk>,
    budget: Arc<Budget>,
    resident: f64,
    counted: f64,
}

impl Measured {
    fn new(directory: &Path) -> Self {
        let (disk, _) = RealDisk::open(directory, None).expect("opens");
        let budget = Arc::new(Budget::default());
        let options = StoreOptions {
            checkpoint_bytes: u64::MAX,
            body_cache_bytes: 1024 * 1024,
            // Not what is measured, and at most so many bytes more.
            table_cache_bytes: 1024 * 1024,
            budget: budget.clone(),
            ..StoreOptions::default()
        };
        let opened = Engine::open(disk, &options, Box::new(NoSink), Box::new(|_| true));
        let engine = opened.expect("opens").0;
        let counted = budget.used() as f64;
        Self { engine, budget, resident: resident() as f64, counted }
    }

    fn settle(&mut self) {
        loop {
            self.engine.commit(NOW).expect("the disk works");
            if !self.engine.maintain(NOW).expect("the disk works") {
                return;
            }
        }
    }

    fn say(&mut self, what: &str, count: usize) {
        // As often as there are parts: a share of them is measured each time.
        for _ in 0..256 {
            self.settle();
        }
        let (resident, counted) =
            (resident() as f64 - self.resident, self.budget.used() as f64 - self.counted);
        let each = |bytes: f64| bytes / count as f64;
        let parts = Part::ALL.iter().filter(|part| self.budget.part(**part) >= count);
        let parts: Vec<_> = parts
            .map(|part| format!("{} {:.0}", part.label(), each(self.budget.part(*part) as f64)))
            .collect();
        println!(
            "{what}: resident {:.0} bytes each, counted {:.0} ({}): factor {:.2}",
            each(resident),
            each(counted),
            parts.join(", "),
            resident / counted
        );
    }

    fn register(&mut self, devices: usize) {
        for first in (0..devices).step_by(GROUP) {
            for n in first..devices.min(first + GROUP) {
                let device = Box::new(seen(n as u64));
                self.engine.apply(NOW, Command::Seen { device, session: session() }).expect("the disk works");
            }
            self.settle();
        }
    }

    fn deliver(&mut self, message: u64, targets: &[DeviceKey]) {
        let (reply, _answer) = oneshot::channel();
        let batch = batch(&format!("batch-{message}"), message, targets);
        self.engine.apply(NOW, Command::Deliver { batch, reply }).expect("the disk works");
    }

    fn arrive(&mut self, message: u64, device: DeviceKey) {
        let acks = vec![ack(device, message)];
        self.engine.apply(NOW, Command::Acks { shard: ShardId(0), acks }).expect("the disk works");
    }
}

/// Devices, then entries of large batches in their lists.
fn lists(directory: &Path, devices: usize) {
    let mut store = Measured::new(directory);
    store.register(devices);
    store.say("a device", devices);
    for message in 1..=LISTED as u64 {
        for (n, first) in (0..devices).step_by(TARGETS).enumerate() {
            let targets: Vec<_> = (first..devices.min(first + TARGETS)).map(|n| key(n as u64)).collect();
            store.deliver(message * 1_000_000 + n as u64, &targets);
            store.settle();
        }
    }
    store.say("a device with 8 entries", devices);
}

/// Messages to one device each, which then arrive.
fn singles(directory: &Path, messages: usize) {
    let mut store = Measured::new(directory);
    let devices = 1_000.min(messages);
    store.register(devices);
    for message in 0..messages {
        store.deliver(1 + message as u64, &[key((message % devices) as u64)]);
        if message % GROUP == 0 {
            store.settle();
        }
    }
    store.say("a message to one device", messages);
    for message in 0..messages {
        store.arrive(1 + message as u64, key((message % devices) as u64));
        if message % GROUP == 0 {
            store.settle();
        }
    }
    store.say("a message that has arrived", messages);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, phase, directory, count] = &args[..] {
        let count = count.parse().expect("a number");
        match phase.as_str() {
            "lists" => lists(Path::new(directory), count),
            _ => singles(Path::new(directory), count),
        }
        return;
    }
    let count: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(300_000);
    // Each in a process of its own: what one has freed is no part of the next one's memory.
    for phase in ["lists", "singles"] {
        let directory = tempfile::tempdir_in(".").expect("a directory");
        let program = std::env::current_exe().expect("a path");
        let status = Process::new(program).arg(phase).arg(directory.path()).arg(count.to_string()).status();
        assert!(status.expect("it runs").success());
    }
}
