//! Switches faults and edits while a rehearsal runs: one at a time, from the command line, the page or a test.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::error::{RehearsalError, StartRefusal};
use super::faults::{Fault, FaultSwitches, Switch};
use super::kubelet_double;
use super::overrides::{ManifestOverride, OverrideTarget, overridden_registry, override_variables};
use super::pods::{EdgeAddresses, PodSet};
use crate::config::ServerKind;
use crate::desired::{DesiredObjects, SecretTexts};
use crate::prober::ProbePlan;
use crate::process::clock;
use crate::protocol::registry::AppRegistry;
use crate::protocol::{AppId, Secret};

/// Requests that wait for their turn.
const REQUEST_QUEUE_LEN: usize = 16;

/// Age of the change of the registry that a pod has not loaded, beyond the 90 s that it has for one.
const STALE_CHANGE_AGE: Duration = Duration::from_mins(2);

/// Why a fault is not switched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The fault is about a customer's app, and the files hold none.
    #[error("the files hold no RealtimeApp, whose registry entry the fault changes: add one")]
    NoApp,
    /// The command line has no such edit.
    #[error("the rehearsal has {0} edits: write edit-1 for the first `--edit`, or the name of a fault")]
    NoEdit(usize),
    /// No journey runs, because a server refused to start.
    #[error("a server refuses to start, so that no journey runs: correct the manifest and start again")]
    NoJourneys,
    /// A pod did not start again.
    #[error("{0}")]
    Refused(String),
    /// The rehearsal has ended.
    #[error("the rehearsal has ended: start it again")]
    Ended,
}

/// A request to switch a fault or an edit.
struct SwitchRequest {
    switch: Switch,
    on: bool,
    done: oneshot::Sender<Result<(), SwitchError>>,
}

/// The handle by which faults are switched. Cheap to clone.
#[derive(Clone)]
pub struct FaultControl {
    requests: mpsc::Sender<SwitchRequest>,
    switches: FaultSwitches,
    edits: Arc<[ManifestOverride]>,
}

impl FaultControl {
    /// Switches a fault or an edit, and waits until the processes or doubles concerned have changed.
    ///
    /// # Errors
    /// It cannot be switched in this rehearsal.
    pub async fn switch(&self, switch: Switch, on: bool) -> Result<(), SwitchError> {
        let (done, result) = oneshot::channel();
        self.requests.send(SwitchRequest { switch, on, done }).await.map_err(|_| SwitchError::Ended)?;
        result.await.unwrap_or(Err(SwitchError::Ended))
    }

    /// Lists the edits and then the faults, each with a line on its effect.
    pub fn list_switches(&self) -> impl Iterator<Item = (Switch, String)> {
        let edits = self.edits.iter().enumerate();
        let edits = edits.map(|(place, edit)| {
            let server = edit.server;
            let help = match &edit.target {
                OverrideTarget::Variable(_) => format!("{edit}: the {server} pods restart with it"),
                OverrideTarget::AppSecret(_) => format!("{edit}: the {server} pods' copy of the registry has it"),
            };
            (Switch::Edit(place), help)
        });
        edits.chain(Fault::ALL.map(|fault| (Switch::Fault(fault), fault.help().to_owned())))
    }

    /// The faults and edits that are on.
    #[must_use]
    pub fn active(&self) -> BTreeSet<Switch> {
        self.switches.active()
    }

    /// Follows the faults and edits that are on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<Switch>> {
        self.switches.subscribe()
    }
}

/// The rendered objects without edits, and the texts of the Secrets that their pods read.
pub(super) struct RenderedCluster {
    pub objects: DesiredObjects,
    pub secrets: SecretTexts,
}

/// Owns the pods, and changes them as faults and edits are switched.
pub(super) struct FaultSwitcher {
    pub pods: PodSet,
    pub rendered: RenderedCluster,
    pub edits: Arc<[ManifestOverride]>,
    pub switches: FaultSwitches,
    /// The plan of the journeys; `None` when none run.
    pub plan: Option<watch::Sender<Arc<ProbePlan>>>,
    /// The edges' addresses, as the page shows them.
    pub addresses: watch::Sender<EdgeAddresses>,
    /// Number of changes of the first app; the dispatchers' copy may be one behind.
    pub app_changes: u32,
}

impl FaultSwitcher {
    /// Starts the task that switches. It ends with the token, and then waits for the pods.
    pub fn start(self, shutdown: CancellationToken) -> (FaultControl, JoinHandle<()>) {
        let (requests, mut received) = mpsc::channel::<SwitchRequest>(REQUEST_QUEUE_LEN);
        let control = FaultControl { requests, switches: self.switches.clone(), edits: self.edits.clone() };
        let task = tokio::spawn(async move {
            let mut switcher = self;
            loop {
                let request = tokio::select! {
                    () = shutdown.cancelled() => break,
                    request = received.recv() => request,
                };
                let Some(SwitchRequest { switch, on, done }) = request else {
                    shutdown.cancelled().await;
                    break;
                };
                // The asking side may have gone.
                let _ = done.send(Box::pin(switcher.switch(switch, on)).await);
            }
            switcher.pods.wait_stopped().await;
        });
        (control, task)
    }

