//! Streams: what the journal says became of messages, to the one router that reads it.
//!
//! The newest reader wins ([`super::registry`]). Once a newer one is there, the one before says `StreamClosed`, sends nothing more, and its
//! acknowledgements move nothing.
//!
//! A reader goes from its cursor to the journal's head and waits there. Only cursors that were sent can become durable, and at most
//! `limits::STREAM_WINDOW` are unacknowledged. Where nothing concerns the stream for long, a frame without events moves the cursor,
//! so that an idle stream doesn't pin the journal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::outbox::Outbox;
use super::registry::Fence;
use super::{Pace, Phase, RouterContext, reached};
use crate::fault::{self, Fault};
use crate::ids::Seq;
use crate::limits;
use crate::push::Millis;
use crate::store::{Command, Store, StreamError};
use crate::wire::router::{self as wire, LinkError};

/// Bytes of memory of one read, about.
const READ_BYTES: usize = 3 * limits::STREAM_BATCH_BYTES;
/// Records without events after which a cursor moves at the quicker pace.
const MANY_RECORDS: u64 = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stream as one link reads it: shared by the future that sends and the link's reader, which gets the acknowledgements.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) stream: Arc<str>,
    pub(super) fence: Fence,
    pub(super) start: Seq,
    window: Mutex<Window>,
    /// The window opened, a cursor waits to be submitted, the journal's head moved, or the edge closes.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Window {
    /// Cursors sent and not acknowledged, ascending.
    sent: VecDeque<Seq>,
    /// The newest cursor sent.
    newest: Seq,
    /// Acknowledged, but the store's queue was full.
    unsubmitted: Option<Seq>,
}

impl Reading {
    pub(super) fn enter(context: &RouterContext, stream: Arc<str>, router: &str, start: Seq) -> Self {
        let fence = context.streams.enter(&stream, router, context.clock.now());
        let window = Mutex::new(Window { newest: start, ..Window::default() });
        Self { stream, fence, start, window, changed: Notify::new() }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.fence.epoch
    }

    /// The router has stored everything up to the cursor.
    pub(super) fn acknowledge(&self, cursor: Seq, store: &dyn Store) -> Result<(), LinkError> {
        if !self.fence.is_newest() {
            return Ok(());
        }
        let acknowledged = lock(&self.window).acknowledge(cursor)?;
        if let Some(acknowledged) = acknowledged {
            self.submit(acknowledged, store);
            self.changed.notify_one();
        }
        Ok(())
    }

    fn submit(&self, cursor: Seq, store: &dyn Store) {
        let ack = Command::StreamAck { stream: Arc::clone(&self.stream), cursor };
        let refused = store.submit(ack).err();
        lock(&self.window).unsubmitted = refused.map(|_refused| cursor);
    }

    pub(super) fn resubmit(&self, store: &dyn Store) {
        let waiting = lock(&self.window).unsubmitted;
        if let Some(cursor) = waiting.filter(|_| self.fence.is_newest()) {
            self.submit(cursor, store);
        }
    }

    fn has_unsubmitted(&self) -> bool {
        lock(&self.window).unsubmitted.is_some()
    }

    pub(super) fn has_room(&self) -> bool {
        lock(&self.window).sent.len() < limits::STREAM_WINDOW
    }

    pub(super) fn note_sent(&self, cursor: Seq) {
        lock(&self.window).note_sent(cursor);
    }

    async fn room(&self) {
        while !self.has_room() {
            self.changed.notified().await;
        }
    }

    async fn send(&self, cursor: Seq, frame: Vec<u8>, outbox: &Outbox) {
        self.room().await;
        self.note_sent(cursor);
        outbox.send(frame).await;
    }
}

impl Window {
    fn note_sent(&mut self, cursor: Seq) {
        self.sent.push_back(cursor);
        self.newest = cursor;
    }

    /// The newest of the cursors sent that this acknowledges, if there is one.
    fn acknowledge(&mut self, cursor: Seq) -> Result<Option<Seq>, LinkError> {
        if cursor > self.newest {
            let text = format!("{cursor} is acknowledged, but {} is the newest sent", self.newest);
            return Err(LinkError::Cursor(text));
        }
        let count = self.sent.iter().take_while(|sent| **sent <= cursor).count();
        Ok(self.sent.drain(..count).next_back())
    }
}

/// Tells the streams of a link that the journal's head has moved, and that the edge closes: one that looks out for all of them.
pub(super) async fn look_out(
    streams: &[Arc<Reading>],
    context: &RouterContext,
    phase: &watch::Receiver<Phase>,
) {
    if streams.is_empty() {
        return reached(phase, Phase::Closing).await;
    }
    let tell = || streams.iter().for_each(|reading| reading.changed.notify_one());
    let mut head = context.store.head();
    let looking = async {
        while head.changed().await.is_ok() {
            tokio::time::sleep(context.pace.gather).await;
            if !fault::is(Fault::StreamUntold) {
                tell();
            }
        }
        // A store that is gone changes nothing any more: the phase ends this.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = reached(phase, Phase::Closing) => tell(),
        () = looking => {}
    }
}

