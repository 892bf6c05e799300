//! The letters that a replay sends, and the endpoint of each. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::dispatcher::endpoint::EndpointId;
use crate::protocol::dead_letter::DeadLetter;
use crate::protocol::record::{EventOrder, EventTopic, StreamRecord};
use crate::protocol::registry::AppRegistry;
use crate::protocol::webhook::WebhookEvent;
use crate::protocol::{AppId, ChannelName, StreamName};

/// The letters to select; an absent part selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// First time of writing, in ms since 1970.
    pub since_ms: u64,
    /// Last time of writing, in ms since 1970.
    pub until_ms: u64,
    /// UID of the cluster that wrote the letter.
    pub cluster: Option<String>,
    /// The app of the event.
    pub app: Option<AppId>,
    /// The endpoint that did not get the event.
    pub endpoint: Option<String>,
    /// The reason of the letter.
    pub reason: Option<String>,
}

impl LetterFilter {
    /// Whether the letter is selected. One without an endpoint is, since the registry names its endpoints.
    #[must_use]
    pub fn selects(&self, letter: &DeadLetter) -> bool {
        let is_in_time = (self.since_ms..=self.until_ms).contains(&letter.written_ms);
        is_in_time
            && self.cluster.as_ref().is_none_or(|cluster| *cluster == letter.cluster)
            && self.app.as_ref().is_none_or(|app| letter.app.as_ref() == Some(app))
            && self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && match (&self.endpoint, &letter.endpoint) {
                (Some(wanted), Some(endpoint)) => wanted == endpoint,
                _ => true,
            }
    }
}

/// The reason why a selected letter is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipCause {
    /// The letter holds a record, not an event.
    NoEvent,
    /// The registry lacks the app.
    UnknownApp,
    /// The app has no endpoint of this name, or none that receives the event.
    NoEndpoint,
    /// A later state of the same subject is known.
    Superseded,
    /// An earlier letter reports the same loss.
    Repeated,
}

impl SkipCause {
    /// The cause as a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::NoEvent => "the letter holds a record that no endpoint can receive: read its `raw` and `detail`",
            Self::UnknownApp => "the registry has no app of this id: create the RealtimeApp first",
            Self::NoEndpoint => {
                "the app has no endpoint of this name that receives the event: restore it, or write --url"
            }
            Self::Superseded => "a later state of the same channel or member is known: --all sends it all the same",
            Self::Repeated => "another letter reports the same loss",
        }
    }
}

/// The decision on a selected letter, or the result of sending it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is to be sent.
    Send,
    /// It is not sent.
    Skip(SkipCause),
    /// Its endpoint has acknowledged it.
    Delivered,
    /// Its endpoint has not acknowledged it, for this reason.
    Failed(String),
}

/// A selected letter with its endpoint.
#[derive(Clone, Debug)]
pub struct SelectedLetter {
    /// The letter as it was read.
    pub letter: DeadLetter,
    /// The event of the letter.
    pub event: Option<WebhookEvent>,
    /// The endpoint that it goes to.
    pub target: Option<EndpointId>,
    /// The decision on it; once it was sent, the result.
    pub decision: Decision,
}

impl SelectedLetter {
    /// Skips a state of which a later version is known.
    pub fn skip_if_superseded(&mut self, versions: &StateVersions) {
        if self.decision == Decision::Send && versions.has_later(self) {
            self.decision = Decision::Skip(SkipCause::Superseded);
        }
    }

    fn time_ms(&self) -> u64 {
        self.letter.time_ms.unwrap_or_default()
    }

    /// The subject of the event's state and its version; `None` for other events.
    fn state(&self) -> Option<(Subject, StateVersion)> {
        let (app, event) = (self.letter.app.clone()?, self.event.as_ref()?);
        let topic = EventTopic::of_kind(&event.kind)?;
        Some(((app, event.channel.clone(), topic), StateVersion { order: event.order, time_ms: self.time_ms() }))
    }
}

