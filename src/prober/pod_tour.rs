//! The tour of a large cluster: rounds of an open gate take turns with the pods of a transport. Pure.

use std::collections::BTreeMap;

use super::EdgePod;
use crate::gate::GatePolicy;
use crate::protocol::Transport;

/// The pod of each transport that the latest round took last.
#[derive(Debug, Default)]
pub(super) struct PodTour(BTreeMap<Transport, String>);

impl PodTour {
    /// Chooses the pods of the next round. A pod that is not admitted is in every round, since it waits for its proof.
    pub fn choose_pods(&mut self, up: Vec<(Transport, EdgePod)>, policy: &GatePolicy) -> Vec<(Transport, EdgePod)> {
        let (mut admitted, mut chosen) = (BTreeMap::<Transport, BTreeMap<String, EdgePod>>::new(), vec![]);
        for (transport, edge) in up {
            if edge.admitted {
                admitted.entry(transport).or_default().insert(edge.pod.clone(), edge);
            } else {
                chosen.push((transport, edge));
            }
        }
        for (transport, pods) in admitted {
            let last = self.0.entry(transport).or_default();
            let (before, after): (Vec<&EdgePod>, Vec<&EdgePod>) = pods.values().partition(|edge| edge.pod <= *last);
            let next: Vec<&EdgePod> = after.into_iter().chain(before).take(policy.pods_per_round(pods.len())).collect();
            if let Some(edge) = next.last() {
                last.clone_from(&edge.pod);
            }
            chosen.extend(next.into_iter().map(|edge| (transport, edge.clone())));
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(pod: &str, admitted: bool) -> EdgePod {
        let address = ([127, 0, 0, 1], 1).into();
        let (transports, wanted) = (vec![Transport::Websocket], BTreeMap::new());
        EdgePod { pod: pod.to_owned(), public: address, admin: address, transports, wanted, admitted }
    }

    #[test]
    fn rounds_take_turns_with_the_pods_and_always_take_those_that_wait_for_admission() {
        let policy = GatePolicy::default();
        let mut tour = PodTour::default();
        let mut pods: Vec<(Transport, EdgePod)> =
            (0..30).map(|number| (Transport::Websocket, edge(&format!("p{number:02}"), true))).collect();
        pods.push((Transport::Websocket, edge("new", false)));
        let mut take = |pods: &[(Transport, EdgePod)]| -> Vec<String> {
            tour.choose_pods(pods.to_vec(), &policy).into_iter().map(|(_, edge)| edge.pod).collect()
        };
        let names = |range: std::ops::Range<usize>| range.map(|number| format!("p{number:02}")).collect::<Vec<_>>();
        let with_new = |taken: Vec<String>| [vec!["new".to_owned()], taken].concat();
        assert_eq!(take(&pods), with_new(names(0..12)));
        assert_eq!(take(&pods), with_new(names(12..24)));
        // The last one of the former round is deleted.
        pods.remove(23);
        assert_eq!(take(&pods), with_new([names(24..30), names(0..6)].concat()));
        assert_eq!(take(&pods[..8]), ["p06", "p07", "p00", "p01", "p02", "p03", "p04", "p05"], "a small cluster whole");
    }
}
