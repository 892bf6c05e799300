//! The form in which edges of a cluster send frames to each other over the bus: one line of JSON with the address, then the
//! frame unchanged.

use serde::{Deserialize, Serialize};

use super::record::EventOrder;
use super::{AppId, ChannelName, SocketId};

/// The sender of frames that a script published: every process delivers them, the one that ran the script included.
pub const SCRIPT_SENDER: &str = "";

/// The address of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusFrameHeader {
    /// The process that sent it, or [`SCRIPT_SENDER`].
    pub from: String,
    /// The app of the channel.
    pub app: AppId,
    /// The channel whose subscribers receive the frame.
    pub channel: ChannelName,
    /// The connection that does not receive it.
    pub except: Option<SocketId>,
    /// Whether the connections are closed after it.
    pub ends: bool,
    /// The order of the membership change that the frame reports.
    pub order: Option<EventOrder>,
}

#[derive(Serialize, Deserialize)]
struct HeaderFields {
    from: String,
    app: AppId,
    channel: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    except: Option<SocketId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ends: bool,
    /// The order as `EPOCH:SEQ`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<String>,
}

impl BusFrameHeader {
    /// Encodes the line without its end.
    ///
    /// # Errors
    /// The header cannot be written as JSON.
    pub fn encode(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&HeaderFields {
            from: self.from.clone(),
            app: self.app.clone(),
            channel: self.channel.to_string(),
            except: self.except.clone(),
            ends: self.ends,
            order: self.order.map(|order| format!("{}:{}", order.epoch, order.seq)),
        })
    }

    /// Encodes the header and its frame.
    ///
    /// # Errors
    /// The header cannot be written as JSON.
    pub fn encode_with(&self, frame: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = self.encode()?.into_bytes();
        bytes.push(b'\n');
        bytes.extend_from_slice(frame);
        Ok(bytes)
    }

    /// Parses a message into the header and its frame; `None` when it is none of this release. An order in another form
    /// is none.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let end = message.iter().position(|byte| *byte == b'\n')?;
        let HeaderFields { from, app, channel, except, ends, order } = serde_json::from_slice(&message[..end]).ok()?;
        let (channel, order) = (ChannelName::parse_any(&channel).ok()?, order.as_deref().and_then(parse_order));
        Some((Self { from, app, channel, except, ends, order }, &message[end + 1..]))
    }
}

fn parse_order(text: &str) -> Option<EventOrder> {
    let (epoch, seq) = text.split_once(':')?;
    Some(EventOrder { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
}
