//! The load, the same all the time: a message to one device at a fixed rate, and now and then one to all residents.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooring::client::router::Router;
use mooring::clock::Clock;
use mooring::wire::pb::router::Outcome;
use mooring::wire::router::told::{StreamEvents, Told};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;

use super::account::{Account, Which};
use crate::fleet::device_number;
use crate::messages::Messages;

/// Of so many single messages one is for a guest.
const FOR_GUESTS: u64 = 5;
/// Of so many messages for guests one is kept only shortly.
const SHORT: u64 = 3;
/// Seconds that those are kept: less than most guests stay away.
const SHORT_S: u32 = 4;
/// Seconds that the others are kept: longer than anybody stays away.
const LONG_S: u32 = 3_600;

/// The account, which devices, router and load write.
pub(super) type Shared = Arc<Mutex<Account>>;

/// Takes the account.
pub(super) fn locked(account: &Mutex<Account>) -> std::sync::MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Load {
    pub(super) clock: Arc<Clock>,
    pub(super) router: Arc<Router>,
    pub(super) messages: Messages,
    pub(super) account: Shared,
    pub(super) residents: u32,
    pub(super) guests: u32,
    /// Messages a second.
    pub(super) rate: u64,
    /// Microseconds between two messages to all residents.
    pub(super) to_all_every: u64,
    pub(super) seed: u64,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) batches: Arc<AtomicU64>,
}

impl Load {
    /// Pushes until it is told to stop. It has its thread to itself: the runtime's timer counts milliseconds, which is more than a delivery takes.
    /// `false`: the router has ended.
    pub(super) fn run(mut self, runtime: &Handle) -> bool {
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let start = self.clock.micros();
        let mut next_to_all = start + self.to_all_every;
        for n in 0.. {
            let due = start + n * 1_000_000 / self.rate;
            let early = due.saturating_sub(self.clock.micros());
            if early > 0 {
                std::thread::sleep(Duration::from_micros(early));
            }
            if self.stop.load(Ordering::Acquire) {
                return true;
            }
            if due >= next_to_all {
                next_to_all += self.to_all_every;
                if !self.push(runtime, None, 0..self.residents, None) {
                    return false;
                }
            }
            let to_guest = self.guests > 0 && n % FOR_GUESTS == 0;
            let sent = if to_guest {
                let device = self.residents + rng.random_range(0..self.guests);
                let kept = if (n / FOR_GUESTS).is_multiple_of(SHORT) { SHORT_S } else { LONG_S };
                // A guest that is away would be no latency of the edge's.
                self.push(runtime, None, device..device + 1, Some(kept))
            } else {
                let device = rng.random_range(0..self.residents);
                self.push(runtime, Some(due), device..device + 1, None)
            };
            if !sent {
                return false;
            }
        }
        true
    }

    fn push(
        &mut self,
        runtime: &Handle,
        due: Option<u64>,
        devices: std::ops::Range<u32>,
        kept: Option<u32>,
    ) -> bool {
        let n = self.batches.fetch_add(1, Ordering::AcqRel);
        let mut batch = self.messages.batch(n, n, devices.clone(), self.clock.now());
        batch.retention_seconds = kept;
        locked(&self.account).sent(batch.message_id, due, devices);
        runtime.block_on(self.router.deliver(batch))
    }
}

/// Tells the account what the router's stream says.
pub(super) fn on_events(
    account: &Shared,
    clock: &Arc<Clock>,
) -> impl FnMut(&StreamEvents<'_>) + Send + use<> {
    let (account, clock) = (Arc::clone(account), Arc::clone(clock));
    move |batch| {
        let at = clock.micros();
        let mut account = locked(&account);
        for (_, event) in &batch.events {
            ended(&mut account, event, at);
        }
    }
}

fn ended(account: &mut Account, event: &Told<'_>, at: u64) {
    // A reason that nobody knows is none: its target stays without an end.
    match event {
        Told::Receipt(receipt) => {
            let outcome = match receipt.outcome() {
                Outcome::None => None,
                Outcome::Arrived => Some(Ok(())),
                Outcome::Failed => receipt.failure().map(Err),
            };
            if let Some((device, outcome)) = device_number(receipt.device_id).zip(outcome) {
                account.ended(receipt.message_id, Which::Device(device), outcome, at);
            }
        }
        Told::Mass(mass) => {
            let Some(outcome) = mass.failure().map(Err) else { return };
            for ordinal in mass.targets().iter() {
                account.ended(mass.message_id, Which::Ordinal(ordinal), outcome, at);
            }
        }
        Told::Gap(_) | Told::Device(_) | Told::Unknown => {}
    }
}
