//! Versions of the app registry that processes may run: the current one, and the versions that it superseded lately.
//!
//! Kubelet refreshes mounted Secrets with a delay, so a process may run a version that is several changes old. Such a
//! version is a change in flight, not a difference: a digest that was never rendered is one at once, and a superseded
//! digest after [`LOADING_GRACE_MS`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::protocol::AppId;

/// Time that a process has to load a change of the registry, in ms.
pub const LOADING_GRACE_MS: u64 = 90_000;

/// Retention of superseded versions, in ms. An older version counts as one that was never rendered.
const SUPERSEDED_TTL_MS: u64 = 900_000;

/// Shortest time between two changes of the registry, in ms: changes in between are written together.
pub const CHANGE_INTERVAL_MS: u64 = 2_000;

/// Superseded versions that are remembered of one app. With [`CHANGE_INTERVAL_MS`] between two of them, they cover more
/// than [`LOADING_GRACE_MS`].
const SUPERSEDED_VERSIONS_MAX: usize = 64;

/// The current registry as one salted digest per app, and the digests that it superseded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryHistory {
    current: BTreeMap<AppId, String>,
    superseded: BTreeMap<AppId, VecDeque<SupersededVersion>>,
    /// When this history begins although the registry is older, in ms since 1970: earlier versions are unknown.
    inherited_ms: Option<u64>,
    /// When the current version was recorded, in ms since 1970; `None` before the first one.
    recorded_ms: Option<u64>,
    /// Number of the current version, counted from the first one that was recorded.
    revision: u64,
    /// The version in which an app last changed; an app that has not changed since the first one is left out.
    changed_in: BTreeMap<AppId, u64>,
}

/// The apps of a process as they differ from one version of the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryReading {
    /// The version that the process was compared with.
    revision: u64,
    /// Apps that the process lacked, or had in another version.
    differing: BTreeSet<AppId>,
}

/// A former version of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SupersededVersion {
    /// Its salted digest; `None` when the registry did not have the app.
    digest: Option<String>,
    /// When it was superseded, in ms since 1970.
    superseded_ms: u64,
}

/// The version of an app that a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppVersion {
    Current,
    /// A superseded one that the process had no time to replace yet.
    Loading,
    /// A superseded one that the process should have replaced.
    Stale,
    /// One that was never rendered.
    Foreign,
}

impl RegistryHistory {
    /// A history of a registry that no process runs yet.
    #[must_use]
    pub fn of_registry(digests: BTreeMap<AppId, String>) -> Self {
        Self { current: digests, recorded_ms: Some(0), ..Self::default() }
    }

    /// A history whose begin is unknown: processes may run versions that were rendered before `now_ms`.
    #[must_use]
    pub fn inherited(now_ms: u64) -> Self {
        Self { inherited_ms: Some(now_ms), ..Self::default() }
    }

