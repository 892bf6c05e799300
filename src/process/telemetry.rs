//! Logs: one line per event on standard error, as JSON unless standard error is a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Starts logging with a filter such as `info,realtime_operator::edge=debug`. An invalid filter counts as `info`, with
/// a line that says so.
pub fn start(filter: &str) {
    let (parsed, complaint) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // A second start, as in tests, changes nothing.
    let _ = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
    if let Some(error) = complaint {
        tracing::warn!(%filter, %error, "log filter invalid: using `info`");
    }
}
