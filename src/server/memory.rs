//! How much memory there is, and who may have which share of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::budget::{Budget, Held, Part, State};
use crate::config::{Config, memory_base, memory_floor};
use crate::limits;
use crate::presence::CHANGE_BYTES;
use crate::telemetry::{self, Gauge};

const MIB: u64 = 1024 * 1024;
/// Bytes of a batch id that is remembered, and of a push record that is in the tables only, about.
const BATCH_ID_BYTES: u64 = 256;
const MESSAGE_BYTES: u64 = 96;
/// Batch ids that are remembered however small the budget is: an answer with as many refused targets as can be stands for 800 of them, and there are
/// 256 parts. With fewer, one such answer would drive out those of the last moments, and batches that were never taken would be refused as too old.
const LEAST_BATCH_IDS: usize = 4 * 800 * 256;
/// Percent of the machine's memory, or of the cgroup's, that the budget is if nobody says.
const OF_MACHINE: u64 = 75;
/// Percent of the budget that parts may have which say so in bytes.
const BODIES: u64 = 12;
const PUSH_RECORDS: u64 = 12;
const DEVICE_ROWS: u64 = 12;
const TABLES: u64 = 6;
const BEGUN_FRAMES: u64 = 6;
const COMMANDS: u64 = 12;
const ROUTER_FRAMES: u64 = 2;
const LINKS: u64 = 6;
const BATCH_IDS: u64 = 15;
const MESSAGES: u64 = 6;
const PRESENCE: u64 = 3;

/// The budget, and what is used of it from the start.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) budget: Arc<Budget>,
    /// Bytes of commands that may wait for the store.
    pub(super) command_bytes: usize,
    /// Bytes of large frames of routers.
    pub(super) frame_bytes: usize,
    /// Bytes that wait to be written on one router link.
    pub(super) link_bytes: usize,
    /// Changes of presence.
    pub(super) presence_changes: usize,
    /// The program and the tables' pages, as long as it runs.
    _fixed: [Held; 2],
}

impl Memory {
    /// Makes the budget of a process, and cuts what the configuration gives to its parts to their share of it.
    pub(super) fn of(config: &mut Config) -> Self {
        let floor = memory_floor(config.shards);
        let budget = match config.memory.budget_bytes {
            0 => (available(&read) / 100 * OF_MACHINE).max(floor),
            bytes => bytes,
        };
        let share = |percent: u64| budget / 100 * percent;
        fit(config, budget);
        let accounts = Arc::new(Budget::new(usize::try_from(budget).unwrap_or(usize::MAX)));
        let fixed = |part, bytes: u64| {
            let mut held = accounts.hold(part);
            held.set(bytes as usize);
            held
        };
        let base = resident().unwrap_or(0).max(memory_base(config.shards));
        let tables = config.store.table_cache_bytes;
        let refused_at = accounts.mark(State::Full);
        tracing::info!(budget, base, tables, refused_at, "memory: the budget, and where batches are refused");
        Self {
            command_bytes: share(COMMANDS).min(limits::STORE_COMMAND_BYTES as u64) as usize,
            frame_bytes: share(ROUTER_FRAMES) as usize,
            link_bytes: share(LINKS) as usize / limits::ROUTER_LINKS,
            presence_changes: (share(PRESENCE) as usize / CHANGE_BYTES).min(limits::PRESENCE_CHANGES),
            _fixed: [fixed(Part::Base, base), fixed(Part::Tables, tables)],
            budget: accounts,
        }
    }
}

/// Batch ids that are remembered at most where there is memory for so many.
fn batch_ids(affordable: u64, part_targets: usize) -> usize {
    LEAST_BATCH_IDS.max(limits::least_batch_ids(part_targets)).max(affordable as usize)
}

