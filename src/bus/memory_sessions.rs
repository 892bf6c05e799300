//! Session owners, heartbeats and loads of the bus in memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use super::load::{EdgeLoad, LOAD_TTL};
use super::relay::{HeartbeatResponse, LOST_SENDS_MAX, PEER_LEASE_TTL, RelayPeer, SESSION_ENTRY_TTL};

/// Session owners, live processes, and the sessions that lost a message.
#[derive(Default)]
pub(super) struct MemorySessionOwners {
    /// Owner of each session, and the expiry of its entry.
    owners: HashMap<String, (String, Instant)>,
    alive_peers: HashMap<String, (IpAddr, Instant)>,
    lost_sends: HashMap<String, Vec<String>>,
    loads: HashMap<String, (EdgeLoad, Instant)>,
}

impl MemorySessionOwners {
    pub(super) fn record_heartbeat(&mut self, peer: &RelayPeer, now: Instant) -> HeartbeatResponse {
        // Heartbeats are frequent enough to keep expired entries from piling up.
        self.owners.retain(|_, (_, until)| *until > now);
        self.alive_peers.retain(|_, (_, until)| *until > now);
        self.lost_sends.retain(|process, _| self.alive_peers.contains_key(process));
        let known = self.alive_peers.insert(peer.process.clone(), (peer.address, now + PEER_LEASE_TTL)).is_some();
        let found = |(process, (address, _)): (&String, &(IpAddr, Instant))| RelayPeer {
            process: process.clone(),
            address: *address,
        };
        let lost_sends = self.lost_sends.remove(&peer.process).unwrap_or_default();
        HeartbeatResponse {
            peers: self.alive_peers.iter().map(found).collect(),
            was_registered: known,
            sessions_with_lost_sends: lost_sends,
        }
    }

    pub(super) fn exchange_load(&mut self, process: &str, load: &EdgeLoad, now: Instant) -> Vec<EdgeLoad> {
        self.loads.retain(|_, (_, until)| *until > now);
        self.loads.insert(process.to_owned(), (load.clone(), now + LOAD_TTL));
        self.loads.iter().filter(|(other, _)| *other != process).map(|(_, (load, _))| load.clone()).collect()
    }

    pub(super) fn claim_session(&mut self, session: &str, process: &str, now: Instant) -> Option<String> {
        let owner = self.session_owner(session, now);
        if owner.is_none() {
            self.owners.insert(session.to_owned(), (process.to_owned(), now + SESSION_ENTRY_TTL));
        }
        owner
    }

    pub(super) fn refresh_sessions(&mut self, sessions: &[String], process: &str, now: Instant) {
        for session in sessions {
            self.owners.insert(session.clone(), (process.to_owned(), now + SESSION_ENTRY_TTL));
        }
    }

    pub(super) fn session_owner(&self, session: &str, now: Instant) -> Option<String> {
        let entry = self.owners.get(session).filter(|(_, until)| *until > now);
        entry.map(|(process, _)| process.clone())
    }

    pub(super) fn release_session(&mut self, session: &str, process: &str) {
        if self.owners.get(session).is_some_and(|(owner, _)| owner == process) {
            self.owners.remove(session);
        }
    }

    pub(super) fn report_lost_send(&mut self, session: &str, owner: &str) {
        let sessions = self.lost_sends.entry(owner.to_owned()).or_default();
        if sessions.len() < LOST_SENDS_MAX {
            sessions.push(session.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn peer(process: &str) -> RelayPeer {
        RelayPeer { process: process.to_owned(), address: "127.0.0.1".parse().expect("an address") }
    }

    #[test]
    fn a_session_has_one_owner_and_its_entry_outlives_it_by_a_minute() {
        let (mut sessions, start) = (MemorySessionOwners::default(), Instant::now());
        assert_eq!(sessions.claim_session("s", "a", start), None);
        assert_eq!(sessions.claim_session("s", "b", start), Some("a".to_owned()));
        sessions.release_session("s", "b");
        assert_eq!(sessions.session_owner("s", start), Some("a".to_owned()), "only its owner may release it");
        // The owner renews the entry for the last time, and dies right before the next renewal.
        let last = start + Duration::from_mins(1);
        sessions.refresh_sessions(&["s".to_owned()], "a", last);
        assert_eq!(sessions.session_owner("s", last + Duration::from_secs(119)), Some("a".to_owned()));
        assert_eq!(sessions.claim_session("s", "b", last + Duration::from_mins(2)), None);
        sessions.release_session("s", "b");
        assert_eq!(sessions.session_owner("s", last), None);
    }

    #[test]
    fn a_process_is_alive_for_its_lease_and_learns_of_lost_sends_once() {
        let (mut sessions, start) = (MemorySessionOwners::default(), Instant::now());
        assert!(!sessions.record_heartbeat(&peer("a"), start).was_registered);
        let second = sessions.record_heartbeat(&peer("b"), start + Duration::from_secs(9));
        assert_eq!((second.peers.len(), second.was_registered), (2, false));
        sessions.report_lost_send("s", "b");
        let third = sessions.record_heartbeat(&peer("b"), start + Duration::from_secs(10));
        assert_eq!(
            (third.peers, third.was_registered, third.sessions_with_lost_sends),
            (vec![peer("b")], true, vec!["s".to_owned()])
        );
        assert_eq!(
            sessions.record_heartbeat(&peer("b"), start + Duration::from_secs(11)).sessions_with_lost_sends,
            [""; 0]
        );
    }
}
