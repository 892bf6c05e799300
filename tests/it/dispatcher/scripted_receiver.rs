//! A receiver of webhooks whose endpoints behave as a script says: by the path of the request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use realtime_operator::process::clock::now_ms;
use realtime_operator::protocol::webhook::WebhookBody;

use crate::fixtures::serve_routes;

/// How an endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// With this status, at once.
    Status(u16),
    /// With 200, after this time.
    Slow(Duration),
    /// Never.
    Hang,
}

/// The received events of one endpoint: time of arrival in ms since 1970, and id.
type Received = Vec<(u64, String)>;

#[derive(Default)]
struct Script {
    behaviours: HashMap<String, Behaviour>,
    received: HashMap<String, Received>,
}

/// Endpoints by name; those without a behaviour answer 200.
#[derive(Clone, Default)]
pub struct ScriptedReceiver(Arc<Mutex<Script>>);

impl ScriptedReceiver {
    /// Serves the endpoints until the test ends; an endpoint's URL is this one, `/` and its name.
    pub async fn serve(&self) -> String {
        serve_routes(Router::new().route("/{endpoint}", post(answer)).with_state(self.clone())).await
    }

    pub fn set(&self, endpoint: &str, behaviour: Behaviour) {
        self.script().behaviours.insert(endpoint.to_owned(), behaviour);
    }

    /// The acknowledged events of an endpoint.
    pub fn received(&self, endpoint: &str) -> Received {
        self.script().received.get(endpoint).cloned().unwrap_or_default()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().expect("not poisoned")
    }
}

async fn answer(State(receiver): State<ScriptedReceiver>, Path(endpoint): Path<String>, raw: Bytes) -> StatusCode {
    let behaviour = receiver.script().behaviours.get(&endpoint).copied().unwrap_or(Behaviour::Status(200));
    let status = match behaviour {
        Behaviour::Status(status) => StatusCode::from_u16(status).expect("a status"),
        Behaviour::Slow(delay) => {
            tokio::time::sleep(delay).await;
            StatusCode::OK
        }
        Behaviour::Hang => std::future::pending().await,
    };
    if status.is_success() {
        let body: WebhookBody = serde_json::from_slice(&raw).expect("a webhook");
        let now = now_ms();
        receiver.script().received.entry(endpoint).or_default().extend(body.events.into_iter().map(|it| (now, it.id)));
    }
    status
}
