//! How the demo shows what it is doing: a line for each stage, and on a terminal a bar below them while it runs. The stages are timed.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::{self, Paint, note};
use crate::clock::Clock;
use crate::push::Millis;

/// With a number to come to, and without.
const WITH_BAR: &str = "{spinner:.cyan} {wide_msg} {bar:16.cyan} {human_pos}/{human_len}";
const WITHOUT: &str = "{spinner:.cyan} {wide_msg}";
/// The spinner turns so often.
const TICK: Duration = Duration::from_millis(100);

/// How far a stage is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Goal {
    /// It can't be said.
    #[default]
    Unknown,
    /// So many devices connected.
    Connected(u64),
    /// So many messages handed over.
    HandedOver(u64),
}

/// How long a stage took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timed {
    pub(super) stage: &'static str,
    pub(super) ms: Millis,
}

/// The stages so far.
#[derive(Debug)]
pub(super) struct Show {
    clock: Arc<Clock>,
    started: Millis,
    bar: ProgressBar,
    paint: Paint,
    /// Its name, when it began, and what it shows.
    now: Option<(&'static str, Millis, String)>,
    goal: Goal,
    timed: Vec<Timed>,
}

impl Show {
    pub(super) fn new(clock: &Arc<Clock>) -> Self {
        Self {
            clock: Arc::clone(clock),
            started: clock.now(),
            bar: output::bar(0, WITHOUT, false),
            paint: Paint::stderr(),
            now: None,
            goal: Goal::Unknown,
            timed: Vec::new(),
        }
    }

    /// A stage begins; the one before it has ended.
    pub(super) fn begin(&mut self, stage: &'static str, what: &str, goal: Goal) {
        self.end();
        self.goal = goal;
        let (template, length) = match goal {
            Goal::Unknown => (WITHOUT, 0),
            Goal::Connected(goal) | Goal::HandedOver(goal) => (WITH_BAR, goal),
        };
        if self.bar.is_hidden() {
            self.line(what);
        } else if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.reset();
            self.bar.set_style(style.progress_chars("━╸ "));
            self.bar.set_length(length);
            self.bar.set_message(what.to_owned());
            self.bar.enable_steady_tick(TICK);
        }
        self.now = Some((stage, self.clock.now(), what.to_owned()));
    }

    /// Says something about the stage.
    pub(super) fn say(&self, what: &str) {
        if self.bar.is_hidden() {
            self.line(what);
        } else {
            self.bar.println(format!("           {}", self.paint.faint(what)));
        }
    }

    fn line(&self, what: &str) {
        let passed = self.clock.now().saturating_sub(self.started);
        note(&format!("{:6.2} s  {what}", passed as f64 / 1_000.0));
    }

    /// What devices have come to.
    pub(super) fn look(&self, connected: u64, handed_over: u64) {
        match self.goal {
            Goal::Unknown => {}
            Goal::Connected(goal) => self.bar.set_position(connected.min(goal)),
            Goal::HandedOver(goal) => self.bar.set_position(handed_over.min(goal)),
        }
    }

    /// The stage has ended well.
    pub(super) fn end(&mut self) {
        let Some((stage, began, what)) = self.now.take() else { return };
        let ms = self.clock.now().saturating_sub(began);
        if !self.bar.is_hidden() {
            let tick = self.paint.good("✓");
            self.bar.println(format!("{tick} {:6.2} s  {what}", ms as f64 / 1_000.0));
        }
        self.timed.push(Timed { stage, ms });
    }

    /// The stage that has begun and not ended.
    pub(super) fn now(&self) -> &str {
        self.now.as_ref().map_or("the preparations", |(_, _, what)| what)
    }

    /// How long each stage took, and how long all did.
    pub(super) fn times(&self) -> (Vec<Timed>, Millis) {
        (self.timed.clone(), self.clock.now().saturating_sub(self.started))
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_timed_once() {
        let mut show = Show::new(&Arc::new(Clock::new(0)));
        assert_eq!(show.now(), "the preparations");
        show.begin("connect", "devices connect", Goal::Connected(3));
        show.look(2, 0);
        assert_eq!(show.now(), "devices connect");
        show.begin("push", "pushes", Goal::HandedOver(5));
        show.end();
        show.end();
        let (timed, all) = show.times();
        assert_eq!(timed.iter().map(|t| t.stage).collect::<Vec<_>>(), ["connect", "push"]);
        assert!(timed.iter().map(|t| t.ms).sum::<Millis>() <= all);
    }
}
