//! A link's life after the handshake, as one straight line: open, run, settle. It reads and writes through a [`Transport`] and does not
//! know which.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::credit::Credit;
use super::frames::{Frame, FrameReader};
use super::outbox::{self, Outbox};
use super::parts::Collapsing;
use super::reader::Reader;
use super::receipts::{self, Reading};
use super::transport::Transport;
use super::who::Who;
use super::{LinkEnd, Phase, Rights, RouterContext, answers, presence, reached};
use crate::ids::Seq;
use crate::limits;
use crate::presence::Follower;
use crate::store::{Store, StreamBounds, StreamError};
use crate::telemetry::{self, Counter, Gauge, RouterTransport};
use crate::wire::router::{self as wire, FromRouter, LinkError, Open, OpenStream, OpenedStream};

/// From the end of the handshake to the end. Says why it ended, counted and logged already.
pub(super) async fn live<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    transport: Transport<R, W>,
    context: &Arc<RouterContext>,
    phase: &watch::Receiver<Phase>,
) -> LinkEnd {
    let mut who = Who::router(transport.kind, transport.peer, &transport.router);
    let end = linked(transport, context, phase, &mut who).await;
    who.ended(&end, context);
    end
}

/// Whatever goes wrong from here on, the router is told.
async fn linked<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    transport: Transport<R, W>,
    context: &Arc<RouterContext>,
    phase: &watch::Receiver<Phase>,
    who: &mut Who,
) -> LinkEnd {
    let Transport { kind, router, rights, read, write, ending, .. } = transport;
    let mut frames = FrameReader::new(read, &context.room);
    let (outbox, queue) = outbox::outbox(&context.room);
    let writer = outbox::write(queue, write, context.pace.stall);
    tokio::pin!(writer);
    let run = async {
        let opened = tokio::select! {
            biased;
            opened = open(&mut frames, context, (&router, &rights), who) => opened,
            () = reached(phase, Phase::Closing) => Err(LinkEnd::Left),
        };
        match opened {
            Ok(mut opened) => {
                let _counted = Counted::new(kind);
                let presence = opened.presence.take();
                run(&mut frames, context, &rights, &opened, presence, &outbox, phase).await
            }
            Err(end) => end,
        }
    };
    // What is said is written in the same turn.
    let end = tokio::select! {
        biased;
        end = run => end,
        written = &mut writer => return written.err().unwrap_or(LinkEnd::Left),
    };
    ending(&end);
    settle(&end, frames, outbox, writer, context).await;
    end
}

/// What a link has after Open.
struct Opened {
    streams: Vec<Arc<Reading>>,
    presence: Option<Follower>,
    answer: Vec<u8>,
}

async fn open<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    context: &RouterContext,
    (router, rights): (&str, &Rights),
    who: &mut Who,
) -> Result<Opened, LinkEnd> {
    let frame = frames.next(limits::ROUTER_CONTROL_BYTES, context.pace.open, "no Open in time").await?;
    let bytes = match &frame {
        Frame::Small(bytes) => bytes,
        Frame::Large(large) => large.bytes.as_slice(),
    };
    let FromRouter::Open(open) = wire::parse(bytes)? else {
        return Err(LinkError::OpenExpected("the first frame has to be Open").into());
    };
    who.process = open.name.chars().take(64).collect();
    if open.version != 1 {
        return Err(LinkError::Version(open.version).into());
    }
    let scope = open.presence.as_ref().map(|asked| presence::scope(asked, rights, context)).transpose()?;
    let streams = open_streams(&open, rights, router, context)?;
    let answer = wire::opened(&wire::Welcome {
        edge: &context.edge,
        now: context.clock.now(),
        credit_targets: context.credit_targets,
        credit_bytes: context.credit_bytes,
        batch_window_ms: context.batch_window_ms,
        oldest_created_at: context.store.oldest_created_at(),
        streams: &streams.iter().map(|(_, opened)| opened.clone()).collect::<Vec<_>>(),
    });
    who.opened = true;
    let follow = |(asked, scope): (&wire::OpenPresence, _)| context.presence.follow(scope, Some(asked.point));
    let presence = open.presence.as_ref().zip(scope).map(follow);
    let streams = streams.into_iter().map(|(reading, _)| reading).collect();
    Ok(Opened { streams, presence, answer })
}

/// All are checked before the first is taken from the one who reads it now.
fn open_streams(
    open: &Open,
    rights: &Rights,
    router: &str,
    context: &RouterContext,
) -> Result<Vec<(Arc<Reading>, OpenedStream)>, LinkError> {
    if open.streams.len() > limits::LINK_STREAMS {
        return Err(LinkError::Malformed("too many streams"));
    }
    let mut wanted: Vec<(Arc<str>, Seq, StreamBounds)> = Vec::with_capacity(open.streams.len());
    for asked in &open.streams {
        let name = asked.stream.as_str();
        if wanted.iter().any(|(stream, ..)| **stream == *name) {
            return Err(LinkError::Malformed("a stream is opened twice"));
        }
        // The same for one that isn't there: who may not read it learns nothing.
        if !rights.streams.allows(name) {
            return Err(LinkError::Unauthorized("this router may not read that stream".into()));
        }
        let bounds = context.store.stream_bounds(name).map_err(|error| match error {
            StreamError::Unknown => LinkError::UnknownStream(name.chars().take(64).collect()),
            _ => LinkError::Internal("the stream can't be read"),
        })?;
        wanted.push((Arc::from(name), start(asked, bounds, &*context.store)?, bounds));
    }
    let history = context.store.present_history();
    let enter = |(stream, start, bounds): (Arc<str>, Seq, StreamBounds)| {
        let reading = Reading::enter(context, Arc::clone(&stream), router, start);
        let epoch = reading.epoch();
        (Arc::new(reading), OpenedStream { stream, epoch, start, bounds, history })
    };
    Ok(wanted.into_iter().map(enter).collect())
}

