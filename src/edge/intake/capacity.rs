//! The connections that a process may have: as many as its memory takes.

use crate::config::{ServerConfig, name};

/// Connections of a process without a limit of memory.
pub const OPEN_CONNECTIONS_MAX: usize = 100_000;

/// Fewest connections of a process, however small its memory.
const OPEN_CONNECTIONS_MIN: u64 = 256;

/// Memory that a process takes without connections, with its queues and the budget for unfinished input.
const BASE_MEMORY_BYTES: u64 = 64 << 20;

/// Memory of one connection: 11 KiB of an idle WebSocket as measured, and room for its channels and frames.
const CONNECTION_MEMORY_BYTES: u64 = 20 << 10;

/// A source address may have one of so many parts of the process's connections.
const SOURCE_SHARE_DIVISOR: usize = 4;

/// Connections of the listener beyond the sessions, so that a full process still answers health checks and backends.
const SPARE_CONNECTIONS: usize = 64;

/// The connections that a process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessCapacity {
    /// Bounds the open sessions, over all transports.
    pub sessions: usize,
    /// Bounds the connections of the public listener.
    pub connections: usize,
    /// Bounds the connections of the public listener from one source address.
    pub source_connections: usize,
}

impl ProcessCapacity {
    /// The capacity that the variable sets, or else the one that the limit of the memory allows.
    pub fn from_values(values: &ServerConfig, memory_limit: Option<u64>) -> Self {
        match values.number(name::CONNECTIONS_MAX) {
            0 => Self::of_memory(memory_limit),
            sessions => Self::of_sessions(usize::try_from(sessions).unwrap_or(OPEN_CONNECTIONS_MAX)),
        }
    }

    fn of_memory(limit: Option<u64>) -> Self {
        let fitting = |limit: u64| limit.saturating_sub(BASE_MEMORY_BYTES) / CONNECTION_MEMORY_BYTES;
        let sessions = limit.map(|limit| fitting(limit).max(OPEN_CONNECTIONS_MIN));
        let sessions = sessions.and_then(|sessions| usize::try_from(sessions).ok()).unwrap_or(OPEN_CONNECTIONS_MAX);
        Self::of_sessions(sessions.min(OPEN_CONNECTIONS_MAX))
    }

    fn of_sessions(sessions: usize) -> Self {
        let connections = sessions + sessions / 8 + SPARE_CONNECTIONS;
        Self { sessions, connections, source_connections: connections.div_ceil(SOURCE_SHARE_DIVISOR) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_decides_how_many_connections_there_are() {
        for (limit, sessions) in [
            (None, 100_000),
            (Some(1 << 40), 100_000),
            (Some(256 << 20), 9_830),
            (Some(128 << 20), 3_276),
            (Some(32 << 20), 256),
        ] {
            assert_eq!(ProcessCapacity::of_memory(limit).sessions, sessions, "{limit:?}");
        }
        let small = ProcessCapacity::of_sessions(8);
        assert_eq!((small.connections, small.source_connections), (73, 19));
    }
}
