//! A WebSocket client with as little work as possible: thousands of them run beside the server that they measure.
//!
//! It reads with a buffer on the stack, copies only frames that a read cut apart, and masks with zeros, which is a valid
//! mask.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::find_bytes;

/// Bounds the handshake, one write, and the close handshake.
const SOCKET_IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that one read takes from a socket.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// Bounds the length of a received frame.
const FRAME_BYTES_MAX: usize = 4 << 20;

const TEXT_OPCODE: u8 = 1;
const CLOSE_OPCODE: u8 = 8;
const PING_OPCODE: u8 = 9;
const PONG_OPCODE: u8 = 10;

/// Marks a length that is in the next two bytes.
const LENGTH_16_BIT_MARK: u8 = 0x7e;

/// Marks a length that is in the next eight bytes.
const LENGTH_64_BIT_MARK: u8 = 0x7f;

/// Bounds the length of Pusher's ping, however it is spelled.
const PROTOCOL_PING_BYTES_MAX: usize = 64;

/// The answer to Pusher's ping.
const PROTOCOL_PONG: &[u8] = br#"{"event":"pusher:pong","data":{}}"#;

/// One WebSocket connection of a client.
pub struct ClientSocket {
    stream: TcpStream,
    /// Start of a frame whose end has not been read yet.
    partial_frame: Vec<u8>,
}

impl ClientSocket {
    /// Connects, and performs the WebSocket handshake.
    pub async fn open(address: SocketAddr, target: &str) -> io::Result<Self> {
        timeout(SOCKET_IO_TIMEOUT, Self::connect_and_upgrade(address, target)).await?
    }

    async fn connect_and_upgrade(address: SocketAddr, target: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut rest = Vec::with_capacity(512);
        loop {
            if stream.read_buf(&mut rest).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = find_bytes(&rest, b"\r\n\r\n") {
                if !rest.starts_with(b"HTTP/1.1 101") {
                    let status = String::from_utf8_lossy(&rest[..end.min(64)]).into_owned();
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, status));
                }
                return Ok(Self { stream, partial_frame: rest.split_off(end + 4) });
            }
        }
    }

    /// Sends one text frame.
    pub async fn send(&mut self, text: &str) -> io::Result<()> {
        self.write(TEXT_OPCODE, text.as_bytes()).await
    }

    /// Waits for data, and calls `each` with every text that it completes. Pings are answered, Pusher's too.
    pub async fn read(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let answers = poll_fn(|context| self.poll(context, &mut each)).await?;
        for answer in answers {
            self.write_frame(&answer).await?;
        }
        Ok(())
    }

    /// Reads until `wanted` finds its value in a text; other texts are ignored.
    pub async fn wait_for<T>(&mut self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut found = None;
        let reading = async {
            loop {
                // Frames that came with the handshake are buffered already.
                if !self.partial_frame.is_empty() {
                    self.parse_received(&[], &mut |text| found = found.take().or_else(|| wanted(text)))?;
                }
                if let Some(found) = found.take() {
                    return Ok(found);
                }
                self.read(|text| found = found.take().or_else(|| wanted(text))).await?;
                if let Some(found) = found.take() {
                    return Ok(found);
                }
            }
        };
        timeout(SOCKET_IO_TIMEOUT, reading).await?
    }

    /// Performs the close handshake.
    pub async fn close_gracefully(mut self) {
        let handshake = async {
            self.write(CLOSE_OPCODE, &1000_u16.to_be_bytes()).await?;
            while self.read(|_| {}).await.is_ok() {}
            Ok::<_, io::Error>(())
        };
        // The socket is closed even if the handshake fails.
        let _ = timeout(SOCKET_IO_TIMEOUT, handshake).await;
    }

    fn poll(&mut self, context: &mut Context<'_>, each: &mut impl FnMut(&[u8])) -> Poll<io::Result<Vec<Vec<u8>>>> {
        let mut space = [MaybeUninit::<u8>::uninit(); READ_BUFFER_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(self.parse_received(buffer.filled(), each))
    }

    /// Calls `each` with the complete texts; returns the frames that answer pings.
    fn parse_received(&mut self, read: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<Vec<Vec<u8>>> {
        let mut answers = Vec::new();
        if self.partial_frame.is_empty() {
            let taken = parse_frames(read, each, &mut answers)?;
            self.partial_frame.extend_from_slice(&read[taken..]);
        } else {
            self.partial_frame.extend_from_slice(read);
            let taken = parse_frames(&self.partial_frame, each, &mut answers)?;
            self.partial_frame.drain(..taken);
        }
        Ok(answers)
    }

    async fn write(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.write_frame(&encode_frame(opcode, payload)).await
    }

    async fn write_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        timeout(SOCKET_IO_TIMEOUT, self.stream.write_all(frame)).await?
    }
}