    async fn switch(&mut self, switch: Switch, on: bool) -> Result<(), SwitchError> {
        let Some(plan) = self.plan.clone() else { return Err(SwitchError::NoJourneys) };
        let (restarts, changes_registry) = match switch {
            Switch::Fault(fault) => (fault.restarts(), fault.changes_registry()),
            Switch::Edit(place) => {
                let edit = self.edits.get(place).ok_or(SwitchError::NoEdit(self.edits.len()))?;
                let is_variable = matches!(edit.target, OverrideTarget::Variable(_));
                (is_variable.then_some(edit.server), !is_variable)
            }
        };
        if self.switches.active().contains(&switch) == on {
            return Ok(());
        }
        if matches!(switch, Switch::Fault(_)) && changes_registry && self.first_app().is_none() {
            return Err(SwitchError::NoApp);
        }
        tracing::info!(%switch, on, "fault switched");
        if switch == Switch::Fault(Fault::StaleRegistry) && on {
            self.app_changes += 1;
            self.record_registry(&plan.borrow());
        }
        self.switches.set(switch, on);
        let failed = |error: &dyn std::fmt::Display| SwitchError::Refused(error.to_string());
        if matches!(switch, Switch::Edit(_)) {
            self.render_pods().map_err(|error| failed(&error))?;
        }
        let mut refusal = None;
        if let Some(server) = restarts {
            let restarted = self.pods.restart(server).await.map_err(|error| failed(&error))?;
            refusal = restarted.err();
        }
        if changes_registry {
            self.mount_registries().map_err(|error| failed(&error))?;
        }
        plan.send_modify(|plan| {
            let (edges, dispatchers) = (self.pods.edges(), self.pods.dispatchers());
            *plan = Arc::new(ProbePlan { edges, dispatchers, ..(**plan).clone() });
        });
        self.addresses.send_replace(EdgeAddresses::of_edges(&self.pods.edges()));
        match refusal {
            Some(StartRefusal { server, pod, line }) => {
                Err(SwitchError::Refused(format!("{server}: {pod} refuses to start: {line}")))
            }
            None => Ok(()),
        }
    }

    /// The edits that are on.
    fn active_edits(&self) -> Vec<ManifestOverride> {
        let active = self.switches.active();
        let edits = self.edits.iter().enumerate().filter(|(place, _)| active.contains(&Switch::Edit(*place)));
        edits.map(|(_, edit)| edit.clone()).collect()
    }

    /// Renders the variables of every pod anew, as the edits that are on leave them.
    fn render_pods(&mut self) -> Result<(), RehearsalError> {
        let mut objects = self.rendered.objects.clone();
        override_variables(&mut objects, &self.active_edits())?;
        for (server, deployment) in &objects.deployments {
            self.pods.replace_rendered(*server, kubelet_double::rendered_pods(deployment, &self.rendered.secrets)?);
        }
        Ok(())
    }

    /// The first app of a customer.
    fn first_app(&self) -> Option<AppId> {
        let cluster = &self.pods.environment().cluster;
        cluster.registry.apps().map(|app| app.id.clone()).find(|id| *id != cluster.probe.id)
    }

    /// Records the registry as the operator would have rendered it a while ago.
    fn record_registry(&self, plan: &ProbePlan) {
        let cluster = &self.pods.environment().cluster;
        let first = self.first_app();
        let apps = cluster.registry.apps().cloned().map(|mut app| {
            if Some(&app.id) == first.as_ref() {
                app.limits.client_events_per_second += self.app_changes;
            }
            app
        });
        let digests = AppRegistry::new(apps).app_digests(cluster.admin_token.expose());
        let age_ms = clock::whole_ms(STALE_CHANGE_AGE);
        let mut history = plan.registry.write().unwrap_or_else(PoisonError::into_inner);
        history.record(digests, clock::now_ms().saturating_sub(age_ms));
    }

    /// Writes each server's copy of the registry.
    fn mount_registries(&self) -> Result<(), RehearsalError> {
        let (first, edits) = (self.first_app(), self.active_edits());
        let cluster = &self.pods.environment().cluster;
        for server in cluster.servers.iter().map(|server| server.kind) {
            let behind = server == ServerKind::Dispatcher && self.switches.is_on(Fault::StaleRegistry);
            let wrong = server == ServerKind::Dispatcher && self.switches.is_on(Fault::AppSecret);
            let apps: Vec<_> = overridden_registry(cluster, server, &edits)?
                .apps()
                .cloned()
                .map(|mut app| {
                    if Some(&app.id) == first.as_ref() {
                        app.limits.client_events_per_second += self.app_changes - u32::from(behind);
                        for credential in app.credentials.iter_mut().filter(|_| wrong) {
                            credential.secret = Secret::new("another secret");
                        }
                    }
                    app
                })
                .collect();
            self.pods.mount_registry(server, &AppRegistry::new(apps))?;
        }
        Ok(())
    }
}
