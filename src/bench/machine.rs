//! CPU and memory of processes and of the host from `/proc`, and the limits of the system.

use std::fs;

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

use super::error::BenchError;

/// Bounds the share of the host's CPU that other processes take during the measurement; above it a run is void.
pub const OTHERS_SHARE_MAX: f64 = 0.8;

/// Niceness at which the scheduler hardly ever preempts a process for another.
const PREFERRED_PROCESS_NICENESS: i32 = -15;

/// CPU time of the host since its start, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTicks {
    /// CPU time of all cores, idle or not.
    pub total: u64,
    /// CPU time that was not idle, including time that the hypervisor took.
    pub busy: u64,
}

/// Load of the host over the measured windows.
#[derive(Clone, Debug, Default)]
pub struct HostUsage {
    total: u64,
    busy: u64,
    others: u64,
    /// Processes beside servers and client that count as ours.
    helpers: Vec<u32>,
}

impl HostUsage {
    /// Creates an empty usage that counts a process as ours.
    pub fn with_helper(helper: u32) -> Self {
        Self { helpers: vec![helper], ..Self::default() }
    }

    /// CPU time of the helpers so far, in clock ticks.
    pub fn helper_ticks(&self) -> Result<u64, BenchError> {
        self.helpers.iter().map(|helper| read_cpu_ticks(*helper)).sum()
    }

    /// Creates an empty usage with the same helpers.
    pub fn new_window(&self) -> Self {
        Self { helpers: self.helpers.clone(), ..Self::default() }
    }

    /// Adds the windows of another usage.
    pub fn merge(&mut self, other: &Self) {
        self.total += other.total;
        self.busy += other.busy;
        self.others += other.others;
    }

    /// Share of the host's CPU that was busy, with our own processes.
    pub fn busy_share(&self) -> f64 {
        if self.total == 0 { 0.0 } else { as_f64(self.busy) / as_f64(self.total) }
    }

    /// Adds one window: the host's CPU time at its start and end, and our own processes' CPU time in it, in clock ticks.
    pub fn add_window(&mut self, from: HostTicks, to: HostTicks, own: u64) {
        self.total += to.total.saturating_sub(from.total);
        let busy = to.busy.saturating_sub(from.busy);
        self.busy += busy;
        self.others += busy.saturating_sub(own);
    }

    /// Share of the host's CPU that other processes took.
    pub fn others_share(&self) -> f64 {
        if self.total == 0 { 0.0 } else { as_f64(self.others) / as_f64(self.total) }
    }

    /// Whether other processes took so much CPU that the run is void.
    pub fn is_void(&self) -> bool {
        self.others_share() > OTHERS_SHARE_MAX
    }
}

fn read(path: &str) -> Result<String, BenchError> {
    fs::read_to_string(path).map_err(|error| BenchError::Proc { path: path.to_owned(), error: error.to_string() })
}

fn unexpected_format(path: &str) -> BenchError {
    BenchError::Proc { path: path.to_owned(), error: "it has another form".to_owned() }
}

/// Reads the host's CPU time since its start.
pub fn read_host_ticks() -> Result<HostTicks, BenchError> {
    parse_host(&read("/proc/stat")?).ok_or_else(|| unexpected_format("/proc/stat"))
}

/// Parses the first line, `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guests are in user already.
fn parse_host(text: &str) -> Option<HostTicks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line.split_whitespace().take(8).map(|time| time.parse().ok()).collect::<Option<_>>()?;
    let total = times.iter().sum();
    let idle = times.get(3)? + times.get(4)?;
    Some(HostTicks { total, busy: total - idle })
}

/// Reads the CPU time of a process since its start, in clock ticks.
pub fn read_cpu_ticks(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/stat");
    parse_ticks(&read(&path)?).ok_or_else(|| unexpected_format(&path))
}

