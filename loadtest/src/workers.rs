//! Devices in processes of their own, where the descriptors of one don't suffice for all: this program again, as `worker`, as often as it takes.
//!
//! Parent and worker talk in lines. On its standard input a worker is told:
//!
//! ```text
//! time            say what your clock says
//! grow N          have N devices connected, of those that are yours
//! ```
//!
//! At its end the devices leave, and the worker ends; so they do when the parent is killed. On standard output it says:
//!
//! ```text
//! time MICROS                             of its clock
//! came DEVICE MESSAGE MICROS …            messages, three numbers each
//! counts CONNECTED RECEIVED RECONNECTS SESSIONS EXPIRED    so far; behind the messages that are counted in it
//! failed TEXT
//! ```
//!
//! The parent adds all that to its own counts, so that a scenario doesn't notice where its devices are. The clocks of both count from their starts; the parent
//! asks a few times in the beginning, and takes the answer that came quickest: half of what that took is the error, some 50 µs.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooring::cli::output::Failure;
use mooring::clock::Clock;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fleet::{Counts, Fleet, OnPush, Snapshot};
use crate::process::Process;
use crate::target::{self, Target};

/// Milliseconds between two looks of a worker whether there is something to tell.
const TELL_MS: u64 = 5;
/// Messages told in one line.
const CAME: usize = 1_000;
/// How long a worker may take to take an order, to say what its clock says, or to leave with all its devices.
const PATIENCE: Duration = Duration::from_secs(60);
/// Times that the clock is asked for.
const ASKED: usize = 20;

/// Flags of `worker`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::Args,
    /// The number of its first device
    #[arg(long)]
    first: u32,
}

/// Runs `worker`.
pub(crate) fn serve(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(work(args))
}

/// What came since it was told: device, message, when.
type Came = Mutex<Vec<(u32, u64, u64)>>;

async fn work(args: &Args) -> Result<(), Failure> {
    let clock = Arc::new(Clock::new(0));
    let target = Target::new(&args.target).await?;
    let came = Arc::new(Came::default());
    let seen = Arc::clone(&came);
    let on_push = move |device, message, at| {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push((device, message, at));
    };
    let mut fleet =
        Fleet::new(&clock, args.target.transport, args.first, args.target.seed, Arc::new(on_push));
    let counts = Arc::clone(&fleet.counts);
    let mut telling = JoinSet::new();
    telling.spawn(async move {
        let mut told = Snapshot::default();
        loop {
            tokio::time::sleep(Duration::from_millis(TELL_MS)).await;
            // Counts first: what is counted has come.
            let now = counts.snapshot();
            let came = std::mem::take(&mut *came.lock().unwrap_or_else(PoisonError::into_inner));
            if now != told || !came.is_empty() {
                say(&lines(&came, now));
                told = now;
            }
        }
    });
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await.map_err(Failure::failed)? {
        match order.split_once(' ').map(|(what, n)| (what, n.parse())) {
            Some(("grow", Ok(devices))) => {
                if let Err(error) = fleet.grow(&target, devices, true).await {
                    say(&format!("failed {}\n", error.to_string().replace('\n', " ")));
                }
            }
            None if order == "time" => say(&format!("time {}\n", clock.micros())),
            _ => return Err(Failure::usage(format!("{order:?} is no order for a worker"))),
        }
    }
    fleet.end().await;
    Ok(())
}

fn lines(came: &[(u32, u64, u64)], counts: Snapshot) -> String {
    let mut text = String::new();
    for line in came.chunks(CAME) {
        text.push_str("came");
        for (device, message, at) in line {
            // A String takes everything.
            write!(text, " {device} {message} {at}").ok();
        }
        text.push('\n');
    }
    let [connected, received, reconnects, sessions, expired] = counts;
    writeln!(text, "counts {connected} {received} {reconnects} {sessions} {expired}").ok();
    text
}

