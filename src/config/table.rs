//! The table itself.

use super::ServerKind::{self, Dispatcher, Edge, Sockjs, Websocket};

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Any text that is not empty.
    Text,
    /// A whole number within bounds, both included.
    Number(u64, u64),
    /// `ADDRESS:PORT` to listen on.
    Address,
    /// An absolute path.
    Path,
    /// An `http://` or `https://` address.
    Url,
    /// A comma-separated list of such addresses that can stand in a page as they are, not empty.
    Scripts,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A comma-separated list of these words, not empty.
    Words(&'static [&'static str]),
    /// A comma-separated list of networks in CIDR form.
    Networks,
    /// A comma-separated list of `HOST:PORT`.
    Endpoints,
    /// An IP address.
    Ip,
    /// The name of a host, in which `{pod}` may stand for the pod's.
    Host,
}

/// When a variable must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Always.
    Required,
    /// Absent means this value.
    Default(&'static str),
    /// Required exactly when another variable has this value.
    When(&'static str, &'static str),
    /// Read by a library when the platform or the manifest gives it, with one of these identities.
    Optional(&'static [&'static str]),
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// The name in the environment.
    pub name: &'static str,
    /// What a value must look like.
    pub kind: ValueKind,
    /// When it must be there.
    pub need: Requirement,
    /// The servers that read it; others refuse it.
    pub servers: &'static [ServerKind],
    /// Whether its value is hidden: compared by a salted digest, rendered from a Secret.
    pub secret: bool,
    /// The first release that reads it; the operator renders it for that release and later ones only.
    pub since: &'static str,
    /// What it is for, in a sentence.
    pub about: &'static str,
}

/// The names, so that a typing error does not compile.
pub mod name {
    /// `namespace/name` of the cluster.
    pub const CLUSTER: &str = "REALTIME_CLUSTER";
    /// UID of the cluster object.
    pub const CLUSTER_UID: &str = "REALTIME_CLUSTER_UID";
    /// Which server this is.
    pub const SERVER: &str = "REALTIME_SERVER";
    /// The pod's name.
    pub const POD: &str = "REALTIME_POD";
    /// The admin listener.
    pub const ADMIN_ADDRESS: &str = "REALTIME_ADMIN_ADDRESS";
    /// The token of the admin listener's guarded paths.
    pub const ADMIN_TOKEN: &str = "REALTIME_ADMIN_TOKEN";
    /// The directory of the app registry.
    pub const APPS_PATH: &str = "REALTIME_APPS_PATH";
    /// What lets a pod take clients or shards.
    pub const ADMISSION: &str = "REALTIME_ADMISSION";
    /// The file with the pod's annotations.
    pub const ANNOTATIONS_PATH: &str = "REALTIME_ANNOTATIONS_PATH";
    /// Where shards are leased.
    pub const LEASES: &str = "REALTIME_LEASES";
    /// The log filter.
    pub const LOG: &str = "REALTIME_LOG";
    /// The public listener.
    pub const PUBLIC_ADDRESS: &str = "REALTIME_PUBLIC_ADDRESS";
    /// The proxies whose word on a client's address is believed.
    pub const TRUSTED_PROXIES: &str = "REALTIME_TRUSTED_PROXIES";
    /// The transports that an edge serves.
    pub const TRANSPORTS: &str = "REALTIME_TRANSPORTS";
    /// What the pages for hidden frames may load.
    pub const SOCKJS_SCRIPTS: &str = "REALTIME_SOCKJS_SCRIPTS";
    /// The listener for other edges.
    pub const PEER_ADDRESS: &str = "REALTIME_PEER_ADDRESS";
    /// What edges sign with that hand requests to each other.
    pub const PEER_SECRET: &str = "REALTIME_PEER_SECRET";
    /// The pod's address.
    pub const POD_IP: &str = "REALTIME_POD_IP";
    /// The host that clients are to send the rest of a session to.
    pub const SESSION_HOST: &str = "REALTIME_SESSION_HOST";
    /// Whether sessions set a cookie.
    pub const SOCKJS_COOKIE: &str = "REALTIME_SOCKJS_COOKIE";
    /// How long an edge that ends still serves.
    pub const DRAIN_HOLD_SECONDS: &str = "REALTIME_DRAIN_HOLD_SECONDS";
    /// How long an edge that ends may take to send its clients away.
    pub const DRAIN_WINDOW_SECONDS: &str = "REALTIME_DRAIN_WINDOW_SECONDS";
    /// Whether webhook events are written.
    pub const WEBHOOKS: &str = "REALTIME_WEBHOOKS";
    /// The Kinesis stream.
    pub const STREAM_NAME: &str = "REALTIME_STREAM_NAME";
    /// The bus between edges.
    pub const BUS: &str = "REALTIME_BUS";
    /// Address of Redis, with its credentials.
    pub const REDIS_URL: &str = "REALTIME_REDIS_URL";
    /// Whose certificates Redis may show.
    pub const REDIS_CA: &str = "REALTIME_REDIS_CA";
    /// Where AWS credentials come from.
    pub const AWS_IDENTITY: &str = "REALTIME_AWS_IDENTITY";
    /// Private networks that webhooks may go to.
    pub const ALLOWED_NETWORKS: &str = "REALTIME_ALLOWED_NETWORKS";
    /// Exact private endpoints that webhooks may go to.
    pub const ALLOWED_ENDPOINTS: &str = "REALTIME_ALLOWED_ENDPOINTS";
    /// How long a webhook is retried.
    pub const RETRY_WINDOW_SECONDS: &str = "REALTIME_RETRY_WINDOW_SECONDS";
    /// The longest wait between two tries.
    pub const MAX_BACKOFF_SECONDS: &str = "REALTIME_MAX_BACKOFF_SECONDS";
    /// The region of the stream.
    pub const AWS_REGION: &str = "AWS_REGION";
    /// Another address of Kinesis.
    pub const AWS_ENDPOINT_URL_KINESIS: &str = "AWS_ENDPOINT_URL_KINESIS";
}

