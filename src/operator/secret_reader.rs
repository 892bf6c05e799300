//! Reads Secrets by name, each at most once a minute and at once after an edit of an object that references it. Those of apps
//! are read less often when there are many of them.
//!
//! The operator has no right to list or watch Secrets: a watch would show it every Secret of every namespace.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::reconcile_error::ReconcileError;
use crate::process::locks::lock_unpoisoned;

/// Time after which the content of a Secret is read again.
pub const FOUND_TTL: Duration = Duration::from_mins(1);
/// Secrets of apps that are read again within a second, over all clusters: 600 of them are as new as all others.
const APP_REREADS_PER_SECOND: f64 = 10.0;
/// Time after which a missing Secret is looked for again: a user is about to create it.
const MISSING_TTL: Duration = Duration::from_secs(2);
/// Retention of the content of a Secret that no reconcile reads.
const UNUSED_TTL: Duration = Duration::from_mins(10);
/// Time between two searches for unused contents.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// Reads Secrets and keeps their contents for a while.
pub struct SecretReader {
    client: Client,
    cached: Mutex<CachedSecrets>,
}

struct CachedSecrets {
    /// By namespace and name.
    by_name: HashMap<(String, String), CacheEntry>,
    swept: Instant,
}

/// The lock of an entry is held during its read, so that one Secret is read by one caller at a time.
type CacheEntry = Arc<tokio::sync::Mutex<CachedSecret>>;

/// The object that references a Secret, in one version of its spec and annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUser {
    uid: String,
    version: u64,
}

impl SecretUser {
    /// The object as it was read.
    pub fn of<K: ResourceExt>(object: &K) -> Self {
        let mut hasher = DefaultHasher::new();
        (object.meta().generation, object.annotations()).hash(&mut hasher);
        Self { uid: object.uid().unwrap_or_default(), version: hasher.finish() }
    }
}

#[derive(Debug, Default)]
struct CachedSecret {
    secret: Option<Arc<Secret>>,
    read_at: Option<Instant>,
    /// Versions of the users for which this content was read, by UID.
    users: HashMap<String, u64>,
}

impl CachedSecret {
    /// Whether the content may be used for this user.
    fn is_fresh(&self, user: &SecretUser, found_ttl: Duration, now: Instant) -> bool {
        let ttl = if self.secret.is_some() { found_ttl } else { MISSING_TTL };
        self.read_at.is_some_and(|at| now.duration_since(at) < ttl) && self.users.get(&user.uid) == Some(&user.version)
    }

    fn store(&mut self, secret: Option<Secret>, user: &SecretUser, now: Instant) {
        self.secret = secret.map(|mut secret| {
            secret.metadata.managed_fields = None;
            Arc::new(secret)
        });
        // The content is as new for the other users too, but they may have been edited since.
        self.read_at = Some(now);
        self.users.insert(user.uid.clone(), user.version);
    }

    fn is_unused(&self, now: Instant) -> bool {
        self.read_at.is_some_and(|at| now.duration_since(at) > UNUSED_TTL)
    }
}

impl SecretReader {
    pub fn new(client: Client) -> Self {
        Self { client, cached: Mutex::new(CachedSecrets { by_name: HashMap::new(), swept: Instant::now() }) }
    }

    /// Reads a Secret for an object that references it; `None` when it does not exist.
    ///
    /// # Errors
    /// The API server refuses the call or does not answer.
    pub async fn read(
        &self,
        namespace: &str,
        name: &str,
        user: &SecretUser,
    ) -> Result<Option<Arc<Secret>>, ReconcileError> {
        self.read_within(namespace, name, user, FOUND_TTL).await
    }

    /// Time after which a Secret of an app is read again: longer when thousands of Secrets are known.
    pub fn app_ttl(&self) -> Duration {
        app_secret_ttl(u32::try_from(lock_unpoisoned(&self.cached).by_name.len()).unwrap_or(u32::MAX))
    }

    /// Reads a Secret as [`Self::read`] does, again after this time.
    ///
    /// # Errors
    /// The API server refuses the call or does not answer.
    pub async fn read_within(
        &self,
        namespace: &str,
        name: &str,
        user: &SecretUser,
        found_ttl: Duration,
    ) -> Result<Option<Arc<Secret>>, ReconcileError> {
        let entry = self.entry(namespace, name);
        let mut cached = entry.lock().await;
        if !cached.is_fresh(user, found_ttl, Instant::now()) {
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
            let found = secrets.get_opt(name).await;
            let found = found
                .map_err(|error| ReconcileError::from_call(&format!("reading Secret {namespace}/{name}"), &error))?;
            cached.store(found, user, Instant::now());
        }
        Ok(cached.secret.clone())
    }

    /// Forgets the content of a Secret. Called after the operator has written it.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut cached = lock_unpoisoned(&self.cached);
        cached.by_name.remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn entry(&self, namespace: &str, name: &str) -> CacheEntry {
        let mut cached = lock_unpoisoned(&self.cached);
        let now = Instant::now();
        if now.duration_since(cached.swept) > SWEEP_INTERVAL {
            cached.swept = now;
            cached.by_name.retain(|_, entry| entry.try_lock().map_or(true, |secret| !secret.is_unused(now)));
        }
        cached.by_name.entry((namespace.to_owned(), name.to_owned())).or_default().clone()
    }
}

