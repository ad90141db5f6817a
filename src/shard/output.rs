//! Writing: at once if nothing waits before it, else by the connection's step when the socket takes more.

use std::io;
use std::rc::Rc;
use std::task::Poll;

use super::memory::Tally;
use super::state::{ConnRef, Connection, Phase, Shard, get};
use super::stream::Stream;
use crate::push::Millis;
use crate::wire::frame::device_frame;

/// Writes what waits; whether there was something and all of it went. In the closing phase, shuts the write side behind it.
pub(super) fn flush(connection: &mut Connection, now: Millis) -> bool {
    if connection.flags.broken {
        // Perhaps just because what waits must never be written: it was taken back, or is of another account.
        return false;
    }
    let before = connection.outbox.len();
    let mut written = 0;
    while written < before {
        match connection.stream.write(&connection.outbox.bytes()[written..]) {
            Poll::Pending => break,
            Poll::Ready(Ok(n)) => written += n,
            Poll::Ready(Err(_)) => {
                connection.flags.broken = true;
                break;
            }
        }
    }
    connection.outbox.written(now, written);
    if let Phase::Live(live) = &mut connection.phase
        && connection.outbox.is_empty()
    {
        live.seldom.handle_all_written();
    }
    let closing = matches!(connection.phase, Phase::Closing { .. });
    if closing && connection.outbox.is_empty() && !connection.flags.shut {
        connection.flags.shut = true;
        if connection.stream.shut().is_err() {
            connection.flags.broken = true;
        }
    }
    written > 0 && connection.outbox.is_empty()
}

impl Shard {
    /// Sends whole frames: to the socket at once if nothing waits before them.
    pub(super) fn send(&mut self, conn: ConnRef, frames: &[u8], cipher: &mut Vec<u8>) {
        let now = self.now();
        let Self { connections, traffic, tally, .. } = self;
        let Some(connection) = get(connections, conn) else { return };
        if connection.flags.shut || connection.flags.broken {
            return;
        }
        traffic.bytes_out += frames.len() as u64;
        traffic.frames_out += count_frames(frames);
        if let Some(tls) = &mut connection.tls {
            cipher.clear();
            if let Err(error) = tls.send(frames, cipher) {
                tracing::debug!(peer = %connection.peer, %error, "nothing can be sent before the handshake");
                return;
            }
            connection.write(tally, now, cipher);
        } else {
            connection.write(tally, now, frames);
        }
        let is_left = !connection.outbox.is_empty();
        let goes_on = is_left || connection.flags.broken;
        if is_left && !connection.flags.stall_armed {
            connection.flags.stall_armed = true;
            self.stalls.insert(now + self.context.config.stall_deadline_ms, conn);
        }
        if goes_on {
            self.wake(conn);
        }
        self.expect_answer(conn);
    }
}

impl Connection {
    /// Writes bytes as they go on the wire, behind those that wait. If some stay, or it broke, it has to look again.
    pub(super) fn write(&mut self, tally: &Rc<Tally>, now: Millis, bytes: &[u8]) {
        if bytes.is_empty() || self.flags.broken || self.flags.shut {
            return;
        }
        let mut written = 0;
        if self.outbox.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(n) => written = n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.flags.broken = true;
                    return;
                }
            }
            if written == bytes.len() {
                return;
            }
        }
        let beside = if matches!(self.stream, Stream::Quic(_)) { tally.beside_quic } else { 0 };
        self.outbox.push(tally, beside, now, &bytes[written..]);
    }
}

fn count_frames(bytes: &[u8]) -> u64 {
    let (mut at, mut frames) = (0, 0);
    while let Ok(Some((head, body))) = device_frame(&bytes[at..]) {
        at += head + body;
        frames += 1;
    }
    frames
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::shard::few::Few;
    use crate::shard::outbox::Outbox;
    use crate::shard::sockets::Socket;
    use crate::shard::state::Flags;

    #[tokio::test]
    async fn what_waits_on_a_connection_that_was_broken_on_purpose_is_never_written() {
        for broken in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (near, peer) = near.expect("accepted");
            // The socket would take it.
            near.writable().await.expect("connected");
            let mut connection = Connection {
                serial: 1,
                stream: Stream::Tcp(Socket::of(near)),
                peer: peer.into(),
                since: 0,
                tls: None,
                phase: Phase::Closing { deadline: 10 },
                partial: Few::default(),
                outbox: Outbox::default(),
                flags: Flags { broken, ..Flags::default() },
            };
            connection.outbox.push(&Rc::new(Tally::default()), 0, 1, b"taken back");
            assert_eq!(flush(&mut connection, 2), !broken);
            drop(connection);
            let mut got = Vec::new();
            far.expect("connected").read_to_end(&mut got).await.expect("an end");
            assert_eq!(got, if broken { &b""[..] } else { b"taken back" });
        }
    }
}