/// Gives each letter its endpoint, in the order in which they are sent: by endpoint, then by time. A letter of an unknown
/// app names none; it goes to each endpoint of the app that receives the event.
#[must_use]
pub fn select_letters(letters: Vec<DeadLetter>, registry: &AppRegistry, filter: &LetterFilter) -> Vec<SelectedLetter> {
    let mut seen = HashSet::new();
    let mut selected = Vec::with_capacity(letters.len());
    for letter in letters {
        let event = letter.parse_event();
        let skip =
            |cause, letter, event, target| SelectedLetter { letter, event, target, decision: Decision::Skip(cause) };
        let (Some(found), Some(app_id)) = (&event, letter.app.clone()) else {
            selected.push(skip(SkipCause::NoEvent, letter, event, None));
            continue;
        };
        let named = letter.endpoint.clone().map(|endpoint| EndpointId { app: app_id.clone(), endpoint });
        if !seen.insert(letter.identity()) {
            selected.push(skip(SkipCause::Repeated, letter, event, named));
            continue;
        }
        let Some(app) = registry.by_id(&app_id) else {
            selected.push(skip(SkipCause::UnknownApp, letter, event, named));
            continue;
        };
        let is_target = |name: &str| match &letter.endpoint {
            Some(endpoint) => name == endpoint,
            None => filter.endpoint.as_deref().is_none_or(|wanted| name == wanted),
        };
        let is_open = |wants: bool| letter.endpoint.is_some() || wants;
        let targets: Vec<EndpointId> = app
            .webhooks
            .iter()
            .filter(|it| is_target(&it.name) && is_open(it.wants_event(found.kind.name(), found.channel.as_str())))
            .map(|it| EndpointId { app: app_id.clone(), endpoint: it.name.clone() })
            .collect();
        if targets.is_empty() {
            selected.push(skip(SkipCause::NoEndpoint, letter, event, named));
            continue;
        }
        for target in targets {
            let (letter, event) = (letter.clone(), event.clone());
            selected.push(SelectedLetter { letter, event, target: Some(target), decision: Decision::Send });
        }
    }
    selected.sort_by(|one, other| {
        let key = |it: &SelectedLetter| (it.time_ms(), it.event.as_ref().and_then(|event| event.order));
        one.target.cmp(&other.target).then_with(|| key(one).cmp(&key(other)))
    });
    selected
}

/// The streams that hold the records of state events to be sent, each with the time of the oldest.
#[must_use]
pub fn sources_of_state(selected: &[SelectedLetter]) -> BTreeMap<StreamName, u64> {
    let mut sources = BTreeMap::new();
    let states = selected.iter().filter(|it| it.decision == Decision::Send && it.state().is_some());
    for letter in states {
        let since = sources.entry(letter.letter.source.stream.clone()).or_insert(u64::MAX);
        *since = letter.time_ms().min(*since);
    }
    sources
}

/// A subject of state: the occupancy or count of a channel, or a member of it.
type Subject = (AppId, ChannelName, EventTopic);

/// The version of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StateVersion {
    order: Option<EventOrder>,
    time_ms: u64,
}

impl StateVersion {
    /// Whether this version follows the other one; counts have no order but their time.
    fn follows(&self, other: &Self) -> bool {
        match (self.order, other.order) {
            (Some(order), Some(other)) => order > other,
            _ => self.time_ms > other.time_ms,
        }
    }
}

/// The latest known version of each subject.
#[derive(Debug, Default)]
pub struct StateVersions(HashMap<Subject, StateVersion>);

impl StateVersions {
    /// Notes the state of a letter.
    pub fn note_letter(&mut self, letter: &SelectedLetter) {
        if let Some((subject, version)) = letter.state() {
            self.note(subject, version);
        }
    }

