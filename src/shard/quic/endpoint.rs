//! A shard's endpoint: datagrams in, datagrams out, and what connections have to do at their time. The protocol itself is quinn's (`quinn_proto`), without
//! its tasks, channels and timers: those took as much memory again as a connection, and a third of the CPU.
//!
//! A turn has three parts here: what came ([`Endpoint::receive`]), who comes ([`Endpoint::take_in`]), and what is to be sent ([`Endpoint::send`]). Between
//! the first and the others connections read and write; nothing of it waits for anybody.
//!
//! No connection of the shard is ended while its link is borrowed: its end borrows the link.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use mio::event::Event;
use mio::{Registry, Token};
use quinn_proto::{ConnectionHandle, DatagramEvent, EndpointConfig, Incoming, Transmit};

use super::end_of;
use super::link::{Link, News, QuicStream, SharedLink, Touched};
use super::timers::Timers;
use super::udp::{Udp, Wire};
use crate::limits;
use crate::shard::closing::count_refused;
use crate::shard::state::Shard;
use crate::shard::stream::Stream;
use crate::telemetry::Transport;

/// Datagrams after which a turn reads no more, newcomers that it looks at, connections whose time has come, and connections for which it sends; then
/// everything else on the thread has its turn.
const TURN_DATAGRAMS: usize = 256;
const TURN_NEWCOMERS: usize = 256;
const TURN_DUE: usize = 1_024;
const TURN_SENDS: usize = 1_024;
/// Handshakes that a turn leaves to those over TLS.
const TURN_TLS_STEPS: usize = limits::TURN_HANDSHAKE_STEPS / 2;
/// Writes for one connection in a turn, and datagrams of one write: a connection that has much to send keeps others waiting no longer.
const WRITES: usize = 4;
const SEGMENTS: usize = 10;

/// QUIC of one shard.
pub(in crate::shard) struct Endpoint<W: Wire = Udp> {
    proto: quinn_proto::Endpoint,
    wire: W,
    /// By their handles, which are dense.
    links: Vec<Option<SharedLink>>,
    timers: Timers,
    touched: Touched,
    /// Those that wait for a place. `quinn_proto` bounds them.
    incoming: VecDeque<Incoming>,
    /// What the kernel had no room for, in `room`.
    unsent: Option<Transmit>,
    room: Vec<u8>,
}

impl Endpoint<Udp> {
    /// On a socket.
    pub(super) fn new(
        config: EndpointConfig,
        server: Arc<quinn_proto::ServerConfig>,
        socket: UdpSocket,
    ) -> io::Result<Self> {
        let udp = Udp::new(socket, config.get_max_udp_payload_size() as usize)?;
        let is_whole = !udp.may_fragment();
        Ok(Self::over(quinn_proto::Endpoint::new(Arc::new(config), Some(server), is_whole, None), udp))
    }

    /// From now on there is news of its socket under this name.
    pub(in crate::shard) fn watch(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.wire.watch(registry, token)
    }

    /// News of its socket.
    pub(in crate::shard) fn note(&mut self, event: &Event) {
        self.wire.note(event);
    }
}

impl<W: Wire> Endpoint<W> {
    fn over(proto: quinn_proto::Endpoint, wire: W) -> Self {
        Self {
            proto,
            wire,
            links: Vec::new(),
            timers: Timers::default(),
            touched: Touched::default(),
            incoming: VecDeque::new(),
            unsent: None,
            room: Vec::new(),
        }
    }

    /// When it has to have a turn whatever comes.
    pub(in crate::shard) fn due(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether nothing is left that its peers have to be told.
    pub(in crate::shard) fn is_idle(&self) -> bool {
        self.incoming.is_empty() && self.links.iter().all(Option::is_none)
    }

    /// Takes what has come, and what is due. Whether there may be more.
    pub(in crate::shard) fn receive(&mut self, now: Instant, shard: &mut Shard) -> bool {
        let mut came = 0;
        while came < TURN_DATAGRAMS && self.wire.is_readable() {
            let Self { proto, wire, links, incoming, .. } = self;
            let mut answers = Vec::new();
            wire.receive(|datagram| {
                came += 1;
                let bytes = BytesMut::from(datagram.bytes);
                let mut answer = Vec::new();
                match proto.handle(now, datagram.from, datagram.to, datagram.ecn, bytes, &mut answer) {
                    Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                        if let Some(link) = links.get(handle.0).and_then(Option::as_ref) {
                            let news = link.borrow_mut().hear(event);
                            shard.take_news(news);
                        }
                    }
                    Some(DatagramEvent::NewConnection(newcomer)) => incoming.push_back(newcomer),
                    Some(DatagramEvent::Response(transmit)) => answers.push((transmit, answer)),
                    None => {}
                }
            });
            for (transmit, answer) in answers {
                self.answer(&transmit, &answer);
            }
        }
        for _ in 0..TURN_DUE {
            let Some(number) = self.timers.due(now) else { break };
            if let Some(link) = self.links.get(number).and_then(Option::as_ref) {
                let news = link.borrow_mut().expire(now);
                shard.take_news(news);
            }
        }
        self.wire.is_readable() || self.timers.next().is_some_and(|next| next <= now)
    }

