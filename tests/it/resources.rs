//! Resources that tests of several processes share on one machine: ports, and programs bound to the life of a test.

// A program that does not start ends its test where it stands; clippy sees only the tests themselves as such.
#![allow(clippy::panic)]

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

/// Longest until a program serves, or has ended after it was asked to: a busy machine reads a binary for a while.
const PROGRAM_TIMEOUT: Duration = Duration::from_mins(1);

/// Time between two looks at what a program wrote.
const LOG_INTERVAL: Duration = Duration::from_millis(20);

/// Below the ephemeral ports, which the kernel gives to any connection, and below the node ports of Kubernetes.
const CANDIDATE_PORTS: Range<u16> = 20_000..30_000;

/// A UDP socket on this address claims the TCP port of its number: it is in no server's way, also not in that of one
/// that listens on all addresses.
const CLAIM_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);

/// Draws until a port is found that no test has claimed: far more than there are tests.
const DRAWS_MAX: usize = 1_000;

/// Starts of one program, each with other ports. Programs that are no tests have few ports.
const STARTS_MAX: usize = 5;

/// Draws a port that no test has drawn, and claims it for as long as this process runs, so that a server that is
/// stopped finds it free when it starts again. Tests in other processes, also those in Node, claim in the same way. The
/// port may still be in use by a program that is no test: only its server's own attempt to listen shows that.
fn draw_port() -> u16 {
    static CLAIMS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    for _ in 0..DRAWS_MAX {
        let port = rand::random_range(CANDIDATE_PORTS);
        if let Ok(claim) = UdpSocket::bind((CLAIM_ADDRESS, port)) {
            CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
            return port;
        }
    }
    panic!("none of {DRAWS_MAX} ports in {CANDIDATE_PORTS:?} is unclaimed")
}

/// Whether a program ended because another one listens on its port, by its log.
pub fn is_address_in_use(log: &str) -> bool {
    log.to_ascii_lowercase().contains("address already in use")
}

/// Starts servers that cannot report a port that the kernel chose: redis-server takes 0 for "no port", and edges that
/// relay to each other share one port. Starts again with other ports when the error, a log, says that one is in use.
pub async fn start_on_free_ports<const N: usize, T>(mut start: impl AsyncFnMut([u16; N]) -> Result<T, String>) -> T {
    let mut logs = Vec::new();
    while logs.len() < STARTS_MAX {
        match start(std::array::from_fn(|_| draw_port())).await {
            Ok(started) => return started,
            Err(log) if is_address_in_use(&log) => logs.push(log),
            Err(log) => panic!("{log}"),
        }
    }
    panic!("{STARTS_MAX} starts in a row met a port in use:\n{}", logs.join("\n"))
}

/// Listeners on one port of the loopback addresses that end in these numbers; the kernel chooses the port.
pub async fn listen_on_one_port(last_bytes: impl IntoIterator<Item = u8> + Clone) -> Vec<TcpListener> {
    let mut taken = None;
    for _ in 0..STARTS_MAX {
        match bind_one_port(last_bytes.clone()).await {
            Ok(listeners) => return listeners,
            Err(error) => taken = Some(error),
        }
    }
    panic!("{STARTS_MAX} ports of the kernel's choice were in use on another address: {taken:?}")
}

async fn bind_one_port(last_bytes: impl IntoIterator<Item = u8>) -> std::io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for last in last_bytes {
        let port = listeners.first().map_or(Ok(0), |first| first.local_addr().map(|address| address.port()))?;
        listeners.push(TcpListener::bind(SocketAddr::from(([127, 0, 0, last], port))).await?);
    }
    Ok(listeners)
}

/// A command that the kernel kills when the thread that spawned it ends, so also when the test process is killed.
pub fn command_bound_to_test(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A program that is ended when the test is, however that ends, and whose log is shown when the test fails.
pub struct LoggedProgram {
    child: Child,
    log: tempfile::NamedTempFile,
    name: String,
}

impl Drop for LoggedProgram {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("log of {} (process {}):\n{}", self.name, self.child.id(), self.log());
        }
    }
}

