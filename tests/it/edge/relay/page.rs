//! Sessions of pusher-js over the fallbacks, whose requests may each reach another edge.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use reqwest::StatusCode;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

/// A client that opens a connection for each request.
pub fn once() -> reqwest::Client {
    realtime_operator::process::install_tls();
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client")
}

/// A session as pusher-js has one: its requests are numbered over the page.
#[derive(Clone)]
pub struct Page {
    http: reqwest::Client,
    /// The beginning of the session's paths.
    base: String,
    pub transport: &'static str,
    number: Arc<AtomicU64>,
}

/// The frames that a session's client received.
pub struct Heard {
    pub frames: mpsc::UnboundedReceiver<FallbackFrame>,
    waiting: std::collections::VecDeque<String>,
    streams: bool,
    /// For the message of a failure.
    last: Option<FallbackFrame>,
    pub opened_again: Arc<AtomicUsize>,
    listening: JoinHandle<()>,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Page {
    pub fn new(transport: &'static str, address: SocketAddr, session: &str) -> Self {
        let base = format!("http://{address}/pusher/app/key1/7/{session}");
        Self { http: once(), base, transport, number: Arc::new(AtomicU64::new(1)) }
    }

    pub fn at(&self, address: SocketAddr) -> Self {
        let (_, path) = self.base.split_once("/pusher").expect("a path");
        Self { base: format!("http://{address}/pusher{path}"), ..self.clone() }
    }

    pub fn url(&self, part: &str) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        format!("{}/{part}?protocol=7&client=js&version=8.6.0&t=1&n={number}", self.base)
    }

    /// Sends on its way with the next number.
    pub fn send(&self, message: &Value) -> impl Future<Output = StatusCode> + use<> {
        let body = json!([message.to_string()]).to_string();
        let request = self.http.post(self.url("xhr_send")).body(body);
        async move { request.send().await.expect("an answer").status() }
    }

    /// Receives as pusher-js does: the first time at `first`, then here, again and again.
    pub fn listen(&self, first: SocketAddr) -> Heard {
        let (sender, frames) = mpsc::unbounded_channel();
        let opened_again = Arc::new(AtomicUsize::new(0));
        let (page, count) = (self.clone(), opened_again.clone());
        let listening = tokio::spawn(async move {
            let mut opened = 0;
            loop {
                let at = if opened == 0 { page.at(first) } else { page.clone() };
                let ended = if page.transport == "xhr_streaming" {
                    at.stream(&sender, opened, &count).await
                } else {
                    count.store(opened, Ordering::Relaxed);
                    at.poll(&sender).await
                };
                if ended {
                    return;
                }
                opened += 1;
            }
        });
        let streams = self.transport == "xhr_streaming";
        Heard { frames, waiting: std::collections::VecDeque::new(), streams, last: None, opened_again, listening }
    }

    /// One answer of a stream, given up when it has 256 KiB or, the first time, when the session is there.
    async fn stream(&self, sender: &mpsc::UnboundedSender<FallbackFrame>, opened: usize, count: &AtomicUsize) -> bool {
        let mut answer = self.http.post(self.url("xhr_streaming")).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        count.store(opened, Ordering::Relaxed);
        let first = opened == 0;
        let (mut text, mut units) = (Vec::new(), 0);
        // An answer that ends by itself is the end of the session for pusher-js.
        while let Ok(Some(part)) = answer.chunk().await {
            text.extend_from_slice(&part);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8(text.drain(..=end).collect()).expect("text");
                units += line.encode_utf16().count();
                let frame = FallbackFrame::parse(line.trim_end()).expect("a frame");
                let over = matches!(frame, FallbackFrame::Close(..));
                let there = first && matches!(frame, FallbackFrame::Messages(_));
                if sender.send(frame).is_err() || over {
                    return true;
                }
                if there || units > STREAM_LIMIT_UNITS {
                    return false;
                }
            }
        }
        let _ = sender.send(FallbackFrame::Close(1006, "cut".to_owned()));
        true
    }

    async fn poll(&self, sender: &mpsc::UnboundedSender<FallbackFrame>) -> bool {
        let answer = match self.http.post(self.url("xhr")).send().await {
            Ok(answer) if answer.status() == StatusCode::OK => answer.text().await,
            Ok(answer) => panic!("a poll was answered with {}", answer.status()),
            Err(error) => Err(error),
        };
        let Ok(text) = answer else {
            let _ = sender.send(FallbackFrame::Close(1006, "cut".to_owned()));
            return true;
        };
        for line in text.lines() {
            let frame = FallbackFrame::parse(line).expect("a frame");
            let over = matches!(frame, FallbackFrame::Close(..));
            if sender.send(frame).is_err() || over {
                return true;
            }
        }
        false
    }
}

impl Heard {
    pub async fn frame(&mut self) -> FallbackFrame {
        match timeout(WAIT_TIMEOUT, self.frames.recv()).await {
            Ok(Some(frame)) => self.last.insert(frame).clone(),
            failed => {
                let (opened_again, last) =
                    (self.opened_again.load(Ordering::Relaxed), describe_last(self.last.as_ref()));
                panic!("no frame within {WAIT_TIMEOUT:?}, but {failed:?}; opened again {opened_again} times; {last}")
            }
        }
    }

    /// Waits until the client has opened another answer after the first.
    pub async fn wait_until_reopened(&self) {
        let opened_again = async || self.opened_again.load(Ordering::Relaxed);
        eventually("a second answer", opened_again, |opened_again| *opened_again > 0).await;
    }

    /// The next message; heartbeats are passed over.
    pub async fn message(&mut self) -> Value {
        loop {
            if let Some(text) = self.waiting.pop_front() {
                return serde_json::from_str(&text).expect("json");
            }
            match self.frame().await {
                FallbackFrame::Messages(messages) => self.waiting.extend(messages),
                FallbackFrame::Heartbeat => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until the session is there.
    pub async fn socket(&mut self) -> String {
        assert_eq!(self.frame().await, FallbackFrame::Open);
        let established = self.message().await;
        if self.streams {
            // The first answer is dropped, and a frame on its way in it would be lost.
            self.wait_until_reopened().await;
        }
        let data: Value = serde_json::from_str(established["data"].as_str().expect("data")).expect("json");
        data["socket_id"].as_str().expect("an id").to_owned()
    }

    pub async fn subscribed(&mut self) {
        let message = self.message().await;
        assert_eq!(message["event"], "pusher_internal:subscription_succeeded", "{message}");
    }
}
