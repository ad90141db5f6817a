//! `push`: a router for one message. Targets are read as they are sent, so that a list of any length takes little memory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::watch;

use super::output::{self, Failure, line, many, note};
use super::peer::{Edge, RouterIdentity};
use super::signals::Signals;
use crate::client::Backoff;
use crate::client::router::{AskError, Asker, Options, Progress, Rejection, Router, Stop};
use crate::clock::Clock;
use crate::ids::{self, AppKey, DigestKey};
use crate::limits;
use crate::wire::pb::device as pb;
use crate::wire::pb::router::{DeliverBatch, MessageState, OfflinePolicy, PushSource, Target};

/// Milliseconds without a link after which `push` gives up.
const PATIENCE_MS: u64 = 30_000;
/// Milliseconds between two questions what became of the message: at first, and later on.
const ASK_FIRST_MS: u64 = 50;
const ASK_MS: u64 = 1_000;
/// Bytes of one line of a list of targets.
const LINE_BYTES: u64 = 4_096;

/// Flags of `push`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A device to push to; may be given again
    #[arg(long = "device", value_name = "ID", required_unless_present = "targets")]
    devices: Vec<String>,
    /// A list of devices, one a line; '-': standard input
    #[arg(long, value_name = "FILE")]
    targets: Option<PathBuf>,
    /// The account that the devices were resolved from: where it isn't bound, and when it goes, they end as unbound
    #[arg(long, value_name = "ACCOUNT", default_value = "")]
    account: String,
    /// The title
    #[arg(long, value_name = "TEXT", default_value = "")]
    title: String,
    /// The body
    #[arg(long, value_name = "TEXT", default_value = "")]
    body: String,
    /// Extra parameters: a JSON object
    #[arg(long, value_name = "JSON", default_value = "")]
    extras: String,
    /// Shown by the SDK, or handed to the app
    #[arg(long, value_enum, default_value = "notification")]
    kind: Kind,
    /// Without sound or vibration
    #[arg(long)]
    silent: bool,
    /// How long it is kept for devices that are not connected, seconds, at most 259,200; 0: only who is connected
    #[arg(long, value_name = "SECONDS")]
    retention: Option<u32>,
    /// Which messages it goes ahead of
    #[arg(long, value_enum, default_value = "normal")]
    priority: Priority,
    /// It takes the place of older pending messages with this key
    #[arg(long, value_name = "KEY", default_value = "")]
    collapse_key: String,
    /// Keep it for devices that are not connected, or return those as refused
    #[arg(long, value_enum, default_value = "store")]
    offline: Offline,
    /// A label that every receipt carries
    #[arg(long, value_name = "KEY", default_value = "")]
    job_key: String,
    /// The message id, not 0; by default a new one
    #[arg(long, value_name = "ID")]
    message_id: Option<u64>,
    /// Targets of one batch
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_size: u32,
    /// Read this stream for the outcomes, instead of asking what became of the message. Its usual reader loses it
    #[arg(long, value_name = "STREAM", num_args = 0..=1, default_missing_value = "main", conflicts_with = "no_follow")]
    follow_stream: Option<String>,
    /// Don't wait for outcomes: done when all batches are accepted
    #[arg(long)]
    no_follow: bool,
    /// Follow for at most so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// The summary as one JSON line, no progress bar
    #[arg(long)]
    json: bool,
    /// Log filter, for instance debug
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    log: String,
    #[command(flatten)]
    edge: Edge,
    #[command(flatten)]
    identity: RouterIdentity,
}

/// Notification or message.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Notification,
    Message,
}

/// High goes ahead of normal that was not sent yet.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Priority {
    Normal,
    High,
}

/// What to do for those who are not connected.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Offline {
    Store,
    Return,
}

const EXAMPLES: &str = "\
Examples:
  mooring push --dev data --device d-1 --title Hello \\
      --body 'Your parcel is here'
  mooring push --dev data --device d-1 --account alice --title 'Hello Alice'
  mooring push --dev data --targets devices.txt --title Sale \\
      --retention 3600 --job-key spring
  cat ids | mooring push --dev data --targets - --kind message --body '{}' --silent --json
  mooring push --dev data --device d-1 --title Rain --priority high \\
      --collapse-key weather
  mooring push --address edge.example:7400 --ca ca.pem \\
      --certificate router.pem \\
      --key router.key --app 23456789 --device 4f2a --title Hello --no-follow

What becomes of the message is asked with the counts of the message over all its batches, and
takes nothing from anybody. With --follow-stream the stream is read instead: it has one reader,
and what that acknowledged doesn't come again.";

