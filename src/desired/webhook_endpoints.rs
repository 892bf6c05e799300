//! Resolves the webhook endpoints of an app: their headers from Secrets, their state, their addresses.

use std::collections::BTreeMap;

use super::problem::{ManifestProblem, describe_app};
use super::secret_references::{HEADER_KEY_PREFIX, SecretTexts};
use crate::api::app::{WebhookBatching, WebhookSpec};
use crate::api::{EnabledState, RealtimeApp};
use crate::config::Release;
use crate::protocol::Secret;
use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::registry::{App, BatchMode, WebhookEndpoint};
use crate::protocol::webhook;

/// Bounds the headers of one endpoint.
const HEADERS_MAX: usize = 20;
/// Bounds the bytes of the headers of one endpoint, because a Secret of the registry holds those of many apps.
const HEADER_BYTES_MAX: usize = 4 * 1024;

/// The endpoints of an app.
#[derive(Debug, Default)]
pub(super) struct ResolvedEndpoints {
    /// Enabled endpoints: they receive webhooks.
    pub enabled: Vec<WebhookEndpoint>,
    /// Endpoints with `state: Disabled`: they get no events.
    pub disabled: Vec<WebhookEndpoint>,
    /// Problems of the headers of enabled endpoints.
    pub problems: Vec<ManifestProblem>,
}

/// Resolves the endpoints of an app. One whose headers cannot be sent keeps its events for as long as any failing endpoint.
pub(super) fn resolve_endpoints(raw: &RealtimeApp, secrets: &SecretTexts) -> ResolvedEndpoints {
    let mut resolved = ResolvedEndpoints::default();
    for (index, spec) in raw.spec.webhooks.iter().enumerate() {
        let (headers, problem) = match resolve_headers(spec, secrets) {
            Ok(headers) => (headers, None),
            Err(message) => {
                let path = format!("spec.webhooks[{index}].headersSecretRef");
                (BTreeMap::new(), Some(ManifestProblem { object: describe_app(raw), path, message }))
            }
        };
        let endpoint = WebhookEndpoint {
            name: spec.name.clone(),
            url: spec.url.clone(),
            events: spec.events.iter().map(|event| event.name().to_owned()).collect(),
            channel_prefix: spec.channel_prefix.clone(),
            timeout_seconds: spec.timeout_seconds,
            batch: match spec.batch {
                WebhookBatching::Many => BatchMode::Many,
                WebhookBatching::One => BatchMode::One,
            },
            headers,
            unsendable: problem.as_ref().map(|problem| format!("{} {}", problem.path, problem.message)),
        };
        match spec.state {
            EnabledState::Enabled => {
                resolved.enabled.push(endpoint);
                resolved.problems.extend(problem);
            }
            EnabledState::Disabled => resolved.disabled.push(endpoint),
        }
    }
    resolved
}

/// Removes the settings that servers of this release do not read, and returns a problem for each enabled endpoint that has
/// one. A disabled endpoint has none, because those servers read the enabled endpoints only.
pub(super) fn limit_to_release(
    raw: &RealtimeApp,
    app: &mut App,
    release: Release,
    own: Release,
) -> Vec<ManifestProblem> {
    // Before the coming release has its number, servers of the operator's own release read the settings too.
    let since = Release::ENDPOINT_SETTINGS.min(own);
    if release >= since {
        return vec![];
    }
    let mut problems = Vec::new();
    for (index, webhook) in raw.spec.webhooks.iter().enumerate() {
        if app.find_webhook(&webhook.name).is_some_and(WebhookEndpoint::has_later_settings) {
            problems.push(ManifestProblem {
                object: describe_app(raw),
                path: format!("spec.webhooks[{index}]"),
                message: format!(
                    "has batch or headersSecretRef, which servers of release {release} do not read: move the cluster to release {since} by its spec.version"
                ),
            });
        }
    }
    app.remove_later_settings();
    problems
}