/// Why a stream ends on a link that goes on.
enum StreamEnd {
    Replaced,
    Failed(StreamError),
    Closing,
}

/// Sends one stream until a newer reader takes it, it can't be read, or the edge closes and everything is sent.
pub(super) async fn run(
    reading: &Reading,
    context: &RouterContext,
    outbox: &Outbox,
    phase: &watch::Receiver<Phase>,
) {
    let end = tokio::select! {
        biased;
        () = reading.fence.replaced() => StreamEnd::Replaced,
        end = follow(reading, context, outbox, phase) => end,
    };
    let text = match end {
        StreamEnd::Closing => return,
        StreamEnd::Replaced => "a newer reader opened it".to_owned(),
        StreamEnd::Failed(error) => {
            tracing::error!(stream = %reading.stream, %error, "a stream can't be read");
            error.to_string()
        }
    };
    outbox.send(wire::stream_closed(&reading.stream, &text)).await;
}

/// Where a reader is.
pub(super) struct Position {
    /// Everything up to here was read.
    pub(super) read: Seq,
    /// The newest cursor sent, and when.
    pub(super) sent: Seq,
    pub(super) sent_at: Millis,
}

impl Position {
    /// When a frame without events is due, to move the cursor past what concerned nobody.
    pub(super) fn empty_due(&self, pace: &Pace) -> Option<Millis> {
        let pace = match self.read.0 - self.sent.0 {
            0 => return None,
            behind if behind < MANY_RECORDS => pace.quiet,
            _ => pace.idle,
        };
        Some(self.sent_at.saturating_add(pace.as_millis() as u64))
    }
}

async fn follow(
    reading: &Reading,
    context: &RouterContext,
    outbox: &Outbox,
    phase: &watch::Receiver<Phase>,
) -> StreamEnd {
    let head = context.store.head();
    let mut at = Position { read: reading.start, sent: reading.start, sent_at: context.clock.now() };
    let mut looked = None;
    loop {
        let closing = *phase.borrow() >= Phase::Closing;
        let seen = *head.borrow();
        let before = at.read;
        // Also if all of it was read before it was told: what else came with it, as the stream's end, is known only now.
        if looked.replace(seen) != Some(seen) || seen > before {
            // The frames as they grow, and until they are in the outbox.
            let _held = context.room.outgoing(READ_BYTES);
            match read(reading, context, before).await {
                Ok((frames, cursor)) => {
                    for (cursor, frame) in frames {
                        reading.send(cursor, frame, outbox).await;
                        at.sent = cursor;
                        at.sent_at = context.clock.now();
                    }
                    at.read = at.read.max(cursor);
                }
                Err(error) => return StreamEnd::Failed(error),
            }
        }
        reading.resubmit(&*context.store);
        if at.read < seen && at.read > before {
            continue;
        }
        if closing {
            return StreamEnd::Closing;
        }
        // Waiting for room in the window may have taken the word that there is more, or that the edge closes.
        if *head.borrow() == seen && *phase.borrow() < Phase::Closing {
            pause(reading, context, outbox, &mut at).await;
        }
    }
}

/// At the head: until there is more, the edge closes, or something is due.
async fn pause(reading: &Reading, context: &RouterContext, outbox: &Outbox, at: &mut Position) {
    let pace = &context.pace;
    let due = at.empty_due(pace);
    let now = context.clock.now();
    if due.is_some_and(|due| due <= now) {
        let frame = wire::empty_stream_batch(&reading.stream, reading.epoch(), at.read);
        reading.send(at.read, frame, outbox).await;
        (at.sent, at.sent_at) = (at.read, now);
        return;
    }
    let mut wait = due.map_or(Duration::MAX, |due| Duration::from_millis(due - now));
    if reading.has_unsubmitted() {
        wait = wait.min(pace.gather.max(Duration::from_millis(1)));
    }
    let waited = async {
        match wait {
            Duration::MAX => std::future::pending().await,
            wait => tokio::time::sleep(wait).await,
        }
    };
    tokio::select! {
        biased;
        () = reading.changed.notified() => {}
        () = waited => {}
    }
}

type Frames = Vec<(Seq, Vec<u8>)>;

/// One read and its frames, made off the runtime: it reads files and encodes much.
async fn read(reading: &Reading, context: &RouterContext, after: Seq) -> Result<(Frames, Seq), StreamError> {
    let (store, stream) = (Arc::clone(&context.store), Arc::clone(&reading.stream));
    let (epoch, events) = (reading.epoch(), context.events_a_read);
    let work = move || {
        let bytes = limits::STREAM_BATCH_BYTES;
        let mut frames = wire::StreamFrames::new(&stream, epoch, bytes);
        let cursor = store.pass_stream(&stream, after, events, bytes, &mut frames)?;
        Ok((frames.finish(cursor), cursor))
    };
    match context.aside.run(work).await {
        Ok(read) => read,
        Err(error) => Err(StreamError::Io(std::io::Error::other(error))),
    }
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
