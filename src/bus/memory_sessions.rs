//! Who has which session, in one process: what Redis knows for many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use super::peers::{Alive, ENTRY, LEASE, Peer, TOLD};

/// Sessions, processes, and what these are to be told.
#[derive(Default)]
pub(super) struct Sessions {
    /// Who has each, and until when that is remembered.
    owners: HashMap<String, (String, Instant)>,
    alive: HashMap<String, (IpAddr, Instant)>,
    losers: HashMap<String, Vec<String>>,
}

impl Sessions {
    pub(super) fn alive(&mut self, peer: &Peer, now: Instant) -> Alive {
        // Often enough that what is over does not pile up.
        self.owners.retain(|_, (_, until)| *until > now);
        self.alive.retain(|_, (_, until)| *until > now);
        self.losers.retain(|process, _| self.alive.contains_key(process));
        let known = self.alive.insert(peer.process.clone(), (peer.address, now + LEASE)).is_some();
        let found = |(process, (address, _)): (&String, &(IpAddr, Instant))| Peer {
            process: process.clone(),
            address: *address,
        };
        let losers = self.losers.remove(&peer.process).unwrap_or_default();
        Alive { peers: self.alive.iter().map(found).collect(), known, losers }
    }

    pub(super) fn own(&mut self, session: &str, process: &str, now: Instant) -> Option<String> {
        let owner = self.owner(session, now);
        if owner.is_none() {
            self.owners.insert(session.to_owned(), (process.to_owned(), now + ENTRY));
        }
        owner
    }

    pub(super) fn name(&mut self, sessions: &[String], process: &str, now: Instant) {
        for session in sessions {
            self.owners.insert(session.clone(), (process.to_owned(), now + ENTRY));
        }
    }

    pub(super) fn owner(&self, session: &str, now: Instant) -> Option<String> {
        let entry = self.owners.get(session).filter(|(_, until)| *until > now);
        entry.map(|(process, _)| process.clone())
    }

    pub(super) fn disown(&mut self, session: &str, process: &str) {
        if self.owners.get(session).is_some_and(|(owner, _)| owner == process) {
            self.owners.remove(session);
        }
    }

    pub(super) fn lose(&mut self, session: &str, owner: &str) {
        let told = self.losers.entry(owner.to_owned()).or_default();
        if told.len() < TOLD {
            told.push(session.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn peer(process: &str) -> Peer {
        Peer { process: process.to_owned(), address: "127.0.0.1".parse().expect("an address") }
    }

    #[test]
    fn a_session_has_one_owner_and_its_entry_outlives_it_by_a_minute() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        assert_eq!(sessions.own("s", "a", start), None);
        assert_eq!(sessions.own("s", "b", start), Some("a".to_owned()));
        sessions.disown("s", "b");
        assert_eq!(sessions.owner("s", start), Some("a".to_owned()), "only its owner may disown it");
        // The owner names it for the last time, and dies right before it would again.
        let last = start + Duration::from_mins(1);
        sessions.name(&["s".to_owned()], "a", last);
        assert_eq!(sessions.owner("s", last + Duration::from_secs(119)), Some("a".to_owned()));
        assert_eq!(sessions.own("s", "b", last + Duration::from_mins(2)), None);
        sessions.disown("s", "b");
        assert_eq!(sessions.owner("s", last), None);
    }

    #[test]
    fn a_process_is_alive_for_its_lease_and_is_told_what_was_lost() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        assert!(!sessions.alive(&peer("a"), start).known);
        let second = sessions.alive(&peer("b"), start + Duration::from_secs(9));
        assert_eq!((second.peers.len(), second.known), (2, false));
        sessions.lose("s", "b");
        let third = sessions.alive(&peer("b"), start + Duration::from_secs(10));
        assert_eq!((third.peers, third.known, third.losers), (vec![peer("b")], true, vec!["s".to_owned()]));
        assert_eq!(sessions.alive(&peer("b"), start + Duration::from_secs(11)).losers, [""; 0]);
    }
}
