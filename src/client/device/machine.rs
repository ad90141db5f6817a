//! A device's behaviour, as `proto/device.proto` documents it. Pure: no I/O, no clock; time is an argument and random numbers come
//! from a seed, so that a whole life of sessions runs in a unit test.
//!
//! Invariants:
//! - A message is stored (its id is among the seen) before it is acknowledged, and acknowledged before the app gets it.
//! - The app gets a message once, however often and over however many sessions it comes.
//! - Events are kept in one queue, oldest first, until an `AckConfirm` covers them. A session sends them from the front under
//!   numbers from 1; a new session starts at the front again. So the queue's sent part and the session's Acks always agree.

use std::collections::VecDeque;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::ends::{End, Next, go_away, refused};
use super::requests::{Answered, Request, Requests};
use super::seen::Seen;
use crate::client::Backoff;
use crate::limits;
use crate::push::Millis;
use crate::wire::pb::device::{
    Ack, Attributes, ErrorCode, Event, EventType, Hello, Login, Ping, Push, PushState, Register, Welcome,
    hello, to_device, to_edge,
};

/// Events that wait for a confirmation; beyond, new pushes are left unacknowledged (the edge keeps them) and clicks are dropped.
pub const UNCONFIRMED_EVENTS: usize = 4_096;
/// Milliseconds for the Welcome.
const HELLO_MS: Millis = 15_000;
/// Milliseconds for the Pong, or anything else, after a Ping.
const PONG_MS: Millis = 30_000;

/// Who the device is and how it behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The app.
    pub app_key: std::sync::Arc<str>,
    /// The device; empty if it has to register first.
    pub device_id: String,
    /// Its credential.
    pub credential: Vec<u8>,
    /// With it the device can register again when its credential is refused.
    pub install_secret: Option<[u8; 16]>,
    /// What the receipt log says of it.
    pub attributes: std::sync::Arc<Attributes>,
    /// The heartbeat it would like, seconds; 0: the edge's default.
    pub heartbeat_seconds: u32,
    /// How long it waits before it connects again.
    pub backoff: Backoff,
    /// Of the random waits.
    pub seed: u64,
}

/// What a device did and saw, since it was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Messages handed to the app.
    pub received: u64,
    /// Pushes dropped because their id had been seen.
    pub duplicates_dropped: u64,
    /// Pushes that came marked as redelivered.
    pub redelivered: u64,
    /// Pushes that came after their expiry: acknowledged, not handed to the app.
    pub expired: u64,
    /// Messages taken back by the edge.
    pub revoked: u64,
    /// Bindings that the edge made.
    pub bound: u64,
    /// Arrive events sent, repeats after a reconnect not counted.
    pub arrived: u64,
    /// Events that the edge confirmed as durable.
    pub confirmed: u64,
    /// Clicks.
    pub clicked: u64,
    /// Cleans.
    pub cleaned: u64,
    /// Welcomes after the first one.
    pub reconnects: u64,
    /// Sessions that were welcomed.
    pub sessions: u64,
}

/// What a frame asks of the driver.
#[derive(Debug)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// A session began.
    Welcomed,
    /// Hand this to the app, once its Ack is written.
    Deliver(Box<Push>),
    /// The device's id or credential changed: keep them.
    Keep,
    /// Take this message back, if it is still to be seen.
    Revoke(u64),
    /// A request was answered.
    Replied(Box<Answered>),
    /// The session is over, for this reason.
    End(End),
}

/// One device.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    rng: SmallRng,
    seen: Seen,
    /// Not confirmed yet, oldest first.
    events: VecDeque<Event>,
    /// Clicks and cleans that the user makes later.
    later: Vec<(Millis, u64, EventType)>,
    session: Option<Session>,
    /// It has no credential, or the last one was refused: the next Hello registers.
    registering: bool,
    /// Of the app's backend, for the next registration.
    token: Vec<u8>,
    /// Without a reply yet.
    requests: Requests,
    /// The app was reinstalled, and the edge doesn't know yet.
    state_lost: bool,
    /// It wants its events confirmed now.
    hurries: bool,
    /// What it did and saw.
    pub tally: Tally,
}

