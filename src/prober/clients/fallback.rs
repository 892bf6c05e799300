//! The client of pusher-js's HTTP fallbacks: one receiver, and every send over a connection of its own.

use rand::Rng;
use reqwest::Method;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::http_reader::{HttpDialect, POLL_TIMEOUT, receive_frames, skip_prelude};
use super::link::{BrokenHop, FrameSender, HttpSession, InboundFrame, STEP_TIMEOUT};
use super::target::SessionTarget;
use crate::api::Reason;
use crate::gate::Hop;
use crate::prober::ProbeApp;
use crate::protocol::Transport;

pub(in crate::prober) async fn open(
    target: &SessionTarget,
    transport: Transport,
    app: &ProbeApp,
    passed: &mut impl FnMut(Hop),
) -> Result<(FrameSender, mpsc::Receiver<InboundFrame>, JoinHandle<()>), BrokenHop> {
    let pod = &target.name;
    drop(target.connect().await?);
    passed(Hop::Connect);
    let rejected = |detail| BrokenHop::ambiguous(Hop::Handshake, Reason::HandshakeRejected, detail);
    let path = format!("pusher/app/{}/{}/{}", app.key, random_server_part(), random_session_part());
    let http = target.http_client().map_err(|error| rejected(format!("no HTTP client: {error}")))?;
    let session = HttpSession::of_pusher(http, target.http_url(&path));
    send_preflight(&session).await.map_err(|error| rejected(format!("{pod} refused the CORS preflight: {error}")))?;

    let dialect = if transport == Transport::XhrStreaming { STREAMING_DIALECT } else { POLLING_DIALECT };
    let (inbound, task) =
        receive_frames(session.clone(), dialect).await.map_err(|error| rejected(format!("{pod} {error}")))?;
    passed(Hop::Handshake);
    Ok((FrameSender::Http(session), inbound, task))
}

/// One long answer, whose end is the session's; the client answers each heartbeat.
const STREAMING_DIALECT: HttpDialect = HttpDialect {
    request: |session| session.build_request("xhr_streaming", true),
    unwrap_line: skip_prelude,
    polls_again: false,
    echoes_heartbeats: true,
};

/// One answer per batch.
const POLLING_DIALECT: HttpDialect = HttpDialect {
    request: |session| session.build_request("xhr", true).timeout(POLL_TIMEOUT),
    unwrap_line: skip_prelude,
    polls_again: true,
    echoes_heartbeats: false,
};

/// An integer below 1000, not padded, as pusher-js chooses it.
fn random_server_part() -> String {
    rand::rng().random_range(0..1000).to_string()
}

/// Eight letters of base 32.
pub(in crate::prober) fn random_session_part() -> String {
    const RANDOM_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
    let mut random = rand::rng();
    (0..8).map(|_| char::from(RANDOM_ALPHABET[random.random_range(0..RANDOM_ALPHABET.len())])).collect()
}

/// Sends the CORS preflight of a browser that posts JSON to another origin.
async fn send_preflight(session: &HttpSession) -> Result<(), String> {
    let answer = session
        .http
        .request(Method::OPTIONS, format!("{}/xhr_streaming", session.base))
        .header("origin", "https://probe.invalid")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .timeout(STEP_TIMEOUT)
        .send()
        .await
        .map_err(|error| error.without_url().to_string())?;
    let header = |name: &str| {
        let value = answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.to_ascii_lowercase()
    };
    let origin = header("access-control-allow-origin");
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status()));
    }
    if !["*", "https://probe.invalid"].contains(&origin.as_str()) {
        return Err(format!("allowed origin is `{origin}`"));
    }
    if !header("access-control-allow-headers").contains("content-type") {
        return Err("content-type is not an allowed header".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_as_pusher_js_names_it() {
        assert!(random_server_part().parse::<u16>().is_ok_and(|n| n < 1000));
        let session = random_session_part();
        assert!(session.len() == 8 && session.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
    }
}
