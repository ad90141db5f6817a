//! A device in a model: the client library's machine at the other end of a simulated connection.

use std::net::SocketAddr;
use std::sync::Arc;

use prost::Message;

use super::world::{DEVICE, app};
use crate::client::Backoff;
use crate::client::device::{Asked, End, Machine, Settings};
use crate::credential::{self, Secret};
use crate::push::Millis;
use crate::sim::{Pipe, SECRET, SimShard};
use crate::wire::frame::{device_frame, put_device_frame};
use crate::wire::pb::device as pb;

/// Bytes that the edge's kernel takes.
const ROOM: usize = 16_384;

pub(super) struct Phone {
    machine: Machine,
    pub(super) pipe: Pipe,
    input: Vec<u8>,
    /// Messages, as they came.
    pub(super) got: Vec<u64>,
    /// Of them, those that the edge said it sends again.
    pub(super) again: Vec<u64>,
    /// What it acknowledged, as far as that was sent.
    pub(super) said: Vec<u64>,
    /// How many of them were said by each Ack and those before it.
    acks: Vec<usize>,
    /// Of that, what the edge has confirmed.
    pub(super) confirmed: Vec<u64>,
    pub(super) is_welcome: bool,
    /// Answers to its pings.
    pub(super) pongs: usize,
    pub(super) end: Option<End>,
}

impl Phone {
    /// Connects, and says Hello.
    pub(super) fn connect(shard: &mut SimShard, now: Millis) -> Self {
        let pipe = Pipe::new(ROOM);
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        assert!(shard.accept(&pipe, peer), "there is a place at the door");
        let settings = Settings {
            app_key: app().as_str().into(),
            device_id: DEVICE.into(),
            credential: credential::issue(&Secret::from_bytes(SECRET), &app(), DEVICE, 1),
            install_secret: None,
            attributes: Arc::default(),
            heartbeat_seconds: 0,
            backoff: Backoff::at_most(1_000),
            seed: 1,
        };
        let mut machine = Machine::new(settings);
        // So that what it is told doesn't wait for a frame that nobody has a reason to write.
        machine.hurry();
        let hello = machine.handle_connected(now);
        let mut phone = Self {
            machine,
            pipe,
            input: Vec::new(),
            got: Vec::new(),
            again: Vec::new(),
            said: Vec::new(),
            acks: Vec::new(),
            confirmed: Vec::new(),
            is_welcome: false,
            pongs: 0,
            end: None,
        };
        phone.send(pb::to_edge::Frame::Hello(hello));
        phone
    }

    pub(super) fn send(&mut self, frame: pb::to_edge::Frame) {
        let mut bytes = Vec::new();
        put_device_frame(&mut bytes, &pb::ToEdge { frame: Some(frame) });
        self.pipe.send(&bytes);
    }

    /// Reads what the edge wrote. Whether that was anything.
    pub(super) fn read(&mut self, now: Millis) -> bool {
        for (bytes, _) in self.pipe.take(usize::MAX) {
            self.input.extend(bytes);
        }
        let before = self.input.len();
        while let Some((head, body)) = device_frame(&self.input).expect("frames") {
            let frame =
                pb::ToDevice::decode(&self.input[head..head + body]).expect("a frame of the protocol");
            self.input.drain(..head + body);
            if let Some(frame) = frame.frame {
                self.take(now, frame);
            }
        }
        before > 0
    }

    fn take(&mut self, now: Millis, frame: pb::to_device::Frame) {
        match &frame {
            pb::to_device::Frame::Push(push) => {
                assert!(self.is_welcome, "a push comes before the Welcome");
                self.got.push(push.message_id);
                self.again.extend(push.redelivered.then_some(push.message_id));
            }
            pb::to_device::Frame::Welcome(_) => self.is_welcome = true,
            pb::to_device::Frame::Pong(_) => self.pongs += 1,
            pb::to_device::Frame::AckConfirm(confirm) => {
                self.confirmed = self.said[..self.acks[confirm.number as usize - 1]].to_vec();
            }
            _ => {}
        }
        if let Asked::End(end) = self.machine.handle_frame(now, frame) {
            self.end = Some(end);
        }
    }

    /// Says what it has to say. Whether that was anything.
    pub(super) fn say(&mut self, now: Millis) -> bool {
        let mut said = false;
        while let Some(frame) = self.machine.poll_send(now) {
            if let pb::to_edge::Frame::Ack(ack) = &frame {
                self.said.extend(ack.events.iter().map(|event| event.message_id));
                self.acks.push(self.said.len());
            }
            self.send(frame);
            said = true;
        }
        said
    }
}
