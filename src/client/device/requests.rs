//! What a device asks of the edge: the push switch, bind, unbind. Each is sent once a session, in order, until it is answered.
//!
//! Asking for the same again changes nothing at the edge: so after a cut link everything that has no reply is simply asked again.

use std::collections::VecDeque;

use crate::binding::{Binding, Unbind, is_bindable};
use crate::wire::pb::device::{
    Bind, ErrorCode, PushState, PushSwitch, Reply, Unbind as UnbindFrame, bind, to_edge, unbind,
};

/// Requests that wait for their reply; beyond, no more are taken.
pub const REQUESTS: usize = 1_024;

/// Something that a device asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// The push switch.
    Push(bool),
    /// Bind.
    Bind(Binding),
    /// Bind no more.
    Unbind(Unbind),
}

impl Request {
    /// Reads "bind account alice", "unbind account alice", "bind tag vip", "unbind phone", "push off".
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = text.trim().splitn(3, ' ');
        let (verb, kind, what) = (words.next().unwrap_or(""), words.next(), words.next());
        if verb == "push" {
            return match (kind, what) {
                (Some("on"), None) => Ok(Self::Push(true)),
                (Some("off"), None) => Ok(Self::Push(false)),
                _ => Err("use 'push on' or 'push off'".into()),
            };
        }
        if (verb, kind, what) == ("unbind", Some("phone"), None) {
            return Ok(Self::Unbind(Unbind::Phone));
        }
        let kind = kind.unwrap_or_default();
        let kinds = ["account", "alias", "tag", "phone"];
        if !matches!(verb, "bind" | "unbind") || !kinds.contains(&kind) {
            return Err("use bind or unbind with account, alias, tag or phone; or push on, push off".into());
        }
        let what = what.map(str::trim).unwrap_or_default();
        if !is_bindable(what) {
            return Err("what is bound has 1 to 128 bytes and no control characters".into());
        }
        let text = what.into();
        match (verb, kind) {
            ("bind", "account") => Ok(Self::Bind(Binding::Account(text))),
            ("bind", "alias") => Ok(Self::Bind(Binding::Alias(text))),
            ("bind", "tag") => Ok(Self::Bind(Binding::Tag(text))),
            ("bind", "phone") => Ok(Self::Bind(Binding::Phone(text))),
            ("unbind", "account") => Ok(Self::Unbind(Unbind::Account(text))),
            ("unbind", "alias") => Ok(Self::Unbind(Unbind::Alias(text))),
            ("unbind", "tag") => Ok(Self::Unbind(Unbind::Tag(text))),
            _ => Err("a device has one phone number: use 'unbind phone'".into()),
        }
    }

    /// The words that [`Self::parse`] reads.
    pub fn words(&self) -> String {
        match self {
            Self::Push(on) => format!("push {}", if *on { "on" } else { "off" }),
            Self::Bind(binding) => format!("bind {} {}", binding.kind(), binding.text()),
            Self::Unbind(Unbind::Account(text)) => format!("unbind account {text}"),
            Self::Unbind(Unbind::Alias(text)) => format!("unbind alias {text}"),
            Self::Unbind(Unbind::Tag(text)) => format!("unbind tag {text}"),
            Self::Unbind(Unbind::Phone) => "unbind phone".into(),
        }
    }

    fn frame(&self, request_id: u64) -> to_edge::Frame {
        match self {
            Self::Push(on) => {
                let state = if *on { PushState::On } else { PushState::Off };
                to_edge::Frame::PushSwitch(PushSwitch { request_id, state: state.into() })
            }
            Self::Bind(binding) => {
                let text = binding.text().to_string();
                let binding = match binding {
                    Binding::Account(_) => bind::Binding::Account(text),
                    Binding::Alias(_) => bind::Binding::Alias(text),
                    Binding::Tag(_) => bind::Binding::Tag(text),
                    Binding::Phone(_) => bind::Binding::Phone(text),
                };
                to_edge::Frame::Bind(Bind { request_id, binding: Some(binding) })
            }
            Self::Unbind(what) => {
                let binding = match what {
                    Unbind::Account(text) => unbind::Binding::Account(text.to_string()),
                    Unbind::Alias(text) => unbind::Binding::Alias(text.to_string()),
                    Unbind::Tag(text) => unbind::Binding::Tag(text.to_string()),
                    Unbind::Phone => unbind::Binding::Phone(true),
                };
                to_edge::Frame::Unbind(UnbindFrame { request_id, binding: Some(binding) })
            }
        }
    }
}

