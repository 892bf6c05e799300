//! The live objects of one kind as a watch reports them, by namespace and name: controllers read them instead of listing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use kube::ResourceExt;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::kubernetes::scope::WatchRange;

/// Objects of one namespace, by name.
type NamespaceObjects<K> = BTreeMap<String, Arc<K>>;

/// The objects of one kind.
#[derive(Debug)]
pub struct ObjectIndex<K> {
    objects: RwLock<IndexedObjects<K>>,
    listed: ListedRanges,
}

#[derive(Debug)]
struct IndexedObjects<K> {
    current: HashMap<String, NamespaceObjects<K>>,
    /// The objects of the listings that are not complete yet, each of one watch.
    listings: HashMap<WatchRange, HashMap<String, NamespaceObjects<K>>>,
}

impl<K> Default for ObjectIndex<K> {
    fn default() -> Self {
        let objects = RwLock::new(IndexedObjects { current: HashMap::new(), listings: HashMap::new() });
        Self { objects, listed: ListedRanges::default() }
    }
}

/// The watches of one kind whose first listing is complete: before it, a missing object says nothing.
#[derive(Debug, Default)]
pub struct ListedRanges(watch::Sender<HashSet<WatchRange>>);

impl ListedRanges {
    /// Notes a complete listing.
    pub fn note_listed(&self, range: &WatchRange) {
        self.0.send_if_modified(|listed| listed.insert(range.clone()));
    }

    /// Whether the objects of a namespace are listed.
    pub fn covers(&self, namespace: &str) -> bool {
        self.0.borrow().iter().any(|range| range.contains(namespace))
    }

    /// Waits for the first complete listing of a watch.
    pub async fn wait_until_listed(&self, range: &WatchRange) {
        // The sender lives in this object, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|listed| listed.contains(range)).await;
    }
}

/// A change of one object: at least one side is present.
#[derive(Clone, Debug)]
pub struct ObjectChange<K> {
    /// The object before the change; `None` for a new one.
    pub before: Option<Arc<K>>,
    /// The object after the change; `None` for a deleted one.
    pub after: Option<Arc<K>>,
}

impl<K> ObjectChange<K> {
    /// The object in its newest state.
    pub fn object(&self) -> Option<&Arc<K>> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

impl<K: ResourceExt> ObjectIndex<K> {
    /// Applies an event of the watch of a range; returns the objects that changed.
    pub fn apply_event(&self, range: &WatchRange, event: Event<K>) -> Vec<ObjectChange<K>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                let object = Arc::new(object);
                let before = insert_object(&mut objects.current, object.clone());
                vec![ObjectChange { before, after: Some(object) }]
            }
            Event::Delete(object) => {
                let before = remove_object(&mut objects.current, &object).unwrap_or_else(|| Arc::new(object));
                vec![ObjectChange { before: Some(before), after: None }]
            }
            Event::Init => {
                objects.listings.insert(range.clone(), HashMap::new());
                vec![]
            }
            Event::InitApply(object) => {
                insert_object(objects.listings.entry(range.clone()).or_default(), Arc::new(object));
                vec![]
            }
            Event::InitDone => {
                let listing = objects.listings.remove(range).unwrap_or_default();
                let former = objects.current.extract_if(|namespace, _| range.contains(namespace)).collect();
                let changed = find_changes(&former, &listing);
                objects.current.extend(listing);
                drop(objects);
                self.listed.note_listed(range);
                changed
            }
        }
    }

    /// Whether the objects of a namespace are listed.
    pub fn covers(&self, namespace: &str) -> bool {
        self.listed.covers(namespace)
    }

    /// Waits for the first complete listing of a watch.
    pub async fn wait_until_listed(&self, range: &WatchRange) {
        self.listed.wait_until_listed(range).await;
    }

    /// The object of that name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.current.get(namespace)?.get(name).cloned()
    }

    /// The objects of all namespaces that fulfil a condition.
    pub fn find_all(&self, fulfils: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let found = objects.current.values().flat_map(BTreeMap::values);
        found.filter(|object| fulfils(object)).cloned().collect()
    }

    /// The objects of a namespace that fulfil a condition, in the order of their names.
    pub fn find(&self, namespace: &str, fulfils: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let found = objects.current.get(namespace).into_iter().flat_map(BTreeMap::values);
        found.filter(|object| fulfils(object)).cloned().collect()
    }
}

fn insert_object<K: ResourceExt>(objects: &mut HashMap<String, NamespaceObjects<K>>, object: Arc<K>) -> Option<Arc<K>> {
    objects.entry(object.namespace().unwrap_or_default()).or_default().insert(object.name_any(), object)
}

fn remove_object<K: ResourceExt>(objects: &mut HashMap<String, NamespaceObjects<K>>, object: &K) -> Option<Arc<K>> {
    let namespace = object.namespace().unwrap_or_default();
    let names = objects.get_mut(&namespace)?;
    let removed = names.remove(&object.name_any());
    if names.is_empty() {
        objects.remove(&namespace);
    }
    removed
}

