//! Decides which pods are admitted and which are replaced. Pure.
//!
//! In: the pods of a cluster with the results of journeys through them. Out: the pods to admit, with the reason, and the
//! pods to replace. An admitted pod is never evicted: the failure of a shared part, which costs webhooks, must not cost
//! chat as well.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

use super::pods::ServerPod;
use crate::api::Reason;
use crate::api::cluster::PodReplacements;
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
    /// Delete a pod that differs from its template: its successor may be created as rendered.
    Replace {
        pod: String,
        uid: String,
        /// The pod's server and the digest of its template, by which replacements are counted.
        template: (ServerKind, String),
        /// The first difference, for the Event.
        difference: String,
    },
}

/// Grace period before a pod that differs from its template is replaced, in s since its creation and the last
/// replacement: for each replacement of one template. A policy that changes every pod must not cause endless churn, so
/// there are no more than these.
const REPLACE_GRACE_SECONDS: [i64; REPLACEMENTS_MAX] = [10, 30, 300];

/// Replacements of pods of one template.
pub const REPLACEMENTS_MAX: usize = 3;

/// Time between two reminders of one pod, in s; the first may come at once, and does no harm. Now and then kubelet misses
/// a changed annotation, and without a reminder refreshes the file only at its next sync, a minute or more later.
const REMINDER_INTERVAL_SECONDS: i64 = 10;

/// Decides the actions on all pods.
///
/// `passed` is whether the present fingerprint was proven before; `replaced` are the replacements so far; `now` is in s
/// since 1970.
#[must_use]
pub fn decide_steps(
    pods: &[ServerPod],
    standings: &BTreeMap<String, PodStanding>,
    passed: bool,
    replaced: &[PodReplacements],
    now: i64,
) -> Vec<AdmissionStep> {
    let mut steps: Vec<AdmissionStep> =
        pods.iter().filter_map(|pod| admission_step(pod, pods, standings, passed)).collect();
    steps.extend(pods.iter().filter_map(|pod| reminder_step(pod, now)));
    // One pod of a server at a time, the oldest first.
    let replaced_of = |server: ServerKind| {
        let wrong = |pod: &&ServerPod| pod.server == server && is_replaceable(pod, replaced, now);
        pods.iter().filter(wrong).min_by_key(|pod| (pod.created, &pod.name))
    };
    steps.extend(ServerKind::ALL.into_iter().filter_map(replaced_of).map(|pod| AdmissionStep::Replace {
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        template: (pod.server, pod.template.clone()),
        difference: pod.first_difference().map(ToString::to_string).unwrap_or_default(),
    }));
    steps
}

fn is_replaceable(pod: &ServerPod, replaced: &[PodReplacements], now: i64) -> bool {
    // A pod of a template that was edited by hand ends with the template.
    if pod.admitted.is_some() || !pod.rendered || pod.audit.differences.is_empty() {
        return false;
    }
    let before = replaced.iter().find(|before| is_of_template(before, pod));
    let count = before.map_or(0, |before| before.count as usize);
    // An AWS identity is associated whenever somebody does it, and only a new pod gets it.
    let last = REPLACE_GRACE_SECONDS.last().filter(|_| pod.audit.only_lacks_identity());
    let Some(grace) = REPLACE_GRACE_SECONDS.get(count).or(last) else { return false };
    now - pod.created.max(before.map_or(0, last_replaced)) >= *grace
}

fn is_of_template(replaced: &PodReplacements, pod: &ServerPod) -> bool {
    replaced.server == pod.server.name() && replaced.template == pod.template
}

/// Time of the last replacement, in s since 1970.
fn last_replaced(replaced: &PodReplacements) -> i64 {
    replaced.last_at.parse().map_or(0, |at: Timestamp| at.as_second())
}

/// The replacements that still count: of templates that are rendered or have pods, until a successor was admitted.
#[must_use]
pub fn keep_replacements(known: &[PodReplacements], pods: &[ServerPod], rendered: &[&str]) -> Vec<PodReplacements> {
    let counts = |replaced: &&PodReplacements| {
        let mut of_template = pods.iter().filter(|pod| is_of_template(replaced, pod)).peekable();
        let exists = of_template.peek().is_some() || rendered.contains(&replaced.template.as_str());
        exists && !of_template.any(|pod| pod.admitted.is_some() && pod.created >= last_replaced(replaced))
    };
    known.iter().filter(counts).cloned().collect()
}

