//! The rates of one app over all its clients: handshakes, and requests of the HTTP API.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use crate::edge::apps::rate_limit::FixedWindow;
use crate::process::locks::lock_unpoisoned;
use crate::protocol::AppId;
use crate::protocol::registry::AppRegistry;

/// Apps beyond those of the registry whose rates are kept.
const REMOVED_APPS_MAX: usize = 64;

/// The rates of each app. The limit comes with each call, so that an edit of an app is in force at once.
#[derive(Default)]
pub struct AppRates(Mutex<HashMap<AppId, FixedWindow>>);

impl AppRates {
    /// Whether one more is within the limit of its app; without a limit it always is.
    pub fn try_take(&self, registry: &AppRegistry, app: &AppId, limit: Option<u32>, now: Instant) -> bool {
        let Some(limit) = limit else { return true };
        let mut rates = lock_unpoisoned(&self.0);
        if !rates.contains_key(app) && rates.len() >= registry.apps().count() + REMOVED_APPS_MAX {
            rates.retain(|app, _| registry.by_id(app).is_some());
        }
        rates.entry(app.clone()).or_default().try_take(limit, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_app_has_its_rate_and_removed_apps_are_forgotten() {
        let (rates, registry, now) = (AppRates::default(), AppRegistry::default(), Instant::now());
        let take = |app: &str, limit| rates.try_take(&registry, &app.into(), limit, now);
        assert_eq!([0; 3].map(|_| take("1", Some(2))), [true, true, false]);
        assert!(take("1", Some(3)), "a limit that was raised is in force at once");
        assert!(take("2", Some(1)) && take("1", None));
        for n in 0..200 {
            take(&n.to_string(), Some(1));
        }
        assert!(lock_unpoisoned(&rates.0).len() <= REMOVED_APPS_MAX);
    }
}
