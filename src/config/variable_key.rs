//! The variables by key and by name.

/// Defines the keys of the variables and their names in the environment, in the order of the table.
macro_rules! define_variables {
    ($($(#[$about:meta])+ $key:ident, $constant:ident = $name:literal;)+) => {
        /// Key of a variable, by which the operator renders it: a match over all keys forgets none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum VariableKey {
            $($(#[$about])+ $key,)+
        }

        impl VariableKey {
            /// Every key, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$key,)+];

            /// Name of the variable in the environment.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$key => name::$constant,)+
                }
            }
        }

        /// The names, so that a typing error does not compile.
        pub mod name {
            $($(#[$about])+ pub const $constant: &str = $name;)+
        }
    };
}

define_variables! {
    /// `namespace/name` of the cluster.
    Cluster, CLUSTER = "REALTIME_CLUSTER";
    /// UID of the cluster object.
    ClusterUid, CLUSTER_UID = "REALTIME_CLUSTER_UID";
    /// Kind of this server.
    Server, SERVER = "REALTIME_SERVER";
    /// Name of the pod.
    Pod, POD = "REALTIME_POD";
    /// Address of the admin listener.
    AdminAddress, ADMIN_ADDRESS = "REALTIME_ADMIN_ADDRESS";
    /// Token of the admin listener's guarded paths.
    AdminToken, ADMIN_TOKEN = "REALTIME_ADMIN_TOKEN";
    /// Directory of the app registry.
    AppsPath, APPS_PATH = "REALTIME_APPS_PATH";
    /// Method by which a pod is admitted to take clients or shards.
    Admission, ADMISSION = "REALTIME_ADMISSION";
    /// File with the pod's annotations.
    AnnotationsPath, ANNOTATIONS_PATH = "REALTIME_ANNOTATIONS_PATH";
    /// Filter of the logs.
    Log, LOG = "REALTIME_LOG";
    /// Transports that an edge serves.
    Transports, TRANSPORTS = "REALTIME_TRANSPORTS";
    /// Address of the public listener.
    PublicAddress, PUBLIC_ADDRESS = "REALTIME_PUBLIC_ADDRESS";
    /// Networks of the proxies whose forwarding headers are trusted.
    TrustedProxies, TRUSTED_PROXIES = "REALTIME_TRUSTED_PROXIES";
    /// Silence after which client and server ping each other, in seconds.
    ActivityTimeoutSeconds, ACTIVITY_TIMEOUT_SECONDS = "REALTIME_ACTIVITY_TIMEOUT_SECONDS";
    /// Time for which an idle connection of HTTP stays open, in seconds.
    KeepAliveSeconds, KEEP_ALIVE_SECONDS = "REALTIME_KEEP_ALIVE_SECONDS";
    /// Whether connections begin with a header of the PROXY protocol.
    ProxyProtocol, PROXY_PROTOCOL = "REALTIME_PROXY_PROTOCOL";
    /// Prefix that each public path may have.
    BasePath, BASE_PATH = "REALTIME_BASE_PATH";
    /// Connections that an edge may have.
    ConnectionsMax, CONNECTIONS_MAX = "REALTIME_CONNECTIONS_MAX";
    /// Apps with series of their own in the metrics.
    MetricsApps, METRICS_APPS = "REALTIME_METRICS_APPS";
    /// Address of the listener for other edges.
    PeerAddress, PEER_ADDRESS = "REALTIME_PEER_ADDRESS";
    /// Address of the pod.
    PodIp, POD_IP = "REALTIME_POD_IP";
    /// Secret with which edges sign the requests that they relay.
    PeerSecret, PEER_SECRET = "REALTIME_PEER_SECRET";
    /// Host to which clients send the further requests of a session.
    SessionHost, SESSION_HOST = "REALTIME_SESSION_HOST";
    /// Scripts that the pages for hidden frames may load.
    SockjsScripts, SOCKJS_SCRIPTS = "REALTIME_SOCKJS_SCRIPTS";
    /// Whether sessions set a cookie.
    SockjsCookie, SOCKJS_COOKIE = "REALTIME_SOCKJS_COOKIE";
    /// Seconds for which an ending edge still serves before it drains.
    DrainHoldSeconds, DRAIN_HOLD_SECONDS = "REALTIME_DRAIN_HOLD_SECONDS";
    /// Seconds within which an ending edge drains its clients.
    DrainWindowSeconds, DRAIN_WINDOW_SECONDS = "REALTIME_DRAIN_WINDOW_SECONDS";
    /// Whether webhook events are written.
    Webhooks, WEBHOOKS = "REALTIME_WEBHOOKS";
    /// Name of the Kinesis stream.
    StreamName, STREAM_NAME = "REALTIME_STREAM_NAME";
    /// Name of the dead-letter stream.
    DeadLetterStream, DEAD_LETTER_STREAM = "REALTIME_DEAD_LETTER_STREAM";
    /// Time from which a shard without a checkpoint is read, in ms since 1970.
    StreamStartMs, STREAM_START_MS = "REALTIME_STREAM_START_MS";
    /// Bus between the edges.
    Bus, BUS = "REALTIME_BUS";
    /// Group of clusters that share the bus.
    BusGroup, BUS_GROUP = "REALTIME_BUS_GROUP";
    /// Address of Redis, with its credentials.
    RedisUrl, REDIS_URL = "REALTIME_REDIS_URL";
    /// Certificate authorities that may have signed Redis's certificate.
    RedisCa, REDIS_CA = "REALTIME_REDIS_CA";
    /// Store of the shard leases.
    Leases, LEASES = "REALTIME_LEASES";
    /// Private networks that webhooks may go to.
    AllowedNetworks, ALLOWED_NETWORKS = "REALTIME_ALLOWED_NETWORKS";
    /// Exact private endpoints that webhooks may go to.
    AllowedEndpoints, ALLOWED_ENDPOINTS = "REALTIME_ALLOWED_ENDPOINTS";
    /// Seconds for which a webhook is retried.
    RetryWindowSeconds, RETRY_WINDOW_SECONDS = "REALTIME_RETRY_WINDOW_SECONDS";
    /// Longest back-off of a webhook, in seconds.
    MaxBackoffSeconds, MAX_BACKOFF_SECONDS = "REALTIME_MAX_BACKOFF_SECONDS";
    /// Source of the AWS credentials.
    AwsIdentity, AWS_IDENTITY = "REALTIME_AWS_IDENTITY";
    /// Region of the stream.
    AwsRegion, AWS_REGION = "AWS_REGION";
    /// Address of Kinesis that replaces the region's own.
    AwsEndpointUrlKinesis, AWS_ENDPOINT_URL_KINESIS = "AWS_ENDPOINT_URL_KINESIS";
    /// Whether libraries must not ask the node for credentials.
    AwsEc2MetadataDisabled, AWS_EC2_METADATA_DISABLED = "AWS_EC2_METADATA_DISABLED";
    /// Role that is assumed with the projected token.
    AwsRoleArn, AWS_ROLE_ARN = "AWS_ROLE_ARN";
    /// File with the projected token.
    AwsWebIdentityTokenFile, AWS_WEB_IDENTITY_TOKEN_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE";
    /// Choice of the STS endpoint, injected by EKS.
    AwsStsRegionalEndpoints, AWS_STS_REGIONAL_ENDPOINTS = "AWS_STS_REGIONAL_ENDPOINTS";
    /// Region of the node, injected by EKS.
    AwsDefaultRegion, AWS_DEFAULT_REGION = "AWS_DEFAULT_REGION";
    /// Address of the agent of EKS Pod Identity.
    AwsContainerCredentialsFullUri, AWS_CONTAINER_CREDENTIALS_FULL_URI = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    /// File with the token for the agent of EKS Pod Identity.
    AwsContainerAuthorizationTokenFile, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    /// Access key of a static pair.
    AwsAccessKeyId, AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID";
    /// Secret key of a static pair.
    AwsSecretAccessKey, AWS_SECRET_ACCESS_KEY = "AWS_SECRET_ACCESS_KEY";
}
