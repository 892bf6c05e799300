//! The validated cluster: defaults are applied, references are resolved, types are parsed. Rendering, planning and
//! everything after read this type and no manifest.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::expose::{DrainPhases, Exposure};
use super::pod_settings::{ServerAccount, ServerPods};
use super::problem::RefusedApp;
use super::secret_copies::SecretCopy;
use super::secret_references::RedisReferences;
use super::server_image::ServerImage;
use super::stream_goal::{StreamCapacity, StreamGoal};
use crate::config::ServerKind;
use crate::protocol::registry::AppRegistry;
use crate::protocol::{AppId, AppKey, Secret, StreamName, Transport};

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
    /// Image and release of the servers.
    pub image: ServerImage,
    /// When kubelet pulls the image; `None` for its default.
    pub pull_policy: Option<&'static str>,
    /// Secrets with which kubelet pulls the image.
    pub pull_secrets: Vec<String>,
    /// Service account of the edges.
    pub edge_account: ServerAccount,
    /// Service account of the dispatcher.
    pub dispatcher_account: ServerAccount,
    /// Value of the annotation that restarts pods, as they carry it.
    pub restarted_at: Option<String>,
    /// Servers that are deployed: edges, then the dispatcher, if there are webhooks.
    pub servers: Vec<ValidServer>,
    /// Entrances for clients outside the Kubernetes cluster.
    pub exposures: Vec<Exposure>,
    /// Copies of the Secrets and of the generated values that pods read at their start.
    pub secret_copies: Vec<SecretCopy>,
    /// The Kinesis stream, with the access to it.
    pub stream: ValidStream,
    /// Sources of the address and the CA of Redis.
    pub redis: RedisReferences,
    /// Name of the group of clusters that share the bus; `None` for this cluster alone.
    pub bus_group: Option<String>,
    /// Settings for HTTP fallback sessions.
    pub sockjs: SockjsSettings,
    /// Networks of trusted proxies, as the manifest spells them: another spelling would change every pod.
    pub trusted_proxies: Vec<String>,
    /// Filter of the servers' logs; `None` for their default.
    pub log_filter: Option<&'static str>,
    /// Thresholds of the gate.
    pub gate: GateSettings,
    /// All served apps, with the probe app.
    pub registry: AppRegistry,
    /// Apps that are not accepted, with their problems; those with a refused endpoint are in the registry all the same.
    pub refused: Vec<RefusedApp>,
    /// The app through which journeys run.
    pub probe: ProbeApp,
    /// Token of the admin listeners.
    pub admin_token: Secret,
    /// Secret with which edges sign relayed requests.
    pub peer_secret: Secret,
    /// `HOST:PORT` of the operator's webhook receiver.
    pub receiver: String,
    /// Networks that webhooks are not sent to although their addresses are public.
    pub denied_networks: Vec<String>,
}

/// A server that is deployed.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidServer {
    /// Kind of the server.
    pub kind: ServerKind,
    /// Number of pods to run.
    pub replicas: i32,
    /// Settings of the pods.
    pub pods: ServerPods,
    /// Variables in addition to those that are rendered.
    pub extra_variables: Vec<ServerVariable>,
    /// Settings of this kind of server.
    pub role: ServerRole,
}

/// A variable that a user adds to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVariable {
    /// Name of the variable.
    pub name: String,
    /// Value of the variable.
    pub value: String,
}

/// Settings that edges or dispatchers have, not both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerRole {
    /// Settings of an edge.
    Edge(EdgeSettings),
    /// Settings of the dispatcher.
    Dispatcher(DispatcherSettings),
}

/// Settings of an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSettings {
    /// Phases of the drain.
    pub drain: DrainPhases,
    /// Settings for the load balancer in front of it.
    pub load_balancer: LoadBalancerSettings,
    /// Seconds for which a new pod is ready before the next one is replaced.
    pub min_ready_seconds: u32,
}

/// Settings of the dispatcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatcherSettings {
    /// Time in which a failed webhook is retried.
    pub retry_window: Duration,
    /// Longest back-off between two attempts.
    pub max_backoff: Duration,
    /// Private networks to which webhooks may be sent, as the manifest spells them.
    pub allowed_networks: Vec<String>,
}

/// The Kinesis stream of a cluster, with the access to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidStream {
    /// Name of the stream.
    pub name: StreamName,
    /// AWS region of the stream.
    pub region: String,
    /// URL of an emulator or VPC endpoint; `None` for the public endpoint of the region.
    pub endpoint_url: Option<String>,
    /// Source of AWS credentials.
    pub identity: AwsIdentity,
    /// Capacity with which the stream is created.
    pub capacity: StreamCapacity,
    /// The settings that the stream should have, and how far it is managed.
    pub goal: StreamGoal,
    /// Time in ms since 1970 from which a shard without a checkpoint is read; `None` for its oldest record.
    pub start_ms: Option<u64>,
    /// The stream for events that could not be delivered; `None` if they are dropped.
    pub dead_letter: Option<DeadLetterStream>,
}

/// The stream for events that could not be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterStream {
    /// Name in the manifest; `None` for the one that follows from the main stream.
    pub name: Option<StreamName>,
    /// Number of shards with which it is created.
    pub shards: u32,
    /// Hours for which letters are kept.
    pub retention_hours: u32,
}

