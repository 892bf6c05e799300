//! The Redis of a run: a child process on loopback without persistence, and its own figures of CPU, memory and commands.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::super::error::BenchError;
use super::super::figures::median_of;
use super::super::machine::as_f64;
use super::super::server::free_port;

/// Name of the program in `PATH`.
const REDIS_PROGRAM: &str = "redis-server";

/// Bounds the time until a started Redis answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Bounds the wait for the reply to one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds the length of a reply.
const REPLY_BYTES_MAX: usize = 256 << 20;

/// Delay after which edges publish transitions: the settling period of a young store, and a second more.
const SETTLING_DELAY: Duration = Duration::from_secs(6);

/// Least duration of a command to be logged as slow, in microseconds.
const SLOW_COMMAND_US_MIN: u64 = 50;

/// A running Redis, killed on drop.
pub struct RedisProcess {
    process: Child,
    address: SocketAddr,
    connection: BufReader<TcpStream>,
    began: Instant,
    _files: TempDir,
}

/// The command that blocked Redis longest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlowestCommand {
    /// Duration of the command, in ms; [`SLOW_COMMAND_US_MIN`] when none was logged.
    pub ms: f64,
    /// Name of the command.
    pub command: String,
    /// Median duration of the logged commands of that name, in ms.
    pub half_ms: f64,
}

impl RedisProcess {
    /// Starts a Redis, and waits until it answers.
    pub async fn start() -> Result<Self, BenchError> {
        let files = tempfile::tempdir().map_err(BenchError::from_io("no temporary directory can be made"))?;
        let address = free_port()?;
        let process = Command::new(REDIS_PROGRAM)
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no"])
            .current_dir(files.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| explain_missing_program(&error))?;
        let mut process = KillOnDrop(Some(process));
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(stream) = TcpStream::connect(address).await {
                let connection = BufReader::new(stream);
                let process = process.0.take().ok_or_else(|| redis_error("it has exited".to_owned()))?;
                let mut redis = Self { process, address, connection, began: Instant::now(), _files: files };
                redis.run_command(&["PING"]).await?;
                return Ok(redis);
            }
            let ended = process.0.as_mut().and_then(|process| process.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let how = ended.map_or_else(|| format!("no answer in {START_TIMEOUT:?}"), |status| status.to_string());
                return Err(BenchError::Start { server: REDIS_PROGRAM, detail: how });
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// URL of the Redis for edges.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Process id of the Redis.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until edges no longer defer transitions.
    pub async fn wait_until_settled(&self) {
        sleep(SETTLING_DELAY.saturating_sub(self.began.elapsed())).await;
    }

    /// Reads the product and its release.
    pub async fn read_version(&mut self) -> Result<String, BenchError> {
        let info = self.query_section("server").await?;
        let version = |name: &str| find_field(&info, name).map(str::to_owned);
        match (version("valkey_version"), version("redis_version")) {
            (Some(valkey), _) => Ok(format!("Valkey {valkey}")),
            (None, Some(redis)) => Ok(format!("Redis {redis}")),
            (None, None) => Err(redis_error("INFO has no version".to_owned())),
        }
    }

    /// Reads the CPU time so far, in microseconds.
    pub async fn read_cpu_us(&mut self) -> Result<f64, BenchError> {
        let info = self.query_section("cpu").await?;
        let seconds = |name: &str| find_field(&info, name)?.parse::<f64>().ok();
        let both = seconds("used_cpu_user").zip(seconds("used_cpu_sys"));
        both.map(|(user, system)| (user + system) * 1e6).ok_or_else(|| redis_error("INFO has no CPU time".to_owned()))
    }

    /// Reads the memory of data and buffers, in bytes.
    pub async fn read_used_memory(&mut self) -> Result<u64, BenchError> {
        let info = self.query_section("memory").await?;
        let used = find_field(&info, "used_memory").and_then(|used| used.parse().ok());
        used.ok_or_else(|| redis_error("INFO has no memory".to_owned()))
    }

    /// Starts to log slow commands.
    pub async fn start_slow_log(&mut self) -> Result<(), BenchError> {
        self.run_command(&["CONFIG", "SET", "slowlog-max-len", "100000"]).await?;
        self.run_command(&["CONFIG", "SET", "slowlog-log-slower-than", &SLOW_COMMAND_US_MIN.to_string()]).await?;
        self.run_command(&["SLOWLOG", "RESET"]).await.map(drop)
    }

    /// Stops to log slow commands, and returns the slowest.
    pub async fn take_slowest_command(&mut self) -> Result<SlowestCommand, BenchError> {
        self.run_command(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"]).await?;
        find_slowest(&self.run_command(&["SLOWLOG", "GET", "-1"]).await?)
    }

    async fn query_section(&mut self, section: &str) -> Result<String, BenchError> {
        match self.run_command(&["INFO", section]).await? {
            RedisReply::Text(text) => Ok(text),
            other => Err(redis_error(format!("unexpected reply to INFO: {other:?}"))),
        }
    }

    async fn run_command(&mut self, words: &[&str]) -> Result<RedisReply, BenchError> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            let _ = write!(command, "${}\r\n{word}\r\n", word.len());
        }
        let answer = timeout(COMMAND_TIMEOUT, async {
            self.connection.write_all(command.as_bytes()).await?;
            read(&mut self.connection).await
        });
        match answer.await {
            Ok(Ok(RedisReply::Error(error))) => Err(redis_error(format!("{}: {error}", words.join(" ")))),
            Ok(answer) => answer.map_err(|error| redis_error(error.to_string())),
            Err(_) => Err(redis_error(format!("{}: no answer in {COMMAND_TIMEOUT:?}", words.join(" ")))),
        }
    }
}

impl Drop for RedisProcess {
    fn drop(&mut self) {
        kill_process(&mut self.process);
    }
}

/// A process that is killed on drop unless it was taken.
struct KillOnDrop(Option<Child>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &mut self.0 {
            kill_process(process);
        }
    }
}

