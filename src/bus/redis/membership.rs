//! The script that changes a channel's membership: its arguments and its answer.

use fred::clients::Client;
use fred::types::scripts::Script;
use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::super::reports::{self, FrameTemplate};
use super::super::{BusError, ChannelKey, TOMBSTONE_AGE_FACTOR, TOMBSTONE_MAX_TTL, TOMBSTONE_MIN_TTL, Transition};
use super::client::{evaluate_script, malformed_answer, parse_number, to_bus_error};
use super::keys::KeySpace;
use super::wire;
use crate::protocol::frame::{self, PresenceMember};
use crate::protocol::record::{EventKind, EventOrder, LeaveCause};
use crate::protocol::{ChannelKind, SocketId};

/// Bounds the outbox of one channel in the store, so that a stream that is unavailable does not fill the store. Beyond
/// it, events wait in their process alone, and are lost if that process dies.
const OUTBOX_MAX: u64 = 256;

/// One change of a channel's membership.
#[derive(Clone, Debug)]
pub(super) struct MembershipChange<'a> {
    /// Name under which the caller holds its lease.
    pub process: &'a str,
    /// The incarnation of the store's data that the caller knows.
    pub incarnation: &'a str,
    /// Whether transitions are deferred until settling ends.
    pub settling: bool,
    /// The highest order that the caller knows.
    pub known_order: EventOrder,
    /// Cause of the leaves, recorded with their transitions.
    pub cause: Option<LeaveCause>,
    /// Bound of the channel's members for this change.
    pub members_max: usize,
    /// Whether to decide on every user of the channel, and to return the caller's outbox.
    pub full_check: bool,
    /// Whether to return the channel's members.
    pub with_roster: bool,
    /// A dead process to sweep, and the cursor where its sweep continues.
    pub dead_process: Option<(&'a str, &'a str)>,
    /// Members that the caller knows were published as added, if it knows the channel was published as occupied.
    pub announced_members: Option<&'a [PresenceMember]>,
    /// Connections that join, each with its member on a presence channel.
    pub joining: &'a [(SocketId, Option<PresenceMember>)],
    /// Connections that leave the channel.
    pub leaving: &'a [SocketId],
    /// Unacknowledged events that the caller holds, for a store that lost them.
    pub outbox: &'a [Transition],
    /// Bound of the channel's connections for those that join; `None` without one.
    pub connections_max: Option<u64>,
}

/// The script's answer to a change.
#[derive(Debug, PartialEq)]
pub(super) struct MembershipOutcome {
    /// Transitions that the change caused.
    pub transitions: Vec<Transition>,
    /// Order of the channel's latest transition.
    pub order: EventOrder,
    /// Earlier events that are not acknowledged yet.
    pub outbox: Vec<Transition>,
    /// Cursor where a sweep continues; empty at its end.
    pub cursor: String,
    /// The channel's members, if they were asked for.
    pub roster: Vec<PresenceMember>,
}

/// Why a change failed.
#[derive(Debug, PartialEq)]
pub(super) enum MembershipError {
    /// The incarnation of the store's data is not the one that the caller knows.
    StaleIncarnation,
    /// The channel has as many connections as the change allows.
    ConnectionLimit,
    /// The bus failed, or the channel is full of members.
    Bus(BusError),
}

/// The loaded membership script.
pub(super) struct MembershipScript {
    script: Script,
}

impl MembershipScript {
    pub(super) fn new() -> Self {
        Self { script: Script::from_lua(include_str!("membership.lua")) }
    }

    pub(super) async fn run(
        &self,
        client: &Client,
        names: &KeySpace,
        subject: &ChannelKey,
        change: &MembershipChange<'_>,
    ) -> Result<MembershipOutcome, MembershipError> {
        let mut keys = names.redis_keys(subject, ["order", "sockets", "users", "infos", "outbox"]);
        // In a Redis cluster the incarnation is in another slot, so the script cannot compare it.
        keys.extend((!names.clustered).then(|| names.incarnation_key()));
        let arguments = change.script_arguments(names, subject).map_err(MembershipError::Bus)?;
        let answer = evaluate_script(client, &self.script, keys, arguments).await;
        let answer = answer.map_err(|error| MembershipError::Bus(to_bus_error(error)))?;
        match answer.first().map(String::as_str) {
            Some("ok") => parse(names, subject, change.cause, &answer).map_err(MembershipError::Bus),
            Some("stale") => Err(MembershipError::StaleIncarnation),
            Some("full") => Err(MembershipError::Bus(BusError::ChannelFull(change.members_max))),
            Some("limit") => Err(MembershipError::ConnectionLimit),
            _ => Err(MembershipError::Bus(malformed_answer())),
        }
    }
}

