//! Logs: to standard error, for humans or as JSON lines. Colours only on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// For reading.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// The log can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is none.
    #[error(
        "log filter `{filter}` is not understood ({text}); write, for instance, `info` or `info,mooring::router=debug`"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        text: String,
    },
    /// This process has one already.
    #[error("the log is set up already")]
    Again,
}

/// Starts the log. `filter` is a level, or a list of `target=level`.
pub fn log(format: Format, filter: &str) -> Result<(), LogError> {
    let filter = parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would say so on standard error, and panic if that is full.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        Format::Human => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|_| LogError::Again)
}

/// Whether a filter would be understood.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|error| LogError::Filter { filter: filter.to_owned(), text: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        check_filter("info").expect("a level");
        check_filter("warn,mooring::router=debug").expect("a list");
        assert!(check_filter("mooring=loud").is_err());
    }
}
