//! The one script that changes who is in a channel: what it is asked, and what it answers.

use fred::clients::Client;
use fred::types::scripts::Script;
use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::super::{BusError, Subject, Transition};
use super::TOMBSTONE_SECONDS;
use super::names::Names;
use super::store::{evaluate, garbled, number, unavailable};
use crate::protocol::frame::Member;
use crate::protocol::record::{Cause, EventKind, Order};
use crate::protocol::{ChannelKind, SocketId};

/// Most events of one channel that wait in the store to be safe elsewhere. Beyond it they wait in their process alone.
const OUTBOX: u64 = 256;

/// What is asked of one channel.
#[derive(Clone, Debug)]
pub(super) struct Change<'a> {
    /// As whom.
    pub process: &'a str,
    /// The incarnation of the store's memory that the process knows.
    pub incarnation: &'a str,
    /// Whether nothing may be told yet.
    pub settling: bool,
    /// The highest order that the process knows.
    pub known: Order,
    /// Why those who go do so.
    pub cause: Option<Cause>,
    /// Most members.
    pub members: usize,
    /// Whether to look at every user, and to return what of the process is not safe yet.
    pub all: bool,
    /// Whether who is there is returned.
    pub roster: bool,
    /// A process that died, and where to go on in the list of the channel's connections.
    pub dead: Option<(&'a str, &'a str)>,
    /// Which users the process knows as members, if it knows the channel as occupied.
    pub told: Option<&'a [Member]>,
    /// Who comes.
    pub come: &'a [(SocketId, Option<Member>)],
    /// Who goes.
    pub go: &'a [SocketId],
    /// What the process has decided and is not safe yet, for a store that lost it.
    pub outbox: &'a [Transition],
}

/// What it answered.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Changed {
    /// What this decided.
    pub transitions: Vec<Transition>,
    /// Those who were added.
    pub added: Vec<Member>,
    /// What was decided before, and is not safe yet.
    pub outbox: Vec<Transition>,
    /// Where to go on; empty at the end.
    pub cursor: String,
    /// Who is there, if that was asked.
    pub roster: Vec<Member>,
}

/// Why there is no such answer.
#[derive(Debug, PartialEq)]
pub(super) enum Refused {
    /// The store's memory is another than the process knows.
    Stale,
    /// As told.
    Bus(BusError),
}

/// The script.
pub(super) struct Changes {
    script: Script,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self { script: Script::from_lua(include_str!("change.lua")) }
    }

    pub(super) async fn run(
        &self,
        client: &Client,
        names: &Names,
        subject: &Subject,
        change: &Change<'_>,
    ) -> Result<Changed, Refused> {
        let mut keys = names.channel(subject, ["order", "sockets", "users", "infos", "outbox"]);
        // In a cluster of stores it would be another's.
        keys.extend((!names.clustered).then(|| names.incarnation()));
        let arguments = change.arguments(!names.clustered, subject).map_err(Refused::Bus)?;
        let answer = evaluate(client, &self.script, keys, arguments).await;
        let answer = answer.map_err(|error| Refused::Bus(unavailable(error)))?;
        match answer.first().map(String::as_str) {
            Some("ok") => parse(names, subject, change.cause, &answer).map_err(Refused::Bus),
            Some("stale") => Err(Refused::Stale),
            Some("full") => Err(Refused::Bus(BusError::Full(change.members))),
            _ => Err(Refused::Bus(garbled())),
        }
    }
}

