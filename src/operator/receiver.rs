//! Routes the webhooks of the journeys to the leading replica.
//!
//! Every replica listens; the Service has no selector, and the leader writes its one endpoint. A webhook that reaches
//! another replica during a change of leader is answered 503, and the dispatcher retries it.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

/// Name of the webhook receiver's Service and its `EndpointSlice`.
pub const RECEIVER_SERVICE: &str = "realtime-operator-receiver";

/// Points the receiver's Service at this replica.
///
/// # Errors
/// The API server refuses the `EndpointSlice` or does not answer.
pub async fn apply_endpoint_slice(
    client: &Client,
    namespace: &str,
    address: IpAddr,
    port: u16,
) -> Result<(), kube::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": RECEIVER_SERVICE,
            "namespace": namespace,
            "labels": {
                "kubernetes.io/service-name": RECEIVER_SERVICE,
                "endpointslice.kubernetes.io/managed-by": "realtime-operator",
            },
        },
        "addressType": family,
        "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
        "ports": [{ "name": "receiver", "port": port, "protocol": "TCP" }],
    });
    api.patch(RECEIVER_SERVICE, &PatchParams::apply("realtime-operator").force(), &Patch::Apply(slice))
        .await
        .map(|_| ())
}
