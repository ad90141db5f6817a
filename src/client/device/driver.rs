//! Drives a [`Machine`] over [`Link`]s: connects, reconnects, and tells a handler what came.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use super::{Asked, End, Link, Machine, Next, REQUESTS, Request};
use crate::client::{ClientError, Endpoint};
use crate::clock::Clock;
use crate::push::Millis;
use crate::wire::pb::device::{ErrorCode, EventType, Push, to_device, to_edge};

/// No timer is longer, milliseconds.
const LONGEST_SLEEP: Millis = 3_600_000;

/// Whether a device is to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// Go on.
    Stay,
    /// End once everything is confirmed.
    Settle,
    /// End now.
    Now,
}

/// Why [`Device::run`] returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stopped {
    /// It was asked to.
    Left,
    /// Connecting again can't help.
    Ended(End),
}

/// What the user does with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reaction {
    /// Click or clean.
    pub event: EventType,
    /// After so many milliseconds.
    pub delay: Millis,
}

/// The app behind a device.
pub trait Handler: Send {
    /// A message that was not seen before: keep it and its id. It is acknowledged when this returns.
    fn store(&mut self, _push: &Push) {}

    /// The message is the app's: called once for each, after its Ack was written.
    fn push(&mut self, push: Push) -> Option<Reaction>;

    /// The edge gave the device an id or a credential: keep them.
    fn keep(&mut self, _device_id: &str, _credential: &[u8]) {}

    /// A token of the app's backend to register with, where the app asks for one; fetched anew each time, as they live shortly.
    fn token(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// A request was answered.
    fn replied(&mut self, _request: &Request, _result: Result<(), ErrorCode>) {}

    /// A message was taken back: remove it if it is shown. One that was stored and not handed over yet never will be.
    fn revoke(&mut self, _message_id: u64) {}

    /// A frame came, and is applied next: for those who judge the edge.
    fn frame(&mut self, _machine: &Machine, _frame: &to_device::Frame) {}

    /// An attempt or a session failed; the device goes on by itself.
    fn failed(&mut self, _error: &ClientError) {}

    /// The session ended for this reason, which the edge or the protocol gave.
    fn ended(&mut self, _end: &End) {}

    /// Something may have changed: called after each turn, with what the device knows.
    fn turn(&mut self, _machine: &Machine) {}
}

/// A device and its app.
#[derive(Debug)]
pub struct Device<H> {
    endpoint: Endpoint,
    machine: Machine,
    /// The app.
    pub handler: H,
    clock: Arc<Clock>,
    /// Where requests come from, while there may be some.
    requests: Option<mpsc::Receiver<Request>>,
    /// Changes when it is to ask whether its connection still stands.
    probes: Option<watch::Receiver<()>>,
}

impl<H: Handler> Device<H> {
    /// A device that isn't connected yet.
    pub fn new(endpoint: Endpoint, machine: Machine, handler: H, clock: Arc<Clock>) -> Self {
        Self { endpoint, machine, handler, clock, requests: None, probes: None }
    }

    /// What it knows.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Takes requests from here while it is connected.
    pub fn take_requests(&mut self, requests: mpsc::Receiver<Request>) {
        self.requests = Some(requests);
    }

    /// Asks the edge whether its connection still stands each time this changes ([`Machine::probe`]).
    pub fn probe_on(&mut self, probes: watch::Receiver<()>) {
        self.probes = Some(probes);
    }

    /// What it knows, to change how it goes on from the next session on.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Where it connects to from the next session on.
    pub fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Keeps the device connected until it is asked to leave, or the edge says that trying again can't help. May be called again:
    /// what was seen, and what is not confirmed, stays.
    pub async fn run(&mut self, leave: &mut watch::Receiver<Leave>) -> Stopped {
        let mut elsewhere: Option<String> = None;
        loop {
            let end = match self.connect(elsewhere.take(), leave).await {
                Some(Ok(link)) => self.session(link, leave).await,
                Some(Err(error)) => {
                    self.handler.failed(&error);
                    Some(End::Broken)
                }
                None => None,
            };
            let left = end.is_none();
            let end = end.unwrap_or(End::Broken);
            let next = self.machine.handle_end(end.clone());
            self.handler.turn(&self.machine);
            match next {
                _ if left => return Stopped::Left,
                Next::Stop => return Stopped::Ended(end),
                Next::Again { wait, address } => {
                    elsewhere = address;
                    self.pause(wait, leave).await;
                }
            }
        }
    }

    /// Waits, unless it is to leave: the next [`Self::connect`] notices that too.
    async fn pause(&self, wait: Millis, leave: &mut watch::Receiver<Leave>) {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            () = gone(leave, self.machine.unsettled()) => {}
        }
    }

    /// `None`: it is to leave.
    async fn connect(
        &self,
        elsewhere: Option<String>,
        leave: &mut watch::Receiver<Leave>,
    ) -> Option<Result<Link, ClientError>> {
        let mut endpoint = self.endpoint.clone();
        if let Some(address) = elsewhere {
            endpoint.address = address.into();
        }
        tokio::select! {
            biased;
            () = gone(leave, self.machine.unsettled()) => None,
            link = Link::connect(&endpoint) => Some(link),
        }
    }

