//! `realtime cost`: the monthly cost of a cluster's streams.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::output::{OutputFormat, print_value};
use super::{files, print, report_bad_input};
use crate::desired::stream_cost::{StreamCost, StreamLoad, StreamPrices, estimate_stream_cost};

/// `GetRecords` calls for a shard in an hour: one every 250 ms. They are not billed.
const SHARD_READS_PER_HOUR: u32 = 14_400;

/// Print the monthly cost of a cluster's Kinesis streams
///
/// Prices come from a file, because they differ by region and change; examples/cost/prices.yaml shows its form. The cost of
/// pods, Redis and load balancers is not part of it.
#[derive(clap::Args)]
#[command(
    after_help = "Example:  realtime cost examples/eu.yaml --prices examples/cost/prices.yaml --events-per-second 200"
)]
pub struct Arguments {
    /// Files with one RealtimeCluster; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The price list of the region, as YAML
    #[arg(long, value_name = "FILE")]
    prices: PathBuf,
    /// Recorded events in a second, as an average of the month. Metric: `realtime_edge_recorder_events_acknowledged_total`
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    events_per_second: u32,
    /// Records per 1,000 events. `realtime bench pipeline` prints it for its load; 1000 is the worst case
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    records_per_thousand_events: u32,
    /// Bytes of an event in a record
    #[arg(long, value_name = "BYTES", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    event_bytes: u32,
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CostReport<'a> {
    cluster: String,
    region: &'a str,
    currency: &'a str,
    date: &'a str,
    load: StreamLoad,
    #[serde(flatten)]
    cost: &'a StreamCost,
    reads_per_shard_and_hour: u32,
    warnings: &'a [String],
}

/// Runs `realtime cost` and returns its exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let read = files::read(&arguments.files).and_then(|input| Ok((input, read_prices(arguments)?)));
    let (input, prices) = match read {
        Ok(read) => read,
        Err(errors) => return report_bad_input(&errors),
    };
    let load = StreamLoad {
        events_per_second: f64::from(arguments.events_per_second),
        records_per_thousand_events: f64::from(arguments.records_per_thousand_events),
        event_bytes: f64::from(arguments.event_bytes),
    };
    let cost = estimate_stream_cost(&input.cluster, &prices, &load);
    let spec = &input.cluster.spec;
    let mut warnings = Vec::new();
    if spec.aws.region != prices.region {
        warnings.push(format!("the prices are those of {}, the stream is in {}", prices.region, spec.aws.region));
    }
    if let Some(shards) = spec.webhooks.stream.shards.filter(|shards| f64::from(*shards) < cost.shards_needed) {
        let needed = cost.shards_needed;
        warnings.push(format!("the load needs at least {needed} shards and the manifest has {shards}"));
    }
    let name = input.cluster.metadata.name.as_deref().unwrap_or_default();
    let report = CostReport {
        cluster: format!("{}/{name}", input.namespace()),
        region: &prices.region,
        currency: &prices.currency,
        date: &prices.date,
        load,
        cost: &cost,
        reads_per_shard_and_hour: SHARD_READS_PER_HOUR,
        warnings: &warnings,
    };
    match arguments.output {
        OutputFormat::Text => print::print_text(&write_text(&report)),
        format => print_value(format, &report),
    }
}

fn read_prices(arguments: &Arguments) -> Result<StreamPrices, Vec<String>> {
    let path = &arguments.prices;
    let name = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| vec![format!("{name}: cannot be read: {error}")])?;
    let prices: StreamPrices = serde_yaml::from_str(&text).map_err(|error| vec![format!("{name}: {error}")])?;
    prices.check().map_err(|error| vec![format!("{name}: {error}")])?;
    Ok(prices)
}

fn write_text(report: &CostReport<'_>) -> String {
    let CostReport { cost, load, currency, .. } = report;
    let mut text = format!(
        "{}: {} events/s, {} records per 1,000 events, {} bytes each; prices of {}, {}\n\n",
        report.cluster,
        load.events_per_second,
        load.records_per_thousand_events,
        load.event_bytes,
        report.region,
        report.date
    );
    for item in &cost.items {
        let _ = writeln!(
            text,
            "  {:<12} {:<42} {:>12.2} {:>12.2} {currency}",
            item.stream, item.unit, item.quantity, item.amount
        );
    }
    let mut total = |name: &str, amount: f64| {
        let _ = writeln!(text, "  {name:<68} {amount:>12.2} {currency}");
    };
    total("total of a month", cost.per_month);
    total("per million events", cost.per_million_events);
    total("total of a month in the other capacity mode of the main stream", cost.other_mode_per_month);
    let _ = writeln!(
        text,
        "\n  PUT payload units per 1,000 events: {:.0}; shards needed: {}; reads of a shard in an hour: {} (not billed)",
        cost.payload_units_per_thousand_events, cost.shards_needed, report.reads_per_shard_and_hour
    );
    for warning in report.warnings {
        let _ = writeln!(text, "  warning: {warning}");
    }
    text
}
