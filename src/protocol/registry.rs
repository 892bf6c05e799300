//! The app registry as servers mount it: JSON files, one per bucket of apps.
//!
//! The operator writes sixteen Secrets by a hash of the app's id, so that one change rewrites one of them; each becomes
//! one file, and a server reads them all. A reader ignores the fields that its release does not know, and its digests cover
//! them all the same: an operator of a later release sees that its registry has arrived.

use std::collections::BTreeMap;

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::frame::EVENT_BYTES_MAX;
use super::record::EventKind;
use super::{AppId, AppKey, Secret, signature};

/// Number of files in the registry.
pub const BUCKET_COUNT: u8 = 16;

/// Name of the file beside the registry with the private endpoints that webhooks may be sent to, one `HOST:PORT` a line.
/// A server reads it again when it changes, as it does the registry.
pub const ENDPOINTS_FILE: &str = "allowed-endpoints";

/// Begins a line of [`ENDPOINTS_FILE`] with a network that webhooks are not sent to although its addresses are public. Readers
/// that do not know such lines take them for endpoints that cannot be parsed, and allow nothing by them.
pub const DENIED_PREFIX: &str = "deny ";

/// Members of a presence channel, as Pusher documents it.
pub const PRESENCE_MEMBERS_DEFAULT: usize = 100;

/// Seconds for which a cache channel keeps its last event, as Pusher documents it.
pub const CACHE_SECONDS_DEFAULT: u32 = 1_800;

/// Connections of one source address on each pod: more than the users of a large office, and 11 MiB of a pod's memory.
pub const CONNECTIONS_PER_SOURCE_DEFAULT: u32 = 1_000;

/// The number of connections of an app whose clients are counted by no source address. Manifests cannot ask for so many; the
/// operator's own app has it, since all journeys come from one address.
pub const CONNECTIONS_PER_SOURCE_UNBOUNDED: u32 = u32::MAX;

/// One app as a server knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The app's id, digits only.
    pub id: AppId,
    /// Every key and secret that is accepted, oldest first.
    pub credentials: Vec<Credential>,
    /// Whether the app is served; a disabled one takes no connection and no publish.
    pub enabled: bool,
    /// Whether its clients may send client events.
    pub client_events: bool,
    /// Whether it receives the number of connections in a channel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub subscription_count: bool,
    /// Seconds in which a connection must show a signature; `None` when it need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization_seconds: Option<u32>,
    /// Patterns of the origins whose pages may connect; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_origins: Vec<String>,
    /// The limits of the app and each of its clients.
    pub limits: AppLimits,
    /// The endpoints that receive its webhooks.
    pub webhooks: Vec<WebhookEndpoint>,
    /// Endpoints that are switched off. They have a list of their own, so that a reader that does not know it sends them
    /// nothing either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disabled_webhooks: Vec<WebhookEndpoint>,
}

/// A key with its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// The public half, which clients send.
    pub key: AppKey,
    /// The secret half, which signs.
    pub secret: Secret,
    /// Whether new signatures are still made with it.
    pub state: CredentialState,
}

/// State of a credential. Both states are accepted; webhooks are signed by the oldest active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CredentialState {
    /// Signs and verifies; in normal use.
    Active,
    /// Still verifies; about to be removed.
    Retiring,
}

/// The limits of an app and each of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppLimits {
    /// Connections that the app may have, on all pods together; `None` for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// Largest data of one event, in bytes, of clients and of the app's backend.
    #[serde(default = "AppLimits::message_bytes")]
    pub message_bytes: usize,
    /// Client events that one connection may send in a second (Pusher documents 10).
    pub client_events_per_second: u32,
    /// Channels that the app may have on each pod; `None` for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<u32>,
    /// Connections that one source address may have on each pod.
    #[serde(default = "AppLimits::connections_per_source", skip_serializing_if = "AppLimits::is_usual_per_source")]
    pub connections_per_source: u32,
    /// Connections that clients of the app may open in a second, on each pod; `None` for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshakes_per_second: Option<u32>,
    /// Requests of the HTTP API that the app may make in a second, on each pod; `None` for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_requests_per_second: Option<u32>,
    /// Members that a presence channel may have.
    #[serde(default = "AppLimits::presence_members", skip_serializing_if = "AppLimits::is_usual_presence")]
    pub presence_members: usize,
    /// Seconds for which a cache channel keeps its last event.
    #[serde(default = "AppLimits::cache_seconds", skip_serializing_if = "AppLimits::is_usual_cache")]
    pub cache_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
