//! What a process runs against what was rendered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::api::Reason;
use crate::contract::Variable;
use crate::protocol::AppId;
use crate::protocol::admin::Effective;

/// How far a process's clock may be off, in ms.
const MAX_SKEW_MS: u64 = 30_000;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// A variable has another value, or is there or absent against what was rendered.
    Variable {
        /// Its name.
        name: String,
        /// What was rendered.
        wanted: Option<String>,
        /// What the process runs.
        found: Option<String>,
    },
    /// An app is known otherwise.
    App(AppId),
    /// The clock is off by so many ms.
    Clock(u64),
}

impl Drift {
    /// The word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Variable { .. } => Reason::ConfigurationDrift,
            Self::App(_) => Reason::AppsInconsistent,
            Self::Clock(_) => Reason::ClockSkew,
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable { name, .. } if Variable::find(name).is_some_and(|row| row.secret) => {
                write!(f, "{name} differs: another secret than was rendered")
            }
            Self::Variable { name, wanted, found } => match (wanted, found) {
                (Some(wanted), Some(found)) => write!(f, "{name} differs: want {wanted}, pod runs {found}"),
                (Some(wanted), None) => write!(f, "{name} is gone: want {wanted}"),
                (None, Some(found)) => write!(f, "{name} was added: pod runs {found}"),
                (None, None) => write!(f, "{name} differs"),
            },
            Self::App(id) => write!(f, "app {id} differs: the pod's copy of the registry is another"),
            Self::Clock(off) => write!(f, "the clock is off by {} s", off / 1000),
        }
    }
}

/// Compares what one process says of itself with what was rendered for it; `now_ms` is our own clock.
#[must_use]
pub fn compare(
    variables: &BTreeMap<String, String>,
    apps: &BTreeMap<AppId, String>,
    effective: &Effective,
    now_ms: u64,
) -> Vec<Drift> {
    let names: BTreeSet<&String> = variables.keys().chain(effective.variables.keys()).collect();
    let mut drifts: Vec<Drift> = names
        .into_iter()
        .filter(|name| variables.get(*name) != effective.variables.get(*name))
        .map(|name| Drift::Variable {
            name: name.clone(),
            wanted: variables.get(name).cloned(),
            found: effective.variables.get(name).cloned(),
        })
        .collect();
    let ids: BTreeSet<&AppId> = apps.keys().chain(effective.apps.keys()).collect();
    drifts.extend(ids.into_iter().filter(|id| apps.get(*id) != effective.apps.get(*id)).cloned().map(Drift::App));
    let skew = now_ms.abs_diff(effective.time_ms);
    if skew > MAX_SKEW_MS {
        drifts.push(Drift::Clock(skew));
    }
    drifts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn found(variables: &[(&str, &str)], apps: &[(&str, &str)], time_ms: u64) -> Vec<String> {
        let wanted = map(&[("REALTIME_WEBHOOKS", "kinesis"), ("REALTIME_ADMIN_TOKEN", "d1")]);
        let apps_of =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(id, d)| (AppId::from(*id), (*d).to_owned())).collect();
        let effective = Effective {
            process: "b".into(),
            version: "0.1.0".into(),
            configuration: String::new(),
            time_ms,
            variables: map(variables),
            apps: apps_of(apps),
        };
        compare(&wanted, &apps_of(&[("1", "a")]), &effective, 100_000).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_difference_is_told_in_words() {
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
