//! Size and length of a run.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// A server to measure beside ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerServer {
    /// Kind of the server.
    pub kind: PeerKind,
    /// Path of its program.
    pub program: PathBuf,
}

/// Kind of a server that is measured beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A sockudo server in one process.
    Sockudo,
    /// An nginx with its module nchan, in one process: no Pusher protocol, no signatures, no presence.
    Nchan,
    /// Another build of this program, to compare two releases in one run.
    Realtime,
}

/// One run of a single edge beside others.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgePlan {
    /// Whether the run is the quick one.
    pub quick: bool,
    /// Number of rounds; each runs every server once, in turn.
    pub rounds: usize,
    /// Number of the crowd's sockets.
    pub sockets: usize,
    /// Number of the crowd's channels.
    pub channels: usize,
    /// Members of presence channels, a hundred to a channel.
    pub members: usize,
    /// Number of idle sessions over `xhr_streaming`.
    pub sessions: usize,
    /// Subscribers of the one channel of the fan-out.
    pub subscribers: usize,
    /// Events per second of the fan-out.
    pub events_per_second: u32,
    /// Subscribers and events per second of further fan-outs, measured beside nchan.
    pub other_fan_outs: [(usize, u32); 2],
    /// Publishes per second to the crowd, over all channels.
    pub publishes_per_second: u32,
    /// Duration of each publishing.
    #[serde(skip)]
    pub publishing: Duration,
    /// Duration of the measurement of idle polling.
    #[serde(skip)]
    pub polling: Duration,
    /// Server to measure beside ours, if any.
    #[serde(skip)]
    pub peer: Option<PeerServer>,
}

impl EdgePlan {
    /// The size that the targets are worded for: about 12 minutes with a peer.
    #[must_use]
    pub fn full_run() -> Self {
        Self {
            quick: false,
            rounds: 5,
            sockets: 10_000,
            channels: 100,
            members: 5_000,
            sessions: 2_000,
            subscribers: 1_000,
            events_per_second: 50,
            other_fan_outs: [(200, 100), (5_000, 8)],
            publishes_per_second: 200,
            publishing: Duration::from_secs(8),
            polling: Duration::from_secs(65),
            peer: None,
        }
    }

    /// Smaller crowds and fewer rounds: under 3 minutes with a peer.
    #[must_use]
    pub fn quick_run() -> Self {
        Self {
            quick: true,
            rounds: 2,
            sockets: 2_000,
            channels: 20,
            members: 1_000,
            sessions: 500,
            publishing: Duration::from_secs(3),
            polling: Duration::from_secs(45),
            ..Self::full_run()
        }
    }

    /// Bounds every crowd, for trials.
    #[must_use]
    pub fn with_crowds_max(mut self, sockets: usize) -> Self {
        self.sockets = sockets;
        self.channels = self.channels.min(sockets.max(1));
        self.members = self.members.min(sockets);
        self.sessions = self.sessions.min(sockets);
        self.subscribers = self.subscribers.min(sockets);
        for (subscribers, _) in &mut self.other_fan_outs {
            *subscribers = (*subscribers).min(sockets);
        }
        self
    }

    /// Open files that the load client, or a server, needs at most: its sockets, and 256 of its own.
    #[must_use]
    pub fn open_files_needed(&self) -> u64 {
        let most = self.sockets.max(self.members).max(self.sessions + self.sessions / 8).max(self.subscribers);
        let most = self.other_fan_outs.iter().fold(most, |most, (subscribers, _)| most.max(*subscribers));
        most as u64 + 256
    }
}

