//! Whether a series of measurements grows. Pure.
//!
//! The slope is Theil and Sen's, the median of the slopes between all pairs of points, which a few odd points can't move (P. K. Sen,
//! "Estimates of the regression coefficient based on Kendall's tau", 1968). A series grows if all of this is so:
//! - an hour of that slope is more than 5 percent of the median;
//! - over the run it is more than the scatter around the line (from the 5th to the 95th percentile), and more than the least that matters;
//! - each half of the run has more than a quarter of that slope by itself: a step, as of a table that doubles once, isn't growth.
//!
//! What this can't see: a leak that is smaller than the scatter within the run, and one that comes in a single step. Both take a longer run.

/// Points without which nothing can be said.
const LEAST_POINTS: usize = 10;
/// Points that are compared pair by pair; more are taken together, each as the median of some in a row.
const MOST_POINTS: usize = 600;
/// Growth within an hour that doesn't matter, as a part of the median.
const HOURLY_PART: f64 = 0.05;
/// The part of the slope that each half of a run has at least.
const PART_OF_HALF: f64 = 0.25;
const HOUR_S: f64 = 3_600.0;

/// A moment, seconds, and what was measured then.
pub(super) type Point = (f64, f64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Too few points.
    TooShort,
    Flat,
    Grows,
}

