//! A connection's step, once it can go on: only then it takes a buffer, the shard's shared one. Everything that it does with bytes happens here:
//! reading, TLS, finding frames, writing, closing.

use std::task::{Poll, ready};

use super::ahead::AHEAD;
use super::output::flush;
use super::state::{ConnRef, Phase, Scratch, Shard, get};
use crate::error::DeviceError;
use crate::limits;
use crate::wire::device as wire;
use crate::wire::frame::device_frame;

/// Reads of one connection before the others have their turn.
const READS: usize = 4;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// What may be left of earlier reads: a frame and its head, or a TLS record.
const LEFT_BYTES: usize = limits::DEVICE_FRAME_BYTES + 1024;

/// Lets those that can go on do so, at most `most`. Whether more can: who could go on at once does so in the next
/// turn, or one that never stops sending would keep all others waiting.
pub(super) fn step_ready(shard: &mut Shard, most: usize) -> bool {
    for n in 0..most.min(shard.ready.len()) {
        if n % AHEAD == 0 {
            shard.touch(shard.ready.iter().map(|conn| conn.slot));
        }
        let Some(conn) = shard.next_ready() else { return false };
        // It comes again with its next news, or is gone.
        let _stepped: Poll<()> = step(shard, conn);
    }
    !shard.ready.is_empty()
}

/// Goes on with a connection as far as it goes now. Ready: it is over, and gone.
pub(super) fn step(shard: &mut Shard, conn: ConnRef) -> Poll<()> {
    shard.begin();
    ready!(go_on(shard, conn));
    shard.remove(conn);
    Poll::Ready(())
}

fn go_on(shard: &mut Shard, conn: ConnRef) -> Poll<()> {
    let now = shard.now();
    for _ in 0..READS {
        let Some(connection) = shard.connection(conn) else { return Poll::Ready(()) };
        if connection.outbox.is_expired(now) {
            shard.fail(conn, DeviceError::Stalled);
            return Poll::Ready(());
        }
        let flushed = flush(connection, now);
        if connection.flags.broken {
            shard.fail(conn, DeviceError::Closed);
            return Poll::Ready(());
        }
        if flushed {
            shard.mark_dirty(conn);
            shard.work.notify_one();
        }
        if !shard.may_read(conn) || !shard.may_step(conn) {
            return Poll::Pending;
        }
        if shard.connection(conn).is_some_and(|c| c.flags.held) {
            shard.resume(conn);
            continue;
        }
        ready!(shard.poll_read(conn));
    }
    shard.wake(conn);
    Poll::Pending
}

impl Shard {
    /// Whether more may be read from it now. What stops it wakes it again: a durable Hello or request, a confirmed Ack,
    /// a flushed outbox.
    pub(super) fn may_read(&mut self, conn: ConnRef) -> bool {
        let full = self.acks.len() >= limits::TURN_ACKS;
        let Some(connection) = self.connection(conn) else { return false };
        let (may, is_behind) = match &connection.phase {
            Phase::Closing { .. } => return true,
            Phase::Greeting { .. } => (!full, false),
            Phase::Registering(_) => (false, false),
            Phase::Live(live) => {
                let is_behind = live.session.is_behind_on_acks();
                (!full && !is_behind && live.seldom.replies().len() < limits::SESSION_REQUESTS, is_behind)
            }
        };
        let has_room = connection.outbox.len() < limits::OUTBOX_BYTES;
        if full && !connection.flags.paused {
            connection.flags.paused = true;
            self.paused.push(conn);
            return false;
        }
        if is_behind {
            self.expect_confirms();
        }
        may && has_room
    }

    /// Handshakes have a share of each turn: whether this one has a step left, or waits for the next turn.
    fn may_step(&mut self, conn: ConnRef) -> bool {
        let Some(connection) = self.connection(conn) else { return false };
        if connection.tls.is_none() || !matches!(connection.phase, Phase::Greeting { .. }) {
            return true;
        }
        if self.handshake_steps == 0 {
            self.deferred.push_back(conn);
            self.work.notify_one();
            return false;
        }
        true
    }

