//! The device protocol: frames of `device.proto` parsed once into types that can't be wrong, and answers encoded.

use std::sync::Arc;

use prost::Message;
use smallvec::SmallVec;

use super::bindings::{parse_bind, parse_unbind};
use super::frame::put_device_frame;
use super::pb::device as pb;
use crate::binding::Change;
use crate::credential::InstallSecret;
use crate::error::DeviceError;
use crate::ids::{AppKey, MessageId};
use crate::limits;
use crate::push::{Attributes, Event, Millis};

/// Appended to an encoded push, it makes it a redelivered one: field 100 = true. Protobuf lets fields be appended.
pub const REDELIVERED: [u8; 3] = [0xa0, 0x06, 0x01];

/// Before an Ack: field 2, a message.
const ACK_TAG: u8 = 2 << 3 | 2;

/// A frame from a device.
#[derive(Clone, PartialEq, Debug)]
pub enum ToEdge {
    /// Who it is.
    Hello(Box<Hello>),
    /// What became of messages.
    Ack {
        /// From 1, without gaps.
        number: u64,
        /// 1 to `limits::ACK_EVENTS`: message, event, the device's time. One, mostly.
        events: SmallVec<[(MessageId, Event, Millis); 1]>,
    },
    /// Heartbeat.
    Ping,
    /// A request: answered by one Reply, if it has an id (not 0).
    Request {
        /// To be repeated in the Reply.
        request_id: u64,
        /// What it asks for, or what it is answered with.
        change: Result<Box<Change>, pb::ErrorCode>,
    },
    /// A frame of a later version: skipped.
    Unknown,
}

/// A device's first frame.
#[derive(Clone, PartialEq, Debug)]
pub struct Hello {
    /// Its app.
    pub app: AppKey,
    /// How it says who it is.
    pub identity: Identity,
    /// The package name that runs, or empty.
    pub package: Box<str>,
    /// What the receipt log says of it.
    pub attributes: Attributes,
    /// The push switch, if it said.
    pub push_on: Option<bool>,
    /// Ids that it has: arrive acks.
    pub received: Vec<MessageId>,
    /// The heartbeat it would like, seconds; 0: the default.
    pub heartbeat_s: u32,
    /// The app was reinstalled.
    pub state_lost: bool,
}

/// How a device says who it is.
#[derive(Clone, PartialEq, Debug)]
pub enum Identity {
    /// It has an id and a credential.
    Login {
        /// Its id.
        device_id: Arc<str>,
        /// Unchecked.
        credential: Vec<u8>,
    },
    /// It wants them.
    Register {
        /// Names the installation.
        install_secret: InstallSecret,
        /// Of the app's backend, unchecked; or empty.
        token: Vec<u8>,
    },
}

/// Parses one frame's body.
pub fn parse(body: &[u8]) -> Result<ToEdge, DeviceError> {
    let malformed = |_| DeviceError::Malformed("not a ToEdge message");
    if let Some(ack) = only_ack(body) {
        return parse_ack(&pb::Ack::decode(ack).map_err(malformed)?);
    }
    let frame = pb::ToEdge::decode(body).map_err(malformed)?;
    Ok(match frame.frame {
        None => ToEdge::Unknown,
        Some(pb::to_edge::Frame::Hello(hello)) => ToEdge::Hello(Box::new(parse_hello(hello)?)),
        Some(pb::to_edge::Frame::Ack(ack)) => parse_ack(&ack)?,
        Some(pb::to_edge::Frame::Ping(pb::Ping {})) => ToEdge::Ping,
        Some(pb::to_edge::Frame::Attributes(attributes)) => {
            let request_id = attributes.request_id;
            let push_on = parse_switch(attributes.push);
            let attributes = parse_attributes(attributes)?;
            ToEdge::Request { request_id, change: Ok(Box::new(Change::Attributes { attributes, push_on })) }
        }
        Some(pb::to_edge::Frame::PushSwitch(switch)) => match parse_switch(switch.state) {
            Some(push_on) => {
                ToEdge::Request { request_id: switch.request_id, change: Ok(Box::new(Change::Push(push_on))) }
            }
            None => return Err(DeviceError::Malformed("push switch without a state")),
        },
        Some(pb::to_edge::Frame::Bind(bind)) => {
            ToEdge::Request { request_id: bind.request_id, change: parse_bind(bind.binding) }
        }
        Some(pb::to_edge::Frame::Unbind(unbind)) => {
            ToEdge::Request { request_id: unbind.request_id, change: parse_unbind(unbind.binding) }
        }
    })
}

