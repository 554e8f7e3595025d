//! Feeds a decoder the way a hostile peer would: any bytes, cut anywhere.

use agent::codec::{Decoder, Frame, HEADER_LEN, MAX_PAYLOAD, Message};

/// The first byte of the input says how the rest is cut. Whatever decodes must encode to the bytes it came from.
pub fn decode<M: Message + PartialEq + std::fmt::Debug>(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else { return };
    let size = usize::from(*cut) + 1;
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(size) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame::<M>() {
                Ok(Some(frame)) => encodes_back(&frame),
                Ok(None) => break,
                // The conversation is over, as it is for host and agent.
                Err(_) => return,
            }
        }
        assert!(decoder.pending() < HEADER_LEN + MAX_PAYLOAD);
    }
}

/// Postcard takes a number in more than one way (a varint may be padded), so the bytes may differ from those that
/// came. What they mean may not.
fn encodes_back<M: Message + PartialEq + std::fmt::Debug>(frame: &Frame<M>) {
    let bytes = frame.encode().expect("what was decoded is short enough to encode");
    let mut decoder = Decoder::default();
    decoder.feed(&bytes);
    let again = decoder.next_frame().expect("what was encoded decodes").expect("it is whole");
    assert_eq!(&again, frame);
    assert_eq!(decoder.pending(), 0);
}
