//! The closed list of metrics, and logs.
//!
//! Job: one place that names every series ([`Counter`], [`Gauge`], [`Timer`]), so that names, units and label sets can be
//! reviewed on one screen, and a hot path pays an atomic add. Handles are registered once, at [`install`]; before that every call is a
//! no-op, so that machines and tests need no set-up.
//!
//! Invariants: every label set is closed, by an enum, the number of shards or the configured streams; no label is chosen by a peer.
//!
//! The recorder is not the process's global one: so no dependency can add series, and a look-up by name never happens. Rejected: the
//! `metrics` macros at each place of use (a name is then spelt in many files, and each call hashes it).

mod histogram;
mod labels;
mod list;
mod log;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use metrics::{Key, KeyName, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use self::histogram::Histograms;
pub use self::histogram::Timer;
pub use self::labels::{
    AppLimit, BatchResult, Direction, HandshakeResult, Label, MemoryPart, MemoryRefusal, Outcome, Receipt,
    RegistrationResult, RouterLinkEnd, RouterTransport, SessionEnd, TargetResult, Transport,
};
use self::list::Family;
pub use self::list::{Counter, Gauge};
pub use self::log::{Format, LogError, check_filter, log};
use crate::ids::ShardId;
use crate::limits;

static REGISTRY: OnceLock<Registry> = OnceLock::new();
const METADATA: Metadata<'static> = Metadata::new("mooring", Level::INFO, None);
const STREAM_BACKLOG: &str = "mooring_stream_backlog_records";
const STREAM_PINNED: &str = "mooring_stream_pinned_bytes";

/// All handles. A series of a lazy label (a shard) is registered at its first use.
struct Registry {
    recorder: PrometheusRecorder,
    counters: Vec<Box<[OnceLock<metrics::Counter>]>>,
    gauges: Vec<Box<[OnceLock<metrics::Gauge>]>>,
    histograms: Histograms,
    /// Longest turn of each shard since the last scrape: bits of a non-negative f64, which order as the numbers do.
    longest_turns: Box<[AtomicU64]>,
    /// Backlog and bytes held back of each stream.
    streams: RwLock<Vec<(Arc<str>, metrics::Gauge, metrics::Gauge)>>,
}

/// Makes all series exist and counting begin. Calling it again gives another handle to the same.
pub fn install() -> Renderer {
    let registry = REGISTRY.get_or_init(Registry::new);
    Renderer { handle: registry.recorder.handle() }
}

/// Adds to a counter.
#[inline]
pub fn add(counter: Counter, by: u64) {
    let (family, series) = counter.place();
    if let Some(registry) = REGISTRY.get()
        && let Some(slot) = registry.counters[family].get(series)
    {
        slot.get_or_init(|| registry.counter(&Counter::FAMILIES[family], series)).increment(by);
    }
}

/// Sets a gauge.
#[inline]
pub fn set(gauge: Gauge, to: f64) {
    with_gauge(gauge, |handle| handle.set(to));
}

/// Adds to a gauge, or takes from it.
#[inline]
pub fn adjust(gauge: Gauge, by: i64) {
    with_gauge(gauge, |handle| handle.increment(by as f64));
}

/// Adds an observation, in seconds (or targets, for [`Timer::FanoutTargets`]).
#[inline]
pub fn observe(timer: Timer, value: f64) {
    if let Some(registry) = REGISTRY.get() {
        registry.histograms.observe(timer, value);
    }
}

/// Adds a turn of a shard to [`Timer::Turn`] and to the shard's longest since the last scrape.
#[inline]
pub fn observe_turn(shard: ShardId, seconds: f64) {
    if let Some(registry) = REGISTRY.get() {
        registry.histograms.observe(Timer::Turn, seconds);
        if let Some(longest) = registry.longest_turns.get(shard.position()) {
            longest.fetch_max(seconds.max(0.0).to_bits(), Ordering::Relaxed);
        }
    }
}

/// Adds streams to the closed label set of streams: those of the configuration, and those that wait to be retired.
pub fn configure_streams(names: &[Arc<str>]) {
    let Some(registry) = REGISTRY.get() else { return };
    let mut streams = registry.streams.write().unwrap_or_else(PoisonError::into_inner);
    for name in names {
        if streams.iter().all(|(known, ..)| known != name) {
            let label = metrics::Label::new("stream", name.to_string());
            let gauge = |family| {
                let key = Key::from_parts(family, vec![label.clone()]);
                registry.recorder.register_gauge(&key, &METADATA)
            };
            streams.push((name.clone(), gauge(STREAM_BACKLOG), gauge(STREAM_PINNED)));
        }
    }
}

/// Sets how many journal records lie between a stream's durable cursor and the head, and how many bytes are held back for it. A stream that
/// was not configured is ignored.
pub fn set_stream(stream: &str, records: u64, pinned_bytes: u64) {
    let Some(registry) = REGISTRY.get() else { return };
    let streams = registry.streams.read().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, backlog, pinned)) = streams.iter().find(|(name, ..)| &**name == stream) {
        backlog.set(records as f64);
        pinned.set(pinned_bytes as f64);
    }
}

#[inline]
fn with_gauge(gauge: Gauge, change: impl FnOnce(&metrics::Gauge)) {
    let (family, series) = gauge.place();
    if let Some(registry) = REGISTRY.get()
        && let Some(slot) = registry.gauges[family].get(series)
    {
        change(slot.get_or_init(|| registry.gauge(&Gauge::FAMILIES[family], series)));
    }
}

/// Turns the metrics into text.
#[derive(Clone)]
pub struct Renderer {
    handle: PrometheusHandle,
}