/// The Ack, where the frame is nothing else: nearly all are. What has room for a frame of any kind takes about as long to move as an Ack to be read.
fn only_ack(body: &[u8]) -> Option<&[u8]> {
    let (&tag, mut rest) = body.split_first()?;
    let length = prost::encoding::decode_varint(&mut rest).ok()?;
    (tag == ACK_TAG && length == rest.len() as u64).then_some(rest)
}

fn parse_hello(hello: pb::Hello) -> Result<Hello, DeviceError> {
    // An app key or device id that can't exist is as unknown as any other: which part was wrong is not told.
    let app = AppKey::parse(&hello.app_key).ok_or(DeviceError::Unauthenticated)?;
    let identity = match hello.identity {
        Some(pb::hello::Identity::Login(login)) => {
            if !is_device_id(&login.device_id) || login.credential.len() > limits::CREDENTIAL_BYTES {
                return Err(DeviceError::Unauthenticated);
            }
            Identity::Login { device_id: login.device_id.into(), credential: login.credential }
        }
        Some(pb::hello::Identity::Register(register)) => parse_register(register)?,
        None => return Err(DeviceError::Unauthenticated),
    };
    if hello.received.len() > limits::HELLO_RECEIVED {
        return Err(DeviceError::Malformed("more than 256 received ids"));
    }
    let attributes = hello.attributes.unwrap_or_default();
    Ok(Hello {
        app,
        identity,
        package: attributes.package.as_str().into(),
        push_on: parse_switch(attributes.push),
        attributes: parse_attributes(attributes)?,
        received: hello.received.into_iter().map(MessageId).collect(),
        heartbeat_s: hello.heartbeat_seconds,
        state_lost: hello.state_lost,
    })
}

fn parse_register(register: pb::Register) -> Result<Identity, DeviceError> {
    let install_secret = InstallSecret::from_bytes(&register.install_secret)
        .ok_or(DeviceError::Malformed("an install secret is 16 random bytes"))?;
    if register.token.len() > limits::REGISTER_TOKEN_BYTES {
        return Err(DeviceError::Malformed("a token of more than 4,096 bytes"));
    }
    Ok(Identity::Register { install_secret, token: register.token })
}

