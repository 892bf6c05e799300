//! The platform policy: which images, endpoints, regions and roles the clusters of a namespace may name. Pure.
//!
//! An author of a manifest needs no rights beyond a namespace, while the operator acts with its own: it sends signed
//! requests to the endpoint and runs the image with the Secrets of the namespace. The policy is written by the
//! administrator of the operator.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use url::{Host, Url};

use super::image_reference::ImageReference;
use super::name_pattern::{NamePattern, matches_any};
use super::problem::ManifestProblem;
use super::server_image::DEFAULT_REPOSITORY;
use crate::api::RealtimeCluster;
use crate::api::cluster::StreamManagement;
use crate::config::suggest_name;

/// Values that a message lists at most.
const LISTED_VALUES_MAX: usize = 8;

/// Domains below which AWS serves `kinesis.REGION` and `kinesis-fips.REGION`: public, China, and both as dual-stack
/// (AWS General Reference, "Amazon Kinesis Data Streams endpoints and quotas").
const AWS_SERVICE_DOMAINS: [&str; 4] = ["amazonaws.com", "amazonaws.com.cn", "api.aws", "api.amazonwebservices.com.cn"];

/// Domains of interface endpoints to Kinesis: `ID.kinesis.REGION.vpce.DOMAIN`. A private service of another account has
/// `vpce-svc-…` in the place of `kinesis` (guide to AWS `PrivateLink`).
const AWS_PRIVATE_DOMAINS: [&str; 2] = ["vpce.amazonaws.com", "vpce.amazonaws.com.cn"];

/// The images, endpoints, regions and roles that the clusters of each namespace may name.
#[derive(Clone, Debug)]
pub struct PlatformPolicy {
    /// Path of the file; `None` for the default policy.
    file: Option<String>,
    rules: Vec<PolicyRule>,
    /// Repository of the operator's own image; `None` if it is not known.
    own_repository: Option<ImagePrefix>,
}

/// A policy file that cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{file}: {message}")]
pub struct PolicyFileError {
    file: String,
    /// The error with key and line, and its remedy.
    message: String,
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(deserialize_with = "read_filled_list")]
    rules: Vec<PolicyRule>,
}

/// A rule. The first one that names the namespace of a cluster decides.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyRule {
    /// Namespaces of the rule.
    #[serde(deserialize_with = "read_filled_list")]
    namespaces: Vec<NamePattern>,
    /// Repositories of images; `None` for the operator's own.
    #[serde(default, deserialize_with = "read_some_filled_list")]
    images: Option<Vec<ImagePrefix>>,
    /// Endpoints in addition to those of AWS.
    #[serde(default)]
    endpoints: Vec<EndpointUrl>,
    /// AWS regions; `None` for any.
    #[serde(default, deserialize_with = "read_some_filled_list")]
    regions: Option<Vec<NamePattern>>,
    /// ARNs of IAM roles; `None` for any, none for an empty list.
    #[serde(default, rename = "roleARNs", deserialize_with = "read_some_list")]
    role_arns: Option<Vec<NamePattern>>,
    /// Names of streams that clusters may adopt or observe; `None` for any, none for an empty list.
    #[serde(default, deserialize_with = "read_some_list")]
    streams: Option<Vec<NamePattern>>,
}

/// A repository, which includes the repositories below it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct ImagePrefix(String);

/// Address of an endpoint. Spellings of one address are equal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct EndpointUrl(Url);

/// A cluster with the policy that decides on it, and the problems found so far.
struct PolicyCheck<'a> {
    policy: &'a PlatformPolicy,
    cluster: &'a RealtimeCluster,
    problems: Vec<ManifestProblem>,
}

impl Default for PlatformPolicy {
    /// The operator's own image, AWS's own endpoints, any region and any role, in every namespace.
    fn default() -> Self {
        let everywhere = PolicyRule { namespaces: vec![NamePattern::any()], ..PolicyRule::default() };
        Self { file: None, rules: vec![everywhere], own_repository: None }
    }
}

