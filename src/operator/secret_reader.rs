//! Reads Secrets by name, each at most once a minute and at once after an edit of an object that references it.
//!
//! The operator has no right to list or watch Secrets: a watch would show it every Secret of every namespace.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::{Client, ResourceExt};

use super::reconcile_error::ReconcileError;
use crate::process::locks::lock_unpoisoned;

/// Time after which the content of a Secret is read again.
const FOUND_TTL: Duration = Duration::from_mins(1);
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
    fn is_fresh(&self, user: &SecretUser, now: Instant) -> bool {
        let ttl = if self.secret.is_some() { FOUND_TTL } else { MISSING_TTL };
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
        let entry = self.entry(namespace, name);
        let mut cached = entry.lock().await;
        if !cached.is_fresh(user, Instant::now()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_again_after_a_minute_or_after_an_edit_of_its_user() {
        let user = |uid: &str, version| SecretUser { uid: uid.to_owned(), version };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut cached = CachedSecret::default();
        assert!(!cached.is_fresh(&user("a", 1), start), "it was never read");
        cached.store(Some(Secret::default()), &user("a", 1), start);
        for (name, user, now, fresh) in [
            ("the same user", user("a", 1), after(59), true),
            ("after a minute", user("a", 1), after(60), false),
            ("an edited user", user("a", 2), after(1), false),
            ("a new user", user("b", 1), after(1), false),
        ] {
            assert_eq!(cached.is_fresh(&user, now), fresh, "{name}");
        }
        cached.store(None, &user("a", 1), start);
        assert!(cached.is_fresh(&user("a", 1), after(1)));
        assert!(!cached.is_fresh(&user("a", 1), after(2)), "a missing Secret is looked for again soon");
        assert!(!cached.is_unused(after(600)));
        assert!(cached.is_unused(after(601)));
    }
}
