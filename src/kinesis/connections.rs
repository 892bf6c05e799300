//! Connections shared by many streams: one SDK client, with its credential cache and its call budgets, for each region,
//! endpoint and identity.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{AwsCredentials, KinesisCallMetrics, KinesisClient, StreamSettings};
use crate::process::locks::lock_unpoisoned;

/// Retention of an unused connection, such as one of rotated keys.
const IDLE_TTL: Duration = Duration::from_hours(1);

/// The open connections of a process.
#[derive(Debug, Default)]
pub struct KinesisConnections {
    open: Mutex<Vec<OpenConnection>>,
    metrics: Arc<KinesisCallMetrics>,
}

#[derive(Debug)]
struct OpenConnection {
    account: AccountKey,
    client: KinesisClient,
    used: Instant,
}

/// The properties of a connection that all its streams share.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AccountKey {
    region: String,
    endpoint: Option<String>,
    credentials: AwsCredentials,
}

impl KinesisConnections {
    /// Starts without a connection; all of them count their calls in these metrics.
    #[must_use]
    pub fn new(metrics: Arc<KinesisCallMetrics>) -> Self {
        Self { open: Mutex::default(), metrics }
    }

    /// A client of the stream over the connection of its region, endpoint and identity. Sends no request.
    pub async fn client(&self, settings: &StreamSettings) -> KinesisClient {
        let account = AccountKey {
            region: settings.region.clone(),
            endpoint: settings.endpoint.clone(),
            credentials: settings.credentials.clone(),
        };
        if let Some(client) = self.find(&account) {
            return client.of_stream(settings.stream.clone());
        }
        let client = KinesisClient::connect(settings).await.with_metrics(self.metrics.clone());
        let now = Instant::now();
        let mut open = lock_unpoisoned(&self.open);
        open.retain(|connection| now.duration_since(connection.used) < IDLE_TTL);
        open.push(OpenConnection { account, client: client.clone(), used: now });
        client
    }

    fn find(&self, account: &AccountKey) -> Option<KinesisClient> {
        let mut open = lock_unpoisoned(&self.open);
        let found = open.iter_mut().find(|connection| connection.account == *account)?;
        found.used = Instant::now();
        Some(found.client.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::StreamName;

    #[tokio::test]
    async fn streams_of_one_identity_share_a_connection_and_other_identities_do_not() {
        crate::process::install_tls();
        let connections = KinesisConnections::default();
        let settings = |stream: &str, key: &str| StreamSettings {
            stream: StreamName(stream.to_owned()),
            region: "eu-west-1".to_owned(),
            endpoint: None,
            credentials: AwsCredentials::Static { access_key_id: key.to_owned(), secret_access_key: "s".to_owned() },
        };
        let first = connections.client(&settings("a", "k1")).await;
        let second = connections.client(&settings("b", "k1")).await;
        assert_eq!((first.stream().as_str(), second.stream().as_str()), ("a", "b"));
        connections.client(&settings("a", "k2")).await;
        assert_eq!(connections.open.lock().expect("no panic").len(), 2);
    }
}
