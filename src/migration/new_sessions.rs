//! New sessions of clients: the edges count those that they opened since their start, and two readings of the counts have
//! those between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::ServerKind;

/// Counts of a cluster's edges at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionSnapshot {
    /// Time of the reading, in ms since 1970.
    pub at_ms: u64,
    /// Sessions of clients that each process opened since its start, by the id of the process and the server whose transports
    /// carry them. Those of an operator's journeys are not counted.
    pub processes: BTreeMap<String, BTreeMap<ServerKind, u64>>,
}

/// New sessions within a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSessions {
    /// Number of sessions that were opened.
    pub count: u64,
    /// The time, in ms; above 0.
    pub within_ms: u64,
}

impl SessionSnapshot {
    /// Sessions of a server that were opened after a former reading; `None` if that is not older. Those of a process that ended
    /// in between are counted to the former reading only, and those of one that began since its start.
    #[must_use]
    pub fn count_since(&self, former: &Self, server: ServerKind) -> Option<NewSessions> {
        let within_ms = self.at_ms.checked_sub(former.at_ms).filter(|within| *within > 0)?;
        let opened = |counts: &BTreeMap<ServerKind, u64>| counts.get(&server).copied().unwrap_or_default();
        let new = |(process, counts): (&String, &BTreeMap<ServerKind, u64>)| {
            let before = former.processes.get(process).map(opened).unwrap_or_default();
            opened(counts).saturating_sub(before)
        };
        Some(NewSessions { count: self.processes.iter().map(new).sum(), within_ms })
    }
}

impl NewSessions {
    /// New sessions at one cluster and at both in the time of `self`, which are those of the other. `None` without any.
    #[must_use]
    pub fn compare_with(self, target: Self) -> Option<(u64, u64)> {
        let scaled = u128::from(target.count) * u128::from(self.within_ms) / u128::from(target.within_ms.max(1));
        let scaled = u64::try_from(scaled).unwrap_or(u64::MAX);
        let all = scaled.saturating_add(self.count);
        (all > 0).then_some((scaled, all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ms: u64, processes: &[(&str, u64)]) -> SessionSnapshot {
        let counts = |opened: u64| [(ServerKind::Sockjs, opened), (ServerKind::Websocket, 9 * opened)].into();
        let processes = processes.iter().map(|(process, opened)| ((*process).to_owned(), counts(*opened)));
        SessionSnapshot { at_ms, processes: processes.collect() }
    }

    #[test]
    fn two_readings_have_the_sessions_between_them_also_over_a_restart() {
        let former = reading(1_000, &[("a", 10), ("b", 20), ("gone", 500)]);
        for (case, latest, expected) in [
            ("the same processes", reading(61_000, &[("a", 15), ("b", 20)]), Some((5, 60_000))),
            ("one that began", reading(61_000, &[("a", 15), ("b", 22), ("new", 4)]), Some((11, 60_000))),
            ("the same time", reading(1_000, &[("a", 15)]), None),
            ("an older one", reading(900, &[("a", 15)]), None),
        ] {
            let found = latest.count_since(&former, ServerKind::Sockjs);
            assert_eq!(found.map(|new| (new.count, new.within_ms)), expected, "{case}");
        }
        let json = serde_json::to_string(&former).expect("JSON");
        assert_eq!(serde_json::from_str::<SessionSnapshot>(&json).ok(), Some(former));
    }

    #[test]
    fn the_target_is_compared_within_the_time_of_the_source() {
        let new = |count, within_ms| NewSessions { count, within_ms };
        assert_eq!(new(30, 60_000).compare_with(new(15, 30_000)), Some((30, 60)));
        assert_eq!(new(30, 60_000).compare_with(new(0, 50_000)), Some((0, 30)));
        assert_eq!(new(0, 60_000).compare_with(new(7, 60_000)), Some((7, 7)));
        assert_eq!(new(0, 60_000).compare_with(new(0, 60_000)), None, "nobody connects");
    }
}