impl Change<'_> {
    fn arguments(&self, compare: bool, subject: &Subject) -> Result<Vec<String>, BusError> {
        let flag = |flag: bool| if flag { "1" } else { "0" }.to_owned();
        let (dead, cursor) = self.dead.unwrap_or(("", "0"));
        let present = self.told.unwrap_or_default();
        let outbox = if subject.channel.kind() == ChannelKind::Internal { 0 } else { OUTBOX };
        let mut arguments = vec![
            self.incarnation.to_owned(),
            flag(compare),
            self.process.to_owned(),
            self.known.epoch.to_string(),
            self.known.seq.to_string(),
            flag(self.settling),
            self.cause.map_or("-", |Cause::Drain| DRAIN).to_owned(),
            self.members.to_string(),
            TOMBSTONE_SECONDS.to_string(),
            flag(self.all),
            outbox.to_string(),
            flag(self.all && self.dead.is_none()),
            flag(self.roster),
            dead.to_owned(),
            cursor.to_owned(),
            flag(self.told.is_some()),
            present.len().to_string(),
            self.come.len().to_string(),
            self.go.len().to_string(),
            self.outbox.len().to_string(),
        ];
        let info =
            |member: &Member| serde_json::to_string(member).map_err(|error| BusError::Unavailable(error.to_string()));
        for member in present {
            arguments.extend([member.user_id.clone(), info(member)?]);
        }
        for (socket, member) in self.come {
            let user = member.as_ref().map(|member| member.user_id.clone()).unwrap_or_default();
            let info = member.as_ref().map(info).transpose()?.unwrap_or_default();
            arguments.extend([socket.to_string(), user, info]);
        }
        arguments.extend(self.go.iter().map(ToString::to_string));
        for transition in self.outbox {
            let Transition { order, kind, time_ms, cause, .. } = transition;
            let cause = cause.map_or("-", |Cause::Drain| DRAIN);
            let (kind, user) = match kind {
                EventKind::ChannelOccupied => ("occupied", ""),
                EventKind::ChannelVacated => ("vacated", ""),
                EventKind::MemberAdded { user_id } => ("added", user_id.as_str()),
                EventKind::MemberRemoved { user_id } => ("removed", user_id.as_str()),
                // The bus decides nothing else.
                _ => continue,
            };
            arguments.extend([format!("{}:{}", order.epoch, order.seq), format!("{kind} {time_ms} {cause} {user}")]);
        }
        Ok(arguments)
    }
}

const DRAIN: &str = "drain";

fn parse(names: &Names, subject: &Subject, cause: Option<Cause>, answer: &[String]) -> Result<Changed, BusError> {
    let [_, epoch, time_ms, cursor, decided, waiting, rest @ ..] = answer else { return Err(garbled()) };
    let (decided, waiting) = (number(decided)?, number(waiting)?);
    let counts = usize::try_from(decided).ok().zip(usize::try_from(waiting).ok());
    let (decided, waiting) = counts.ok_or_else(garbled)?;
    let (decided, rest) = rest.split_at_checked(decided.saturating_mul(4)).ok_or_else(garbled)?;
    let (waiting, infos) = rest.split_at_checked(waiting.saturating_mul(2)).ok_or_else(garbled)?;
    let (epoch, time_ms) = (number(epoch)?, number(time_ms)?);
    let mut changed = Changed { cursor: cursor.clone(), ..Changed::default() };
    for item in decided.chunks_exact(4) {
        let order = Order { epoch, seq: number(&item[1])? };
        changed.transitions.push(transition(names, subject, &item[0], order, time_ms, (cause, &item[2]))?);
        if !item[3].is_empty() {
            changed.added.push(member(&item[3])?);
        }
    }
    for pair in waiting.chunks_exact(2) {
        let (epoch, seq) = pair[0].split_once(':').ok_or_else(garbled)?;
        let order = Order { epoch: number(epoch)?, seq: number(seq)? };
        let mut parts = pair[1].splitn(4, ' ');
        let (Some(kind), Some(time_ms), Some(cause), Some(user)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(garbled());
        };
        let cause = (cause == DRAIN).then_some(Cause::Drain);
        changed.outbox.push(transition(names, subject, kind, order, number(time_ms)?, (cause, user))?);
    }
    changed.outbox.sort_by_key(|transition| transition.order);
    changed.roster = infos.iter().map(|info| member(info)).collect::<Result<_, _>>()?;
    changed.roster.sort_by(|one, other| one.user_id.cmp(&other.user_id));
    Ok(changed)
}

