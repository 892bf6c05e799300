//! Faults and edits that are switched on and off while a rehearsal runs. Each changes the configuration of a process or a
//! double of its surroundings, never a verdict.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{ServerKind, name};

/// Something wrong with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Webhooks are off on the fallbacks alone.
    WebhooksOff,
    /// Another stream name in one server.
    WrongStream,
    /// Another region in one server.
    WrongRegion,
    /// The edges' identity may not put records.
    PutDenied,
    /// The stream was deleted from the account.
    StreamGone,
    /// The dispatcher reads another stream.
    DispatcherStream,
    /// The receiver's name does not resolve in the dispatcher.
    ReceiverUnresolved,
    /// An app's secret differs between edges and dispatcher.
    AppSecret,
    /// The dispatcher's copy of the registry is a former one.
    StaleRegistry,
    /// Redis does not answer the fallbacks.
    BusUnreachable,
    /// The fallbacks are on the bus of another cluster.
    ForeignBus,
    /// The fallbacks run an image that writes no records.
    OldImage,
    /// The receiver refuses the dispatcher's connections.
    ReceiverUnreachable,
    /// The stream throttles every put.
    Throttled,
    /// The first pod of the fallbacks alone writes no records.
    BadPod,
    /// The first dispatcher alone cannot reach the receiver.
    MuteDispatcher,
    /// Every third webhook of the journeys is acknowledged and dropped.
    LostWebhooks,
    /// The dispatchers read nothing from the first shard of a stream.
    UnreadShard,
    /// The stream stores the records of the journeys' app alone.
    SilentApps,
}

impl Fault {
    /// All faults, in the order in which they are listed.
    pub const ALL: [Self; 19] = [
        Self::WebhooksOff,
        Self::WrongStream,
        Self::WrongRegion,
        Self::PutDenied,
        Self::StreamGone,
        Self::DispatcherStream,
        Self::ReceiverUnresolved,
        Self::AppSecret,
        Self::StaleRegistry,
        Self::BusUnreachable,
        Self::ForeignBus,
        Self::OldImage,
        Self::ReceiverUnreachable,
        Self::Throttled,
        Self::BadPod,
        Self::MuteDispatcher,
        Self::LostWebhooks,
        Self::UnreadShard,
        Self::SilentApps,
    ];

    /// The name in commands and requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WebhooksOff => "webhooks-off",
            Self::WrongStream => "wrong-stream",
            Self::WrongRegion => "wrong-region",
            Self::PutDenied => "put-denied",
            Self::StreamGone => "stream-gone",
            Self::DispatcherStream => "dispatcher-stream",
            Self::ReceiverUnresolved => "receiver-unresolved",
            Self::AppSecret => "app-secret",
            Self::StaleRegistry => "stale-registry",
            Self::BusUnreachable => "bus-unreachable",
            Self::ForeignBus => "foreign-bus",
            Self::OldImage => "old-image",
            Self::ReceiverUnreachable => "receiver-unreachable",
            Self::Throttled => "throttled",
            Self::BadPod => "bad-pod",
            Self::MuteDispatcher => "mute-dispatcher",
            Self::LostWebhooks => "lost-webhooks",
            Self::UnreadShard => "unread-shard",
            Self::SilentApps => "silent-apps",
        }
    }

    /// One line on what is wrong while the fault is on.
    #[must_use]
    pub fn help(self) -> &'static str {
        match self {
            Self::WebhooksOff => "REALTIME_WEBHOOKS is off in the sockjs pods, which restart",
            Self::WrongStream => "the sockjs pods restart with another stream name",
            Self::WrongRegion => "the websocket pods restart with another AWS region",
            Self::PutDenied => "Kinesis denies PutRecords to the edges",
            Self::StreamGone => "Kinesis answers that the stream does not exist",
            Self::DispatcherStream => "the dispatchers restart with another stream name",
            Self::ReceiverUnresolved => "the dispatchers cannot resolve the name of the journeys' receiver",
            Self::AppSecret => "the dispatchers' copy of the registry has another secret for the first RealtimeApp",
            Self::StaleRegistry => "the first RealtimeApp changes, and the dispatchers' copy of the registry does not",
            Self::BusUnreachable => "the sockjs pods restart with a Redis that does not answer",
            Self::ForeignBus => "the sockjs pods restart on the bus of another cluster",
            Self::OldImage => {
                "what the sockjs pods record is acknowledged and never stored, as by an image without webhooks"
            }
            Self::ReceiverUnreachable => "the journeys' receiver refuses the dispatchers' connections",
            Self::Throttled => "Kinesis throttles every PutRecords",
            Self::BadPod => "what the first sockjs pod records is acknowledged and never stored; other pods are sound",
            Self::MuteDispatcher => "the journeys' receiver refuses the connections of the first dispatcher alone",
            Self::LostWebhooks => "every third webhook of the journeys is acknowledged and reaches no receiver",
            Self::UnreadShard => "the dispatchers read nothing from the first shard of a stream",
            Self::SilentApps => {
                "Kinesis stores the records of the journeys' app alone; an app with events is found after a minute"
            }
        }
    }

    /// The server whose pods restart when the fault is switched; `None` when none does.
    pub(super) fn restarts(self) -> Option<ServerKind> {
        match self {
            Self::WebhooksOff | Self::WrongStream | Self::BusUnreachable | Self::ForeignBus => Some(ServerKind::Sockjs),
            Self::WrongRegion => Some(ServerKind::Websocket),
            Self::DispatcherStream => Some(ServerKind::Dispatcher),
            _ => None,
        }
    }

    /// The variable that the restarted pods get, with its wrong value.
    pub(super) fn variable(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::WebhooksOff => Some((name::WEBHOOKS, "off")),
            Self::WrongStream | Self::DispatcherStream => Some((name::STREAM_NAME, "another")),
            Self::WrongRegion => Some((name::AWS_REGION, "us-east-1")),
            _ => None,
        }
    }

    /// Whether the fault changes the registry of the servers.
    pub(super) fn changes_registry(self) -> bool {
        matches!(self, Self::AppSecret | Self::StaleRegistry)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|fault| fault.name() == text);
        found.ok_or_else(|| format!("`{text}` is no fault: write one of {}", names()))
    }
}

