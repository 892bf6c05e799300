//! A double of the API server for tests of turns: it keeps the objects of one namespace as they are sent, and the order of the
//! writes. The rules of the real one are tested at the real one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::process::locks::lock_unpoisoned;

#[derive(Debug, Default)]
struct ApiState {
    /// Objects by `PLURAL/NAME`.
    objects: HashMap<String, Value>,
    /// Writes in their order: the plural, or `status`, with what was written.
    writes: Vec<(String, Value)>,
    version: u64,
    /// Number of reads.
    reads: usize,
    /// Plurals that are not served.
    unserved: Vec<&'static str>,
    /// Writes of records that fail from now on.
    failing_writes: u32,
}

/// The double; clones share its objects.
#[derive(Clone, Default)]
pub struct TestApi(Arc<Mutex<ApiState>>);

impl TestApi {
    pub fn client(&self) -> kube::Client {
        kube::Client::new(Router::new().fallback(serve).with_state(self.clone()), "channels")
    }

    /// Stores an object under `PLURAL/NAME`.
    pub fn put(&self, key: &str, object: Value) {
        let mut state = self.lock();
        store(&mut state, key, object);
    }

    /// The object of `PLURAL/NAME`.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.lock().objects.get(key).cloned()
    }

    pub fn writes(&self) -> Vec<(String, Value)> {
        self.lock().writes.clone()
    }

    pub fn reads(&self) -> usize {
        self.lock().reads
    }

    pub fn remove_kind(&self, plural: &'static str) {
        self.lock().unserved.push(plural);
    }

    pub fn fail_writes_of_records(&self, count: u32) {
        self.lock().failing_writes = count;
    }

    fn lock(&self) -> MutexGuard<'_, ApiState> {
        lock_unpoisoned(&self.0)
    }
}

fn store(state: &mut ApiState, key: &str, mut object: Value) {
    state.version += 1;
    object["metadata"]["resourceVersion"] = json!(state.version.to_string());
    if object["metadata"]["uid"].is_null() {
        object["metadata"]["uid"] = json!(format!("uid-{key}"));
    }
    state.objects.insert(key.to_owned(), object);
}

fn refuse(code: StatusCode, reason: &str) -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16() });
    (code, Json(status)).into_response()
}

async fn serve(State(api): State<TestApi>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body: Bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    // …/namespaces/NAMESPACE/PLURAL[/NAME[/status]]
    let parts: Vec<&str> = path.split("/namespaces/").nth(1).unwrap_or_default().split('/').collect();
    let (plural, name, part) = (
        parts.get(1).copied().unwrap_or_default(),
        parts.get(2).copied().unwrap_or_default(),
        parts.get(3).copied().unwrap_or_default(),
    );
    let key = format!("{plural}/{name}");
    let mut state = api.lock();
    if state.unserved.contains(&plural) {
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    }
    match method {
        Method::POST => Json(sent).into_response(),
        Method::GET if path.ends_with("/deployments") => {
            state.reads += 1;
            let items = state.objects.iter().filter(|(key, _)| key.starts_with("deployments/"));
            let items: Vec<Value> = items.map(|(_, object)| object.clone()).collect();
            Json(json!({ "kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {}, "items": items }))
                .into_response()
        }
        Method::GET => {
            state.reads += 1;
            match state.objects.get(&key) {
                Some(found) => Json(found.clone()).into_response(),
                None => refuse(StatusCode::NOT_FOUND, "NotFound"),
            }
        }
        Method::DELETE => {
            state.writes.push((plural.to_owned(), Value::Null));
            match state.objects.remove(&key) {
                Some(found) => Json(found).into_response(),
                None => refuse(StatusCode::NOT_FOUND, "NotFound"),
            }
        }
        Method::PATCH => {
            if plural == "dnsendpoints" && state.failing_writes > 0 {
                state.failing_writes -= 1;
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
            }
            let known = state.objects.get(&key).cloned();
            let (sent_version, version) = (
                &sent["metadata"]["resourceVersion"],
                known.as_ref().map(|known| &known["metadata"]["resourceVersion"]),
            );
            if !sent_version.is_null() && version != Some(sent_version) {
                return refuse(StatusCode::CONFLICT, "Conflict");
            }
            let object = match (part, known) {
                ("status", Some(mut known)) => {
                    known["status"] = sent["status"].clone();
                    known
                }
                ("", Some(mut known)) if plural == "realtimemigrations" => {
                    known["metadata"]["finalizers"] = sent["metadata"]["finalizers"].clone();
                    known
                }
                ("", _) => sent.clone(),
                _ => return refuse(StatusCode::NOT_FOUND, "NotFound"),
            };
            let written = if part.is_empty() { plural } else { part };
            state.writes.push((written.to_owned(), sent));
            store(&mut state, &key, object);
            Json(state.objects[&key].clone()).into_response()
        }
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}
