//! Where a frame begins and ends: varint lengths on the device's side, gRPC's five-byte head on the router's.

use prost::Message;

use crate::limits;

/// Bytes that are no frame of this protocol. The connection can't go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than the protocol allows.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLarge {
        /// Bytes announced.
        length: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// No length, a length of zero, or an unknown flag.
    #[error("the bytes are no frame")]
    Malformed,
}

/// The next device frame at the start of `bytes`: its head's length and its body's. `None`: more bytes are needed.
pub fn device_frame(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let mut length = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(3) {
        length |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            if length == 0 {
                return Err(FrameError::Malformed);
            }
            if length > limits::DEVICE_FRAME_BYTES as u64 {
                return Err(FrameError::TooLarge { length, limit: limits::DEVICE_FRAME_BYTES });
            }
            let (head, body) = (i + 1, length as usize);
            return Ok((bytes.len() >= head + body).then_some((head, body)));
        }
    }
    // Three bytes of length are enough for the limit: a fourth one says too much.
    if bytes.len() >= 3 {
        return Err(FrameError::TooLarge { length: length | 1 << 21, limit: limits::DEVICE_FRAME_BYTES });
    }
    Ok(None)
}

/// Appends a device frame that holds `message`.
pub fn put_device_frame(out: &mut Vec<u8>, message: &impl Message) {
    let length = message.encoded_len();
    prost::encoding::encode_varint(length as u64, out);
    message.encode_raw(out);
}

/// Bytes of a router frame's head: one flag byte, four of length.
pub const ROUTER_HEAD: usize = 5;

/// The length of the body behind the head of a router frame.
pub fn router_frame(head: [u8; ROUTER_HEAD], limit: usize) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 {
        return Err(FrameError::Malformed);
    }
    if length as usize > limit {
        return Err(FrameError::TooLarge { length: u64::from(length), limit });
    }
    Ok(length as usize)
}

/// Appends a router frame that holds `message`.
pub fn put_router_frame(out: &mut Vec<u8>, message: &impl Message) {
    let length = message.encoded_len() as u32;
    out.push(0);
    out.extend_from_slice(&length.to_be_bytes());
    message.encode_raw(out);
}

/// The same where what the frame holds is one field, `tag`, with `message` in it: it need not be one's own.
pub fn put_router_frame_of(out: &mut Vec<u8>, tag: u32, message: &impl Message) {
    let length = prost::encoding::message::encoded_len(tag, message) as u32;
    out.push(0);
    out.extend_from_slice(&length.to_be_bytes());
    prost::encoding::message::encode(tag, message, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pb::device;

    #[test]
    fn a_device_frame_is_found_byte_by_byte() {
        let mut bytes = Vec::new();
        let frame = device::AckConfirm { number: 300 };
        put_device_frame(&mut bytes, &frame);
        for cut in 0..bytes.len() {
            assert_eq!(device_frame(&bytes[..cut]), Ok(None));
        }
        let (head, body) = device_frame(&bytes).expect("a frame").expect("whole");
        assert_eq!(device::AckConfirm::decode(&bytes[head..head + body]), Ok(frame));
    }

    #[test]
    fn the_largest_device_frame_passes_and_one_more_byte_does_not() {
        let mut head = Vec::new();
        prost::encoding::encode_varint(65_536, &mut head);
        assert_eq!(device_frame(&head), Ok(None));
        head.clear();
        prost::encoding::encode_varint(65_537, &mut head);
        assert!(matches!(device_frame(&head), Err(FrameError::TooLarge { length: 65_537, .. })));
        assert!(matches!(device_frame(&[0xff; 3]), Err(FrameError::TooLarge { .. })));
        assert_eq!(device_frame(&[0]), Err(FrameError::Malformed));
    }

    #[test]
    fn a_router_frame_with_a_flag_or_over_the_limit_is_refused() {
        assert_eq!(router_frame([0, 0, 0, 1, 0], 256), Ok(256));
        assert_eq!(router_frame([1, 0, 0, 0, 1], 256), Err(FrameError::Malformed));
        assert!(matches!(router_frame([0, 0, 0, 1, 1], 256), Err(FrameError::TooLarge { .. })));
    }
}
