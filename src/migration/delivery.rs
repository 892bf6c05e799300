//! Deliveries to the webhook endpoints of customers, as the status of apps has them: those of two clusters are compared, since an
//! endpoint that fails at both is the customer's own failure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::api::app::AppEndpointState;
use crate::api::{EnabledState, RealtimeApp};
use crate::protocol::AppId;

/// Endpoints of all apps of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySnapshot {
    /// Number of enabled endpoints to which the cluster has sent webhooks.
    pub attempted: u64,
    /// Names of those that fail, by app.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failing: BTreeMap<AppId, BTreeSet<String>>,
}

impl DeliverySnapshot {
    /// The endpoints of apps in one cluster, by its name. Those of disabled apps get no webhooks, and do not count.
    #[must_use]
    pub fn of_apps<'a>(cluster: &str, apps: impl IntoIterator<Item = &'a RealtimeApp>) -> Self {
        let mut found = Self::default();
        for app in apps.into_iter().filter(|app| app.spec.state == EnabledState::Enabled) {
            let endpoints = app.status.iter().flat_map(|status| &status.endpoints);
            for endpoint in endpoints.filter(|endpoint| endpoint.cluster == cluster) {
                match endpoint.state {
                    AppEndpointState::Idle | AppEndpointState::Disabled => continue,
                    AppEndpointState::Delivering => {}
                    AppEndpointState::Failing => {
                        found.failing.entry(app.spec.app_id.as_str().into()).or_default().insert(endpoint.name.clone());
                    }
                }
                found.attempted += 1;
            }
        }
        found
    }

    /// Number of endpoints that fail.
    #[must_use]
    pub fn failing_count(&self) -> usize {
        self.failing.values().map(BTreeSet::len).sum()
    }

    /// Endpoints that fail here and not at the other cluster, each as `APP/NAME`.
    #[must_use]
    pub fn failing_alone(&self, other: &Self) -> Vec<String> {
        let is_shared = |app: &AppId, name: &String| other.failing.get(app).is_some_and(|names| names.contains(name));
        let all = self.failing.iter().flat_map(|(app, names)| names.iter().map(move |name| (app, name)));
        all.filter(|(app, name)| !is_shared(app, name)).map(|(app, name)| format!("{app}/{name}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(id: &str, state: &str, endpoints: &[(&str, &str, &str)]) -> RealtimeApp {
        let endpoints = endpoints.iter().map(|(cluster, name, state)| {
            serde_json::json!({ "cluster": cluster, "name": name, "state": state, "lastAnswer": "503" })
        });
        serde_json::from_value(serde_json::json!({
            "apiVersion": "realtime-operator.dev/v1alpha1", "kind": "RealtimeApp", "metadata": { "name": format!("app-{id}") },
            "spec": { "appID": id, "state": state },
            "status": { "endpoints": endpoints.collect::<Vec<_>>() },
        }))
        .expect("an app")
    }

    #[test]
    fn endpoints_with_webhooks_are_counted_and_those_that_fail_here_alone_are_named() {
        let apps = [
            app("1", "Enabled", &[("eu", "a", "Failing"), ("eu", "b", "Delivering"), ("us", "a", "Failing")]),
            app("2", "Enabled", &[("eu", "a", "Failing"), ("eu", "idle", "Idle"), ("eu", "off", "Disabled")]),
            app("3", "Disabled", &[("eu", "a", "Failing")]),
            app("4", "Enabled", &[]),
        ];
        let (here, there) = (DeliverySnapshot::of_apps("eu", &apps), DeliverySnapshot::of_apps("us", &apps));
        assert_eq!((here.attempted, here.failing_count()), (3, 2));
        assert_eq!((there.attempted, there.failing_count()), (1, 1));
        assert_eq!(here.failing_alone(&there), ["2/a"]);
        assert!(there.failing_alone(&here).is_empty());
        let json = serde_json::to_string(&here).expect("JSON");
        assert_eq!(json, r#"{"attempted":3,"failing":{"1":["a"],"2":["a"]}}"#);
        assert_eq!(serde_json::from_str::<DeliverySnapshot>(&json).ok(), Some(here));
    }
}