/// The name of an edit in requests, before its number.
const EDIT_PREFIX: &str = "edit-";

/// One thing that is switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Switch {
    /// A fault by its name.
    Fault(Fault),
    /// An edit of the command line, by its place from 0.
    Edit(usize),
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Edit(place) => write!(f, "{EDIT_PREFIX}{}", place + 1),
        }
    }
}

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix(EDIT_PREFIX).and_then(|number| number.parse::<usize>().ok());
        match number.and_then(|number| number.checked_sub(1)) {
            Some(place) => Ok(Self::Edit(place)),
            None => text.parse().map(Self::Fault),
        }
    }
}

/// The faults and edits that are on, as the doubles read them with every request. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FaultSwitches(Arc<watch::Sender<BTreeSet<Switch>>>);

impl Default for FaultSwitches {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeSet::new())))
    }
}

impl FaultSwitches {
    /// Whether a fault is on.
    #[must_use]
    pub fn is_on(&self, fault: Fault) -> bool {
        self.0.borrow().contains(&Switch::Fault(fault))
    }

    /// The faults and edits that are on.
    #[must_use]
    pub fn active(&self) -> BTreeSet<Switch> {
        self.0.borrow().clone()
    }

    /// Follows the faults and edits that are on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<BTreeSet<Switch>> {
        self.0.subscribe()
    }

    pub(super) fn set(&self, switch: Switch, on: bool) {
        self.0.send_modify(|active| {
            if on {
                active.insert(switch);
            } else {
                active.remove(&switch);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_found_by_its_name_and_another_name_lists_them() {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse(), Ok(fault));
            assert!(!fault.help().is_empty() && !fault.help().contains('\n'));
            assert!(
                fault.variable().is_none() || fault.restarts().is_some(),
                "{fault}: a variable is read at the start"
            );
        }
        assert_eq!("edit-1".parse(), Ok(Switch::Edit(0)));
        assert_eq!(Switch::Edit(0).to_string(), "edit-1");
        assert_eq!("put-denied".parse(), Ok(Switch::Fault(Fault::PutDenied)));
        assert!("edit-0".parse::<Switch>().is_err() && "edit-".parse::<Switch>().is_err());
        let error = "typo".parse::<Fault>().expect_err("no fault");
        assert!(error.contains("`typo`") && error.contains("put-denied, stream-gone"), "{error}");
    }
}