impl MembershipChange<'_> {
    fn script_arguments(&self, names: &KeySpace, subject: &ChannelKey) -> Result<Vec<String>, BusError> {
        let flag = |flag: bool| if flag { "1" } else { "0" }.to_owned();
        let (dead, cursor) = self.dead_process.unwrap_or(("", "0"));
        let present = self.announced_members.unwrap_or_default();
        let outbox = if subject.channel.kind() == ChannelKind::Internal { 0 } else { OUTBOX_MAX };
        let mut arguments = vec![
            self.incarnation.to_owned(),
            flag(!names.clustered),
            self.process.to_owned(),
            self.known_order.epoch.to_string(),
            self.known_order.seq.to_string(),
            flag(self.settling),
            self.cause.map_or("-", |LeaveCause::Drain| DRAIN_CAUSE).to_owned(),
            self.members_max.to_string(),
            format!("{} {TOMBSTONE_AGE_FACTOR} {}", TOMBSTONE_MIN_TTL.as_secs(), TOMBSTONE_MAX_TTL.as_secs()),
            flag(self.full_check),
            outbox.to_string(),
            flag(self.full_check && self.dead_process.is_none()),
            flag(self.with_roster),
            dead.to_owned(),
            cursor.to_owned(),
            flag(self.announced_members.is_some()),
            present.len().to_string(),
            self.joining.len().to_string(),
            self.leaving.len().to_string(),
            self.outbox.len().to_string(),
            self.connections_max.map(|most| most.to_string()).unwrap_or_default(),
        ];
        arguments.extend(self.report_arguments(names, subject)?);
        let info = |member: &PresenceMember| {
            serde_json::to_string(member).map_err(|error| BusError::Unavailable(error.to_string()))
        };
        for member in present {
            arguments.extend([member.user_id.clone(), info(member)?]);
        }
        for (socket, member) in self.joining {
            let user = member.as_ref().map(|member| member.user_id.clone()).unwrap_or_default();
            let info = member.as_ref().map(info).transpose()?.unwrap_or_default();
            arguments.extend([socket.to_string(), user, info]);
        }
        arguments.extend(self.leaving.iter().map(ToString::to_string));
        for transition in self.outbox {
            let Transition { order, kind, time_ms, cause, .. } = transition;
            let cause = cause.map_or("-", |LeaveCause::Drain| DRAIN_CAUSE);
            let (kind, user) = match kind {
                EventKind::ChannelOccupied => ("occupied", ""),
                EventKind::ChannelVacated => ("vacated", ""),
                EventKind::MemberAdded { user_id } => ("added", user_id.as_str()),
                EventKind::MemberRemoved { user_id } => ("removed", user_id.as_str()),
                // The bus decides no other kind.
                _ => continue,
            };
            arguments.extend([format!("{}:{}", order.epoch, order.seq), format!("{kind} {time_ms} {cause} {user}")]);
        }
        Ok(arguments)
    }

    /// The arguments from which the script builds the frames that report its transitions.
    fn report_arguments(&self, names: &KeySpace, subject: &ChannelKey) -> Result<[String; 7], BusError> {
        let Some(target) = reports::report_channel(subject) else { return Ok(Default::default()) };
        let (kind, texts) = if subject.channel.kind() == ChannelKind::Presence {
            let around = |event| FrameTemplate::around_data(event, &subject.channel);
            let (added, removed) = (around(frame::MEMBER_ADDED_EVENT), around(frame::MEMBER_REMOVED_EVENT));
            ("member", [added.start, added.end, removed.start, removed.end])
        } else {
            let frame = |kind| reports::report_frame(subject, &kind, None).unwrap_or_default();
            let (online, offline) = (frame(EventKind::ChannelOccupied), frame(EventKind::ChannelVacated));
            ("user", [online, String::new(), offline, String::new()])
        };
        // The connection that joins learns of itself from its roster.
        let except = match self.joining {
            [(socket, _)] if !self.full_check => Some(socket),
            _ => None,
        };
        let header = wire::script_header_start(&target, except)?;
        let [added_start, added_end, removed_start, removed_end] = texts;
        Ok([kind.to_owned(), names.frames_channel(), header, added_start, added_end, removed_start, removed_end])
    }
}

const DRAIN_CAUSE: &str = "drain";

fn parse(
    names: &KeySpace,
    subject: &ChannelKey,
    cause: Option<LeaveCause>,
    answer: &[String],
) -> Result<MembershipOutcome, BusError> {
    let [_, epoch, seq, time_ms, cursor, decided, waiting, rest @ ..] = answer else { return Err(malformed_answer()) };
    let (decided, waiting) = (parse_number(decided)?, parse_number(waiting)?);
    let counts = usize::try_from(decided).ok().zip(usize::try_from(waiting).ok());
    let (decided, waiting) = counts.ok_or_else(malformed_answer)?;
    let (decided, rest) = rest.split_at_checked(decided.saturating_mul(3)).ok_or_else(malformed_answer)?;
    let (waiting, infos) = rest.split_at_checked(waiting.saturating_mul(2)).ok_or_else(malformed_answer)?;
    let (epoch, time_ms) = (parse_number(epoch)?, parse_number(time_ms)?);
    let mut changed = MembershipOutcome {
        transitions: Vec::with_capacity(decided.len() / 3),
        order: EventOrder { epoch, seq: parse_number(seq)? },
        outbox: Vec::new(),
        cursor: cursor.clone(),
        roster: Vec::new(),
    };
    for item in decided.chunks_exact(3) {
        let order = EventOrder { epoch, seq: parse_number(&item[1])? };
        changed.transitions.push(parse_transition(names, subject, &item[0], order, time_ms, (cause, &item[2]))?);
    }
    for pair in waiting.chunks_exact(2) {
        let (epoch, seq) = pair[0].split_once(':').ok_or_else(malformed_answer)?;
        let order = EventOrder { epoch: parse_number(epoch)?, seq: parse_number(seq)? };
        let mut parts = pair[1].splitn(4, ' ');
        let (Some(kind), Some(time_ms), Some(cause), Some(user)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed_answer());
        };
        let cause = (cause == DRAIN_CAUSE).then_some(LeaveCause::Drain);
        changed.outbox.push(parse_transition(names, subject, kind, order, parse_number(time_ms)?, (cause, user))?);
    }
    changed.outbox.sort_by_key(|transition| transition.order);
    changed.roster = infos.iter().map(|info| parse_member(info)).collect::<Result<_, _>>()?;
    changed.roster.sort_by(|one, other| one.user_id.cmp(&other.user_id));
    Ok(changed)
}

