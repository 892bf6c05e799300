//! One operator per scope: a leader's Lease carries the namespaces that it watches, and of two live Leases whose scopes
//! overlap the older one wins. Pure: the Leases and the time are arguments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

/// Label of every leader's Lease; its value says whether the scope is all namespaces.
pub const SCOPE_LABEL: &str = "realtime-operator.dev/scope";

/// Annotation with the watched namespaces, separated by commas, of a Lease whose scope is listed.
pub const WATCHED_ANNOTATION: &str = "realtime-operator.dev/watched-namespaces";

/// Value of the label for all namespaces, and for those of the annotation.
const ALL_NAMESPACES: &str = "all";
const LISTED_NAMESPACES: &str = "listed";

/// The namespaces that an operator watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchScope {
    /// Every namespace of the cluster.
    All,
    /// These namespaces and no other.
    Listed(BTreeSet<String>),
}

/// The extent of one watch: a scope has one watch of each kind for all namespaces, or one for each of its namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WatchRange {
    /// Every namespace of the cluster.
    All,
    /// The namespace of this name alone.
    Namespace(String),
}

impl WatchRange {
    /// Whether a namespace is watched.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(watched) => watched == namespace,
        }
    }
}

impl fmt::Display for WatchRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Namespace(namespace) => f.write_str(namespace),
        }
    }
}

impl WatchScope {
    /// The watches of one kind.
    #[must_use]
    pub fn ranges(&self) -> Vec<WatchRange> {
        match self {
            Self::All => vec![WatchRange::All],
            Self::Listed(namespaces) => namespaces.iter().cloned().map(WatchRange::Namespace).collect(),
        }
    }

    /// The scope of a list of namespaces; an empty list means all of them.
    #[must_use]
    pub fn of_namespaces(namespaces: impl IntoIterator<Item = String>) -> Self {
        let namespaces: BTreeSet<String> = namespaces.into_iter().filter(|name| !name.is_empty()).collect();
        if namespaces.is_empty() { Self::All } else { Self::Listed(namespaces) }
    }

    /// Whether an object could be watched by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Listed(ours), Self::Listed(theirs)) => !ours.is_disjoint(theirs),
            _ => true,
        }
    }

    /// The labels of a Lease with this scope.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let value = if *self == Self::All { ALL_NAMESPACES } else { LISTED_NAMESPACES };
        BTreeMap::from([(SCOPE_LABEL.to_owned(), value.to_owned())])
    }

    /// The annotations of a Lease with this scope.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        match self {
            Self::All => BTreeMap::new(),
            Self::Listed(_) => BTreeMap::from([(WATCHED_ANNOTATION.to_owned(), self.to_string())]),
        }
    }

    /// The scope of a Lease. One that cannot be read counts as all namespaces.
    fn of_lease(lease: &Lease) -> Self {
        let is_listed = lease.labels().get(SCOPE_LABEL).is_some_and(|value| value == LISTED_NAMESPACES);
        let listed = lease.annotations().get(WATCHED_ANNOTATION).filter(|_| is_listed);
        Self::of_namespaces(listed.iter().flat_map(|listed| listed.split(',')).map(str::to_owned))
    }
}

impl fmt::Display for WatchScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all namespaces"),
            Self::Listed(namespaces) => f.write_str(&namespaces.iter().cloned().collect::<Vec<_>>().join(",")),
        }
    }
}

/// The Lease of another operator whose scope overlaps ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RivalLease {
    /// Namespace of the Lease and of its operator.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Identity of the holder.
    pub holder: String,
    /// Namespaces that the other operator watches.
    pub scope: WatchScope,
}

impl fmt::Display for RivalLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, holder, scope } = self;
        write!(
            f,
            "another operator watches the same clusters: {holder}, which holds the older Lease {namespace}/{name} and \
             watches {scope}. Uninstall one of the two, or give them namespaces of their own with --watch-namespaces"
        )
    }
}

/// Claim of this operator to its scope, given the Leases of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScopeClaim {
    /// No live Lease overlaps.
    Free,
    /// An older one does: this operator must not lead.
    Yield(RivalLease),
    /// A younger one does, whose operator has to end first.
    Await(RivalLease),
}

/// Remembers when each Lease last changed, by this process's own clock: clocks of other machines are not compared.
#[derive(Debug, Default)]
pub struct LeaseObservations(HashMap<String, (String, Instant)>);

impl LeaseObservations {
    /// Whether the holder of a Lease may still lead: it changed the Lease within `ttl`, or was seen for less than that.
    fn is_live(&mut self, lease: &Lease, now: Instant, ttl: Duration) -> bool {
        let version = lease.resource_version().unwrap_or_default();
        let known = self.0.entry(lease.uid().unwrap_or_default()).or_insert_with(|| (version.clone(), now));
        if known.0 != version {
            *known = (version, now);
        }
        holder_of(lease).is_some() && now.saturating_duration_since(known.1) < ttl
    }
}

fn holder_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// Age of a Lease: the earlier one of two wins, and of two of one second the one with the lesser UID.
fn age_key(lease: &Lease) -> (Option<Timestamp>, String) {
    (lease.metadata.creation_timestamp.as_ref().map(|time| time.0), lease.uid().unwrap_or_default())
}

