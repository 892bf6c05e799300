//! Turns raw manifests into a valid cluster: names are derived, references are resolved.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::api::app::CredentialState as ApiCredentialState;
use crate::api::cluster::{EdgeServer, IdentityType, ServerLayout, StreamMode};
use crate::api::{API_GROUP, EnabledState, RealtimeApp, RealtimeCluster, RealtimeClusterSpec, SecretKeyRef};
use crate::config::ServerKind;
use crate::protocol::origin;
use crate::protocol::registry::{App, AppLimits, AppRegistry, Credential, CredentialState, WebhookEndpoint};
use crate::protocol::{AppId, AppKey, Secret, StreamName, Transport, signature};

/// Shards with which an on-demand stream starts (Kinesis developer guide).
const ON_DEMAND_SHARD_COUNT: u32 = 4;

/// Inputs from which a cluster is validated.
pub struct ClusterInputs<'a> {
    /// The cluster's manifest, as written.
    pub cluster: &'a RealtimeCluster,
    /// Manifests of the apps in its namespace, oldest first.
    pub apps: &'a [RealtimeApp],
    /// Texts of the Secrets of its namespace, by name and key.
    pub secrets: &'a BTreeMap<String, BTreeMap<String, String>>,
    /// Generates or recalls a secret for a purpose such as `admin-token`: the same text for the same purpose.
    pub generate: &'a dyn Fn(&str) -> String,
    /// `HOST:PORT` of the operator's webhook receiver.
    pub receiver: &'a str,
    /// Release of this program, used when the manifest has no image tag.
    pub version: &'a str,
    /// The stream that was adopted or created; `None` means the one that the manifest asks for.
    pub stream: Option<&'a StreamIdentity>,
}

/// A stream that belongs to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamIdentity {
    /// Name of the stream.
    pub name: StreamName,
    /// Cluster id in the stream's records: that of the cluster that created it, which may have been deleted and applied
    /// again since.
    pub cluster_id: String,
}

/// An app that is not served, with its problems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedApp {
    /// Name of the `RealtimeApp` object.
    pub name: String,
    /// The problems, each with path and remedy.
    pub problems: Vec<ManifestProblem>,
}

/// A cluster that can be rendered.
#[derive(Clone, Debug)]
pub struct ValidCluster {
    /// Name of the cluster.
    pub name: String,
    /// Namespace of the cluster.
    pub namespace: String,
    /// Cluster id in records and Redis keys: its UID, or the id of the stream that it adopted.
    pub uid: String,
    /// Owner of the rendered objects; `None` for a manifest that was never applied.
    pub owner: Option<OwnerReference>,
    /// By server, a digest of the Secrets that its pods read at their start.
    pub secrets_digests: BTreeMap<ServerKind, String>,
    /// Apps that are not served, with their problems.
    pub refused: Vec<RefusedApp>,
    /// The manifest's spec, with defaults filled in.
    pub spec: RealtimeClusterSpec,
    /// Name of the Kinesis stream.
    pub stream: StreamName,
    /// Number of shards with which the stream starts.
    pub shards: u32,
    /// All served apps, with the probe app.
    pub registry: AppRegistry,
    /// The app through which journeys run.
    pub probe: ProbeApp,
    /// Token of the admin listeners.
    pub admin_token: Secret,
    /// Secret with which edges sign relayed requests.
    pub peer_secret: Secret,
    /// `HOST:PORT` of the operator's webhook receiver.
    pub receiver: String,
    /// Tag of the servers' image.
    pub tag: String,
}

/// The app of the journeys; servers treat it like any other app.
#[derive(Clone, Debug)]
pub struct ProbeApp {
    /// App id of the probe.
    pub id: AppId,
    /// App key of the probe.
    pub key: AppKey,
    /// Secret of the app key.
    pub secret: Secret,
}