/// One run of several edges that share a Redis, beside a single one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsPlan {
    /// Whether the run is the quick one.
    pub quick: bool,
    /// Number of edges that share a Redis.
    pub pods: usize,
    /// Number of rounds; each runs both sides once, in turn.
    pub rounds: usize,
    /// Subscribers of the one channel of the fan-out.
    pub subscribers: usize,
    /// Events per second of the fan-out.
    pub events_per_second: u32,
    /// Number of the crowd's sockets.
    pub sockets: usize,
    /// Number of the crowd's channels.
    pub channels: usize,
    /// Publishes per second to the crowd, over all channels.
    pub publishes_per_second: u32,
    /// Number of sockets of the calm load, of which latency is measured.
    pub calm_sockets: usize,
    /// Number of channels of the calm load.
    pub calm_channels: usize,
    /// Publishes per second of the calm load, over all channels.
    pub calm_per_second: u32,
    /// Duration of each publishing.
    #[serde(skip)]
    pub publishing: Duration,
    /// Number of channels that are occupied at once.
    pub occupied: usize,
    /// Presence members of the edge that is killed.
    pub members: usize,
    /// Sockets of another edge that is killed, which all come back.
    pub storm_sockets: usize,
    /// Duration over which they come back.
    #[serde(skip)]
    pub storm_window: Duration,
    /// Another build of this program whose edges take their turn, if any.
    #[serde(skip)]
    pub former_program: Option<PathBuf>,
}

impl PodsPlan {
    /// The size that the targets are worded for: under 6 minutes with 3 edges.
    #[must_use]
    pub fn full_run(pods: usize) -> Self {
        Self {
            quick: false,
            pods,
            rounds: 3,
            subscribers: 1_000,
            events_per_second: 50,
            sockets: 3_000,
            channels: 30,
            publishes_per_second: 200,
            calm_sockets: 1_000,
            calm_channels: 100,
            calm_per_second: 100,
            publishing: Duration::from_secs(5),
            occupied: 20_000,
            members: 10_000,
            storm_sockets: 10_000,
            storm_window: Duration::from_secs(10),
            former_program: None,
        }
    }

    /// Smaller crowds and one round: under 2 minutes.
    #[must_use]
    pub fn quick_run(pods: usize) -> Self {
        Self {
            quick: true,
            rounds: 1,
            sockets: 1_000,
            channels: 10,
            publishing: Duration::from_secs(3),
            occupied: 5_000,
            members: 2_000,
            storm_sockets: 2_000,
            storm_window: Duration::from_secs(2),
            ..Self::full_run(pods)
        }
    }

    /// Bounds every crowd, for trials.
    #[must_use]
    pub fn with_crowds_max(mut self, sockets: usize) -> Self {
        let sockets = sockets.max(1);
        self.subscribers = self.subscribers.min(sockets);
        self.sockets = self.sockets.min(sockets);
        self.channels = self.channels.min(sockets.div_ceil(10));
        self.calm_sockets = self.calm_sockets.min(sockets);
        self.calm_channels = self.calm_channels.min(sockets.div_ceil(10));
        self.occupied = self.occupied.min(sockets);
        self.members = self.members.min(sockets);
        self.storm_sockets = self.storm_sockets.min(sockets);
        self
    }

    /// Open files that the load client, or a server, needs at most: its sockets, and 256 of its own.
    #[must_use]
    pub fn open_files_needed(&self) -> u64 {
        let most = self.sockets.max(self.subscribers).max(self.members + self.members / 50);
        let most = most.max(self.storm_sockets + self.calm_sockets + 100);
        most as u64 + 256
    }
}

/// One run of the webhook pipeline, from the recorder to a receiver.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PipelinePlan {
    /// Whether the run is the quick one.
    pub quick: bool,
    /// Number of rounds; each runs the bare loops and the pipeline once.
    pub rounds: usize,
    /// Number of channels that events are spread over.
    pub channels: usize,
    /// Shards of the stream.
    pub shards: usize,
    /// Number of endpoints, each of an app of its own.
    pub endpoints: usize,
    /// Events that are recorded as fast as possible, and records of the bare loops.
    pub events: u64,
    /// Events that are recorded as fast as possible, each in a record and a body of its own.
    pub single_events: u64,
    /// Events per second of the steady load, of which latency and cost are measured.
    pub calm_per_second: u32,
    /// Duration of the steady load.
    #[serde(skip)]
    pub calm: Duration,
    /// Events while one endpoint refuses its own, of which memory is measured.
    pub refused_events: u64,
    /// Distinct users who join, over whom memory must not grow.
    pub users: u64,
    /// Delay before memory is read after a load, so that free pages have gone back to the system.
    #[serde(skip)]
    pub memory_settling: Duration,
    /// Senders of chat messages, ten a second each.
    pub chat_senders: usize,
    /// Windows of chat messages per condition of the stream.
    pub chat_windows: usize,
    /// Duration of each of these windows.
    #[serde(skip)]
    pub chat_window: Duration,
    /// Time after a change of the condition that is not measured.
    #[serde(skip)]
    pub chat_settling: Duration,
}

