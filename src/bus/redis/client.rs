//! The Redis client: connection settings, the check whether the store can be a bus, and remedies for its errors.

use std::time::Duration;

use fred::clients::{Client, SubscriberClient};
use fred::interfaces::{ClientLike, LuaInterface};
use fred::socket2::TcpKeepalive;
use fred::types::Builder;
use fred::types::config::{Config, ReconnectPolicy, ServerConfig};
use fred::types::scripts::Script;

use super::super::BusError;
use super::tls;

/// Bounds the wait for the answer to one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(4);
/// Bounds one connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bounds the back-off between two connection attempts: after a loss of data, other processes wait until this one has
/// re-registered its connections, and a termination reaches its user within a second.
const RECONNECT_BACKOFF_MAX_MS: u32 = 400;
/// Idle time after which the kernel probes a connection, and time between two probes: a peer that is gone is noticed even
/// where nothing is sent.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds a reconnection that was forced.
const FORCED_RECONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds the commands that wait while Redis is unavailable; further commands fail at once.
const COMMAND_QUEUE_MAX: usize = 10_000;
/// Bounds the commands of one pipeline.
pub(super) const PIPELINE_COMMANDS_MAX: usize = 500;
/// Rights that a Redis user needs, as words of `ACL SETUSER`.
const USER_RIGHTS: &str = "~rt:* &rt:* +@all -@admin -@dangerous +info";
/// Oldest release that replicates the effects of a script instead of the script; ours read the clock.
const REDIS_MAJOR_VERSION_MIN: u32 = 7;

/// Address of the store, and the authorities that may have signed its certificate.
#[derive(Clone, Copy)]
pub struct RedisAddress<'a> {
    /// URL of the store, with its credentials.
    pub url: &'a str,
    /// Certificates of the authorities in PEM form; `None` for the system's own.
    pub authorities: Option<&'a str>,
}

impl<'a> From<&'a str> for RedisAddress<'a> {
    fn from(url: &'a str) -> Self {
        Self { url, authorities: None }
    }
}

impl<'a> From<&'a String> for RedisAddress<'a> {
    fn from(url: &'a String) -> Self {
        Self { url, authorities: None }
    }
}

/// Configures a client for the store at this address.
pub(super) fn client_builder(
    RedisAddress { url, authorities }: RedisAddress<'_>,
    queue: usize,
) -> Result<Builder, BusError> {
    // With authorities from the manifest, the system's are not loaded: an image may have none.
    let (read, tls) = match authorities.map(|authorities| (url.strip_prefix("rediss"), authorities)) {
        None => (url.to_owned(), None),
        Some((Some(rest), authorities)) => {
            (format!("redis{rest}"), Some(tls::build_tls_config(authorities).map_err(BusError::Unusable)?))
        }
        Some((None, _)) => {
            return Err(BusError::Unusable(
                "REALTIME_REDIS_CA is set, but REALTIME_REDIS_URL asks for no TLS: write rediss://, or remove the CA \
                 (spec.bus.redis.caSecretRef)"
                    .to_owned(),
            ));
        }
    };
    // The address holds a password, so the error does not repeat it.
    let mut config = Config::from_url(&read).map_err(|_| {
        BusError::Unusable(
            "REALTIME_REDIS_URL is not the address of a Redis: write redis://USER:PASSWORD@HOST:PORT, rediss:// for TLS, \
             redis-cluster:// for a cluster, or redis-sentinel://…?sentinelServiceName=NAME; in a user or password, write \
             `#` as %23, `/` as %2F, `?` as %3F, `@` as %40, `:` as %3A and `%` as %25"
                .to_owned(),
        )
    })?;
    if tls.is_some() {
        config.tls = tls;
    }
    share_sentinel_credentials(&mut config);
    // A Redis that has not started yet is retried like one that became unavailable.
    config.fail_fast = false;
    let mut builder = Builder::from_config(config);
    builder
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = CONNECT_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = COMMAND_QUEUE_MAX;
            connection.reconnect_on_auth_error = true;
            connection.unresponsive.max_timeout = Some(Duration::from_secs(10));
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_INTERVAL).with_interval(KEEPALIVE_INTERVAL);
            connection.tcp.keepalive = Some(keepalive);
        })
        .with_performance_config(|performance| {
            performance.default_command_timeout = COMMAND_TIMEOUT;
            performance.broadcast_channel_capacity = queue;
        })
        .set_policy(ReconnectPolicy::new_exponential(0, 100, RECONNECT_BACKOFF_MAX_MS, 2));
    Ok(builder)
}

