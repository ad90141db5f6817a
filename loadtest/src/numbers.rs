//! What is made of numbers that were measured.

use hdrhistogram::Histogram;
use mooring::cli::output::Failure;

/// The slope of y over x by least squares; `None` with fewer than two different x.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let (mean_x, mean_y) =
        (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let over: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let under: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    (under > 0.0).then(|| over / under)
}

/// The one in the middle; 0 of none.
pub(crate) fn median(numbers: &mut [u64]) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

/// So much for each.
pub(crate) fn per(amount: f64, count: u64) -> f64 {
    rounded(amount / count.max(1) as f64)
}

/// A histogram of microseconds up to ten minutes.
pub(crate) fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, 600_000_000, 3).map_err(Failure::failed)
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

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [5, 1, 9]), 5);
        assert_eq!(median(&mut []), 0);
    }
}
