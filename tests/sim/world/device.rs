//! A simulated device: the client library's machine, and a user and a network of many moods.

mod heard;
mod identity;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mooring::binding::{Binding, Unbind};
use mooring::client::Backoff;
use mooring::client::device::{Asked, End, Machine, Next, Request, Settings};
use mooring::credential::{self, InstallSecret, Secret};
use mooring::ids::{AppKey, DeviceKey, DigestKey};
use mooring::push::Millis;
use mooring::sim::{Pipe, SECRET, START};
use mooring::wire::frame::{device_frame, put_device_frame};
use mooring::wire::pb::device as pb;
use prost::Message;
use rand::Rng;
use rand::rngs::SmallRng;

use super::chance::once_in;
use super::link::Link;
use super::oracle::{Oracle, Seen, ensure};
use identity::epoch_shown;

fn is_of_account(request: &Request) -> bool {
    matches!(request, Request::Bind(Binding::Account(_)) | Request::Unbind(Unbind::Account(_)))
}

pub(crate) struct Device {
    pub(crate) id: String,
    pub(crate) key: DeviceKey,
    app_key: AppKey,
    /// It has got its id and its credential from the edge.
    pub(crate) registers: bool,
    /// The directory had it after the last step.
    pub(crate) was_there: bool,
    machine: Machine,
    session: Option<Session>,
    /// Connections that it has forgotten, and the edge hasn't.
    pub(crate) ghosts: Vec<Pipe>,
    pub(crate) connect_at: Millis,
    /// Of its own clock, milliseconds ahead.
    ahead: i64,
    sessions: u32,
    /// Handed to the app since it was installed.
    app: BTreeSet<u64>,
    mood: Mood,
    until: Millis,
    /// Who is logged in, as the edge last said.
    account: String,
    /// Requests about accounts that the edge has not answered.
    asked: usize,
    /// The push switch, as the user wants it.
    push_on: bool,
    /// The app was reinstalled: nothing that was accepted up to this sequence comes any more, once a session has begun.
    lost: Option<u64>,
}

/// How it behaves for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Prompt,
    /// Acknowledges nothing.
    Mute,
    /// Reads a few bytes at a time.
    Slow,
    /// Reads nothing.
    Stopped,
}

struct Session {
    number: u32,
    link: Link,
    /// Handed to the app once their Acks are on their way.
    stored: Vec<pb::Push>,
    /// What each Ack said, by its number.
    acks: BTreeMap<u64, Vec<(u64, i32)>>,
    newest_ack: u64,
    got: BTreeSet<u64>,
    seen: Seen,
    /// Of the credential that it began with; registering, of the one that it was given.
    epoch: Option<u32>,
    /// At which step it said Hello.
    hello_at: u64,
}

impl Device {
    /// With an install secret it registers, else it has a credential of an issuer.
    pub(crate) fn new(
        number: usize,
        app: &AppKey,
        digest: &DigestKey,
        install: Option<InstallSecret>,
        rng: &mut SmallRng,
    ) -> Self {
        let secret = Secret::from_bytes(SECRET);
        let given = |install| credential::device_id(&secret, app, &install);
        let id = install.map_or_else(|| format!("device-{number}"), given);
        let attributes = pb::Attributes { brand: "vivo".into(), ..Default::default() };
        let settings = Settings {
            app_key: app.as_str().into(),
            device_id: if install.is_none() { id.clone() } else { String::new() },
            credential: install.map_or_else(|| credential::issue(&secret, app, &id, 1), |_| Vec::new()),
            install_secret: install.map(|install| *install.as_bytes()),
            attributes: Arc::new(attributes),
            heartbeat_seconds: 0,
            backoff: Backoff::at_most(1_500),
            seed: rng.random(),
        };
        let mut machine = Machine::new(settings);
        if rng.random() {
            machine.hurry();
        }
        Self {
            key: DeviceKey::of(digest, app, &id),
            app_key: app.clone(),
            registers: install.is_some(),
            was_there: false,
            id,
            machine,
            session: None,
            ghosts: Vec::new(),
            connect_at: rng.random_range(0..3_000),
            ahead: rng.random_range(-60_000..60_000),
            sessions: 0,
            app: BTreeSet::new(),
            mood: Mood::Prompt,
            until: 0,
            account: String::new(),
            asked: 0,
            push_on: true,
            lost: None,
        }
    }

    pub(crate) fn pipes(&self) -> impl Iterator<Item = &Pipe> {
        self.ghosts.iter().chain(self.session.as_ref().map(|session| &session.link.pipe))
    }

    pub(crate) fn app(&self) -> &str {
        self.app_key.as_str()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.machine.is_connected()
    }

    pub(crate) fn has_link(&self) -> bool {
        self.session.is_some()
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.machine.unsettled()
    }

