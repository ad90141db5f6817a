//! Keeps a router's link up: sends batches within the credit, repeats what was not answered, acknowledges streams, pings.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::link::{Heard, Outgoing};
use super::revokes::{Asked, Revokes};
use super::session::Session;
use super::{Ledger, Receiver, Rejection, Sender, Tally, link};
use crate::client::{Backoff, ClientError, Endpoint};
use crate::clock::Clock;
use crate::ids::DigestKey;
use crate::push::Millis;
use crate::wire::frame::FrameError;
use crate::wire::pb::router::{
    BatchAccepted, BatchRejected, DeliverBatch, LinkErrorCode, Open, OpenStream, Opened, Revoked, StreamAck,
    to_router,
};
use crate::wire::router::told::StreamEvents;

/// Batches between the caller and the link.
const BATCHES: usize = 64;
/// Messages to be taken back between the caller and the link.
const REVOKES: usize = 64;
/// Batches that the ledger holds unsent; beyond, the caller waits.
const UNSENT: usize = 256;
/// Frames between the link and its writer.
const FRAMES: usize = 16;
/// Bytes that frames are gathered up to before they are written.
const WRITE_BYTES: usize = 64 * 1024;
/// How a router connects.
#[derive(Clone, Debug)]
pub struct Options {
    /// The edge, by mutual TLS.
    pub endpoint: Endpoint,
    /// Its name, for the edge's log.
    pub name: String,
    /// The streams it reads, from their durable cursors.
    pub streams: Vec<String>,
    /// How long it waits before it connects again.
    pub backoff: Backoff,
    /// Milliseconds without an open link after which it gives up.
    pub patience: Millis,
    /// Of the random waits.
    pub seed: u64,
    /// The message whose receipts are counted; `None`: those of all.
    pub only: Option<u64>,
}

/// What a router has to say of itself.
#[derive(Clone, Default, Debug)]
pub struct Progress {
    /// Whether its link is open.
    pub connected: bool,
    /// Why the last try to have one failed; `None`: it is open, or was not tried yet.
    pub broken: Option<Arc<str>>,
    /// Links that were opened.
    pub links: u64,
    /// What it counted.
    pub tally: Tally,
    /// The first batch that was rejected for good.
    pub first_rejection: Option<Arc<Rejection>>,
}

/// Why a router ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The edge said something that doesn't change by trying again.
    #[error(transparent)]
    Refused(ClientError),
    /// No link for longer than the patience.
    #[error("no link to the edge for {seconds} s; the last try: {last}")]
    Patience {
        /// How long.
        seconds: u64,
        /// What happened last.
        last: ClientError,
    },
    /// A newer reader opened the stream.
    #[error("the stream {stream} was closed: {text}")]
    StreamClosed {
        /// Which.
        stream: String,
        /// Why, as the edge says.
        text: String,
    },
}