fn kill_process(process: &mut Child) {
    // The process may have exited already.
    let _ = process.kill();
    let _ = process.wait();
}

fn explain_missing_program(error: &io::Error) -> BenchError {
    let detail = if error.kind() == io::ErrorKind::NotFound {
        "it is not in PATH: install it (Debian, Ubuntu: `apt-get install redis-server`; macOS has no /proc, use Linux)"
            .to_owned()
    } else {
        error.to_string()
    };
    BenchError::Start { server: REDIS_PROGRAM, detail }
}

fn redis_error(detail: String) -> BenchError {
    BenchError::Server { server: "Redis", step: "a command", detail }
}

fn find_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A reply of Redis in version 2 of its protocol.
#[derive(Clone, Debug, PartialEq)]
enum RedisReply {
    Nil,
    Text(String),
    Integer(i64),
    Array(Vec<RedisReply>),
    Error(String),
}

async fn read(connection: &mut BufReader<TcpStream>) -> io::Result<RedisReply> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a reply that is not one of Redis");
    // Arrays that are not complete yet, innermost last.
    let mut open: Vec<(usize, Vec<RedisReply>)> = Vec::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or_else(invalid)?;
        let number = || rest.parse::<i64>().map_err(|_| invalid());
        let length = || Ok::<_, io::Error>(usize::try_from(number()?).ok().filter(|length| *length <= REPLY_BYTES_MAX));
        let mut reply = match kind {
            "+" => RedisReply::Text(rest.to_owned()),
            "-" => RedisReply::Error(rest.to_owned()),
            ":" => RedisReply::Integer(number()?),
            "$" => match length()? {
                Some(length) => {
                    let mut bytes = vec![0; length + 2];
                    connection.read_exact(&mut bytes).await?;
                    bytes.truncate(length);
                    RedisReply::Text(String::from_utf8_lossy(&bytes).into_owned())
                }
                None => RedisReply::Nil,
            },
            "*" => match length()? {
                Some(0) => RedisReply::Array(Vec::new()),
                Some(length) => {
                    open.push((length, Vec::new()));
                    continue;
                }
                None => RedisReply::Nil,
            },
            _ => return Err(invalid()),
        };
        loop {
            let Some((length, items)) = open.last_mut() else { return Ok(reply) };
            items.push(reply);
            if items.len() < *length {
                break;
            }
            reply = RedisReply::Array(open.pop().map(|(_, items)| items).unwrap_or_default());
        }
    }
}