impl Verdict {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too short",
            Self::Flat => "flat",
            Self::Grows => "grows",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Judged {
    pub(super) median: f64,
    /// The slope.
    pub(super) per_hour: f64,
    /// Around the line, from the 5th to the 95th percentile.
    pub(super) scatter: f64,
    pub(super) verdict: Verdict,
}

/// Judges a series, whose points are in the order of time; growth over the run up to `least` doesn't matter.
pub(super) fn judge(points: &[Point], least: f64) -> Judged {
    let median = median(points.iter().map(|p| p.1).collect()).unwrap_or(0.0);
    let points = thinned(points);
    let [Some(slope), Some(first), Some(second)] =
        [theil_sen(&points), theil_sen(&points[..points.len() / 2]), theil_sen(&points[points.len() / 2..])]
    else {
        return Judged { median, per_hour: 0.0, scatter: 0.0, verdict: Verdict::TooShort };
    };
    let scatter = scatter(&points, slope);
    let growth = slope * (points[points.len() - 1].0 - points[0].0);
    let grows = slope * HOUR_S > HOURLY_PART * median.abs()
        && growth > scatter.max(least)
        && first.min(second) > PART_OF_HALF * slope;
    let verdict = match grows {
        _ if points.len() < LEAST_POINTS => Verdict::TooShort,
        true => Verdict::Grows,
        false => Verdict::Flat,
    };
    Judged { median, per_hour: slope * HOUR_S, scatter, verdict }
}

/// At most [`MOST_POINTS`].
fn thinned(points: &[Point]) -> Vec<Point> {
    let together = points.len().div_ceil(MOST_POINTS).max(1);
    let whole = |some: &[Point]| {
        let time = some.iter().map(|p| p.0).sum::<f64>() / some.len() as f64;
        median(some.iter().map(|p| p.1).collect()).map(|value| (time, value))
    };
    points.chunks(together).filter_map(whole).collect()
}

/// `None` with less than two moments.
fn theil_sen(points: &[Point]) -> Option<f64> {
    let slopes = points.iter().enumerate().flat_map(|(i, a)| {
        points[i + 1..].iter().filter(|b| b.0 > a.0).map(move |b| (b.1 - a.1) / (b.0 - a.0))
    });
    median(slopes.collect())
}

fn scatter(points: &[Point], slope: f64) -> f64 {
    let mut rest: Vec<f64> = points.iter().map(|(time, value)| value - slope * time).collect();
    rest.sort_by(f64::total_cmp);
    let at = |part: usize| rest.get((rest.len().max(1) - 1) * part / 100).copied().unwrap_or(0.0);
    at(95) - at(5)
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let (at, is_even) = (values.len() / 2, values.len().is_multiple_of(2));
    let (below, middle, _) = values.select_nth_unstable_by(at, f64::total_cmp);
    let below = below.iter().copied().max_by(f64::total_cmp).filter(|_| is_even);
    Some(below.map_or(*middle, |below| f64::midpoint(below, *middle)))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const MIB: f64 = 1_048_576.0;

    /// Ten minutes, a point a second.
    fn run(value: impl FnMut(f64) -> f64) -> Judged {
        run_of(600, value)
    }

    fn run_of(seconds: u32, mut value: impl FnMut(f64) -> f64) -> Judged {
        let points: Vec<Point> = (0..seconds).map(|s| (f64::from(s), value(f64::from(s)))).collect();
        judge(&points, MIB)
    }

    fn noise(seed: u64) -> impl FnMut(f64) -> f64 {
        let mut rng = SmallRng::seed_from_u64(seed);
        // About normal, one MiB wide.
        move |_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>().mul_add(MIB, -6.0 * MIB)
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_line_has_its_slope() {
        let judged = run(|t| 100.0 * MIB + t * MIB / 60.0);
        assert!((judged.per_hour / MIB - 60.0).abs() < 1e-6 && judged.scatter < 1.0, "{judged:?}");
        assert_eq!(judged.verdict, Verdict::Grows);
    }

    #[test]
    fn what_stays_or_falls_is_flat() {
        assert_eq!(run(|_| 50.0 * MIB).verdict, Verdict::Flat);
        assert_eq!(run(|_| 0.0).verdict, Verdict::Flat);
        assert_eq!(run(|t| 500.0 * MIB - t * MIB).verdict, Verdict::Flat);
    }

    #[test]
    fn noise_is_flat_whatever_the_seed() {
        for seed in 0..10 {
            let mut noise = noise(seed);
            let judged = run(|t| 50.0 * MIB + noise(t));
            assert_eq!(judged.verdict, Verdict::Flat, "seed {seed}: {judged:?}");
        }
    }

    #[test]
    fn a_slow_leak_under_noise_is_found_whatever_the_seed() {
        for seed in 0..10 {
            let mut noise = noise(seed);
            // Over the run twice what the noise is wide, and a tenth of the whole.
            let judged = run(|t| 80.0 * MIB + noise(t) + 8.0 * MIB * t / 600.0);
            assert_eq!(judged.verdict, Verdict::Grows, "seed {seed}: {judged:?}");
        }
    }

    #[test]
    fn a_sawtooth_is_flat_and_found_when_it_climbs() {
        let tooth = |t: f64| 10.0 * MIB + (t % 47.0) * 4.0 * MIB / 47.0;
        assert_eq!(run(tooth).verdict, Verdict::Flat);
        assert_eq!(run(|t| tooth(t) + 12.0 * MIB * t / 600.0).verdict, Verdict::Grows);
    }

    #[test]
    fn one_step_is_flat_wherever_it_is_and_a_staircase_is_not() {
        for at in [60.0, 150.0, 300.0, 450.0, 540.0] {
            let judged = run(|t| if t < at { 50.0 * MIB } else { 80.0 * MIB });
            assert_eq!(judged.verdict, Verdict::Flat, "at {at}: {judged:?}");
        }
        assert_eq!(run(|t| 50.0 * MIB + (t / 60.0).floor() * 4.0 * MIB).verdict, Verdict::Grows);
    }

    #[test]
    fn odd_points_move_nothing() {
        let judged = run(|t| if t % 20.0 == 0.0 { 900.0 * MIB } else { 50.0 * MIB });
        assert_eq!((judged.verdict, judged.per_hour), (Verdict::Flat, 0.0));
    }

    #[test]
    fn what_does_not_matter_is_flat() {
        // Less than the least over the run; then less than 5 percent an hour.
        assert_eq!(run(|t| MIB + 0.9 * MIB * t / 600.0).verdict, Verdict::Flat);
        assert_eq!(run(|t| 1_000.0 * MIB + 8.0 * MIB * t / 600.0).verdict, Verdict::Flat);
    }

    #[test]
    fn few_points_say_nothing() {
        assert_eq!(run_of(9, |t| t * 100.0 * MIB).verdict, Verdict::TooShort);
        assert_eq!(run_of(10, |t| t * 100.0 * MIB).verdict, Verdict::Grows);
        assert_eq!(judge(&[], MIB).verdict, Verdict::TooShort);
        assert!((judge(&[(1.0, 5.0)], MIB).median - 5.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_of_hours_is_thinned_and_judged_alike() {
        let mut noise = noise(7);
        let judged = run_of(40_000, |t| 80.0 * MIB + noise(t) + 0.01 * MIB * t);
        assert_eq!(judged.verdict, Verdict::Grows);
        assert!((judged.per_hour / MIB - 36.0).abs() < 0.5, "{judged:?}");
    }
}
