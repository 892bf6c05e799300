//! Leases, grace periods and TTLs of the bus in Redis.

use std::time::Duration;

/// Lease, renewal and grace periods of one bus.
#[derive(Clone, Copy, Debug)]
pub struct BusTiming {
    /// TTL of a process's lease; a process without a lease is dead.
    pub lease_ttl: Duration,
    /// Time between two renewals of the lease.
    pub renew_interval: Duration,
    /// Time after a loss of the store's data in which every process re-registers its connections and no transition is
    /// published.
    pub settling_period: Duration,
    /// Least age of the process's connection to the store, and of the store's data, before it sweeps a dead process.
    pub sweep_grace: Duration,
}

impl BusTiming {
    /// The timing of edges in production.
    pub const EDGE_DEFAULTS: Self = Self {
        lease_ttl: Duration::from_secs(10),
        renew_interval: Duration::from_secs(3),
        settling_period: Duration::from_secs(5),
        sweep_grace: Duration::from_secs(15),
    };
}