const EDGE_SERVERS: &[ServerKind] = &[Websocket, Sockjs, Edge];
const ALL_SERVERS: &[ServerKind] = &[Websocket, Sockjs, Edge, Dispatcher];
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
    name: &'static str,
    kind: ValueKind,
    need: Requirement,
    servers: &'static [ServerKind],
    about: &'static str,
) -> Variable {
    Variable { name, kind, need, servers, secret: false, since: "0.1.0", about }
}

const fn mark_secret(row: Variable) -> Variable {
    Variable { secret: true, ..row }
}

/// Every variable, in the order in which the documentation shows them.
pub const VARIABLE_TABLE: &[Variable] = &[
    define_variable(
        name::CLUSTER,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Namespace and name of the RealtimeCluster, as `namespace/name`.",
    ),
    define_variable(
        name::CLUSTER_UID,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "UID of the RealtimeCluster. Records carry it, and records of another cluster are not delivered.",
    ),
    define_variable(
        name::SERVER,
        ValueKind::Word(&["websocket", "sockjs", "edge", "dispatcher"]),
        Requirement::Required,
        ALL_SERVERS,
        "Which server this process is; the other variables are checked for it.",
    ),
    define_variable(
        name::POD,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Name of the pod, as records and diagnoses call it.",
    ),
    define_variable(
        name::ADMIN_ADDRESS,
        ValueKind::Address,
        Requirement::Default("0.0.0.0:9090"),
        ALL_SERVERS,
        "Listener for `/livez`, `/readyz`, `/metrics` and, with the token, `/effective`, `/flow` and, on edges, `/drain`.",
    ),
    mark_secret(define_variable(
        name::ADMIN_TOKEN,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Bearer token of the admin listener, and the salt under which secrets are compared.",
    )),
    define_variable(
        name::APPS_PATH,
        ValueKind::Path,
        Requirement::Required,
        ALL_SERVERS,
        "Directory of the app registry: JSON files, read again when they change.",
    ),
    define_variable(
        name::ADMISSION,
        ValueKind::Word(&["annotation", "none"]),
        Requirement::Default("annotation"),
        ALL_SERVERS,
        "`annotation`: `/readyz` says no until the pod's annotation `realtime-operator.dev/admitted` names the configuration that runs. `none`: nobody admits, as in a trial without Kubernetes.",
    ),
    define_variable(
        name::ANNOTATIONS_PATH,
        ValueKind::Path,
        Requirement::Default("/etc/realtime/pod/annotations"),
        ALL_SERVERS,
        "File with the pod's annotations, as a downwardAPI volume writes it.",
    ),
    define_variable(
        name::LOG,
        ValueKind::Text,
        Requirement::Default("info"),
        ALL_SERVERS,
        "Log filter, in the syntax of `tracing`: `info,realtime_operator=debug`.",
    ),
    define_variable(
        name::TRANSPORTS,
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
        name::PUBLIC_ADDRESS,
        ValueKind::Address,
        Requirement::Default("0.0.0.0:8080"),
        EDGE_SERVERS,
        "Listener for clients and for the HTTP API.",
    ),
    define_variable(
        name::TRUSTED_PROXIES,
        ValueKind::Networks,
        Requirement::Default(""),
        EDGE_SERVERS,
        "Networks of load balancers and proxies, separated by commas: only from there `X-Forwarded-For` (or, without it, `Forwarded`) is believed. Without it a client's address is that of the connection.",
    ),
    define_variable(
        name::PEER_ADDRESS,
        ValueKind::Address,
        Requirement::Default("0.0.0.0:8081"),
        FALLBACK_SERVERS,
        "Listener for other edges, which hand on what clients sent to the wrong pod; with `REALTIME_BUS=redis` only. The port is the same for all of them.",
    ),
    define_variable(
        name::POD_IP,
        ValueKind::Ip,
        Requirement::When(name::BUS, "redis"),
        FALLBACK_SERVERS,
        "Address of the pod, at which other edges find the sessions that it has.",
    ),
    mark_secret(define_variable(
        name::PEER_SECRET,
        ValueKind::Text,
        Requirement::When(name::BUS, "redis"),
        FALLBACK_SERVERS,
        "What edges sign with that hand requests to each other. Two, separated by a comma, while it is being changed: the first signs, both are believed.",
    )),
    define_variable(
        name::SESSION_HOST,
        ValueKind::Host,
        Requirement::Default(""),
        FALLBACK_SERVERS,
        "Host that clients are told to send the rest of a session to, in which `{pod}` stands for the pod's name. Without it, they send it where they began, and any pod takes it.",
    ),
    define_variable(
        name::SOCKJS_SCRIPTS,
        ValueKind::Scripts,
        Requirement::Default(
            "https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js,https://js.pusher.com/8.6.0/sockjs.min.js,https://js.pusher.com/8.6.0/sockjs.js,http://js.pusher.com/8.6.0/sockjs.min.js,http://js.pusher.com/8.6.0/sockjs.js",
        ),
        FALLBACK_SERVERS,
        "Scripts that the hidden frames of SockJS may load, separated by commas: the first one, or another that `js_path` names to the letter, as pusher-js does with the `sockjs.js` of its release.",
    ),
    define_variable(
        name::SOCKJS_COOKIE,
        ValueKind::Word(&["off", "on"]),
        Requirement::Default("off"),
        FALLBACK_SERVERS,
        "Whether SockJS sessions set the cookie `JSESSIONID`, for a load balancer that keeps a client on one pod by it.",
    ),
    define_variable(
        name::DRAIN_HOLD_SECONDS,
        ValueKind::Number(0, 3_600),
        Requirement::Default("0"),
        EDGE_SERVERS,
        "Seconds for which an edge that is to end, and is not ready any more, still serves: load balancers learn of it late.",
    ),
    define_variable(
        name::DRAIN_WINDOW_SECONDS,
        ValueKind::Number(1, 3_600),
        Requirement::Default("120"),
        EDGE_SERVERS,
        "Seconds after that in which clients are sent to other edges. They go one by one, about a hundred in a second, and faster only when there are too many for this time.",
    ),
    define_variable(
        name::WEBHOOKS,
        ValueKind::Word(&["kinesis", "off"]),
        Requirement::Required,
        EDGE_SERVERS,
        "Whether webhook events are written to the stream. `off` must be written; it is never what an absence means.",
    ),
    define_variable(
        name::STREAM_NAME,
        ValueKind::Text,
        Requirement::When(name::WEBHOOKS, "kinesis"),
        ALL_SERVERS,
        "Name of the Kinesis stream that edges write and the dispatcher reads.",
    ),
    define_variable(
        name::BUS,
        ValueKind::Word(&["memory", "redis"]),
        Requirement::Required,
        EDGE_SERVERS,
        "What joins several edges: `redis`, or `memory` for a single process.",
    ),
    mark_secret(define_variable(
        name::REDIS_URL,
        ValueKind::Text,
        Requirement::When(name::BUS, "redis"),
        EDGE_SERVERS,
        "Address of Redis with credentials: `redis://`, `redis-sentinel://` or `redis-cluster://`, `rediss…` with TLS.",
    )),
    mark_secret(define_variable(
        name::REDIS_CA,
        ValueKind::Text,
        Requirement::Default(""),
        EDGE_SERVERS,
        "Certificates in PEM form of the authorities that may have signed Redis's; without it, those that the system trusts.",
    )),
    define_variable(
        name::LEASES,
        ValueKind::Word(&["kubernetes", "memory"]),
        Requirement::Default("kubernetes"),
        DISPATCHER_SERVERS,
        "Where shards are leased and checkpoints kept: `kubernetes`, or `memory` for a single process that may forget.",
    ),
    define_variable(
        name::ALLOWED_NETWORKS,
        ValueKind::Networks,
        Requirement::Default(""),
        DISPATCHER_SERVERS,
        "Private networks that webhooks may be sent to, separated by commas; without it public addresses only.",
    ),
    define_variable(
        name::ALLOWED_ENDPOINTS,
        ValueKind::Endpoints,
        Requirement::Default(""),
        DISPATCHER_SERVERS,
        "Exact `HOST:PORT` pairs that webhooks may be sent to although they are private, over plain HTTP too.",
    ),
    define_variable(
        name::RETRY_WINDOW_SECONDS,
        ValueKind::Number(1, 86_400),
        Requirement::Default("300"),
        DISPATCHER_SERVERS,
        "Seconds for which a webhook is tried again before it is given up.",
    ),
    define_variable(
        name::MAX_BACKOFF_SECONDS,
        ValueKind::Number(1, 3_600),
        Requirement::Default("30"),
        DISPATCHER_SERVERS,
        "Longest wait in seconds between two tries of one webhook.",
    ),
    define_variable(
        name::AWS_IDENTITY,
        ValueKind::Word(ANY_IDENTITY),
        Requirement::Required,
        ALL_SERVERS,
        "Where AWS credentials come from. Only this source is asked: there is no silent fallback to the node's role.",
    ),
    define_variable(
        name::AWS_REGION,
        ValueKind::Text,
        Requirement::Required,
        ALL_SERVERS,
        "Region of the stream. Never guessed.",
    ),
    define_variable(
        name::AWS_ENDPOINT_URL_KINESIS,
        ValueKind::Url,
        Requirement::Optional(ANY_IDENTITY),
        ALL_SERVERS,
        "Address of Kinesis where it is not the region's own: a VPC endpoint or an emulator.",
    ),
    define_variable(
        "AWS_EC2_METADATA_DISABLED",
        ValueKind::Word(&["true"]),
        Requirement::Optional(&[IRSA_IDENTITY, POD_IDENTITY, WEB_IDENTITY, STATIC_KEYS]),
        ALL_SERVERS,
        "Keeps every library away from the node's metadata.",
    ),
    define_variable(
        "AWS_ROLE_ARN",
        ValueKind::Text,
        Requirement::Optional(TOKEN_IDENTITY),
        ALL_SERVERS,
        "Role to assume with the token, set by EKS or the manifest.",
    ),
    define_variable(
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        ValueKind::Path,
        Requirement::Optional(TOKEN_IDENTITY),
        ALL_SERVERS,
        "The token, mounted by EKS or the manifest.",
    ),
    define_variable(
        "AWS_STS_REGIONAL_ENDPOINTS",
        ValueKind::Text,
        Requirement::Optional(EKS_IDENTITY),
        ALL_SERVERS,
        "Set by EKS.",
    ),
    define_variable(
        "AWS_DEFAULT_REGION",
        ValueKind::Text,
        Requirement::Optional(EKS_IDENTITY),
        ALL_SERVERS,
        "Set by EKS; not used, `AWS_REGION` is.",
    ),
    define_variable(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ValueKind::Url,
        Requirement::Optional(&[POD_IDENTITY]),
        ALL_SERVERS,
        "Set by EKS Pod Identity.",
    ),
    define_variable(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        ValueKind::Path,
        Requirement::Optional(&[POD_IDENTITY]),
        ALL_SERVERS,
        "Set by EKS Pod Identity.",
    ),
    mark_secret(define_variable(
        "AWS_ACCESS_KEY_ID",
        ValueKind::Text,
        Requirement::When(name::AWS_IDENTITY, STATIC_KEYS),
        ALL_SERVERS,
        "Access key, with `StaticKeys` only.",
    )),
    mark_secret(define_variable(
        "AWS_SECRET_ACCESS_KEY",
        ValueKind::Text,
        Requirement::When(name::AWS_IDENTITY, STATIC_KEYS),
        ALL_SERVERS,
        "Secret key, with `StaticKeys` only.",
    )),
];

impl Variable {
    /// The row of a name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        VARIABLE_TABLE.iter().find(|variable| variable.name == name)
    }
}
