//! The load of the edges of one cluster, which each of them shares with the others.

use std::time::Duration;

/// TTL of a shared load: a process that shared none for that long takes no clients.
pub const LOAD_TTL: Duration = Duration::from_secs(15);

/// The load of one edge. An edge that drains has none and takes none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeLoad {
    /// The kind of the server: clients of one kind reconnect to edges of the same.
    pub server: String,
    /// Sessions that are open.
    pub sessions: u64,
    /// Sessions that may be open.
    pub sessions_max: u64,
}

impl EdgeLoad {
    /// The form in the store.
    pub(super) fn to_text(&self) -> String {
        format!("{} {} {}", self.server, self.sessions, self.sessions_max)
    }

    /// Parses the form in the store; `None` when another release wrote another form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (server, sessions, sessions_max) = (words.next()?, words.next()?, words.next()?);
        let (sessions, sessions_max) = (sessions.parse().ok()?, sessions_max.parse().ok()?);
        Some(Self { server: server.to_owned(), sessions, sessions_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_round_trips_and_later_words_are_ignored() {
        let load = EdgeLoad { server: "sockjs".to_owned(), sessions: 7, sessions_max: 100 };
        assert_eq!(EdgeLoad::parse(&load.to_text()).as_ref(), Some(&load));
        assert_eq!(EdgeLoad::parse("sockjs 7 100 later").as_ref(), Some(&load));
        for bad in ["", "sockjs", "sockjs 7", "sockjs seven 100"] {
            assert_eq!(EdgeLoad::parse(bad), None, "{bad}");
        }
    }
}
