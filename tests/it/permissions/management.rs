//! Rights by which the operator manages streams, withdrawn one by one on a real emulator.

use std::collections::BTreeSet;

use realtime_operator::api::Reason;
use realtime_operator::desired::{StreamCapacity, StreamGoal};
use realtime_operator::kinesis::KinesisClient;
use realtime_operator::operator::delete_stream_of;

use super::{
    Breakage, EVENTS, LETTERS, MANIFEST, breakage_of, print_roles, read_goals, with_longer_retention, with_tag,
};
use crate::fixtures::connect_kinesis_as;
use crate::iam_double::{ADMINISTRATOR, IamDouble, Permission};
use crate::kinesis_local::KinesisLocal;
use crate::stream_management::{FAST, Lifetime, owner};
use crate::waiting::eventually;

/// The emulator behind the double, whose clients are the operator's.
pub async fn start_kinesis(iam: &IamDouble) -> KinesisLocal {
    let kinesis = KinesisLocal::start(&FAST).await;
    let endpoint = format!("http://{}", iam.serve(kinesis.endpoint.clone()).await.expect("served"));
    kinesis.through(endpoint, "operator")
}

/// The stream of a purpose by its name, with the status of a cluster that is new.
pub fn new_lifetime<'a>(kinesis: &'a KinesisLocal, stream: &'a str) -> Lifetime<'a> {
    let of_purpose = if stream == LETTERS { Lifetime::of_dead_letters } else { Lifetime::new };
    Lifetime { dies: false, ..of_purpose(kinesis, stream, "eu") }
}

/// The goal in which a stream is before an edit, and the edited one, which needs the action; `None` before the creation.
fn edit_for(action: &str, goal: &StreamGoal) -> (Option<StreamGoal>, StreamGoal) {
    let goal = goal.clone();
    match action {
        "kinesis:CreateStream" => (None, goal),
        "kinesis:AddTagsToStream" | "kinesis:ListTagsForStream" => (Some(goal.clone()), with_tag(&goal)),
        "kinesis:RemoveTagsFromStream" => (Some(with_tag(&goal)), goal),
        "kinesis:UpdateStreamMode" => {
            (Some(goal.clone()), StreamGoal { capacity: Some(StreamCapacity::OnDemand), ..goal })
        }
        "kinesis:UpdateShardCount" => {
            (Some(goal.clone()), StreamGoal { capacity: Some(StreamCapacity::Provisioned(4)), ..goal })
        }
        "kinesis:IncreaseStreamRetentionPeriod" => (Some(goal.clone()), with_longer_retention(&goal)),
        "kinesis:DecreaseStreamRetentionPeriod" => {
            (Some(with_longer_retention(&goal)), StreamGoal { retention_hours: Some(24), ..goal })
        }
        "kinesis:StartStreamEncryption" | "kms:DescribeKey" => {
            (Some(StreamGoal { encryption_key: None, ..goal.clone() }), goal)
        }
        // Every reconcile describes, and the deletion has no goal.
        _ => (Some(goal.clone()), goal),
    }
}

/// The attributes of a stream that a change would show, and its tags; the error for none.
async fn describe(client: &KinesisClient) -> String {
    match (client.describe_stream().await, client.list_tags().await) {
        (Ok(summary), Ok(tags)) => format!("{summary:?} {tags:?}"),
        _ => "no stream".to_owned(),
    }
}

/// Withdraws a right from the operator between two goals of a stream.
async fn withdraw_right(kinesis: &KinesisLocal, iam: &IamDouble, permission: &Permission, stream: &str) {
    let Breakage::StreamCondition(reason, call) = breakage_of(permission) else { return };
    let [events, letters] = read_goals();
    let (before, after) = edit_for(&permission.action, if stream == LETTERS { &letters } else { &events });
    let administrator = connect_kinesis_as(ADMINISTRATOR, &kinesis.endpoint, stream).await;
    let mut lifetime = new_lifetime(kinesis, stream);
    let name = format!("without {} on {stream}", permission.action);
    if let Some(before) = &before {
        lifetime.settle(before).await;
    }
    assert_eq!(iam.take_denied(), BTreeSet::new(), "{name}: not before");
    iam.withdraw([permission.clone()]);
    let live = describe(&administrator).await;
    let started = format!("{call} on stream {stream} in ");
    if permission.action == "kinesis:DeleteStream" {
        let client = kinesis.client(stream).await;
        let error = delete_stream_of(&client, &lifetime.stored, &owner("eu")).await.expect_err("denied");
        assert_eq!(error.reason, reason, "{name}");
        assert!(error.message.starts_with(&started), "{name}: {}", error.message);
    } else {
        let found = lifetime.reconcile(&after).await.update;
        let condition = if stream == LETTERS { "DeadLetterReady" } else { "StreamReady" };
        assert_eq!((found.kind, found.status, found.reason), (condition, "False", reason), "{name}: {}", found.message);
        assert!(found.message.starts_with(&started), "{name}: {}", found.message);
    }
    let denied = BTreeSet::from([("operator".to_owned(), permission.action.clone())]);
    assert_eq!(iam.take_denied(), denied, "{name}: nothing else is denied");
    assert_eq!(describe(&administrator).await, live, "{name}: nothing was changed");
    iam.withdraw([]);
    lifetime.settle(&after).await;
    delete_as(&administrator).await;
}

async fn delete_as(administrator: &KinesisClient) {
    administrator.delete_stream().await.expect("accepted");
    eventually("the stream is gone", async || administrator.describe_stream().await.is_err(), |gone| *gone).await;
}

#[tokio::test]
async fn each_right_of_the_operator_on_streams_is_named_by_their_condition_and_changes_nothing_else() {
    let iam = IamDouble::new(&print_roles(MANIFEST));
    let kinesis = start_kinesis(&iam).await;
    let mut rows = 0;
    for permission in iam.list_permissions() {
        let is_of = |stream: &str| permission.resource.ends_with(&format!("/{stream}"));
        let streams =
            [EVENTS, LETTERS].into_iter().filter(|stream| is_of(stream) || !(is_of(EVENTS) || is_of(LETTERS)));
        for stream in streams {
            withdraw_right(&kinesis, &iam, &permission, stream).await;
            rows += usize::from(matches!(breakage_of(&permission), Breakage::StreamCondition(..)));
        }
    }
    assert!(rows > 20, "{rows}: the operator has more rights than that");
}

#[tokio::test]
async fn a_creation_without_the_right_to_add_tags_names_that_right() {
    let iam = IamDouble::new(&print_roles(MANIFEST));
    let kinesis = start_kinesis(&iam).await;
    let of_tags = |permission: &Permission| permission.action == "kinesis:AddTagsToStream";
    iam.withdraw(iam.list_permissions().into_iter().filter(of_tags));
    let [goal, _] = read_goals();
    let found = new_lifetime(&kinesis, EVENTS).reconcile(&goal).await.update;
    assert_eq!((found.status, found.reason), ("False", Reason::AccessDenied));
    for part in ["CreateStream on stream events", "grant it kinesis:AddTagsToStream"] {
        assert!(found.message.contains(part), "{part}: {}", found.message);
    }
}