/// Whether `text` can be a device id: 1 to 64 bytes of UTF-8 without control characters.
pub fn is_device_id(text: &str) -> bool {
    (1..=limits::DEVICE_ID_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn parse_switch(state: i32) -> Option<bool> {
    match pb::PushState::try_from(state) {
        Ok(pb::PushState::On) => Some(true),
        Ok(pb::PushState::Off) => Some(false),
        _ => None,
    }
}

/// Checks lengths, and keeps what the receipt log needs. Encoded again, so that unknown fields don't grow the journal.
fn parse_attributes(mut attributes: pb::Attributes) -> Result<Attributes, DeviceError> {
    attributes.request_id = 0;
    attributes.push = 0;
    let a = &attributes;
    let strings = [
        &a.package,
        &a.app_version,
        &a.sdk_version,
        &a.brand,
        &a.model,
        &a.os,
        &a.os_version,
        &a.network_type,
        &a.isp,
        &a.utdid,
    ];
    if strings.iter().any(|s| s.len() > limits::ATTRIBUTE_BYTES)
        || attributes.encoded_len() > limits::ATTRIBUTES_BYTES
    {
        return Err(DeviceError::Malformed("attributes too long"));
    }
    Ok(Attributes::whole(attributes.encode_to_vec().into()))
}

fn parse_ack(ack: &pb::Ack) -> Result<ToEdge, DeviceError> {
    if ack.events.is_empty() || ack.events.len() > limits::ACK_EVENTS {
        return Err(DeviceError::Malformed("an Ack has 1 to 256 events"));
    }
    let events = ack
        .events
        .iter()
        .filter_map(|event| {
            // Event types of a later version are skipped.
            let kind = match pb::EventType::try_from(event.r#type) {
                Ok(pb::EventType::Arrive) => Event::Arrive,
                Ok(pb::EventType::Click) => Event::Click,
                Ok(pb::EventType::Clean) => Event::Clean,
                _ => return None,
            };
            Some((MessageId(event.message_id), kind, event.time_milliseconds))
        })
        .collect();
    Ok(ToEdge::Ack { number: ack.number, events })
}

fn put(out: &mut Vec<u8>, frame: pb::to_device::Frame) {
    put_device_frame(out, &pb::ToDevice { frame: Some(frame) });
}

/// Appends a push: `body` is the encoded `Push`.
pub fn put_push(out: &mut Vec<u8>, body: &[u8], redelivered: bool) {
    const PUSH_FIELD: u8 = 2 << 3 | 2;
    let length = body.len() + if redelivered { REDELIVERED.len() } else { 0 };
    let frame = 1 + prost::encoding::encoded_len_varint(length as u64) + length;
    prost::encoding::encode_varint(frame as u64, out);
    out.push(PUSH_FIELD);
    prost::encoding::encode_varint(length as u64, out);
    out.extend_from_slice(body);
    if redelivered {
        out.extend_from_slice(&REDELIVERED);
    }
}

/// What a Welcome says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The id of a device that registered, or empty.
    pub device_id: String,
    /// A new or renewed credential, or empty.
    pub credential: Vec<u8>,
    /// Holds for this session, seconds.
    pub heartbeat_s: u32,
    /// The edge's bounds, seconds.
    pub heartbeat_bounds_s: (u32, u32),
    /// Edge time.
    pub now: Millis,
}

/// Appends a Welcome.
pub fn put_welcome(out: &mut Vec<u8>, welcome: Welcome) {
    put(
        out,
        pb::to_device::Frame::Welcome(pb::Welcome {
            device_id: welcome.device_id,
            credential: welcome.credential,
            heartbeat_seconds: welcome.heartbeat_s,
            heartbeat_min_seconds: welcome.heartbeat_bounds_s.0,
            heartbeat_max_seconds: welcome.heartbeat_bounds_s.1,
            server_time_milliseconds: welcome.now,
            window: limits::WINDOW as u32,
            max_frame_bytes: limits::DEVICE_FRAME_BYTES as u32,
            max_ack_events: limits::ACK_EVENTS as u32,
        }),
    );
}

/// Appends an `AckConfirm`: everything up to `number` is durable.
pub fn put_ack_confirm(out: &mut Vec<u8>, number: u64) {
    put(out, pb::to_device::Frame::AckConfirm(pb::AckConfirm { number }));
}

/// Appends a Pong.
pub fn put_pong(out: &mut Vec<u8>, now: Millis) {
    put(out, pb::to_device::Frame::Pong(pb::Pong { server_time_milliseconds: now }));
}

/// Appends the Reply to a request.
pub fn put_reply(out: &mut Vec<u8>, request_id: u64, result: Result<(), pb::ErrorCode>) {
    let (ok, code, text) = match result {
        Ok(()) => (true, 0, ""),
        Err(code) => (false, code as i32, reply_text(code)),
    };
    put(out, pb::to_device::Frame::Reply(pb::Reply { request_id, ok, code, text: text.into() }));
}

/// For a developer's log.
fn reply_text(code: pb::ErrorCode) -> &'static str {
    match code {
        pb::ErrorCode::Invalid => {
            "an account, alias, tag or phone has 1 to 128 bytes without control characters; a device has 128 aliases and tags at most"
        }
        pb::ErrorCode::ResourceExhausted => "there is no room for it at present",
        pb::ErrorCode::Unimplemented => "this edge does not know that binding",
        _ => "",
    }
}

/// Appends a Revoke: the message is taken back.
pub fn put_revoke(out: &mut Vec<u8>, message: MessageId) {
    put(out, pb::to_device::Frame::Revoke(pb::Revoke { message_id: message.0 }));
}

/// Appends a `GoAway`.
pub fn put_go_away(out: &mut Vec<u8>, reason: pb::GoAwayReason, delay_ms: u32) {
    put(
        out,
        pb::to_device::Frame::GoAway(pb::GoAway {
            reason: reason as i32,
            delay_milliseconds: delay_ms,
            address: String::new(),
        }),
    );
}

