//! Frames of the bus as messages of the publish/subscribe channel.

use bytes::Bytes;

use super::super::{BroadcastFrame, BusError, ChannelKey};
use crate::protocol::SocketId;
use crate::protocol::bus_frame::{BusFrameHeader, SCRIPT_SENDER};

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
    let header = address(&message.subject, process, message.except.as_ref(), message.ends);
    header.encode_with(&message.frame).map(Bytes::from).map_err(|error| BusError::Unavailable(error.to_string()))
}

/// Returns the header of a frame that a script publishes, without its closing brace: the script adds the order.
pub(super) fn script_header_start(subject: &ChannelKey, except: Option<&SocketId>) -> Result<String, BusError> {
    let header = address(subject, SCRIPT_SENDER, except, false);
    let mut text = header.encode().map_err(|error| BusError::Unavailable(error.to_string()))?;
    text.pop();
    Ok(text)
}

fn address(subject: &ChannelKey, from: &str, except: Option<&SocketId>, ends: bool) -> BusFrameHeader {
    let ChannelKey { app, channel } = subject.clone();
    BusFrameHeader { from: from.to_owned(), app, channel, except: except.cloned(), ends, order: None }
}

pub(super) fn decode(bytes: &Bytes, process: &str) -> DecodedFrame {
    let Some((header, frame)) = BusFrameHeader::parse(bytes) else { return DecodedFrame::Malformed };
    if header.from == process {
        return DecodedFrame::FromSelf;
    }
    let BusFrameHeader { app, channel, except, ends, order, .. } = header;
    DecodedFrame::Frame(BroadcastFrame {
        subject: ChannelKey { app, channel },
        frame: bytes.slice_ref(frame),
        except,
        ends,
        order,
        issued_at: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ChannelName;
    use crate::protocol::record::EventOrder;

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
