//! The life of a stream on a real emulator, by an operator that restarts between any two calls.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use realtime_operator::api::Reason;
use realtime_operator::api::cluster::{StreamManagement, StreamStatus};
use realtime_operator::desired::{StreamCapacity, StreamGoal};
use realtime_operator::kinesis::{KinesisClient, LiveCapacity, StreamChange, StreamSummary};
use realtime_operator::operator::{
    DEAD_LETTER_STREAM_TEXTS, EVENT_STREAM_TEXTS, ManagedStream, StreamFinding, StreamOwner, StreamTexts,
    delete_stream_of,
};

use crate::kinesis_local::KinesisLocal;

/// Short transitions, which can be waited for.
pub const FAST: [(&str, &str); 6] = [
    ("CREATE_STREAM_DURATION", "60ms"),
    ("DELETE_STREAM_DURATION", "60ms"),
    ("UPDATE_SHARD_COUNT_DURATION", "60ms"),
    ("START_STREAM_ENCRYPTION_DURATION", "60ms"),
    ("STOP_STREAM_ENCRYPTION_DURATION", "60ms"),
    ("UPDATE_STREAM_MODE_DURATION", "60ms"),
];

/// Reconciles of one goal: far more than a goal has changes.
pub const RECONCILES_MAX: usize = 60;

/// Operations that change a stream.
pub const CHANGING: [&str; 10] = [
    "CreateStream",
    "AddTagsToStream",
    "RemoveTagsFromStream",
    "UpdateStreamMode",
    "UpdateShardCount",
    "IncreaseStreamRetentionPeriod",
    "DecreaseStreamRetentionPeriod",
    "StartStreamEncryption",
    "StopStreamEncryption",
    "DeleteStream",
];

fn goal(management: StreamManagement, capacity: Option<StreamCapacity>) -> StreamGoal {
    StreamGoal {
        management,
        capacity,
        retention_hours: None,
        encryption_key: None,
        tags: BTreeMap::new(),
        may_lower_retention: false,
        is_deleted_with_cluster: false,
    }
}

pub fn owner(cluster: &str) -> StreamOwner {
    StreamOwner { tag: format!("kubernetes/channels/{cluster}"), uid: format!("uid-{cluster}") }
}

/// A stream with the status that the API server holds.
pub struct Lifetime<'a> {
    pub kinesis: &'a KinesisLocal,
    pub stream: &'a str,
    pub cluster: &'a str,
    pub texts: &'static StreamTexts,
    pub stored: StreamStatus,
    /// Whether every second change dies before its status is written.
    pub dies: bool,
}

impl<'a> Lifetime<'a> {
    pub fn new(kinesis: &'a KinesisLocal, stream: &'a str, cluster: &'a str) -> Self {
        let stored = StreamStatus { name: stream.to_owned(), ..StreamStatus::default() };
        Self { kinesis, stream, cluster, texts: &EVENT_STREAM_TEXTS, stored, dies: true }
    }

    /// A stream for dead letters.
    pub fn of_dead_letters(kinesis: &'a KinesisLocal, stream: &'a str, cluster: &'a str) -> Self {
        Self { texts: &DEAD_LETTER_STREAM_TEXTS, ..Self::new(kinesis, stream, cluster) }
    }

    /// One reconcile by a process that has just started.
    pub async fn reconcile(&self, goal: &StreamGoal) -> StreamFinding {
        let client = self.kinesis.client(self.stream).await;
        let created_capacity = goal.capacity.unwrap_or(StreamCapacity::OnDemand);
        let managed = ManagedStream {
            client: &client,
            texts: self.texts,
            owner: owner(self.cluster),
            goal: goal.clone(),
            created_capacity,
            endpoint: Some("http://kinesis.test"),
            is_suspended: false,
            ensure_leader: &|| Ok(()),
        };
        managed.reconcile(self.stored.clone(), Timestamp::now()).await
    }

