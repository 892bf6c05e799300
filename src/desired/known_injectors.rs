//! The injectors whose additions to pods are accepted, as data. Pure.
//!
//! In: a YAML text, by default the one shipped beside this file. Out: whether a field that a pod has beyond its template
//! was added by a known injector, and by which.

use serde::Deserialize;

use super::image_reference::ImageReference;
use super::name_pattern::{NamePattern, matches_any};
use super::pod_fields::{FieldKind, PodField, mounted_volume};

/// The injectors that are known without a file of the platform's own.
pub const SHIPPED_INJECTORS: &str = include_str!("known_injectors.yaml");

/// The injectors whose additions are accepted.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KnownInjectors {
    injectors: Vec<KnownInjector>,
    #[serde(default)]
    image_registries: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KnownInjector {
    name: String,
    /// Types of AWS identity with which it acts; empty for all.
    #[serde(default)]
    identities: Vec<String>,
    #[serde(default)]
    required_variables: Vec<String>,
    #[serde(default)]
    variables: Vec<NamePattern>,
    #[serde(default)]
    containers: Vec<NamePattern>,
    #[serde(default)]
    init_containers: Vec<NamePattern>,
    #[serde(default)]
    volumes: Vec<NamePattern>,
    #[serde(default)]
    readiness_gates: Vec<NamePattern>,
    /// Host names that the hosts file of a pod may contain.
    #[serde(default)]
    host_names: Vec<NamePattern>,
}

impl KnownInjectors {
    /// Parses a file of known injectors.
    ///
    /// # Errors
    /// The text is no such file, or a pattern covers variables of the servers themselves.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed: Self = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        for injector in &parsed.injectors {
            let ours = |pattern: &&NamePattern| {
                pattern.matches("REALTIME_WEBHOOKS") || pattern.as_text().starts_with("REALTIME_")
            };
            if let Some(pattern) = injector.variables.iter().find(ours) {
                return Err(format!(
                    "injector `{}`: variables `{pattern}` covers variables of the servers, which nothing may add: name the injector's own",
                    injector.name
                ));
            }
        }
        Ok(parsed)
    }

    /// The shipped injectors.
    ///
    /// # Errors
    /// Never for the shipped text, which a test parses.
    pub fn shipped() -> Result<Self, String> {
        Self::parse(SHIPPED_INJECTORS)
    }

    /// The name of the injector that adds this field to pods with this type of identity; `None` if none is known.
    #[must_use]
    pub fn find_injector(&self, field: &PodField, value: &str, identity: &str) -> Option<&str> {
        let adds = |injector: &&KnownInjector| {
            let acts = injector.identities.is_empty() || injector.identities.iter().any(|name| name == identity);
            acts && injector.adds(field, value)
        };
        self.injectors.iter().find(adds).map(|injector| injector.name.as_str())
    }

    /// The variables that must be injected with this type of identity, each with its injector.
    pub fn required_variables<'a>(&'a self, identity: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let acting =
            self.injectors.iter().filter(move |injector| injector.identities.iter().any(|name| name == identity));
        acting
            .flat_map(|injector| injector.required_variables.iter().map(|name| (name.as_str(), injector.name.as_str())))
    }

    /// Whether a policy may have made one image of the other: the same with a digest added, or from an allowed registry.
    #[must_use]
    pub fn is_rewritten_image(&self, wanted: &str, found: &str) -> bool {
        let (wanted, found) = (ImageReference::parse(wanted), ImageReference::parse(found));
        let same_content = match (wanted.digest, found.digest) {
            (Some(wanted), found) => found == Some(wanted),
            // A digest stands for the tag that a policy resolved.
            (None, Some(_)) => found.tag.is_none() || found.tag == wanted.tag,
            (None, None) => found.tag == wanted.tag,
        };
        let from_allowed = || {
            let allowed = self.image_registries.iter().any(|registry| is_below(found.repository, registry));
            let path = wanted.repository.split_once('/').map_or(wanted.repository, |(_, path)| path);
            allowed && found.repository.strip_suffix(path).is_some_and(|before| before.ends_with('/'))
        };
        same_content && (found.repository == wanted.repository || from_allowed())
    }
}

