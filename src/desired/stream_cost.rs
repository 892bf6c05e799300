//! The monthly cost of a cluster's streams, from a price list and a load. Pure.
//!
//! Kinesis bills a provisioned stream by shard hours and PUT payload units of 25 KB, rounded up per record, and an
//! on-demand stream by hours and by bytes in and out, rounded up to 1 KB per record (AWS, "Amazon Kinesis Data Streams
//! pricing").

use serde::{Deserialize, Serialize};

use crate::api::RealtimeCluster;
use crate::api::cluster::{DeadLetterMode, StreamMode};

/// Hours of a month, as price pages count them.
const MONTH_HOURS: f64 = 730.0;
/// Bytes of a PUT payload unit.
const PAYLOAD_UNIT_BYTES: f64 = 25.0 * 1024.0;
/// Bytes to which an on-demand stream rounds a record up.
const ON_DEMAND_STEP_BYTES: f64 = 1024.0;
/// Bytes of a gigabyte of an on-demand stream.
const GIGABYTE_BYTES: f64 = 1024.0 * 1024.0 * 1024.0;
/// Records that a shard takes in a second.
const SHARD_RECORDS_PER_SECOND: f64 = 1_000.0;
/// Bytes that a shard takes in a second.
const SHARD_BYTES_PER_SECOND: f64 = 1024.0 * 1024.0;
/// Hours of retention that the price of a shard includes.
const INCLUDED_RETENTION_HOURS: i32 = 24;

/// A price list of Kinesis in one region.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamPrices {
    /// Region of the prices.
    pub region: String,
    /// Currency of the prices, such as `USD`.
    pub currency: String,
    /// Day on which the prices were copied.
    pub date: String,
    /// Prices of provisioned streams.
    pub provisioned: ProvisionedPrices,
    /// Prices of on-demand streams.
    pub on_demand: OnDemandPrices,
}

/// Prices of provisioned streams.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProvisionedPrices {
    /// Price of a shard for an hour.
    pub shard_hour: f64,
    /// Price of a million PUT payload units.
    pub million_put_payload_units: f64,
    /// Price of a shard for an hour with a retention above 24 hours, besides `shardHour`.
    pub extended_retention_shard_hour: f64,
}

/// Prices of on-demand streams.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnDemandPrices {
    /// Price of a stream for an hour.
    pub stream_hour: f64,
    /// Price of a gigabyte written.
    pub gigabyte_in: f64,
    /// Price of a gigabyte read.
    pub gigabyte_out: f64,
}

impl StreamPrices {
    /// Checks that every price is a number that can be one.
    ///
    /// # Errors
    /// The field with a negative or infinite price.
    pub fn check(&self) -> Result<(), String> {
        let Self { provisioned, on_demand, .. } = self;
        let all = [
            ("provisioned.shardHour", provisioned.shard_hour),
            ("provisioned.millionPutPayloadUnits", provisioned.million_put_payload_units),
            ("provisioned.extendedRetentionShardHour", provisioned.extended_retention_shard_hour),
            ("onDemand.streamHour", on_demand.stream_hour),
            ("onDemand.gigabyteIn", on_demand.gigabyte_in),
            ("onDemand.gigabyteOut", on_demand.gigabyte_out),
        ];
        match all.into_iter().find(|(_, price)| !price.is_finite() || *price < 0.0) {
            Some((field, price)) => Err(format!("{field}: {price} is no price")),
            None => Ok(()),
        }
    }
}

/// The load of a cluster's main stream.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamLoad {
    /// Recorded events in a second, as a monthly average.
    pub events_per_second: f64,
    /// Records per 1,000 events: edges write the events of a channel that wait together as one record.
    pub records_per_thousand_events: f64,
    /// Bytes of an event in a record, with its share of the record's other fields.
    pub event_bytes: f64,
}

impl StreamLoad {
    fn records_per_second(&self) -> f64 {
        self.events_per_second * self.records_per_thousand_events / 1_000.0
    }

    fn record_bytes(&self) -> f64 {
        self.event_bytes * 1_000.0 / self.records_per_thousand_events
    }

    fn payload_units_per_second(&self) -> f64 {
        self.records_per_second() * (self.record_bytes() / PAYLOAD_UNIT_BYTES).ceil()
    }

    fn billed_gigabytes_per_month(&self) -> f64 {
        let record = (self.record_bytes() / ON_DEMAND_STEP_BYTES).ceil() * ON_DEMAND_STEP_BYTES;
        self.records_per_second() * record * MONTH_HOURS * 3_600.0 / GIGABYTE_BYTES
    }

