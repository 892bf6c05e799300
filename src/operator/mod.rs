//! The operator: reconciles clusters with their manifests, and reports Ready only while journeys prove it.
//!
//! In: `RealtimeCluster`s, `RealtimeApp`s and `RealtimeMigration`s on an API server. Out: their children, a stream, pods that are
//! admitted one by one, weights of DNS records, and a status. Four controllers reconcile clusters, each in a straight line
//! (dereference, generate, validate, render, apply, observe, status), each with its own queue and its own status fields, so that
//! a slow stream stalls no rollout; moves between clusters have turns, in `moves`:
//!
//! - `stream_controller` creates, adopts or observes the stream, and changes its settings
//! - `workload_controller` applies the children and reverts foreign changes
//! - `apps_controller` writes the app registry
//! - `gate_controller` runs journeys, admits pods and sets Ready
//!
//! This room must not know the code of edge and dispatcher: they share `config` alone.

mod account_settling;
mod app_credentials;
mod app_status;
mod apps_controller;
mod cluster_inputs;
mod cluster_probers;
mod cluster_snapshot;
mod cluster_watch;
mod conditions;
mod context;
mod controller_loop;
mod controller_progress;
mod controllers;
mod dead_letter_stream;
mod dereference;
mod endpoint_status;
mod entrance_addresses;
mod exposure_status;
mod external_routes;
mod finalizer;
mod findings;
mod foreign_fields;
mod gate_controller;
mod gate_times;
mod gateways;
mod health;
mod live_difference;
mod live_objects;
mod managed_stream;
mod metrics;
mod missing_identity;
mod moves;
mod name_list;
mod object_index;
mod operator_error;
mod optional_children;
mod own_networks;
mod pod_admission;
mod pod_annotation;
mod pod_audit;
mod pods;
mod receiver;
mod reconcile_error;
mod registry_histories;
mod rendered_clusters;
mod rendering;
mod requested_proof;
mod secret_copies;
mod secret_reader;
mod served_crds;
mod service_routes;
mod start_checks;
mod status;
mod stream_controller;
mod stream_deletion;
mod stream_ownership;
mod stream_plan;
mod stream_request;
mod stream_settings;
mod suspension;
mod unreadable_objects;
mod unreadable_reports;
mod validation;
mod watches;
mod workload_controller;

pub use cluster_inputs::ClusterReferences;
pub use cluster_snapshot::{digest_registry, list_environment_sources, list_registry_secrets, read_owned_servers};
pub use controllers::{LEADER_LEASE_NAME, OperatorSettings, run};
pub use dead_letter_stream::DEAD_LETTER_STREAM_TEXTS;
pub use dereference::generated_secret_name;
pub use gate_controller::compute_fingerprint;
pub use live_difference::{FieldChange, list_field_changes};
pub use managed_stream::{ManagedStream, StreamEvent, StreamFinding, StreamTexts};
pub use metrics::OperatorMetrics;
pub use operator_error::OperatorError;
pub use stream_controller::EVENT_STREAM_TEXTS;
pub use stream_deletion::delete_stream_of;
pub use stream_ownership::StreamOwner;
pub use stream_settings::build_stream_settings;
