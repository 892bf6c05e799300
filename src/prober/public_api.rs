//! The publish of a journey through a load balancer of the HTTP API, by its public host.

use std::time::Duration;

use tokio::time::Instant;

use super::clients::client::ProbeClient;
use super::clients::link::BrokenHop;
use super::clients::target::resolve_targets;
use super::http_publish::{HttpPublish, explain_large_event, publish_over_http};
use super::nonce::JourneyChannels;
use super::{ClientAddress, ProbeApp};
use crate::api::Reason;
use crate::gate::Hop;

/// The event that is published through a load balancer of the HTTP API.
const OUTSIDE_EVENT_NAME: &str = "probe-published-outside";

/// A load balancer of the HTTP API, and the session that hears what is published through it.
pub(super) struct PublicApi<'a> {
    pub app: &'a ProbeApp,
    /// The name that messages use.
    pub entrance: &'a str,
    pub address: &'a ClientAddress,
    /// The channels of the session, which is in the presence channel.
    pub channels: &'a JourneyChannels,
    /// Number of the journey, by which it chooses an IP address.
    pub turn: usize,
    /// Longest time until the answer, and until the event.
    pub timeout: Duration,
}

impl PublicApi<'_> {
    /// Publishes through the load balancer, and expects the event at the session.
    pub async fn prove(&self, client: &mut ProbeClient) -> Result<(), BrokenHop> {
        let deadline = Instant::now() + self.timeout;
        self.publish().await.map_err(|error| explain_large_event(error, self.channels))?;
        let hop = (Hop::FanOut, Reason::FanoutBroken);
        let arrived = client.wait_for_event(deadline, hop, |message| message.event == OUTSIDE_EVENT_NAME).await;
        arrived.map(drop).map_err(|error| {
            let detail = format!("the publish through {} did not arrive: {}", self.entrance, error.detail);
            BrokenHop { detail, ..error }
        })
    }

    /// Publishes at the IP address whose turn it is.
    async fn publish(&self) -> Result<(), BrokenHop> {
        let targets = resolve_targets(self.entrance, self.address, true).await?;
        let target = &targets[self.turn % targets.len()];
        // A connection of its own tells a wrong certificate and a refused connection from a refused request.
        drop(target.connect().await?);
        let http = target.http_client().map_err(|error| {
            BrokenHop::ambiguous(Hop::Publish, Reason::PublishRejected, error.without_url().to_string())
        })?;
        let publish = HttpPublish {
            entrance: self.entrance,
            is_external: true,
            url: target.http_url("").trim_end_matches('/').to_owned(),
            channel: &self.channels.presence,
            event: OUTSIDE_EVENT_NAME,
            data: &self.channels.client_event_payload(),
            timeout: self.timeout,
        };
        publish_over_http(&http, self.app, publish).await
    }
}
