//! One journey: what a customer's event goes through, hop by hop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::clients::client::{ProbeClient, is_member_added_for};
use super::clients::link::BrokenHop;
use super::clients::target::{SessionTarget, resolve_targets};
use super::control_journey::ControlJourney;
use super::diagnose::{MissingWebhook, diagnose_missing_webhook};
use super::expected_webhooks::{CLIENT_EVENT_NAME, webhooks_of_joining, webhooks_of_leaving};
use super::http_publish::{HttpPublish, PUBLISHED_EVENT_NAME, explain_large_event, publish_over_http};
use super::nonce::JourneyChannels;
use super::observe::PodObserver;
use super::progress::{HopCallback, HopResult};
use super::public_api::PublicApi;
use super::read_back::{SoughtRecord, StreamReadBack};
use super::receiver::{ReceivedWebhook, WebhookClaim, WebhookReceiver};
use super::{DispatcherPod, EdgePod, Entrance, ProbePlan};
use crate::api::Reason;
use crate::gate::{Hop, HopFailure, Journey, JourneyOutcome};
use crate::kinesis::Shard;
use crate::process::clock;
use crate::protocol::frame::ServerMessage;
use crate::protocol::record::EventKind;
use crate::protocol::{AppId, ShardId, Transport};

/// The event a server sends for a cache channel without a last event.
const CACHE_MISS_EVENT_NAME: &str = "pusher:cache_miss";

/// Longest that another session may take to connect, so that a dead neighbour costs little.
const COMPANION_TIMEOUT: Duration = Duration::from_secs(3);

/// Pods that are tried for the second session.
const COMPANION_ATTEMPTS_MAX: usize = 2;

/// Sessions that a journey through a path opens besides its own: each may meet another pod.
const EXTRA_SESSIONS_COUNT: usize = 9;

/// Dependencies that all journeys share.
#[derive(Clone)]
pub(super) struct JourneyContext {
    pub plan: Arc<ProbePlan>,
    pub receiver: WebhookReceiver,
    pub observer: PodObserver,
    pub read_back: Arc<StreamReadBack>,
    pub http: reqwest::Client,
}

/// Pods for the second session of a journey.
#[derive(Clone, Debug)]
pub(super) enum Companions {
    /// There is no other pod: the fan-out between pods does not apply.
    NotApplicable,
    /// Other pods, best first; none when those that should be there do not answer.
    Pods(Vec<(Transport, EdgePod)>),
}

/// How messages name the pod of the second session: another one each time, which would make each message new.
const COMPANION_NAME: &str = "another pod";

/// A second session on another pod.
struct Companion {
    client: ProbeClient,
    /// Whether clients reach the pod: only then is a failure measured wrong.
    admitted: bool,
    /// The address of the pod.
    public: SocketAddr,
}

/// Which way one journey goes.
pub(super) struct JourneyRoute {
    /// Fingerprint of the plan under which the journey begins.
    pub fingerprint: String,
    pub transport: Transport,
    pub entrance: Entrance,
    /// Entry points for the second session.
    pub companions: Companions,
    pub channels: JourneyChannels,
    /// Number of the journey, by which the addresses of a load balancer take turns.
    pub turn: usize,
    /// Open shards, as last listed.
    pub shards: Arc<Vec<Shard>>,
    /// The stream whose records pass through the shards.
    pub app: AppId,
    /// Set if the gate must refuse the journey.
    pub control: Option<ControlJourney>,
}

impl JourneyRoute {
    /// The shards that the journey's records go through.
    fn record_shards(&self) -> Vec<ShardId> {
        let channels = [&self.channels.private, &self.channels.presence];
        let shard = |channel| JourneyChannels::shard_of(&self.app, channel, &self.shards).cloned();
        channels.into_iter().filter_map(shard).collect()
    }
}

/// A journey whose hops 1 to 10 held and whose farewell is still to come.
pub(super) struct RunningJourney {
    context: Arc<JourneyContext>,
    route: JourneyRoute,
    client: ProbeClient,
    claim: WebhookClaim,
    log: HopLog,
    /// Addresses that posted webhooks of the private channel.
    senders: BTreeSet<IpAddr>,
}

struct HopLog {
    started_ms: u64,
    last: Instant,
    latency_ms: BTreeMap<Hop, u64>,
    fan_out_tried: bool,
    report_hop: HopCallback,
}