fn start(asked: &OpenStream, bounds: StreamBounds, store: &dyn Store) -> Result<Seq, LinkError> {
    let (cursor, history) = match asked.from {
        wire::From::Durable => return Ok(bounds.cursor.max(bounds.oldest)),
        wire::From::Oldest => return Ok(bounds.oldest),
        wire::From::After(cursor, history) => (cursor, history),
    };
    let why = match history {
        _ if !(bounds.oldest..=bounds.head).contains(&cursor) => {
            format!("it is not between the oldest kept, {}, and the newest, {}", bounds.oldest, bounds.head)
        }
        None => "no history was named with it".to_owned(),
        Some(id) if store.is_in_history(id, cursor) => return Ok(cursor),
        Some(id) => format!(
            "it is of a history ({id}) that this edge doesn't know so far: its data directory was put back from an older copy, or has \
             started very often since"
        ),
    };
    Err(LinkError::Cursor(format!(
        "cursor {cursor} of {}: {why}; open the stream without a cursor",
        asked.stream
    )))
}

/// One in the gauge of open links, however the link ends.
struct Counted(RouterTransport);

impl Counted {
    fn new(kind: RouterTransport) -> Self {
        telemetry::add(Counter::RouterLinksOpened(kind), 1);
        telemetry::adjust(Gauge::RouterLinks(kind), 1);
        Self(kind)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        telemetry::adjust(Gauge::RouterLinks(self.0), -1);
    }
}

/// The open link: a reader, answers in flight, streams; whichever ends the link ends it for all.
async fn run<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    context: &Arc<RouterContext>,
    rights: &Arc<Rights>,
    opened: &Opened,
    presence: Option<Follower>,
    outbox: &Outbox,
    phase: &watch::Receiver<Phase>,
) -> LinkEnd {
    outbox.send(opened.answer.clone()).await;
    let credit = Credit::new(context.credit_targets, context.credit_bytes);
    let (work, line) = answers::line();
    let reader = Reader {
        context,
        rights,
        phase,
        outbox,
        credit: &credit,
        collapsing: Collapsing::default(),
        streams: &opened.streams,
        work,
        queries: answers::query_room(),
    };
    let streams = async {
        let each = opened.streams.iter().map(|reading| receipts::run(reading, context, outbox, phase));
        let mut each: FuturesUnordered<_> = each.collect();
        let each = async { while each.next().await.is_some() {} };
        tokio::join!(each, receipts::look_out(&opened.streams, context, phase));
    };
    let presence = presence::run(presence, outbox, phase);
    let go_away = async {
        reached(phase, Phase::Leaving).await;
        outbox.send(wire::go_away("this edge is leaving")).await;
    };
    let answered = Notify::new();
    let answers = async {
        answers::run(line, context, &credit, outbox, phase).await;
        answered.notify_one();
    };
    let read = async {
        let end = reader.run(frames).await;
        drop(reader);
        if matches!(end, LinkEnd::Closed) {
            // Who says no more may still listen: what is under way is answered.
            timeout(context.pace.drain, answered.notified()).await.ok();
        }
        end
    };
    let drained = async { tokio::join!(answers, streams, presence, go_away) };
    let too_late = async {
        reached(phase, Phase::Closing).await;
        sleep(context.pace.drain).await;
    };
    tokio::select! {
        biased;
        end = read => end,
        _ = drained => LinkEnd::Left,
        () = too_late => LinkEnd::Left,
    }
}

/// What ended before it began: the last word to whoever may not have a link.
pub(super) async fn say_last<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    end: &LinkEnd,
    read: R,
    write: W,
    context: &RouterContext,
) {
    let (outbox, queue) = outbox::outbox(&context.room);
    let writer = outbox::write(queue, write, context.pace.stall);
    settle(end, FrameReader::new(read, &context.room), outbox, writer, context).await;
}

/// The last word, everything written, and time for the router to read it.
async fn settle<R: AsyncRead + Unpin>(
    end: &LinkEnd,
    mut frames: FrameReader<R>,
    outbox: Outbox,
    writer: impl Future<Output = Result<(), LinkEnd>>,
    context: &RouterContext,
) {
    let last_word = async {
        if let LinkEnd::Refused(error) = end {
            outbox.send(wire::link_error(error)).await;
        }
        drop(outbox);
    };
    let finish = async {
        let ((), written) = tokio::join!(last_word, writer);
        // Closing with bytes unread would reset the connection, and the last frame with it.
        if written.is_ok() && !matches!(end, LinkEnd::Closed) {
            frames.discard().await;
        }
    };
    // The link has ended: what can't be written in this time is not waited for, and the reason is known already.
    timeout(context.pace.settle, finish).await.ok();
}
