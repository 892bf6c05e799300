//! A receiver of webhooks that answers as a test says, and checks signatures.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use realtime_operator::process::clock::now_ms;
use realtime_operator::protocol::Secret;
use realtime_operator::protocol::webhook::{
    KEY_HEADER, ORIGINAL_TIME_HEADER, SIGNATURE_HEADER, WebhookBody, WebhookEvent, verify_webhook,
};

use crate::fixtures::serve_routes;
use crate::waiting::eventually;

/// Received webhooks, and the next answers; 200 by default.
#[derive(Clone, Default)]
pub struct Receiver {
    pub bodies: Arc<Mutex<Vec<(u64, WebhookBody)>>>,
    pub answers: Arc<Mutex<VecDeque<u16>>>,
    pub problems: Arc<Mutex<Vec<String>>>,
    /// The header with the original time, of bodies that had one.
    pub originals: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    pub async fn serve(&self) -> String {
        let router = Router::new().route("/hook", post(receive)).with_state(self.clone());
        format!("{}/hook", serve_routes(router).await)
    }

    pub fn events(&self) -> Vec<(u64, WebhookEvent)> {
        let bodies = self.bodies.lock().expect("not poisoned");
        bodies.iter().flat_map(|(at, body)| body.events.iter().map(|event| (*at, event.clone()))).collect()
    }

    pub fn ids(&self) -> Vec<String> {
        self.events().into_iter().map(|(_, event)| event.id).collect()
    }

    /// Waits until this holds of the ids of all received events.
    pub async fn receives(&self, awaited: &str, holds: impl Fn(&[String]) -> bool) {
        eventually(awaited, async || self.ids(), |ids| holds(ids)).await;
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, raw: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let signed = verify_webhook(&Secret::new("secret"), &raw, header(SIGNATURE_HEADER));
    if !signed || header(KEY_HEADER) != "key" || header("content-type") != "application/json" {
        receiver.problems.lock().expect("not poisoned").push(format!("{headers:?}"));
    }
    let original = header(ORIGINAL_TIME_HEADER);
    if !original.is_empty() {
        receiver.originals.lock().expect("not poisoned").push(original.to_owned());
    }
    let answer = receiver.answers.lock().expect("not poisoned").pop_front().unwrap_or(200);
    if answer == 200 {
        let body = serde_json::from_slice(&raw).expect("a webhook");
        receiver.bodies.lock().expect("not poisoned").push((now_ms(), body));
    }
    StatusCode::from_u16(answer).expect("a status").into_response()
}