impl PipelinePlan {
    /// The size that the targets are worded for: about 12 minutes.
    #[must_use]
    pub fn full_run() -> Self {
        Self {
            quick: false,
            rounds: 5,
            channels: 10_000,
            shards: 16,
            endpoints: 20,
            events: 400_000,
            single_events: 20_000,
            calm_per_second: 1_000,
            calm: Duration::from_secs(8),
            refused_events: 300_000,
            users: 1_000_000,
            memory_settling: Duration::from_secs(12),
            chat_senders: 100,
            chat_windows: 5,
            chat_window: Duration::from_secs(4),
            chat_settling: Duration::from_secs(2),
        }
    }

    /// Fewer events and rounds: under 90 seconds.
    #[must_use]
    pub fn quick_run() -> Self {
        Self {
            quick: true,
            rounds: 1,
            events: 120_000,
            single_events: 10_000,
            calm: Duration::from_secs(5),
            refused_events: 10_000,
            users: 100_000,
            memory_settling: Duration::from_secs(5),
            chat_windows: 3,
            chat_window: Duration::from_secs(2),
            chat_settling: Duration::from_secs(1),
            ..Self::full_run()
        }
    }

    /// Bounds the number of events and of everything else, for trials.
    #[must_use]
    pub fn with_events_max(mut self, events: u64) -> Self {
        self.events = self.events.min(events);
        self.single_events = self.single_events.min(events);
        self.refused_events = self.refused_events.min(events);
        self.users = self.users.min(events);
        self.memory_settling = self.memory_settling.min(Duration::from_millis(100));
        self.calm_per_second = self.calm_per_second.min(100);
        self.calm = self.calm.min(Duration::from_secs(2));
        self.channels = self.channels.min(200);
        self.shards = self.shards.min(2);
        self.endpoints = self.endpoints.min(3);
        self.chat_senders = self.chat_senders.min(5);
        self.chat_windows = 1;
        self
    }

    /// Open files that this process needs at most: the connections of the chat, and 512 of its own.
    #[must_use]
    pub fn open_files_needed(&self) -> u64 {
        self.chat_senders as u64 * 3 + 512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_bounds_every_load_of_the_pipeline() {
        let plan = PipelinePlan::quick_run().with_events_max(500);
        assert_eq!((plan.events, plan.single_events, plan.channels, plan.chat_senders), (500, 500, 200, 5));
        assert!(PipelinePlan::full_run().open_files_needed() > 800);
    }

    #[test]
    fn a_size_bounds_every_crowd_of_several_edges() {
        let plan = PodsPlan::quick_run(2).with_crowds_max(25);
        let crowds =
            [plan.subscribers, plan.sockets, plan.calm_sockets, plan.occupied, plan.members, plan.storm_sockets];
        assert_eq!((crowds, plan.channels, plan.calm_channels, plan.pods), ([25; 6], 3, 3, 2));
        assert_eq!(PodsPlan::full_run(3).with_crowds_max(0).channels, 1);
        assert!(PodsPlan::full_run(3).open_files_needed() > 10_200);
    }

    #[test]
    fn a_size_bounds_every_crowd() {
        let plan = EdgePlan::quick_run().with_crowds_max(50);
        assert_eq!((plan.sockets, plan.members, plan.sessions, plan.subscribers), (50, 50, 50, 50));
        assert_eq!(plan.channels, 20);
        assert_eq!(EdgePlan::full_run().with_crowds_max(0).channels, 1);
        assert!(EdgePlan::full_run().open_files_needed() > 10_000);
    }
}
