//! The table itself.

use super::Server::{self, Dispatcher, Edge, Sockjs, Websocket};

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
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
pub enum Need {
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
    pub kind: Kind,
    /// When it must be there.
    pub need: Need,
    /// The servers that read it; others refuse it.
    pub servers: &'static [Server],
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

const EDGES: &[Server] = &[Websocket, Sockjs, Edge];
const ALL: &[Server] = &[Websocket, Sockjs, Edge, Dispatcher];
const FALLBACKS: &[Server] = &[Sockjs, Edge];
const SENDERS: &[Server] = &[Dispatcher];

const IRSA: &str = "IRSA";
const POD_IDENTITY: &str = "PodIdentity";
const WEB_IDENTITY: &str = "WebIdentity";
const STATIC_KEYS: &str = "StaticKeys";
const NODE_ROLE: &str = "NodeRole";
const ANY_IDENTITY: &[&str] = &[IRSA, POD_IDENTITY, WEB_IDENTITY, STATIC_KEYS, NODE_ROLE];
const TOKEN_IDENTITY: &[&str] = &[IRSA, WEB_IDENTITY];
const EKS_IDENTITY: &[&str] = &[IRSA, POD_IDENTITY];

const fn row(name: &'static str, kind: Kind, need: Need, servers: &'static [Server], about: &'static str) -> Variable {
    Variable { name, kind, need, servers, secret: false, since: "0.1.0", about }
}

const fn secret(row: Variable) -> Variable {
    Variable { secret: true, ..row }
}

/// Every variable, in the order in which the documentation shows them.
pub const VARIABLES: &[Variable] = &[
    row(
        name::CLUSTER,
        Kind::Text,
        Need::Required,
        ALL,
        "Namespace and name of the RealtimeCluster, as `namespace/name`.",
    ),
    row(
        name::CLUSTER_UID,
        Kind::Text,
        Need::Required,
        ALL,
        "UID of the RealtimeCluster. Records carry it, and records of another cluster are not delivered.",
    ),
    row(
        name::SERVER,
        Kind::Word(&["websocket", "sockjs", "edge", "dispatcher"]),
        Need::Required,
        ALL,
        "Which server this process is; the other variables are checked for it.",
    ),
    row(name::POD, Kind::Text, Need::Required, ALL, "Name of the pod, as records and diagnoses call it."),
    row(
        name::ADMIN_ADDRESS,
        Kind::Address,
        Need::Default("0.0.0.0:9090"),
        ALL,
        "Listener for `/livez`, `/readyz`, `/metrics` and, with the token, `/effective`, `/flow` and, on edges, `/drain`.",
    ),
    secret(row(
        name::ADMIN_TOKEN,
        Kind::Text,
        Need::Required,
        ALL,
        "Bearer token of the admin listener, and the salt under which secrets are compared.",
    )),
    row(
        name::APPS_PATH,
        Kind::Path,
        Need::Required,
        ALL,
        "Directory of the app registry: JSON files, read again when they change.",
    ),
    row(
        name::ADMISSION,
        Kind::Word(&["annotation", "none"]),
        Need::Default("annotation"),
        ALL,
        "`annotation`: `/readyz` says no until the pod's annotation `realtime-operator.dev/admitted` names the configuration that runs. `none`: nobody admits, as in a trial without Kubernetes.",
    ),
    row(
        name::ANNOTATIONS_PATH,
        Kind::Path,
        Need::Default("/etc/realtime/pod/annotations"),
        ALL,
        "File with the pod's annotations, as a downwardAPI volume writes it.",
    ),
    row(
        name::LOG,
        Kind::Text,
        Need::Default("info"),
        ALL,
        "Log filter, in the syntax of `tracing`: `info,realtime_operator=debug`.",
    ),
    row(
        name::TRANSPORTS,
        Kind::Words(&[
            "websocket",
            "xhr_streaming",
            "xhr_polling",
            "sockjs_websocket",
            "sockjs_xhr_streaming",
            "sockjs_xhr",
            "sockjs_eventsource",
        ]),
        Need::Required,
        EDGES,
        "Transports that this edge serves, separated by commas.",
    ),
    row(
        name::PUBLIC_ADDRESS,
        Kind::Address,
        Need::Default("0.0.0.0:8080"),
        EDGES,
        "Listener for clients and for the HTTP API.",
    ),
    row(
        name::TRUSTED_PROXIES,
        Kind::Networks,
        Need::Default(""),
        EDGES,
        "Networks of load balancers and proxies, separated by commas: only from there `X-Forwarded-For` (or, without it, `Forwarded`) is believed. Without it a client's address is that of the connection.",
    ),
    row(
        name::PEER_ADDRESS,
        Kind::Address,
        Need::Default("0.0.0.0:8081"),
        FALLBACKS,
        "Listener for other edges, which hand on what clients sent to the wrong pod; with `REALTIME_BUS=redis` only. The port is the same for all of them.",
    ),
    row(
        name::POD_IP,
        Kind::Ip,
        Need::When(name::BUS, "redis"),
        FALLBACKS,
        "Address of the pod, at which other edges find the sessions that it has.",
    ),
    secret(row(
        name::PEER_SECRET,
        Kind::Text,
        Need::When(name::BUS, "redis"),
        FALLBACKS,
        "What edges sign with that hand requests to each other. Two, separated by a comma, while it is being changed: the first signs, both are believed.",
    )),
    row(
        name::SESSION_HOST,
        Kind::Host,
        Need::Default(""),
        FALLBACKS,
        "Host that clients are told to send the rest of a session to, in which `{pod}` stands for the pod's name. Without it, they send it where they began, and any pod takes it.",
    ),
    row(
        name::SOCKJS_SCRIPTS,
        Kind::Scripts,
        Need::Default(
            "https://cdn.jsdelivr.net/npm/sockjs-client@1.6.1/dist/sockjs.min.js,https://js.pusher.com/8.6.0/sockjs.min.js,https://js.pusher.com/8.6.0/sockjs.js,http://js.pusher.com/8.6.0/sockjs.min.js,http://js.pusher.com/8.6.0/sockjs.js",
        ),
        FALLBACKS,
        "Scripts that the hidden frames of SockJS may load, separated by commas: the first one, or another that `js_path` names to the letter, as pusher-js does with the `sockjs.js` of its release.",
    ),
    row(
        name::SOCKJS_COOKIE,
        Kind::Word(&["off", "on"]),
        Need::Default("off"),
        FALLBACKS,
        "Whether SockJS sessions set the cookie `JSESSIONID`, for a load balancer that keeps a client on one pod by it.",
    ),
    row(
        name::DRAIN_HOLD_SECONDS,
        Kind::Number(0, 3_600),
        Need::Default("0"),
        EDGES,
        "Seconds for which an edge that is to end, and is not ready any more, still serves: load balancers learn of it late.",
    ),
    row(
        name::DRAIN_WINDOW_SECONDS,
        Kind::Number(1, 3_600),
        Need::Default("120"),
        EDGES,
        "Seconds after that in which clients are sent to other edges. They go one by one, about a hundred in a second, and faster only when there are too many for this time.",
    ),
    row(
        name::WEBHOOKS,
        Kind::Word(&["kinesis", "off"]),
        Need::Required,
        EDGES,
        "Whether webhook events are written to the stream. `off` must be written; it is never what an absence means.",
    ),
    row(
        name::STREAM_NAME,
        Kind::Text,
        Need::When(name::WEBHOOKS, "kinesis"),
        ALL,
        "Name of the Kinesis stream that edges write and the dispatcher reads.",
    ),
    row(
        name::BUS,
        Kind::Word(&["memory", "redis"]),
        Need::Required,
        EDGES,
        "What joins several edges: `redis`, or `memory` for a single process.",
    ),
    secret(row(
        name::REDIS_URL,
        Kind::Text,
        Need::When(name::BUS, "redis"),
        EDGES,
        "Address of Redis with credentials: `redis://`, `redis-sentinel://` or `redis-cluster://`, `rediss…` with TLS.",
    )),
    secret(row(
        name::REDIS_CA,
        Kind::Text,
        Need::Default(""),
        EDGES,
        "Certificates in PEM form of the authorities that may have signed Redis's; without it, those that the system trusts.",
    )),
    row(
        name::LEASES,
        Kind::Word(&["kubernetes", "memory"]),
        Need::Default("kubernetes"),
        SENDERS,
        "Where shards are leased and checkpoints kept: `kubernetes`, or `memory` for a single process that may forget.",
    ),
    row(
        name::ALLOWED_NETWORKS,
        Kind::Networks,
        Need::Default(""),
        SENDERS,
        "Private networks that webhooks may be sent to, separated by commas; without it public addresses only.",
    ),
    row(
        name::ALLOWED_ENDPOINTS,
        Kind::Endpoints,
        Need::Default(""),
        SENDERS,
        "Exact `HOST:PORT` pairs that webhooks may be sent to although they are private, over plain HTTP too.",
    ),
    row(
        name::RETRY_WINDOW_SECONDS,
        Kind::Number(1, 86_400),
        Need::Default("300"),
        SENDERS,
        "Seconds for which a webhook is tried again before it is given up.",
    ),
    row(
        name::MAX_BACKOFF_SECONDS,
        Kind::Number(1, 3_600),
        Need::Default("30"),
        SENDERS,
        "Longest wait in seconds between two tries of one webhook.",
    ),
    row(
        name::AWS_IDENTITY,
        Kind::Word(ANY_IDENTITY),
        Need::Required,
        ALL,
        "Where AWS credentials come from. Only this source is asked: there is no silent fallback to the node's role.",
    ),
    row(name::AWS_REGION, Kind::Text, Need::Required, ALL, "Region of the stream. Never guessed."),
    row(
        name::AWS_ENDPOINT_URL_KINESIS,
        Kind::Url,
        Need::Optional(ANY_IDENTITY),
        ALL,
        "Address of Kinesis where it is not the region's own: a VPC endpoint or an emulator.",
    ),
    row(
        "AWS_EC2_METADATA_DISABLED",
        Kind::Word(&["true"]),
        Need::Optional(&[IRSA, POD_IDENTITY, WEB_IDENTITY, STATIC_KEYS]),
        ALL,
        "Keeps every library away from the node's metadata.",
    ),
    row(
        "AWS_ROLE_ARN",
        Kind::Text,
        Need::Optional(TOKEN_IDENTITY),
        ALL,
        "Role to assume with the token, set by EKS or the manifest.",
    ),
    row(
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        Kind::Path,
        Need::Optional(TOKEN_IDENTITY),
        ALL,
        "The token, mounted by EKS or the manifest.",
    ),
    row("AWS_STS_REGIONAL_ENDPOINTS", Kind::Text, Need::Optional(EKS_IDENTITY), ALL, "Set by EKS."),
    row("AWS_DEFAULT_REGION", Kind::Text, Need::Optional(EKS_IDENTITY), ALL, "Set by EKS; not used, `AWS_REGION` is."),
    row(
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        Kind::Url,
        Need::Optional(&[POD_IDENTITY]),
        ALL,
        "Set by EKS Pod Identity.",
    ),
    row(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        Kind::Path,
        Need::Optional(&[POD_IDENTITY]),
        ALL,
        "Set by EKS Pod Identity.",
    ),
    secret(row(
        "AWS_ACCESS_KEY_ID",
        Kind::Text,
        Need::When(name::AWS_IDENTITY, STATIC_KEYS),
        ALL,
        "Access key, with `StaticKeys` only.",
    )),
    secret(row(
        "AWS_SECRET_ACCESS_KEY",
        Kind::Text,
        Need::When(name::AWS_IDENTITY, STATIC_KEYS),
        ALL,
        "Secret key, with `StaticKeys` only.",
    )),
];

impl Variable {
    /// The row of a name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        VARIABLES.iter().find(|variable| variable.name == name)
    }
}
