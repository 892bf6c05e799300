//! The bus of many processes: Redis 7 or Valkey, alone, behind Sentinel, or as a cluster.
//!
//! Membership is decided by one atomic script per channel: two edges that decided for themselves would both publish
//! "occupied". Frames go over Redis publish/subscribe, which drops frames that no process receives; no state depends on
//! them.
//!
//! Every process renews a lease. A process that finds an expired lease sweeps the dead process: its connections leave,
//! and its events that are not yet recorded are published by the sweeper, under the same ids. After the store was
//! unavailable, every process re-registers its connections; after the store lost its data, no transition is published
//! until every process had the time to do so ([`BusTiming::settling_period`]).

mod acknowledge;
mod beat_watch;
mod channel_index;
mod channel_info;
mod client;
mod first_sync;
#[cfg(test)]
mod histories;
mod keys;
mod lease;
mod local_state;
mod members;
mod membership;
mod outbox;
mod reconcile;
mod session_owners;
mod store_check;
mod subscription;
mod terminations;
mod timing;
mod tls;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fred::clients::SubscriberClient;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::client::RedisAddress;
use self::client::{PIPELINE_COMMANDS_MAX, to_bus_error, unavailable_error};
use self::keys::KeySpace;
use self::members::MembershipCore;
pub use self::store_check::check_store;
use self::subscription::SubscriptionState;
use self::terminations::Terminations;
pub use self::timing::BusTiming;
use super::load::EdgeLoad;
use super::relay::{HeartbeatResponse, RelayPeer};
use super::{
    Broadcast, BroadcastFrame, BusError, BusScope, ChannelInfo, ChannelKey, ChannelStore, CountUpdate,
    DecidedTransitions, Health, JoinLimits, JoinOutcome, LastEvent, LastEventLookup, LoadBoard, Membership,
    RemoteTransitions, SessionDirectory,
};
use crate::process::locks::lock_unpoisoned;
use crate::protocol::frame::PresenceMember;
use crate::protocol::record::LeaveCause;
use crate::protocol::{AppId, ChannelName, SocketId};

/// Bounds the frames that wait for this process.
const FRAME_QUEUE_LEN: usize = 16_384;
/// Bounds the channels whose transitions, emitted by the bus on its own, wait to be taken.
const TRANSITION_QUEUE_LEN: usize = 16_384;
/// Bounds the wait for the first contact at start. Without one the server starts anyway and delivers locally.
const FIRST_SYNC_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds the release of the lease on shutdown; a lease that is not released expires by itself.
const LEAVE_CLUSTER_TIMEOUT: Duration = Duration::from_secs(2);

/// One process's connection to a bus in Redis.
pub struct RedisBus {
    core: Arc<MembershipCore>,
    process: String,
    channels: channel_info::RedisChannels,
    sessions: session_owners::SessionOwners,
    inbox: Mutex<Option<mpsc::Receiver<BroadcastFrame>>>,
    remote_transitions: Mutex<Option<mpsc::Receiver<RemoteTransitions>>>,
    lost_frames: Arc<AtomicU64>,
    first_sync: watch::Receiver<Option<Result<(), String>>>,
    subscription: watch::Receiver<SubscriptionState>,
    terminations: Arc<Terminations>,
    _subscriber: SubscriberClient,
}

