//! The forms of output that commands share, and times on the command line.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::print;
use crate::api::yaml::yaml_document;

/// The form of a result.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Text,
    Json,
    Yaml,
}

/// Prints a value as JSON or YAML, and returns an exit code.
pub fn print_value(format: OutputFormat, value: &impl Serialize) -> u8 {
    let text = serde_json::to_value(value).map_err(|error| error.to_string()).and_then(|value| match format {
        OutputFormat::Yaml => yaml_document(&value).map_err(|error| error.to_string()),
        OutputFormat::Text | OutputFormat::Json => Ok(format!("{value:#}\n")),
    });
    match text {
        Ok(text) => print::print_text(&text),
        Err(error) => {
            eprintln!("realtime: the result cannot be printed: {error}");
            1
        }
    }
}

/// Parses a time such as `60s` or `2m`.
///
/// # Errors
/// The text is none; the error says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is no time: write 60s or 2m"))?;
    match unit {
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("`{text}` has an unknown unit: write 60s or 2m")),
    }
}
