//! Copies what the store counts into the process's metrics: after a commit, about once a second, so that no figure shows before the records
//! it rests on are durable. Counters start at 0 with the process, as Prometheus expects, although the store's totals go on over restarts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::stats::StoreStats;
use crate::push::{Counts, Failure, Millis};
use crate::telemetry::{self, Counter, Gauge, Outcome, Receipt};

/// Milliseconds between two exports.
const EVERY_MS: Millis = 1_000;

/// What was exported last.
#[derive(Debug)]
pub(super) struct Exporter {
    totals: Counts,
    damaged: u64,
    bodies_read: u64,
    row_reads: u64,
    gap_events: u64,
    next: Millis,
    /// Something happened since.
    owes: bool,
}

impl Exporter {
    /// Begins with the totals that a start found: what was before this process is not counted again.
    pub(super) fn new(totals: Counts) -> Self {
        Self { totals, damaged: 0, bodies_read: 0, row_reads: 0, gap_events: 0, next: 0, owes: true }
    }

    /// Whether it is time again.
    pub(super) fn is_due(&mut self, now: Millis) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + EVERY_MS;
            self.owes = false;
        }
        due
    }

    /// Something happened that was not exported.
    pub(super) fn owe(&mut self) {
        self.owes = true;
    }

    /// When it has to be, if nothing happens before.
    pub(super) fn due(&self) -> Option<Millis> {
        self.owes.then_some(self.next)
    }

    /// Exports the differences since the last time, and the gauges.
    pub(super) fn export(&mut self, totals: Counts, stats: &StoreStats) {
        let old = std::mem::replace(&mut self.totals, totals);
        let new = &self.totals;
        let add = |counter, new: u64, old: u64| telemetry::add(counter, new.saturating_sub(old));
        add(Counter::Outcomes(Outcome::Arrived), new.arrived, old.arrived);
        for reason in Failure::ALL {
            let at = reason as usize - 1;
            add(Counter::Outcomes(reason.into()), new.failed[at], old.failed[at]);
        }
        let failed = |counts: &Counts| counts.failed.iter().sum();
        add(Counter::Receipts(Receipt::Sent), new.sent, old.sent);
        add(Counter::Receipts(Receipt::SentFail), failed(new), failed(&old));
        add(Counter::Receipts(Receipt::Arrive), new.arrived, old.arrived);
        add(Counter::Receipts(Receipt::Click), new.clicked, old.clicked);
        add(Counter::Receipts(Receipt::Clean), new.cleaned, old.cleaned);
        add(Counter::Late, new.late, old.late);
        let figure = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let (damaged, bodies_read) = (figure(&stats.damaged), figure(&stats.body_reads));
        add(Counter::DamagedRecords, damaged, std::mem::replace(&mut self.damaged, damaged));
        add(Counter::BodiesRead, bodies_read, std::mem::replace(&mut self.bodies_read, bodies_read));
        let row_reads = figure(&stats.device_row_reads);
        add(Counter::DeviceRowReads, row_reads, std::mem::replace(&mut self.row_reads, row_reads));
        let gap_events = figure(&stats.gap_events);
        add(Counter::GapEvents, gap_events, std::mem::replace(&mut self.gap_events, gap_events));
        telemetry::set(Gauge::Pending, figure(&stats.pending) as f64);
        telemetry::set(Gauge::Devices, figure(&stats.devices) as f64);
        telemetry::set(Gauge::DeviceRows, figure(&stats.device_rows) as f64);
        telemetry::set(Gauge::Messages, figure(&stats.messages) as f64);
        telemetry::set(Gauge::JournalBytes, figure(&stats.journal_bytes) as f64);
        telemetry::set(Gauge::JournalLiveBytes, figure(&stats.live_bytes) as f64);
        telemetry::set(Gauge::StoreRoom, 1.0 - figure(&stats.disk_full) as f64);
    }
}

/// A commit group was synced.
pub(super) fn committed(micros: u64, bytes: u64) {
    telemetry::add(Counter::Commits, 1);
    telemetry::add(Counter::CommitBytes, bytes);
    telemetry::observe(telemetry::Timer::Commit, micros as f64 / 1e6);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_exported_at_once_and_then_once_a_second() {
        let mut exporter = Exporter::new(Counts::default());
        let begin = 1_800_000_000_000;
        let due: Vec<Millis> = (0..3_500).filter(|after| exporter.is_due(begin + after)).collect();
        assert_eq!(due, [0, 1_000, 2_000, 3_000]);
    }

    #[test]
    fn nobody_wakes_for_figures_that_are_as_they_were() {
        let mut exporter = Exporter::new(Counts::default());
        assert!(exporter.due().is_some() && exporter.is_due(5_000));
        assert_eq!(exporter.due(), None);
        exporter.owe();
        assert_eq!((exporter.due(), exporter.is_due(5_999)), (Some(6_000), false));
        assert!(exporter.is_due(6_000));
        assert_eq!(exporter.due(), None);
    }
}
