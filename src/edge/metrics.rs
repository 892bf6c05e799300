//! The metrics of an edge. Labels take values from fixed lists, and from a bounded number of apps, so that no client can
//! make series.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::edge::drop_reason::DropReason;
use crate::process::app_series::AppSeries;
use crate::process::metrics::{DurationHistogram, LabelValue, Labeled, RegistryReadResult, label_values, metric_table};
use crate::protocol::Transport;
use crate::protocol::registry::AppRegistry;
use crate::protocol::relay::RelayRefusal;

impl LabelValue for Transport {
    const LABEL: &'static str = "transport";
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }
}

impl LabelValue for RelayRefusal {
    const LABEL: &'static str = "reason";
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Forged => "No process of this cluster signed the request as it is.",
            Self::Replayed => "The same request arrived before.",
            Self::Expired => "The time of the request is too far from now.",
            Self::TwoHops => "The request was relayed more than once.",
            Self::WrongTarget => "The request is for another process.",
            Self::NotASession => "The request is not one of a session.",
            Self::PublicPort => "The request arrived at the listener for clients, and is served as one of a client.",
            Self::Full => "More requests or connections arrive than are allowed.",
        }
    }
}

label_values! {
    /// The reason for which a client is refused.
    pub enum RefusalReason as "reason" {
        /// No app has the key, or the app was removed.
        AppUnknown = "app_unknown",
        /// The app is disabled.
        AppDisabled = "app_disabled",
        /// The app has all connections that its limit allows.
        OverQuota = "over_quota",
        /// The path is none of the server's.
        PathUnknown = "path_unknown",
        /// The query names no supported version of the protocol.
        Protocol = "protocol",
        /// The app does not allow pages of this origin.
        Origin = "origin",
        /// The server has all sessions that it can have.
        ServerFull = "server_full",
        /// The server drains and admits nobody.
        GoingAway = "going_away",
        /// The source address has all connections of the app that it may have on this edge.
        SourceConnections = "source_connections",
        /// The source address opens connections of the app too often.
        SourceHandshakeRate = "source_handshake_rate",
        /// Clients of the app open more connections in a second than it allows.
        HandshakeRate = "handshake_rate",
        /// The listener has all connections that it may have.
        ListenerFull = "listener_full",
        /// The source address has all connections of the listener that one address may have.
        ListenerSource = "listener_source",
        /// The source address makes far more requests to the bus than one may.
        SourceRequestRate = "source_request_rate",
        /// Messages that are answered, such as pings and invalid ones, exceed the rate for one connection.
        MessageRate = "message_rate",
        /// The app has all channels that it may have on this edge.
        AppChannels = "app_channels",
        /// Neither a sign-in nor a signed subscription came in time.
        AuthorizationLate = "authorization_late",
        /// A connection from a trusted proxy has no valid header of the PROXY protocol.
        ProxyHeader = "proxy_header",
        /// A frame is not valid on its transport.
        Unreadable = "unreadable",
        /// A frame is binary, and text is expected.
        Binary = "binary",
        /// A frame is not a message of the protocol.
        NotAMessage = "not_a_message",
        /// The server has no answer to the event.
        UnknownEvent = "unknown_event",
        /// A send reached a session that has ended.
        SessionOver = "session_over",
        /// Subscriptions and sign-ins exceed the rate for one connection.
        RequestRate = "request_rate",
        /// The sign-in is invalid, or for another user than before.
        SignIn = "sign_in",
        /// The watchlist is longer than allowed, and was cut.
        Watchlist = "watchlist",
        /// The name of a channel is invalid.
        ChannelName = "channel_name",
        /// The signature of a subscription is invalid.
        Signature = "signature",
        /// The connection has all channels that it may have.
        Channels = "channels",
        /// The channel belongs to a user, and the connection has not signed in as this user.
        UserChannel = "user_channel",
        /// The presence channel has all members that it may have.
        PresenceFull = "presence_full",
        /// The bus is unavailable.
        Bus = "bus",
        /// The app does not allow client events.
        ClientEventsOff = "client_events_off",
        /// A client event is for a public channel.
        PublicChannel = "public_channel",
        /// A client event is for a channel without a subscription.
        NotSubscribed = "not_subscribed",
        /// The name of a client event is too long.
        EventName = "event_name",
        /// The data of a client event exceeds the app's limit.
        TooLarge = "too_large",
        /// Client events exceed the app's rate.
        ClientEventRate = "client_event_rate",
        /// A request of the HTTP API was answered with an error.
        HttpApi = "http_api",
        /// Requests of the HTTP API exceed the app's rate.
        ApiRequestRate = "api_request_rate",
        /// The process has as many bytes of unfinished requests and messages as it may have.
        InputBytes = "input_bytes",
    }
}

