//! Logs: one line per event on standard error, JSON where no person reads along.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Starts logging with a filter such as `info,realtime_operator::edge=debug`. A filter that cannot be read counts as
/// `info`, with a line that says so.
pub fn start(filter: &str) {
    let (parsed, complaint) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let builder = fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // A second start, as tests make it, changes nothing.
    let _ = if std::io::stderr().is_terminal() { builder.try_init() } else { builder.json().try_init() };
    if let Some(error) = complaint {
        tracing::warn!(%filter, %error, "the log filter cannot be read; `info` is used");
    }
}
