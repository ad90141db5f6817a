//! Devices that come, stay a while, go, and stay away a while: what is pushed to them meanwhile waits, or expires.

use std::sync::Arc;
use std::time::Duration;

use mooring::cli::output::Failure;
use mooring::client::device::{Device, Leave};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::fleet::{App, Counts, Fleet, device_id};
use crate::target::Target;

/// Milliseconds that a guest stays.
const STAYS_MS: std::ops::Range<u64> = 1_000..6_000;
/// Milliseconds that it stays away.
const AWAY_MS: std::ops::Range<u64> = 1_000..12_000;

/// Milliseconds within which all have connected for the first time.
const COME_MS: u64 = 60_000;
/// Milliseconds between two looks whether they have.
const LOOK_MS: u64 = 50;

/// How guests live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    /// They come and go.
    Restless,
    /// They come and stay.
    Staying,
    /// They go.
    Leaving,
}

pub(super) struct Guests {
    counts: Vec<Arc<Counts>>,
    mood: watch::Sender<Mood>,
    tasks: JoinSet<()>,
}

impl Guests {
    /// The guests with these numbers, each of the fleet that it is of by its number.
    pub(super) fn start(
        target: &Target,
        fleets: &[Fleet],
        numbers: std::ops::Range<u32>,
        seed: u64,
    ) -> Result<Self, Failure> {
        let mood = watch::Sender::new(Mood::Restless);
        let mut tasks = JoinSet::new();
        for n in numbers {
            let fleet = &fleets[n as usize % fleets.len()];
            let guest = Guest {
                device: fleet.device(target, n)?,
                mood: mood.subscribe(),
                rng: SmallRng::seed_from_u64(seed ^ u64::from(n)),
            };
            tasks.spawn(guest.live(n));
        }
        let counts = fleets.iter().map(|fleet| Arc::clone(&fleet.counts)).collect();
        Ok(Self { counts, mood, tasks })
    }

    /// Waits until each of so many has been here.
    pub(super) async fn until_all_came(&self, guests: u32) -> Result<(), Failure> {
        for _ in 0..COME_MS / LOOK_MS {
            let came: u64 = self.counts.iter().map(|counts| counts.sessions() - counts.reconnects()).sum();
            if came >= guests.into() {
                return Ok(());
            }
            if let Some(why) = self.counts.iter().find_map(|counts| counts.failure()) {
                return Err(Failure::Failed(why));
            }
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        Err(Failure::failed(format!("not all guests have connected within {} s", COME_MS / 1_000)))
    }

    /// All come and stay.
    pub(super) fn stay(&self) {
        self.mood.send_replace(Mood::Staying);
    }

    /// Sessions that they had.
    pub(super) fn sessions(&self) -> u64 {
        self.counts.iter().map(|counts| counts.sessions()).sum()
    }

    pub(super) async fn end(mut self) {
        self.mood.send_replace(Mood::Leaving);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

struct Guest {
    device: Device<App>,
    mood: watch::Receiver<Mood>,
    rng: SmallRng,
}

impl Guest {
    async fn live(mut self, n: u32) {
        loop {
            let stays = self.rng.random_range(STAYS_MS);
            let counts = Arc::clone(&self.device.handler.counts);
            counts.stopped(&device_id(n), self.session(stays).await);
            if *self.mood.borrow() == Mood::Leaving || counts.failure().is_some() {
                return;
            }
            let away = Duration::from_millis(self.rng.random_range(AWAY_MS));
            let restless = self.mood.wait_for(|mood| *mood != Mood::Restless);
            // Either it was away long enough, or it is called.
            tokio::time::timeout(away, restless).await.ok();
        }
    }

    /// Stays so many milliseconds, or for as long as guests are to stay; leaves when all that it said is confirmed.
    async fn session(&mut self, stays: u64) -> mooring::client::device::Stopped {
        let (leave, mut leaving) = watch::channel(Leave::Stay);
        let mut mood = self.mood.clone();
        let session = self.device.run(&mut leaving);
        let goes = async {
            let called = mood.wait_for(|mood| *mood != Mood::Restless);
            if tokio::time::timeout(Duration::from_millis(stays), called).await.is_ok() {
                // Whoever calls lives longer than its guests: they are waited for.
                mood.wait_for(|mood| *mood == Mood::Leaving).await.ok();
            }
            leave.send_replace(Leave::Settle);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            stopped = session => stopped,
            () = goes => unreachable!("it only asks to leave"),
        }
    }
}