/// One piece, whoever else says something. Without a parent nobody needs it.
fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).ok();
}

/// The processes that hold the devices of a fleet.
pub(crate) struct Workers {
    each: Vec<Worker>,
    /// Devices of each; the last one may have fewer.
    share: u32,
    leaving: Arc<AtomicBool>,
    /// What reads from each.
    reading: JoinSet<()>,
}

struct Worker {
    child: Child,
    orders: ChildStdin,
}

impl Workers {
    /// Starts as many as these devices need; none, if this process can hold them.
    pub(crate) async fn start(
        args: &target::Args,
        target: &Target,
        clock: &Arc<Clock>,
        counts: &Arc<Counts>,
        on_push: &Arc<OnPush>,
    ) -> Result<Option<Self>, Failure> {
        let share = args.share();
        if args.devices <= share {
            return Ok(None);
        }
        let (leaving, mut reading) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let mut each = Vec::new();
        for first in (0..args.devices).step_by(share as usize) {
            let (mut worker, mut lines) = Worker::start(args, target, first, share)?;
            let ahead = worker.clock_ahead(&mut lines, clock).await?;
            each.push(worker);
            let heard = Heard {
                counts: Arc::clone(counts),
                on_push: Arc::clone(on_push),
                ahead,
                before: Snapshot::default(),
            };
            reading.spawn(read(lines, heard, Arc::clone(&leaving)));
        }
        Ok(Some(Self { each, share, leaving, reading }))
    }

    /// Has more devices connect, until there are so many in all; doesn't wait for them.
    pub(crate) async fn grow(&mut self, devices: u32) -> Result<(), Failure> {
        let mut rest = devices;
        for worker in &mut self.each {
            let share = rest.min(self.share);
            rest -= share;
            if share > 0 {
                worker.order(&format!("grow {share}\n")).await?;
            }
        }
        Ok(())
    }

    /// CPU of all of them.
    pub(crate) fn cpu_us(&self) -> Result<u64, Failure> {
        let pids = self.each.iter().filter_map(|worker| worker.child.id());
        pids.map(|pid| Process::unchecked(pid).cpu_us()).sum()
    }

