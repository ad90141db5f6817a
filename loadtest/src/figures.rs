//! The figures of one run, under the names that every scenario uses.

use hdrhistogram::Histogram;
use mooring::cli::output::{self, Failure};
use serde::Serialize;

use crate::numbers::{per, rounded};
use crate::report::{Line, Plot, Scale};
use crate::{beside, floor, report, target};

/// One run. What a scenario doesn't measure stays out of the table and is null in JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) scenario: &'static str,
    pub(crate) target: &'static str,
    pub(crate) transport: &'static str,
    pub(crate) devices: u32,
    pub(crate) rss_bytes_per_session: Option<f64>,
    pub(crate) pss_bytes_per_session: Option<f64>,
    /// In the kernel, for the server's end of it; null without root.
    pub(crate) kernel_bytes_per_session: Option<f64>,
    pub(crate) connects_per_s: Option<f64>,
    pub(crate) cpu_us_per_connect: Option<f64>,
    /// Of the server while nothing happens, a session and second.
    pub(crate) idle_cpu_us_per_session_s: Option<f64>,
    pub(crate) deliveries: Option<u64>,
    pub(crate) cpu_us_per_delivery: Option<f64>,
    pub(crate) floor_cpu_us_per_delivery: Option<f64>,
    pub(crate) deliveries_per_s: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) p999_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    /// The same before, without the broadcast beside.
    pub(crate) quiet_p50_ms: Option<f64>,
    pub(crate) quiet_p99_ms: Option<f64>,
    pub(crate) quiet_p999_ms: Option<f64>,
    pub(crate) quiet_max_ms: Option<f64>,
    /// Devices of a broadcast beside.
    pub(crate) beside_devices: Option<u32>,
    /// Its messages, each to all of them.
    pub(crate) beside_messages: Option<u64>,
    /// Accepted of it, each message counted once a device.
    pub(crate) beside_targets: Option<u64>,
    pub(crate) beside_targets_per_s: Option<f64>,
    /// Of a write and fdatasync of as much as a message, on the disk of the temporary directory.
    pub(crate) floor_sync_p50_ms: Option<f64>,
    pub(crate) floor_sync_p99_ms: Option<f64>,
    /// Percent of windows of 5 ms in which a core of the machine does less than half of its best.
    pub(crate) floor_slow_percent: Option<f64>,
    /// From the beginning of a round to the last device; the median.
    pub(crate) last_device_ms: Option<f64>,
    /// The same of bare sockets, to the last acknowledgement.
    pub(crate) floor_last_device_ms: Option<f64>,
    /// Messages for one device each that were accepted for later.
    pub(crate) pointers: Option<u64>,
    pub(crate) pointers_per_s: Option<f64>,
    pub(crate) cpu_us_per_pointer: Option<f64>,
    /// What the journal grew by.
    pub(crate) disk_bytes_per_pointer: Option<f64>,
    /// From the start of the server that was killed until it is ready.
    pub(crate) ready_seconds: Option<f64>,
    /// CPU of the server while its devices came back.
    pub(crate) back_cpu_s: Option<f64>,
    /// CPU of this program during what is measured: the server has what is left of the machine.
    pub(crate) load_cpu_s: Option<f64>,
    pub(crate) lost: u64,
    pub(crate) seconds: f64,
    /// For the report.
    #[serde(skip)]
    pub(crate) plots: Vec<Plot>,
}

/// A load of messages, and what it came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Messages that came, of those that count.
    pub(crate) deliveries: u64,
    /// Those that didn't.
    pub(crate) lost: u64,
    /// Of the server, microseconds.
    pub(crate) cpu_us: u64,
    /// Of this program, microseconds.
    pub(crate) own_cpu_us: u64,
    pub(crate) seconds: f64,
}

impl Figures {
    /// Those of a scenario that has measured nothing yet.
    pub(crate) fn of(scenario: &'static str, args: &target::Args) -> Self {
        Self {
            scenario,
            target: args.target.name(),
            transport: args.transport.name(),
            devices: args.devices,
            ..Self::default()
        }
    }

    /// With what a load came to.
    pub(crate) fn with_load(self, load: Load) -> Self {
        Self {
            deliveries: Some(load.deliveries),
            cpu_us_per_delivery: (load.deliveries > 0).then(|| per(load.cpu_us as f64, load.deliveries)),
            deliveries_per_s: Some(rounded(load.deliveries as f64 / load.seconds.max(1e-9))),
            load_cpu_s: Some(rounded(load.own_cpu_us as f64 / 1e6)),
            lost: load.lost,
            seconds: rounded(load.seconds),
            ..self
        }
    }

    /// With how long messages took, of which there is at least one.
    pub(crate) fn with_latencies(self, micros: &Histogram<u64>) -> Self {
        if micros.is_empty() {
            return self;
        }
        let ms = |quantile: f64| Some(in_ms(micros, quantile));
        let figures = self.with_plots([latencies(micros)]);
        Self { p50_ms: ms(0.5), p99_ms: ms(0.99), p999_ms: ms(0.999), max_ms: ms(1.0), ..figures }
    }