    /// Reads once and works on it. Pending: there is nothing.
    fn poll_read(&mut self, conn: ConnRef) -> Poll<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.net.resize(LEFT_BYTES + READ_BYTES, 0);
        let read = self.read_into(conn, &mut scratch);
        let polled = read.map(|total| {
            let result = total.and_then(|total| self.work_on_read(conn, total, &mut scratch));
            self.finish(conn, result, &mut scratch);
        });
        self.scratch = scratch;
        polled
    }

    /// Reads into `scratch.net`, behind what is left of earlier reads. How many bytes that makes; 0: nothing to work on.
    fn read_into(&mut self, conn: ConnRef, scratch: &mut Scratch) -> Poll<Result<usize, DeviceError>> {
        let Some(connection) = self.connection(conn) else { return Poll::Ready(Ok(0)) };
        let left = connection.tls.as_ref().map_or(&connection.partial, |tls| &tls.retained);
        let kept = left.len();
        if kept > LEFT_BYTES {
            return Poll::Ready(Err(DeviceError::FrameTooLarge));
        }
        let room = &mut scratch.net[kept..kept + READ_BYTES];
        let read = match ready!(connection.stream.read(room)) {
            Ok(0) | Err(_) => return Poll::Ready(Err(DeviceError::Closed)),
            Ok(read) => read,
        };
        scratch.net[..kept].copy_from_slice(left);
        let is_closing = matches!(connection.phase, Phase::Closing { .. });
        // Then thrown away; only the peer's end is waited for.
        Poll::Ready(Ok(if is_closing { 0 } else { kept + read }))
    }

    /// Decrypts and handles what was read.
    fn work_on_read(
        &mut self,
        conn: ConnRef,
        total: usize,
        scratch: &mut Scratch,
    ) -> Result<(), DeviceError> {
        if total == 0 {
            return Ok(());
        }
        let Some(connection) = self.connection(conn) else { return Ok(()) };
        let is_tls = connection.tls.is_some();
        let mut closed = false;
        if is_tls {
            self.spend_step(conn);
            closed = self.decrypt(conn, total, scratch)?;
        } else if let Some(connection) = self.connection(conn) {
            connection.partial.take();
            std::mem::swap(&mut scratch.net, &mut scratch.plain);
        }
        let length = if is_tls { scratch.plain.len() } else { total };
        let result = self.work_on(conn, &scratch.plain[..length], &mut scratch.frames);
        if !is_tls {
            std::mem::swap(&mut scratch.net, &mut scratch.plain);
        }
        result?;
        if closed { Err(DeviceError::Closed) } else { Ok(()) }
    }

    fn spend_step(&mut self, conn: ConnRef) {
        if self.connection(conn).is_some_and(|c| matches!(c.phase, Phase::Greeting { .. })) {
            self.handshake_steps = self.handshake_steps.saturating_sub(1);
        }
    }

    /// Decrypts into `scratch.plain`, behind what is left of a frame. Whether the peer said goodbye.
    fn decrypt(&mut self, conn: ConnRef, total: usize, scratch: &mut Scratch) -> Result<bool, DeviceError> {
        let now = self.now();
        let Some(connection) = get(&mut self.connections, conn) else { return Ok(false) };
        let Some(tls) = &mut connection.tls else { return Ok(false) };
        tls.retained.take();
        scratch.plain.clear();
        scratch.plain.append(&mut connection.partial.take());
        scratch.cipher.clear();
        let result = tls.receive(&mut scratch.net[..total], &mut scratch.plain, &mut scratch.cipher);
        if let Ok(received) = &result
            && received.consumed < total
        {
            tls.retained.set(scratch.net[received.consumed..total].to_vec());
        }
        let peer = connection.peer;
        let is_answered = !scratch.cipher.is_empty() && matches!(connection.phase, Phase::Greeting { .. });
        connection.write(&self.tally, now, &scratch.cipher);
        if is_answered {
            self.was_answered(conn);
        }
        match result {
            Ok(received) => Ok(received.closed),
            Err(error) => {
                tracing::debug!(%peer, %error, "TLS");
                Err(DeviceError::Tls)
            }
        }
    }

    /// Handles the whole frames at the start of `bytes`, as far as the session may be read; keeps the rest.
    fn work_on(&mut self, conn: ConnRef, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), DeviceError> {
        out.clear();
        let (mut at, mut frames) = (0, 0);
        let mut is_held = false;
        let result = loop {
            let waiting = self.connection(conn).map_or(0, |connection| connection.outbox.len());
            if !self.may_read(conn) || waiting + out.len() >= limits::OUTBOX_BYTES {
                is_held = true;
                break Ok(());
            }
            match device_frame(&bytes[at..]) {
                Ok(Some((head, body))) => {
                    let frame = wire::parse(&bytes[at + head..at + head + body]);
                    at += head + body;
                    frames += 1;
                    if let Err(error) = frame.and_then(|frame| self.handle(conn, frame, out)) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        // Whole frames only: a frame that never ends must not keep its session, and its bytes, for ever.
        let now = self.now();
        if frames > 0
            && let Some(connection) = self.connection(conn)
            && let Phase::Live(live) = &mut connection.phase
        {
            connection.flags.frame_ended = true;
            live.session.handle_read(now);
            let settles = connection.outbox.is_empty()
                && live.seldom.edit(|parts| parts.told.handle_said(now)).unwrap_or_default();
            self.no_longer_suspect(conn);
            if settles {
                self.report_active(conn);
            }
        }
        self.traffic.frames_in += frames;
        self.traffic.bytes_in += at as u64;
        if at < bytes.len()
            && let Some(connection) = self.connection(conn)
        {
            connection.partial.set(bytes[at..].to_vec());
            connection.flags.held = is_held;
        }
        result
    }

    /// Sends what a read or an event brought about, and ends the connection if that failed.
    fn finish(&mut self, conn: ConnRef, result: Result<(), DeviceError>, scratch: &mut Scratch) {
        if !scratch.frames.is_empty() {
            self.put_confirm(conn, &mut scratch.frames);
            let frames = std::mem::take(&mut scratch.frames);
            self.send(conn, &frames, &mut scratch.cipher);
            scratch.frames = frames;
            scratch.frames.clear();
        }
        match result {
            Ok(()) => self.note_begun(conn),
            Err(error) => self.fail(conn, error),
        }
    }

    /// Does something that may add frames for this connection, and sends them.
    pub(super) fn with_frames(
        &mut self,
        conn: ConnRef,
        work: impl FnOnce(&mut Self, &mut Vec<u8>) -> Result<(), DeviceError>,
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.frames.clear();
        let result = work(self, &mut scratch.frames);
        self.finish(conn, result, &mut scratch);
        self.scratch = scratch;
    }

    /// Goes on with frames that were read while the session had to wait, then lets it read again.
    pub(super) fn resume(&mut self, conn: ConnRef) {
        let Some(connection) = self.connection(conn) else { return };
        let left = connection.partial.take();
        connection.flags.held = false;
        if !left.is_empty() {
            let mut scratch = std::mem::take(&mut self.scratch);
            let result = self.work_on(conn, &left, &mut scratch.frames);
            self.finish(conn, result, &mut scratch);
            self.scratch = scratch;
        }
        self.wake(conn);
    }
}
