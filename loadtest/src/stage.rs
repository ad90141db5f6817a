//! What a scenario sets up and takes down: the server, its devices, and what pushes to them.

use std::sync::Arc;

use mooring::cli::output::{Failure, note};
use mooring::clock::Clock;

use crate::figures::Load;
use crate::fleet::{Fleet, OnPush};
use crate::messages::Messages;
use crate::process::Process;
use crate::pusher::Pusher;
use crate::report::Recorder;
use crate::target::{self, Target};
use crate::workers::Workers;

/// All that runs during a measurement.
pub(crate) struct Stage {
    pub(crate) clock: Arc<Clock>,
    pub(crate) target: Target,
    /// Nobody is connected in the beginning.
    pub(crate) fleet: Fleet,
    pub(crate) pusher: Pusher,
}

/// The beginning of what is measured.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    at: u64,
    received: u64,
    sent: u64,
    cpu_us: u64,
    own_cpu_us: u64,
}

impl Stage {
    /// With devices that tell of what they get.
    pub(crate) async fn new(
        args: &target::Args,
        clock: &Arc<Clock>,
        target: Target,
        messages: Messages,
        on_push: Arc<OnPush>,
    ) -> Result<Self, Failure> {
        let fleet = Fleet::new(clock, args.transport, 0, args.seed, Arc::clone(&on_push));
        let workers = Workers::start(args, &target, clock, &fleet.counts, &on_push).await?;
        Ok(Self {
            clock: Arc::clone(clock),
            fleet: fleet.within(workers),
            pusher: Pusher::new(&target, clock, messages, args).await?,
            target,
        })
    }

    /// Looks at all that over time, if a report is wanted.
    pub(crate) fn record(&self, args: &target::Args) -> Recorder {
        Recorder::start(args.report.is_some(), &self.target, &self.fleet.counts, &self.clock)
    }

    /// From now on it counts.
    pub(crate) fn start(&self) -> Result<Start, Failure> {
        Ok(Start {
            received: self.fleet.counts.received(),
            sent: self.pusher.sent(),
            cpu_us: self.target.process.cpu_us()?,
            own_cpu_us: self.own_cpu_us()?,
            at: self.clock.micros(),
        })
    }

    fn own_cpu_us(&self) -> Result<u64, Failure> {
        Ok(own_cpu_us()? + self.fleet.workers_cpu_us()?)
    }

    pub(crate) fn seconds(&self, since: Start) -> f64 {
        (self.clock.micros() - since.at) as f64 / 1e6
    }

    /// What came in so many seconds of what was pushed since then.
    pub(crate) fn load(&self, since: Start, seconds: f64) -> Result<Load, Failure> {
        let deliveries = self.fleet.counts.received() - since.received;
        Ok(Load {
            deliveries,
            lost: (self.pusher.sent() - since.sent).saturating_sub(deliveries),
            cpu_us: self.target.process.cpu_us()? - since.cpu_us,
            own_cpu_us: self.own_cpu_us()? - since.own_cpu_us,
            seconds,
        })
    }

    /// Waits until everything pushed has come.
    pub(crate) async fn all_arrived(&self) -> Result<(), Failure> {
        let sent = self.pusher.sent();
        self.fleet.until("all messages have arrived", |c| c.received() >= sent).await
    }

    /// Takes all down. Sessions that broke: a measurement with some means little. One in which devices were turned away, or went with their worker, is none.
    pub(crate) async fn end(self) -> Result<u64, Failure> {
        let (reconnects, failure) = (self.fleet.counts.reconnects(), self.fleet.counts.failure());
        self.fleet.end().await;
        drop(self.pusher);
        self.target.end().await?;
        if let Some(why) = failure {
            return Err(Failure::Failed(why));
        }
        if reconnects > 0 {
            note(&format!("{reconnects} sessions broke during the measurement"));
        }
        Ok(reconnects)
    }
}

/// What this program has used.
pub(crate) fn own_cpu_us() -> Result<u64, Failure> {
    Process::new(std::process::id())?.cpu_us()
}
