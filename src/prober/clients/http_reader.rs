//! The receiving half of a session over HTTP, of whatever dialect: answers, their lines, the frames in them.

use std::time::Duration;

use futures::StreamExt;
use reqwest::RequestBuilder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::link::{FRAME_QUEUE_LEN, InboundFrame, STEP_TIMEOUT};
use super::link::{HttpSession, SendError};
use crate::protocol::fallback::FallbackFrame;

/// A poll is answered by the server's heartbeat at the latest, which is every 25 s.
pub(in crate::prober) const POLL_TIMEOUT: Duration = Duration::from_mins(1);

/// Most bytes of an unfinished frame.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The form of a transport's responses.
#[derive(Clone, Copy)]
pub(in crate::prober) struct HttpDialect {
    /// The request that is answered with frames.
    pub request: fn(&HttpSession) -> RequestBuilder,
    /// The frame in a line; `None` for what stands between frames.
    pub unwrap_line: fn(&str) -> Option<String>,
    /// Whether the client asks again when an answer has ended; else the session has ended with it.
    pub polls_again: bool,
    /// Whether the client answers each heartbeat.
    pub echoes_heartbeats: bool,
}

/// A line that is a frame, unless it is the prelude, which is one long heartbeat.
pub(in crate::prober) fn skip_prelude(line: &str) -> Option<String> {
    (!line.starts_with("hh")).then(|| line.to_owned())
}

/// Receives until the session ends or the task is aborted; returns once the session is open.
pub(in crate::prober) async fn receive_frames(
    session: HttpSession,
    dialect: HttpDialect,
) -> Result<(mpsc::Receiver<InboundFrame>, JoinHandle<()>), String> {
    let (arrived, inbound) = mpsc::channel(FRAME_QUEUE_LEN);
    let (opened, first) = oneshot::channel();
    let task = tokio::spawn(ResponseReader { session, dialect, arrived, opened: Some(opened) }.run());
    match wait_until_open(first).await {
        Ok(()) => Ok((inbound, task)),
        Err(error) => {
            task.abort();
            Err(error)
        }
    }
}

/// Waits for the open frame.
async fn wait_until_open(first: oneshot::Receiver<Result<(), String>>) -> Result<(), String> {
    match tokio::time::timeout(STEP_TIMEOUT, first).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(format!("did not open the session: {error}")),
        Ok(Err(_)) | Err(_) => {
            Err(format!("sent no open frame in {} s: is there a proxy that buffers?", STEP_TIMEOUT.as_secs()))
        }
    }
}

struct ResponseReader {
    session: HttpSession,
    dialect: HttpDialect,
    arrived: mpsc::Sender<InboundFrame>,
    opened: Option<oneshot::Sender<Result<(), String>>>,
}

impl ResponseReader {
    /// Receives until the session ends, one answer after another.
    async fn run(mut self) {
        loop {
            match self.receive_response().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    match self.opened.take() {
                        // Nobody waits any more when the journey was cut.
                        Some(opened) => drop(opened.send(Err(error))),
                        None => drop(self.arrived.send(InboundFrame::Closed(error)).await),
                    }
                    return;
                }
            }
        }
    }

    /// One answer; whether there is to be another.
    async fn receive_response(&mut self) -> Result<bool, String> {
        let request = (self.dialect.request)(&self.session);
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()));
        }
        let mut lines = LineBuffer::default();
        let mut body = answer.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| error.without_url().to_string())?;
            for line in lines.push(&chunk)? {
                if !self.accept_line(&line).await? {
                    return Ok(false);
                }
            }
        }
        if self.dialect.polls_again { Ok(true) } else { Err("the streaming answer ended".to_owned()) }
    }

    /// One line; whether the session goes on.
    async fn accept_line(&mut self, line: &str) -> Result<bool, String> {
        let Some(text) = (self.dialect.unwrap_line)(line) else { return Ok(true) };
        match FallbackFrame::parse(&text) {
            Some(FallbackFrame::Open) => match self.opened.take() {
                Some(opened) => {
                    // As above.
                    let _ = opened.send(Ok(()));
                    Ok(true)
                }
                None => Err("the server lost the session: it opened it again".to_owned()),
            },
            Some(FallbackFrame::Heartbeat) if !self.dialect.echoes_heartbeats => Ok(true),
            Some(FallbackFrame::Heartbeat) => {
                self.session.post_message("[]").await.map(|()| true).map_err(|error| match error {
                    SendError::UnknownSession => "the session is unknown".to_owned(),
                    SendError::Refused(status) => format!("a heartbeat was refused with status {status}"),
                    SendError::Other(error) => error,
                })
            }
            Some(FallbackFrame::Messages(messages)) => {
                for message in messages {
                    if self.arrived.send(InboundFrame::Message(message)).await.is_err() {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Some(FallbackFrame::Close(code, reason)) => Err(format!("{code} {reason}")),
            None => Err(describe_invalid_frame(&text)),
        }
    }
}

/// Describes text that is not a frame.
pub(in crate::prober) fn describe_invalid_frame(text: &str) -> String {
    format!("sent `{}`, which is no frame", text.chars().take(80).collect::<String>())
}

/// Puts lines together from chunks that end anywhere.
#[derive(Default)]
struct LineBuffer {
    rest: Vec<u8>,
}

impl LineBuffer {
    fn push(&mut self, chunk: &[u8]) -> Result<Vec<String>, String> {
        self.rest.extend_from_slice(chunk);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let text = std::str::from_utf8(&line[..end]).map_err(|_| "sent a frame that is not UTF-8".to_owned())?;
            if !text.is_empty() {
                lines.push(text.to_owned());
            }
        }
        if self.rest.len() > FRAME_BYTES_MAX {
            return Err(format!("sent a frame of more than {FRAME_BYTES_MAX} bytes"));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_chunks_end() {
        let text = "o\na[\"ü\"]\n\nh\n".as_bytes();
        for size in 1..=text.len() {
            let mut lines = LineBuffer::default();
            let found: Vec<String> = text.chunks(size).flat_map(|chunk| lines.push(chunk).expect("lines")).collect();
            assert_eq!(found, ["o", "a[\"ü\"]", "h"], "chunks of {size}");
        }
        assert!(LineBuffer::default().push(&vec![b'x'; FRAME_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_prelude_is_no_frame() {
        for (line, frame) in [("o", Some("o")), ("h", Some("h")), (&"h".repeat(2048), None)] {
            assert_eq!(skip_prelude(line).as_deref(), frame, "{line}");
        }
    }
}
