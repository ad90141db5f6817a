//! What a soak says in the end.

use std::collections::BTreeMap;

use mooring::cli::output::{self, Paint};
use serde::Serialize;

use super::judge::{Judged, Verdict};
use crate::numbers::rounded;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) scenario: &'static str,
    pub(super) target: &'static str,
    pub(super) transports: Vec<&'static str>,
    pub(super) devices: u32,
    pub(super) guests: u32,
    pub(super) rate: u64,
    pub(super) seed: u64,
    pub(super) warm_up_seconds: u64,
    pub(super) seconds: f64,
    pub(super) batches: u64,
    /// Targets.
    pub(super) sent: u64,
    pub(super) arrived: u64,
    pub(super) expired: u64,
    pub(super) failed_otherwise: u64,
    pub(super) refused: u64,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    /// Second ends that differ from the first.
    pub(super) conflicts: u64,
    /// Written in time and read too late: acknowledged, not shown.
    pub(super) expired_on_arrival: u64,
    /// Sessions of those that stay that broke.
    pub(super) reconnects: u64,
    pub(super) guest_sessions: u64,
    pub(super) series: BTreeMap<String, Figure>,
}

/// One series.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figure {
    pub(super) median: f64,
    pub(super) per_hour: f64,
    pub(super) scatter: f64,
    pub(super) verdict: &'static str,
}

pub(super) fn series(judged: &[(&str, Judged)]) -> BTreeMap<String, Figure> {
    let figure = |judged: &Judged| Figure {
        median: rounded(judged.median),
        per_hour: rounded(judged.per_hour),
        scatter: rounded(judged.scatter),
        verdict: judged.verdict.label(),
    };
    judged.iter().map(|(name, judged)| ((*name).to_owned(), figure(judged))).collect()
}

impl Report {
    /// What must not be, in words; empty if all is well.
    pub(super) fn wrong(&self) -> Vec<String> {
        let grows = self.series.iter().filter(|(_, figure)| figure.verdict == Verdict::Grows.label());
        let counts = [
            (self.lost, "lost"),
            (self.duplicates, "came twice"),
            (self.failed_otherwise, "failed, not by expiring"),
            (self.refused, "refused"),
            (self.conflicts, "ended twice"),
            (self.reconnects, "sessions broke of those that stay"),
        ];
        let counts = counts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
        grows.map(|(name, _)| format!("{name} grows")).chain(counts).collect()
    }

    /// On standard output: tables, or one JSON line.
    pub(super) fn print(&self, json: bool) {
        if json {
            return output::line(&serde_json::to_string(self).unwrap_or_default());
        }
        output::line(&self.series_table(Paint::stdout()));
        let value = serde_json::to_value(self).unwrap_or_default();
        let counts = value.as_object().into_iter().flatten().filter(|(_, v)| v.is_u64());
        let rows: Vec<_> = counts.map(|(name, v)| (name.replace('_', " "), v.to_string())).collect();
        output::line(&output::table(&rows));
    }

    fn series_table(&self, paint: Paint) -> String {
        let width = self.series.keys().map(String::len).max().unwrap_or(0);
        let head = format!("  {:<width$}  {:>12}  {:>12}  {:>12}", "series", "median", "per hour", "scatter");
        let row = |(name, figure): (&String, &Figure)| {
            let [median, per_hour, scatter] =
                [figure.median, figure.per_hour, figure.scatter].map(|value| amount(name, value));
            let verdict = if figure.verdict == Verdict::Grows.label() {
                paint.bad(figure.verdict)
            } else {
                paint.good(figure.verdict)
            };
            format!(
                "  {:<width$}  {median:>12}  {per_hour:>12}  {scatter:>12}  {verdict}",
                name.replace('_', " ")
            )
        };
        let rows = std::iter::once(paint.strong(&head)).chain(self.series.iter().map(row));
        rows.collect::<Vec<_>>().join("\n")
    }
}

/// A number as a person reads it.
fn amount(name: &str, value: f64) -> String {
    if !name.ends_with("_bytes") {
        return format!("{value:.2}");
    }
    format!("{:.2} MiB", value / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let judged = |verdict| Judged { median: 10_485_760.0, per_hour: 0.0, scatter: 1.0, verdict };
        Report {
            scenario: "soak",
            target: "mooring",
            transports: vec!["tls"],
            devices: 1,
            guests: 1,
            rate: 1,
            seed: 1,
            warm_up_seconds: 1,
            seconds: 1.0,
            batches: 1,
            sent: 2,
            arrived: 1,
            expired: 1,
            failed_otherwise: 0,
            refused: 0,
            lost: 0,
            duplicates: 0,
            conflicts: 0,
            expired_on_arrival: 0,
            reconnects: 0,
            guest_sessions: 1,
            series: series(&[("disk_bytes", judged(Verdict::Flat)), ("rss_bytes", judged(Verdict::Flat))]),
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_nothing_else() {
        assert!(report().wrong().is_empty());
        let mut bad = Report { lost: 2, duplicates: 1, ..report() };
        bad.series.get_mut("rss_bytes").expect("there").verdict = Verdict::Grows.label();
        assert_eq!(bad.wrong(), ["rss_bytes grows", "2 lost", "1 came twice"]);
    }

    #[test]
    fn bytes_are_shown_in_mebibytes() {
        let table = report().series_table(Paint::none());
        assert!(
            table.lines().nth(2).is_some_and(|l| l.contains("rss bytes") && l.contains("10.00 MiB")),
            "{table}"
        );
    }
}