/// Time after which a Secret of an app is read again, with so many Secrets known.
fn app_secret_ttl(known: u32) -> Duration {
    FOUND_TTL.max(Duration::from_secs_f64(f64::from(known) / APP_REREADS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use axum::{Json, Router};
    use k8s_openapi::ByteString;
    use kube::api::ObjectMeta;
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;

    #[test]
    fn a_secret_is_read_again_after_a_minute_or_after_an_edit_of_its_user() {
        let user = |uid: &str, version| SecretUser { uid: uid.to_owned(), version };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut cached = CachedSecret::default();
        assert!(!cached.is_fresh(&user("a", 1), FOUND_TTL, start), "it was never read");
        cached.store(Some(Secret::default()), &user("a", 1), start);
        for (name, user, now, fresh) in [
            ("the same user", user("a", 1), after(59), true),
            ("after a minute", user("a", 1), after(60), false),
            ("an edited user", user("a", 2), after(1), false),
            ("a new user", user("b", 1), after(1), false),
        ] {
            assert_eq!(cached.is_fresh(&user, FOUND_TTL, now), fresh, "{name}");
        }
        cached.store(None, &user("a", 1), start);
        assert!(cached.is_fresh(&user("a", 1), FOUND_TTL, after(1)));
        assert!(!cached.is_fresh(&user("a", 1), FOUND_TTL, after(2)), "a missing Secret is looked for again soon");
        cached.store(Some(Secret::default()), &user("a", 1), start);
        let of_many = app_secret_ttl(2_000);
        assert!(
            cached.is_fresh(&user("a", 1), of_many, after(199)) && !cached.is_fresh(&user("a", 1), of_many, after(200))
        );
        assert_eq!(app_secret_ttl(600), FOUND_TTL, "of few apps, Secrets are as new as all others");
        assert!(!cached.is_unused(after(600)));
        assert!(cached.is_unused(after(601)));
    }

    /// The API server's Secret, and the number of reads.
    type StoredSecret = Arc<Mutex<(Option<Secret>, usize)>>;

    fn secret_of(url: &str) -> Secret {
        let data = BTreeMap::from([("url".to_owned(), ByteString(url.as_bytes().to_vec()))]);
        let metadata = ObjectMeta { name: Some("redis".to_owned()), ..ObjectMeta::default() };
        Secret { metadata, data: Some(data), ..Secret::default() }
    }

    fn reader_of(stored: &StoredSecret) -> SecretReader {
        let stored = stored.clone();
        let answer = move || {
            let mut stored = stored.lock().expect("the Secret");
            stored.1 += 1;
            let found = stored.0.clone().map(|secret| Json(secret).into_response());
            let missing =
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 });
            let response = found.unwrap_or_else(|| (StatusCode::NOT_FOUND, Json(missing)).into_response());
            async move { response }
        };
        let router = Router::new().route("/api/v1/namespaces/n/secrets/redis", get(answer));
        SecretReader::new(Client::new(router, "n"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_is_rotated_twice_removed_and_created_again_ends_with_its_last_value() {
        let stored = StoredSecret::default();
        let reader = reader_of(&stored);
        let set = |secret: Option<Secret>| stored.lock().expect("the Secret").0 = secret;
        let user = SecretUser { uid: "a".to_owned(), version: 1 };
        let read = async || {
            let found = reader.read("n", "redis", &user).await.expect("an answer")?;
            let url = found.data.as_ref()?.get("url")?.0.clone();
            Some(String::from_utf8_lossy(&url).into_owned())
        };
        let text = |url: &str| Some(url.to_owned());
        set(Some(secret_of("first")));
        assert_eq!(read().await, text("first"));
        // Twice within a second: the value in between is never read.
        set(Some(secret_of("wrong")));
        sleep(Duration::from_millis(400)).await;
        set(Some(secret_of("right")));
        assert_eq!(read().await, text("first"), "at most one read a minute");
        sleep(FOUND_TTL).await;
        assert_eq!(read().await, text("right"));
        set(None);
        sleep(FOUND_TTL).await;
        assert_eq!(read().await, None);
        assert_eq!(read().await, None, "it is not asked for at once again");
        set(Some(secret_of("new")));
        sleep(MISSING_TTL).await;
        assert_eq!(read().await, text("new"), "a Secret that is missed is found soon");
        assert_eq!(stored.lock().expect("the Secret").1, 4, "one read for each of the four answers");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_read_keeps_nothing_and_is_repeated() {
        let failures = Arc::new(AtomicUsize::new(0));
        let count = failures.clone();
        let answer = move || {
            let response = match count.fetch_add(1, Ordering::Relaxed) {
                0 => StatusCode::TOO_MANY_REQUESTS.into_response(),
                1 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                2 => "{\"kind\":\"Secret\",\"metadata\":{\"na".into_response(),
                _ => Json(secret_of("value")).into_response(),
            };
            async move { response }
        };
        let router = Router::new().route("/api/v1/namespaces/n/secrets/redis", get(answer));
        let reader = SecretReader::new(Client::new(router, "n"));
        let user = SecretUser { uid: "a".to_owned(), version: 1 };
        let mut errors = Vec::new();
        let found = loop {
            match reader.read("n", "redis", &user).await {
                Ok(found) => break found,
                Err(error) => errors.push(error.to_string()),
            }
        };
        assert!(found.is_some(), "no failure is remembered as a missing Secret");
        assert!(!errors.is_empty() && errors.iter().all(|error| error.contains("Secret n/redis")), "{errors:?}");
    }
}
