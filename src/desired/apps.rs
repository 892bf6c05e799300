//! Validates apps: resolves their credentials, checks their origins and webhooks, finds conflicts between them.

use std::collections::{BTreeMap, HashSet};

use super::app_credentials::{AppCredentials, GeneratedPair};
use super::cluster::ProbeApp;
use super::credentials::ClusterCredentials;
use super::problem::{ManifestProblem, describe_app};
use super::secret_references::SecretTexts;
use super::webhook_endpoints::resolve_endpoints;
use crate::api::app::{AppLimitsSpec, CredentialState as ApiCredentialState};
use crate::api::{EnabledState, RealtimeApp};
use crate::protocol::registry::{
    App, AppLimits, BatchMode, CONNECTIONS_PER_SOURCE_UNBOUNDED, Credential, CredentialState, WebhookEndpoint,
};
use crate::protocol::{AppId, AppKey, Secret, origin};

pub(super) fn build_probe_app(probe: &ProbeApp, receiver: &str) -> App {
    App {
        id: probe.id.clone(),
        credentials: vec![Credential {
            key: probe.key.clone(),
            secret: probe.secret.clone(),
            state: CredentialState::Active,
        }],
        enabled: true,
        client_events: true,
        // Journeys check every kind of webhook, so the probe app enables all optional ones.
        subscription_count: true,
        authorization_seconds: None,
        allowed_origins: vec![],
        limits: AppLimits { connections_per_source: CONNECTIONS_PER_SOURCE_UNBOUNDED, ..AppLimits::default() },
        webhooks: vec![WebhookEndpoint {
            name: "receiver".to_owned(),
            url: format!("http://{receiver}/webhooks"),
            events: vec![],
            channel_prefix: String::new(),
            timeout_seconds: 4,
            batch: BatchMode::Many,
            headers: BTreeMap::new(),
            unsendable: None,
        }],
        disabled_webhooks: vec![],
    }
}

/// The ids and keys of the apps that are served. Of two apps with the same one, the app that claims first keeps it.
#[derive(Debug)]
pub(super) struct ClaimedNames {
    ids: HashSet<AppId>,
    keys: HashSet<AppKey>,
}

impl ClaimedNames {
    /// The names of the first app, which no other app can have claimed before.
    pub fn of_app(app: &App) -> Self {
        let keys = app.credentials.iter().map(|credential| credential.key.clone()).collect();
        Self { ids: HashSet::from([app.id.clone()]), keys }
    }

    /// Claims the id and the keys of an app, or returns the conflict.
    pub fn claim(&mut self, app: &App) -> Option<String> {
        if self.ids.contains(&app.id) {
            return Some(format!("is `{}`, which another app has: choose another", app.id));
        }
        if app.credentials.iter().any(|credential| self.keys.contains(&credential.key)) {
            return Some("belongs to an app with a key that another app has: give it its own".to_owned());
        }
        self.ids.insert(app.id.clone());
        self.keys.extend(app.credentials.iter().map(|credential| credential.key.clone()));
        None
    }
}

/// Validates one app. Its credentials come from the Secrets that it references; without a reference they are generated.
/// Returns it with the problems of its endpoints, in spite of which it is served.
pub(super) fn validate_app(
    raw: &RealtimeApp,
    secrets: &SecretTexts,
    credentials: &ClusterCredentials,
) -> Result<(App, Vec<ManifestProblem>), Vec<ManifestProblem>> {
    let mut problems = Vec::new();
    let credentials = resolve_credentials(raw, secrets, credentials, &mut problems);
    for (index, origin) in raw.spec.allowed_origins.iter().enumerate() {
        if !origin::is_pattern(origin) {
            problems.push(ManifestProblem {
                object: describe_app(raw),
                path: format!("spec.allowedOrigins[{index}]"),
                message: format!(
                    "is `{origin}`: write an origin such as https://shop.example.com or https://*.example.com, without a path"
                ),
            });
        }
    }
    for (index, webhook) in raw.spec.webhooks.iter().enumerate() {
        let mut report = |field: &str, message: String| {
            let path = format!("spec.webhooks[{index}].{field}");
            problems.push(ManifestProblem { object: describe_app(raw), path, message });
        };
        if url::Url::parse(&webhook.url).is_err() {
            report("url", format!("is `{}`, which is no address: write https://HOST/PATH", webhook.url));
        }
        // Objects of an older schema were never checked by the API server.
        if raw.spec.webhooks.iter().take(index).any(|earlier| earlier.name == webhook.name) {
            report("name", format!("is `{}`, which an earlier entry has: choose another", webhook.name));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let endpoints = resolve_endpoints(raw, secrets);
    let app = App {
        id: AppId(raw.spec.app_id.clone()),
        credentials,
        enabled: raw.spec.state == EnabledState::Enabled,
        client_events: raw.spec.client_events == EnabledState::Enabled,
        subscription_count: raw.spec.subscription_count == EnabledState::Enabled,
        authorization_seconds: raw.spec.authorization_seconds,
        allowed_origins: raw.spec.allowed_origins.clone(),
        limits: resolve_limits(raw.spec.limits),
        webhooks: endpoints.enabled,
        disabled_webhooks: endpoints.disabled,
    };
    Ok((app, endpoints.problems))
}

fn resolve_limits(limits: AppLimitsSpec) -> AppLimits {
    AppLimits {
        connections: limits.connections.map(u64::from),
        message_bytes: usize::try_from(limits.message_bytes).unwrap_or(usize::MAX),
        client_events_per_second: limits.client_events_per_second,
        channels: limits.channels,
        connections_per_source: limits.connections_per_source,
        handshakes_per_second: limits.handshakes_per_second,
        api_requests_per_second: limits.api_requests_per_second,
        presence_members: usize::try_from(limits.presence_members).unwrap_or(usize::MAX),
        cache_seconds: limits.cache_seconds,
    }
}

/// The generated credentials of an app; `None` for an app that references Secrets.
pub(super) fn generated_of_app<'a>(raw: &RealtimeApp, generated: &'a ClusterCredentials) -> Option<&'a AppCredentials> {
    let name = raw.metadata.name.as_deref().unwrap_or_default();
    generated.apps.get(name).filter(|_| raw.spec.credentials.is_empty())
}