/// Gives sentinels the credentials of the Redis unless the address has some for them (`sentinelUsername` and
/// `sentinelPassword`).
fn share_sentinel_credentials(config: &mut Config) {
    if let ServerConfig::Sentinel { username, password, .. } = &mut config.server
        && password.is_none()
    {
        username.clone_from(&config.username);
        password.clone_from(&config.password);
    }
}

/// Connects both clients anew, by the name in the address: after a failover it leads to another server.
pub(super) fn reconnect(client: &Client, subscriber: &SubscriberClient) {
    let (client, subscriber) = (client.clone(), subscriber.clone());
    tokio::spawn(async move {
        let both = futures::future::join(client.force_reconnection(), subscriber.force_reconnection());
        // A failed attempt is repeated by the client's own policy.
        let _ = tokio::time::timeout(FORCED_RECONNECT_TIMEOUT, both).await;
    });
}

/// Explains a refusal for missing rights; `None` for other errors.
pub(super) fn explain_missing_rights(client: &Client, error: &fred::error::Error) -> Option<String> {
    let details = error.details();
    details.starts_with("NOPERM").then(|| {
        let config = client.client_config();
        let user = config.username.as_deref().unwrap_or("default");
        format!("the Redis user `{user}` lacks rights of the bus: run `ACL SETUSER {user} {USER_RIGHTS}` ({details})")
    })
}

/// Runs a script by its hash, or by its text where the node does not have it cached: each node has its own cache.
pub(super) async fn evaluate_script(
    client: &Client,
    script: &Script,
    keys: Vec<String>,
    arguments: Vec<String>,
) -> Result<Vec<String>, fred::error::Error> {
    match client.evalsha(script.sha1().clone(), keys.clone(), arguments.clone()).await {
        Err(error) if error.details().starts_with("NOSCRIPT") => {
            let text = script.lua().cloned().unwrap_or_default();
            client.eval(text, keys, arguments).await
        }
        answer => answer,
    }
}

/// Identity and fitness of a store, from `INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoreStatus {
    /// Id of the store's run; a restart gets another.
    pub run_id: String,
    /// Uptime of the store, in ms.
    pub age_ms: u64,
    /// Whether the store is a replica, which accepts no change.
    pub is_replica: bool,
    /// Why the store cannot be a bus; `None` when it can.
    pub unusable_reason: Option<String>,
}

pub(super) async fn fetch_store_status(client: &Client, clustered: bool) -> Result<StoreStatus, BusError> {
    let text: String = client.info(None).await.map_err(to_bus_error)?;
    Ok(parse_store_status(&text, clustered))
}

fn parse_store_status(text: &str, clustered: bool) -> StoreStatus {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let number = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
    let version = field("redis_version").unwrap_or_default();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let (limit, policy) = (number("maxmemory").unwrap_or(0), field("maxmemory_policy").unwrap_or("noeviction"));
    let is_replica = field("role") == Some("slave") && !clustered;
    let unusable_reason = if major.is_none_or(|major| major < REDIS_MAJOR_VERSION_MIN) {
        Some(format!("Redis is of version `{version}`: use 7 or later, or a Valkey"))
    } else if limit > 0 && policy != "noeviction" {
        Some(format!(
            "Redis evicts keys when it is full (maxmemory-policy is `{policy}`), and would lose members of channels: set it to noeviction"
        ))
    } else if is_replica {
        Some("the address leads to a read-only replica of Redis: it must lead to the primary".to_owned())
    } else {
        None
    };
    // In a cluster another node answers each time, so there is no one run.
    let run = if clustered { "cluster" } else { field("run_id").unwrap_or("unknown") }.to_owned();
    let age_ms = number("uptime_in_seconds").unwrap_or(0).saturating_mul(1_000);
    StoreStatus { run_id: run, age_ms, is_replica, unusable_reason }
}

/// Seconds of an expiry, as commands take them.
pub(super) fn whole_seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}

