//! A customer's client: one session with one private channel, until it is dropped.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::ProbeApp;
use super::clients::client::ProbeClient;
use super::clients::target::SessionTarget;
use crate::protocol::{ChannelName, Transport};

/// A session of a client that no journey awaits.
pub struct Visitor {
    _session: ProbeClient,
}

impl Visitor {
    /// Connects to an edge and subscribes to a private channel.
    ///
    /// # Errors
    /// The step that failed, in a sentence.
    pub async fn connect(
        address: SocketAddr,
        transport: Transport,
        app: &ProbeApp,
        channel: &ChannelName,
        timeout: Duration,
    ) -> Result<Self, String> {
        let deadline = Instant::now() + timeout;
        let target = SessionTarget::of_pod("the edge", address);
        let connected = tokio::time::timeout_at(deadline, async {
            let mut session = ProbeClient::connect(&target, transport, app, |_| ()).await?;
            session.subscribe(app, channel, None, deadline).await?;
            Ok(session)
        });
        match connected.await {
            Ok(Ok(session)) => Ok(Self { _session: session }),
            Ok(Err(broken)) => {
                let broken: super::clients::link::BrokenHop = broken;
                Err(broken.detail)
            }
            Err(_) => Err(format!("no session within {timeout:?}")),
        }
    }
}