impl PlatformPolicy {
    /// Parses the text of a policy file.
    ///
    /// # Errors
    /// The text is no YAML, or a key or value is not allowed; the error names line and key.
    pub fn parse(file: &str, text: &str) -> Result<Self, PolicyFileError> {
        match serde_yaml::from_str::<PolicyFile>(text) {
            Ok(PolicyFile { rules }) => Ok(Self { file: Some(file.to_owned()), rules, own_repository: None }),
            Err(error) => {
                let message = error.to_string();
                let hint = suggest_key(&message).map(|key| format!(": did you mean `{key}`?")).unwrap_or_default();
                Err(PolicyFileError { file: file.to_owned(), message: format!("{message}{hint}") })
            }
        }
    }

    /// Allows the repository of the operator's own image wherever a rule names no images.
    #[must_use]
    pub fn with_own_image(self, image: &str) -> Self {
        let repository = ImageReference::parse(image).repository.to_owned();
        Self { own_repository: Some(ImagePrefix(repository)), ..self }
    }

    /// Finds everything that a cluster names and may not name.
    #[must_use]
    pub fn check_cluster(&self, cluster: &RealtimeCluster) -> Vec<ManifestProblem> {
        let namespace = cluster.metadata.namespace.as_deref().unwrap_or("default");
        let mut check = PolicyCheck { policy: self, cluster, problems: vec![] };
        if let Some(rule) = self.rules.iter().find(|rule| matches_any(&rule.namespaces, namespace)) {
            check.apply_rule(rule);
        } else {
            let named = self.rules.iter().flat_map(|rule| &rule.namespaces);
            check.report("metadata.namespace", namespace, &join_values(named));
        }
        check.problems
    }
}

impl fmt::Display for PlatformPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "the platform policy {file}"),
            None => f.write_str("the default platform policy (the operator runs without --platform-policy)"),
        }
    }
}

impl PolicyCheck<'_> {
    fn apply_rule(&mut self, rule: &PolicyRule) {
        let aws = &self.cluster.spec.aws;
        let default = ImagePrefix(DEFAULT_REPOSITORY.to_owned());
        let own: Vec<ImagePrefix> = self.policy.own_repository.iter().cloned().chain([default]).collect();
        let images = rule.images.as_deref().unwrap_or(&own);
        let written = self.cluster.spec.image.repository.as_deref();
        let recorded = self.cluster.status.as_ref().and_then(|status| status.image.as_ref()?.repository.as_deref());
        let (path, repository) = match (written, recorded) {
            (None, Some(recorded)) => ("status.image.repository", recorded),
            // A new cluster without a repository runs the operator's own image.
            _ => ("spec.image.repository", written.unwrap_or(own[0].0.as_str())),
        };
        if !images.iter().any(|prefix| prefix.includes(repository)) {
            self.report(path, repository, &join_values(images));
        }
        // The region becomes a part of the host that requests are sent to.
        if !is_region_name(&aws.region) {
            self.report("spec.aws.region", &aws.region, "letters, digits and hyphens");
        } else if let Some(regions) = rule.regions.as_deref().filter(|regions| !matches_any(regions, &aws.region)) {
            self.report("spec.aws.region", &aws.region, &join_values(regions));
        }
        if let Some(endpoint) = &aws.endpoint_url {
            let url = Url::parse(endpoint).ok();
            let allowed = |url: Url| is_aws_endpoint(&url, &aws.region) || rule.endpoints.contains(&EndpointUrl(url));
            if !url.is_some_and(allowed) {
                let more = if rule.endpoints.is_empty() { "" } else { ", " };
                let own = format!("the endpoints of AWS in {}{more}", aws.region);
                self.report("spec.aws.endpointURL", endpoint, &(own + &join_values(&rule.endpoints)));
            }
        }
        self.check_streams(rule);
        let identity = &aws.identity;
        for (server, role) in [("edge", &identity.edge), ("dispatcher", &identity.dispatcher)] {
            if let (Some(role), Some(allowed)) = (role, &rule.role_arns)
                && !matches_any(allowed, &role.role_arn)
            {
                let path = format!("spec.aws.identity.{server}.roleARN");
                let none = if allowed.is_empty() { "no role" } else { "" };
                self.report(&path, &role.role_arn, &(none.to_owned() + &join_values(allowed)));
            }
        }
    }

    /// Checks the streams of others that the operator would use with its own rights. One that the operator created has our tag.
    fn check_streams(&mut self, rule: &PolicyRule) {
        let webhooks = &self.cluster.spec.webhooks;
        let dead_letter = webhooks.dead_letter.as_ref().and_then(|spec| spec.name.as_ref());
        let named = [
            ("spec.webhooks.stream.name", webhooks.stream.name.as_ref()),
            ("spec.webhooks.deadLetter.name", dead_letter),
        ];
        let Some(allowed) = rule.streams.as_ref().filter(|_| webhooks.stream.management != StreamManagement::Create)
        else {
            return;
        };
        for (path, name) in named {
            if let Some(name) = name.filter(|name| !matches_any(allowed, name)) {
                let none = if allowed.is_empty() { "no stream of others" } else { "" };
                self.report(path, name, &(none.to_owned() + &join_values(allowed)));
            }
        }
    }

    fn report(&mut self, path: &str, value: &str, allowed: &str) {
        let metadata = &self.cluster.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let message = format!(
            "is `{value}`, which {} does not allow in namespace {namespace}; it allows {allowed}. Write an allowed value, or \
             have an administrator of the operator extend the policy",
            self.policy
        );
        self.problems.push(ManifestProblem {
            object: format!("RealtimeCluster {}", metadata.name.as_deref().unwrap_or_default()),
            path: path.to_owned(),
            message,
        });
    }
}

