//! Differences between the rendered configuration and the one that a process runs, and its report on its apps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::registry_history::{AppVersion, RegistryHistory};
use crate::api::Reason;
use crate::config::{Release, Variable};
use crate::protocol::AppId;
use crate::protocol::admin::EffectiveReport;

/// Bounds the difference of a process's clock from ours, in ms.
const CLOCK_SKEW_MAX_MS: u64 = 30_000;

/// One difference between a process's configuration and the rendered one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigDrift {
    /// A variable has another value than the rendered one, is missing, or was added.
    Variable {
        /// Name of the variable.
        name: String,
        /// The rendered value; `None` when none was rendered.
        wanted: Option<String>,
        /// The process's value; `None` when it has none.
        found: Option<String>,
    },
    /// The process has a version of this app that was never rendered, lacks it, or has it in addition.
    App(AppId),
    /// The process has a superseded version of this app, although it had the time to load the current one.
    StaleApp(AppId),
    /// The process's clock is off by this many ms.
    Clock(u64),
    /// The process has events of this app to record, and the stream acknowledges none of them.
    SilentApp(AppId),
}

impl ConfigDrift {
    /// The reason that conditions give for this difference.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Variable { .. } => Reason::ConfigurationDrift,
            Self::App(_) => Reason::AppsInconsistent,
            Self::StaleApp(_) => Reason::AppsStale,
            Self::Clock(_) => Reason::ClockSkew,
            Self::SilentApp(_) => Reason::Silent,
        }
    }
}

impl fmt::Display for ConfigDrift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { name, .. } if Variable::by_name(name).is_some_and(|row| row.secret) => {
                write!(f, "{name} differs: another secret than was rendered")
            }
            Self::Variable { name, wanted, found } => match (wanted, found) {
                (Some(wanted), Some(found)) => write!(f, "{name} differs: want {wanted}, pod runs {found}"),
                (Some(wanted), None) => write!(f, "{name} is gone: want {wanted}"),
                (None, Some(found)) => write!(f, "{name} was added: pod runs {found}"),
                (None, None) => write!(f, "{name} differs"),
            },
            Self::App(id) => write!(f, "app {id} differs: the pod's copy of the registry is another"),
            Self::StaleApp(id) => {
                write!(f, "app {id} is a former version: the mounted Secrets were not refreshed in time")
            }
            Self::Clock(off) => write!(f, "the clock is off by {} s", off / 1000),
            // Without a number: the text stays while the fault does.
            Self::SilentApp(id) => {
                write!(f, "app {id} is silent: its events are due for more than 60 s, and the stream acknowledges none")
            }
        }
    }
}

/// The configuration that a process should run.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedConfig<'a> {
    /// Rendered variables, with secrets as salted digests.
    pub variables: &'a BTreeMap<String, String>,
    /// The versions of the registry.
    pub registry: &'a RegistryHistory,
}

/// Compares the configuration that a process reports with the expected one; `now_ms` is our own clock.
#[must_use]
pub fn find_drifts(expected: &ExpectedConfig<'_>, effective: &EffectiveReport, now_ms: u64) -> Vec<ConfigDrift> {
    let variables = expected.variables;
    let names: BTreeSet<&String> = variables.keys().chain(effective.variables.keys()).collect();
    let release: Option<Release> = effective.version.parse().ok();
    // A server of an older release has no default of a variable that it does not know.
    let knows = |name: &String| match (Variable::by_name(name), release) {
        (Some(row), Some(release)) => row.is_read_by(release) || effective.variables.contains_key(name),
        _ => true,
    };
    let mut drifts: Vec<ConfigDrift> = names
        .into_iter()
        .filter(|name| variables.get(*name) != effective.variables.get(*name) && knows(name))
        .map(|name| ConfigDrift::Variable {
            name: name.clone(),
            wanted: variables.get(name).cloned(),
            found: effective.variables.get(name).cloned(),
        })
        .collect();
    let differing = expected.registry.differing_apps(&effective.apps, now_ms);
    drifts.extend(differing.filter_map(|(id, version)| match version {
        AppVersion::Foreign => Some(ConfigDrift::App(id.clone())),
        AppVersion::Stale => Some(ConfigDrift::StaleApp(id.clone())),
        AppVersion::Current | AppVersion::Loading => None,
    }));
    let skew = now_ms.abs_diff(effective.time_ms);
    if skew > CLOCK_SKEW_MAX_MS {
        drifts.push(ConfigDrift::Clock(skew));
    }
    drifts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn apps(pairs: &[(&str, &str)]) -> BTreeMap<AppId, String> {
        pairs.iter().map(|(id, digest)| (AppId::from(*id), (*digest).to_owned())).collect()
    }

    fn effective(variables: &[(&str, &str)], known: &[(&str, &str)], time_ms: u64) -> EffectiveReport {
        EffectiveReport {
            process: "b".into(),
            version: "0.1.0".into(),
            configuration: String::new(),
            time_ms,
            variables: map(variables),
            apps: apps(known),
        }
    }

    fn found(variables: &[(&str, &str)], known: &[(&str, &str)], time_ms: u64) -> Vec<String> {
        let wanted = map(&[("REALTIME_WEBHOOKS", "kinesis"), ("REALTIME_ADMIN_TOKEN", "d1")]);
        let registry = RegistryHistory::of_registry(apps(&[("1", "a")]));
        let expected = ExpectedConfig { variables: &wanted, registry: &registry };
        find_drifts(&expected, &effective(variables, known, time_ms), 100_000).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_superseded_app_is_no_drift_while_it_loads_and_then_is_stale() {
        let mut registry = RegistryHistory::of_registry(apps(&[("1", "a")]));
        registry.record(apps(&[("1", "b")]), 0);
        let none = map(&[]);
        let reasons = |known: &[(&str, &str)], now_ms| {
            let expected = ExpectedConfig { variables: &none, registry: &registry };
            let drifts = find_drifts(&expected, &effective(&[], known, now_ms), now_ms);
            drifts.iter().map(ConfigDrift::reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(&[("1", "a")], 90_000), []);
        assert_eq!(reasons(&[("1", "a")], 90_001), [Reason::AppsStale]);
        assert_eq!(reasons(&[("1", "c")], 1), [Reason::AppsInconsistent], "a version that was never rendered");
        assert_eq!(reasons(&[("1", "b")], 90_001), []);
    }

    #[test]
    fn every_difference_has_its_own_text() {
        let same = [("REALTIME_WEBHOOKS", "kinesis"), ("REALTIME_ADMIN_TOKEN", "d1")];
        let none: [String; 0] = [];
        assert_eq!(found(&same, &[("1", "a")], 100_000), none);
        assert_eq!(found(&same, &[("1", "a")], 130_000), none, "thirty seconds are allowed");
        assert_eq!(
            found(&[("REALTIME_WEBHOOKS", "off"), ("REALTIME_ADMIN_TOKEN", "d1")], &[("1", "a")], 100_000),
            ["REALTIME_WEBHOOKS differs: want kinesis, pod runs off"]
        );
        assert_eq!(
            found(&[("REALTIME_ADMIN_TOKEN", "d2"), ("AWS_X", "y")], &[("1", "b"), ("2", "c")], 10),
            [
                "AWS_X was added: pod runs y",
                "REALTIME_ADMIN_TOKEN differs: another secret than was rendered",
                "REALTIME_WEBHOOKS is gone: want kinesis",
                "app 1 differs: the pod's copy of the registry is another",
                "app 2 differs: the pod's copy of the registry is another",
                "the clock is off by 99 s",
            ]
        );
    }
}