impl HopLog {
    fn record_passed(&mut self, hop: Hop) {
        let ms = clock::whole_ms(self.last.elapsed());
        self.last = Instant::now();
        self.latency_ms.insert(hop, ms);
        (self.report_hop)(hop, HopResult::Passed(ms));
    }

    fn record_not_applicable(&mut self, hop: Hop) {
        self.fan_out_tried &= hop != Hop::FanOut;
        (self.report_hop)(hop, HopResult::NotApplicable);
    }

    /// Several hops that one observation proves; the time went into `hop`, as far as can be seen from outside.
    fn record_proven(&mut self, hop: Hop, proven: &[Hop]) {
        let ms = clock::whole_ms(self.last.elapsed());
        self.last = Instant::now();
        for passed in proven {
            if *passed == hop {
                self.latency_ms.insert(hop, ms);
            }
            (self.report_hop)(*passed, if *passed == hop { HopResult::Passed(ms) } else { HopResult::Proven });
        }
    }
}

/// Hops 1 to 10. The error is the finished journey that broke.
pub(super) async fn run_journey(
    context: Arc<JourneyContext>,
    route: JourneyRoute,
    report_hop: HopCallback,
) -> Result<RunningJourney, Journey> {
    let mut log = HopLog {
        started_ms: clock::now_ms(),
        last: Instant::now(),
        latency_ms: BTreeMap::new(),
        // Until the fan-out turns out not to apply.
        fan_out_tried: true,
        report_hop,
    };
    let (receiver, nonce, app) = (&context.receiver, &route.channels.nonce, &context.plan.app);
    let mut claim = match route.control {
        None => receiver.claim_webhooks(nonce, app),
        Some(control) => control.claim_webhooks(receiver, nonce, app),
    };
    match run_hops(&context, &route, &mut claim, &mut log).await {
        Ok((client, senders)) => Ok(RunningJourney { context, route, client, claim, log, senders }),
        Err(broken) => Err(finish_journey(&route, None, log, Some(broken))),
    }
}

async fn run_hops(
    context: &JourneyContext,
    route: &JourneyRoute,
    claim: &mut WebhookClaim,
    log: &mut HopLog,
) -> Result<(ProbeClient, BTreeSet<IpAddr>), BrokenHop> {
    let (plan, entrance, channels) = (&context.plan, &route.entrance, &route.channels);
    let deadline = Instant::now() + plan.policy.timeout;
    let targets = resolve_targets(&entrance.name, &entrance.public, entrance.is_external).await?;
    let first = route.turn % targets.len();
    let mut client =
        ProbeClient::connect(&targets[first], route.transport, &plan.app, |hop| log.record_passed(hop)).await?;

    if entrance.admin.is_none() {
        open_extra_sessions(context, route, &targets).await?;
    }

    client.subscribe(&plan.app, &channels.private, None, deadline).await?;
    client.subscribe(&plan.app, &channels.presence, Some(&channels.member_id()), deadline).await?;
    // Asked last: a bus that is away lets clients into private channels in silence, and a presence channel tells of it.
    expect_cache_miss(&mut client, route, deadline).await?;
    log.record_passed(Hop::Subscribe);

    let companion = join_companion(context, route).await?;
    let sent = client.send_client_event(&channels.presence, CLIENT_EVENT_NAME, &channels.client_event_payload()).await;
    sent.map_err(|error| explain_large_event(error, channels))?;
    log.record_passed(Hop::Publish);

    match companion {
        Some(mut companion) => {
            check_fan_out(context, route, &mut client, &mut companion, deadline).await?;
            log.record_passed(Hop::FanOut);
        }
        None => log.record_not_applicable(Hop::FanOut),
    }
    if let Some(address) = &entrance.api {
        let (app, entrance, timeout) = (&plan.app, entrance.name.as_str(), plan.policy.timeout);
        PublicApi { app, entrance, address, channels, turn: route.turn, timeout }.prove(&mut client).await?;
    }
    let senders = if plan.webhooks {
        await_webhooks(context, route, &client, claim, log, deadline).await?
    } else {
        BTreeSet::new()
    };
    Ok((client, senders))
}

