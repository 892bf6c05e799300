//! Turns manifests into the objects that should exist: generate credentials, validate, render. Pure.
//!
//! In: manifests, the Secrets that they reference, and a source of random text. Out: typed Kubernetes objects with the
//! variables of every server in their pod templates, or problems with path and remedy. [`validate()`] turns manifests into
//! a [`ValidCluster`], and no code after it reads a manifest again.
//!
//! The operator applies the rendered objects, `realtime render` prints them, and a rehearsal runs them: servers are
//! configured in no other way. This room must not know clients.

mod app_credentials;
mod apps;
mod cluster;
mod credentials;
mod environment;
mod estimate;
pub mod expose;
mod image_reference;
mod injected_identity;
mod known_injectors;
mod kubernetes_names;
pub mod manifest;
mod name_pattern;
pub mod network_policy;
mod platform_policy;
mod pod_fields;
mod pod_settings;
mod problem;
mod receiver;
pub mod render;
mod secret_copies;
mod secret_references;
mod server_image;
pub mod stream_cost;
mod stream_goal;
mod validate;
mod webhook_endpoints;

pub use app_credentials::{
    AppCredentials, CredentialsRefusal, CredentialsStep, GeneratedPair, app_credentials_name, app_owner_reference,
    cluster_pair_purposes, find_cluster_pair, recall_app_credentials, recall_pairs, render_app_credentials,
};
pub use cluster::{
    AwsIdentity, DeadLetterStream, DispatcherSettings, EdgeSettings, GateSettings, LoadBalancerSettings, ProbeApp,
    RoleArns, ServerRole, ServerVariable, SockjsSettings, ValidCluster, ValidServer, ValidStream,
};
pub use credentials::{ClusterCredentials, generate_all_credentials, generate_credentials};
pub use environment::{MissingReference, PodFacts, resolve_variables, template_variables};
pub use estimate::estimate_rollout;
pub use expose::{DrainPhases, find_published_hosts};
pub use injected_identity::list_injected_variables;
pub use known_injectors::{KnownInjectors, SHIPPED_INJECTORS};
pub use manifest::{InputError, Manifests};
pub use platform_policy::{PlatformPolicy, PolicyFileError};
pub use pod_fields::{FieldKind, JsonField, PodField, list_pod_fields, template_digest};
pub use pod_settings::{ServerAccount, ServerPods};
pub use problem::{ManifestProblem, RefusalCause, RefusedApp};
pub use receiver::{OPERATOR_NAMESPACE, RECEIVER_PORT, RECEIVER_SERVICE, receiver_address};
pub use render::{DesiredObjects, render_objects};
pub use secret_copies::SecretCopy;
pub use secret_references::{
    RedisReferences, SecretReaders, SecretReference, SecretTexts, add_stand_ins, app_secret_names,
    collect_secret_references, decode_secret, header_secret_names, trim_texts,
};
pub use server_image::ServerImage;
pub use stream_goal::{StreamCapacity, StreamGoal};
pub use validate::{ClusterInputs, StreamIdentity, validate, validate_stream};

#[cfg(test)]
pub(crate) use pod_fields::tests as pod_fields_fixture;
