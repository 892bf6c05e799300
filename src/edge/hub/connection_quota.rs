//! The connection quota of an app, over all pods.
//!
//! Each connection of an app with a quota joins an internal channel, so that the bus counts it and removes the connections
//! of a dead process. While the bus is unavailable every connection is admitted: a quota is no reason to serve no one.

use crate::bus::{BusError, ChannelKey, JoinLimits};
use crate::edge::close_reason::CloseReason;
use crate::edge::hub::core::Hub;
use crate::edge::session::Session;
use crate::protocol::ChannelName;
use crate::protocol::frame::code;
use crate::protocol::registry::App;

/// Releases the quota slot before asking the client to reconnect; otherwise the reconnect can hit the limit, and pusher-js
/// does not retry a 4004.
pub async fn release_quota_slot(shared: &Hub, session: &Session) {
    let limited = shared.apps.current().by_id(&session.app).is_some_and(|app| app.limits.connections.is_some());
    if limited && shared.bus.is_available() {
        let counted = QuotaSlot(ChannelKey { app: session.app.clone(), channel: ChannelName::all_connections() });
        counted.release(shared, session).await;
    }
}

/// One connection's slot in the quota of its app.
pub struct QuotaSlot(ChannelKey);

impl QuotaSlot {
    /// Acquires a slot; `None` if the app has no quota.
    ///
    /// # Errors
    /// The close reason: all slots are taken. While some of them may be those of a dead process, the client is asked to
    /// try again: after a 4004 pusher-js stays disconnected.
    pub async fn acquire(shared: &Hub, session: &Session, app: &App) -> Result<Option<Self>, CloseReason> {
        let Some(most) = app.limits.connections else { return Ok(None) };
        let counted = Self(ChannelKey { app: app.id.clone(), channel: ChannelName::all_connections() });
        let limits = JoinLimits { connections_max: Some(most), ..JoinLimits::default() };
        match shared.join_channel(&counted.0, &session.socket, None, limits).await {
            Ok(joined) => drop(joined.transitions.acknowledge_all()),
            Err(BusError::ConnectionLimit { is_temporary: true }) => {
                return Err(CloseReason::new(
                    code::OVER_CAPACITY,
                    format!("the app has its {most} connections, some of a server that ended: try again"),
                ));
            }
            Err(BusError::ConnectionLimit { is_temporary: false }) => {
                return Err(CloseReason::new(
                    code::OVER_QUOTA,
                    format!("the app has its {most} connections, which is its limit"),
                ));
            }
            Err(error) => {
                tracing::debug!(%error, app = %app.id, "connection quota unknown, connection admitted");
                // An answer that was lost may have been a yes, so the slot is released as any other.
            }
        }
        Ok(Some(counted))
    }

    /// Releases the slot on the bus.
    pub async fn release(self, shared: &Hub, session: &Session) {
        if let Err(error) = shared.leave_channel(&self.0, &session.socket, None).await {
            tracing::debug!(%error, "connection quota slot not released until the bus answers");
        }
    }
}
