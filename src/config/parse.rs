//! Parses an environment into values, or into the one line that explains its refusal.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::ServerKind;
use super::suggest::suggest_name;
use super::table::{VARIABLE_TABLE, Variable};
use super::value_kind::{Requirement, ValueKind};
use super::variable_key::name;

/// The checked variables of one server, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    server: ServerKind,
    values: BTreeMap<&'static str, String>,
}

/// The reason why a server does not start. Every variant names the variable and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A guarded name that is not in the table.
    #[error("{name} is not a variable of this release{hint}: remove it")]
    Unknown {
        /// The name as found in the environment.
        name: String,
        /// A similar name, if there is one.
        hint: String,
    },
    /// A variable that this server does not read.
    #[error("{name} is not read by the {server} server: remove it, it belongs to {belongs}")]
    NotForServer {
        /// The name of the variable.
        name: &'static str,
        /// The kind of this server.
        server: ServerKind,
        /// The servers that read it.
        belongs: String,
    },
    /// A required variable is absent.
    #[error("{name} is missing{why}: set it. {about}")]
    Missing {
        /// The name of the variable.
        name: &'static str,
        /// The other variable that requires it.
        why: String,
        /// The variable's description in the table.
        about: &'static str,
    },
    /// A value of a wrong form.
    #[error("{name} is `{found}`: write {wanted}")]
    Invalid {
        /// The name of the variable.
        name: &'static str,
        /// The value, or its absence.
        found: String,
        /// The form of a valid value.
        wanted: String,
    },
    /// Two values that exclude each other.
    #[error("{name} is set, but {other}: remove one of the two")]
    Contradiction {
        /// The name of the variable.
        name: &'static str,
        /// The variable or value that it contradicts.
        other: String,
    },
}

/// Whether a variable of this name changes a server's behaviour, so that it must be in the table: `REALTIME_*`,
/// `AWS_*`, `SSL_*` and, in either case of letters, `*_PROXY`.
#[must_use]
pub fn is_guarded(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    name.starts_with("REALTIME_") || name.starts_with("AWS_") || name.starts_with("SSL_") || upper.ends_with("_PROXY")
}

impl ServerConfig {
    /// Checks an environment. Names that are not guarded are ignored.
    ///
    /// # Errors
    /// The first variable that is unknown, not for this server, missing, malformed or contradictory.
    pub fn parse(environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let given: BTreeMap<String, String> = environment.into_iter().filter(|(name, _)| is_guarded(name)).collect();
        let server = parse_server_kind(&given)?;
        let mut values = BTreeMap::new();
        for (found, value) in &given {
            let row = Variable::by_name(found)
                .ok_or_else(|| ConfigError::Unknown { name: found.clone(), hint: format_suggestion(found) })?;
            if !row.servers.contains(&server) {
                let belongs: Vec<&str> = row.servers.iter().map(|server| server.name()).collect();
                return Err(ConfigError::NotForServer { name: row.name, server, belongs: belongs.join(" and ") });
            }
            check_value(row, value)?;
            values.insert(row.name, value.clone());
        }
        for row in VARIABLE_TABLE.iter().filter(|row| row.servers.contains(&server)) {
            if let (Requirement::Default(default), None) = (row.need, values.get(row.name)) {
                values.insert(row.name, default.to_owned());
            }
        }
        for row in VARIABLE_TABLE.iter().filter(|row| row.servers.contains(&server)) {
            check_requirement(row, &values, server)?;
        }
        let values = Self { server, values };
        values.check_transports()?;
        Ok(values)
    }

    fn check_transports(&self) -> Result<(), ConfigError> {
        let fits = |transport: &&str| match self.server {
            ServerKind::Websocket => *transport == "websocket",
            ServerKind::Sockjs => *transport != "websocket",
            ServerKind::Edge | ServerKind::Dispatcher => true,
        };
        match self.list_items(name::TRANSPORTS).find(|transport| !fits(transport)) {
            Some(transport) => Err(ConfigError::Contradiction {
                name: name::SERVER,
                other: format!("the {} server does not carry `{transport}` of {}", self.server, name::TRANSPORTS),
            }),
            None => Ok(()),
        }
    }

