//! Counts and times the calls to the API server, below kube's client: each request that is sent is counted once.
//!
//! Labels come from the method and the path by fixed tables, so that no object creates a series.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::{Method, Request, Response, StatusCode, Uri};
use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use tower::{Layer, Service};

use crate::process::metrics::{DurationHistogram, LabelValue, SparseLabeled, label_values, metric_table};

label_values! {
    /// The verb of a call, as RBAC names it.
    pub enum ApiVerb as "verb" {
        /// Reads one object by its name.
        Get = "get",
        /// Lists objects of a kind.
        List = "list",
        /// Opens a watch of a kind.
        Watch = "watch",
        /// Creates a new object.
        Create = "create",
        /// Replaces an object as a whole.
        Update = "update",
        /// Changes or applies one object.
        Patch = "patch",
        /// Deletes one object by its name.
        Delete = "delete",
    }
}

label_values! {
    /// The resource of a call, by its plural name.
    pub enum ApiResource as "resource" {
        /// Clusters and their status.
        RealtimeClusters = "realtimeclusters",
        /// Apps and their status.
        RealtimeApps = "realtimeapps",
        /// Pods of the servers and of the operator.
        Pods = "pods",
        /// Deployments of the servers of clusters.
        Deployments = "deployments",
        /// Former and present templates of Deployments.
        ReplicaSets = "replicasets",
        /// Services for clients of the clusters.
        Services = "services",
        /// Ingresses that lead clients to the clusters.
        Ingresses = "ingresses",
        /// Routes of the Gateway API.
        HttpRoutes = "httproutes",
        /// Gateways that routes attach to.
        Gateways = "gateways",
        /// Disruption budgets of the servers.
        PodDisruptionBudgets = "poddisruptionbudgets",
        /// Accounts of the servers.
        ServiceAccounts = "serviceaccounts",
        /// Permissions of the dispatchers.
        Roles = "roles",
        /// Accounts that have these permissions.
        RoleBindings = "rolebindings",
        /// Secrets of users, and copies of them.
        Secrets = "secrets",
        /// Leases of leaders and of shards.
        Leases = "leases",
        /// Route of the webhooks of journeys.
        EndpointSlices = "endpointslices",
        /// Events about clusters and apps.
        Events = "events",
        /// Namespaces, of which one names the Kubernetes cluster.
        Namespaces = "namespaces",
        /// Any resource that is not listed here.
        Other = "other",
    }
}

label_values! {
    /// The result of a call, by the class of the status.
    pub enum ApiCallResult as "result" {
        /// The API server answered with 2xx or 3xx.
        Success = "success",
        /// The API server refused the call (4xx), for example for a missing object or a conflict.
        Refused = "refused",
        /// The API server throttled the call (429).
        Throttled = "throttled",
        /// The API server failed (5xx).
        Failed = "failed",
        /// No answer arrived in time, or the connection failed.
        Unanswered = "unanswered",
    }
}

metric_table! {
    /// The metrics of the calls to the API server.
    pub struct ApiCallMetrics of "operator" {
        /// Calls to the API server, by verb, resource and result.
        api_calls: SparseLabeled<(ApiVerb, ApiResource, ApiCallResult), Counter> =>
            "If `list` grows, watches are opened anew: read the log of the leader. If `throttled` or `failed` grow, look at the API server.",
        /// Time from a call to the head of its answer, by verb and resource, in seconds.
        api_call_duration_seconds: SparseLabeled<(ApiVerb, ApiResource), DurationHistogram> =>
            "Look at the load of the API server and of the network to it.",
    }
}

/// The labels of a request.
fn classify_request(method: &Method, uri: &Uri) -> (ApiVerb, ApiResource) {
    let mut segments = uri.path().split('/').filter(|segment| !segment.is_empty());
    // `/api/v1/…` and `/apis/GROUP/VERSION/…`.
    let prefix = if segments.next() == Some("api") { 1 } else { 2 };
    let path: Vec<&str> = segments.skip(prefix).collect();
    let path = if path.len() > 2 && path[0] == "namespaces" { &path[2..] } else { &path[..] };
    let name = path.first().copied().unwrap_or_default();
    let resource = ApiResource::ALL.iter().copied().find(|resource| resource.name() == name);
    let is_watch =
        uri.query().is_some_and(|query| query.split('&').any(|part| matches!(part, "watch=true" | "watch=1")));
    let verb = match *method {
        Method::POST => ApiVerb::Create,
        Method::PUT => ApiVerb::Update,
        Method::PATCH => ApiVerb::Patch,
        Method::DELETE => ApiVerb::Delete,
        _ if is_watch => ApiVerb::Watch,
        _ if path.len() < 2 => ApiVerb::List,
        _ => ApiVerb::Get,
    };
    (verb, resource.unwrap_or(ApiResource::Other))
}

fn classify_status(status: StatusCode) -> ApiCallResult {
    match status.as_u16() {
        429 => ApiCallResult::Throttled,
        400..=499 => ApiCallResult::Refused,
        500.. => ApiCallResult::Failed,
        _ => ApiCallResult::Success,
    }
}

/// The layer of a client whose calls are counted.
#[derive(Clone, Debug)]
pub struct CallMeterLayer(pub Arc<ApiCallMetrics>);

impl<S> Layer<S> for CallMeterLayer {
    type Service = CallMeter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallMeter { inner, metrics: self.0.clone() }
    }
}

