//! A WebSocket client that does next to nothing: thousands of them run beside the server that they measure.
//!
//! It reads with a buffer on the stack, copies only what a read cut apart, and masks with zeros, which is a mask too.

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

/// Longest for the handshake, for one write, and for the goodbye.
const SOCKET_IO_TIMEOUT: Duration = Duration::from_secs(30);

/// Taken from a socket at once.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// Largest frame that is taken.
const FRAME_BYTES_MAX: usize = 4 << 20;

const TEXT_OPCODE: u8 = 1;
const CLOSE_OPCODE: u8 = 8;
const PING_OPCODE: u8 = 9;
const PONG_OPCODE: u8 = 10;

/// The length stands in the next two bytes.
const LENGTH_16_BIT_MARK: u8 = 0x7e;

/// The length stands in the next eight bytes.
const LENGTH_64_BIT_MARK: u8 = 0x7f;

/// One socket.
pub struct ClientSocket {
    stream: TcpStream,
    /// The beginning of a frame whose end was not yet read.
    partial_frame: Vec<u8>,
}

impl ClientSocket {
    /// Connects and shakes hands.
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
                    let told = String::from_utf8_lossy(&rest[..end.min(64)]).into_owned();
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, told));
                }
                return Ok(Self { stream, partial_frame: rest.split_off(end + 4) });
            }
        }
    }

    /// Sends a text.
    pub async fn send(&mut self, text: &str) -> io::Result<()> {
        self.write(TEXT_OPCODE, text.as_bytes()).await
    }

    /// Waits for data, and hands over each text that is complete with it. Pings are answered.
    pub async fn read(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let pings = poll_fn(|context| self.poll(context, &mut each)).await?;
        for ping in pings {
            self.write(PONG_OPCODE, &ping).await?;
        }
        Ok(())
    }

    /// Reads until a text holds what is wanted; the others are left aside.
    pub async fn wait_for<T>(&mut self, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut found = None;
        let reading = async {
            loop {
                // What came with the handshake is there already.
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

    /// Says goodbye, and waits for the server's end of it.
    pub async fn close_gracefully(mut self) {
        let goodbye = async {
            self.write(CLOSE_OPCODE, &1000_u16.to_be_bytes()).await?;
            while self.read(|_| {}).await.is_ok() {}
            Ok::<_, io::Error>(())
        };
        // However it goes, the socket is closed.
        let _ = timeout(SOCKET_IO_TIMEOUT, goodbye).await;
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

    /// Hands over the texts in what was read; answers with the pings in it.
    fn parse_received(&mut self, read: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<Vec<Vec<u8>>> {
        let mut pings = Vec::new();
        if self.partial_frame.is_empty() {
            let taken = parse_frames(read, each, &mut pings)?;
            self.partial_frame.extend_from_slice(&read[taken..]);
        } else {
            self.partial_frame.extend_from_slice(read);
            let taken = parse_frames(&self.partial_frame, each, &mut pings)?;
            self.partial_frame.drain(..taken);
        }
        Ok(pings)
    }

    async fn write(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        timeout(SOCKET_IO_TIMEOUT, self.stream.write_all(&encode_frame(opcode, payload))).await?
    }
}

/// One final frame of a client.
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

/// Takes complete frames of a server, and answers with how many bytes they had.
fn parse_frames(read: &[u8], each: &mut impl FnMut(&[u8]), pings: &mut Vec<Vec<u8>>) -> io::Result<usize> {
    let mut at = 0;
    while let Some((opcode, payload, length)) = parse_frame(&read[at..])? {
        match opcode {
            TEXT_OPCODE => each(payload),
            PING_OPCODE => pings.push(payload.to_vec()),
            CLOSE_OPCODE => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let told = format!("the server closed the socket with {code:?}");
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, told));
            }
            _ => {}
        }
        at += length;
    }
    Ok(at)
}

type ParsedFrame<'a> = (u8, &'a [u8], usize);

/// The first frame, if it is complete: what it is, its payload, and its length in all. Servers do not mask, and the
/// frames measured here are not fragmented.
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
    fn texts_are_handed_over_pings_kept_and_the_rest_left() {
        let mut bytes =
            [server_frame(TEXT_OPCODE, b"a"), server_frame(PING_OPCODE, b"p"), server_frame(TEXT_OPCODE, b"b")]
                .concat();
        let whole = bytes.len();
        bytes.extend_from_slice(&server_frame(TEXT_OPCODE, b"cut")[..3]);
        let (mut texts, mut pings) = (Vec::new(), Vec::new());
        let taken = parse_frames(&bytes, &mut |text| texts.push(text.to_vec()), &mut pings).expect("frames");
        assert_eq!((taken, texts, pings), (whole, vec![b"a".to_vec(), b"b".to_vec()], vec![b"p".to_vec()]));
        let told = parse_frames(&server_frame(CLOSE_OPCODE, &4100_u16.to_be_bytes()), &mut |_| {}, &mut Vec::new());
        assert!(told.expect_err("the end").to_string().contains("4100"));
        assert!(parse_frame(&encode_frame(TEXT_OPCODE, b"x")).is_err(), "servers do not mask");
    }
}
