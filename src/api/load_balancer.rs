//! The settings of a server for the load balancer in front of it.

use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings for the load balancer in front of a server. Servers of release 0.1.0 ignore them; docs/load-balancers.md has the
/// values by product.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerSpec {
    /// Silence after which client and server ping each other: less than the time after which the load balancer closes an
    /// idle connection. Defaults to 120 where the operator sets that time, with `expose`, and to 55 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 5, max = 3600))]
    pub activity_timeout_seconds: Option<u32>,
    /// Time for which a pod keeps an idle connection of HTTP open: longer than the load balancer keeps its own. Defaults
    /// to 240 where the activity timeout defaults to 120, and to 120 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 7200))]
    pub keep_alive_seconds: Option<u32>,
    /// Whether a connection from `trustedProxies` begins with a header of the PROXY protocol, version 1 or 2. Defaults to
    /// `Accepted` with `expose.type: EKSNLB`, and to `Disabled` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Prefix that each public path may have, such as `/ws` for `wsPath` of pusher-js. Requests without it are served, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^(/[A-Za-z0-9._~-]+)+$"))]
    pub base_path: Option<String>,
    /// Clients that may be connected to a pod at once; more are closed with 4100. Defaults to as many as fit into the pod's
    /// memory limit: one in 20 KiB beyond 64 MiB, and at most 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub connections_max: Option<u32>,
    /// Apps with series of their own in the metrics of a pod; the others share the series of `_other`. Defaults to 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 10_000))]
    pub metrics_apps: Option<u32>,
}

/// Whether a connection begins with a header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocol {
    /// No connection begins with one.
    Disabled,
    /// A connection from a trusted proxy may begin with one.
    Accepted,
    /// A connection from a trusted proxy begins with one, or is closed.
    Required,
}

/// The rule that a server keeps an idle connection for longer than two pings take.
pub(super) fn keep_alive_rule() -> Rule {
    let tuned = "has(self.expose) && has(self.expose.controller) && !(self.expose.controller in ['Traefik', 'NginxGatewayFabric', 'Other'])";
    Rule::new(format!("(has(self.keepAliveSeconds) ? self.keepAliveSeconds : {tuned} ? 240 : 120) >= 2 * (has(self.activityTimeoutSeconds) ? self.activityTimeoutSeconds : {tuned} ? 120 : 55)"))
        .message("keepAliveSeconds (by default 120, or 240 where the operator sets the load balancer's timeout) is less than twice activityTimeoutSeconds: raise it")
}

/// The rule that a prefix hides none of the server's own paths.
pub(super) fn base_path_rule() -> Rule {
    Rule::new("!has(self.basePath) || !self.basePath.matches('^/(app|apps|pusher|users|healthz|readyz|up)(/.*)?$')")
        .message("basePath is one of the server's own paths: write another prefix, such as /ws")
}