/// Parses the fields after the name, which is in parentheses and may hold any byte; 14 and 15 are user and system time.
fn parse_ticks(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Reads the resident memory of a process, in KiB.
pub fn read_rss_kib(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/status");
    parse_field(&read(&path)?, "VmRSS:").ok_or_else(|| unexpected_format(&path))
}

/// Parses the number after a name at the start of a line.
fn parse_field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Converts clock ticks to microseconds.
pub fn ticks_to_us(ticks: u64) -> f64 {
    as_f64(ticks) * 1e6 / as_f64(clock_ticks_per_second().max(1))
}

/// Converts a count; exact up to 2^53, which no run reaches.
#[allow(clippy::cast_precision_loss)]
pub fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Raises the limit of open files of this process, and of those that it starts, to `needed`.
pub fn allow_files(needed: u64) -> Result<(), BenchError> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    if allowed >= needed && setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(());
    }
    Err(BenchError::FileLimit { needed, allowed })
}

/// Raises the priority of a process. Returns whether the system allows that; otherwise nothing changes.
pub fn prefer_process(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| setpriority_process(Some(pid), PREFERRED_PROCESS_NICENESS).is_ok())
}

/// Describes the machine in a line: processor, cores, memory, kernel.
pub fn describe_machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split_once(':'));
    let model = model.map_or("processor of an unknown kind", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_field(&text, "MemTotal:"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let gib = memory.unwrap_or_default() / (1 << 20);
    format!("{model}, {cores} cores, {gib} GiB, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_parsed() {
        let host = parse_host("cpu  10 20 30 400 50 6 7 8 9 1\ncpu0 1 2 3\n");
        assert_eq!(host, Some(HostTicks { total: 531, busy: 81 }));
        assert_eq!(parse_host("intr 1"), None);
        assert_eq!(parse_ticks("7 (a ) b) S 1 1 1 0 -1 4 1 1 1 1 12 30 0 0 20 0 9 0"), Some(42));
        assert_eq!(parse_ticks("7 (a)"), None);
        assert_eq!(parse_field("VmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(parse_field("VmRSS:\t\n", "VmRSS:"), None);
    }

    #[test]
    fn this_process_has_memory_and_cpu_time() {
        let pid = std::process::id();
        assert!(read_rss_kib(pid).expect("a number") > 0);
        assert!(read_cpu_ticks(pid).is_ok() && read_host_ticks().expect("times").total > 0);
        assert!(matches!(read_cpu_ticks(u32::MAX), Err(BenchError::Proc { .. })));
    }

    #[test]
    fn a_host_that_others_keep_busy_makes_a_run_void() {
        let at = |total, busy| HostTicks { total, busy };
        for (name, busy, own, void) in [
            ("quiet", 100, 90, false),
            ("we alone keep it busy", 1000, 1000, false),
            ("others take some", 900, 100, false),
            ("others take most", 1000, 100, true),
            ("our own count is coarse", 10, 12, false),
        ] {
            let mut watch = HostUsage::default();
            watch.add_window(at(5000, 300), at(6000, 300 + busy), own);
            assert_eq!(watch.is_void(), void, "{name}: {}", watch.others_share());
        }
        assert!(!HostUsage::default().is_void(), "nothing was measured");
        let (mut all, mut window) = (HostUsage::default(), HostUsage::default());
        window.add_window(at(0, 0), at(100, 60), 50);
        all.add_window(at(0, 0), at(100, 0), 0);
        all.merge(&window);
        assert!(
            (window.busy_share() - 0.6).abs() < 1e-9 && (all.busy_share() - 0.3).abs() < 1e-9,
            "{window:?} {all:?}"
        );
        assert!((all.others_share() - 0.05).abs() < 1e-9, "{all:?}");
        let mut watch = HostUsage::default();
        watch.add_window(at(0, 0), at(100, 100), 0);
        watch.add_window(at(0, 0), at(900, 0), 0);
        assert!(!watch.is_void(), "the whole time counts");
    }

    #[test]
    fn more_files_than_the_system_allows_are_refused_with_a_remedy() {
        assert!(allow_files(16).is_ok());
        let error = allow_files(u64::MAX - 1).expect_err("too many").to_string();
        assert!(error.contains("ulimit -n") && error.contains("--quick"), "{error}");
    }
}
