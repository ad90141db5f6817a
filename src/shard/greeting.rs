//! From Hello to Welcome: who is it, is there room, is it known; then into the directory, and only then the first look at its list.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::identify::{Grant, Identified, identify};
use super::seldom::Seldom;
use super::state::{ConnRef, Live, Phase, Received, Registering, Shard};
use crate::config;
use crate::directory::Way;
use crate::error::DeviceError;
use crate::fault::{self, Fault};
use crate::ids::{DeviceKey, SessionRef};
use crate::machine::session::Session;
use crate::presence::State;
use crate::push::{Acked, Event, Millis, Reached, Seen};
use crate::store::{Command, DeviceAck};
use crate::telemetry::{self, Counter, Gauge, HandshakeResult, RegistrationResult, Timer};
use crate::wire::device::{self as wire, Hello, Welcome};

/// Milliseconds in which a new device's Hello becomes durable, or the device is sent away.
const REGISTER_MS: Millis = 10_000;

impl Shard {
    /// A device says who it is.
    pub(super) fn hello(
        &mut self,
        conn: ConnRef,
        hello: Hello,
        out: &mut Vec<u8>,
    ) -> Result<(), DeviceError> {
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        let peer = connection.peer.address();
        let client_ip = connection.client_ip();
        let transport = connection.transport();
        let context = self.context.clone();
        let Identified { app, key: device, device_id, epoch, grant } =
            identify(&context, self.now(), peer, &hello)?;
        let config = &context.config;
        let bounds = heartbeat_bounds(config, transport);
        let heartbeat_s = match hello.heartbeat_s {
            0 => bounds.default,
            wish => wish.clamp(bounds.min, bounds.max),
        };
        let now = self.now();
        let live = Live {
            device,
            generation: context.directory.next_generation(),
            session: Session::new(now, heartbeat_s),
            app: app.clone(),
            device_id: device_id.clone(),
            epoch,
            seldom: Seldom::of(Received::of(hello.received)),
        };
        context.take_place(&app, &device, transport, now)?;
        let seen = Seen {
            key: device,
            app: app.clone(),
            device_id,
            attributes: hello.attributes,
            push_on: hello.push_on,
            client_ip,
            state_lost: hello.state_lost,
        };
        // Asked for before the Hello itself counts.
        let last_active = context.store.last_active(&device);
        if context.store.is_current(&seen) {
            return self.attach(conn, transport, live, last_active, grant, out);
        }
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard: self.id };
        if context.store.submit(Command::Seen { device: Box::new(seen), session }).is_err() {
            context.give_place(&app, transport);
            return Err(DeviceError::Unavailable);
        }
        if fault::is(Fault::WelcomeEarly) {
            return self.attach(conn, transport, live, last_active, grant, out);
        }
        let deadline = now + REGISTER_MS;
        self.stays_at_door(conn);
        if let Some(connection) = self.connection(conn) {
            let registering = Registering { live, last_active, grant, deadline };
            connection.phase = Phase::Registering(Box::new(registering));
        }
        Ok(())
    }

    /// The device's Hello is durable, or refused because the edge knows its maximum of devices.
    pub(super) fn registered(
        &mut self,
        conn: ConnRef,
        taken: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), DeviceError> {
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        let transport = connection.transport();
        let closing = Phase::Greeting { deadline: 0 };
        match std::mem::replace(&mut connection.phase, closing) {
            Phase::Registering(registering) if taken => {
                let Registering { live, last_active, grant, .. } = *registering;
                self.attach(conn, transport, live, last_active, grant, out)
            }
            other => {
                let is_live = matches!(other, Phase::Live(_));
                connection.phase = other;
                // Told once a Hello: never to who is welcome already.
                if is_live { Ok(()) } else { Err(DeviceError::Exhausted) }
            }
        }
    }

    /// Enters the directory, then welcomes; the first look at the list comes after both.
    pub(super) fn attach(
        &mut self,
        conn: ConnRef,
        transport: telemetry::Transport,
        mut live: Live,
        last_active: Option<Millis>,
        grant: Grant,
        out: &mut Vec<u8>,
    ) -> Result<(), DeviceError> {
        let context = self.context.clone();
        live.seldom.edit(|parts| {
            if let Some(received) = &mut parts.received {
                // What is durable by now is in its list, and goes with the Hello's acks.
                received.until = *context.store.head().borrow();
            }
        });
        let now = self.now();
        let session = SessionRef { generation: live.generation, slot: conn.slot, shard: self.id };
        let (device, heartbeat_s, epoch) = (live.device, live.session.heartbeat_s(), live.epoch);
        let Some(connection) = self.connection(conn) else {
            context.give_place(&live.app, transport);
            return Ok(());
        };
        let received = received_acks(&live, session, connection.client_ip(), now);
        // Read late, a connection that was cut after its Hello would be newer than the one that took its place.
        if connection.stream.is_ended() {
            context.give_place(&live.app, transport);
            return Err(DeviceError::Closed);
        }
        connection.phase = Phase::Live(live);
        let looked_early = fault::is(Fault::LookBeforeEntering) && self.has_nothing(&device);
        match context.directory.enter(device, session, Way { since: now, transport }) {
            Ok(None) => {}
            Ok(Some(older)) => {
                if let Some(mailbox) = context.mailboxes.get(usize::from(older.shard.0)) {
                    mailbox.replaced(older);
                }
            }
            Err(_newer) => {
                // Counted as a session that was replaced at once.
                self.count_session(transport, conn);
                return Err(DeviceError::Replaced);
            }
        }
        if !fault::is(Fault::PresenceUnsaid) {
            self.mark_presence_of(conn, State::Connected);
        }
        self.count_session(transport, conn);
        // A revocation that came while it wasn't in the directory has found nobody to end.
        if context.store.revocation(&device).ends(epoch) {
            return Err(DeviceError::Unauthenticated);
        }
        if !grant.device_id.is_empty() {
            telemetry::add(Counter::Registrations(RegistrationResult::Ok), 1);
        }
        self.acks.extend(received);
        let bounds = heartbeat_bounds(&context.config, transport);
        let heartbeat_bounds_s = (bounds.min, bounds.max);
        let Grant { device_id, credential } = grant;
        let welcome = Welcome { device_id, credential, heartbeat_s, heartbeat_bounds_s, now };
        wire::put_welcome(out, welcome);
        self.catch_up_from(conn, last_active);
        self.report_active(conn);
        if !looked_early {
            self.mark_dirty(conn);
        }
        self.work.notify_one();
        Ok(())
    }

    fn has_nothing(&self, device: &DeviceKey) -> bool {
        let mut pulled = Vec::new();
        self.context.store.pull(device, Reached::default(), 1, self.now(), &mut pulled);
        pulled.is_empty()
    }

    /// Ends a session whose credential is revoked: one that registered since the revocation stays.
    pub(super) fn check_revoked(&mut self, session: SessionRef) {
        let Some(conn) = self.session(session) else { return };
        let context = self.context.clone();
        if let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &connection.phase
            && context.store.revocation(&live.device).ends(live.epoch)
            && !fault::is(Fault::ServeRevoked)
        {
            tracing::info!(app = %live.app, device_id = %live.device_id, "a session ends: its credential is revoked");
            self.fail(conn, DeviceError::Unauthenticated);
        }
    }

    fn count_session(&mut self, transport: telemetry::Transport, conn: ConnRef) {
        let now = self.context.clock.now();
        if let Some(connection) = self.connection(conn) {
            telemetry::observe(Timer::Handshake, now.saturating_sub(connection.since) as f64 / 1e3);
        }
        telemetry::add(Counter::Handshakes(HandshakeResult::Ok), 1);
        telemetry::adjust(Gauge::Sessions(transport), 1);
        telemetry::adjust(Gauge::ShardSessions(self.id), 1);
        self.context.figures(self.id).sessions.fetch_add(1, Ordering::Relaxed);
        self.end_handshake(conn);
    }
}

/// Between two signs of life, in seconds.
struct HeartbeatSeconds {
    default: u32,
    min: u32,
    max: u32,
}

/// NAT forgets UDP sooner than TCP.
fn heartbeat_bounds(config: &config::Device, transport: telemetry::Transport) -> HeartbeatSeconds {
    let (default, min, max) = match transport {
        telemetry::Transport::Quic => {
            (config.quic_heartbeat_default_s, config.quic_heartbeat_min_s, config.quic_heartbeat_max_s)
        }
        telemetry::Transport::Tls | telemetry::Transport::Tcp => {
            (config.heartbeat_default_s, config.heartbeat_min_s, config.heartbeat_max_s)
        }
    };
    HeartbeatSeconds { default, min, max }
}

/// The ids of Hello as one Ack that needs no confirmation.
fn received_acks(live: &Live, session: SessionRef, client_ip: IpAddr, now: Millis) -> Option<DeviceAck> {
    let arrive = |message| Acked { message, event: Event::Arrive, time: now, sent_at: None };
    let events = live.seldom.received()?.ids.iter().copied().map(arrive).collect();
    let client_ip = Some(client_ip);
    Some(DeviceAck { device: live.device, session, number: 0, client_ip, events })
}
