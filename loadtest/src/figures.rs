//! The figures of one run, under the names that every scenario uses.

use mooring::cli::output;
use serde::Serialize;

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
    /// From the beginning of a round to the last device; the median.
    pub(crate) last_device_ms: Option<f64>,
    /// The same of bare sockets, to the last acknowledgement.
    pub(crate) floor_last_device_ms: Option<f64>,
    pub(crate) lost: u64,
    pub(crate) seconds: f64,
}

impl Figures {
    /// On standard output: a table, or one JSON line.
    pub(crate) fn print(&self, json: bool) {
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

fn text(value: &serde_json::Value) -> String {
    match (value.as_f64(), value.as_u64(), value.as_str()) {
        (_, Some(whole), _) => whole.to_string(),
        (Some(number), ..) => format!("{number:.3}"),
        (_, _, Some(text)) => text.to_owned(),
        _ => value.to_string(),
    }
}

/// The slope of y over x by least squares; `None` with fewer than two different x.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let (mean_x, mean_y) =
        (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let over: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let under: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (under > 0.0).then(|| over / under)
}

/// Three digits behind the point: more is noise.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope() {
        let slope_of = |points: &[(f64, f64)]| slope(points).map(|s| (s * 1e6).round() / 1e6);
        assert_eq!(slope_of(&[(5.0, 110.0), (10.0, 160.0), (15.0, 210.0)]), Some(10.0));
        assert_eq!(slope_of(&[(5.0, 1.0)]), None);
        assert_eq!(slope_of(&[]), None);
    }
}