/// Several sessions over connections of their own, all of which must come up: through a Service, which may lead each to
/// another pod, and at every address of a load balancer.
async fn open_extra_sessions(
    context: &JourneyContext,
    route: &JourneyRoute,
    targets: &[SessionTarget],
) -> Result<(), BrokenHop> {
    let count = if route.entrance.is_external { targets.len().min(EXTRA_SESSIONS_COUNT) } else { EXTRA_SESSIONS_COUNT };
    let open = |target| ProbeClient::connect(target, route.transport, &context.plan.app, |_| {});
    futures::future::try_join_all(targets.iter().cycle().take(count).map(open)).await.map(drop)
}

/// A channel that keeps its last event and has none says so to who comes.
async fn expect_cache_miss(client: &mut ProbeClient, route: &JourneyRoute, deadline: Instant) -> Result<(), BrokenHop> {
    let channel = route.channels.private.as_str();
    let hop = (Hop::Subscribe, Reason::SubscribeRejected);
    let told =
        |message: &ServerMessage| message.event == CACHE_MISS_EVENT_NAME && message.channel.as_deref() == Some(channel);
    let told = client.wait_for_event(deadline, hop, told).await;
    told.map(drop).map_err(|error| BrokenHop {
        detail: format!("no {CACHE_MISS_EVENT_NAME} for the private channel: {}", error.detail),
        ..error
    })
}

/// A second session that joins the presence channel and sees the first there; `None` when there is no other pod. A pod
/// that clients do not reach is no proof against this one: the next is tried.
async fn join_companion(context: &JourneyContext, route: &JourneyRoute) -> Result<Option<Companion>, BrokenHop> {
    let Companions::Pods(pods) = &route.companions else { return Ok(None) };
    let mut failure = BrokenHop::ambiguous(
        Hop::FanOut,
        Reason::FanoutBroken,
        format!("no other pod could be reached beside {}", route.entrance.name),
    );
    for (transport, pod) in pods.iter().take(COMPANION_ATTEMPTS_MAX) {
        let deadline = Instant::now() + COMPANION_TIMEOUT;
        let app = &context.plan.app;
        let target = SessionTarget::of_pod(COMPANION_NAME, pod.public);
        let connect = ProbeClient::connect(&target, *transport, app, |_| {});
        let Ok(Ok(client)) = timeout_at(deadline, connect).await else { continue };
        let mut companion = Companion { client, admitted: pod.admitted, public: pod.public };
        match join_presence(context, route, &mut companion, deadline).await {
            Ok(()) => return Ok(Some(companion)),
            Err(broken) if pod.admitted => return Err(broken),
            Err(broken) => failure = broken,
        }
    }
    Err(failure)
}

/// The second session subscribes, and sees the first in the presence channel.
async fn join_presence(
    context: &JourneyContext,
    route: &JourneyRoute,
    companion: &mut Companion,
    deadline: Instant,
) -> Result<(), BrokenHop> {
    let (app, channels) = (&context.plan.app, &route.channels);
    let joined = companion.client.subscribe(app, &channels.presence, Some(&channels.witness_id()), deadline).await;
    let users = joined.map_err(|error| companion.fan_out_failure(error, "a second session could not subscribe"))?;
    if users.contains(&channels.member_id()) {
        return Ok(());
    }
    let detail = format!("{COMPANION_NAME} does not see the member that joined on {}", route.entrance.name);
    let broken = BrokenHop::ambiguous(Hop::FanOut, Reason::FanoutBroken, detail);
    Err(BrokenHop { decisive: companion.admitted, ..broken })
}

impl Companion {
    /// A failure of the second session. It is measured wrong only where clients reach the pod.
    fn fan_out_failure(&self, broken: BrokenHop, failed: &str) -> BrokenHop {
        BrokenHop {
            hop: Hop::FanOut,
            reason: Reason::FanoutBroken,
            detail: format!("{failed}: {}", broken.detail),
            decisive: self.admitted && broken.is_proof_of_fault(true),
            ..broken
        }
    }
}

