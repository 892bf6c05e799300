//! The variables of a server, rendered from the contract's table.

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, SecretKeySelector};

use super::super::Cluster;
use super::{APPS_PATH, admin_secret_name, peer_secret_name};
use crate::api::cluster::{EdgeServer, IdentityType, WebhooksMode};
use crate::api::{SecretKeyRef, State};
use crate::contract::{Server, VARIABLES, Variable, name};
use crate::protocol::Transport;

/// Where the token of a `WebIdentity` is mounted.
pub(super) const TOKEN_DIRECTORY: &str = "/var/run/secrets/realtime";

enum Source {
    Text(String),
    Secret { name: String, key: String },
    Field(&'static str),
}

/// The variables of a server, in the table's order, then the user's own.
pub(super) fn variables(cluster: &Cluster, server: Server) -> Vec<EnvVar> {
    let ours = VARIABLES
        .iter()
        .filter(|row| row.servers.contains(&server))
        .filter_map(|row| source(cluster, server, row).map(|source| variable(row.name, source)));
    let extra = edge(cluster, server).map_or(&cluster.spec.webhooks.dispatcher.env, |edge| &edge.env);
    let extra = extra.iter().map(|extra| variable(&extra.name, Source::Text(extra.value.clone())));
    ours.chain(extra).collect()
}

/// What the manifest says of an edge server.
pub(super) fn edge(cluster: &Cluster, server: Server) -> Option<&EdgeServer> {
    match server {
        Server::Websocket | Server::Edge => Some(&cluster.spec.websocket),
        Server::Sockjs => Some(&cluster.spec.sockjs),
        Server::Dispatcher => None,
    }
}

fn source(cluster: &Cluster, server: Server, row: &Variable) -> Option<Source> {
    let spec = &cluster.spec;
    let identity = &spec.aws.identity;
    let text = |text: &str| Some(Source::Text(text.to_owned()));
    match row.name {
        name::CLUSTER => text(&format!("{}/{}", cluster.namespace, cluster.name)),
        name::CLUSTER_UID => text(&cluster.uid),
        name::SERVER => text(server.name()),
        name::POD => Some(Source::Field("metadata.name")),
        name::ADMIN_TOKEN => Some(Source::Secret { name: admin_secret_name(cluster), key: "token".to_owned() }),
        name::APPS_PATH => text(APPS_PATH),
        name::TRANSPORTS => {
            let carried: Vec<&str> =
                Transport::ALL.into_iter().filter(|t| server.serves_as(t.server())).map(Transport::name).collect();
            text(&carried.join(","))
        }
        name::TRUSTED_PROXIES => list(&spec.trusted_proxies),
        name::POD_IP => Some(Source::Field("status.podIP")),
        name::PEER_SECRET => Some(Source::Secret { name: peer_secret_name(cluster), key: "secret".to_owned() }),
        name::SESSION_HOST => spec.sockjs_clients.canonical_host.as_deref().and_then(text),
        name::SOCKJS_SCRIPTS => list(&spec.sockjs_clients.scripts),
        name::SOCKJS_COOKIE if spec.sockjs_clients.cookie == Some(State::Enabled) => text("on"),
        name::DRAIN_HOLD_SECONDS => edge(cluster, server).and_then(|edge| text(&edge.drain.hold_seconds.to_string())),
        name::DRAIN_WINDOW_SECONDS => {
            edge(cluster, server).and_then(|edge| text(&edge.drain.window_seconds.to_string()))
        }
        name::WEBHOOKS => text(match spec.webhooks.mode {
            WebhooksMode::Kinesis => "kinesis",
            WebhooksMode::Off => "off",
        }),
        name::STREAM_NAME => text(cluster.stream.as_str()),
        name::BUS => text("redis"),
        name::REDIS_URL => Some(key_of(&spec.bus.redis.url_secret_ref)),
        name::REDIS_CA => spec.bus.redis.ca_secret_ref.as_ref().map(key_of),
        name::ALLOWED_NETWORKS => list(&spec.webhooks.allowed_networks),
        name::ALLOWED_ENDPOINTS => text(&cluster.receiver),
        name::RETRY_WINDOW_SECONDS => text(&spec.webhooks.dispatcher.retry_window_seconds.to_string()),
        name::MAX_BACKOFF_SECONDS => text(&spec.webhooks.dispatcher.max_backoff_seconds.to_string()),
        name::AWS_IDENTITY => text(cluster.identity().name()),
        name::AWS_REGION => text(&spec.aws.region),
        name::AWS_ENDPOINT_URL_KINESIS => spec.aws.endpoint_url.as_deref().and_then(text),
        "AWS_EC2_METADATA_DISABLED" if identity.kind != IdentityType::NodeRole => text("true"),
        "AWS_ROLE_ARN" if identity.kind == IdentityType::WebIdentity => {
            let role = if server == Server::Dispatcher { &identity.dispatcher } else { &identity.edge };
            role.as_ref().and_then(|role| text(&role.role_arn))
        }
        "AWS_WEB_IDENTITY_TOKEN_FILE" if identity.kind == IdentityType::WebIdentity => {
            text(&format!("{TOKEN_DIRECTORY}/token"))
        }
        "AWS_ACCESS_KEY_ID" => static_key(identity.secret_ref.as_ref(), "accessKeyID"),
        "AWS_SECRET_ACCESS_KEY" => static_key(identity.secret_ref.as_ref(), "secretAccessKey"),
        _ => None,
    }
}

fn list(items: &[String]) -> Option<Source> {
    (!items.is_empty()).then(|| Source::Text(items.join(",")))
}

fn key_of(reference: &SecretKeyRef) -> Source {
    Source::Secret { name: reference.name.clone(), key: reference.key.clone() }
}

fn static_key(secret: Option<&crate::api::SecretRef>, key: &str) -> Option<Source> {
    secret.map(|secret| Source::Secret { name: secret.name.clone(), key: key.to_owned() })
}

fn variable(name: &str, source: Source) -> EnvVar {
    let (value, value_from) = match source {
        Source::Text(text) => (Some(text), None),
        Source::Secret { name, key } => {
            let selector = SecretKeySelector { name, key, optional: None };
            (None, Some(EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() }))
        }
        Source::Field(path) => {
            let selector = ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() };
            (None, Some(EnvVarSource { field_ref: Some(selector), ..EnvVarSource::default() }))
        }
    };
    EnvVar { name: name.to_owned(), value, value_from }
}
