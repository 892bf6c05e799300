//! The ledger of the webhook pipeline, from the answers of `/flow` of all pods of a cluster, or from saved ones.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use futures::future::try_join_all;
use tokio::time::{sleep, timeout};

use super::BAD_INPUT_EXIT_CODE;
use super::admin_connection::{AdminTarget, list_targets, read_admin_token};
use super::cluster_api::build_namespaced_api;
use super::print::print_text;
use crate::config::ServerKind;
use crate::kubernetes::client::build_clients;
use crate::protocol::Secret;
use crate::protocol::admin::FlowReport;
use crate::protocol::ledger_balance::{Imbalance, find_imbalance};

/// Time between two observations: events that are counted at one hop have reached the next by then.
const OBSERVATION_INTERVAL: Duration = Duration::from_secs(3);

/// Longest that the answer of a pod may take after its head.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer of a pod, in bytes.
const FLOW_MAX_BYTES: usize = 4 << 20;

/// Prints the ledger of the processes whose `/flow` is in these files. Returns 0 if every hop balances, 1 if one does not.
pub fn print_ledger(files: &[PathBuf]) -> u8 {
    let read = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        serde_json::from_str::<FlowReport>(&text).map_err(|error| format!("no answer of /flow: {error}"))
    };
    let mut flows = Vec::with_capacity(files.len());
    for file in files {
        match read(file) {
            Ok(flow) => flows.push(flow),
            Err(error) => {
                eprintln!("realtime: {}: {error}; save the answer of a pod's `/flow` there", file.display());
                return BAD_INPUT_EXIT_CODE;
            }
        }
    }
    print_flows(&flows, find_imbalance(&flows, &flows).as_ref())
}

/// Prints the ledger of all running edges and dispatchers of a cluster, read twice through port-forwards. Returns 0 if every
/// hop balances, 1 if one does not, 2 if a pod cannot be read.
pub async fn print_live_ledger(cluster: &str, namespace: Option<&str>) -> u8 {
    let read = async {
        let (targets, token) = find_pods(cluster, namespace).await?;
        let before = read_flows(&targets, &token).await?;
        sleep(OBSERVATION_INTERVAL).await;
        Ok::<_, String>((before, read_flows(&targets, &token).await?))
    };
    match read.await {
        Ok((before, after)) => print_flows(&after, find_imbalance(&before, &after).as_ref()),
        Err(line) => {
            eprintln!("realtime: {line}");
            BAD_INPUT_EXIT_CODE
        }
    }
}

async fn find_pods(cluster: &str, namespace: Option<&str>) -> Result<(Vec<AdminTarget>, Secret), String> {
    let clients = build_clients(Arc::default()).await.map_err(|error| error.to_string())?;
    let token = read_admin_token(&clients.call, namespace, cluster).await?;
    let api = build_namespaced_api(&clients.call, namespace);
    let targets = list_targets(&api, cluster, &ServerKind::ALL).await?;
    if targets.is_empty() {
        return Err(format!("no pod of the cluster {cluster} runs: see `realtime status`"));
    }
    Ok((targets, token))
}

async fn read_flows(targets: &[AdminTarget], token: &Secret) -> Result<Vec<FlowReport>, String> {
    try_join_all(
        targets
            .iter()
            .map(async |target| read_flow(target, token).await.map_err(|error| format!("{}: {error}", target.name()))),
    )
    .await
}