impl LoggedProgram {
    /// Spawns a [`command_bound_to_test`]; all that it prints is its log.
    pub fn spawn(name: &str, command: &mut Command) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let child = command.stdin(Stdio::null()).stdout(append(&log)).stderr(append(&log)).spawn();
        let child = child.unwrap_or_else(|error| panic!("setpriv does not run (apt-get install util-linux): {error}"));
        Self { child, log, name: name.to_owned() }
    }

    /// All that it has printed.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log.path()).expect("a log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a part of the log, which shows that it serves.
    ///
    /// # Errors
    /// It ended before, or did not get so far in time: its log.
    pub async fn wait_until_ready<T>(&mut self, ready: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let began = Instant::now();
        loop {
            // Read before the log: the last line of one that ended must not be missed.
            let status = self.child.try_wait().expect("a status");
            let log = self.log();
            if let Some(found) = ready(&log) {
                return Ok(found);
            }
            let name = &self.name;
            if let Some(status) = status {
                return Err(format!("{name} ended before it served, with {status}; its log:\n{log}"));
            }
            if began.elapsed() > PROGRAM_TIMEOUT {
                return Err(format!("{name} does not serve after {PROGRAM_TIMEOUT:?}; its log:\n{log}"));
            }
            tokio::time::sleep(LOG_INTERVAL).await;
        }
    }

    /// Ends it at once, unless it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end as kubelet does, and waits until it has.
    pub async fn terminate(&mut self) -> ExitStatus {
        let asked = Command::new("kill").args(["-TERM", &self.id().to_string()]).status();
        assert!(asked.expect("kill runs").success());
        self.wait_ended().await
    }

    /// Waits until it has ended.
    pub async fn wait_ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status;
            }
            assert!(began.elapsed() < PROGRAM_TIMEOUT, "{} runs on after {PROGRAM_TIMEOUT:?}", self.name);
            tokio::time::sleep(LOG_INTERVAL).await;
        }
    }
}

/// Both outputs go to the end of one file.
fn append(log: &tempfile::NamedTempFile) -> Stdio {
    std::fs::File::options().append(true).open(log.path()).expect("the same file").into()
}

#[tokio::test]
async fn a_drawn_port_is_not_drawn_again_and_can_be_listened_on() {
    let ports: std::collections::BTreeSet<u16> = (0..50).map(|_| draw_port()).collect();
    assert_eq!(ports.len(), 50);
    for port in ports {
        assert!(UdpSocket::bind((CLAIM_ADDRESS, port)).is_err(), "{port} could be claimed twice");
    }
    let listener = start_on_free_ports(async |[port]: [u16; 1]| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
        listener.map_err(|error| error.to_string())
    });
    assert!(listener.await.local_addr().expect("an address").ip().is_unspecified());
}

#[tokio::test]
async fn a_server_whose_port_is_in_use_is_started_on_another() {
    let mut blockers = Vec::new();
    let (port, mut server) = start_on_free_ports(async |[port]: [u16; 1]| {
        if blockers.len() < 2 {
            let blocker = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
            blockers.push((port, blocker.map_err(|error| error.to_string())?));
        }
        let mut command = command_bound_to_test("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        let mut server = LoggedProgram::spawn("redis-server", &mut command);
        server.wait_until_ready(|log| log.contains("Ready to accept connections").then_some(())).await?;
        Ok((port, server))
    })
    .await;
    assert_eq!(blockers.len(), 2);
    assert!(blockers.iter().all(|(blocked, _)| *blocked != port));
    assert!(server.child.try_wait().expect("a status").is_none(), "it runs");
}

#[tokio::test]
async fn a_server_that_fails_for_another_reason_is_not_started_again() {
    let mut starts = 0;
    let failing = start_on_free_ports(async |[_]: [u16; 1]| {
        starts += 1;
        let mut command = command_bound_to_test("redis-server");
        let mut server = LoggedProgram::spawn("redis-server", command.args(["--port", "many"]));
        server.wait_until_ready(|_| None::<()>).await
    });
    let message = crate::waiting::panic_of(failing).await;
    assert_eq!(starts, 1);
    assert!(message.contains("redis-server ended before it served, with exit status: 1"), "{message}");
    assert!(message.contains("argument couldn't be parsed"), "{message}");
}

#[tokio::test]
async fn listeners_share_a_port_of_the_kernels_choice() {
    let listeners = listen_on_one_port(1..=3).await;
    let ports: std::collections::BTreeSet<u16> =
        listeners.iter().map(|listener| listener.local_addr().expect("an address").port()).collect();
    assert_eq!((listeners.len(), ports.len()), (3, 1));
}

#[test]
fn a_command_ends_with_the_thread_that_spawned_it() {
    let wait = |awaited: &str, holds: &mut dyn FnMut() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PROGRAM_TIMEOUT, "not within {PROGRAM_TIMEOUT:?}: {awaited}");
            std::thread::sleep(LOG_INTERVAL);
        }
    };
    let spawning = std::thread::spawn(move || {
        let child = command_bound_to_test("sleep").arg("300").spawn().expect("setpriv runs");
        // Only then has setpriv done its part.
        let name = format!("/proc/{}/comm", child.id());
        wait("the command has begun", &mut || std::fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n"));
        child
    });
    let mut child = spawning.join().expect("spawned");
    wait("the command has ended with its thread", &mut || child.try_wait().expect("a status").is_some());
    let status = child.wait().expect("a status");
    assert_eq!(status.signal(), Some(9), "{status}");
}