/// Objects that a new listing adds, changes, or lacks.
fn find_changes<K: ResourceExt>(
    former: &HashMap<String, NamespaceObjects<K>>,
    current: &HashMap<String, NamespaceObjects<K>>,
) -> Vec<ObjectChange<K>> {
    let find = |objects: &HashMap<String, NamespaceObjects<K>>, wanted: &K| {
        objects.get(&wanted.namespace().unwrap_or_default())?.get(&wanted.name_any()).cloned()
    };
    let is_same = |before: &Arc<K>, after: &K| {
        before.uid() == after.uid() && before.resource_version() == after.resource_version()
    };
    let listed = current.values().flat_map(BTreeMap::values).filter_map(|after| {
        let before = find(former, after);
        let same = before.as_ref().is_some_and(|before| is_same(before, after));
        (!same).then(|| ObjectChange { before, after: Some(after.clone()) })
    });
    let removed = former.values().flat_map(BTreeMap::values).filter(|object| find(current, object).is_none());
    listed.chain(removed.map(|object| ObjectChange { before: Some(object.clone()), after: None })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(namespace: &str, name: &str, version: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": namespace, "name": name, "resourceVersion": version, "uid": name },
        }))
        .expect("a pod")
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<String> {
        pods.iter().map(|pod| format!("{} {}", pod.name_any(), pod.resource_version().unwrap_or_default())).collect()
    }

    #[test]
    fn objects_are_found_by_namespace_and_name() {
        let index = ObjectIndex::default();
        index.apply_event(&WatchRange::All, Event::Apply(pod("a", "p1", "1")));
        index.apply_event(&WatchRange::All, Event::Apply(pod("a", "p2", "2")));
        index.apply_event(&WatchRange::All, Event::Apply(pod("b", "p1", "3")));
        assert_eq!(names(&index.find("a", |_| true)), ["p1 1", "p2 2"]);
        assert_eq!(names(&index.find("a", |pod| pod.name_any() == "p2")), ["p2 2"]);
        assert_eq!(index.get("b", "p1").and_then(|pod| pod.resource_version()), Some("3".to_owned()));
        let changed = index.apply_event(&WatchRange::All, Event::Apply(pod("b", "p1", "4")));
        let versions = |object: &Option<Arc<Pod>>| object.as_ref().and_then(|pod| pod.resource_version());
        assert_eq!((versions(&changed[0].before), versions(&changed[0].after)), (Some("3".into()), Some("4".into())));
        assert!(index.apply_event(&WatchRange::All, Event::Delete(pod("b", "p1", "5")))[0].after.is_none());
        assert!(index.get("b", "p1").is_none());
    }

    #[test]
    fn a_listing_replaces_the_objects_once_it_is_complete() {
        let index = ObjectIndex::default();
        index.apply_event(&WatchRange::All, Event::Apply(pod("a", "kept", "1")));
        index.apply_event(&WatchRange::All, Event::Apply(pod("a", "changed", "2")));
        index.apply_event(&WatchRange::All, Event::Apply(pod("a", "removed", "3")));
        index.apply_event(&WatchRange::All, Event::Init);
        for listed in [pod("a", "kept", "1"), pod("a", "changed", "5"), pod("b", "added", "4")] {
            index.apply_event(&WatchRange::All, Event::InitApply(listed));
        }
        assert_eq!(index.find("a", |_| true).len(), 3, "an incomplete listing changes nothing");
        let reported = index.apply_event(&WatchRange::All, Event::InitDone);
        let objects: Vec<_> = reported.iter().filter_map(|change| change.object().cloned()).collect();
        let mut found = names(&objects);
        found.sort();
        assert_eq!(found, ["added 4", "changed 5", "removed 3"]);
        assert_eq!(names(&index.find("a", |_| true)), ["changed 5", "kept 1"]);
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_first_listing() {
        let index: ObjectIndex<Pod> = ObjectIndex::default();
        let waiting = index.wait_until_listed(&WatchRange::All);
        index.apply_event(&WatchRange::All, Event::Init);
        index.apply_event(&WatchRange::All, Event::InitDone);
        tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await.expect("the listing is complete");
    }

    #[tokio::test]
    async fn a_listing_of_one_namespace_replaces_no_object_of_another() {
        let index = ObjectIndex::default();
        let range = |namespace: &str| WatchRange::Namespace(namespace.to_owned());
        for (namespace, name) in [("a", "p1"), ("b", "p2")] {
            index.apply_event(&range(namespace), Event::Init);
            index.apply_event(&range(namespace), Event::InitApply(pod(namespace, name, "1")));
        }
        index.apply_event(&range("a"), Event::InitDone);
        assert_eq!(names(&index.find_all(|_| true)), ["p1 1"], "the listing of b is not complete");
        assert_eq!((index.listed.covers("a"), index.listed.covers("b")), (true, false));
        index.apply_event(&range("b"), Event::InitDone);
        index.apply_event(&range("a"), Event::Init);
        let removed = index.apply_event(&range("a"), Event::InitDone);
        assert_eq!(removed.iter().filter_map(|change| change.before.as_ref()).count(), 1);
        assert_eq!(names(&index.find_all(|_| true)), ["p2 1"]);
        index.wait_until_listed(&range("b")).await;
    }
}