impl AppLimits {
    fn connections_per_source() -> u32 {
        CONNECTIONS_PER_SOURCE_DEFAULT
    }

    fn presence_members() -> usize {
        PRESENCE_MEMBERS_DEFAULT
    }

    fn cache_seconds() -> u32 {
        CACHE_SECONDS_DEFAULT
    }

    fn is_usual_per_source(value: &u32) -> bool {
        *value == CONNECTIONS_PER_SOURCE_DEFAULT
    }

    fn is_usual_presence(value: &usize) -> bool {
        *value == PRESENCE_MEMBERS_DEFAULT
    }

    fn is_usual_cache(value: &u32) -> bool {
        *value == CACHE_SECONDS_DEFAULT
    }

    fn message_bytes() -> usize {
        EVENT_BYTES_MAX
    }
}

impl Default for AppLimits {
    /// The limits that Pusher documents; it documents none for connections of one source.
    fn default() -> Self {
        Self {
            connections: None,
            message_bytes: Self::message_bytes(),
            client_events_per_second: 10,
            channels: None,
            connections_per_source: CONNECTIONS_PER_SOURCE_DEFAULT,
            handshakes_per_second: None,
            api_requests_per_second: None,
            presence_members: PRESENCE_MEMBERS_DEFAULT,
            cache_seconds: CACHE_SECONDS_DEFAULT,
        }
    }
}

/// One webhook endpoint of an app.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebhookEndpoint {
    /// Name of the endpoint, unique within the app.
    pub name: String,
    /// The URL to post to.
    pub url: String,
    /// Names of the events that it receives; empty for all.
    pub events: Vec<String>,
    /// Prefix of the channels whose events it receives; empty for all.
    pub channel_prefix: String,
    /// Seconds for one attempt in total.
    pub timeout_seconds: u32,
    /// Number of events in one body.
    #[serde(default, skip_serializing_if = "BatchMode::is_many")]
    pub batch: BatchMode,
    /// Headers of every request beside those of the dispatcher, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// The reason for which no request can be made now, with the remedy: events wait and are retried as if the endpoint
    /// did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsendable: Option<String>,
}

/// Number of events in one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchMode {
    /// As many events as are due, within the limits of a body.
    #[default]
    Many,
    /// One event, for receivers that read only the first.
    One,
}

impl BatchMode {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    fn is_many(&self) -> bool {
        *self == Self::Many
    }
}

impl WebhookEndpoint {
    /// Whether the endpoint has a setting that servers read since [`crate::config::Release::ENDPOINT_SETTINGS`].
    #[must_use]
    pub fn has_later_settings(&self) -> bool {
        !self.batch.is_many() || !self.headers.is_empty() || self.unsendable.is_some()
    }
}

impl App {
    /// Removes the settings that servers read since [`crate::config::Release::ENDPOINT_SETTINGS`]: older ones refuse a whole file of the
    /// registry for an unknown field.
    pub fn remove_later_settings(&mut self) {
        self.disabled_webhooks.clear();
        let AppLimits { connections, message_bytes, client_events_per_second, .. } = self.limits;
        self.limits = AppLimits { connections, message_bytes, client_events_per_second, ..AppLimits::default() };
        for endpoint in &mut self.webhooks {
            (endpoint.batch, endpoint.unsendable) = (BatchMode::Many, None);
            endpoint.headers.clear();
        }
    }

