//! Reads the answers of a zone's servers: whether they fit two weights, which weight they have, and the obstacle of
//! a first record. Pure.

use std::collections::BTreeSet;

use crate::api::migration::{MigrationTrack, RECORD_WEIGHT_MAX, TrackProgress};
use crate::migration::OwnershipRecord;
use crate::migration::track::{AnswerSample, PreflightResult, TrackPlan};

/// Answers of one authoritative server to lookups of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerAnswers {
    /// Address of the server.
    pub server: String,
    /// Lookups that were sent, retries apart.
    pub queries: u32,
    /// CNAMEs to the target's host.
    pub target: u32,
    /// CNAMEs to other hosts.
    pub others: u32,
    /// Records of another type, such as the addresses of an alias.
    pub addresses: u32,
    /// Answers without a record.
    pub missing: u32,
    /// Lookups without an answer, with an error, or with one of a server that is not in charge.
    pub failed: u32,
    /// TTLs of the records in seconds.
    pub ttls: BTreeSet<u32>,
}

/// Answers of all servers of a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneReading {
    /// Start of the first lookup, in ms since 1970.
    pub at_ms: u64,
    /// The answers of each server.
    pub servers: Vec<ServerAnswers>,
    /// Whether the target's host has an address or a CNAME of its own.
    pub is_target_known: bool,
    /// Owners of the host's records by the TXT records that were asked for.
    pub owners: BTreeSet<OwnershipRecord>,
}

/// The reason for which a zone cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneFault {
    /// The host is the name of a zone.
    #[error("ZoneApex: {0} is the name of a zone, which cannot have a CNAME: use a host below it")]
    Apex(String),
    /// No authoritative server is known.
    #[error(
        "ZoneUnknown: no name server of a zone above {host} is found ({message}): check the host, and the name servers of this pod"
    )]
    NoServers {
        /// The host of the track.
        host: String,
        /// The latest error of the resolver.
        message: String,
    },
    /// The servers were too slow.
    #[error(
        "ZoneSlow: the servers of the zone did not answer all lookups of {host} within {seconds} s; they are asked again"
    )]
    Timeout {
        /// The host of the track.
        host: String,
        /// Time limit in seconds.
        seconds: u64,
    },
}

impl ServerAnswers {
    fn sample(&self, at_ms: u64) -> AnswerSample {
        AnswerSample { queries: self.queries, target: self.target, source: self.others + self.addresses, at_ms }
    }
}

/// Sums up the answers for the decisions about a track: those of all servers where each fits the weights, otherwise those of
/// a server that does not, so that no server is outvoted. `None` without an answer.
pub fn summarize_answers(reading: &ZoneReading, plan: &TrackPlan, progress: &TrackProgress) -> Option<AnswerSample> {
    let samples: Vec<AnswerSample> = reading.servers.iter().map(|server| server.sample(reading.at_ms)).collect();
    let source_weights = [plan.source_weight_at(progress.step), plan.source_weight];
    let all_fit = |weight: u8| samples.iter().all(|sample| sample.fits(progress.desired, weight));
    let all_fit = source_weights.into_iter().any(all_fit);
    if all_fit {
        return samples.into_iter().reduce(|sum, next| AnswerSample {
            queries: sum.queries + next.queries,
            target: sum.target + next.target,
            source: sum.source + next.source,
            at_ms: sum.at_ms,
        });
    }
    let fits = |sample: &AnswerSample| source_weights.into_iter().any(|weight| sample.fits(progress.desired, weight));
    let unfit = samples.into_iter().filter(|sample| !fits(sample));
    // Where one server lacks the source's record, lookups there would be left without an answer.
    unfit.min_by_key(|sample| sample.source)
}

/// The weight of a record that somebody else writes, as the answers have it: the desired one where they fit it, else the one
/// that their share is nearest to. `None` for no record, which looks like weight 0.
pub fn measure_weight(sample: Option<AnswerSample>, plan: &TrackPlan, progress: &TrackProgress) -> Option<u8> {
    // Without an answer nothing is known to have changed.
    let Some(sample) = sample else { return progress.desired };
    let source_weight = plan.source_weight_at(progress.step);
    if [source_weight, plan.source_weight].into_iter().any(|weight| sample.fits(progress.desired, weight)) {
        return progress.desired;
    }
    if sample.target == 0 {
        return None;
    }
    let nearest = u64::from(source_weight) * u64::from(sample.target) / u64::from(sample.source.max(1));
    Some(u8::try_from(nearest).unwrap_or(RECORD_WEIGHT_MAX).clamp(1, RECORD_WEIGHT_MAX))
}

