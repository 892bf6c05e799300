//! A replay: dead letters of a time range are sent again, each to the endpoint that it names and to no other.
//!
//! In: the dead-letter stream, filters, the app registry. Out: signed webhooks marked as replayed, and an item per selected
//! letter with its result. A replay writes no letter. [`selection`] decides what is sent, and is pure; [`scan`] reads
//! streams; [`delivery`] sends.

mod delivery;
mod scan;
mod selection;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use url::Url;

pub use selection::LetterFilter;

use self::delivery::ReplaySender;
use self::scan::scan_stream;
use self::selection::{Decision, SelectedLetter, StateVersions, select_letters};
use super::EgressOverrides;
use super::allowed_endpoints;
use super::endpoint::EndpointId;
use super::metrics::DispatcherMetrics;
use super::sender::WebhookSender;
use crate::kinesis::{KinesisClient, KinesisError, ReadRecord};
use crate::process::files;
use crate::protocol::dead_letter::DeadLetter;
use crate::protocol::egress_policy::EgressPolicy;
use crate::protocol::record::StreamRecord;
use crate::protocol::registry::{App, AppLimits, AppRegistry, BatchMode, Credential, CredentialState, WebhookEndpoint};
use crate::protocol::{AppId, AppKey, Secret};

/// Bounds the selected letters of one replay, and their bytes.
const LETTERS_MAX: usize = 100_000;
const LETTER_TOTAL_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The letters to send, and how.
pub struct ReplayRequest {
    /// The client of the dead-letter stream.
    pub letters: KinesisClient,
    /// The letters to select.
    pub filter: LetterFilter,
    /// The endpoints that letters may go to.
    pub registry: AppRegistry,
    /// The endpoint that all letters of the selected app go to instead.
    pub destination: Option<ReplayDestination>,
    /// The addresses that webhooks may go to.
    pub policy: Arc<EgressPolicy>,
    /// Whether state is sent although a later one is known.
    pub sends_superseded: bool,
    /// Whether nothing is sent.
    pub is_dry_run: bool,
    /// Events that are sent in a second at most, over all endpoints.
    pub events_per_second: u32,
}

/// An endpoint that a person names.
pub struct ReplayDestination {
    /// The URL to post to.
    pub url: Url,
    /// The key that signs.
    pub key: AppKey,
    /// The secret of the key.
    pub secret: Secret,
}

/// The result of a replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayReport {
    /// Name of the dead-letter stream.
    pub stream: String,
    /// Whether nothing was sent.
    pub dry_run: bool,
    /// Records that were read in the time range.
    pub read: u64,
    /// Records among them that are no letters of this release.
    pub unreadable: u64,
    /// Number of selected letters by result.
    pub totals: BTreeMap<String, u64>,
    /// The selected letters, in the order of sending.
    pub items: Vec<ReplayItem>,
}

/// A selected letter with its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplayItem {
    /// Time at which the letter was written, in ms since 1970.
    pub written_ms: u64,
    /// The reason of the letter.
    pub reason: String,
    /// The app of the event; empty for a record that was not read.
    pub app: String,
    /// The endpoint that it goes to; empty without one.
    pub endpoint: String,
    /// Id of the event; empty without one.
    pub event: String,
    /// Name of the event, such as `channel_occupied`; empty without one.
    pub name: String,
    /// The channel of the event; empty without one.
    pub channel: String,
    /// Attempts that the dispatcher made.
    pub attempts: u32,
    /// The outcome of the dispatcher's last attempt; empty without one.
    pub last_answer: String,
    /// The result of the replay.
    pub result: ReplayResult,
    /// The result in more words; empty if its name says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The result of one letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ReplayResult {
    /// It would be sent.
    Selected,
    /// The endpoint acknowledged it.
    Delivered,
    /// The endpoint did not acknowledge it.
    Failed,
    /// It was not sent, on purpose.
    Skipped,
}

/// The reason why a replay ends before anything is sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The dead-letter stream cannot be read.
    #[error("{0}: check the stream's name, the region and the permissions to list and read it")]
    Letters(KinesisError),
    /// The stream of the events cannot be read.
    #[error("{0}: without the stream of the events a later state cannot be seen; permit reading it, or write --all")]
    Source(KinesisError),
    /// The selection is too large for one replay.
    #[error(
        "more than {LETTERS_MAX} letters, or more than 256 MiB of them, are selected: narrow the time range, or filter by app, endpoint or reason"
    )]
    TooMany,
    /// TLS cannot be set up.
    #[error("the webhook client cannot be made: {0}: check the system's certificates")]
    Client(String),
}

/// Name of the endpoint for letters that name none, if a person names the URL.
const NAMED_ENDPOINT: &str = "url";

/// Reads the app registry of a directory, and lets the policy allow the private endpoints that it lists.
///
/// # Errors
/// The directory cannot be read, or a file in it is invalid.
pub async fn read_registry(directory: &Path, policy: &EgressPolicy) -> Result<AppRegistry, String> {
    let unreadable = |error: String| {
        format!("the app registry in {} cannot be read: {error}: name its directory by --apps", directory.display())
    };
    let found = files::read_directory(directory).await.map_err(|error| unreadable(error.to_string()))?;
    if found.is_empty() {
        return Err(unreadable("it has no file in JSON".to_owned()));
    }
    allowed_endpoints::read_endpoints(directory, policy).await;
    AppRegistry::parse(&found).map_err(|error| unreadable(error.to_string()))
}

