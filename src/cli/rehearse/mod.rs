//! `realtime rehearse`: a whole cluster in this process, and the verdict on it.

mod migration;
mod report;
mod screen;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use self::report::RehearsalReport;
use self::screen::ProgressScreen;
use super::{files, report_bad_input};
use crate::api::{RealtimeApp, RealtimeCluster};
use crate::gate::{GatePhase, Verdict};
use crate::process::{signal, telemetry};
use crate::rehearsal::{
    DeliveredWebhook, Fault, ManifestOverride, RehearsalError, RehearsalOptions, RunningRehearsal, Switch,
};

/// The exit code of a cluster that did not become Ready.
const REFUSED_EXIT_CODE: u8 = 1;

/// The exit code of a run that a signal ended before the verdict.
const INTERRUPTED_EXIT_CODE: u8 = 130;

/// Interval at which the page gets newer latencies.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// Run a whole cluster in this process and see whether it would become Ready.
///
/// Edges, dispatcher, an in-process Kinesis and the journeys of the gate are started from exactly what `realtime render`
/// prints. The cluster is Ready once a client's events have arrived over every transport, as signed webhooks of every
/// kind. Ready or refused, it goes on serving until Ctrl-C, with a page that shows every hop, a client to try, and faults
/// to switch on and off. Exit codes: 0 became Ready, 1 refused, 2 bad input.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<RehearseCommand>,
    /// Files with one RealtimeCluster and its RealtimeApps; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Change a rendered variable of one server, as a manual edit of the Deployment would:
    /// `sockjs:REALTIME_WEBHOOKS=off`.
    /// SERVER is websocket, sockjs or dispatcher; `secret/APP_ID` in place of NAME changes that app's secret in the
    /// server's copy of the registry (`probe` is the app of the journeys).
    /// It is on at the start; the page, and `POST /faults/edit-1` for the first one, switch it off and on
    #[arg(long = "edit", value_name = "SERVER:NAME=VALUE")]
    edits: Vec<ManifestOverride>,
    /// Switch a fault on at the start; the page, and `POST /faults/NAME` with `on` or `off` at its address, switch it later
    #[arg(long = "fault", value_name = "NAME", value_parser = fault_parser())]
    faults: Vec<Fault>,
    /// Print the verdict and stop
    #[arg(long)]
    once: bool,
    /// Text for people, or JSON: one object with --once, else one object a line
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Give up when there is no verdict after this time, such as 60s or 2m
    #[arg(long, default_value = "60s", value_parser = super::parse_duration)]
    timeout: Duration,
    /// Port of the page on 127.0.0.1; 0 for a free one
    #[arg(long, default_value_t = 8420)]
    port: u16,
    /// Log filter, such as `info` or `realtime_operator::edge=debug`; logs go to standard error
    #[arg(long, default_value = "error", value_name = "FILTER")]
    log: String,
}

#[derive(clap::Subcommand)]
enum RehearseCommand {
    Migration(migration::MigrationArguments),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Parses the name of a fault; the long help has a line on each.
fn fault_parser() -> impl TypedValueParser<Value = Fault> {
    let names = Fault::ALL.map(|fault| PossibleValue::new(fault.name()).help(fault.help()));
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Fault>())
}

/// Runs `realtime rehearse` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    if let Some(RehearseCommand::Migration(arguments)) = arguments.command {
        return Box::pin(migration::run(arguments)).await;
    }
    let began = Instant::now();
    telemetry::start(&arguments.log);
    let mut input = match files::read(&arguments.files) {
        Ok(input) => input,
        Err(errors) => return report_bad_input(&errors),
    };
    if input.apps.is_empty() && !arguments.once {
        input.apps.extend(demo_app(&input.cluster));
        input.notes.push("the files hold no RealtimeApp: app 1 is made up to try the cluster with".to_owned());
    }
    let Ok(shutdown) = signal::shutdown_token() else {
        eprintln!("realtime: signals cannot be listened to");
        return REFUSED_EXIT_CODE;
    };
    let mut screen = ProgressScreen::new(arguments.output == Output::Json, arguments.once);
    screen.show_header(&input, &arguments.edits);
    let options = RehearsalOptions {
        cluster: input.cluster,
        apps: input.apps,
        secrets: input.secrets,
        edits: arguments.edits,
        page_port: (!arguments.once).then_some(arguments.port),
        interposers: std::collections::BTreeMap::new(),
        account: None,
        group: None,
    };
    let mut rehearsal = match RunningRehearsal::start(options).await {
        Ok(rehearsal) => rehearsal,
        Err(error) => {
            return match error {
                RehearsalError::Invalid(problems) => {
                    report_bad_input(&problems.iter().map(ToString::to_string).collect::<Vec<_>>())
                }
                RehearsalError::Edit(_) | RehearsalError::Port { .. } => report_bad_input(&[error.to_string()]),
                other => {
                    eprintln!("realtime: {other}");
                    REFUSED_EXIT_CODE
                }
            };
        }
    };
    for fault in arguments.faults {
        if let Err(error) = rehearsal.faults.switch(Switch::Fault(fault), true).await {
            rehearsal.stop().await;
            return report_bad_input(&[format!("--fault {fault}: {error}")]);
        }
    }
    // Before the verdict: a client may already be connected.
    let mut delivered = rehearsal.delivered.subscribe();
    screen.show_started(&rehearsal);
    let code = tokio::select! {
        report = await_verdict(&mut rehearsal, &mut screen, began, arguments.timeout) => {
            rehearsal.shown.send_replace(Some(report.to_json()));
            screen.show_verdict(&report, &rehearsal);
            if !arguments.once {
                serve(&mut rehearsal, &mut screen, &mut delivered, (report.ready, began), &shutdown).await;
            }
            if report.ready { 0 } else { REFUSED_EXIT_CODE }
        }
        () = shutdown.cancelled() => INTERRUPTED_EXIT_CODE,
    };
    screen.clear_bars();
    rehearsal.stop().await;
    code
}

