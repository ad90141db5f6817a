//! An endpoint without a socket: its datagrams go through a network that loses, delays and reorders them and sometimes takes none, and time is the test's. It has a
//! turn only when something came, when it says so, or when the network takes something again: a turn that it forgets to ask for shows.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use quinn_proto::{ClientConfig, Connection, Dir, StreamId, VarInt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::link::Link;
use super::super::udp::Datagram;
use super::super::{Keys, Settings, config};
use super::*;
use crate::ids::ShardId;
use crate::pki;
use crate::shard::connection::step_ready;
use crate::shard::recalls;
use crate::shard::state::{ConnRef, Phase};

/// What is between both: datagrams, by when they arrive.
type Way = Vec<(Instant, Vec<u8>)>;

/// The edge's end of the network.
#[derive(Default)]
struct Net {
    came: Vec<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    is_full: bool,
    /// It was full, and has said so.
    is_blocked: bool,
}

impl Wire for Net {
    fn is_readable(&self) -> bool {
        !self.came.is_empty()
    }
    fn is_writable(&self) -> bool {
        !self.is_blocked
    }
    fn segments(&self) -> usize {
        4
    }
    fn receive(&mut self, mut each: impl FnMut(Datagram<'_>)) {
        for bytes in self.came.drain(..) {
            each(Datagram { from: DEVICE.parse().expect("an address"), to: None, ecn: None, bytes: &bytes });
        }
    }
    fn send(&mut self, transmit: &Transmit, bytes: &[u8]) -> bool {
        self.is_blocked = self.is_full;
        if !self.is_full {
            let segment = transmit.segment_size.unwrap_or(transmit.size);
            self.sent.extend(bytes[..transmit.size].chunks(segment).map(<[u8]>::to_vec));
        }
        !self.is_full
    }
}

const DEVICE: &str = "127.0.0.1:4001";
const EDGE: &str = "127.0.0.1:4000";

/// A device with one connection.
struct Device {
    endpoint: quinn_proto::Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    stream: Option<StreamId>,
    got: Vec<u8>,
    is_ended: bool,
}

impl Device {
    fn new(config: ClientConfig, now: Instant) -> Self {
        let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
        let (handle, connection) =
            endpoint.connect(now, config, EDGE.parse().expect("an address"), "localhost").expect("connects");
        Self { endpoint, handle, connection, stream: None, got: Vec::new(), is_ended: false }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) {
        let (from, mut answer) = (EDGE.parse().expect("an address"), Vec::new());
        if let Some(DatagramEvent::ConnectionEvent(_, event)) =
            self.endpoint.handle(now, from, None, None, BytesMut::from(bytes), &mut answer)
        {
            self.connection.handle_event(event);
        }
    }

    /// Reads what came, and gives what it sends.
    fn turn(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.connection.handle_timeout(now);
        while self.connection.poll().is_some() {}
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        if self.stream.is_none() {
            self.stream = self.connection.streams().open(Dir::Bi);
        }
        if let Some(stream) = self.stream
            && let Ok(mut chunks) = self.connection.recv_stream(stream).read(true)
        {
            while let Ok(chunk) = chunks.next(usize::MAX) {
                let Some(chunk) = chunk else {
                    self.is_ended = true;
                    break;
                };
                self.got.extend_from_slice(&chunk.bytes);
            }
        }
        let (mut all, mut room) = (Vec::new(), Vec::new());
        while let Some(transmit) = self.connection.poll_transmit(now, 1, &mut room) {
            all.push(room[..transmit.size].to_vec());
            room.clear();
        }
        all
    }
}

/// A device, an edge, and what is between them.
struct World {
    now: Instant,
    rng: StdRng,
    /// Of a hundred datagrams so many are lost.
    lost: u32,
    shard: Shard,
    endpoint: Endpoint<Net>,
    device: Device,
    to_edge: Way,
    to_device: Way,
}

impl World {
    fn new(seed: u64, lost: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let dev = pki::develop(dir.path()).expect("certificates");
        let tls = pki::server_config_device(&dev.server_certificate, &dev.server_key).expect("TLS");
        let keys = Keys::of(dir.path()).expect("keys");
        let settings = Settings::new(&config::Device::default(), &tls, keys, 1).expect("QUIC");
        let proto =
            quinn_proto::Endpoint::new(Arc::new(settings.of(ShardId(0))), Some(settings.server), true, None);
        let tls = pki::client_config_device(&dev.ca).expect("TLS");
        let crypto = quinn_proto::crypto::rustls::QuicClientConfig::try_from((*tls).clone()).expect("QUIC");
        let now = tokio::time::Instant::now().into_std();
        Self {
            now,
            rng: StdRng::seed_from_u64(seed),
            lost,
            shard: recalls::tests::shard().0,
            endpoint: Endpoint::over(proto, Net::default()),
            device: Device::new(ClientConfig::new(Arc::new(crypto)), now),
            to_edge: Way::new(),
            to_device: Way::new(),
        }
    }