    /// Reconciles until nothing is left to do.
    pub async fn settle(&mut self, goal: &StreamGoal) -> StreamFinding {
        let mut changes = 0;
        for _ in 0..RECONCILES_MAX {
            let finding = self.reconcile(goal).await;
            assert!(finding.error.is_none(), "{:?}", finding.error);
            changes += usize::from(finding.event.is_some());
            if finding.event.is_none() || changes % 2 == 0 || !self.dies {
                self.stored = finding.stream.clone();
            }
            if finding.is_settled() {
                return finding;
            }
            self.kinesis.wait_until_active(self.stream).await;
        }
        let finding = self.reconcile(goal).await;
        assert!(finding.is_settled(), "not settled: {:?}", finding.update);
        finding
    }

    async fn describe(&self) -> StreamSummary {
        self.kinesis.client(self.stream).await.describe_stream().await.expect("a stream")
    }
}

/// The changing calls since the last look.
pub fn changing_calls(kinesis: &KinesisLocal) -> Vec<String> {
    kinesis.take_calls().into_iter().filter(|call| CHANGING.contains(&call.as_str())).collect()
}

async fn create_foreign(client: &KinesisClient, shards: u32, tags: &[(&str, &str)]) {
    let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    client.create_stream(LiveCapacity::Provisioned(shards), &tags).await.expect("created");
}

#[tokio::test]
async fn a_stream_is_created_and_follows_its_manifest_while_the_operator_restarts_between_any_two_calls() {
    let kinesis = KinesisLocal::start(&FAST).await;
    let mut owned = Lifetime::new(&kinesis, "main", "eu");
    let provisioned = |shards| goal(StreamManagement::Create, Some(StreamCapacity::Provisioned(shards)));
    let found = owned.settle(&provisioned(1)).await;
    assert_eq!((found.update.status, found.update.reason), ("True", Reason::StreamActive));
    assert_eq!(changing_calls(&kinesis), ["CreateStream"]);
    assert_eq!(owned.stored.cluster_id, "uid-eu");
    assert_eq!(owned.stored.adopted_at, None, "a created stream is read from its oldest record");

    let found = owned.settle(&provisioned(8)).await;
    assert_eq!(changing_calls(&kinesis), ["UpdateShardCount"; 3], "1, 2, 4, 8: none twice");
    assert_eq!((found.stream.shards, found.stream.pending_steps.len()), (Some(8), 0));
    owned.settle(&provisioned(2)).await;
    assert_eq!(changing_calls(&kinesis), ["UpdateShardCount"; 2]);
    assert_eq!(owned.describe().await.open_shards, 2);

    let tags = BTreeMap::from([("team".to_owned(), "chat".to_owned())]);
    let all = StreamGoal {
        retention_hours: Some(48),
        encryption_key: Some("alias/aws/kinesis".to_owned()),
        tags,
        ..provisioned(2)
    };
    owned.settle(&all).await;
    let calls = changing_calls(&kinesis);
    assert_eq!(calls, ["IncreaseStreamRetentionPeriod", "StartStreamEncryption", "AddTagsToStream"]);
    let live = owned.describe().await;
    assert_eq!((live.retention_hours, live.encryption_key.is_some()), (48, true));

    let lower = StreamGoal { retention_hours: Some(24), ..all.clone() };
    let found = owned.settle(&lower).await;
    assert_eq!((found.update.status, found.update.reason), ("True", Reason::StreamDiffers));
    assert!(found.update.message.contains("write acknowledgeDataLoss: [LowerRetention]"), "{:?}", found.update);
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new(), "no loss without its word");
    owned.settle(&StreamGoal { may_lower_retention: true, ..lower }).await;
    assert_eq!(changing_calls(&kinesis), ["DecreaseStreamRetentionPeriod"]);

    let on_demand = StreamGoal { capacity: Some(StreamCapacity::OnDemand), retention_hours: None, ..all };
    let found = owned.settle(&on_demand).await;
    assert_eq!(changing_calls(&kinesis), ["UpdateStreamMode"]);
    assert_eq!((found.stream.mode.as_str(), found.stream.shard_changes_left_24h), ("OnDemand", None));

    let client = kinesis.client("main").await;
    let stranger = delete_stream_of(&client, &owned.stored, &owner("us")).await;
    assert_eq!(stranger.expect("no call fails"), None, "the stream of another cluster is left alone");
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new());
    for _ in 0..RECONCILES_MAX {
        if delete_stream_of(&client, &owned.stored, &owner("eu")).await.expect("no call fails").is_none() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(client.describe_stream().await.is_err(), "the stream is gone");
    assert_eq!(changing_calls(&kinesis), ["DeleteStream"]);
    let found = owned.reconcile(&provisioned(1)).await;
    assert_eq!(found.update.reason, Reason::StreamMissing, "a stream that existed is not created again");
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new());
}

