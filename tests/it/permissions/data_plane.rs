//! Rights of edges, dispatchers and the operator's journeys, withdrawn one by one from rehearsals of a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use realtime_operator::api::Reason;
use realtime_operator::config::ServerKind;
use realtime_operator::gate::{GatePhase, Verdict};
use realtime_operator::rehearsal::{Fault, RehearsalOptions, RunningRehearsal, Switch};

use super::{Breakage, EVENTS, LETTERS, MANIFEST, breakage_of, print_roles};
use crate::fixtures::REGION;
use crate::iam_double::{IamDouble, Permission};
use crate::rehearsal::{read_options, wait_for_verdict};
use crate::waiting::eventually_within;

/// Rehearsals that run at once on a machine with two cores.
const CONCURRENT_REHEARSALS: usize = 3;

/// The operator lists the shards of a stream that it knows every 30 s.
const LISTING_TIMEOUT: Duration = Duration::from_mins(1);

/// Starts a rehearsal whose every call passes the double.
pub async fn rehearse(manifest: &str, iam: &IamDouble, kinesis: Option<String>) -> RunningRehearsal {
    let options =
        RehearsalOptions { account: Some(iam.interposer(kinesis)), ..read_options(manifest, &[], BTreeMap::new()) };
    RunningRehearsal::start(options).await.expect("a rehearsal")
}

/// Withdraws a right from a new cluster, and expects the page's row.
async fn withdraw_right(iam: IamDouble, permission: Permission) {
    let began = Instant::now();
    iam.encrypt_streams(REGION, &[EVENTS, LETTERS]);
    iam.withdraw([permission.clone()]);
    let mut rehearsal = rehearse(MANIFEST, &iam, None).await;
    // A rehearsal that goes on after a failure would delay the others.
    let expected = AssertUnwindSafe(expect_breakage(&mut rehearsal, &iam, &permission)).catch_unwind().await;
    rehearsal.stop().await;
    println!("without {permission:?}: {:.1} s", began.elapsed().as_secs_f64());
    if let Err(panic) = expected {
        resume_unwind(panic);
    }
}

async fn expect_breakage(rehearsal: &mut RunningRehearsal, iam: &IamDouble, permission: &Permission) {
    let name = format!("{} without {} on {}", permission.server, permission.action, permission.resource);
    let breakage = breakage_of(permission);
    let is_refused_start = matches!(breakage, Breakage::RefusedStart);
    assert_eq!(rehearsal.refusals.is_empty(), !is_refused_start, "{name}: {:?}", rehearsal.refusals);
    let ready = |verdict: &Verdict| verdict.ready;
    match breakage {
        Breakage::RefusedStart => {
            let server = if permission.server == "edge" { ServerKind::Websocket } else { ServerKind::Dispatcher };
            let refused: Vec<ServerKind> = rehearsal.refusals.iter().map(|refusal| refusal.server).collect();
            assert_eq!(refused, [server], "{name}");
            let line = &rehearsal.refusals[0].line;
            assert!(line.contains(&format!("grant it {}", permission.action)), "{name}: {line}");
        }
        Breakage::RefusedGate(reason, part) => {
            // A slow machine may be refused for a moment for that.
            let says = |verdict: &Verdict| {
                verdict.phase == GatePhase::Refused && verdict.reason == reason && verdict.message.contains(part)
            };
            wait_for_verdict(rehearsal, &format!("{name}: {reason:?}"), says).await;
        }
        Breakage::UnknownShards => {
            let denied = |verdict: &Verdict| verdict.reason == Reason::AccessDenied;
            let verdict = wait_for_verdict(rehearsal, &name, denied).await;
            assert_eq!(verdict.phase, GatePhase::Proving, "{name}: {}", verdict.message);
            assert!(verdict.message.contains(&permission.action), "{name}: {}", verdict.message);
            iam.withdraw([]);
            wait_for_verdict(rehearsal, &format!("{name}, granted"), ready).await;
            iam.take_denied();
            iam.withdraw([permission.clone()]);
            eventually_within(LISTING_TIMEOUT, "a denied listing", async || {
                let denied = iam.list_denied();
                if denied.is_empty() { Err(denied) } else { Ok(()) }
            })
            .await;
            assert!(rehearsal.prober.as_ref().expect("journeys").verdicts.borrow().ready, "{name}: it was proven");
        }
        Breakage::UnreadStream(call) => {
            wait_for_verdict(rehearsal, &name, ready).await;
            iam.take_denied();
            let fault = Switch::Fault(Fault::ReceiverUnreachable);
            rehearsal.faults.switch(fault, true).await.expect("switched on");
            let unread = format!("the stream cannot be read back: {call} on stream {EVENTS}");
            let says = |verdict: &Verdict| !verdict.ready && verdict.message.contains(&unread);
            wait_for_verdict(rehearsal, &format!("{name}: {unread}"), says).await;
        }
        Breakage::UnprovenLetters(call) => {
            let unproven = format!("dead letters are not proven: {call} on stream");
            let says = |verdict: &Verdict| verdict.ready && verdict.message.contains(&unproven);
            wait_for_verdict(rehearsal, &format!("{name}: {unproven}"), says).await;
        }
        Breakage::RefusedReplay(_) | Breakage::StreamCondition(..) => panic!("{name}: another test has this row"),
    }
    let denied = BTreeSet::from([(permission.server.clone(), permission.action.clone())]);
    assert_eq!(iam.take_denied(), denied, "{name}: nothing else is denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_of_servers_and_journeys_breaks_what_the_page_says_and_nothing_else() {
    let printed = print_roles(MANIFEST);
    let is_elsewhere = |permission: &Permission| {
        matches!(breakage_of(permission), Breakage::RefusedReplay(_) | Breakage::StreamCondition(..))
    };
    let permissions = IamDouble::new(&printed).list_permissions();
    let cases = permissions.into_iter().filter(|permission| !is_elsewhere(permission));
    // One failure hides no other.
    let cases = cases.map(async |permission| {
        let case = Box::pin(withdraw_right(IamDouble::new(&printed), permission.clone()));
        AssertUnwindSafe(case).catch_unwind().await.err().map(|_| permission)
    });
    let ended = futures::stream::iter(cases).buffer_unordered(CONCURRENT_REHEARSALS).collect::<Vec<_>>().await;
    let failed: Vec<Permission> = ended.into_iter().flatten().collect();
    assert_eq!(failed, [], "the panics before this one say why");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_streams_without_a_name_in_the_manifest_are_enough() {
    let unnamed = MANIFEST.replace("      name: events\n", "").replace("deadLetter: { name: lost }", "deadLetter: {}");
    let unnamed = unnamed.replace("sockjs: { state: Disabled }", "sockjs: { replicas: 1 }");
    let iam = IamDouble::new(&print_roles(&unnamed));
    let mut rehearsal = rehearse(&unnamed, &iam, None).await;
    let proven = |verdict: &Verdict| verdict.ready && verdict.message.ends_with("; a test record became a dead letter");
    wait_for_verdict(&mut rehearsal, "a proof of events and letters", proven).await;
    assert_eq!(iam.take_denied(), BTreeSet::new());
    rehearsal.stop().await;
}