    /// The least number of shards that takes the load, if it comes evenly.
    fn shards_needed(&self) -> f64 {
        let bytes = self.events_per_second * self.event_bytes;
        (self.records_per_second() / SHARD_RECORDS_PER_SECOND).max(bytes / SHARD_BYTES_PER_SECOND).ceil().max(1.0)
    }
}

/// One line of a bill.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CostItem {
    /// The stream: `main` or `dead letter`.
    pub stream: &'static str,
    /// Unit that Kinesis bills.
    pub unit: &'static str,
    /// Number of units in a month.
    pub quantity: f64,
    /// Price of the units.
    pub amount: f64,
}

/// The cost of a cluster's streams in a month.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamCost {
    /// Lines of the bill, by stream and unit.
    pub items: Vec<CostItem>,
    /// Sum of all lines.
    pub per_month: f64,
    /// The sum per million events; each is a webhook for every endpoint of its app that receives it.
    pub per_million_events: f64,
    /// PUT payload units per 1,000 events.
    pub payload_units_per_thousand_events: f64,
    /// The sum with the main stream in the other capacity mode, with as many shards as the load needs.
    pub other_mode_per_month: f64,
    /// The least number of shards that takes the load, if it comes evenly.
    pub shards_needed: f64,
}

/// Computes the monthly cost of a cluster's streams.
#[must_use]
pub fn estimate_stream_cost(cluster: &RealtimeCluster, prices: &StreamPrices, load: &StreamLoad) -> StreamCost {
    let stream = &cluster.spec.webhooks.stream;
    let needed = load.shards_needed();
    let (main, other) = match stream.mode.unwrap_or_default() {
        StreamMode::Provisioned => (
            bill_provisioned("main", f64::from(stream.shards.unwrap_or(1)), load, prices),
            bill_on_demand("main", load, prices),
        ),
        StreamMode::OnDemand => (bill_on_demand("main", load, prices), bill_provisioned("main", needed, load, prices)),
    };
    let dead_letter = cluster.spec.webhooks.dead_letter.as_ref().filter(|it| it.mode == DeadLetterMode::Stream);
    let dead_letter: Vec<CostItem> = dead_letter.map_or_else(Vec::new, |spec| {
        let hours = f64::from(spec.shards) * MONTH_HOURS;
        let mut items = vec![bill("dead letter", "shard hours", hours, prices.provisioned.shard_hour)];
        if spec.retention_hours > INCLUDED_RETENTION_HOURS {
            let price = prices.provisioned.extended_retention_shard_hour;
            items.push(bill("dead letter", "shard hours with a retention above 24 h", hours, price));
        }
        items
    });
    let sum = |items: &[CostItem]| items.iter().map(|item| item.amount).sum::<f64>();
    let per_month = sum(&main) + sum(&dead_letter);
    let million_events = load.events_per_second * MONTH_HOURS * 3_600.0 / 1e6;
    StreamCost {
        per_month,
        per_million_events: per_month / million_events,
        payload_units_per_thousand_events: load.payload_units_per_second() / load.events_per_second * 1_000.0,
        other_mode_per_month: sum(&other) + sum(&dead_letter),
        shards_needed: needed,
        items: main.into_iter().chain(dead_letter).collect(),
    }
}

fn bill(stream: &'static str, unit: &'static str, quantity: f64, price: f64) -> CostItem {
    CostItem { stream, unit, quantity, amount: quantity * price }
}

fn bill_provisioned(stream: &'static str, shards: f64, load: &StreamLoad, prices: &StreamPrices) -> Vec<CostItem> {
    let prices = &prices.provisioned;
    let units = load.payload_units_per_second() * MONTH_HOURS * 3_600.0 / 1e6;
    vec![
        bill(stream, "shard hours", shards * MONTH_HOURS, prices.shard_hour),
        bill(stream, "million PUT payload units", units, prices.million_put_payload_units),
    ]
}

