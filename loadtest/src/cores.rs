//! The machine's floor: how evenly its cores run. On a virtual machine others take their share without a word, and what waits for a core that is slow
//! for a while counts as latency of whatever is measured.

use std::hint::black_box;
use std::thread;

use mooring::cli::output::Failure;
use mooring::clock::Clock;

/// Microseconds of a look, right before a measurement and right after.
const LOOK: u64 = 1_000_000;
/// Of a window.
const WINDOW: u64 = 5_000;
/// Steps between two looks at the clock.
const STEPS: u64 = 200;

/// What each window came to, by thread and look.
pub(crate) struct Around(Option<Vec<Vec<u64>>>);

impl Around {
    /// Looks for the first time, if it is wanted.
    pub(crate) async fn before(wanted: bool) -> Result<Self, Failure> {
        Self(wanted.then(Vec::new)).look().await
    }

    /// Looks again: percent of windows in which a core did less than half of what it did in its best one.
    pub(crate) async fn after(self) -> Result<Option<f64>, Failure> {
        Ok(self.look().await?.0.map(|looks| slow_percent(&looks)))
    }

    async fn look(self) -> Result<Self, Failure> {
        let Some(mut looks) = self.0 else { return Ok(self) };
        looks.extend(tokio::task::spawn_blocking(count_on_all).await.map_err(Failure::failed)?);
        Ok(Self(Some(looks)))
    }
}

/// A thread a core counts for a while.
fn count_on_all() -> Vec<Vec<u64>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(count)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(windows) => windows,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}

/// How far it comes in each window.
fn count() -> Vec<u64> {
    let clock = Clock::new(0);
    let mut windows = vec![0; (LOOK / WINDOW) as usize];
    let mut number = 1u64;
    while let Some(window) = windows.get_mut((clock.micros() / WINDOW) as usize) {
        for _ in 0..STEPS {
            number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        *window += 1;
    }
    windows
}

fn slow_percent(looks: &[Vec<u64>]) -> f64 {
    let slow = |windows: &Vec<u64>| {
        let best = windows.iter().max().copied().unwrap_or(0);
        windows.iter().filter(|count| **count < best / 2).count()
    };
    let all: usize = looks.iter().map(Vec::len).sum();
    100.0 * looks.iter().map(slow).sum::<usize>() as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_less_than_half_of_the_threads_own_best() {
        let looks = [vec![100, 99, 50, 49], vec![10, 4, 5, 10]];
        assert!((slow_percent(&looks) - 25.0).abs() < f64::EPSILON);
        assert!(slow_percent(&[]).abs() < f64::EPSILON);
    }

    #[tokio::test]
    async fn it_looks_before_and_after_or_not_at_all() {
        let before = Around::before(true).await.expect("threads");
        let looks = before.0.as_ref().expect("wanted");
        let windows = (LOOK / WINDOW) as usize;
        assert!(
            !looks.is_empty()
                && looks.iter().all(|look| look.len() == windows && look.iter().any(|n| *n > 0))
        );
        let percent = before.after().await.expect("threads").expect("wanted");
        assert!((0.0..=100.0).contains(&percent));
        assert!(Around::before(false).await.expect("nothing").after().await.expect("nothing").is_none());
    }
}