/// Finds the enabled endpoints to which no dispatcher of the cluster sends, by the text of their URLs.
pub(super) fn find_refused_endpoints(raw: &RealtimeApp, cluster: &str, policy: &EgressPolicy) -> Vec<ManifestProblem> {
    let mut problems = Vec::new();
    for (index, webhook) in raw.spec.webhooks.iter().enumerate() {
        let Ok(url) = url::Url::parse(&webhook.url) else { continue };
        if webhook.state == EnabledState::Enabled
            && let Err(refusal) = policy.classify_url(&url)
        {
            problems.push(ManifestProblem {
                object: describe_app(raw),
                path: format!("spec.webhooks[{index}].url"),
                message: format!("gets no webhook from cluster {cluster}: {refusal}"),
            });
        }
    }
    problems
}

/// Resolves the headers of an endpoint. The error explains why they cannot be sent, and contains no value of the Secret.
fn resolve_headers(webhook: &WebhookSpec, secrets: &SecretTexts) -> Result<BTreeMap<String, Secret>, String> {
    let Some(reference) = &webhook.headers_secret_ref else { return Ok(BTreeMap::new()) };
    let name = &reference.name;
    let Some(texts) = secrets.get(name) else {
        return Err(format!(
            "references the Secret `{name}`, which does not exist: create it with a key such as `{HEADER_KEY_PREFIX}Authorization`"
        ));
    };
    let mut headers = BTreeMap::<String, Secret>::new();
    let mut bytes = 0;
    for (key, value) in texts {
        let Some(header) = key.strip_prefix(HEADER_KEY_PREFIX) else { continue };
        webhook::check_extra_header(header, value)
            .map_err(|problem| format!("references the Secret `{name}`, whose key `{key}` {problem}"))?;
        if headers.keys().any(|known| known.eq_ignore_ascii_case(header)) {
            return Err(format!(
                "references the Secret `{name}`, which has the header `{header}` twice: header names ignore case, so remove one"
            ));
        }
        bytes += header.len() + value.len();
        headers.insert(header.to_owned(), Secret::new(value));
    }
    if headers.is_empty() {
        // Its other keys are not named: a user who may write an app may lack the permission to read its Secrets.
        return Err(format!(
            "references the Secret `{name}`, which has no key that begins with `{HEADER_KEY_PREFIX}`: write one such as `{HEADER_KEY_PREFIX}Authorization`"
        ));
    }
    if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return Err(format!(
            "references the Secret `{name}`, whose headers are {} with {bytes} bytes: write at most {HEADERS_MAX} with {HEADER_BYTES_MAX} bytes",
            headers.len()
        ));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::registry::tests as registry_fixture;

    fn app(more: &str) -> RealtimeApp {
        let text = format!(
            "apiVersion: realtime-operator.dev/v1alpha1\nkind: RealtimeApp\nmetadata: {{ name: shop }}\nspec:\n  appID: '1'\n  webhooks: [{{ name: a, url: 'https://a.test/'{more} }}]\n"
        );
        serde_yaml::from_str(&text).expect("an app")
    }

    fn secret(texts: &[(&str, &str)]) -> SecretTexts {
        let texts = texts.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        SecretTexts::from([("h".to_owned(), texts)])
    }

    #[test]
    fn headers_come_from_marked_keys_and_are_checked_by_name_and_value() {
        let app = app(", headersSecretRef: { name: h }");
        let many: Vec<String> = (0..21).map(|n| format!("header.X-{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "v")).collect();
        let long = "v".repeat(HEADER_BYTES_MAX);
        for (name, secrets, expected) in [
            ("one", secret(&[("header.Authorization", "Bearer t")]), Ok(1)),
            ("others are no headers", secret(&[("header.X-A", "1"), ("url", "redis://u:hunter2@r")]), Ok(1)),
            ("no Secret", SecretTexts::new(), Err("does not exist")),
            ("no marked key", secret(&[("url", "redis://u:hunter2@r")]), Err("has no key that begins with `header.`")),
            ("the host", secret(&[("header.Host", "hunter2")]), Err("`header.Host` is a header that dispatchers set")),
            ("ours", secret(&[("header.x-pusher-key", "hunter2")]), Err("dispatchers set")),
            ("ours too", secret(&[("header.X-Realtime-Replay", "hunter2")]), Err("dispatchers set")),
            ("content", secret(&[("header.content-type", "hunter2")]), Err("dispatchers set")),
            ("a newline", secret(&[("header.X-A", "hunter2\r\nX-B: 1")]), Err("has a character that no header")),
            ("no value", secret(&[("header.X-A", "")]), Err("is empty")),
            ("no name", secret(&[("header.", "v")]), Err("is no name of a header")),
            ("a name twice", secret(&[("header.X-A", "1"), ("header.x-a", "2")]), Err("twice")),
            ("too many", secret(&many), Err("write at most 20")),
            ("too long", secret(&[("header.X-A", &long)]), Err("write at most 20 with 4096 bytes")),
        ] {
            let resolved = resolve_endpoints(&app, &secrets);
            let (endpoint, problems) = (&resolved.enabled[0], &resolved.problems);
            match expected {
                Ok(count) => {
                    assert_eq!((endpoint.headers.len(), &endpoint.unsendable), (count, &None), "{name}");
                    assert_eq!(*problems, [], "{name}");
                }
                Err(part) => {
                    let shown = problems[0].to_string();
                    assert!(shown.contains(part), "{name}: {shown}");
                    assert!(
                        shown.starts_with("RealtimeApp shop: spec.webhooks[0].headersSecretRef "),
                        "{name}: {shown}"
                    );
                    assert!(!shown.contains("hunter2"), "{name}: {shown}");
                    assert!(
                        endpoint.headers.is_empty() && endpoint.unsendable.as_ref().is_some_and(|it| it.contains(part))
                    );
                }
            }
            assert!(!format!("{resolved:?}").contains("hunter2"), "{name}: values are redacted");
        }
    }

    #[test]
    fn servers_of_an_older_release_get_no_setting_that_they_refuse() {
        let raw = app(", batch: One");
        let resolved = resolve_endpoints(&raw, &SecretTexts::new());
        let app = App {
            webhooks: resolved.enabled,
            disabled_webhooks: vec![registry_fixture::endpoint("off")],
            ..registry_fixture::app("1", &[])
        };
        let release = |text: &str| text.parse::<Release>().expect("a release");
        for (name, servers, own, is_limited) in [
            ("an older release", "0.1.0", "0.2.0", true),
            ("the first that reads them", "0.2.0", "0.2.0", false),
            ("a later one", "0.3.0", "0.4.0", false),
            ("the operator's own, before the release has its number", "0.1.0", "0.1.0", false),
        ] {
            let mut limited = app.clone();
            let problems = limit_to_release(&raw, &mut limited, release(servers), release(own));
            assert_eq!(problems.len(), usize::from(is_limited), "{name}: {problems:?}");
            assert_eq!(limited == app, !is_limited, "{name}");
            if is_limited {
                let text = serde_json::to_string(&limited).expect("json");
                assert!(!text.contains("batch") && !text.contains("disabled"), "{name}: {text}");
                assert_eq!(problems[0].path, "spec.webhooks[0]");
            }
        }
    }

    #[test]
    fn a_disabled_endpoint_is_kept_apart_and_has_no_problems() {
        let app = app(", state: Disabled, batch: One, headersSecretRef: { name: h }");
        let resolved = resolve_endpoints(&app, &SecretTexts::new());
        assert_eq!((resolved.enabled.len(), resolved.disabled.len()), (0, 1));
        assert_eq!(resolved.disabled[0].batch, BatchMode::One);
        assert_eq!(resolved.problems, []);
        let mut plain_http = app;
        plain_http.spec.webhooks[0].url = "http://10.0.0.1/".to_owned();
        let policy = EgressPolicy::default();
        assert_eq!(find_refused_endpoints(&plain_http, "eu", &policy), []);
        plain_http.spec.webhooks[0].state = EnabledState::Enabled;
        assert_eq!(find_refused_endpoints(&plain_http, "eu", &policy).len(), 1);
    }
}