impl RedisBus {
    /// Connects to the bus of a cluster or its group, and waits for the first contact. Redis need not answer yet: until it does, calls
    /// fail at once.
    ///
    /// # Errors
    /// The address is malformed, or the store there cannot be a bus.
    pub async fn connect<'a>(
        address: impl Into<RedisAddress<'a>>,
        scope: impl Into<BusScope<'a>>,
        process: &str,
        shutdown: CancellationToken,
    ) -> Result<Self, BusError> {
        let bus = Self::start(address, scope, process, BusTiming::EDGE_DEFAULTS, shutdown)?;
        if let Ok(synced) = timeout(FIRST_SYNC_TIMEOUT, bus.wait_first_sync()).await {
            synced?;
        } else {
            tracing::warn!("bus unavailable at start: starting anyway and retrying");
        }
        Ok(bus)
    }

    /// Waits until the process has a lease, and receives the frames of other processes: a frame that is published before
    /// would be lost to its first clients.
    async fn wait_first_sync(&self) -> Result<(), BusError> {
        let (mut first_sync, mut subscription) = (self.first_sync.clone(), self.subscription.clone());
        if let Ok(found) = first_sync.wait_for(Option::is_some).await
            && let Some(Err(reason)) = &*found
        {
            return Err(BusError::Unusable(reason.clone()));
        }
        // Fails once the receiving task has ended, so on shutdown only.
        let Ok(state) = subscription.wait_for(|state| *state != SubscriptionState::Pending).await else {
            return Ok(());
        };
        match &*state {
            SubscriptionState::Refused(reason) => Err(BusError::Unusable(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Connects without waiting for the first contact, with the given timing.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn start<'a>(
        address: impl Into<RedisAddress<'a>>,
        scope: impl Into<BusScope<'a>>,
        process: &str,
        timing: BusTiming,
        shutdown: CancellationToken,
    ) -> Result<Self, BusError> {
        let builder = client::client_builder(address.into(), FRAME_QUEUE_LEN)?;
        let client = builder.build().map_err(to_bus_error)?;
        let subscriber = builder.build_subscriber_client().map_err(to_bus_error)?;
        let names = KeySpace::new(scope, client.is_clustered());
        let (decided_sender, decided) = mpsc::channel(TRANSITION_QUEUE_LEN);
        let (core, receipt_ends) =
            MembershipCore::new(client.clone(), names.clone(), process.to_owned(), timing, decided_sender);
        let core = Arc::new(core);
        core.set_subscribed(false);
        let terminations = Arc::new(Terminations::new(client.clone(), names.clone()));
        let (first_sync_sender, first_sync) = watch::channel(None);
        // Before `connect`, so that the tasks miss no connection error.
        tokio::spawn(first_sync::watch_connection_errors(
            client.error_rx(),
            first_sync_sender.clone(),
            shutdown.clone(),
        ));
        tokio::spawn(
            lease::LeaseKeeper::new(core.clone(), subscriber.clone())
                .run_lease_renewal(first_sync_sender, shutdown.clone()),
        );
        tokio::spawn(reconcile::run_reconciliation(core.clone(), shutdown.clone()));
        tokio::spawn(acknowledge::run_acknowledgements(core.clone(), receipt_ends, shutdown.clone()));
        let messages = subscriber.message_rx();
        client.connect();
        subscriber.connect();
        subscriber.manage_subscriptions();
        let (sender, inbox) = mpsc::channel(FRAME_QUEUE_LEN);
        let lost = Arc::new(AtomicU64::new(0));
        let (state, subscription) = watch::channel(SubscriptionState::Pending);
        let frames = subscription::FrameSubscription {
            subscriber: subscriber.clone(),
            publisher: client.clone(),
            names: names.clone(),
            process: process.to_owned(),
            frames: sender,
            lost_frames: lost.clone(),
            state,
            core: core.clone(),
            terminations: terminations.clone(),
        };
        tokio::spawn(frames.receive_frames(messages, shutdown.clone()));
        let (kept, available) = (terminations.clone(), core.clone());
        tokio::spawn(async move {
            let publish = kept.run_kept(|| available.is_available());
            shutdown.run_until_cancelled(publish).await;
        });
        Ok(Self {
            sessions: session_owners::SessionOwners::new(client.clone(), names.clone()),
            channels: channel_info::RedisChannels::new(client, names),
            core,
            process: process.to_owned(),
            inbox: Mutex::new(Some(inbox)),
            remote_transitions: Mutex::new(Some(decided)),
            lost_frames: lost,
            first_sync,
            subscription,
            terminations,
            _subscriber: subscriber,
        })
    }

    /// Fails at once while the store is known to be unavailable, instead of after a timeout.
    async fn call_if_available<T>(&self, call: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        if self.is_available() { call.await } else { Err(unavailable_error()) }
    }
}

impl Membership for RedisBus {
    fn join_bounded_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        member: Option<&'a PresenceMember>,
        limits: JoinLimits,
    ) -> BoxFuture<'a, Result<JoinOutcome, BusError>> {
        Box::pin(self.core.join_channel(subject, socket, member, limits))
    }

    fn leave_channel<'a>(
        &'a self,
        subject: &'a ChannelKey,
        socket: &'a SocketId,
        cause: Option<LeaveCause>,
    ) -> BoxFuture<'a, Result<DecidedTransitions, BusError>> {
        Box::pin(self.core.leave_channel(subject, socket, cause))
    }

    fn unacknowledged_count(&self) -> usize {
        self.core.state().local.outbox_len()
    }

    fn take_remote_transitions(&self) -> Option<mpsc::Receiver<RemoteTransitions>> {
        lock_unpoisoned(&self.remote_transitions).take()
    }

    fn leave_cluster(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if timeout(LEAVE_CLUSTER_TIMEOUT, lease::release_lease(&self.core)).await.is_err() {
                tracing::debug!("bus lease not released in time: it expires by itself");
            }
        })
    }
}

