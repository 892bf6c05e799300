//! Watches that do not stay silent: one whose connection is dead is opened anew, after a back-off of its own.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::Api;
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::scope::WatchRange;

/// Longest silence of a watch or a listing before it is opened anew. The API server sends a bookmark every minute, so a
/// connection that is silent for longer is dead.
pub const WATCH_SILENCE_TIMEOUT: Duration = Duration::from_secs(90);

/// Duration that a watch asks the API server for: kube opens a watch anew that was silent for 5 s longer.
const WATCH_REQUEST_TIMEOUT: Duration = Duration::from_secs(85);

/// First and longest back-off after an error; it doubles with each error until an event arrives.
const WATCH_MIN_BACKOFF: Duration = Duration::from_millis(800);
const WATCH_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Builds the API of a kind in a range: a watch of one namespace needs no permission in another.
#[must_use]
pub fn build_api<K>(client: &Client, range: &WatchRange) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match range {
        WatchRange::All => Api::all(client.clone()),
        WatchRange::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
    }
}

/// Opens a watch of a kind; `Api<PartialObjectMeta<K>>` watches metadata only. An error is followed by a back-off that
/// belongs to this stream alone, so that a kind which cannot be watched delays no other. The stream never ends. The
/// silence of an open request is bounded by the read timeout of the client for watches.
pub fn open_watch<K>(api: Api<K>, config: Config) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let seconds = u32::try_from(WATCH_REQUEST_TIMEOUT.as_secs()).unwrap_or(u32::MAX);
    let config = config.timeout(seconds);
    let kind = api.resource_url().to_owned();
    keep_open(kind, move || watcher(api.clone(), config.clone()))
}

/// A watch that is kept open.
struct KeptWatch<S, O> {
    kind: String,
    open: O,
    events: Pin<Box<S>>,
    /// Whether a listing is under way.
    is_listing: bool,
    /// The back-off before the next event, and after the next error.
    wait: Duration,
    backoff: Duration,
}

