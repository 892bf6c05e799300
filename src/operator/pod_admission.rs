//! Decides which pods are admitted and which are replaced. Pure.
//!
//! In: the pods of a cluster with the results of journeys through them. Out: the pods to admit, with the reason, and the
//! pods to replace. An admitted pod is never evicted: the failure of a shared part, which costs webhooks, must not cost
//! chat as well.

use std::collections::BTreeMap;

use super::pods::ServerPod;
use crate::config::ServerKind;
use crate::gate::Hop;
use crate::prober::PodStanding;

/// An action on one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmissionStep {
    /// Open the pod's readiness gate and annotate the pod.
    Admit {
        pod: String,
        /// Digest of the configuration that the pod runs.
        configuration: String,
        /// Whether it is admitted because this configuration was proven before, while the parts behind the edges fail for
        /// every pod.
        on_record: bool,
    },
    /// The pod is admitted but has not seen the annotation. Touching the pod makes kubelet refresh its downward-API file.
    Remind {
        pod: String,
        /// New value of the reminder annotation.
        remark: String,
    },
    /// Delete a pod whose container differs from its template: its successor may be created as rendered.
    Replace { pod: String, uid: String },
}

/// Grace period before a pod that differs from its template is replaced, in s: for the first, second and each later
/// replacement in a row. A webhook that mutates every pod must not cause a replacement storm.
const REPLACE_GRACE_SECONDS: [i64; 3] = [10, 20, 30];

/// Time between two reminders of one pod, in s; the first may come at once, and does no harm. Now and then kubelet misses
/// a changed annotation, and without a reminder refreshes the file only at its next sync, a minute or more later.
const REMINDER_INTERVAL_SECONDS: i64 = 10;

/// Decides the actions on all pods.
///
/// `passed` is whether the present fingerprint was proven before; `replaced` counts consecutive replacements by server;
/// `now` is in s since 1970.
#[must_use]
pub fn decide_steps(
    pods: &[ServerPod],
    standings: &BTreeMap<String, PodStanding>,
    passed: bool,
    replaced: &BTreeMap<ServerKind, usize>,
    now: i64,
) -> Vec<AdmissionStep> {
    let mut steps: Vec<AdmissionStep> =
        pods.iter().filter_map(|pod| admission_step(pod, pods, standings, passed)).collect();
    steps.extend(pods.iter().filter_map(|pod| reminder_step(pod, now)));
    for server in ServerKind::ALL {
        let count = replaced.get(&server).copied().unwrap_or(0);
        let grace = REPLACE_GRACE_SECONDS[count.min(REPLACE_GRACE_SECONDS.len() - 1)];
        let wrong = |pod: &&ServerPod| {
            pod.server == server && pod.admitted.is_none() && pod.tampered && now - pod.created >= grace
        };
        // One pod of a server at a time, the oldest first.
        let oldest = pods.iter().filter(wrong).min_by_key(|pod| (pod.created, &pod.name));
        steps.extend(oldest.map(|pod| AdmissionStep::Replace { pod: pod.name.clone(), uid: pod.uid.clone() }));
    }
    steps
}

fn admission_step(
    pod: &ServerPod,
    pods: &[ServerPod],
    standings: &BTreeMap<String, PodStanding>,
    passed: bool,
) -> Option<AdmissionStep> {
    // A pod of a former template is admitted by its own proof: clients need it while a rollout stands still.
    if pod.tampered || !(pod.current || pod.former.is_some()) {
        return None;
    }
    let found = standings.get(&pod.name)?;
    let configuration = &found.configuration;
    let done = pod.gate_open && pod.admitted.as_ref() == Some(configuration);
    if done || configuration.is_empty() {
        return None;
    }
    let admit =
        |on_record| AdmissionStep::Admit { pod: pod.name.clone(), configuration: configuration.clone(), on_record };
    if found.proof.proven {
        return Some(admit(false));
    }
    // The pod has its annotation, but the gate's condition was not written yet.
    if pod.admitted.as_ref() == Some(configuration) {
        return Some(admit(false));
    }
    let on_record = pod.server != ServerKind::Dispatcher
        && (passed || pod.former.is_some())
        && found.proof.reached
        && is_broken_behind_edges(pod, pods, standings);
    on_record.then(|| admit(true))
}

fn reminder_step(pod: &ServerPod, now: i64) -> Option<AdmissionStep> {
    let waits = pod.admitted.is_some() && pod.gate_open && !pod.serving && pod.address.is_some();
    waits
        .then(|| AdmissionStep::Remind { pod: pod.name.clone(), remark: (now / REMINDER_INTERVAL_SECONDS).to_string() })
}