impl KnownInjector {
    fn adds(&self, field: &PodField, value: &str) -> bool {
        let (patterns, name) = match field.kind {
            FieldKind::Variable => (&self.variables, field.name.as_str()),
            FieldKind::Container => (&self.containers, field.name.as_str()),
            FieldKind::InitContainer => (&self.init_containers, field.name.as_str()),
            FieldKind::Volume => (&self.volumes, field.name.as_str()),
            FieldKind::VolumeMount => (&self.volumes, mounted_volume(value)),
            FieldKind::ReadinessGate => (&self.readiness_gates, field.name.as_str()),
            FieldKind::HostAlias => {
                let known = |host: &str| matches_any(&self.host_names, host);
                return !value.is_empty() && value.split(' ').all(known);
            }
            FieldKind::Image
            | FieldKind::Command
            | FieldKind::Arguments
            | FieldKind::WorkingDirectory
            | FieldKind::Lifecycle
            | FieldKind::VariableSource
            | FieldKind::HostNetwork
            | FieldKind::DnsPolicy
            | FieldKind::DnsConfig
            | FieldKind::ServiceAccount => return false,
        };
        matches_any(patterns, name)
    }
}

/// Whether a repository lies below a registry or a path of one.
fn is_below(repository: &str, registry: &str) -> bool {
    repository.strip_prefix(registry.trim_end_matches('/')).is_some_and(|path| path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: FieldKind, name: &str) -> PodField {
        PodField { container: None, kind, name: name.to_owned() }
    }

    #[test]
    fn the_shipped_injectors_are_found_by_what_they_add() {
        let known = KnownInjectors::shipped().expect("the shipped file");
        let found = |kind, name: &str, value: &str, identity: &str| {
            known.find_injector(&field(kind, name), value, identity).map(str::to_owned)
        };
        for (kind, name, value, identity, expected) in [
            (FieldKind::Container, "istio-proxy", "", "IRSA", Some("Istio")),
            (FieldKind::InitContainer, "linkerd-init", "", "IRSA", Some("Linkerd")),
            (FieldKind::Variable, "DD_AGENT_HOST", "", "StaticKeys", Some("Datadog")),
            (FieldKind::Variable, "AWS_ROLE_ARN", "", "IRSA", Some("EKS IAM roles for service accounts")),
            (FieldKind::Variable, "AWS_ROLE_ARN", "", "StaticKeys", None),
            (
                FieldKind::VolumeMount,
                "/var/run/x",
                "kube-api-access-8x2lq read-only",
                "",
                Some("Kubernetes service account token"),
            ),
            (FieldKind::Variable, "HTTPS_PROXY", "", "IRSA", None),
            (FieldKind::Container, "stranger", "", "IRSA", None),
            (FieldKind::HostAlias, "10.0.0.1", "sts.amazonaws.com", "IRSA", None),
            (FieldKind::HostNetwork, "", "true", "IRSA", None),
        ] {
            assert_eq!(found(kind, name, value, identity).as_deref(), expected, "{kind:?} {name} {identity}");
        }
        let required: Vec<_> = known.required_variables("PodIdentity").map(|(name, _)| name).collect();
        assert_eq!(required, ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]);
        assert_eq!(known.required_variables("StaticKeys").count(), 0);
    }

    #[test]
    fn an_image_may_gain_a_digest_or_come_from_an_allowed_registry() {
        let text = "imageRegistries: [mirror.test/proxy, mirror.test:5000]\ninjectors: []\n";
        let known = KnownInjectors::parse(text).expect("a file");
        let (wanted, digest) = ("registry.test/acme/realtime:1", format!("@sha256:{}", "a".repeat(64)));
        for (found, expected) in [
            (format!("registry.test/acme/realtime:1{digest}"), true),
            (format!("registry.test/acme/realtime{digest}"), true),
            (format!("registry.test/acme/realtime:2{digest}"), false),
            ("registry.test/acme/realtime:2".to_owned(), false),
            ("mirror.test/proxy/registry.test/acme/realtime:1".to_owned(), true),
            (format!("mirror.test:5000/acme/realtime:1{digest}"), true),
            ("mirror.test/proxy/acme/realtime:2".to_owned(), false),
            ("mirror.test/proxy/acme/other:1".to_owned(), false),
            ("mirror.test/proxy-of-others/acme/realtime:1".to_owned(), false),
            ("elsewhere.test/acme/realtime:1".to_owned(), false),
        ] {
            assert_eq!(known.is_rewritten_image(wanted, &found), expected, "{found}");
        }
        let pinned = format!("registry.test/acme/realtime:1{digest}");
        assert!(!known.is_rewritten_image(&pinned, &pinned.replace('a', "b")), "another digest is another image");
    }

    #[test]
    fn a_file_that_covers_variables_of_the_servers_or_has_a_misspelt_field_is_refused() {
        for (text, says) in [
            ("injectors: [{ name: a, variables: ['*'] }]", "`*` covers variables of the servers"),
            ("injectors: [{ name: a, variables: ['REALTIME_X*'] }]", "covers variables of the servers"),
            ("injectors: [{ name: a, volume: [x] }]", "unknown field `volume`"),
            ("injectors: [{ variables: [x] }]", "missing field `name`"),
        ] {
            let error = KnownInjectors::parse(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