/// Looks for an obstacle of the first record in the zone.
pub fn check_zone(reading: Option<&Result<ZoneReading, ZoneFault>>, track: &MigrationTrack) -> PreflightResult {
    let reading = match reading {
        None => return PreflightResult::Running,
        Some(Err(fault)) => return PreflightResult::Obstacle(fault.to_string()),
        Some(Ok(reading)) => reading,
    };
    let MigrationTrack { host, target_host, ttl_seconds, .. } = track;
    let count = |of: fn(&ServerAnswers) -> u32| reading.servers.iter().map(of).sum::<u32>();
    let answered = count(|server| server.queries - server.failed);
    let ttls: BTreeSet<u32> = reading.servers.iter().flat_map(|server| &server.ttls).copied().collect();
    let obstacle = if answered == 0 {
        let names: Vec<&str> = reading.servers.iter().map(|server| server.server.as_str()).collect();
        format!(
            "ZoneSilent: no server of the zone answers lookups of {host} ({}): check the path to port 53",
            names.join(", ")
        )
    } else if count(|server| server.addresses) > 0 {
        format!(
            "RecordTypesDiffer: {host} has addresses of its own, beside which no CNAME can be: convert the source's record with `realtime migrate prepare`"
        )
    } else if count(|server| server.target) > 0 {
        format!("TargetAnswered: a record of {host} leads to {target_host} already, which no step wrote: remove it")
    } else if count(|server| server.others) == 0 {
        format!(
            "SourceRecordMissing: {host} has no record: give the source a weighted CNAME with `realtime migrate prepare`"
        )
    } else if ttls.iter().any(|ttl| ttl != ttl_seconds) {
        let found = ttls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!(
            "TTLDiffers: the source's record has the TTL {found}, and the track {ttl_seconds}: weighted records of a host share one, write it in both"
        )
    } else if !reading.is_target_known {
        format!(
            "TargetHostUnknown: {target_host} has neither an address nor a CNAME: give it a record that leads to this cluster"
        )
    } else {
        return PreflightResult::Passed;
    };
    PreflightResult::Obstacle(obstacle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::RealtimeMigration;
    use crate::api::migration::MoveObstacle;

    fn plan() -> (TrackPlan, MigrationTrack) {
        let text = include_str!("../../../tests/fixtures/migration/move.yaml");
        let migration: RealtimeMigration = serde_yaml::from_str(text).expect("a migration");
        let track = migration.spec.tracks[0].clone();
        (TrackPlan::of_track(&migration.spec, &track), track)
    }

    fn server(target: u32, others: u32) -> ServerAnswers {
        ServerAnswers { queries: target + others, target, others, ttls: [60].into(), ..ServerAnswers::default() }
    }

    fn reading(servers: &[ServerAnswers]) -> ZoneReading {
        ZoneReading { at_ms: 7, servers: servers.to_vec(), is_target_known: true, owners: BTreeSet::new() }
    }

    fn progress(desired: Option<u8>, step: u32) -> TrackProgress {
        TrackProgress { step, desired, ..TrackProgress::default() }
    }

    #[test]
    fn answers_are_summed_up_only_where_each_server_fits() {
        let (plan, _) = plan();
        let sum = |servers: &[ServerAnswers], desired, step| {
            let found = summarize_answers(&reading(servers), &plan, &progress(desired, step));
            found.map(|sample| (sample.queries, sample.target, sample.source))
        };
        assert_eq!(sum(&[], None, 0), None);
        assert_eq!(sum(&[server(100, 100), server(90, 110)], Some(20), 2), Some((400, 190, 210)));
        assert_eq!(sum(&[server(100, 100), server(0, 200)], Some(20), 2), Some((200, 0, 200)), "one lags");
        assert_eq!(sum(&[server(0, 200), server(1, 199)], Some(0), 0), Some((200, 1, 199)), "not closed at one");
        assert_eq!(sum(&[server(150, 50), server(200, 0)], Some(20), 2), Some((200, 200, 0)), "no source at one");
        let cutover = u32::try_from(plan.steps.len() - 1).expect("a small number");
        let before = [server(1632, 128), server(1640, 120)];
        assert_eq!(sum(&before, Some(255), cutover), Some((3520, 3272, 248)), "the source has its former weight");
    }

    #[test]
    fn a_weight_is_measured_where_somebody_else_writes_it() {
        let (plan, _) = plan();
        let measure = |target, source, desired| {
            let sample = AnswerSample { queries: target + source, target, source, at_ms: 0 };
            measure_weight(Some(sample), &plan, &progress(desired, 1))
        };
        assert_eq!(measure(0, 200, None), None);
        assert_eq!(measure(0, 200, Some(1)), None, "nobody wrote it yet");
        assert_eq!(measure(0, 200, Some(0)), Some(0));
        assert_eq!(measure(40, 160, Some(5)), Some(5));
        assert_eq!(measure(100, 100, Some(5)), Some(20), "another weight");
        assert_eq!(measure(200, 0, Some(5)), Some(255), "the source is gone");
        assert_eq!(measure_weight(None, &plan, &progress(Some(5), 1)), Some(5), "no answer");
    }

    #[test]
    fn each_obstacle_in_the_zone_is_named_with_its_remedy() {
        let (_, track) = plan();
        let check = |found: Result<ZoneReading, ZoneFault>| match check_zone(Some(&found), &track) {
            PreflightResult::Obstacle(text) => text.split(':').next().unwrap_or_default().to_owned(),
            other => format!("{other:?}"),
        };
        let one = |server: ServerAnswers| Ok(reading(&[server]));
        let host = || track.host.clone();
        for (expected, found) in [
            ("Passed", one(server(0, 200))),
            ("ZoneApex", Err(ZoneFault::Apex(host()))),
            ("ZoneUnknown", Err(ZoneFault::NoServers { host: host(), message: "refused".to_owned() })),
            ("ZoneSlow", Err(ZoneFault::Timeout { host: host(), seconds: 25 })),
            ("ZoneSilent", one(ServerAnswers { queries: 9, failed: 9, ..ServerAnswers::default() })),
            ("RecordTypesDiffer", one(ServerAnswers { queries: 9, addresses: 9, ..ServerAnswers::default() })),
            ("SourceRecordMissing", one(ServerAnswers { queries: 9, missing: 9, ..ServerAnswers::default() })),
            ("TargetAnswered", one(server(1, 199))),
            ("TTLDiffers", one(ServerAnswers { ttls: [300].into(), ..server(0, 200) })),
            ("TargetHostUnknown", Ok(ZoneReading { is_target_known: false, ..reading(&[server(0, 200)]) })),
        ] {
            assert_eq!(check(found), expected);
            assert!(expected == "Passed" || MoveObstacle::of_message(expected).is_some(), "{expected} has no remedy");
        }
        assert_eq!(check_zone(None, &track), PreflightResult::Running);
    }
}