#[tokio::test]
async fn a_stream_of_others_is_adopted_or_observed_or_refused_as_the_manifest_says() {
    let kinesis = KinesisLocal::start(&FAST).await;
    create_foreign(&kinesis.client("shared").await, 2, &[("team", "terraform")]).await;
    kinesis.wait_until_active("shared").await;
    changing_calls(&kinesis);
    let mut owned = Lifetime::new(&kinesis, "shared", "eu");

    let refused = owned.reconcile(&goal(StreamManagement::Create, None)).await;
    assert_eq!((refused.update.status, refused.update.reason), ("False", Reason::StreamNotOurs));
    assert!(refused.update.message.contains("Write management: Adopt"), "{:?}", refused.update);
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new());

    let four = Some(StreamCapacity::Provisioned(4));
    let observed = owned.reconcile(&goal(StreamManagement::Observe, four)).await;
    assert_eq!((observed.update.status, observed.update.reason), ("True", Reason::StreamDiffers));
    assert!(observed.update.message.contains("shards is 4, and the stream has 2"), "{:?}", observed.update);
    assert!(observed.stream.adopted_at.is_some(), "it is read from now on");
    assert_eq!(observed.stream.cluster_id, "uid-eu");
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new(), "an observed stream is never changed");

    let adopted = owned.settle(&goal(StreamManagement::Adopt, None)).await;
    assert_eq!((adopted.update.status, adopted.update.reason), ("True", Reason::StreamActive));
    assert_eq!(changing_calls(&kinesis), ["AddTagsToStream"]);
    assert!(adopted.stream.adopted_at.is_some(), "also if the operator died after the call");
    assert_eq!(adopted.stream.shards, Some(2), "its capacity stays");
    owned.settle(&goal(StreamManagement::Adopt, four)).await;
    assert_eq!(changing_calls(&kinesis), ["UpdateShardCount"]);
    let tags = kinesis.client("shared").await.list_tags().await.expect("tags");
    assert_eq!(tags.get("team").map(String::as_str), Some("terraform"));

    let other = Lifetime::new(&kinesis, "shared", "us");
    for management in [StreamManagement::Create, StreamManagement::Adopt, StreamManagement::Observe] {
        let refused = other.reconcile(&goal(management, None)).await;
        assert_eq!(refused.update.reason, Reason::StreamNotOurs, "{management:?}");
        assert!(refused.update.message.contains("belongs to kubernetes/channels/eu"), "{:?}", refused.update);
    }
    let missing = Lifetime::new(&kinesis, "nowhere", "eu");
    for management in [StreamManagement::Adopt, StreamManagement::Observe] {
        let found = missing.reconcile(&goal(management, None)).await;
        assert_eq!(found.update.reason, Reason::StreamMissing, "{management:?}");
        assert!(found.update.message.contains("management: AdoptOrCreate"), "{:?}", found.update);
    }
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new());
    let mut created = Lifetime::new(&kinesis, "nowhere", "eu");
    created.settle(&goal(StreamManagement::AdoptOrCreate, Some(StreamCapacity::OnDemand))).await;
    assert_eq!(changing_calls(&kinesis), ["CreateStream"]);
}