/// Finds the slowest entry: each is a number, a time, microseconds, the words of the command, and more.
fn find_slowest(entries: &RedisReply) -> Result<SlowestCommand, BenchError> {
    let RedisReply::Array(entries) = entries else {
        return Err(redis_error(format!("unexpected reply to SLOWLOG: {entries:?}")));
    };
    let taken = entries.iter().filter_map(|entry| match entry {
        RedisReply::Array(parts) => match &parts[..] {
            [_, _, RedisReply::Integer(us), RedisReply::Array(words), ..] => Some((u64::try_from(*us).ok()?, words)),
            _ => None,
        },
        _ => None,
    });
    let named = taken.filter_map(|(us, words)| match words.first() {
        Some(RedisReply::Text(name)) => Some((as_f64(us) / 1e3, name.to_lowercase())),
        _ => None,
    });
    let named: Vec<(f64, String)> = named.collect();
    let (ms, command) = match named.iter().max_by(|one, other| one.0.total_cmp(&other.0)) {
        Some(found) => found.clone(),
        None => (as_f64(SLOW_COMMAND_US_MIN) / 1e3, "none".to_owned()),
    };
    let kind: Vec<f64> = named.iter().filter(|(_, name)| *name == command).map(|(ms, _)| *ms).collect();
    let half_ms = if kind.is_empty() { ms } else { median_of(&kind) };
    Ok(SlowestCommand { ms, command, half_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_reply(text: &'static str) -> io::Result<RedisReply> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
        let mut server = server?.0;
        server.write_all(text.as_bytes()).await?;
        drop(server);
        read(&mut BufReader::new(client?)).await
    }

    #[tokio::test]
    async fn replies_of_every_kind_are_parsed_and_broken_ones_are_refused() {
        let text = |text: &str| RedisReply::Text(text.to_owned());
        for (name, sent, expected) in [
            ("a word", "+OK\r\n", Some(text("OK"))),
            ("an error", "-ERR no\r\n", Some(RedisReply::Error("ERR no".to_owned()))),
            ("a number", ":7\r\n", Some(RedisReply::Integer(7))),
            ("a text with an end in it", "$4\r\na\r\nb\r\n", Some(text("a\r\nb"))),
            ("nothing", "$-1\r\n", Some(RedisReply::Nil)),
            ("none", "*0\r\n", Some(RedisReply::Array(vec![]))),
            (
                "in each other",
                "*2\r\n*2\r\n:1\r\n*0\r\n$1\r\nx\r\n",
                Some(RedisReply::Array(vec![
                    RedisReply::Array(vec![RedisReply::Integer(1), RedisReply::Array(vec![])]),
                    text("x"),
                ])),
            ),
            ("cut", "$4\r\nab", None),
            ("too long", "$999999999999\r\n", Some(RedisReply::Nil)),
            ("not Redis", "HTTP/1.1 400\r\n", None),
        ] {
            assert_eq!(read_reply(sent).await.ok(), expected, "{name}");
        }
    }

    #[test]
    fn the_slowest_command_is_found_and_an_empty_log_counts_as_the_threshold() {
        let entry = |us, name: &str| {
            let words = RedisReply::Array(vec![RedisReply::Text(name.to_owned()), RedisReply::Text("x".to_owned())]);
            RedisReply::Array(vec![
                RedisReply::Integer(1),
                RedisReply::Integer(2),
                RedisReply::Integer(us),
                words,
                RedisReply::Nil,
            ])
        };
        let entries = [entry(100, "HDEL"), entry(2_500, "EVALSHA"), entry(90, "PUBLISH"), entry(500, "EVALSHA")];
        let found = find_slowest(&RedisReply::Array(entries.into())).expect("read");
        assert_eq!(found, SlowestCommand { ms: 2.5, command: "evalsha".to_owned(), half_ms: 1.5 });
        assert_eq!(find_slowest(&RedisReply::Array(vec![])).expect("read").command, "none");
        assert!(find_slowest(&RedisReply::Nil).is_err());
    }

    #[test]
    fn a_missing_program_is_reported_with_what_to_install() {
        let error = explain_missing_program(&io::ErrorKind::NotFound.into()).to_string();
        assert!(
            error.contains("redis-server did not start") && error.contains("apt-get install redis-server"),
            "{error}"
        );
    }
}
