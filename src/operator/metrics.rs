//! The metrics that an operator exports.

use crate::kubernetes::lease::Leadership;
use crate::process::metrics::{SampledGauge, metric_table};

metric_table! {
    /// All metrics of an operator.
    pub struct OperatorMetrics of "operator" {
        /// Leadership leases that this replica holds: 1 on the replica that writes, 0 on the others.
        held_leases: SampledGauge => "Over all replicas the sum is 1; at 0 for longer than a lease, read the log of each replica.",
    }
}

impl OperatorMetrics {
    /// The metrics of the replica with this leadership.
    #[must_use]
    pub fn new(leadership: Leadership) -> Self {
        Self { held_leases: SampledGauge::new(move || i64::from(leadership.may_write())) }
    }
}
