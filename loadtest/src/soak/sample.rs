//! What is looked at each second: the process, its files, and what the edge says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hdrhistogram::Histogram;
use mooring::cli::output::Failure;
use mooring::client::admin;

use super::judge::{self, Judged, Point};
use crate::target::Target;

const MIB: f64 = 1_048_576.0;
/// Gauges of the edge that are followed, and their names here.
const GAUGES: [(&str, &str); 4] = [
    ("mooring_journal_bytes", "journal_segment_bytes"),
    ("mooring_journal_live_bytes", "journal_live_bytes"),
    ("mooring_messages", "push_records"),
    ("mooring_devices", "devices_known"),
];
/// Messages of a window without which its percentiles say nothing.
const LEAST_LATENCIES: u64 = 100;

/// All series, by name.
#[derive(Debug, Default)]
pub(super) struct Series(BTreeMap<String, Vec<Point>>);

impl Series {
    /// Looks once, `at` seconds into the measurement.
    pub(super) async fn look(&mut self, target: &Target, at: f64) -> Result<(), Failure> {
        let process = target.process;
        let memory = process.memory()?;
        self.add("rss_bytes", at, memory.rss as f64);
        self.add("pss_bytes", at, memory.pss as f64);
        self.add("descriptors", at, process.descriptors()? as f64);
        self.add("threads", at, process.threads()? as f64);
        if let Some(dir) = &target.data_dir {
            let parts = disk(dir).map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
            let all: u64 = parts.values().sum();
            self.add("disk_bytes", at, all as f64);
            for (part, bytes) in parts {
                self.add(&format!("disk_{part}_bytes"), at, bytes as f64);
            }
        }
        if let Some(address) = &target.admin {
            self.look_at_edge(address, at).await?;
        }
        Ok(())
    }

    async fn look_at_edge(&mut self, address: &str, at: f64) -> Result<(), Failure> {
        let memory = admin::get_json(address, "/v1/memory").await.map_err(Failure::failed)?;
        let parts = memory["parts"].as_object().into_iter().flatten();
        for (part, bytes) in parts.filter_map(|(part, bytes)| Some((part, bytes.as_f64()?))) {
            self.add(&format!("memory_{part}_bytes"), at, bytes);
        }
        let metrics = admin::get(address, "/metrics").await.map_err(Failure::failed)?.body;
        for (metric, name) in GAUGES {
            let value = gauge(&metrics, metric);
            let value = value.ok_or_else(|| Failure::failed(format!("/metrics has no {metric}")))?;
            self.add(name, at, value);
        }
        Ok(())
    }

    /// What a window's messages took, if they were enough.
    pub(super) fn latencies(&mut self, at: f64, micros: &Histogram<u64>) {
        if micros.len() < LEAST_LATENCIES {
            return;
        }
        for (name, quantile) in [("p50_ms", 0.5), ("p99_ms", 0.99)] {
            self.add(name, at, micros.value_at_quantile(quantile) as f64 / 1_000.0);
        }
    }

    fn add(&mut self, name: &str, at: f64, value: f64) {
        self.0.entry(name.to_owned()).or_default().push((at, value));
    }

    /// The last value of a series.
    pub(super) fn last(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.last().map(|point| point.1)
    }

    pub(super) fn judged(&self) -> Vec<(&str, Judged)> {
        self.0.iter().map(|(name, points)| (name.as_str(), judge::judge(points, least(name)))).collect()
    }
}

/// Growth over a run that doesn't matter: less than what the series moves by anyway.
fn least(name: &str) -> f64 {
    match name {
        "p50_ms" => 0.1,
        "descriptors" => 4.0,
        "p99_ms" | "threads" | "devices_known" => 1.0,
        "push_records" => 100.0,
        // Files grow by whole segments of 4 MiB, or by pages that are taken in advance.
        name if name.starts_with("disk") || name.starts_with("journal") => 4.0 * MIB,
        // What each part counts is exact.
        name if name.starts_with("memory") => MIB / 8.0,
        _ => MIB,
    }
}

/// Bytes that files take, by what they are for.
fn disk(dir: &Path) -> io::Result<BTreeMap<&'static str, u64>> {
    const BLOCK: u64 = 512;
    let mut parts = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let part = match name.to_string_lossy() {
            name if name.ends_with(".redb") => "tables",
            name if name.starts_with("journal-") => "journal",
            name if name.starts_with("checkpoint-") => "checkpoints",
            _ => "other",
        };
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => {
                *parts.entry(part).or_default() += metadata.blocks() * BLOCK;
            }
            Ok(_) => {}
            // Trimmed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parts)
}

/// A gauge without labels in the text of /metrics.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(of, _)| *of == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_summed_by_what_they_are_for() {
        let scratch = mooring::client::local::Scratch::new(None).expect("a directory");
        for name in ["journal-0000000001.seg", "journal-0000000002.seg", "tables.redb", "LOCK"] {
            fs::write(scratch.dir().join(name), vec![1; 8_192]).expect("written");
        }
        fs::create_dir(scratch.dir().join("dev")).expect("made");
        let parts = disk(scratch.dir()).expect("read");
        let names: Vec<_> = parts.keys().copied().collect();
        assert_eq!(names, ["journal", "other", "tables"]);
        assert!(parts["journal"] >= 2 * 8_192 && parts["tables"] >= 8_192, "{parts:?}");
    }

    #[test]
    fn a_gauge_is_found_by_its_whole_name() {
        let text = "# TYPE mooring_messages gauge\nmooring_messages_more 3\nmooring_messages 17\n";
        assert_eq!(gauge(text, "mooring_messages"), Some(17.0));
        assert_eq!(gauge(text, "mooring"), None);
    }

    #[test]
    fn a_window_with_few_messages_has_no_percentiles() {
        let mut micros = Histogram::new(3).expect("bounds that are right");
        let mut series = Series::default();
        micros.record_n(2_000, 99).expect("in bounds");
        series.latencies(1.0, &micros);
        assert_eq!(series.last("p99_ms"), None);
        micros.record(2_000).expect("in bounds");
        series.latencies(1.0, &micros);
        assert!((series.last("p99_ms").expect("a window") - 2.0).abs() < 0.01);
    }
}
