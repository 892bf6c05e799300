//! Differences between the configuration that a process runs and the rendered one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::api::Reason;
use crate::config::Variable;
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
    /// The process has another version of this app, lacks it, or has it in addition.
    App(AppId),
    /// The process has the former registry although it had the time to load the new one.
    Registry,
    /// The process's clock is off by this many ms.
    Clock(u64),
}

impl ConfigDrift {
    /// The reason that conditions give for this difference.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Variable { .. } => Reason::ConfigurationDrift,
            Self::App(_) => Reason::AppsInconsistent,
            Self::Registry => Reason::AppsStale,
            Self::Clock(_) => Reason::ClockSkew,
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
            Self::Registry => write!(f, "the registry is the former one: its mounted Secrets were not renewed in time"),
            Self::Clock(off) => write!(f, "the clock is off by {} s", off / 1000),
        }
    }
}

/// The configuration that a process should run.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedConfig<'a> {
    /// Rendered variables, with secrets as salted digests.
    pub variables: &'a BTreeMap<String, String>,
    /// Salted digest of each app in the registry.
    pub apps: &'a BTreeMap<AppId, String>,
    /// The registry before its last change, while processes may still have it.
    pub former: Option<FormerRegistry<'a>>,
}

/// The registry before its last change.
#[derive(Clone, Copy, Debug)]
pub struct FormerRegistry<'a> {
    /// Salted digest of each app in the former registry.
    pub apps: &'a BTreeMap<AppId, String>,
    /// Whether a process may still be loading the change.
    pub learning: bool,
}

/// Compares the configuration that a process reports with the expected one; `now_ms` is our own clock.
#[must_use]
pub fn find_drifts(expected: &ExpectedConfig<'_>, effective: &EffectiveReport, now_ms: u64) -> Vec<ConfigDrift> {
    let variables = expected.variables;
    let names: BTreeSet<&String> = variables.keys().chain(effective.variables.keys()).collect();
    let mut drifts: Vec<ConfigDrift> = names
        .into_iter()
        .filter(|name| variables.get(*name) != effective.variables.get(*name))
        .map(|name| ConfigDrift::Variable {
            name: name.clone(),
            wanted: variables.get(name).cloned(),
            found: effective.variables.get(name).cloned(),
        })
        .collect();
    drifts.extend(find_app_drifts(expected, &effective.apps));
    let skew = now_ms.abs_diff(effective.time_ms);
    if skew > CLOCK_SKEW_MAX_MS {
        drifts.push(ConfigDrift::Clock(skew));
    }
    drifts
}

fn find_app_drifts(expected: &ExpectedConfig<'_>, found: &BTreeMap<AppId, String>) -> Vec<ConfigDrift> {
    let wanted = expected.apps;
    let former = expected.former.filter(|former| former.apps == found && wanted != found);
    if let Some(former) = former {
        return if former.learning { vec![] } else { vec![ConfigDrift::Registry] };
    }
    let ids: BTreeSet<&AppId> = wanted.keys().chain(found.keys()).collect();
    ids.into_iter().filter(|id| wanted.get(*id) != found.get(*id)).cloned().map(ConfigDrift::App).collect()
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
        let expected = ExpectedConfig { variables: &wanted, apps: &apps(&[("1", "a")]), former: None };
        find_drifts(&expected, &effective(variables, known, time_ms), 100_000).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_registry_may_be_the_former_one_for_a_while_and_then_is_stale() {
        let (none, now, before) = (map(&[]), apps(&[("1", "b")]), apps(&[("1", "a")]));
        let reasons = |learning, known: &[(&str, &str)]| {
            let expected = ExpectedConfig {
                variables: &none,
                apps: &now,
                former: Some(FormerRegistry { apps: &before, learning }),
            };
            let drifts = find_drifts(&expected, &effective(&[], known, 100_000), 100_000);
            drifts.iter().map(ConfigDrift::reason).collect::<Vec<_>>()
        };
        assert_eq!(reasons(true, &[("1", "a")]), []);
        assert_eq!(reasons(false, &[("1", "a")]), [Reason::AppsStale]);
        assert_eq!(reasons(true, &[("1", "c")]), [Reason::AppsInconsistent], "neither this one nor that");
        assert_eq!(reasons(false, &[("1", "b")]), []);
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