    /// Its own clock: milliseconds since 1970 UTC too, so that one that is behind doesn't stand still at zero.
    fn local(&self, now: Millis) -> Millis {
        (START + now).saturating_add_signed(self.ahead)
    }

    /// A connection stands: says Hello. Everything up to `head` is durable by now.
    pub(crate) fn connected(&mut self, now: Millis, pipe: Pipe, head: u64, oracle: &mut Oracle) {
        let hello = self.machine.handle_connected(self.local(now));
        if hello.state_lost {
            self.lost.get_or_insert(head);
        }
        for message in &hello.received {
            oracle.said.insert((self.id.clone(), *message));
        }
        let epoch = epoch_shown(&hello);
        let mut bytes = Vec::new();
        let frame = Some(pb::to_edge::Frame::Hello(hello));
        put_device_frame(&mut bytes, &pb::ToEdge { frame });
        self.sessions += 1;
        let seen = Seen { device: self.id.clone(), firsts: Vec::new() };
        let mut session = Session {
            number: self.sessions,
            link: Link::new(pipe),
            stored: Vec::new(),
            acks: BTreeMap::new(),
            newest_ack: 0,
            got: BTreeSet::new(),
            seen,
            epoch,
            hello_at: oracle.step,
        };
        session.link.queue(&bytes);
        self.session = Some(session);
    }

    /// What was written to it and never read counts as sent all the same.
    pub(crate) fn look_at_unread(&mut self, oracle: &mut Oracle) {
        let Some(session) = &mut self.session else { return };
        session.link.fill(usize::MAX);
        while let Ok(Some((bytes, _))) = session.link.next(device_frame) {
            let frame = pb::ToDevice::decode(&*bytes).ok().and_then(|frame| frame.frame);
            if let Some(pb::to_device::Frame::Push(push)) = frame
                && oracle.only_batch(&self.id, push.message_id).is_some_and(|(_, sent, _)| sent.online_only)
            {
                let key = (self.id.clone(), push.message_id);
                oracle.online.entry(key).or_default().insert(session.number);
            }
        }
    }

    /// Opens a second connection while the edge still has the first.
    pub(crate) fn forget_connection(&mut self, now: Millis, oracle: &mut Oracle) {
        self.look_at_unread(oracle);
        if let Some(session) = self.session.take() {
            self.ghosts.push(session.link.pipe.clone());
            oracle.sessions.push(session.seen);
            self.machine.handle_end(End::Broken);
            self.connect_at = now;
        }
    }

    /// The connection is over on this side.
    pub(crate) fn disconnect(&mut self, now: Millis, end: End, cut: bool, oracle: &mut Oracle) {
        self.look_at_unread(oracle);
        let Some(session) = self.session.take() else { return };
        if cut {
            session.link.pipe.cut();
        } else {
            session.link.pipe.end();
            // Nobody takes any more of it.
            self.ghosts.push(session.link.pipe.clone());
        }
        oracle.sessions.push(session.seen);
        self.connect_at = now
            + match self.machine.handle_end(end) {
                Next::Again { wait, .. } => wait,
                // The user starts the app again.
                Next::Stop => 1_000,
            };
    }

    /// The user asks for something, now and then.
    pub(crate) fn ask(&mut self, now: Millis, rng: &mut SmallRng, oracle: &mut Oracle) -> Option<String> {
        let account = format!("account-{}", rng.random_range(0..3));
        let request = match rng.random_range(0..2_500) {
            0..8 if self.push_on => {
                oracle.switched_off.insert(self.id.clone());
                self.push_on = false;
                Request::Push(false)
            }
            0..60 if !self.push_on => {
                self.push_on = true;
                Request::Push(true)
            }
            60..80 => Request::Bind(Binding::Account(account.as_str().into())),
            80..90 => Request::Unbind(Unbind::Account(account.as_str().into())),
            90..100 => Request::Bind(Binding::Tag("tag".into())),
            100..104 => {
                self.machine.lose_state();
                self.app.clear();
                self.account.clear();
                oracle.reinstalled.insert(self.id.clone());
                self.disconnect(now, End::Broken, true, oracle);
                return Some(format!("{} is reinstalled", self.id));
            }
            _ => return None,
        };
        let words = format!("{} asks: {}", self.id, request.words());
        let of_account = is_of_account(&request);
        if self.machine.request(request) && of_account {
            self.asked += 1;
        }
        Some(words)
    }

    /// A change of mood, now and then.
    pub(crate) fn change_mood(&mut self, now: Millis, rng: &mut SmallRng) {
        if self.mood == Mood::Prompt && once_in(rng, 150) {
            self.mood = match rng.random_range(0..4) {
                0 => Mood::Stopped,
                1 => Mood::Slow,
                _ => Mood::Mute,
            };
            self.until = now + rng.random_range(200..12_000);
        } else if now >= self.until {
            self.mood = Mood::Prompt;
        }
    }

