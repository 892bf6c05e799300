//! Encoding of frames between processes: one line of JSON with the address, then the frame unchanged.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::{BroadcastFrame, BusError, ChannelKey};
use crate::protocol::record::EventOrder;
use crate::protocol::{AppId, ChannelName, SocketId};

/// The sender of frames that a script published: every process delivers them, the one that ran the script included.
const SCRIPT_SENDER: &str = "";

#[derive(Serialize, Deserialize)]
struct FrameHeader {
    from: String,
    app: AppId,
    channel: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    except: Option<SocketId>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ends: bool,
    /// `EPOCH:SEQ` of the membership change that the frame reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<String>,
}

/// Outcome of decoding a message of the bus.
pub(super) enum DecodedFrame {
    /// A frame of this process, which has delivered it to its own subscribers already.
    FromSelf,
    /// A frame of another process.
    Frame(BroadcastFrame),
    /// A message that is not a frame of this release.
    Malformed,
}

pub(super) fn encode(message: &BroadcastFrame, process: &str) -> Result<Bytes, BusError> {
    let header = FrameHeader {
        from: process.to_owned(),
        app: message.subject.app.clone(),
        channel: message.subject.channel.to_string(),
        except: message.except.clone(),
        ends: message.ends,
        order: None,
    };
    let mut bytes = serde_json::to_vec(&header).map_err(|error| BusError::Unavailable(error.to_string()))?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&message.frame);
    Ok(bytes.into())
}

/// Returns the header of a frame that a script publishes, without its closing brace: the script adds the order.
pub(super) fn script_header_start(subject: &ChannelKey, except: Option<&SocketId>) -> Result<String, BusError> {
    let header = FrameHeader {
        from: SCRIPT_SENDER.to_owned(),
        app: subject.app.clone(),
        channel: subject.channel.to_string(),
        except: except.cloned(),
        ends: false,
        order: None,
    };
    let mut text = serde_json::to_string(&header).map_err(|error| BusError::Unavailable(error.to_string()))?;
    text.pop();
    Ok(text)
}

fn parse_order(text: &str) -> Option<EventOrder> {
    let (epoch, seq) = text.split_once(':')?;
    Some(EventOrder { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
}

pub(super) fn decode(bytes: &Bytes, process: &str) -> DecodedFrame {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return DecodedFrame::Malformed };
    let Ok(header) = serde_json::from_slice::<FrameHeader>(&bytes[..end]) else { return DecodedFrame::Malformed };
    if header.from == process {
        return DecodedFrame::FromSelf;
    }
    let Ok(channel) = ChannelName::parse_any(&header.channel) else { return DecodedFrame::Malformed };
    let subject = ChannelKey { app: header.app, channel };
    DecodedFrame::Frame(BroadcastFrame {
        subject,
        frame: bytes.slice(end + 1..),
        except: header.except,
        ends: header.ends,
        order: header.order.as_deref().and_then(parse_order),
        issued_at: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_decoded_unchanged_by_other_processes_only() {
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::signed_in("é").expect("a name") };
        let (frame, except) = (Bytes::from_static(b"{\"a\":\n1}\xff"), Some(SocketId::from("1.2")));
        let message = BroadcastFrame { frame, except, ends: true, ..BroadcastFrame::new(subject, "") };
        let bytes = encode(&message, "p1").expect("encoded");
        assert!(matches!(decode(&bytes, "p1"), DecodedFrame::FromSelf));
        let found = match decode(&bytes, "p2") {
            DecodedFrame::Frame(found) => Some((found.frame, found.except, found.subject, found.ends)),
            _ => None,
        };
        assert_eq!(found, Some((message.frame, message.except, message.subject, true)));
        assert!(matches!(decode(&Bytes::from_static(b"rubbish"), "p2"), DecodedFrame::Malformed));
    }

    #[test]
    fn a_frame_of_a_script_is_decoded_by_every_process_with_its_order() {
        let subject = ChannelKey { app: "1".into(), channel: ChannelName::parse("presence-a").expect("a name") };
        let start = script_header_start(&subject, Some(&"1.2".into())).expect("encoded");
        let bytes = Bytes::from(format!("{start},\"order\":\"9:4\"}}\n{{}}"));
        let DecodedFrame::Frame(found) = decode(&bytes, "p1") else { panic!("not a frame") };
        assert_eq!((found.subject, found.except), (subject, Some("1.2".into())));
        assert_eq!((found.frame, found.order), ("{}".into(), Some(EventOrder { epoch: 9, seq: 4 })));
    }
}
