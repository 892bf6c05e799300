//! The requests of `SockJS` clients: the meaning of each path below the base, the methods that it takes, and the cookie of
//! a load balancer. Pure.

use super::Transport;
use super::sockjs::FrameWrapping;

/// Longest session id. Clients use eight characters.
const SESSION_ID_MAX_LEN: usize = 128;

/// The meaning of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SockjsEndpoint {
    /// The base path: a greeting.
    Greeting,
    /// The page for a hidden iframe.
    Iframe,
    /// The capabilities of the server.
    Info,
    /// A WebSocket without SockJS frames.
    RawSocket,
    /// A request of this session.
    Session(String, SessionAction),
}

/// The action of a session's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// A WebSocket, which is a session of its own.
    Socket,
    /// Receives one frame per request.
    Poll,
    /// Receives frames as a stream.
    Stream,
    /// Sends messages of the client.
    Send,
    /// Receives frames as server-sent events.
    EventSource,
    /// Receives frames as scripts in a page.
    HtmlFile,
    /// Receives one frame as a script.
    Jsonp,
    /// Sends messages from a form.
    JsonpSend,
}

impl SockjsEndpoint {
    /// Parses the rest of a path after the base; it may end with a slash.
    #[must_use]
    pub fn from_path(rest: &str) -> Option<Self> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        match rest {
            "" => return Some(Self::Greeting),
            "/info" => return Some(Self::Info),
            "/websocket" => return Some(Self::RawSocket),
            _ => {}
        }
        let rest = rest.strip_prefix('/')?;
        if is_iframe(rest) {
            return Some(Self::Iframe);
        }
        let mut parts = rest.split('/');
        let (server, session, action) = (parts.next()?, parts.next()?, parts.next()?);
        let named = |part: &str| !part.is_empty() && !part.contains('.');
        if parts.next().is_some() || !named(server) || !named(session) || session.len() > SESSION_ID_MAX_LEN {
            return None;
        }
        // The first part is for load balancers and has no meaning here.
        Some(Self::Session(session.to_owned(), SessionAction::from_name(action)?))
    }

    /// Returns the allowed methods.
    #[must_use]
    pub fn allowed_methods(&self) -> &'static [&'static str] {
        match self {
            Self::Greeting | Self::Iframe | Self::RawSocket => &["GET"],
            Self::Info => &["OPTIONS", "GET"],
            Self::Session(_, action) => match action {
                SessionAction::Poll | SessionAction::Stream | SessionAction::Send => &["POST", "OPTIONS"],
                SessionAction::JsonpSend => &["POST"],
                SessionAction::Socket | SessionAction::EventSource | SessionAction::HtmlFile | SessionAction::Jsonp => {
                    &["GET"]
                }
            },
        }
    }
}

/// `iframe.html`, or with a version in between.
fn is_iframe(file: &str) -> bool {
    let version = file.strip_prefix("iframe").and_then(|rest| rest.strip_suffix(".html"));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    version.is_some_and(|version| version.chars().all(plain))
}

impl SessionAction {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "websocket" => Self::Socket,
            "xhr" => Self::Poll,
            "xhr_streaming" => Self::Stream,
            "xhr_send" => Self::Send,
            "eventsource" => Self::EventSource,
            "htmlfile" => Self::HtmlFile,
            "jsonp" => Self::Jsonp,
            "jsonp_send" => Self::JsonpSend,
            _ => return None,
        })
    }

    /// Returns the transport of a session that this request opens; `None` if it opens none.
    #[must_use]
    pub fn transport(self) -> Option<Transport> {
        Some(match self {
            Self::Socket => Transport::SockjsWebsocket,
            Self::Stream => Transport::SockjsXhrStreaming,
            Self::Poll | Self::Jsonp => Transport::SockjsXhr,
            Self::EventSource | Self::HtmlFile => Transport::SockjsEventsource,
            Self::Send | Self::JsonpSend => return None,
        })
    }

    /// Whether the response has one frame only.
    #[must_use]
    pub fn is_poll(self) -> bool {
        matches!(self, Self::Poll | Self::Jsonp)
    }

    /// Returns the wrapping of frames, unless it is a call of a function.
    #[must_use]
    pub fn frame_wrapping(self) -> FrameWrapping {
        match self {
            Self::EventSource => FrameWrapping::Event,
            Self::HtmlFile => FrameWrapping::Script,
            _ => FrameWrapping::Line,
        }
    }
}

/// Finds the value of a load balancer's cookie in a line of cookies.
#[must_use]
pub fn find_session_cookie(cookies: &str) -> Option<&str> {
    let mut pairs = cookies.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(name, value)| (name.trim() == "JSESSIONID" && !value.trim().is_empty()).then(|| value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_cookie_is_found_among_others() {
        for (cookies, found) in [
            ("JSESSIONID=abcdef", Some("abcdef")),
            ("a=b; JSESSIONID=x ; c=d", Some("x")),
            ("JSESSIONIDS=x", None),
            ("JSESSIONID=", None),
            ("", None),
        ] {
            assert_eq!(find_session_cookie(cookies), found, "{cookies}");
        }
    }

    #[test]
    fn a_path_means_one_thing_or_nothing() {
        let session = |id: &str, action| Some(SockjsEndpoint::Session(id.to_owned(), action));
        for (path, endpoint) in [
            ("", Some(SockjsEndpoint::Greeting)),
            ("/", Some(SockjsEndpoint::Greeting)),
            ("//", None),
            ("/info", Some(SockjsEndpoint::Info)),
            ("/info/", Some(SockjsEndpoint::Info)),
            ("/infos", None),
            ("/websocket", Some(SockjsEndpoint::RawSocket)),
            ("/iframe.html", Some(SockjsEndpoint::Iframe)),
            ("/iframe-.html", Some(SockjsEndpoint::Iframe)),
            ("/iframe-0.1.2abc-dirty.2144.html", Some(SockjsEndpoint::Iframe)),
            ("/iframe", None),
            ("/iframe.htm", None),
            ("/IFRAME.HTML", None),
            ("/iframe.HTML", None),
            ("/iframe-/.html", None),
            ("/0/s/xhr", session("s", SessionAction::Poll)),
            ("/999/s/xhr/", session("s", SessionAction::Poll)),
            ("/abc%20/i-j%20/xhr_streaming", session("i-j%20", SessionAction::Stream)),
            ("/_/_/websocket", session("_", SessionAction::Socket)),
            ("/0/s/xhr_send", session("s", SessionAction::Send)),
            ("/0/s/eventsource", session("s", SessionAction::EventSource)),
            ("/0/s/htmlfile", session("s", SessionAction::HtmlFile)),
            ("/0/s/jsonp", session("s", SessionAction::Jsonp)),
            ("/0/s/jsonp_send", session("s", SessionAction::JsonpSend)),
            ("/0/s/xhr_other", None),
            ("/a./a/xhr", None),
            ("/a/a./xhr", None),
            ("/./../xhr", None),
            ("///xhr", None),
            ("//a/xhr", None),
            ("/a//xhr", None),
            ("/a/xhr", None),
            ("/a/b/c/xhr", None),
            ("/a/b", None),
        ] {
            assert_eq!(SockjsEndpoint::from_path(path), endpoint, "{path}");
        }
        assert_eq!(SockjsEndpoint::from_path(&format!("/0/{}/xhr", "s".repeat(SESSION_ID_MAX_LEN + 1))), None);
    }
}
