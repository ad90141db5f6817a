//! The sockets of a shard, those over TCP and the one of QUIC: one poller for all of them, which the runtime waits for as for a single descriptor.
//!
//! A connection therefore has no task and no place in the runtime's tables of its own: these were a third of what a session took. What its socket is known
//! to have stands beside its descriptor, and who can go on stands in the shard's `ready`.
//!
//! The poller tells of news once (edges, not levels). So a socket counts as readable from then on until a read shows that nothing is left: one that
//! finds nothing, or less than it had room for; and as writable until the kernel takes nothing, or not all. After the peer's end there is no more news: then
//! reads go on until they say so.

use std::future::pending;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::task::Poll;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Registry, Token};
use tokio::io::unix::AsyncFd;
use tokio::task::consume_budget;

use super::quic::Endpoint;
use super::state::{ConnRef, Shard};
use super::stream::Stream;

/// Connections with news that are taken at a time; then everything else on the thread has its turn.
const EVENTS: usize = 256;

/// A descriptor that the runtime waits for. What replaces this call is unsafe, as a type's descriptor might be another one each time, or be closed too early; those
/// here are owned, and stay what they are.
#[allow(deprecated)]
fn waited_for<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)
}

/// One TCP socket.
pub(super) struct Socket {
    tcp: TcpStream,
    /// There may be something to read.
    readable: bool,
    /// The kernel may take something.
    writable: bool,
    /// The peer has ended it, or it failed.
    ended: bool,
}

