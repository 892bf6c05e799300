//! Checks that a subscriber received every event once and in order.
//!
//! In: the numbers of one channel's events as they arrive, and the number of published events. Out: the numbers of missed
//! and of repeated events. Pure.

/// Events of one channel that one subscriber received. They are numbered from 0 and published after it has subscribed.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventSequence {
    next: u64,
    tally: DeliveryTally,
}

/// Numbers of delivered, missed and repeated events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryTally {
    /// Events that arrived, with repeated ones.
    pub delivered: u64,
    /// Events that had not arrived when a later one did.
    pub missed: u64,
    /// Events that arrived again, or after a later one.
    pub repeated: u64,
}

impl EventSequence {
    /// Adds the next event that arrived.
    pub fn add_arrival(&mut self, number: u64) {
        self.tally.delivered += 1;
        if number < self.next {
            self.tally.repeated += 1;
        } else {
            self.tally.missed += number - self.next;
            self.next = number + 1;
        }
    }

    /// Ends the sequence, of which this many events were published.
    #[must_use]
    pub fn into_tally(mut self, published: u64) -> DeliveryTally {
        self.tally.missed += published.saturating_sub(self.next);
        self.tally
    }
}

/// Events that one subscriber received of one channel whose publisher uses several servers in turn. Each server keeps
/// the order of its own events; events of two servers may overtake each other.
#[derive(Clone, Debug)]
pub struct ServerLanes(Vec<EventSequence>);

impl ServerLanes {
    /// Creates the lanes of this many servers.
    #[must_use]
    pub fn for_servers(servers: usize) -> Self {
        Self(vec![EventSequence::default(); servers.max(1)])
    }

    /// Adds the next event that arrived.
    pub fn add_arrival(&mut self, number: u64) {
        let lanes = self.0.len() as u64;
        let lane = usize::try_from(number % lanes).unwrap_or_default();
        self.0[lane].add_arrival(number / lanes);
    }

    /// Ends the sequence, of which this many events were published over all servers.
    #[must_use]
    pub fn into_tally(self, published: u64) -> DeliveryTally {
        let lanes = self.0.len() as u64;
        let mut tally = DeliveryTally::default();
        for (lane, sequence) in (0..).zip(self.0) {
            tally += sequence.into_tally(published.saturating_sub(lane).div_ceil(lanes));
        }
        tally
    }
}

impl std::ops::AddAssign for DeliveryTally {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.missed += other.missed;
        self.repeated += other.repeated;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_and_repeated_events_are_counted() {
        for (name, arrived, published, (missed, repeated)) in [
            ("all of them", &[0, 1, 2][..], 3, (0, 0)),
            ("none was published", &[], 0, (0, 0)),
            ("the first is missing", &[1, 2], 3, (1, 0)),
            ("two in the middle are missing", &[0, 3], 4, (2, 0)),
            ("the last ones are missing", &[0], 3, (2, 0)),
            ("nothing arrived", &[], 5, (5, 0)),
            ("an event arrived twice", &[0, 1, 1, 2], 3, (0, 1)),
            ("two changed places", &[0, 2, 1], 3, (1, 1)),
        ] {
            let mut sequence = EventSequence::default();
            for number in arrived {
                sequence.add_arrival(*number);
            }
            let delivered = arrived.len() as u64;
            assert_eq!(sequence.into_tally(published), DeliveryTally { delivered, missed, repeated }, "{name}");
        }
    }

    #[test]
    fn only_events_of_one_server_keep_their_order() {
        for (name, servers, arrived, published, (missed, repeated)) in [
            ("in order", 3, &[0, 1, 2, 3, 4][..], 5, (0, 0)),
            ("those of other servers overtake", 3, &[1, 0, 4, 3, 2], 5, (0, 0)),
            ("one of the same server overtakes", 3, &[0, 1, 2, 6, 3], 7, (3, 1)),
            ("an event arrived twice", 2, &[0, 1, 0, 2], 3, (0, 1)),
            ("the last of each are missing", 2, &[0, 1], 5, (3, 0)),
            ("nothing arrived", 3, &[], 7, (7, 0)),
            ("one server only", 1, &[0, 2, 1], 3, (1, 1)),
        ] {
            let mut lanes = ServerLanes::for_servers(servers);
            for number in arrived {
                lanes.add_arrival(*number);
            }
            let delivered = arrived.len() as u64;
            assert_eq!(lanes.into_tally(published), DeliveryTally { delivered, missed, repeated }, "{name}");
        }
    }
}
