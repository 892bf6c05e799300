//! Who may open a session.
//!
//! In: the registry, the key in the path, the query. Out: the app, or the code and reason that the client is told.
//! The codes are those of Pusher's protocol page; all of them tell pusher-js not to come back unchanged.

use url::form_urlencoded;

use super::session::Closing;
use crate::protocol::AppId;
use crate::protocol::frame::code;
use crate::protocol::registry::Registry;

/// Protocol versions that are spoken. Clients in the field send 5 to 7, which do not differ in what is served here.
const PROTOCOLS: std::ops::RangeInclusive<u32> = 5..=7;

/// Decides on one attempt.
///
/// # Errors
/// The code and reason to close with.
pub fn admit(registry: &Registry, key: &str, query: &str) -> Result<AppId, Closing> {
    let refused = |code, reason: String| Err(Closing::new(code, reason));
    let protocol = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "protocol");
    let Some((_, protocol)) = protocol else {
        return refused(code::PROTOCOL_MISSING, "the query has no `protocol`: send protocol=7".into());
    };
    let Ok(protocol) = protocol.parse::<u32>() else {
        return refused(code::VERSION_INVALID, "`protocol` is not a number: send protocol=7".into());
    };
    if !PROTOCOLS.contains(&protocol) {
        return refused(code::PROTOCOL_UNSUPPORTED, format!("protocol {protocol} is not supported: send protocol=7"));
    }
    match registry.by_key(key) {
        None => refused(code::APP_UNKNOWN, "no app has this key".into()),
        Some(app) if !app.enabled => refused(code::APP_DISABLED, "the app is disabled".into()),
        Some(app) => Ok(app.id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Secret;
    use crate::protocol::registry::{App, Credential, CredentialState, Limits};

    fn app(id: &str, key: &str, enabled: bool) -> App {
        let credential = Credential { key: key.into(), secret: Secret::new("s"), state: CredentialState::Active };
        let limits = Limits { client_events_per_second: 10 };
        App {
            id: id.into(),
            credentials: vec![credential],
            enabled,
            client_events: true,
            subscription_count: false,
            authorization_seconds: None,
            limits,
            webhooks: vec![],
        }
    }

    #[test]
    fn a_table_of_attempts() {
        let registry = Registry::new([app("1", "on", true), app("2", "off", false)]);
        for (name, key, query, expected) in [
            ("as pusher-js asks", "on", "protocol=7&client=js&version=8.6.0", Ok("1")),
            ("an older client", "on", "client=x&protocol=5", Ok("1")),
            ("no protocol", "on", "client=js", Err(4008)),
            ("no query", "on", "", Err(4008)),
            ("not a number", "on", "protocol=seven", Err(4006)),
            ("an empty number", "on", "protocol=", Err(4006)),
            ("too old", "on", "protocol=4", Err(4007)),
            ("from the future", "on", "protocol=8", Err(4007)),
            ("unknown key", "else", "protocol=7", Err(4001)),
            ("disabled app", "off", "protocol=7", Err(4003)),
        ] {
            let found = admit(&registry, key, query).map_err(|closing| closing.code);
            assert_eq!(found, expected.map(AppId::from), "{name}");
        }
    }
}