#[derive(Debug)]
struct Session {
    /// Sent Hello and waits for the Welcome since then.
    greeting: bool,
    /// Of the `events`, how many this session sent.
    sent: usize,
    /// Acks of this session that are not confirmed: how many events each has.
    acks: VecDeque<u32>,
    /// The number of the first of `acks`.
    first_ack: u64,
    /// The newest Ack that a Ping has followed.
    asked: u64,
    last_sent: Millis,
    pinged: bool,
    /// A Ping is due, whatever the heartbeat says.
    probes: bool,
    heartbeat: Millis,
    max_events: usize,
    /// Edge time less local time, milliseconds.
    ahead: i64,
}

impl Machine {
    /// A device that was never connected.
    pub fn new(settings: Settings) -> Self {
        let rng = SmallRng::seed_from_u64(settings.seed);
        Self {
            registering: settings.device_id.is_empty(),
            token: Vec::new(),
            settings,
            rng,
            seen: Seen::default(),
            events: VecDeque::new(),
            later: Vec::new(),
            session: None,
            requests: Requests::default(),
            state_lost: false,
            hurries: false,
            tally: Tally::default(),
        }
    }

    /// Its id.
    pub fn device_id(&self) -> &str {
        &self.settings.device_id
    }

    /// Its credential.
    pub fn credential(&self) -> &[u8] {
        &self.settings.credential
    }

    /// Whether the next Hello registers. Then it may need a token: [`Self::set_token`].
    pub fn is_registering(&self) -> bool {
        self.registering && self.settings.install_secret.is_some()
    }

    /// Gives it the token to register with. They live shortly: it is asked for anew each time.
    pub fn set_token(&mut self, token: Vec<u8>) {
        self.token = token;
    }

    /// Events that are not confirmed yet, or still to be made, and requests without a reply.
    pub fn unsettled(&self) -> usize {
        self.events.len() + self.later.len() + self.requests.len()
    }