/// Reads `/flow` of a process.
///
/// # Errors
/// One line: it does not answer in time, or with another document.
pub async fn read_flow(target: &AdminTarget, token: &Secret) -> Result<FlowReport, String> {
    let body = target.get("/flow", token).await?;
    let bytes = timeout(READ_TIMEOUT, to_bytes(body, FLOW_MAX_BYTES)).await;
    let bytes = bytes.map_err(|_| format!("no end in {} s", READ_TIMEOUT.as_secs()))?;
    let bytes = bytes.map_err(|error| format!("its /flow of at most {FLOW_MAX_BYTES} bytes was not read: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("no answer of /flow: {error}"))
}

fn print_flows(flows: &[FlowReport], imbalance: Option<&Imbalance>) -> u8 {
    let code = print_text(&render_ledger(flows, imbalance));
    if code == 0 { u8::from(imbalance.is_some()) } else { code }
}

/// Renders the sums of all processes, hop by hop, and the first hop that does not balance. Writing to a text cannot fail.
fn render_ledger(flows: &[FlowReport], imbalance: Option<&Imbalance>) -> String {
    let mut text = String::new();
    let mut add_line = |name: &str, counts: &[(&str, u64)]| {
        let shown = counts.iter().enumerate().filter(|(at, (_, count))| *at == 0 || *count > 0);
        let shown: Vec<String> = shown.map(|(_, (hop, count))| format!("{hop} {count}")).collect();
        let _ = writeln!(text, "{name:<11} {}", shown.join(", "));
    };
    let recorders: Vec<_> = flows.iter().filter_map(|flow| flow.recorder.as_ref()).collect();
    let dispatchers: Vec<_> = flows.iter().filter_map(|flow| flow.dispatcher.as_ref()).collect();
    if !recorders.is_empty() {
        add_line(
            "edges",
            &[
                ("decided", recorders.iter().map(|it| it.decided).sum()),
                ("unwanted", recorders.iter().map(|it| it.unwanted).sum()),
                ("enqueued", recorders.iter().map(|it| it.accepted).sum()),
                ("put", recorders.iter().map(|it| it.acknowledged).sum()),
                ("dropped", recorders.iter().flat_map(|it| it.dropped.values()).sum()),
                ("queued", recorders.iter().map(|it| it.queued).sum()),
            ],
        );
    }
    if !dispatchers.is_empty() {
        let events: Vec<_> = dispatchers.iter().filter_map(|it| it.events).collect();
        let deliveries: Vec<_> = dispatchers.iter().filter_map(|it| it.deliveries).collect();
        add_line(
            "dispatchers",
            &[
                ("read", events.iter().map(|it| it.read).sum()),
                ("duplicate", events.iter().map(|it| it.duplicate).sum()),
                ("foreign", events.iter().map(|it| it.foreign).sum()),
                ("poison", events.iter().map(|it| it.poison).sum()),
                ("of unknown apps", events.iter().map(|it| it.unknown_app).sum()),
                ("superseded", events.iter().map(|it| it.superseded).sum()),
                ("cancelled", events.iter().map(|it| it.cancelled).sum()),
                ("unwanted", events.iter().map(|it| it.unwanted).sum()),
                ("relinquished", events.iter().map(|it| it.relinquished).sum()),
                ("waiting", events.iter().map(|it| it.waiting).sum()),
                ("released", events.iter().map(|it| it.released).sum()),
            ],
        );
        add_line(
            "deliveries",
            &[
                ("created", deliveries.iter().map(|it| it.created).sum()),
                ("attempted", deliveries.iter().map(|it| it.attempted).sum()),
                ("delivered", deliveries.iter().map(|it| it.delivered).sum()),
                ("dead-lettered", deliveries.iter().map(|it| it.dead_lettered).sum()),
                ("dropped", deliveries.iter().map(|it| it.dropped).sum()),
                ("relinquished", deliveries.iter().map(|it| it.relinquished).sum()),
                ("waiting", deliveries.iter().map(|it| it.waiting).sum()),
            ],
        );
        let trimmed: u64 = dispatchers.iter().map(|it| it.trimmed).sum();
        if trimmed > 0 {
            let _ = writeln!(text, "trimmed     {trimmed} positions before they were read: webhooks are lost");
        }
    }
    match imbalance {
        None => text.push_str("every hop balances\n"),
        Some(imbalance) => {
            let _ = writeln!(text, "the first hop that does not balance: {imbalance}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_is_printed_with_the_first_hop_that_does_not_balance() {
        let edge = |put: u64| {
            format!(
                r#"{{"process":"e","startedMs":2,"recorder":{{"state":"kinesis","decided":5,"unwanted":1,"accepted":4,
                "acknowledged":{put},"queued":1,"dropped":{{"compacted":1}}}}}}"#
            )
        };
        let dispatcher = r#"{"process":"d","startedMs":1,"dispatcher":{"stream":"s","shards":{},"delivered":1,
            "failedAttempts":0,"dropped":{},"unfinished":1,"events":{"read":2,"released":2},
            "deliveries":{"created":2,"attempted":3,"delivered":1,"waiting":1},"trimmed":1}}"#;
        let flows = |put| [edge(put), dispatcher.to_owned()].map(|text| serde_json::from_str(&text).expect("a flow"));
        assert_eq!(
            render_ledger(&flows(2), None),
            "edges       decided 5, unwanted 1, enqueued 4, put 2, dropped 1, queued 1\n\
             dispatchers read 2, released 2\n\
             deliveries  created 2, attempted 3, delivered 1, waiting 1\n\
             trimmed     1 positions before they were read: webhooks are lost\n\
             every hop balances\n"
        );
        let text = render_ledger(&flows(3), find_imbalance(&flows(3), &flows(3)).as_ref());
        assert!(
            text.ends_with("balance: enqueued → put at e: 1 are counted twice (4 entered, 5 accounted for)\n"),
            "{text}"
        );
    }
}
