//! Defaults of a server's settings by the entrance in front of it: the one table of them.

use crate::api::expose::{ExposeController, ExposeSpec, ExposeType};
use crate::api::load_balancer::ProxyProtocol;

/// Defaults of a server's settings; `None` leaves the server's own default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExposeDefaults {
    /// Seconds in which a terminating pod still serves: until the load balancer sends it no new client.
    pub hold_seconds: u32,
    /// Silence after which client and server ping each other, in seconds.
    pub activity_timeout_seconds: Option<u32>,
    /// Time for which an idle connection of HTTP stays open, in seconds.
    pub keep_alive_seconds: Option<u32>,
    /// Whether connections begin with a header of the PROXY protocol.
    pub proxy_protocol: ProxyProtocol,
    /// Seconds for which a new pod is ready before the next one is replaced: the load balancer registers it meanwhile.
    pub min_ready_seconds: u32,
}

/// The defaults behind a front whose idle timeout the operator does not set. Edges ping within the 60 s of many products.
const FOREIGN_FRONT: ExposeDefaults = ExposeDefaults {
    hold_seconds: 15,
    activity_timeout_seconds: None,
    keep_alive_seconds: None,
    proxy_protocol: ProxyProtocol::Disabled,
    min_ready_seconds: 0,
};

/// The defaults behind a front whose idle timeout is rendered. Edges ping less often, and close idle connections after the front.
const TUNED_FRONT: ExposeDefaults =
    ExposeDefaults { activity_timeout_seconds: Some(120), keep_alive_seconds: Some(240), ..FOREIGN_FRONT };

impl ExposeDefaults {
    /// The defaults behind an entrance and that of the HTTP API, which is in front of the same pods: pods are registered and
    /// deregistered at both.
    #[must_use]
    pub fn extend_to_api(self, api: Option<&ExposeSpec>) -> Self {
        let other = Self::of_entrance(api);
        Self {
            hold_seconds: self.hold_seconds.max(other.hold_seconds),
            min_ready_seconds: self.min_ready_seconds.max(other.min_ready_seconds),
            ..self
        }
    }

    /// The defaults behind an entrance; `None` for a Service within the Kubernetes cluster.
    #[must_use]
    pub fn of_entrance(spec: Option<&ExposeSpec>) -> Self {
        use ExposeController::{EnvoyGateway, F5Nginx, IngressNginx};
        let Some(spec) = spec else { return FOREIGN_FRONT };
        match spec.kind {
            // New connections arrive for up to 120 s after the deregistration of a pod (aws-load-balancer-controller#2366), and a
            // registration takes up to 4 minutes, 3 of them usual (aws-load-balancer-controller#1834).
            ExposeType::EksNlb => Self {
                hold_seconds: 120,
                proxy_protocol: ProxyProtocol::Accepted,
                min_ready_seconds: 180,
                ..TUNED_FRONT
            },
            ExposeType::EksAlb => Self { hold_seconds: 30, min_ready_seconds: 60, ..TUNED_FRONT },
            ExposeType::Ingress | ExposeType::Gateway => match spec.controller {
                Some(IngressNginx | F5Nginx | EnvoyGateway) => TUNED_FRONT,
                _ => FOREIGN_FRONT,
            },
            ExposeType::ClusterIp | ExposeType::LoadBalancer => FOREIGN_FRONT,
        }
    }
}
