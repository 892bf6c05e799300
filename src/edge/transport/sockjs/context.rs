//! The settings of `SockJS`, and the state that its requests share.

use std::sync::Arc;

use crate::config::{ServerConfig, name};
use crate::edge::transport::context::TransportContext;
use crate::edge::transport::session_ownership::session_host;
use crate::edge::transport::sockjs::page::IframePages;
use crate::edge::transport::sockjs::session::SockjsSessions;
use crate::protocol::Transport;

/// The path below which all of `SockJS` is served.
pub const BASE_PATH: &str = "/pusher";

/// The settings of `SockJS` that an operator may choose.
pub struct SockjsSettings {
    pub(super) pages: IframePages,
    pub(super) cookie: bool,
    /// The host to which clients send all requests of a session.
    pub(super) host: Option<String>,
}

impl SockjsSettings {
    /// Reads the settings from the variables.
    pub fn from_values(values: &ServerConfig) -> Self {
        Self {
            pages: IframePages::new(values.list_items(name::SOCKJS_SCRIPTS)),
            cookie: values.text(name::SOCKJS_COOKIE) == "on",
            host: session_host(values),
        }
    }
}

/// The state that all requests share.
#[derive(Clone)]
pub(crate) struct SockjsContext {
    pub(super) shared: Arc<TransportContext>,
    pub(super) sessions: Arc<SockjsSessions>,
    pub(super) settings: Arc<SockjsSettings>,
    pub(super) transports: Arc<[Transport]>,
}

impl SockjsContext {
    pub(super) fn is_served(&self, transport: Transport) -> bool {
        self.transports.contains(&transport)
    }
}
