//! The ledger from the edge to the endpoint: it balances, and names the hop at which a record vanishes.

use realtime_operator::bus::MemoryBus;
use realtime_operator::dispatcher::{Checkpoint, CheckpointPosition};
use realtime_operator::protocol::ledger::{DeliveryLedger, EventLedger};
use realtime_operator::protocol::ledger_balance::{LedgerHop, find_imbalance};

use super::scripted_receiver::{Behaviour, ScriptedReceiver};
use super::*;
use crate::edge;
use crate::ledger::{read_flow, wait_for_balance};

#[tokio::test]
async fn a_record_that_the_stream_swallows_is_found_at_its_hop() {
    let (endpoint, kinesis, faults) = start_faulty_kinesis("events", 1).await;
    let bed = Bed::on_stream(endpoint, kinesis).await;
    let app = App { webhooks: vec![build_webhook(&bed.receiver.serve().await)], ..build_app("1", "key", "secret") };
    write_registry(bed.apps.path(), [app]);
    let (dispatcher, _) = bed.dispatcher_of("events", &[LOOPBACK, ("REALTIME_CLUSTER_UID", "uid-1")]).await;
    let is_read = |flow: &DispatcherFlow| flow.shards.values().any(|shard| shard.read_at_ms > 0);
    eventually("a shard is read", async || flow(&dispatcher).await, is_read).await;
    let edge = edge::start("websocket", MemoryBus::new(), Some(bed.kinesis.clone())).await;
    let mut ann = edge.websocket().await;
    ann.subscribe("private-room", None).await;
    bed.receiver.receives("the occupancy arrives", |ids| ids.len() == 1).await;
    let processes = [(edge.running.admin, edge::TOKEN), (dispatcher.admin, "token")];
    wait_for_balance(&processes).await;

    faults.set(Some(CallFault::SwallowedRecords));
    ann.send(&edge::client_event("private-room", &serde_json::json!(1))).await;
    let read = async || {
        let mut flows = Vec::new();
        for (admin, token) in processes {
            flows.extend(read_flow(admin, token).await);
        }
        find_imbalance(&flows, &flows)
    };
    let found = eventually("an imbalance", read, Option::is_some).await.expect("an imbalance");
    assert_eq!((found.hop, found.entered, found.accounted, &found.process), (LedgerHop::Put, 2, 1, &None));
}

#[tokio::test]
async fn every_event_is_at_one_hop_of_the_ledger() {
    let bed = Bed::new(1).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    let now = now_ms();
    bed.put("cluster-2", "a", vec![message("foreign", 0)]).await;
    bed.put(CLUSTER, "a", vec![state("1", now, 1, EventKind::ChannelOccupied)]).await;
    bed.put(CLUSTER, "a", vec![state("2", now, 2, EventKind::ChannelVacated)]).await;
    bed.put(CLUSTER, "a", vec![state("3", now, 3, EventKind::ChannelOccupied)]).await;
    bed.put(CLUSTER, "a", vec![state("1b", now, 1, EventKind::ChannelOccupied)]).await;
    for _ in 0..2 {
        bed.put(CLUSTER, "b", vec![message("m", 0)]).await;
    }
    let rubbish = PutEntry { partition_key: "1001/a".into(), data: Bytes::from_static(b"\xf3\x89\x9a\xc2") };
    bed.kinesis.put_records(&[rubbish]).await.expect("put");
    bed.put(CLUSTER, "a", vec![message("last", 1)]).await;
    bed.receiver.receives("the last arrives", |ids| ids.contains(&"last".to_owned())).await;
    let is_done = |flow: &DispatcherFlow| flow.unfinished == 0;
    let flow = eventually("nothing waits", async || flow(&running).await, is_done).await;
    let events = EventLedger {
        read: 9,
        duplicate: 1,
        foreign: 1,
        poison: 1,
        superseded: 1,
        cancelled: 2,
        released: 3,
        ..EventLedger::default()
    };
    let deliveries = flow.deliveries.expect("deliveries");
    let expected = DeliveryLedger { created: 3, delivered: 3, attempted: deliveries.attempted, ..Default::default() };
    assert_eq!((flow.events, deliveries), (Some(events), expected));
    assert!(deliveries.attempted >= 3);
    wait_for_balance(&[(running.admin, "token")]).await;
}

#[tokio::test]
async fn what_waits_in_a_shard_that_is_given_up_is_relinquished_and_read_by_the_next_holder_alone() {
    let bed = Bed::new(2).await;
    let receiver = ScriptedReceiver::default();
    bed.write_apps(&format!("{}/hook", receiver.serve().await));
    let (one, _) = bed.dispatcher(&[LOOPBACK]).await;
    let put = async |app: &str, part: &str| {
        for n in 0..10 {
            bed.put_for(app, CLUSTER, &format!("c{n}"), vec![message(&format!("{part}{n}"), 0)]).await;
        }
    };
    put("1001", "done").await;
    eventually("they arrive", async || receiver.received("hook").len(), |count| *count == 10).await;
    receiver.set("hook", Behaviour::Hang);
    put("1001", "hanging").await;
    put("9", "unknown").await;
    eventually("the others wait", async || flow(&one).await, |flow| flow.unfinished == 20).await;
    let (two, _) = bed.dispatcher(&[LOOPBACK]).await;
    let ledgers = async |of: &RunningDispatcher| {
        let flow = flow(of).await;
        (flow.events.expect("events"), flow.deliveries.expect("deliveries"))
    };
    let is_given_up = |(events, _): &(EventLedger, DeliveryLedger)| events.relinquished > 0;
    let (events, deliveries) = eventually("a shard is given up", async || ledgers(&one).await, is_given_up).await;
    assert!((1..10).contains(&events.relinquished) && (1..10).contains(&deliveries.relinquished), "{deliveries:?}");
    assert_eq!((deliveries.created, deliveries.delivered), (20, 10));
    let given_up = events.relinquished + deliveries.relinquished;
    let is_read = |(again, _): &(EventLedger, DeliveryLedger)| again.read >= given_up;
    let (again, created) = eventually("the next holder has them", async || ledgers(&two).await, is_read).await;
    // The delivered events were read for their order alone.
    assert_eq!((again.read, again.duplicate, created.created), (given_up, 0, deliveries.relinquished));
    wait_for_balance(&[(one.admin, "token")]).await;
    wait_for_balance(&[(two.admin, "token")]).await;
}

#[tokio::test]
async fn a_position_that_the_stream_has_trimmed_is_counted() {
    let bed = Bed::new(1).await;
    let status = MemberStatus { proven: true, backing_off: false };
    let shard = bed.kinesis.list_shards().await.expect("shards")[0].id.clone();
    bed.leases.send_heartbeat("former", status).await.expect("a view");
    let created = bed.kinesis.describe_stream().await.expect("a stream").created_ms;
    let lease = bed.leases.acquire_shard(&shard, "former").await.expect("acquired");
    let position = CheckpointPosition::Through("1".to_owned());
    let checkpoint = Checkpoint { stream_created_ms: created, position, beyond: None };
    bed.leases.release_shard(&shard, lease.generation, Some(checkpoint)).await.expect("released");
    bed.leases.remove_member("former").await.expect("removed");
    bed.put(CLUSTER, "a", vec![message("left", 0)]).await;
    let (running, _) = bed.dispatcher(&[LOOPBACK]).await;
    bed.receiver.receives("what is left arrives", |ids| ids == ["left"]).await;
    assert_eq!(flow(&running).await.trimmed, 1);
}
