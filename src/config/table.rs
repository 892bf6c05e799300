//! The table of variables.

use super::Release;
use super::ServerKind::{self, Dispatcher, Edge, Sockjs};
use super::value_kind::{Requirement, ValueKind};
use super::variable_key::{VariableKey, name};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Key by which the operator renders it.
    pub key: VariableKey,
    /// The name in the environment.
    pub name: &'static str,
    /// The form of a value.
    pub kind: ValueKind,
    /// The condition under which it is required.
    pub need: Requirement,
    /// The servers that read it; others refuse it.
    pub servers: &'static [ServerKind],
    /// Whether its value is hidden: compared by a salted digest, rendered from a Secret.
    pub secret: bool,
    /// The first release that reads it; the operator renders it for that release and later ones only.
    pub since: &'static str,
    /// The description of its purpose, in a sentence.
    pub about: &'static str,
}

const EDGE_SERVERS: &[ServerKind] = &ServerKind::EDGES;
const ALL_SERVERS: &[ServerKind] = &ServerKind::ALL;
const FALLBACK_SERVERS: &[ServerKind] = &[Sockjs, Edge];
const DISPATCHER_SERVERS: &[ServerKind] = &[Dispatcher];

const IRSA_IDENTITY: &str = "IRSA";
const POD_IDENTITY: &str = "PodIdentity";
const WEB_IDENTITY: &str = "WebIdentity";
const STATIC_KEYS: &str = "StaticKeys";
const NODE_ROLE: &str = "NodeRole";
const ANY_IDENTITY: &[&str] = &[IRSA_IDENTITY, POD_IDENTITY, WEB_IDENTITY, STATIC_KEYS, NODE_ROLE];
const TOKEN_IDENTITY: &[&str] = &[IRSA_IDENTITY, WEB_IDENTITY];
const EKS_IDENTITY: &[&str] = &[IRSA_IDENTITY, POD_IDENTITY];

const fn define_variable(
    key: VariableKey,
    kind: ValueKind,
    need: Requirement,
    servers: &'static [ServerKind],
    about: &'static str,
) -> Variable {
    Variable { key, name: key.name(), kind, need, servers, secret: false, since: "0.1.0", about }
}

const fn mark_since(since: &'static str, row: Variable) -> Variable {
    Variable { since, ..row }
}

const fn mark_secret(row: Variable) -> Variable {
    Variable { secret: true, ..row }
}