    /// Gives a place to those who wait for one. Whether more could have one in the next turn.
    pub(in crate::shard) fn take_in(&mut self, now: Instant, shard: &mut Shard) -> bool {
        for _ in 0..TURN_NEWCOMERS {
            let Some(incoming) = self.incoming.pop_front() else { return false };
            let mut answer = Vec::new();
            if shard.leaving.is_some() {
                // Told at once, so that the device tries the next edge.
                let transmit = self.proto.refuse(incoming, &mut answer);
                self.answer(&transmit, &answer);
                continue;
            }
            if is_busy(shard) && !incoming.remote_address_validated() {
                self.retry(incoming);
                continue;
            }
            // Handshakes have a share of each turn.
            let has_step = shard.handshake_steps > TURN_TLS_STEPS;
            if !has_step || shard.make_place().is_some() {
                self.incoming.push_front(incoming);
                self.retry_others(shard);
                return !has_step;
            }
            shard.handshake_steps -= 1;
            self.accept(now, shard, incoming);
        }
        !self.incoming.is_empty()
    }

    /// Whoever can't be reached at its address takes no place from others, nor makes them wait.
    fn retry(&mut self, incoming: Incoming) {
        let mut answer = Vec::new();
        match self.proto.retry(incoming, &mut answer) {
            Ok(transmit) => self.answer(&transmit, &answer),
            Err(error) => {
                tracing::debug!(%error, "retry");
                self.proto.ignore(error.into_incoming());
            }
        }
    }

    /// Behind the one that waits: these have to show their address, and need no place for that.
    fn retry_others(&mut self, shard: &Shard) {
        if is_busy(shard) {
            for incoming in std::mem::take(&mut self.incoming) {
                if incoming.remote_address_validated() {
                    self.incoming.push_back(incoming);
                } else {
                    self.retry(incoming);
                }
            }
        }
    }

    fn accept(&mut self, now: Instant, shard: &mut Shard, incoming: Incoming) {
        let (peer, mut answer) = (incoming.remote_address(), Vec::new());
        match self.proto.accept(incoming, now, &mut answer, None) {
            Ok((handle, proto)) => {
                let link = Rc::new(RefCell::new(Link::new(proto, handle, &self.touched)));
                if self.links.len() <= handle.0 {
                    self.links.resize_with(handle.0 + 1, || None);
                }
                self.links[handle.0] = Some(link.clone());
                let conn = shard.add(Stream::Quic(QuicStream::new(link.clone())), peer, None);
                shard.started(conn);
                let news = {
                    let link = &mut *link.borrow_mut();
                    link.conn = Some(conn);
                    link.touch();
                    link.news()
                };
                shard.take_news(news);
            }
            Err(error) => {
                tracing::debug!(%peer, error = %error.cause, "QUIC");
                count_refused(Transport::Quic, end_of(&error.cause));
                if let Some(transmit) = error.response {
                    self.answer(&transmit, &answer);
                }
            }
        }
    }

    /// Sends what connections have to say. Whether there is more to do right away.
    pub(in crate::shard) fn send(&mut self, now: Instant, shard: &mut Shard) -> bool {
        // Each once: who has more stands behind the others again.
        let touched = self.touched.borrow().len();
        for _ in 0..touched.min(TURN_SENDS) {
            if !self.send_rest() {
                return false;
            }
            let Some(handle) = self.touched.borrow_mut().pop_front() else { break };
            self.send_of(handle, now, shard);
        }
        self.send_rest() && !self.touched.borrow().is_empty()
    }

    /// Sends what the kernel had no room for. Whether it is sent.
    fn send_rest(&mut self) -> bool {
        if let Some(transmit) = &self.unsent
            && self.wire.is_writable()
            && self.wire.send(transmit, &self.room)
        {
            self.unsent = None;
        }
        self.unsent.is_none()
    }

    fn send_of(&mut self, handle: ConnectionHandle, now: Instant, shard: &mut Shard) {
        let Some(link) = self.links.get(handle.0).and_then(Option::clone) else { return };
        let mut drained = false;
        let news = {
            let link = &mut *link.borrow_mut();
            link.is_touched = false;
            if link.is_let_go() {
                // What was said last goes before the end.
                self.transmit(link, now);
                if self.unsent.is_some() {
                    return;
                }
                link.close(now);
            }
            while let Some(event) = link.proto.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(event) = self.proto.handle_event(handle, event) {
                    link.proto.handle_event(event);
                }
            }
            if !drained {
                self.transmit(link, now);
                self.timers.set(handle.0, link.proto.poll_timeout());
            }
            link.news()
        };
        if drained {
            self.timers.set(handle.0, None);
            // Whoever still holds it touches it in vain.
            link.borrow_mut().is_touched = true;
            self.links[handle.0] = None;
        }
        shard.take_news(news);
    }

    fn transmit(&mut self, link: &mut Link, now: Instant) {
        let segments = self.wire.segments().min(SEGMENTS);
        for _ in 0..WRITES {
            self.room.clear();
            let Some(transmit) = link.proto.poll_transmit(now, segments, &mut self.room) else { return };
            if !self.wire.send(&transmit, &self.room) {
                self.unsent = Some(transmit);
                break;
            }
        }
        link.touch();
    }

    /// Answers somebody who is no connection: who asked asks again if the kernel has no room now.
    fn answer(&mut self, transmit: &Transmit, bytes: &[u8]) {
        self.wire.send(transmit, bytes);
    }
}

impl<W: Wire> Drop for Endpoint<W> {
    fn drop(&mut self) {
        for incoming in self.incoming.drain(..) {
            self.proto.ignore(incoming);
        }
    }
}

/// Half of the handshakes that may be in flight are.
fn is_busy(shard: &Shard) -> bool {
    shard.door.len() * 2 >= shard.context.config.max_handshakes
}

impl Shard {
    fn take_news(&mut self, news: News) {
        if let Some((conn, error)) = news.failed {
            self.begin();
            if let Some(connection) = self.connection(conn) {
                tracing::debug!(peer = %connection.peer, %error, "QUIC");
            }
            self.fail(conn, end_of(&error));
            self.remove(conn);
        } else if let Some(conn) = news.goes_on {
            self.mark_ready(conn);
        }
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