/// Judges the Leases of all leaders. `own` is namespace and name of this operator's Lease, which is younger than any other
/// while it does not exist.
pub fn judge_leases(
    leases: &[Lease],
    own: (&str, &str),
    scope: &WatchScope,
    observations: &mut LeaseObservations,
    (now, ttl): (Instant, Duration),
) -> ScopeClaim {
    let is_own =
        |lease: &&Lease| (lease.namespace().as_deref(), lease.metadata.name.as_deref()) == (Some(own.0), Some(own.1));
    let ours = leases.iter().find(is_own).map(age_key);
    let mut rivals: Vec<&Lease> = leases
        .iter()
        .filter(|lease| !is_own(lease) && WatchScope::of_lease(lease).overlaps(scope))
        .filter(|lease| observations.is_live(lease, now, ttl))
        .collect();
    rivals.sort_by_key(|lease| age_key(lease));
    let Some(oldest) = rivals.first() else { return ScopeClaim::Free };
    let rival = RivalLease {
        namespace: oldest.namespace().unwrap_or_default(),
        name: oldest.name_any(),
        holder: holder_of(oldest).unwrap_or_default().to_owned(),
        scope: WatchScope::of_lease(oldest),
    };
    if ours.is_some_and(|ours| ours < age_key(oldest)) { ScopeClaim::Await(rival) } else { ScopeClaim::Yield(rival) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TTL: Duration = Duration::from_secs(15);

    fn scope(namespaces: &str) -> WatchScope {
        WatchScope::of_namespaces(namespaces.split(',').map(str::to_owned))
    }

    /// A Lease of the operator in a namespace, created at a second, with the version and the holder given.
    fn lease(namespace: &str, second: u8, watched: &str, holder: &str) -> Lease {
        let scope = scope(watched);
        let lease = json!({
            "metadata": {
                "name": "realtime-operator", "namespace": namespace, "uid": format!("uid-{namespace}"), "resourceVersion": "1",
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
                "labels": scope.labels(), "annotations": scope.annotations(),
            },
            "spec": { "holderIdentity": holder },
        });
        serde_json::from_value(lease).expect("a Lease")
    }

    #[test]
    fn scopes_overlap_when_one_namespace_is_watched_by_both() {
        for (ours, theirs, overlaps) in
            [("", "", true), ("", "a", true), ("a", "", true), ("a,b", "b,c", true), ("a,b", "c", false)]
        {
            assert_eq!(scope(ours).overlaps(&scope(theirs)), overlaps, "{ours} and {theirs}");
        }
        let watched = |namespaces: &str, one: &str| scope(namespaces).ranges().iter().any(|range| range.contains(one));
        assert!(watched("", "a") && watched("a,b", "b") && !watched("a", "b"));
        assert_eq!((scope("").ranges().len(), scope("a,b").ranges().len()), (1, 2));
    }

    #[test]
    fn of_two_operators_of_one_scope_the_older_lease_wins() {
        let own = |second, watched| lease("own", second, watched, "own-1");
        for (name, leases, watched, expected) in [
            ("alone", vec![own(5, "")], "", "free"),
            ("alone and new", vec![], "", "free"),
            ("beside an older one", vec![own(5, ""), lease("other", 4, "", "x")], "", "yield"),
            ("beside a younger one", vec![own(5, ""), lease("other", 6, "", "x")], "", "await"),
            ("new beside any", vec![lease("other", 6, "", "x")], "", "yield"),
            ("of one second, the lesser UID is older", vec![own(5, ""), lease("other", 5, "", "x")], "", "yield"),
            ("of one second, the greater UID is younger", vec![own(5, ""), lease("pwn", 5, "", "x")], "", "await"),
            ("of another scope", vec![own(5, "a"), lease("other", 4, "b", "x")], "a", "free"),
            ("of a scope that overlaps", vec![own(5, "a,b"), lease("other", 4, "b", "x")], "a,b", "yield"),
            ("an older one without a holder", vec![own(5, ""), lease("other", 4, "", "")], "", "free"),
            (
                "between an older and a younger one",
                vec![own(5, ""), lease("young", 6, "", "x"), lease("old", 4, "", "y")],
                "",
                "yield",
            ),
        ] {
            let mut observations = LeaseObservations::default();
            let at = (Instant::now(), TTL);
            let claim = judge_leases(&leases, ("own", "realtime-operator"), &scope(watched), &mut observations, at);
            let found = match &claim {
                ScopeClaim::Free => "free",
                ScopeClaim::Yield(_) => "yield",
                ScopeClaim::Await(_) => "await",
            };
            assert_eq!(found, expected, "{name}: {claim:?}");
        }
    }

    #[test]
    fn a_lease_that_its_holder_has_not_renewed_for_its_ttl_is_no_rival() {
        let (mut observations, now) = (LeaseObservations::default(), Instant::now());
        let mut other = lease("other", 4, "", "x");
        let mut judge = |other: &Lease, after: u64| {
            let at = (now + Duration::from_secs(after), TTL);
            judge_leases(
                std::slice::from_ref(other),
                ("own", "realtime-operator"),
                &WatchScope::All,
                &mut observations,
                at,
            )
        };
        assert!(matches!(judge(&other, 0), ScopeClaim::Yield(_)), "seen for the first time");
        assert!(matches!(judge(&other, 14), ScopeClaim::Yield(_)));
        assert_eq!(judge(&other, 15), ScopeClaim::Free, "not renewed");
        other.metadata.resource_version = Some("2".to_owned());
        assert!(matches!(judge(&other, 16), ScopeClaim::Yield(_)), "renewed");
    }

    #[test]
    fn the_refusal_names_the_other_operator_and_the_remedy() {
        let leases = [lease("other", 4, "b,a", "pod-7")];
        let mut observations = LeaseObservations::default();
        let at = (Instant::now(), TTL);
        let claim = judge_leases(&leases, ("own", "realtime-operator"), &scope(""), &mut observations, at);
        let ScopeClaim::Yield(rival) = claim else { panic!("{claim:?}") };
        let text = rival.to_string();
        for part in ["pod-7", "Lease other/realtime-operator", "watches a,b.", "--watch-namespaces"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
