//! `realtime migrate prepare`: the conversion of the source's record, as commands.

use std::path::PathBuf;

use super::super::{print, report_bad_input};
use super::plan::read_migration;
use crate::migration::{SourceConversion, WeightedRecord, render_conversion};

/// Print the commands that turn the source's record into a weighted one, and test the brake of the source.
///
/// Nothing is changed: read the commands, and run them with the kubeconfig of the source.
///
/// Exit codes: 0 the commands are printed, 2 the file cannot be used.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  \
    realtime migrate prepare migration.yaml --source-host sockjs.old.example.com --owner ingress/sockjs -n legacy")]
pub struct PrepareArguments {
    /// File with one RealtimeMigration; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Host that leads to the source alone, to which its weighted record points
    #[arg(long, value_name = "HOST")]
    source_host: String,
    /// Object that makes the present record, as kubectl names it, such as `ingress/sockjs`
    #[arg(long, value_name = "KIND/NAME", value_parser = parse_owner)]
    owner: String,
    /// Namespace of the source's objects
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

/// Prints the commands, and returns the exit code.
pub fn print_preparation(arguments: &PrepareArguments) -> u8 {
    let (migration, _) = match read_migration(&arguments.file) {
        Ok(found) => found,
        Err(errors) => return report_bad_input(&errors),
    };
    let mut text = String::new();
    for track in &migration.spec.tracks {
        if [&track.host, &track.target_host].contains(&&arguments.source_host) {
            let message =
                format!("--source-host {}: write the host that leads to the source alone", arguments.source_host);
            return report_bad_input(&[message]);
        }
        text.push_str(&render_conversion(&SourceConversion {
            record: WeightedRecord { target: arguments.source_host.clone(), ..WeightedRecord::of_track(track) },
            weight: migration.spec.source.weight,
            namespace: arguments.namespace.clone(),
            owner: arguments.owner.clone(),
        }));
    }
    print::print_text(&text)
}

fn parse_owner(text: &str) -> Result<String, String> {
    let is_word = |word: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        !word.is_empty() && word.bytes().all(inner)
    };
    match text.split_once('/') {
        Some((kind, name)) if is_word(kind) && is_word(name) => Ok(text.to_owned()),
        _ => Err("write KIND/NAME, such as ingress/sockjs".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_kind_and_a_name_and_no_command() {
        assert!(parse_owner("ingress/sockjs").is_ok());
        for bad in ["sockjs", "/a", "a/", "ingress/a;b", "Ingress/a b"] {
            assert!(parse_owner(bad).is_err(), "{bad}");
        }
    }
}
