//! Renders the variables of a server from the table in `config`.

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, SecretKeySelector};

use super::super::ValidCluster;
use super::{APPS_PATH, admin_secret_name, peer_secret_name};
use crate::api::cluster::{EdgeServer, IdentityType, WebhooksMode};
use crate::api::{EnabledState, SecretKeyRef};
use crate::config::{ServerKind, VARIABLE_TABLE, Variable, VariableKey};
use crate::protocol::Transport;

/// Mount path of the projected token of a `WebIdentity`.
pub(super) const TOKEN_DIRECTORY: &str = "/var/run/secrets/realtime";

enum VariableSource {
    Text(String),
    Secret { name: String, key: String },
    Field(&'static str),
}

/// Renders the variables of a server in the table's order, then the user's own.
pub(super) fn render_variables(cluster: &ValidCluster, server: ServerKind) -> Vec<EnvVar> {
    let ours = VARIABLE_TABLE
        .iter()
        .filter(|row| row.servers.contains(&server))
        .filter_map(|row| resolve_source(cluster, server, row).map(|source| render_variable(row.name, source)));
    let extra = edge_spec(cluster, server).map_or(&cluster.spec.webhooks.dispatcher.env, |edge| &edge.env);
    let extra = extra.iter().map(|extra| render_variable(&extra.name, VariableSource::Text(extra.value.clone())));
    ours.chain(extra).collect()
}

/// The manifest's section for an edge server; `None` for the dispatcher.
pub(super) fn edge_spec(cluster: &ValidCluster, server: ServerKind) -> Option<&EdgeServer> {
    match server {
        ServerKind::Websocket | ServerKind::Edge => Some(&cluster.spec.websocket),
        ServerKind::Sockjs => Some(&cluster.spec.sockjs),
        ServerKind::Dispatcher => None,
    }
}

fn resolve_source(cluster: &ValidCluster, server: ServerKind, row: &Variable) -> Option<VariableSource> {
    let spec = &cluster.spec;
    let identity = &spec.aws.identity;
    let text = |text: &str| Some(VariableSource::Text(text.to_owned()));
    match row.key {
        VariableKey::Cluster => text(&format!("{}/{}", cluster.namespace, cluster.name)),
        VariableKey::ClusterUid => text(&cluster.uid),
        VariableKey::Server => text(server.name()),
        VariableKey::Pod => Some(VariableSource::Field("metadata.name")),
        VariableKey::AdminToken => {
            Some(VariableSource::Secret { name: admin_secret_name(cluster), key: "token".to_owned() })
        }
        VariableKey::AppsPath => text(APPS_PATH),
        VariableKey::Transports => {
            let transports: Vec<&str> =
                Transport::ALL.into_iter().filter(|t| server.serves_as(t.server_kind())).map(Transport::name).collect();
            text(&transports.join(","))
        }
        VariableKey::TrustedProxies => join_list(&spec.trusted_proxies),
        VariableKey::PodIp => Some(VariableSource::Field("status.podIP")),
        VariableKey::PeerSecret => {
            Some(VariableSource::Secret { name: peer_secret_name(cluster), key: "secret".to_owned() })
        }
        VariableKey::SessionHost => spec.sockjs_clients.canonical_host.as_deref().and_then(text),
        VariableKey::SockjsScripts => join_list(&spec.sockjs_clients.scripts),
        VariableKey::SockjsCookie => {
            (spec.sockjs_clients.cookie == Some(EnabledState::Enabled)).then(|| VariableSource::Text("on".to_owned()))
        }
        VariableKey::DrainHoldSeconds => {
            edge_spec(cluster, server).and_then(|edge| text(&edge.drain.hold_seconds.to_string()))
        }
        VariableKey::DrainWindowSeconds => {
            edge_spec(cluster, server).and_then(|edge| text(&edge.drain.window_seconds.to_string()))
        }
        VariableKey::Webhooks => text(match spec.webhooks.mode {
            WebhooksMode::Kinesis => "kinesis",
            WebhooksMode::Off => "off",
        }),
        VariableKey::StreamName => text(cluster.stream.as_str()),
        VariableKey::Bus => text("redis"),
        VariableKey::RedisUrl => Some(secret_source(&spec.bus.redis.url_secret_ref)),
        VariableKey::RedisCa => spec.bus.redis.ca_secret_ref.as_ref().map(secret_source),
        VariableKey::AllowedNetworks => join_list(&spec.webhooks.allowed_networks),
        VariableKey::AllowedEndpoints => text(&cluster.receiver),
        VariableKey::RetryWindowSeconds => text(&spec.webhooks.dispatcher.retry_window_seconds.to_string()),
        VariableKey::MaxBackoffSeconds => text(&spec.webhooks.dispatcher.max_backoff_seconds.to_string()),
        VariableKey::AwsIdentity => text(cluster.identity_type().name()),
        VariableKey::AwsRegion => text(&spec.aws.region),
        VariableKey::AwsEndpointUrlKinesis => spec.aws.endpoint_url.as_deref().and_then(text),
        VariableKey::AwsEc2MetadataDisabled => {
            (identity.kind != IdentityType::NodeRole).then(|| VariableSource::Text("true".to_owned()))
        }
        VariableKey::AwsRoleArn => {
            let role = if server == ServerKind::Dispatcher { &identity.dispatcher } else { &identity.edge };
            role.as_ref().filter(|_| identity.kind == IdentityType::WebIdentity).and_then(|role| text(&role.role_arn))
        }
        VariableKey::AwsWebIdentityTokenFile => (identity.kind == IdentityType::WebIdentity)
            .then(|| VariableSource::Text(format!("{TOKEN_DIRECTORY}/token"))),
        VariableKey::AwsAccessKeyId => static_key_source(identity.secret_ref.as_ref(), "accessKeyID"),
        VariableKey::AwsSecretAccessKey => static_key_source(identity.secret_ref.as_ref(), "secretAccessKey"),
        // The servers' defaults fit the rendered ports, volumes and permissions.
        VariableKey::AdminAddress
        | VariableKey::PublicAddress
        | VariableKey::PeerAddress
        | VariableKey::Admission
        | VariableKey::AnnotationsPath
        | VariableKey::Leases
        | VariableKey::Log => None,
        // EKS injects these.
        VariableKey::AwsStsRegionalEndpoints
        | VariableKey::AwsDefaultRegion
        | VariableKey::AwsContainerCredentialsFullUri
        | VariableKey::AwsContainerAuthorizationTokenFile => None,
    }
}

fn join_list(items: &[String]) -> Option<VariableSource> {
    (!items.is_empty()).then(|| VariableSource::Text(items.join(",")))
}

fn secret_source(reference: &SecretKeyRef) -> VariableSource {
    VariableSource::Secret { name: reference.name.clone(), key: reference.key.clone() }
}

fn static_key_source(secret: Option<&crate::api::SecretRef>, key: &str) -> Option<VariableSource> {
    secret.map(|secret| VariableSource::Secret { name: secret.name.clone(), key: key.to_owned() })
}

fn render_variable(name: &str, source: VariableSource) -> EnvVar {
    let (value, value_from) = match source {
        VariableSource::Text(text) => (Some(text), None),
        VariableSource::Secret { name, key } => {
            let selector = SecretKeySelector { name, key, optional: None };
            (None, Some(EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() }))
        }
        VariableSource::Field(path) => {
            let selector = ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() };
            (None, Some(EnvVarSource { field_ref: Some(selector), ..EnvVarSource::default() }))
        }
    };
    EnvVar { name: name.to_owned(), value, value_from }
}