/// Converts an error of the store, with a remedy where its own text has none.
#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
pub(super) fn to_bus_error(error: fred::error::Error) -> BusError {
    let (text, details) = (error.to_string(), error.details());
    let text = if details.starts_with("OOM") {
        format!("{text}: Redis is full, give it more memory")
    } else if details.starts_with("READONLY") {
        format!("{text}: the address leads to a replica, it must lead to the primary")
    } else if details.starts_with("LOADING") {
        format!("{text}: it has started and reads its data")
    } else if details.starts_with("NOPERM") {
        format!("{text}: give its user the rights of the bus, `ACL SETUSER USER {USER_RIGHTS}`")
    } else if details.starts_with("WRONGTYPE") || details.contains("WRONGTYPE") {
        format!("{text}: another program uses keys that begin with `rt:`, give the cluster a Redis of its own")
    } else {
        text
    };
    BusError::Unavailable(text)
}

/// The error of calls while the store is known to be unavailable.
pub(super) fn unavailable_error() -> BusError {
    BusError::Unavailable("it is unavailable and is being retried".to_owned())
}

/// Parses a number in a script's answer.
pub(super) fn parse_number(text: &str) -> Result<u64, BusError> {
    text.parse().map_err(|_| malformed_answer())
}

/// The error for an answer that none of our scripts gives.
pub(super) fn malformed_answer() -> BusError {
    BusError::Unavailable(
        "the answer of Redis is none of our scripts': is another program using the same keys?".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO_TEXT: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nuptime_in_seconds:7\r\nmaxmemory:0\r\n\
                        maxmemory_policy:allkeys-lru\r\nrole:master\r\n";

    #[test]
    fn a_store_that_would_lose_data_is_unusable() {
        assert_eq!(
            parse_store_status(INFO_TEXT, false),
            StoreStatus { run_id: "abc".into(), age_ms: 7_000, is_replica: false, unusable_reason: None }
        );
        assert_eq!(parse_store_status(INFO_TEXT, true).run_id, "cluster");
        for (from, to, part) in [
            ("7.0.15", "6.2.1", "of version `6.2.1`"),
            ("redis_version:7.0.15\r\n", "", "of version ``"),
            ("maxmemory:0", "maxmemory:1000", "is `allkeys-lru`"),
            ("role:master", "role:slave", "read-only replica"),
        ] {
            let reason = parse_store_status(&INFO_TEXT.replace(from, to), false).unusable_reason.unwrap_or_default();
            assert!(reason.contains(part), "{from} → {to}: {reason}");
        }
    }

    #[test]
    fn a_malformed_address_is_refused_without_its_password() {
        let error = client_builder("rediss//:hunter2@nowhere".into(), 1).expect_err("refused").to_string();
        assert!(error.contains("redis://USER:PASSWORD@HOST:PORT") && !error.contains("hunter2"), "{error}");
        for raw in ["redis://u:a#b@h:1", "redis://u:a/b@h:1"] {
            let error = client_builder(raw.into(), 1).expect_err("refused").to_string();
            assert!(error.contains("`#` as %23"), "{error}");
        }
        for good in [
            "redis://u:p@h:1",
            "rediss://h:1",
            "redis-cluster://h:1?node=i:2",
            "redis-sentinel://h:26379?sentinelServiceName=main&node=i:26379",
        ] {
            assert!(client_builder(good.into(), 1).is_ok(), "{good}");
        }
        let sentinels = |query: &str| {
            let url = format!("redis-sentinel://u:p@h:26379?sentinelServiceName=main{query}");
            let config =
                client_builder(url.as_str().into(), 1).expect("a client").get_config().expect("a config").clone();
            match config.server {
                ServerConfig::Sentinel { username, password, .. } => (username, password),
                _ => (None, None),
            }
        };
        assert_eq!(sentinels(""), (Some("u".to_owned()), Some("p".to_owned())));
        let own = sentinels("&sentinelUsername=s&sentinelPassword=q");
        assert_eq!(own, (Some("s".to_owned()), Some("q".to_owned())));
        let bare = RedisAddress { url: "redis://u:hunter2@h:1", authorities: Some("x") };
        let error = client_builder(bare, 1).expect_err("refused").to_string();
        assert!(error.contains("asks for no TLS") && !error.contains("hunter2"), "{error}");
    }
}