    /// All devices leave.
    pub(crate) async fn end(mut self) {
        self.leaving.store(true, Ordering::Release);
        // Without orders they all leave at once.
        let children: Vec<_> = self.each.into_iter().map(|Worker { child, .. }| child).collect();
        for mut child in children {
            // It has ended one way or the other; if not, it is killed when it is dropped.
            if timeout(PATIENCE, child.wait()).await.is_err() {
                eprintln!("a worker doesn't end, and is killed");
            }
        }
        while let Some(ended) = self.reading.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

impl Worker {
    fn start(
        args: &target::Args,
        target: &Target,
        first: u32,
        share: u32,
    ) -> Result<(Self, Lines<BufReader<ChildStdout>>), Failure> {
        let mut child = Command::new(std::env::current_exe().map_err(Failure::failed)?)
            .args(["worker", "--first", &first.to_string()])
            .args(args.for_worker(target, share))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| Failure::failed(format!("a worker can't be started: {e}")))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (orders, output) = pipes.ok_or_else(|| Failure::failed("a worker has no pipes"))?;
        Ok((Self { child, orders }, BufReader::new(output).lines()))
    }

    async fn order(&mut self, order: &str) -> Result<(), Failure> {
        let written = timeout(PATIENCE, self.orders.write_all(order.as_bytes())).await;
        let written = written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        written.map_err(|e| Failure::failed(format!("a worker takes no orders: {e}")))
    }

    /// By how much this clock is ahead of the worker's, microseconds.
    async fn clock_ahead(
        &mut self,
        lines: &mut Lines<BufReader<ChildStdout>>,
        clock: &Clock,
    ) -> Result<i64, Failure> {
        let mut best: Option<(u64, i64)> = None;
        for _ in 0..ASKED {
            let asked = clock.micros();
            self.order("time\n").await?;
            let line = timeout(PATIENCE, lines.next_line()).await;
            let line =
                line.map_err(|_| Failure::failed("a worker says nothing"))?.map_err(Failure::failed)?;
            let said = line.as_deref().and_then(|line| line.strip_prefix("time ")?.parse::<i64>().ok());
            let said = said.ok_or_else(|| Failure::failed("a worker has ended before it began"))?;
            let took = clock.micros() - asked;
            let ahead = (asked + took / 2) as i64 - said;
            if best.is_none_or(|(least, _)| took < least) {
                best = Some((took, ahead));
            }
        }
        Ok(best.map_or(0, |(_, ahead)| ahead))
    }
}

async fn read(mut lines: Lines<BufReader<ChildStdout>>, mut heard: Heard, leaving: Arc<AtomicBool>) {
    while let Ok(Some(line)) = lines.next_line().await {
        if heard.line(&line).is_none() {
            heard.counts.fail(format!("a worker says {:?}", line.chars().take(80).collect::<String>()));
        }
    }
    if !leaving.load(Ordering::Acquire) {
        heard.counts.fail("a worker has ended before its time".into());
    }
}

/// What is made of a worker's lines.
struct Heard {
    counts: Arc<Counts>,
    on_push: Arc<OnPush>,
    ahead: i64,
    before: Snapshot,
}

impl Heard {
    /// `None`: not understood.
    fn line(&mut self, line: &str) -> Option<()> {
        let (what, rest) = line.split_once(' ')?;
        let mut numbers = rest.split(' ').map(|n| n.parse::<u64>().ok());
        match what {
            "came" => {
                while let Some(device) = numbers.next() {
                    let (message, at) = (numbers.next()??, numbers.next()??);
                    let at = at.saturating_add_signed(self.ahead);
                    (self.on_push)(u32::try_from(device?).ok()?, message, at);
                }
            }
            "counts" => {
                let mut now = Snapshot::default();
                for count in &mut now {
                    *count = numbers.next()??;
                }
                self.counts.add(self.before, now);
                self.before = now;
            }
            "failed" => self.counts.fail(format!("a worker: {rest}")),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_counted_here() {
        let came = Arc::new(Came::default());
        let seen = Arc::clone(&came);
        let on_push = move |device, message, at| seen.lock().expect("no panic").push((device, message, at));
        let counts = Arc::<Counts>::default();
        let heard = || Heard {
            counts: Arc::clone(&counts),
            on_push: Arc::new(on_push.clone()),
            ahead: -10,
            before: [0; 5],
        };
        let (mut one, mut two) = (heard(), heard());
        let said = |heard: &mut Heard, text: &str| text.lines().all(|line| heard.line(line).is_some());
        assert!(said(&mut one, &lines(&[(7, 8, 100), (9, 8, 110)], [3, 2, 0, 3, 0])));
        assert!(said(&mut two, &lines(&[], [5, 0, 1, 6, 0])));
        assert!(said(&mut one, &lines(&[], [2, 2, 0, 3, 0])));
        assert_eq!((counts.connected(), counts.received(), counts.reconnects()), (7, 2, 1));
        assert_eq!(*came.lock().expect("no panic"), [(7, 8, 90), (9, 8, 100)]);
        assert_eq!(counts.failure(), None);
        assert!(
            said(&mut two, "failed no way\n") && counts.failure().is_some_and(|why| why.contains("no way"))
        );
        for odd in ["", "came 1 2", "came 1 2 x", "counts 1 2 3 4", "what 1"] {
            assert_eq!(one.line(odd), None, "{odd}");
        }
    }

    #[test]
    fn many_messages_are_told_in_several_lines() {
        let came: Vec<_> = (0..2_500).map(|n| (n, 1, 1)).collect();
        let text = lines(&came, [0; 5]);
        assert_eq!(text.lines().filter(|line| line.starts_with("came ")).count(), 3);
    }
}
