//! Moves of transports between clusters, as their `RealtimeMigration`s ask for.
//!
//! In: moves, the verdicts of the target's prober, the snapshot of the source, and the answers of the zone's servers. Out: the
//! weight of the target's record, and a status. The decisions are those of [`crate::migration::track`]; each turn stores
//! them before it carries one out, so that a turn that ends anywhere is continued by the next.
//!
//! This place must not know how a cluster is proven or rendered, nor wait for a DNS server within a turn.

mod answers;
mod controller;
mod observation;
mod publisher;
mod record;
mod record_writers;
mod sessions;
mod share_meter;
mod snapshot_reader;
mod source;
mod target_watch;
#[cfg(test)]
mod test_api;
#[cfg(test)]
mod test_context;
#[cfg(test)]
mod test_zone;
mod turn;
mod zone_reader;
mod zone_sampler;

pub use controller::run_moves;
pub use publisher::run_publisher;
pub use target_watch::run_target_watch;
pub use zone_reader::ZoneReader;
