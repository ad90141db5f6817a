//! The packets of MQTT 3.1.1 that a load needs (OASIS standard of 29 October 2014, sections 2 and 3), as a pure codec: bytes in, packets out, and
//! back. No crate is used: those that are kept well bring a client with channels and tasks of its own for each connection, and here one
//! process has 15,000 of them beside the broker that is measured.
//!
//! ```text
//! packet    = type and flags u8, remaining length (1 to 4 bytes, 7 bits each, low ones first), rest
//! string    = length u16 big-endian, UTF-8
//! ```

/// Bytes of a packet after its first two fields: far more than a load sends.
const PACKET_BYTES: usize = 64 * 1024;
/// Level of 3.1.1.
const LEVEL: u8 = 4;

/// A packet. Of QoS 2, wills, users and passwords nothing is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packet<'a> {
    Connect {
        client_id: &'a str,
        clean: bool,
        keep_alive_s: u16,
    },
    /// Code 0: welcome.
    ConnAck {
        session_present: bool,
        code: u8,
    },
    /// With `id` by QoS 1, else by QoS 0.
    Publish {
        topic: &'a str,
        id: Option<u16>,
        dup: bool,
        payload: &'a [u8],
    },
    PubAck {
        id: u16,
    },
    Subscribe {
        id: u16,
        topic: &'a str,
        qos: u8,
    },
    /// The granted QoS; 0x80: refused.
    SubAck {
        id: u16,
        code: u8,
    },
    PingReq,
    PingResp,
    Disconnect,
}

/// Bytes that are no packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PacketError {
    /// Longer than any here.
    TooLong,
    /// Of a type that has no business here, by its first byte.
    Unexpected(u8),
    /// It doesn't hold what its type says.
    Malformed,
}

impl std::fmt::Display for PacketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => f.write_str("a packet that is too long"),
            Self::Unexpected(first) => {
                write!(f, "a packet that doesn't belong here, of first byte {first:#04x}")
            }
            Self::Malformed => f.write_str("a malformed packet"),
        }
    }
}

impl<'a> Packet<'a> {
    /// Appends its bytes.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Connect { client_id, clean, keep_alive_s } => {
                head(out, 0x10, 10 + 2 + client_id.len());
                string(out, "MQTT");
                out.extend([LEVEL, u8::from(clean) << 1]);
                out.extend(keep_alive_s.to_be_bytes());
                string(out, client_id);
            }
            Self::ConnAck { session_present, code } => out.extend([0x20, 2, u8::from(session_present), code]),
            Self::Publish { topic, id, dup, payload } => {
                let flags = u8::from(dup) << 3 | u8::from(id.is_some()) << 1;
                let id_bytes = if id.is_some() { 2 } else { 0 };
                head(out, 0x30 | flags, 2 + topic.len() + id_bytes + payload.len());
                string(out, topic);
                if let Some(id) = id {
                    out.extend(id.to_be_bytes());
                }
                out.extend(payload);
            }
            Self::PubAck { id } => {
                out.extend([0x40, 2]);
                out.extend(id.to_be_bytes());
            }
            Self::Subscribe { id, topic, qos } => {
                head(out, 0x82, 2 + 2 + topic.len() + 1);
                out.extend(id.to_be_bytes());
                string(out, topic);
                out.push(qos);
            }
            Self::SubAck { id, code } => {
                out.extend([0x90, 3]);
                out.extend(id.to_be_bytes());
                out.push(code);
            }
            Self::PingReq => out.extend([0xc0, 0]),
            Self::PingResp => out.extend([0xd0, 0]),
            Self::Disconnect => out.extend([0xe0, 0]),
        }
    }

    /// The first packet of these bytes and how many they are; `None`: it isn't all there yet.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, PacketError> {
        let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
        let Some((length, length_bytes)) = remaining(rest)? else { return Ok(None) };
        let Some(rest) = rest.get(length_bytes..length_bytes + length) else { return Ok(None) };
        let mut fields = Fields(rest);
        let packet = Self::of(first, &mut fields).ok_or(PacketError::Malformed)??;
        // Publish has taken the rest as its payload.
        if !fields.0.is_empty() {
            return Err(PacketError::Malformed);
        }
        Ok(Some((packet, 1 + length_bytes + length)))
    }

    /// `None`: a field is missing, or not what it must be.
    fn of(first: u8, fields: &mut Fields<'a>) -> Option<Result<Self, PacketError>> {
        Some(Ok(match first {
            0x10 => {
                let known = fields.string()? == "MQTT" && fields.byte()? == LEVEL;
                let flags = fields.byte()?;
                if !known || flags & !2 != 0 {
                    return None;
                }
                let keep_alive_s = fields.number()?;
                Self::Connect { client_id: fields.string()?, clean: flags & 2 != 0, keep_alive_s }
            }
            0x20 => Self::ConnAck { session_present: fields.byte()? & 1 != 0, code: fields.byte()? },
            0x30..=0x3f => {
                let topic = fields.string()?;
                let id = match first >> 1 & 3 {
                    0 => None,
                    1 => Some(fields.number()?),
                    _ => return Some(Err(PacketError::Unexpected(first))),
                };
                let payload = std::mem::take(&mut fields.0);
                Self::Publish { topic, id, dup: first & 8 != 0, payload }
            }
            0x40 => Self::PubAck { id: fields.number()? },
            0x82 => Self::Subscribe { id: fields.number()?, topic: fields.string()?, qos: fields.byte()? },
            0x90 => Self::SubAck { id: fields.number()?, code: fields.byte()? },
            0xc0 => Self::PingReq,
            0xd0 => Self::PingResp,
            0xe0 => Self::Disconnect,
            _ => return Some(Err(PacketError::Unexpected(first))),
        }))
    }
}

