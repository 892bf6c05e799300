//! The values of all dimensions, numbered in their order: a journey is looked up once, its records are found by number.

use std::collections::HashMap;

use super::CoverageTargets;
use crate::protocol::{ShardId, Transport};

/// One value of a dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TargetValue<'a> {
    /// A transport through a pod or a path.
    Route(Transport, &'a str),
    /// A shard of the stream.
    Shard(&'a str),
    /// A dispatcher that holds a shard.
    Dispatcher(&'a str),
}

impl<'a> TargetValue<'a> {
    /// The pod, or the path, whose value this is; `None` for a shard, which every dispatcher may hold.
    pub fn process(self) -> Option<&'a str> {
        match self {
            Self::Route(_, name) | Self::Dispatcher(name) => Some(name),
            Self::Shard(_) => None,
        }
    }
}

/// The values that must be proven, in order: routes, shards, dispatchers.
#[derive(Clone, Debug, Default)]
pub(super) struct TargetIndex {
    routes: Vec<(Transport, String)>,
    shards: Vec<ShardId>,
    dispatchers: Vec<String>,
    numbers: ValueNumbers,
}

/// The numbers by name: each journey is looked up, and names of pods differ at their ends only.
#[derive(Clone, Debug, Default)]
struct ValueNumbers {
    /// By entrance, then by transport.
    routes: HashMap<String, [Option<usize>; Transport::ALL.len()]>,
    shards: HashMap<String, usize>,
    dispatchers: HashMap<String, usize>,
}

impl TargetIndex {
    /// Numbers the values of the targets. Without webhooks, shards and dispatchers are none.
    pub fn of_targets(targets: &CoverageTargets) -> Self {
        let entrances = targets.pods.iter().chain(&targets.paths);
        let routes = entrances.flat_map(|(name, carries)| carries.iter().map(|transport| (*transport, name.clone())));
        let mut routes: Vec<_> = routes.collect();
        routes.sort_unstable();
        routes.dedup();
        let mut index = Self { routes, ..Self::default() };
        if targets.webhooks {
            index.shards = targets.shards.iter().cloned().collect();
            index.dispatchers = targets.dispatchers.iter().cloned().collect();
        }
        index.numbers = index.number_values();
        index
    }

    fn number_values(&self) -> ValueNumbers {
        let mut numbers = ValueNumbers::default();
        for (number, value) in self.values().enumerate() {
            match value {
                TargetValue::Route(transport, entrance) => {
                    numbers.routes.entry(entrance.to_owned()).or_default()[transport as usize] = Some(number);
                }
                TargetValue::Shard(id) => {
                    numbers.shards.insert(id.to_owned(), number);
                }
                TargetValue::Dispatcher(pod) => {
                    numbers.dispatchers.insert(pod.to_owned(), number);
                }
            }
        }
        numbers
    }

    /// The routes, by their numbers.
    pub fn routes(&self) -> &[(Transport, String)] {
        &self.routes
    }

    /// The values, by their numbers.
    pub fn values(&self) -> impl Iterator<Item = TargetValue<'_>> {
        let routes = self.routes.iter().map(|(transport, entrance)| TargetValue::Route(*transport, entrance));
        let shards = self.shards.iter().map(|shard| TargetValue::Shard(shard.as_str()));
        routes.chain(shards).chain(self.dispatchers.iter().map(|pod| TargetValue::Dispatcher(pod)))
    }

    /// The number of a value; `None` when it need not be proven.
    pub fn find(&self, value: TargetValue<'_>) -> Option<usize> {
        match value {
            TargetValue::Route(transport, entrance) => *self.numbers.routes.get(entrance)?.get(transport as usize)?,
            TargetValue::Shard(id) => self.numbers.shards.get(id).copied(),
            TargetValue::Dispatcher(pod) => self.numbers.dispatchers.get(pod).copied(),
        }
    }

    /// Each value's record among those of another index, in the order of this one; `None` for a value without one.
    pub fn take_records<T>(&self, before: &Self, records: Vec<T>) -> impl Iterator<Item = Option<T>> {
        let mut records: Vec<Option<T>> = records.into_iter().map(Some).collect();
        self.values().map(move |value| before.find(value).and_then(|number| records.get_mut(number)?.take()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(pods: &[&str], shards: &[&str], webhooks: bool) -> CoverageTargets {
        let carries = [Transport::XhrPolling, Transport::Websocket];
        CoverageTargets {
            pods: pods.iter().map(|pod| ((*pod).to_owned(), carries.into())).collect(),
            paths: [("a path".to_owned(), [Transport::Websocket].into())].into(),
            shards: shards.iter().map(|shard| ShardId::from(*shard)).collect(),
            dispatchers: ["reader".to_owned()].into(),
            webhooks,
            ..CoverageTargets::default()
        }
    }

    #[test]
    fn every_value_is_found_by_the_number_of_its_place() {
        let index = TargetIndex::of_targets(&targets(&["two", "one"], &["s2", "s1"], true));
        let values: Vec<_> = index.values().collect();
        assert_eq!(values.len(), 8);
        assert!(values.is_sorted(), "{values:?}");
        for (number, value) in values.iter().enumerate() {
            assert_eq!(index.find(*value), Some(number), "{value:?}");
        }
        assert_eq!(index.find(TargetValue::Route(Transport::XhrPolling, "a path")), None);
        assert_eq!(index.find(TargetValue::Shard("s3")), None);
        let off = TargetIndex::of_targets(&targets(&["one"], &["s1"], false));
        assert_eq!(off.values().count(), 3, "without webhooks, routes alone");
    }

    #[test]
    fn records_stay_with_their_values() {
        let before = TargetIndex::of_targets(&targets(&["one", "two"], &["s1"], true));
        let after = TargetIndex::of_targets(&targets(&["two", "three"], &["s1", "s2"], true));
        let records: Vec<String> = before.values().map(|value| format!("{value:?}")).collect();
        for (value, record) in after.values().zip(after.take_records(&before, records)) {
            let expected = before.find(value).map(|_| format!("{value:?}"));
            assert_eq!(record, expected, "{value:?}");
        }
    }
}