/// Encodes one final frame of a client.
fn encode_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(0x80 | opcode);
    let length = payload.len();
    if let Some(short) = u8::try_from(length).ok().filter(|short| *short < LENGTH_16_BIT_MARK) {
        frame.push(0x80 | short);
    } else if let Ok(long) = u16::try_from(length) {
        frame.push(0x80 | LENGTH_16_BIT_MARK);
        frame.extend_from_slice(&long.to_be_bytes());
    } else {
        frame.push(0x80 | LENGTH_64_BIT_MARK);
        frame.extend_from_slice(&(length as u64).to_be_bytes());
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// Parses the complete frames of a server, and returns their length in bytes.
fn parse_frames(read: &[u8], each: &mut impl FnMut(&[u8]), answers: &mut Vec<Vec<u8>>) -> io::Result<usize> {
    let mut at = 0;
    while let Some((opcode, payload, length)) = parse_frame(&read[at..])? {
        match opcode {
            TEXT_OPCODE => {
                if is_protocol_ping(payload) {
                    answers.push(encode_frame(TEXT_OPCODE, PROTOCOL_PONG));
                }
                each(payload);
            }
            PING_OPCODE => answers.push(encode_frame(PONG_OPCODE, payload)),
            CLOSE_OPCODE => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let text = format!("the server closed the socket with {code:?}");
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
            }
            _ => {}
        }
        at += length;
    }
    Ok(at)
}

/// Whether a text is Pusher's own ping, after which a client that stays silent is closed. Only short texts are searched.
fn is_protocol_ping(text: &[u8]) -> bool {
    text.len() <= PROTOCOL_PING_BYTES_MAX && find_bytes(text, b"pusher:ping").is_some()
}

type ParsedFrame<'a> = (u8, &'a [u8], usize);

/// Parses the first frame, if it is complete: its opcode, its payload, and its length with the head. Servers do not
/// mask, and the frames measured here are not fragmented.
fn parse_frame(bytes: &[u8]) -> io::Result<Option<ParsedFrame<'_>>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let (length, head) = match second & 0x7f {
        LENGTH_16_BIT_MARK => match rest.first_chunk() {
            Some(length) => (usize::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        LENGTH_64_BIT_MARK => match rest.first_chunk() {
            Some(length) => (usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX), 10),
            None => return Ok(None),
        },
        short => (usize::from(short), 2),
    };
    if length > FRAME_BYTES_MAX || second & 0x80 != 0 || first & 0x80 == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that a server does not send"));
    }
    Ok(bytes.get(head..head + length).map(|payload| (first & 0x0f, payload, head + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        // A client's frame without its mask.
        let mut frame = encode_frame(opcode, payload);
        let mask = frame.len() - payload.len() - 4;
        frame.drain(mask..mask + 4);
        frame[1] &= 0x7f;
        frame
    }

    #[test]
    fn frames_of_every_length_are_read_also_in_parts() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let bytes = server_frame(TEXT_OPCODE, &payload);
            for cut in [0, 1, 2, 3, bytes.len() - 1].into_iter().filter(|cut| *cut < bytes.len()) {
                assert_eq!(parse_frame(&bytes[..cut]).expect("no error"), None, "{length} cut at {cut}");
            }
            assert_eq!(
                parse_frame(&bytes).expect("no error"),
                Some((TEXT_OPCODE, &payload[..], bytes.len())),
                "{length}"
            );
        }
    }

    #[test]
    fn complete_texts_and_pings_are_taken_and_a_cut_frame_is_left() {
        let protocol_ping = br#"{"event":"pusher:ping","data":"{}"}"#;
        let mut bytes = [
            server_frame(TEXT_OPCODE, b"a"),
            server_frame(PING_OPCODE, b"p"),
            server_frame(TEXT_OPCODE, b"b"),
            server_frame(TEXT_OPCODE, protocol_ping),
        ]
        .concat();
        let whole = bytes.len();
        bytes.extend_from_slice(&server_frame(TEXT_OPCODE, b"cut")[..3]);
        let (mut texts, mut answers) = (Vec::new(), Vec::new());
        let taken = parse_frames(&bytes, &mut |text| texts.push(text.to_vec()), &mut answers).expect("frames");
        assert_eq!((taken, texts), (whole, vec![b"a".to_vec(), b"b".to_vec(), protocol_ping.to_vec()]));
        assert_eq!(answers, [encode_frame(PONG_OPCODE, b"p"), encode_frame(TEXT_OPCODE, PROTOCOL_PONG)]);
        let closed = parse_frames(&server_frame(CLOSE_OPCODE, &4100_u16.to_be_bytes()), &mut |_| {}, &mut Vec::new());
        assert!(closed.expect_err("the end").to_string().contains("4100"));
        assert!(parse_frame(&encode_frame(TEXT_OPCODE, b"x")).is_err(), "servers do not mask");
    }
}