fn transition(
    names: &Names,
    subject: &Subject,
    kind: &str,
    order: Order,
    time_ms: u64,
    (cause, user): (Option<Cause>, &str),
) -> Result<Transition, BusError> {
    let user_id = user.to_owned();
    let kind = match kind {
        "occupied" => EventKind::ChannelOccupied,
        "vacated" => EventKind::ChannelVacated,
        "added" => EventKind::MemberAdded { user_id },
        "removed" => EventKind::MemberRemoved { user_id },
        _ => return Err(garbled()),
    };
    let leaves = matches!(kind, EventKind::ChannelVacated | EventKind::MemberRemoved { .. });
    Ok(Transition { id: id(names, subject, order, time_ms), kind, order, time_ms, cause: cause.filter(|_| leaves) })
}

/// The same for everyone who tells of it: whoever finds it after its process died gives it the same id.
fn id(names: &Names, subject: &Subject, order: Order, time_ms: u64) -> String {
    let text = format!("{} {} {} {}:{}", names.cluster, subject.app, subject.channel, order.epoch, order.seq);
    let digest = Sha256::digest(text.as_bytes());
    let random = digest.iter().take(10).fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
    Ulid::from_parts(time_ms, random).to_string()
}

fn member(info: &str) -> Result<Member, BusError> {
    serde_json::from_str(info).map_err(|_| garbled())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;

    fn names() -> Names {
        Names { cluster: "u".into(), clustered: false }
    }

    fn subject() -> Subject {
        Subject { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") }
    }

    #[test]
    fn an_answer_is_read_and_rubbish_is_not() {
        let text = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let info = r#"{"user_id":"a b","user_info":1}"#;
        let answer = text(&["ok", "9", "5", "", "2", "1", "occupied", "3", "", "", "added", "4", "a b", info]);
        let answer = [answer, text(&["8:7", "removed 4 drain a b", info])].concat();
        let changed = parse(&names(), &subject(), None, &answer).expect("read");
        let kinds: Vec<_> = changed.transitions.iter().map(|t| (t.kind.name(), t.order.seq, t.cause)).collect();
        assert_eq!(kinds, [("channel_occupied", 3, None), ("member_added", 4, None)]);
        assert_eq!((changed.added.len(), changed.roster.len()), (1, 1));
        let waiting = &changed.outbox[0];
        assert_eq!(waiting.kind, EventKind::MemberRemoved { user_id: "a b".into() });
        assert_eq!(
            (waiting.order, waiting.time_ms, waiting.cause),
            (Order { epoch: 8, seq: 7 }, 4, Some(Cause::Drain))
        );
        for end in 0..answer.len() - 1 {
            let cut = parse(&names(), &subject(), None, &answer[..end]);
            assert!(cut.is_err() || cut.is_ok_and(|cut| cut.roster.is_empty()), "cut at {end}");
        }
        let much = text(&["ok", "9", "5", "", "99999999999999999999", "0"]);
        assert!(parse(&names(), &subject(), None, &much).is_err());
    }

    #[test]
    fn an_id_is_the_same_wherever_it_is_made_and_for_nothing_else() {
        let order = Order { epoch: 9, seq: 1 };
        let id = |names: &Names, order, time| super::id(names, &subject(), order, time);
        assert_eq!(id(&names(), order, 5), id(&names(), order, 5));
        let other = Names { cluster: "v".into(), clustered: false };
        assert_ne!(id(&names(), order, 5), id(&other, order, 5));
        assert_ne!(id(&names(), order, 5), id(&names(), Order { epoch: 9, seq: 2 }, 5));
        assert!(id(&names(), order, 5).parse::<Ulid>().is_ok_and(|id| id.timestamp_ms() == 5));
    }
}
