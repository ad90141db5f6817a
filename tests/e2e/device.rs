//! A device made of frames, so that a test decides everything that it does.

use std::collections::VecDeque;

use mooring::client::ClientError;
use mooring::client::device::{Link, frame_name};
use mooring::pki::DEV_APP;
use mooring::wire::pb::device::{
    Ack, Attributes, Bind, ErrorCode, Event, EventType, GoAwayReason, Hello, Login, Push, PushState,
    PushSwitch, Unbind, Welcome, bind, hello, to_device, to_edge, unbind,
};

use super::edge::{Edge, Way};

/// Seconds that a test waits for a frame.
pub(crate) const SECONDS: u64 = 60;

/// A device that is connected and welcome.
pub(crate) struct Device {
    pub(crate) link: Link,
    pub(crate) welcome: Welcome,
    /// The newest Ack's number.
    pub(crate) acks: u64,
    /// The newest number confirmed.
    pub(crate) confirmed: u64,
    pongs: u64,
    /// Came while something else was waited for.
    kept: VecDeque<Push>,
    /// Messages that were taken back.
    pub(crate) revoked: Vec<u64>,
}

/// A Hello of this device with a genuine credential.
pub(crate) fn hello_of(edge: &Edge, device_id: &str) -> Hello {
    hello_with(DEV_APP, device_id, edge.credential(DEV_APP, device_id, 1))
}

/// A Hello with what is given.
pub(crate) fn hello_with(app: &str, device_id: &str, credential: Vec<u8>) -> Hello {
    let login = Login { device_id: device_id.into(), credential };
    let attributes = Attributes { brand: "vivo".into(), app_version: "5.20".into(), ..Attributes::default() };
    Hello {
        app_key: app.into(),
        identity: Some(hello::Identity::Login(login)),
        attributes: Some(attributes),
        ..Hello::default()
    }
}

/// A Bind.
pub(crate) fn bind(request_id: u64, binding: bind::Binding) -> to_edge::Frame {
    to_edge::Frame::Bind(Bind { request_id, binding: Some(binding) })
}

/// An Unbind.
pub(crate) fn unbind(request_id: u64, binding: unbind::Binding) -> to_edge::Frame {
    to_edge::Frame::Unbind(Unbind { request_id, binding: Some(binding) })
}

impl Edge {
    /// Connects; says nothing.
    pub(crate) async fn connect(&self, way: Way) -> Link {
        Link::connect(&self.device_endpoint(way)).await.expect("connected")
    }

    /// A connected device.
    pub(crate) async fn device(&self, way: Way, device_id: &str) -> Device {
        self.device_saying(way, hello_of(self, device_id)).await
    }

    /// A connected device that said this.
    pub(crate) async fn device_saying(&self, way: Way, hello: Hello) -> Device {
        Device::over(self.connect(way).await, hello).await
    }

    /// Connects once, so that the edge knows the device, and leaves.
    pub(crate) async fn register(&self, device_ids: &[&str]) {
        for id in device_ids {
            self.device(Way::Plain, id).await.leave(self, id).await;
        }
    }
}

impl Device {
    /// A device over a link that said nothing yet.
    pub(crate) async fn over(mut link: Link, hello: Hello) -> Self {
        let welcome = link.hello(hello).await.expect("a Welcome");
        Self { link, welcome, acks: 0, confirmed: 0, pongs: 0, kept: VecDeque::new(), revoked: Vec::new() }
    }