label_values! {
    /// The reason for which the owner of a session did not serve a forwarded request.
    pub enum RelayFailure as "reason" {
        /// Nothing listens at the owner's address, or another process does.
        Dead = "dead",
        /// The owner does not have the session.
        Unknown = "unknown",
        /// The owner did not answer in time.
        Silent = "silent",
        /// The owner rejected the signature.
        Refused = "refused",
        /// Too many requests are being forwarded.
        Full = "full",
        /// The owner's answer ended before its end.
        Cut = "cut",
        /// This process ends before the owner has answered.
        Draining = "draining",
    }
}

label_values! {
    /// The outcome of a subscription that waited for the bus.
    pub enum WaitResult as "result" {
        /// The client entered the channel.
        Entered = "entered",
        /// The wait was too long, or the bus refused the client.
        Refused = "refused",
        /// The client unsubscribed or disconnected.
        Left = "left",
    }
}

/// The series of one app that its sessions count in. Looked up once per session: a look-up per frame would cost a lock.
pub struct AppCounts {
    /// Sessions that are open now.
    pub connections: Gauge,
    /// Frames that were queued for sessions.
    pub frames: Counter,
    /// Client events that were accepted.
    pub client_events: Counter,
}

metric_table! {
    /// All counters and gauges of an edge.
    pub struct EdgeMetrics of "edge" {
        /// Sessions that are open now.
        connections: Labeled<Transport, Gauge> => "Add edges before memory or CPU runs out.",
        /// Sessions that are open now, by app.
        app_connections: AppSeries<Gauge> => "Compare it with the app's `limits.connections`.",
        /// Frames that were queued for sessions, by app.
        app_frames: AppSeries<Counter> => "Nothing; it is the part of the app in the load of the edge.",
        /// Client events that were accepted, by app.
        app_client_events: AppSeries<Counter> => "Nothing; it is the load by clients of the app.",
        /// Events that were published over the HTTP API, by app.
        app_events_published: AppSeries<Counter> => "Nothing; it is the load by the backend of the app.",
        /// Sessions that were opened.
        connections_opened: Labeled<Transport, Counter> =>
            "If it grows faster than `realtime_edge_connections`, find out why clients reconnect: a proxy, or a drain.",
        /// Connections, subscriptions, client events and requests that were refused.
        refusals: Labeled<RefusalReason, Counter> =>
            "Look the reason up below; `server_full`, `listener_full` and `bus` need an operator, others the app's owner.",
        /// Reads of an app registry that has changed.
        registry_reads: Labeled<RegistryReadResult, Counter> =>
            "If `refused` grows, read the log of the edge and correct the app that it names.",
        /// Pauses of connections whose source address makes more requests to the bus than its rate.
        source_pauses: Counter => "Look for many clients behind one address; a proxy belongs into `REALTIME_TRUSTED_PROXIES`.",
        /// Size of the unfinished requests and messages that are held now in bytes, beyond the first 4 KiB of each.
        unfinished_input_bytes: Gauge => "Near 8 MiB, find the addresses that send slowly, and block them.",
        /// Requests that another edge answered because it owns their session.
        requests_relayed: Counter => "Nothing; affinity at the load balancer would save the hop.",
        /// Requests that the edge which owns their session did not serve.
        relay_failures: Labeled<RelayFailure, Counter> =>
            "Check the network between edges, and that all have the same `REALTIME_PEER_SECRET`.",
        /// Relayed requests of other edges that this edge refused.
        relay_refusals: Labeled<RelayRefusal, Counter> =>
            "Compare clocks and `REALTIME_PEER_SECRET` of the edges; `public_port` counts clients that send the headers of a relay.",
        /// Duplicate sends of fallback clients that were dropped.
        sends_repeated: Counter => "Nothing; a proxy or a client repeats requests.",
        /// Sessions that were closed because the client reads too slowly.
        slow_consumers: Counter => "Send fewer or smaller events to each client.",
        /// Responses of fallback transports that ended early, with frames in flight that may be lost.
        receivers_cut: Counter => "Find the proxy that ends long responses.",
        /// Frames that were queued for sessions.
        frames: Counter => "Nothing; it is the load of the edge.",
        /// Client events that were accepted.
        client_events: Counter => "Nothing; it is the load by clients.",
        /// Events that were published over the HTTP API.
        events_published: Counter => "Nothing; it is the load by backends.",
        /// Calls to the bus that failed because it was unavailable.
        bus_errors: Counter => "Check Redis and the network to it.",
        /// Time from a call to the bus to its answer, or to the end of the wait for it, in seconds.
        bus_call_duration_seconds: DurationHistogram =>
            "Above 10 ms, look at the CPU of Redis and the network to it; each subscription waits for one call.",
        /// Whether the bus answers, so that other edges can be reached, sampled every second.
        bus_up: Gauge => "At 0, check Redis: its address, its credentials, its memory.",
        /// Leases on the bus that expired while this edge was running, after which it re-registered all connections.
        bus_leases_lost: Counter => "Check Redis, the network to it, and that the edge gets enough CPU.",
        /// Frames and changes of other edges that were dropped because this edge was too slow.
        bus_frames_lost: Counter => "Add edges, or give each more CPU.",
        /// Time from when this edge received a frame for a channel to its write to the last subscriber here, in seconds.
        fan_out_duration_seconds: DurationHistogram =>
            "Above 10 ms, add edges, or split channels with very many subscribers; clients receive events later by this time.",
        /// Frames that were dropped because the fan-out of their channels was too slow.
        fan_out_frames_dropped: Counter => "Add edges, or split channels with very many subscribers.",
        /// Changes of occupancy that no client of this edge caused: another edge died, or Redis lost its data.
        bus_remote_transitions: Counter => "Find out why edges die or Redis restarts.",
        /// Occupancy changes that the bus keeps until they are recorded or dropped, sampled every second.
        bus_unacknowledged_changes: Gauge => "Check the stream and Redis; it returns to 0 within seconds after a failure.",
        /// Presence subscriptions that wait for the bus now.
        pending_subscriptions: Gauge => "Check Redis; a subscription that waits too long is refused.",
        /// Presence subscriptions that have waited for the bus.
        pending_subscription_outcomes: Labeled<WaitResult, Counter> => "If `refused` grows, check Redis.",
        /// Events that were decided for recording, wanted or not.
        recorder_events_decided: Counter => "Nothing; those unwanted and those accepted are its sum.",
        /// Events that were queued for the stream.
        recorder_events_accepted: Counter => "Nothing; it is the load of the stream.",
        /// Events that were not recorded, because no endpoint of their app receives them.
        recorder_events_unwanted: Counter => "Nothing; webhooks of the app select their events.",
        /// Events that the stream acknowledged.
        recorder_events_acknowledged: Counter => "Nothing; it should follow the accepted events.",
        /// Events that never reached the stream.
        recorder_events_dropped: Labeled<DropReason, Counter> =>
            "Their webhooks are lost; check the stream's throughput and permissions.",
        /// Time from the put of a batch of records to the answer of the stream, in seconds.
        recorder_put_duration_seconds: DurationHistogram =>
            "Webhooks are later by this time; check the way to Kinesis, such as a VPC endpoint, and the throttling of the stream.",
        /// Records that the stream refused and that are retried.
        recorder_records_refused: Counter => "Add shards, or use on-demand capacity.",
        /// Events that wait for the stream now, sampled every second.
        recorder_queued_events: Gauge => "Check the stream; a full queue drops events.",
    }
}

impl EdgeMetrics {
    /// Gives series of their own to the apps of a registry, to `most` at most.
    pub fn list_apps(&self, registry: &AppRegistry, most: u64) {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let apps = || registry.apps().map(|app| app.id.as_str());
        self.app_connections.list_apps(apps(), most);
        self.app_frames.list_apps(apps(), most);
        self.app_client_events.list_apps(apps(), most);
        self.app_events_published.list_apps(apps(), most);
    }

    /// The series of an app, for a session to keep.
    pub fn app_counts(&self, app: &str) -> AppCounts {
        AppCounts {
            connections: self.app_connections.of_app(app),
            frames: self.app_frames.of_app(app),
            client_events: self.app_client_events.of_app(app),
        }
    }

    /// Counts a changed app registry, by whether it is valid.
    pub fn count_registry_read(&self, applied: bool) {
        let result = if applied { RegistryReadResult::Applied } else { RegistryReadResult::Refused };
        self.registry_reads.with_label(result).inc();
    }
}