/// Every variable, in the order in which the documentation shows them.
pub const VARIABLE_TABLE: &[Variable] = &[
    define_variable(
        VariableKey::Cluster,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Namespace and name of the RealtimeCluster, as `namespace/name`.",
    ),
    define_variable(
        VariableKey::ClusterUid,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "UID of the RealtimeCluster. Records carry it, and records of another cluster are not delivered.",
    ),
    define_variable(
        VariableKey::Server,
        ValueKind::Word(&["websocket", "sockjs", "edge", "dispatcher"]),
        Requirement::Required,
        ALL_SERVERS,
        "Kind of server that this process is; the other variables are checked for it.",
    ),
    define_variable(
        VariableKey::Pod,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Name of the pod, as records and diagnoses name it.",
    ),
    define_variable(
        VariableKey::AdminAddress,
        ValueKind::Address,
        Requirement::Default("[::]:9090"),
        ALL_SERVERS,
        "Listener for `/livez`, `/readyz`, `/metrics` and, with the token, `/effective`, `/flow` and, on edges, `/drain`.",
    ),
    mark_secret(define_variable(
        VariableKey::AdminToken,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Bearer token of the admin listener, and the salt under which secrets are compared.",
    )),
    define_variable(
        VariableKey::AppsPath,
        ValueKind::Path,
        Requirement::Required,
        ALL_SERVERS,
        "Directory of the app registry: JSON files, read again when they change.",
    ),
    define_variable(
        VariableKey::Admission,
        ValueKind::Word(&["annotation", "none"]),
        Requirement::Default("annotation"),
        ALL_SERVERS,
        "`annotation`: `/readyz` fails until the pod's annotation `realtime-operator.dev/admitted` names the configuration that runs. `none`: the process is ready without an admission, as in a trial without Kubernetes.",
    ),
    define_variable(
        VariableKey::AnnotationsPath,
        ValueKind::Path,
        Requirement::Default("/etc/realtime/pod/annotations"),
        ALL_SERVERS,
        "File with the pod's annotations, as a downwardAPI volume writes it.",
    ),
    define_variable(
        VariableKey::Log,
        ValueKind::Text,
        Requirement::Default("info"),
        ALL_SERVERS,
        "Log filter, in the syntax of `tracing`: `info,realtime_operator=debug`.",
    ),
    define_variable(
        VariableKey::Transports,
        ValueKind::Words(&[
            "websocket",
            "xhr_streaming",
            "xhr_polling",
            "sockjs_websocket",
            "sockjs_xhr_streaming",
            "sockjs_xhr",
            "sockjs_eventsource",
        ]),
        Requirement::Required,
        EDGE_SERVERS,
        "Transports that this edge serves, separated by commas.",
    ),
    define_variable(
        VariableKey::PublicAddress,
        ValueKind::Address,
        Requirement::Default("[::]:8080"),
        EDGE_SERVERS,
        "Listener for clients and for the HTTP API.",
    ),
    define_variable(
        VariableKey::TrustedProxies,
        ValueKind::Networks,
        Requirement::Default(""),
        EDGE_SERVERS,
        "Networks of load balancers and proxies, separated by commas: only from there `X-Forwarded-For` (or, without it, `Forwarded`) is trusted. Without it a client's address is that of the connection.",
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::ActivityTimeoutSeconds,
            ValueKind::Number(5, 3_600),
            Requirement::Default("55"),
            EDGE_SERVERS,
            "Silence in seconds after which client and server ping each other: less than the time after which load balancers close an idle connection.",
        ),
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::KeepAliveSeconds,
            ValueKind::Number(10, 7_200),
            Requirement::Default("120"),
            EDGE_SERVERS,
            "Seconds for which an idle connection of HTTP stays open, at least twice the activity timeout: longer than load balancers keep theirs, so that no request meets a closing connection.",
        ),
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::ProxyProtocol,
            ValueKind::Word(&["disabled", "accepted", "required"]),
            Requirement::Default("disabled"),
            EDGE_SERVERS,
            "Whether a connection from a trusted proxy begins with a header of the PROXY protocol, version 1 or 2: `accepted`, it may; `required`, it is closed without one.",
        ),
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::BasePath,
            ValueKind::BasePath,
            Requirement::Default(""),
            EDGE_SERVERS,
            "Prefix that each public path may have, such as `/ws`. Requests without it are served, too.",
        ),
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::ConnectionsMax,
            ValueKind::Number(0, 1_000_000),
            Requirement::Default("0"),
            EDGE_SERVERS,
            "Clients that may be connected to the edge at once; more are closed with 4100. With 0, as many as fit into the memory limit of its container: one in 20 KiB beyond 64 MiB, and at most 100000.",
        ),
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::MetricsApps,
            ValueKind::Number(0, 10_000),
            Requirement::Default("50"),
            EDGE_SERVERS,
            "Apps with series of their own in the metrics by app; all others share the series of `_other`. Each app has four.",
        ),
    ),
    define_variable(
        VariableKey::PeerAddress,
        ValueKind::Address,
        Requirement::Default("[::]:8081"),
        FALLBACK_SERVERS,
        "Listener for other edges, which relay requests that clients sent to the wrong pod; with `REALTIME_BUS=redis` only. The port is the same for all of them.",
    ),
    define_variable(
        VariableKey::PodIp,
        ValueKind::Ip,
        Requirement::When(name::BUS, "redis"),
        FALLBACK_SERVERS,
        "Address of the pod, at which other edges reach the sessions that it owns.",
    ),
    mark_secret(define_variable(
        VariableKey::PeerSecret,
        ValueKind::Text,
        Requirement::When(name::BUS, "redis"),
        FALLBACK_SERVERS,
        "Secret with which edges sign the requests that they relay to each other. Two, separated by a comma, during a rotation: the first signs, both verify.",
    )),
    define_variable(
        VariableKey::SessionHost,
        ValueKind::Host,
        Requirement::Default(""),
        FALLBACK_SERVERS,
        "Host to which clients send the further requests of a session, in which `{pod}` stands for the pod's name. Without it, they send them to the first request's host, and any pod relays them.",
    ),
    define_variable(
        VariableKey::SockjsScripts,
        ValueKind::Scripts,
        Requirement::Default(
            "https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js,https://js.pusher.com/8.6.0/sockjs.min.js,https://js.pusher.com/8.6.0/sockjs.js,http://js.pusher.com/8.6.0/sockjs.min.js,http://js.pusher.com/8.6.0/sockjs.js",
        ),
        FALLBACK_SERVERS,
        "Scripts that the hidden frames of SockJS may load, separated by commas: the first one, or another that `js_path` names to the letter, as pusher-js does with the `sockjs.js` of its release.",
    ),
    define_variable(
        VariableKey::SockjsCookie,
        ValueKind::Word(&["off", "on"]),
        Requirement::Default("off"),
        FALLBACK_SERVERS,
        "Whether SockJS sessions set the cookie `JSESSIONID`, for a load balancer that keeps a client on one pod by it.",
    ),
    define_variable(
        VariableKey::DrainHoldSeconds,
        ValueKind::Number(0, 3_600),
        Requirement::Default("0"),
        EDGE_SERVERS,
        "Seconds for which an ending edge, which is not ready any more, still serves: load balancers notice late.",
    ),
    define_variable(
        VariableKey::DrainWindowSeconds,
        ValueKind::Number(1, 3_600),
        Requirement::Default("120"),
        EDGE_SERVERS,
        "Seconds after the hold in which clients are asked to reconnect to other edges: one by one, about a hundred in a second, and faster only when there are too many for this time.",
    ),
    define_variable(
        VariableKey::Webhooks,
        ValueKind::Word(&["kinesis", "off"]),
        Requirement::Required,
        EDGE_SERVERS,
        "Whether webhook events are written to the stream. `off` must be written explicitly; it is never the default.",
    ),
    define_variable(
        VariableKey::StreamName,
        ValueKind::Text,
        Requirement::When(name::WEBHOOKS, "kinesis"),
        ALL_SERVERS,
        "Name of the Kinesis stream that edges write and the dispatcher reads.",
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::DeadLetterStream,
            ValueKind::Text,
            Requirement::Default(""),
            DISPATCHER_SERVERS,
            "Name of the Kinesis stream for events that could not be delivered. Without it they are dropped, and counted by reason.",
        ),
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::StreamStartMs,
            ValueKind::Number(0, 253_402_300_799_999),
            Requirement::Default("0"),
            DISPATCHER_SERVERS,
            "Time in ms since 1970 from which a shard without a checkpoint is read; `0` is its oldest record.",
        ),
    ),
    define_variable(
        VariableKey::Bus,
        ValueKind::Word(&["memory", "redis"]),
        Requirement::Required,
        EDGE_SERVERS,
        "Bus between several edges: `redis`, or `memory` for a single process.",
    ),
    mark_since(
        "0.2.0",
        define_variable(
            VariableKey::BusGroup,
            ValueKind::Text,
            Requirement::Default(""),
            EDGE_SERVERS,
            "Name of the group of clusters that share channels, presence, limits and order on one Redis. Without it, the cluster shares them with no other.",
        ),
    ),
    mark_secret(define_variable(
        VariableKey::RedisUrl,
        ValueKind::Text,
        Requirement::When(name::BUS, "redis"),
        EDGE_SERVERS,
        "Address of Redis with credentials: `redis://`, `redis-sentinel://` or `redis-cluster://`, `rediss…` with TLS.",
    )),
    mark_secret(define_variable(
        VariableKey::RedisCa,
        ValueKind::Text,
        Requirement::Default(""),
        EDGE_SERVERS,
        "Certificates in PEM form of the authorities that may have signed Redis's; without it, the system's trust store.",
    )),
    define_variable(
        VariableKey::Leases,
        ValueKind::Word(&["kubernetes", "memory"]),
        Requirement::Default("kubernetes"),
        DISPATCHER_SERVERS,
        "Store of shard leases and checkpoints: `kubernetes`, or `memory` for a single process that may lose them.",
    ),
    define_variable(
        VariableKey::AllowedNetworks,
        ValueKind::Networks,
        Requirement::Default(""),
        DISPATCHER_SERVERS,
        "Private networks that webhooks may be sent to, separated by commas; without it public addresses only.",
    ),
    define_variable(
        VariableKey::AllowedEndpoints,
        ValueKind::Endpoints,
        Requirement::Default(""),
        DISPATCHER_SERVERS,
        "Exact `HOST:PORT` pairs that webhooks may be sent to although they are private, over plain HTTP too.",
    ),
    define_variable(
        VariableKey::RetryWindowSeconds,
        ValueKind::Number(1, 86_400),
        Requirement::Default("300"),
        DISPATCHER_SERVERS,
        "Seconds for which a webhook is tried again before it is given up.",
    ),
    define_variable(
        VariableKey::MaxBackoffSeconds,
        ValueKind::Number(1, 3_600),
        Requirement::Default("30"),
        DISPATCHER_SERVERS,
        "Longest back-off in seconds between two attempts of one webhook.",
    ),
    define_variable(
        VariableKey::AwsIdentity,
        ValueKind::Word(ANY_IDENTITY),
        Requirement::Required,
        ALL_SERVERS,
        "Source of the AWS credentials. No other source is used: there is no silent fallback to the node's role.",
    ),
    define_variable(
        VariableKey::AwsRegion,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Region of the stream, never guessed.",
    ),
    define_variable(
        VariableKey::AwsEndpointUrlKinesis,
        ValueKind::Url,
        Requirement::Optional(ANY_IDENTITY),
        ALL_SERVERS,
        "Address of Kinesis that replaces the region's own: a VPC endpoint or an emulator.",
    ),
    define_variable(
        VariableKey::AwsEc2MetadataDisabled,
        ValueKind::Word(&["true"]),
        Requirement::Optional(&[IRSA_IDENTITY, POD_IDENTITY, WEB_IDENTITY, STATIC_KEYS]),
        ALL_SERVERS,
        "Keeps every library away from the node's metadata.",
    ),
    define_variable(
        VariableKey::AwsRoleArn,
        ValueKind::Text,
        Requirement::Identity(TOKEN_IDENTITY),
        ALL_SERVERS,
        "Role to assume with the token, set by EKS or the manifest.",
    ),
    define_variable(
        VariableKey::AwsWebIdentityTokenFile,
        ValueKind::Path,
        Requirement::Identity(TOKEN_IDENTITY),
        ALL_SERVERS,
        "The token, mounted by EKS or the manifest.",
    ),
    define_variable(
        VariableKey::AwsStsRegionalEndpoints,
        ValueKind::Text,
        Requirement::Optional(EKS_IDENTITY),
        ALL_SERVERS,
        "Set by EKS.",
    ),
    define_variable(
        VariableKey::AwsDefaultRegion,
        ValueKind::Text,
        Requirement::Optional(EKS_IDENTITY),
        ALL_SERVERS,
        "Set by EKS; not used, `AWS_REGION` is.",
    ),
    define_variable(
        VariableKey::AwsContainerCredentialsFullUri,
        ValueKind::Url,
        Requirement::Identity(&[POD_IDENTITY]),
        ALL_SERVERS,
        "Set by EKS Pod Identity.",
    ),
    define_variable(
        VariableKey::AwsContainerAuthorizationTokenFile,
        ValueKind::Path,
        Requirement::Identity(&[POD_IDENTITY]),
        ALL_SERVERS,
        "Set by EKS Pod Identity.",
    ),
    mark_secret(define_variable(
        VariableKey::AwsAccessKeyId,
        ValueKind::Text,
        Requirement::When(name::AWS_IDENTITY, STATIC_KEYS),
        ALL_SERVERS,
        "Access key, with `StaticKeys` only.",
    )),
    mark_secret(define_variable(
        VariableKey::AwsSecretAccessKey,
        ValueKind::Text,
        Requirement::When(name::AWS_IDENTITY, STATIC_KEYS),
        ALL_SERVERS,
        "Secret key, with `StaticKeys` only.",
    )),
];

