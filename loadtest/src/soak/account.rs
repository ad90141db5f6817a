//! What was pushed, what came, and what the router was told: every target has one end, and every device gets a message once. Pure.
//!
//! A message is remembered until all its targets have ended and a while longer, so that a run of hours needs no more than one of minutes.

use std::collections::{HashMap, VecDeque};

use hdrhistogram::Histogram;
use mooring::push::Failure;

/// Microseconds that a message which has ended is remembered: what comes again meanwhile is a duplicate.
const REMEMBERED_US: u64 = 60_000_000;
/// Microseconds of the longest latency that is told from longer ones.
const LONGEST_US: u64 = 600_000_000;

/// Which target of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// By its place among the targets.
    Ordinal(u32),
    /// By the device's number.
    Device(u32),
}

#[derive(Debug)]
struct Message {
    /// Microseconds; `None`: its latency doesn't count.
    due: Option<u64>,
    /// Numbers of devices, ascending.
    targets: Vec<Target>,
    open: u32,
}

#[derive(Debug)]
struct Target {
    device: u32,
    came: bool,
    ended: bool,
}

/// What became of all targets.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Sums {
    pub(super) sent: u64,
    pub(super) came: u64,
    /// The router was told so.
    pub(super) arrived: u64,
    pub(super) expired: u64,
    /// Any other end.
    pub(super) failed: u64,
    /// Came to one device more than once, or to one that it wasn't for.
    pub(super) duplicates: u64,
    /// The router was told that it arrived, and it never came.
    pub(super) phantoms: u64,
}

#[derive(Debug)]
pub(super) struct Account {
    messages: HashMap<u64, Message>,
    /// When it ended, and which.
    over: VecDeque<(u64, u64)>,
    latencies: Histogram<u64>,
    open: u64,
    pub(super) sums: Sums,
}

impl Account {
    pub(super) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            messages: HashMap::new(),
            over: VecDeque::new(),
            latencies: Histogram::new_with_bounds(1, LONGEST_US, 3)?,
            open: 0,
            sums: Sums::default(),
        })
    }

    /// A message goes out to these devices, whose numbers ascend.
    pub(super) fn sent(&mut self, message: u64, due: Option<u64>, devices: impl Iterator<Item = u32>) {
        let target = |device| Target { device, came: false, ended: false };
        let targets: Vec<_> = devices.map(target).collect();
        debug_assert!(targets.is_sorted_by_key(|t| t.device));
        let open = targets.len() as u32;
        self.sums.sent += u64::from(open);
        self.open += u64::from(open);
        self.messages.insert(message, Message { due, targets, open });
    }

    /// A device was handed a message.
    pub(super) fn came(&mut self, message: u64, device: u32, at: u64) {
        let known = self.messages.get_mut(&message);
        let Some((due, target)) = known.and_then(|m| Some((m.due, m.find(Which::Device(device))?))) else {
            self.sums.duplicates += 1;
            return;
        };
        if std::mem::replace(&mut target.came, true) {
            self.sums.duplicates += 1;
            return;
        }
        self.sums.came += 1;
        if let Some(due) = due {
            self.latencies.saturating_record(at.saturating_sub(due).max(1));
        }
    }

    /// The router was told the end of a target: that it arrived, or why not.
    pub(super) fn ended(&mut self, message: u64, which: Which, outcome: Result<(), Failure>, at: u64) {
        let Some(known) = self.messages.get_mut(&message) else { return };
        let Some(target) = known.find(which).filter(|t| !t.ended) else { return };
        target.ended = true;
        let sums = &mut self.sums;
        match outcome {
            Ok(()) => {
                sums.arrived += 1;
                sums.phantoms += u64::from(!target.came);
            }
            Err(Failure::Expired) => sums.expired += 1,
            Err(_) => sums.failed += 1,
        }
        self.open -= 1;
        known.open -= 1;
        if known.open == 0 {
            self.over.push_back((at, message));
        }
        while self.over.front().is_some_and(|(since, _)| since + REMEMBERED_US < at) {
            let forgotten = self.over.pop_front().and_then(|(_, message)| self.messages.remove(&message));
            debug_assert!(forgotten.is_some_and(|message| message.open == 0));
        }
    }

    /// Targets without an end.
    pub(super) fn open(&self) -> u64 {
        self.open
    }

    /// Microseconds from when a message was due until it came, since the last call.
    pub(super) fn take_latencies(&mut self) -> Histogram<u64> {
        let taken = self.latencies.clone();
        self.latencies.reset();
        taken
    }
}

impl Message {
    fn find(&mut self, which: Which) -> Option<&mut Target> {
        let at = match which {
            Which::Ordinal(ordinal) => ordinal as usize,
            Which::Device(device) => self.targets.binary_search_by_key(&device, |t| t.device).ok()?,
        };
        self.targets.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::new().expect("bounds that are right")
    }

    #[test]
    fn each_target_comes_once_and_ends_once() {
        let mut account = account();
        account.sent(7, Some(1_000), [3, 5, 9].into_iter());
        account.came(7, 5, 3_000);
        account.ended(7, Which::Device(5), Ok(()), 4_000);
        account.ended(7, Which::Device(5), Ok(()), 4_100);
        account.ended(7, Which::Ordinal(2), Err(Failure::Expired), 5_000);
        assert_eq!(account.open(), 1);
        account.ended(7, Which::Ordinal(0), Err(Failure::Revoked), 5_000);
        let sums = Sums { sent: 3, came: 1, arrived: 1, expired: 1, failed: 1, ..Sums::default() };
        assert_eq!((account.open(), account.sums), (0, sums));
        let latencies = account.take_latencies();
        assert_eq!((latencies.len(), latencies.max() / 10), (1, 200));
        assert_eq!(account.take_latencies().len(), 0);
    }

    #[test]
    fn what_comes_twice_or_to_somebody_else_is_a_duplicate_also_after_its_end() {
        let mut account = account();
        account.sent(7, None, [3].into_iter());
        account.came(7, 3, 1);
        account.came(7, 3, 2);
        account.came(7, 4, 2);
        account.ended(7, Which::Device(3), Ok(()), 3);
        account.came(7, 3, 4);
        account.came(8, 3, 4);
        assert_eq!((account.sums.came, account.sums.duplicates), (1, 4));
    }

    #[test]
    fn arrived_without_coming_is_noticed() {
        let mut account = account();
        account.sent(7, None, [3].into_iter());
        account.ended(7, Which::Device(3), Ok(()), 3);
        assert_eq!(account.sums.phantoms, 1);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut account = account();
        for n in 0..1_000 {
            account.sent(n, None, [1].into_iter());
            account.came(n, 1, n * 1_000_000);
            account.ended(n, Which::Device(1), Ok(()), n * 1_000_000);
        }
        assert!(account.messages.len() <= 62 && account.over.len() <= 62, "{}", account.messages.len());
    }
}
