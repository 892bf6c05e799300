//! The publish of a journey through the HTTP API.

use std::time::Duration;

use reqwest::StatusCode;

use super::ProbeApp;
use super::clients::link::BrokenHop;
use super::nonce::JourneyChannels;
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
    /// Whether it is a load balancer, behind which another cluster may answer.
    pub is_external: bool,
    /// URL of the HTTP API, without a path.
    pub url: String,
    pub channel: &'a ChannelName,
    pub event: &'a str,
    /// Data of the event, a text of JSON.
    pub data: &'a str,
    /// Longest time until the answer.
    pub timeout: Duration,
}

/// Publishes an event, and expects the server to accept it.
pub(super) async fn publish_over_http(
    http: &reqwest::Client,
    app: &ProbeApp,
    publish: HttpPublish<'_>,
) -> Result<(), BrokenHop> {
    let HttpPublish { entrance, is_external, url, channel, event, data, timeout } = publish;
    let body = serde_json::json!({ "name": event, "data": data, "channels": [channel] }).to_string();
    let path = format!("/apps/{}/events", app.id);
    let now = clock::now_ms() / 1000;
    let path = rest::signed_path(app.key.as_str(), &app.secret, ("POST", &path), body.as_bytes(), now);
    let request =
        http.post(format!("{url}{path}")).header("content-type", "application/json").body(body).timeout(timeout);
    let rejected = |detail| BrokenHop::ambiguous(Hop::Publish, Reason::PublishRejected, detail);
    let answer = request.send().await.map_err(|error| rejected(error.without_url().to_string()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let text = answer.text().await.unwrap_or_default();
    let detail = format!("the HTTP API of {entrance} answered {status}: {}", text.trim());
    let reason = if is_external { classify_refusal(status, &text) } else { Reason::PublishRejected };
    Err(BrokenHop::decisive(Hop::Publish, reason, detail))
}

/// Names the web ACL that refuses large bodies as a possible cause.
pub(super) fn explain_large_event(broken: BrokenHop, channels: &JourneyChannels) -> BrokenHop {
    if channels.padding_bytes == 0 {
        return broken;
    }
    let detail = format!(
        "{}; the event has {} bytes, and the rule SizeRestrictions_BODY of a web ACL refuses bodies above 8 KB",
        broken.detail, channels.padding_bytes
    );
    BrokenHop { detail, ..broken }
}

/// The reason of a refused publish through a load balancer: each cluster has an app and a key of its own for journeys, and knows no other's.
fn classify_refusal(status: StatusCode, text: &str) -> Reason {
    match status {
        StatusCode::UNAUTHORIZED => Reason::WrongCluster,
        StatusCode::NOT_FOUND if text.trim() == rest::UNKNOWN_APP_ANSWER => Reason::WrongCluster,
        _ => Reason::PublishRejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_does_not_know_the_app_is_another_one() {
        for (status, text, reason) in [
            (401, "`auth_key` is not a key of this app\n", Reason::WrongCluster),
            (404, "there is no app with this id\n", Reason::WrongCluster),
            (404, "404 page not found\n", Reason::PublishRejected),
            (403, "", Reason::PublishRejected),
            (503, "", Reason::PublishRejected),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(classify_refusal(status, text), reason, "{status} {text}");
        }
    }
}
