//! The app behind each device of the demo: it notes what it was handed, in which order, and taps some of it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

use crate::client::device::{Handler, Machine, Reaction};
use crate::wire::pb::device::{EventType, Kind, Push};

/// Of a hundred messages so many are tapped.
const CLICKS: u8 = 10;
/// Of a hundred messages so many are dismissed.
const CLEANS: u8 = 5;
/// The user reacts within so many milliseconds; half of the reactions come at once, in the same Ack as the arrive.
const REACTION_MS: u64 = 300;

/// What all apps count together, and whether something changed.
#[derive(Debug, Default)]
pub(super) struct Shared {
    connected: AtomicU64,
    /// Devices with events that are not confirmed, or still to be made.
    received: AtomicU64,
    clicked: AtomicU64,
    cleaned: AtomicU64,
    /// Messages taken back that a device had, each once.
    told: AtomicU64,
    /// By number: given to it, or got when it registered.
    ids: Vec<OnceLock<String>>,
    failure: Mutex<Option<String>>,
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn new(devices: u32) -> Self {
        Self { ids: (0..devices).map(|_| OnceLock::new()).collect(), ..Self::default() }
    }

    /// The id of a device; empty before it has one.
    pub(super) fn id(&self, n: u32) -> &str {
        self.ids.get(n as usize).and_then(OnceLock::get).map_or("", String::as_str)
    }

    /// Notes the id that a device has; it never gets another.
    pub(super) fn set_id(&self, n: u32, id: &str) {
        let Some(slot) = self.ids.get(n as usize) else { return };
        let known = slot.get_or_init(|| id.to_owned());
        if known != id {
            self.fail(format!("device {known} was given another id, {id}"));
        }
    }

    pub(super) fn connected(&self) -> u64 {
        self.connected.load(Ordering::Acquire)
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    pub(super) fn clicked(&self) -> u64 {
        self.clicked.load(Ordering::Acquire)
    }

    pub(super) fn cleaned(&self) -> u64 {
        self.cleaned.load(Ordering::Acquire)
    }

    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// Why a device gave up, if one did.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn fail(&self, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.changed.notify_one();
    }
}

/// The app of one device.
#[derive(Debug)]
pub(super) struct App {
    n: u32,
    /// In the order in which it was handed them.
    pub(super) got: Vec<u64>,
    /// Messages that were taken back.
    told: HashSet<u64>,
    rng: SmallRng,
    shared: Arc<Shared>,
    connected: bool,
}

impl App {
    pub(super) fn new(n: u32, seed: u64, shared: &Arc<Shared>) -> Self {
        Self {
            n,
            got: Vec::new(),
            told: HashSet::new(),
            rng: SmallRng::seed_from_u64(seed),
            shared: Arc::clone(shared),
            connected: false,
        }
    }

    /// Messages handed over more than once.
    pub(super) fn duplicates(&self) -> u64 {
        let distinct: HashSet<_> = self.got.iter().collect();
        (self.got.len() - distinct.len()) as u64
    }
}

impl Handler for App {
    fn push(&mut self, push: Push) -> Option<Reaction> {
        self.got.push(push.message_id);
        self.shared.received.fetch_add(1, Ordering::AcqRel);
        if push.kind() != Kind::Notification {
            return None;
        }
        let (event, count) = match self.rng.random_range(0..100) {
            roll if roll < CLICKS => (EventType::Click, &self.shared.clicked),
            roll if roll < CLICKS + CLEANS => (EventType::Clean, &self.shared.cleaned),
            _ => return None,
        };
        count.fetch_add(1, Ordering::AcqRel);
        let delay = if self.rng.random() { 0 } else { self.rng.random_range(1..REACTION_MS) };
        Some(Reaction { event, delay })
    }

    fn keep(&mut self, device_id: &str, _credential: &[u8]) {
        self.shared.set_id(self.n, device_id);
    }

    fn revoke(&mut self, message_id: u64) {
        // A device may be told twice; and after a crash the edge tells those too whom it may have sent the message.
        if self.got.contains(&message_id) && self.told.insert(message_id) {
            self.shared.told.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn turn(&mut self, machine: &Machine) {
        note_change(&self.shared.connected, &mut self.connected, machine.is_connected());
        self.shared.changed.notify_one();
    }
}

fn note_change(count: &AtomicU64, was: &mut bool, is: bool) {
    match (*was, is) {
        (false, true) => count.fetch_add(1, Ordering::AcqRel),
        (true, false) => count.fetch_sub(1, Ordering::AcqRel),
        _ => return,
    };
    *was = is;
}