    /// Whether a version was recorded yet.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.recorded_ms.is_some()
    }

    /// Time in ms until the next change may be written, [`CHANGE_INTERVAL_MS`] after the last one.
    #[must_use]
    pub fn change_wait_ms(&self, now_ms: u64) -> u64 {
        let next = self.recorded_ms.map_or(0, |recorded| recorded.saturating_add(CHANGE_INTERVAL_MS));
        next.saturating_sub(now_ms).min(CHANGE_INTERVAL_MS)
    }

    /// Records the registry before it is written, so that no process can run a version that is not recorded.
    pub fn record(&mut self, digests: BTreeMap<AppId, String>, now_ms: u64) {
        if self.current == digests && self.is_recorded() {
            return;
        }
        let former = std::mem::replace(&mut self.current, digests);
        self.revision += 1;
        if self.recorded_ms.replace(now_ms).is_none() {
            return;
        }
        let ids: BTreeSet<&AppId> = former.keys().chain(self.current.keys()).collect();
        for id in ids {
            let digest = former.get(id);
            if digest == self.current.get(id) {
                continue;
            }
            self.changed_in.insert(id.clone(), self.revision);
            let versions = self.superseded.entry(id.clone()).or_default();
            versions.push_back(SupersededVersion { digest: digest.cloned(), superseded_ms: now_ms });
            if versions.len() > SUPERSEDED_VERSIONS_MAX {
                versions.pop_front();
            }
        }
        self.changed_in.retain(|id, _| self.current.contains_key(id));
        self.superseded.retain(|_, versions| {
            versions.retain(|version| now_ms.saturating_sub(version.superseded_ms) < SUPERSEDED_TTL_MS);
            !versions.is_empty()
        });
    }

    /// Classifies each app of a process that differs from the current registry.
    pub fn differing_apps<'a>(
        &'a self,
        found: &'a BTreeMap<AppId, String>,
        now_ms: u64,
    ) -> impl Iterator<Item = (&'a AppId, AppVersion)> {
        let ids: BTreeSet<&AppId> = self.current.keys().chain(found.keys()).collect();
        let classified = ids.into_iter().map(move |id| (id, self.classify(id, found.get(id), now_ms)));
        classified.filter(|(_, version)| *version != AppVersion::Current)
    }

    /// Compares the apps that a process reports with the current version.
    #[must_use]
    pub fn compare(&self, found: &BTreeMap<AppId, String>) -> RegistryReading {
        let missing = self.current.iter().filter(|(id, digest)| found.get(*id) != Some(*digest));
        RegistryReading { revision: self.revision, differing: missing.map(|(id, _)| id.clone()).collect() }
    }

    /// Whether a process has loaded the current version of an app; `None` if the app changed since the comparison.
    #[must_use]
    pub fn has_loaded(&self, id: &AppId, reading: &RegistryReading) -> Option<bool> {
        let changed_in = self.changed_in.get(id).copied().unwrap_or_default();
        (reading.revision > 0 && reading.revision >= changed_in).then(|| !reading.differing.contains(id))
    }

    /// Classifies a process's version of one app; `None` when the process lacks the app.
    fn classify(&self, id: &AppId, found: Option<&String>, now_ms: u64) -> AppVersion {
        if self.current.get(id) == found {
            return AppVersion::Current;
        }
        let is_loading = |since_ms: u64| now_ms.saturating_sub(since_ms) <= LOADING_GRACE_MS;
        let versions = self.superseded.get(id);
        // The newest of equal versions counts: an app may change back and forth.
        let superseded = versions.and_then(|all| all.iter().rev().find(|version| version.digest.as_ref() == found));
        match superseded {
            Some(version) if is_loading(version.superseded_ms) => AppVersion::Loading,
            Some(_) => AppVersion::Stale,
            None if self.inherited_ms.is_some_and(is_loading) => AppVersion::Loading,
            None => AppVersion::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apps(pairs: &[(&str, &str)]) -> BTreeMap<AppId, String> {
        pairs.iter().map(|(id, digest)| (AppId::from(*id), (*digest).to_owned())).collect()
    }

    fn versions(history: &RegistryHistory, found: &[(&str, &str)], now_ms: u64) -> Vec<(String, AppVersion)> {
        let found = apps(found);
        history.differing_apps(&found, now_ms).map(|(id, version)| (id.to_string(), version)).collect()
    }

    #[test]
    fn a_version_two_changes_old_is_loading_for_90_s_and_then_stale() {
        let mut history = RegistryHistory::of_registry(apps(&[("1", "a")]));
        history.record(apps(&[("1", "b")]), 1_000);
        history.record(apps(&[("1", "c"), ("2", "x")]), 2_000);
        let only = |id: &str, version| vec![(id.to_owned(), version)];
        assert_eq!(versions(&history, &[("1", "c"), ("2", "x")], 2_000), []);
        assert_eq!(versions(&history, &[("1", "a"), ("2", "x")], 91_000), only("1", AppVersion::Loading));
        assert_eq!(versions(&history, &[("1", "a"), ("2", "x")], 91_001), only("1", AppVersion::Stale));
        assert_eq!(versions(&history, &[("1", "b"), ("2", "x")], 91_001), only("1", AppVersion::Loading));
        assert_eq!(versions(&history, &[("1", "c")], 3_000), only("2", AppVersion::Loading), "an app not loaded yet");
        assert_eq!(versions(&history, &[("1", "d"), ("2", "x")], 2_000), only("1", AppVersion::Foreign));
        let extra = versions(&history, &[("1", "c"), ("2", "x"), ("3", "y")], 2_000);
        assert_eq!(extra, only("3", AppVersion::Foreign), "an app that was never in the registry");
    }

    #[test]
    fn a_new_leader_tolerates_versions_that_an_earlier_leader_may_have_rendered() {
        let mut history = RegistryHistory::inherited(10_000);
        assert!(!history.is_recorded());
        history.record(apps(&[("1", "b")]), 11_000);
        assert_eq!(versions(&history, &[("1", "a")], 100_000), [("1".to_owned(), AppVersion::Loading)]);
        assert_eq!(versions(&history, &[("1", "a")], 100_001), [("1".to_owned(), AppVersion::Foreign)]);
        let fresh = RegistryHistory::of_registry(apps(&[("1", "b")]));
        assert_eq!(versions(&fresh, &[("1", "a")], 1), [("1".to_owned(), AppVersion::Foreign)]);
    }

    #[test]
    fn changes_are_2_s_apart() {
        let mut history = RegistryHistory::default();
        assert_eq!(history.change_wait_ms(5_000), 0);
        history.record(apps(&[("1", "a")]), 5_000);
        assert_eq!((history.change_wait_ms(5_500), history.change_wait_ms(7_000)), (1_500, 0));
        history.record(apps(&[("1", "a")]), 6_900);
        assert_eq!(history.change_wait_ms(7_000), 0, "an equal registry is no change");
        assert_eq!(history.change_wait_ms(1_000), CHANGE_INTERVAL_MS, "a clock that was set back delays no longer");
    }

    proptest! {
        /// A process that runs any version rendered within the grace period differs from nothing that is a fault.
        #[test]
        fn a_version_rendered_lately_is_never_foreign_or_stale(
            changes in prop::collection::vec((0_u8..4, 0_u8..6, 2_000_u64..20_000), 1..60),
            age in 0_usize..60,
        ) {
            let mut registry: BTreeMap<AppId, String> = BTreeMap::new();
            let mut history = RegistryHistory::of_registry(registry.clone());
            let mut rendered = vec![(registry.clone(), u64::MAX)];
            let mut now = 0;
            for (app, digest, wait) in changes {
                now += wait;
                let id = AppId(app.to_string());
                // Digest 0 removes the app.
                if digest == 0 { registry.remove(&id) } else { registry.insert(id, digest.to_string()) };
                history.record(registry.clone(), now);
                if let Some(last) = rendered.last_mut() {
                    last.1 = now;
                }
                rendered.push((registry.clone(), u64::MAX));
            }
            let (found, superseded) = &rendered[rendered.len() - 1 - age.min(rendered.len() - 1)];
            let differs = history.differing_apps(found, now).any(|(_, version)| version != AppVersion::Loading);
            if superseded.saturating_add(LOADING_GRACE_MS) >= now {
                prop_assert!(!differs);
            }
        }
    }
}