/// A request and how it was answered.
pub type Answered = (Request, Result<(), ErrorCode>);

/// Requests without a reply, oldest first.
#[derive(Debug, Default)]
pub(super) struct Requests {
    waiting: VecDeque<(u64, Request)>,
    newest: u64,
    /// Of `waiting`, how many this session sent.
    sent: usize,
}

impl Requests {
    /// Takes one more. `false`: too many wait.
    pub(super) fn push(&mut self, request: Request) -> bool {
        let fits = self.waiting.len() < REQUESTS;
        if fits {
            self.newest += 1;
            self.waiting.push_back((self.newest, request));
        }
        fits
    }

    /// A new session has heard of none of them.
    pub(super) fn begin_session(&mut self) {
        self.sent = 0;
    }

    pub(super) fn poll_send(&mut self) -> Option<to_edge::Frame> {
        let (id, request) = self.waiting.get(self.sent)?;
        self.sent += 1;
        Some(request.frame(*id))
    }

    /// The request that a reply answers, if it waits for one.
    pub(super) fn handle_reply(&mut self, reply: &Reply) -> Option<Answered> {
        let at = self.waiting.iter().take(self.sent).position(|(id, _)| *id == reply.request_id)?;
        let (_, request) = self.waiting.remove(at)?;
        self.sent -= 1;
        Some((request, if reply.ok { Ok(()) } else { Err(reply.code()) }))
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(requests: &mut Requests) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(frame) = requests.poll_send() {
            ids.push(match frame {
                to_edge::Frame::Bind(bind) => bind.request_id,
                to_edge::Frame::Unbind(unbind) => unbind.request_id,
                to_edge::Frame::PushSwitch(switch) => switch.request_id,
                other => panic!("{other:?}"),
            });
        }
        ids
    }

    #[test]
    fn what_has_no_reply_is_asked_again_on_the_next_session_and_answered_once() {
        let mut requests = Requests::default();
        for text in ["bind account alice", "bind tag vip", "push off"] {
            assert!(requests.push(Request::parse(text).expect("valid")));
        }
        let reply = |request_id, ok| Reply { request_id, ok, code: 9, text: String::new() };
        assert_eq!(requests.handle_reply(&reply(1, true)), None, "it wasn't sent");
        assert_eq!(ids(&mut requests), [1, 2, 3]);
        let (request, result) = requests.handle_reply(&reply(1, true)).expect("it waits");
        assert_eq!((request.words().as_str(), result), ("bind account alice", Ok(())));
        assert_eq!(requests.handle_reply(&reply(1, true)), None, "once");
        requests.begin_session();
        assert_eq!(ids(&mut requests), [2, 3]);
        assert!(requests.push(Request::Unbind(Unbind::Phone)));
        assert_eq!(ids(&mut requests), [4]);
        let answered = requests.handle_reply(&reply(3, false)).expect("it waits");
        assert_eq!(answered, (Request::Push(false), Err(ErrorCode::Invalid)));
        assert_eq!(requests.len(), 2);
    }

    #[test]
    fn words_are_read_as_they_are_written_and_wrong_ones_named() {
        for text in [
            "push on",
            "push off",
            "bind account alice smith",
            "bind alias a",
            "bind tag vip",
            "bind phone +86 138",
            "unbind account alice",
            "unbind alias a",
            "unbind tag vip",
            "unbind phone",
        ] {
            assert_eq!(Request::parse(text).expect("valid").words(), text);
        }
        for text in
            ["", "push", "push maybe", "bind", "bind account", "bind color red", "unbind phone 1", "grow"]
        {
            assert!(Request::parse(text).is_err(), "{text}");
        }
        assert!(Request::parse(&format!("bind tag {}", "x".repeat(129))).is_err());
    }
}