    /// The pair that signs webhooks: the oldest active one.
    #[must_use]
    pub fn signing_credential(&self) -> Option<&Credential> {
        self.credentials.iter().find(|credential| credential.state == CredentialState::Active)
    }

    /// Finds the enabled endpoint of this name.
    #[must_use]
    pub fn find_webhook(&self, name: &str) -> Option<&WebhookEndpoint> {
        self.webhooks.iter().find(|endpoint| endpoint.name == name)
    }

    /// Renames each endpoint that has the name of an earlier one.
    fn number_shared_names(&mut self) {
        for at in 1..self.webhooks.len() {
            let (earlier, later) = self.webhooks.split_at_mut(at);
            let is_taken = |name: &str| earlier.iter().any(|endpoint| endpoint.name == name);
            if let Some(endpoint) = later.first_mut().filter(|endpoint| is_taken(&endpoint.name)) {
                // There is one candidate more than earlier endpoints, so one is free.
                let free = (2..at + 3).map(|n| format!("{}#{n}", endpoint.name)).find(|name| !is_taken(name));
                endpoint.name = free.unwrap_or_default();
            }
        }
    }

    /// Whether an event of this channel is recorded because an endpoint receives it. The state events of a channel are
    /// recorded together, because they are numbered without gaps, and one of them may cancel another.
    #[must_use]
    pub fn records_event(&self, event: &str, channel: &str) -> bool {
        let related: &[&str] = if EventKind::STATE_NAMES.contains(&event) { &EventKind::STATE_NAMES } else { &[event] };
        self.webhooks.iter().any(|endpoint| related.iter().any(|event| endpoint.wants_event(event, channel)))
    }

    /// The secret of a key.
    #[must_use]
    pub fn secret_for(&self, key: &str) -> Option<&Secret> {
        self.credentials.iter().find(|credential| credential.key.as_str() == key).map(|credential| &credential.secret)
    }

    /// A salted digest of all settings that change how a server treats this app, to compare servers with the rendered
    /// registry.
    #[must_use]
    pub fn salted_digest(&self, salt: &str) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        signature::salted_digest(salt, &text)
    }
}

impl WebhookEndpoint {
    /// Whether the endpoint receives this event.
    #[must_use]
    pub fn wants_event(&self, event: &str, channel: &str) -> bool {
        (self.events.is_empty() || self.events.iter().any(|name| name == event))
            && channel.starts_with(&self.channel_prefix)
    }
}

/// Every app, found by id or by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppRegistry {
    apps: BTreeMap<AppId, App>,
    keys: BTreeMap<AppKey, AppId>,
    /// Texts of the apps that this release would serialise differently: another release wrote them, maybe with fields that
    /// are unknown here.
    later_texts: BTreeMap<AppId, String>,
}

/// The reason why a registry file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("registry file `{file}`: {message}")]
pub struct RegistryError {
    /// The name of the file.
    pub file: String,
    /// The defect of the file.
    pub message: String,
}

impl AppRegistry {
    /// A registry of these apps; of two with one id the later wins. Endpoints of an app that share a name are numbered, so
    /// that each receives its own webhooks.
    #[must_use]
    pub fn new(apps: impl IntoIterator<Item = App>) -> Self {
        let mut apps: BTreeMap<AppId, App> = apps.into_iter().map(|app| (app.id.clone(), app)).collect();
        apps.values_mut().for_each(App::number_shared_names);
        let pairs = |app: &App| app.credentials.iter().map(|c| (c.key.clone(), app.id.clone())).collect::<Vec<_>>();
        let keys = apps.values().flat_map(pairs).collect();
        Self { apps, keys, later_texts: BTreeMap::new() }
    }

