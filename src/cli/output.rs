//! The forms of output that commands share.

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