    /// The kind of server that these variables are for.
    #[must_use]
    pub fn server(&self) -> ServerKind {
        self.server
    }

    /// A value; empty when the variable is absent, which the table decides.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// A value, if it is present.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// A number; the table has checked that it is one.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }

    /// The address of a listener.
    #[must_use]
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.text(name).parse().ok()
    }

    /// The items of a list.
    pub fn list_items(&self, name: &str) -> impl Iterator<Item = &str> {
        self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty())
    }

    /// The variables that this process runs with, secrets replaced by their `digest`, for comparison with the rendered
    /// ones.
    pub fn redacted_variables(&self, digest: impl Fn(&str) -> String) -> BTreeMap<String, String> {
        self.values
            .iter()
            .map(|(name, value)| {
                let hidden = Variable::by_name(name).is_some_and(|row| row.secret);
                ((*name).to_owned(), if hidden { digest(value) } else { value.clone() })
            })
            .collect()
    }
}

fn parse_server_kind(given: &BTreeMap<String, String>) -> Result<ServerKind, ConfigError> {
    let Some(row) = Variable::by_name(name::SERVER) else {
        return Err(ConfigError::Unknown { name: name::SERVER.to_owned(), hint: String::new() });
    };
    let text =
        given.get(name::SERVER).ok_or(ConfigError::Missing { name: row.name, why: String::new(), about: row.about })?;
    check_value(row, text)?;
    text.parse().map_err(|wanted| ConfigError::Invalid { name: row.name, found: text.clone(), wanted })
}