    /// A session that goes on over the same stream.
    pub(crate) fn resumed(link: Link, welcome: Welcome, acks: u64, confirmed: u64) -> Self {
        Self { link, welcome, acks, confirmed, pongs: 0, kept: VecDeque::new(), revoked: Vec::new() }
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> to_device::Frame {
        self.link.recv(SECONDS).await.expect("a frame")
    }

    /// The next frame, or `None` where the connection ends. An edge that neither says more nor ends it is a failure.
    pub(crate) async fn next_to_the_end(&mut self) -> Option<to_device::Frame> {
        match self.link.recv(SECONDS).await {
            Ok(frame) => Some(frame),
            Err(ClientError::Closed | ClientError::Io(_)) => None,
            Err(error) => panic!("an end was expected, not: {error}"),
        }
    }

    /// The next push.
    pub(crate) async fn push(&mut self) -> Push {
        if let Some(push) = self.kept.pop_front() {
            return push;
        }
        loop {
            if let Some(push) = self.step().await {
                return push;
            }
        }
    }

    /// A push that the test read itself and that is to come again from [`Self::push`].
    pub(crate) fn keep(&mut self, push: Push) {
        self.kept.push_back(push);
    }

    /// One frame: a push, or something noted.
    async fn step(&mut self) -> Option<Push> {
        match self.next().await {
            to_device::Frame::Push(push) => return Some(push),
            to_device::Frame::AckConfirm(confirm) => {
                assert!(confirm.number > self.confirmed, "confirmed numbers only grow");
                assert!(confirm.number <= self.acks, "only what was said is confirmed");
                self.confirmed = confirm.number;
            }
            to_device::Frame::Pong(_) => self.pongs += 1,
            to_device::Frame::Revoke(revoke) => self.revoked.push(revoke.message_id),
            other => panic!("{} came", frame_name(&other)),
        }
        None
    }

    /// Says what happened; the Ack's number.
    pub(crate) async fn say(&mut self, events: &[(u64, EventType)]) -> u64 {
        self.acks += 1;
        let event = |&(message_id, kind): &(u64, EventType)| Event {
            message_id,
            r#type: kind.into(),
            time_milliseconds: self.welcome.server_time_milliseconds,
        };
        let ack = Ack { number: self.acks, events: events.iter().map(event).collect() };
        self.link.send(to_edge::Frame::Ack(ack)).await.expect("sent");
        self.acks
    }

    /// Asks for what is durable: else it is said with the next frame that comes anyway.
    pub(crate) async fn ping(&mut self) {
        self.link.send(to_edge::Frame::Ping(mooring::wire::pb::device::Ping {})).await.expect("sent");
    }

    /// Asks, and waits until an Ack is durable.
    pub(crate) async fn is_confirmed(&mut self, number: u64) {
        if self.confirmed >= number {
            return;
        }
        let pongs = self.pongs + 1;
        self.ping().await;
        while self.confirmed < number || self.pongs < pongs {
            let push = self.step().await;
            self.kept.extend(push);
        }
    }

    /// Takes and acknowledges everything that waits for it, until all of that is durable. `false`: there was no room for an Ack at the moment, and the
    /// edge has sent it away.
    pub(crate) async fn takes_all(&mut self) -> bool {
        loop {
            let acks = self.acks;
            let ping = to_edge::Frame::Ping(mooring::wire::pb::device::Ping {});
            let mut sent = self.link.send(ping).await.is_ok();
            loop {
                match self.next_to_the_end().await {
                    Some(to_device::Frame::Push(push)) => {
                        self.acks += 1;
                        let event = Event {
                            message_id: push.message_id,
                            r#type: EventType::Arrive.into(),
                            time_milliseconds: self.welcome.server_time_milliseconds,
                        };
                        let ack = Ack { number: self.acks, events: vec![event] };
                        // What it was sent away for is still to be read.
                        sent &= self.link.send(to_edge::Frame::Ack(ack)).await.is_ok();
                    }
                    Some(to_device::Frame::AckConfirm(confirm)) => self.confirmed = confirm.number,
                    Some(to_device::Frame::Pong(_)) => break,
                    Some(to_device::Frame::Error(error)) => {
                        assert_eq!(error.code(), ErrorCode::Unavailable, "{error:?}");
                        return false;
                    }
                    None => return false,
                    Some(other) => panic!("{} came: {other:?}", frame_name(&other)),
                }
            }
            if sent && self.acks == acks && self.confirmed == acks {
                return true;
            }
        }
    }

    /// Says that a message arrived, and waits until that is durable.
    pub(crate) async fn arrive(&mut self, message_id: u64) {
        let number = self.say(&[(message_id, EventType::Arrive)]).await;
        self.is_confirmed(number).await;
    }

    /// The next push is this one; it arrives.
    pub(crate) async fn takes(&mut self, message_id: u64) -> Push {
        let push = self.push().await;
        assert_eq!(push.message_id, message_id);
        self.arrive(message_id).await;
        push
    }

    /// Nothing was pushed up to now: what the edge had to say before a Pong is said.
    pub(crate) async fn has_nothing(&mut self) {
        assert_eq!(self.kept.front(), None);
        self.ping().await;
        loop {
            match self.next().await {
                to_device::Frame::Pong(_) => return,
                to_device::Frame::AckConfirm(confirm) => self.confirmed = confirm.number,
                to_device::Frame::Revoke(revoke) => self.revoked.push(revoke.message_id),
                other => panic!("{} came: {other:?}", frame_name(&other)),
            }
        }
    }

    /// Waits until this message is taken back; nothing else comes before.
    pub(crate) async fn is_revoked(&mut self, message_id: u64) {
        while !self.revoked.contains(&message_id) {
            let push = self.step().await;
            assert_eq!(push.map(|push| push.message_id), None);
        }
    }

    /// Switches push on or off, durably.
    pub(crate) async fn switch(&mut self, state: PushState) {
        let switch = PushSwitch { request_id: 7, state: state.into() };
        self.link.send(to_edge::Frame::PushSwitch(switch)).await.expect("sent");
        let to_device::Frame::Reply(reply) = self.next().await else { panic!("no reply") };
        assert_eq!((reply.request_id, reply.ok), (7, true));
    }

    /// Asks for something; `id` is the request's.
    pub(crate) async fn ask(&mut self, request: to_edge::Frame) {
        self.link.send(request).await.expect("sent");
    }

    /// The next reply: request id, and how it was answered.
    pub(crate) async fn reply(&mut self) -> (u64, Result<(), ErrorCode>) {
        loop {
            match self.next().await {
                to_device::Frame::Reply(reply) => {
                    let code = reply.code();
                    return (reply.request_id, if reply.ok { Ok(()) } else { Err(code) });
                }
                to_device::Frame::Push(push) => self.kept.push_back(push),
                to_device::Frame::AckConfirm(confirm) => self.confirmed = confirm.number,
                other => panic!("{} came", frame_name(&other)),
            }
        }
    }

    /// Binds, durably.
    pub(crate) async fn bind(&mut self, binding: bind::Binding) {
        self.ask(bind(9, binding)).await;
        assert_eq!(self.reply().await, (9, Ok(())));
    }

    /// Binds no more, durably.
    pub(crate) async fn unbind(&mut self, binding: unbind::Binding) {
        self.ask(unbind(9, binding)).await;
        assert_eq!(self.reply().await, (9, Ok(())));
    }

    /// Goes away, and waits until the edge has noticed.
    pub(crate) async fn leave(self, edge: &Edge, device_id: &str) {
        self.link.close().await.expect("closed");
        is_gone(edge, device_id).await;
    }

    /// Is told to go away.
    pub(crate) async fn goes_away(&mut self) -> GoAwayReason {
        match self.next().await {
            to_device::Frame::GoAway(go_away) => go_away.reason(),
            other => panic!("{} came", frame_name(&other)),
        }
    }
}

/// Waits until the edge knows that the device isn't connected.
pub(crate) async fn is_gone(edge: &Edge, device_id: &str) {
    let path = format!("/v1/device/{DEV_APP}/{device_id}");
    let look = async {
        while edge.ask(&path).await["connected"] == true {
            tokio::time::sleep(super::edge::LOOK).await;
        }
    };
    tokio::time::timeout(super::edge::NEVER, look).await.expect("the edge notices");
}

/// The edge closes with this code, and with nothing behind it.
pub(crate) async fn is_refused(link: &mut Link, code: ErrorCode) -> mooring::wire::pb::device::Error {
    let error = match link.recv(SECONDS).await {
        Ok(to_device::Frame::Error(error)) => error,
        other => panic!("{code:?} was expected, not {other:?}"),
    };
    assert_eq!(error.code(), code, "{}", error.text);
    is_closed(link).await;
    error
}

/// The edge closes, in order, without another word.
pub(crate) async fn is_closed(link: &mut Link) {
    match link.recv(SECONDS).await {
        Err(ClientError::Closed) => {}
        other => panic!("the end was expected, not {other:?}"),
    }
}
