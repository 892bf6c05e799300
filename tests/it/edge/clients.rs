//! Clients of an edge, on the wire: over WebSocket, and over the HTTP fallbacks as pusher-js has them.

use std::ops::{Deref, DerefMut};

use super::*;

/// A WebSocket of a client.
pub struct Wire {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// For the message of a failure.
    last: Option<Message>,
}

impl Wire {
    pub fn new(socket: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self { socket, last: None }
    }
}

impl Deref for Wire {
    type Target = WebSocketStream<MaybeTlsStream<TcpStream>>;

    fn deref(&self) -> &Self::Target {
        &self.socket
    }
}

impl DerefMut for Wire {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.socket
    }
}

pub async fn dial(edge: SocketAddr, path: &str) -> Wire {
    Wire::new(tokio_tungstenite::connect_async(format!("ws://{edge}{path}")).await.expect("a socket").0)
}

/// The next message. A failure names the awaited one, and the one before.
pub async fn received(wire: &mut Wire, awaited: &str) -> Message {
    match timeout(WAIT_TIMEOUT, wire.socket.next()).await {
        Ok(Some(Ok(message))) => wire.last.insert(message).clone(),
        failed => panic!("no {awaited} within {WAIT_TIMEOUT:?}, but {failed:?}; {}", describe_last(wire.last.as_ref())),
    }
}

pub fn auth(socket: &str, channel: &str, channel_data: Option<&str>) -> String {
    let message = signature::channel_message(socket, channel, channel_data);
    format!("key1:{}", signature::sign_message(&Secret::new("secret1"), message.as_bytes()))
}

pub fn subscribe(socket: &str, channel: &str, user: Option<&str>) -> Value {
    let data = user.map(|user| json!({ "user_id": user, "user_info": { "name": user } }).to_string());
    let auth = auth(socket, channel, data.as_deref());
    let mut message = json!({ "event": "pusher:subscribe", "data": { "channel": channel, "auth": auth } });
    if let Some(data) = data {
        message["data"]["channel_data"] = data.into();
    }
    message
}

pub fn client_event(channel: &str, data: &Value) -> Value {
    json!({ "event": "client-said", "channel": channel, "data": data })
}

/// A client over WebSocket.
pub struct Ws {
    pub socket: Wire,
    pub id: String,
}

impl Ws {
    pub async fn open(address: SocketAddr, path: &str) -> Self {
        Self { socket: dial(address, path).await, id: String::new() }
    }

    pub async fn greeted(&mut self) {
        let greeting = self.next().await;
        assert_eq!((greeting.event.as_str(), &greeting.data["activity_timeout"]), (ESTABLISHED, &json!(55)));
        greeting.data["socket_id"].as_str().expect("an id").clone_into(&mut self.id);
    }

    pub async fn send(&mut self, message: &Value) {
        self.text(&message.to_string()).await;
    }

    pub async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    pub async fn message(&mut self, awaited: &str) -> ServerMessage {
        let message = received(&mut self.socket, awaited).await;
        ServerMessage::parse(message.to_text().expect("text")).expect("a frame")
    }

    pub async fn next(&mut self) -> ServerMessage {
        self.message("frame").await
    }

    pub async fn expect(&mut self, event: &str) -> ServerMessage {
        let found = self.message(event).await;
        assert_eq!(found.event, event, "{found:?}");
        found
    }

    pub async fn subscribe(&mut self, channel: &str, user: Option<&str>) -> Value {
        self.send(&subscribe(&self.id, channel, user)).await;
        self.expect(SUBSCRIBED).await.data
    }

    /// Nothing else is on its way, and the connection still serves.
    pub async fn still_serves(&mut self) {
        self.send(&json!({ "event": "pusher:ping", "data": {} })).await;
        self.expect("pusher:pong").await;
    }

    pub async fn closed(&mut self) -> u16 {
        match received(&mut self.socket, "close frame").await {
            Message::Close(Some(frame)) => frame.code.into(),
            other => panic!("not a close frame: {other:?}"),
        }
    }
}

