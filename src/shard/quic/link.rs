//! A QUIC connection and the one stream that a device opens on it, as the connection above it sees them.
//!
//! The endpoint and the connection above share it. What either does may leave something to send or to say to the endpoint: then it stands in the queue
//! of those that the endpoint looks at at the end of the turn.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, ConnectionEvent, ConnectionHandle, Dir, Event, FinishError, ReadError,
    ReadableError, StreamEvent, StreamId, VarInt, WriteError,
};

use crate::push::Millis;
use crate::shard::state::ConnRef;

/// Connections that the endpoint has to look at.
pub(super) type Touched = Rc<RefCell<VecDeque<ConnectionHandle>>>;

/// The same, shared by its endpoint and who uses it.
pub(super) type SharedLink = Rc<RefCell<Link>>;

/// A QUIC connection.
pub(super) struct Link {
    pub proto: Connection,
    pub handle: ConnectionHandle,
    /// Whom it carries; `None`: nobody any more, it is only still to be closed.
    pub conn: Option<ConnRef>,
    /// Stands among the touched.
    pub is_touched: bool,
    /// The one that the device opened.
    stream: Option<StreamId>,
    /// The peer has ended it, or can't be reached: no more comes, and nothing goes.
    is_lost: bool,
    /// Datagrams that have come, and when something was written behind which none has.
    heard: u64,
    unanswered: Option<Unanswered>,
    touched: Touched,
}

/// Something was written, and nothing came since.
#[derive(Clone, Copy)]
struct Unanswered {
    since: Millis,
    /// Datagrams that had come by then.
    heard: u64,
}

/// What came of looking at a connection.
#[derive(Default)]
pub(super) struct News {
    /// Whom it carries can go on.
    pub goes_on: Option<ConnRef>,
    /// It ended before it carried a session.
    pub failed: Option<(ConnRef, ConnectionError)>,
}

impl Link {
    pub(super) fn new(proto: Connection, handle: ConnectionHandle, touched: &Touched) -> Self {
        Self {
            proto,
            handle,
            conn: None,
            is_touched: false,
            stream: None,
            is_lost: false,
            heard: 0,
            unanswered: None,
            touched: touched.clone(),
        }
    }

    /// There may be something to send.
    pub(super) fn touch(&mut self) {
        if !self.is_touched {
            self.is_touched = true;
            self.touched.borrow_mut().push_back(self.handle);
        }
    }

    /// A datagram came.
    pub(super) fn hear(&mut self, event: ConnectionEvent) -> News {
        self.heard += 1;
        self.proto.handle_event(event);
        self.touch();
        self.news()
    }

    /// Its time has come.
    pub(super) fn expire(&mut self, now: Instant) -> News {
        self.proto.handle_timeout(now);
        self.touch();
        self.news()
    }

    /// What has happened to its stream.
    pub(super) fn news(&mut self) -> News {
        let mut news = News::default();
        while let Some(event) = self.proto.poll() {
            match event {
                Event::Stream(StreamEvent::Opened { dir: Dir::Bi }) if self.stream.is_none() => {
                    self.stream = self.proto.streams().accept(Dir::Bi);
                    news.goes_on = self.conn;
                }
                Event::Stream(_) => news.goes_on = self.conn,
                Event::ConnectionLost { reason } => {
                    self.is_lost = true;
                    news.goes_on = self.conn;
                    if self.stream.is_none() {
                        news.failed = self.conn.map(|conn| (conn, reason));
                    }
                }
                Event::HandshakeDataReady
                | Event::Connected
                | Event::DatagramReceived
                | Event::DatagramsUnblocked => {}
            }
        }
        news
    }

    /// Whether it carries nobody any more, and has to be closed.
    pub(super) fn is_let_go(&self) -> bool {
        self.conn.is_none() && !self.proto.is_closed()
    }

    /// Ends it. What had to be said was said in frames.
    pub(super) fn close(&mut self, now: Instant) {
        self.proto.close(now, VarInt::from_u32(0), Bytes::new());
    }

