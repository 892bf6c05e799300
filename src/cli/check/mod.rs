//! `realtime check`: what a Kubernetes cluster and a manifest lack before a realtime cluster can be proven.

mod auto_mode;
mod kubernetes_checks;
mod manifest_checks;
mod node_checks;
mod outside_checks;

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use serde::Serialize;

use super::output::{OutputFormat, print_value};
use super::{files, print, report_bad_input};
use crate::desired::{OPERATOR_NAMESPACE, ServerImage};
use crate::kubernetes::client::build_clients;

/// The exit code when something is missing.
const MISSING_EXIT_CODE: u8 = 1;

/// See what a Kubernetes cluster and a manifest lack, each with its remedy
///
/// Checks the API server, the CRDs and whether they are those of this program, and a running operator. With the files of a
/// RealtimeCluster also: the Secrets that it references, the source of its AWS identity, its image and release, Redis,
/// Kinesis and the right to describe its streams, with the permissions of a dead-letter stream, and the network policies of its namespace; where these isolate the pods,
/// the policy to add is printed. Nothing is changed. Redis and Kinesis are asked from this machine: pods may have other
/// routes and another identity, so an unreachable one is a warning.
///
/// Exit codes: 0 nothing is missing (there may be warnings), 1 something is missing, 2 the files or the API server cannot
/// be used.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    realtime check\n  \
    realtime check examples/eu.yaml\n  \
    realtime check eu.yaml -o json | jq '.checks[] | select(.state == \"Missing\")'")]
pub struct Arguments {
    /// Files with one RealtimeCluster and its RealtimeApps; `-` is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Namespace of the operator
    #[arg(long, default_value = OPERATOR_NAMESPACE, value_name = "NAMESPACE")]
    operator_namespace: String,
    /// Text, or all results as one object; progress then goes to standard error
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CheckState {
    /// The part exists and can be used.
    Passed,
    /// It may be missing, or cannot be seen from here.
    Warning,
    /// A part without which no cluster is proven is missing.
    Missing,
    /// It was not checked.
    Skipped,
}

/// One checked part, with what was found and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// Name of the checked part.
    pub check: &'static str,
    /// Result of the check.
    pub state: CheckState,
    /// Result in one line.
    pub message: String,
    /// Remedy, as a sentence; empty without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// Object to apply; empty without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub manifest: String,
}

impl CheckResult {
    fn new(check: &'static str, state: CheckState, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, state, message: message.into(), remedy: remedy.into(), manifest: String::new() }
    }

    fn passed(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, CheckState::Passed, message, "")
    }

    fn skipped(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, CheckState::Skipped, message, "")
    }
}

/// All results, for programs.
#[derive(Serialize)]
struct CheckReport<'a> {
    passed: bool,
    checks: &'a [CheckResult],
}

/// Shows each result as soon as it is known.
struct CheckScreen {
    format: OutputFormat,
    results: Vec<CheckResult>,
}

impl CheckScreen {
    fn add(&mut self, result: CheckResult) {
        let text = format_result(&result);
        if self.format == OutputFormat::Text {
            print::print_text(&text);
        } else {
            eprint!("{text}");
        }
        self.results.push(result);
    }
}

/// Runs `realtime check` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    let input = match (!arguments.files.is_empty()).then(|| files::read(&arguments.files)).transpose() {
        Ok(input) => input,
        Err(errors) => return report_bad_input(&errors),
    };
    let clients = match build_clients(Arc::default()).await {
        Ok(clients) => clients,
        Err(error) => return report_bad_input(&[error.to_string()]),
    };
    let mut screen = CheckScreen { format: arguments.output, results: vec![] };
    let checks = run_checks(&mut screen, &clients.call, input, &arguments.operator_namespace);
    if let Err(error) = Box::pin(checks).await {
        return report_bad_input(&[error]);
    }
    let passed = screen.results.iter().all(|result| result.state != CheckState::Missing);
    let code = match screen.format {
        OutputFormat::Text => print::print_text(&summarize(&screen.results)),
        format => print_value(format, &CheckReport { passed, checks: &screen.results }),
    };
    if passed { code } else { MISSING_EXIT_CODE }
}

async fn run_checks(
    screen: &mut CheckScreen,
    client: &Client,
    input: Option<files::InputManifests>,
    operator_namespace: &str,
) -> Result<(), String> {
    screen.add(kubernetes_checks::check_api_server(client).await?);
    screen.add(kubernetes_checks::check_crds(client).await);
    let (operator, own_image) = kubernetes_checks::check_operator(client, operator_namespace).await;
    screen.add(operator);
    let Some(input) = input else { return Ok(()) };
    let (secrets, texts) = kubernetes_checks::check_secrets(client, &input).await;
    screen.add(secrets);
    let recorded = kubernetes_checks::find_recorded_image(client, &input).await;
    let own = own_image.unwrap_or_else(|| ServerImage::of_operator(None));
    let (manifest, valid) = manifest_checks::check_manifest(&input, texts.clone(), &own, recorded.as_ref());
    screen.add(manifest);
    let Some(valid) = valid else { return Ok(()) };
    screen.add(kubernetes_checks::check_identity(client, &valid).await);
    screen.add(node_checks::check_nodes(client, &valid).await);
    if let Some(result) = node_checks::check_registration(client, &valid).await {
        screen.add(result);
    }
    screen.add(outside_checks::check_redis(&valid, &texts).await);
    screen.add(outside_checks::check_kinesis(&valid, &texts).await);
    if let Some(result) = outside_checks::check_dead_letters(&valid, &texts).await {
        screen.add(result);
    }
    screen.add(kubernetes_checks::check_network_policies(client, &valid, &texts, operator_namespace).await);
    Ok(())
}

fn format_result(result: &CheckResult) -> String {
    let mark = match result.state {
        CheckState::Passed => "✓",
        CheckState::Warning => "!",
        CheckState::Missing => "✗",
        CheckState::Skipped => "·",
    };
    let mut text = format!("{mark} {:<16} {}\n", result.check, result.message);
    // Writing to a text cannot fail.
    if !result.remedy.is_empty() {
        let _ = writeln!(text, "  {:<16} → {}", "", result.remedy);
    }
    if !result.manifest.is_empty() {
        let _ = write!(text, "---\n{}---\n", result.manifest);
    }
    text
}

fn summarize(results: &[CheckResult]) -> String {
    let count = |state: CheckState| results.iter().filter(|result| result.state == state).count();
    match (count(CheckState::Missing), count(CheckState::Warning)) {
        (0, 0) => "nothing is missing\n".to_owned(),
        (0, warnings) => format!("nothing is missing; {warnings} to look at, marked with !\n"),
        (missing, warnings) => format!("{missing} missing, marked with ✗; {warnings} to look at, marked with !\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_a_line_with_its_remedy_and_the_object_to_apply() {
        let passed = CheckResult::passed("crds", "both are those of this program");
        assert_eq!(format_result(&passed), "✓ crds             both are those of this program\n");
        let missing = CheckResult {
            manifest: "kind: NetworkPolicy\n".to_owned(),
            ..CheckResult::new("network-policy", CheckState::Missing, "isolated", "apply this one")
        };
        let text = format_result(&missing);
        assert!(text.contains("→ apply this one\n---\nkind: NetworkPolicy\n---\n"), "{text}");
        assert!(summarize(std::slice::from_ref(&passed)).starts_with("nothing is missing"));
        assert!(summarize(&[passed, missing]).starts_with("1 missing"));
    }
}