/// Adds the replacements of these steps.
pub fn add_replacements(replaced: &mut Vec<PodReplacements>, steps: &[AdmissionStep], now: Timestamp) {
    for step in steps {
        let AdmissionStep::Replace { template: (server, template), .. } = step else { continue };
        let same = |one: &&mut PodReplacements| one.server == server.name() && one.template == *template;
        if let Some(one) = replaced.iter_mut().find(same) {
            (one.count, one.last_at) = (one.count.saturating_add(1), now.to_string());
        } else {
            let (server, template) = (server.name().to_owned(), template.clone());
            replaced.push(PodReplacements { server, template, count: 1, last_at: now.to_string() });
        }
    }
}

/// A pod that keeps a rollout waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProblem {
    pub reason: Reason,
    /// The pod, its difference and the remedy in one line.
    pub line: String,
}

/// Describes a pod of the rendered template that is not admitted since it differs, with the remedy. `explain_identity` has the
/// command that makes EKS inject the identity into the pods of a server.
#[must_use]
pub fn describe_difference(
    pods: &[ServerPod],
    replaced: &[PodReplacements],
    explain_identity: impl Fn(ServerKind) -> String,
) -> Option<PodProblem> {
    let differs = |pod: &&ServerPod| pod.current && pod.admitted.is_none() && !pod.audit.differences.is_empty();
    let pod = pods.iter().find(differs)?;
    let difference = pod.first_difference()?;
    let more = match pod.audit.differences.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let line = format!("{} differs from its template: {difference}{more}", pod.name);
    let drifts = |line| PodProblem { reason: Reason::ConfigurationDrift, line };
    if !pod.rendered {
        return Some(drifts(format!("{line}; its Deployment was edited, which is reverted")));
    }
    let count = replaced.iter().find(|one| is_of_template(one, pod)).map_or(0, |one| one.count as usize);
    if pod.audit.only_lacks_identity() {
        let (name, remedy) = (&pod.name, explain_identity(pod.server));
        let line = format!("{name}: {difference}; replaced {count} times, which goes on. {remedy}");
        return Some(PodProblem { reason: Reason::IdentityNotInjected, line });
    }
    Some(drifts(match count {
        REPLACEMENTS_MAX.. => format!(
            "{line}; replaced {count} times in vain: undo the change or add its injector to --known-injectors, then delete the pod"
        ),
        _ => format!("{line}; replaced {count} of {REPLACEMENTS_MAX} times"),
    }))
}