    /// Its stream, if it can be used.
    fn stream(&self) -> io::Result<StreamId> {
        if self.is_lost {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn read(&mut self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(stream) = self.stream else {
            return if self.is_lost { Poll::Ready(self.stream().map(|_| 0)) } else { Poll::Pending };
        };
        let mut read = 0;
        let mut recv = self.proto.recv_stream(stream);
        let mut chunks = match recv.read(true) {
            Ok(chunks) => chunks,
            Err(ReadableError::ClosedStream) => return Poll::Ready(Ok(0)),
            Err(error @ ReadableError::IllegalOrderedRead) => {
                return Poll::Ready(Err(io::Error::other(error)));
            }
        };
        let end = loop {
            match chunks.next(into.len() - read) {
                Ok(Some(chunk)) => {
                    into[read..][..chunk.bytes.len()].copy_from_slice(&chunk.bytes);
                    read += chunk.bytes.len();
                    if read == into.len() {
                        break Poll::Pending;
                    }
                }
                Ok(None) => break Poll::Ready(Ok(0)),
                Err(ReadError::Blocked) => break Poll::Pending,
                Err(ReadError::Reset(_)) => {
                    break Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
            }
        };
        // The peer may have to be told that it may send more.
        if chunks.finalize().should_transmit() {
            self.touch();
        }
        if read > 0 {
            Poll::Ready(Ok(read))
        } else if end.is_pending() && self.is_lost {
            Poll::Ready(self.stream().map(|_| 0))
        } else {
            end
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.stream()?;
        let written = self.proto.send_stream(stream).write(bytes);
        self.touch();
        match written {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(WriteError::Blocked) => Poll::Pending,
            Err(WriteError::Stopped(_)) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Err(WriteError::ClosedStream) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn shut(&mut self) -> io::Result<()> {
        let stream = self.stream()?;
        let finished = self.proto.send_stream(stream).finish();
        self.touch();
        finished.map_err(|error| match error {
            FinishError::Stopped(_) => io::ErrorKind::ConnectionReset.into(),
            FinishError::ClosedStream => io::ErrorKind::NotConnected.into(),
        })
    }
}

/// What a connection above has of it. Dropped, it closes the QUIC connection.
pub(in crate::shard) struct QuicStream(SharedLink);

impl QuicStream {
    pub(super) fn new(link: SharedLink) -> Self {
        Self(link)
    }

    /// Reads what is there; 0: the peer's end. Pending: the connection is told when there is more.
    pub(in crate::shard) fn read(&self, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().read(into)
    }

    /// Writes as much as goes. Pending: the connection is told when more does.
    pub(in crate::shard) fn write(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().write(bytes)
    }

    /// Nothing more will be written.
    pub(in crate::shard) fn shut(&self) -> io::Result<()> {
        self.0.borrow_mut().shut()
    }

    /// Whether the peer has ended it, or can't be reached.
    pub(in crate::shard) fn is_lost(&self) -> bool {
        self.0.borrow().is_lost
    }

    /// The peer's address now.
    pub(in crate::shard) fn peer(&self) -> SocketAddr {
        self.0.borrow().proto.remote_address()
    }

    /// Something was written. Whether a time begins in which it has to be answered: else one is running already.
    pub(in crate::shard) fn wrote(&self, now: Millis) -> bool {
        let link = &mut *self.0.borrow_mut();
        let was_armed = link.unanswered.is_some();
        if link.unanswered.is_none_or(|unanswered| unanswered.heard != link.heard) {
            link.unanswered = Some(Unanswered { since: now, heard: link.heard });
        }
        !was_armed
    }

    /// Since when something was written and nothing has come. Whatever comes shows that the peer is there: what it lacks is sent again.
    pub(in crate::shard) fn unanswered_since(&self) -> Option<Millis> {
        let link = &mut *self.0.borrow_mut();
        link.unanswered = link.unanswered.filter(|unanswered| unanswered.heard == link.heard);
        link.unanswered.map(|unanswered| unanswered.since)
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        let link = &mut *self.0.borrow_mut();
        link.conn = None;
        link.touch();
    }
}