/// The other session sees the client event and a publish, and the first sees the other come.
async fn check_fan_out(
    context: &JourneyContext,
    route: &JourneyRoute,
    client: &mut ProbeClient,
    companion: &mut Companion,
    deadline: Instant,
) -> Result<(), BrokenHop> {
    let (entrance, channels) = (&route.entrance, &route.channels);
    let missed = |what: &str| format!("{COMPANION_NAME} did not get the {what} of {}", entrance.name);
    let hop = (Hop::FanOut, Reason::FanoutBroken);
    let wanted = serde_json::from_str::<serde_json::Value>(&channels.client_event_payload()).unwrap_or_default();
    // A server that refuses the event says so to its sender.
    let arrived = companion
        .client
        .wait_for_event(deadline, hop, |message| message.event == CLIENT_EVENT_NAME && message.data == wanted);
    let refused = async {
        match client.wait_for_event(deadline, (Hop::Publish, Reason::PublishRejected), |_| false).await {
            Err(error) if error.decisive => error,
            // Silence is no refusal: the other arm ends at the deadline.
            _ => std::future::pending().await,
        }
    };
    let arrived = tokio::select! {
        biased;
        result = arrived => result,
        error = refused => return Err(error),
    };
    arrived.map_err(|error| companion.fan_out_failure(error, &missed("client event")))?;
    // Load balancers of clients lead to no HTTP API: the second session's pod takes the publish then.
    let own = entrance.public.target.to_string();
    let address = if entrance.is_external { companion.public.to_string() } else { own };
    let publish = HttpPublish {
        entrance: &entrance.name,
        is_external: false,
        url: format!("http://{address}"),
        channel: &channels.presence,
        event: PUBLISHED_EVENT_NAME,
        data: "{}",
        timeout: context.plan.policy.timeout,
    };
    publish_over_http(&context.http, &context.plan.app, publish).await?;
    let published =
        companion.client.wait_for_event(deadline, hop, |message| message.event == PUBLISHED_EVENT_NAME).await;
    published.map_err(|error| companion.fan_out_failure(error, &missed("publish through the HTTP API")))?;
    let seen =
        client.wait_for_event(deadline, hop, |message| is_member_added_for(message, &channels.witness_id())).await;
    seen.map_err(|error| {
        let failed = format!("{} did not announce the member on {COMPANION_NAME}", entrance.name);
        companion.fan_out_failure(error, &failed)
    })?;
    // It leaves before the first does, so that the channel is vacated through the pod that is proven.
    let left = companion.client.unsubscribe(&channels.presence).await;
    left.map_err(|error| companion.fan_out_failure(error, &missed("farewell")))?;
    // The answer to a leave is the announcement to the others.
    let left = client.wait_for_event(deadline, hop, |message| message.event == "pusher_internal:member_removed").await;
    left.map(drop).map_err(|error| {
        let failed = format!("{} did not announce that the member on {COMPANION_NAME} left", entrance.name);
        companion.fan_out_failure(error, &failed)
    })
}

/// Hops 7 to 10: an authentic webhook of each event proves them all.
async fn await_webhooks(
    context: &JourneyContext,
    route: &JourneyRoute,
    client: &ProbeClient,
    claim: &mut WebhookClaim,
    log: &mut HopLog,
    deadline: Instant,
) -> Result<BTreeSet<IpAddr>, BrokenHop> {
    let (entrance, channels) = (&route.entrance, &route.channels);
    let mut senders = BTreeSet::new();
    let mut due = webhooks_of_joining(channels, client.socket_id());
    while !due.is_empty() {
        let Ok(Some(arrived)) = timeout_at(deadline, claim.events.recv()).await else {
            let (event, channel) = (due[0].0.name(), due[0].1);
            let Some(shard) = JourneyChannels::shard_of(&context.plan.app.id, channel, &route.shards) else {
                let detail = format!("no {event} webhook of {}, and no open shard holds {channel}", entrance.name);
                return Err(BrokenHop::ambiguous(Hop::Record, Reason::RecordMissing, detail));
            };
            let record = SoughtRecord { event, channel, shard, since_ms: log.started_ms };
            let missing = MissingWebhook { entrance, record, waited: context.plan.policy.timeout };
            return Err(diagnose_missing_webhook(&context.plan, &context.observer, &context.read_back, &missing).await);
        };
        check_authenticity(entrance, &arrived)?;
        let event = &arrived.event;
        if event.channel == channels.private {
            senders.insert(arrived.sender);
        }
        if let Some(at) = due.iter().position(|(kind, channel)| *kind == event.kind && **channel == event.channel) {
            due.remove(at);
            continue;
        }
        let kind = event.kind.name();
        // The second session's member comes too; of any other kind a channel has one event.
        let another = matches!(event.kind, EventKind::MemberAdded { .. });
        if !another && due.iter().any(|(due, channel)| due.name() == kind && **channel == event.channel) {
            let detail = format!("the {kind} webhook of {} says something else than was sent", entrance.name);
            return Err(BrokenHop::decisive(Hop::Authenticity, Reason::PayloadWrong, detail));
        }
    }
    log.record_proven(Hop::Delivery, &[Hop::Record, Hop::Dispatch, Hop::Delivery, Hop::Authenticity]);
    Ok(senders)
}