impl Socket {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, readable: false, writable: true, ended: false }
    }

    /// One that a test has connected.
    #[cfg(test)]
    pub(super) fn of(tcp: tokio::net::TcpStream) -> Self {
        Self::new(TcpStream::from_std(tcp.into_std().expect("a socket")))
    }

    fn note(&mut self, event: &Event) {
        let ended = event.is_read_closed() || event.is_error();
        self.ended |= ended;
        self.readable |= ended || event.is_readable();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// Reads what is there; 0: the peer's end. Pending: the poller tells when there is more.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        while self.readable {
            match self.tcp.read(into) {
                Ok(read) => {
                    self.readable = self.ended || read == into.len();
                    return Poll::Ready(Ok(read));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }

    /// Writes as much as goes. Pending: the poller tells when more does.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        while self.writable {
            match self.tcp.write(bytes) {
                Ok(written) => {
                    self.writable = written == bytes.len();
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }

    pub(super) fn shut(&self) -> io::Result<()> {
        self.tcp.shutdown(Shutdown::Write)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

/// A connection's name at the poller.
fn token(conn: ConnRef) -> Token {
    Token((conn.serial as usize) << 32 | conn.slot as usize)
}

fn named(token: Token) -> ConnRef {
    ConnRef { slot: token.0 as u32, serial: (token.0 >> 32) as u32 }
}

/// The name of the socket of QUIC: no connection's.
const QUIC: Token = Token(usize::MAX);

const _: () = assert!(usize::BITS == 64, "a connection's name has 64 bits");

/// The poller.
pub(super) struct Sockets {
    /// The one socket of all connections over QUIC, if this shard has any.
    quic: Option<Endpoint>,
    poll: mio::Poll,
    /// The same, as the runtime waits for it.
    waits: AsyncFd<Registry>,
    events: Events,
}

impl Sockets {
    /// Within a runtime. With it comes what connections are registered with.
    pub(super) fn new(quic: Option<Endpoint>) -> io::Result<(Self, Registry)> {
        Self::taking(EVENTS, quic)
    }

    /// The same, with so many that are taken at a time.
    fn taking(events: usize, mut quic: Option<Endpoint>) -> io::Result<(Self, Registry)> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waits = waited_for(poll.registry().try_clone()?)?;
        if let Some(quic) = &mut quic {
            quic.watch(&registry, QUIC)?;
        }
        Ok((Self { quic, poll, waits, events: Events::with_capacity(events) }, registry))
    }

    /// Waits for news.
    pub(super) async fn told(&self) -> io::Result<()> {
        // What the runtime knows stays as it is: `take` finds out.
        self.waits.readable().await.map(drop)
    }

    /// Puts connections that have news among the ready ones, if the runtime was told of some. Whether there may be more.
    pub(super) fn take(&mut self, now: Instant, shard: &mut Shard) -> io::Result<bool> {
        let more = self.poll(shard)?;
        Ok(self.quic.as_mut().is_some_and(|quic| quic.receive(now, shard)) | more)
    }

    /// The end of a turn: what it brought about over QUIC is sent. Whether there is more to do right away.
    pub(super) fn send(&mut self, now: Instant, shard: &mut Shard) -> bool {
        self.quic.as_mut().is_some_and(|quic| quic.take_in(now, shard) | quic.send(now, shard))
    }

    /// When it has to have a turn whatever comes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.quic.as_ref().and_then(Endpoint::due)
    }

    /// Whether nothing is left that peers have to be told.
    pub(super) fn is_idle(&self) -> bool {
        self.quic.as_ref().is_none_or(Endpoint::is_idle)
    }

    fn poll(&mut self, shard: &mut Shard) -> io::Result<bool> {
        let Self { quic, poll, waits, events } = self;
        let taken = waits.try_io(tokio::io::Interest::READABLE, |_| {
            poll.poll(events, Some(Duration::ZERO))?;
            let mut count = 0;
            for event in &*events {
                count += 1;
                match quic {
                    Some(quic) if event.token() == QUIC => quic.note(event),
                    _ => shard.note_news(named(event.token()), event),
                }
            }
            // Then the runtime tells of the next.
            if count < events.capacity() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match taken {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Waits for news of a shard that may have no sockets: then there is never any.
pub(super) async fn told(sockets: Option<&Sockets>) -> io::Result<()> {
    match sockets {
        Some(sockets) => sockets.told().await,
        None => pending().await,
    }
}

impl Shard {
    fn note_news(&mut self, conn: ConnRef, event: &Event) {
        // News may be of a connection that has left since.
        if let Some(connection) = self.connection(conn)
            && let Stream::Tcp(socket) = &mut connection.stream
        {
            socket.note(event);
            // The first news of each is that it may be written to: of no use to who has nothing to write.
            if socket.readable || !connection.outbox.is_empty() {
                self.mark_ready(conn);
            }
        }
    }

    /// From now on there is news of it, the first at once.
    pub(super) fn watch(&mut self, conn: ConnRef) -> io::Result<()> {
        let Self { registry, connections, .. } = self;
        if let (Some(registry), Some(connection)) = (registry, super::state::get(connections, conn))
            && let Stream::Tcp(socket) = &mut connection.stream
        {
            registry.register(&mut socket.tcp, token(conn), Interest::READABLE | Interest::WRITABLE)?;
        }
        Ok(())
    }
}

/// A listening socket.
pub(super) struct Listener(AsyncFd<TcpListener>);

impl Listener {
    /// Within a runtime. It has to be non-blocking.
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        waited_for(TcpListener::from_std(listener)).map(Self)
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            // Between many the others have their turn: to wait for a descriptor that is ready is none.
            consume_budget().await;
            let mut guard = self.0.readable().await?;
            if let Ok(accepted) = guard.try_io(|listener| listener.get_ref().accept()) {
                return accepted;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::Future;
    use std::io::{Read, Write};
    use std::net::TcpStream as Peer;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use super::*;
    use crate::shard::connection::step_ready;
    use crate::shard::state::Shared;
    use crate::shard::{bind, recalls, turn};

    /// Connections with news that are taken at a time here.
    const FEW: usize = 32;

    /// A shard whose sockets are polled, and where devices connect.
    struct World {
        shard: Shared,
        sockets: Sockets,
        listener: Listener,
        address: SocketAddr,
    }

    impl World {
        fn new() -> Self {
            let (mut shard, _) = recalls::tests::shard();
            let (sockets, registry) = Sockets::taking(FEW, None).expect("a poller");
            shard.registry = Some(registry);
            let any = "127.0.0.1:0".parse().expect("an address");
            let listener =
                bind(any, 1, &crate::config::Device::default()).expect("a port").pop().expect("a socket");
            let address = listener.local_addr().expect("an address");
            let listener = Listener::new(listener).expect("waited for");
            Self { shard: Rc::new(RefCell::new(shard)), sockets, listener, address }
        }

        /// A connection, and the device's end.
        async fn connect(&self) -> (ConnRef, Peer) {
            let far = Peer::connect(self.address).expect("connects");
            let (near, from) = self.listener.accept().await.expect("accepted");
            let mut shard = self.shard.borrow_mut();
            let conn = shard.add(Stream::Tcp(Socket::new(near)), from, None);
            shard.watch(conn).expect("watched");
            (conn, far)
        }

        async fn news(&mut self) {
            self.sockets.told().await.expect("polled");
            self.sockets
                .take(tokio::time::Instant::now().into_std(), &mut self.shard.borrow_mut())
                .expect("polled");
        }

        /// Whoever has news until there is none.
        fn all_news(&mut self) -> Vec<ConnRef> {
            let mut told = Vec::new();
            let mut cx = Context::from_waker(Waker::noop());
            while pin!(self.news()).poll(&mut cx).is_ready() {
                told.extend(std::iter::from_fn(|| self.shard.borrow_mut().next_ready()));
            }
            told
        }

        fn socket<T>(&self, conn: ConnRef, work: impl FnOnce(&mut Socket) -> T) -> T {
            let mut shard = self.shard.borrow_mut();
            let Some(Stream::Tcp(socket)) = shard.connection(conn).map(|c| &mut c.stream) else {
                panic!("no such socket")
            };
            work(socket)
        }

        fn read(&self, conn: ConnRef) -> Poll<Vec<u8>> {
            let mut into = [0; 64];
            let read = self.socket(conn, |socket| socket.read(&mut into));
            read.map(|read| into[..read.expect("no error")].to_vec())
        }
    }

    #[tokio::test]
    async fn what_comes_is_read_once_and_no_more_is_asked_for_without_news() {
        let mut world = World::new();
        let (conn, mut far) = world.connect().await;
        assert_eq!(world.read(conn), Poll::Pending, "nobody has told of anything");
        for said in [b"one", b"two"] {
            far.write_all(said).expect("written");
            while world.read(conn).map(|read| assert_eq!(read, said)).is_pending() {
                world.news().await;
            }
            assert_eq!(world.read(conn), Poll::Pending);
        }
    }

    #[tokio::test]
    async fn behind_what_comes_with_the_peers_end_its_end_is_read() {
        let mut world = World::new();
        let (conn, mut far) = world.connect().await;
        far.write_all(b"bye").expect("written");
        far.shutdown(Shutdown::Write).expect("shut");
        // Both are there before anybody looks: no news follows the read.
        while !world.socket(conn, |socket| socket.ended) {
            world.news().await;
        }
        assert_eq!(world.read(conn), Poll::Ready(b"bye".to_vec()));
        assert_eq!(world.read(conn), Poll::Ready(Vec::new()));
        assert_eq!(world.read(conn), Poll::Ready(Vec::new()), "and again, whoever asks");
    }

    #[tokio::test]
    async fn of_more_than_are_taken_at_a_time_nobody_is_forgotten() {
        let mut world = World::new();
        let mut all = Vec::new();
        for _ in 0..=FEW * 2 {
            let (conn, mut far) = world.connect().await;
            far.write_all(b"x").expect("written");
            all.push((conn, far));
        }
        world.news().await;
        let mut told: Vec<_> = std::iter::from_fn(|| world.shard.borrow_mut().next_ready()).collect();
        assert_eq!(told.len(), FEW);
        while told.len() < all.len() {
            world.news().await;
            told.extend(std::iter::from_fn(|| world.shard.borrow_mut().next_ready()));
        }
        told.sort();
        assert_eq!(told, all.iter().map(|(conn, _)| *conn).collect::<Vec<_>>());
        assert_eq!(world.all_news(), [], "each was told once");
    }

    #[tokio::test]
    async fn others_have_their_turn_however_much_news_there_is() {
        let world = World::new();
        let mut far = Vec::new();
        for _ in 0..FEW * 3 {
            far.push(world.connect().await.1);
        }
        // Of a frame that doesn't end: it is kept once it is read.
        for far in &mut far {
            far.write_all(&[9]).expect("written");
        }
        let World { shard, sockets, .. } = world;
        let other = shard.clone();
        let unread = move || other.borrow().connections.iter().filter(|(_, c)| c.partial.is_empty()).count();
        let tasks = tokio::task::LocalSet::new();
        let looks = tasks.run_until(async move {
            let looks = tokio::task::spawn_local(async move {
                let mut looks = vec![FEW * 3];
                while looks.last() != Some(&0) {
                    tokio::task::yield_now().await;
                    looks.push(unread());
                }
                looks
            });
            tokio::select! {
                looks = looks => looks.expect("no panic"),
                ended = turn::run(&shard, Some(sockets)) => panic!("{ended:?}"),
            }
        });
        let looks = looks.await;
        assert!(looks.windows(2).all(|two| two[0] - two[1] <= FEW), "{looks:?}");
    }

    #[tokio::test]
    async fn who_can_go_on_at_once_does_so_in_the_next_turn() {
        let world = World::new();
        let (conn, _far) = world.connect().await;
        let shard = &mut *world.shard.borrow_mut();
        // A step that wakes itself: what was kept is looked at again.
        let connection = shard.connection(conn).expect("there");
        connection.partial.set(vec![9]);
        connection.flags.held = true;
        shard.wake(conn);
        assert!(step_ready(shard, 100), "it stands in the queue again");
        assert!(!step_ready(shard, 100));
        assert!(shard.connection(conn).is_some());
    }

    #[tokio::test]
    async fn between_many_accepts_others_have_their_turn() {
        const MANY: usize = 300;
        let world = World::new();
        let far: Vec<_> = (0..MANY).map(|_| Peer::connect(world.address).expect("connects")).collect();
        let accepted = Rc::new(RefCell::new(0));
        let (count, listener) = (accepted.clone(), world.listener);
        let tasks = tokio::task::LocalSet::new();
        let seen = tasks.run_until(async move {
            tokio::task::spawn_local(async move {
                while *count.borrow() < MANY {
                    listener.accept().await.expect("accepted");
                    *count.borrow_mut() += 1;
                }
            });
            let mut seen = Vec::new();
            while seen.last() != Some(&MANY) {
                tokio::task::yield_now().await;
                seen.push(*accepted.borrow());
            }
            seen
        });
        let seen = seen.await;
        assert!(seen.iter().any(|count| (1..MANY).contains(count)), "{seen:?}");
        drop(far);
    }

    #[tokio::test]
    async fn that_it_may_write_is_told_to_who_has_something_to_write() {
        let mut world = World::new();
        let (conn, mut far) = world.connect().await;
        assert_eq!(world.all_news(), []);
        let (tally, bytes, mut written) = (world.shard.borrow().tally.clone(), vec![7; 65_536], 0);
        while let Poll::Ready(more) = world.socket(conn, |socket| socket.write(&bytes)) {
            written += more.expect("no error");
        }
        world.shard.borrow_mut().connection(conn).expect("there").outbox.push(&tally, 0, 1, b"x");
        far.read_exact(&mut vec![0; written]).expect("read");
        let mut told = Vec::new();
        while told.is_empty() {
            world.news().await;
            told.extend(std::iter::from_fn(|| world.shard.borrow_mut().next_ready()));
        }
        assert_eq!(told, [conn]);
    }

    #[tokio::test]
    async fn a_full_socket_is_left_alone_until_its_peer_has_read() {
        let mut world = World::new();
        let (conn, mut far) = world.connect().await;
        let (bytes, mut written) = (vec![7; 65_536], 0);
        while let Poll::Ready(more) = world.socket(conn, |socket| socket.write(&bytes)) {
            written += more.expect("no error");
        }
        world.all_news();
        assert!(world.socket(conn, |socket| socket.write(b"x")).is_pending());
        far.read_exact(&mut vec![0; written]).expect("read");
        while world.socket(conn, |socket| socket.write(b"x")).is_pending() {
            world.news().await;
        }
    }

    #[tokio::test]
    async fn news_of_a_connection_that_has_left_is_not_taken_for_its_successors() {
        let mut world = World::new();
        let (first, mut far) = world.connect().await;
        far.write_all(b"late").expect("written");
        // Kept open, as a descriptor that another process has would be: its news still comes.
        let gone = world.shard.borrow_mut().connections.remove(first.slot as usize);
        let (second, mut far) = world.connect().await;
        assert_eq!((first.slot, first == second), (second.slot, false));
        far.write_all(b"new").expect("written");
        let told = loop {
            world.news().await;
            let told: Vec<_> = std::iter::from_fn(|| world.shard.borrow_mut().next_ready()).collect();
            if !told.is_empty() {
                break told;
            }
        };
        assert_eq!(told, [second]);
        assert_eq!(world.read(second), Poll::Ready(b"new".to_vec()));
        drop(gone);
    }
}
