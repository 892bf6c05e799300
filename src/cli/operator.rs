//! `realtime operator`: the operator as a pod runs it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::BAD_INPUT_EXIT_CODE;
use crate::desired::{KnownInjectors, OPERATOR_NAMESPACE, PlatformPolicy};
use crate::kubernetes::scope::WatchScope;
use crate::operator::{self, OperatorError, OperatorSettings};
use crate::prober::JOURNEYS_PER_SECOND;
use crate::process::{install_tls, signal, telemetry};

/// The exit code after a task ended or made no progress (`EX_SOFTWARE` of sysexits.h).
const EXIT_TASK_FAULT: u8 = 70;

/// Shortest and longest time that `--inherited-evidence-max` may be.
const SHORTEST_INHERITED_TTL: Duration = Duration::from_mins(1);
const LONGEST_INHERITED_TTL: Duration = Duration::from_mins(15);

/// Run the operator.
///
/// It needs an API server (its pod's service account, or `KUBECONFIG`) and the CRDs. Of several replicas one leads; every
/// one receives webhooks. Exit codes: 0 ended by a signal, 1 lost the lease or could not start, 2 the arguments or the policy
/// file cannot be used, 70 a task ended or made no progress.
#[derive(clap::Args)]
pub struct Arguments {
    /// Namespace of the operator's own objects: its Lease and the receiver's slice of endpoints
    #[arg(long, env = "POD_NAMESPACE", default_value = OPERATOR_NAMESPACE)]
    namespace: String,
    /// Namespaces whose clusters this operator reconciles, separated by commas; all of them by default
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',', value_name = "NAMESPACES")]
    watch_namespaces: Vec<String>,
    /// File with the images, endpoints, regions and roles that clusters may name, by namespace (docs/security.md).
    /// Without it: the image repository of the defaults, AWS's own endpoints, any region, any role. Read at the start
    #[arg(long, env = "PLATFORM_POLICY", value_name = "FILE")]
    platform_policy: Option<PathBuf>,
    /// File of the injectors whose additions to pods are accepted, in place of those that `realtime known-injectors` prints
    #[arg(long, env = "KNOWN_INJECTORS", value_name = "FILE")]
    known_injectors: Option<PathBuf>,
    /// The operator's own image, which clusters without `spec.image` run and may name; by default that of its pod
    #[arg(long, env = "OPERATOR_IMAGE", value_name = "REFERENCE")]
    image: Option<String>,
    /// Name of this replica
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod: String,
    /// Address of this replica, to which webhooks of the journeys are sent
    #[arg(long, env = "POD_IP", value_name = "ADDRESS")]
    address: IpAddr,
    /// Address on which webhooks of the journeys are received
    #[arg(long, default_value = "[::]:8090", value_name = "ADDRESS:PORT")]
    receiver: SocketAddr,
    /// Address of `/livez`, `/readyz` and `/metrics`
    #[arg(long, default_value = "[::]:9090", value_name = "ADDRESS:PORT")]
    admin: SocketAddr,
    /// Journeys that all clusters together start per second, at most. Beyond it the intervals of all clusters stretch
    #[arg(long, default_value_t = JOURNEYS_PER_SECOND, value_name = "JOURNEYS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    journeys_per_second: u32,
    /// Age at which the proof of a former leader is too old, such as `90s` or `15m`: a cluster that this operator has not
    /// proven itself by then is not Ready
    #[arg(long, default_value = "15m", value_name = "TIME", value_parser = parse_inherited_max)]
    inherited_evidence_max: Duration,
    /// Authoritative servers that moves ask about their hosts, separated by commas; by default those that the NS records of a
    /// zone name. For a zone that the pod's resolver sees otherwise than clients do
    #[arg(long, env = "ZONE_SERVERS", value_delimiter = ',', value_name = "ADDRESS:PORT")]
    zone_servers: Vec<SocketAddr>,
    /// Log filter, such as `info` or `realtime_operator::operator=debug`
    #[arg(long, env = "LOG", default_value = "info", value_name = "FILTER")]
    log: String,
}

/// Runs `realtime operator` and returns its exit code.
pub async fn run(arguments: Arguments) -> u8 {
    telemetry::start(&arguments.log);
    install_tls();
    let policy = match arguments.platform_policy.as_deref().map_or_else(|| Ok(PlatformPolicy::default()), read_policy) {
        Ok(policy) => policy,
        Err(error) => {
            eprintln!("realtime: {error}");
            return BAD_INPUT_EXIT_CODE;
        }
    };
    let shutdown = match signal::shutdown_token() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            eprintln!("realtime: signals cannot be listened to: {error}");
            return 1;
        }
    };
    let Arguments {
        namespace,
        watch_namespaces,
        platform_policy: _,
        known_injectors,
        image,
        pod,
        address,
        receiver,
        admin,
        journeys_per_second,
        inherited_evidence_max,
        zone_servers,
        log: _,
    } = arguments;
    let known_injectors = match read_known_injectors(known_injectors.as_deref()) {
        Ok(known) => known,
        Err(error) => {
            eprintln!("realtime: {error}");
            return 1;
        }
    };
    let scope = WatchScope::of_namespaces(watch_namespaces);
    let settings = OperatorSettings {
        image,
        namespace,
        scope,
        policy,
        known_injectors,
        pod,
        address,
        receiver,
        admin,
        journeys_per_second,
        inherited_evidence_max,
        zone_servers,
    };
    match operator::run(settings, shutdown).await {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("realtime: {error}");
            if matches!(error, OperatorError::Task(_)) { EXIT_TASK_FAULT } else { 1 }
        }
    }
}

/// Parses `--inherited-evidence-max`. Below a minute, a change of leader alone would turn every cluster.
fn parse_inherited_max(text: &str) -> Result<Duration, String> {
    let age = super::parse_duration(text)?;
    if (SHORTEST_INHERITED_TTL..=LONGEST_INHERITED_TTL).contains(&age) {
        Ok(age)
    } else {
        Err("write a time from 60s to 15m".to_owned())
    }
}

fn read_policy(file: &Path) -> Result<PlatformPolicy, String> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{name}: cannot be read: {error}"))?;
    PlatformPolicy::parse(&name, &text).map_err(|error| error.to_string())
}

/// Reads the file of known injectors; the shipped ones without a file.
fn read_known_injectors(file: Option<&Path>) -> Result<KnownInjectors, String> {
    let Some(file) = file else { return KnownInjectors::shipped() };
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("--known-injectors {name}: {error}"))?;
    KnownInjectors::parse(&text).map_err(|error| format!("--known-injectors {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_evidence_may_be_a_minute_to_a_quarter_of_an_hour_old() {
        for (text, expected) in [
            ("2m", Some(Duration::from_mins(2))),
            ("60s", Some(Duration::from_mins(1))),
            ("15m", Some(Duration::from_mins(15))),
            ("59s", None),
            ("16m", None),
            ("soon", None),
        ] {
            assert_eq!(parse_inherited_max(text).ok(), expected, "{text}");
        }
    }
}
