//! The publish of a journey through the HTTP API.

use std::time::Duration;

use super::ProbeApp;
use super::clients::link::BrokenHop;
use crate::api::Reason;
use crate::gate::Hop;
use crate::process::clock;
use crate::protocol::{ChannelName, rest};

/// The event that is published through the HTTP API.
pub(super) const PUBLISHED_EVENT_NAME: &str = "probe-published";

/// A publish through the HTTP API of an address.
pub(super) struct HttpPublish<'a> {
    /// The name that messages use.
    pub entrance: &'a str,
    /// `HOST:PORT` of the HTTP API.
    pub address: String,
    pub channel: &'a ChannelName,
    /// Longest time until the answer.
    pub timeout: Duration,
}

/// Publishes an event, and expects the server to accept it.
pub(super) async fn publish_over_http(
    http: &reqwest::Client,
    app: &ProbeApp,
    publish: HttpPublish<'_>,
) -> Result<(), BrokenHop> {
    let HttpPublish { entrance, address, channel, timeout } = publish;
    let body = serde_json::json!({ "name": PUBLISHED_EVENT_NAME, "data": "{}", "channels": [channel] }).to_string();
    let path = format!("/apps/{}/events", app.id);
    let now = clock::now_ms() / 1000;
    let path = rest::signed_path(app.key.as_str(), &app.secret, ("POST", &path), body.as_bytes(), now);
    let url = format!("http://{address}{path}");
    let request = http.post(url).header("content-type", "application/json").body(body).timeout(timeout);
    let rejected = |detail| BrokenHop::ambiguous(Hop::Publish, Reason::PublishRejected, detail);
    let answer = request.send().await.map_err(|error| rejected(error.without_url().to_string()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.unwrap_or_default();
    let detail = format!("the HTTP API of {entrance} answered {status}: {}", text.trim());
    Err(BrokenHop::decisive(Hop::Publish, Reason::PublishRejected, detail))
}
