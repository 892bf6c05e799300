//! Asks the authoritative servers of a zone how they answer lookups of a host. A resolver in between would answer from its
//! cache, and with one weight for a whole TTL.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use super::answers::{ServerAnswers, ZoneFault, ZoneReading};
use crate::migration::OwnershipRecord;
use crate::operator::metrics::{OperatorMetrics, ZoneAnswer};
use crate::process::name_resolver::build_resolver;

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Times that one lookup is sent: a datagram may be lost.
const SENDS_MAX: u32 = 3;

/// Lookups under way at one server.
const CONCURRENT_QUERIES_MAX: usize = 16;

/// Lookups of each TXT record at each server: those of weighted records are answered one at a time, and one of weight 1 beside
/// 20 shows with a chance of 99 %.
const OWNER_QUERIES: u32 = 100;

/// Servers of a zone that are asked: Route 53 has four for each.
const SERVERS_MAX: usize = 8;

/// Longest time for one reading.
const READING_TIMEOUT: Duration = Duration::from_secs(25);

/// Largest answer over UDP (RFC 9715).
const ANSWER_LEN_MAX: usize = 1232;

/// Port of name servers.
const DNS_PORT: u16 = 53;

/// A host whose answers are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneQuery {
    /// Host that clients look up.
    pub host: String,
    /// Host of the target.
    pub target: String,
    /// Lookups at each server.
    pub queries: u32,
    /// Names of TXT records about the owner of the host's records.
    pub ownership: BTreeSet<String>,
}

/// Reads the answers of zones.
pub struct ZoneReader {
    resolver: TokioResolver,
    /// Servers to ask instead of those that a zone's NS records name.
    servers: Vec<SocketAddr>,
    metrics: Arc<OperatorMetrics>,
}

/// The class of one answer, with the TTL of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostAnswer {
    Target(u32),
    Other(u32),
    Address(u32),
    Missing,
    Failed,
}

impl ZoneReader {
    /// A reader that finds the servers of zones by the resolver of `/etc/resolv.conf`, unless they are given.
    ///
    /// # Errors
    /// The resolver cannot be made.
    pub fn new(servers: Vec<SocketAddr>, metrics: Arc<OperatorMetrics>) -> Result<Self, String> {
        Ok(Self { resolver: build_resolver(None, ANSWER_TIMEOUT, |_| {})?, servers, metrics })
    }

    /// Reads the answers to lookups of a host, which begin at `now_ms`.
    ///
    /// # Errors
    /// The zone has no servers that are found, the host is its apex, or the servers are too slow together. A silent server
    /// among others is part of the answers.
    pub async fn read(&self, query: &ZoneQuery, now_ms: u64) -> Result<ZoneReading, ZoneFault> {
        let reading = timeout(READING_TIMEOUT, self.read_all(query, now_ms)).await;
        let late = ZoneFault::Timeout { host: query.host.clone(), seconds: READING_TIMEOUT.as_secs() };
        reading.unwrap_or(Err(late))
    }

    async fn read_all(&self, query: &ZoneQuery, at_ms: u64) -> Result<ZoneReading, ZoneFault> {
        let no_servers = |message: String| ZoneFault::NoServers { host: query.host.clone(), message };
        let parse = |name: &str| Name::from_ascii(format!("{}.", name.trim_end_matches('.')));
        let host = parse(&query.host).map_err(|error| no_servers(error.to_string()))?;
        let target = parse(&query.target).map_err(|error| no_servers(error.to_string()))?;
        let servers = if self.servers.is_empty() { self.find_servers(&host).await? } else { self.servers.clone() };
        let readings = servers.iter().map(|server| self.ask_server(*server, (&host, &target), query.queries));
        let owners = servers.iter().map(|server| read_owners(*server, &query.ownership));
        let (answers, is_target_known, owners) = futures::future::join3(
            futures::future::join_all(readings),
            self.is_known(&servers, &target),
            futures::future::join_all(owners),
        )
        .await;
        let owners = owners.into_iter().flatten().collect();
        Ok(ZoneReading { at_ms, servers: answers, is_target_known, owners })
    }

    /// Finds the servers of the nearest zone above a host.
    async fn find_servers(&self, host: &Name) -> Result<Vec<SocketAddr>, ZoneFault> {
        let mut zone = host.clone();
        let mut message = "no zone has NS records".to_owned();
        while zone.num_labels() >= 2 {
            match self.find_name_servers(&zone).await {
                Ok(names) if !names.is_empty() && zone == *host => {
                    return Err(ZoneFault::Apex(host.to_ascii().trim_end_matches('.').to_owned()));
                }
                Ok(names) if !names.is_empty() => {
                    let found = self.resolve_servers(names).await;
                    if !found.is_empty() {
                        return Ok(found);
                    }
                    message = format!("the name servers of {zone} have no address");
                    break;
                }
                Ok(_) => {}
                Err(error) => message = error,
            }
            zone = zone.base_name();
        }
        Err(ZoneFault::NoServers { host: host.to_ascii().trim_end_matches('.').to_owned(), message })
    }