    /// With how long messages took before the broadcast beside began.
    pub(crate) fn with_quiet(self, micros: &Histogram<u64>) -> Self {
        if micros.is_empty() {
            return self;
        }
        let ms = |quantile: f64| Some(in_ms(micros, quantile));
        let Plot { title: _, x, y, lines } = latencies(micros);
        let figures = self.with_plots([Plot { title: "Latency before the broadcast beside", x, y, lines }]);
        Self {
            quiet_p50_ms: ms(0.5),
            quiet_p99_ms: ms(0.99),
            quiet_p999_ms: ms(0.999),
            quiet_max_ms: ms(1.0),
            ..figures
        }
    }

    /// With what a broadcast beside came to. The server's CPU is no longer that of deliveries alone.
    pub(crate) fn with_beside(self, devices: u32, sum: beside::Sum) -> Self {
        Self {
            cpu_us_per_delivery: None,
            beside_devices: Some(devices),
            beside_messages: Some(sum.messages),
            beside_targets: Some(sum.targets),
            beside_targets_per_s: Some(rounded(sum.targets as f64 / sum.seconds.max(1e-9))),
            ..self
        }
    }

    /// With more for the report.
    pub(crate) fn with_plots(mut self, plots: impl IntoIterator<Item = Plot>) -> Self {
        self.plots.extend(plots);
        self
    }

    /// With what the same costs over bare sockets, if that was measured.
    pub(crate) fn with_floor(self, floor: Option<floor::Cost>) -> Self {
        Self { floor_cpu_us_per_delivery: floor.map(|cost| rounded(cost.cpu_us)), ..self }
    }

    /// With how long syncs took, if that was measured.
    pub(crate) fn with_syncs(self, micros: Option<&Histogram<u64>>) -> Self {
        let ms = |quantile: f64| micros.map(|micros| in_ms(micros, quantile));
        Self { floor_sync_p50_ms: ms(0.5), floor_sync_p99_ms: ms(0.99), ..self }
    }

    /// Writes the report, if one is wanted, and says the figures.
    pub(crate) fn publish(&self, args: &target::Args) -> Result<(), Failure> {
        self.print(args.json);
        args.report.as_deref().map_or(Ok(()), |dir| report::write(dir, self, &self.plots))
    }

    /// On standard output: a table, or one JSON line.
    fn print(&self, json: bool) {
        let value = serde_json::to_value(self).unwrap_or_default();
        if json {
            return output::line(&value.to_string());
        }
        let rows: Vec<_> = value
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null())
            .map(|(name, v)| (name.replace('_', " "), text(v)))
            .collect();
        output::line(&output::table(&rows));
    }
}

fn in_ms(micros: &Histogram<u64>, quantile: f64) -> f64 {
    rounded(micros.value_at_quantile(quantile) as f64 / 1_000.0)
}

fn text(value: &serde_json::Value) -> String {
    match (value.as_f64(), value.as_u64(), value.as_str()) {
        (_, Some(whole), _) => whole.to_string(),
        (Some(number), ..) => format!("{number:.3}"),
        (_, _, Some(text)) => text.to_owned(),
        _ => value.to_string(),
    }
}

/// How long so large a share of the messages took at most: as many nines as there are messages for.
fn latencies(micros: &Histogram<u64>) -> Plot {
    let shares = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999];
    let enough = |share: &f64| (1.0 - share) * micros.len() as f64 >= 1.0;
    let took = |share: f64| (share, micros.value_at_quantile(share) as f64 / 1_000.0);
    let points = shares.into_iter().filter(enough).map(took).collect();
    let lines = vec![Line { name: "latency", points }];
    Plot::new("Latency", ("share of the messages", Scale::Nines), ("ms", Scale::Log), lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::histogram;

    #[test]
    fn without_messages_there_are_no_percentiles() {
        let mut micros = histogram().expect("bounds that are right");
        assert_eq!(Figures::default().with_latencies(&micros).p50_ms, None);
        micros.record_n(2_000, 10).expect("in bounds");
        let figures = Figures::default().with_latencies(&micros);
        assert_eq!((figures.p50_ms, figures.p999_ms), (figures.max_ms, figures.p99_ms));
        assert!(figures.max_ms.is_some_and(|ms| (ms - 2.0).abs() < 0.01));
    }

    #[test]
    fn a_load_is_divided_by_what_came() {
        let load = Load { deliveries: 4, lost: 1, cpu_us: 10, own_cpu_us: 20, seconds: 2.0 };
        let figures = Figures::default().with_load(load);
        assert_eq!((figures.cpu_us_per_delivery, figures.deliveries_per_s), (Some(2.5), Some(2.0)));
        assert_eq!(figures.lost, 1);
        let none = Figures::default().with_load(Load::default());
        assert_eq!(none.cpu_us_per_delivery, None);
    }
}