/// Called with the events of a stream before they are acknowledged.
pub type OnEvents = Box<dyn FnMut(&StreamEvents<'_>) + Send>;

/// What keeps what a router is told: each call returns before the edge is told that it was taken.
pub trait Keeper: Send {
    /// Events of a stream; they are acknowledged next.
    fn events(&mut self, events: &StreamEvents<'_>);

    /// A batch is durable at the edge.
    fn accepted(&mut self, _answer: &BatchAccepted) {}

    /// Nothing of a batch was taken, this time or for good.
    fn rejected(&mut self, _answer: &BatchRejected) {}
}

/// Keeps events only.
struct EventsOnly(OnEvents);

impl Keeper for EventsOnly {
    fn events(&mut self, events: &StreamEvents<'_>) {
        (self.0)(events);
    }
}

/// A running router: a handle to its task.
#[derive(Debug)]
pub struct Router {
    batches: mpsc::Sender<DeliverBatch>,
    revokes: mpsc::Sender<Asked>,
    progress: watch::Receiver<Progress>,
    /// The task ends when this is dropped.
    life: watch::Sender<()>,
    task: JoinHandle<(Ledger, Result<(), Stop>)>,
}

impl Router {
    /// Starts a router on the current runtime. `on_events` keeps events before they are acknowledged.
    pub fn start(options: Options, clock: Arc<Clock>, digest: DigestKey, on_events: OnEvents) -> Self {
        Self::start_keeping(options, clock, digest, Box::new(EventsOnly(on_events)))
    }

    /// The same with a keeper of its own.
    pub fn start_keeping(
        options: Options,
        clock: Arc<Clock>,
        digest: DigestKey,
        keeper: Box<dyn Keeper>,
    ) -> Self {
        let (batches, incoming) = mpsc::channel(BATCHES);
        let (revokes, asked) = mpsc::channel(REVOKES);
        let (report, progress) = watch::channel(Progress::default());
        let (life, end) = watch::channel(());
        let mut ledger = Ledger::new(digest);
        ledger.count_only(options.only);
        let driver = Driver {
            rng: SmallRng::seed_from_u64(options.seed),
            options,
            clock,
            ledger,
            incoming,
            revokes: Revokes::new(asked),
            end,
            report,
            keeper,
        };
        Self { batches, revokes, progress, life, task: tokio::spawn(driver.run()) }
    }

    /// Gives it a batch; waits while too many are unsent. `false`: the router has ended.
    pub async fn deliver(&self, batch: DeliverBatch) -> bool {
        self.batches.send(batch).await.is_ok()
    }

    /// Has a message taken back, and waits for the answer, over as many links as it takes. `None`: the router has ended.
    pub async fn revoke(&self, app_key: &str, message_id: u64) -> Option<Revoked> {
        let (reply, answer) = oneshot::channel();
        self.revokes.send(Asked { app_key: app_key.to_owned(), message_id, reply }).await.ok()?;
        answer.await.ok()
    }

    /// How it gets on; changes are signalled.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Ends it in the middle of what it does, as a crash would.
    pub fn vanish(&self) {
        self.task.abort();
    }

    /// Ends it and says what it knew and how it ended. What is not answered is given up.
    pub async fn close(self) -> (Ledger, Result<(), Stop>) {
        drop(self.life);
        match self.task.await {
            Ok(end) => end,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
}

struct Driver {
    options: Options,
    clock: Arc<Clock>,
    rng: SmallRng,
    ledger: Ledger,
    incoming: mpsc::Receiver<DeliverBatch>,
    revokes: Revokes,
    /// Errs when the handle is gone.
    end: watch::Receiver<()>,
    report: watch::Sender<Progress>,
    keeper: Box<dyn Keeper>,
}

/// How a link ended.
enum Ended {
    /// The handle is gone.
    Asked,
    /// It broke, or the edge closed it.
    Broken(ClientError),
    /// Trying again can't help.
    Stop(Stop),
}

impl Driver {
    async fn run(mut self) -> (Ledger, Result<(), Stop>) {
        let end = self.keep_open().await;
        (self.ledger, end)
    }

    async fn keep_open(&mut self) -> Result<(), Stop> {
        let mut since = self.clock.now();
        loop {
            let ended = match Box::pin(self.link()).await {
                Some(Ok((sender, receiver, opened))) => {
                    let ended = Box::pin(self.session(sender, receiver, &opened)).await;
                    since = self.clock.now();
                    ended
                }
                Some(Err(error)) if is_final(&error) => Ended::Stop(Stop::Refused(error)),
                Some(Err(error)) => Ended::Broken(error),
                None => Ended::Asked,
            };
            self.tell(false);
            let error = match ended {
                Ended::Asked => return Ok(()),
                Ended::Stop(stop) => return Err(stop),
                Ended::Broken(error) => error,
            };
            let waited = self.clock.now().saturating_sub(since);
            if waited >= self.options.patience {
                return Err(Stop::Patience { seconds: waited / 1_000, last: error });
            }
            tracing::debug!(%error, "the router link broke; connecting again");
            self.report.send_modify(|p| p.broken = Some(error.to_string().into()));
            let wait = self.options.backoff.wait(&mut self.rng);
            let pause = tokio::time::sleep(Duration::from_millis(wait));
            if self.taking(pause).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Does `work` while it keeps taking batches. `None`: the handle is gone.
    async fn taking<F: Future>(&mut self, work: F) -> Option<F::Output> {
        tokio::pin!(work);
        loop {
            let room = self.ledger.waiting() < UNSENT;
            tokio::select! {
                output = &mut work => return Some(output),
                _ = self.end.changed() => return None,
                batch = self.incoming.recv(), if room => self.ledger.deliver(batch?),
            }
        }
    }

    async fn link(&mut self) -> Option<Result<(Sender, Receiver, Opened), ClientError>> {
        let stream = |name: &String| OpenStream { stream: name.clone(), ..OpenStream::default() };
        let open = Open {
            version: 1,
            name: self.options.name.clone(),
            streams: self.options.streams.iter().map(stream).collect(),
            presence: None,
        };
        let endpoint = self.options.endpoint.clone();
        self.taking(Box::pin(async move { link::open(&endpoint, open).await })).await
    }

    async fn session<R, W>(&mut self, sender: Sender<W>, mut receiver: Receiver<R>, opened: &Opened) -> Ended
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        self.options.backoff.reset();
        self.ledger.handle_opened(opened.credit_targets, opened.credit_bytes);
        self.revokes.handle_opened();
        self.report.send_modify(|p| (p.links, p.broken) = (p.links + 1, None));
        let (writer, frames) = mpsc::channel(FRAMES);
        let writing = tokio::spawn(write(sender, frames));
        let mut session = Session::new(self.clock.now());
        // What came along with the answer to Open is there already: nothing more may come for long.
        let mut early = self.read(&mut session, &mut receiver);
        let ended = loop {
            self.tell(true);
            if let Some(ended) = early.take() {
                break ended;
            }
            if let Some(ended) = self.turn(&mut session, &mut receiver, &writer).await {
                break ended;
            }
        };
        drop(writer);
        match (ended, writing.await) {
            // The writer knows better why the link broke.
            (Ended::Broken(_), Ok(Err(error))) => Ended::Broken(error),
            (ended, _) => ended,
        }
    }

    /// Waits for the next thing to do, and does it.
    async fn turn<R: AsyncRead + Unpin>(
        &mut self,
        session: &mut Session,
        receiver: &mut Receiver<R>,
        writer: &mpsc::Sender<Outgoing>,
    ) -> Option<Ended> {
        let now = self.clock.now();
        if session.next.is_none() {
            session.next = session.poll_send(now, &mut self.ledger, &mut self.revokes);
        }
        let wake = session.next_timeout().min(self.ledger.next_timeout().unwrap_or(Millis::MAX));
        let wake = Duration::from_millis(wake.saturating_sub(now));
        tokio::select! {
            place = writer.reserve(), if session.next.is_some() => {
                let Ok(place) = place else { return Some(Ended::Broken(ClientError::Closed)) };
                if let Some(frame) = session.next.take() {
                    place.send(frame);
                }
                None
            }
            read = receiver.fill() => match read {
                Ok(()) => self.read(session, receiver),
                Err(error) => Some(Ended::Broken(error)),
            },
            batch = self.incoming.recv(), if self.ledger.waiting() < UNSENT => match batch {
                Some(batch) => {
                    self.ledger.deliver(batch);
                    None
                }
                None => Some(Ended::Asked),
            },
            Some(asked) = self.revokes.incoming.recv() => {
                self.revokes.ask(asked);
                None
            }
            _ = self.end.changed() => Some(Ended::Asked),
            () = tokio::time::sleep(wake) => session.silent(self.clock.now()).map(Ended::Broken),
        }
    }

    /// Applies every frame that was read.
    fn read<R: AsyncRead + Unpin>(
        &mut self,
        session: &mut Session,
        receiver: &mut Receiver<R>,
    ) -> Option<Ended> {
        session.pinged = None;
        loop {
            match receiver.heard() {
                Ok(None) => return None,
                Ok(Some(Heard::Events(events))) => self.take(session, &events),
                Ok(Some(Heard::Frame(frame))) => {
                    if let Some(ended) = frame.and_then(|frame| self.apply(session, frame)) {
                        return Some(ended);
                    }
                }
                Err(error) => return Some(Ended::Broken(error)),
            }
        }
    }

    /// Events are counted, kept, and then acknowledged.
    fn take(&mut self, session: &mut Session, events: &StreamEvents<'_>) {
        self.ledger.handle_stream(events);
        self.keeper.events(events);
        session.acks.push_back(StreamAck { stream: events.stream.to_owned(), cursor: events.cursor });
    }

    fn apply(&mut self, session: &mut Session, frame: to_router::Frame) -> Option<Ended> {
        match frame {
            to_router::Frame::Accepted(answer) => {
                self.ledger.handle_accepted(&answer);
                self.keeper.accepted(&answer);
            }
            to_router::Frame::Rejected(answer) => {
                self.keeper.rejected(&answer);
                self.ledger.handle_rejected(self.clock.now(), answer);
            }
            to_router::Frame::StreamClosed(closed) => {
                return Some(Ended::Stop(Stop::StreamClosed { stream: closed.stream, text: closed.text }));
            }
            to_router::Frame::Revoked(answer) => self.revokes.handle_revoked(answer),
            to_router::Frame::GoAway(_) => session.leaving = true,
            to_router::Frame::Error(e) => {
                let error = ClientError::Link { code: e.code(), text: e.text };
                let stop = is_final(&error);
                return Some(if stop { Ended::Stop(Stop::Refused(error)) } else { Ended::Broken(error) });
            }
            // It is `Heard::Events`: nothing that may be passed over.
            to_router::Frame::Stream(_) => return Some(Ended::Broken(FrameError::Malformed.into())),
            to_router::Frame::Opened(_)
            | to_router::Frame::Presence(_)
            | to_router::Frame::Answer(_)
            | to_router::Frame::Pong(_) => {}
        }
        None
    }

    fn tell(&self, connected: bool) {
        let (tally, first_rejection) = (self.ledger.tally(), self.ledger.first_rejection());
        self.report.send_modify(|p| {
            p.connected = connected;
            p.tally = tally;
            p.first_rejection = first_rejection;
        });
    }
}

/// Writes frames until the link ends or breaks.
async fn write<W: AsyncWrite + Unpin>(
    mut sender: Sender<W>,
    mut frames: mpsc::Receiver<Outgoing>,
) -> Result<(), ClientError> {
    while let Some(frame) = frames.recv().await {
        sender.put(frame);
        // Small frames that wait already share a write.
        while sender.queued() < WRITE_BYTES
            && let Ok(frame) = frames.try_recv()
        {
            sender.put(frame);
        }
        sender.flush().await?;
    }
    sender.close().await
}

/// Whether trying again can't help: an operator has to change something.
pub(super) fn is_final(error: &ClientError) -> bool {
    use LinkErrorCode as Code;
    let ClientError::Link { code, .. } = error else { return false };
    match code {
        Code::Malformed
        | Code::FrameTooLarge
        | Code::OpenExpected
        | Code::Unauthorized
        | Code::UnknownStream
        | Code::Version
        | Code::Cursor => true,
        Code::Unspecified | Code::Deadline | Code::Internal => false,
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