    /// The NS records of exactly this name: those of a CNAME's target are another zone's.
    async fn find_name_servers(&self, zone: &Name) -> Result<Vec<Name>, String> {
        match self.resolver.lookup(zone.clone(), RecordType::NS).await {
            Ok(found) => {
                let own = found.answers().iter().filter(|record| record.name == *zone);
                Ok(own
                    .filter_map(|record| if let RData::NS(name) = &record.data { Some(name.0.clone()) } else { None })
                    .collect())
            }
            Err(error) if error.is_nx_domain() || error.is_no_records_found() => Ok(vec![]),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn resolve_servers(&self, mut names: Vec<Name>) -> Vec<SocketAddr> {
        names.sort();
        let lookups = names.into_iter().take(SERVERS_MAX).map(|name| self.resolver.lookup_ip(name));
        let found = futures::future::join_all(lookups).await;
        // One address of each: all of a server's lead to the same data.
        found
            .into_iter()
            .filter_map(|answer| answer.ok()?.iter().next())
            .map(|ip| SocketAddr::new(ip, DNS_PORT))
            .collect()
    }

    async fn ask_server(&self, server: SocketAddr, (host, target): (&Name, &Name), queries: u32) -> ServerAnswers {
        let ask =
            |_| async move { classify_answer(ask_once(server, host, RecordType::A).await.as_ref(), host, target) };
        let mut asked = futures::stream::iter(0..queries).map(ask).buffer_unordered(CONCURRENT_QUERIES_MAX);
        let mut answers = ServerAnswers { server: server.to_string(), ..ServerAnswers::default() };
        while let Some(answer) = asked.next().await {
            answers.queries += 1;
            let (count, ttl, label) = match answer {
                HostAnswer::Target(ttl) => (&mut answers.target, Some(ttl), ZoneAnswer::Target),
                HostAnswer::Other(ttl) => (&mut answers.others, Some(ttl), ZoneAnswer::Other),
                HostAnswer::Address(ttl) => (&mut answers.addresses, Some(ttl), ZoneAnswer::Other),
                HostAnswer::Missing => (&mut answers.missing, None, ZoneAnswer::None),
                HostAnswer::Failed => (&mut answers.failed, None, ZoneAnswer::Failed),
            };
            *count += 1;
            answers.ttls.extend(ttl);
            self.metrics.series.zone_answers.with_label(label).inc();
        }
        answers
    }

    /// Whether a name has an address or a CNAME, at these servers or elsewhere.
    async fn is_known(&self, servers: &[SocketAddr], name: &Name) -> bool {
        for server in servers.iter().take(1) {
            let found = ask_once(*server, name, RecordType::A).await;
            if found.is_some_and(|answer| answer.answers.iter().any(|record| record.name == *name)) {
                return true;
            }
        }
        self.resolver.lookup_ip(name.clone()).await.is_ok_and(|found| found.iter().next().is_some())
    }
}

/// Reads the owners that TXT records of a server name. Names without one cost one lookup.
async fn read_owners(server: SocketAddr, names: &BTreeSet<String>) -> BTreeSet<OwnershipRecord> {
    let mut found = BTreeSet::new();
    for text in names {
        let Ok(name) = Name::from_ascii(format!("{text}.")) else { continue };
        let mut texts = ask_texts(server, &name).await;
        if !texts.is_empty() {
            let others = futures::stream::iter(1..OWNER_QUERIES).map(|_| ask_texts(server, &name));
            let others: Vec<_> = others.buffer_unordered(CONCURRENT_QUERIES_MAX).collect().await;
            texts.extend(others.into_iter().flatten());
        }
        found.extend(texts.iter().filter_map(|found| OwnershipRecord::parse(text, found)));
    }
    found
}

/// The TXT records of a name, as a server in charge answers one lookup.
async fn ask_texts(server: SocketAddr, name: &Name) -> BTreeSet<String> {
    let answer = ask_once(server, name, RecordType::TXT).await.filter(|answer| answer.metadata.authoritative);
    let records = answer.iter().flat_map(|answer| &answer.answers).filter(|record| record.name == *name);
    let texts = records.filter_map(|record| if let RData::TXT(text) = &record.data { Some(text) } else { None });
    texts.map(|text| String::from_utf8_lossy(&text.txt_data.concat()).into_owned()).collect()
}

/// Sends one lookup until it is answered; `None` if it never is.
async fn ask_once(server: SocketAddr, host: &Name, record_type: RecordType) -> Option<Message> {
    for _ in 0..SENDS_MAX {
        // A port and a number of its own for each: nobody else can answer.
        let id = rand::random::<u16>();
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(host.clone(), record_type));
        let Ok(Some(answer)) = timeout(ANSWER_TIMEOUT, exchange(server, &message)).await else { continue };
        return Some(answer);
    }
    None
}

/// Sends a message, and waits for the answer to it.
async fn exchange(server: SocketAddr, message: &Message) -> Option<Message> {
    let unspecified: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&message.to_vec().ok()?).await.ok()?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut buffer = [0; ANSWER_LEN_MAX];
    loop {
        let length = timeout_at(deadline, socket.recv(&mut buffer)).await.ok()?.ok()?;
        let Ok(answer) = Message::from_vec(buffer.get(..length)?) else { continue };
        let is_answer =
            answer.metadata.message_type == MessageType::Response && answer.metadata.id == message.metadata.id;
        if is_answer && answer.queries == message.queries {
            return Some(answer);
        }
    }
}