    /// Parses the files of a registry.
    ///
    /// # Errors
    /// The first file that is no list of apps: a server keeps its previous registry rather than lose apps.
    pub fn parse<N: AsRef<str>, B: AsRef<[u8]>>(
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Result<Self, RegistryError> {
        let mut apps = Vec::new();
        let mut later_texts = BTreeMap::new();
        for (file, bytes) in files {
            let malformed =
                |error: serde_json::Error| RegistryError { file: file.as_ref().to_owned(), message: error.to_string() };
            let texts: Vec<&RawValue> = serde_json::from_slice(bytes.as_ref()).map_err(malformed)?;
            for text in texts {
                let app: App = serde_json::from_str(text.get()).map_err(malformed)?;
                later_texts.insert(app.id.clone(), text.get().to_owned());
                apps.push(app);
            }
        }
        let registry = Self::new(apps);
        // Most apps are written as this release writes them.
        later_texts.retain(|id, text| {
            let written = registry.apps.get(id).and_then(|app| serde_json::to_string(app).ok());
            written.as_deref() != Some(text.as_str())
        });
        Ok(Self { later_texts, ..registry })
    }

    /// The files of this registry by name, empty buckets too, so that the set of names never changes.
    ///
    /// # Errors
    /// Never for values of this type; the library's signature has one.
    pub fn to_files(&self) -> Result<BTreeMap<String, String>, serde_json::Error> {
        (0..BUCKET_COUNT)
            .map(|bucket| {
                let apps: Vec<&App> = self.apps.values().filter(|app| bucket_of(&app.id) == bucket).collect();
                Ok((file_name(bucket), serde_json::to_string(&apps)?))
            })
            .collect()
    }

    /// Finds an app by its id.
    #[must_use]
    pub fn by_id(&self, id: &AppId) -> Option<&App> {
        self.apps.get(id)
    }

    /// Finds an app by one of its keys.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<&App> {
        self.apps.get(self.keys.get(&AppKey::from(key))?)
    }

    /// Every app, by id.
    pub fn apps(&self) -> impl Iterator<Item = &App> {
        self.apps.values()
    }

    /// A salted digest for each app.
    #[must_use]
    pub fn app_digests(&self, salt: &str) -> BTreeMap<AppId, String> {
        let digest = |(id, app): (&AppId, &App)| match self.later_texts.get(id) {
            Some(text) => signature::salted_digest(salt, text),
            None => app.salted_digest(salt),
        };
        self.apps.iter().map(|entry| (entry.0.clone(), digest(entry))).collect()
    }
}

/// The bucket of an app: the first half byte of the id's MD5.
#[must_use]
pub fn bucket_of(id: &AppId) -> u8 {
    Md5::digest(id.as_str().as_bytes())[0] >> 4
}

