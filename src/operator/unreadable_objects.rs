//! Objects that this version of the operator cannot read: they are kept from the controllers, which go on with all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc;

use crate::process::locks::lock_unpoisoned;

/// Reports that may wait; one that finds no room is made with the object's next change.
const REPORT_QUEUE_LEN: usize = 256;

/// The state of an object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct UnreadableState {
    generation: Option<i64>,
    error: String,
}

/// Kind, namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectName {
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// A report of one object.
#[derive(Debug)]
pub struct UnreadableReport {
    pub object: ObjectName,
    pub error: String,
}

/// The objects that cannot be read. Cheap to clone.
#[derive(Clone)]
pub struct UnreadableObjects {
    known: Arc<Mutex<HashMap<ObjectName, UnreadableState>>>,
    reports: mpsc::Sender<UnreadableReport>,
}

/// The effect of an object that was readable before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastVersion {
    /// The last readable version stays in force.
    Kept,
    /// The object counts as removed.
    Removed,
}

impl UnreadableObjects {
    /// Starts without objects; reports go to the receiver.
    pub fn new() -> (Self, mpsc::Receiver<UnreadableReport>) {
        let (reports, receiver) = mpsc::channel(REPORT_QUEUE_LEN);
        (Self { known: Arc::default(), reports }, receiver)
    }

    /// Names of the objects of a kind in a namespace.
    pub fn names_of<K: Resource<DynamicType = ()>>(&self, namespace: &str) -> Vec<String> {
        let kind = K::kind(&());
        let known = self.lock();
        let found = known.keys().filter(|object| object.kind == kind && object.namespace == namespace);
        found.map(|object| object.name.clone()).collect()
    }

    fn note_unreadable(&self, object: ObjectName, generation: Option<i64>, error: String) {
        let state = UnreadableState { generation, error: error.clone() };
        if self.lock().insert(object.clone(), state.clone()) == Some(state) {
            return;
        }
        let ObjectName { kind, namespace, name } = &object;
        tracing::error!(kind, namespace, name, error, "object cannot be read by this version");
        if let Err(error) = self.reports.try_send(UnreadableReport { object, error }) {
            let object = match error {
                mpsc::error::TrySendError::Full(report) | mpsc::error::TrySendError::Closed(report) => report.object,
            };
            // The next change of the object, or the next listing, reports it again.
            self.lock().remove(&object);
        }
    }

    fn note_readable(&self, object: &ObjectName) {
        self.lock().remove(object);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectName, UnreadableState>> {
        lock_unpoisoned(&self.known)
    }
}

fn name_object<K: Resource<DynamicType = ()>>(metadata: &ObjectMeta) -> ObjectName {
    ObjectName {
        kind: K::kind(&()).into_owned(),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// Passes on the readable objects of a watch. `find` looks up the last readable version by namespace and name.
pub fn keep_readable<K>(
    events: impl Stream<Item = Result<Event<DeserializeGuard<K>>, watcher::Error>> + Send,
    unreadable: UnreadableObjects,
    last_version: LastVersion,
    find: impl Fn(&str, &str) -> Option<K> + Send,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource<DynamicType = ()> + Send,
{
    events.filter_map(move |event| {
        let event = event.map(|event| read_event(event, &unreadable, last_version, &find)).transpose();
        futures::future::ready(event)
    })
}

/// Reads one event; `None` if nothing of it can be passed on.
fn read_event<K: Resource<DynamicType = ()>>(
    event: Event<DeserializeGuard<K>>,
    unreadable: &UnreadableObjects,
    last_version: LastVersion,
    find: impl Fn(&str, &str) -> Option<K>,
) -> Option<Event<K>> {
    let (kind, guard): (fn(K) -> Event<K>, _) = match event {
        Event::Init => return Some(Event::Init),
        Event::InitDone => return Some(Event::InitDone),
        Event::Apply(guard) => (Event::Apply, guard),
        Event::InitApply(guard) => (Event::InitApply, guard),
        Event::Delete(guard) => {
            let object = name_object::<K>(guard.meta());
            unreadable.note_readable(&object);
            return guard.0.ok().or_else(|| find(&object.namespace, &object.name)).map(Event::Delete);
        }
    };
    let object = name_object::<K>(guard.meta());
    let invalid = match guard.0 {
        Ok(readable) => {
            unreadable.note_readable(&object);
            return Some(kind(readable));
        }
        Err(invalid) => invalid,
    };
    let last = find(&object.namespace, &object.name);
    unreadable.note_unreadable(object, invalid.metadata.generation, invalid.error);
    match last_version {
        LastVersion::Kept => last.map(kind),
        // A listing without the object removes it as well.
        LastVersion::Removed => last.map(Event::Delete),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::RealtimeCluster;
    use crate::api::fixture::applied_cluster;
    use kube::ResourceExt;
    use serde_json::{Value, json};

    fn guard(object: &RealtimeCluster, edit: &dyn Fn(&mut Value)) -> DeserializeGuard<RealtimeCluster> {
        let mut value = serde_json::to_value(object).expect("JSON");
        edit(&mut value);
        serde_json::from_value(value).expect("the metadata can be read")
    }

    fn with_future_word(value: &mut Value) {
        value["spec"]["webhooks"]["mode"] = json!("Teleport");
    }

    fn describe(event: Option<Event<RealtimeCluster>>) -> String {
        event.map_or_else(|| "nothing".to_owned(), |event| event.to_string())
    }

    #[test]
    fn an_unreadable_object_stops_nothing_else_and_its_last_version_is_kept_or_removed() {
        let cluster = applied_cluster("");
        let name = cluster.name_any();
        let (unreadable, mut reports) = UnreadableObjects::new();
        let namespace = cluster.namespace().unwrap_or_default();
        let read = |event, last_version, known: bool| {
            describe(read_event(event, &unreadable, last_version, |_, _| known.then(|| cluster.clone())))
        };
        let bad = || guard(&cluster, &with_future_word);
        let good = || guard(&cluster, &|_| {});
        let (kept, removed) = (LastVersion::Kept, LastVersion::Removed);
        assert_eq!(read(Event::InitApply(bad()), kept, false), "nothing");
        assert_eq!(unreadable.names_of::<RealtimeCluster>(&namespace), std::slice::from_ref(&name));
        assert_eq!(read(Event::InitApply(bad()), kept, true), format!("InitApply({name})"));
        assert_eq!(read(Event::Apply(bad()), kept, true), format!("Apply({name})"));
        assert_eq!(read(Event::Apply(bad()), removed, true), format!("Delete({name})"));
        assert_eq!(read(Event::Apply(bad()), removed, false), "nothing");
        let report = reports.try_recv().expect("a report");
        assert!(report.error.contains("Teleport"), "{}", report.error);
        assert!(reports.try_recv().is_err(), "one state is reported once");
        assert_eq!(read(Event::Apply(good()), removed, true), format!("Apply({name})"));
        assert!(unreadable.names_of::<RealtimeCluster>(&namespace).is_empty(), "it was corrected");
        assert_eq!(read(Event::Apply(bad()), removed, false), "nothing");
        assert_eq!(read(Event::Delete(bad()), removed, false), "nothing");
        assert!(unreadable.names_of::<RealtimeCluster>(&namespace).is_empty(), "it was deleted");
        assert_eq!(read(Event::Init, removed, false), "Init");
    }
}