impl Broadcast for RedisBus {
    fn publish_frame(&self, message: BroadcastFrame) -> BoxFuture<'_, Result<(), BusError>> {
        Box::pin(async move {
            let bytes = wire::encode(&message, &self.process)?;
            if message.ends {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                return self.terminations.publish(text, self.is_available()).await;
            }
            if !self.is_available() {
                return Err(unavailable_error());
            }
            let sent = self.core.client.publish::<i64, _, _>(self.core.names.frames_channel(), bytes).await;
            sent.map(|_| ()).map_err(to_bus_error)
        })
    }

    fn publish_frames(&self, messages: Vec<BroadcastFrame>) -> BoxFuture<'_, Result<(), BusError>> {
        let messages = match <[BroadcastFrame; 1]>::try_from(messages) {
            Ok([message]) => return self.publish_frame(message),
            Err(messages) => messages,
        };
        Box::pin(async move {
            if !self.is_available() {
                return Err(unavailable_error());
            }
            for part in messages.chunks(PIPELINE_COMMANDS_MAX) {
                // One pipeline, because a round trip per frame would take most of the time of a sweep.
                let pipeline = self.core.client.pipeline();
                for message in part {
                    let bytes = wire::encode(message, &self.process)?;
                    pipeline
                        .publish::<(), _, _>(self.core.names.frames_channel(), bytes)
                        .await
                        .map_err(to_bus_error)?;
                }
                pipeline.all::<Vec<i64>>().await.map_err(to_bus_error)?;
            }
            Ok(())
        })
    }

    fn take_incoming_frames(&self) -> Option<mpsc::Receiver<BroadcastFrame>> {
        lock_unpoisoned(&self.inbox).take()
    }

    fn lost_frames(&self) -> u64 {
        self.lost_frames.load(Ordering::Relaxed)
    }

    fn lost_leases(&self) -> u64 {
        self.core.state().generation
    }
}

impl ChannelStore for RedisBus {
    fn store_last_event<'a>(
        &'a self,
        subject: &'a ChannelKey,
        last: &'a LastEvent,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.call_if_available(self.channels.store_last_event(subject, last, ttl)))
    }

    fn look_up_last_event<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<LastEventLookup, BusError>> {
        Box::pin(self.call_if_available(self.channels.look_up_last_event(subject)))
    }

    fn claim_count_update<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<CountUpdate, BusError>> {
        Box::pin(self.call_if_available(self.channels.claim_count_update(subject)))
    }

    fn inspect_channel<'a>(&'a self, subject: &'a ChannelKey) -> BoxFuture<'a, Result<ChannelInfo, BusError>> {
        Box::pin(self.call_if_available(self.channels.inspect_channel(subject)))
    }

    fn are_occupied<'a>(&'a self, subjects: &'a [ChannelKey]) -> BoxFuture<'a, Result<Vec<bool>, BusError>> {
        Box::pin(self.call_if_available(self.channels.are_occupied(subjects)))
    }

    fn list_channels<'a>(
        &'a self,
        app: &'a AppId,
        prefix: &'a str,
    ) -> BoxFuture<'a, Result<Vec<(ChannelName, u64)>, BusError>> {
        Box::pin(self.call_if_available(self.channels.list_channels(app, prefix)))
    }
}

impl SessionDirectory for RedisBus {
    fn send_heartbeat<'a>(&'a self, peer: &'a RelayPeer) -> BoxFuture<'a, Result<HeartbeatResponse, BusError>> {
        Box::pin(self.sessions.send_heartbeat(peer))
    }

    fn claim_session<'a>(
        &'a self,
        session: &'a str,
        process: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(self.sessions.claim_session(session, process))
    }

    fn refresh_sessions<'a>(&'a self, sessions: &'a [String], process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.sessions.refresh_sessions(sessions, process))
    }

    fn session_owner<'a>(&'a self, session: &'a str) -> BoxFuture<'a, Result<Option<String>, BusError>> {
        Box::pin(self.sessions.session_owner(session))
    }

    fn release_session<'a>(&'a self, session: &'a str, process: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.sessions.release_session(session, process))
    }

    fn report_lost_send<'a>(&'a self, session: &'a str, owner: &'a str) -> BoxFuture<'a, Result<(), BusError>> {
        Box::pin(self.sessions.report_lost_send(session, owner))
    }
}

impl LoadBoard for RedisBus {
    fn exchange_load<'a>(
        &'a self,
        process: &'a str,
        load: &'a EdgeLoad,
    ) -> BoxFuture<'a, Result<Vec<EdgeLoad>, BusError>> {
        Box::pin(self.sessions.exchange_load(process, load))
    }
}

impl Health for RedisBus {
    fn is_available(&self) -> bool {
        self.core.is_available()
    }

    fn is_presence_ready(&self) -> bool {
        self.core.is_presence_ready()
    }
}