/// An app to try a cluster with that has none.
fn demo_app(cluster: &RealtimeCluster) -> Option<RealtimeApp> {
    let app = serde_json::json!({
        "apiVersion": "realtime-operator.dev/v1alpha1",
        "kind": "RealtimeApp",
        "metadata": { "name": "demo", "namespace": cluster.metadata.namespace },
        "spec": {
            "appID": "1",
            "clientEvents": "Enabled",
            "webhooks": [{ "name": "demo", "url": "https://demo.example.com/webhooks" }],
        },
    });
    serde_json::from_value(app).ok()
}

/// Waits for the verdict, showing hops as they pass.
async fn await_verdict(
    rehearsal: &mut RunningRehearsal,
    screen: &mut ProgressScreen,
    began: Instant,
    timeout: Duration,
) -> RehearsalReport {
    let transports = rehearsal.transports.clone();
    if let Some(refusal) = rehearsal.refusals.first() {
        return RehearsalReport::of_refusal(refusal, &transports, began.elapsed());
    }
    let Some(prober) = rehearsal.prober.as_mut() else {
        return RehearsalReport::without_verdict(&transports, began.elapsed());
    };
    let deadline = tokio::time::sleep(timeout.saturating_sub(began.elapsed()));
    tokio::pin!(deadline);
    loop {
        let current: Verdict = prober.verdicts.borrow_and_update().clone();
        if current.phase == GatePhase::Open || current.phase == GatePhase::Refused {
            return RehearsalReport::new(&current, began.elapsed());
        }
        tokio::select! {
            changed = prober.verdicts.changed() => if changed.is_err() {
                return RehearsalReport::without_verdict(&transports, began.elapsed());
            },
            tick = prober.hops.recv() => match tick {
                Ok(tick) => screen.show_hop(&tick),
                // A screen that is too slow misses ticks, and nothing else depends on them.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            () = &mut deadline => return RehearsalReport::timed_out(&current, began.elapsed(), timeout),
        }
    }
}

/// Goes on serving until the token: prints webhooks, switched faults, and the verdict whenever it changes.
async fn serve(
    rehearsal: &mut RunningRehearsal,
    screen: &mut ProgressScreen,
    delivered: &mut broadcast::Receiver<DeliveredWebhook>,
    (ready, began): (bool, Instant),
    shutdown: &CancellationToken,
) {
    let mut faults = rehearsal.faults.subscribe();
    let mut verdicts = rehearsal.prober.as_ref().map(|prober| prober.verdicts.clone());
    let mut refresh = tokio::time::interval(REFRESH_INTERVAL);
    let (mut known, mut active) = (None, rehearsal.faults.active());
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            webhook = delivered.recv() => match webhook {
                Ok(webhook) => {
                    screen.show_webhook(&webhook);
                    continue;
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    screen.show_missed(missed);
                    continue;
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Ok(()) = faults.changed() => {
                let now = faults.borrow_and_update().clone();
                now.symmetric_difference(&active).for_each(|switch| screen.show_switch(*switch, now.contains(switch)));
                active = now;
            }
            Some(()) = next_change(&mut verdicts) => {}
            _ = refresh.tick() => {}
        }
        let Some(verdicts) = &verdicts else { continue };
        let report = RehearsalReport::new(&verdicts.borrow(), began.elapsed());
        let (was_ready, reason) = known.clone().unwrap_or((ready, report.reason.clone()));
        if was_ready != report.ready || reason != report.reason {
            screen.show_change(&report);
        }
        known = Some((report.ready, report.reason.clone()));
        rehearsal.shown.send_replace(Some(report.to_json()));
    }
}

/// Waits for another verdict; `None` when there will be none.
async fn next_change(verdicts: &mut Option<watch::Receiver<Verdict>>) -> Option<()> {
    let changed = verdicts.as_mut()?.changed().await;
    if changed.is_err() {
        *verdicts = None;
    }
    changed.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fixture::applied_cluster;

    #[test]
    fn a_cluster_without_apps_can_be_tried() {
        let cluster = applied_cluster("");
        let app = demo_app(&cluster).expect("an app");
        assert!(app.validate_cel().is_ok());
        assert_eq!(app.spec.app_id, "1");
    }
}
