//! Renders the variables of a server from the table in `config`.

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, SecretKeySelector};

use super::super::ValidCluster;
use super::{APPS_PATH, admin_secret_name, peer_secret_name};
use crate::api::cluster::{EdgeServer, IdentityType, WebhooksMode};
use crate::api::{EnabledState, SecretKeyRef};
use crate::config::{ServerKind, VARIABLE_TABLE, Variable, name};
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
    match row.name {
        name::CLUSTER => text(&format!("{}/{}", cluster.namespace, cluster.name)),
        name::CLUSTER_UID => text(&cluster.uid),
        name::SERVER => text(server.name()),
        name::POD => Some(VariableSource::Field("metadata.name")),
        name::ADMIN_TOKEN => Some(VariableSource::Secret { name: admin_secret_name(cluster), key: "token".to_owned() }),
        name::APPS_PATH => text(APPS_PATH),
        name::TRANSPORTS => {
            let transports: Vec<&str> =
                Transport::ALL.into_iter().filter(|t| server.serves_as(t.server_kind())).map(Transport::name).collect();
            text(&transports.join(","))
        }
        name::TRUSTED_PROXIES => join_list(&spec.trusted_proxies),
        name::POD_IP => Some(VariableSource::Field("status.podIP")),
        name::PEER_SECRET => Some(VariableSource::Secret { name: peer_secret_name(cluster), key: "secret".to_owned() }),
        name::SESSION_HOST => spec.sockjs_clients.canonical_host.as_deref().and_then(text),
        name::SOCKJS_SCRIPTS => join_list(&spec.sockjs_clients.scripts),
        name::SOCKJS_COOKIE if spec.sockjs_clients.cookie == Some(EnabledState::Enabled) => text("on"),
        name::DRAIN_HOLD_SECONDS => {
            edge_spec(cluster, server).and_then(|edge| text(&edge.drain.hold_seconds.to_string()))
        }
        name::DRAIN_WINDOW_SECONDS => {
            edge_spec(cluster, server).and_then(|edge| text(&edge.drain.window_seconds.to_string()))
        }
        name::WEBHOOKS => text(match spec.webhooks.mode {
            WebhooksMode::Kinesis => "kinesis",
            WebhooksMode::Off => "off",
        }),
        name::STREAM_NAME => text(cluster.stream.as_str()),
        name::BUS => text("redis"),
        name::REDIS_URL => Some(secret_source(&spec.bus.redis.url_secret_ref)),
        name::REDIS_CA => spec.bus.redis.ca_secret_ref.as_ref().map(secret_source),
        name::ALLOWED_NETWORKS => join_list(&spec.webhooks.allowed_networks),
        name::ALLOWED_ENDPOINTS => text(&cluster.receiver),
        name::RETRY_WINDOW_SECONDS => text(&spec.webhooks.dispatcher.retry_window_seconds.to_string()),
        name::MAX_BACKOFF_SECONDS => text(&spec.webhooks.dispatcher.max_backoff_seconds.to_string()),
        name::AWS_IDENTITY => text(cluster.identity_type().name()),
        name::AWS_REGION => text(&spec.aws.region),
        name::AWS_ENDPOINT_URL_KINESIS => spec.aws.endpoint_url.as_deref().and_then(text),
        "AWS_EC2_METADATA_DISABLED" if identity.kind != IdentityType::NodeRole => text("true"),
        "AWS_ROLE_ARN" if identity.kind == IdentityType::WebIdentity => {
            let role = if server == ServerKind::Dispatcher { &identity.dispatcher } else { &identity.edge };
            role.as_ref().and_then(|role| text(&role.role_arn))
        }
        "AWS_WEB_IDENTITY_TOKEN_FILE" if identity.kind == IdentityType::WebIdentity => {
            text(&format!("{TOKEN_DIRECTORY}/token"))
        }
        "AWS_ACCESS_KEY_ID" => static_key_source(identity.secret_ref.as_ref(), "accessKeyID"),
        "AWS_SECRET_ACCESS_KEY" => static_key_source(identity.secret_ref.as_ref(), "secretAccessKey"),
        _ => None,
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
