//! `realtime replay`: sends dead letters again, each to the endpoint that it names.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::NonEmptyStringValueParser;
use jiff::Timestamp;
use url::Url;

use super::output::{OutputFormat, print_value};
use super::{print, report_bad_input};
use crate::dispatcher::replay::{
    LetterFilter, ReplayDestination, ReplayItem, ReplayReport, ReplayRequest, ReplayResult, read_registry, replay,
};
use crate::kinesis::{AwsCredentials, KinesisClient, StreamSettings};
use crate::process;
use crate::process::clock::now_ms;
use crate::protocol::Secret;
use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::registry::AppRegistry;

/// The exit code when an endpoint did not acknowledge every letter.
const FAILED_EXIT_CODE: u8 = 1;

/// Send events again that could not be delivered, from the dead-letter stream of a cluster
///
/// With webhooks.deadLetter a dispatcher writes each event that it gives up as a letter: the reason, the app, the endpoint,
/// the attempts, the last answer, and the event. This command reads the letters of a time range, selects by app, endpoint
/// and reason, and posts each event to the endpoint that its letter names, with the URL and the key of the present app
/// registry, or to --url. A letter of an unknown app names no endpoint and goes to those that receive the event now.
/// Bodies carry the header X-Realtime-Replay: true, and event ids stay the same, so that a receiver can drop repeats.
///
/// State (occupied, vacated, added, removed, counts) of which a later one is known, from another letter or from the stream
/// of the events, is not sent: it would contradict what the endpoint knows. --all sends it. Private addresses are refused,
/// as by the dispatcher. Letters stay in the stream: a second replay of the same range sends the same letters again.
/// An event that fails again is not written to the stream again.
///
/// In a dispatcher pod every setting is in the environment:
///   kubectl exec -n channels deploy/eu-dispatcher -- realtime replay --since 6h --dry-run
///
/// Exit codes: 0 every letter to be sent was acknowledged (others may be skipped), 1 an endpoint did not acknowledge one,
/// 2 nothing was sent: the arguments, the registry or a stream cannot be used.
#[derive(clap::Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  \
    realtime replay --since 6h --dry-run\n  \
    realtime replay --since 2026-01-31T08:00:00Z --until 2026-01-31T09:30:00Z --app 1001 --endpoint orders\n  \
    realtime replay --since 1d --reason RetryWindowOver -o json | jq '.items[] | select(.result == \"Failed\")'\n  \
    realtime replay --app 1001 --url https://shop.example.com/hook --key KEY --secret-file ./secret"
)]
pub struct Arguments {
    /// Letters written since then: a time such as 2026-01-31T08:00:00Z, or an age such as 90m, 6h or 2d
    #[arg(long, default_value = "24h", value_name = "TIME")]
    since: String,
    /// Letters written until then, in the same form
    #[arg(long, default_value = "0s", value_name = "TIME")]
    until: String,
    /// Only letters of this app
    #[arg(long, value_name = "ID")]
    app: Option<String>,
    /// Only letters of the endpoint of this name
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// Only letters with this reason, such as `RetryWindowOver` or `UnknownApp`
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Send state too of which a later one is known
    #[arg(long)]
    all: bool,
    /// Send nothing: print a table of the letters and what would happen to each
    #[arg(long)]
    dry_run: bool,
    /// Post to this URL instead of that of the registry; needs --app, --key and --secret-file
    #[arg(long, requires_all = ["app", "key", "secret_file"], value_name = "URL")]
    url: Option<Url>,
    /// Key that signs the bodies to --url
    #[arg(long, requires = "url", value_name = "KEY")]
    key: Option<String>,
    /// File with the secret of the key
    #[arg(long, requires = "url", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Events that are sent in a second at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "NUMBER")]
    per_second: u32,
    /// Name of the dead-letter stream
    #[arg(long, env = "REALTIME_DEAD_LETTER_STREAM", hide_env_values = true, value_parser = NonEmptyStringValueParser::new(), value_name = "NAME")]
    stream: String,
    /// AWS region of the stream
    #[arg(long, env = "AWS_REGION", hide_env_values = true, value_parser = NonEmptyStringValueParser::new(), value_name = "REGION")]
    region: String,
    /// Address of Kinesis, if it is not that of the region
    #[arg(long, env = "AWS_ENDPOINT_URL_KINESIS", hide_env_values = true, value_name = "URL")]
    endpoint_url: Option<String>,
    /// Directory of the app registry, as pods mount it; not needed with --url
    #[arg(
        long,
        env = "REALTIME_APPS_PATH",
        hide_env_values = true,
        required_unless_present = "url",
        value_name = "DIRECTORY"
    )]
    apps: Option<PathBuf>,
    /// Private networks that webhooks may be sent to, separated by commas
    #[arg(
        long,
        env = "REALTIME_ALLOWED_NETWORKS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "NETWORKS"
    )]
    allowed_networks: Vec<ipnet::IpNet>,
    /// Only letters of the cluster with this UID
    #[arg(long, env = "REALTIME_CLUSTER_UID", hide_env_values = true, value_name = "UID")]
    cluster_uid: Option<String>,
    /// Text, or the report as one object; progress goes to standard error
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