fn admission_step(
    pod: &ServerPod,
    pods: &[ServerPod],
    standings: &BTreeMap<String, PodStanding>,
    passed: bool,
) -> Option<AdmissionStep> {
    // A pod of a former template is admitted by its own proof: clients need it while a rollout stands still.
    if !pod.runs_its_template() {
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
        && (passed || pod.is_former())
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
    use crate::operator::pod_audit::PodDifference;

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
        decide_steps(&pods, &standings, passed, &[], now)
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
        let replaced = |steps: &[AdmissionStep]| {
            steps.iter().filter(|step| matches!(step, AdmissionStep::Replace { pod, .. } if pod == "e1")).count()
        };
        assert_eq!((steps.len(), replaced(&steps)), (1, 1), "{steps:?}");
        let serving = (pod("e1", Some("c1"), true, 0), standing("c1", None, true));
        assert_eq!(decided(&[serving], true, 100), [], "an admitted pod is never replaced");
    }

    fn replaced(count: u32, last: i64) -> Vec<PodReplacements> {
        let last_at = Timestamp::from_second(last).expect("a time").to_string();
        vec![PodReplacements { server: "sockjs".to_owned(), template: "t1".to_owned(), count, last_at }]
    }

    #[test]
    fn pods_of_one_template_are_replaced_three_times_ever_more_slowly() {
        let wrong = pod("e1", None, true, 100);
        let is_replaced = |pod: &ServerPod, count, now| {
            let steps = decide_steps(std::slice::from_ref(pod), &BTreeMap::new(), true, &replaced(count, 90), now);
            !steps.is_empty()
        };
        for (count, grace) in [(0, 10), (1, 30), (2, 300)] {
            assert!(!is_replaced(&wrong, count, 100 + grace - 1), "{count}");
            assert!(is_replaced(&wrong, count, 100 + grace), "{count}");
        }
        assert!(!is_replaced(&wrong, 3, 100_000), "a fourth time");
        let mut associated_later = wrong.clone();
        associated_later.audit.differences = vec![PodDifference::for_test(true)];
        assert!(is_replaced(&associated_later, 9, 400), "an identity may be associated at any time");
        assert!(!is_replaced(&ServerPod { rendered: false, ..wrong.clone() }, 0, 1000), "its template is reverted");
        assert!(is_replaced(&ServerPod { template: "t2".to_owned(), ..wrong }, 3, 110), "counted by template");
    }

    #[test]
    fn replacements_count_until_a_successor_is_admitted_or_the_template_is_gone() {
        let known = replaced(2, 90);
        let kept = |pods: &[ServerPod], rendered: &[&str]| keep_replacements(&known, pods, rendered).len();
        let rendered = ["t1"];
        assert_eq!(kept(&[], &rendered), 1, "the successor is yet to be created");
        assert_eq!(kept(&[], &["t2"]), 0);
        assert_eq!(kept(&[pod("e1", None, true, 100)], &[]), 1);
        assert_eq!(kept(&[pod("e1", Some("c1"), false, 80)], &rendered), 1, "one that was admitted before");
        assert_eq!(kept(&[pod("e1", Some("c1"), false, 95)], &rendered), 0);
        let step = AdmissionStep::Replace {
            pod: "e1".to_owned(),
            uid: String::new(),
            template: (ServerKind::Sockjs, "t1".to_owned()),
            difference: String::new(),
        };
        let mut counted = known.clone();
        add_replacements(&mut counted, std::slice::from_ref(&step), Timestamp::from_second(200).expect("a time"));
        assert_eq!(counted, replaced(3, 200));
        let mut first = vec![];
        add_replacements(&mut first, &[step], Timestamp::from_second(200).expect("a time"));
        assert_eq!(first, replaced(1, 200));
    }

    #[test]
    fn the_difference_of_a_pod_is_described_with_its_remedy() {
        let explain = |server: ServerKind| format!("Run: associate {server}");
        let describe_all =
            |pod: &ServerPod, count| describe_difference(std::slice::from_ref(pod), &replaced(count, 0), explain);
        let describe = |pod: &ServerPod, count| describe_all(pod, count).map(|problem| problem.line);
        let wrong = pod("e1", None, true, 0);
        let line = "e1 differs from its template: container sockjs: env A: want 1, found 2";
        assert_eq!(describe(&wrong, 1).expect("a line"), format!("{line}; replaced 1 of 3 times"));
        assert!(
            describe(&wrong, 3)
                .expect("a line")
                .ends_with("add its injector to --known-injectors, then delete the pod")
        );
        let mut edited = wrong.clone();
        edited.rendered = false;
        assert!(describe(&edited, 0).expect("a line").ends_with("its Deployment was edited, which is reverted"));
        let mut unassociated = wrong.clone();
        unassociated.audit.differences = vec![PodDifference::for_test(true); 2];
        let found = describe_all(&unassociated, 4).expect("a problem");
        assert_eq!(found.reason, Reason::IdentityNotInjected);
        let says =
            "want it injected by EKS Pod Identity, found none; replaced 4 times, which goes on. Run: associate sockjs";
        assert!(found.line.ends_with(says), "{}", found.line);
        assert_eq!(describe_all(&wrong, 1).expect("a problem").reason, Reason::ConfigurationDrift);
        assert_eq!(describe(&pod("e1", None, false, 0), 0), None);
        assert_eq!(describe(&ServerPod { admitted: Some("c".to_owned()), ..wrong }, 0), None, "it serves already");
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
        let at = |now| decide_steps(&pods, &BTreeMap::new(), true, &[], now);
        let remind = |remark: &str| vec![AdmissionStep::Remind { pod: "e2".to_owned(), remark: remark.to_owned() }];
        assert_eq!(at(20), remind("2"));
        assert_eq!(at(29), remind("2"), "the same value, so that nothing changes");
        assert_eq!(at(30), remind("3"));
    }
}