/// The registry in which every endpoint of the letters has the URL that a person names.
fn build_named_registry(letters: &[DeadLetter], destination: &ReplayDestination) -> AppRegistry {
    let mut endpoints: BTreeMap<AppId, BTreeSet<&str>> = BTreeMap::new();
    for letter in letters {
        if let Some(app) = &letter.app {
            endpoints.entry(app.clone()).or_default().insert(letter.endpoint.as_deref().unwrap_or(NAMED_ENDPOINT));
        }
    }
    AppRegistry::new(endpoints.into_iter().map(|(id, names)| {
        let (key, secret) = (destination.key.clone(), destination.secret.clone());
        let endpoint = |name: &str| WebhookEndpoint {
            name: name.to_owned(),
            url: destination.url.to_string(),
            events: vec![],
            channel_prefix: String::new(),
            timeout_seconds: 0,
            batch: BatchMode::Many,
            headers: BTreeMap::new(),
            unsendable: None,
        };
        App {
            id,
            credentials: vec![Credential { key, secret, state: CredentialState::Active }],
            enabled: true,
            client_events: false,
            subscription_count: false,
            authorization_seconds: None,
            allowed_origins: vec![],
            limits: AppLimits::default(),
            webhooks: names.into_iter().map(endpoint).collect(),
            disabled_webhooks: vec![],
        }
    }))
}

/// Runs a replay; `progress` receives a line from time to time.
///
/// # Errors
/// A stream cannot be read, or too many letters are selected; nothing was sent then.
pub async fn replay(request: ReplayRequest, progress: &dyn Fn(&str)) -> Result<ReplayReport, ReplayError> {
    let ReplayRequest { letters: client, filter, registry, policy, .. } = request;
    let (mut read, mut unreadable, mut bytes) = (0, 0, 0);
    let mut letters: Vec<DeadLetter> = Vec::new();
    let mut is_too_many = false;
    let seen = |record: ReadRecord| {
        read += 1;
        match DeadLetter::parse(&record.data) {
            Ok(letter) if filter.selects(&letter) => {
                bytes += record.data.len();
                letters.push(letter);
                is_too_many = letters.len() > LETTERS_MAX || bytes > LETTER_TOTAL_BYTES_MAX;
            }
            Ok(_) => {}
            Err(_) => unreadable += 1,
        }
        !is_too_many
    };
    scan_stream(&client, filter.since_ms, filter.until_ms, seen, progress).await.map_err(ReplayError::Letters)?;
    if is_too_many {
        return Err(ReplayError::TooMany);
    }
    progress(&format!("read {read} letters, {} match the filters", letters.len()));
    let registry = request.destination.as_ref().map_or(registry, |named| build_named_registry(&letters, named));
    let mut selected = select_letters(letters, &registry, &filter);
    if !request.sends_superseded {
        let mut versions = StateVersions::default();
        for letter in &selected {
            versions.note_letter(letter);
        }
        for (stream, since_ms) in selection::sources_of_state(&selected) {
            progress(&format!("reading {stream} for later states"));
            let note = |record: ReadRecord| {
                if let Ok(record) = StreamRecord::parse(&record.data) {
                    versions.note_record(&record);
                }
                true
            };
            let source = client.of_stream(stream);
            scan_stream(&source, since_ms, u64::MAX, note, progress).await.map_err(ReplayError::Source)?;
        }
        for letter in &mut selected {
            letter.skip_if_superseded(&versions);
        }
    }
    if !request.is_dry_run {
        let sender = build_sender(registry, policy)?;
        let mut sender = ReplaySender::new(sender, request.events_per_second);
        sender.send_all(&mut selected, progress).await;
    }
    let items: Vec<ReplayItem> = selected.iter().map(describe_letter).collect();
    let mut totals = BTreeMap::new();
    for item in &items {
        *totals.entry(format!("{:?}", item.result)).or_default() += 1;
    }
    Ok(ReplayReport {
        stream: client.stream().to_string(),
        dry_run: request.is_dry_run,
        read,
        unreadable,
        totals,
        items,
    })
}

fn build_sender(registry: AppRegistry, policy: Arc<EgressPolicy>) -> Result<WebhookSender, ReplayError> {
    // The receiver keeps the last value without its sender.
    let (_, apps) = watch::channel(Arc::new(registry));
    let metrics: Arc<DispatcherMetrics> = Arc::default();
    let sender = WebhookSender::new(policy, EgressOverrides::default(), apps, metrics);
    Ok(sender.map_err(ReplayError::Client)?.mark_replays())
}

fn describe_letter(selected: &SelectedLetter) -> ReplayItem {
    let letter = &selected.letter;
    let (result, message) = match &selected.decision {
        Decision::Send => (ReplayResult::Selected, String::new()),
        Decision::Skip(cause) => (ReplayResult::Skipped, cause.meaning().to_owned()),
        Decision::Delivered => (ReplayResult::Delivered, String::new()),
        Decision::Failed(why) => (ReplayResult::Failed, why.clone()),
    };
    let event = selected.event.as_ref();
    ReplayItem {
        written_ms: letter.written_ms,
        reason: letter.reason.clone(),
        app: letter.app.as_ref().map(ToString::to_string).unwrap_or_default(),
        endpoint: selected.target.as_ref().map(|EndpointId { endpoint, .. }| endpoint.clone()).unwrap_or_default(),
        event: event.map(|event| event.id.clone()).unwrap_or_default(),
        name: event.map(|event| event.kind.name().to_owned()).unwrap_or_default(),
        channel: event.map(|event| event.channel.as_str().to_owned()).unwrap_or_default(),
        attempts: letter.attempts,
        last_answer: letter.last_answer.clone().unwrap_or_default(),
        result,
        message,
    }
}