fn bill_on_demand(stream: &'static str, load: &StreamLoad, prices: &StreamPrices) -> Vec<CostItem> {
    let prices = &prices.on_demand;
    let gigabytes = load.billed_gigabytes_per_month();
    vec![
        bill(stream, "stream hours", MONTH_HOURS, prices.stream_hour),
        bill(stream, "GB written", gigabytes, prices.gigabyte_in),
        bill(stream, "GB read", gigabytes, prices.gigabyte_out),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices() -> StreamPrices {
        StreamPrices {
            region: "eu-west-1".into(),
            currency: "USD".into(),
            date: "2026-01-01".into(),
            provisioned: ProvisionedPrices {
                shard_hour: 0.02,
                million_put_payload_units: 0.5,
                extended_retention_shard_hour: 0.01,
            },
            on_demand: OnDemandPrices { stream_hour: 0.04, gigabyte_in: 0.08, gigabyte_out: 0.04 },
        }
    }

    fn cluster(stream: &str, dead_letter: &str) -> RealtimeCluster {
        let text = format!(
            "apiVersion: realtime-operator.dev/v1alpha1\nkind: RealtimeCluster\nmetadata: {{ name: eu }}\nspec:\n  aws: {{ region: eu-west-1, identity: {{ type: PodIdentity }} }}\n  bus: {{ type: Redis, redis: {{ urlSecretRef: {{ name: r, key: url }} }} }}\n  webhooks: {{ stream: {stream}{dead_letter} }}\n"
        );
        serde_yaml::from_str(&text).expect("a cluster")
    }

    fn amounts(cost: &StreamCost) -> Vec<(&'static str, &'static str, String)> {
        cost.items.iter().map(|item| (item.stream, item.unit, format!("{:.2}", item.amount))).collect()
    }

    #[test]
    fn a_provisioned_stream_is_billed_by_shards_and_payload_units() {
        // 1,000,000 events in 730 h, one record each.
        let load = StreamLoad {
            events_per_second: 1e6 / 2_628_000.0,
            records_per_thousand_events: 1_000.0,
            event_bytes: 300.0,
        };
        let spec = cluster("{ mode: Provisioned, shards: 2 }", ", deadLetter: { shards: 1 }");
        let cost = estimate_stream_cost(&spec, &prices(), &load);
        let expected = [
            ("main", "shard hours", "29.20".to_owned()),
            ("main", "million PUT payload units", "0.50".to_owned()),
            ("dead letter", "shard hours", "14.60".to_owned()),
            ("dead letter", "shard hours with a retention above 24 h", "7.30".to_owned()),
        ];
        assert_eq!(amounts(&cost), expected);
        assert_eq!(format!("{:.2} {:.2}", cost.per_month, cost.per_million_events), "51.60 51.60");
        let on_demand = 730.0 * 0.04 + 1e6 * 1024.0 / GIGABYTE_BYTES * 0.12 + 21.90;
        assert!((cost.other_mode_per_month - on_demand).abs() < 0.001, "{}", cost.other_mode_per_month);
    }

    #[test]
    fn records_are_rounded_up_one_by_one() {
        let load = StreamLoad { events_per_second: 2_000.0, records_per_thousand_events: 10.0, event_bytes: 300.0 };
        // 100 events are 30,000 bytes: two payload units, and 30 KB on demand.
        let cost = estimate_stream_cost(&cluster("{}", ""), &prices(), &load);
        assert!((cost.payload_units_per_thousand_events - 20.0).abs() < 1e-9);
        let written = cost.items.iter().find(|item| item.unit == "GB written").expect("on demand by default");
        let gigabytes = 20.0 * 30.0 * 1024.0 * 2_628_000.0 / GIGABYTE_BYTES;
        assert!((written.quantity - gigabytes).abs() < 1e-6, "{}", written.quantity);
    }

    #[test]
    fn the_shards_that_a_load_needs_follow_records_and_bytes() {
        for (events, records, bytes, expected) in
            [(100.0, 1_000.0, 300.0, 1.0), (2_500.0, 1_000.0, 100.0, 3.0), (1_000.0, 100.0, 4_000.0, 4.0)]
        {
            let load =
                StreamLoad { events_per_second: events, records_per_thousand_events: records, event_bytes: bytes };
            assert!((load.shards_needed() - expected).abs() < 1e-9, "{events} {records} {bytes}");
        }
    }

    #[test]
    fn a_price_list_is_checked() {
        assert_eq!(prices().check(), Ok(()));
        let mut wrong = prices();
        wrong.on_demand.gigabyte_in = -1.0;
        assert_eq!(wrong.check(), Err("onDemand.gigabyteIn: -1 is no price".to_owned()));
        assert!(serde_yaml::from_str::<StreamPrices>("region: eu-west-1\nshardHour: 1\n").is_err());
    }
}