pub const ESTABLISHED: &str = "pusher:connection_established";
pub const SUBSCRIBED: &str = "pusher_internal:subscription_succeeded";

/// A client over one of the fallbacks, as pusher-js does it.
pub struct Xhr {
    http: reqwest::Client,
    pub base: String,
    path: &'static str,
    answer: Option<reqwest::Response>,
    pub unread: String,
    pub units: usize,
    /// For the message of a failure.
    last: Option<FallbackFrame>,
}

impl Xhr {
    pub fn new(edge: &Edge, key: &str, session: &str, path: &'static str) -> Self {
        let base = edge.url(&format!("/pusher/app/{key}/7/{session}"));
        Self { http: edge.http.clone(), base, path, answer: None, unread: String::new(), units: 0, last: None }
    }

    pub async fn receive(&mut self) {
        let url = format!("{}/{}?protocol=7&client=js&version=8.6.0&t=1&n=1", self.base, self.path);
        let answer = within(WAIT_TIMEOUT, &url, self.http.post(&url).send()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let header = |name: &str| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header("content-type"), "application/javascript; charset=UTF-8");
        assert_eq!(header("cache-control"), "no-store, no-transform");
        assert_eq!(header("x-accel-buffering"), "no");
        assert_eq!(header("access-control-allow-origin"), "*");
        (self.answer, self.units) = (Some(answer), 0);
        self.unread.clear();
    }

    /// Gives the answer up, as pusher-js does with a long one.
    pub fn abort(&mut self) {
        self.answer = None;
        self.unread.clear();
    }

    pub async fn frame(&mut self) -> FallbackFrame {
        self.awaited_frame("frame").await
    }

    /// The next frame. A failure names the awaited one, and the one before.
    pub async fn awaited_frame(&mut self, awaited: &str) -> FallbackFrame {
        loop {
            if let Some(end) = self.unread.find('\n') {
                let line: String = self.unread.drain(..=end).collect();
                let frame = FallbackFrame::parse(line.trim_end()).expect("a frame");
                return self.last.insert(frame).clone();
            }
            let Some(answer) = &mut self.answer else {
                self.receive().await;
                continue;
            };
            match timeout(WAIT_TIMEOUT, answer.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let text = std::str::from_utf8(&chunk).expect("text");
                    self.units += text.encode_utf16().count();
                    self.unread.push_str(text);
                }
                Ok(Ok(None)) if self.path == "xhr" => self.answer = None,
                failed => {
                    let last = describe_last(self.last.as_ref());
                    panic!("no {awaited} within {WAIT_TIMEOUT:?} over {}, but {failed:?}; {last}", self.path)
                }
            }
        }
    }

    pub async fn messages(&mut self) -> Vec<ServerMessage> {
        self.awaited_messages("messages").await
    }

    pub async fn awaited_messages(&mut self, awaited: &str) -> Vec<ServerMessage> {
        match self.awaited_frame(awaited).await {
            FallbackFrame::Messages(texts) => {
                texts.iter().map(|text| ServerMessage::parse(text).expect("a frame")).collect()
            }
            other => panic!("not messages: {other:?}"),
        }
    }

    pub async fn expect(&mut self, event: &str) -> ServerMessage {
        let mut messages = self.awaited_messages(event).await;
        assert_eq!(messages.len(), 1, "{messages:?}");
        let found = messages.remove(0);
        assert_eq!(found.event, event, "{found:?}");
        found
    }

    pub async fn greeted(&mut self) -> String {
        assert_eq!(self.frame().await, FallbackFrame::Open);
        self.expect(ESTABLISHED).await.data["socket_id"].as_str().expect("an id").to_owned()
    }

    pub async fn send_raw(&self, body: &str) -> reqwest::StatusCode {
        let request = self.http.post(format!("{}/xhr_send?t=1&n=2", self.base));
        let answer = request.header("content-type", "application/json").body(body.to_owned()).send().await;
        answer.expect("an answer").status()
    }

    pub async fn send(&self, message: &Value) {
        assert_eq!(self.send_raw(&json!([message.to_string()]).to_string()).await, 204);
    }
}