impl ImagePrefix {
    /// Whether the repository is this one, or one below it.
    fn includes(&self, repository: &str) -> bool {
        repository.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl TryFrom<String> for ImagePrefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let prefix = text.trim_end_matches('/');
        let (_, name) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let has_tag = prefix.contains('/') && name.contains(':');
        if prefix.is_empty() || has_tag || prefix.contains(['@', '*']) {
            let remedy = "write a repository without tag, digest and `*`, such as registry.example.com/realtime";
            return Err(format!("`{text}` is no image repository: {remedy}"));
        }
        Ok(Self(prefix.to_owned()))
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let url = Url::parse(&text).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
        url.map(Self).ok_or_else(|| format!("`{text}` is no address: write https://HOST or http://HOST:PORT"))
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for ImagePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a list that must have an entry: an empty one, such as a template may leave, must allow neither all nor nothing.
fn read_filled_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Vec<T>, D::Error> {
    value.deserialize_seq(FilledListVisitor(PhantomData))
}

fn read_some_filled_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<Vec<T>>, D::Error> {
    read_filled_list(value).map(Some)
}

/// Reads a list. A key without a value is an empty list, unlike an absent key.
fn read_some_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<Vec<T>>, D::Error> {
    Vec::deserialize(value).map(Some)
}

/// Refuses an empty list while the parser still knows its line.
struct FilledListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FilledListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        if items.is_empty() { Err(de::Error::custom("the list is empty: add an entry")) } else { Ok(items) }
    }
}

/// The known key that an unknown one in the message of the parser resembles.
fn suggest_key(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("unknown field `")?;
    let (found, known) = rest.split_once('`')?;
    suggest_name(found, known.split('`').skip(1).step_by(2))
}

fn join_values<'a, T: fmt::Display + 'a>(values: impl IntoIterator<Item = &'a T>) -> String {
    let mut texts: Vec<String> = values.into_iter().map(ToString::to_string).collect();
    let more = texts.len().saturating_sub(LISTED_VALUES_MAX);
    texts.truncate(LISTED_VALUES_MAX);
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    texts.join(", ")
}

fn is_region_name(region: &str) -> bool {
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&region.len()) && region.bytes().all(is_label)
}

