//! What every subcommand does alike: exit codes, standard output, progress bars.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::admin::date;

/// Why a subcommand didn't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments or the configuration are wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// It was tried, and failed: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// A usage failure.
    pub fn usage(error: impl std::fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }

    /// A failure.
    pub fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

/// So many of something.
pub fn many(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// The exit code of a result; a failure is said on standard error.
pub fn exit(result: Result<(), Failure>) -> ExitCode {
    let code = match &result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(_)) => 2,
        Err(Failure::Failed(_)) => 1,
    };
    if let Err(failure) = result {
        note(&format!("error: {failure}"));
    }
    ExitCode::from(code)
}

/// Colours, where somebody looks: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For standard output.
    pub fn stdout() -> Self {
        Self::on(io::stdout().is_terminal())
    }

    /// For standard error.
    pub fn stderr() -> Self {
        Self::on(io::stderr().is_terminal())
    }

    /// None.
    pub fn none() -> Self {
        Self { on: false }
    }

    fn on(is_terminal: bool) -> Self {
        Self { on: is_terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty()) }
    }

    /// What is as it should be.
    pub fn good(self, text: &str) -> String {
        self.with(Style::new().fg_color(Some(AnsiColor::Green.into())), text)
    }

    /// What isn't.
    pub fn bad(self, text: &str) -> String {
        self.with(Style::new().bold().fg_color(Some(AnsiColor::Red.into())), text)
    }

    /// A heading.
    pub fn strong(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    /// An explanation.
    pub fn faint(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }

    fn with(self, style: Style, text: &str) -> String {
        if self.on { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// A line for the user on standard error. If that is gone there is nobody to tell.
pub fn note(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

/// A line of results on standard output. If its reader has gone (`| head`) the process ends, as it would by a signal.
pub fn line(text: &str) {
    if let Err(error) = writeln!(io::stdout().lock(), "{text}") {
        if error.kind() != io::ErrorKind::BrokenPipe {
            note(&format!("error: standard output: {error}"));
        }
        std::process::exit(1);
    }
}

/// A progress bar on standard error, if that is a terminal; invisible otherwise, and with `quiet`.
pub fn bar(length: u64, template: &'static str, quiet: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), target(quiet));
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn target(quiet: bool) -> ProgressDrawTarget {
    if quiet || !io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr_with_hz(10)
    }
}

/// Rows of a name and a value: numbers to the right, one below the other, text to the left.
pub fn table(rows: &[(String, String)]) -> String {
    let is_number = |value: &str| value.parse::<f64>().is_ok();
    let names = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let numbers = rows.iter().filter(|(_, value)| is_number(value)).map(|(_, value)| value.len()).max();
    let numbers = numbers.unwrap_or(0);
    let row = |(name, value): &(String, String)| {
        let width = if is_number(value) { numbers } else { 0 };
        format!("  {name:<names$}  {value:>width$}")
    };
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}

/// A moment as a person reads it, of milliseconds since 1970 UTC.
pub fn moment(milliseconds: u64) -> String {
    const DAY_MS: u64 = 86_400_000;
    let (day, of_day) = (milliseconds / DAY_MS, milliseconds % DAY_MS);
    let Ok(day) = u32::try_from(day) else { return milliseconds.to_string() };
    let (seconds, rest) = (of_day / 1_000, of_day % 1_000);
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{} {hours:02}:{minutes:02}:{seconds:02}.{rest:03} UTC", date(day))
}

/// Text of a peer, safe for a terminal: control characters are escaped.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            escaped.is_none().then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_message_do_not_reach_the_terminal() {
        assert_eq!(printable("你好\u{1b}[2J\n"), "你好\\u{1b}[2J\\n");
    }

    #[test]
    fn a_moment_is_a_date_and_a_time_of_day() {
        assert_eq!(moment(0), "1970-01-01 00:00:00.000 UTC");
        assert_eq!(moment(1_767_225_599_042), "2025-12-31 23:59:59.042 UTC");
        assert_eq!(moment(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [("accepted", "1000"), ("failed", "7"), ("why", "a long sentence")];
        let rows = rows.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(table(&rows), "  accepted  1000\n  failed       7\n  why       a long sentence");
    }
}
