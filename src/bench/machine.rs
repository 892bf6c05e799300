//! What `/proc` says of processes and of the host, and what the system allows.

use std::fs;

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

use super::error::BenchError;

/// Above this share of the host's CPU that others took, in the time that was measured, a run says nothing.
pub const OTHERS_SHARE_MAX: f64 = 0.8;

/// A niceness at which hardly anything else is let in between.
const PREFERRED_PROCESS_NICENESS: i32 = -15;

/// CPU time of the host since its start, in its clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTicks {
    /// All of it.
    pub total: u64,
    /// What somebody worked in, or the hypervisor took.
    pub busy: u64,
}

/// The host over the time that was measured.
#[derive(Clone, Debug, Default)]
pub struct HostUsage {
    total: u64,
    busy: u64,
    others: u64,
    /// Processes beside servers and client that are no others.
    helpers: Vec<u32>,
}

impl HostUsage {
    /// One that counts a process as ours.
    pub fn with_helper(helper: u32) -> Self {
        Self { helpers: vec![helper], ..Self::default() }
    }

    /// CPU time of the helpers so far, in clock ticks.
    pub fn helper_ticks(&self) -> Result<u64, BenchError> {
        self.helpers.iter().map(|helper| read_cpu_ticks(*helper)).sum()
    }

    /// One that has seen nothing yet and knows the same helpers.
    pub fn new_window(&self) -> Self {
        Self { helpers: self.helpers.clone(), ..Self::default() }
    }

    /// Adds what another has seen.
    pub fn merge(&mut self, other: &Self) {
        self.total += other.total;
        self.busy += other.busy;
        self.others += other.others;
    }

    /// The share of the host's CPU that somebody worked in, we too.
    pub fn busy_share(&self) -> f64 {
        if self.total == 0 { 0.0 } else { as_f64(self.busy) / as_f64(self.total) }
    }

    /// Adds one window: the host's times at its ends, and what our own processes took in it, in the same unit.
    pub fn add_window(&mut self, from: HostTicks, to: HostTicks, own: u64) {
        self.total += to.total.saturating_sub(from.total);
        let busy = to.busy.saturating_sub(from.busy);
        self.busy += busy;
        self.others += busy.saturating_sub(own);
    }

    /// The share of the host that others took.
    pub fn others_share(&self) -> f64 {
        if self.total == 0 { 0.0 } else { as_f64(self.others) / as_f64(self.total) }
    }

    /// Whether the run says nothing.
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

/// The host's CPU time.
pub fn read_host_ticks() -> Result<HostTicks, BenchError> {
    parse_host(&read("/proc/stat")?).ok_or_else(|| unexpected_format("/proc/stat"))
}

/// The first line is `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guests are in user already.
fn parse_host(text: &str) -> Option<HostTicks> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line.split_whitespace().take(8).map(|time| time.parse().ok()).collect::<Option<_>>()?;
    let total = times.iter().sum();
    let idle = times.get(3)? + times.get(4)?;
    Some(HostTicks { total, busy: total - idle })
}

/// CPU time of a process since its start, in clock ticks.
pub fn read_cpu_ticks(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/stat");
    parse_ticks(&read(&path)?).ok_or_else(|| unexpected_format(&path))
}

/// The fields after the name, which is in parentheses and may hold anything; 14 and 15 are user and system time.
fn parse_ticks(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Resident memory of a process, in KiB.
pub fn read_rss_kib(pid: u32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/status");
    parse_field(&read(&path)?, "VmRSS:").ok_or_else(|| unexpected_format(&path))
}

/// The number after a name at the beginning of a line.
fn parse_field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Clock ticks in microseconds.
pub fn ticks_to_us(ticks: u64) -> f64 {
    as_f64(ticks) * 1e6 / as_f64(clock_ticks_per_second().max(1))
}

/// Exact for every number that a run can count to.
#[allow(clippy::cast_precision_loss)]
pub fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Lets this process, and those that it starts, have so many open files.
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

/// Gives a process the first claim on a core. Whether the system allows that; else nothing changes.
pub fn prefer_process(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| setpriority_process(Some(pid), PREFERRED_PROCESS_NICENESS).is_ok())
}

/// The machine in a line: processor, cores, memory, kernel.
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
    fn the_forms_of_proc_are_read() {
        let host = parse_host("cpu  10 20 30 400 50 6 7 8 9 1\ncpu0 1 2 3\n");
        assert_eq!(host, Some(HostTicks { total: 531, busy: 81 }));
        assert_eq!(parse_host("intr 1"), None);
        assert_eq!(parse_ticks("7 (a ) b) S 1 1 1 0 -1 4 1 1 1 1 12 30 0 0 20 0 9 0"), Some(42));
        assert_eq!(parse_ticks("7 (a)"), None);
        assert_eq!(parse_field("VmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(parse_field("VmRSS:\t\n", "VmRSS:"), None);
    }

    #[test]
    fn this_process_is_there() {
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
        let told = allow_files(u64::MAX - 1).expect_err("too many").to_string();
        assert!(told.contains("ulimit -n") && told.contains("--quick"), "{told}");
    }
}
