//! A client of HTTP/1.1 that keeps its connection where the server does: little enough not to disturb what it measures.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bounds the wait for one response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bounds the head and the body of a response.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// One client connection, which reconnects when the server closes it.
pub struct HttpConnection {
    address: SocketAddr,
    stream: TcpStream,
    /// Bytes that were read and not yet parsed.
    buffered: Vec<u8>,
}

/// Parsed head of a response.
#[derive(Debug, PartialEq, Eq)]
struct ResponseHead {
    status: u16,
    /// Length of the body; `None` when it is chunked.
    length: Option<usize>,
    /// Whether the server closes the connection after this response.
    closes_connection: bool,
}

impl HttpConnection {
    /// Opens a connection without Nagle's delay.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = timeout(RESPONSE_TIMEOUT, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream, buffered: Vec::new() })
    }

    /// Sends a request and reads the whole response: its status and its body, chunks undecoded.
    pub async fn fetch_response(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        self.send(method, target, body).await?;
        let (head, body) = timeout(RESPONSE_TIMEOUT, async {
            let head = self.read_head().await?;
            let length = match head.length {
                Some(length) => length,
                None => self.read_until(b"0\r\n\r\n").await?,
            };
            while self.buffered.len() < length {
                self.read_more().await?;
            }
            Ok::<_, io::Error>((head, self.buffered.drain(..length).collect()))
        })
        .await??;
        if head.closes_connection {
            // Reconnects at once, so that the next request does not pay for it.
            *self = Self::open(self.address).await?;
        }
        Ok((head.status, body))
    }

    /// Sends a request without reading the response.
    pub async fn send(&mut self, method: &str, target: &str, body: &[u8]) -> io::Result<()> {
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        timeout(RESPONSE_TIMEOUT, self.stream.write_all(&request)).await?
    }

    /// Reads a response up to and including these bytes; the response may be endless.
    pub async fn read_through(&mut self, end: &[u8]) -> io::Result<Vec<u8>> {
        let end = timeout(RESPONSE_TIMEOUT, self.read_until(end)).await??;
        Ok(self.buffered.drain(..end).collect())
    }

    async fn read_head(&mut self) -> io::Result<ResponseHead> {
        let end = self.read_until(b"\r\n\r\n").await?;
        let head =
            parse_head(&self.buffered[..end]).ok_or_else(|| malformed_response("a response that is not HTTP"))?;
        self.buffered.drain(..end);
        Ok(head)
    }

    /// Reads until these bytes are buffered, and returns their end.
    async fn read_until(&mut self, end: &[u8]) -> io::Result<usize> {
        loop {
            if let Some(at) = find_bytes(&self.buffered, end) {
                return Ok(at + end.len());
            }
            self.read_more().await?;
        }
    }

    async fn read_more(&mut self) -> io::Result<()> {
        if self.buffered.len() > RESPONSE_BYTES_MAX {
            return Err(malformed_response("a response that is too large"));
        }
        match self.stream.read_buf(&mut self.buffered).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Position of the first occurrence of a text in another.
pub fn find_bytes(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn malformed_response(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn parse_head(head: &[u8]) -> Option<ResponseHead> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let (mut length, mut closes_connection) = (Some(0), false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().ok().filter(|length| *length <= RESPONSE_BYTES_MAX)?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            length = None;
        } else if name.eq_ignore_ascii_case("connection") {
            closes_connection = value.trim().eq_ignore_ascii_case("close");
        }
    }
    Some(ResponseHead { status, length, closes_connection })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_heads_are_parsed_and_others_are_refused() {
        let head = |status, length, last| Some(ResponseHead { status, length, closes_connection: last });
        for (name, text, expected) in [
            ("a length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", head(200, Some(2), false)),
            ("chunks", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", head(200, None, false)),
            ("neither", "HTTP/1.1 204 No Content\r\n\r\n", head(204, Some(0), false)),
            ("the last", "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", head(200, Some(0), true)),
            ("no number", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", None),
            ("huge", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", None),
            ("not HTTP", "SSH-2.0\r\n\r\n", None),
        ] {
            assert_eq!(parse_head(text.as_bytes()), expected, "{name}");
        }
        assert_eq!((find_bytes(b"abcabc", b"ca"), find_bytes(b"ab", b"abc")), (Some(2), None));
    }
}
