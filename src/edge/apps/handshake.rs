//! The admission of a client: whether it may open a session.
//!
//! In: the registry, the key in the path, the query, the page's origin. Out: the app, or the code and reason that the
//! client receives. The codes are those of Pusher's protocol page; after each of them pusher-js does not reconnect unchanged.

use url::form_urlencoded;

use crate::edge::close_reason::CloseReason;
use crate::edge::metrics::RefusalReason;
use crate::protocol::AppId;
use crate::protocol::frame::code;
use crate::protocol::origin;
use crate::protocol::registry::{App, AppRegistry};

/// Protocol versions that are spoken. Clients in the field send 5 to 7, which do not differ in what is served here.
const SUPPORTED_PROTOCOL_VERSIONS: std::ops::RangeInclusive<u32> = 5..=7;

/// Decides on one attempt.
///
/// # Errors
/// The code and reason to close with.
pub fn admit_handshake(
    registry: &AppRegistry,
    key: &str,
    query: &str,
    origin: Option<&str>,
) -> Result<AppId, CloseReason> {
    let refused = |code, reason: String| Err(CloseReason::new(code, reason));
    let protocol = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "protocol");
    let Some((_, protocol)) = protocol else {
        return refused(code::PROTOCOL_MISSING, "the query has no `protocol`: send protocol=7".into());
    };
    let Ok(protocol) = protocol.parse::<u32>() else {
        return refused(code::VERSION_INVALID, "`protocol` is not a number: send protocol=7".into());
    };
    if !SUPPORTED_PROTOCOL_VERSIONS.contains(&protocol) {
        return refused(code::PROTOCOL_UNSUPPORTED, format!("protocol {protocol} is not supported: send protocol=7"));
    }
    let Some(app) = registry.by_key(key) else {
        return refused(code::APP_UNKNOWN, "no app has this key".into());
    };
    if !app.enabled {
        return Err(app_disabled());
    }
    check_origin(app, origin)?;
    Ok(app.id.clone())
}

/// Whether the app lets pages of this origin connect.
///
/// # Errors
/// The code and reason to close with.
pub fn check_origin(app: &App, origin: Option<&str>) -> Result<(), CloseReason> {
    if origin::is_origin_allowed(&app.allowed_origins, origin) {
        return Ok(());
    }
    Err(CloseReason::new(code::UNAUTHORIZED, "the app does not allow connections from this origin"))
}

/// Whether a session of the app may stay.
///
/// # Errors
/// The code and reason to close with.
pub fn check_app_enabled(registry: &AppRegistry, app: &AppId) -> Result<(), CloseReason> {
    match registry.by_id(app) {
        Some(app) if app.enabled => Ok(()),
        Some(_) => Err(app_disabled()),
        None => Err(CloseReason::new(code::APP_UNKNOWN, "the app was removed")),
    }
}

/// The reason of a refusal, for its metric.
pub fn refusal_reason(closing: &CloseReason) -> RefusalReason {
    match closing.code {
        code::APP_UNKNOWN => RefusalReason::AppUnknown,
        code::APP_DISABLED => RefusalReason::AppDisabled,
        code::OVER_QUOTA => RefusalReason::OverQuota,
        code::PATH_UNKNOWN => RefusalReason::PathUnknown,
        code::VERSION_INVALID | code::PROTOCOL_UNSUPPORTED | code::PROTOCOL_MISSING => RefusalReason::Protocol,
        code::UNAUTHORIZED => RefusalReason::Origin,
        code::OVER_CAPACITY if !closing.drain => RefusalReason::ServerFull,
        _ => RefusalReason::GoingAway,
    }
}

fn app_disabled() -> CloseReason {
    CloseReason::new(code::APP_DISABLED, "the app is disabled")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::registry::{self, CredentialState};

    fn test_app(id: &str, key: &str, enabled: bool) -> App {
        App { enabled, ..registry::tests::app(id, &[(key, CredentialState::Active)]) }
    }

    #[test]
    fn a_table_of_attempts() {
        let mut own = test_app("3", "own", true);
        own.allowed_origins = vec!["https://*.example.com".into()];
        let registry = AppRegistry::new([test_app("1", "on", true), test_app("2", "off", false), own]);
        let (here, elsewhere) = (Some("https://shop.example.com"), Some("https://example.org"));
        for (name, key, query, origin, expected) in [
            ("as pusher-js asks", "on", "protocol=7&client=js&version=8.6.0", elsewhere, Ok("1")),
            ("an older client", "on", "client=x&protocol=5", None, Ok("1")),
            ("no protocol", "on", "client=js", None, Err(4008)),
            ("no query", "on", "", None, Err(4008)),
            ("not a number", "on", "protocol=seven", None, Err(4006)),
            ("an empty number", "on", "protocol=", None, Err(4006)),
            ("too old", "on", "protocol=4", None, Err(4007)),
            ("from the future", "on", "protocol=8", None, Err(4007)),
            ("unknown key", "else", "protocol=7", None, Err(4001)),
            ("disabled app", "off", "protocol=7", None, Err(4003)),
            ("one of the app's pages", "own", "protocol=7", here, Ok("3")),
            ("another page", "own", "protocol=7", elsewhere, Err(4009)),
            ("a page of no origin", "own", "protocol=7", Some("null"), Err(4009)),
            ("no page at all", "own", "protocol=7", None, Ok("3")),
        ] {
            let found = admit_handshake(&registry, key, query, origin).map_err(|closing| closing.code);
            assert_eq!(found, expected.map(AppId::from), "{name}");
        }
    }

    #[test]
    fn a_session_stays_with_its_app() {
        let registry = AppRegistry::new([test_app("1", "on", true), test_app("2", "off", false)]);
        let found = ["1", "2", "3"].map(|id| check_app_enabled(&registry, &id.into()).map_err(|closing| closing.code));
        assert_eq!(found, [Ok(()), Err(4003), Err(4001)]);
    }
}