/// Source of AWS credentials, with all that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwsIdentity {
    /// EKS IAM roles for service accounts.
    Irsa(RoleArns),
    /// EKS Pod Identity associations.
    PodIdentity,
    /// A projected service account token with an IAM role.
    WebIdentity(RoleArns),
    /// A pair of access keys in the Secret of this name.
    StaticKeys(String),
    /// The IAM role of the node.
    NodeRole,
}

/// ARNs of the IAM roles of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleArns {
    /// Role of the edges.
    pub edge: String,
    /// Role of the dispatcher.
    pub dispatcher: String,
}

/// Settings for HTTP fallback sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SockjsSettings {
    /// URLs of scripts that hidden frames may load; empty for the server's own list.
    pub scripts: Vec<String>,
    /// Whether sessions set the cookie `JSESSIONID`.
    pub has_cookie: bool,
    /// Host to which clients send the further requests of a session; `None` for the host of the first request.
    pub session_host: Option<String>,
}

/// Settings for the load balancer in front of an edge; an absent one is the server's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancerSettings {
    /// Silence after which client and server ping each other, in seconds.
    pub activity_timeout_seconds: Option<u32>,
    /// Time for which an idle connection of HTTP stays open, in seconds.
    pub keep_alive_seconds: Option<u32>,
    /// Clients that may be connected to a pod at once.
    pub connections_max: Option<u32>,
    /// Apps with series of their own in the metrics.
    pub metrics_apps: Option<u32>,
    /// Whether connections begin with a header of the PROXY protocol, in the word of the variable.
    pub proxy_protocol: Option<&'static str>,
    /// Prefix that each public path may have.
    pub base_path: Option<String>,
}

/// Thresholds of the gate. The deadline is not among them: a manifest that is invalid can miss it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateSettings {
    /// Time between two rounds of journeys.
    pub interval: Duration,
    /// Timeout of one journey.
    pub timeout: Duration,
    /// Complete rounds after which the gate opens.
    pub open_after: usize,
    /// Consecutive failures after which the gate closes.
    pub close_after: usize,
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

impl ValidCluster {
    /// Name of the Secret in which pods read a key, in place of the Secret that was copied.
    #[must_use]
    pub fn copy_of<'a>(&'a self, source: &'a str, key: &str) -> &'a str {
        let copy = self.secret_copies.iter().find(|copy| copy.source == source && copy.values.contains_key(key));
        copy.map_or(source, |copy| copy.name.as_str())
    }

    /// The service account of a server.
    #[must_use]
    pub fn account_of(&self, server: ServerKind) -> &ServerAccount {
        if server == ServerKind::Dispatcher { &self.dispatcher_account } else { &self.edge_account }
    }

    /// Whether a server of the cluster serves this transport.
    #[must_use]
    pub fn serves_transport(&self, transport: Transport) -> bool {
        self.servers.iter().any(|server| server.kind.serves_as(transport.server_kind()))
    }

    /// Settings of the dispatcher; `None` without webhooks.
    #[must_use]
    pub fn dispatcher(&self) -> Option<&DispatcherSettings> {
        self.servers.iter().find_map(ValidServer::dispatcher)
    }
}

impl ValidStream {
    /// Name of the stream for events that could not be delivered; `None` if they are dropped.
    #[must_use]
    pub fn dead_letter_name(&self) -> Option<StreamName> {
        let wanted = self.dead_letter.as_ref()?;
        Some(wanted.name.clone().unwrap_or_else(|| StreamName(format!("{}-dead-letter", self.name))))
    }
}

impl ValidServer {
    /// Settings of an edge; `None` for a dispatcher.
    #[must_use]
    pub fn edge(&self) -> Option<&EdgeSettings> {
        match &self.role {
            ServerRole::Edge(settings) => Some(settings),
            ServerRole::Dispatcher(_) => None,
        }
    }

    /// Settings of the dispatcher; `None` for an edge.
    #[must_use]
    pub fn dispatcher(&self) -> Option<&DispatcherSettings> {
        match &self.role {
            ServerRole::Edge(_) => None,
            ServerRole::Dispatcher(settings) => Some(settings),
        }
    }
}

impl RoleArns {
    /// Role of a server: edges share one.
    #[must_use]
    pub fn of_server(&self, server: ServerKind) -> &str {
        if server == ServerKind::Dispatcher { &self.dispatcher } else { &self.edge }
    }
}

impl AwsIdentity {
    /// Name of the source, as in the manifest and in the variable.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Irsa(_) => "IRSA",
            Self::PodIdentity => "PodIdentity",
            Self::WebIdentity(_) => "WebIdentity",
            Self::StaticKeys(_) => "StaticKeys",
            Self::NodeRole => "NodeRole",
        }
    }

    /// Name of the Secret with the access keys; `None` for another source.
    #[must_use]
    pub fn keys_secret(&self) -> Option<&str> {
        match self {
            Self::StaticKeys(name) => Some(name),
            Self::Irsa(_) | Self::PodIdentity | Self::WebIdentity(_) | Self::NodeRole => None,
        }
    }
}