/// Opens a stream of events anew when its listing makes no progress, and waits after an error. kube bounds the silence of
/// a watch and not that of a listing, and its own back-off begins anew with the `Init` before each failed listing.
fn keep_open<K, E, S>(kind: String, open: impl Fn() -> S + Send) -> impl Stream<Item = Result<Event<K>, E>> + Send
where
    K: Send,
    E: Send,
    S: Stream<Item = Result<Event<K>, E>> + Send,
{
    let events = Box::pin(open());
    let watch = KeptWatch { kind, open, events, is_listing: true, wait: Duration::ZERO, backoff: WATCH_MIN_BACKOFF };
    futures::stream::unfold(watch, |mut watch| async move {
        tokio::time::sleep(std::mem::take(&mut watch.wait)).await;
        let event = loop {
            if !watch.is_listing {
                break watch.events.next().await;
            }
            if let Ok(event) = timeout(WATCH_SILENCE_TIMEOUT, watch.events.next()).await {
                break event;
            }
            tracing::warn!(kind = watch.kind, "listing timed out: opening the watch again");
            watch.events = Box::pin((watch.open)());
        }?;
        match event {
            Ok(Event::Init) => watch.is_listing = true,
            Ok(Event::InitDone) => watch.is_listing = false,
            Ok(_) => {}
            Err(_) => {
                watch.wait = watch.backoff.mul_f64(rand::random_range(1.0..1.25));
                watch.backoff = (watch.backoff * 2).min(WATCH_BACKOFF_MAX);
            }
        }
        if !matches!(event, Err(_) | Ok(Event::Init)) {
            watch.backoff = WATCH_MIN_BACKOFF;
        }
        Some((event, watch))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::body::Body;
    use axum::extract::RawQuery;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use axum::routing::get;
    use bytes::Bytes;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;
    use tokio::time::Instant;

    type Requests = Arc<Mutex<Vec<String>>>;

    /// An API whose server answers a request by its number, from 0, and its query.
    fn api_server(
        answer: impl Fn(usize, &str) -> Response + Clone + Send + Sync + 'static,
    ) -> (Api<ConfigMap>, Requests) {
        let requests = Requests::default();
        let known = requests.clone();
        let serve = move |RawQuery(query): RawQuery| {
            let query = query.unwrap_or_default();
            let mut requests = known.lock().expect("the requests");
            requests.push(query.clone());
            let response = answer(requests.len() - 1, &query);
            async move { response }
        };
        let router = Router::new().route("/api/v1/configmaps", get(serve));
        (Api::all(kube::Client::new(router, "default")), requests)
    }

    fn list() -> Response {
        let list =
            json!({ "apiVersion": "v1", "kind": "ConfigMapList", "metadata": { "resourceVersion": "7" }, "items": [] });
        axum::Json(list).into_response()
    }

    fn event(kind: &str, version: &str) -> Bytes {
        let metadata = json!({ "name": "a", "namespace": "n", "resourceVersion": version });
        let event =
            json!({ "type": kind, "object": { "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata } });
        Bytes::from(format!("{event}\n"))
    }

    /// A response that begins with these events and stays open without another byte.
    fn silent_after(events: Vec<Bytes>) -> Response {
        let begin = futures::stream::iter(events.into_iter().map(Ok::<_, Infallible>));
        Response::new(Body::from_stream(begin.chain(futures::stream::pending())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_opened_anew_after_90_s_where_its_last_bookmark_was() {
        let (api, requests) = api_server(|number, _| match number {
            0 => list(),
            1 => silent_after(vec![event("BOOKMARK", "9")]),
            _ => silent_after(vec![event("ADDED", "10")]),
        });
        let mut events = std::pin::pin!(open_watch(api, Config::default()));
        assert!(matches!(events.next().await, Some(Ok(Event::Init))));
        assert!(matches!(events.next().await, Some(Ok(Event::InitDone))));
        let began = Instant::now();
        let found = events.next().await;
        assert!(
            matches!(&found, Some(Ok(Event::Apply(object))) if object.metadata.name.as_deref() == Some("a")),
            "{found:?}"
        );
        assert_eq!(began.elapsed().as_secs(), WATCH_SILENCE_TIMEOUT.as_secs());
        let requests = requests.lock().expect("the requests");
        assert!(
            requests[1].contains("resourceVersion=7") && requests[1].contains("timeoutSeconds=85"),
            "{}",
            requests[1]
        );
        assert!(requests[2].contains("resourceVersion=9"), "{}", requests[2]);
        assert!(requests.iter().skip(1).all(|query| query.contains("allowWatchBookmarks=true")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_without_progress_is_begun_anew() {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let open = move || {
            let stalls = count.fetch_add(1, Ordering::Relaxed) == 0;
            let events = futures::stream::iter(if stalls {
                vec![Ok::<_, Infallible>(Event::Init), Ok(Event::InitApply(1))]
            } else {
                vec![Ok(Event::Init), Ok(Event::InitApply(2)), Ok(Event::InitDone)]
            });
            events.chain(futures::stream::pending())
        };
        let mut events = std::pin::pin!(keep_open("numbers".to_owned(), open));
        let began = Instant::now();
        let mut seen = Vec::new();
        while seen.last() != Some(&"done".to_owned()) {
            seen.push(match events.next().await {
                Some(Ok(Event::Init)) => "init".to_owned(),
                Some(Ok(Event::InitApply(number))) => format!("item {number}"),
                Some(Ok(Event::InitDone)) => "done".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(seen, ["init", "item 1", "init", "item 2", "done"]);
        assert_eq!(began.elapsed(), WATCH_SILENCE_TIMEOUT);
        let silent = timeout(10 * WATCH_SILENCE_TIMEOUT, events.next()).await;
        assert!(silent.is_err(), "a complete listing may be silent");
        assert_eq!(opened.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_watch_backs_off_and_goes_on_while_another_is_not_delayed() {
        let (refused, requests) = api_server(|number, _| match number {
            0..5 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            5 => list(),
            _ => silent_after(vec![event("ADDED", "8")]),
        });
        let (healthy, _) =
            api_server(|number, _| if number == 0 { list() } else { silent_after(vec![event("ADDED", "8")]) });
        let until_applied = |api: Api<ConfigMap>| async move {
            let began = Instant::now();
            let mut events = std::pin::pin!(open_watch(api, Config::default()));
            let mut errors = 0;
            loop {
                match events.next().await.expect("the stream never ends") {
                    Ok(Event::Apply(_)) => return (errors, began.elapsed()),
                    Ok(_) => {}
                    Err(_) => errors += 1,
                }
            }
        };
        let (slow, fast) = tokio::join!(until_applied(refused), until_applied(healthy));
        assert_eq!((slow.0, fast.0), (5, 0));
        // 0.8 s, doubled four times, and a jitter of up to a quarter.
        assert!((24..=31).contains(&slow.1.as_secs()), "{:?}", slow.1);
        assert_eq!(fast.1.as_secs(), 0);
        assert_eq!(requests.lock().expect("the requests").len(), 7);
    }
}
