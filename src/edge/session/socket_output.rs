//! The write side of one client's connection.
//!
//! In: bytes of the HTTP server, then of the codec of the upgraded connection, and frames of publishers. Out: all of them
//! on one TCP socket, in order, and never one within another. A publisher writes its frame at once when nothing waits
//! before it: a task that is woken for each subscriber of an event costs more than the write.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::process::locks::lock_unpoisoned;
use crate::protocol::sockjs;

/// Bytes that wait for the socket before the codec must wait too.
const UNSENT_BYTES_MAX: usize = 64 << 10;

/// Bytes of the longest header of a frame from a server (RFC 6455, 5.2).
const FRAME_HEADER_BYTES_MAX: usize = 10;

/// The form of messages on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFraming {
    /// Pusher's: each text is one message; a binary message is answered with an error.
    Pusher,
    /// `SockJS`'s raw WebSocket: each text is one message; a binary message ends the socket.
    SockjsRaw,
    /// `SockJS`'s frames: arrays of messages, heartbeats, and a close frame of its own.
    SockjsFrames,
}

/// The outcome of a write that does not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectWrite {
    /// The system has the whole frame.
    Written,
    /// The system has a part of the frame; so many bytes wait for the socket.
    Partial(usize),
    /// Other bytes wait for the socket, or the system takes none: the frame is not written.
    Refused,
}

/// The write side of one client's connection.
pub struct SocketOutput(Mutex<OutputState>);

struct OutputState {
    socket: OwnedWriteHalf,
    /// The form of messages once the connection is upgraded: from then on, each write is a number of whole frames.
    framing: Option<SocketFraming>,
    /// The rest of what was accepted, which the system did not take yet.
    unsent: Vec<u8>,
}

impl SocketOutput {
    /// The write side of a connection that is not upgraded.
    pub fn new(socket: OwnedWriteHalf) -> Self {
        Self(Mutex::new(OutputState { socket, framing: None, unsent: Vec::new() }))
    }

    /// Begins the frames of an upgraded connection.
    pub fn begin_frames(&self, framing: SocketFraming) {
        self.lock_state().framing = Some(framing);
    }

    /// Writes one message of a session as far as that is possible at once.
    pub fn write_directly(&self, message: &[u8]) -> DirectWrite {
        let mut state = self.lock_state();
        if !state.unsent.is_empty() {
            return DirectWrite::Refused;
        }
        match state.framing {
            Some(SocketFraming::Pusher | SocketFraming::SockjsRaw) => state.write_text(message),
            Some(SocketFraming::SockjsFrames) => match std::str::from_utf8(message) {
                Ok(text) => state.write_text(sockjs::encode_messages([text]).as_bytes()),
                Err(_) => DirectWrite::Refused,
            },
            None => DirectWrite::Refused,
        }
    }

    /// Writes bytes of the HTTP server, or whole frames of the codec. Frames are accepted as a whole, so that no frame of
    /// a publisher comes between the parts of one.
    ///
    /// # Errors
    /// The socket fails with an I/O error.
    pub fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.lock_state();
        if state.framing.is_none() {
            return Pin::new(&mut state.socket).poll_write(context, bytes);
        }
        if state.unsent.len() >= UNSENT_BYTES_MAX {
            ready!(state.poll_unsent(context))?;
        }
        let written = if state.unsent.is_empty() { write_some(state.socket.try_write(bytes))? } else { 0 };
        state.unsent.extend_from_slice(&bytes[written..]);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Writes the parts of an answer of the HTTP server together; of an upgraded connection, the first of them.
    ///
    /// # Errors
    /// The socket fails with an I/O error.
    pub fn poll_write_vectored(&self, context: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut state = self.lock_state();
        if state.framing.is_none() {
            return Pin::new(&mut state.socket).poll_write_vectored(context, parts);
        }
        drop(state);
        let first = parts.iter().find(|part| !part.is_empty());
        first.map_or(Poll::Ready(Ok(0)), |first| self.poll_write(context, first))
    }

    /// Waits until the system has everything that was accepted.
    ///
    /// # Errors
    /// The socket fails with an I/O error.
    pub fn poll_flush(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock_state().poll_unsent(context)
    }

    /// Ends the write side, after everything that was accepted.
    ///
    /// # Errors
    /// The socket fails with an I/O error.
    pub fn poll_shutdown(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock_state();
        ready!(state.poll_unsent(context))?;
        Pin::new(&mut state.socket).poll_shutdown(context)
    }

    fn lock_state(&self) -> MutexGuard<'_, OutputState> {
        lock_unpoisoned(&self.0)
    }
}

impl OutputState {
    /// Writes one text frame while nothing waits before it.
    fn write_text(&mut self, text: &[u8]) -> DirectWrite {
        let mut buffer = [0; FRAME_HEADER_BYTES_MAX];
        let Some(header) = encode_header(&mut buffer, text.len()) else { return DirectWrite::Refused };
        let parts = [io::IoSlice::new(header), io::IoSlice::new(text)];
        // An error of the socket is met again by the task that writes what waits.
        let written = write_some(self.socket.try_write_vectored(&parts)).unwrap_or(0);
        match (header.len() + text.len()).saturating_sub(written) {
            0 => DirectWrite::Written,
            _ if written == 0 => DirectWrite::Refused,
            rest => {
                self.unsent.extend(header.iter().chain(text).skip(written));
                DirectWrite::Partial(rest)
            }
        }
    }

    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        while written < self.unsent.len() {
            match Pin::new(&mut self.socket).poll_write(context, &self.unsent[written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(more)) => written += more,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.unsent.drain(..written);
                    return Poll::Pending;
                }
            }
        }
        // An idle socket keeps no buffer.
        self.unsent = Vec::new();
        Poll::Ready(Ok(()))
    }
}

