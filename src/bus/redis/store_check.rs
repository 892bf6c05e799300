//! Checks once whether a store can be a bus.

use std::time::Duration;

use fred::interfaces::{ClientLike, EventInterface};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::{RedisAddress, client_builder, fetch_store_status, to_bus_error};
use super::first_sync;
use super::keys::KeySpace;
use super::subscription::check_publish_right;
use crate::bus::BusError;

/// Bounds the connection and the answer of the store.
const STORE_CHECK_TIMEOUT: Duration = Duration::from_secs(8);

/// Connects to the store, and checks its version, its eviction policy, its role, and the right to publish.
///
/// # Errors
/// The store does not answer in 8 s, refuses the credentials or its certificate is not trusted, or it cannot be a bus.
pub async fn check_store<'a>(address: impl Into<RedisAddress<'a>>) -> Result<(), BusError> {
    let client = client_builder(address.into(), 1)?.build().map_err(to_bus_error)?;
    let (errors, mut refused) = tokio::sync::watch::channel(None);
    let stop = CancellationToken::new();
    let _ended = stop.clone().drop_guard();
    tokio::spawn(first_sync::watch_connection_errors(client.error_rx(), errors, stop));
    client.connect();
    let contact = async {
        tokio::select! {
            connected = client.wait_for_connect() => connected.map_err(to_bus_error)?,
            Ok(reason) = refused.wait_for(Option::is_some) => {
                if let Some(Err(reason)) = &*reason {
                    return Err(BusError::Unusable(reason.clone()));
                }
            }
        }
        let names = KeySpace::new("check", client.is_clustered());
        check_publish_right(&client, &names).await?;
        fetch_store_status(&client, client.is_clustered()).await
    };
    let found = timeout(STORE_CHECK_TIMEOUT, contact).await;
    // A connection that was never opened has nothing to close.
    let _ = timeout(Duration::from_secs(1), client.quit()).await;
    match found {
        Ok(Ok(status)) => status.unusable_reason.map_or(Ok(()), |reason| Err(BusError::Unusable(reason))),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            let message = format!("no answer in {} s", STORE_CHECK_TIMEOUT.as_secs());
            Err(BusError::Unavailable(message))
        }
    }
}