/// Runs `realtime replay` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    process::install_tls();
    let report = match run_replay(&arguments).await {
        Ok(report) => report,
        Err(line) => return report_bad_input(&[line]),
    };
    let printed = match arguments.output {
        OutputFormat::Text => print::print_text(&format_report(&report)),
        format => print_value(format, &report),
    };
    if report.items.iter().any(|item| item.result == ReplayResult::Failed) { FAILED_EXIT_CODE } else { printed }
}

async fn run_replay(arguments: &Arguments) -> Result<ReplayReport, String> {
    let now = now_ms();
    let (since_ms, until_ms) = (parse_time(&arguments.since, now)?, parse_time(&arguments.until, now)?);
    if since_ms > until_ms {
        return Err(format!("--since {} is after --until {}: exchange them", arguments.since, arguments.until));
    }
    let networks: Vec<String> = arguments.allowed_networks.iter().map(ToString::to_string).collect();
    let policy = Arc::new(EgressPolicy::new(networks.iter().map(String::as_str), std::iter::empty()));
    let registry = match (&arguments.apps, &arguments.url) {
        (Some(directory), None) => read_registry(directory, &policy).await?,
        _ => AppRegistry::default(),
    };
    let settings = StreamSettings {
        stream: arguments.stream.as_str().into(),
        region: arguments.region.clone(),
        endpoint: arguments.endpoint_url.clone(),
        credentials: AwsCredentials::Chain,
    };
    let request = ReplayRequest {
        letters: KinesisClient::connect(&settings).await,
        filter: LetterFilter {
            since_ms,
            until_ms,
            cluster: arguments.cluster_uid.clone(),
            app: arguments.app.as_deref().map(Into::into),
            endpoint: arguments.endpoint.clone(),
            reason: arguments.reason.clone(),
        },
        registry,
        destination: read_destination(arguments)?,
        policy,
        sends_superseded: arguments.all,
        is_dry_run: arguments.dry_run,
        events_per_second: arguments.per_second,
    };
    replay(request, &|line| eprintln!("realtime: {line}")).await.map_err(|error| error.to_string())
}

fn read_destination(arguments: &Arguments) -> Result<Option<ReplayDestination>, String> {
    let (Some(url), Some(key), Some(file)) = (&arguments.url, &arguments.key, &arguments.secret_file) else {
        return Ok(None);
    };
    let secret = read_secret(file)?;
    Ok(Some(ReplayDestination { url: url.clone(), key: key.as_str().into(), secret }))
}

fn read_secret(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("{} is empty: write the secret of the key into it", file.display())),
        secret => Ok(Secret::new(secret)),
    }
}

/// Parses a time, or an age before now, in ms since 1970.
fn parse_time(text: &str, now_ms: u64) -> Result<u64, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(u64::try_from(time.as_millisecond()).unwrap_or(0));
    }
    let malformed = || format!("`{text}` is no time: write 2026-01-31T08:00:00Z, or an age such as 90m, 6h or 2d");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| malformed())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(malformed()),
    };
    Ok(now_ms.saturating_sub(number.saturating_mul(seconds * 1_000)))
}

