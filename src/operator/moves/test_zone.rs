//! An authoritative server of one zone for tests: over real UDP, with answers by weight in exact shares.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;

use crate::process::locks::lock_unpoisoned;

/// TTL of every record in seconds.
const RECORD_TTL_SECONDS: u32 = 60;

/// One record of a host, with its weight.
#[derive(Clone, Debug)]
pub struct TestRecord {
    data: RData,
    weight: u32,
}

impl TestRecord {
    /// A weighted CNAME.
    pub fn cname(target: &str, weight: u32) -> Self {
        Self { data: RData::CNAME(CNAME(absolute(target))), weight }
    }

    /// A weighted text.
    pub fn text(text: &str, weight: u32) -> Self {
        Self { data: RData::TXT(TXT::new(vec![text.to_owned()])), weight }
    }

    /// An address of loopback.
    pub fn address(weight: u32) -> Self {
        Self { data: RData::A(A::new(127, 0, 0, 1)), weight }
    }
}

#[derive(Debug)]
struct ZoneState {
    records: HashMap<String, Vec<TestRecord>>,
    /// Questions so far, by host.
    asked: HashMap<String, u32>,
    received: u32,
    lost_every: u32,
    is_authoritative: bool,
}

/// A running server; it ends with the test.
#[derive(Clone)]
pub struct TestZone {
    pub address: SocketAddr,
    state: Arc<Mutex<ZoneState>>,
}

fn absolute(name: &str) -> Name {
    Name::from_str(&format!("{}.", name.trim_end_matches('.'))).expect("a name")
}

impl TestZone {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("an address");
        let state = ZoneState {
            records: HashMap::new(),
            asked: HashMap::new(),
            received: 0,
            lost_every: 0,
            is_authoritative: true,
        };
        let zone = Self { address, state: Arc::new(Mutex::new(state)) };
        let serving = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1232];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
                if let Some(answer) = serving.answer(question) {
                    let _ = socket.send_to(&answer.to_vec().expect("an answer"), from).await;
                }
            }
        });
        zone
    }

    /// Replaces the records of a host.
    pub fn set(&self, host: &str, records: impl IntoIterator<Item = TestRecord>) {
        self.lock().records.insert(host.to_owned(), records.into_iter().collect());
    }

    /// Drops one of so many datagrams.
    pub fn lose_every(&self, count: u32) {
        self.lock().lost_every = count;
    }

    pub fn set_authoritative(&self, is_authoritative: bool) {
        self.lock().is_authoritative = is_authoritative;
    }

    fn lock(&self) -> MutexGuard<'_, ZoneState> {
        lock_unpoisoned(&self.state)
    }

    /// Answers with one record, as Route 53 does: by weight, and each alike where all weights are 0.
    fn answer(&self, question: Message) -> Option<Message> {
        let mut state = self.lock();
        state.received += 1;
        if state.lost_every > 0 && state.received.is_multiple_of(state.lost_every) {
            return None;
        }
        let name = question.queries.first()?.name().clone();
        let host = name.to_ascii().trim_end_matches('.').to_owned();
        let records = state.records.get(&host).cloned().unwrap_or_default();
        let sum: u32 = records.iter().map(|record| record.weight).sum();
        let weight = |record: &TestRecord| if sum == 0 { 1 } else { record.weight };
        let whole: u32 = records.iter().map(weight).sum();
        let asked = state.asked.entry(host).or_default();
        let mut place = if whole == 0 { 0 } else { *asked % whole };
        *asked += 1;
        let found = records.iter().find(|record| {
            let is_here = place < weight(record);
            place = place.saturating_sub(weight(record));
            is_here
        });
        let mut answer = question.into_response();
        answer.metadata.authoritative = state.is_authoritative;
        match found {
            Some(found) => {
                answer.add_answer(Record::from_rdata(name, RECORD_TTL_SECONDS, found.data.clone()));
            }
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        Some(answer)
    }
}
