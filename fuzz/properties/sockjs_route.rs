//! The paths and cookies of `SockJS` clients.

use super::protocol::sockjs_route::{SessionAction, SockjsEndpoint, find_session_cookie};

/// A path in the first line, cookies in the second.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (path, cookies) = text.split_once('\n').unwrap_or((text, text));
    if let Some(endpoint) = SockjsEndpoint::from_path(path) {
        assert!(!endpoint.allowed_methods().is_empty());
        assert_eq!(SockjsEndpoint::from_path(path.strip_suffix('/').unwrap_or(path)), Some(endpoint.clone()));
        if let SockjsEndpoint::Session(id, action) = endpoint {
            assert!(!id.is_empty() && id.len() <= 128 && !id.contains(['.', '/']), "safe as a part of a key");
            assert!(path.contains(&id));
            let sends = matches!(action, SessionAction::Send | SessionAction::JsonpSend);
            assert_eq!(action.transport().is_none(), sends);
        }
    }
    if let Some(cookie) = find_session_cookie(cookies) {
        assert!(!cookie.is_empty() && !cookie.contains(';') && cookie == cookie.trim());
        assert_eq!(find_session_cookie(&format!("a=b; JSESSIONID={cookie}")), Some(cookie));
    }
}