/// Whether the table has exactly one row per key, in the order of the keys.
const fn has_row_per_key(table: &[Variable]) -> bool {
    let mut index = 0;
    while index < table.len() {
        if table[index].key as usize != index {
            return false;
        }
        index += 1;
    }
    index == VariableKey::ALL.len()
}

// A key without a row does not compile.
const _: () = assert!(has_row_per_key(VARIABLE_TABLE), "VARIABLE_TABLE needs one row per VariableKey, in their order");

impl Variable {
    /// Whether servers of this release read it; servers of an older one refuse it.
    #[must_use]
    pub fn is_read_by(&self, release: Release) -> bool {
        self.since.parse::<Release>().is_ok_and(|since| since <= release)
    }

    /// The row of a name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        VARIABLE_TABLE.iter().find(|variable| variable.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_read_from_its_first_release_on() {
        let row = Variable { since: "0.2.0", ..VARIABLE_TABLE[0] };
        let reads = |release: &str| row.is_read_by(release.parse().expect("a release"));
        assert!(!reads("0.1.9") && reads("0.2.0") && reads("0.3.0"));
        for row in VARIABLE_TABLE {
            assert!(
                row.is_read_by(Release::own()),
                "{}: `since` is a release, and not a later one than this",
                row.name
            );
        }
    }

    #[test]
    fn a_missing_a_doubled_and_a_moved_row_are_found() {
        assert!(has_row_per_key(VARIABLE_TABLE));
        assert!(!has_row_per_key(&VARIABLE_TABLE[1..]), "the first is missing");
        assert!(!has_row_per_key(&VARIABLE_TABLE[..VARIABLE_TABLE.len() - 1]), "the last is missing");
        assert!(!has_row_per_key(&[VARIABLE_TABLE, &VARIABLE_TABLE[..1]].concat()), "one is there twice");
        let mut moved = VARIABLE_TABLE.to_vec();
        moved.swap(0, 1);
        assert!(!has_row_per_key(&moved), "two changed places");
    }
}