fn head(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    while length >= 0x80 {
        out.push(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// The remaining length and its own bytes.
fn remaining(bytes: &[u8]) -> Result<Option<(usize, usize)>, PacketError> {
    let mut length = 0;
    for (n, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * n);
        if length > PACKET_BYTES {
            return Err(PacketError::TooLong);
        }
        if byte & 0x80 == 0 {
            return Ok(Some((length, n + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(PacketError::Malformed) }
}

/// What is left of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = self.number()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(packet: Packet<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.put(&mut bytes);
        bytes
    }

    #[test]
    fn bytes_are_those_of_the_standard() {
        let connect = Packet::Connect { client_id: "d", clean: false, keep_alive_s: 240 };
        assert_eq!(bytes_of(connect), b"\x10\x0d\x00\x04MQTT\x04\x00\x00\xf0\x00\x01d");
        let publish = Packet::Publish { topic: "a/b", id: Some(10), dup: false, payload: b"x" };
        assert_eq!(bytes_of(publish), b"\x32\x08\x00\x03a/b\x00\x0ax");
        let subscribe = Packet::Subscribe { id: 10, topic: "a/b", qos: 1 };
        assert_eq!(bytes_of(subscribe), b"\x82\x08\x00\x0a\x00\x03a/b\x01");
        assert_eq!(bytes_of(Packet::PubAck { id: 258 }), b"\x40\x02\x01\x02");
        assert_eq!(bytes_of(Packet::PingReq), b"\xc0\x00");
        // 321 = 65 + 2 * 128.
        let long = Packet::Publish { topic: "", id: None, dup: false, payload: &[0; 319] };
        assert_eq!(bytes_of(long)[..3], [0x30, 193, 2]);
    }

    #[test]
    fn what_is_no_packet_is_an_error() {
        let error = |bytes: &[u8]| Packet::read(bytes).expect_err("no packet");
        assert_eq!(error(&[0x00, 0]), PacketError::Unexpected(0));
        // QoS 2.
        assert_eq!(error(&[0x34, 4, 0, 0, 0, 1]), PacketError::Unexpected(0x34));
        assert_eq!(error(&[0x40, 3, 0, 1, 9]), PacketError::Malformed);
        assert_eq!(error(&[0x40, 1, 0]), PacketError::Malformed);
        assert_eq!(error(&[0x30, 0xff, 0xff, 0xff]), PacketError::TooLong);
        assert_eq!(error(&[0x30, 0x80, 0x80, 0x80, 0x80]), PacketError::Malformed);
    }

    /// Any packet, from texts and bytes that outlive it.
    fn packet<'a>(kind: u8, text: &'a str, payload: &'a [u8], id: u16, flag: bool) -> Packet<'a> {
        match kind {
            0 => Packet::Connect { client_id: text, clean: flag, keep_alive_s: id },
            1 => Packet::ConnAck { session_present: flag, code: id as u8 },
            2 => Packet::Publish { topic: text, id: Some(id), dup: flag, payload },
            3 => Packet::Publish { topic: text, id: None, dup: false, payload },
            4 => Packet::PubAck { id },
            5 => Packet::Subscribe { id, topic: text, qos: id as u8 & 1 },
            6 => Packet::SubAck { id, code: id as u8 },
            7 => Packet::PingReq,
            8 => Packet::PingResp,
            _ => Packet::Disconnect,
        }
    }

    proptest! {
        #[test]
        fn what_is_put_is_read(
            kind in 0u8..10, text in ".{0,300}", payload in prop::collection::vec(any::<u8>(), 0..5_000),
            id in any::<u16>(), flag in any::<bool>(), next in any::<u8>(),
        ) {
            let packet = packet(kind, &text, &payload, id, flag);
            let mut bytes = bytes_of(packet);
            let length = bytes.len();
            for cut in (0..length).step_by(1 + length / 50) {
                prop_assert_eq!(Packet::read(&bytes[..cut]), Ok(None));
            }
            bytes.push(next);
            prop_assert_eq!(Packet::read(&bytes), Ok(Some((packet, length))));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((packet, length))) = Packet::read(&bytes) {
                prop_assert!(length <= bytes.len());
                // Said again it is the same packet, if not the same bytes.
                let again = bytes_of(packet);
                prop_assert_eq!(Packet::read(&again), Ok(Some((packet, again.len()))));
            }
        }
    }
}
