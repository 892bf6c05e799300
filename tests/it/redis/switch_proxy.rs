//! A proxy before Redis, as a name is: it leads new connections to another server, freezes connections of subscribers
//! without closing them, and lets commands be late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// The proxy, ended with this value.
pub struct SwitchProxy {
    pub port: u16,
    target: Arc<AtomicU16>,
    /// Whether subscribers that are connected are frozen; each has the flag of its time.
    frozen: Arc<std::sync::Mutex<Arc<AtomicBool>>>,
    command_delay_ms: Arc<AtomicU64>,
    _accepting: AbortOnDropHandle<()>,
}

impl SwitchProxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let target = Arc::new(AtomicU16::new(target));
        let frozen = Arc::new(std::sync::Mutex::new(Arc::new(AtomicBool::new(false))));
        let command_delay_ms = Arc::new(AtomicU64::new(0));
        let (to, flags, delay) = (target.clone(), frozen.clone(), command_delay_ms.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let flag = flags.lock().expect("not poisoned").clone();
                tokio::spawn(forward(client, to.load(Ordering::Relaxed), flag, delay.clone()));
            }
        });
        Self { port, target, frozen, command_delay_ms, _accepting: AbortOnDropHandle::new(accepting) }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Leads connections that begin from now on to another server.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }

    /// Freezes the connections of subscribers that are open now; later ones work.
    pub fn freeze_subscribers(&self) {
        let flag = std::mem::take(&mut *self.frozen.lock().expect("not poisoned"));
        flag.store(true, Ordering::Relaxed);
    }

    /// Lets every command from now on arrive so much later; those on their way keep their time.
    pub fn delay_commands(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).expect("a short time");
        self.command_delay_ms.store(delay, Ordering::Relaxed);
    }
}

/// Writes bytes when they are due.
async fn write_late(mut server: OwnedWriteHalf, mut delayed: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>) {
    while let Some((due, bytes)) = delayed.recv().await {
        sleep_until(due).await;
        if server.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn forward(mut client: TcpStream, port: u16, is_frozen: Arc<AtomicBool>, delay_ms: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut answers, commands) = server.into_split();
    let (late, delayed) = mpsc::unbounded_channel();
    let _writing = AbortOnDropHandle::new(tokio::spawn(write_late(commands, delayed)));
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut subscribes = false;
    loop {
        let (is_up, read) = tokio::select! {
            read = client.read(&mut up) => (true, read),
            read = answers.read(&mut down) => (false, read),
        };
        let Some(length) = read.ok().filter(|length| *length > 0) else { return };
        let bytes = if is_up { &up[..length] } else { &down[..length] };
        subscribes |= is_up && bytes.windows(9).any(|word| word == b"SUBSCRIBE");
        if subscribes && is_frozen.load(Ordering::Relaxed) {
            // Until the test ends, as a peer does whose packets are dropped.
            std::future::pending::<()>().await;
        }
        let is_written = if is_up {
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            late.send((due, bytes.to_vec())).is_ok()
        } else {
            client.write_all(bytes).await.is_ok()
        };
        if !is_written {
            return;
        }
    }
}