/// What parts may hold is within their share, whatever is configured: else one of them could use up what all have.
fn fit(config: &mut Config, budget: u64) {
    let mut cut = Vec::new();
    let mut within = |key: &'static str, bytes: &mut u64, percent: u64| {
        let most = budget / 100 * percent;
        if *bytes > most {
            cut.push(format!("{key} {most}"));
            *bytes = most;
        }
    };
    let store = &mut config.store;
    within("store.body_cache_bytes", &mut store.body_cache_bytes, BODIES);
    within("store.message_cache_bytes", &mut store.message_cache_bytes, PUSH_RECORDS);
    within("store.device_cache_bytes", &mut store.device_cache_bytes, DEVICE_ROWS);
    within("store.table_cache_bytes", &mut store.table_cache_bytes, TABLES);
    let mut ids = store.max_batch_ids as u64 * BATCH_ID_BYTES;
    within("store.max_batch_ids (bytes)", &mut ids, BATCH_IDS);
    store.max_batch_ids =
        store.max_batch_ids.min(batch_ids(ids / BATCH_ID_BYTES, config.router.part_targets));
    let mut messages = store.max_messages * MESSAGE_BYTES;
    within("store.max_messages (bytes)", &mut messages, MESSAGES);
    store.max_messages = messages / MESSAGE_BYTES;
    let mut begun = (config.device.max_begun_bytes * config.shards) as u64;
    within("device.max_begun_bytes (of all shards)", &mut begun, BEGUN_FRAMES);
    config.device.max_begun_bytes = begun as usize / config.shards.max(1);
    if !cut.is_empty() {
        let cut = cut.join(", ");
        tracing::info!(budget, cut, "memory.budget_bytes bounds what the configuration gives to parts");
    }
}

/// Copies what is held into the metrics.
pub(super) fn publish(budget: &Budget) {
    for part in Part::ALL {
        telemetry::set(Gauge::Memory(*part), budget.part(*part) as f64);
    }
    telemetry::set(Gauge::MemoryBudget, budget.bytes() as f64);
    telemetry::set(Gauge::MemoryState, f64::from(budget.look() as u8));
    if let Some(bytes) = resident() {
        telemetry::set(Gauge::MemoryResident, bytes as f64);
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// What the kernel counts for this process.
fn resident() -> Option<u64> {
    kilobytes(&read(Path::new("/proc/self/status"))?, "VmRSS:")
}

/// The value of a line such as `MemTotal:       16303428 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The machine's memory, or less where a cgroup allows less; 1 GiB where nobody tells.
fn available(read: &dyn Fn(&Path) -> Option<String>) -> u64 {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| kilobytes(&text, "MemTotal:"));
    let group = read(Path::new("/proc/self/cgroup")).and_then(|text| group_limit(&text, read));
    machine.into_iter().chain(group).min().unwrap_or(1024 * MIB)
}

/// The least of the limits of a process's cgroups, of either version, and of those that they are in.
fn group_limit(groups: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let of_group = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let full = PathBuf::from(root).join(path.trim_start_matches('/'));
        // In a container the path may be the host's, which isn't there; the root always is.
        let inside = full.ancestors().take_while(|path| path.starts_with(root));
        inside.filter_map(|path| read(&path.join(file))?.trim().parse::<u64>().ok()).min()
    };
    groups.lines().filter_map(of_group).min()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn available_with(files: &[(&str, &str)]) -> u64 {
        let files: HashMap<PathBuf, String> =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        available(&|path| files.get(path).cloned())
    }

    #[test]
    fn however_little_memory_there_is_the_ids_of_a_batchs_parts_have_room() {
        assert_eq!(batch_ids(0, limits::PART_TARGETS), LEAST_BATCH_IDS);
        assert_eq!(batch_ids(1_000_000, limits::PART_TARGETS), 1_000_000);
        assert_eq!(batch_ids(1_000_000, 10), 2_764_800);
    }

    #[test]
    fn the_least_limit_counts() {
        let machine = ("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n");
        assert_eq!(available_with(&[]), 1024 * MIB);
        assert_eq!(available_with(&[machine]), 8_192 * MIB);
        let v2 = ("/proc/self/cgroup", "0::/system.slice/mooring.service\n");
        let no_limit = ("/sys/fs/cgroup/system.slice/mooring.service/memory.max", "max\n");
        assert_eq!(available_with(&[machine, v2, no_limit]), 8_192 * MIB);
        let outer = ("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n");
        assert_eq!(available_with(&[machine, v2, no_limit, outer]), 1_024 * MIB);
        let container = ("/sys/fs/cgroup/memory.max", "536870912\n");
        assert_eq!(available_with(&[machine, v2, container]), 512 * MIB);
        let v1 = ("/proc/self/cgroup", "3:cpu,cpuacct:/\n2:memory:/docker/1\n");
        let limit = ("/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "268435456\n");
        assert_eq!(available_with(&[machine, v1, limit]), 256 * MIB);
        let unlimited = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(available_with(&[machine, v1, unlimited]), 8_192 * MIB);
    }
}