/// Whether the address is one at which AWS itself serves Kinesis of this region: below other names of AWS anybody can run
/// a server.
fn is_aws_endpoint(url: &Url, region: &str) -> bool {
    let plain = url.username().is_empty() && url.password().is_none() && url.port().is_none();
    let Some(Host::Domain(host)) = url.host().filter(|_| plain && url.scheme() == "https") else { return false };
    let service = ["kinesis", "kinesis-fips"]
        .iter()
        .any(|service| AWS_SERVICE_DOMAINS.iter().any(|domain| host == format!("{service}.{region}.{domain}")));
    let private = AWS_PRIVATE_DOMAINS.iter().any(|domain| {
        let id = host.strip_suffix(&format!(".kinesis.{region}.{domain}"));
        id.is_some_and(|id| id.starts_with("vpce-") && !id.contains('.'))
    });
    service || private
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    const FILE: &str = "
rules:
  - namespaces: [channels, 'team-*']
    images: [registry.example.com/realtime/]
    endpoints: ['http://kinesis.test:4567']
    regions: ['eu-*']
    roleARNs: ['arn:aws:iam::1234:role/realtime-*']
  - namespaces: ['*']
    regions: [us-east-1]
";

    fn problems(policy: &PlatformPolicy, change: impl Fn(&mut RealtimeCluster)) -> Vec<String> {
        let mut cluster = applied_cluster("");
        change(&mut cluster);
        policy.check_cluster(&cluster).iter().map(ToString::to_string).collect()
    }

    fn paths(policy: &PlatformPolicy, change: impl Fn(&mut RealtimeCluster)) -> Vec<String> {
        let mut cluster = applied_cluster("");
        change(&mut cluster);
        policy.check_cluster(&cluster).into_iter().map(|problem| problem.path).collect()
    }

    fn own_image(cluster: &mut RealtimeCluster) {
        cluster.spec.image.repository = Some("registry.example.com/realtime/server".to_owned());
    }

    #[test]
    fn without_a_file_only_the_own_image_and_endpoints_of_aws_are_allowed() {
        let policy = PlatformPolicy::default();
        assert_eq!(paths(&policy, |_| {}), [""; 0]);
        let repository = |name: &'static str| {
            move |cluster: &mut RealtimeCluster| cluster.spec.image.repository = Some(name.to_owned())
        };
        for name in ["docker.io/other/realtime", "realtime-operator/realtime-evil", "realtime-operator/realtime:1"] {
            assert_eq!(paths(&policy, repository(name)), ["spec.image.repository"], "{name}");
        }
        let own = policy.clone().with_own_image("registry.example.com/realtime:1@sha256:0");
        assert_eq!(paths(&own, repository("registry.example.com/realtime")), [""; 0]);
        assert_eq!(paths(&own, |_| {}), [""; 0], "the default repository too");
        assert_eq!(paths(&own, repository("registry.example.com/other")), ["spec.image.repository"]);
        for (endpoint, allowed) in [
            ("https://kinesis.eu-west-1.amazonaws.com", true),
            ("https://kinesis-fips.eu-west-1.api.aws/", true),
            ("https://vpce-0a1b-2c3d.kinesis.eu-west-1.vpce.amazonaws.com", true),
            ("https://vpce-0a1b.vpce-svc-9.eu-west-1.vpce.amazonaws.com", false),
            ("https://a.vpce-0a1b.kinesis.eu-west-1.vpce.amazonaws.com", false),
            ("https://kinesis.us-east-1.amazonaws.com", false),
            ("http://kinesis.eu-west-1.amazonaws.com", false),
            ("https://kinesis.eu-west-1.amazonaws.com:8443", false),
            ("https://kinesis.eu-west-1.amazonaws.com@169.254.169.254/", false),
            ("https://kinesis.eu-west-1.amazonaws.com.example.com", false),
            ("https://ec2-1-2-3-4.eu-west-1.compute.amazonaws.com", false),
            ("http://169.254.169.254/latest", false),
            ("http://[", false),
        ] {
            let found = paths(&policy, |cluster| cluster.spec.aws.endpoint_url = Some(endpoint.to_owned()));
            assert_eq!(found.is_empty(), allowed, "{endpoint}: {found:?}");
        }
        for region in ["evil.example.com/", "EU", "a.b", ""] {
            let found = paths(&policy, |cluster| region.clone_into(&mut cluster.spec.aws.region));
            assert_eq!(found, ["spec.aws.region"], "`{region}` would be a part of the host");
        }
    }

    #[test]
    fn the_first_rule_that_names_the_namespace_decides() {
        let policy = PlatformPolicy::parse("policy.yaml", FILE).expect("a policy");
        assert_eq!(paths(&policy, own_image), [""; 0]);
        assert_eq!(paths(&policy, |_| {}), ["spec.image.repository"], "the operator's image is not in the list");
        let in_team = |cluster: &mut RealtimeCluster| {
            own_image(cluster);
            cluster.metadata.namespace = Some("team-a".to_owned());
            cluster.spec.aws.endpoint_url = Some("http://KINESIS.test:4567/".to_owned());
        };
        assert_eq!(paths(&policy, in_team), [""; 0]);
        let elsewhere = |cluster: &mut RealtimeCluster| {
            in_team(cluster);
            cluster.metadata.namespace = Some("team".to_owned());
        };
        let all = ["spec.image.repository", "spec.aws.region", "spec.aws.endpointURL"];
        assert_eq!(paths(&policy, elsewhere), all);
    }

    #[test]
    fn streams_of_others_are_adopted_and_observed_by_the_names_that_the_policy_allows() {
        let with_stream = |stream: &'static str| {
            move |cluster: &mut RealtimeCluster| {
                cluster.spec.webhooks.stream = serde_yaml::from_str(stream).expect("a stream");
            }
        };
        let some = "rules: [{ namespaces: [channels], streams: ['rtc-*'] }]";
        let some = PlatformPolicy::parse("f", some).expect("a policy");
        let path = ["spec.webhooks.stream.name"];
        for (policy, stream, allowed) in [
            (&PlatformPolicy::default(), "{ name: orders, management: Adopt }", true),
            (&some, "{ name: orders }", true),
            (&some, "{ management: Adopt }", true),
            (&some, "{ name: rtc-a, management: Adopt }", true),
            (&some, "{ name: orders, management: Adopt }", false),
            (&some, "{ name: orders, management: AdoptOrCreate }", false),
            (&some, "{ name: orders, management: Observe }", false),
        ] {
            assert_eq!(paths(policy, with_stream(stream)), if allowed { &path[..0] } else { &path[..] }, "{stream}");
        }
    }

    #[test]
    fn roles_are_compared_with_their_patterns_and_an_empty_list_allows_none() {
        let with_role = |arn: &'static str| {
            move |cluster: &mut RealtimeCluster| {
                let role = format!("{{ edge: {{ roleARN: '{arn}' }}, type: IRSA }}");
                cluster.spec.aws.identity = serde_yaml::from_str(&role).expect("an identity");
            }
        };
        let none = PlatformPolicy::parse("f", "rules: [{ namespaces: [channels], roleARNs: [] }]").expect("a policy");
        let some =
            "rules: [{ namespaces: [channels], roleARNs: ['arn:aws:iam::1:role/rt-*', 'arn:aws:iam::2:role/x'] }]";
        let some = PlatformPolicy::parse("f", some).expect("a policy");
        let path = ["spec.aws.identity.edge.roleARN"];
        for (policy, arn, allowed) in [
            (&PlatformPolicy::default(), "arn:aws:iam::9:role/any", true),
            (&some, "arn:aws:iam::1:role/rt-edge", true),
            (&some, "arn:aws:iam::2:role/x", true),
            (&some, "arn:aws:iam::2:role/xy", false),
            (&some, "arn:aws:iam::9:role/rt-edge", false),
            (&none, "arn:aws:iam::1:role/rt-edge", false),
        ] {
            assert_eq!(paths(policy, with_role(arn)), if allowed { &path[..0] } else { &path[..] }, "{arn}");
        }
        let message = problems(&none, with_role("arn:x")).join("");
        assert!(message.contains("it allows no role"), "{message}");
    }

    #[test]
    fn a_finding_names_field_value_what_is_allowed_and_the_file() {
        let policy = PlatformPolicy::parse("/etc/policy.yaml", FILE).expect("a policy");
        let found = problems(&policy, |cluster| {
            own_image(cluster);
            cluster.spec.aws.endpoint_url = Some("http://10.0.0.1".to_owned());
        });
        assert_eq!(
            found,
            [
                "RealtimeCluster eu: spec.aws.endpointURL is `http://10.0.0.1`, which the platform policy /etc/policy.yaml does not \
              allow in namespace channels; it allows the endpoints of AWS in eu-west-1, http://kinesis.test:4567/. Write an \
              allowed value, or have an administrator of the operator extend the policy"
            ]
        );
        let policy = PlatformPolicy::parse("f", "rules: [{ namespaces: [a, b] }]").expect("a policy");
        let found = problems(&policy, |_| {}).join("");
        assert!(
            found.contains("metadata.namespace is `channels`, which the platform policy f does not allow"),
            "{found}"
        );
        assert!(found.contains("it allows a, b."), "{found}");
        let default = problems(&PlatformPolicy::default(), own_image).join("");
        assert!(default.contains("(the operator runs without --platform-policy)"), "{default}");
        assert!(default.contains("it allows realtime-operator/realtime."), "{default}");
    }

    #[test]
    fn a_policy_file_is_read_strictly_and_errors_name_line_and_key() {
        for (name, text, says) in [
            (
                "a misspelt key",
                "rules:\n  - namespaces: [a]\n    imges: [b]\n",
                &["rules[0]", "`imges`", "line 3", "did you mean `images`?"][..],
            ),
            ("a key of another place", "\nimages: []\n", &["unknown field `images`, expected `rules`"]),
            ("no namespaces", "rules:\n  - images: [b]\n", &["rules[0]", "missing field `namespaces`", "line 2"]),
            ("no rules", "rules: []\n", &["rules", "the list is empty: add an entry"]),
            (
                "a value left empty",
                "rules:\n  - namespaces: [a]\n    regions:\n",
                &["rules[0].regions", "the list is empty", "line 3"],
            ),
            (
                "an empty list",
                "rules:\n  - namespaces: [a]\n    regions: []\n",
                &["rules[0].regions", "the list is empty", "line 3"],
            ),
            ("an empty name", "rules:\n  - namespaces: ['']\n", &["rules[0].namespaces: ", "is empty", "line 2"]),
            (
                "a tag",
                "rules:\n  - namespaces: [a]\n    images: ['r/x:1']\n",
                &["rules[0].images: ", "`r/x:1` is no image repository", "line 3"],
            ),
            (
                "no address",
                "rules:\n  - namespaces: [a]\n    endpoints: [kinesis]\n",
                &["rules[0].endpoints: ", "`kinesis` is no address", "line 3"],
            ),
            ("no YAML", "rules: [", &["line 2"]),
            ("an empty file", "", &["rules"]),
        ] {
            let error = PlatformPolicy::parse("p.yaml", text).expect_err(name).to_string();
            assert!(error.starts_with("p.yaml: "), "{name}: {error}");
            for part in says {
                assert!(error.contains(part), "{name}: {error} lacks {part}");
            }
        }
        let port =
            PlatformPolicy::parse("p", "rules: [{ namespaces: ['*'], images: ['localhost:5000'] }]").expect("a policy");
        let local = |cluster: &mut RealtimeCluster| cluster.spec.image.repository = Some("localhost:5000/x".to_owned());
        assert_eq!(paths(&port, local), [""; 0]);
    }
}
