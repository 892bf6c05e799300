//! Routes the webhooks of the journeys to the leading replica.
//!
//! Every replica listens; the Service has no selector, and the leader writes its one endpoint and keeps it so. A webhook
//! that reaches another replica during a change of leader is answered 503, and the dispatcher retries it.

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::desired::RECEIVER_SERVICE;
use crate::kubernetes::lease::Leadership;
use crate::kubernetes::watch::open_watch;
use crate::process::heartbeat::Heartbeat;

/// Time between two attempts to repair the `EndpointSlice`: shorter than the time in which a lost webhook closes a gate.
const REPAIR_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Bounds one repair, a call or two to the API server.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time without a turn of [`ReceiverRoute::keep`].
pub const ROUTE_SILENCE_MAX: Duration = Duration::from_mins(1);

/// The route of webhooks to this replica.
pub struct ReceiverRoute {
    pub client: Client,
    /// Namespace of the operator.
    pub namespace: String,
    /// Address of this replica.
    pub address: IpAddr,
    /// Port of the receiver.
    pub port: u16,
}

impl ReceiverRoute {
    /// Points the receiver's Service at this replica.
    ///
    /// # Errors
    /// The API server refuses the `EndpointSlice` or does not answer.
    pub async fn apply_endpoint_slice(&self) -> Result<(), kube::Error> {
        let slice = Patch::Apply(self.render_endpoint_slice());
        let parameters = PatchParams::apply("realtime-operator").force();
        match self.api().patch(RECEIVER_SERVICE, &parameters, &slice).await {
            // The family of addresses is immutable, and the former leader had one of the other.
            Err(kube::Error::Api(status)) if status.code == 422 => {
                let live = self.api().get_opt(RECEIVER_SERVICE).await?;
                if live.is_none_or(|live| live.address_type == self.address_type()) {
                    return Err(kube::Error::Api(status));
                }
                self.api().delete(RECEIVER_SERVICE, &kube::api::DeleteParams::default()).await?;
                self.api().patch(RECEIVER_SERVICE, &parameters, &slice).await.map(|_| ())
            }
            result => result.map(|_| ()),
        }
    }

    /// Watches the `EndpointSlice`, and repairs it, until `stop` is cancelled.
    pub async fn keep(self, watch: Client, leadership: Leadership, heartbeat: Heartbeat, stop: CancellationToken) {
        let api: Api<EndpointSlice> = Api::namespaced(watch, &self.namespace);
        let only = watcher::Config::default().fields(&format!("metadata.name={RECEIVER_SERVICE}"));
        let mut events = pin!(open_watch(api, only));
        // `None` while it is not known: before the first listing and during a later one.
        let mut live: Option<Option<EndpointSlice>> = None;
        let mut listed = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(REPAIR_RETRY_INTERVAL) => {}
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => (live, listed) = (None, None),
                    Some(Ok(Event::InitApply(slice))) => listed = Some(slice),
                    Some(Ok(Event::InitDone)) => live = Some(listed.take()),
                    Some(Ok(Event::Apply(slice))) => live = Some(Some(slice)),
                    Some(Ok(Event::Delete(_))) => live = Some(None),
                    Some(Err(error)) => tracing::warn!(%error, "receiver's EndpointSlice not watched: retrying"),
                    None => return,
                },
            }
            heartbeat.beat();
            if let Some(live) = &live
                && let Err(error) = timeout(REPAIR_TIMEOUT, self.repair(live.as_ref(), &leadership))
                    .await
                    .unwrap_or_else(|_| Err("the API server did not answer in time".to_owned()))
            {
                tracing::warn!(error, "receiver's EndpointSlice not repaired: retrying");
            }
        }
    }

    async fn repair(&self, live: Option<&EndpointSlice>, leadership: &Leadership) -> Result<(), String> {
        let live = live.and_then(|live| serde_json::to_value(live).ok()).unwrap_or_default();
        if routes_to(&live, &self.render_endpoint_slice()) || !leadership.may_write() {
            return Ok(());
        }
        tracing::warn!(address = %self.address, "receiver's EndpointSlice differs: webhooks are routed here again");
        self.apply_endpoint_slice().await.map_err(|error| error.to_string())
    }

    fn api(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn address_type(&self) -> &'static str {
        if self.address.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    fn render_endpoint_slice(&self) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": RECEIVER_SERVICE,
                "namespace": self.namespace,
                "labels": {
                    "kubernetes.io/service-name": RECEIVER_SERVICE,
                    "endpointslice.kubernetes.io/managed-by": "realtime-operator",
                },
            },
            "addressType": self.address_type(),
            "endpoints": [{ "addresses": [self.address], "conditions": { "ready": true } }],
            "ports": [{ "name": "receiver", "port": self.port, "protocol": "TCP" }],
        })
    }
}

/// Whether the live slice belongs to the Service and has exactly the wanted endpoint.
fn routes_to(live: &Value, wanted: &Value) -> bool {
    let endpoints = |slice: &Value| {
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        let found =
            endpoints.iter().map(|endpoint| (endpoint["addresses"].clone(), endpoint["conditions"]["ready"].clone()));
        found.collect::<Vec<_>>()
    };
    let labels = |slice: &Value| {
        let labels = &slice["metadata"]["labels"];
        (labels["kubernetes.io/service-name"].clone(), labels["endpointslice.kubernetes.io/managed-by"].clone())
    };
    endpoints(live) == endpoints(wanted)
        && labels(live) == labels(wanted)
        && live["ports"] == wanted["ports"]
        && live["addressType"] == wanted["addressType"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(address: &str) -> Value {
        crate::process::install_tls();
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("a URL"));
        let client = Client::try_from(config).expect("a client");
        let address = address.parse().expect("an address");
        ReceiverRoute { client, namespace: "o".to_owned(), address, port: 8090 }.render_endpoint_slice()
    }

    #[tokio::test]
    async fn a_slice_that_routes_elsewhere_is_repaired_and_an_equal_one_is_not() {
        let wanted = route("10.0.0.1");
        let edited = |edit: &dyn Fn(&mut Value)| {
            let mut live = wanted.clone();
            edit(&mut live);
            routes_to(&live, &wanted)
        };
        assert!(edited(&|_| {}));
        assert!(edited(&|live| live["metadata"]["uid"] = json!("1")), "fields of the API server");
        assert!(edited(&|live| live["endpoints"][0]["nodeName"] = json!("a")), "a field that routes nothing");
        assert!(!edited(&|live| *live = Value::Null), "a deleted slice");
        assert!(!edited(&|live| live["endpoints"] = json!([])), "no endpoint");
        assert!(!edited(&|live| live["endpoints"][0]["addresses"] = json!(["10.0.0.2"])), "another replica");
        assert!(!edited(&|live| live["endpoints"][0]["conditions"]["ready"] = json!(false)), "not ready");
        assert!(
            !edited(&|live| live["endpoints"].as_array_mut().expect("endpoints").push(json!({}))),
            "a second endpoint"
        );
        assert!(!edited(&|live| live["ports"][0]["port"] = json!(1)), "another port");
        assert!(!edited(&|live| live["metadata"]["labels"] = json!({})), "no Service");
        assert!(!routes_to(&route("fd00::1"), &wanted), "another family");
    }
}