    /// The edge may have forgotten that the app was reinstalled.
    pub(crate) fn forget_reinstallation(&mut self) {
        self.lost = None;
    }

    pub(crate) fn calm_down(&mut self) {
        self.mood = Mood::Prompt;
        self.machine.hurry();
    }

    /// Reads, says what it has to say. What it saw, for the trace.
    pub(crate) fn act(
        &mut self,
        now: Millis,
        is_calm: bool,
        (user, network): (&mut SmallRng, &mut SmallRng),
        oracle: &mut Oracle,
        trace: &mut dyn FnMut(String),
    ) -> Result<(), String> {
        let local = self.local(now);
        if let Some(end) = self.machine.handle_timeout(local) {
            trace(format!("{} is tired of waiting", self.id));
            self.disconnect(now, end, false, oracle);
            return Ok(());
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        let most = match self.mood {
            Mood::Stopped => 0,
            Mood::Slow => user.random_range(0..40),
            Mood::Prompt | Mood::Mute => usize::MAX,
        };
        session.link.fill(most);
        let over = session.link.pipe.is_over();
        let mut end = None;
        while let Some(session) = &mut self.session {
            let frame = session.link.next(device_frame);
            let frame = frame.map_err(|error| format!("{} got what is no frame: {error}", self.id))?;
            let Some((bytes, written)) = frame else { break };
            let frame = pb::ToDevice::decode(&*bytes);
            let frame = frame.map_err(|error| format!("{} can't decode a frame: {error}", self.id))?;
            let Some(frame) = frame.frame else { continue };
            self.note(&frame, written, oracle, trace)?;
            match self.machine.handle_frame(local, frame) {
                Asked::Deliver(push) => {
                    if let Some(session) = &mut self.session {
                        session.stored.push(*push);
                    }
                }
                Asked::Replied(answered) => {
                    let (request, result) = *answered;
                    self.replied(&request, result.is_ok());
                }
                Asked::End(why) => {
                    end = Some(why);
                    break;
                }
                _ => {}
            }
        }
        if end.is_some() || over && most == usize::MAX {
            self.hand_over(local, user)?;
            self.disconnect(now, end.unwrap_or(End::Broken), false, oracle);
            return Ok(());
        }
        if self.mood != Mood::Mute {
            self.say(local, oracle, trace);
            self.hand_over(local, user)?;
        }
        if let Some(session) = &mut self.session {
            session.link.flush(network, is_calm);
        }
        Ok(())
    }

    fn replied(&mut self, request: &Request, is_done: bool) {
        if !is_of_account(request) {
            return;
        }
        self.asked -= 1;
        match request {
            Request::Bind(Binding::Account(account)) if is_done => self.account = account.to_string(),
            Request::Unbind(Unbind::Account(account)) if is_done && *self.account == **account => {
                self.account.clear();
            }
            _ => {}
        }
    }

    fn say(&mut self, local: Millis, oracle: &mut Oracle, trace: &mut dyn FnMut(String)) {
        while let Some(frame) = self.machine.poll_send(local) {
            let Some(session) = &mut self.session else { return };
            if let pb::to_edge::Frame::Ack(ack) = &frame {
                let events: Vec<_> =
                    ack.events.iter().map(|event| (event.message_id, event.r#type)).collect();
                trace(format!("{} says {events:?} as {} on session {}", self.id, ack.number, session.number));
                for (message, _) in &events {
                    oracle.said.insert((self.id.clone(), *message));
                }
                session.newest_ack = ack.number;
                session.acks.insert(ack.number, events);
            }
            if let pb::to_edge::Frame::Ping(_) = &frame {
                trace(format!("{} pings on session {}", self.id, session.number));
            }
            let mut bytes = Vec::new();
            put_device_frame(&mut bytes, &pb::ToEdge { frame: Some(frame) });
            session.link.queue(&bytes);
        }
    }

    /// The app gets what was stored: each message once.
    fn hand_over(&mut self, local: Millis, user: &mut SmallRng) -> Result<(), String> {
        let Some(session) = &mut self.session else { return Ok(()) };
        for push in std::mem::take(&mut session.stored) {
            let message = push.message_id;
            ensure!(self.app.insert(message), "{}: the app got {message} twice", self.id);
            if push.kind() == pb::Kind::Notification && once_in(user, 3) {
                let event = if user.random() { pb::EventType::Click } else { pb::EventType::Clean };
                self.machine.react(local, message, event, user.random_range(0..4_000));
            }
        }
        Ok(())
    }
}