/// A problem that keeps a cluster from being rendered, or an app from being served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {path} {message}")]
pub struct ManifestProblem {
    /// Kind and name of the object: `RealtimeApp shop`.
    pub object: String,
    /// Path of the field.
    pub path: String,
    /// The problem and its remedy.
    pub message: String,
}

/// A key of a Secret that the manifests reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretReference {
    /// Name of the Secret.
    pub name: String,
    /// Key within the Secret.
    pub key: String,
    /// Purpose of the value, for messages.
    pub purpose: &'static str,
}

/// Lists the keys of Secrets that a cluster and its apps reference.
#[must_use]
pub fn collect_secret_references(cluster: &RealtimeCluster, apps: &[RealtimeApp]) -> Vec<SecretReference> {
    let reference =
        |name: &str, key: &str, purpose| SecretReference { name: name.to_owned(), key: key.to_owned(), purpose };
    let redis = &cluster.spec.bus.redis;
    let mut found = vec![reference(&redis.url_secret_ref.name, &redis.url_secret_ref.key, "the address of Redis")];
    if let Some(authorities) = &redis.ca_secret_ref {
        found.push(reference(&authorities.name, &authorities.key, "the CA of Redis"));
    }
    if let Some(keys) = &cluster.spec.aws.identity.secret_ref {
        found.push(reference(&keys.name, "accessKeyID", "the AWS access key"));
        found.push(reference(&keys.name, "secretAccessKey", "the AWS secret key"));
    }
    for credential in apps.iter().flat_map(|app| &app.spec.credentials) {
        found.push(reference(&credential.secret_ref.name, "key", "an app's key"));
        found.push(reference(&credential.secret_ref.name, "secret", "an app's secret"));
    }
    found
}