/// Whether journeys through this pod, and through every admitted pod of the same configuration, fail behind the edges.
fn is_broken_behind_edges(pod: &ServerPod, pods: &[ServerPod], standings: &BTreeMap<String, PodStanding>) -> bool {
    let configuration = standings.get(&pod.name).map(|standing| &standing.configuration);
    let same = pods.iter().filter(|other| other.name != pod.name && other.admitted.as_ref() == configuration);
    let mut others = same.filter_map(|other| standings.get(&other.name)).peekable();
    let broken = |standing: &PodStanding| standing.proof.failure.as_ref().is_some_and(|f| f.hop >= Hop::Record);
    let own = standings.get(&pod.name).is_some_and(broken);
    own && others.peek().is_some() && others.all(broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;
    use crate::gate::{HopFailure, ProcessProof};

    fn pod(name: &str, admitted: Option<&str>, tampered: bool, created: i64) -> ServerPod {
        let server = if name.starts_with('d') { ServerKind::Dispatcher } else { ServerKind::Sockjs };
        ServerPod::for_test(name, server, admitted, tampered, created)
    }

    fn standing(configuration: &str, broken: Option<Hop>, proven: bool) -> PodStanding {
        let failure = broken.map(|hop| HopFailure { hop, reason: Reason::RecordMissing, detail: String::new() });
        let reached = proven || broken.is_some_and(|hop| hop >= Hop::Record);
        PodStanding {
            configuration: configuration.to_owned(),
            proof: ProcessProof { proven, reached, failure },
            drift: String::new(),
            registry: None,
        }
    }

    fn decided(pods: &[(ServerPod, PodStanding)], passed: bool, now: i64) -> Vec<AdmissionStep> {
        let standings = pods.iter().map(|(pod, standing)| (pod.name.clone(), standing.clone())).collect();
        let pods: Vec<ServerPod> = pods.iter().map(|(pod, _)| pod.clone()).collect();
        decide_steps(&pods, &standings, passed, &BTreeMap::new(), now)
    }

    fn admitted(pod: &str, on_record: bool) -> Vec<AdmissionStep> {
        vec![AdmissionStep::Admit { pod: pod.to_owned(), configuration: "c1".to_owned(), on_record }]
    }

    #[test]
    fn a_pod_is_admitted_by_its_own_journeys() {
        assert_eq!(
            decided(&[(pod("e1", None, false, 0), standing("c1", None, true))], false, 5),
            admitted("e1", false)
        );
        assert_eq!(decided(&[(pod("e1", None, false, 0), standing("c1", None, false))], true, 5), []);
        assert_eq!(
            decided(&[(pod("d1", None, false, 0), standing("c1", None, true))], false, 5),
            admitted("d1", false)
        );
        let other = decided(&[(pod("e1", None, true, 0), standing("c1", None, true))], true, 5);
        assert_eq!(other, [], "a pod that differs from its template is not admitted, even if its journeys pass");
    }

    #[test]
    fn a_proven_configuration_is_admitted_while_the_stream_is_unavailable_to_all_pods() {
        let unavailable = |configuration: &str| standing(configuration, Some(Hop::Record), false);
        let old = (pod("e1", Some("c1"), false, 0), unavailable("c1"));
        let new = (pod("e2", None, false, 0), unavailable("c1"));
        assert_eq!(decided(&[old.clone(), new.clone()], true, 5), admitted("e2", true));
        assert_eq!(decided(&[old.clone(), new.clone()], false, 5), [], "never proven");
        let well = (pod("e1", Some("c1"), false, 0), standing("c1", None, true));
        assert_eq!(decided(&[well, new.clone()], true, 5), [], "other pods deliver, so the fault is in this pod");
        let cut = (pod("e2", None, false, 0), standing("c1", Some(Hop::Subscribe), false));
        assert_eq!(decided(&[old.clone(), cut], true, 5), [], "the journey fails before the stream");
        let another = (pod("e2", None, false, 0), unavailable("c2"));
        assert_eq!(decided(&[old, another], true, 5), [], "another configuration");
        assert_eq!(decided(&[new], true, 5), [], "there is no admitted pod to compare with");
    }

    #[test]
    fn pods_that_differ_from_their_template_are_replaced_one_at_a_time() {
        let wrong = |name: &str, created| (pod(name, None, true, created), standing("c1", Some(Hop::Record), false));
        assert_eq!(decided(&[wrong("e1", 0)], true, 9), [], "within the grace period");
        let steps = decided(&[wrong("e2", 1), wrong("e1", 0)], true, 30);
        assert_eq!(steps, [AdmissionStep::Replace { pod: "e1".to_owned(), uid: "uid-e1".to_owned() }]);
        let serving = (pod("e1", Some("c1"), true, 0), standing("c1", None, true));
        assert_eq!(decided(&[serving], true, 100), [], "an admitted pod is never replaced");
    }

    #[test]
    fn an_admitted_pod_that_is_not_ready_is_reminded_every_ten_seconds() {
        let serves = pod("e1", Some("1f"), false, 0);
        let mut uninformed = pod("e2", Some("1f"), false, 0);
        (uninformed.serving, uninformed.address) = (false, Some(std::net::Ipv4Addr::LOCALHOST.into()));
        let mut restarts = uninformed.clone();
        (restarts.name, restarts.address) = ("e3".to_owned(), None);
        let mut strange = uninformed.clone();
        (strange.name, strange.admitted, strange.gate_open) = ("e4".to_owned(), None, false);
        let pods = [serves, uninformed, restarts, strange];
        let at = |now| decide_steps(&pods, &BTreeMap::new(), true, &BTreeMap::new(), now);
        let remind = |remark: &str| vec![AdmissionStep::Remind { pod: "e2".to_owned(), remark: remark.to_owned() }];
        assert_eq!(at(20), remind("2"));
        assert_eq!(at(29), remind("2"), "the same value, so that nothing changes");
        assert_eq!(at(30), remind("3"));
    }
}
