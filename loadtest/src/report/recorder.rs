//! What is looked at four times a second while a scenario runs, for the plots over time: devices, messages, the server's memory and CPU.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooring::clock::Clock;
use tokio::task::JoinSet;

use super::plot::{Line, Plot, Scale};
use crate::fleet::Counts;
use crate::process::Process;
use crate::target::Target;

/// Milliseconds between two looks.
const EVERY_MS: u64 = 250;
/// Looks that are kept; a longer run has its first hours.
const LOOKS: usize = 100_000;

#[derive(Clone, Copy, Debug)]
struct Look {
    seconds: f64,
    connected: u64,
    received: u64,
    rss: u64,
    cpu_us: u64,
}

/// Looks until it goes.
pub(crate) struct Recorder {
    /// `None`: nobody wants to know.
    view: Option<Arc<View>>,
    /// Ends with this.
    _looking: JoinSet<()>,
}

struct View {
    process: Box<dyn Fn() -> Process + Send + Sync>,
    counts: Arc<Counts>,
    clock: Arc<Clock>,
    start: u64,
    looks: Mutex<Vec<Look>>,
}

impl View {
    fn look(&self) {
        // A process that is killed and started again is left out meanwhile.
        let process = (self.process)();
        let (Ok(rss), Ok(cpu_us)) = (process.resident(), process.cpu_us()) else { return };
        let seconds = (self.clock.micros() - self.start) as f64 / 1e6;
        let (connected, received) = (self.counts.connected(), self.counts.received());
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() < LOOKS {
            looks.push(Look { seconds, connected, received, rss, cpu_us });
        }
    }
}

impl Recorder {
    /// Begins to look, if that is wanted.
    pub(crate) fn start(wanted: bool, target: &Target, counts: &Arc<Counts>, clock: &Arc<Clock>) -> Self {
        let mut looking = JoinSet::new();
        if !wanted {
            return Self { view: None, _looking: looking };
        }
        let view = Arc::new(View {
            process: Box::new(target.process_now()),
            counts: Arc::clone(counts),
            clock: Arc::clone(clock),
            start: clock.micros(),
            looks: Mutex::default(),
        });
        let looks = Arc::clone(&view);
        looking.spawn(async move {
            loop {
                looks.look();
                tokio::time::sleep(Duration::from_millis(EVERY_MS)).await;
            }
        });
        Self { view: Some(view), _looking: looking }
    }

    /// What it saw, and sees now.
    pub(crate) fn plots(&self) -> Vec<Plot> {
        let Some(view) = &self.view else { return Vec::new() };
        view.look();
        plots(&view.looks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn plots(looks: &[Look]) -> Vec<Plot> {
    let over_time = |value: fn(&Look) -> f64| looks.iter().map(|look| (look.seconds, value(look))).collect();
    // A new process begins from 0.
    let rate = |value: fn(&Look) -> u64, unit: f64| {
        let pairs = looks.iter().zip(looks.iter().skip(1));
        let rate = |(a, b): (&Look, &Look)| {
            let per = (b.seconds - a.seconds).max(1e-3) * unit;
            (b.seconds, value(b).saturating_sub(value(a)) as f64 / per)
        };
        pairs.map(rate).collect()
    };
    let seconds = ("seconds", Scale::Linear);
    let one =
        |title, y, name, points| Plot::new(title, seconds, (y, Scale::Linear), vec![Line { name, points }]);
    let plots = [
        one("Messages a second", "", "messages", rate(|look| look.received, 1.0)),
        one("Devices connected", "", "devices", over_time(|look| look.connected as f64)),
        one("Resident memory of the server", "MiB", "RSS", over_time(|look| look.rss as f64 / 1_048_576.0)),
        one("CPU of the server", "cores", "cores", rate(|look| look.cpu_us, 1e6)),
    ];
    // What was never there is no plot.
    plots.into_iter().filter(|plot| plot.lines[0].points.iter().any(|point| point.1 > 0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_and_a_new_process_begins_from_nothing() {
        let look = |n: u32, cpu_us| Look {
            seconds: f64::from(n) / 2.0,
            connected: 3,
            received: 100 * u64::from(n),
            rss: 1_048_576,
            cpu_us,
        };
        let plots = plots(&[look(0, 500_000), look(1, 900_000), look(2, 100_000)]);
        let line =
            |title: &str| &plots.iter().find(|p| p.title.starts_with(title)).expect("a plot").lines[0].points;
        assert_eq!(line("Messages"), &[(0.5, 200.0), (1.0, 200.0)]);
        assert_eq!(line("CPU"), &[(0.5, 0.8), (1.0, 0.0)]);
        assert_eq!(line("Resident")[0], (0.0, 1.0));
        assert!(super::plots(&[]).is_empty());
    }
}