/// Appends the Error that ends a connection, if this reason has one.
pub fn put_error(out: &mut Vec<u8>, error: DeviceError) {
    if let Some((code, retry_after_milliseconds)) = error.code() {
        let error = pb::Error { code: code as i32, text: error.to_string(), retry_after_milliseconds };
        put(out, pb::to_device::Frame::Error(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::device_frame;
    use proptest::prelude::*;

    fn only_frame(bytes: &[u8]) -> pb::to_device::Frame {
        let (head, body) = device_frame(bytes).expect("a frame").expect("whole");
        assert_eq!(head + body, bytes.len());
        pb::ToDevice::decode(&bytes[head..]).expect("decodes").frame.expect("a frame")
    }

    #[test]
    fn a_push_is_marked_redelivered_without_encoding_it_again() {
        let push = pb::Push { message_id: 7, title: "t".into(), body: "b".repeat(200), ..Default::default() };
        let body = push.encode_to_vec();
        for redelivered in [false, true] {
            let mut out = Vec::new();
            put_push(&mut out, &body, redelivered);
            let pb::to_device::Frame::Push(got) = only_frame(&out) else { panic!("a push") };
            assert_eq!(got, pb::Push { redelivered, ..push.clone() });
        }
    }

    #[test]
    fn an_ack_is_the_same_alone_and_beside_what_a_later_version_adds() {
        let event = pb::Event { message_id: 7, r#type: pb::EventType::Arrive.into(), time_milliseconds: 9 };
        let ack = pb::Ack { number: 3, events: vec![event; 2] };
        let alone = pb::ToEdge { frame: Some(pb::to_edge::Frame::Ack(ack)) }.encode_to_vec();
        assert!(only_ack(&alone).is_some());
        let mut with_more = alone.clone();
        with_more.extend(REDELIVERED);
        assert!(only_ack(&with_more).is_none());
        let events = vec![(MessageId(7), Event::Arrive, 9); 2].into();
        assert_eq!(parse(&alone), Ok(ToEdge::Ack { number: 3, events }));
        assert_eq!(parse(&with_more), parse(&alone));
        for cut in 0..alone.len() {
            assert!(!matches!(parse(&alone[..cut]), Ok(ToEdge::Ack { .. })), "cut at {cut}");
        }
        let ping = pb::ToEdge { frame: Some(pb::to_edge::Frame::Ping(pb::Ping {})) }.encode_to_vec();
        assert_eq!((only_ack(&ping), parse(&ping)), (None, Ok(ToEdge::Ping)));
    }

    #[test]
    fn what_is_told_of_a_wrong_identity_is_the_same_whatever_is_wrong() {
        let hello = |app: &str, device: &str, credential: usize| {
            let login = pb::Login { device_id: device.into(), credential: vec![0; credential] };
            let hello = pb::Hello {
                app_key: app.into(),
                identity: Some(pb::hello::Identity::Login(login)),
                ..Default::default()
            };
            parse(&pb::ToEdge { frame: Some(pb::to_edge::Frame::Hello(hello)) }.encode_to_vec())
        };
        assert!(hello("a", "d", 37).is_ok());
        for (app, device, credential) in [("", "d", 1), ("a", "", 1), ("a", "d\n", 1), ("a", "d", 65)] {
            assert_eq!(hello(app, device, credential), Err(DeviceError::Unauthenticated));
        }
    }

    #[test]
    fn a_registration_has_sixteen_random_bytes_and_a_token_within_the_limit() {
        let register = |secret: &[u8], token: usize| {
            let register = pb::Register { install_secret: secret.into(), token: vec![b'x'; token] };
            let identity = Some(pb::hello::Identity::Register(register));
            let hello = pb::Hello { app_key: "a".into(), identity, ..Default::default() };
            parse(&pb::ToEdge { frame: Some(pb::to_edge::Frame::Hello(hello)) }.encode_to_vec())
        };
        let Ok(ToEdge::Hello(hello)) = register(&[7; 16], 5) else { panic!("a Hello") };
        let install_secret = InstallSecret::from_bytes(&[7; 16]).expect("16 bytes");
        assert_eq!(hello.identity, Identity::Register { install_secret, token: b"xxxxx".into() });
        assert!(register(&[7; 16], 4_096).is_ok());
        for (secret, token) in [(&[][..], 0), (&[7; 15], 0), (&[7; 17], 0), (&[0; 16], 0), (&[7; 16], 4_097)]
        {
            assert!(matches!(register(secret, token), Err(DeviceError::Malformed(_))));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _parsed = parse(&bytes);
            let _found = device_frame(&bytes);
        }
    }
}
