//! The watch of clusters: one stream for the scope, whether it is one watch of all namespaces or one of each namespace.

use std::collections::HashMap;

use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt};

use super::context::ControllerContext;
use super::object_index::ListedRanges;
use super::unreadable_objects::{LastVersion, keep_readable};
use crate::api::RealtimeCluster;
use crate::kubernetes::scope::WatchRange;
use crate::kubernetes::watch::{build_api, open_watch};

type ClusterEvent = Result<Event<RealtimeCluster>, watcher::Error>;

/// Watches the clusters of the scope, those of a range from the moment when its other kinds are listed: before it, a missing
/// object of a cluster says nothing. `store` holds the clusters as the stream has reported them.
pub fn watch_clusters<'a>(
    client: &Client,
    context: &'a ControllerContext,
    store: &Store<RealtimeCluster>,
) -> impl Stream<Item = ClusterEvent> + Send + 'a {
    let watches = context.scope.ranges().into_iter().map(|range| {
        let events =
            open_watch(build_api::<DeserializeGuard<RealtimeCluster>>(client, &range), watcher::Config::default());
        let readable = store.clone();
        // A prober must not go on with a manifest that is out of date.
        let events = keep_readable(events, context.unreadable.clone(), LastVersion::Removed, move |namespace, name| {
            readable.get(&ObjectRef::new(name).within(namespace)).map(|cluster| (*cluster).clone())
        });
        let events = events.modify(|cluster| cluster.managed_fields_mut().clear());
        let awaited = range.clone();
        let listed = futures::stream::once(async move { context.live.wait_until_listed(&awaited).await });
        // A namespace that cannot be listed delays no other.
        (range, Box::pin(listed.filter_map(|()| async { None }).chain(events)))
    });
    join_ranges(watches.collect(), store.clone(), &context.live.clusters)
}

/// Makes one stream of the watches of several ranges. A complete listing of one range is passed on as a listing of all, with
/// the known clusters of the others, so that the store changes at once and loses none. The range counts as listed once its
/// listing is in the store.
fn join_ranges<'a>(
    watches: Vec<(WatchRange, impl Stream<Item = ClusterEvent> + Send + Unpin + 'a)>,
    store: Store<RealtimeCluster>,
    listed: &'a ListedRanges,
) -> impl Stream<Item = ClusterEvent> + Send + 'a {
    let mut listings: HashMap<WatchRange, Vec<RealtimeCluster>> = HashMap::new();
    let events = watches.into_iter().map(|(range, events)| events.map(move |event| (range.clone(), event)));
    futures::stream::select_all(events).flat_map(move |(range, event)| {
        let mut complete = None;
        let passed = match event {
            Ok(Event::Init) => {
                listings.insert(range, vec![]);
                vec![]
            }
            Ok(Event::InitApply(cluster)) => {
                listings.entry(range).or_default().push(cluster);
                vec![]
            }
            Ok(Event::InitDone) => {
                let listing = listings.remove(&range).unwrap_or_default();
                let others = store.state_filter(|cluster| !range.contains(&cluster.namespace().unwrap_or_default()));
                let known = others.iter().map(|cluster| (**cluster).clone()).chain(listing).map(Event::InitApply);
                complete = Some(range);
                std::iter::once(Event::Init).chain(known).chain([Event::InitDone]).map(Ok).collect()
            }
            event => vec![event],
        };
        // Polled after the store has taken the last of the events.
        let noted = futures::stream::iter(complete).filter_map(move |range| {
            listed.note_listed(&range);
            futures::future::ready(None)
        });
        futures::stream::iter(passed).chain(noted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;
    use kube::runtime::reflector;

    fn cluster(namespace: &str, name: &str) -> RealtimeCluster {
        let mut cluster = applied_cluster("");
        cluster.metadata.namespace = Some(namespace.to_owned());
        cluster.metadata.name = Some(name.to_owned());
        cluster
    }

    #[tokio::test]
    async fn a_listing_of_one_namespace_replaces_its_clusters_and_keeps_those_of_others() {
        let (store, mut writer) = reflector::store::<RealtimeCluster>();
        let listed = ListedRanges::default();
        let range = |namespace: &str| WatchRange::Namespace(namespace.to_owned());
        let listing = |clusters: Vec<RealtimeCluster>| {
            let items = clusters.into_iter().map(Event::InitApply);
            std::iter::once(Event::Init).chain(items).chain([Event::InitDone]).map(Ok).collect::<Vec<ClusterEvent>>()
        };
        let names = || {
            let mut names: Vec<_> = store.state().iter().map(|found| found.name_any()).collect();
            names.sort();
            names
        };
        let (sender, receiver) = tokio::sync::mpsc::channel::<ClusterEvent>(16);
        let later = Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|event| (event, receiver))
        }));
        let first = futures::stream::iter(listing(vec![cluster("a", "a1"), cluster("a", "a2")])).chain(later);
        let second = futures::stream::iter(listing(vec![cluster("b", "b1")])).chain(futures::stream::pending());
        let watches = vec![
            (range("a"), first.boxed()),
            (range("b"), second.boxed()),
            (range("c"), futures::stream::pending().boxed()),
        ];
        let mut events = Box::pin(join_ranges(watches, store.clone(), &listed));
        let mut take_listings = async |count: usize| {
            let mut seen = 0;
            while seen < count {
                let event = events.next().await.expect("an event").expect("no error");
                writer.apply_watcher_event(&event);
                seen += usize::from(matches!(event, Event::InitDone));
            }
        };
        take_listings(2).await;
        assert_eq!(names(), ["a1", "a2", "b1"]);
        for event in listing(vec![cluster("a", "a2")]) {
            sender.send(event).await.expect("a receiver");
        }
        take_listings(1).await;
        assert_eq!(names(), ["a2", "b1"]);
        assert!(listed.covers("a") && listed.covers("b") && !listed.covers("c"));
    }
}