impl fmt::Debug for Renderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renderer")
    }
}

impl Renderer {
    /// The text exposition format of Prometheus, version 0.0.4. It starts the next period of [`Gauge::LongestTurn`]: so
    /// whoever else reads this port takes those from the scraper.
    pub fn render(&self) -> String {
        let Some(registry) = REGISTRY.get() else { return String::new() };
        for (shard, longest) in (0u16..).map(ShardId).zip(&registry.longest_turns) {
            let bits = longest.swap(0, Ordering::Relaxed);
            let (family, series) = Gauge::LongestTurn(shard).place();
            if bits != 0 || registry.gauges[family][series].get().is_some() {
                set(Gauge::LongestTurn(shard), f64::from_bits(bits));
            }
        }
        let mut text = self.handle.render();
        registry.histograms.render(&mut text);
        text
    }
}

impl Registry {
    fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for family in Counter::FAMILIES {
            recorder.describe_counter(KeyName::from_const_str(family.name), None, family.help.trim().into());
        }
        for family in Gauge::FAMILIES {
            recorder.describe_gauge(KeyName::from_const_str(family.name), None, family.help.trim().into());
        }
        let help = SharedString::const_str("Journal records between a stream's durable cursor and the head.");
        recorder.describe_gauge(KeyName::from_const_str(STREAM_BACKLOG), None, help);
        let help = SharedString::const_str("Bytes of the journal held back for a stream's reader.");
        recorder.describe_gauge(KeyName::from_const_str(STREAM_PINNED), None, help);
        let registry = Self {
            counters: Counter::FAMILIES.iter().map(slots).collect(),
            gauges: Gauge::FAMILIES.iter().map(slots).collect(),
            recorder,
            histograms: Histograms::default(),
            longest_turns: (0..limits::SHARDS).map(|_| AtomicU64::new(0)).collect(),
            streams: RwLock::default(),
        };
        for (family, slots) in Counter::FAMILIES.iter().zip(&registry.counters) {
            for (series, slot) in slots.iter().enumerate().filter(|_| is_eager(family)) {
                slot.get_or_init(|| registry.counter(family, series));
            }
        }
        for (family, slots) in Gauge::FAMILIES.iter().zip(&registry.gauges) {
            for (series, slot) in slots.iter().enumerate().filter(|_| is_eager(family)) {
                slot.get_or_init(|| registry.gauge(family, series));
            }
        }
        registry
    }

    fn counter(&self, family: &Family, series: usize) -> metrics::Counter {
        self.recorder.register_counter(&key(family, series), &METADATA)
    }

    fn gauge(&self, family: &Family, series: usize) -> metrics::Gauge {
        self.recorder.register_gauge(&key(family, series), &METADATA)
    }
}

fn slots<T>(family: &Family) -> Box<[OnceLock<T>]> {
    let count = family.label.as_ref().map_or(1, |label| label.count);
    (0..count).map(|_| OnceLock::new()).collect()
}

fn is_eager(family: &Family) -> bool {
    family.label.as_ref().is_none_or(|label| label.eager)
}

fn key(family: &Family, series: usize) -> Key {
    let labels = family.label.iter().map(|label| metrics::Label::new(label.key, (label.text)(series)));
    Key::from_parts(family.name, labels.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::push::Failure;

    #[test]
    fn every_series_is_there_from_the_start_and_shards_when_used() {
        // Other tests of this process count too: only shards that no other test uses are compared.
        let renderer = install();
        add(Counter::Outcomes(Failure::Revoked.into()), 3);
        add(Counter::Deliveries(ShardId(201)), 5);
        add(Counter::Deliveries(ShardId(9_999)), 5);
        set(Gauge::ShardSessions(ShardId(202)), 7.0);
        adjust(Gauge::ShardSessions(ShardId(202)), -2);
        observe_turn(ShardId(203), 0.5);
        observe_turn(ShardId(203), 0.25);
        configure_streams(&["main".into()]);
        set_stream("main", 12, 34);
        set_stream("other", 12, 34);
        let text = renderer.render();
        for line in [
            "mooring_outcomes_total{outcome=\"revoked\"} 3",
            "mooring_outcomes_total{outcome=\"storage\"} 0",
            "mooring_deliveries_total{shard=\"201\"} 5",
            "mooring_shard_sessions{shard=\"202\"} 5",
            "mooring_longest_turn_seconds{shard=\"203\"} 0.5",
            "mooring_stream_backlog_records{stream=\"main\"} 12",
            "mooring_stream_pinned_bytes{stream=\"main\"} 34",
            "# HELP mooring_handshakes_total Device handshakes that ended, by result.",
            "# TYPE mooring_turn_seconds histogram",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
        // As labels: a sum of seconds may end in any digits.
        assert!(!text.contains("\"9999\"") && !text.contains("\"other\""), "{text}");
        assert!(renderer.render().contains("mooring_longest_turn_seconds{shard=\"203\"} 0\n"));
    }

    #[test]
    fn names_follow_the_conventions() {
        for family in Counter::FAMILIES {
            assert!(
                family.name.starts_with("mooring_") && family.name.ends_with("_total"),
                "{}",
                family.name
            );
        }
        for family in Gauge::FAMILIES {
            assert!(
                family.name.starts_with("mooring_") && !family.name.ends_with("_total"),
                "{}",
                family.name
            );
        }
        let mut names: Vec<_> = Counter::FAMILIES.iter().chain(Gauge::FAMILIES).map(|f| f.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::FAMILIES.len() + Gauge::FAMILIES.len());
    }
}
