//! The limit on an app's connections, over all pods.
//!
//! Connections of a limited app join a channel of the server's own, so that the bus counts them and removes those of a
//! dead process. While the bus is unavailable every connection is admitted: a quota must not cause an outage.

use crate::bus::{BusError, ChannelKey};
use crate::edge::hub::Hub;
use crate::edge::session::{CloseReason, Session};
use crate::protocol::ChannelName;
use crate::protocol::frame::code;
use crate::protocol::registry::App;

/// Releases the quota slot before asking the client to reconnect; otherwise the reconnect can hit the limit, and
/// pusher-js does not retry a 4004.
pub async fn release_quota_slot(shared: &Hub, session: &Session) {
    let limited = shared.apps.current().by_id(&session.app).is_some_and(|app| app.limits.connections.is_some());
    if limited && shared.bus.is_available() {
        let counted = QuotaSlot(ChannelKey { app: session.app.clone(), channel: ChannelName::all_connections() });
        counted.release(shared, session).await;
    }
}

/// A connection's slot in the quota of its app.
pub struct QuotaSlot(ChannelKey);

impl QuotaSlot {
    /// Acquires a slot; `None` for an app without a limit.
    ///
    /// # Errors
    /// All slots are taken; the reason for the client.
    pub async fn acquire(shared: &Hub, session: &Session, app: &App) -> Result<Option<Self>, CloseReason> {
        let Some(most) = app.limits.connections else { return Ok(None) };
        let counted = Self(ChannelKey { app: app.id.clone(), channel: ChannelName::all_connections() });
        match counted.count_connections(shared, session).await {
            Ok(connections) if connections > most => {
                counted.release(shared, session).await;
                Err(CloseReason::new(
                    code::OVER_QUOTA,
                    format!("the app has its {most} connections, which is its limit"),
                ))
            }
            Ok(_) => Ok(Some(counted)),
            Err(error) => {
                tracing::debug!(%error, app = %app.id, "a connection is let in uncounted");
                // A lost answer may have been a success, so the slot is released as any other.
                Ok(Some(counted))
            }
        }
    }

    /// Returns the number of connections, including this one.
    async fn count_connections(&self, shared: &Hub, session: &Session) -> Result<u64, BusError> {
        shared.join_channel(&self.0, &session.socket, None).await?;
        Ok(shared.channel_info(&self.0).await?.connections)
    }

    /// Releases the slot of a closed connection.
    pub async fn release(self, shared: &Hub, session: &Session) {
        if let Err(error) = shared.leave_channel(&self.0, &session.socket, None).await {
            tracing::debug!(%error, "a connection is counted until the bus answers");
        }
    }
}
