//! Real `redis-server` programs: alone, as a cluster of three, behind a sentinel, stopped and started again.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::resources::{LoggedProgram, command_bound_to_test, is_address_in_use, start_on_free_ports};
use crate::waiting::{WAIT_TIMEOUT, eventually, eventually_within};

const IN_MEMORY: [&str; 2] = ["--appendonly", "no"];
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Time between two starts on a port that another program still has.
const RESTART_INTERVAL: Duration = Duration::from_millis(100);

/// Longest until three nodes are one cluster.
const CLUSTER_TIMEOUT: Duration = Duration::from_mins(2);

/// A server that accepts connections, killed with this value.
pub struct Redis {
    program: LoggedProgram,
    pub port: u16,
    files: tempfile::TempDir,
}

/// A killed server: its port, which no other test draws, and its files.
pub struct KilledRedis {
    port: u16,
    files: tempfile::TempDir,
}

impl KilledRedis {
    /// Starts a [`Redis::start_durable`] with the data that it kept.
    pub async fn restart(self) -> Redis {
        Redis::start_at(self.port, self.files, &DURABLE).await
    }

    /// Starts an empty server on the port of this one.
    pub async fn replace(self) -> Redis {
        Redis::start_at(self.port, new_folder(), &IN_MEMORY).await
    }
}

impl Redis {
    pub async fn start() -> Self {
        Self::start_with(new_folder(), &IN_MEMORY).await
    }

    /// Starts one that keeps its data when it is killed.
    pub async fn start_durable() -> Self {
        Self::start_with(new_folder(), &DURABLE).await
    }

    pub async fn start_with(files: tempfile::TempDir, options: &[&str]) -> Self {
        Self::start_with_ports(files, |[port]: [u16; 1]| store_arguments(port, options)).await.0
    }

    /// Starts a sentinel of the file `sentinel.conf` in this folder.
    pub async fn start_sentinel(files: tempfile::TempDir) -> Self {
        let arguments =
            |[port]: [u16; 1]| [vec!["sentinel.conf".into(), "--sentinel".into()], listen_on(port)].concat();
        Self::start_with_ports(files, arguments).await.0
    }

    /// Starts a server that listens on several ports, of which the first is for commands.
    pub async fn start_with_ports<const N: usize>(
        files: tempfile::TempDir,
        arguments: impl Fn([u16; N]) -> Vec<String>,
    ) -> (Self, [u16; N]) {
        let (program, ports) =
            start_on_free_ports(async |ports| Ok((spawn(&files, &arguments(ports)).await?, ports))).await;
        (Self { program, port: ports[0], files }, ports)
    }

    /// Starts a server on a port that its clients know already.
    async fn start_at(port: u16, files: tempfile::TempDir, options: &[&str]) -> Self {
        let began = Instant::now();
        loop {
            match spawn(&files, &store_arguments(port, options)).await {
                Ok(program) => return Self { program, port, files },
                Err(log) => assert!(is_address_in_use(&log) && began.elapsed() < WAIT_TIMEOUT, "{log}"),
            }
            tokio::time::sleep(RESTART_INTERVAL).await;
        }
    }

    pub fn kill(mut self) -> KilledRedis {
        self.program.kill();
        KilledRedis { port: self.port, files: self.files }
    }

    /// Waits until it has run for so many seconds.
    pub async fn aged(&self, seconds: u64) {
        let uptime = async || {
            let info = self.command(&["info", "server"]);
            let line = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
            line.and_then(|uptime| uptime.trim().parse::<u64>().ok())
        };
        eventually(&format!("an uptime of {seconds} s"), uptime, |uptime| uptime.is_some_and(|up| up >= seconds)).await;
    }

    /// The output of `redis-cli`; empty while the server does not answer.
    pub fn command(&self, arguments: &[&str]) -> String {
        // Without a limit, a server that is stopped would hold up the test for ever.
        let mut command = Command::new("timeout");
        let output = command.args(["10", "redis-cli", "-p", &self.port.to_string()]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("timeout of coreutils").stdout).into_owned()
    }

    /// Waits until the answer to a command contains this.
    pub async fn answers_with(&self, command: &[&str], part: &str) {
        let awaited = format!("`{part}` in the answer to {command:?}");
        eventually(&awaited, async || self.command(command), |answer| answer.contains(part)).await;
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

fn new_folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn listen_on(port: u16) -> Vec<String> {
    ["--port", &port.to_string(), "--bind", "127.0.0.1"].map(str::to_owned).to_vec()
}

/// Without snapshots of its memory.
pub fn store_arguments(port: u16, options: &[&str]) -> Vec<String> {
    let mut arguments = listen_on(port);
    arguments.extend(["--save", ""].iter().chain(options).map(|option| (*option).to_owned()));
    arguments
}

/// Spawns redis-server in this folder, and waits until it accepts connections.
async fn spawn(files: &tempfile::TempDir, arguments: &[String]) -> Result<LoggedProgram, String> {
    let mut command = command_bound_to_test("redis-server");
    let mut program = LoggedProgram::spawn("redis-server", command.args(arguments).current_dir(files.path()));
    // A sentinel says the second.
    let serves = |log: &str| log.contains("Ready to accept connections") || log.contains("Sentinel ID is");
    program.wait_until_ready(|log| serves(log).then_some(())).await?;
    Ok(program)
}

/// Starts three nodes that are one store; answers with them and its address.
pub async fn start_redis_cluster() -> (Vec<Redis>, String) {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let arguments = |[port, bus_port]: [u16; 2]| {
            let bus_port = bus_port.to_string();
            store_arguments(port, &["--appendonly", "no", "--cluster-enabled", "yes", "--cluster-port", &bus_port])
        };
        nodes.push(Redis::start_with_ports(new_folder(), arguments).await.0);
    }
    join_nodes(&nodes).await;
    let url = format!("redis-cluster://127.0.0.1:{}?node=127.0.0.1:{}", nodes[0].port, nodes[1].port);
    (nodes, url)
}

async fn join_nodes(nodes: &[Redis]) {
    let addresses: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    eventually_within(CLUSTER_TIMEOUT, "three nodes that are one cluster", async || {
        // It would wait for a node that cannot hear the others without an end.
        let mut create = Command::new("timeout");
        create.args(["30", "redis-cli", "--cluster", "create"]).args(&addresses).arg("--cluster-yes");
        let created = create.output().expect("timeout of coreutils");
        if created.status.success() {
            return Ok(());
        }
        // Nodes that a busy machine held up while they met know one another in part, and cannot be joined any more.
        for node in nodes {
            node.command(&["CLUSTER", "RESET", "HARD"]);
        }
        Err(String::from_utf8_lossy(&created.stdout).into_owned())
    })
    .await;
    for node in nodes {
        // Each finds out by itself that all slots have a node, and refuses everything before.
        node.answers_with(&["CLUSTER", "INFO"], "cluster_state:ok").await;
    }
}