    fn arrivals(&mut self, sent: Vec<Vec<u8>>) -> Way {
        let rng = &mut self.rng;
        let mut way = Way::new();
        for bytes in sent {
            if rng.random_range(0..100) >= self.lost {
                way.push((self.now + Duration::from_millis(rng.random_range(1..40)), bytes));
            }
        }
        way
    }

    /// Some milliseconds go by.
    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(1..8));
        let now = self.now;
        let came: Way = self.to_device.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, bytes) in came {
            self.device.receive(now, &bytes);
        }
        let sent = self.device.turn(now);
        let way = self.arrivals(sent);
        self.to_edge.extend(way);

        let came = self.to_edge.extract_if(.., |(at, _)| *at <= now).map(|(_, bytes)| bytes);
        self.endpoint.wire.came.extend(came);
        let was_full = std::mem::replace(&mut self.endpoint.wire.is_full, self.rng.random_ratio(1, 5));
        let takes_again = was_full && !self.endpoint.wire.is_full && self.endpoint.wire.is_blocked;
        if takes_again {
            self.endpoint.wire.is_blocked = false;
        }
        let has_news = takes_again || self.endpoint.wire.is_readable();
        if has_news || self.endpoint.due().is_some_and(|due| due <= now) {
            self.turns();
        }
        let sent = std::mem::take(&mut self.endpoint.wire.sent);
        let way = self.arrivals(sent);
        self.to_device.extend(way);
    }

    /// Turns of the shard, as long as there is more to do.
    fn turns(&mut self) {
        let Self { endpoint, shard, now, .. } = self;
        let mut looked_at = BTreeSet::new();
        if endpoint.unsent.is_some() {
            // Behind what waits there may be more.
            looked_at.extend(endpoint.links.iter().flatten().map(|link| link.borrow().handle));
        }
        for turn in 0.. {
            let more = endpoint.receive(*now, shard);
            let can_go_on = step_ready(shard, 16);
            shard.handshake_steps = 16;
            looked_at.extend(endpoint.touched.borrow().iter().copied());
            if !(endpoint.take_in(*now, shard) | endpoint.send(*now, shard) | more | can_go_on)
                && shard.ready.is_empty()
            {
                break;
            }
            assert!(turn < 1_000, "it never rests");
        }
        if endpoint.unsent.is_none() {
            // Whoever was not looked at may have become able to send by the time that has passed: then it has a deadline for that.
            for link in looked_at.iter().filter_map(|handle| endpoint.links[handle.0].as_ref()) {
                let left = link.borrow_mut().proto.poll_transmit(*now, 1, &mut Vec::new());
                assert!(left.is_none(), "it rests with something to send");
            }
        }
    }

    /// Until this is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&mut Self) -> bool) {
        for _ in 0..100_000 {
            if is_so(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}");
    }

    fn conn(&self) -> Option<ConnRef> {
        self.shard.all().first().copied()
    }

    fn link<T>(&self, work: impl FnOnce(&mut Link) -> T) -> Option<T> {
        let link = self.endpoint.links.iter().flatten().next()?;
        Some(work(&mut link.borrow_mut()))
    }
}