/// Runs `push`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    crate::telemetry::log(crate::telemetry::Format::Human, &args.log).map_err(Failure::usage)?;
    let text = args.title.len() + args.body.len() + args.extras.len();
    if text > limits::PUSH_TEXT_BYTES {
        let limit = limits::PUSH_TEXT_BYTES;
        return Err(Failure::usage(format!("title, body and extras have {text} bytes; {limit} are allowed")));
    }
    let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&args.extras);
    if let (false, Err(e)) = (args.extras.is_empty(), object) {
        return Err(Failure::usage(format!("--extras is no JSON object: {e}")));
    }
    if !args.account.is_empty() && !crate::binding::is_bindable(&args.account) {
        return Err(Failure::usage("--account has 1 to 128 bytes and no control characters"));
    }
    if args.message_id == Some(0) {
        return Err(Failure::usage("--message-id must not be 0"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(push(args))
}

async fn push(args: &Args) -> Result<(), Failure> {
    let clock = Arc::new(Clock::new(0));
    let app = args.edge.app()?;
    let mut random = [0; 40];
    getrandom::fill(&mut random).map_err(Failure::failed)?;
    let (name, digest) = random.split_at(8);
    let mut key = [0; 32];
    key.copy_from_slice(digest);
    let template = template(args, app.as_str(), clock.now());
    let message_id = template.message_id;
    let options = Options {
        endpoint: args.identity.endpoint(&args.edge)?,
        name: "mooring push".into(),
        streams: args.follow_stream.iter().cloned().collect(),
        backoff: Backoff::fast(),
        patience: PATIENCE_MS,
        seed: rand::random(),
        only: Some(message_id),
    };
    let mut asker = Asker::new(options.endpoint.clone(), "mooring push");
    let router = Router::start(options, Arc::clone(&clock), DigestKey(key), Box::new(|_| {}));
    let bar = output::bar(0, "{bar:40} {pos}/{len} ended  {msg}  {elapsed}", args.json);
    let mut progress = router.progress();
    let mut batches = Batches {
        router: &router,
        template,
        name: format!("push-{}", data_encoding::HEXLOWER.encode(name)),
        size: args.batch_size as usize,
        now: Arc::clone(&clock),
        account: args.account.clone(),
        targets: Vec::new(),
        sent: 0,
    };
    let given = {
        let sending = batches.send_all(args);
        tokio::pin!(sending);
        // The bar moves while targets are still being read.
        loop {
            tokio::select! {
                given = &mut sending => break given,
                changed = progress.changed() => match changed {
                    Ok(()) => show(&bar, &progress.borrow_and_update()),
                    Err(_) => break Ok(()), // The router has ended; closing it says why.
                },
            }
        }
    };
    given?;
    let sent = batches.sent;
    let mut is_said = false;
    let until = args.seconds.map_or(Duration::MAX, Duration::from_secs);
    let done = |p: &Progress| {
        let all = p.tally.batches == sent && p.tally.unanswered() == 0;
        show(&bar, p);
        if let Some(why) = p.broken.as_ref().filter(|_| p.links == 0 && !is_said) {
            is_said = true;
            let text = format!("no link to the edge yet, trying for {} s: {why}", PATIENCE_MS / 1_000);
            bar.suspend(|| note(&text));
        }
        all && (args.follow_stream.is_none() || p.tally.is_settled())
    };
    let mut followed = None;
    let follow = async {
        // An error means that the router has ended; closing it says why.
        progress.wait_for(done).await.ok();
        if args.follow_stream.is_none() && !args.no_follow {
            follow_message(&mut asker, &app, message_id, &mut progress, &bar, &mut followed).await?;
        }
        Ok(())
    };
    let signal = Signals::new().map_err(Failure::failed)?.first();
    tokio::select! {
        result = follow => result?,
        () = tokio::time::sleep(until.min(Duration::from_secs(u64::from(u32::MAX)))) => {}
        () = signal => {}
    }
    bar.finish_and_clear();
    let mut last = router.progress().borrow().clone();
    if let Some(state) = &followed {
        last.tally.take_message(state);
    }
    let (_, closed) = router.close().await;
    summary(args, message_id, &last, closed)
}

/// Asks until every accepted target has ended; an edge that can't be asked for a while is asked again.
async fn follow_message(
    asker: &mut Asker,
    app: &AppKey,
    message_id: u64,
    progress: &mut watch::Receiver<Progress>,
    bar: &ProgressBar,
    followed: &mut Option<MessageState>,
) -> Result<(), Failure> {
    let accepted = progress.borrow_and_update().tally.accepted;
    let (mut pause, mut failures, mut is_said) = (ASK_FIRST_MS, 0, false);
    if accepted == 0 {
        return Ok(());
    }
    loop {
        match asker.message(app, message_id, None).await {
            Ok((_, state)) => {
                let mut shown = progress.borrow().clone();
                shown.tally.take_message(&state);
                show(bar, &shown);
                let is_settled = state.pending == 0 && state.accepted >= accepted;
                let pending = state.pending;
                (*followed, failures) = (Some(state), 0);
                if is_settled {
                    return Ok(());
                }
                if pause == ASK_MS && !is_said {
                    let id = format!("message {message_id} is accepted, {pending} pending");
                    note(&format!("{id}: waiting for its end; Ctrl-C ends the waiting only"));
                    is_said = true;
                }
            }
            Err(error @ AskError::Refused { .. }) => return Err(Failure::failed(error)),
            Err(AskError::Link(error)) => {
                failures += 1;
                if failures * ASK_MS >= PATIENCE_MS {
                    return Err(Failure::failed(error));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        pause = (pause * 2).min(ASK_MS);
    }
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let tally = &progress.tally;
    bar.set_length(tally.accepted.max(tally.ended()));
    bar.set_position(tally.ended());
    let link = if progress.connected { "" } else { "connecting " };
    bar.set_message(format!("{link}arrived {} failed {}", tally.arrived, tally.ended() - tally.arrived));
}

fn template(args: &Args, app: &str, now: u64) -> DeliverBatch {
    let kind = match args.kind {
        Kind::Notification => pb::Kind::Notification,
        Kind::Message => pb::Kind::Message,
    };
    // Unique enough for messages made by hand, and exact in JSON numbers.
    let new_id = now * 1_000 + u64::from(rand::random::<u16>() % 1_000);
    DeliverBatch {
        app_key: app.to_owned(),
        message_id: args.message_id.unwrap_or(new_id),
        body: Some(pb::Push {
            kind: kind.into(),
            title: args.title.clone(),
            body: args.body.clone(),
            extras: args.extras.clone(),
            silent: args.silent,
            ..pb::Push::default()
        }),
        retention_seconds: args.retention,
        job_key: args.job_key.clone(),
        priority: match args.priority {
            Priority::Normal => pb::Priority::Normal.into(),
            Priority::High => pb::Priority::High.into(),
        },
        collapse_key: args.collapse_key.clone(),
        offline_policy: match args.offline {
            Offline::Store => OfflinePolicy::Store.into(),
            Offline::Return => OfflinePolicy::Return.into(),
        },
        source: PushSource::Api.into(),
        target_type: if args.account.is_empty() { "device" } else { "account" }.into(),
        ..DeliverBatch::default()
    }
}

/// Makes batches of targets.
struct Batches<'a> {
    router: &'a Router,
    template: DeliverBatch,
    name: String,
    size: usize,
    now: Arc<Clock>,
    account: String,
    targets: Vec<Target>,
    sent: u64,
}

impl Batches<'_> {
    async fn send_all(&mut self, args: &Args) -> Result<(), Failure> {
        for id in &args.devices {
            self.target(id).await.map_err(|e| Failure::usage(format!("--device: {e}")))?;
        }
        match args.targets.as_deref() {
            None => {}
            Some(path) if path == Path::new("-") => {
                self.lines(BufReader::new(tokio::io::stdin()), "standard input").await?;
            }
            Some(path) => {
                let name = path.display().to_string();
                let file = tokio::fs::File::open(path).await;
                let file = file.map_err(|e| Failure::usage(format!("{name} can't be read: {e}")))?;
                self.lines(BufReader::new(file), &name).await?;
            }
        }
        self.flush().await;
        if self.sent == 0 {
            return Err(Failure::usage("there are no targets"));
        }
        Ok(())
    }

    async fn lines(&mut self, mut input: impl AsyncBufRead + Unpin, name: &str) -> Result<(), Failure> {
        let mut text = Vec::new();
        for number in 1u64.. {
            text.clear();
            let read = (&mut input).take(LINE_BYTES).read_until(b'\n', &mut text).await;
            if read.map_err(|e| Failure::failed(format!("{name}: {e}")))? == 0 {
                break;
            }
            let wrong = |e: &str| Failure::usage(format!("{name}, line {number}: {e}"));
            let id = std::str::from_utf8(&text).map_err(|_| wrong("it is not UTF-8"))?;
            let id = id.trim_start_matches('\u{feff}').trim();
            if !id.is_empty() {
                self.target(id).await.map_err(|e| wrong(&e))?;
            }
        }
        Ok(())
    }

    async fn target(&mut self, id: &str) -> Result<(), String> {
        if !ids::is_name(id, limits::DEVICE_ID_BYTES) && !plausible(id) {
            return Err(format!(
                "a device id has 1 to {} bytes and no control characters",
                limits::DEVICE_ID_BYTES
            ));
        }
        self.targets.push(Target { device_id: id.to_owned(), account: self.account.clone() });
        if self.targets.len() >= self.size {
            self.flush().await;
        }
        Ok(())
    }

    async fn flush(&mut self) {
        if self.targets.is_empty() {
            return;
        }
        self.sent += 1;
        let batch = DeliverBatch {
            batch_id: format!("{}-{}", self.name, self.sent),
            created_at: self.now.now(),
            targets: std::mem::take(&mut self.targets),
            ..self.template.clone()
        };
        // If the router has ended, closing it says why.
        self.router.deliver(batch).await;
    }
}

/// Whether the edge would take it: any text without control characters.
fn plausible(id: &str) -> bool {
    (1..=limits::DEVICE_ID_BYTES).contains(&id.len()) && !id.chars().any(char::is_control)
}

fn summary(args: &Args, message_id: u64, last: &Progress, closed: Result<(), Stop>) -> Result<(), Failure> {
    let tally = &last.tally;
    if args.json {
        line(&summary_json(message_id, last).to_string());
    } else {
        let number = |name: &str, n: u64| (name.to_owned(), n.to_string());
        let mut rows = vec![number("targets", tally.targets), number("accepted", tally.accepted)];
        rows.extend(tally.refusals().map(|(reason, n)| number(&format!("refused: {reason}"), n)));
        if !args.no_follow {
            rows.push(number("arrived", tally.arrived));
            rows.extend(tally.failures().map(|(reason, n)| number(&format!("failed: {reason}"), n)));
            rows.push(number("pending", tally.pending()));
            rows.push(number("clicked", tally.click));
            rows.push(number("cleaned", tally.clean));
            rows.extend(tally.device_events().map(|(event, n)| number(&format!("devices: {event}"), n)));
        }
        let follow = if args.no_follow { ", outcomes not followed" } else { "" };
        line(&format!(
            "message {message_id}, {}{follow}\n{}",
            many(tally.batches, "batch", "batches"),
            output::table(&rows)
        ));
    }
    if let Some(rejection) = &last.first_rejection {
        let code = code_of(rejection);
        let field =
            if rejection.field.is_empty() { String::new() } else { format!(" ({})", rejection.field) };
        let todo = crate::account::what_to_do_about_batch(&code);
        return Err(Failure::failed(format!(
            "the edge rejected a batch: {code}{field}: {}; {todo}",
            rejection.text
        )));
    }
    closed.map_err(Failure::failed)?;
    if tally.unanswered() > 0 {
        let why = last.broken.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(Failure::failed(format!(
            "{} are not answered{why}",
            many(tally.unanswered(), "batch", "batches")
        )));
    }
    if tally.conflicts > 0 {
        return Err(Failure::failed(format!("{} targets got two different outcomes", tally.conflicts)));
    }
    if !args.json && !args.no_follow && tally.pending() > 0 {
        note("what is pending goes on without this command: `mooring inspect message` follows it");
    }
    Ok(())
}

fn code_of(rejection: &Rejection) -> String {
    rejection.code.as_str_name().trim_start_matches("REJECT_CODE_").to_lowercase()
}

fn summary_json(message_id: u64, last: &Progress) -> serde_json::Value {
    let tally = &last.tally;
    let rejection = last.first_rejection.as_ref().map(
        |rejection| json!({ "code": code_of(rejection), "field": rejection.field, "text": rejection.text }),
    );
    let map = |pairs: &mut dyn Iterator<Item = (&'static str, u64)>| -> serde_json::Map<_, _> {
        pairs.map(|(name, n)| (name.to_owned(), json!(n))).collect()
    };
    json!({
        "message_id": message_id.to_string(), "batches": tally.batches, "targets": tally.targets, "accepted": tally.accepted,
        "refused": map(&mut tally.refusals()), "arrived": tally.arrived, "failed": map(&mut tally.failures()),
        "pending": tally.pending(), "receipts": {
            "sent": tally.sent, "arrive": tally.arrive, "click": tally.click, "clean": tally.clean },
        "devices": map(&mut tally.device_events()), "unanswered_batches": tally.unanswered(), "rejection": rejection,
    })
}