/// The table of a dry run, or of the letters that were not delivered, and a summary.
fn format_report(report: &ReplayReport) -> String {
    let is_shown = |item: &&ReplayItem| report.dry_run || item.result != ReplayResult::Delivered;
    let mut rows = vec![
        ["WRITTEN", "REASON", "APP", "ENDPOINT", "EVENT", "CHANNEL", "ATTEMPTS", "LAST ANSWER", "RESULT"]
            .map(str::to_owned),
    ];
    rows.extend(report.items.iter().filter(is_shown).map(format_item));
    let mut text = String::new();
    if rows.len() > 1 {
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
    let count = |result: ReplayResult| report.items.iter().filter(|item| item.result == result).count();
    let (selected, skipped) = (count(ReplayResult::Selected), count(ReplayResult::Skipped));
    let _ = if report.dry_run {
        writeln!(text, "{selected} would be sent, {skipped} skipped; nothing was sent")
    } else {
        let (delivered, failed) = (count(ReplayResult::Delivered), count(ReplayResult::Failed));
        writeln!(text, "{delivered} delivered, {failed} failed, {skipped} skipped")
    };
    if report.unreadable > 0 {
        let _ = writeln!(text, "{} records of {} are no letters of this release", report.unreadable, report.stream);
    }
    text
}

fn format_item(item: &ReplayItem) -> [String; 9] {
    let written = i64::try_from(item.written_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let written = written.map(|time| format!("{time:.0}")).unwrap_or_default();
    let result = match (item.result, item.message.as_str()) {
        (result, "") => format!("{result:?}"),
        (result, why) => format!("{result:?}: {why}"),
    };
    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        written,
        item.reason.clone(),
        text(&item.app),
        text(&item.endpoint),
        text(&item.name),
        text(&item.channel),
        item.attempts.to_string(),
        text(&item.last_answer),
        result,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_time_is_absolute_or_an_age() {
        let now = 1_800_000_000_000;
        for (text, expected) in [
            ("2027-01-15T08:00:00Z", Ok(now)),
            ("0s", Ok(now)),
            ("90m", Ok(now - 5_400_000)),
            ("6h", Ok(now - 21_600_000)),
            ("2d", Ok(now - 172_800_000)),
            ("99999999d", Ok(0)),
        ] {
            assert_eq!(parse_time(text, now), expected, "{text}");
        }
        for bad in ["", "6", "h", "yesterday", "-1h", "2027-01-15"] {
            let error = parse_time(bad, now).expect_err(bad);
            assert!(error.contains("write 2026-01-31T08:00:00Z, or an age"), "{error}");
        }
    }

    #[test]
    fn a_dry_run_shows_every_letter_and_a_replay_those_that_were_not_delivered() {
        let item = |event: &str, result, message: &str| ReplayItem {
            written_ms: 1_700_000_000_000,
            reason: "RetryWindowOver".to_owned(),
            app: "1001".to_owned(),
            endpoint: "orders".to_owned(),
            event: event.to_owned(),
            name: "channel_occupied".to_owned(),
            channel: "a".to_owned(),
            attempts: 14,
            last_answer: String::new(),
            result,
            message: message.to_owned(),
        };
        let report = |dry_run, items| ReplayReport {
            stream: "dead".to_owned(),
            dry_run,
            read: 3,
            unreadable: 1,
            totals: BTreeMap::new(),
            items,
        };
        let dry = report(true, vec![item("1", ReplayResult::Selected, ""), item("2", ReplayResult::Skipped, "later")]);
        assert_eq!(
            format_report(&dry),
            "WRITTEN               REASON           APP   ENDPOINT  EVENT             CHANNEL  ATTEMPTS  LAST ANSWER  RESULT\n\
             2023-11-14T22:13:20Z  RetryWindowOver  1001  orders    channel_occupied  a        14        -            Selected\n\
             2023-11-14T22:13:20Z  RetryWindowOver  1001  orders    channel_occupied  a        14        -            Skipped: later\n\
             1 would be sent, 1 skipped; nothing was sent\n\
             1 records of dead are no letters of this release\n"
        );
        let sent = report(
            false,
            vec![item("1", ReplayResult::Delivered, ""), item("2", ReplayResult::Failed, "answered 500")],
        );
        let text = format_report(&sent);
        assert!(text.contains("Failed: answered 500") && text.contains("1 delivered, 1 failed, 0 skipped\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("RetryWindowOver")).count(), 1, "{text}");
    }
}
