//! The ledger of every pipeline test: at each hop of a process, all events and deliveries are accounted for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use realtime_operator::protocol::admin::FlowReport;
use realtime_operator::protocol::ledger_balance::find_imbalance;
use tokio::time::sleep;

use crate::waiting::eventually;

/// Interval of the readings; an event between two counts is in one of them at most.
const READING_INTERVAL: Duration = Duration::from_millis(300);

/// Consecutive readings of one imbalance after which it counts.
const READINGS_MAX: usize = 5;

/// Imbalances of the processes that are followed. Dropped, it fails the test that had one.
#[derive(Default)]
pub struct LedgerWatch(Arc<Mutex<Vec<String>>>);

impl LedgerWatch {
    /// Reads the ledger of a process until it ends.
    pub fn follow_process(&self, admin: SocketAddr, token: &'static str) {
        let found = self.0.clone();
        tokio::spawn(async move {
            let (mut last, mut readings) = (None, 0);
            while let Some(flow) = read_flow(admin, token).await {
                let flows = std::slice::from_ref(&flow);
                let imbalance = find_imbalance(flows, flows).map(|it| it.to_string());
                readings = if imbalance == last { readings + 1 } else { 1 };
                if let Some(imbalance) = imbalance.clone().filter(|_| readings == READINGS_MAX) {
                    found.lock().expect("not poisoned").push(format!("{imbalance}: {flow:?}"));
                }
                last = imbalance;
                sleep(READING_INTERVAL).await;
            }
        });
    }
}

impl Drop for LedgerWatch {
    fn drop(&mut self) {
        let found = self.0.lock().expect("not poisoned");
        assert!(std::thread::panicking() || found.is_empty(), "{}", found.join("\n"));
    }
}

/// The flow of a process; `None` once it has ended.
pub async fn read_flow(admin: SocketAddr, token: &str) -> Option<FlowReport> {
    realtime_operator::process::install_tls();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let request = client.get(format!("http://{admin}/flow")).bearer_auth(token);
    let text = request.send().await.ok()?.text().await.ok()?;
    Some(serde_json::from_str(&text).expect("a flow"))
}

/// Waits until the ledgers of these processes balance.
pub async fn wait_for_balance(processes: &[(SocketAddr, &str)]) {
    let read = async || {
        let mut flows = Vec::new();
        for (admin, token) in processes {
            flows.extend(read_flow(*admin, token).await);
        }
        (find_imbalance(&flows, &flows), flows)
    };
    eventually("a ledger that balances", read, |(imbalance, _)| imbalance.is_none()).await;
}
