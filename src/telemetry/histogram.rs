//! Histograms with fixed buckets: an observation is two atomic adds.
//!
//! The recorder's own histograms keep every sample until somebody scrapes, which is a queue without a bound: a server that is not
//! scraped would fill its memory at the rate of its deliveries. So buckets are counted here and rendered beside the recorder's text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of durations, seconds: 10 µs to 10 s.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper bounds of numbers of targets.
const TARGETS: &[f64] = &[1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0];
/// Buckets of the longest list, and the one above it.
const MOST: usize = 20;
/// The sum is kept in billionths, as integers can be added atomically.
const SUM_SCALE: f64 = 1e9;

/// What is measured by its distribution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timer {
    /// A commit group: written and synced.
    Commit,
    /// From acceptance of a message to its device's acknowledgement, only for those written live.
    AcceptToArrive,
    /// From a batch's frame to its answer.
    Accept,
    /// Handing a committed batch over to all shards.
    Fanout,
    /// One turn of a shard.
    Turn,
    /// A device's handshake, from accept to Welcome.
    Handshake,
    /// Targets of a committed batch. A count, not a duration.
    FanoutTargets,
}

const TIMERS: usize = 7;

impl Timer {
    /// All.
    pub const ALL: [Self; TIMERS] = [
        Self::Commit,
        Self::AcceptToArrive,
        Self::Accept,
        Self::Fanout,
        Self::Turn,
        Self::Handshake,
        Self::FanoutTargets,
    ];

    fn describe(self) -> (&'static str, &'static str, &'static [f64]) {
        match self {
            Self::Commit => ("mooring_commit_seconds", "A commit group: written and synced.", SECONDS),
            Self::AcceptToArrive => (
                "mooring_accept_to_arrive_seconds",
                "From acceptance of a message to its device's acknowledgement, if it was written live.",
                SECONDS,
            ),
            Self::Accept => {
                ("mooring_accept_seconds", "From the frame of an accepted batch to its answer.", SECONDS)
            }
            Self::Fanout => {
                ("mooring_fanout_seconds", "Handing a committed batch over to all shards.", SECONDS)
            }
            Self::Turn => ("mooring_turn_seconds", "One turn of a shard.", SECONDS),
            Self::Handshake => {
                ("mooring_handshake_seconds", "A device's handshake, from accept to Welcome.", SECONDS)
            }
            Self::FanoutTargets => {
                ("mooring_fanout_targets", "Accepted targets of a committed batch.", TARGETS)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; MOST],
    sum: AtomicU64,
}

/// All histograms.
#[derive(Debug, Default)]
pub(super) struct Histograms([Histogram; TIMERS]);

impl Histograms {
    pub(super) fn observe(&self, timer: Timer, value: f64) {
        let (_, _, bounds) = timer.describe();
        let histogram = &self.0[timer as usize];
        let bucket = bounds.partition_point(|bound| *bound < value);
        histogram.counts[bucket].fetch_add(1, Ordering::Relaxed);
        // A negative or absent number counts as nothing: `as` saturates.
        #[allow(clippy::cast_sign_loss)]
        histogram.sum.fetch_add((value * SUM_SCALE) as u64, Ordering::Relaxed);
    }

    /// The text exposition format of Prometheus, version 0.0.4: buckets are cumulative.
    pub(super) fn render(&self, out: &mut String) {
        for timer in Timer::ALL {
            let (name, help, bounds) = timer.describe();
            let histogram = &self.0[timer as usize];
            let mut total = 0;
            let mut text = format!("# HELP {name} {help}\n# TYPE {name} histogram\n");
            // Writing to a String can't fail.
            for (count, bound) in histogram.counts.iter().zip(bounds) {
                total += count.load(Ordering::Relaxed);
                writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}").ok();
            }
            total += histogram.counts[bounds.len()].load(Ordering::Relaxed);
            let sum = histogram.sum.load(Ordering::Relaxed) as f64 / SUM_SCALE;
            write!(text, "{name}_bucket{{le=\"+Inf\"}} {total}\n{name}_sum {sum}\n{name}_count {total}\n\n")
                .ok();
            out.push_str(&text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_their_bounds_inclusive() {
        let histograms = Histograms::default();
        for value in [0.000_01, 0.002, 0.002_5, 99.0] {
            histograms.observe(Timer::Commit, value);
        }
        histograms.observe(Timer::FanoutTargets, 100_000.0);
        let mut text = String::new();
        histograms.render(&mut text);
        for line in [
            "mooring_commit_seconds_bucket{le=\"0.00001\"} 1",
            "mooring_commit_seconds_bucket{le=\"0.001\"} 1",
            "mooring_commit_seconds_bucket{le=\"0.0025\"} 3",
            "mooring_commit_seconds_bucket{le=\"10\"} 3",
            "mooring_commit_seconds_bucket{le=\"+Inf\"} 4",
            "mooring_commit_seconds_sum 99.00451",
            "mooring_commit_seconds_count 4",
            "mooring_fanout_targets_bucket{le=\"100000\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_list_of_bounds_fits_and_every_timer_has_its_place() {
        for (position, timer) in Timer::ALL.into_iter().enumerate() {
            assert_eq!(timer as usize, position);
            assert!(timer.describe().2.len() < MOST);
            assert!(timer.describe().2.is_sorted());
        }
    }
}