    /// One session over an open link, to its end. `None`: it is to leave.
    pub async fn session<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        mut link: Link<S>,
        leave: &mut watch::Receiver<Leave>,
    ) -> Option<End> {
        if self.machine.is_registering() {
            self.machine.set_token(self.handler.token());
        }
        if let Some(probes) = &mut self.probes {
            probes.mark_unchanged(); // It asks by connecting.
        }
        let hello = self.machine.handle_connected(self.clock.now());
        link.queue(to_edge::Frame::Hello(hello));
        let mut stored = Vec::new();
        let end = loop {
            if let Err(error) = self.write(&mut link, &mut stored).await {
                self.handler.failed(&error);
                break Some(End::Broken);
            }
            let now = self.clock.now();
            let wake = self.machine.next_timeout().saturating_sub(now).min(LONGEST_SLEEP);
            let turn = tokio::select! {
                read = link.fill() => match read {
                    Ok(()) => self.read(&mut link, &mut stored),
                    Err(error) => Err(error),
                },
                () = tokio::time::sleep(Duration::from_millis(wake)) => {
                    Ok(self.machine.handle_timeout(self.clock.now()))
                }
                request = next_request(&mut self.requests), if self.machine.unsettled() < REQUESTS => {
                    if let Some(request) = request {
                        // There is room: fewer wait than may.
                        self.machine.request(request);
                    } else {
                        self.requests = None;
                    }
                    Ok(None)
                }
                () = changed(&mut self.probes) => {
                    self.machine.probe();
                    Ok(None)
                }
                leaves = goes(leave, self.machine.unsettled(), self.machine.hurries()) => {
                    if leaves {
                        break None;
                    }
                    self.machine.hurry();
                    Ok(None)
                }
            };
            match turn {
                Ok(None) => {}
                Ok(Some(end)) => {
                    self.handler.ended(&end);
                    break Some(end);
                }
                Err(error) => {
                    self.handler.failed(&error);
                    break Some(End::Broken);
                }
            }
        };
        // What was stored is the app's, whatever became of its Ack.
        self.hand_over(&mut stored);
        if end.is_none()
            && let Err(error) = link.close().await
        {
            self.handler.failed(&error);
        }
        end
    }

    /// Applies every frame that was read.
    fn read<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        link: &mut Link<S>,
        stored: &mut Vec<Push>,
    ) -> Result<Option<End>, ClientError> {
        let now = self.clock.now();
        while let Some(frame) = link.buffered()? {
            if let Some(end) = self.apply(now, frame, stored) {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    fn apply(&mut self, now: Millis, frame: to_device::Frame, stored: &mut Vec<Push>) -> Option<End> {
        self.handler.frame(&self.machine, &frame);
        match self.machine.handle_frame(now, frame) {
            Asked::Nothing | Asked::Welcomed => {}
            Asked::Deliver(push) => {
                self.handler.store(&push);
                stored.push(*push);
            }
            Asked::Keep => self.handler.keep(self.machine.device_id(), self.machine.credential()),
            Asked::Replied(answered) => self.handler.replied(&answered.0, answered.1),
            Asked::Revoke(message_id) => {
                // What the app has not got yet it never gets.
                stored.retain(|push| push.message_id != message_id);
                self.handler.revoke(message_id);
            }
            Asked::End(end) => return Some(end),
        }
        None
    }

    /// Writes all that the machine has to say, then hands over what was stored, and writes what that led to.
    async fn write<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        link: &mut Link<S>,
        stored: &mut Vec<Push>,
    ) -> Result<(), ClientError> {
        loop {
            let now = self.clock.now();
            while let Some(frame) = self.machine.poll_send(now) {
                link.queue(frame);
            }
            link.flush().await?;
            let more = self.hand_over(stored);
            self.handler.turn(&self.machine);
            if !more {
                return Ok(());
            }
        }
    }

    /// Gives the app what was stored; `true` if there was something.
    fn hand_over(&mut self, stored: &mut Vec<Push>) -> bool {
        let any = !stored.is_empty();
        let now = self.clock.now();
        for push in stored.drain(..) {
            let id = push.message_id;
            if let Some(reaction) = self.handler.push(push) {
                self.machine.react(now, id, reaction.event, reaction.delay);
            }
        }
        any
    }
}

/// The next request; `None`: there will be no more. Waits for ever where there are none.
async fn next_request(requests: &mut Option<mpsc::Receiver<Request>>) -> Option<Request> {
    match requests {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

/// The next change. Waits for ever where there are none, or no more.
async fn changed(probes: &mut Option<watch::Receiver<()>>) {
    if let Some(changes) = probes
        && changes.changed().await.is_ok()
    {
        return;
    }
    *probes = None;
    std::future::pending::<()>().await;
}

/// Returns when the device is to leave: at once if `Now`, when nothing is unsettled if `Settle`.
async fn gone(leave: &mut watch::Receiver<Leave>, unsettled: usize) {
    goes(leave, unsettled, true).await;
}

/// The same; or false, as soon as it is to leave and doesn't hurry yet.
async fn goes(leave: &mut watch::Receiver<Leave>, unsettled: usize, hurries: bool) -> bool {
    loop {
        match *leave.borrow_and_update() {
            Leave::Now => return true,
            Leave::Settle if unsettled == 0 => return true,
            Leave::Settle if !hurries => return false,
            Leave::Stay | Leave::Settle => {}
        }
        if leave.changed().await.is_err() {
            return true; // Whoever could ask it to stay is gone.
        }
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