#[tokio::test]
async fn a_stream_that_is_being_deleted_is_named_and_left_alone() {
    let kinesis = KinesisLocal::start(&[("CREATE_STREAM_DURATION", "60ms"), ("DELETE_STREAM_DURATION", "60s")]).await;
    let mut owned = Lifetime::new(&kinesis, "going", "eu");
    let one = goal(StreamManagement::Create, Some(StreamCapacity::Provisioned(1)));
    owned.settle(&one).await;
    kinesis.client("going").await.delete_stream().await.expect("accepted");
    changing_calls(&kinesis);
    let found = owned.reconcile(&StreamGoal { retention_hours: Some(48), ..one }).await;
    assert_eq!((found.update.status, found.update.reason), ("False", Reason::StreamDeleting));
    assert!(found.update.message.contains("Find out who deletes it"), "{:?}", found.update);
    assert_eq!(changing_calls(&kinesis), Vec::<String>::new());
}

#[tokio::test]
async fn each_refused_call_is_named_with_its_reason_and_changes_nothing_else() {
    let kinesis = KinesisLocal::start(&FAST).await;
    let denied = "AccessDeniedException";
    let mut owned = Lifetime::new(&kinesis, "denied", "eu");
    let one = goal(StreamManagement::Create, Some(StreamCapacity::Provisioned(1)));
    kinesis.refuse(Some(("CreateStream", denied)));
    let found = owned.reconcile(&one).await;
    assert_eq!(found.update.reason, Reason::AccessDenied);
    assert!(found.update.message.starts_with("CreateStream on stream denied"), "{:?}", found.update);
    kinesis.refuse(Some(("CreateStream", "LimitExceededException")));
    let found = owned.reconcile(&one).await;
    assert_eq!((found.update.status, found.update.reason), ("False", Reason::WaitingForQuota));
    kinesis.refuse(None);
    owned.settle(&one).await;
    let (key, retention) = (Some("k".to_owned()), StreamGoal { retention_hours: Some(48), ..one.clone() });
    let encrypted = StreamGoal { encryption_key: key, ..one.clone() };
    let two = StreamGoal { capacity: Some(StreamCapacity::Provisioned(2)), ..one.clone() };
    let on_demand = StreamGoal { capacity: Some(StreamCapacity::OnDemand), ..one.clone() };
    let tagged = StreamGoal { tags: BTreeMap::from([("a".to_owned(), "b".to_owned())]), ..one.clone() };
    for (operation, code, goal, reason) in [
        ("DescribeStreamSummary", denied, &one, Reason::AccessDenied),
        ("ListTagsForStream", denied, &tagged, Reason::AccessDenied),
        ("AddTagsToStream", denied, &tagged, Reason::AccessDenied),
        ("UpdateShardCount", denied, &two, Reason::AccessDenied),
        ("UpdateStreamMode", denied, &on_demand, Reason::AccessDenied),
        ("IncreaseStreamRetentionPeriod", denied, &retention, Reason::AccessDenied),
        ("StartStreamEncryption", denied, &encrypted, Reason::AccessDenied),
        ("StartStreamEncryption", "KMSNotFoundException", &encrypted, Reason::StreamKeyUnusable),
        ("StartStreamEncryption", "KMSDisabledException", &encrypted, Reason::StreamKeyUnusable),
    ] {
        kinesis.take_calls();
        kinesis.refuse(Some((operation, code)));
        let found = owned.reconcile(goal).await;
        assert_eq!((found.update.status, found.update.reason), ("False", reason), "{operation} {code}");
        assert!(found.update.message.starts_with(operation), "{:?}", found.update);
        let others: Vec<String> = changing_calls(&kinesis).into_iter().filter(|call| call != operation).collect();
        assert_eq!(others, Vec::<String>::new(), "{operation} {code}");
    }
    kinesis.refuse(Some(("UpdateShardCount", "LimitExceededException")));
    let found = owned.reconcile(&two).await;
    assert_eq!((found.update.status, found.update.reason), ("True", Reason::WaitingForQuota), "{:?}", found.update);
    kinesis.refuse(None);
    let live = owned.describe().await;
    assert_eq!((live.open_shards, live.retention_hours, live.encryption_key), (1, 24, None));
    let change = StreamChange::RaiseRetention(30);
    kinesis.client("denied").await.change_stream(&live.arn, &change).await.expect("allowed again");
    let found = owned.settle(&retention).await;
    assert_eq!(found.stream.retention_hours, Some(48), "the settings follow once the calls are allowed");
}