fn classify_answer(answer: Option<&Message>, host: &Name, target: &Name) -> HostAnswer {
    let Some(answer) = answer.filter(|answer| answer.metadata.authoritative) else { return HostAnswer::Failed };
    if !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return HostAnswer::Failed;
    }
    let Some(record) = answer.answers.iter().find(|record| record.name == *host) else { return HostAnswer::Missing };
    match &record.data {
        RData::CNAME(found) if found.0 == *target => HostAnswer::Target(record.ttl),
        RData::CNAME(_) => HostAnswer::Other(record.ttl),
        _ => HostAnswer::Address(record.ttl),
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_zone::{TestRecord, TestZone};
    use super::*;
    use crate::operator::OperatorMetrics;

    const HOST: &str = "sockjs-eu.example.com";
    const TARGET: &str = "sockjs.eks.example.com";

    fn reader(servers: Vec<SocketAddr>) -> ZoneReader {
        ZoneReader::new(servers, Arc::new(OperatorMetrics::default())).expect("a reader")
    }

    fn query(queries: u32) -> ZoneQuery {
        ZoneQuery { host: HOST.to_owned(), target: TARGET.to_owned(), queries, ownership: BTreeSet::new() }
    }

    #[tokio::test]
    async fn owners_are_read_from_the_weighted_txt_records_of_each_server() {
        let (first, second) = (TestZone::start().await, TestZone::start().await);
        for zone in [&first, &second] {
            zone.set(HOST, [TestRecord::cname("sockjs.old.example.com", 20)]);
        }
        let text =
            |owner: &str| format!("heritage=external-dns,external-dns/owner={owner},external-dns/resource=crd/a/b");
        let typed = format!("cname-{HOST}");
        first.set(&typed, [TestRecord::text(&text("old"), 20), TestRecord::text(&text("left"), 1)]);
        second.set(&format!("owner-{HOST}"), [TestRecord::text("v=spf1 -all", 1), TestRecord::text(&text("plain"), 1)]);
        let ownership = [typed.clone(), format!("owner-{HOST}"), HOST.to_owned()].into();
        let query = ZoneQuery { ownership, ..query(1) };
        let reading = reader(vec![first.address, second.address]).read(&query, 7).await.expect("a reading");
        let owners: Vec<_> = reading.owners.iter().map(|found| (found.name.as_str(), found.owner.as_str())).collect();
        let plain = format!("owner-{HOST}");
        assert_eq!(owners, [(typed.as_str(), "left"), (&typed, "old"), (&plain, "plain")]);
    }

    #[tokio::test]
    async fn servers_are_asked_each_and_their_answers_counted_by_record() {
        let (first, second) = (TestZone::start().await, TestZone::start().await);
        for zone in [&first, &second] {
            zone.set(HOST, [TestRecord::cname("sockjs.old.example.com", 20), TestRecord::cname(TARGET, 20)]);
            zone.set(TARGET, [TestRecord::address(1)]);
        }
        second.set(HOST, [TestRecord::cname("SOCKJS.old.example.com", 20)]);
        let reading = reader(vec![first.address, second.address]).read(&query(200), 7).await.expect("a reading");
        let counts: Vec<_> = reading
            .servers
            .iter()
            .map(|server| (server.queries, server.target, server.others, server.failed))
            .collect();
        assert_eq!(counts, [(200, 100, 100, 0), (200, 0, 200, 0)]);
        assert!(reading.is_target_known && reading.servers[0].ttls == [60].into(), "{reading:?}");
        first.set(HOST, [TestRecord::address(1)]);
        second.set(HOST, []);
        let reading = reader(vec![first.address, second.address]).read(&query(3), 7).await.expect("a reading");
        assert_eq!((reading.servers[0].addresses, reading.servers[1].missing), (3, 3));
    }

    #[tokio::test]
    async fn lost_datagrams_are_sent_again_and_a_silent_or_lame_server_has_failed() {
        let zone = TestZone::start().await;
        zone.set(HOST, [TestRecord::cname(TARGET, 20)]);
        zone.lose_every(5);
        let mute = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let lame = TestZone::start().await;
        lame.set_authoritative(false);
        lame.set(HOST, [TestRecord::cname(TARGET, 20)]);
        let servers = vec![zone.address, mute.local_addr().expect("an address"), lame.address];
        let reading = reader(servers).read(&query(8), 7).await.expect("a reading");
        let counts: Vec<_> = reading.servers.iter().map(|server| (server.target, server.failed)).collect();
        assert_eq!(counts, [(8, 0), (0, 8), (0, 8)]);
    }
}