fn check_authenticity(entrance: &Entrance, arrived: &ReceivedWebhook) -> Result<(), BrokenHop> {
    arrived.authentic.clone().map_err(|error| {
        let detail =
            format!("the {} webhook of {} is not authentic: {error}", arrived.event.kind.name(), entrance.name);
        BrokenHop::decisive(Hop::Authenticity, Reason::SignatureInvalid, detail)
    })
}

impl RunningJourney {
    /// Hop 11: the webhooks of unsubscribing arrive.
    pub async fn tear_down(mut self) -> Journey {
        let result = self.leave_channels().await.err();
        let Self { context, route, log, senders, .. } = self;
        let dispatcher = match &result {
            None => find_sender(&context.plan.dispatchers, &senders),
            Some(_) => None,
        };
        finish_journey(&route, dispatcher, log, result)
    }

    async fn leave_channels(&mut self) -> Result<(), BrokenHop> {
        let channels = &self.route.channels;
        for channel in [&channels.presence, &channels.private] {
            self.client.unsubscribe(channel).await?;
        }
        if !self.context.plan.webhooks {
            return Ok(());
        }
        let mut wanted = webhooks_of_leaving(channels);
        let deadline = Instant::now() + self.context.plan.policy.timeout;
        while !wanted.is_empty() {
            let Ok(Some(arrived)) = timeout_at(deadline, self.claim.events.recv()).await else {
                let (pod, seconds) = (&self.route.entrance.name, self.context.plan.policy.timeout.as_secs());
                let detail = format!("left {pod}, but no {} webhook arrived in {seconds} s", wanted[0].0.name());
                return Err(BrokenHop::ambiguous(Hop::Farewell, Reason::VacatedMissing, detail));
            };
            check_authenticity(&self.route.entrance, &arrived)?;
            wanted.retain(|(kind, channel)| *kind != arrived.event.kind || **channel != arrived.event.channel);
        }
        self.log.record_passed(Hop::Farewell);
        Ok(())
    }
}

/// The dispatcher whose address posted the webhooks; `None` when several did, or when the address is no dispatcher's.
fn find_sender(dispatchers: &[DispatcherPod], senders: &BTreeSet<IpAddr>) -> Option<String> {
    let sender = senders.first().filter(|_| senders.len() == 1)?;
    let mut matching = dispatchers.iter().filter(|pod| pod.admin.ip().to_canonical() == *sender);
    match (matching.next(), matching.next()) {
        (Some(pod), None) => Some(pod.pod.clone()),
        (None, _) => {
            tracing::warn!(%sender, "webhook sender unknown: the address is no dispatcher's, so that none is proven by it");
            None
        }
        (Some(_), Some(_)) => None,
    }
}

fn finish_journey(
    route: &JourneyRoute,
    dispatcher: Option<String>,
    mut log: HopLog,
    broken: Option<BrokenHop>,
) -> Journey {
    let dispatcher = dispatcher.or_else(|| broken.as_ref()?.dispatcher.clone());
    let outcome = match broken {
        None => JourneyOutcome::Pass,
        Some(broken) => {
            // A server's answer repeats the names of the channels, which are new with each journey.
            let detail = broken.detail.replace(&route.channels.nonce, "…");
            (log.report_hop)(broken.hop, HopResult::Broken(detail.clone()));
            // A path leads elsewhere when a pod goes, which breaks a session once: that alone is no fault of the path.
            let proves = broken.is_proof_of_fault(route.entrance.admin.is_none());
            let failure = HopFailure { hop: broken.hop, reason: broken.reason, detail };
            if proves { JourneyOutcome::Decisive(failure) } else { JourneyOutcome::Ambiguous(failure) }
        }
    };
    Journey {
        fingerprint: route.fingerprint.clone(),
        transport: route.transport,
        entrance: route.entrance.name.clone(),
        shards: route.record_shards(),
        dispatcher,
        started_ms: log.started_ms,
        ended_ms: clock::now_ms(),
        latency_ms: log.latency_ms,
        fan_out_tried: log.fan_out_tried,
        outcome,
    }
}