/// The name of a bucket's file.
#[must_use]
pub fn file_name(bucket: u8) -> String {
    format!("{bucket:x}.json")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An app that is served, with these keys, whose secrets are `s`.
    pub fn app(id: &str, keys: &[(&str, CredentialState)]) -> App {
        App {
            id: id.into(),
            credentials: keys
                .iter()
                .map(|(key, state)| Credential { key: (*key).into(), secret: Secret::new("s"), state: *state })
                .collect(),
            enabled: true,
            client_events: true,
            subscription_count: false,
            authorization_seconds: None,
            allowed_origins: vec![],
            limits: AppLimits::default(),
            webhooks: vec![],
            disabled_webhooks: vec![],
        }
    }

    /// An endpoint of this name that receives everything.
    pub fn endpoint(name: &str) -> WebhookEndpoint {
        WebhookEndpoint {
            name: name.into(),
            url: "https://a".into(),
            events: vec![],
            channel_prefix: String::new(),
            timeout_seconds: 4,
            batch: BatchMode::Many,
            headers: BTreeMap::new(),
            unsendable: None,
        }
    }

    #[test]
    fn registry_files_round_trip() {
        let registry =
            AppRegistry::new((0..100).map(|n| app(&n.to_string(), &[(&format!("k{n}"), CredentialState::Active)])));
        let files = registry.to_files().expect("files");
        assert_eq!(files.len(), 16);
        assert!(files.values().filter(|text| text.as_str() != "[]").count() > 8, "apps are spread");
        let read = AppRegistry::parse(&files);
        assert_eq!(read.as_ref(), Ok(&registry));
        assert_eq!(registry.by_key("k7").map(|app| app.id.as_str()), Some("7"));
    }

    #[test]
    fn absent_limits_default_to_those_of_pusher() {
        let read: AppLimits = serde_json::from_str(r#"{"clientEventsPerSecond":10}"#).expect("limits");
        assert_eq!(read, AppLimits::default());
        let text = r#"{"connections":2,"messageBytes":100,"clientEventsPerSecond":1}"#;
        let read: AppLimits = serde_json::from_str(text).expect("limits");
        assert_eq!(serde_json::to_string(&read).expect("text"), text);
    }

    #[test]
    fn an_invalid_file_is_named_in_the_error() {
        let error = AppRegistry::parse([("a.json", &b"[]"[..]), ("b.json", b"{")]).expect_err("an error");
        assert_eq!(error.file, "b.json");
    }

    #[test]
    fn webhooks_are_signed_by_the_oldest_active_key() {
        let app = app(
            "1",
            &[("old", CredentialState::Retiring), ("now", CredentialState::Active), ("next", CredentialState::Active)],
        );
        assert_eq!(app.signing_credential().map(|credential| credential.key.as_str()), Some("now"));
    }

    #[test]
    fn an_endpoint_receives_the_events_that_it_subscribes_to() {
        let mut endpoint = endpoint("a");
        assert!(endpoint.wants_event("client_event", "x"));
        endpoint.events = vec!["channel_occupied".into()];
        endpoint.channel_prefix = "private-".into();
        assert!(endpoint.wants_event("channel_occupied", "private-x"));
        assert!(!endpoint.wants_event("channel_vacated", "private-x"));
        assert!(!endpoint.wants_event("channel_occupied", "x"));
        let app = App { webhooks: vec![endpoint], ..app("1", &[]) };
        assert!(app.records_event("member_removed", "private-x"), "state events are recorded together");
        assert!(!app.records_event("member_removed", "x") && !app.records_event("client_event", "private-x"));
        let disabled_webhooks = app.webhooks.clone();
        let silent = App { webhooks: vec![], disabled_webhooks, ..app };
        assert!(!silent.records_event("channel_occupied", "private-x"), "a disabled endpoint receives nothing");
    }

    #[test]
    fn endpoints_that_share_a_name_are_numbered() {
        let webhooks = ["a", "b", "a", "a#2", "a"].map(endpoint).into();
        let registry = AppRegistry::new([App { webhooks, ..app("1", &[]) }]);
        let names: Vec<&str> = registry.apps().flat_map(|app| &app.webhooks).map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "a#2", "a#2#2", "a#3"]);
        assert_eq!(AppRegistry::new(registry.apps().cloned()), registry, "numbered once");
    }

    #[test]
    fn a_digest_distinguishes_apps_and_hides_the_secret() {
        let one = app("1", &[("k", CredentialState::Active)]);
        let mut two = one.clone();
        two.credentials[0].secret = Secret::new("t");
        assert_ne!(one.salted_digest("salt"), two.salted_digest("salt"));
        assert_eq!(one.salted_digest("salt"), one.clone().salted_digest("salt"));
        assert_ne!(one.salted_digest("salt"), one.salted_digest("pepper"));
    }

    proptest! {
        #[test]
        fn any_registry_round_trips(apps in proptest::collection::vec((any::<String>(), any::<String>()), 0..8)) {
            let registry = AppRegistry::new(apps.iter().map(|(id, key)| app(id, &[(key, CredentialState::Active)])));
            let files = registry.to_files().expect("files");
            let read = AppRegistry::parse(&files);
            prop_assert_eq!(read, Ok(registry));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = AppRegistry::parse([("0.json", &bytes[..])]);
        }
    }
}
