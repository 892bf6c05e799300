//! Two clusters side by side: snapshots of what each runs, the review of their differences before traffic moves, and the
//! decisions of a move.
//!
//! In: custom resources, workloads and the texts of Secrets, as others have read them; proofs of both clusters and answers of
//! DNS servers. Out: snapshots without a secret in them, findings of which some block a move, and the weights that a record
//! should have. This room must not know clients or clocks, nor how objects are rendered.

mod app_digest;
mod delivery;
mod edge_load;
mod external_dns;
mod fingerprint;
mod markdown;
mod move_snapshot;
mod new_sessions;
mod outline;
mod peer;
mod preparation;
mod record;
mod review;
mod rules;
mod seal;
mod secret_digest;
mod sessions;
mod snapshot;
mod target_watch;
pub mod track;
mod workload;

pub use app_digest::{AppDigest, EndpointDigest, digest_apps};
pub use delivery::DeliverySnapshot;
pub use edge_load::{EdgeLoad, EdgeReport, sum_edge_loads};
pub use external_dns::{ExternalDns, OwnershipRecord, check_owners, check_policy, list_ownership_names};
pub use fingerprint::fingerprint_servers;
pub use markdown::render_markdown;
pub use move_snapshot::MoveSnapshot;
pub use new_sessions::{NewSessions, SessionSnapshot};
pub use outline::{MoveOutline, outline_move, render_outline};
pub use peer::PeerExpectations;
pub use preparation::{SourceConversion, render_conversion};
pub use record::{WeightedRecord, endpoint_name};
pub use review::{MigrationReview, ReviewOptions, review_migration};
pub use rules::{Finding, FindingCode};
pub use seal::SealFault;
pub use secret_digest::{KEY_BYTES_MIN, SecretDigester, ShortKeyError};
pub use sessions::find_session_obstacle;
pub use snapshot::{
    ClusterSnapshot, GateSnapshot, ServerSnapshot, SnapshotOrigin, SnapshotSeal, StreamSnapshot, TransportSnapshot,
    VariableValue,
};
pub use target_watch::{TargetReading, TargetState, TargetVerdict, judge_target};
pub use workload::{EnvironmentTexts, collect_environment_sources, read_server, template_of};
