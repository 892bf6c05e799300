//! Renders the variables of a server from the table in `config`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, SecretKeySelector};

use super::super::secret_copies::{ADMIN_TOKEN_KEY, ADMIN_TOKEN_SOURCE, PEER_SECRET_KEY, PEER_SECRET_SOURCE};
use super::super::{AwsIdentity, SecretReference, ValidCluster, ValidServer};
use super::APPS_PATH;
use crate::config::{VARIABLE_TABLE, VariableKey};
use crate::protocol::Transport;

/// Mount path of the projected token of a `WebIdentity`.
pub(super) const TOKEN_DIRECTORY: &str = "/var/run/secrets/realtime";

enum VariableSource {
    Text(String),
    Secret { name: String, key: String },
    Field(&'static str),
}

/// Renders the variables of a server in the table's order, then the user's own. A server refuses a variable that its release
/// does not know, so it gets none.
pub(super) fn render_variables(cluster: &ValidCluster, server: &ValidServer) -> Vec<EnvVar> {
    let ours = VARIABLE_TABLE
        .iter()
        .filter(|row| row.servers.contains(&server.kind) && row.is_read_by(cluster.image.release))
        .filter_map(|row| Some(render_variable(row.name, resolve_source(cluster, server, row.key)?)));
    let extra = server.extra_variables.iter();
    let extra = extra.map(|extra| render_variable(&extra.name, VariableSource::Text(extra.value.clone())));
    ours.chain(extra).collect()
}

/// Source of a variable; `None` leaves the variable out. A match without a wildcard, so that no variable is forgotten.
fn resolve_source(cluster: &ValidCluster, server: &ValidServer, key: VariableKey) -> Option<VariableSource> {
    use VariableSource::{Field, Secret, Text};
    let text = |text: &str| Some(Text(text.to_owned()));
    let seconds = |duration: Duration| Some(Text(duration.as_secs().to_string()));
    let number = |number: Option<u32>| number.map(|number| Text(number.to_string()));
    let secret = |name: String, key: &str| Some(Secret { name, key: key.to_owned() });
    let copied = |source: &str, key: &str| secret(cluster.copy_of(source, key).to_owned(), key);
    let referenced = |found: &SecretReference| copied(&found.name, &found.key);
    let identity = &cluster.stream.identity;
    let balancer = server.edge().map(|edge| &edge.load_balancer);
    match key {
        VariableKey::Cluster => text(&format!("{}/{}", cluster.namespace, cluster.name)),
        VariableKey::ClusterUid => text(&cluster.uid),
        VariableKey::Server => text(server.kind.name()),
        VariableKey::Pod => Some(Field("metadata.name")),
        VariableKey::AdminToken => copied(ADMIN_TOKEN_SOURCE, ADMIN_TOKEN_KEY),
        VariableKey::AppsPath => text(APPS_PATH),
        VariableKey::Transports => {
            let transports =
                Transport::ALL.into_iter().filter(|transport| server.kind.serves_as(transport.server_kind()));
            text(&transports.map(Transport::name).collect::<Vec<_>>().join(","))
        }
        VariableKey::TrustedProxies => join_list(&cluster.trusted_proxies),
        VariableKey::Log => cluster.log_filter.and_then(text),
        VariableKey::ActivityTimeoutSeconds => balancer.and_then(|balancer| number(balancer.activity_timeout_seconds)),
        VariableKey::KeepAliveSeconds => balancer.and_then(|balancer| number(balancer.keep_alive_seconds)),
        VariableKey::ConnectionsMax => balancer.and_then(|balancer| number(balancer.connections_max)),
        VariableKey::MetricsApps => balancer.and_then(|balancer| number(balancer.metrics_apps)),
        VariableKey::ProxyProtocol => balancer.and_then(|balancer| balancer.proxy_protocol).and_then(text),
        VariableKey::BasePath => balancer.and_then(|balancer| balancer.base_path.as_deref()).and_then(text),
        VariableKey::PodIp => Some(Field("status.podIP")),
        VariableKey::PeerSecret => copied(PEER_SECRET_SOURCE, PEER_SECRET_KEY),
        VariableKey::SessionHost => cluster.sockjs.session_host.as_deref().and_then(text),
        VariableKey::SockjsScripts => join_list(&cluster.sockjs.scripts),
        VariableKey::SockjsCookie => cluster.sockjs.has_cookie.then_some("on").and_then(text),
        VariableKey::DrainHoldSeconds => server.edge().and_then(|edge| seconds(edge.drain.hold)),
        VariableKey::DrainWindowSeconds => server.edge().and_then(|edge| seconds(edge.drain.window)),
        VariableKey::Webhooks => text(if cluster.dispatcher().is_some() { "kinesis" } else { "off" }),
        VariableKey::StreamName => text(cluster.stream.name.as_str()),
        VariableKey::DeadLetterStream => cluster.stream.dead_letter_name().and_then(|name| text(name.as_str())),
        VariableKey::StreamStartMs => cluster.stream.start_ms.and_then(|ms| text(&ms.to_string())),
        VariableKey::Bus => text("redis"),
        VariableKey::BusGroup => cluster.bus_group.as_deref().and_then(text),
        VariableKey::RedisUrl => referenced(&cluster.redis.url),
        VariableKey::RedisCa => cluster.redis.ca.as_ref().and_then(referenced),
        VariableKey::AllowedNetworks => server.dispatcher().and_then(|settings| join_list(&settings.allowed_networks)),
        VariableKey::RetryWindowSeconds => server.dispatcher().and_then(|settings| seconds(settings.retry_window)),
        VariableKey::MaxBackoffSeconds => server.dispatcher().and_then(|settings| seconds(settings.max_backoff)),
        VariableKey::AwsIdentity => text(identity.name()),
        VariableKey::AwsRegion => text(&cluster.stream.region),
        VariableKey::AwsEndpointUrlKinesis => cluster.stream.endpoint_url.as_deref().and_then(text),
        VariableKey::AwsEc2MetadataDisabled => (*identity != AwsIdentity::NodeRole).then_some("true").and_then(text),
        VariableKey::AwsRoleArn => match identity {
            AwsIdentity::WebIdentity(roles) => text(roles.of_server(server.kind)),
            _ => None,
        },
        VariableKey::AwsWebIdentityTokenFile => match identity {
            AwsIdentity::WebIdentity(_) => text(&format!("{TOKEN_DIRECTORY}/token")),
            _ => None,
        },
        VariableKey::AwsAccessKeyId => identity.keys_secret().and_then(|name| copied(name, "accessKeyID")),
        VariableKey::AwsSecretAccessKey => identity.keys_secret().and_then(|name| copied(name, "secretAccessKey")),
        // The servers' defaults fit the rendered ports, volumes and permissions, and allowed endpoints are a file beside the
        // registry; the last four are injected by EKS.
        VariableKey::AdminAddress
        | VariableKey::PublicAddress
        | VariableKey::PeerAddress
        | VariableKey::Admission
        | VariableKey::AllowedEndpoints
        | VariableKey::AnnotationsPath
        | VariableKey::Leases
        | VariableKey::AwsStsRegionalEndpoints
        | VariableKey::AwsDefaultRegion
        | VariableKey::AwsContainerCredentialsFullUri
        | VariableKey::AwsContainerAuthorizationTokenFile => None,
    }
}

fn join_list(items: &[String]) -> Option<VariableSource> {
    (!items.is_empty()).then(|| VariableSource::Text(items.join(",")))
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
