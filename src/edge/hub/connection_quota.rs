//! How many connections an app may have, on all pods together.
//!
//! Those of an app with such a limit enter a channel of the server's own, so that the bus counts them and forgets those
//! of a process that died. While it does not answer, everyone is let in: a quota is no reason to serve nobody.

use crate::bus::{BusError, ChannelKey};
use crate::edge::close_reason::CloseReason;
use crate::edge::hub::core::Hub;
use crate::edge::session::Session;
use crate::protocol::ChannelName;
use crate::protocol::frame::code;
use crate::protocol::registry::App;

/// Gives a connection's place back before its client is told to come back: it could find all places taken otherwise, and
/// stay away for good.
pub async fn release_quota_slot(shared: &Hub, session: &Session) {
    let limited = shared.apps.current().by_id(&session.app).is_some_and(|app| app.limits.connections.is_some());
    if limited && shared.bus.is_available() {
        let counted = QuotaSlot(ChannelKey { app: session.app.clone(), channel: ChannelName::all_connections() });
        counted.release(shared, session).await;
    }
}

/// A connection's place among those of its app.
pub struct QuotaSlot(ChannelKey);

impl QuotaSlot {
    /// Takes a place; `None` where nobody counts.
    ///
    /// # Errors
    /// What the client is told: all places are taken.
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
                // An answer that was lost may have been a yes, so the place is given back as any other.
                Ok(Some(counted))
            }
        }
    }

    /// How many there are, this one among them.
    async fn count_connections(&self, shared: &Hub, session: &Session) -> Result<u64, BusError> {
        shared.join_channel(&self.0, &session.socket, None).await?;
        Ok(shared.channel_info(&self.0).await?.connections)
    }

    /// Gives the place back.
    pub async fn release(self, shared: &Hub, session: &Session) {
        if let Err(error) = shared.leave_channel(&self.0, &session.socket, None).await {
            tracing::debug!(%error, "a connection is counted until the bus answers");
        }
    }
}
