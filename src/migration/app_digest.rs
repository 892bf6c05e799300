//! Apps of a snapshot: what two clusters must have alike, as digests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SecretDigester;
use crate::protocol::AppId;
use crate::protocol::registry::{App, Credential, WebhookEndpoint};

/// One app of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppDigest {
    /// Whether the app is served.
    pub enabled: bool,
    /// Digest of each key with its secret, sorted; `None` if one was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Vec<String>>,
    /// Digest of limits, origins and the settings of its clients.
    pub settings: String,
    /// Endpoints that receive webhooks, by name.
    pub endpoints: BTreeMap<String, EndpointDigest>,
}

/// One webhook endpoint of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDigest {
    /// Digest of URL, filters, headers, batching and timeout; `None` if a header was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// Whether the cluster sends it nothing, because its address is not allowed there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// Digests apps by their ids, without the app of the cluster's own journeys. `is_known` is false for a text that stands
/// for a secret which was not read.
#[must_use]
pub fn digest_apps<'a>(
    apps: impl IntoIterator<Item = &'a App>,
    probe: &AppId,
    digester: &SecretDigester,
    is_known: impl Fn(&str) -> bool,
) -> BTreeMap<AppId, AppDigest> {
    let apps = apps.into_iter().filter(|app| app.id != *probe);
    apps.map(|app| (app.id.clone(), digest_app(app, digester, &is_known))).collect()
}

fn digest_app(app: &App, digester: &SecretDigester, is_known: &impl Fn(&str) -> bool) -> AppDigest {
    let pair = |credential: &Credential| {
        let (key, secret) = (credential.key.as_str(), credential.secret.expose());
        (is_known(key) && is_known(secret)).then(|| digester.digest("credential", &format!("{key}\0{secret}")))
    };
    let credentials: Option<Vec<String>> = app.credentials.iter().map(pair).collect();
    let credentials = credentials.map(|mut pairs| {
        pairs.sort_unstable();
        pairs
    });
    let mut origins = app.allowed_origins.clone();
    origins.sort_unstable();
    let settings =
        serde_json::json!([app.limits, app.client_events, app.subscription_count, app.authorization_seconds, origins]);
    let endpoints =
        app.webhooks.iter().map(|endpoint| (endpoint.name.clone(), digest_endpoint(endpoint, digester, is_known)));
    AppDigest {
        enabled: app.enabled,
        credentials,
        settings: digester.digest("settings", &settings.to_string()),
        endpoints: endpoints.collect(),
    }
}

fn digest_endpoint(
    endpoint: &WebhookEndpoint,
    digester: &SecretDigester,
    is_known: &impl Fn(&str) -> bool,
) -> EndpointDigest {
    let headers: Vec<_> = endpoint.headers.iter().map(|(name, value)| (name, value.expose())).collect();
    let mut events = endpoint.events.clone();
    events.sort_unstable();
    let text = serde_json::json!([
        endpoint.url,
        events,
        endpoint.channel_prefix,
        endpoint.timeout_seconds,
        endpoint.batch,
        headers
    ]);
    let are_known = endpoint.headers.values().all(|value| is_known(value.expose()));
    EndpointDigest {
        settings: are_known.then(|| digester.digest("endpoint", &text.to_string())),
        refused: endpoint.unsendable.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Secret;

    fn app(id: &str, secret: &str, url: &str) -> App {
        serde_json::from_value(serde_json::json!({
            "id": id, "enabled": true, "clientEvents": false, "limits": { "clientEventsPerSecond": 10 },
            "credentials": [{ "key": "k", "secret": secret, "state": "Active" }],
            "webhooks": [{ "name": "orders", "url": url, "events": [], "channelPrefix": "", "timeoutSeconds": 4 }],
        }))
        .expect("an app")
    }

    #[test]
    fn equal_apps_have_equal_digests_and_the_probe_has_none() {
        let key = SecretDigester::new("0123456789abcdef").expect("a key");
        let digest = |app: &App| digest_apps([app], &"9".into(), &key, |text| !text.starts_with('<'));
        let one = app("1", "s", "https://a.test");
        assert_eq!(digest(&one), digest(&one.clone()));
        assert!(digest(&app("9", "s", "https://a.test")).is_empty());
        let found = |app: &App| digest(app).remove(&app.id).expect("an app");
        let (base, other) = (found(&one), found(&app("1", "t", "https://b.test")));
        assert_ne!(base.credentials, other.credentials);
        assert_ne!(base.endpoints, other.endpoints);
        assert_eq!(base.settings, other.settings);
        let mut limited = one.clone();
        limited.limits.connections = Some(1);
        assert_ne!(found(&limited).settings, base.settings);
        assert_eq!(found(&app("1", "<secret>", "https://a.test")).credentials, None);
        let mut blind = one.clone();
        blind.webhooks[0].headers.insert("X-Key".to_owned(), Secret::new("<header>"));
        assert_eq!(found(&blind).endpoints["orders"].settings, None);
        let text = serde_json::to_string(&digest(&one)).expect("JSON");
        assert!(!text.contains("a.test"), "{text}");
    }
}