/// What the edge writes, and what it reads, arrives whole and in order, and in the end nothing is left, whatever the network does to datagrams.
#[test]
fn whatever_a_network_loses_arrives_in_the_end_and_nothing_is_left() {
    for seed in 0..30 {
        let mut world = World::new(seed, [0, 10, 30][seed as usize % 3]);
        world.until("a stream", |world| {
            let has_stream = world.conn().is_some() && world.device.stream.is_some();
            if has_stream && world.device.connection.streams().send_streams() > 0 {
                let stream = world.device.stream.expect("opened");
                // Half a frame: the edge keeps it, and waits for the rest.
                world.device.connection.send_stream(stream).write(&[200, 1, 7]).expect("written");
                return true;
            }
            false
        });
        let conn = world.conn().expect("a connection");
        world.until("its first bytes", |world| {
            world.shard.connection(conn).is_some_and(|connection| !connection.partial.is_empty())
        });
        // More than a window, so that it waits for the device to take it.
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n / 3) as u8).collect();
        let (now, tally) = (world.shard.now(), world.shard.tally.clone());
        world.shard.connection(conn).expect("there").write(&tally, now, &bytes);
        world.shard.wake(conn);
        world.turns();
        world.until("all bytes", |world| world.device.got.len() >= bytes.len());
        assert!(world.device.got == bytes, "in order");
        if seed % 2 == 0 {
            // The device leaves: its end is told to the connection.
            let now = world.now;
            world.device.connection.close(now, VarInt::from_u32(0), Bytes::new());
        } else {
            // The edge ends it: the device learns of it.
            world.shard.remove(conn);
            world.turns();
            world.until("the end", |world| world.device.connection.is_closed());
        }
        world.until("nothing left", |world| world.endpoint.is_idle() && world.shard.connections.is_empty());
        assert!(world.endpoint.timers.next().is_none() && world.endpoint.touched.borrow().is_empty());
        assert_eq!(world.endpoint.proto.open_connections(), 0);
        assert!(world.shard.door.is_empty());
    }
}

/// A frame that is none ends the connection with the edge's word for it, its half of the stream ended behind that.
#[test]
fn a_device_that_is_refused_reads_why() {
    let mut world = World::new(7, 20);
    world.until("a connection", |world| !world.device.connection.is_handshaking());
    world.until("a stream", |world| world.device.stream.is_some());
    let stream = world.device.stream.expect("opened");
    world.device.connection.send_stream(stream).write(&[0, 0]).expect("written");
    world.until("the end", |world| world.device.is_ended);
    assert!(!world.device.got.is_empty());
    let conn = world.conn().expect("it lingers");
    let connection = world.shard.connection(conn).expect("it lingers");
    assert!(matches!(connection.phase, Phase::Closing { .. }));
    let now = world.now;
    world.device.connection.close(now, VarInt::from_u32(0), Bytes::new());
    world.until("nothing left", |world| world.endpoint.is_idle() && world.shard.connections.is_empty());
}

/// The same in one step with the device's own end.
#[test]
fn a_device_that_is_refused_and_has_said_all_reads_why() {
    let mut world = World::new(8, 0);
    world.until("a stream", |world| {
        !world.device.connection.is_handshaking() && world.device.stream.is_some()
    });
    let stream = world.device.stream.expect("opened");
    world.device.connection.send_stream(stream).write(&[0, 0]).expect("written");
    world.device.connection.send_stream(stream).finish().expect("ended");
    world.until("the end", |world| world.device.connection.is_closed());
    assert!(!world.device.got.is_empty());
    world.until("nothing left", |world| world.endpoint.is_idle() && world.shard.connections.is_empty());
}

#[test]
fn half_of_the_handshakes_of_a_turn_are_left_to_those_over_tls() {
    let mut world = World::new(9, 0);
    let sent = world.device.turn(world.now);
    world.endpoint.wire.came = sent;
    world.endpoint.receive(world.now, &mut world.shard);
    assert_eq!(world.endpoint.incoming.len(), 1);
    for (steps, is_in) in [(TURN_TLS_STEPS, false), (TURN_TLS_STEPS + 1, true)] {
        world.shard.handshake_steps = steps;
        assert_eq!(world.endpoint.take_in(world.now, &mut world.shard), !is_in, "more in the next turn");
        assert_eq!(world.conn().is_some(), is_in);
    }
}

/// A device that is never heard of again takes no place for ever.
#[test]
fn a_connection_whose_device_is_gone_ends() {
    let mut world = World::new(3, 0);
    world.until("a connection", |world| !world.device.connection.is_handshaking());
    world.lost = 100;
    let conn = world.conn().expect("a connection");
    // Told by the shard's own clock, which stands still here.
    world.shard.remove(conn);
    world.turns();
    let looks = world.link(|link| link.proto.is_closed());
    assert_eq!(looks, Some(true), "its end may still have to be said again");
    world.until("nothing left", |world| world.endpoint.is_idle());
}
