//! The messages by which edges send frames to each other over the bus.

use super::protocol::bus_frame::BusFrameHeader;

/// A message of the bus.
pub fn check(data: &[u8]) {
    let Some((header, frame)) = BusFrameHeader::parse(data) else { return };
    assert!(frame.len() < data.len(), "the frame is a part of the message");
    assert!(data.ends_with(frame), "the frame is unchanged");
    let Ok(written) = header.encode_with(frame) else { panic!("a header that was read can be written") };
    assert_eq!(BusFrameHeader::parse(&written), Some((header, frame)), "written and read again");
}
