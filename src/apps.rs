//! The apps' doors: what an app may do, by configuration and by what an operator set at run time, and how much of it each second.
//!
//! What an operator sets is the store's: durable, and read from there at each use, so that it holds at once and after a restart. Here are the buckets
//! and the sessions counted, which begin anew with each process. Suspension is not here but with the store: only there a batch that was
//! accepted before can be told from a new one.
//!
//! Each app has one short lock; routers take it once a batch, shards once a Hello.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config;
use crate::ids::AppKey;
use crate::machine::bucket::Bucket;
use crate::push::{Millis, Rates};
use crate::store::Store;
use crate::telemetry::{self, AppLimit, Counter};

/// Milliseconds after which a device may come back that found all of its app's sessions taken: nobody knows when one ends.
const SESSIONS_FULL_MS: Millis = 5_000;

/// All apps of this edge.
#[derive(Debug)]
pub struct Apps {
    by_app: HashMap<AppKey, Door>,
    store: Arc<dyn Store>,
}

#[derive(Debug)]
struct Door {
    /// By the configuration.
    rates: Rates,
    buckets: Mutex<Buckets>,
    sessions: AtomicU64,
}

#[derive(Debug)]
struct Buckets {
    batches: Bucket,
    targets: Bucket,
    sessions: Bucket,
}

/// A bound of an app is reached: come back after so many milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limited {
    /// Which bound.
    pub limit: AppLimit,
    /// When to come back.
    pub retry_after_ms: u32,
}

impl Limited {
    fn after(limit: AppLimit, wait: Millis) -> Self {
        telemetry::add(Counter::AppLimited(limit), 1);
        Self { limit, retry_after_ms: u32::try_from(wait).unwrap_or(u32::MAX) }
    }
}

impl Apps {
    /// The doors of these apps.
    pub fn new(apps: &[config::App], store: Arc<dyn Store>, now: Millis) -> Self {
        let door = |app: &config::App| {
            let rates = app.rates;
            let buckets = Buckets {
                batches: Bucket::new(rates.batches_per_s, now),
                targets: Bucket::new(rates.targets_per_s, now),
                sessions: Bucket::new(rates.sessions_per_s, now),
            };
            (app.key.clone(), Door { rates, buckets: Mutex::new(buckets), sessions: AtomicU64::new(0) })
        };
        Self { by_app: apps.iter().map(door).collect(), store }
    }

    /// Whether an app may have one more batch with so many targets now.
    pub fn batch(&self, app: &AppKey, targets: u32, now: Millis) -> Result<(), Limited> {
        let Some(door) = self.by_app.get(app) else { return Ok(()) };
        let rates = self.rates_of(app, door);
        let mut buckets = door.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.batches.set_rate(rates.batches_per_s, now);
        buckets.targets.set_rate(rates.targets_per_s, now);
        let (batches, many) = (buckets.batches.wait(1, now), buckets.targets.wait(targets, now));
        if batches.max(many) > 0 {
            let limit = if batches >= many { AppLimit::Batches } else { AppLimit::Targets };
            return Err(Limited::after(limit, batches.max(many)));
        }
        buckets.batches.take(1);
        buckets.targets.take(targets);
        Ok(())
    }

    /// Whether an app may have one more session now; then it is counted until [`Apps::leave`]. One that follows another of its device, which
    /// leaves by that, may come even at the maximum.
    pub fn enter(&self, app: &AppKey, follows: bool, now: Millis) -> Result<(), Limited> {
        let Some(door) = self.by_app.get(app) else { return Ok(()) };
        let rates = self.rates_of(app, door);
        let mut buckets = door.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that no two take the last place.
        let max = rates.max_sessions;
        if max > 0 && !follows && door.sessions.load(Ordering::Relaxed) >= u64::from(max) {
            return Err(Limited::after(AppLimit::MaxSessions, SESSIONS_FULL_MS));
        }
        buckets.sessions.set_rate(rates.sessions_per_s, now);
        let wait = buckets.sessions.wait(1, now);
        if wait > 0 {
            return Err(Limited::after(AppLimit::Sessions, wait));
        }
        buckets.sessions.take(1);
        door.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// A session that entered is over.
    pub fn leave(&self, app: &AppKey) {
        if let Some(door) = self.by_app.get(app) {
            door.sessions.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sessions of an app now.
    pub fn sessions(&self, app: &AppKey) -> u64 {
        self.by_app.get(app).map_or(0, |door| door.sessions.load(Ordering::Relaxed))
    }

    /// What holds for an app.
    pub fn rates(&self, app: &AppKey) -> Rates {
        self.by_app.get(app).map(|door| self.rates_of(app, door)).unwrap_or_default()
    }

    fn rates_of(&self, app: &AppKey, door: &Door) -> Rates {
        door.rates.under(&self.store.app_control(app).rates)
    }
}