fn check_requirement(
    row: &Variable,
    values: &BTreeMap<&'static str, String>,
    server: ServerKind,
) -> Result<(), ConfigError> {
    let missing = |why: String| ConfigError::Missing { name: row.name, why, about: row.about };
    let present = values.contains_key(row.name);
    match row.need {
        Requirement::Required if !present => Err(missing(String::new())),
        Requirement::When(other, value) => {
            // A condition on a variable that this server does not read counts as met: a dispatcher needs its stream.
            let applies = Variable::by_name(other).is_some_and(|other| other.servers.contains(&server));
            let met = !applies || values.get(other).is_some_and(|found| found == value);
            match (met, present) {
                (true, false) if applies => Err(missing(format!(", although {other} is `{value}`"))),
                (true, false) => Err(missing(String::new())),
                // An edge whose webhooks are off may keep its stream's name: `off` alone decides.
                (false, true) if row.name != name::STREAM_NAME => Err(ConfigError::Contradiction {
                    name: row.name,
                    other: format!("{other} is `{}`", values.get(other).map_or("", String::as_str)),
                }),
                _ => Ok(()),
            }
        }
        Requirement::Identity(identities) | Requirement::Optional(identities) => {
            let identity = values.get(name::AWS_IDENTITY).map_or("", String::as_str);
            let is_read = identities.contains(&identity);
            // An edge that writes no events needs no credentials.
            let reaches_aws = values.get(name::WEBHOOKS).is_none_or(|webhooks| webhooks != "off");
            let is_required = matches!(row.need, Requirement::Identity(_)) && is_read && reaches_aws;
            match (present, is_required) {
                (false, true) => Err(missing(format!(
                    ", although {} is `{identity}`: the identity was not injected into this pod, or not rendered for it",
                    name::AWS_IDENTITY
                ))),
                (true, _) if !is_read && !identity.is_empty() => Err(ConfigError::Contradiction {
                    name: row.name,
                    other: format!("{} is `{identity}`", name::AWS_IDENTITY),
                }),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn check_value(row: &Variable, value: &str) -> Result<(), ConfigError> {
    let wanted = match row.kind {
        ValueKind::Text if value.trim().is_empty() => "a text that is not empty".to_owned(),
        ValueKind::Number(least, most) if !value.parse().is_ok_and(|n: u64| (least..=most).contains(&n)) => {
            format!("a whole number from {least} to {most}")
        }
        ValueKind::Address if value.parse::<SocketAddr>().is_err() => "ADDRESS:PORT, such as [::]:8080".to_owned(),
        ValueKind::Path if !value.starts_with('/') => "an absolute path".to_owned(),
        ValueKind::Url if !(value.starts_with("https://") || value.starts_with("http://")) => {
            "an address that begins with https:// or http://".to_owned()
        }
        ValueKind::Scripts if split_list(value).next().is_none() || !split_list(value).all(is_script) => {
            "addresses that begin with https:// or http:// and need no escaping, separated by commas".to_owned()
        }
        ValueKind::Word(words) if !words.contains(&value) => format!("one of {}", words.join(", ")),
        ValueKind::Words(words)
            if value.trim().is_empty() || value.split(',').any(|item| !words.contains(&item.trim())) =>
        {
            format!("a list of {}, separated by commas", words.join(", "))
        }
        ValueKind::Networks if split_list(value).any(|item| item.parse::<ipnet::IpNet>().is_err()) => {
            "networks such as 10.0.0.0/8, separated by commas".to_owned()
        }
        ValueKind::Endpoints if split_list(value).any(|item| !is_endpoint(item)) => {
            "HOST:PORT, separated by commas".to_owned()
        }
        ValueKind::Ip if value.parse::<IpAddr>().is_err() => "an IP address such as 10.0.0.1".to_owned(),
        ValueKind::Host if !is_host(value) => "a host such as rt.example.com or {pod}.rt.example.com".to_owned(),
        ValueKind::BasePath if !value.is_empty() && !is_base_path(value) => {
            "a path such as /ws, without a slash at its end and not one of the server's own".to_owned()
        }
        _ => return Ok(()),
    };
    let found = if row.secret { "(hidden)".to_owned() } else { value.to_owned() };
    Err(ConfigError::Invalid { name: row.name, found, wanted })
}

/// Whether a URL can stand in a page and in a header about it without ending either.
#[must_use]
pub fn is_script(item: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/@%+=?".contains(c);
    let rest = item.strip_prefix("https://").or_else(|| item.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(plain))
}

/// Whether a host can stand in a URL, once the pod's name is inserted.
#[must_use]
pub fn is_host(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    !value.is_empty() && value.len() <= 253 && value.replace("{pod}", "pod").chars().all(plain)
}

/// The first parts of the paths that edges serve.
const SERVED_PATHS: [&str; 7] = ["app", "apps", "pusher", "users", "healthz", "readyz", "up"];

/// Whether the text is a path of plain letters that does not end with a slash.
#[must_use]
pub fn is_path_prefix(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let rest = value.strip_prefix('/');
    rest.is_some_and(|rest| rest.split('/').all(|part| !part.is_empty() && part.chars().all(plain)))
}

/// Whether all public paths may begin with it: none of the server's own does.
fn is_base_path(value: &str) -> bool {
    is_path_prefix(value) && value.split('/').nth(1).is_some_and(|first| !SERVED_PATHS.contains(&first))
}

fn split_list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn is_endpoint(item: &str) -> bool {
    item.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn format_suggestion(unknown: &str) -> String {
    // The prefix is common to many names and would make them all similar.
    let own = |name: &'static str| name.strip_prefix("REALTIME_").unwrap_or(name);
    let meant = suggest_name(
        unknown.strip_prefix("REALTIME_").unwrap_or(unknown),
        VARIABLE_TABLE.iter().map(|row| own(row.name)),
    );
    let row = meant.and_then(|meant| VARIABLE_TABLE.iter().find(|row| own(row.name) == meant));
    row.map_or_else(String::new, |row| format!(", did you mean {}?", row.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge_environment() -> Vec<(&'static str, &'static str)> {
        vec![
            ("REALTIME_CLUSTER", "channels/eu"),
            ("REALTIME_CLUSTER_UID", "u"),
            ("REALTIME_SERVER", "sockjs"),
            ("REALTIME_POD", "p"),
            ("REALTIME_ADMIN_TOKEN", "t"),
            ("REALTIME_APPS_PATH", "/etc/realtime/apps"),
            ("REALTIME_TRANSPORTS", "xhr_streaming,xhr_polling"),
            ("REALTIME_WEBHOOKS", "kinesis"),
            ("REALTIME_STREAM_NAME", "s"),
            ("REALTIME_BUS", "memory"),
            ("REALTIME_AWS_IDENTITY", "PodIdentity"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/var/run/secrets/token"),
            ("AWS_REGION", "eu-west-1"),
        ]
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<ServerConfig, ConfigError> {
        ServerConfig::parse(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn parse_edge_with(name: &'static str, value: Option<&'static str>) -> Result<ServerConfig, ConfigError> {
        let mut pairs = edge_environment();
        pairs.retain(|(found, _)| *found != name);
        pairs.extend(value.map(|value| (name, value)));
        parse(&pairs)
    }

    #[test]
    fn a_good_environment_gets_its_defaults() {
        let values = parse(&edge_environment()).expect("values");
        assert_eq!(values.address("REALTIME_PUBLIC_ADDRESS"), "[::]:8080".parse().ok());
        assert!(parse_edge_with("REALTIME_BASE_PATH", Some("/a/b-1")).is_ok());
        assert_eq!(values.list_items("REALTIME_TRANSPORTS").collect::<Vec<_>>(), ["xhr_streaming", "xhr_polling"]);
        assert_eq!(values.get("REALTIME_RETRY_WINDOW_SECONDS"), None, "a dispatcher's variable");
    }

    #[test]
    fn every_refusal_names_the_variable_and_its_remedy() {
        for (name, result, remedy) in [
            ("unknown", parse_edge_with("REALTIME_WEBHOKS", Some("off")), "did you mean REALTIME_WEBHOOKS?: remove it"),
            (
                "injected by kubelet",
                parse_edge_with("REALTIME_X_SERVICE_HOST", Some("10.0.0.1")),
                "REALTIME_X_SERVICE_HOST is not",
            ),
            ("unknown AWS name", parse_edge_with("AWS_PROFILE", Some("x")), "AWS_PROFILE is not a variable"),
            ("a proxy", parse_edge_with("https_proxy", Some("http://x")), "https_proxy is not a variable"),
            ("missing", parse_edge_with("REALTIME_WEBHOOKS", None), "REALTIME_WEBHOOKS is missing: set it"),
            ("empty is not off", parse_edge_with("REALTIME_WEBHOOKS", Some("")), "write one of kinesis, off"),
            (
                "missing by condition",
                parse_edge_with("REALTIME_STREAM_NAME", None),
                "although REALTIME_WEBHOOKS is `kinesis`",
            ),
            (
                "for another server",
                parse_edge_with("REALTIME_MAX_BACKOFF_SECONDS", Some("9")),
                "it belongs to dispatcher",
            ),
            ("not a number", parse_edge_with("REALTIME_PUBLIC_ADDRESS", Some("8080")), "write ADDRESS:PORT"),
            ("no path", parse_edge_with("REALTIME_BASE_PATH", Some("ws")), "write a path such as /ws"),
            ("a path that ends", parse_edge_with("REALTIME_BASE_PATH", Some("/ws/")), "write a path such as /ws"),
            ("a path of ours", parse_edge_with("REALTIME_BASE_PATH", Some("/pusher/a")), "not one of the server's own"),
            ("contradiction", parse_edge_with("REALTIME_REDIS_URL", Some("redis://r")), "but REALTIME_BUS is `memory`"),
            (
                "an identity that was not injected",
                parse_edge_with("AWS_CONTAINER_CREDENTIALS_FULL_URI", None),
                "although REALTIME_AWS_IDENTITY is `PodIdentity`: the identity was not injected into this pod",
            ),
            (
                "another identity",
                parse_edge_with("AWS_ROLE_ARN", Some("arn")),
                "but REALTIME_AWS_IDENTITY is `PodIdentity`",
            ),
            (
                "keys without StaticKeys",
                parse_edge_with("AWS_ACCESS_KEY_ID", Some("a")),
                "REALTIME_AWS_IDENTITY is `PodIdentity`",
            ),
            (
                "a transport of the other",
                parse_edge_with("REALTIME_TRANSPORTS", Some("websocket")),
                "does not carry `websocket`",
            ),
            ("no transport", parse_edge_with("REALTIME_TRANSPORTS", Some("")), "separated by commas"),
            ("no host", parse_edge_with("REALTIME_SESSION_HOST", Some("https://x")), "write a host such as"),
            ("another placeholder", parse_edge_with("REALTIME_SESSION_HOST", Some("{node}.x")), "write a host such as"),
            ("no address", parse_edge_with("REALTIME_POD_IP", Some("pod-1")), "write an IP address"),
            ("no script", parse_edge_with("REALTIME_SOCKJS_SCRIPTS", Some(" , ")), "separated by commas"),
            (
                "a script of no site",
                parse_edge_with("REALTIME_SOCKJS_SCRIPTS", Some("/sockjs.js")),
                "begin with https://",
            ),
            (
                "a script that ends the page",
                parse_edge_with("REALTIME_SOCKJS_SCRIPTS", Some("https://x/\"></script>")),
                "no escaping",
            ),
            (
                "a script that ends a rule",
                parse_edge_with("REALTIME_SOCKJS_SCRIPTS", Some("https://x/; script-src *")),
                "no escaping",
            ),
            ("no server", parse_edge_with("REALTIME_SERVER", None), "REALTIME_SERVER is missing"),
        ] {
            let error = result.expect_err(name).to_string();
            assert!(error.contains(remedy), "{name}: {error}");
            assert!(!error.contains('\n'), "one line: {error}");
        }
    }

    #[test]
    fn the_combined_edge_carries_the_transports_of_both() {
        let all = "websocket,xhr_streaming,sockjs_xhr";
        let mut pairs = edge_environment();
        pairs.retain(|(name, _)| !["REALTIME_TRANSPORTS", "REALTIME_SERVER"].contains(name));
        pairs.extend([("REALTIME_TRANSPORTS", all), ("REALTIME_SERVER", "edge")]);
        let values = parse(&pairs).expect("values");
        assert_eq!((values.server(), values.text("REALTIME_TRANSPORTS")), (ServerKind::Edge, all));
        assert_eq!(
            values.text("REALTIME_SOCKJS_COOKIE"),
            "off",
            "the combined edge reads the variables of the fallbacks"
        );
    }

    #[test]
    fn webhooks_may_be_off_while_the_stream_is_named() {
        assert_eq!(
            parse_edge_with("REALTIME_WEBHOOKS", Some("off")).map(|v| v.text("REALTIME_WEBHOOKS").to_owned()),
            Ok("off".into())
        );
    }

    #[test]
    fn a_dispatcher_needs_its_stream() {
        let mut pairs = edge_environment();
        pairs.retain(|(name, _)| !["REALTIME_TRANSPORTS", "REALTIME_WEBHOOKS", "REALTIME_BUS"].contains(name));
        pairs.iter_mut().filter(|(name, _)| *name == "REALTIME_SERVER").for_each(|pair| pair.1 = "dispatcher");
        assert_eq!(parse(&pairs).map(|values| values.number("REALTIME_RETRY_WINDOW_SECONDS")), Ok(300));
        pairs.retain(|(name, _)| *name != "REALTIME_STREAM_NAME");
        assert!(matches!(parse(&pairs), Err(ConfigError::Missing { name: "REALTIME_STREAM_NAME", .. })));
    }

    #[test]
    fn secrets_are_shown_as_digests() {
        let effective = parse(&edge_environment())
            .expect("values")
            .redacted_variables(|secret| format!("digest of {}", secret.len()));
        assert_eq!(effective["REALTIME_ADMIN_TOKEN"], "digest of 1");
        assert_eq!(effective["AWS_REGION"], "eu-west-1");
    }

    #[test]
    fn unguarded_names_are_ignored() {
        assert!(parse_edge_with("PATH", Some("/bin")).is_ok());
    }
}