/// The reason for which the Secret with the generated credentials of an app cannot be used, as a problem.
pub(super) fn find_credentials_problem(
    raw: &RealtimeApp,
    generated: Option<&AppCredentials>,
) -> Option<ManifestProblem> {
    let message = generated?.refusal.as_ref()?.message.clone();
    Some(ManifestProblem { object: describe_app(raw), path: "spec.credentials".to_owned(), message })
}

/// Resolves the credentials of an app, in the order of its manifest.
fn resolve_credentials(
    raw: &RealtimeApp,
    secrets: &SecretTexts,
    generated: &ClusterCredentials,
    problems: &mut Vec<ManifestProblem>,
) -> Vec<Credential> {
    if raw.spec.credentials.is_empty() {
        let generated = generated_of_app(raw, generated);
        let pairs = generated.map(|generated| generated.pairs.as_slice()).unwrap_or_default();
        if pairs.is_empty() {
            problems.push(find_credentials_problem(raw, generated).unwrap_or_else(|| ManifestProblem {
                object: describe_app(raw),
                path: "spec.credentials".to_owned(),
                message: "is empty, and no pair was generated yet: wait, or reference a Secret".to_owned(),
            }));
        }
        let active = |pair: &GeneratedPair| Credential {
            key: pair.key.clone(),
            secret: pair.secret.clone(),
            state: CredentialState::Active,
        };
        return pairs.iter().map(active).collect();
    }
    let mut found = Vec::new();
    for (index, credential) in raw.spec.credentials.iter().enumerate() {
        let secret = &credential.secret_ref.name;
        let texts = secrets.get(secret);
        let text = |key: &str| texts.and_then(|texts| texts.get(key)).filter(|text| !text.is_empty());
        match (text("key"), text("secret")) {
            // The key is part of URLs and of a header of webhooks.
            (Some(key), Some(_)) if !key.bytes().all(|b| b.is_ascii_graphic()) => problems.push(ManifestProblem {
                object: describe_app(raw),
                path: format!("spec.credentials[{index}].secretRef"),
                message: format!(
                    "references the Secret `{secret}`, whose `key` has a blank or a character that no header can carry: write letters and digits"
                ),
            }),
            (Some(key), Some(secret)) => found.push(Credential {
                key: AppKey(key.clone()),
                secret: Secret::new(secret),
                state: match credential.state {
                    ApiCredentialState::Active => CredentialState::Active,
                    ApiCredentialState::Retiring => CredentialState::Retiring,
                },
            }),
            _ => problems.push(ManifestProblem {
                object: describe_app(raw),
                path: format!("spec.credentials[{index}].secretRef"),
                message: format!(
                    "references the Secret `{secret}`, which lacks `key` or `secret`: create it with both"
                ),
            }),
        }
    }
    if problems.is_empty() && !found.iter().any(|c| c.state == CredentialState::Active) {
        problems.push(ManifestProblem {
            object: describe_app(raw),
            path: "spec.credentials".to_owned(),
            message: "has no Active pair, so that no webhook could be signed: make one Active".to_owned(),
        });
    }
    found
}