/// A service that counts and times the requests that it forwards.
#[derive(Clone, Debug)]
pub struct CallMeter<S> {
    inner: S,
    metrics: Arc<ApiCallMetrics>,
}

impl<S, A, B> Service<Request<A>> for CallMeter<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let mut call = MeteredCall {
            labels: classify_request(request.method(), request.uri()),
            result: ApiCallResult::Unanswered,
            began: Instant::now(),
            metrics: self.metrics.clone(),
        };
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            if let Ok(response) = &answer {
                call.set_result(classify_status(response.status()));
            }
            answer
        }
        .boxed()
    }
}

/// A call under way. It is counted when it is dropped, so that a cancelled call is counted too.
struct MeteredCall {
    labels: (ApiVerb, ApiResource),
    result: ApiCallResult,
    began: Instant,
    metrics: Arc<ApiCallMetrics>,
}

impl MeteredCall {
    /// A method, since a block that assigned the field would capture a copy of it, and drop the call at once.
    fn set_result(&mut self, result: ApiCallResult) {
        self.result = result;
    }
}

impl Drop for MeteredCall {
    fn drop(&mut self) {
        let (verb, resource) = self.labels;
        self.metrics.api_calls.with_label((verb, resource, self.result)).inc();
        self.metrics.api_call_duration_seconds.with_label(self.labels).observe(self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use k8s_openapi::api::core::v1::{Namespace, Pod};
    use kube::api::{Api, DeleteParams, ListParams};
    use prometheus_client::registry::Registry;

    #[test]
    fn a_request_is_labelled_by_its_method_and_path() {
        use ApiResource::{EndpointSlices, Leases, Namespaces, Other, Pods, RealtimeClusters};
        use ApiVerb::{Create, Delete, Get, List, Patch, Update, Watch};
        let lease = "/apis/coordination.k8s.io/v1/namespaces/o/leases/realtime-operator";
        for (method, uri, expected) in [
            (Method::GET, "/api/v1/namespaces/kube-system", (Get, Namespaces)),
            (Method::GET, "/api/v1/namespaces", (List, Namespaces)),
            (Method::GET, "/api/v1/namespaces/n/pods", (List, Pods)),
            (Method::GET, "/api/v1/pods?&labelSelector=watch%3Dtrue", (List, Pods)),
            (Method::GET, "/api/v1/pods?allowWatchBookmarks=true&watch=true", (Watch, Pods)),
            (Method::PATCH, "/api/v1/namespaces/n/pods/a/status?fieldManager=x", (Patch, Pods)),
            (Method::DELETE, "/api/v1/namespaces/n/pods/a", (Delete, Pods)),
            (Method::GET, "/apis/realtime-operator.dev/v1alpha1/realtimeclusters?limit=1", (List, RealtimeClusters)),
            (Method::PUT, lease, (Update, Leases)),
            (Method::POST, "/apis/discovery.k8s.io/v1/namespaces/o/endpointslices", (Create, EndpointSlices)),
            (Method::GET, "/apis/example.com/v1/namespaces/n/strangers/a", (Get, Other)),
            (Method::GET, "/version", (List, Other)),
        ] {
            let uri: Uri = uri.parse().expect("a path");
            assert_eq!(classify_request(&method, &uri), expected, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn every_call_of_a_client_is_counted_by_the_class_of_its_answer() {
        let pod = |status: u16| get(move || async move { StatusCode::from_u16(status).expect("a status") });
        let hangs = get(|| async { std::future::pending::<StatusCode>().await });
        let router = Router::new()
            .route("/api/v1/namespaces/n/pods/missing", pod(404))
            .route("/api/v1/namespaces/n/pods/busy", pod(429))
            .route("/api/v1/namespaces/n/pods/broken", pod(500))
            .route("/api/v1/namespaces/n/pods/silent", hangs)
            .route(
                "/api/v1/namespaces",
                get(|| async { axum::Json(serde_json::json!({ "metadata": {}, "items": [] })) }),
            );
        let metrics = Arc::new(ApiCallMetrics::default());
        let client = kube::Client::new(CallMeterLayer(metrics.clone()).layer(router), "default");
        let pods: Api<Pod> = Api::namespaced(client.clone(), "n");
        for name in ["missing", "busy", "broken"] {
            assert!(pods.get(name).await.is_err(), "{name}");
        }
        assert!(pods.delete("busy", &DeleteParams::default()).await.is_err(), "405");
        let cancelled = tokio::time::timeout(Duration::from_millis(50), pods.get("silent")).await;
        assert!(cancelled.is_err());
        Api::<Namespace>::all(client).list(&ListParams::default()).await.expect("a list");
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("text");
        for (verb, resource, result) in [
            ("get", "pods", "refused"),
            ("get", "pods", "throttled"),
            ("get", "pods", "failed"),
            ("get", "pods", "unanswered"),
            ("delete", "pods", "refused"),
            ("list", "namespaces", "success"),
        ] {
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\",result=\"{result}\"");
            assert!(page.contains(&format!("realtime_operator_api_calls_total{{{labels}}} 1\n")), "{labels}: {page}");
        }
        let count = "realtime_operator_api_call_duration_seconds_count{verb=\"get\",resource=\"pods\"} 4\n";
        assert!(page.contains(count), "{page}");
    }
}
