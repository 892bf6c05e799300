//! Resources that tests of several processes share on one machine: ports, and programs bound to the life of a test.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Below the ephemeral ports, which the kernel gives to any connection, and below the node ports of Kubernetes.
const RESERVABLE_PORTS: Range<u16> = 20_000..30_000;

/// A UDP socket on this address is the reservation of the TCP port of its number: it is in no server's way, also not in
/// that of one that listens on all addresses.
const RESERVATION_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);

/// Draws until a port is found: far more than there are ports in use.
const DRAWS_MAX: usize = 1_000;

/// Reserves a port on all loopback addresses for as long as this process runs. For servers that cannot report the port
/// they were given: redis-server takes 0 for "no port", and edges that relay to each other share one port. Tests in
/// other processes, also those in Node, reserve in the same way, so no port is reserved twice.
pub fn reserve_port() -> u16 {
    static RESERVATIONS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    for _ in 0..DRAWS_MAX {
        let port = rand::random_range(RESERVABLE_PORTS);
        let Ok(reservation) = UdpSocket::bind((RESERVATION_ADDRESS, port)) else { continue };
        // A program that is no test may have a fixed port. The reservation comes first: two tests that look at one port
        // at once would each find the other's look.
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            RESERVATIONS.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
            return port;
        }
    }
    panic!("none of {DRAWS_MAX} ports in {RESERVABLE_PORTS:?} is free")
}

/// A command that the kernel kills when the thread that spawned it ends, so also when the test process is killed.
pub fn command_bound_to_test(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

#[test]
fn a_reserved_port_is_not_reserved_again_and_can_be_bound() {
    let ports: std::collections::BTreeSet<u16> = (0..50).map(|_| reserve_port()).collect();
    assert_eq!(ports.len(), 50);
    for port in ports {
        assert!(UdpSocket::bind((RESERVATION_ADDRESS, port)).is_err(), "{port} could be reserved twice");
        assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(), "{port} cannot be used");
    }
}

#[test]
fn a_command_ends_with_the_thread_that_spawned_it() {
    const WAIT_TIMEOUT: Duration = Duration::from_secs(20);
    let wait = |what: &str, holds: &mut dyn FnMut() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < WAIT_TIMEOUT, "not within {WAIT_TIMEOUT:?}: {what}");
            std::thread::sleep(Duration::from_millis(20));
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