fn parse_transition(
    names: &KeySpace,
    subject: &ChannelKey,
    kind: &str,
    order: EventOrder,
    time_ms: u64,
    (cause, user): (Option<LeaveCause>, &str),
) -> Result<Transition, BusError> {
    let user_id = user.to_owned();
    let kind = match kind {
        "occupied" => EventKind::ChannelOccupied,
        "vacated" => EventKind::ChannelVacated,
        "added" => EventKind::MemberAdded { user_id },
        "removed" => EventKind::MemberRemoved { user_id },
        _ => return Err(malformed_answer()),
    };
    let leaves = matches!(kind, EventKind::ChannelVacated | EventKind::MemberRemoved { .. });
    Ok(Transition {
        id: transition_id(names, subject, order, time_ms),
        kind,
        order,
        time_ms,
        cause: cause.filter(|_| leaves),
    })
}

/// Derives an event's id from its order, so that a sweeper that publishes it again uses the same id.
fn transition_id(names: &KeySpace, subject: &ChannelKey, order: EventOrder, time_ms: u64) -> String {
    let text = format!("{} {} {} {}:{}", names.group, subject.app, subject.channel, order.epoch, order.seq);
    let digest = Sha256::digest(text.as_bytes());
    let random = digest.iter().take(10).fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
    Ulid::from_parts(time_ms, random).to_string()
}

fn parse_member(info: &str) -> Result<PresenceMember, BusError> {
    serde_json::from_str(info).map_err(|_| malformed_answer())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;

    fn test_keys() -> KeySpace {
        KeySpace::new("u", false)
    }

    fn channel_key() -> ChannelKey {
        ChannelKey { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") }
    }

    #[test]
    fn a_complete_answer_is_parsed_and_a_cut_one_is_not() {
        let text = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let info = r#"{"user_id":"a b","user_info":1}"#;
        let answer = text(&["ok", "9", "4", "5", "", "2", "1", "occupied", "3", "", "added", "4", "a b"]);
        let answer = [answer, text(&["8:7", "removed 4 drain a b", info])].concat();
        let changed = parse(&test_keys(), &channel_key(), None, &answer).expect("read");
        let kinds: Vec<_> = changed.transitions.iter().map(|t| (t.kind.name(), t.order.seq, t.cause)).collect();
        assert_eq!(kinds, [("channel_occupied", 3, None), ("member_added", 4, None)]);
        assert_eq!((changed.order, changed.roster.len()), (EventOrder { epoch: 9, seq: 4 }, 1));
        let waiting = &changed.outbox[0];
        assert_eq!(waiting.kind, EventKind::MemberRemoved { user_id: "a b".into() });
        assert_eq!(
            (waiting.order, waiting.time_ms, waiting.cause),
            (EventOrder { epoch: 8, seq: 7 }, 4, Some(LeaveCause::Drain))
        );
        for end in 0..answer.len() - 1 {
            let cut = parse(&test_keys(), &channel_key(), None, &answer[..end]);
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.roster.is_empty()), "cut at {end}");
        }
        let much = text(&["ok", "9", "4", "5", "", "99999999999999999999", "0"]);
        assert!(parse(&test_keys(), &channel_key(), None, &much).is_err());
    }

    #[test]
    fn an_event_id_is_the_same_in_every_process_and_differs_by_cluster_and_order() {
        let order = EventOrder { epoch: 9, seq: 1 };
        let id = |names: &KeySpace, order, time| super::transition_id(names, &channel_key(), order, time);
        assert_eq!(id(&test_keys(), order, 5), id(&test_keys(), order, 5));
        let other = KeySpace::new("v", false);
        assert_ne!(id(&test_keys(), order, 5), id(&other, order, 5));
        assert_ne!(id(&test_keys(), order, 5), id(&test_keys(), EventOrder { epoch: 9, seq: 2 }, 5));
        assert!(id(&test_keys(), order, 5).parse::<Ulid>().is_ok_and(|id| id.timestamp_ms() == 5));
    }
}