    /// Whether the arrival of this message is still to be confirmed.
    pub fn is_unconfirmed(&self, message_id: u64) -> bool {
        self.events.iter().any(|e| e.message_id == message_id && e.r#type() == EventType::Arrive)
    }

    /// Whether the user taps or dismisses this message later, unless it is taken back before.
    pub fn reacts_later(&self, message_id: u64) -> bool {
        self.later.iter().any(|(_, id, _)| *id == message_id)
    }

    /// Edge time, as far as the session's Welcome tells.
    pub fn edge_time(&self, now: Millis) -> Millis {
        now.saturating_add_signed(self.session.as_ref().map_or(0, |s| s.ahead))
    }

    /// Asks the edge for something: once a session, until it is answered. `false`: too much waits already.
    pub fn request(&mut self, request: Request) -> bool {
        if let Request::Push(on) = request {
            self.switch_push(on);
        }
        self.requests.push(request)
    }

    /// The app was reinstalled: what it had seen and had to say is gone, and the next Hello tells so.
    pub fn lose_state(&mut self) {
        self.seen = Seen::default();
        self.events = VecDeque::new();
        self.later = Vec::new();
        self.session = None;
        self.state_lost = true;
    }

    /// Sets the push switch: the next Hello says so.
    pub fn switch_push(&mut self, on: bool) {
        let state = if on { PushState::On } else { PushState::Off };
        std::sync::Arc::make_mut(&mut self.settings.attributes).push = state.into();
    }

    /// The app came to the foreground, or the network changed: asks the edge whether the connection still stands, without waiting for the
    /// heartbeat. QUIC says nothing by itself when the edge has crashed.
    pub fn probe(&mut self) {
        if let Some(session) = &mut self.session {
            session.probes = true;
        }
    }

    /// It is about to be suspended, or to leave: a Ping follows each Ack from now on, as the edge else confirms them with whatever it has to say next.
    pub fn hurry(&mut self) {
        self.hurries = true;
    }

    /// Whether it asks for confirmations.
    pub fn hurries(&self) -> bool {
        self.hurries
    }

    /// Whether it is welcome.
    pub fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|s| !s.greeting)
    }

    /// The connection stands: the Hello to send first.
    pub fn handle_connected(&mut self, now: Millis) -> Hello {
        self.session = Some(Session::new(now));
        self.requests.begin_session();
        let settings = &self.settings;
        let identity = match settings.install_secret {
            Some(secret) if self.registering => {
                let token = std::mem::take(&mut self.token);
                hello::Identity::Register(Register { install_secret: secret.to_vec(), token })
            }
            _ => hello::Identity::Login(Login {
                device_id: settings.device_id.clone(),
                credential: settings.credential.clone(),
            }),
        };
        let received = self.events.iter().filter(|e| e.r#type() == EventType::Arrive).map(|e| e.message_id);
        Hello {
            app_key: settings.app_key.to_string(),
            identity: Some(identity),
            attributes: Some((*settings.attributes).clone()),
            received: received.take(limits::HELLO_RECEIVED).collect(),
            state_lost: self.state_lost,
            heartbeat_seconds: settings.heartbeat_seconds,
        }
    }

    /// A frame came.
    pub fn handle_frame(&mut self, now: Millis, frame: to_device::Frame) -> Asked {
        let Some(session) = &mut self.session else { return Asked::Nothing };
        session.pinged = false;
        match frame {
            to_device::Frame::Welcome(welcome) => self.welcome(now, welcome),
            to_device::Frame::Push(push) => self.push(now, push),
            to_device::Frame::AckConfirm(confirm) => {
                self.confirm(confirm.number);
                Asked::Nothing
            }
            to_device::Frame::Revoke(revoke) => {
                self.revoke(now, revoke.message_id);
                Asked::Revoke(revoke.message_id)
            }
            to_device::Frame::GoAway(away) => Asked::End(go_away(away)),
            to_device::Frame::Error(error) => Asked::End(refused(&error)),
            to_device::Frame::Reply(reply) => {
                let Some(answered) = self.requests.handle_reply(&reply) else { return Asked::Nothing };
                self.tally.bound += u64::from(matches!(answered, (Request::Bind(_), Ok(()))));
                Asked::Replied(Box::new(answered))
            }
            to_device::Frame::Pong(_) => Asked::Nothing,
        }
    }

    fn welcome(&mut self, now: Millis, welcome: Welcome) -> Asked {
        let Some(session) = &mut self.session else { return Asked::Nothing };
        session.greeting = false;
        session.heartbeat = Millis::from(welcome.heartbeat_seconds.max(1)) * 1_000;
        session.max_events = (welcome.max_ack_events as usize).clamp(1, limits::ACK_EVENTS);
        session.ahead = welcome.server_time_milliseconds.wrapping_sub(now).cast_signed();
        self.settings.backoff.reset();
        self.registering = false;
        self.state_lost = false;
        self.tally.reconnects += u64::from(self.tally.sessions > 0);
        self.tally.sessions += 1;
        let renewed = !welcome.credential.is_empty() || !welcome.device_id.is_empty();
        if !welcome.credential.is_empty() {
            self.settings.credential = welcome.credential;
        }
        if !welcome.device_id.is_empty() {
            self.settings.device_id = welcome.device_id;
        }
        if renewed { Asked::Keep } else { Asked::Welcomed }
    }

    fn push(&mut self, now: Millis, push: Push) -> Asked {
        self.tally.redelivered += u64::from(push.redelivered);
        if self.events.len() >= UNCONFIRMED_EVENTS {
            // Not stored, not acknowledged: it stays pending at the edge.
            return Asked::Nothing;
        }
        let id = push.message_id;
        if !self.seen.insert(id, now) {
            self.tally.duplicates_dropped += 1;
            if !self.is_unconfirmed(id) {
                self.event(now, id, EventType::Arrive);
            }
            return Asked::Nothing;
        }
        self.event(now, id, EventType::Arrive);
        self.tally.arrived += 1;
        if push.expires_milliseconds != 0 && self.edge_time(now) >= push.expires_milliseconds {
            self.tally.expired += 1;
            return Asked::Nothing;
        }
        self.tally.received += 1;
        Asked::Deliver(Box::new(push))
    }

    /// The message was taken back: if it comes all the same, over another channel perhaps, it is acknowledged and not shown; and what is gone
    /// can't be tapped or dismissed.
    fn revoke(&mut self, now: Millis, message_id: u64) {
        self.tally.revoked += 1;
        self.seen.insert(message_id, now);
        self.later.retain(|(_, id, _)| *id != message_id);
    }

    fn confirm(&mut self, number: u64) {
        let Some(session) = &mut self.session else { return };
        while session.first_ack <= number {
            let Some(events) = session.acks.pop_front() else { break };
            session.first_ack += 1;
            let events = events as usize;
            session.sent -= events;
            self.tally.confirmed += events as u64;
            self.events.drain(..events);
        }
    }

    /// The user taps or dismisses a message that the app got, after so many milliseconds.
    pub fn react(&mut self, now: Millis, message_id: u64, event: EventType, delay: Millis) {
        if self.unsettled() >= UNCONFIRMED_EVENTS {
            return;
        }
        match event {
            EventType::Click => self.tally.clicked += 1,
            EventType::Clean => self.tally.cleaned += 1,
            EventType::Arrive | EventType::Unspecified => return,
        }
        if delay == 0 {
            self.event(now, message_id, event);
        } else {
            self.later.push((now + delay, message_id, event));
        }
    }

    fn event(&mut self, now: Millis, message_id: u64, event: EventType) {
        let time = self.edge_time(now);
        self.events.push_back(Event { message_id, r#type: event.into(), time_milliseconds: time });
    }

    /// The next frame to write, until there is none.
    pub fn poll_send(&mut self, now: Millis) -> Option<to_edge::Frame> {
        let session = self.session.as_mut().filter(|s| !s.greeting)?;
        // Before the acks: who is logged in decides what comes next.
        if let Some(frame) = self.requests.poll_send() {
            session.last_sent = now;
            return Some(frame);
        }
        if session.sent < self.events.len() {
            // As many events as wait share one Ack.
            let count = (self.events.len() - session.sent).min(session.max_events);
            let number = session.first_ack + session.acks.len() as u64;
            let events = self.events.range(session.sent..session.sent + count).copied().collect();
            session.sent += count;
            session.acks.push_back(count as u32);
            session.last_sent = now;
            return Some(to_edge::Frame::Ack(Ack { number, events }));
        }
        let newest = session.first_ack - 1 + session.acks.len() as u64;
        let asks = self.hurries && !session.acks.is_empty() && session.asked < newest;
        let is_due = session.probes || now >= session.last_sent + session.heartbeat;
        if asks || !session.pinged && is_due {
            session.asked = newest;
            session.pinged = true;
            session.probes = false;
            session.last_sent = now;
            return Some(to_edge::Frame::Ping(Ping {}));
        }
        None
    }

    /// When [`Self::handle_timeout`] has to be called next.
    pub fn next_timeout(&self) -> Millis {
        let later = self.later.iter().map(|(due, ..)| *due).min().unwrap_or(Millis::MAX);
        let session = self.session.as_ref().map_or(Millis::MAX, |s| {
            if s.greeting {
                s.last_sent + HELLO_MS
            } else if s.pinged {
                s.last_sent + PONG_MS
            } else {
                s.last_sent + s.heartbeat
            }
        });
        later.min(session)
    }

    /// The time has come for something. `Some`: the edge is silent.
    pub fn handle_timeout(&mut self, now: Millis) -> Option<End> {
        let mut i = 0;
        while i < self.later.len() {
            if self.later[i].0 <= now {
                let (_, message_id, event) = self.later.swap_remove(i);
                self.event(now, message_id, event);
            } else {
                i += 1;
            }
        }
        let session = self.session.as_ref()?;
        let silent = (session.greeting && now >= session.last_sent + HELLO_MS)
            || (session.pinged && now >= session.last_sent + PONG_MS);
        silent.then_some(End::Silent)
    }

    /// The session, or the attempt at one, is over: what now.
    pub fn handle_end(&mut self, end: End) -> Next {
        self.session = None;
        let (rng, backoff) = (&mut self.rng, &mut self.settings.backoff);
        let again = |wait| Next::Again { wait, address: None };
        match end {
            End::Broken | End::Silent => again(backoff.wait(rng)),
            End::Replaced => Next::Stop,
            End::Away { delay, address } => Next::Again { wait: delay, address },
            End::Refused { code, retry_after } => match code {
                ErrorCode::ResourceExhausted | ErrorCode::Unavailable => {
                    again(backoff.wait_after(retry_after, rng))
                }
                ErrorCode::Unspecified | ErrorCode::Deadline => again(backoff.wait(rng)),
                ErrorCode::Unauthenticated if !self.registering && self.settings.install_secret.is_some() => {
                    self.registering = true;
                    again(backoff.wait(rng))
                }
                // Repeating these can't help.
                ErrorCode::Unauthenticated
                | ErrorCode::Malformed
                | ErrorCode::FrameTooLarge
                | ErrorCode::HelloExpected
                | ErrorCode::Unimplemented
                | ErrorCode::Invalid
                | ErrorCode::RegistrationClosed => Next::Stop,
            },
        }
    }
}

impl Session {
    fn new(now: Millis) -> Self {
        Self {
            greeting: true,
            sent: 0,
            acks: VecDeque::new(),
            first_ack: 1,
            asked: 0,
            last_sent: now,
            pinged: false,
            probes: false,
            heartbeat: 240_000,
            max_events: 1,
            ahead: 0,
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