    /// Notes the states of a record.
    pub fn note_record(&mut self, record: &StreamRecord) {
        for event in &record.events {
            if let Some(topic) = EventTopic::of_kind(&event.kind) {
                let version = StateVersion { order: event.order, time_ms: event.time_ms };
                self.note((record.app.clone(), record.channel.clone(), topic), version);
            }
        }
    }

    fn note(&mut self, subject: Subject, version: StateVersion) {
        let latest = self.0.entry(subject).or_insert(version);
        if version.follows(latest) {
            *latest = version;
        }
    }

    fn has_later(&self, letter: &SelectedLetter) -> bool {
        letter
            .state()
            .is_some_and(|(subject, version)| self.0.get(&subject).is_some_and(|latest| latest.follows(&version)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::dead_letter::{self, LetterSource, RawContent};
    use crate::protocol::record::EventKind;
    use crate::protocol::registry::tests::{app, endpoint};
    use crate::protocol::registry::{App, WebhookEndpoint};

    fn letter(endpoint: Option<&str>, seq: u64, kind: EventKind) -> DeadLetter {
        let channel = ChannelName::parse("a").expect("a name");
        let order = EventTopic::of_kind(&kind).map(|_| EventOrder { epoch: 1, seq });
        let event = WebhookEvent { kind, channel, id: seq.to_string(), order };
        let letter = dead_letter::tests::letter(serde_json::value::to_raw_value(&event).ok(), None);
        DeadLetter {
            app: Some("1".into()),
            endpoint: endpoint.map(str::to_owned),
            source: LetterSource { sequence: seq.to_string(), ..letter.source },
            written_ms: 100,
            time_ms: Some(seq),
            ..letter
        }
    }

    fn message() -> EventKind {
        EventKind::ClientEvent { event: "client-a".into(), data: "1".into(), socket_id: "1.1".into(), user_id: None }
    }

    fn registry() -> AppRegistry {
        let messages = WebhookEndpoint { events: vec!["client_event".to_owned()], ..endpoint("messages") };
        AppRegistry::new([App { webhooks: vec![endpoint("all"), messages], ..app("1", &[]) }])
    }

    /// Events, targets and decisions of letters in the order of sending.
    fn plan(letters: Vec<DeadLetter>, filter: &LetterFilter) -> Vec<(String, String, Decision)> {
        let mut selected = select_letters(letters, &registry(), filter);
        let mut versions = StateVersions::default();
        for letter in &selected {
            versions.note_letter(letter);
        }
        for letter in &mut selected {
            letter.skip_if_superseded(&versions);
        }
        let row = |it: SelectedLetter| {
            let target = it.target.map(|target| target.endpoint).unwrap_or_default();
            (it.event.map(|event| event.id).unwrap_or_default(), target, it.decision)
        };
        selected.into_iter().map(row).collect()
    }

    #[test]
    fn a_letter_goes_to_the_endpoint_that_it_names_and_to_no_other() {
        let row = |id: &str, target: &str, decision| (id.to_owned(), target.to_owned(), decision);
        let filter = LetterFilter::default();
        assert_eq!(plan(vec![letter(Some("all"), 1, message())], &filter), [row("1", "all", Decision::Send)]);
        let gone = letter(Some("gone"), 1, message());
        assert_eq!(plan(vec![gone], &filter), [row("1", "gone", Decision::Skip(SkipCause::NoEndpoint))]);
        let stranger = DeadLetter { app: Some("2".into()), ..letter(Some("all"), 1, message()) };
        assert_eq!(plan(vec![stranger], &filter), [row("1", "all", Decision::Skip(SkipCause::UnknownApp))]);
        let raw = DeadLetter { event: None, raw: Some(RawContent::encode(b"{", 1)), ..letter(None, 1, message()) };
        assert_eq!(plan(vec![raw], &filter), [row("", "", Decision::Skip(SkipCause::NoEvent))]);
        let twice = || letter(Some("all"), 1, message());
        let repeated = row("1", "all", Decision::Skip(SkipCause::Repeated));
        assert_eq!(plan(vec![twice(), twice()], &filter), [row("1", "all", Decision::Send), repeated]);
    }

    #[test]
    fn a_letter_of_an_unknown_app_goes_to_the_endpoints_that_receive_the_event_now() {
        let targets = |kind, filter: &LetterFilter| {
            plan(vec![letter(None, 1, kind)], filter).into_iter().map(|(_, target, _)| target).collect::<Vec<_>>()
        };
        assert_eq!(targets(message(), &LetterFilter::default()), ["all", "messages"]);
        assert_eq!(targets(EventKind::ChannelOccupied, &LetterFilter::default()), ["all"]);
        let one = LetterFilter { endpoint: Some("messages".to_owned()), ..LetterFilter::default() };
        assert_eq!(targets(message(), &one), ["messages"]);
    }

    #[test]
    fn only_the_latest_state_of_a_subject_is_sent_and_every_message_in_order() {
        let member = |user: &str| EventKind::MemberAdded { user_id: user.to_owned() };
        let letters = vec![
            letter(Some("all"), 5, message()),
            letter(Some("all"), 3, EventKind::ChannelVacated),
            letter(Some("all"), 1, EventKind::ChannelOccupied),
            letter(Some("all"), 2, member("x")),
            letter(Some("all"), 4, message()),
        ];
        let superseded = Decision::Skip(SkipCause::Superseded);
        let plan = plan(letters, &LetterFilter::default());
        let found: Vec<(&str, &Decision)> = plan.iter().map(|(id, _, decision)| (id.as_str(), decision)).collect();
        let send = &Decision::Send;
        assert_eq!(found, [("1", &superseded), ("2", send), ("3", send), ("4", send), ("5", send)]);
    }

    #[test]
    fn a_later_state_in_the_stream_supersedes_too() {
        let record = |seq: u64| {
            let text = format!(
                r#"{{"v":1,"app":"1","channel":"a","edge":{{"cluster":"u","server":"s","pod":"p","process":"b"}},"events":[{{"id":"x","time_ms":9,"epoch":1,"seq":{seq},"name":"channel_vacated"}}]}}"#
            );
            StreamRecord::parse(text.as_bytes()).expect("a record")
        };
        for (seq, expected) in [(1, Decision::Send), (2, Decision::Send), (3, Decision::Skip(SkipCause::Superseded))] {
            let lost = vec![letter(Some("all"), 2, EventKind::ChannelOccupied)];
            let mut selected = select_letters(lost, &registry(), &LetterFilter::default());
            assert_eq!(sources_of_state(&selected), BTreeMap::from([("s".into(), 2)]));
            let mut versions = StateVersions::default();
            versions.note_record(&record(seq));
            selected[0].skip_if_superseded(&versions);
            assert_eq!(selected[0].decision, expected, "{seq}");
        }
    }

    #[test]
    fn letters_are_selected_by_time_cluster_app_endpoint_and_reason() {
        let all = LetterFilter { until_ms: u64::MAX, ..LetterFilter::default() };
        let named = letter(Some("all"), 1, message());
        let selects = |edit: &dyn Fn(&mut LetterFilter)| {
            let mut filter = all.clone();
            edit(&mut filter);
            filter.selects(&named)
        };
        assert!(selects(&|_| {}));
        assert!(selects(&|filter| (filter.since_ms, filter.until_ms) = (100, 100)));
        assert!(!selects(&|filter| filter.since_ms = 101));
        assert!(!selects(&|filter| filter.until_ms = 99));
        assert!(!selects(&|filter| filter.cluster = Some("other".to_owned())));
        assert!(!selects(&|filter| filter.app = Some("2".into())));
        assert!(!selects(&|filter| filter.endpoint = Some("messages".to_owned())));
        assert!(!selects(&|filter| filter.reason = Some("Poison".to_owned())));
    }
}