/// Checks the rules that the schema cannot express, and resolves every reference.
///
/// # Errors
/// All problems of the cluster, not only the first. A problem of an app refuses that app alone: [`ValidCluster::refused`].
pub fn validate(inputs: &ClusterInputs<'_>) -> Result<ValidCluster, Vec<ManifestProblem>> {
    let mut problems = Vec::new();
    let reference = object_reference(inputs.cluster);
    let (name, namespace) = (reference.name.unwrap_or_default(), reference.namespace.unwrap_or_default());
    let own_uid = reference.uid.clone().unwrap_or_else(|| (inputs.generate)("uid"));
    let uid = inputs.stream.map_or_else(|| own_uid.clone(), |stream| stream.cluster_id.clone());
    let owner = reference.uid.map(|uid| OwnerReference {
        api_version: format!("{API_GROUP}/v1alpha1"),
        kind: "RealtimeCluster".to_owned(),
        name: name.clone(),
        uid,
        controller: Some(true),
        block_owner_deletion: Some(true),
    });
    let spec = inputs.cluster.spec.clone();
    let own = |path: &str, message: String| ManifestProblem {
        object: format!("RealtimeCluster {name}"),
        path: path.to_owned(),
        message,
    };
    if spec.servers == ServerLayout::Combined && ![&spec.websocket, &EdgeServer::default()].contains(&&spec.sockjs) {
        let message = "is not what spec.websocket is: with servers: Combined leave it out, or write the same";
        problems.push(own("spec.sockjs", message.to_owned()));
    }
    let networks =
        [("webhooks.allowedNetworks", &spec.webhooks.allowed_networks), ("trustedProxies", &spec.trusted_proxies)];
    for (path, networks) in networks {
        for (index, network) in networks.iter().enumerate() {
            if network.parse::<ipnet::IpNet>().is_err() {
                let message = format!("is `{network}`: write a network such as 10.20.0.0/16");
                problems.push(own(&format!("spec.{path}[{index}]"), message));
            }
        }
    }
    let probe = ProbeApp {
        id: derive_probe_id(&uid),
        key: AppKey((inputs.generate)("probe-key")),
        secret: Secret::new((inputs.generate)("probe-secret")),
    };
    let mut apps = vec![build_probe_app(&probe, inputs.receiver)];
    let mut refused = Vec::new();
    for raw in inputs.apps {
        let problems = match validate_app(raw, inputs) {
            Ok(app) => {
                let Some(message) = find_conflict(&apps, &app) else {
                    apps.push(app);
                    continue;
                };
                vec![ManifestProblem { object: describe_app(raw), path: "spec.appID".to_owned(), message }]
            }
            Err(found) => found,
        };
        refused.push(RefusedApp { name: raw.metadata.name.clone().unwrap_or_default(), problems });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let stream = &spec.webhooks.stream;
    let admin_token = Secret::new((inputs.generate)("admin-token"));
    let peer_secret = Secret::new((inputs.generate)("peer-secret"));
    Ok(ValidCluster {
        stream: inputs.stream.map_or_else(|| stream_name(inputs.cluster, &own_uid), |stream| stream.name.clone()),
        secrets_digests: ServerKind::ALL
            .map(|server| (server, secrets_digest(inputs, server, &admin_token, &peer_secret)))
            .into(),
        owner,
        refused,
        shards: match stream.mode {
            StreamMode::OnDemand => ON_DEMAND_SHARD_COUNT,
            StreamMode::Provisioned => stream.shards.and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
        },
        registry: AppRegistry::new(apps),
        probe,
        admin_token,
        peer_secret,
        receiver: inputs.receiver.to_owned(),
        tag: spec.image.tag.clone().unwrap_or_else(|| inputs.version.to_owned()),
        name,
        namespace,
        uid,
        spec,
    })
}

/// Name of the stream that a cluster asks for, explicitly or by default.
#[must_use]
pub fn stream_name(cluster: &RealtimeCluster, uid: &str) -> StreamName {
    let reference = object_reference(cluster);
    let short: String = uid.chars().filter(char::is_ascii_alphanumeric).take(6).collect();
    let (name, namespace) = (reference.name.unwrap_or_default(), reference.namespace.unwrap_or_default());
    let asked = cluster.spec.webhooks.stream.name.clone();
    StreamName(asked.unwrap_or_else(|| format!("rtc-{namespace}-{name}-{short}")))
}

/// Digest of the Secrets that pods read at their start; salted, since annotations are readable to every user of the
/// namespace.
fn secrets_digest(inputs: &ClusterInputs<'_>, server: ServerKind, salt: &Secret, peer: &Secret) -> String {
    let redis = &inputs.cluster.spec.bus.redis;
    let of_redis: Vec<_> = std::iter::once(&redis.url_secret_ref).chain(&redis.ca_secret_ref).collect();
    // Only edges connect to Redis: a change of its address must not roll dispatchers.
    let reads = |found: &&SecretReference| {
        let is = |redis: &&SecretKeyRef| (&redis.name, &redis.key) == (&found.name, &found.key);
        server != ServerKind::Dispatcher || !of_redis.iter().any(is)
    };
    let peer = server.serves_as(ServerKind::Sockjs).then(|| peer.expose());
    let texts: Vec<&str> = collect_secret_references(inputs.cluster, &[])
        .iter()
        .filter(reads)
        .filter_map(|reference| inputs.secrets.get(&reference.name)?.get(&reference.key).map(String::as_str))
        .chain(peer)
        .collect();
    signature::salted_digest(salt.expose(), &texts.join("\n"))
}

fn object_reference(cluster: &RealtimeCluster) -> ObjectReference {
    ObjectReference {
        name: cluster.metadata.name.clone(),
        namespace: Some(cluster.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())),
        uid: cluster.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn describe_app(app: &RealtimeApp) -> String {
    format!("RealtimeApp {}", app.metadata.name.as_deref().unwrap_or_default())
}

/// App id of the probe: 15 digits that no customer is likely to have, derived so that a cluster keeps its id.
fn derive_probe_id(uid: &str) -> AppId {
    let digest = signature::body_md5(uid.as_bytes());
    let number = digest.get(..10).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
    AppId(format!("9{number:014}"))
}

fn build_probe_app(probe: &ProbeApp, receiver: &str) -> App {
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
        limits: AppLimits::default(),
        webhooks: vec![WebhookEndpoint {
            name: "receiver".to_owned(),
            url: format!("http://{receiver}/webhooks"),
            events: vec![],
            channel_prefix: String::new(),
            timeout_seconds: 4,
        }],
    }
}

fn find_conflict(apps: &[App], app: &App) -> Option<String> {
    let taken =
        |other: &App| other.credentials.iter().any(|credential| app.secret_for(credential.key.as_str()).is_some());
    if apps.iter().any(|other| other.id == app.id) {
        Some(format!("is `{}`, which another app has: choose another", app.id))
    } else if apps.iter().any(taken) {
        Some("belongs to an app with a key that another app has: give it its own".to_owned())
    } else {
        None
    }
}

fn validate_app(raw: &RealtimeApp, inputs: &ClusterInputs<'_>) -> Result<App, Vec<ManifestProblem>> {
    let mut problems = Vec::new();
    let mut credentials = Vec::new();
    let id = &raw.spec.app_id;
    for (index, credential) in raw.spec.credentials.iter().enumerate() {
        let secret = &credential.secret_ref.name;
        let texts = inputs.secrets.get(secret);
        let text = |key: &str| texts.and_then(|texts| texts.get(key)).filter(|text| !text.is_empty());
        match (text("key"), text("secret")) {
            (Some(key), Some(secret)) => credentials.push(Credential {
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
    if raw.spec.credentials.is_empty() {
        credentials.push(Credential {
            key: AppKey((inputs.generate)(&format!("app-{id}-key"))),
            secret: Secret::new((inputs.generate)(&format!("app-{id}-secret"))),
            state: CredentialState::Active,
        });
    } else if problems.is_empty() && !credentials.iter().any(|c| c.state == CredentialState::Active) {
        problems.push(ManifestProblem {
            object: describe_app(raw),
            path: "spec.credentials".to_owned(),
            message: "has no Active pair, so that no webhook could be signed: make one Active".to_owned(),
        });
    }
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
        if url::Url::parse(&webhook.url).is_err() {
            problems.push(ManifestProblem {
                object: describe_app(raw),
                path: format!("spec.webhooks[{index}].url"),
                message: format!("is `{}`, which is no address: write https://HOST/PATH", webhook.url),
            });
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(App {
        id: AppId(id.clone()),
        credentials,
        enabled: raw.spec.state == EnabledState::Enabled,
        client_events: raw.spec.client_events == EnabledState::Enabled,
        subscription_count: raw.spec.subscription_count == EnabledState::Enabled,
        authorization_seconds: raw.spec.authorization_seconds,
        allowed_origins: raw.spec.allowed_origins.clone(),
        limits: AppLimits {
            connections: raw.spec.limits.connections.map(u64::from),
            message_bytes: usize::try_from(raw.spec.limits.message_bytes).unwrap_or(usize::MAX),
            client_events_per_second: raw.spec.limits.client_events_per_second,
        },
        webhooks: raw
            .spec
            .webhooks
            .iter()
            .map(|webhook| WebhookEndpoint {
                name: webhook.name.clone(),
                url: webhook.url.clone(),
                events: webhook.events.iter().map(|event| event.name().to_owned()).collect(),
                channel_prefix: webhook.channel_prefix.clone(),
                timeout_seconds: webhook.timeout_seconds,
            })
            .collect(),
    })
}

impl ValidCluster {
    /// The edge servers of the cluster, each with its section of the manifest.
    #[must_use]
    pub fn edge_servers(&self) -> Vec<(ServerKind, &EdgeServer)> {
        if self.spec.servers == ServerLayout::Combined {
            return vec![(ServerKind::Edge, &self.spec.websocket)];
        }
        let all = [(ServerKind::Websocket, &self.spec.websocket), (ServerKind::Sockjs, &self.spec.sockjs)];
        all.into_iter().filter(|(_, edge)| edge.state == EnabledState::Enabled).collect()
    }

    /// Whether a server of the cluster serves this transport.
    #[must_use]
    pub fn serves_transport(&self, transport: Transport) -> bool {
        self.edge_servers().iter().any(|(server, _)| server.serves_as(transport.server_kind()))
    }

    /// Source of the AWS credentials.
    #[must_use]
    pub fn identity_type(&self) -> IdentityType {
        self.spec.aws.identity.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Manifests;

    const APP: &str = "
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeApp
metadata: { name: shop, namespace: channels }
spec: { appID: '1001', credentials: [{ secretRef: { name: shop } }] }
";
    const CLUSTER: &str = "
apiVersion: realtime-operator.dev/v1alpha1
kind: RealtimeCluster
metadata: { name: eu, namespace: channels, uid: 1a2b3c4d-0000 }
spec:
  aws: { region: eu-west-1, identity: { type: PodIdentity } }
  bus: { type: Redis, redis: { urlSecretRef: { name: eu-redis, key: url } } }
";

    fn check(apps: &[&str], secrets: &[(&str, &[(&str, &str)])]) -> Result<ValidCluster, Vec<ManifestProblem>> {
        check_cluster(CLUSTER, apps, secrets)
    }

    fn check_cluster(
        cluster: &str,
        apps: &[&str],
        secrets: &[(&str, &[(&str, &str)])],
    ) -> Result<ValidCluster, Vec<ManifestProblem>> {
        let mut manifests = Manifests::default();
        manifests.add_file("c.yaml", cluster).expect("a cluster");
        for app in apps {
            manifests.add_file("a.yaml", app).expect("an app");
        }
        let apps: Vec<RealtimeApp> = manifests.apps.into_iter().map(|(_, app)| app).collect();
        let texts = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let secrets = secrets.iter().map(|(name, pairs)| ((*name).to_owned(), texts(pairs))).collect();
        validate(&ClusterInputs {
            cluster: &manifests.clusters[0].1,
            apps: &apps,
            secrets: &secrets,
            generate: &|purpose| format!("generated-{purpose}"),
            receiver: "receiver.svc:8090",
            version: "0.1.0",
            stream: None,
        })
    }

    #[test]
    fn names_are_derived_and_the_probe_app_is_registered() {
        let cluster = check(&[APP], &[("shop", &[("key", "k"), ("secret", "s")])]).expect("a cluster");
        assert_eq!(cluster.stream.as_str(), "rtc-channels-eu-1a2b3c");
        assert_eq!(cluster.shards, 4);
        assert_eq!(cluster.registry.apps().count(), 2);
        assert!(cluster.probe.id.as_str().bytes().all(|b| b.is_ascii_digit()));
        assert_eq!(cluster.registry.by_key("k").map(|app| app.id.as_str()), Some("1001"));
    }

    #[test]
    fn a_changed_ca_of_redis_rolls_edges_alone() {
        let with = CLUSTER.replace("key: url }", "key: url }, caSecretRef: { name: eu-redis, key: ca.crt }");
        let digests = |cluster: &str, authority: &str| {
            let keys: &[(&str, &str)] = &[("url", "rediss://r"), ("ca.crt", authority), ("else", authority)];
            check_cluster(cluster, &[], &[("eu-redis", keys)]).expect("a cluster").secrets_digests
        };
        let (before, after) = (digests(&with, "old"), digests(&with, "new"));
        for server in ServerKind::ALL {
            assert_eq!(before[&server] != after[&server], server != ServerKind::Dispatcher, "{server}");
        }
        assert_eq!(digests(CLUSTER, "old"), digests(CLUSTER, "new"), "a key that no server reads rolls nothing");
    }

    #[test]
    fn a_missing_secret_and_a_duplicate_id_are_reported() {
        let problems = |apps: &[&str]| -> Vec<ManifestProblem> {
            let cluster = check(apps, &[]).expect("a cluster");
            cluster.refused.into_iter().flat_map(|refused| refused.problems).collect()
        };
        assert!(
            problems(&[APP])[0]
                .to_string()
                .contains("RealtimeApp shop: spec.credentials[0].secretRef references the Secret `shop`")
        );
        let bare = APP.replace(", credentials: [{ secretRef: { name: shop } }]", "");
        assert!(
            problems(&[&bare, &bare.replace("name: shop", "name: two")])[0]
                .to_string()
                .contains("RealtimeApp two: spec.appID is `1001`, which another app has")
        );
    }

    #[test]
    fn an_app_without_credentials_gets_generated_ones() {
        let bare = APP.replace(", credentials: [{ secretRef: { name: shop } }]", "");
        let cluster = check(&[&bare], &[]).expect("a cluster");
        assert!(cluster.registry.by_key("generated-app-1001-key").is_some());
    }

    #[test]
    fn origins_and_limits_reach_the_registry_and_invalid_ones_are_reported() {
        let origins = |origins: &str| {
            let limits = "limits: { connections: 5, messageBytes: 100 }";
            APP.replace("appID: '1001',", &format!("appID: '1001', allowedOrigins: [{origins}], {limits},"))
        };
        let secrets: &[(&str, &[(&str, &str)])] = &[("shop", &[("key", "k"), ("secret", "s")])];
        let good = check(&[&origins("'https://*.example.com', 'http://localhost:*'")], secrets).expect("a cluster");
        let app = good.registry.by_key("k").expect("the app");
        assert_eq!(app.allowed_origins, ["https://*.example.com", "http://localhost:*"]);
        assert_eq!(app.limits, AppLimits { connections: Some(5), message_bytes: 100, ..AppLimits::default() });
        let bad = check(&[&origins("'*', 'https://example.com/shop'")], secrets).expect("a cluster");
        let problems: Vec<String> = bad.refused[0].problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("spec.allowedOrigins[1] is `https://example.com/shop`"), "{problems:?}");
    }

    fn problems(spec: &str) -> Vec<String> {
        let mut manifests = Manifests::default();
        manifests.add_file("c.yaml", &format!("{CLUSTER}{spec}")).expect("a cluster");
        let valid = validate(&ClusterInputs {
            cluster: &manifests.clusters[0].1,
            apps: &[],
            secrets: &BTreeMap::new(),
            generate: &|purpose| purpose.to_owned(),
            receiver: "receiver.svc:8090",
            version: "0.1.0",
            stream: None,
        });
        valid.err().unwrap_or_default().into_iter().map(|problem| problem.path).collect()
    }

    #[test]
    fn servers_combined_are_described_once() {
        let both = "  servers: Combined\n  websocket: { replicas: 2 }\n";
        assert_eq!(problems(both), [""; 0]);
        assert_eq!(problems(&format!("{both}  sockjs: {{ replicas: 2 }}\n")), [""; 0]);
        assert_eq!(problems(&format!("{both}  sockjs: {{ replicas: 5 }}\n")), ["spec.sockjs"]);
    }

    #[test]
    fn invalid_networks_are_reported() {
        let spec = "  trustedProxies: [10.0.0.0/8, proxy]\n  webhooks: { allowedNetworks: ['10.0.0.0/99'] }\n";
        assert_eq!(problems(spec), ["spec.webhooks.allowedNetworks[0]", "spec.trustedProxies[1]"]);
    }

    #[test]
    fn an_app_that_could_sign_nothing_is_refused() {
        let retiring = APP.replace("{ name: shop } }", "{ name: shop }, state: Retiring }");
        let cluster = check(&[&retiring], &[("shop", &[("key", "k"), ("secret", "s")])]).expect("a cluster");
        assert!(cluster.refused[0].problems[0].to_string().contains("no Active pair"));
    }
}
