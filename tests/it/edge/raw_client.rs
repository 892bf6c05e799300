//! A client that writes any bytes.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A connection on which anything can be written.
pub struct RawClient(pub TcpStream);

impl RawClient {
    pub async fn send(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut socket = TcpStream::connect(address).await.expect("connected");
        // A server that has refused already may not take the rest.
        let _ = socket.write_all(bytes.as_ref()).await;
        Self(socket)
    }

    /// The answer up to the end of its head.
    pub async fn answer(&mut self) -> String {
        self.read_head(WAIT_TIMEOUT, "the head of an answer").await
    }

    /// The status that is answered first, or 0 when the server closes without a word.
    pub async fn status(&mut self) -> u16 {
        let answer = self.read_head(3 * WAIT_TIMEOUT, "an answer or the end of the connection").await;
        answer.split(' ').nth(1).map_or(0, |status| status.parse().expect("a status"))
    }

    /// Nothing more comes: the server has closed.
    pub async fn ended(&mut self) {
        let mut rest = Vec::new();
        let ended = timeout(3 * WAIT_TIMEOUT, self.0.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the server holds a connection that it refused");
    }

    async fn read_head(&mut self, limit: Duration, awaited: &str) -> String {
        let mut answer = Vec::new();
        let read = async {
            let mut part = [0; 4096];
            while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                match self.0.read(&mut part).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => answer.extend_from_slice(&part[..count]),
                }
            }
        };
        within(limit, awaited, read).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}