/// The header of a text frame; `None` when it cannot be encoded.
fn encode_header(buffer: &mut [u8; FRAME_HEADER_BYTES_MAX], length: usize) -> Option<&[u8]> {
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    let mut rest = &mut buffer[..];
    header.format(u64::try_from(length).ok()?, &mut rest).ok()?;
    let used = FRAME_HEADER_BYTES_MAX - rest.len();
    Some(&buffer[..used])
}

/// The number of bytes that the system took; none when it takes none now.
fn write_some(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    const TEST_TIMEOUT: Duration = Duration::from_secs(10);

    /// A connection: the output of the server, and the client.
    pub async fn connect(framing: SocketFraming) -> (SocketOutput, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (server, _) = listener.accept().await.expect("accepted");
        let (_reader, writer) = server.into_split();
        let output = SocketOutput::new(writer);
        output.begin_frames(framing);
        poll_fn(|context| output.poll_flush(context)).await.expect("writable");
        (output, client)
    }

    async fn read(client: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        timeout(TEST_TIMEOUT, client.read_exact(&mut bytes)).await.expect("in time").expect("read");
        bytes
    }

    /// Text frames of a server, as RFC 6455 has them.
    fn text_frame(text: &[u8]) -> Vec<u8> {
        let header = match text.len() {
            length @ 0..126 => vec![0x81, u8::try_from(length).expect("short")],
            length => {
                let [high, low] = u16::try_from(length).expect("a middle length").to_be_bytes();
                vec![0x81, 126, high, low]
            }
        };
        [header, text.to_vec()].concat()
    }

    /// Writes until the socket takes no more; returns the bytes that the client must read.
    async fn fill(output: &SocketOutput, text: &[u8]) -> Vec<u8> {
        let mut expected = Vec::new();
        loop {
            match output.write_directly(text) {
                DirectWrite::Written => expected.extend(text_frame(text)),
                DirectWrite::Partial(rest) => {
                    assert!(rest > 0 && rest < text.len() + 4);
                    expected.extend(text_frame(text));
                    return expected;
                }
                // Between two frames the system may take none at all; the next readiness splits one.
                DirectWrite::Refused => {
                    let whole = text_frame(text);
                    let accepted = poll_fn(|context| output.poll_write(context, &whole)).await.expect("accepted");
                    assert_eq!(accepted, whole.len());
                    expected.extend(whole);
                    return expected;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_message_is_one_frame_in_the_form_of_its_socket() {
        let (output, mut client) = connect(SocketFraming::Pusher).await;
        for text in [&b"{}"[..], &[b'x'; 300]] {
            assert_eq!(output.write_directly(text), DirectWrite::Written);
            let expected = text_frame(text);
            assert_eq!(read(&mut client, expected.len()).await, expected);
        }
        let (output, mut client) = connect(SocketFraming::SockjsFrames).await;
        assert_eq!(output.write_directly(br#"{"a":1}"#), DirectWrite::Written);
        let expected = text_frame(br#"a["{\"a\":1}"]"#);
        assert_eq!(read(&mut client, expected.len()).await, expected);
        assert_eq!(output.write_directly(&[0xff]), DirectWrite::Refused, "no text");
    }

    #[tokio::test]
    async fn a_frame_never_begins_within_another() {
        let (output, mut client) = connect(SocketFraming::Pusher).await;
        let mut expected = fill(&output, &vec![b'x'; 60_000]).await;
        assert_eq!(output.write_directly(b"later"), DirectWrite::Refused, "the rest of a frame waits");
        let pong = [0x8a, 0];
        assert_eq!(poll_fn(|context| output.poll_write(context, &pong)).await.expect("accepted"), 2);
        expected.extend(pong);
        let read_all = read(&mut client, expected.len());
        let flushed = poll_fn(|context| output.poll_flush(context));
        let (bytes, flushed) = timeout(TEST_TIMEOUT, async { tokio::join!(read_all, flushed) }).await.expect("in time");
        flushed.expect("flushed");
        assert!(bytes == expected, "every byte once and in order");
        assert_eq!(output.write_directly(b"now"), DirectWrite::Written);
        assert_eq!(read(&mut client, 5).await, text_frame(b"now"));
    }

    #[tokio::test]
    async fn the_codec_waits_for_a_client_that_does_not_read() {
        let (output, mut client) = connect(SocketFraming::Pusher).await;
        let mut expected = fill(&output, &vec![b'x'; 60_000]).await.len();
        let frame = text_frame(&[b'y'; 1_000]);
        let mut accepted = 0;
        while poll_fn(|context| Poll::Ready(output.poll_write(context, &frame).is_ready())).await {
            accepted += frame.len();
            assert!(accepted <= UNSENT_BYTES_MAX + frame.len(), "bounded");
        }
        expected += accepted;
        let written = poll_fn(|context| output.poll_write(context, &frame));
        let more = async {
            written.await.expect("accepted in the end");
            poll_fn(|context| output.poll_flush(context)).await.expect("flushed");
        };
        let ((), bytes) =
            timeout(TEST_TIMEOUT, async { tokio::join!(more, read(&mut client, expected + frame.len())) })
                .await
                .expect("in time");
        let frames = accepted / frame.len() + 1;
        assert!(bytes.ends_with(&frame.repeat(frames)), "{frames} whole frames of the codec, in order");
    }

    #[tokio::test]
    async fn before_the_upgrade_no_message_is_written() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let (server, _) = listener.accept().await.expect("accepted");
        let (_reader, writer) = server.into_split();
        assert_eq!(SocketOutput::new(writer).write_directly(b"early"), DirectWrite::Refused);
    }
}
